r"""The end of interval arithmetic along a segment: the loss of each example, from its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from thalweg.landscape.enclosure_layers import TINY, Jet, Value, largest_of, slack

__all__ = ["CrossEntropy", "Loss", "SquaredError"]


@runtime_checkable
class Loss(Protocol):
    """A loss of one example: its value and its derivative in t."""

    def value(self, x: Value, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value at the middles and its error, `(intervals, examples)` each."""
        ...

    def jet(self, jet: Jet, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return value, its error, slope and its spread, `(intervals, examples)` each."""
        ...


@dataclass(frozen=True)
class SquaredError:
    r"""$c \sum_j (z_j - y_j)^2$ for each example.

    Args:
        factor: $c$; one over the number of outputs for ``F.mse_loss``.
    """

    factor: float

    def value(self, x: Value, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and error of every example."""
        x = x.at_middle(lambda part: part.flatten(2))
        rows = targets.reshape(len(targets), -1)
        u = slack(rows.shape[1])
        error = x.error + 2.0**-51 * (largest_of(x.centre) + rows.abs().amax(1)[:, None])
        gap = x.centre - rows
        value = self.factor * (gap**2).sum(2)
        lost = self.factor * (2 * gap.abs() * error + error**2).sum(2) * (1 + u) + u * value
        return value, lost + TINY

    def jet(self, jet: Jet, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return value, error, slope and spread of every example."""
        value, lost = self.value(jet, targets)
        jet = jet.map(lambda part: part.flatten(2))
        rows = targets.reshape(len(targets), -1)
        u, middle = slack(rows.shape[1]), jet.mid - rows
        slope = 2 * self.factor * (middle * jet.slope).sum(2)
        rad = jet.rad + 2.0**-51 * (jet.mid.abs() + rows.abs())
        size = jet.slope.abs() + jet.spread
        spread = middle.abs() * jet.spread + rad * size
        spread = 2 * self.factor * (spread + u * middle.abs() * size).sum(2) * (1 + u)
        return value, lost, slope, spread + TINY


@dataclass(frozen=True)
class CrossEntropy:
    r"""$\log \sum_j e^{z_j} - z_y$ for each example."""

    def value(self, x: Value, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and error of every example."""
        u, where = slack(x.centre.shape[2]), self._where(x, targets)
        value = torch.logsumexp(x.centre, 2) - x.centre.gather(2, where).squeeze(2)
        lost = 2 * x.error.squeeze(2) + u * (1 + 3 * largest_of(x.centre).squeeze(2))
        return value, lost + TINY

    def _where(self, x: Value, targets: Tensor) -> Tensor:
        """Return the targets as indices of the scores, `(intervals, examples, 1)`."""
        return targets.reshape(1, -1, 1).expand(len(x.centre), -1, 1)

    def jet(self, jet: Jet, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Return value, error, slope and spread; $\ell' = \sum_j (p_j - 1_{j=y})(z_j' - s)$."""
        value, lost = self.value(jet, targets)
        u, where = slack(jet.centre.shape[2]), self._where(jet, targets)
        low, high = _probabilities(jet.mid - jet.rad, jet.mid + jet.rad)
        truth = torch.zeros_like(low).scatter_(2, where, 1.0)
        low, high = low - truth, high - truth
        shift = (((low + high) / 2 + truth) * jet.slope).sum(2, keepdim=True)
        slope, size = jet.slope - shift, jet.slope.abs() + shift.abs()
        spread = jet.spread + 2.0**-50 * size
        corners = torch.stack(
            [p * s for p in (low, high) for s in (slope - spread, slope + spread)]
        )
        below, above = corners.amin(0).sum(2), corners.amax(0).sum(2)
        room = u * corners.abs().amax(0).sum(2) + u * (size + spread).sum(2)
        return value, lost, (below + above) / 2, (above - below) / 2 + room + TINY


def _probabilities(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds of the softmax over scores that lie in boxes."""
    u = slack(low.shape[2])
    top = high.amax(2, keepdim=True)
    weak, strong = torch.exp(low - top), torch.exp(high - top)
    u_exp = 2.0**-50 * (1 + (low - top).abs().amax(2, keepdim=True).clamp(max=800))
    all_weak, all_strong = weak.sum(2, keepdim=True), strong.sum(2, keepdim=True)
    room = (u + u_exp) * all_strong
    rest_strong = all_strong - strong + room
    rest_weak = (all_weak - weak - room).clamp(min=0)
    least = weak / (weak + rest_strong) - u - u_exp
    most = torch.nan_to_num(strong / (strong + rest_weak), nan=1.0) + u + u_exp
    return least.clamp(min=0), most.clamp(max=1)
