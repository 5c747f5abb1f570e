"""Proven maxima along paths of networks: exact, enclosed, refused; and how often they hold."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
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
from thalweg.paths.path import join


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
    if "entropy" in kind or ("either" in kind and seed // 2 % 2):
        land = ModelLandscape(model, F.cross_entropy, (x, (y[:, 0] > 0).long()))
    else:
        land = ModelLandscape(model, F.mse_loss, (x, y))
    corners = 1.5 * torch.stack([land.start(g) for _ in range(2 + seed % 2)])
    return land, corners


def dense_maximum(land: ModelLandscape, points: Tensor) -> tuple[float, float]:
    """The highest loss of a grid, refined twice around its best, and the losses' range."""
    best, least = -np.inf, np.inf
    for a, b in itertools.pairwise(points):
        low, high = 0.0, 1.0
        for count in (129, 33, 33):
            t = torch.linspace(low, high, count, dtype=torch.float64)
            values = land.loss(a + t[:, None] * (b - a))
            top, step = float(t[values.argmax()]), (high - low) / (count - 1)
            best, least = max(best, float(values.max())), min(least, float(values.min()))
            low, high = max(0.0, top - 2 * step), min(1.0, top + 2 * step)
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


@pytest.mark.parametrize("seed", range(4))
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


@pytest.mark.parametrize("kind", ["relu", "deep relu"])
def test_a_loss_that_overflows_is_reported_not_proven(kind: str) -> None:
    land, corners = random_land(0, kind)
    for bounds in ("auto", "certified"):
        huge = torch.stack([corners[0], 1e120 * corners[1]])
        found = bracket_maximum(land, huge, bounds=bounds).maximum
        assert not np.isfinite([found.lower, found.upper]).any()  # inf, or NaN from inf - inf
    with pytest.raises(ValueError, match="NaN or infinite values"):
        bracket_maximum(land, corners * torch.nan)
    with pytest.raises(ValueError, match="norms overflow"):
        bracket_maximum(land, 1e200 * corners)


def test_bounds_that_overflow_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    land, corners = random_land(3, "deep relu")
    whole = NetworkEnclosure.slope_range

    def unbounded(self: NetworkEnclosure, *args: Any) -> Any:
        found = whole(self, *args)
        endless = np.full_like(found.slope_hi, np.inf)
        return dataclasses.replace(found, value_hi=endless, slope_hi=endless)

    land.enclosure()
    monkeypatch.setattr(NetworkEnclosure, "slope_range", unbounded)
    assert bracket_maximum(land, corners).maximum.upper_kind == "estimated"
    with pytest.raises(NoEnclosure, match="intervals overflow"):
        bracket_maximum(land, corners, bounds="certified")


def rational_loss(model: nn.Module, theta: list[Fraction], x: Tensor, y: Tensor) -> Fraction:
    """The mean squared error of a chain of linear layers and ReLUs, without any rounding."""
    total, at = Fraction(0), 0
    layers = []
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            outputs, inputs = layer.weight.shape
            weight = [theta[at + j * inputs : at + (j + 1) * inputs] for j in range(outputs)]
            at += outputs * inputs
            layers.append((weight, theta[at : at + outputs]))
            at += outputs
    for row, target in zip(x.tolist(), y.tolist(), strict=True):
        h = [Fraction(v) for v in row]
        for k, (weight, bias) in enumerate(layers):
            h = [
                b + sum((w * v for w, v in zip(ws, h, strict=True)), Fraction(0))
                for ws, b in zip(weight, bias, strict=True)
            ]
            h = h if k == len(layers) - 1 else [max(v, Fraction(0)) for v in h]
        total += sum(((v - Fraction(t)) ** 2 for v, t in zip(h, target, strict=True)), Fraction(0))
    return total / y.numel()


