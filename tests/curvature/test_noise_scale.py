"""Gradient noise scales against naive loops, and the coverage of the population's interval."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.curvature import Hessian
from thalweg.curvature.noise_scale import gradient_noise_scale
from thalweg.landscape import FunctionLandscape, ModelLandscape


def network(examples=40, penalty=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (examples,), generator=generator)
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), penalty=penalty, batch_size=17)
    return land, land.vector(model)


def gradients(land, theta):
    """Every example's own gradient, one landscape each (the penalty is in all of them)."""
    return torch.stack([land.minibatch([i]).gradient(theta) for i in range(land.examples)])


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_against_a_naive_loop(penalty):
    land, theta = network(penalty=penalty)
    rows = gradients(land, theta)
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    dense = Hessian(land, theta).to_dense()
    found = gradient_noise_scale(land, theta, samples=len(rows), seed=0)
    assert found.simple.value == pytest.approx(float(covariance.trace() / (mean @ mean)))
    assert found.noise == pytest.approx(float(covariance.trace()))
    assert found.gradient_norm == pytest.approx(float(mean.norm()))
    truth = float((dense @ covariance).trace() / (mean @ dense @ mean))
    assert found.curved.value == pytest.approx(truth)
    assert found.curved.stderr == 0
    assert found.curvature == pytest.approx(float(mean @ dense @ mean))


@pytest.mark.slow
def test_the_noise_of_random_minibatches_is_what_the_scale_says():
    land, theta = network()
    scale = gradient_noise_scale(land, theta, samples=0, seed=0).simple.value
    generator = torch.Generator().manual_seed(1)
    full, size = land.gradient(theta), 8
    drawn = [
        land.minibatch(torch.randint(0, 40, (size,), generator=generator)).gradient(theta)
        for _ in range(400)
    ]
    noise = float(((torch.stack(drawn) - full) ** 2).sum(1).mean() / (full @ full))
    assert noise == pytest.approx(scale / size, rel=0.15)


def test_unequal_weights_are_linearised_per_example():
    """Tokens: examples of weight 1 or 3, seen by hand as a ratio of means."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, inputs):
            return self.w * inputs[:, 0]

    def loss(outputs, targets):
        weights = targets
        return (weights * outputs).sum() / weights.sum(), weights.sum()

    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 3.0, 1.0, 3.0], dtype=torch.float64)
    model = Scale()
    land = ModelLandscape(model, loss, (values[:, None], weights))
    found = gradient_noise_scale(land, land.vector(model), samples=0)
    mean = (weights * values).sum() / weights.sum()
    parts = 4 * weights / weights.sum() * (values - mean)
    assert found.simple.value == pytest.approx(float((parts**2).mean() / mean**2))


@pytest.mark.slow
def test_random_signs_are_unbiased_and_their_interval_holds():
    seeds = 40
    land, theta = network(examples=120)
    truth = gradient_noise_scale(land, theta, samples=120, seed=0).curved.value
    found = [gradient_noise_scale(land, theta, samples=32, seed=s).curved for s in range(seeds)]
    assert sum(truth in estimate for estimate in found) >= 34
    mean = sum(estimate.value for estimate in found) / seeds
    spread = sum(estimate.stderr for estimate in found) / seeds / math.sqrt(seeds)
    assert abs(mean - truth) < 5 * spread
    assert found[3].seed == 3


class Sampled:
    """A population of gradients N(G, C), of which a landscape sees n draws."""

    def __init__(self, mean, spread, examples, seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(examples, len(mean), generator=generator, dtype=torch.float64)
        self.rows = mean + noise * spread

    def land(self):
        model = nn.Linear(self.rows.shape[1], 1, bias=False).double()
        land = ModelLandscape(model, lambda out, _: out.mean(), (self.rows, self.rows[:, 0]))
        return land, torch.zeros(land.dim, dtype=torch.float64)


@pytest.mark.calibration
@pytest.mark.parametrize(
    ("name", "size", "examples"),
    [("clear gradient", 1.0, 60), ("faint gradient", 0.25, 60), ("no gradient", 0.0, 60)],
)
def test_the_population_s_interval_holds_the_truth(calibration, name, size, examples):
    mean = size * torch.tensor([1.0, -1.0, 0.5, 0, 0, 0], dtype=torch.float64)
    spread = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    truth = float((spread**2).sum() / (mean @ mean)) if size else math.inf
    hits = 0
    for seed in calibration.seeds:
        land, theta = Sampled(mean, spread, examples, seed).land()
        hits += truth in gradient_noise_scale(land, theta, samples=0, seed=0).population
    calibration.check(f"population noise scale, {name}, {examples} examples", hits)


def test_without_a_gradient_the_population_s_scale_is_unbounded_and_says_so():
    zero = torch.zeros(6, dtype=torch.float64)
    land, theta = Sampled(zero, zero + 1, 60, 0).land()
    found = gradient_noise_scale(land, theta, samples=0)
    assert found.population.interval[1] == math.inf
    assert math.isfinite(found.simple.value)  # on these very data it is what it is
    assert "do not show that the population's gradient is not zero" in str(found)


def test_more_data_narrows_the_population_s_interval():
    mean = torch.ones(6, dtype=torch.float64)
    widths = []
    for examples in (60, 600):
        land, theta = Sampled(mean, mean, examples, 0).land()
        widths.append(gradient_noise_scale(land, theta, samples=0).population.half_width)
    assert widths[1] < widths[0] / 2


def test_negative_curvature_along_the_gradient_is_named():
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    land = ModelLandscape(model, lambda out, _: (out - out**2).mean(), (x, x))
    found = gradient_noise_scale(land, torch.full((1,), 0.01, dtype=torch.float64), seed=0)
    assert found.curvature < 0
    assert "curvature along the gradient is not positive" in str(found)
    assert found.to_json()["examples"] == 5


def test_inference_mode_changes_nothing():
    land, theta = network()
    outside = gradient_noise_scale(land, theta, seed=0)
    with torch.inference_mode():
        inside = gradient_noise_scale(land, theta, seed=0)
    assert inside.population.interval == outside.population.interval
    assert inside.curved is not None
    assert outside.curved is not None
    assert inside.curved.interval == outside.curved.interval


def test_refusals():
    land, theta = network()
    with pytest.raises(ValueError, match="samples=5 is too few for an honest interval"):
        gradient_noise_scale(land, theta, samples=5)
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1"):
        gradient_noise_scale(land, theta, level=1.0)
    with pytest.raises(ValueError, match="2 examples have no spread"):
        gradient_noise_scale(land.minibatch([0, 1]), theta)


def test_a_function_has_no_examples(unchecked):
    land = FunctionLandscape(lambda x: (x**2).sum(), 2)
    with pytest.raises(ValueError, match="no mean over examples"):
        gradient_noise_scale(land, torch.zeros(2, dtype=torch.float64))
