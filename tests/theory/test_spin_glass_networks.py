"""Networks against spin glasses: training, Hessian, counting, statistics, resuming, figures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from thalweg.curvature import Hessian
from thalweg.estimate import Estimate
from thalweg.theory.spin_glass.descent import local_minima
from thalweg.zoo import mlp

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def module(scripts: Any) -> Any:
    """Import a module of the example."""
    return scripts("examples/spin_glass", "examples/spin_glass_networks")


def few(module: Any) -> Any:
    return module("pictures").load("digits", None, (60, 20))


def test_a_group_trains_as_each_network_alone_by_autograd(module: Any) -> None:
    ensembles, (data, _) = module("ensembles"), few(module)
    how = ensembles.Training(epochs=2, batch=7)
    group = ensembles.train(5, range(3), data, how)
    for number in (0, 2):
        weights = [w.clone() for w in ensembles.draw(64, 5, number, "scaled")]
        for e in range(2):
            order = torch.randperm(60, generator=ensembles.generator(5, number, e))
            for at in range(0, 54, 7):
                some = order[at : at + 7]
                leaves = [w.requires_grad_() for w in weights]
                hidden = torch.relu(data.inputs[some] @ leaves[0] + leaves[1])
                loss = F.cross_entropy(hidden @ leaves[2] + leaves[3], data.targets[some])
                slopes = torch.autograd.grad(loss, leaves)
                rate = how.rate / (1 + how.decay * e)
                weights = [(w - rate * g).detach() for w, g in zip(leaves, slopes, strict=True)]
        first, b1, second, b2 = weights
        flat = torch.cat([first.T.flatten(), b1[0], second.T.flatten(), b2[0]])
        assert torch.allclose(group[number], flat, atol=1e-5)


def test_training_that_was_killed_ends_the_same(module: Any, tmp_path: Path) -> None:
    ensembles, (data, _) = module("ensembles"), few(module)
    whole = ensembles.train(4, range(2), data, ensembles.Training(4))
    state = tmp_path / "state"
    ensembles.train(4, range(2), data, ensembles.Training(2), state)
    assert torch.load(state, weights_only=True)["epochs"] == 2
    again = ensembles.train(4, range(2), data, ensembles.Training(4), state)
    assert torch.equal(again, whole)


def test_the_vector_is_in_the_order_of_the_landscape(module: Any) -> None:
    ensembles, (data, _) = module("ensembles"), few(module)
    theta = ensembles.train(4, range(2), data, ensembles.Training(1)).double()
    losses = ensembles.landscape(4, data).loss(theta)
    assert torch.allclose(ensembles.batched_losses(theta.float(), data).double(), losses, rtol=1e-5)
    model = mlp((64, 4, 10), activation="relu", seed=3).double()
    first, b1, second, b2 = ensembles.matrices(ensembles.landscape(4, data).vector(model), 64)
    assert torch.equal(first, model.layers[1].weight)
    assert torch.equal(second, model.layers[3].weight)
    assert torch.equal(torch.cat([b1, b2]), torch.cat([model.layers[1].bias, model.layers[3].bias]))


def test_losses_that_disagree_are_refused(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ensembles = module("ensembles")
    right = ensembles.batched_losses
    monkeypatch.setattr(ensembles, "batched_losses", lambda *a: 1.001 * right(*a))
    files = (tmp_path / "vectors.pt", tmp_path / "state")
    with pytest.raises(RuntimeError, match="they must agree to 1e-05"):
        ensembles.group(3, range(1), ("digits", None, (60, 20)), ensembles.Training(1), *files)


def test_the_hessian_is_the_landscapes(module: Any) -> None:
    ensembles, (data, _) = module("ensembles"), few(module)
    theta = ensembles.train(3, range(1), data, ensembles.Training(3))[0].double()
    found = ensembles.hessian(theta, data)
    with Hessian(ensembles.landscape(3, data), theta) as operator:
        wanted = operator.to_dense()
    assert torch.allclose(found, wanted, atol=1e-13)
    values = torch.linalg.eigvalsh(wanted)
    for level in (-1e-3, 1e-3):
        assert ensembles.below(found, level) == int((values < level).sum())
    assert ensembles.below(found, -1e-3) > 0  # so little training leaves some


def test_images_are_averaged_over_equal_areas(module: Any) -> None:
    shrink = module("pictures").shrink
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    small = shrink(images)
    assert small.shape == (3, 1, 10, 10)
    assert torch.allclose(small.mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    fine = images.repeat_interleave(5, 2).repeat_interleave(5, 3)  # 140 = 10 x 14
    assert torch.allclose(small, F.avg_pool2d(fine, 14), atol=1e-6)
    with pytest.raises(ValueError, match=r"\(8, 8\) cannot be averaged to 10 pixels"):
        shrink(torch.zeros(1, 1, 8, 8))


def test_descents_of_the_example_are_proven_minima(module: Any) -> None:
    glasses = module("glasses")
    land = glasses.glass(12, 0)
    rows = glasses.measured(land, 0, range(6))
    assert all(row["certified"] and row["negative"] == 0 and row["dim"] == 11 for row in rows)
    assert all(row["lowest"] > 0 and row["gradient"] < 1e-10 for row in rows)
    again = local_minima(land, starts=glasses.draw(land, 0, range(2, 4)), seed=0)
    assert again.energies.tolist() == pytest.approx([row["energy"] for row in rows[2:4]])


@pytest.mark.slow
def test_a_power_of_the_variance_is_recovered_and_another_shape_refused(module: Any) -> None:
    laws = module("laws")
    source = np.random.default_rng(0)
    sizes = (25, 50, 100, 250, 500)
    draws = {n: laws.apart(source.normal(0, n**-0.75, 200)) for n in sizes}
    law = laws.power(draws)
    assert -1.5 in law.exponent
    assert law.exponent.half_width < 0.2
    assert law.misfit > 0.01
    bent = {n: laws.apart(source.normal(0, 1 + (n == 100), 200)) for n in sizes}
    refused = laws.power(bent)
    assert refused.misfit < 1e-6
    assert "the residuals exceed the errors" in str(refused)
    assert laws.power({n: draws[n] for n in sizes[:2]}) is None


def test_whole_disorders_are_drawn_anew(module: Any) -> None:
    laws = module("laws")
    source = np.random.default_rng(1)
    clusters = [np.full(10, x) for x in source.normal(size=60)]
    wide, _ = laws.variance(clusters, 0)
    narrow, _ = laws.variance(laws.apart(np.concatenate(clusters)), 0)
    assert 2 < wide.stderr / narrow.stderr < 5  # of 60 against 600 independent values


@pytest.mark.slow
def test_correlation_scaling_and_trend(module: Any) -> None:
    laws = module("laws")
    source = np.random.default_rng(2)
    x = source.normal(size=300)
    y = 0.6 * x + 0.8 * source.normal(size=300)
    rho = laws.correlation(x, y)
    fisher = stats.pearsonr(x, y).confidence_interval()
    assert rho.value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert rho.interval == pytest.approx((fisher.low, fisher.high), abs=0.02)
    assert math.isnan(laws.correlation([1.0] * 9, list(range(9))).value)
    losses = {n: [0.3 * math.exp(2.0 * n**-0.5)] for n in (10, 25, 50, 100, 500)}
    scale = laws.scale(losses)
    assert (scale.alpha, scale.beta) == pytest.approx((2.0, -0.5), rel=1e-6)
    assert scale.constant == pytest.approx(0.3)
    assert laws.scale({10: [1.0], 20: [2.0], 30: [3.0]}) is None
    falling = {n: Estimate(1 - 0.2 * math.log10(n), 0.01, (0.0, 1.0), 9) for n in (10, 100, 1000)}
    assert laws.trend(falling).value == pytest.approx(-0.2)


def test_verdicts(module: Any) -> None:
    judge = module("published").judge
    ours = Estimate(-1.599, 0.002, (-1.603, -1.595), 64)
    assert judge(ours, -1.635, -1.57) == "agrees"
    assert judge(ours, -1.632993, -1.632993) == "**disagrees**"
    assert judge(ours, 0, 1, "other images") == "not comparable (other images)"
    assert judge(Estimate(0.5, math.nan, (-math.inf, math.inf), 1), 0, 1) == "too few results"


@pytest.mark.slow
def test_the_example_runs_goes_on_and_draws(tmp_path: Path) -> None:
    def call(*more: str) -> str:
        command = [sys.executable, str(EXAMPLES / "spin_glass_networks"), "--quick"]
        command += ["--workers", "1", "--out", str(tmp_path)]
        return subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout

    first = call()
    assert "19 units done" in first
    for said in ("fails: all 910 parameters are distinct", "not comparable (8 x 8 digits",
                 "What follows from theory", "A7p", "| 12 | 6 |"):  # fmt: skip
        assert said in first
    kept = {file: file.read_text() for file in (tmp_path / "quick").glob("*/*.json")}
    assert len(kept) == 19
    lost = sorted(kept)[3]
    lost.unlink()
    assert "1 units done" in call()
    then, now = json.loads(kept[lost]), json.loads(lost.read_text())
    assert {**then, "cpu_seconds": 0} == {**now, "cpu_seconds": 0}
    assert first.partition("##")[2].rpartition("Losses")[0] in call("--table")
    call("--figure", str(tmp_path / "drawn.html"))
    for name in ("losses", "variance", "index"):
        assert (tmp_path / f"drawn-{name}.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_five_figures_are_drawn(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "spin_glass"), "--quick", "--format", "html"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    drawn = {file.stem for file in tmp_path.glob("*.html")}
    names = ("complexity", "bands", "index-energy", "spectra", "floor")
    assert drawn == {f"spin-glass-{name}" for name in names}
