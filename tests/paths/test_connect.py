"""Connecting: which method answers, alignment, BatchNorm's view, and the decision."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from thalweg import zoo
from thalweg.landscape import FunctionLandscape
from thalweg.landscape.separators import Separator
from thalweg.paths import Path, connect, is_connected, line, measure
from thalweg.paths.boxes import Region
from thalweg.paths.intervals import NotEnclosableError

Make = Callable[..., Any]  # a closed form by its parameters, from conftest

RING = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
A, B = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)


class Frozen(FunctionLandscape):
    """A stand-in for a BatchNorm network: another loss, without gradient, when evaluated."""

    batchnorm = "batch"

    def with_batchnorm(self, policy: str) -> FunctionLandscape:
        assert policy == "recompute"
        view = Evaluated(lambda x: self.f(x) + 10.0, self.dim)
        view._ledger = self._ledger
        return view


class Evaluated(Frozen):
    batchnorm = "recompute"

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("gradient is not defined under recompute")


def test_auto_keeps_a_low_line_and_leaves_a_high_one() -> None:
    bowl = FunctionLandscape(lambda x: (x**2).sum(), 2)
    low = connect(bowl, A, 0.9 * B, seed=0)
    assert low.method == "line"
    assert low.cost.gradients < 40
    high = connect(RING, A, B, seed=0)
    assert high.method == "string"
    assert high.height.upper < 0.01
    assert high.normalised_length == pytest.approx(math.pi / 2, rel=0.05)
    assert connect(RING, A, B, method="line").height.lower == 1.0
    assert connect(bowl, A, 0.9 * B, method="string", seed=0).method == "string"


def test_a_level_that_the_line_keeps_ends_the_search() -> None:
    path = connect(RING, A, B, level=1.01)
    assert path.method == "line"
    assert connect(RING, A, B, level=0.5, seed=0).method == "beads"


def test_scalar_linear_net_barrier(scalar_linear_net: Make) -> None:
    end = torch.full((2,), math.sqrt(0.5), dtype=torch.float64)
    path = connect(scalar_linear_net(0.5), end, -end, seed=1)
    assert path.barrier.lower == 0.0
    assert path.barrier.upper == pytest.approx(0.125, rel=1e-2)
    assert path.height.lower == pytest.approx(0.125, rel=1e-8)


def test_an_alignment_is_used_and_checked(scalar_linear_net: Make) -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def flip(a: Tensor, b: Tensor) -> Tensor:
        asked.append((a, b))
        return -b

    end = torch.full((2,), math.sqrt(0.5), dtype=torch.float64)
    other = -end + 0.01
    path = connect(scalar_linear_net(0.5), end, other, align=flip)
    assert len(asked) == 1
    assert torch.equal(path.points[-1], -other)
    assert path.height.upper < 1e-3
    with pytest.raises(ValueError, match="same vector"):
        connect(scalar_linear_net(0.5), end, -end, align=flip)


def test_networks_are_searched_on_one_policy_and_evaluated_on_another() -> None:
    land = Frozen(lambda x: ((x**2).sum() - 1) ** 2, 2)
    path = connect(land, A, B, seed=0)
    assert path.base == 10.0
    assert 10.0 <= path.maximum.lower <= path.maximum.upper < 10.05
    assert "values alone" in path.maximum.method
    verdict = is_connected(land, A, B, level=5.0)
    assert verdict.no
    assert "end a lies at 10" in verdict.reason


def test_errors_name_what_is_wrong(unchecked: None) -> None:
    with pytest.raises(ValueError, match="unknown method 'geodesic'; use one of auto, line, str"):
        connect(RING, A, B, method="geodesic")  # type: ignore[arg-type] # the point of the test
    with pytest.raises(ValueError, match="same vector"):
        connect(RING, A, A)
    with pytest.raises(ValueError, match="end b holds 1 NaN"):
        connect(RING, A, torch.tensor([0.0, math.nan], dtype=torch.float64))
    with pytest.raises(ValueError, match="level is NaN"):
        is_connected(RING, A, B, math.nan)


def test_yes_no_unresolved(rank_one: Make) -> None:
    yes = is_connected(RING, A, B, 0.1, seed=0)
    assert yes.yes
    assert isinstance(yes.evidence, Path)
    assert yes.evidence.maximum.upper <= 0.1
    no = is_connected(RING, A, 2 * B, 1.0)
    assert no.no
    assert "end b lies at 9" in no.reason
    land, frame = rank_one([2.0, 1.0, 0.5])
    end = math.sqrt(2) * frame[0]
    base, exact = 1.25 / 4, 4.25 / 4
    assert float(land.loss(end)) == pytest.approx(base)
    below = is_connected(land, end, -end, exact - 0.05, seed=0)
    assert below.unresolved
    assert "another may stay below" in below.reason
    assert is_connected(land, end, -end, exact + 0.05, seed=0).yes
    at = is_connected(land, end, -end, exact + 1e-12, seed=0, method="string")
    assert at.unresolved or at.yes


def test_a_bracket_that_straddles_the_level_is_unresolved() -> None:
    wave = FunctionLandscape(lambda x: torch.sin(3 * x[0]) + x[1] ** 2, 2)
    ends = torch.tensor([[0.0, 0.0], [1.1, 0.0]], dtype=torch.float64)
    straight = line(wave, *ends, tolerance=0.05, max_samples=17)
    middle = (straight.maximum.lower + straight.maximum.upper) / 2
    verdict = is_connected(wave, *ends, middle, method="line", tolerance=0.05, max_samples=17)
    assert verdict.unresolved
    assert "straddles" in verdict.reason


def test_the_verdicts_cost_is_what_was_spent() -> None:
    land = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
    before = land.cost
    verdict = is_connected(land, A, B, 0.1, seed=0)
    assert verdict.cost == land.cost - before


@pytest.mark.parametrize("method", ["string", "band", "curve", "chain", "beads"])
def test_every_method_goes_round_the_ring(method: str) -> None:
    level = 0.5 if method == "beads" else None
    path = connect(RING, A, B, method=method, level=level, seed=0)  # type: ignore[arg-type] # one of them
    assert path.maximum.upper <= 0.5
    assert torch.equal(path.points[0], A)
    assert torch.equal(path.points[-1], B)
    assert path.method == {"curve": "bezier"}.get(method, method)


def test_beads_want_a_level_and_batches_examples() -> None:
    with pytest.raises(ValueError, match="beads are put below a level: give level="):
        connect(RING, A, B, method="beads")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        connect(RING, A, B, batch_size=0)
    with pytest.raises(ValueError, match="max_gradients must be at least 1, got 0"):
        connect(RING, A, B, max_gradients=0)


@pytest.mark.slow
def test_a_path_measured_already_is_not_measured_again() -> None:
    land = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
    straight = line(land, A, B)
    before = land.cost
    assert connect(land, A, B, method="line", start=straight).points is straight.points
    assert connect(land, A, B, start=straight, level=1.01).points is straight.points
    assert land.cost == before
    whole = connect(land, A, B, seed=3)
    before = land.cost
    path = connect(land, A, B, start=straight, seed=3)
    assert torch.equal(path.points, whole.points)
    assert path.cost == whole.cost == straight.cost + (land.cost - before)
    on = connect(land, A, B, start=path, level=path.maximum.upper)
    assert on.points is path.points
    assert connect(land, A, B, start=path, method="curve", seed=0).maximum.upper <= (
        path.maximum.upper
    )


def test_a_start_that_does_not_fit_is_refused() -> None:
    bent = measure(RING, torch.stack([A, A.flip(0), B]))
    for ends in ((B, A), (A, 0.9 * B)):
        with pytest.raises(ValueError, match="start joins other ends than a and b"):
            connect(RING, *ends, start=bent)
    single = FunctionLandscape(lambda x: (x**2).sum(), 2, dtype=torch.float32)
    with pytest.raises(ValueError, match="start joins other ends"):
        connect(single, A.float(), B.float(), start=bent)
    with pytest.raises(ValueError, match="start has 3 points, so it is no straight line"):
        connect(RING, A, B, start=bent, method="line")


@pytest.mark.parametrize(
    ("examples", "given", "batch", "times"),
    [(100, "auto", None, None), (300, "auto", 64, 4), (4096, "auto", 128, 4),
     (60_000, "auto", 256, 4), (300, None, None, None), (300, 150, 150, 4)],
)  # fmt: skip
def test_minibatches_left_to_connect(
    examples: int,
    given: int | Literal["auto"] | None,
    batch: int | None,
    times: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thirty-second of the examples within 64 and 256, and few times at each."""
    seen: list[tuple[int | None, int | None]] = []

    class Sum(FunctionLandscape):
        size, policy = 1.0, None

        @property
        def examples(self) -> int:
            return examples

        @property
        def batchnorm(self) -> str | None:
            return self.policy

        def with_batchnorm(self, policy: str) -> FunctionLandscape:
            return RING

        def minibatch(self, indices: Any) -> FunctionLandscape:
            return RING

        def batches(self, theta: Tensor) -> Any:
            return iter(())

    def spy(*_: Any, batch_size: int | None, samples: int | None, **__: Any) -> Path:
        seen.append((batch_size, samples))
        return line(RING, A, B)

    monkeypatch.setattr(import_module("thalweg.paths.connect"), "curve", spy)
    land = Sum(lambda x: ((x**2).sum() - 1) ** 2, 2)
    connect(land, A, B, method="curve", batch_size=given)
    land.policy = "batch"  # type: ignore[assignment]  # a BatchNorm network, by its policy
    connect(land, A, B, method="curve", batch_size=given)
    assert seen == [(batch, times), (batch, times and 2)]


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="level is NaN; give the loss below which"):
        connect(RING, A, B, level=math.nan)
    for tolerance in (math.nan, 0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="tolerance must be a positive difference in loss"):
            connect(RING, A, B, tolerance=tolerance)


