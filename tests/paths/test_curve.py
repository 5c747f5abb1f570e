"""Curves: the geometry in closed form, and training that lowers what it says it lowers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from torch import Tensor

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.optim import minimise
from thalweg.paths import line, measure
from thalweg.paths.curve import Curve, curve
from thalweg.paths.objective import (
    Descent,
    Quasi,
    Task,
    even_times,
    gauss_times,
    pull_back,
    stratified_times,
    weigh,
)

Make = Callable[..., Any]  # a closed form by its parameters, from conftest

RING = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
A, B = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)


def random_curve(seed: int, count: int, kind: str = "bezier") -> Curve:
    g = torch.Generator().manual_seed(seed)
    return Curve(torch.randn(count, 3, generator=g, dtype=torch.float64), kind)


@pytest.mark.parametrize("kind", ["bezier", "chain"])
@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_basis_and_ends(kind: str, seed: int, count: int) -> None:
    """A partition of unity, ends exact, and the derivative against differences."""
    c = random_curve(seed, count, kind)
    t = torch.rand(17, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = c.basis(t)
    assert bool((weights >= 0).all())
    assert torch.allclose(weights.sum(1), torch.ones(17, dtype=torch.float64))
    assert torch.equal(c.at(0.0), c.controls[0])
    assert torch.equal(c.at(1.0), c.controls[-1])
    h = 1e-6
    t = t[((t * c.degree) % 1 > 1e-3) & ((t * c.degree) % 1 < 1 - 1e-3)]  # off the corners
    slopes = (c.at((t + h).clamp(max=1)) - c.at((t - h).clamp(min=0))) / (2 * h)
    assert torch.allclose(c.derivative(t), slopes, atol=1e-5)
    points = c.polyline(9)
    assert torch.equal(points[[0, -1]], c.controls[[0, -1]])


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_bezier_against_de_casteljau_and_elevation(seed: int, count: int) -> None:
    c = random_curve(seed, count)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    rows = c.controls[:, None].expand(count, 11, 3)
    while len(rows) > 1:
        rows = torch.lerp(rows[:-1], rows[1:], t[:, None])
    assert torch.allclose(c.at(t), rows[0])
    assert torch.allclose(c.elevated().at(t), c.at(t))
    assert c.elevated().degree == c.degree + 1
    assert c.length == pytest.approx(c.elevated().length, rel=1e-6)  # cusps are hard


def test_chains_and_lengths() -> None:
    c = random_curve(3, 4, "chain")
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    assert torch.allclose(c.at(t), c.controls)
    assert torch.allclose(c.elevated().at(t), c.at(t))
    assert c.length == pytest.approx(float((c.controls[1:] - c.controls[:-1]).norm(dim=1).sum()))
    parabola = Curve(torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]], dtype=torch.float64))
    exact = (2 * math.sqrt(5) + math.asinh(2)) / 4  # y = x² from 0 to 1
    assert parabola.length == pytest.approx(exact, rel=1e-9)
    there_and_back = Curve(torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64))
    assert there_and_back.length == pytest.approx(1.0, rel=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_times(seed: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    t = stratified_times(count, g)
    assert torch.equal((t * count).floor(), torch.arange(count).double())
    assert torch.allclose(t[: count // 2] + t.flip(0)[: count // 2], torch.ones(1).double())
    even = even_times(count, g)
    assert torch.allclose(even.diff(), torch.full((count - 1,), 1 / count).double())
    nodes, shares = gauss_times(count, 2)
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares @ nodes) == pytest.approx(0.5)


def test_stratified_times_are_unbiased_and_vary_less() -> None:
    g = torch.Generator().manual_seed(0)
    means = torch.stack([stratified_times(4, g).exp().mean() for _ in range(2000)])
    plain = torch.rand(2000, 4, generator=g, dtype=torch.float64).exp().mean(1)
    exact = math.e - 1
    assert abs(float(means.mean()) - exact) < 4 * float(means.std()) / math.sqrt(2000)
    assert float(means.var()) < 0.02 * float(plain.var())


@pytest.mark.parametrize("objective", ["mean", "softmax", "max"])
def test_chain_rule_against_a_double_loop_and_autograd(objective: str) -> None:
    land = FunctionLandscape(lambda x: torch.cos(3 * x).sum() + (x**2).prod(), 3)
    c = random_curve(7, 4)
    t = torch.tensor([0.1, 0.45, 0.8], dtype=torch.float64)
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    losses, gradient = pull_back(land, c.controls, c.basis(t))
    value, weights = weigh(objective, losses, even, 2.0)
    looped = torch.zeros_like(c.controls)
    for j, i in itertools.product(range(3), range(4)):
        bernstein = math.comb(3, i) * float(t[j]) ** i * (1 - float(t[j])) ** (3 - i)
        looped[i] += weights[j] * bernstein * land.gradient(c.at(t[j]))
    assert torch.allclose(gradient(weights), looped)
    leaf = c.controls.clone().requires_grad_()
    along = torch.stack([land.f(c.basis(x) @ leaf) for x in t])
    exact = {
        "mean": along.mean(),
        "max": along.max(),
        "softmax": ((2 * along).exp().mean()).log() / 2,
    }[objective]
    assert value == pytest.approx(float(exact.detach()))
    assert torch.allclose(torch.autograd.grad(exact, leaf)[0], looped)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("bezier", 3), ("chain", 4)])
def test_around_the_ring(optimizer: str, kind: str, bends: int) -> None:
    """The line climbs to 1 through the middle; curves go round."""
    before = RING.cost
    path = curve(RING, A, B, kind=kind, bends=bends, optimizer=optimizer, seed=0)
    assert path.height.upper < (0.15 if bends == 1 else 0.05)
    assert path.normalised_length > 1.3
    assert path.method == kind
    assert path.cost == RING.cost - before
    assert path.converged, path.note
    assert len(path.points) == (32 * bends + 1 if kind == "bezier" else bends + 2)
    assert torch.equal(path.points[0], A)
    assert torch.equal(path.points[-1], B)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_barrier_is_reached_from_above(optimizer: str, scalar_linear_net: Make) -> None:
    """From a detour over 1.96, with the exact barrier (1 - λ)²/2 = 0.32 through the origin."""
    land = scalar_linear_net(0.2)
    end = torch.full((2,), math.sqrt(0.8), dtype=torch.float64)
    detour = measure(land, torch.stack([end, torch.tensor([1.5, -1.2]).double(), -end]))
    assert detour.height.lower > 1
    options: dict[str, Any] = {"optimizer": optimizer, "max_gradients": 1000, "bends": 1}
    path = curve(land, end, -end, objective="max", start=detour, seed=0, **options)
    assert path.height.upper >= 0.32 - 1e-9
    assert path.height.lower <= 0.32 * 1.01


def tilted() -> tuple[FunctionLandscape, Tensor, Tensor]:
    """A hill on a valley floor: round it, lower at the top is longer on the slope."""
    land = FunctionLandscape(
        lambda x: 4 * torch.exp(-4 * x[0] ** 2 - 2 * x[1] ** 2) + 0.3 * x[1] ** 2, 2
    )
    a = torch.tensor([-2.0, 0.0], dtype=torch.float64)
    return land, a, -a


def test_mean_against_a_dense_optimum_and_the_others_lower_the_top() -> None:
    """SciPy without gradients on 400 times agrees with the mean; the rest come lower."""
    land, a, b = tilted()
    t = torch.linspace(0, 1, 801, dtype=torch.float64)[1::2]

    def along(bend: np.ndarray) -> Tensor:
        return land.loss(Curve(torch.stack([a, torch.from_numpy(bend).double(), b])).at(t))

    dense = minimize(lambda x: float(along(x).mean()), np.array([0.1, 1.0]), method="Nelder-Mead")
    paths = {
        o: curve(land, a, b, objective=o, bends=1, seed=1, max_gradients=1200)
        for o in ("mean", "softmax", "max")
    }
    middle = 2 * paths["mean"].points[16] - (a + b) / 2  # the control point of a quadratic
    assert float(along(middle.numpy()).mean()) == pytest.approx(dense.fun, rel=1e-6)
    assert paths["softmax"].maximum.upper < paths["mean"].maximum.lower - 0.01
    assert paths["max"].maximum.upper < paths["mean"].maximum.lower - 0.01
    assert paths["max"].maximum.upper <= paths["softmax"].maximum.lower * 1.02
    top = minimize(lambda x: float(along(x).max()), np.array([0.1, 2.0]), method="Nelder-Mead")
    assert paths["max"].maximum.lower == pytest.approx(top.fun, rel=0.01)


def test_the_wrong_sign_climbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: uphill instead of down, the curve is drawn onto the hill in the middle."""
    task = lambda: Task(  # noqa: E731
        RING,
        torch.stack([A, torch.tensor([0.0, 0.5]).double(), B]),
        slice(1, -1),
        "bezier",
        "mean",
        400,
        8,
        torch.Generator().manual_seed(0),
        0,
    )
    heights = []
    for sign in (1, -1):
        search = Descent(task(), None, 0.05)
        evaluate = search.evaluate

        def turned(*args: Any, evaluate: Any = evaluate, sign: int = sign) -> tuple[float, Tensor]:
            value, slope = evaluate(*args)
            return value, sign * slope

        monkeypatch.setattr(search, "evaluate", turned)
        while not search.finished:
            search.step()
        heights.append(measure(RING, Curve(search.controls).polyline(32)).maximum.lower)
    assert heights[0] < 0.4
    assert heights[1] > 0.99


