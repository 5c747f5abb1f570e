"""Curvature at a scale: exact on quadratics, far from the Hessian on ReLU networks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.curvature import Hessian
from thalweg.curvature.scale import curvature_at_scale
from thalweg.landscape import FunctionLandscape, ModelLandscape


def quadratic(dtype=torch.float64, dim=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(dim, dim, generator=generator, dtype=dtype)
    matrix, slope = half @ half.T / dim, torch.randn(dim, generator=generator, dtype=dtype)
    return matrix, FunctionLandscape(lambda x: 0.5 * x @ matrix @ x + slope @ x, dim, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0])
def test_exact_on_a_quadratic_within_its_rounding(dtype, scale, generator):
    matrix, land = quadratic(dtype)
    directions = torch.randn(20, 40, generator=generator, dtype=dtype)
    theta = torch.randn(20, generator=generator, dtype=dtype)
    found = curvature_at_scale(land, theta, directions, scale)
    wide = directions.double()
    truth = ((matrix.double() @ wide) * wide).sum(0)
    errors = (found.values - truth).abs()
    assert bool((errors <= found.rounding).all()), (errors / found.rounding).max()
    assert float((errors / found.rounding).max()) > 1e-3  # and not absurdly wide


def test_rounding_drowns_the_value_at_a_tiny_scale_and_says_so(generator):
    matrix, land = quadratic(torch.float32)
    theta, v = torch.randn(2, 20, generator=generator)
    found = curvature_at_scale(land, theta, v, 1e-5)
    assert float(found.rounding) > abs(float(v @ matrix @ v))
    assert "DROWNED in rounding: raise scale" in str(found)
    assert "[yellow]DROWNED[/yellow]" in found.__rich__()


def test_a_smooth_function_s_value_tends_to_the_hessian_s():
    land = FunctionLandscape(lambda x: (x**4).sum(), dim=1)
    theta = torch.ones(1, dtype=torch.float64)
    errors = [
        float(curvature_at_scale(land, theta, theta, scale).values) - 12 for scale in (0.1, 0.05)
    ]
    assert errors == pytest.approx([2 * 0.1**2, 2 * 0.05**2], rel=1e-6)


@pytest.fixture(scope="module")
def relu():
    """A ReLU network trained on a few points, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
                              nn.Linear(32, 1)).double()  # fmt: skip
        inputs = torch.randn(64, 6, dtype=torch.float64)
        targets = torch.sin(inputs.sum(1, keepdim=True))
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(300):
            optimiser.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            optimiser.step()
    land = ModelLandscape(model, F.mse_loss, (inputs, targets))
    return land, land.vector(model)


def test_far_from_the_hessian_on_a_trained_relu_network(relu):
    """Along directions of negative curvature it is positive, and larger by orders."""
    land, theta = relu
    dense = Hessian(land, theta).to_dense()
    values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
    assert float(values[4]) < 0
    for scale in (0.01, 0.1, 0.3):
        found = curvature_at_scale(land, theta, vectors[:, :5], scale)
        gap = (found.values - values[:5]).abs()
        assert bool((gap > 100 * found.rounding).all())  # rounding is not what parts them
        assert bool((found.values > 0).all())
        assert bool((gap > 10 * values[:5].abs()).all())


def test_near_the_hessian_along_its_top_on_the_same_network(relu):
    """What differs is the kinks' share: a few per cent where the curvature is large."""
    land, theta = relu
    dense = Hessian(land, theta).to_dense()
    values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
    found = curvature_at_scale(land, theta, vectors[:, -3:], 0.1)
    gap = (found.values - values[-3:]).abs()
    assert bool((gap > 100 * found.rounding).all())
    assert bool((gap < 0.2 * values[-3:]).all())


def test_a_kink_alone_gives_a_slope_s_jump_over_the_scale():
    land = FunctionLandscape(lambda x: x.abs().sum(), dim=1)
    e = torch.ones(1, dtype=torch.float64)
    for scale in (0.5, 0.01):
        assert float(curvature_at_scale(land, 0 * e, e, scale).values) == pytest.approx(2 / scale)


def test_a_loss_that_is_not_finite_stays_so():
    land = FunctionLandscape(lambda x: x.sum().sqrt(), dim=1)
    e = torch.ones(1, dtype=torch.float64)
    found = curvature_at_scale(land, e, e, 2.0)  # sqrt(-1)
    assert math.isnan(float(found.values))
    assert found.to_json()["values"] == ["nan"]


def test_cost_and_refusals():
    _, land = quadratic()
    theta = torch.zeros(20, dtype=torch.float64)
    found = curvature_at_scale(land, theta, torch.eye(20, dtype=torch.float64)[:, :3], 0.1)
    assert found.cost.losses == 7 + 2 * 3 * 9
    assert found.values.shape == (3,)
    with pytest.raises(ValueError, match="scale must be a positive number, got 0"):
        curvature_at_scale(land, theta, theta + 1, 0.0)
    with pytest.raises(ValueError, match="a direction is zero"):
        curvature_at_scale(land, theta, theta, 1.0)


def test_rows_for_columns_are_refused(unchecked):
    _, land = quadratic()
    theta = torch.zeros(20, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"columns of shape \(20, k\) or \(20,\), got \(3, 20\)"):
        curvature_at_scale(land, theta, torch.ones(3, 20, dtype=torch.float64), 1.0)
