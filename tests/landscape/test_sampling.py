"""The sampling error of a loss or metric covers the population's value, skewed or not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from thalweg.landscape import ModelLandscape


class Value(nn.Module):
    """A network whose output is its input, whatever its one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


def identity(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of the outputs: every example's loss is its input."""
    return outputs.mean()


def weighted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the outputs weighted by the targets."""
    total = targets.sum()
    return (outputs * targets).sum() / total, total


def landscape(values: Tensor, weights: Tensor | None = None) -> ModelLandscape:
    targets = torch.ones_like(values) if weights is None else weights
    loss = identity if weights is None else weighted
    return ModelLandscape(
        Value(), loss, (values, targets), metrics={"own": lambda out, _: out.detach()}
    )


def estimate(land: ModelLandscape):
    return land.loss_estimate(torch.ones(1, dtype=torch.float64))


def test_standard_error_is_that_of_the_mean(generator):
    values = torch.randn(50, generator=generator, dtype=torch.float64)
    found = estimate(landscape(values))
    assert found.value == pytest.approx(float(values.mean()), rel=1e-12)
    assert found.stderr == pytest.approx(float(values.std()) / math.sqrt(50), rel=1e-12)
    assert found.samples == 50


def test_weights_give_the_ratio_estimator(generator):
    values = torch.rand(60, generator=generator, dtype=torch.float64)
    weights = torch.randint(1, 9, (60,), generator=generator).double()
    found = estimate(landscape(values, weights))
    mean = float((weights * values).sum() / weights.sum())
    spread = float((weights**2 * (values - mean) ** 2).sum())
    naive = math.sqrt(60 / 59 * spread) / float(weights.sum())
    assert found.value == pytest.approx(mean, rel=1e-12)
    assert found.stderr == pytest.approx(naive, rel=1e-12)


def test_metric_and_loss_of_the_same_values_agree(generator):
    values = torch.rand(40, generator=generator, dtype=torch.float64)
    land = landscape(values)
    metric = land.metrics(torch.ones(1, dtype=torch.float64))["own"]
    assert metric.interval == pytest.approx(estimate(land).interval, rel=1e-12)


def test_one_example_has_no_error():
    found = estimate(landscape(torch.ones(1, dtype=torch.float64)))
    assert math.isnan(found.stderr)
    assert found.interval == (-math.inf, math.inf)


@pytest.mark.calibration
@pytest.mark.parametrize(("name", "count"), [("exponential", 48), ("log-normal", 300)])
def test_interval_covers_the_population_mean(calibration, name, count):
    """Own losses are skewed: many near zero, few large, as a classifier's are."""
    hits, widths = 0, []
    truth, spread = (
        (1.0, 1.0) if name == "exponential" else (math.exp(0.5), math.sqrt((math.e - 1) * math.e))
    )
    for seed in calibration.seeds:
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        found = estimate(landscape(normal.exp() if name == "log-normal" else -uniform.log()))
        hits += truth in found
        widths.append(found.half_width)
    oracle = 1.959964 * spread / math.sqrt(count)
    ratio = float(torch.tensor(widths).median()) / oracle
    calibration.check(f"mean of {count} {name} losses", hits, width_ratio=ratio)
