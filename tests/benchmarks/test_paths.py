"""The benchmark of paths: the published schedules spend the budgets that they are given."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def paths(scripts, monkeypatch):
    """The benchmark of paths, with one network that takes milliseconds."""
    paths = scripts("benchmarks")("paths")
    import _path_nets

    from thalweg.landscape import ModelLandscape
    from thalweg.zoo import digits, mlp

    def land():
        pixels, labels = digits("train", image=False).tensors
        model, entropy = mlp((64, 3, 10), seed=0), torch.nn.functional.cross_entropy
        return ModelLandscape(model, entropy, (pixels[:256], labels[:256]), penalty=1e-2)

    monkeypatch.setattr(_path_nets.Net, "ends", lambda self, land, pair: _two(land, pair))
    monkeypatch.setattr(paths, "NETS", (_path_nets.Net("tiny", land, 256, (60,)),))
    return paths


def _two(land, pair):
    """Two random points, one of which is no minimum: ends all the same."""
    return tuple(land.start(torch.Generator().manual_seed(2 * pair + i)) for i in (0, 1))


def test_every_network_of_the_benchmark_has_a_loss(scripts, fashion_mnist_folder):
    for net in scripts("benchmarks")("paths").NETS:
        land = net.landscape(False)
        theta = land.start(torch.Generator().manual_seed(0))
        assert torch.isfinite(land.loss(theta)), net.name
        assert land.examples == net.examples


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_garipovs_schedule_spends_its_budget_of_full_data_gradients(paths, kind):
    from _path_peers import GARIPOV_BATCH, run_garipov

    land = paths.NETS[0].landscape(True)
    a, b = _two(land, 0)
    before = land.cost
    points = run_garipov(land, a, b, 7, 0, kind)
    share = GARIPOV_BATCH / land.examples
    assert (land.cost - before).gradients * share == 7
    assert torch.equal(points[0], a)
    assert torch.equal(points[-1], b)
    middle = (points[30] - (a + b) / 2).norm()
    assert middle > 0
    if kind == "chain":  # straight up to the bend
        torch.testing.assert_close(points[15], (a + points[30]) / 2, rtol=1e-5, atol=1e-6)


class _Neb:
    """A stand-in for torch_autoneb: asks for gradients as its band does, pivot by pivot."""

    class config:
        class NEBConfig:
            @staticmethod
            def from_dict(given):
                return given

    def __init__(self, land):
        self.land, self.steps = land, []

    def neb(self, data, model, config):
        pivots = data["path_coords"]
        first = config["insert"]["name"] == "equal"
        pivots = pivots[[0, 0, 0, 0, 1]] if first else pivots
        model.adapt_to_config(types.SimpleNamespace(**config["optim"]["eval"]))
        self.steps.append(config["optim"]["nsteps"])
        for _ in range(config["optim"]["nsteps"]):
            for pivot in pivots[1:-1]:
                model.set_coords_no_grad(pivot)
                model.apply(gradient=True)
                slope = torch.empty_like(pivot)
                model.get_grad(slope)
                assert torch.equal(slope, self.land.gradient(pivot))
        return {**data, "path_coords": pivots}


def test_autoneb_is_given_steps_for_its_budget_and_the_true_gradients(paths):
    from _path_peers import run_autoneb

    land = paths.NETS[0].landscape(True)
    peer, before = _Neb(land), land.cost
    run_autoneb(peer, land, *_two(land, 0), 240, 0)
    used = (land.cost - before).gradients / 2  # the stand-in checks each against its own
    assert used == 3 * sum(peer.steps)
    assert 0.85 * 240 <= used <= 240
    assert len(peer.steps) == 14
    assert peer.steps[4] == pytest.approx(2 * peer.steps[0], abs=1)


def test_a_path_that_leaves_the_numbers_fails_and_a_wrong_one_is_measured_higher(paths):
    from _path_peers import Diverged, run_garipov

    land = paths.NETS[0].landscape(True)
    a, b = _two(land, 0)

    def broken(land, a, b, budget, seed):
        raise Diverged("the curve's loss is not finite after 3 steps")

    def right(land, a, b, budget, seed):
        return run_garipov(land, a, b, budget, seed, "bezier")

    def wrong(land, a, b, budget, seed):
        points = right(land, a, b, budget, seed)
        points[30] += 3.0
        return points

    found = {}
    for name, search in {"right": right, "wrong": wrong, "broken": broken}.items():
        one = paths.Contestant(name, search, "a test")
        found[name] = paths.attempt(one, land, (a, b), 20, 0, 1e-3)
    assert found["broken"] == {"fails": "Diverged: the curve's loss is not finite after 3 steps"}
    assert found["wrong"]["height"] > found["right"]["height"] + 1
    judged = paths.judge([found["right"]], [found["wrong"]], [1e-3])
    assert judged["passed"]
    assert judged["ratios"][0] < 1
    assert not paths.judge([found["wrong"]], [found["right"]], [1e-3])["passed"]
    assert paths.judge([found["wrong"]], [found["right"]], [1e3])["passed"]  # both too low
    assert paths.judge([found["right"]], [found["broken"]], [1e-3]) is None


@pytest.mark.slow
def test_a_run_of_paths_without_a_checkout_says_so_and_writes_json_and_the_docs(
    paths, tmp_path, capsys
):
    import _path_tables

    out, document = tmp_path / "paths.json", tmp_path / "benchmarks-paths.md"
    assert paths.main(["--pairs", "1", "--out", str(out)]) == 0
    assert "AutoNEB" in capsys.readouterr().out
    data = json.loads(out.read_text("utf-8"))
    runs = data["nets"][0]["budgets"][0]["runs"]
    assert set(runs) == {"connect", "AutoNEB", "Garipov, Bezier", "Garipov, chain"}
    assert all(run[0]["lower"] <= run[0]["height"] for run in runs.values())
    document.write_text(f"before\n{_path_tables.BEGIN}\nold\n{_path_tables.END}\n", "utf-8")
    _path_tables.rewrite(document, data)
    text = document.read_text("utf-8")
    assert "published schedule, on our band" in text
    assert "| connect |" in text
    assert "old" not in text
    document.write_text("no marks", "utf-8")
    with pytest.raises(ValueError, match=r"lacks the marks"):
        _path_tables.rewrite(document, data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nets", "GAN"], "no network called GAN; there are: tiny"),
        (["--budgets", "many"], "numbers such as 200,600"),
        (["--budgets", "4"], "at least 50 gradients"),
        (["--autoneb", "nowhere"], "no checkout"),
    ],
)
def test_bad_options_of_the_benchmark_of_paths_are_explained(paths, capsys, arguments, message):
    with pytest.raises(SystemExit):
        paths.main(arguments)
    assert message in capsys.readouterr().err
