"""Batches of a finite sum at one point: outputs, Jacobian products, per-example gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from thalweg.landscape.data import cut, divisible, leading
from thalweg.landscape.protocols import check_theta
from thalweg.landscape.sweep import Sweep, as_leaves

__all__ = ["ModelBatch", "linearised"]


class ModelBatch:
    """Some examples at a fixed vector; the penalty is left out.

    Attributes:
        outputs: What the network returned, detached.
        targets: The batch itself, for losses that need it.
        weight: The total weight of these examples in the mean.
        indices: The positions of the examples in the data set.
        forward_mode: Whether `jvp` runs in forward mode; a double vjp where the network
            has none (LSTM).
    """

    def __init__(self, sweep: Sweep, theta: Tensor, batch: Any, first: int) -> None:
        self._sweep, self._theta, self.batch = sweep, theta, batch
        self.indices = range(first, first + leading(batch))
        self._views = sweep.network.spec.views(theta)
        with torch.no_grad():
            self.outputs = self._call(self._views)
            mean, weight = sweep.objective(self.outputs, batch)
        self.loss = mean
        self.weight = float(weight)
        self.forward_mode = True

    def _call(self, parameters: dict[str, Tensor]) -> Any:
        with self._sweep.second_order():
            return self._sweep.network.call(parameters, self.batch)

    def jvp(self, vectors: Float[Tensor, "*batch dim"]) -> Any:
        r"""Return $J v$ for every row of `vectors`, stacked in front of the outputs."""
        theta = self._theta
        vectors = check_theta(vectors, theta.shape[0], theta.dtype, theta.device)
        rows = vectors.reshape(-1, theta.shape[0])
        products = [self._jvp(row) for row in rows]
        shape = vectors.shape[:-1]
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
        """Return $J v$ as the derivative of $u \\mapsto J^\top u$ along $v$."""
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
        with torch.enable_grad():
            outputs, _ = tree_flatten(self._call(leaves))
            given, _ = tree_flatten(cotangents)
            shapes = [tuple(t.shape) for t in given], [tuple(o.shape) for o in outputs]
            if shapes[0] != shapes[1]:
                raise ValueError(f"cotangents have shapes {shapes[0]}, the outputs {shapes[1]}")
            parts = torch.autograd.grad(
                outputs, list(leaves.values()), given, materialize_grads=True
            )
        return torch.cat([part.reshape(-1) for part in parts])

    def per_example_gradients(self) -> Float[Tensor, "examples dim"]:
        """Return the gradient of every example's own loss, without the penalty.

        Raises:
            ValueError: If the examples of a batch are not independent of each other.
        """
        sweep = self._sweep
        if sweep.policy == "batch" or not divisible(self.batch):
            raise ValueError(
                "the examples of a batch depend on each other here (batch statistics, or a batch "
                "that cannot be divided), so an example has no gradient of its own; use "
                "batchnorm='frozen'"
            )

        def own(row: Tensor, example: Any) -> Tensor:
            one = tree_map(lambda t: t[None] if isinstance(t, Tensor) else t, example)
            return sweep.score(sweep.network.spec.views(row), one)[0]

        slope: Callable[..., Tensor] = torch.func.grad(own)
        leaves, structure = tree_flatten(self.batch)
        axes = tree_unflatten([0 if isinstance(t, Tensor) else None for t in leaves], structure)
        try:
            with warnings.catch_warnings(), sweep.second_order():
                warnings.simplefilter("error")  # torch warns where vmap would be a slow loop
                many = torch.func.vmap(slope, in_dims=(None, axes))
                return many(self._theta, self.batch).detach()
        except (RuntimeError, NotImplementedError, ValueError, TypeError, UserWarning):
            count = leading(self.batch)
            rows = [as_leaves(self._views) for _ in range(count)]
            return torch.stack(
                [sweep.slope(rows[i], cut(self.batch, i, i + 1))[1] for i in range(count)]
            )


def linearised(sweep: Sweep, theta: Tensor) -> Iterator[ModelBatch]:
    """Go through the data at one vector, in chunks under the memory cap."""
    first = 0
    sweep.ledger.add(passes=sweep.share)
    for chunk in sweep.guarded("product"):
        yield ModelBatch(sweep, theta, chunk, first)
        first += leading(chunk)
