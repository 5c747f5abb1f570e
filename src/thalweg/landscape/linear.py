"""Batches of a finite sum at one point: outputs, Jacobian products, per-example gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from thalweg.landscape.data import cut, divisible, leading
from thalweg.landscape.metrics import own_losses
from thalweg.landscape.protocols import check_theta
from thalweg.landscape.sweep import Sweep, as_leaves

__all__ = ["ModelBatch", "linearised"]


class ModelBatch:
    """Some examples at a fixed vector; the penalty is left out.

    Attributes:
        outputs: What the network returned, detached.
        batch: The batch itself, for losses that need it.
        loss: The mean loss of these examples, without the penalty.
        weight: The total weight of these examples in the mean.
        indices: The positions of the examples in the data set.
        forward_mode: Whether `jvp` runs in forward mode; a double vjp where the network
            has none (LSTM).
    """

    def __init__(self, sweep: Sweep, theta: Tensor, batch: Any, first: int) -> None:
        self._sweep, self._theta, self.batch = sweep, theta, batch
        self.indices = range(first, first + leading(batch))
        self._views = sweep.network.spec.views(theta)
        self._share = sweep.share * len(self.indices) / sweep.census.examples
        with sweep.guard(), torch.no_grad():
            self.outputs = self._call(self._views)
            mean, weight = sweep.objective(self.outputs, batch)
        self.loss = mean
        self.weight = float(weight)
        self.forward_mode = True

    @cached_property
    def weights(self) -> Float[Tensor, " examples"]:
        """Every example's own weight in the mean, as float64.

        Raises:
            ValueError: If the examples of a batch are not independent of each other.
        """
        self._divide()
        count = len(self.indices)
        if not self._sweep.objective.weighted:
            return torch.ones(count, dtype=torch.float64, device=self._theta.device)
        with self._sweep.guard(), torch.no_grad():
            return own_losses(self._sweep, self.outputs, self.batch, self._theta)[1]

    def _call(self, parameters: dict[str, Tensor]) -> Any:
        with self._sweep.second_order():
            return self._sweep.network.call(parameters, self.batch)

    def jvp(self, vectors: Float[Tensor, "*batch dim"]) -> Any:
        r"""Return $J v$ for every row of `vectors`, stacked in front of the outputs."""
        theta = self._theta
        vectors = check_theta(vectors, theta.shape[0], theta.dtype, theta.device)
        rows = vectors.reshape(-1, theta.shape[0])
        self._sweep.ledger.add(passes=self._share)
        with self._sweep.guard():
            products = [self._jvp(row) for row in rows]
        shape = vectors.shape[:-1]
        if not products:
            return tree_map(lambda part: part.new_zeros(*shape, *part.shape), self.outputs)
        return tree_map(
            lambda *parts: torch.stack(parts).reshape(*shape, *parts[0].shape), *products
        )

    def _jvp(self, row: Tensor) -> Any:
        tangent = self._sweep.network.spec.views(row)
        if self.forward_mode:
            try:
                with warnings.catch_warnings():  # torch's own forward mode uses torch.jit.script
                    warnings.simplefilter("ignore", DeprecationWarning)
                    return torch.func.jvp(self._call, (self._views,), (tangent,))[1]
            except (NotImplementedError, RuntimeError):
                self.forward_mode = False
        return self._double_vjp(list(tangent.values()))

    def _double_vjp(self, tangent: list[Tensor]) -> Any:
        r"""Return $J v$ as the derivative of $u \mapsto J^\top u$ along $v$."""
        leaves = as_leaves(self._views)
        with torch.enable_grad():
            outputs, structure = tree_flatten(self._call(leaves))
            duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
            back = torch.autograd.grad(
                outputs, list(leaves.values()), duals, create_graph=True, materialize_grads=True
            )
            kept = [(b, t) for b, t in zip(back, tangent, strict=True) if b.requires_grad]
            products = torch.autograd.grad(
                [b for b, _ in kept], duals, [t for _, t in kept], materialize_grads=True
            )
        return tree_unflatten(products, structure)

    def vjp(self, cotangents: Any) -> Float[Tensor, " dim"]:
        r"""Return $J^\top u$ for one cotangent of the outputs' structure."""
        leaves = as_leaves(self._views)
        self._sweep.ledger.add(passes=self._share)
        with self._sweep.guard(), torch.enable_grad():
            outputs, _ = tree_flatten(self._call(leaves))
            given, _ = tree_flatten(cotangents)
            shapes = [tuple(t.shape) for t in given], [tuple(o.shape) for o in outputs]
            if shapes[0] != shapes[1]:
                raise ValueError(f"cotangents have shapes {shapes[0]}, the outputs {shapes[1]}")
            parts = torch.autograd.grad(
                outputs, list(leaves.values()), given, materialize_grads=True
            )
        return torch.cat([part.reshape(-1) for part in parts])

    def _divide(self) -> None:
        """Refuse to tell apart examples that depend on each other."""
        if self._sweep.policy == "batch" or not divisible(self.batch):
            raise ValueError(
                "the examples of a batch depend on each other here (batch statistics, or a batch "
                "that cannot be divided), so an example has no gradient of its own; use "
                "batchnorm='frozen'"
            )

    def per_example_gradients(self) -> Float[Tensor, "examples dim"]:
        """Return the gradient of every example's own loss, without the penalty.

        Averaged with `weights` they give the gradient of the batch's loss. An example of
        weight zero has no loss; its row is zero.

        Raises:
            ValueError: If the examples of a batch are not independent of each other.
        """
        self._divide()
        sweep, count = self._sweep, len(self.indices)
        sweep.ledger.add(passes=self._share)
        result = self._theta.new_empty(count, len(self._theta))
        with sweep.guard():
            step = self._examples_at_once()
            for start in range(0, count, step):
                part = cut(self.batch, start, min(start + step, count))
                if step > 1:
                    result[start : start + step] = self._vmapped_gradients(part)
                else:
                    slopes = sweep.slopes(as_leaves(self._views), part)[2]
                    torch.cat([slope.reshape(-1) for slope in slopes], out=result[start])
        result[self.weights == 0] = 0.0
        return result

    def _examples_at_once(self) -> int:
        """Return how many examples go through vmap at once under the cap; 1 means a loop."""
        sweep, count = self._sweep, len(self.indices)

        def probe(few: int) -> int:
            return sweep.metered(lambda: self._vmapped_gradients(cut(self.batch, 0, few)))

        try:
            return sweep.budget.plan("own gradients", sweep.kind(self.batch), count, probe)[0]
        except (RuntimeError, ValueError, TypeError, UserWarning, MemoryError):
            return 1

    def _vmapped_gradients(self, batch: Any) -> Tensor:
        sweep = self._sweep

        def own(row: Tensor, example: Any) -> Tensor:
            one = tree_map(lambda t: t[None] if isinstance(t, Tensor) else t, example)
            return sweep.score(sweep.network.spec.views(row), one)[0]

        slope: Callable[..., Tensor] = torch.func.grad(own)
        leaves, structure = tree_flatten(batch)
        axes = tree_unflatten([0 if isinstance(t, Tensor) else None for t in leaves], structure)
        with warnings.catch_warnings(), sweep.second_order():
            warnings.simplefilter("error")  # torch warns where vmap would be a slow loop
            return torch.func.vmap(slope, in_dims=(None, axes))(self._theta, batch).detach()


def linearised(sweep: Sweep, theta: Tensor) -> Iterator[ModelBatch]:
    """Go through the data at one vector, in chunks under the memory cap."""
    first = 0
    sweep.ledger.add(passes=sweep.share)
    for chunk in sweep.guarded("product"):
        yield ModelBatch(sweep, theta, chunk, first)
        first += leading(chunk)
