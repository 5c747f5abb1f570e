"""One landscape over data that several processes hold in shards, by ``torch.distributed``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.model import ModelLandscape
from thalweg.landscape.protocols import Ledger, Point
from thalweg.landscape.spec import ParameterSpec

__all__ = ["ShardedLandscape"]


class ShardedPoint:
    """A sharded landscape at one vector."""

    def __init__(self, land: ShardedLandscape, point: Point) -> None:
        self._land, self._point = land, point
        self.theta = point.theta
        self.loss: Tensor = land.combine(point.loss)
        self.gradient: Tensor = land.combine(point.gradient)

    def hvp(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the Hessian times each row of `vectors`."""
        self._land.count(hvps=vectors.numel() // max(vectors.shape[-1], 1))
        return self._land.combine(self._point.hvp(vectors))


class ShardedLandscape:
    r"""The mean over all shards, $L = \sum_r W_r L_r / \sum_r W_r$, on every process.

    Each process builds a `ModelLandscape` of the same network on its own part of the data
    and wraps it; every call is then made by all processes together, and all get the same
    answer. Shards are weighted by their size, so they may be unequal.

    Args:
        local: This process's landscape.
        group: The process group; the default group if None.

    Raises:
        RuntimeError: If ``torch.distributed`` is not initialised.
        ValueError: If the shards are not of the same network, or BatchNorm statistics are
            re-estimated (each process would use its own).

    Example:
        >>> def worker(rank, model, loss, shards):  # under torchrun, or torch.multiprocessing
        ...     torch.distributed.init_process_group("gloo")
        ...     land = ShardedLandscape(ModelLandscape(model, loss, shards[rank]))
        ...     return land.loss(land.vector(model))
    """

    def __init__(self, local: ModelLandscape, group: dist.ProcessGroup | None = None) -> None:
        """Agree on the network and on the total weight of the data."""
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed is not initialised; call init_process_group() first, or run "
                "under torchrun"
            )
        if local.batchnorm == "recompute":
            raise ValueError(
                "batchnorm='recompute' would re-estimate the statistics on each shard alone; use "
                "'frozen' or 'batch'"
            )
        self.local, self._group, self._ledger = local, group, Ledger()
        self.dim, self.dtype, self.device = local.dim, local.dtype, local.device
        self.batchnorm = local.batchnorm
        shapes = [None] * dist.get_world_size(group)
        dist.all_gather_object(shapes, (str(local.spec), str(local.dtype)), group=group)
        if len(set(shapes)) != 1:
            raise ValueError(f"the shards are not of one network: {set(shapes)}")
        totals = torch.tensor([local.size, float(local.examples)], dtype=torch.float64)
        totals = totals.to(self.device)
        dist.all_reduce(totals, group=group)
        self.size, self.examples = float(totals[0]), int(totals[1])
        self._part = local.size / self.size

    @property
    def spec(self) -> ParameterSpec:
        """Names, shapes, layers and filters of the coordinates."""
        return self.local.spec

    @property
    def cost(self) -> Cost:
        """The running tally of the whole landscape: a pass is over all shards at once."""
        return self._ledger.total

    def count(self, *, losses: int = 0, gradients: int = 0, hvps: int = 0) -> None:
        """Count some work that all shards did together, in one pass."""
        self._ledger.add(losses=losses, gradients=gradients, hvps=hvps, passes=1)

    def combine(self, own: Tensor) -> Tensor:
        """Return the weighted mean of what every process computed on its shard."""
        total = own.double() * self._part
        dist.all_reduce(total, group=self._group)
        return total.to(own.dtype)

    def loss(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the loss over all shards at every row of `theta`."""
        own = self.local.loss(theta)
        self.count(losses=own.numel())
        return self.combine(own)

    def gradient(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the gradient over all shards at every row of `theta`."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(
        self, theta: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return loss and gradient over all shards at every row of `theta`."""
        value, gradient = self.local.value_and_gradient(theta)
        self.count(losses=value.numel(), gradients=value.numel())
        return self.combine(value), self.combine(gradient)

    @contextmanager
    def at(self, theta: Float[Tensor, " dim"]) -> Iterator[ShardedPoint]:
        """Open the landscape at one vector, on all processes together."""
        with self.local.at(theta) as point:
            self.count(losses=1, gradients=1)
            yield ShardedPoint(self, point)

    def start(self, generator: torch.Generator) -> Float[Tensor, " dim"]:
        """Draw a random start on the first process and give it to all."""
        theta = self.local.start(generator).contiguous()
        source = dist.get_global_rank(self._group, 0) if self._group else 0
        dist.broadcast(theta, src=source, group=self._group)
        return theta

    def vector(self, model: object) -> Float[Tensor, " dim"]:
        """Return the flat vector of a module, a state dict or a checkpoint file."""
        return self.local.vector(model)  # type: ignore[arg-type]  # checked there