@pytest.mark.parametrize("seed", range(12))
def test_no_rational_place_lies_above(seed: int) -> None:
    """Truth without rounding: kinks at corners, dead units, huge weights, penalty, batches."""
    r = np.random.default_rng(seed)
    depth, examples = 1 + seed % 2, (1, 2, 7)[seed % 3]
    layers: list[nn.Module] = [nn.Linear(2, 3), nn.ReLU()]
    layers += [nn.Linear(3, 3), nn.ReLU()] * (depth - 1)
    dtype = torch.float32 if seed % 5 == 4 else torch.float64
    model = nn.Sequential(*layers, nn.Linear(3, 2)).to(dtype)
    x = torch.from_numpy(r.integers(-2, 3, (examples, 2))).to(dtype)
    y = torch.from_numpy(r.normal(size=(examples, 2))).to(dtype)
    decay = (0.0, 0.25)[seed // 2 % 2]
    penalty = {"penalty": decay} if decay else {}
    land = ModelLandscape(model, F.mse_loss, (x, y), batch_size=2, **penalty)
    whole = r.integers(-2, 3, (3, land.dim)).astype(float)  # pre-activations of exactly 0
    whole *= 10.0 ** r.uniform(-3, 6 if dtype == torch.float64 else 2) if seed % 4 == 3 else 1.0
    whole[2] = np.nextafter(whole[1], np.inf)  # a segment of rounding's length
    corners = torch.from_numpy(whole).to(dtype)
    profile = bracket_maximum(land, corners)
    assert profile.maximum.upper_kind in ("exact", "certified")
    for a, b in itertools.pairwise(corners.tolist()):
        for t in (*np.linspace(0, 1, 9), *r.random(4), min(1.0, 2 * profile.top_time)):
            theta = [
                Fraction(u) + Fraction(float(t)) * (Fraction(v) - Fraction(u))
                for u, v in zip(a, b, strict=True)
            ]
            value = rational_loss(model, theta, x, y)
            value += Fraction(decay) / 2 * sum((v * v for v in theta), Fraction(0))
            assert value <= Fraction(profile.maximum.upper)


def test_ends_equal_up_to_rounding_stay_proven() -> None:
    """The range is 0 there, and no budget is spent on what rounding hides."""
    land, corners = random_land(1, "deep tanh")
    a = corners[0]
    found = bracket_maximum(land, torch.stack([a, torch.nextafter(a, a + 1)])).maximum
    assert found.upper_kind == "certified"
    assert found.width <= 1e-10
    assert found.cost.passes < 50


@pytest.mark.parametrize("seed", range(3))
def test_float32_losses_do_not_exceed_the_bound_by_more_than_their_rounding(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(64, 6, generator=g), torch.randn(64, 3, generator=g)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 20), nn.ReLU())
    model.append(nn.Linear(20, 3))
    loss, targets = (F.mse_loss, y) if seed % 2 else (F.cross_entropy, y.argmax(1))
    land = ModelLandscape(model, loss, (x, targets))
    points = 10 * torch.stack([land.start(g), land.start(g)])
    profile = bracket_maximum(land, points)
    assert profile.maximum.upper_kind == "certified"
    t = (profile.top_time + torch.linspace(-1e-3, 1e-3, 201)).clamp(0, 1)[:, None]
    values = land.loss(torch.lerp(points[0], points[1], t)).double()
    excess = float(values.max()) - profile.maximum.upper
    assert excess <= 16 * torch.finfo(torch.float32).eps * (1 + profile.maximum.upper)


def test_an_exact_maximum_that_rounding_blurs_is_only_certified() -> None:
    """Weights of 1e12 that cancel: the rounding bound is wide, and the kind says so."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    ones = torch.ones(1, 1, dtype=torch.float64)
    land = ModelLandscape(model, F.mse_loss, (ones, 0 * ones))
    a = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e12, -1e12, 1.0], dtype=torch.float64)
    b = a + torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    found = bracket_maximum(land, torch.stack([a, b])).maximum
    assert (found.lower_kind, found.upper_kind) == ("certified", "certified")
    assert found.lower == pytest.approx(4)
    assert found.upper >= 4


def test_a_level_stops_the_search_once_the_bracket_lies_on_one_side() -> None:
    land, corners = random_land(1, "deep tanh")
    full = bracket_maximum(land, corners, tolerance=1e-6, max_samples=2000).maximum
    for gap in (-0.3, -0.02, 0.02, 0.3):
        level = full.lower + gap
        found = bracket_maximum(
            land, corners, tolerance=1e-6, max_samples=2000, level=level
        ).maximum
        assert found.upper_kind == "certified"
        assert (found.upper <= level) if gap > 0 else (found.lower > level)
        assert found.cost.passes < full.cost.passes
    near = measure(land, corners, bounds="certified", tolerance=0.0, level=full.lower + 1e-4)
    assert near.maximum.upper_kind == "certified"
    with pytest.raises(ValueError, match="level is NaN"):
        bracket_maximum(land, corners, level=np.nan)


def test_joined_maxima_are_worth_what_the_weaker_is() -> None:
    land, corners = random_land(0, "relu")
    third = torch.stack([corners[1], 0.5 * corners[0]])
    exact = measure(land, corners)
    for bounds, kinds in (
        ("auto", ("exact", "exact")),
        ("estimated", ("certified", "estimated")),
    ):
        other = measure(land, third, bounds=bounds)
        for both in (join(exact, other), join(other.reversed(), exact.reversed())):
            assert (both.maximum.lower_kind, both.maximum.upper_kind) == kinds


@pytest.mark.calibration
@pytest.mark.parametrize("kind", ["relu", "deep relu", "deep tanh, either loss"])
def test_certified_upper_ends_hold_the_truth(calibration: Any, unchecked: None, kind: str) -> None:
    """Every one of them, and the median gap is at most 1 % of the range.

    Shape checks are off: they would take half of the time.
    """
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
