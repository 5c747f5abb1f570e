"""What a user hands to a survey as a minimum: a vector, a module, a state dict, a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg.estimate import Estimate
from thalweg.landscape import Landscape, ModelLandscape
from thalweg.survey.errors import SurveyError

__all__ = ["shipped", "vector"]


def vector(land: Landscape, minimum: Any) -> Tensor:
    """Return the point that a vector, a module, a state dict or a checkpoint stands for.

    Raises:
        SurveyError: If the landscape cannot read it.
        ValueError: If it does not fit, or is not finite.
    """
    if isinstance(minimum, Tensor):
        theta = minimum.detach().to(land.device)
    elif callable(reader := getattr(land, "vector", None)):
        theta = reader(minimum)
    else:
        raise SurveyError(
            f"a {type(land).__name__} cannot read a {type(minimum).__name__} as a point",
            f"pass a tensor of shape ({land.dim},)",
        )
    if bad := int((~torch.isfinite(theta)).sum()):
        raise ValueError(f"the vector holds {bad} NaN or infinite values of {theta.numel()}")
    return theta


def shipped(land: Landscape, minimum: Any) -> Estimate | None:
    """Return the loss of a network with the BatchNorm statistics it came with, if it has any."""
    if isinstance(minimum, Tensor) or not isinstance(land, ModelLandscape) or not land.batchnorm:
        return None
    try:
        return land.as_shipped(minimum)
    except ValueError:  # it fits (it was read as a vector), but came without statistics
        return None
