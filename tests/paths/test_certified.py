"""Proven maxima along paths of networks: exact, enclosed, refused; and how often they hold."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.landscape import FunctionLandscape, ModelLandscape, NoEnclosure
from thalweg.landscape.enclosure import NetworkEnclosure
from thalweg.paths import bracket_maximum, measure
from thalweg.paths.certified import enclosed_maximum, tent_upper


def random_land(seed: int, kind: str) -> tuple[ModelLandscape, Tensor]:
    """A small random network in float64, and two or three corners far from each other."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 6, (4,), generator=g).tolist()
    act = nn.Tanh if "tanh" in kind else nn.ReLU
    layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1]), act()]
    if "deep" in kind:
        layers += [nn.Linear(sizes[1], sizes[2]), act()]
    last = sizes[2] if "deep" in kind else sizes[1]
    model = nn.Sequential(*layers, nn.Linear(last, 2)).double()
    x = torch.randn(12, sizes[0], generator=g, dtype=torch.float64)
    y = torch.randn(12, 2, generator=g, dtype=torch.float64)
    if "entropy" in kind:
        land = ModelLandscape(model, F.cross_entropy, (x, (y[:, 0] > 0).long()))
    else:
        land = ModelLandscape(model, F.mse_loss, (x, y))
    corners = 1.5 * torch.stack([land.start(g) for _ in range(2 + seed % 2)])
    return land, corners


def dense_maximum(land: ModelLandscape, points: Tensor, count: int = 401) -> tuple[float, float]:
    """The highest loss of a grid, refined twice around its best, and the losses' range."""
    best, least = -np.inf, np.inf
    for a, b in itertools.pairwise(points):
        low, high = 0.0, 1.0
        for _ in range(3):
            t = torch.linspace(low, high, count, dtype=torch.float64)
            values = torch.cat([land.loss(a + s[:, None] * (b - a)) for s in t.split(101)])
            top = float(t[values.argmax()])
            best, least = max(best, float(values.max())), min(least, float(values.min()))
            low, high = max(0.0, top - 2 / count), min(1.0, top + 2 / count)
            count = 101
        count = 401
    return best, best - least


@pytest.mark.parametrize("low", [-3.0, 0.5, -1.0])
def test_tent_upper_is_the_highest_point_between_two_lines(low: float) -> None:
    high, g0, g1, h = 2.0, 0.3, 0.7, 1.4
    s = np.linspace(0, h, 100001)
    truth = np.minimum(g0 + high * s, g1 - low * (h - s)).max()
    found = tent_upper(*(np.array([v]) for v in (g0, g1, h, low, high)))[0]
    assert truth - 1e-12 <= found
    if low < 0:  # else the right end alone bounds it
        assert found <= max(truth, g0, g1) + 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_shallow_relu_is_exact(seed: int) -> None:
    land, corners = random_land(seed, "relu")
    found = bracket_maximum(land, corners)
    truth, _ = dense_maximum(land, corners)
    bound = found.maximum
    assert (bound.lower_kind, bound.upper_kind) == ("exact", "exact")
    assert truth <= bound.upper <= truth + 1e-9 * (1 + truth)
    assert bound.width <= 1e-9 * (1 + truth)
    assert "breakpoints" in bound.method
    assert float(land.loss(found.top)) == pytest.approx(bound.lower, abs=1e-12)


