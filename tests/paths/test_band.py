"""Bands: exact passes, images where they are needed, and AutoNEB's schedule beside them."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape, Landscape
from thalweg.optim import minimise
from thalweg.paths import images, line, relaxation
from thalweg.paths.band import autoneb_schedule, band
from thalweg.paths.pivots import Cycle, Schedule, bumps
from thalweg.zoo import muller_brown, six_hump_camelback

Make = Callable[..., Any]  # a closed form by its parameters, from conftest


def polished(land: Landscape, starts: list[tuple[float, float]]) -> list[Tensor]:
    return [minimise(land, torch.tensor(s, dtype=torch.float64), tol=1e-10).theta for s in starts]


MINIMA = [(-0.558, 1.442), (0.623, 0.028), (-0.05, 0.467)]


@pytest.mark.parametrize(
    ("pair", "saddle"),
    [((0, 1), -40.664843508657), ((0, 2), -40.664843508657), ((1, 2), -72.248940112325)],
)
def test_muller_brown_passes(pair: tuple[int, int], saddle: float) -> None:
    """Both passes to 1e-9 relative within 400 gradients and products, the bracket included."""
    land = muller_brown()
    a, b = polished(land, [MINIMA[i] for i in pair])
    before = land.cost
    path = band(land, a, b, tolerance=1e-5, seed=0)
    assert path.maximum.lower == pytest.approx(saddle, rel=1e-9)
    assert path.maximum.upper == pytest.approx(saddle, abs=2e-5)
    assert path.converged
    assert path.method == "band"
    assert path.cost == land.cost - before
    assert path.cost.gradients + path.cost.hvps <= 400
    assert bool((path.points == path.top).all(1).any())


@pytest.mark.parametrize("options", [{"spring": 0.5}, {"pivots": "fixed", "images": 13}])
def test_springs_and_fixed_pivots_reach_the_same_pass(options: dict[str, Any]) -> None:
    land = muller_brown()
    a, b = polished(land, MINIMA[:2])
    path = band(land, a, b, tolerance=1e-5, seed=0, **options)
    assert path.maximum.lower == pytest.approx(-40.664843508657, rel=1e-9)
    assert path.converged
    assert path.cost.gradients + path.cost.hvps <= 1500
    if "images" in options:
        assert len(path.points) == 13 + 2  # a foothold on either side of the pass


def test_without_climbing_the_pass_is_missed() -> None:
    """The control: as high as 0.2 above the pass, and not called converged."""
    land = muller_brown()
    a, b = polished(land, MINIMA[:2])
    path = band(land, a, b, tolerance=1e-5, climbing=False, seed=0)
    assert path.maximum.lower > -40.664843508657 + 1e-3
    assert path.cost.hvps == 0
    assert not path.converged


def test_the_wrong_sign_of_the_tangent_misses_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with tangents that look sideways the climbing image loses its way."""
    land = muller_brown()
    a, b = polished(land, [MINIMA[1], MINIMA[2]])

    def sideways(x: Tensor, loss: Tensor) -> Tensor:
        right = honest(x, loss)
        return torch.stack([-right[:, 1], right[:, 0]], dim=1)

    honest = images.tangents
    monkeypatch.setattr(images, "tangents", sideways)
    monkeypatch.setattr(relaxation.Relaxation, "try_to_climb", lambda self: False)
    path = band(land, a, b, tolerance=1e-5, max_gradients=500, seed=0)
    assert abs(path.maximum.lower + 72.248940112325) > 1e-3


@pytest.mark.slow
def test_camelback_seven_passes() -> None:
    """All fifteen pairs of minima, for less than the string takes."""
    land = six_hump_camelback()
    minima = polished(
        land, [(0.09, -0.71), (-0.09, 0.71), (1.7, -0.8), (-1.7, 0.8), (1.6, 0.57), (-1.6, -0.57)]
    )
    heights = set()
    for a, b in itertools.combinations(minima, 2):
        path = band(land, a, b, tolerance=1e-5, seed=0)
        assert path.converged, path
        heights.add(round(path.maximum.lower, 5))
    assert heights <= {0.0, 0.54372, 2.22936, 2.22947}
    assert {0.0, 0.54372, 2.22936} <= heights


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.8])
def test_scalar_linear_net(scalar_linear_net: Make, decay: float) -> None:
    """The barrier between the two minima is (1 - λ)²/2."""
    end = torch.full((2,), math.sqrt(1 - decay), dtype=torch.float64)
    path = band(scalar_linear_net(decay), end, -end, seed=0)
    assert path.height.lower == pytest.approx((1 - decay) ** 2 / 2, rel=1e-6)
    assert path.converged


