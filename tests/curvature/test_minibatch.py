"""The sharpness of minibatches against dense Hessians, and the coverage of its quantiles."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.curvature import Hessian
from thalweg.curvature.minibatch import MinibatchSharpness, minibatch_sharpness
from thalweg.estimate import Bound, Cost, Estimate
from thalweg.landscape import ModelLandscape


def linear(examples=30, dim=4, penalty=0.0):
    """Least squares: the Hessian of a minibatch is 2 X^T X / B, whatever the point."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, dim, generator=generator, dtype=torch.float64)
    model = nn.Linear(dim, 1, bias=False).double()
    land = ModelLandscape(model, F.mse_loss, (inputs, inputs[:, :1]), penalty=penalty)
    return land, torch.zeros(dim, dtype=torch.float64), inputs


def test_each_value_is_that_of_its_minibatch():
    land, theta, inputs = linear()
    found = minibatch_sharpness(land, theta, batch_size=29, batches=40, seed=0)
    truths = []  # leaving one example out: thirty minibatches there are
    for i in range(30):
        rest = torch.cat([inputs[:i], inputs[i + 1 :]])
        truths.append(float(torch.linalg.eigvalsh(2 * rest.T @ rest / 29).max()))
    near = (found.values[:, None] - torch.tensor(truths)).abs().min(1).values
    assert float(near.max()) < 1e-6
    assert len(set(found.values.numpy().round(8))) > 10  # and they differ
    full = float(torch.linalg.eigvalsh(2 * inputs.T @ inputs / 30).max())
    assert found.full.lower <= full <= found.full.upper


def test_the_whole_as_a_minibatch_has_no_spread():
    land, theta, _ = linear()
    found = minibatch_sharpness(land, theta, batch_size=30, seed=0)
    assert float(found.values.std()) < 1e-6
    assert found.full.upper == pytest.approx(found.mean.value, rel=1e-4)


def test_minibatches_are_sharper_than_all_data_on_average():
    land, theta, _ = linear()
    found = minibatch_sharpness(land, theta, batch_size=4, batches=60, seed=0)
    assert found.mean.interval[0] > found.full.upper


@pytest.mark.slow
def test_weight_decay_adds_exactly_itself():
    land, theta, _ = linear()
    plain = minibatch_sharpness(land, theta, batch_size=6, seed=3)
    decayed = minibatch_sharpness(land, theta, batch_size=6, weight_decay=0.25, seed=3)
    torch.testing.assert_close(decayed.values, plain.values + 0.25, rtol=0, atol=1e-14)
    assert decayed.full.lower == pytest.approx(plain.full.lower + 0.25)
    penalised = minibatch_sharpness(linear(penalty=0.25)[0], theta, batch_size=6, seed=3)
    torch.testing.assert_close(penalised.values, decayed.values, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_augmentation_is_applied_to_minibatches_alone():
    land, theta, _ = linear()
    doubled = minibatch_sharpness(
        land, theta, batch_size=6, augment=lambda x, generator: 2 * x, seed=3
    )
    plain = minibatch_sharpness(land, theta, batch_size=6, seed=3)
    assert doubled.full.upper == pytest.approx(plain.full.upper, rel=1e-4)
    assert float(doubled.values.mean()) > 2.5 * float(plain.values.mean())
    assert "augmented" in str(doubled)
    assert doubled.cost.passes < 60


@pytest.mark.slow
def test_random_augmentation_is_reproduced_by_the_seed():
    def noisy(inputs, generator):
        noise = torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
        return inputs + 0.3 * noise

    land, theta, _ = linear()
    runs = [
        minibatch_sharpness(land, theta, batch_size=6, augment=noisy, seed=s) for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0].values, runs[1].values)
    assert not torch.equal(runs[0].values, runs[2].values)


@pytest.mark.slow
def test_a_network_with_its_certificates():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        inputs, targets = torch.randn(24, 3).double(), torch.randint(0, 2, (24,))
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    theta = land.vector(model)
    found = minibatch_sharpness(land, theta, batch_size=23, seed=0)
    tops = []
    for i in range(24):
        part = land.minibatch([j for j in range(24) if j != i])
        dense = Hessian(part, theta).to_dense()
        tops.append(float(torch.linalg.eigvalsh((dense + dense.T) / 2).max()))
    held = [any(low <= top <= high for top in tops) for low, high in found.intervals.tolist()]
    assert all(held)
    assert bool(found.converged.all())


def made(values):
    """A result with given values, known exactly."""
    values = torch.as_tensor(values, dtype=torch.float64)
    exact = Bound.exactly(0.0)
    mean = Estimate(float(values.mean()), 0.0, (0.0, 0.0), len(values))
    return MinibatchSharpness(
        values, torch.stack([values, values], 1), values > -1, exact, mean,
        1, 1, 0.0, 0.95, Cost(), 0,
    )  # fmt: skip


@pytest.mark.calibration
@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [32, 100])
def test_quantiles_cover(calibration, q, count):
    hits = 0
    for seed in calibration.seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(count, generator=generator, dtype=torch.float64).log().neg()
        hits += -math.log(1 - q) in made(drawn).quantile(q)
    calibration.check(f"{q:.0%} quantile over {count} minibatches", hits)


def test_an_extreme_quantile_of_few_minibatches_is_open():
    found = made(torch.arange(32.0)).quantile(0.99)
    assert found.interval[1] == math.inf
    assert made(torch.arange(32.0)).quantile(0.01).interval[0] == -math.inf
    with pytest.raises(ValueError, match="q must lie strictly between 0 and 1"):
        made([1.0]).quantile(1.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size must lie between 1 and 30, got 0"),
        ({"batch_size": 31}, "batch_size must lie between 1 and 30, got 31"),
        ({"batch_size": 3, "batches": 10}, "batches=10 is too few"),
        ({"batch_size": 3, "weight_decay": -1.0}, "weight_decay must be a finite number >= 0"),
    ],
)
def test_refusals(options, match):
    land, theta, _ = linear()
    with pytest.raises(ValueError, match=match):
        minibatch_sharpness(land, theta, **options)


def test_json():
    land, theta, _ = linear()
    data = minibatch_sharpness(land, theta, batch_size=6, seed=5).to_json()
    assert data["seed"] == 5
    assert len(data["values"]) == 32
    assert data["quantiles"]["0.5"]["interval"][0] <= data["quantiles"]["0.5"]["value"]