@pytest.fixture(scope="module")
def digits_model() -> tuple[ModelLandscape, Tensor, Tensor]:
    """A ReLU network on 128 digits, and two minima of it."""
    pixels, labels = load_digits(return_X_y=True)
    data = (torch.tensor(pixels[:128] / 16, dtype=torch.float32), torch.tensor(labels[:128]))
    model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
    land = ModelLandscape(model, torch.nn.functional.cross_entropy, data, penalty=1e-3)
    a, b = (
        minimise(
            land, land.start(torch.Generator().manual_seed(s)), tol=1e-3, max_gradients=60
        ).theta
        for s in (0, 1)
    )
    return land, a, b


@pytest.mark.slow
def test_minibatches_of_a_network(digits_model: tuple[ModelLandscape, Tensor, Tensor]) -> None:
    """Well below the line, within a budget that counts a quarter batch as a quarter."""
    land, a, b = digits_model
    straight = line(land, a, b)
    before = land.cost
    path = curve(land, a, b, batch_size=32, max_gradients=100, start=straight, bends=1, seed=0)
    assert path.height.upper < 0.3 * straight.height.lower
    assert path.cost == straight.cost + (land.cost - before)
    trained = path.cost.gradients - straight.cost.gradients
    assert 100 * 4 <= trained <= 100 * 4 + 2 * 65