def test_around_a_ring_there_is_no_barrier() -> None:
    ring = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    path = band(ring, a, -a, seed=0)
    assert line(ring, a, -a).height.lower == 1.0
    assert path.height.upper < 0.01
    assert path.normalised_length == pytest.approx(math.pi / 2, rel=0.05)


def test_a_quadratic_form_on_the_sphere(rayleigh: Make) -> None:
    """λ₂ - λ₁, from a line that meets 0/0 in its middle."""
    a = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    path = band(rayleigh([1.0, 2.0, 4.0, 7.0]), a, -a, tolerance=1e-6, images=9, seed=0)
    assert path.height.lower == pytest.approx(1.0, rel=1e-6)
    assert path.converged


def spike(width: float, at: float = 0.31) -> FunctionLandscape:
    """A valley along the first axis with a narrow wall of height 1 across it."""
    return FunctionLandscape(
        lambda x: x[1] ** 2 + torch.exp(-((x[0] - at) ** 2) / (2 * width**2)), 2
    )


def test_bumps_are_found_where_they_are() -> None:
    land = spike(0.05)
    x = torch.tensor([[-1.0, 0.0], [-0.25, 0.0], [0.25, 0.0], [1.0, 0.0]], dtype=torch.float64)
    ends = land.loss(x)
    gaps, parts = bumps(land, x, ends, samples=9, threshold=0.1, most=2)
    assert gaps == [2]
    assert parts == [pytest.approx(0.1)]  # 0.25 + 0.1 × 0.75 = 0.325
    assert bumps(land, x, ends, samples=9, threshold=0.99, most=2) == ([], [])
    plain = FunctionLandscape(lambda x: x[0], 2)
    assert bumps(plain, x, plain.loss(x), samples=9, threshold=0.1, most=2) == ([], [])
    nan = FunctionLandscape(lambda x: torch.sqrt(0.3 - x[0]), 2)
    found = bumps(nan, x[:3], nan.loss(x[:3]), samples=9, threshold=0.001, most=2)
    assert found[0] == [0, 1]
    assert bumps(nan, x, nan.loss(x), samples=9, threshold=0.001, most=9)[0] == [0, 1]


def test_pivots_are_put_where_the_wall_is() -> None:
    land = spike(0.05)
    a, b = (torch.tensor([s, 0.0], dtype=torch.float64) for s in (-1.0, 1.0))
    grown = band(land, a, b, climbing=False, seed=0)
    fixed = band(land, a, b, climbing=False, pivots="fixed", seed=0)
    near = [float((p.points[:, 0] - 0.31).abs().min()) for p in (grown, fixed)]
    assert near[0] < 0.04 < 0.15 < near[1]
    assert len(grown.points) > len(fixed.points) == 5
    climbed = band(land, a, b, tolerance=1e-6, seed=0)
    assert climbed.maximum.lower == pytest.approx(1.0, abs=1e-6)
    assert climbed.converged


@pytest.fixture(scope="module")
def trained(digits_network: Make) -> tuple[Landscape, Tensor, Tensor]:
    land = digits_network()
    a, b = (
        minimise(
            land, land.start(torch.Generator().manual_seed(s)), tol=1e-3, max_gradients=200
        ).theta
        for s in (0, 1)
    )
    return land, a, b


@pytest.mark.slow
def test_below_autoneb_at_equal_budget(trained: tuple[Landscape, Tensor, Tensor]) -> None:
    """A tenth of the published schedule's height at 600 gradients, and far below the line."""
    land, a, b = trained
    straight = line(land, a, b)
    own = band(land, a, b, start=straight, max_gradients=600, seed=0)
    published = band(
        land, a, b, start=straight, max_gradients=600, schedule=autoneb_schedule(600), seed=0
    )
    assert own.height.upper < 0.02 * straight.height.lower
    assert published.height.upper < 0.3 * straight.height.lower
    assert own.height.upper < 0.2 * published.height.lower
    assert published.cost.hvps == 0
    for path in (own, published):
        assert path.cost.gradients + path.cost.hvps - straight.cost.gradients <= 600 + 200
        assert torch.equal(path.points[0], a)
        assert torch.equal(path.points[-1], b)


