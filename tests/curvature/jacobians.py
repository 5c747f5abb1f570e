"""Matrices of the Gauss-Newton family in float64, row by row and without the library."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDED = -100


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Dense:
    """Outputs, Jacobian and loss Hessian of one network on one set of inputs, in float64."""

    def __init__(self, model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        model = copy.deepcopy(model).double()
        weights = list(model.parameters())
        if inputs.is_floating_point():
            inputs = inputs.double()
        outputs = model(inputs)
        rows = []
        for value in outputs.flatten():
            parts = torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([part.reshape(-1) for part in parts]))
        self.outputs = outputs.detach()
        self.jacobian = torch.stack(rows)
        self.loss = loss

    def flat_loss(self, flat: Tensor) -> Tensor:
        return self.loss(flat.reshape(self.outputs.shape))

    def gauss_newton(self) -> Tensor:
        middle = torch.func.jacrev(torch.func.grad(self.flat_loss))(self.outputs.flatten())
        return self.jacobian.T @ middle @ self.jacobian

    def own_gradients(self, own_losses: Callable[[Tensor], Tensor]) -> Tensor:
        """Return every example's gradient, from the losses `(examples,)` as one function."""
        slopes = torch.func.jacrev(own_losses)(self.outputs)
        return slopes.reshape(len(slopes), -1) @ self.jacobian


class Tokens:
    """Sequences of 0 to 5 tokens that count; the loss returns (mean, weight)."""

    def __init__(self, examples: int = 12, classes: int = 5) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Embedding(classes, 3), nn.Tanh(), nn.Linear(3, classes))
        self.model = self.model.double()
        generator = torch.Generator().manual_seed(2)
        self.inputs = torch.randint(classes, (examples, 5), generator=generator)
        self.targets = torch.randint(classes, (examples, 5), generator=generator)
        self.targets[torch.rand(examples, 5, generator=generator) < 0.4] = PADDED
        self.targets[3] = PADDED
        self.kept = self.targets != PADDED

    @staticmethod
    def loss(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kept = (labels != PADDED).sum()
        return F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=PADDED), kept

    def mean(self, outputs: Tensor) -> Tensor:
        return self.loss(outputs, self.targets)[0]

    def own(self, outputs: Tensor) -> Tensor:
        losses = F.cross_entropy(
            outputs.flatten(0, 1), self.targets.flatten(), ignore_index=PADDED, reduction="none"
        ).reshape(self.targets.shape)
        return losses.sum(1) / self.kept.sum(1).clamp_min(1)


def relative(found: Tensor, truth: Tensor) -> float:
    """Return the largest difference over the largest entry."""
    return float((found.double() - truth).abs().max() / truth.abs().max())


def here(land: Any) -> Tensor:
    return land._sweep.network.theta()
