"""Brackets of a maximum: closed formulas, dense grids, needles and kinks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths import bracket_maximum
from thalweg.paths.height import chord_upper, tangent_upper
from thalweg.paths.segments import check_segment

ENDS = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
number = st.floats(-10, 10)


class ValuesOnly(FunctionLandscape):
    """A landscape as BatchNorm's ``recompute`` leaves it: no gradient."""

    batchnorm = "recompute"

    def with_batchnorm(self, policy: str) -> ValuesOnly:
        return self

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no gradient under recompute")


def along(f: object) -> FunctionLandscape:
    """A landscape of one coordinate from a function of a scalar tensor."""
    return FunctionLandscape(lambda x: f(x[0]), 1)  # type: ignore[operator] # f is a lambda


def true_maximum(land: FunctionLandscape, points: Tensor, count: int = 4001) -> float:
    """The maximum by a dense grid, refined by SciPy around the grid's best."""
    best = -math.inf
    for a, b in itertools.pairwise(points):
        t = torch.linspace(0, 1, count, dtype=torch.float64)
        values = land.loss(a + t[:, None] * (b - a))
        i = int(values.argmax())
        near = scipy.optimize.minimize_scalar(
            lambda s, a=a, b=b: -float(land.loss(a + s * (b - a))),
            bounds=(float(t[max(i - 1, 0)]), float(t[min(i + 1, count - 1)])),
            method="bounded",
            options={"xatol": 1e-12},
        )
        best = max(best, float(values[i]), -float(near.fun))
    return best


@given(number, number, number, number, st.floats(0.01, 5), st.floats(0, 20))
def test_tangent_upper_is_the_maximum_of_the_lower_parabola(
    g0: float, d0: float, g1: float, d1: float, h: float, extra: float
) -> None:
    """The closed form against a dense grid, for any data that the curvature allows."""
    k = extra + max(
        0.0, (d1 - d0) / h, 2 * (g1 - g0 - d0 * h) / h**2, 2 * (g0 - g1 + d1 * h) / h**2
    )
    t = np.linspace(0, h, 4001)
    lower = np.minimum(g0 + d0 * t + k * t**2 / 2, g1 - d1 * (h - t) + k * (h - t) ** 2 / 2).max()
    one = np.ones(1)
    upper, where = tangent_upper(g0 * one, d0 * one, g1 * one, d1 * one, h * one, k * one)
    scale = 1 + abs(g0) + abs(g1) + (abs(d0) + abs(d1) + k * h) * h
    assert lower <= upper[0] + 1e-12 * scale
    assert upper[0] <= lower + 1e-3 * scale
    assert 0 <= where[0] <= h


@given(number, number, st.floats(0.01, 5), st.floats(0, 50))
def test_chord_upper_is_the_maximum_of_the_bent_chord(
    g0: float, g1: float, h: float, k: float
) -> None:
    t = np.linspace(0, h, 4001)
    dense = (g0 + (g1 - g0) * t / h + k * t * (h - t) / 2).max()
    one = np.ones(1)
    upper, where = chord_upper(g0 * one, g1 * one, h * one, k * one)
    assert dense - 1e-9 <= upper[0] <= dense + 1e-4 * (1 + k * h**2)
    assert 0 <= where[0] <= h


@pytest.mark.parametrize("tolerance", [1e-2, 1e-8])
def test_a_quadratic_is_bracketed_to_the_tolerance(tolerance: float) -> None:
    land = along(lambda x: -3 * (x - 0.3217) ** 2 + 5)
    for curvature, kind in ((None, "estimated"), (6.0, "certified")):
        found = bracket_maximum(land, ENDS, tolerance=tolerance, curvature=curvature).maximum
        assert 5.0 in found or abs(found.upper - 5) < 1e-14
        assert found.width <= tolerance
        assert (found.lower_kind, found.upper_kind) == ("certified", kind)


@pytest.mark.parametrize("seed", range(10))
def test_certified_brackets_hold_for_quartics_and_waves(seed: int) -> None:
    """In every case the truth lies inside, whatever the budget."""
    rng = np.random.default_rng(seed)
    for budget in (5, 17, 60):
        c = torch.from_numpy(rng.normal(size=5) * [1, 3, 5, 5, 5])
        w, phase = float(rng.uniform(5, 60)), float(rng.uniform(0, 6))
        wave = float(rng.uniform(0, 2))

        def f(x: Tensor, c: Tensor = c, w: float = w, p: float = phase, s: float = wave) -> Tensor:
            return (c * x ** torch.arange(5)).sum() + s * torch.sin(w * x + p)

        bound = float(2 * c[2].abs() + 6 * c[3].abs() + 12 * c[4].abs()) + wave * w**2
        land = along(f)
        found = bracket_maximum(
            land, ENDS, tolerance=1e-9, curvature=bound, initial=4, max_samples=budget
        ).maximum
        assert found.lower - 1e-12 <= true_maximum(land, ENDS) <= found.upper + 1e-12
        assert found.upper_kind == "certified"


