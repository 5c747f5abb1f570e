"""Landscapes of known answer that the survey's tests share, also with subprocesses."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.survey import SurveyConfig, SurveyRecord

CONFIG = SurveyConfig(
    seed=11,
    minima=4,
    tolerance=1e-9,
    laws=False,
    path_gradients=400,
    searches_per_minimum=2,
    repeats=1,
    saddles=False,
    levels=0,
)
CLOSER = {"searches_per_minimum": 3, "repeats": 3, "saddles": True, "levels": 3}
"""What a survey does with the passes, which most tests leave out."""


def wells(theta: Tensor) -> Tensor:
    """Four wells at (±1, ±1), tilted so that each has its own depth."""
    tilt = 0.1 * theta[0] + 0.05 * theta[1]
    return ((theta**2 - 1) ** 2).sum() + tilt


def function() -> FunctionLandscape:
    """The four wells as a landscape."""
    return FunctionLandscape(wells, dim=2)


def network(batchnorm: str | None = None, seed: int = 0, **options: Any) -> ModelLandscape:
    """A network of a few dozen parameters on made-up data."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[torch.nn.Module] = [torch.nn.Linear(3, 4), torch.nn.Tanh()]
        if batchnorm is not None:
            layers.append(torch.nn.BatchNorm1d(4))
            options["batchnorm"] = batchnorm
        model = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)).double().eval()
    return ModelLandscape(
        model,
        torch.nn.functional.cross_entropy,
        (x, y),
        penalty=1e-2,
        metrics="accuracy",
        **options,
    )


def timeless(record: SurveyRecord) -> str:
    """Return everything in a record but times: text, because NaN is not equal to NaN."""
    fixed = dataclasses.replace(record, name="", created="", seconds=0.0)
    return re.sub(r"seconds=[0-9.e-]+|when='[^']*'", "", repr(fixed))