@pytest.mark.usefixtures("unchecked")
def test_odd_ends_are_named() -> None:
    with pytest.raises(TypeError, match=r"end a: theta is torch\.float32, but this landscape com"):
        connect(RING, A.float(), B)
    with pytest.raises(ValueError, match="end b: theta is on meta, but this landscape is on cpu"):
        is_connected(RING, A, B.to("meta"), 0.5)
    with pytest.raises(
        ValueError, match=r"end b: theta has shape \(1,\), but this landscape has 2"
    ):
        connect(RING, A, B[:1])


def test_a_loss_that_is_nan_decides_nothing() -> None:
    hole = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2 + 0 * torch.log(x[0] + 0.5), 2)
    at_the_end = is_connected(hole, A, B, 0.5, seed=0)
    assert at_the_end.unresolved
    assert "the loss at end b is NaN" in at_the_end.reason
    assert at_the_end.cost.losses == 2
    gap = FunctionLandscape(lambda x: (x**2).sum() + 0 * torch.log(x[0] ** 2 - 0.1), 2)
    between = is_connected(gap, A, B, 5.0, method="line", max_boxes=0)
    assert between.unresolved
    assert "the loss is NaN somewhere on the best path found" in between.reason


def test_a_separating_set_is_the_barriers_floor() -> None:
    well = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, 2)
    wall = Separator("x0 = 0", lambda x: x[0], 1.0, "exact", "L = 1 + x1^2 there")
    path = connect(well, A, B, separators=[wall], seed=0)
    assert path.floor is not None
    assert path.barrier.lower == 1.0
    assert path.barrier.lower_kind == "exact"
    assert path.barrier.upper == pytest.approx(1.0, rel=1e-6)
    false = Separator("x0 = 0", lambda x: x[0], 3.0, "exact", "a claim that is wrong")
    with pytest.raises(ValueError, match="claims a loss of at least 3"):
        connect(well, A, B, separators=[false], seed=0)