class Spike(nn.Module):
    """One hidden layer on the input 1: a bump of half-width 0.004 as its biases slide."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        out: Tensor = self.layers(x)
        return out


def test_a_needle_that_20_points_miss_is_caught() -> None:
    """The same needle exactly, by enclosure, and missed by the estimate."""
    model = Spike().double()
    width, at = 0.004, 0.5 + 0.6 / 19
    with torch.no_grad():
        model.layers[0].weight.zero_()
        model.layers[0].bias.copy_(-torch.tensor([at - width, at, at + width], dtype=torch.float64))
        model.layers[2].weight.copy_(torch.tensor([[1.0, -2.0, 1.0]], dtype=torch.float64) / width)
        model.layers[2].bias.fill_(1.0)
    ones = torch.ones(1, 1, dtype=torch.float64)
    land = ModelLandscape(model, F.mse_loss, (ones, 0 * ones))
    a = land.vector(model)
    b = a.clone()
    b[land.spec.slices["layers.0.bias"]] += 1
    points = torch.stack([a, b])
    coarse = a + torch.linspace(0, 1, 20, dtype=torch.float64)[:, None] * (b - a)
    assert float(land.loss(coarse).max()) < 1 + 1e-9
    exact = bracket_maximum(land, points).maximum
    assert exact.lower == pytest.approx(4, abs=1e-8)
    assert exact.upper == pytest.approx(4, abs=1e-8)
    blind = bracket_maximum(land, points, bounds="estimated").maximum
    assert (blind.upper_kind, blind.upper < 2) == ("estimated", True)

    for budget in (8, 400):  # widened at first, then closed
        proof, _ = enclosed_maximum(
            land,
            land.enclosure(),
            points,
            tolerance=1e-2,
            max_samples=budget,
            per_segment=8,
            patient=True,
        )
        assert proof is not None
        assert proof.upper >= 4
    assert proof.upper - proof.losses.max() <= 1e-2


def test_bounds_are_chosen_by_name() -> None:
    land, corners = random_land(1, "deep tanh")
    auto = bracket_maximum(land, corners).maximum
    assert auto.upper_kind == "certified"
    assert "sub-intervals" in auto.method
    wide = bracket_maximum(land, corners, bounds="certified", max_samples=4, initial=2).maximum
    assert wide.upper_kind == "certified"
    assert wide.upper >= auto.lower
    guess = bracket_maximum(land, corners, bounds="estimated").maximum
    assert guess.upper_kind == "estimated"
    capped = bracket_maximum(land, corners, tolerance=1e-12, max_samples=20).maximum
    assert capped.upper_kind == "estimated"
    assert "certified not to exceed" in capped.method
    plain = FunctionLandscape(lambda x: (x**2).sum(), 2)
    ends = torch.eye(2, dtype=torch.float64)
    assert bracket_maximum(plain, ends).maximum.upper_kind == "estimated"
    with pytest.raises(NoEnclosure, match=r"cannot bound itself; pass curvature="):
        bracket_maximum(plain, ends, bounds="certified")
    known = bracket_maximum(plain, ends, bounds="certified", curvature=2.0).maximum
    assert known.upper_kind == "certified"


def test_an_unknown_kind_of_bound_is_refused(unchecked: None) -> None:
    land, corners = random_land(1, "deep tanh")
    with pytest.raises(ValueError, match="bounds must be 'auto'"):
        bracket_maximum(land, corners, bounds="proven")  # type: ignore[arg-type] # the point


def test_a_broken_enclosure_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are too low by 1e-3 contradict the landscape's own at the corners."""
    land, corners = random_land(3, "deep relu")
    whole = NetworkEnclosure.slope_range

    def low(self: NetworkEnclosure, *args: Any) -> Any:
        found = whole(self, *args)
        return dataclasses.replace(
            found, middle_lo=found.middle_lo - 1e-3, middle_hi=found.middle_hi - 1e-3
        )

    land.enclosure()
    monkeypatch.setattr(NetworkEnclosure, "slope_range", low)
    with pytest.raises(ValueError, match="does not hold the loss"):
        bracket_maximum(land, corners)


def test_cost_corners_and_samples_are_in_order() -> None:
    land, corners = random_land(1, "deep tanh entropy")
    before = land.cost
    path = measure(land, corners)
    spent = land.cost - before
    assert path.cost == spent
    assert spent.gradients == 0
    assert spent.passes > 2 * 2
    times = path.profile.times
    assert bool((times[1:] > times[:-1]).all())
    assert torch.allclose(path.losses, land.loss(corners), rtol=0, atol=1e-12)
    assert torch.equal(path.points[[0, -1]], corners[[0, -1]])


def test_a_loss_that_overflows_is_reported_not_proven() -> None:
    land, corners = random_land(0, "deep relu")
    huge = torch.stack([corners[0], 1e120 * corners[1]])
    found = bracket_maximum(land, huge).maximum
    assert not np.isfinite(found.upper)


@pytest.mark.calibration
@pytest.mark.parametrize("kind", ["relu", "deep relu", "deep tanh", "deep tanh entropy"])
def test_certified_upper_ends_hold_the_truth(calibration: Any, kind: str) -> None:
    """Every one of them, and the median gap is at most 1 % of the range."""
    hits, gaps, proven = 0, [], 0
    for seed in calibration.seeds:
        land, corners = random_land(seed + 1000, kind)
        bound = bracket_maximum(land, corners).maximum
        truth, spread = dense_maximum(land, corners)
        hits += bound.upper >= truth
        gaps.append((bound.upper - truth) / spread)
        proven += bound.upper_kind != "estimated"
    calibration.check(f"proven maximum of {kind} networks", hits, level=0.999)
    assert hits == len(calibration.seeds)
    assert proven >= 0.95 * len(calibration.seeds)
    assert float(np.median(gaps)) <= 1e-2
