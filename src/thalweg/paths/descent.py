"""Downhill to the minimum of the valley that one is in, in steps of bounded length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape

__all__ = ["Descent", "descend"]

_MEMORY = 12


@dataclass(frozen=True, eq=False)
class Descent:
    """Where a descent ended.

    Attributes:
        theta: The point, `(dim,)`.
        loss: The loss there.
        gradient_norm: The gradient norm there.
        converged: Whether it is at most the tolerance.
        cost: What it took.
    """

    theta: Float[Tensor, " dim"]
    loss: float
    gradient_norm: float
    converged: bool
    cost: Cost

    def __str__(self) -> str:
        """Return one sentence."""
        state = "converged" if self.converged else "NOT converged: raise max_gradients or tol"
        return (
            f"loss {self.loss:.9g}, gradient norm {self.gradient_norm:.2g}, {state} ({self.cost})"
        )

    def __rich__(self) -> str:
        """Return the sentence."""
        return str(self).replace("[", "\\[")


def _two_loop(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the L-BFGS direction, downhill."""
    q, weights = gradient.clone(), []
    for s, y in reversed(pairs):
        weights.append(float(s @ q) / float(s @ y))
        q -= weights[-1] * y
    if pairs:
        s, y = pairs[-1]
        q *= float(s @ y) / float(y @ y)
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        q += (weight - float(y @ q) / float(s @ y)) * s
    return -q


def descend(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    *,
    stride: float,
    tol: float = 1e-8,
    max_gradients: int = 2000,
) -> Descent:
    r"""Descend from `theta` by L-BFGS, no step longer than `stride` and none uphill.

    A line search may leap over a ridge into another valley; a bounded step that must not
    raise the loss seldom does, which is what matters where the question is what a pass
    joins.

    Args:
        land: The landscape.
        theta: Where to start, `(dim,)`.
        stride: The longest step; the first is a tenth of it.
        tol: The gradient norm to reach.
        max_gradients: The budget.

    Returns:
        Where it ended.

    Source: D. C. Liu and J. Nocedal, Math. Programming 45 (1989) 503; bounded steps as in
    GMIN and pele (Wales).

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> wells = FunctionLandscape(lambda x: (x[0]**2 - 1)**2 + x[1]**2, dim=2)
        >>> start = torch.tensor([0.1, 1.0], dtype=torch.float64)
        >>> descend(wells, start, stride=0.1).theta.round(decimals=6) + 0.0
        tensor([1., 0.], dtype=torch.float64)
    """
    before = land.cost
    x = theta.double()
    loss, gradient = _value(land, theta)
    pairs: list[tuple[Tensor, Tensor]] = []
    norm, limit, grain = _norm(gradient), 0.1 * stride, 4 * torch.finfo(land.dtype).eps
    while norm > tol and math.isfinite(norm) and (land.cost - before).gradients < max_gradients:
        step = _two_loop(gradient, pairs) if pairs else -gradient * (limit / norm)
        if float(step @ gradient) >= 0:
            pairs, step = [], -gradient * (limit / norm)
        step = step * min(1.0, limit / _norm(step))
        moved = (x + step).to(land.dtype)
        low, slope = _value(land, moved)
        if not low <= loss + grain * abs(loss):  # uphill, or NaN
            pairs, limit = [], 0.25 * min(limit, _norm(step))
            if _norm(step) <= grain * _norm(x):
                break
            continue
        step, change = moved.double() - x, slope - gradient
        if float(step @ change) > 1e-12 * _norm(step) * _norm(change):
            pairs = [*pairs, (step, change)][-_MEMORY:]
        x, loss, gradient, norm = moved.double(), low, slope, _norm(slope)
        limit = min(2 * limit, stride)
    return Descent(x.to(land.dtype), loss, norm, norm <= tol, land.cost - before)


def _value(land: Landscape, theta: Tensor) -> tuple[float, Tensor]:
    loss, gradient = land.value_and_gradient(theta)
    return float(loss), gradient.double()


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
