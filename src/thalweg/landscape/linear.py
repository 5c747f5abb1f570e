"""Batches of a finite sum at one point: outputs, Jacobian products, per-example gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from thalweg.landscape.data import cut, divisible, leading
from thalweg.landscape.jacobian import OutputLoss, Tape
from thalweg.landscape.metrics import own_losses
from thalweg.landscape.protocols import check_theta
from thalweg.landscape.sweep import Sweep, as_leaves

__all__ = ["ModelBatch", "linearised"]


class ModelBatch:
    """Some examples at a fixed vector; the penalty is left out.

    What is asked for is computed then and kept: the outputs, their graph, the loss as a
    function of them. Products that follow share these.

    Attributes:
        batch: The batch itself, for losses that need it.
        indices: The positions of the examples in the data set.
        keeps: Whether the graphs of all batches fit the memory cap together, so that the
            batches may be held between products.
        forward_mode: Whether `jvp` of one vector runs in forward mode where no graph is kept
            yet; a double vjp where the network has none (LSTM).
    """

    def __init__(self, sweep: Sweep, theta: Tensor, batch: Any, first: int, keeps: bool) -> None:
        self._sweep, self._theta, self.batch, self.keeps = sweep, theta, batch, keeps
        self.indices = range(first, first + leading(batch))
        self._views = sweep.network.spec.views(theta)
        self._share = sweep.share * len(self.indices) / sweep.census.examples
        self._fresh = True
        self.forward_mode = True

    @cached_property
    def outputs(self) -> Any:
        """What the network returned, detached."""
        if "_tape" in vars(self):
            return self._tape.detached()
        with self._sweep.guard(), torch.no_grad():
            return self._call(self._views)

    @cached_property
    def _scored(self) -> tuple[Tensor, float]:
        with self._sweep.guard(), torch.no_grad():
            mean, weight = self._sweep.objective(self.outputs, self.batch)
        return mean, float(weight)

    @property
    def loss(self) -> Tensor:
        """The mean loss of these examples, without the penalty."""
        return self._scored[0]

    @property
    def weight(self) -> float:
        """The total weight of these examples in the mean."""
        return self._scored[1]

    @cached_property
    def weights(self) -> Float[Tensor, " examples"]:
        """Every example's own weight in the mean, as float64.

        Raises:
            ValueError: If the examples of a batch are not independent of each other.
        """
        self._divide()
        count = len(self.indices)
        self._scored  # noqa: B018 (the loss tells whether it has weights)
        if not self._sweep.objective.weighted:
            return torch.ones(count, dtype=torch.float64, device=self._theta.device)
        with self._sweep.guard(), torch.no_grad():
            return own_losses(self._sweep, self.outputs, self.batch, self._theta)[1]

    @property
    def separable(self) -> bool:
        """Whether every example has outputs and products of its own."""
        apart = self._sweep.policy != "batch" and divisible(self.batch)
        return apart and divisible(self.outputs) and leading(self.outputs) == len(self.indices)

    def linearise(self) -> None:
        """Build the graph of the outputs, which `outputs` and all products then come from."""
        self._tape  # noqa: B018 (kept from here on)

    def _call(self, parameters: dict[str, Tensor]) -> Any:
        with self._sweep.second_order():
            return self._sweep.network.call(parameters, self.batch)

    @cached_property
    def _tape(self) -> Tape:
        sweep = self._sweep
        with sweep.guard():
            tape = sweep.tape(as_leaves(self._views), self.batch)
            if not sweep.adjoint:
                tape.check_adjoint()
                sweep.adjoint = True
        return tape

    @cached_property
    def _output_loss(self) -> OutputLoss:
        with self._sweep.guard():
            return OutputLoss(self._sweep.objective, self.outputs, self.batch)

    def _count(self, hvps: int = 0) -> None:
        """Count a pass; the vectors of a product once, with the first examples."""
        first = self.indices.start == 0
        self._sweep.ledger.add(hvps=hvps if first else 0, passes=self._share)

    def _rows(self, vectors: Tensor) -> Tensor:
        theta = self._theta
        vectors = check_theta(vectors, theta.shape[0], theta.dtype, theta.device)
        return vectors.reshape(-1, theta.shape[0])

    def _pieces(self, row: Tensor) -> list[Tensor]:
        return list(self._sweep.network.spec.views(row).values())

    def _exposed(self) -> AbstractContextManager[None]:
        return self._sweep.guard() if self._sweep.exposed() else nullcontext()

    def jvp(self, vectors: Float[Tensor, "*batch dim"]) -> Any:
        r"""Return $J v$ for every row of `vectors`, stacked in front of the outputs."""
        rows, shape = self._rows(vectors), vectors.shape[:-1]
        self._count()
        if not len(rows):
            return tree_map(lambda part: part.new_zeros(*shape, *part.shape), self.outputs)
        products = self._forward(rows[0]) if len(rows) == 1 else None
        if products is None:
            tape = self._tape
            with self._exposed():
                found = [tape.nest(tape.jvp(self._pieces(row))) for row in rows]
        else:
            found = [products]
        return tree_map(lambda *parts: torch.stack(parts).reshape(*shape, *parts[0].shape), *found)

    def _forward(self, row: Tensor) -> Any:
        """Return $J v$ by forward mode, or None where a graph is kept or there is no such mode."""
        if "_tape" in vars(self) or not self.forward_mode:
            return None
        tangent = self._sweep.network.spec.views(row)
        try:
            with self._sweep.guard(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch's own torch.jit.script
                return torch.func.jvp(self._call, (self._views,), (tangent,))[1]
        except (NotImplementedError, RuntimeError):
            self.forward_mode = False
            return None

    def vjp(self, cotangents: Any) -> Float[Tensor, "*batch dim"]:
        r"""Return $J^\top u$ for cotangents of the outputs' structure, stacked in front or not.

        Raises:
            ValueError: If their shapes do not end in those of the outputs.
        """
        shape, rows = self._stacked(cotangents)
        self._count()
        tape = self._tape
        result = self._theta.new_empty(len(rows), self._theta.shape[0])
        with self._exposed():
            for row, out in zip(rows, result, strict=True):
                torch.cat([part.reshape(-1) for part in tape.vjp(row)], out=out)
        return result.reshape(*shape, -1) if len(rows) else result.reshape(*shape, len(self._theta))

    def _stacked(self, cotangents: Any) -> tuple[tuple[int, ...], list[list[Any]]]:
        """Return the shape in front of the outputs', and the cotangents one by one."""
        given, outputs = tree_flatten(cotangents)[0], tree_flatten(self.outputs)[0]
        shapes = [tuple(t.shape) for t in given], [tuple(o.shape) for o in outputs]
        extra = len(shapes[0][0]) - len(shapes[1][0]) if len(given) == len(outputs) else -1
        front = shapes[0][0][:extra] if extra >= 0 and given else ()
        if extra < 0 or any((*front, *o) != g for g, o in zip(*shapes, strict=True)):
            raise ValueError(f"cotangents have shapes {shapes[0]}, the outputs {shapes[1]}")
        count = math.prod(front)
        flat = [g.reshape(count, *o) for g, o in zip(given, shapes[1], strict=True)]
        return front, [[part[i] for part in flat] for i in range(count)]

    def loss_gradient(self) -> Any:
        """Return the gradient of these examples' mean loss in the outputs."""
        with self._exposed():
            return self._output_loss.gradient()

    def loss_hvp(self, tangents: Any, *, outputs: Any = None) -> Any:
        """Return the Hessian of these examples' mean loss in the outputs, times tangents.

        Args:
            tangents: Of the outputs' structure, stacked in front or not.
            outputs: Where the Hessian is taken, if not at the network's own outputs.

        Returns:
            The products, in the shape of the tangents.

        Raises:
            ValueError: If the shapes are wrong, or the loss is not a function of the outputs.
        """
        front, rows = self._stacked(tangents)
        structure = tree_flatten(self.outputs)[1]
        with self._sweep.guard():
            loss = self._output_loss
            if outputs is not None:
                loss = OutputLoss(self._sweep.objective, outputs, self.batch)
            found = [loss.hvp(tree_unflatten(row, structure)) for row in rows]
        if not found:
            return tangents
        return tree_map(lambda *parts: torch.stack(parts).reshape(*front, *parts[0].shape), *found)

    def sandwich(
        self, vectors: Float[Tensor, "*batch dim"], middle: Callable[[Any], Any]
    ) -> Float[Tensor, "*batch dim"]:
        r"""Return $J^\top M (J v)$ for every row $v$, over one kept graph.

        It counts one product per vector. The first one of fresh batches belongs to the pass
        over the data that made them.

        Args:
            vectors: The rows, `(..., dim)`.
            middle: The map $M$ from a tangent of the outputs to a cotangent.

        Returns:
            The products, in the shape of `vectors`.
        """
        rows = self._rows(vectors)
        if self.indices.start == 0:
            self._sweep.ledger.add(hvps=len(rows))
        if not self._fresh:
            self._count()
        self._fresh = False
        tape, result = self._tape, torch.empty_like(rows)
        with self._exposed():
            for row, out in zip(rows, result, strict=True):
                tangent = tape.nest(tape.jvp(self._pieces(row)))
                parts = tape.vjp(tree_flatten(middle(tangent))[0])
                torch.cat([part.reshape(-1) for part in parts], out=out)
        return result.reshape(vectors.shape)

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
        self._count()
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
        """Return how many examples' gradients go through vmap at once; 1 means a loop."""

        def probe(few: int) -> int:
            return self._sweep.metered(lambda: self._vmapped_gradients(cut(self.batch, 0, few)))

        return self._at_once("own gradients", probe)

    def _at_once(self, mode: str, probe: Callable[[int], int]) -> int:
        """Return how many examples go through vmap at once under the cap; 1 means a loop."""
        sweep, count = self._sweep, len(self.indices)
        if not self.keeps:
            vars(self).pop("_tape", None)  # its bytes are not in this plan
        try:
            return sweep.budget.plan(mode, sweep.kind(self.batch), count, probe)[0]
        except (RuntimeError, ValueError, TypeError, UserWarning, MemoryError):
            return 1

    def _vmapped_gradients(self, batch: Any) -> Tensor:
        sweep = self._sweep

        def own(row: Tensor, example: Any) -> Tensor:
            one = tree_map(lambda t: t[None] if isinstance(t, Tensor) else t, example)
            return sweep.score(sweep.network.spec.views(row), one)[0]

        slope: Callable[..., Tensor] = torch.func.grad(own)
        with warnings.catch_warnings(), sweep.second_order():
            warnings.simplefilter("error")  # torch warns where vmap would be a slow loop
            return torch.func.vmap(slope, in_dims=(None, self._axes(batch)))(
                self._theta, batch
            ).detach()

    def per_example_vjp(self, cotangents: Any) -> Float[Tensor, "examples dim"]:
        r"""Return $J_i^\top u_i$ for every example $i$, for one cotangent of the outputs.

        Raises:
            ValueError: If the examples of a batch are not independent of each other, or the
                outputs are not one row per example.
        """
        return torch.cat(list(self.per_example_vjp_blocks(cotangents)))

    def per_example_vjp_blocks(self, cotangents: Any) -> Iterator[Float[Tensor, "some dim"]]:
        """Yield the rows of `per_example_vjp` in order, a block that fits the memory at a time.

        Raises:
            ValueError: As `per_example_vjp`.
        """
        self._divide()
        sweep, count = self._sweep, len(self.indices)
        if not self.separable:
            shapes = [tuple(t.shape) for t in tree_flatten(self.outputs)[0]]
            raise ValueError(
                f"the outputs of {count} examples have shapes {shapes}, so they are not one row "
                "per example and no example has a product of its own; let the network keep the "
                "first axis for the examples"
            )
        self._stacked(cotangents)
        self._count()

        def probe(few: int) -> int:
            part = cut(self.batch, 0, few), cut(cotangents, 0, few)
            return sweep.metered(lambda: self._vmapped_vjps(*part))

        with sweep.guard():
            step = self._at_once("own products", probe)
        for start in range(0, count, step):
            stop = min(start + step, count)
            part = cut(self.batch, start, stop), cut(cotangents, start, stop)
            with sweep.guard():
                rows = self._vmapped_vjps(*part) if step > 1 else self._own_vjp(*part)
            yield rows

    def _own_vjp(self, example: Any, cotangent: Any) -> Tensor:
        tape = self._sweep.tape(as_leaves(self._views), example)
        parts = tape.vjp(tree_flatten(cotangent)[0])
        return torch.cat([part.reshape(-1) for part in parts])[None]

    def _vmapped_vjps(self, batch: Any, cotangents: Any) -> Tensor:
        sweep = self._sweep

        def own(example: Any, cotangent: Any) -> Tensor:
            one = tree_map(lambda t: t[None] if isinstance(t, Tensor) else t, example)

            def run(row: Tensor) -> list[Tensor]:
                return tree_flatten(sweep.network.call(sweep.network.spec.views(row), one))[0]

            back: Callable[..., Any] = torch.func.vjp(run, self._theta)[1]
            (product,) = back([part[None] for part in tree_flatten(cotangent)[0]])
            return cast("Tensor", product)

        with warnings.catch_warnings(), sweep.second_order():
            warnings.simplefilter("error")  # torch warns where vmap would be a slow loop
            return torch.func.vmap(own, in_dims=(self._axes(batch), 0))(batch, cotangents).detach()

    @staticmethod
    def _axes(batch: Any) -> Any:
        leaves, structure = tree_flatten(batch)
        return tree_unflatten([0 if isinstance(t, Tensor) else None for t in leaves], structure)


def linearised(sweep: Sweep, theta: Tensor) -> Iterator[ModelBatch]:
    """Go through the data at one vector, in chunks under the memory cap."""
    first, keeps, theta = 0, sweep.tapes_fit(), theta.clone()
    for chunk in sweep.guarded("jacobian"):
        count = leading(chunk)
        sweep.ledger.add(passes=sweep.share * count / sweep.census.examples)
        yield ModelBatch(sweep, theta, chunk, first, keeps)
        first += count