def test_the_published_schedule() -> None:
    schedule = autoneb_schedule()
    assert len(schedule.cycles) == 14
    assert sum(cycle.steps for cycle in schedule.cycles) == 16000
    assert [c.rate for c in schedule.cycles] == [0.1] * 6 + [0.01] * 4 + [0.001] * 4
    assert (schedule.pivots, schedule.inserted, schedule.samples) == (3, 2, 9)
    assert (schedule.threshold, schedule.momentum) == (0.1, 0.9)
    assert schedule.steps(4, 1.0, 1.0) == 2000
    assert autoneb_schedule(480).steps(13, 30.0, 3.0) == 10
    with pytest.raises(ValueError, match="less than the 42 that one step"):
        autoneb_schedule(41)


def test_a_schedule_that_diverges_is_no_crash() -> None:
    """Müller-Brown at rate 0.1 blows up at once; the line is what remains."""
    land = muller_brown()
    a, b = polished(land, MINIMA[:2])
    schedule = Schedule((Cycle(50, 0.1), Cycle(50, 0.01)))
    path = band(land, a, b, schedule=schedule, seed=0)
    assert not path.converged
    assert math.isfinite(path.maximum.upper)
    gentle = band(land, a, b, schedule=Schedule((Cycle(100, 1e-4),)), seed=0)
    assert gentle.maximum.lower < line(land, a, b).maximum.lower


def test_a_loss_that_is_not_finite_is_said_to_be_so() -> None:
    hole = FunctionLandscape(lambda x: (x**2).sum() + torch.sqrt(x[1].abs() - 2), 2)
    a = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    path = band(hole, a, -a, seed=0)
    assert not path.converged
    assert "not finite at an image of the band" in path.note
    assert math.isnan(path.maximum.lower)


def test_errors_say_what_to_do(unchecked: None) -> None:
    land = muller_brown()
    a, b, c = polished(land, MINIMA)
    with pytest.raises(ValueError, match="unknown pivots 'some'; use one of auto, fixed"):
        band(land, a, b, pivots="some")  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ValueError, match="spring must lie in"):
        band(land, a, b, spring=-1.0)
    with pytest.raises(ValueError, match="threshold must be a positive share"):
        band(land, a, b, threshold=0.0)
    with pytest.raises(ValueError, match="images must be at least 3"):
        band(land, a, b, images=2)
    with pytest.raises(ValueError, match="max_gradients must be at least 1"):
        band(land, a, b, max_gradients=0)
    with pytest.raises(ValueError, match="start joins other ends"):
        band(land, a, c, start=line(land, a, b))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        band(land, a, b, batch_size=0)


@pytest.mark.parametrize("stop", [1, 9, 30])
@pytest.mark.parametrize("options", [{}, {"spring": 0.5}, {"schedule": autoneb_schedule(300)}])
def test_interrupted_and_resumed_is_unbroken(
    tmp_path: pathlib.Path, rank_one: Make, ctrl_c: Any, stop: int, options: dict[str, Any]
) -> None:
    """Ctrl-C after some steps, and the same call again: the same path bit for bit."""
    land, frame = rank_one([3.0, 2.0, 0.5])
    end = math.sqrt(3) * frame[0]
    whole = band(land, end, -end, max_gradients=400, seed=3, **options)
    kept = tmp_path / "band.pt"
    arguments = {"max_gradients": 400, "checkpoint": kept, **options}
    with pytest.raises(KeyboardInterrupt):
        band(land, end, -end, seed=3, progress=ctrl_c(stop), **arguments)
    path = band(land, end, -end, seed=3, **arguments)
    assert torch.equal(path.points, whole.points)
    assert path.to_json() == whole.to_json()
    with pytest.raises(ValueError, match="belongs to a search between other ends"):
        band(land, end, -end, seed=4, **arguments)
