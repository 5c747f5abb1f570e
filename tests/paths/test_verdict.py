"""Connected or not: yes with a path, no with each kind of proof, unresolved otherwise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from thalweg.landscape import FunctionLandscape
from thalweg.paths import ContradictionError, Path, dynamic_string, line
from thalweg.paths.boxes import BoxFloor, Region
from thalweg.paths.path import Floor
from thalweg.paths.separation import Separator
from thalweg.paths.verdict import is_connected
from thalweg.zoo import (
    Factored,
    deep_linear,
    matrix_factor,
    three_cycle,
    two_relu_swap,
    venturi_valley,
)

WELL = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, 2)
RING = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
FEW: dict[str, Any] = {
    "seed": 0,
    "max_gradients": 150,
    "max_samples": 60,
}  # enough in two dimensions
A, B = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)


def wall(floor: float, kind: str = "certified") -> Separator:
    return Separator("x0 = 0", lambda x: x[0], floor, kind, "it is said so")  # type: ignore[arg-type] # a test


def test_yes_shows_a_path() -> None:
    verdict = is_connected(RING, A, B, 0.1, **FEW)
    assert verdict.yes
    assert isinstance(verdict.evidence, Path)
    assert verdict.evidence.maximum.upper <= 0.1


def test_no_because_of_an_end() -> None:
    verdict = is_connected(RING, A, 2 * B, 1.0)
    assert verdict.no
    assert "end b lies at 9, above the level 1" in verdict.reason


def test_no_because_of_a_separating_set() -> None:
    verdict = is_connected(WELL, A, B, 0.9, separators=[wall(1.0)])
    assert verdict.no
    assert isinstance(verdict.evidence, Floor)
    assert verdict.evidence.loss == 1.0
    assert verdict.cost.gradients == 0  # no search is needed
    assert "every path reaches 1 (certified): it crosses x0 = 0" in verdict.reason


def test_no_because_of_boxes() -> None:
    verdict = is_connected(WELL, A, B, 0.4, **FEW)
    assert verdict.no
    assert isinstance(verdict.evidence, BoxFloor)
    assert 0.4 < verdict.evidence.floor.loss <= 1.0


def test_unresolved_says_what_would_decide() -> None:
    verdict = is_connected(WELL, A, B, 0.7, max_boxes=0, **FEW)
    assert verdict.unresolved
    assert "a separating set on which the loss is proven to exceed the level" in verdict.reason
    guess = is_connected(WELL, A, B, 0.7, max_boxes=0, separators=[wall(0.9, "estimated")], **FEW)
    assert guess.unresolved  # an estimate proves nothing
    assert "reaches 0.9 (estimated)" in guess.reason
    few = is_connected(WELL, A, B, 0.99, max_boxes=70, **FEW)
    assert few.unresolved
    assert isinstance(few.evidence, Path)


def test_a_function_without_interval_form_is_left_to_the_paths() -> None:
    land = FunctionLandscape(
        lambda x: torch.linalg.det(torch.outer(x, x)) ** 2 + (x[0] ** 2 - 1) ** 2 + x[1] ** 2,
        2,
    )
    assert is_connected(land, A, B, 0.3, **FEW).unresolved
    with pytest.raises(ValueError, match="_linalg_det, which has no interval form"):
        is_connected(land, A, B, 0.3, region=Region((-2.0, -2.0), (2.0, 2.0)), **FEW)
    region = Region((-1.5, -0.6), (1.5, 0.6), outside=0.35)
    bent = is_connected(land, A, B, 0.1, region=region, gradient_lipschitz=30.0, **FEW)
    assert bent.no


def test_a_set_that_separates_nothing_here_is_not_used() -> None:
    """The ring is whole: a set through both ends, or beside both, says nothing."""
    through = Separator("x1 = 0", lambda x: x[1], 5.0, "certified", "it is said so")
    beside = Separator("x0 = 7", lambda x: x[0] - 7, 5.0, "certified", "it is said so")
    assert is_connected(RING, A, B, 0.1, separators=[through, beside], **FEW).yes


def test_a_wrong_floor_is_caught() -> None:
    """By the straight line where it crosses the set, else by the path that stays below."""
    with pytest.raises(ValueError, match=r"claims a loss of at least 1\.2, but the straight line"):
        is_connected(WELL, A, B, 1.1, separators=[wall(1.2)])
    with pytest.raises(ContradictionError, match=r"every path is said to reach 0\.5 \(certified\)"):
        is_connected(RING, A, B, 0.6, separators=[wall(0.5)], method="string", seed=0)


def test_levels_at_the_floor_and_beside_it() -> None:
    """The rank-2 barrier to rounding: decided a hair away from it on either side."""
    land = matrix_factor([3.0, 2.0])
    a, b = land.ends(0)
    assert is_connected(land, a, b, 1.0 - 1e-9).no
    assert is_connected(land, a, b, 1.0 + 1e-4, seed=0, tolerance=1e-6).yes
    at = is_connected(land, a, b, 1.0, **FEW)
    assert not at.no  # the pass itself lies at the level


def test_one_unit_more_opens_the_way() -> None:
    for tight, wide in (
        (deep_linear([2.0, 1.0]), deep_linear([2.0, 1.0], width=3)),
        (two_relu_swap(), two_relu_swap(units=3)),
    ):
        assert is_connected(tight, *tight.ends(5), 0.25).no
        assert is_connected(wide, *wide.ends(5), 0.25, seed=5, searches=4, max_gradients=1200).yes


@pytest.mark.parametrize(
    ("tight", "wide"),
    [
        (venturi_valley(), venturi_valley(units=2)),
        pytest.param(
            deep_linear([2.0, 1.0], depth=3),
            deep_linear([2.0, 1.0], width=3, depth=3),
            marks=pytest.mark.slow,
        ),
        (matrix_factor([3.0, 2.0]), matrix_factor([3.0, 2.0], width=3)),
    ],
    ids=("Venturi", "deep linear", "matrix factor"),
)
def test_a_search_finds_no_barrier_at_width_r_plus_1(tight: Factored, wide: Factored) -> None:
    """Below a tenth of the barrier that one unit less has, where the straight line does not stay.

    At width r it is no by proof, and a search that knows no separating set says nothing.
    """
    assert tight.barrier is not None
    a, b = wide.ends(6)  # the one of the first dozen draws where Venturi's line rises too
    level = float(wide.loss(torch.stack([a, b])).max()) + tight.barrier / 10
    assert line(wide, a, b).maximum.lower > level
    verdict = is_connected(wide, a, b, level, seed=0)
    assert verdict.yes
    assert isinstance(verdict.evidence, Path)
    assert verdict.evidence.maximum.upper <= level
    assert torch.equal(verdict.evidence.points[[0, -1]], torch.stack([a, b]))
    ends = tight.ends(6)
    assert is_connected(tight, *ends, level).no
    bare = FunctionLandscape(tight.f, tight.dim)
    searched = is_connected(bare, *ends, level, seed=0, max_gradients=300, max_boxes=0)
    assert searched.unresolved
    assert isinstance(searched.evidence, Path)
    assert searched.evidence.height.lower >= tight.barrier * (1 - 1e-6)


def test_later_searches_start_elsewhere() -> None:
    """A second search starts over a detour, from another seed, and costs its own."""
    land = matrix_factor([3.0, 2.0])
    costs = [
        is_connected(land, *land.ends(0), 1.0, searches=k, **FEW).cost.gradients for k in (1, 2)
    ]
    assert costs[1] > costs[0] + 50


def test_the_disconnected_cycle_never_comes_out_connected() -> None:
    land = three_cycle()
    for seed in range(8):
        a, b = land.ends(seed)
        assert is_connected(land, a, b, 0.2, seed=seed).no
    for level in (0.3, 0.4):  # above the proven floor: no proof, and no path
        verdict = is_connected(land, *land.ends(0), level, **FEW)
        assert verdict.unresolved


@pytest.mark.parametrize("level", [0.05, 0.2])
@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_loose_beads_do_not_join_the_disconnected_cycle(seed: int, level: float) -> None:
    """As Freeman and Bruna search: 10 % above the level is let pass, between points unseen."""
    land = three_cycle()
    loose: dict[str, Any] = {
        "acceptance": 1.1, "check_points": 100, "insert": "middle", "initial_beads": 1
    }  # fmt: skip
    few = {"shorten": False, "max_rounds": 4, "max_steps": 500, "seed": seed}
    found = dynamic_string(land, *land.ends(seed), level, **loose, **few)
    assert found.connected.unresolved
    assert found.rounds >= 1
    assert found.path.maximum.lower >= 0.25
    whole = dynamic_string(land, *land.ends(seed, apart=False), level, **loose, **few)
    assert whole.connected.yes  # the same search does join what is connected


def test_errors() -> None:
    with pytest.raises(ValueError, match="level is NaN"):
        is_connected(WELL, A, B, math.nan)
    with pytest.raises(ValueError, match="searches must be at least 1, got 0"):
        is_connected(WELL, A, B, 0.5, searches=0)
    with pytest.raises(ValueError, match="same vector"):
        is_connected(WELL, A, A, 0.5)


def test_the_cost_is_what_was_spent() -> None:
    for level, options in ((0.9, {"separators": [wall(1.0)]}), (0.2, {}), (1.1, {})):
        before = WELL.cost
        verdict = is_connected(WELL, A, B, level, searches=2, **FEW, **options)
        assert verdict.cost == WELL.cost - before
