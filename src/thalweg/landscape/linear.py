"""Batches of a finite sum at one point: outputs, Jacobian products, per-example gradients."""

from __future__ import annotations

import functools
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
from thalweg.landscape.jacobian import STACKED_WORK, OutputLoss, Tape, agree, unstacked
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
        with torch.inference_mode(False):  # inside it, views could not be differentiated
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
        if "stacked products" not in sweep.vmaps:
            sweep.vmaps["forward products"] = sweep.vmaps["stacked products"] = False
            sweep.vmaps["forward products"], sweep.vmaps["stacked products"] = self._compare()
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

    def _pieces(self, rows: Tensor) -> list[Tensor]:
        return list(self._sweep.network.spec.views(rows).values())

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
            step, found = self._vectors_at_once(len(rows)), []
            with self._exposed():
                for start in range(0, len(rows), step):
                    found += self._ahead(rows[start : start + step])
        else:
            found = [products]
        return tree_map(lambda *parts: torch.stack(parts).reshape(*shape, *parts[0].shape), *found)

    def _forward(self, row: Tensor) -> Any:
        """Return $J v$ by forward mode, or None where a graph is kept or there is no such mode."""
        if "_tape" in vars(self) or not self.forward_mode:
            return None
        try:
            return self._forward_products(row[None])
        except (NotImplementedError, RuntimeError):
            self.forward_mode = False
            return None

    def _forward_products(self, rows: Tensor) -> Any:
        """Return $J v$ by forward mode, of many rows stacked in front."""

        def run(tangent: dict[str, Tensor]) -> Any:
            return torch.func.jvp(self._call, (self._views,), (tangent,))[1]

        views = self._sweep.network.spec.views
        with self._sweep.guard(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own torch.jit.script
            return run(views(rows[0])) if len(rows) == 1 else torch.func.vmap(run)(views(rows))

    def _graph_products(self, rows: Tensor) -> Any:
        """Return $J v$ from the kept graph, of many rows stacked in front."""
        tape = self._tape
        if len(rows) == 1:
            return tape.nest(tape.jvp(self._pieces(rows[0])))
        return tape.nest(tape.jvp(self._pieces(rows), stacked=True))

    def _ahead(self, rows: Tensor) -> list[Any]:
        """Return $J v$ of all rows at once, one nest per row."""
        rows = rows.contiguous()
        forward = self._sweep.vmaps["forward products"]
        found = self._forward_products(rows) if forward else self._graph_products(rows)
        return [found] if len(rows) == 1 else unstacked(found, len(rows))

    def _back(self, cotangents: list[Any], out: Tensor) -> None:
        r"""Write $J^\top u$ of all cotangents at once into the rows of `out`."""
        flat = [tree_flatten(cotangent)[0] for cotangent in cotangents]
        if len(flat) == 1:
            torch.cat([part.reshape(-1) for part in self._tape.vjp(flat[0])], out=out[0])
            return
        together = [
            torch.stack(parts) if isinstance(parts[0], Tensor) else parts[0]
            for parts in zip(*flat, strict=True)
        ]
        for view, part in zip(
            self._pieces(out), self._tape.vjp(together, stacked=True), strict=True
        ):
            view.copy_(part)

    def _vectors_at_once(self, count: int) -> int:
        """Return how many vectors go through the kept graph at once; 1 means a loop.

        A rule of sizes, recorded in the landscape's plan: many at once under the memory cap,
        where torch has batching rules for the whole network and (on a CPU) a product is small.
        """
        sweep, examples = self._sweep, len(self.indices)
        self.linearise()
        small = self._theta.device.type != "cpu" or len(self._theta) * examples <= STACKED_WORK
        wanted = small or sweep.vmaps["forward products"]
        if count < 2 or not wanted or not sweep.vmaps["stacked products"]:
            return 1
        held = sweep.plan("jacobian", self.batch)[1]
        if self.keeps:  # beside the graphs of the other batches
            held = min(sweep.budget.cap, held * sweep.census.examples / examples)
        one = functools.cache(lambda: self._metered(1))

        def probe(vectors: int) -> float:
            return held + (max(0, self._metered(vectors) - one()) if vectors > 1 else 0)

        mode, key = "vectors of Jacobian products", (sweep.kind(self.batch), examples, self.keeps)
        return sweep.budget.plan(mode, key, count, probe)[0]

    def _metered(self, vectors: int) -> int:
        """Return the peak bytes of so many products, but for the graph and the results."""
        rows = self._theta.expand(vectors, -1)
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        with self._sweep.guard():
            return self._sweep.metered(lambda: self._back(self._ahead(rows), out))

    def _compare(self) -> tuple[bool, bool]:
        """Say whether to take $J v$ by forward mode, and whether stacked vectors work.

        Both are held to single products with the graph of two examples.
        """
        sweep, batch = self._sweep, self.batch
        if divisible(batch) and sweep.policy != "batch":
            batch = cut(batch, 0, min(leading(batch), 2))
        few = ModelBatch(sweep, self._theta, batch, 1, False)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(2, len(self._theta), generator=generator).to(self._theta)
        few.linearise()
        with sweep.guard():
            truth = [few._graph_products(row[None]) for row in rows]
            back = torch.stack([torch.empty_like(row) for row in rows])
            for cotangent, out in zip(truth, back, strict=True):
                few._back([cotangent], out[None])

        def agrees(work: Callable[[], Any], *expected: Any) -> bool:
            found: list[Any] = []
            try:
                with sweep.guard(), warnings.catch_warnings():
                    warnings.simplefilter("error")  # torch warns where vmap would be a slow loop
                    sweep.metered(lambda: found.append(work()))
            except (RuntimeError, ValueError, TypeError, UserWarning):
                return False
            return bool(found) and agree(found[0], tree_map(lambda *t: torch.stack(t), *expected))

        def stacked() -> Tensor:
            out = torch.empty_like(rows)
            few._back(truth, out)
            return out

        forward = few._tape.convolves and agrees(lambda: few._forward_products(rows), *truth)
        ahead = forward or agrees(lambda: few._graph_products(rows), *truth)
        return forward, ahead and agrees(stacked, *back)

    def vjp(self, cotangents: Any) -> Float[Tensor, "*batch dim"]:
        r"""Return $J^\top u$ for cotangents of the outputs' structure, stacked in front or not.

        Raises:
            ValueError: If their shapes do not end in those of the outputs.
        """
        shape, rows = self._stacked(cotangents)
        self._count()
        step = self._vectors_at_once(len(rows)) if len(rows) > 1 else 1
        result = self._theta.new_empty(len(rows), self._theta.shape[0])
        with self._exposed():
            for start in range(0, len(rows), step):
                self._back(rows[start : start + step], result[start : start + step])
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
        step, result = self._vectors_at_once(len(rows)), rows.new_empty(rows.shape)
        with self._exposed():
            for start in range(0, len(rows), step):
                tangents = self._ahead(rows[start : start + step])
                self._back([middle(t) for t in tangents], result[start : start + step])
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
        spare = 4 * sum(int(part.nbytes) for part in tree_flatten(self.outputs)[0])  # the caller's

        def probe(few: int) -> int:
            part = cut(self.batch, 0, few), cut(cotangents, 0, few)
            return spare + sweep.metered(lambda: self._vmapped_vjps(*part))

        with sweep.guard():
            step = self._at_once("own products", probe)
        for start in range(0, count, step):
            stop = min(start + step, count)
            part = cut(self.batch, start, stop), cut(cotangents, start, stop)
            with sweep.guard():
                rows = [self._vmapped_vjps(*part) if step > 1 else self._own_vjp(*part)]
            yield rows.pop()  # not to hold it beside the next one

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
    first, keeps = 0, sweep.tapes_fit()
    with torch.inference_mode(False):
        theta = theta.clone()
    for chunk in sweep.guarded("jacobian"):
        count = leading(chunk)
        sweep.ledger.add(passes=sweep.share * count / sweep.census.examples)
        yield ModelBatch(sweep, theta, chunk, first, keeps)
        first += count
