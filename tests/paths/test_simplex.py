"""Simplexes: volumes in closed form, and training that widens flat valleys."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths.simplex import Simplex, log_volume, regular_side, simplex, volume_gradient

Make = Callable[..., Any]  # a closed form by its parameters, from conftest

VALLEY = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + 0 * x.sum(), 3)
ENDS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 3.0, 0.0]], dtype=torch.float64)


def cayley_menger(v: Tensor) -> float:
    """The volume from squared distances alone."""
    n = len(v) - 1
    bordered = np.ones((n + 2, n + 2))
    bordered[0, 0] = 0
    bordered[1:, 1:] = torch.cdist(v, v).square().numpy()
    scale = (-1) ** (n + 1) / (2**n * math.factorial(n) ** 2)
    return math.sqrt(scale * np.linalg.det(bordered))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_volume_against_cayley_menger(seed: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(n + 1, 7, generator=g, dtype=torch.float64)
    assert math.exp(log_volume(v)) == pytest.approx(cayley_menger(v), rel=1e-8)
    order = torch.randperm(n + 1, generator=g)
    assert log_volume(v[order]) == pytest.approx(log_volume(v), abs=1e-10)


def test_triangle_tetrahedron_and_regular_simplexes() -> None:
    g = torch.Generator().manual_seed(1)
    a, b, c, d = torch.randn(4, 3, generator=g, dtype=torch.float64)
    heron = 0.5 * float(torch.linalg.cross(b - a, c - a).norm())
    assert math.exp(log_volume(torch.stack([a, b, c]))) == pytest.approx(heron)
    box = abs(float(torch.linalg.det(torch.stack([b - a, c - a, d - a])))) / 6
    assert math.exp(log_volume(torch.stack([a, b, c, d]))) == pytest.approx(box)
    for n in range(1, 7):
        regular = 2.5 / math.sqrt(2) * torch.eye(n + 1, dtype=torch.float64)  # sides of 2.5
        assert regular_side(log_volume(regular), n) == pytest.approx(2.5)
    assert log_volume(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])) == -math.inf


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
def test_volume_gradient_against_autograd(seed: int, connectors: int, modes: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(modes, 6, generator=g, dtype=torch.float64)
    leaf = torch.randn(connectors, 6, generator=g, dtype=torch.float64).requires_grad_()
    edges = leaf - w[:, None]
    value = torch.logdet(edges @ edges.mT) / 2 - math.lgamma(connectors + 1)
    mean = value.mean() / connectors
    found, gradient = volume_gradient(w, leaf.detach())
    assert found == pytest.approx(float(mean.detach()), abs=1e-9)
    assert torch.allclose(gradient, torch.autograd.grad(mean, leaf)[0], rtol=1e-6)


def test_points_are_even_in_the_volume() -> None:
    """In a flat landscape; the centroid, and the shares of two simplexes of unequal size."""
    found = trained(connectors=2, max_gradients=40)
    points = found.sample(4000, seed=3)
    assert torch.equal(points, found.sample(4000, seed=3))
    shares = torch.softmax(torch.tensor(found.log_volumes, dtype=torch.float64), 0)
    centroids = torch.stack([found.vertices(k).mean(0) for k in range(2)])
    spread = points.std(0) / math.sqrt(4000)
    assert bool(((points.mean(0) - shares @ centroids).abs() < 4.5 * spread + 1e-12).all())


def trained(**options: Any) -> Simplex:
    return simplex(VALLEY, ENDS, seed=0, **options)


@pytest.mark.parametrize("connectors", [1, 2])
def test_a_flat_valley_is_filled(connectors: int) -> None:
    """The volume grows with the budget, the loss stays low."""
    before = VALLEY.cost
    short = trained(connectors=connectors, max_gradients=80)
    assert short.cost == VALLEY.cost - before
    long = trained(connectors=connectors, max_gradients=800)
    assert min(long.sides) > 2 * min(short.sides)
    assert long.highest < 0.05
    assert long.mean.interval[1] <= long.highest
    assert long.mean.value < 0.02
    assert long.cost.gradients <= 800
    assert len(long.log_volumes) == 2
    assert long.vertices(1).shape == (connectors + 1, 3)
    assert torch.equal(long.vertices(1)[0], ENDS[1])


def test_the_wrong_sign_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: with the volume's sign turned, it collapses."""
    right = trained(max_gradients=400)

    def turned(modes: Tensor, connectors: Tensor) -> tuple[float, Tensor]:
        value, gradient = volume_gradient(modes, connectors)
        return -value, -gradient

    monkeypatch.setattr(sys.modules["thalweg.paths.simplex"], "volume_gradient", turned)
    wrong = trained(max_gradients=400)
    assert sum(wrong.sides) < 0.7 * sum(right.sides)


