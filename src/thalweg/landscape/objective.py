"""What is averaged: the user's loss as a weighted mean, and the penalty beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thalweg.landscape.data import leading, target_of

__all__ = ["Objective", "Penalty"]


class Objective:
    """The user's loss of outputs and targets, as (mean, weight).

    Args:
        loss: ``loss(outputs, targets)``, which returns the mean over the batch's examples
            as a scalar, or a pair (mean, weight) where the mean is over something else
            (tokens that are not padding, say).
    """

    def __init__(self, loss: Callable[[Any, Any], Any]) -> None:
        if not callable(loss):
            raise TypeError(
                f"loss must be a callable loss(outputs, targets), not {type(loss).__name__}"
            )
        self.loss = loss

    def __call__(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor | float]:
        """Return the mean loss of a batch and the weight of that mean."""
        result = self.loss(outputs, target_of(batch))
        weight: Tensor | float
        if isinstance(result, tuple):
            if len(result) != 2:
                raise ValueError(
                    f"loss returned a tuple of {len(result)}; return a scalar, or (mean, weight)"
                )
            mean, given = result
            weight = given.detach() if isinstance(given, Tensor) else float(given)
        else:
            mean, weight = result, float(leading(batch))
        if not isinstance(mean, Tensor) or mean.ndim != 0:
            shown = f"shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
            raise ValueError(
                f"loss must return a scalar tensor, the mean over the batch's examples, but "
                f"returned {shown}; use reduction='mean', or return (mean, weight)"
            )
        return mean, weight

    def describe(self) -> str:
        """Return the loss's name."""
        return getattr(self.loss, "__qualname__", None) or repr(self.loss)


class Penalty:
    r"""A term of $\theta$ alone: weight decay, or any differentiable function.

    Args:
        penalty: A number $\lambda$ for $\frac{\lambda}{2}\|\theta\|^2$, whose gradient is that
            of ``weight_decay`` in ``torch.optim.SGD``; or a function of one vector.
    """

    def __init__(self, penalty: float | Callable[[Tensor], Tensor]) -> None:
        if not callable(penalty) and not 0 <= penalty < float("inf"):
            raise ValueError(f"penalty must be a finite number >= 0 or a function, got {penalty!r}")
        self.function = penalty if callable(penalty) else None
        self.decay = 0.0 if callable(penalty) else float(penalty)

    def __bool__(self) -> bool:
        """Whether there is anything to add."""
        return self.function is not None or self.decay > 0

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the penalty and its gradient at one vector."""
        if self.function is None:
            return self.decay / 2 * (theta @ theta), self.decay * theta
        with torch.enable_grad():
            leaf = theta.clone().requires_grad_()
            value = self.function(leaf)
            (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
        return value.detach(), gradient

    def hvp(self, theta: Tensor, rows: Tensor) -> Tensor:
        """Return the penalty's Hessian times each row."""
        if self.function is None:
            return self.decay * rows
        with torch.enable_grad():
            leaf = theta.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(
                self.function(leaf), leaf, create_graph=True, materialize_grads=True
            )
            if not gradient.requires_grad:
                return torch.zeros_like(rows)
            products = [
                torch.autograd.grad(gradient, leaf, row, retain_graph=True, materialize_grads=True)
                for row in rows
            ]
        return torch.stack([product for (product,) in products])

    def describe(self) -> str:
        """Return the penalty in words."""
        if self.function is not None:
            return getattr(self.function, "__qualname__", None) or repr(self.function)
        return f"{self.decay:g}/2 |theta|^2" if self.decay else "none"
