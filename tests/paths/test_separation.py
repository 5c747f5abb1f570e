"""Separating sets: which are used, which are refused, and what they prove."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.landscape.separators import Separable
from thalweg.paths import ContradictionError, band, connect, measure
from thalweg.paths.path import Floor
from thalweg.paths.separation import (
    Separator,
    check_consistent,
    crossing,
    floor_between,
    reconciled,
    separates,
)
from thalweg.zoo import deep_linear, sphere_form

WELL = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, 2)
A, B = torch.tensor([[1.0, 0.3], [-1.0, 0.5]], dtype=torch.float64)


def wall(floor: float = 1.0, side: Any = None, kind: Any = "exact") -> Separator:
    return Separator("x0 = 0", side or (lambda x: x[0]), floor, kind, "L = 1 + x1^2 there")


def test_a_set_separates_ends_on_two_sides_only() -> None:
    assert separates(wall(), A, B)
    assert separates(wall(), B, A)
    assert not separates(wall(), A, 0.5 * A)
    assert floor_between(WELL, A, 0.5 * A, [wall()]) is None


@pytest.mark.parametrize("rounding", [0.0, 1e-16, -3e-16])
def test_a_side_within_rounding_of_zero_is_no_side(rounding: float) -> None:
    """Both sides are the same number up to rounding, of either sign."""
    theta = torch.tensor([0.3, 0.1], dtype=torch.float64)

    def side(x: Tensor) -> Tensor:
        return x[0] - 3 * x[1] + rounding

    assert abs(float(side(theta))) < 1e-15
    assert not separates(wall(side=side), theta, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert not separates(wall(side=side), theta, torch.tensor([-1.0, 0.0], dtype=torch.float64))


def test_a_tiny_side_that_is_certain_counts() -> None:
    assert separates(wall(), 1e-20 * A, B)


def test_a_singular_end_is_on_no_side() -> None:
    land = deep_linear([2.0, 1.0])
    a, b = land.ends(3)
    top = land.vector(land.critical_points[0])
    assert all(separates(one, a, b) for one in land.separators(a, b))
    assert not any(separates(one, top, end) for one in land.separators(a, b) for end in (a, b))
    assert floor_between(land, a, top) is None


def test_a_side_that_is_nan_is_no_side() -> None:
    assert not separates(wall(side=lambda x: x[0] / x[0].clamp_max(0.0)), A, B)


def test_the_crossing_lies_on_the_set() -> None:
    point = crossing(wall(), A, B)
    assert abs(float(point[0])) < 1e-15
    assert float(point[1]) == pytest.approx(0.4)
    with pytest.raises(
        ValueError, match=r"does not separate a and b: its side is 1 and 0\.5 there"
    ):
        crossing(wall(), A, 0.5 * A)


def test_the_best_proven_floor_wins() -> None:
    known = [wall(0.5), wall(1.0, kind="certified"), wall(1.01, kind="estimated")]
    best = floor_between(WELL, A, B, known)
    assert best is not None
    assert (best.loss, best.kind) == (1.0, "certified")
    assert "it crosses x0 = 0, where L = 1 + x1^2 there" in best.reason
    only = floor_between(WELL, A, B, known[2:])
    assert only is not None
    assert only.kind == "estimated"


def test_a_landscape_is_asked_for_its_own() -> None:
    land = deep_linear([3.0, 1.0, 0.5], depth=3)
    a, b = land.ends(1)
    assert isinstance(land, Separable)
    assert not isinstance(WELL, Separable)
    floor = floor_between(land, a, b)
    assert floor is not None
    assert floor.loss == 0.125
    assert floor_between(land, *land.ends(1, apart=False)) is None


def test_a_floor_that_the_line_crosses_below_is_refused() -> None:
    message = r"claims a loss of at least 1\.5, but the straight line from a to b crosses it at 1\."
    with pytest.raises(ValueError, match=message):
        floor_between(WELL, A, B, [wall(1.5)])
    jump = wall(1.5, side=lambda x: torch.where(x[0] > 0.5, 1.0, -1.0) + 0 * x[0])
    with pytest.raises(ValueError, match="side is not continuous"):
        floor_between(WELL, A, B, [jump])


def test_what_makes_no_separator() -> None:
    with pytest.raises(ValueError, match="floor of separator 'x0 = 0' is NaN"):
        wall(math.nan)
    with pytest.raises(
        ValueError, match=r"must return one number as a tensor, but it returned \(2"
    ):
        separates(wall(side=lambda x: x), A, B)


def test_the_check_of_consistency() -> None:
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    path = measure(WELL, ends, tolerance=1e-9)
    check_consistent(path, None)
    check_consistent(path, Floor(1.0, "exact", "so"))
    check_consistent(path, Floor(1.5, "estimated", "a guess is no proof"))
    with pytest.raises(ContradictionError, match="Either this proof is wrong, or the path hides"):
        check_consistent(path, Floor(1.5, "certified", "so"))
    lost = replace(path.profile, maximum=replace(path.maximum, lower=math.nan, upper=math.nan))
    check_consistent(replace(path, profile=lost), Floor(1.5, "certified", "so"))


def test_a_wall_between_the_samples_shows_when_the_floor_asks_for_it() -> None:
    """A needle of width 1e-3 that 17 samples miss; its floor has the path measured again."""
    needle = FunctionLandscape(lambda x: torch.exp(-(((x[0] - 0.111) / 1e-3) ** 2)) + 0.0 * x[1], 2)
    ends = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    blind = measure(needle, ends, tolerance=1.0, max_samples=17)
    assert blind.maximum.upper < 0.1
    floor = Floor(1.0, "certified", "it crosses the needle")
    before = needle.cost
    seen = reconciled(needle, blind, floor)
    assert seen.maximum.upper >= 1.0
    assert seen.maximum.lower > 0.1
    assert not seen.converged
    assert "its samples hid a wall" in seen.note
    assert seen.cost == blind.cost + (needle.cost - before)
    assert reconciled(needle, blind, None) is blind
    assert reconciled(needle, blind, replace(floor, kind="estimated")) is blind
    with pytest.raises(ContradictionError, match="every path is said to reach 3"):
        reconciled(needle, blind, replace(floor, loss=3.0))


def test_no_path_of_connect_stays_below_a_proven_floor() -> None:
    """The ring is whole, and a set that claims otherwise is refused with the path found."""
    ring = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ContradictionError, match=r"said to reach 0\.5 \(certified\)"):
        connect(
            ring,
            *ends,
            separators=[wall(0.5, kind="certified")],
            method="band",
            seed=0,
            max_gradients=300,
        )


@pytest.mark.parametrize("method", [band, connect])
@pytest.mark.parametrize(
    "spectrum",
    [
        [1.0, 2.0],
        pytest.param([1.0, 3.0, 4.0], marks=pytest.mark.slow),
        pytest.param([-1.0, 0.0, 1.1, 20.0], marks=pytest.mark.slow),
    ],
)
def test_the_barrier_on_the_sphere(method: Any, spectrum: list[float]) -> None:
    """The gap of the two lowest eigenvalues to 1e-6, though the line meets 0/0 in its middle."""
    land = sphere_form(spectrum)
    path = method(land, *land.ends(), tolerance=1e-7, seed=2)
    assert path.converged
    assert path.height.lower == pytest.approx(land.barrier, rel=1e-6)
    assert path.height.upper == pytest.approx(land.barrier, rel=1e-6)
    check_consistent(path, floor_between(land, *land.ends()))


def test_a_jump_between_two_samples_is_no_way_through() -> None:
    """Without its radial term the form is undefined at 0: what claims to pass there is refused."""
    scales = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    form = FunctionLandscape(lambda x: (scales * x**2).sum() / (x**2).sum(), 3)
    a = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    through = torch.stack([a, torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64), -a])
    path = measure(form, through, max_samples=40, tolerance=1e-3)
    gap = Separator("x0 = 0", lambda x: x[0], 2.0, "exact", "no part lies along v1")
    floor = Floor(2.0, "exact", str(gap))
    assert path.maximum.upper < 1.5
    with pytest.raises(ContradictionError, match="every path is said to reach 2"):
        reconciled(form, path, floor)