@pytest.mark.slow
def test_the_estimated_kind_holds_on_smooth_random_functions() -> None:
    """Measured, not proven: random Fourier sums with wavelengths down to 4 initial spacings."""
    rng = np.random.default_rng(0)
    missed, gaps = 0, []
    for _ in range(60):
        a = torch.from_numpy(rng.normal(size=8) / np.arange(1, 9))
        p = torch.from_numpy(rng.uniform(0, 6.28, 8))
        k = torch.arange(1, 9) * math.pi

        def f(x: Tensor, a: Tensor = a, k: Tensor = k, p: Tensor = p) -> Tensor:
            return (a * torch.sin(k * x + p)).sum()

        land = along(f)
        found = bracket_maximum(land, ENDS).maximum
        truth = true_maximum(land, ENDS, 1001)
        missed += not found.lower - 1e-9 <= truth <= found.upper + 1e-9
        gaps.append(found.width)
    assert missed == 0
    assert float(np.median(gaps)) < 1e-2


def test_a_needle_between_coarse_samples() -> None:
    """A 20-point check misses it; the certified bracket widens, then finds it."""
    width, centre = 2e-3, 0.5 + 0.5 / 16

    def needle(x: Tensor) -> Tensor:
        return torch.exp(-(((x - centre) / width) ** 2)) + 0.1 * x

    land = along(needle)
    truth = true_maximum(land, ENDS)
    coarse = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    assert float(land.loss(coarse).max()) < 0.11
    bound = 2 / width**2
    narrow = bracket_maximum(land, ENDS, curvature=bound, max_samples=17).maximum
    assert narrow.upper > truth
    assert narrow.width > 100
    full = bracket_maximum(land, ENDS, curvature=bound, max_samples=3000, tolerance=1e-3).maximum
    assert full.lower - 1e-9 <= truth <= full.upper
    assert full.width <= 1e-3
    blind = bracket_maximum(land, ENDS).maximum
    assert blind.upper < truth
    assert blind.upper_kind == "estimated"


def test_a_curvature_that_is_no_bound_is_refused() -> None:
    land = along(lambda x: torch.sin(20 * x))
    with pytest.raises(ValueError, match=r"curvature=10 is no bound: near t=.*need at least"):
        bracket_maximum(land, ENDS, curvature=10.0)
    with pytest.raises(ValueError, match="not negative"):
        bracket_maximum(land, ENDS, curvature=-1.0)