def test_a_network_without_minibatches(digits_network: Make) -> None:
    land = digits_network()
    a, b = (
        minimise(
            land, land.start(torch.Generator().manual_seed(s)), tol=1e-3, max_gradients=120
        ).theta
        for s in (0, 1)
    )
    straight = line(land, a, b)
    path = curve(land, a, b, start=straight, max_gradients=400, seed=0)
    assert path.height.upper < 0.05 * straight.height.lower
    assert path.normalised_length < 2


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({"optimizer": "lbfgs"}, 1),
        ({"optimizer": "adam", "objective": "max"}, 7),
        ({"optimizer": "adam", "kind": "chain"}, 20),
    ],
)
def test_interrupted_and_resumed_is_unbroken(
    options: dict[str, Any], after: int, ctrl_c: Any, tmp_path: File
) -> None:
    unbroken = curve(RING, A, B, seed=5, max_gradients=600, **options)
    file = tmp_path / "curve.pt"
    stop = ctrl_c(after, says="step")
    with pytest.raises(KeyboardInterrupt):
        curve(RING, A, B, seed=5, max_gradients=600, checkpoint=file, progress=stop, **options)
    resumed = curve(RING, A, B, seed=5, max_gradients=600, checkpoint=file, **options)
    assert torch.equal(resumed.points, unbroken.points)
    assert resumed.cost == unbroken.cost
    assert resumed.note == unbroken.note
    with pytest.raises(ValueError, match="with other options"):
        curve(RING, A, B, seed=6, max_gradients=600, checkpoint=file, **options)


def test_minibatches_resume_and_a_drawn_seed_is_kept(
    digits_model: tuple[ModelLandscape, Tensor, Tensor], ctrl_c: Any, tmp_path: File
) -> None:
    land, a, b = digits_model
    options: dict[str, Any] = {"batch_size": 50, "max_gradients": 32, "bends": 1, "chords": 8}
    file = tmp_path / "curve.pt"
    with pytest.raises(KeyboardInterrupt):
        curve(land, a, b, checkpoint=file, progress=ctrl_c(5), **options)
    resumed = curve(land, a, b, checkpoint=file, **options)
    assert resumed.seed is not None
    unbroken = curve(land, a, b, seed=resumed.seed, **options)
    assert torch.equal(resumed.points, unbroken.points)
    assert resumed.cost == unbroken.cost


@settings(max_examples=6)
@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from(["lbfgs", "adam"]))
def test_never_higher_than_its_start_within_the_budget(
    seed: int, budget: int, optimizer: str
) -> None:
    """On a rough random surface."""
    g = torch.Generator().manual_seed(seed)
    waves = 3 * torch.randn(6, 4, generator=g, dtype=torch.float64)
    land = FunctionLandscape(lambda x: torch.cos(waves @ x).sum(), 4)
    a, b = torch.randn(2, 4, generator=g, dtype=torch.float64)
    straight = line(land, a, b)
    seen: list[int] = []
    before = land.cost
    path = curve(
        land,
        a,
        b,
        start=straight,
        optimizer=optimizer,
        max_gradients=10 * budget,
        seed=0,
        progress=lambda *_: seen.append((land.cost - before).gradients),
    )
    assert path.maximum.upper <= straight.maximum.upper
    assert max(seen, default=0) <= 10 * budget


