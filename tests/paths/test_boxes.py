"""Boxes: enclosures that hold, walls that are proven, and searches that end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape import FunctionLandscape
from thalweg.paths.boxes import BoxFloor, Region, box_floor
from thalweg.paths.intervals import Enclosure, NotEnclosableError
from thalweg.zoo import double_well, muller_brown, six_hump_camelback, venturi_valley

MIX = torch.tensor([[0.7, -1.2], [0.4, 0.3], [-0.9, 1.1]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "Müller-Brown": (muller_brown().f, 2, 1),
    "camelback": (six_hump_camelback().f, 2, 1),
    "Venturi": (venturi_valley().f, 3, 1),
    "double well": (double_well(3).f, 3, 1),
    "kinks": (lambda x: torch.relu(MIX @ x).sum() + (x - 0.3).abs().sum() * x[0], 2, 1),
    "waves": (lambda x: torch.sin(5 * x[0]) * torch.cos(3 * x[1]) + torch.sin(x.sum() ** 2), 2, 1),
    "network": (lambda x: ((MIX.T @ torch.tanh(MIX @ x) - 1) ** 2).mean(), 2, 1),
    "products": (lambda x: ((torch.outer(x, x) - EYE) ** 2).sum() / (1 + x @ x).sqrt(), 2, 1),
    "powers": (lambda x: x[0] ** 3 - x[1] ** -2 + (2 + x[0]) ** 1.5, 2, 1),
    "logs": (lambda x: torch.log(2.2 + x[0]) * torch.sigmoid(x[1]) - 1 / (3 + x[0]), 2, 1),
    "largest": (lambda x: torch.maximum(x[0] ** 2, 1 - x[1]) + x.clamp(-0.5, 0.5).sum(), 2, 0),
    "jumps": (lambda x: x[0] ** 2 + torch.sign(x[1]) * x[0], 2, 0),
}


def check_encloses(f: Callable[[Tensor], Tensor], dim: int, order: int) -> float:
    """Refuse bounds that a random point in the box lies beyond; return the median slack."""
    hull = Enclosure(f, dim)
    assert hull.order == order
    g = torch.Generator().manual_seed(1)
    low = 3 * torch.rand(100, dim, generator=g, dtype=torch.float64) - 1.6
    width = 10 ** (-3 * torch.rand(100, 1, generator=g, dtype=torch.float64)) + 0 * low
    bound, _ = hull.lower(low, low + width)
    natural, above = hull.values(low, low + width)
    inside = torch.rand(100, 200, dim, generator=g, dtype=torch.float64)
    corner = torch.randint(0, 3, inside.shape, generator=g) / 2.0
    inside = torch.where(torch.rand(inside.shape, generator=g) < 0.5, inside, corner)
    seen = torch.func.vmap(torch.func.vmap(f))(low[:, None] + width[:, None] * inside)
    below, high = seen.amin(1), seen.amax(1)
    assert bool((bound <= below).all()), "a point lies below the bound"
    assert bool((natural <= below).all() & (high <= above).all())
    return float(((below - bound) / (high - below)).median())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_enclosures_hold(name: str) -> None:
    f, dim, order = FUNCTIONS[name]
    slack = check_encloses(f, dim, order)
    assert slack < (0.5 if order else 1.5)  # they are not empty words either


def test_the_checker_rejects_bounds_that_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Enclosure.lower
    monkeypatch.setattr(
        Enclosure, "lower", lambda self, a, b: (honest(self, a, b)[0] + 0.1 * (b - a)[:, 0], 0)
    )
    with pytest.raises(AssertionError, match="a point lies below the bound"):
        check_encloses(*FUNCTIONS["double well"])


def test_ends_are_rounded_outwards() -> None:
    """A point box of an inexact sum is no point, and holds the sum in twice the precision."""
    tenths = torch.full((1000,), 0.1, dtype=torch.float64)
    hull = Enclosure(lambda x: (x[0] * tenths).sum(), 1)
    one = torch.full((1, 1), 0.1, dtype=torch.float64)
    low, high = hull.values(one, one)
    exact = 1000 * 0.1000000000000000055511151231257827**2
    assert float(low) < exact < float(high)
    assert float(high - low) < 1e-10


def test_what_has_no_interval_form_is_named() -> None:
    with pytest.raises(NotEnclosableError, match="calls _linalg_det, which has no interval form"):
        Enclosure(lambda x: torch.linalg.det(torch.outer(x, x)), 2)
    with pytest.raises(NotEnclosableError, match="a branch that depends on values has no interval"):
        Enclosure(lambda x: x.sum() if x[0] > 0 else (x**2).sum(), 2)


def check_floor(found: BoxFloor, truth: float, base: float, relative: float = 1e-3) -> None:
    assert found.floor.kind == "certified"
    assert found.floor.loss <= truth, f"{found.floor.loss} is above the pass at {truth}"
    assert truth - found.floor.loss <= relative * (truth - base) + 1e-15
    assert found.converged


@pytest.mark.parametrize("dim", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_double_well(dim: int) -> None:
    land = double_well(dim, height=2.0)
    check_floor(box_floor(land, *map(land.vector, land.minima)), 2.0, 0.0)


def _camelback_and_bowl() -> tuple[FunctionLandscape, Tensor, Tensor, float, float]:
    plane = six_hump_camelback()
    land = FunctionLandscape(lambda x: plane.f(x[:2]) + x[2] ** 2, 3)
    flat = torch.zeros(1, dtype=torch.float64)
    a, b = (torch.cat([plane.vector(point), flat]) for point in plane.minima[:2])
    return land, a, b, 0.0, plane.minima[1].value


def _bent_well() -> tuple[FunctionLandscape, Tensor, Tensor, float, float]:
    def loss(x: Tensor) -> Tensor:
        return (x[0] ** 2 - 1) ** 2 + (x[1] - 0.3 * x[0] ** 2) ** 2 + (x[2] - 0.2 * x[0]) ** 2

    ends = torch.tensor([[-1.0, 0.3, -0.2], [1.0, 0.3, 0.2]], dtype=torch.float64)
    return FunctionLandscape(loss, 3), ends[0], ends[1], 1.0, 0.0


def _turned_well() -> tuple[FunctionLandscape, Tensor, Tensor, float, float]:
    mixed = torch.tensor([[1.0, 0.3, -0.2], [0.1, 1.0, 0.4], [0.5, -0.3, 1.0]])
    turn = torch.linalg.qr(mixed.double()).Q

    def loss(x: Tensor) -> Tensor:
        y = turn @ x
        return (y[0] ** 2 - 1) ** 2 + 2 * y[1] ** 2 + 3 * y[2] ** 2

    return FunctionLandscape(loss, 3), -turn[0], turn[0], 1.0, 0.0


@pytest.mark.slow
@pytest.mark.parametrize("make", [_camelback_and_bowl, _bent_well, _turned_well])
def test_three_dimensions_to_a_hundredth(
    make: Callable[[], tuple[FunctionLandscape, Tensor, Tensor, float, float]],
) -> None:
    land, a, b, truth, base = make()
    found = box_floor(land, a, b, tolerance=1e-2 * (truth - base))
    check_floor(found, truth, base, relative=1e-2)
    assert found.boxes < 3000


def test_a_fault_in_the_floor_would_be_seen() -> None:
    land = double_well(1, height=2.0)
    found = box_floor(land, *map(land.vector, land.minima))
    with pytest.raises(AssertionError, match="is above the pass at 1"):
        check_floor(found, 1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("i", "j", "top"), [(0, 2, 1), (1, 2, 0)])
def test_muller_brown(i: int, j: int, top: int) -> None:
    land = muller_brown()
    found = box_floor(land, land.vector(land.minima[i]), land.vector(land.minima[j]))
    check_floor(found, land.saddles[top].value, land.minima[j].value)


@pytest.mark.slow
@pytest.mark.parametrize(("i", "j", "truth"), [(0, 1, 0.0), (0, 2, 0.5437186009781851)])
def test_camelback(i: int, j: int, truth: float) -> None:
    land = six_hump_camelback()
    found = box_floor(land, land.vector(land.minima[i]), land.vector(land.minima[j]))
    check_floor(found, truth, land.minima[j].value)


@pytest.mark.slow
def test_a_level_ends_the_search_either_way() -> None:
    land = double_well(2)
    a, b = map(land.vector, land.minima)
    region = Region((-2.0, -2.0), (2.0, 2.0))
    blocked = box_floor(land, a, b, region=region, level=0.5)
    assert blocked.converged
    assert blocked.floor.loss > 0.5
    assert blocked.note == "every way at or under the level 0.5 is blocked"
    open_ = box_floor(land, a, b, region=region, level=1.2)
    assert not open_.converged
    assert "a route was seen at" in open_.note
    full = box_floor(land, a, b, region=region, tolerance=0.1)
    assert blocked.boxes < full.boxes


def test_the_budget_is_kept_and_reported() -> None:
    land = double_well(2)
    a, b = map(land.vector, land.minima)
    few = box_floor(land, a, b, max_boxes=100, region=Region((-2.0, -2.0), (2.0, 2.0)))
    assert not few.converged
    assert few.boxes < 200
    assert "more would raise the floor" in few.note
    assert 0.0 <= few.floor.loss <= 1.0  # what there is holds all the same


@pytest.mark.slow
def test_a_route_may_leave_the_region() -> None:
    """Round the wall, outside: a small region proves the way out and in, no more."""
    land = FunctionLandscape(
        lambda x: (x[0] ** 2 - 1) ** 2 * torch.exp(-(x[1] ** 2)) + 0.3 * x[1] ** 2, 2
    )
    a, b = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    small = Region((-1.2, -0.5), (1.2, 0.5))
    found = box_floor(land, a, b, region=small, max_boxes=1500)
    assert not found.converged
    assert "leaves the region" in found.note
    assert found.floor.loss <= 0.3 * 0.25 + 1e-12  # out at x1 = 0.5
    walled = box_floor(land, a, b, region=Region(small.low, small.high, 9.0), max_boxes=1500)
    assert walled.floor.loss > found.floor.loss


def test_joined_ends_have_no_floor() -> None:
    ring = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
    a, b = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    found = box_floor(ring, a, b, tolerance=0.05)
    assert found.floor.loss <= 1e-12
    assert found.floor.reason == "every path holds its ends"


class Opaque:
    """A landscape without a function to trace."""

    def __init__(self) -> None:
        self.inner = double_well(2)
        self.dim, self.dtype, self.device = 2, torch.float64, torch.device("cpu")

    @property
    def cost(self) -> Cost:
        return self.inner.cost

    def loss(self, theta: Tensor) -> Tensor:
        return self.inner.loss(theta)

    def gradient(self, theta: Tensor) -> Tensor:
        return self.inner.gradient(theta)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.value_and_gradient(theta)

    def at(self, theta: Tensor) -> object:
        return self.inner.at(theta)

    def start(self, generator: torch.Generator) -> Tensor:
        return self.inner.start(generator)


def test_given_constants_serve_any_landscape() -> None:
    """(x0^2 - 1)^2 + x1^2 / 2 on [-2, 2] x [-1, 1]: |Hessian| <= 44, |gradient| <= 24.1."""
    land = Opaque()
    a, b = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    region = Region((-2.0, -1.0), (2.0, 1.0), outside=0.5)
    curved = box_floor(land, a, b, region=region, gradient_lipschitz=44.0, level=0.3)  # type: ignore[arg-type] # its shape is enough
    assert curved.floor.loss > 0.3
    assert "the constant given" in curved.floor.reason
    steep = box_floor(land, a, b, region=region, lipschitz=24.1, level=0.1)  # type: ignore[arg-type] # its shape is enough
    assert steep.floor.loss > 0.1
    assert curved.cost.gradients > 0
    with pytest.raises(NotEnclosableError, match="a Opaque has no function to enclose"):
        box_floor(land, a, b)  # type: ignore[arg-type] # its shape is enough


@pytest.mark.slow
def test_the_result_reads_and_repeats() -> None:
    land = double_well(1)
    before = land.cost
    found = box_floor(land, *map(land.vector, land.minima), tolerance=0.1)
    assert found.cost == land.cost - before
    assert "every path reaches" in str(found)
    assert found.__rich__().startswith("[bold]every path")
    facts = found.to_json()
    assert facts["kind"] == "certified"
    assert facts["region"][2] == "-inf"
    assert box_floor(land, *map(land.vector, land.minima), tolerance=0.1).to_json() == facts


def test_errors() -> None:
    land = double_well(2)
    a, b = map(land.vector, land.minima)
    with pytest.raises(ValueError, match="at most 3 dimensions, this landscape has 4"):
        box_floor(double_well(4), *map(double_well(4).vector, double_well(4).minima))
    with pytest.raises(ValueError, match=r"end b at \[1\.0, 0\.0\] lies outside the region"):
        box_floor(land, a, b, region=Region((-2.0, -1.0), (0.5, 1.0)))
    with pytest.raises(ValueError, match="the region has 1 dimensions, the ends have 2"):
        box_floor(land, a, b, region=Region((-2.0,), (0.5,)))
    with pytest.raises(ValueError, match="two finite corners, low below high"):
        Region((0.0, 1.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="max_boxes must be at least 1, got 0"):
        box_floor(land, a, b, max_boxes=0)
    with pytest.raises(ValueError, match="lipschitz must be a finite number that is not negative"):
        box_floor(land, a, b, lipschitz=-1.0)