@pytest.mark.parametrize("kink", [0.123, 1 / 3, 0.5, 0.9171])
def test_kinks(kink: float) -> None:
    """A tent has its maximum at a concave kink; |x| is highest at an end."""
    tent = bracket_maximum(along(lambda x: -(x - kink).abs()), ENDS, tolerance=1e-6).maximum
    assert tent.lower <= 0.0 <= tent.upper + 1e-15
    assert tent.width <= 1e-6
    proven = bracket_maximum(
        along(lambda x: -(x - kink).abs()), ENDS, tolerance=1e-6, curvature=0.0
    ).maximum
    assert proven.lower <= 0.0 <= proven.upper + 1e-15
    assert proven.upper_kind == "certified"
    vee = bracket_maximum(along(lambda x: (x - kink).abs()), ENDS, tolerance=1e-6).maximum
    assert vee.lower == max(kink, 1 - kink)
    assert vee.upper <= vee.lower + 1e-6


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_relu_sums_stay_inside_the_estimated_bracket(seed: int) -> None:
    """Piecewise linear with 6 kinks of either sign: the maximum is at a kink or an end."""
    g = torch.Generator().manual_seed(seed)
    at = torch.rand(6, generator=g, dtype=torch.float64)
    jump = torch.randn(6, generator=g, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return (jump * torch.relu(x - at)).sum()

    land = along(f)
    knots = torch.cat([at, torch.tensor([0.0, 1.0], dtype=torch.float64)])
    truth = float(land.loss(knots[:, None]).max())
    found = bracket_maximum(land, ENDS, tolerance=1e-4).maximum
    assert found.lower - 1e-12 <= truth <= found.upper + 1e-9


def test_a_polyline_has_two_slopes_at_a_corner() -> None:
    land = FunctionLandscape(lambda x: x[0] + 2 * x[1], 2)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    found = bracket_maximum(land, corners, curvature=0.0)
    assert found.maximum.lower == 2.0
    assert found.maximum.upper <= 2.0 + 1e-12
    assert found.top_time == 1.0
    peak = bracket_maximum(land, corners[:3], curvature=0.0)
    assert (peak.maximum.lower, peak.top_time) == (1.0, 0.5)
    assert torch.equal(peak.top, corners[1])


def test_repeated_corners_change_nothing() -> None:
    land = FunctionLandscape(lambda x: -((x - 0.3) ** 2).sum(), 1)
    doubled = torch.cat([ENDS[:1], ENDS[:1], ENDS])[[0, 1, 3]]
    assert bracket_maximum(land, doubled).maximum == bracket_maximum(land, ENDS).maximum
    with pytest.raises(ValueError, match="all coincide"):
        bracket_maximum(land, ENDS[[0, 0]])
    with pytest.raises(ValueError, match="a path needs"):
        bracket_maximum(land, ENDS[:1])


def test_values_alone_where_there_is_no_gradient() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.sin(7 * x[0]) - x[0]

    blind = ValuesOnly(f, 1)
    truth = true_maximum(FunctionLandscape(f, 1), ENDS)
    found = bracket_maximum(blind, ENDS, tolerance=1e-5).maximum
    assert found.lower - 1e-9 <= truth <= found.upper + 1e-9
    assert found.width <= 1e-5
    assert "values alone" in found.method
    proven = bracket_maximum(blind, ENDS, tolerance=1e-4, curvature=49.0).maximum
    assert proven.lower - 1e-9 <= truth <= proven.upper + 1e-9
    assert proven.upper_kind == "certified"
    with pytest.raises(ValueError, match="is no bound"):
        bracket_maximum(blind, ENDS, curvature=5.0)
    corners = torch.tensor([[0.0], [0.7], [0.4]], dtype=torch.float64)
    bent = bracket_maximum(blind, corners, tolerance=1e-4).maximum
    assert true_maximum(FunctionLandscape(f, 1), corners) <= bent.upper + 1e-9


def test_nan_and_infinity_are_reported() -> None:
    hole = bracket_maximum(along(lambda x: torch.sqrt(x - 0.5) + x), ENDS)
    assert math.isnan(hole.maximum.lower)
    assert math.isnan(hole.maximum.upper)
    wall = bracket_maximum(along(lambda x: torch.where(x > 0.5, math.inf * x, x)), ENDS)
    assert (wall.maximum.lower, wall.maximum.upper) == (math.inf, math.inf)


def test_float32_stops_at_its_rounding() -> None:
    land = FunctionLandscape(lambda x: 100 - (x[0] - 0.3) ** 2, 1, dtype=torch.float32)
    found = bracket_maximum(land, ENDS.float(), tolerance=1e-12, max_samples=500)
    assert found.maximum.cost.gradients < 300
    assert abs(found.maximum.upper - 100) < 1e-3


@pytest.mark.parametrize("blind", [False, True])
def test_a_level_stops_the_samples_early(blind: bool) -> None:
    """On one side of the level: a few samples; no second measurement from the start."""
    make = ValuesOnly if blind else FunctionLandscape
    land = make(lambda x: torch.sin(9 * x[0]), 1)
    full = len(bracket_maximum(land, ENDS, tolerance=1e-9, initial=4).times)
    for level in (0.5, 0.97, 1.02, 1.5):
        found = bracket_maximum(land, ENDS, tolerance=0.0, initial=4, level=level)
        bound = found.maximum
        assert (bound.upper <= level) if level > 1 else (bound.lower > level)
        assert len(found.times) < full
    segment = check_segment(land, ENDS[0], ENDS[1], 1.02, span=4.0)
    assert segment.maximum.upper <= 1.02
    assert len(segment.profile.times) < full
    start = land.cost
    check_segment(land, ENDS[0], ENDS[1], 0.5, span=1.0)
    spent = land.cost - start
    assert max(spent.gradients, spent.losses) == 17


def test_the_budget_holds_and_cost_is_counted() -> None:
    land = along(lambda x: torch.sin(300 * x))
    found = bracket_maximum(land, ENDS, tolerance=1e-12, max_samples=40)
    assert len(found.times) == 40
    assert found.maximum.cost == land.cost
    assert bool((found.times[1:] > found.times[:-1]).all())