def test_boxes_are_the_barriers_floor_where_they_are_asked_for(unchecked: None) -> None:
    """Müller-Brown's lower pass: found from above, and proven from below."""
    surface = zoo.muller_brown()
    a, b = (torch.tensor(m.theta, dtype=torch.float64) for m in surface.minima[:2])
    path = connect(surface, a, b, region="auto", seed=0)
    exact = -40.66484351 - max(float(surface.loss(a)), float(surface.loss(b)))
    assert path.barrier.lower_kind == "certified"
    assert exact * (1 - 1e-2) < path.barrier.lower <= exact <= path.barrier.upper < exact * 1.001
    assert connect(surface, a, b, method="line", seed=0).barrier.lower == 0.0
    assert "every path reaches" in str(path.floor)
    wall = Separator("x0 = 0", lambda x: x[0], 1.0, "exact", "L = 1 + x1^2 there")
    well = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, 2)
    place = Region((-2.0, -2.0), (2.0, 2.0))
    both = connect(well, A, B, separators=[wall], region=place, method="line")
    assert both.barrier.lower == 1.0  # the higher of the two: boxes come near it
    assert both.barrier.lower_kind == "exact"
    four = FunctionLandscape(lambda x: (x**2).sum(), 4)
    ends = torch.eye(4, dtype=torch.float64)[:2]
    with pytest.raises(ValueError, match="boxes work in at most 3 dimensions"):
        connect(four, *ends, region="auto", method="line")
    odd = FunctionLandscape(lambda x: torch.lgamma(x + 3).sum(), 2)
    with pytest.raises(NotEnclosableError):
        connect(odd, A, B, region="auto", method="line")
    for wrong in ("around", ((-2.0, -2.0), (2.0, 2.0))):
        with pytest.raises(TypeError, match=r"region must be a Region\(low, high\), got .*"):
            connect(well, A, B, region=wrong, method="line")
        with pytest.raises(TypeError, match=r"region must be a Region\(low, high\), got .*"):
            is_connected(well, A, B, 0.5, region=wrong, method="line")


