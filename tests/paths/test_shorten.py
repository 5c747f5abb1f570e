"""Shortening under a level, against geodesics known in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths import line, measure
from thalweg.paths.beads import dynamic_string
from thalweg.paths.path import Path
from thalweg.paths.shorten import shorten


def ring() -> FunctionLandscape:
    return FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)


def round_the_ring(corners: int) -> Tensor:
    t = torch.linspace(0, math.pi, corners, dtype=torch.float64)
    return torch.stack([t.cos(), t.sin()], dim=1)


def highest(land: FunctionLandscape, path: Path) -> float:
    """The highest loss on a path, sampled finely away from the library's own sampling."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    points = path.points
    return max(float(land.loss(torch.lerp(p, q, t)).max()) for p, q in itertools.pairwise(points))


@pytest.mark.parametrize("level", [0.25])
def test_geodesic_in_an_annulus(level: float) -> None:
    """Tangents to the inner circle and an arc of it: 2√(1-ρ²) + ρ(π - 2 arccos ρ)."""
    land = ring()
    rho = math.sqrt(1 - math.sqrt(level))
    exact = 2 * math.sqrt(1 - rho**2) + rho * (math.pi - 2 * math.acos(rho))
    start = measure(land, round_the_ring(9))
    before = land.cost
    path = shorten(land, start, level, seed=0)
    assert exact < path.length <= 1.01 * exact
    assert path.length < start.length
    assert path.maximum.upper <= level
    assert path.converged
    assert path.cost == land.cost - before
    assert highest(land, path) <= level
    assert torch.equal(path.points[0], start.points[0])
    assert torch.equal(path.points[-1], start.points[-1])


def test_round_a_disc() -> None:
    """A bump between the ends: the level is reached at radius r, and a detour goes round it."""
    land = FunctionLandscape(lambda x: torch.exp(-(x**2).sum()), 2)
    r = 0.8
    level = math.exp(-(r**2))
    corners = torch.tensor([[-2.0, 0], [-1.0, 1.5], [0.5, 2.0], [2.0, 0]], dtype=torch.float64)
    path = shorten(land, measure(land, corners), level, seed=0)
    d = 2.0
    exact = 2 * math.sqrt(d**2 - r**2) + r * (math.pi - 2 * math.acos(r / d))
    assert exact < path.length <= 1.01 * exact
    assert highest(land, path) <= level


def test_a_straight_line_where_nothing_obstructs() -> None:
    """Exactly 1, and exactly two points."""
    land = FunctionLandscape(lambda x: (x**2).sum(), 5)
    g = torch.Generator().manual_seed(0)
    corners = 0.3 * torch.randn(7, 5, generator=g, dtype=torch.float64)
    path = shorten(land, measure(land, corners), 10.0, seed=0)
    assert len(path.points) == 2
    assert path.normalised_length == 1
    assert path.converged


@pytest.mark.parametrize("budget", [0, 60, 200])
def test_never_longer_never_higher_within_its_budget(budget: int) -> None:
    land = ring()
    start = measure(land, round_the_ring(9))
    path = shorten(land, start, 0.25, max_gradients=budget, seed=0)
    assert path.length <= start.length
    assert path.maximum.upper <= 0.25
    assert not path.converged
    assert "raise max_gradients" in path.note
    assert path.cost.gradients <= budget + 200  # what one step or check takes


def test_a_path_above_the_level_and_bad_options_are_refused() -> None:
    land = ring()
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    good = measure(land, round_the_ring(9))
    with pytest.raises(ValueError, match=r"not at or below the level 0\.5; only a path below"):
        shorten(land, line(land, *ends), 0.5)
    for options, text in (
        ({"level": math.nan}, "level must be a finite number"),
        ({"tolerance": -1.0}, "tolerance must not be negative"),
        ({"rate": 0.0}, "rate must be a positive number"),
        ({"max_gradients": -1}, "max_gradients must not be negative"),
    ):
        with pytest.raises(ValueError, match=text):
            shorten(land, good, **{"level": 0.25, **options})


def test_a_path_whose_loss_is_not_a_number_is_refused() -> None:
    land = FunctionLandscape(lambda x: (x[0] ** 2) / (x**2).sum(), 2)
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="only a path below the level"):
        shorten(land, line(land, *ends), 2.0)


def test_a_hole_in_the_loss_is_not_entered() -> None:
    """NaN within the ring's inner circle: the path stays in the finite part."""
    land = FunctionLandscape(
        lambda x: ((x**2).sum() - 1) ** 2 + 0 * torch.log((x**2).sum() - 0.6), 2
    )
    path = shorten(land, measure(land, round_the_ring(17)), 0.5, max_gradients=300, seed=0)
    assert math.isfinite(path.maximum.upper)
    assert path.length <= measure(land, round_the_ring(17)).length
    assert float(path.points.norm(dim=1).min()) >= math.sqrt(0.6)


def test_resumed_is_unbroken_bit_for_bit(ctrl_c: Any, tmp_path: FilePath) -> None:
    land = ring()
    start = measure(land, round_the_ring(9))
    options: dict[str, Any] = {"max_gradients": 250, "seed": 0}
    whole = shorten(land, start, 0.25, **options)
    file, stops = tmp_path / "s", 0
    while True:
        try:
            stop = ctrl_c(9, says="length")
            parts = shorten(land, start, 0.25, checkpoint=file, progress=stop, **options)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 2
    assert torch.equal(parts.points, whole.points)
    assert parts.cost == whole.cost
    assert parts.to_json() == whole.to_json()
    with pytest.raises(ValueError, match="other options"):
        shorten(land, start, 0.26, checkpoint=file, **options)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 50])
def test_a_network(batch_size: int | None, digits_pair: Callable[..., Any]) -> None:
    """Close above the ends' loss: of what the string exceeds a straight line by, a tenth goes."""
    land, a, b = digits_pair(10, 200, 150)
    straight = line(land, a, b)
    level = straight.base + 0.1 * straight.height.lower
    string = dynamic_string(land, a, b, level, batch_size=batch_size, shorten=False, seed=0)
    assert string.connected.yes
    before = land.cost
    path = shorten(land, string.path, level, batch_size=batch_size, max_gradients=2500, seed=0)
    assert path.maximum.upper <= level
    excess, left = (p.normalised_length - 1 for p in (string.path, path))
    assert 0 < left < 0.9 * excess
    assert replace(path.cost, passes=0) == replace(land.cost - before, passes=0)