def test_a_line_that_cannot_be_beaten_is_kept() -> None:
    bowl = FunctionLandscape(lambda x: (x**2).sum(), 5)
    a = torch.ones(5, dtype=torch.float64)
    path = curve(bowl, a, -0.5 * a, max_gradients=300, seed=0)
    assert path.height.upper <= 1e-2
    wall = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + 0 * x[1], 2)
    kept = curve(wall, A, B, max_gradients=300, seed=0)
    assert kept.height.lower == pytest.approx(1, abs=1e-3)
    tiny = curve(RING, A, B, max_gradients=1, seed=0)
    assert not tiny.converged
    assert "the budget ended after 0 steps" in tiny.note


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_loss_that_is_not_finite_is_reported(optimizer: str) -> None:
    nowhere = FunctionLandscape(
        lambda x: torch.where(x[0].abs() < 0.5, math.nan * x[0], x[0] ** 2), 2
    )
    path = curve(nowhere, A, B, optimizer=optimizer, max_gradients=200, seed=0)
    assert math.isnan(path.maximum.lower)
    assert not path.converged
    assert "NaN or infinite" in path.note
    hole = FunctionLandscape(
        lambda x: ((x**2).sum() - 1) ** 2 + 0 * torch.log((x**2).sum() - 0.01), 2
    )
    with_hole = line(hole, A, B)
    assert math.isnan(with_hole.maximum.lower)
    bent = measure(hole, torch.stack([A, torch.tensor([0.0, 0.5]).double(), B]))
    path = curve(hole, A, B, start=bent, optimizer=optimizer, max_gradients=800, seed=0)
    assert path.height.upper < 0.05


def test_a_seed_repeats_a_curve_bit_for_bit() -> None:
    one, two = (curve(RING, A, B, max_gradients=300, seed=4) for _ in range(2))
    drawn = curve(RING, A, B, max_gradients=300, optimizer="adam")
    again = curve(RING, A, B, max_gradients=300, optimizer="adam", seed=drawn.seed)
    other = curve(RING, A, B, max_gradients=300, seed=5)
    assert torch.equal(one.points, two.points)
    assert one.seed == 4
    assert torch.equal(drawn.points, again.points)
    assert not torch.equal(one.points, other.points)


def test_a_curve_starts_from_a_path() -> None:
    """Least squares reproduce a path that is a curve of the kind; training goes on from it."""
    bend = torch.tensor([0.0, 1.2], dtype=torch.float64)
    start = measure(RING, torch.stack([A, bend, B]))
    path = curve(RING, A, B, start=start, kind="chain", bends=1, max_gradients=1, seed=0)
    assert float((path.points[1] - bend).norm()) < 0.02
    low = curve(
        RING, A, B, start=measure(RING, torch.stack([A, -bend, B])), max_gradients=300, seed=0
    )
    assert float(low.points[len(low.points) // 2, 1]) < 0  # stays on its side
    with pytest.raises(ValueError, match="start joins other ends"):
        curve(RING, B, A, start=start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "spline"}, "unknown kind 'spline'; use one of bezier, chain"),
        ({"objective": "median"}, "unknown objective 'median'"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'"),
        ({"bends": 0}, "bends must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"max_gradients": 0}, "max_gradients must be at least 1"),
        ({"chords": 0}, "chords must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"optimizer": "lbfgs", "batch_size": 8}, "L-BFGS needs the same loss at every step"),
        ({"lr": -1.0}, "lr must be a positive number, got -1.0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curve(RING, A, B, **options)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_curve() -> None:
    with pytest.raises(ValueError, match=r"controls has shape \(1, 2\)"):
        Curve(A[None])
    with pytest.raises(ValueError, match="unknown kind 'spline'"):
        Curve(torch.stack([A, B]), "spline")
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
        Curve(torch.stack([A, B])).at(1.5)


def test_lbfgs_stops_where_it_is_told() -> None:
    """Never one evaluation more than the budget, whatever the stage."""
    for budget in (12, 13, 24, 100):
        search = Quasi(
            Task(
                RING,
                torch.stack([A, torch.tensor([0.0, 0.1]).double(), B]),
                slice(1, -1),
                "bezier",
                "softmax",
                budget,
                12,
                torch.Generator().manual_seed(0),
                0,
            )
        )
        before = RING.cost
        while not search.finished:
            search.step()
        assert (RING.cost - before).gradients == search.used <= budget
