"""The published barriers by name against their definitions, and a height's sampling error."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.paths import Path, barrier_definitions, height_sampling, measure

ENDS = torch.tensor([[0.0], [1.0]], dtype=torch.float64)


def classifier(seed: int = 0, examples: int = 60) -> tuple[ModelLandscape, torch.Tensor]:
    """A small classifier on random data, and three corners."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 3, generator=g, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    labels = (x[:, 0] * x[:, 1] > 0).long()
    land = ModelLandscape(model, F.cross_entropy, (x, labels), metrics="accuracy", penalty=0.01)
    return land, torch.stack([2 * land.start(g) for _ in range(3)])


def test_every_definition_by_hand() -> None:
    """A bump on a slope: the three loss barriers differ, each by its formula."""
    land = FunctionLandscape(lambda x: 2 * x[0] + torch.sin(torch.pi * x[0]) * 3, 1)
    path = measure(land, ENDS, tolerance=1e-6)
    t = np.linspace(0, 1, 200001)
    values = 2 * t + 3 * np.sin(np.pi * t)
    found = barrier_definitions(path)
    truth = {
        "above_ends": values.max() - 2,
        "above_mean": values.max() - 1,
        "above_chord": (values - 2 * t).max(),
    }
    for name, value in truth.items():
        bound = found[name].bound
        assert bound.lower - 1e-6 <= value <= bound.upper + 1e-6
        assert bound.width <= 0.1
    assert found.error is None
    assert "metrics='accuracy'" in str(found)
    assert [barrier.name for barrier in found] == list(truth)
    with pytest.raises(KeyError, match="no barrier is called 'height'; known: above_ends"):
        found["height"]


def test_level_ends_make_all_the_same() -> None:
    land = FunctionLandscape(lambda x: torch.sin(torch.pi * x[0]) ** 2 * 0 + x[0] * (1 - x[0]), 1)
    found = barrier_definitions(measure(land, ENDS))
    assert found["above_chord"].bound.lower == found["above_ends"].bound.lower
    assert found["above_chord"].bound.upper == found["above_mean"].bound.upper


def test_error_barrier_from_the_metric() -> None:
    land, corners = classifier()
    path = measure(land, corners)
    found = barrier_definitions(path, land, samples=9)
    assert found.error is not None
    t = torch.unique(
        torch.cat(
            [torch.linspace(0, 1, 9, dtype=torch.float64), torch.tensor([path.top_time]).double()]
        )
    )
    errors = [1 - land.metrics(path.at(s))["accuracy"].value for s in t]
    truth = max(errors) - (errors[0] + errors[-1]) / 2
    assert found.error.bound.lower == pytest.approx(truth)
    assert found.error.sampling is not None
    assert truth in found.error.sampling
    assert found.error.bound.upper_kind == "estimated"
    assert found.cost.losses > 0
    assert found.to_json()["definitions"][3]["name"] == "error"
    assert "Frankle" in found.__rich__()
    with pytest.raises(ValueError, match="no metric 'f1'"):
        barrier_definitions(path, land, metric="f1")
    with pytest.raises(ValueError, match="at least 2"):
        barrier_definitions(path, samples=1)


def test_a_height_keeps_its_value_and_has_an_interval() -> None:
    land, corners = classifier()
    path = measure(land, corners)
    found = height_sampling(land, path)
    assert found.value == pytest.approx(path.height.lower, abs=1e-9)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.samples == 60
    top, weights = land.example_losses(path.top)
    assert float(top.mean()) == pytest.approx(
        path.maximum.lower - 0.005 * float(path.top @ path.top), abs=1e-9
    )
    assert bool((weights == 1).all())
    plain = FunctionLandscape(lambda x: x[0], 1)
    with pytest.raises(ValueError, match="no losses of its examples"):
        height_sampling(plain, measure(plain, ENDS))


def oracle_half_width(big: ModelLandscape, path: Path, count: int) -> float:
    """Half an interval's width if the population's spread and its higher end were known.

    Drawn without replacement; normal, which the mean of a sample is but for its skewness.
    """
    higher = path.points[0] if path.losses[0] >= path.losses[-1] else path.points[-1]
    top, _ = big.example_losses(path.top)
    own, _ = big.example_losses(higher)
    return 1.959964 * float((top - own).std()) * math.sqrt(1 / count - 1 / len(top))


@pytest.mark.calibration
@pytest.mark.parametrize("top", ["inside", "at an end"])
def test_the_sampling_interval_holds_the_population_height(calibration: Any, top: str) -> None:
    """Samples of 64 from a population of 4000; the path's top fixed by the population.

    Where the top is an end the height is 0, known without error but in a sample that
    prefers the other end.
    """
    big, corners = classifier(7, 4000)
    if top == "inside":
        corners = corners[big.loss(corners).argsort()][[0, 2, 1]]  # the highest in the middle
    path = measure(big, corners, max_samples=40, tolerance=1e-2)
    truth, hits, widths = path.height.lower, 0, []
    for seed in calibration.seeds:
        g = torch.Generator().manual_seed(seed)
        part = big.minibatch(torch.randperm(4000, generator=g)[:64])
        low, high, peak = part.loss(torch.stack([path.points[0], path.points[-1], path.top]))
        seen = path.maximum.above(path.maximum.lower - float(peak))
        moved = replace(
            path,
            losses=torch.stack([low, path.losses[1], high]),
            profile=replace(path.profile, maximum=seen),
        )
        found = height_sampling(part, moved)
        hits += truth in found
        widths.append(found.half_width)
    oracle, ratio = oracle_half_width(big, path, 64), None
    if top == "inside":
        assert 0.05 < path.top_time < 0.95
        assert oracle > 0.05  # the sample matters
        ratio = float(np.median(widths)) / oracle
        assert ratio > 1  # both ends' intervals must hold, so that each has a higher level
    else:
        assert truth == oracle == 0
    calibration.check(f"sampling error of a height, its top {top}", hits, width_ratio=ratio)
