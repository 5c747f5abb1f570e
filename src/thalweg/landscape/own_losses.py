"""Every example's own loss at one vector, for comparisons that pair the examples."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.metrics import _outputs, own_losses
from thalweg.landscape.sweep import Sweep

__all__ = ["example_losses"]


def example_losses(
    sweep: Sweep, theta: Float[Tensor, " dim"]
) -> tuple[Float[Tensor, " examples"], Float[Tensor, " examples"]]:
    """Return every example's own loss and weight, in the data's order; no penalty.

    An example without weight (all its tokens are ignored, say) has loss 0.

    Raises:
        ValueError: If the examples cannot be told apart.
    """
    losses, weights = [], []
    for outputs, chunk in _outputs(sweep, theta):
        with sweep.guard(), torch.no_grad():
            own, weight = own_losses(sweep, outputs, chunk, theta)
        losses.append(own)
        weights.append(weight)
    loss, weight = torch.cat(losses), torch.cat(weights)
    return torch.where(weight == 0, 0.0, loss), weight