def test_around_the_ring() -> None:
    """Two modes and a connector: the chain of two segments, as low as a triangle's sides go."""
    ring = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
    modes = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = simplex(ring, modes, seed=0, max_gradients=800, tolerance=0.01)
    assert found.converged, found.note
    assert found.mean.value < 0.03
    middle = float(ring.loss(modes.mean(0)))
    assert found.highest < middle
    assert found.base == 0
    t = torch.linspace(0, 1, 201, dtype=torch.float64)[:, None]
    sides = [torch.lerp(m, found.connectors[0], t) for m in modes]
    lengths = torch.tensor([math.exp(v) for v in found.log_volumes], dtype=torch.float64)
    exact = torch.stack([torch.trapezoid(ring.loss(s), t[:, 0]) for s in sides])
    assert float(exact @ lengths / lengths.sum()) in found.mean
    assert float(ring.loss(torch.cat(sides)).max()) >= found.highest


def test_one_mode_and_many() -> None:
    single = simplex(VALLEY, ENDS[:1], connectors=2, seed=0, max_gradients=400)
    assert single.sides[0] > 1
    assert single.highest < 0.05
    three = torch.cat([ENDS, torch.tensor([[-1.0, 1.0, 0.0]], dtype=torch.float64)])
    assert len(simplex(VALLEY, three, seed=0, max_gradients=100).sides) == 3


def test_a_network(digits_network: Make) -> None:
    """Two rough minima of digits: below the middle of the line by far."""
    land = digits_network()
    modes = torch.stack(
        [0.15 * torch.randn(land.dim, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    )
    for _ in range(60):
        modes = modes - 0.3 * land.gradient(modes)
    found = simplex(land, modes, seed=0, max_gradients=400, max_samples=64)
    assert found.highest < float(land.loss(modes.mean(0)))
    assert found.connectors.dtype == torch.float32
    assert "highest seen" in str(found)
    assert "2 simplexes of dimension 1" in found.__rich__()
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["type"] == "simplex"
    assert stored["sides"] == pytest.approx(list(found.sides))


def test_interrupted_and_resumed_is_unbroken(ctrl_c: Any, tmp_path: File) -> None:
    unbroken = trained(connectors=2, max_gradients=240)
    file, stop = tmp_path / "simplex.pt", ctrl_c(11, says="simplex step")
    with pytest.raises(KeyboardInterrupt):
        trained(connectors=2, max_gradients=240, checkpoint=file, progress=stop)
    resumed = trained(connectors=2, max_gradients=240, checkpoint=file)
    assert torch.equal(resumed.connectors, unbroken.connectors)
    assert (resumed.cost, resumed.mean) == (unbroken.cost, unbroken.mean)
    assert resumed.strength == unbroken.strength
    with pytest.raises(ValueError, match="with other options"):
        trained(connectors=1, max_gradients=240, checkpoint=file)


def test_a_loss_that_is_not_finite_is_reported() -> None:
    nowhere = FunctionLandscape(
        lambda x: torch.where(x[0].abs() < 0.5, math.nan * x[0], x[0] ** 2), 2
    )
    modes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    found = simplex(nowhere, modes, seed=0, max_gradients=400)
    assert not found.converged
    assert "NaN or infinite" in found.note
    assert math.isnan(found.mean.value)
    assert math.isnan(found.highest)
    assert "nan" in str(found)
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("vertices", "options", "message"),
    [
        (ENDS[0], {}, r"vertices has shape \(3,\); it needs \(at least 1, 3\)"),
        (torch.cat([ENDS, ENDS[:1]]), {}, "two of the vertices are the same vector"),
        (ENDS * math.nan, {}, "vertices holds 6 NaN or infinite values"),
        (ENDS, {"connectors": 0}, "connectors must be at least 1, got 0"),
        (ENDS, {"connectors": 4}, "4 connectors span no volume in 3 dimensions"),
        (ENDS, {"strength": 0.0}, "strength must be a positive number, got 0.0"),
        (ENDS, {"lr": math.inf}, "lr must be a positive number"),
        (ENDS, {"max_samples": 8}, "max_samples must be at least 32, got 8"),
        (ENDS, {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_makes_no_sense(vertices: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simplex(VALLEY, vertices, **options)


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_volume() -> None:
    with pytest.raises(ValueError, match="a simplex needs"):
        log_volume(ENDS[:1])
    with pytest.raises(ValueError, match="n must be at least 1"):
        trained(max_gradients=20).sample(0)