@pytest.mark.parametrize("method", ["line", "string"])
def test_minibatches_where_all_the_data_are_taken_are_refused(method: Any) -> None:
    with pytest.raises(ValueError, match=f"the {method} takes all the data: leave batch_size=7"):
        connect(RING, A, B, method=method, batch_size=7)


def test_a_gauge_adds_the_search_between_the_chosen_ends() -> None:
    net = FunctionLandscape(lambda x: (x[0] * x[1] - 1) ** 2, dim=2)
    ends = torch.tensor([[4.0, 0.25], [0.6, 2.0]], dtype=torch.float64)
    path = connect(net, *ends, gauge=lambda x: x.prod().abs().sqrt() * torch.sign(x), method="line")
    assert path.balanced is not None
    assert path.height.lower > 2 > 1e-3 > path.balanced.height.upper
    assert path.balanced.length < path.length
    assert "between the ends in a gauge: height between" in str(path)
    assert path.to_json()["balanced"] == path.balanced.to_json()
    assert path.balanced.to_json()["balanced"] is None
    assert "gauge" not in str(path.balanced)


@pytest.mark.parametrize("level", [-0.2, 0.0])
def test_levels_need_not_be_positive(level: float) -> None:
    """A loss that may be negative: beads are counted from the higher end."""
    land = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2 - 0.5, 2)
    path = connect(land, A, B, method="beads", level=level, seed=0)
    assert path.converged
    assert path.maximum.upper <= level
