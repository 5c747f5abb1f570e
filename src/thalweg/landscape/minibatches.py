"""Minibatches of a finite sum, in a fresh random order every epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thalweg.landscape.protocols import FiniteSum, Landscape

__all__ = ["Minibatches"]


class Minibatches:
    """Goes through the examples in a fresh random order every epoch.

    Args:
        land: The landscape; one that is no mean over examples is one batch.
        batch_size: Examples in a minibatch; all of them if there are no more.
        generator: What draws the orders.

    Attributes:
        per_epoch: How many minibatches make an epoch.

    Raises:
        ValueError: If `batch_size` is not positive.
    """

    def __init__(self, land: Landscape, batch_size: int, generator: torch.Generator) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.land, self.batch_size, self._generator = land, batch_size, generator
        self._sum = land if isinstance(land, FiniteSum) and batch_size < land.examples else None
        self.per_epoch = 1 if self._sum is None else math.ceil(self._sum.examples / batch_size)
        self._queue: list[Tensor] = []

    def draw(self) -> Landscape:
        """Return the next minibatch."""
        if self._sum is None:
            return self.land
        if not self._queue:
            order = torch.randperm(self._sum.examples, generator=self._generator)
            size = self.batch_size
            self._queue = [order[i : i + size] for i in range(0, len(order), size)][::-1]
        return self._sum.minibatch(self._queue.pop())

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from here."""
        return {"generator": self._generator.get_state(), "queue": list(self._queue)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where another one stood."""
        self._generator.set_state(state["generator"])
        self._queue = list(state["queue"])
