"""What is averaged: the user's loss as a weighted mean, and the penalty beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.landscape.data import leading, target_of

__all__ = ["Objective", "Penalty"]


class Objective:
    """The user's loss of outputs and targets, as (mean, weight).

    Attributes:
        weighted: Whether the loss has returned weights of its own.

    Args:
        loss: ``loss(outputs, targets)``, which returns the mean over the batch's examples
            as a scalar, or a pair (mean, weight) where the mean is over something else
            (tokens that are not padding, say). A module is copied, its tensors are cast and
            its parameters are constants.
        dtype: The dtype that the network computes in.
        device: The device that it computes on.
    """

    def __init__(
        self, loss: Callable[[Any, Any], Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        if not callable(loss):
            raise TypeError(
                f"loss must be a callable loss(outputs, targets), not {type(loss).__name__}"
            )
        if isinstance(loss, nn.Module):
            loss = copy.deepcopy(loss).to(device=device, dtype=dtype).requires_grad_(False)
        self.loss = loss
        self.weighted = False

    def __call__(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor | float]:
        """Return the mean loss of a batch and the weight of that mean."""
        result = self.loss(outputs, target_of(batch))
        weight: Tensor | float
        if isinstance(result, tuple):
            if len(result) != 2:
                raise ValueError(
                    f"loss returned a tuple of {len(result)}; return a scalar, or (mean, weight)"
                )
            self.weighted = True
            mean, given = result
            if isinstance(given, Tensor) and given.numel() != 1:
                raise ValueError(
                    f"loss returned a weight of shape {tuple(given.shape)}; it must be one number, "
                    "the total weight behind the mean"
                )
            weight = given.detach().reshape(()) if isinstance(given, Tensor) else float(given)
        else:
            mean, weight = result, float(leading(batch))
        if not isinstance(mean, Tensor) or mean.ndim != 0:
            shown = type(mean).__name__
            if isinstance(mean, Tensor):
                shown = f"shape {tuple(mean.shape)}"
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

    def check(self, theta: Tensor) -> None:
        """Refuse a function that is not a differentiable scalar.

        Raises:
            ValueError: If it is not.
        """
        if self.function is None:
            return
        with torch.enable_grad():
            value = self.function(theta.clone().requires_grad_())
        if not isinstance(value, Tensor) or value.shape != ():
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"penalty must return a scalar tensor, but returned {shown}")
        if not value.requires_grad:
            raise ValueError("the penalty does not depend differentiably on the parameters")

    def add_hvp(self, theta: Tensor, rows: Tensor, out: Tensor) -> None:
        """Add the penalty's Hessian times each row to the rows of `out`."""
        if self.function is None:
            out.add_(rows, alpha=self.decay)
            return
        with torch.enable_grad():
            leaf = theta.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(
                self.function(leaf), leaf, create_graph=True, materialize_grads=True
            )
        if gradient.requires_grad:
            for row, total in zip(rows, out, strict=True):
                total += torch.autograd.grad(
                    gradient, leaf, row, retain_graph=True, materialize_grads=True
                )[0]

    def describe(self) -> str:
        """Return the penalty in words."""
        if self.function is not None:
            return getattr(self.function, "__qualname__", None) or repr(self.function)
        return f"{self.decay:g}/2 |theta|^2" if self.decay else "none"
