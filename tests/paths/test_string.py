"""Strings: exact passes, and good behaviour where there is none to find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from thalweg.landscape import FunctionLandscape, Landscape, ModelLandscape
from thalweg.optim import minimise
from thalweg.paths import Path, climb, line, measure, string
from thalweg.paths.band import band
from thalweg.paths.images import equal_arcs, spacing, tangents
from thalweg.zoo import muller_brown, six_hump_camelback

Make = Callable[..., Any]  # a closed form by its parameters, from conftest


def polished(land: Landscape, starts: list[tuple[float, float]]) -> list[Tensor]:
    return [minimise(land, torch.tensor(s, dtype=torch.float64), tol=1e-10).theta for s in starts]


@pytest.mark.parametrize(
    ("pair", "saddle"),
    [((0, 1), -40.664843508657), ((0, 2), -40.664843508657), ((1, 2), -72.248940112325)],
)
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_muller_brown_passes(pair: tuple[int, int], saddle: float, seed: int) -> None:
    """Both passes to 1e-9 relative, within 1,500 gradients all told (700 in fact)."""
    land = muller_brown()
    minima = polished(land, [(-0.558, 1.442), (0.623, 0.028), (-0.05, 0.467)])
    before = land.cost
    path = string(land, minima[pair[0]], minima[pair[1]], tolerance=1e-5, seed=seed)
    assert path.maximum.lower == pytest.approx(saddle, rel=1e-9)
    assert path.maximum.upper == pytest.approx(saddle, abs=2e-5)
    assert path.converged
    assert path.cost == land.cost - before
    assert path.cost.gradients + path.cost.hvps <= 700
    assert float(land.gradient(path.top).norm()) < 1e-6
    assert bool((path.points == path.top).all(1).any())


@pytest.mark.slow
def test_camelback_seven_passes() -> None:
    """All fifteen pairs of minima; between them the seven passes of index 1."""
    land = six_hump_camelback()
    minima = polished(
        land, [(0.09, -0.71), (-0.09, 0.71), (1.7, -0.8), (-1.7, 0.8), (1.6, 0.57), (-1.6, -0.57)]
    )
    found: list[Tensor] = []
    for a, b in itertools.combinations(minima, 2):
        path = string(land, a, b, tolerance=1e-5, seed=0)
        assert path.converged, path
        for corner in path.points[1:-1]:
            gradient = float(land.gradient(corner).norm())
            if gradient < 1e-6 and all(float((corner - x).norm()) > 1e-4 for x in found):
                found.append(corner)
    values = sorted(float(land.loss(x)) for x in found)
    expected = [0.0, 0.543719, 0.543719, 2.229357, 2.229357, 2.229471, 2.229471]
    assert values == pytest.approx(expected, abs=1e-6)


@settings(max_examples=3)
@given(st.floats(0.02, 0.9))
def test_scalar_linear_net(scalar_linear_net: Make, decay: float) -> None:
    """The barrier between the two minima is (1 - λ)²/2."""
    end = torch.full((2,), math.sqrt(1 - decay), dtype=torch.float64)
    path = string(scalar_linear_net(decay), end, -end, seed=0)
    exact = (1 - decay) ** 2 / 2
    assert path.height.lower == pytest.approx(exact, rel=1e-6)
    assert path.height.upper == pytest.approx(exact, rel=1e-2)
    assert path.converged


@pytest.mark.parametrize("eigenvalues", [[3.0, 0, 0], [3.0, 2.0, 0.5], [2.0, 1.5, 1.0, 0.2, 0.1]])
def test_rank_one_fit_leaves_the_line_through_the_origin(
    eigenvalues: list[float], rank_one: Make
) -> None:
    """The line crosses a point of higher index; the pass is at √λ₂ v₂: (λ₁² - λ₂²)/4."""
    land, frame = rank_one(eigenvalues)
    end = math.sqrt(eigenvalues[0]) * frame[0]
    path = string(land, end, -end, seed=0)
    exact = (eigenvalues[0] ** 2 - eigenvalues[1] ** 2) / 4
    assert path.height.lower == pytest.approx(exact, rel=1e-6)
    assert path.height.upper <= exact * 1.01
    if eigenvalues[1] > 0:
        assert path.converged
        assert path.height.upper < line(land, end, -end).height.lower


def test_a_quadratic_form_on_the_sphere(rayleigh: Make) -> None:
    """The line meets 0/0 in its middle; the string goes round: barrier λ₂ - λ₁."""
    land = rayleigh([1.0, 2.0, 4.0, 7.0])
    a = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    assert math.isnan(line(land, a, -a).maximum.lower)
    path = string(land, a, -a, seed=0)
    assert path.height.lower == pytest.approx(1.0, abs=1e-3)
    assert path.height.upper == pytest.approx(1.0, abs=1e-2)
    assert path.normalised_length > 1.2


def test_a_level_ends_the_search(rank_one: Make, ctrl_c: Any, tmp_path: Any) -> None:
    """As soon as the measured string stays under it; a level out of reach changes nothing."""
    land, frame = rank_one([2.0, 1.0, 0.5])
    end = math.sqrt(2) * frame[0]
    whole = string(land, end, -end, seed=0)
    assert whole.height.lower == pytest.approx(0.75, rel=1e-6)
    low, high = whole.maximum.upper, line(land, end, -end).maximum.upper
    level = low + 0.2 * (high - low)
    soon = string(land, end, -end, level=level, seed=0)
    assert low < soon.maximum.upper <= level
    assert soon.cost.gradients < 0.7 * whole.cost.gradients
    assert soon.converged
    assert f"stays at or under the level {level:.8g}" in soon.note
    out = string(land, end, -end, level=low - 0.1, seed=0)
    assert torch.equal(out.points, whole.points)
    assert out.cost == whole.cost
    again = string(land, end, -end, start=soon, level=level, seed=0)
    assert torch.equal(again.points, soon.points)
    assert again.cost == soon.cost
    assert "the path that it starts from stays at or under the level" in again.note
    kept = tmp_path / "string.pt"
    options: dict[str, Any] = {"level": level, "seed": 0, "checkpoint": kept}
    with pytest.raises(KeyboardInterrupt):
        string(land, end, -end, progress=ctrl_c(3), **options)
    assert torch.equal(string(land, end, -end, **options).points, soon.points)
    with pytest.raises(ValueError, match="belongs to a search between other ends, or with other"):
        string(land, end, -end, **{**options, "level": level + 0.01})


@pytest.mark.slow
def test_a_network_of_many_weights(digits_network: Make) -> None:
    """Never higher than the line; much lower in fact; not called converged when it is not."""
    land = digits_network()
    a, b = (
        minimise(
            land, land.start(torch.Generator().manual_seed(s)), tol=1e-3, max_gradients=200
        ).theta
        for s in (0, 1)
    )
    straight = line(land, a, b)
    before = land.cost
    path = string(land, a, b, start=straight, max_gradients=600, seed=0)
    assert path.height.upper < 0.2 * straight.height.lower
    assert path.cost == straight.cost + (land.cost - before)
    assert path.cost.gradients + path.cost.hvps < 1000
    assert path.normalised_length < 2
    assert not path.converged
    assert "Raise max_gradients" in path.note


@settings(max_examples=4)
@given(st.integers(0, 10**6), st.integers(3, 40))
def test_never_higher_than_its_start(seed: int, budget: int) -> None:
    """On a rough random surface, whatever the budget."""
    g = torch.Generator().manual_seed(seed)
    waves = 3 * torch.randn(6, 4, generator=g, dtype=torch.float64)
    phase = 6 * torch.rand(6, generator=g, dtype=torch.float64)
    land = FunctionLandscape(lambda x: torch.cos(waves @ x + phase).sum(), 4)
    a, b = torch.randn(2, 4, generator=g, dtype=torch.float64)
    straight = line(land, a, b)
    path = string(land, a, b, start=straight, max_gradients=10 * budget, seed=0)
    assert path.maximum.lower <= straight.maximum.lower + 1e-12
    assert path.height.lower >= 0
    assert torch.equal(path.points[0], a)
    assert torch.equal(path.points[-1], b)


def test_a_straight_line_that_cannot_be_beaten_is_kept() -> None:
    """On a bowl between unequal ends, there is nothing to climb over."""
    land = FunctionLandscape(lambda x: (x**2).sum(), 5)
    a = torch.ones(5, dtype=torch.float64)
    path = string(land, a, -0.5 * a, seed=0)
    assert path.converged
    assert "higher than its ends" in path.note
    assert path.height.upper <= 1e-2


def test_relaxing_without_climbing() -> None:
    land = muller_brown()
    a, b = polished(land, [(-0.558, 1.442), (0.623, 0.028)])
    path = string(land, a, b, climbing=False, images=25, seed=0)
    assert path.maximum.lower == pytest.approx(-40.66, abs=1.0)
    assert path.cost.hvps == 0
    assert not path.converged


def test_a_seed_repeats_a_string_bit_for_bit(rank_one: Make) -> None:
    land, frame = rank_one([2.0, 1.0, 0.5])
    end = math.sqrt(2) * frame[0]
    one = string(land, end, -end, seed=4)
    two = string(land, end, -end, seed=4)
    drawn = string(land, end, -end)
    again = string(land, end, -end, seed=drawn.seed)
    assert torch.equal(one.points, two.points)
    assert one.seed == 4
    assert torch.equal(drawn.points, again.points)


def test_a_string_can_start_from_a_path() -> None:
    land = muller_brown()
    a, b, c = polished(land, [(-0.558, 1.442), (0.623, 0.028), (-0.05, 0.467)])
    start = measure(land, torch.stack([a, c, b]))
    path = string(land, a, b, start=start, tolerance=1e-4, seed=0)
    assert path.maximum.lower == pytest.approx(-40.664843508657, rel=1e-8)
    with pytest.raises(ValueError, match="start joins other ends"):
        string(land, a, c, start=start)
    with pytest.raises(ValueError, match="images must be at least 3"):
        string(land, a, b, images=2)


def test_climbing_to_a_pass_and_running_away() -> None:
    land = muller_brown()
    near = torch.tensor([-0.85, 0.6], dtype=torch.float64)
    across = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = climb(land, near, across)
    assert found.converged
    assert found.negative == 1
    assert found.curvature < 0
    assert found.loss == pytest.approx(-40.664843508657, rel=1e-10)
    assert "converged" in str(found)
    slope = FunctionLandscape(lambda x: x[0] + 0.01 * (x**2).sum(), 3)
    lost = climb(
        slope, torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), radius=0.5
    )
    assert not lost.converged
    assert float(lost.theta.norm()) <= 0.5
    bowl = climb(
        FunctionLandscape(lambda x: (x**2).sum(), 3),
        torch.ones(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.float64),
        radius=5.0,
    )
    assert not bowl.converged


def test_climbing_in_many_dimensions_with_few_products() -> None:
    """One negative curvature among 500; a Krylov space of 12 finds the pass."""
    dim = 500
    g = torch.Generator().manual_seed(0)
    stiff = 1 + 9 * torch.rand(dim - 1, generator=g, dtype=torch.float64)
    land = FunctionLandscape(
        lambda x: (
            (x[0] ** 2 - 1) ** 2
            + 0.5 * (stiff * x[1:] ** 2).sum()
            + 0.1 * torch.sin(x[:-1]) @ torch.sin(x[1:])
        ),
        dim,
    )
    start = 0.05 * torch.randn(dim, generator=g, dtype=torch.float64)
    across = torch.zeros(dim, dtype=torch.float64)
    across[0] = 1.0
    found = climb(land, start, across, radius=5.0)
    assert found.converged
    assert found.loss == pytest.approx(1.0, abs=1e-10)
    assert found.cost.hvps <= 12 * (found.steps + 1)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(3, 9), st.integers(1, 7))
def test_equal_arcs(seed: int, count: int, pin: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=g, dtype=torch.float64)
    pinned = tuple(sorted({0, min(pin, count - 1), count - 1}))
    moved = equal_arcs(x, pinned)
    assert torch.equal(moved[list(pinned)], x[list(pinned)])
    for i, j in itertools.pairwise(pinned):
        assert float(spacing(moved)[i:j].sum()) <= float(spacing(x)[i:j].sum()) + 1e-9
        straight = torch.linspace(0, 1, j - i + 1, dtype=torch.float64)[:, None]
        even = x[i] + straight * (x[j] - x[i])
        again = equal_arcs(even, (0, j - i))
        assert torch.allclose(again, even, atol=1e-9)


def test_tangents_look_uphill() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    rising = tangents(x, torch.tensor([0.0, 1.0, 2.0]))
    falling = tangents(x, torch.tensor([2.0, 1.0, 0.0]))
    peak = tangents(x, torch.tensor([0.0, 2.0, 1.0]))
    assert torch.allclose(rising, torch.tensor([[0.0, 1.0]]).double())
    assert torch.allclose(falling, torch.tensor([[1.0, 0.0]]).double())
    weights = torch.tensor([[1.0, 2.0]]).double()
    assert torch.allclose(peak, weights / weights.norm())


def test_progress_is_told(rank_one: Make) -> None:
    told: list[float] = []
    land, frame = rank_one([2.0, 1.0])
    end = math.sqrt(2) * frame[0]
    string(land, end, -end, seed=0, progress=lambda part, _: told.append(part))
    assert told
    assert told == sorted(told)
    assert all(0 <= part <= 1 for part in told)


def deep_linear(singular: list[float], n: int, seed: int) -> tuple[Landscape, Tensor, Tensor]:
    """½|W₂W₁ - M|² with r hidden units; the ends differ by a gauge of determinant -1."""
    g = torch.Generator().manual_seed(seed)
    r = len(singular)
    left, right, gauge = (
        torch.linalg.qr(torch.randn(k, k, generator=g, dtype=torch.float64)).Q for k in (n, n, r)
    )
    root = torch.diag(torch.tensor(singular, dtype=torch.float64).sqrt())
    w2, w1 = left[:, :r] @ root, root @ right[:, :r].T
    if float(torch.det(gauge)) > 0:
        gauge[:, 0] *= -1
    land = FunctionLandscape(
        lambda x: 0.5 * ((x[: n * r].view(n, r) @ x[n * r :].view(r, n) - w2 @ w1) ** 2).sum(),
        2 * n * r,
    )
    ends = [
        torch.cat([(w2 @ h).flatten(), (h.T @ w1).flatten()])
        for h in (torch.eye(r).double(), gauge)
    ]
    return land, ends[0], ends[1]


def factored(eigenvalues: list[float], n: int, seed: int) -> tuple[Landscape, Tensor, Tensor]:
    """¼|UUᵀ - M|² with U of rank(M) columns; the ends differ by a gauge of determinant -1."""
    g = torch.Generator().manual_seed(seed)
    r = len(eigenvalues)
    frame, gauge = (
        torch.linalg.qr(torch.randn(k, k, generator=g, dtype=torch.float64)).Q for k in (n, r)
    )
    u = frame[:, :r] @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64).sqrt())
    if float(torch.det(gauge)) > 0:
        gauge[:, 0] *= -1
    land = FunctionLandscape(
        lambda x: 0.25 * ((x.view(n, r) @ x.view(n, r).T - u @ u.T) ** 2).sum(), n * r
    )
    return land, u.flatten(), (u @ gauge).flatten()


@pytest.mark.parametrize("method", [string, band])
def test_passes_between_families_of_minima(method: Callable[..., Path]) -> None:
    """½σ_r² and ¼λ_r²: minima and passes come in families, with zero modes."""
    for (land, a, b), exact in (
        (deep_linear([2.0, 1.0], 3, 1), 0.5),
        (factored([2.0, 0.8], 3, 0), 0.16),
    ):
        path = method(land, a, b, tolerance=1e-7, seed=0)
        assert path.height.lower == pytest.approx(exact, rel=1e-6)
        assert path.height.upper == pytest.approx(exact, rel=1e-6)
        assert path.converged


def digits(examples: int = 400) -> ModelLandscape:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels[:examples] / 16, dtype=torch.float32)
    g = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=g)
    loss = torch.nn.functional.cross_entropy
    return ModelLandscape(net, loss, (x, torch.tensor(labels[:examples])))


@pytest.mark.slow
@pytest.mark.parametrize("method", [string, band])
def test_minibatches_settle_and_resume(
    method: Callable[..., Path], ctrl_c: Any, tmp_path: Any
) -> None:
    """Far below the line within a budget of full-data gradients; resumed is unbroken."""
    land = digits()
    a, b = (
        minimise(
            land, land.start(torch.Generator().manual_seed(s)), tol=1e-3, max_gradients=60
        ).theta
        for s in (0, 1)
    )
    straight = line(land, a, b, max_samples=40)
    options = {"start": straight, "max_gradients": 150, "batch_size": 50, "max_samples": 60}
    whole = method(land, a, b, seed=1, **options)
    assert whole.height.upper < 0.3 * straight.height.lower
    assert whole.cost.gradients > 4 * 150  # most of them on an eighth of the data
    kept = tmp_path / "search.pt"
    with pytest.raises(KeyboardInterrupt):
        method(land, a, b, seed=1, checkpoint=kept, progress=ctrl_c(25), **options)
    path = method(land, a, b, seed=1, checkpoint=kept, **options)
    assert torch.equal(path.points, whole.points)
    assert path.to_json() == whole.to_json()


def test_an_interrupted_string_goes_on_with_the_seed_it_drew(
    rank_one: Make, ctrl_c: Any, tmp_path: Any
) -> None:
    land, frame = rank_one([2.0, 1.0, 0.5])
    end = math.sqrt(2) * frame[0]
    kept = tmp_path / "string.pt"
    with pytest.raises(KeyboardInterrupt):
        string(land, end, -end, checkpoint=kept, progress=ctrl_c(12))
    path = string(land, end, -end, checkpoint=kept)
    again = string(land, end, -end, seed=path.seed)
    assert torch.equal(path.points, again.points)
    assert path.cost == again.cost
