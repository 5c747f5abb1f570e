"""One sweep over the data: losses and gradients of many vectors, in chunks under the cap."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from thalweg.landscape.data import (
    Source,
    cut,
    divisible,
    fingerprint,
    leading,
    place,
    signature,
    tensors,
)
from thalweg.landscape.jacobian import OutputLoss, Tape
from thalweg.landscape.memory import Budget, Meter, OverLimit
from thalweg.landscape.network import Network
from thalweg.landscape.normalisation import collect
from thalweg.landscape.objective import Objective, Penalty
from thalweg.landscape.protocols import Ledger
from thalweg.landscape.second_order import (
    check_symmetric,
    differentiate_again,
    explained,
    second_order,
)
from thalweg.landscape.seeding import preserve_rng

__all__ = ["Census", "Sweep", "as_leaves", "positive"]

VMAP_WORK = 2**21
"""Multiply-adds of one vector's forward pass below which many vectors go through vmap."""


@dataclass
class Census:
    """What the first pass over the data found; a weight or digest of None is not known yet."""

    examples: int = 0
    weight: float | None = 0.0
    digest: str | None = None
    draws: bool = True


@dataclass
class Sweep:
    """Everything that evaluating a network over its data needs, and nothing else."""

    network: Network
    source: Source
    objective: Objective
    penalty: Penalty
    budget: Budget
    ledger: Ledger
    policy: str | None
    share: float = 1.0
    many: str = ""
    keeps: bool | None = None
    keeps_tapes: bool | None = None
    adjoint: bool = False
    census: Census = field(default_factory=Census)
    vmaps: dict[str, bool] = field(default_factory=dict)

    def minibatch(self, source: Source, examples: int) -> Sweep:
        """Return the same sweep over some of the data; its cost is counted here."""
        part = copy.copy(self)
        part.source, part.many, part.keeps, part.keeps_tapes = source, "", None, None
        part.share = self.share * examples / self.census.examples
        weight = None if self.objective.weighted else float(examples)
        part.census = Census(examples, weight, None, self.census.draws)
        return part

    def under(self, network: Network, policy: str | None) -> Sweep:
        """Return the same sweep of another copy of the network; its cost is counted here."""
        other = copy.copy(self)
        other.network, other.policy = network, policy
        other.many, other.keeps, other.keeps_tapes, other.vmaps = "", None, None, {}
        return other

    def over(self, source: Source) -> Sweep:
        """Return a sweep of the same function over other data, with a tally of its own."""
        other = copy.copy(self)
        other.source, other.share, other.census = source, 1.0, Census()
        other.ledger, other.budget = Ledger(), Budget(self.budget.cap)
        other.many, other.keeps, other.keeps_tapes, other.vmaps = "", None, None, {}
        return other

    def exposed(self) -> bool:
        """Say whether anything around a mere product of a kept graph could change it."""
        return (
            self.census.draws
            or torch.is_autocast_enabled(self.network.device.type)
            or torch.is_inference_mode_enabled()
        )

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Leave the global RNG, the loader's generators and global switches as found."""
        fast = torch.backends.mha.get_fastpath_enabled()
        generators = [(g, g.get_state()) for g in self.source.generators()]
        with ExitStack() as stack:
            if self.census.draws:
                stack.enter_context(preserve_rng())
            kind = self.network.device.type
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            try:
                torch.backends.mha.set_fastpath_enabled(False)
                yield
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)
                for generator, state in generators:
                    generator.set_state(state)

    def second_order(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Choose kernels that can be differentiated twice, if that is wanted."""
        return second_order(self.network) if wanted else nullcontext()

    def batches(self) -> Iterator[Any]:
        """Yield the data's batches on the landscape's device and in its dtype."""
        for raw in self.source:
            yield place(raw, self.network.dtype, self.network.device)

    def chunks(self, mode: str) -> Iterator[Any]:
        """Yield the data in pieces that fit the memory cap."""
        for batch in self.batches():
            yield from self.pieces(mode, batch)

    def pieces(self, mode: str, batch: Any) -> Iterator[Any]:
        """Yield one batch in pieces that fit the memory cap."""
        total, step = leading(batch), self.plan(mode, batch)[0]
        if step >= total:
            yield batch
        else:
            for start in range(0, total, step):
                yield cut(batch, start, min(start + step, total))

    def guarded(self, mode: str) -> Iterator[Any]:
        """Yield chunks to code that is not ours, with the guard up only while fetching."""
        chunks = self.chunks(mode)
        while True:
            with self.guard():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def graph_fits(self) -> bool:
        """Say whether the gradient's graph over all the data stays under the cap."""
        if self.keeps is None:
            with self.guard():
                self.keeps = self._fits("product")
                check_symmetric(self)
        return self.keeps

    def tapes_fit(self) -> bool:
        """Say whether the outputs' graphs over all the data stay under the cap together."""
        if self.keeps_tapes is None:
            with self.guard():
                self.keeps_tapes = self._fits("jacobian")
        return self.keeps_tapes

    def _fits(self, mode: str) -> bool:
        total = 2 * self.width
        streamed = self.source.kind in ("DataLoader", "Dataset")
        for batch in self.batches():
            step, used = self.plan(mode, batch)
            if step < leading(batch):
                return False
            total += used
            if streamed:
                total += sum(t.nbytes for t in tensors(batch))
            if total > self.budget.cap:
                return False
        return True

    def kind(self, batch: Any) -> Any:
        """Return what batches of equal cost per example share."""
        alone = None if divisible(batch) else leading(batch)
        return signature(batch), self.policy, alone

    def plan(self, mode: str, batch: Any) -> tuple[int, float]:
        """Return how many of a batch's examples go at once, and the bytes that they take."""
        total, key = leading(batch), self.kind(batch)
        if not divisible(batch):
            _, used = self.budget.plan(mode, key, 1, lambda _: self._probe(mode, batch), whole=True)
            return total, used
        return self.budget.plan(
            mode,
            key,
            total,
            lambda n: self._probe(mode, cut(batch, 0, n)),
            whole=self.policy == "batch" or mode == "statistics",
            fixed={"gradient": 1, "product": 3, "jacobian": 3}.get(mode, 0) * self.width,
        )

    @property
    def width(self) -> float:
        """The bytes of one vector."""
        return self.network.spec.dim * torch.finfo(self.network.dtype).bits / 8

    def metered(self, work: Callable[[], object]) -> int:
        """Return the peak bytes of some work, or those at which it broke the cap."""
        meter = Meter(limit=self.budget.cap)
        try:
            with meter:
                work()
        except OverLimit:  # autograd holds an abandoned backward pass until the next one
            with torch.enable_grad():
                leaf = torch.zeros((), requires_grad=True)
                torch.autograd.grad(leaf * 1, leaf)
        return meter.peak

    def _probe(self, mode: str, batch: Any) -> int:
        """Return the peak bytes of one mode's sweep over a batch."""
        parameters = self.network.parameters()
        chosen = {name: parameters[name] for name in self.network.spec.names}
        if mode == "loss":
            with torch.no_grad():
                return self.metered(lambda: self.score(chosen, batch))
        if mode == "statistics":
            return self.metered(lambda: collect(self.network, chosen, [batch]))
        if mode == "gradient":
            return self.metered(lambda: self.slopes(as_leaves(chosen), batch))
        if mode == "jacobian":
            return self.metered(lambda: self._gauss_newton(as_leaves(chosen), batch))
        return self.metered(lambda: self._product(as_leaves(chosen), batch))

    def _product(self, leaves: dict[str, Tensor], batch: Any) -> None:
        """Do what a Hessian product holds at most: graph, cotangent and product."""
        _, _, first = self.slopes(leaves, batch, graph=True)
        kept = [slope for slope in first if slope.requires_grad]
        if kept:
            differentiate_again(kept, leaves, [torch.ones_like(slope) for slope in kept])

    def tape(self, leaves: dict[str, Tensor], batch: Any) -> Tape:
        """Run the network on a batch and keep the graph of its outputs."""
        with self.second_order(), explained(), torch.enable_grad():
            return Tape(leaves, self.network.call(leaves, batch))

    def _gauss_newton(self, leaves: dict[str, Tensor], batch: Any) -> None:
        """Do what a product $J^T M J v$ holds at most: graphs, tangents and product."""
        tape = self.tape(leaves, batch)
        tangents = tape.jvp([torch.ones_like(leaf) for leaf in leaves.values()])
        loss = OutputLoss(self.objective, tape.detached(), batch)
        tape.vjp(tree_leaves(loss.hvp(tape.nest(tangents))))

    def score(
        self,
        parameters: Mapping[str, Tensor],
        batch: Any,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | float]:
        """Return the mean loss of a batch at these parameters, and its weight."""
        return self.objective(self.network.call(parameters, batch, buffers), batch)

    def weight(self) -> float:
        """Return the total weight of the data, counted if it is not known yet."""
        if self.census.weight is None:
            views = self.network.spec.views(self.network.theta())
            self.ledger.add(losses=1, passes=self.share)
            with self.guard(), torch.no_grad():
                self.census.weight = sum(
                    float(self.score(views, chunk)[1]) for chunk in self.chunks("loss")
                )
        return self.census.weight

    def digest(self) -> str:
        """Return the digest of the data, computed if it is not known yet."""
        if self.census.digest is None:
            state = hashlib.blake2b(digest_size=16)
            with self.guard():
                for batch in self.batches():
                    state.update(fingerprint(batch))
            self.census.digest = state.hexdigest()
        return self.census.digest

    def statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the BatchNorm statistics re-estimated at one vector."""
        self.ledger.add(passes=self.share)
        views = self.network.spec.views(theta)
        return collect(self.network, views, self.chunks("statistics"))

    def losses(self, rows: Tensor) -> Tensor:
        """Return the loss at every row."""
        with self.guard(), torch.no_grad():
            if self.policy == "recompute":
                values = [self._losses(row[None], self.statistics(row)) for row in rows]
                return torch.cat(values) if values else rows.new_zeros(0)
            return self._losses(rows, None)

    def _losses(self, rows: Tensor, buffers: Mapping[str, Tensor] | None) -> Tensor:
        self.ledger.add(losses=len(rows), passes=self.share)
        sums, weights = rows.new_zeros(len(rows), dtype=torch.float64), 0.0
        for chunk in self.chunks("loss"):
            weights += self._add(rows, chunk, sums, None, buffers)
        return self._finish(sums, weights, rows)

    def gradients(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient at every row."""
        with self.guard():
            self.ledger.add(losses=len(rows), gradients=len(rows), passes=self.share)
            sums, weights = rows.new_zeros(len(rows), dtype=torch.float64), 0.0
            gradients = torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
            for chunk in self.chunks("gradient"):
                weights += self._add(rows, chunk, sums, gradients, None)
            values = self._finish(sums, weights, rows)
            gradients /= weights
            if self.penalty:
                for row, gradient in zip(rows, gradients, strict=True):
                    gradient += self.penalty.value_and_gradient(row)[1]
            return values, gradients

    def _finish(self, sums: Tensor, weights: float, rows: Tensor) -> Tensor:
        values = (sums / positive(weights)).to(rows.dtype)
        if self.penalty and len(rows):
            values = values + torch.stack([self.penalty.value_and_gradient(r)[0] for r in rows])
        return values

    def _add(
        self,
        rows: Tensor,
        chunk: Any,
        sums: Tensor,
        gradients: Tensor | None,
        buffers: Mapping[str, Tensor] | None,
    ) -> float:
        """Add one chunk's weighted losses, and gradients if wanted; return its weight.

        A chunk of weight zero has no mean (all its tokens are ignored, say) and adds nothing.
        """
        spec, weight = self.network.spec, 1.0
        step = 1 if buffers is not None else self._rows_at_once(rows, chunk, gradients is not None)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            if step > 1:
                means, weight, slopes = self._vmapped(rows[part], chunk, gradients is not None)
                if gradients is not None and weight:
                    gradients[part].add_(slopes, alpha=weight)
            elif gradients is None:
                means, given = self.score(spec.views(rows[start]), chunk, buffers)
                weight = float(given)
            else:
                means, weight, parts = self.slopes(as_leaves(spec.views(rows[start])), chunk)
                views = spec.views(gradients[start]).values() if weight else ()
                for view, slope in zip(views, parts if weight else (), strict=True):
                    view.add_(slope, alpha=weight)
            if weight:
                sums[part] += weight * means.double()
        return weight

    def slopes(
        self, leaves: dict[str, Tensor], chunk: Any, *, graph: bool = False
    ) -> tuple[Tensor, float, tuple[Tensor, ...]]:
        """Return mean loss, weight and gradient of one chunk, differentiable if `graph`."""
        with self.second_order(graph), explained(), torch.enable_grad():
            mean, weight = self.score(leaves, chunk)
            parts = torch.autograd.grad(
                mean, list(leaves.values()), create_graph=graph, materialize_grads=True
            )
        return mean.detach(), float(weight), parts

    def _rows_at_once(self, rows: Tensor, chunk: Any, gradients: bool) -> int:
        """Return how many vectors go through vmap at once under the cap; 1 means a loop."""
        if not self.together(rows):
            return 1
        count = leading(chunk)

        def probe(vectors: int) -> float:
            many, few, scale = self.network.theta().expand(vectors, -1), chunk, 1.0
            if vectors == 1 and divisible(chunk) and self.policy != "batch":
                few = cut(chunk, 0, -(-count // self.budget.STRIDE))  # not to break the cap at once
                scale = count / leading(few)
            return scale * self.metered(lambda: self._vmapped(many, few, gradients))

        mode = f"{'gradients' if gradients else 'losses'} of many vectors"
        try:
            return self.budget.plan(mode, (self.kind(chunk), count), len(rows), probe)[0]
        except MemoryError:
            return 1

    def _vmapped(self, rows: Tensor, chunk: Any, gradients: bool) -> tuple[Tensor, float, Tensor]:
        """Return means, weight and (if asked) gradients of all rows on one chunk.

        Only the forward pass goes through vmap. No mean depends on another row, so that one
        backward pass of their sum, which autograd runs outside of vmap, has all gradients.
        """
        spec = self.network.spec

        def scored(row: Tensor) -> tuple[Tensor, Tensor]:
            mean, weight = self.score(spec.views(row), chunk)
            return mean, torch.as_tensor(weight, dtype=torch.float64, device=row.device)

        leaf = rows.detach().requires_grad_(gradients)
        with self.second_order(True), torch.set_grad_enabled(gradients):
            means, weights = torch.func.vmap(scored)(leaf)
            slopes = rows
            if gradients:
                (slopes,) = torch.autograd.grad(means.sum(), leaf, materialize_grads=True)
        return means.detach(), float(weights[0]), slopes

    def together(self, rows: Tensor) -> bool:
        """Say whether these vectors go through vmap; a rule of sizes, recorded in `many`.

        Vectors travel together where one vector's forward pass is so small that the
        overhead of calling it dominates. Otherwise, and where the network cannot be
        vmapped, they go one after the other.
        """
        if len(rows) < 2:
            return False
        if not self.many:
            self.many = self._choose_many()
        return self.many == "vmap"

    def _choose_many(self) -> str:
        work = self.network.spec.dim * max(self.census.examples, 1)
        if self.network.device.type == "cpu" and work > VMAP_WORK:
            return "loop"
        if "agrees" not in self.vmaps:
            self.vmaps["agrees"] = self._try_vmap()
        return "vmap" if self.vmaps["agrees"] else "loop"

    def _try_vmap(self) -> bool:
        """Say whether the network can be vmapped, and then gives the same numbers.

        Two rows are asked at once: a function with a gradient of its own may mix them.
        """
        theta, spec = self.network.theta(), self.network.spec
        moved = theta + 0.1 * torch.linspace(-1, 1, len(theta), dtype=theta.dtype).to(theta.device)
        rows = torch.stack([theta, moved])
        try:
            first = next(self.chunks("gradient"))
            if divisible(first) and self.policy != "batch":
                first = cut(first, 0, min(leading(first), 2))
            with warnings.catch_warnings(), Meter(limit=self.budget.cap):
                warnings.simplefilter("error")  # torch warns where vmap would be a slow loop
                means, _, slopes = self._vmapped(rows, first, True)
                with torch.no_grad():  # without a graph torch may take another kernel
                    losses, _, _ = self._vmapped(rows, first, False)
        except (RuntimeError, ValueError, TypeError, UserWarning, OverLimit):
            return False
        tolerance = 1e4 * torch.finfo(theta.dtype).eps
        for i, row in enumerate(rows):
            mean, _, parts = self.slopes(as_leaves(spec.views(row)), first)
            slope = torch.cat([part.reshape(-1) for part in parts])
            scale = tolerance * float(slope.abs().max())
            close = [
                torch.allclose(slopes[i], slope, rtol=tolerance, atol=scale, equal_nan=True),
                torch.allclose(means[i], mean, rtol=tolerance, equal_nan=True),
                torch.allclose(losses[i], mean, rtol=tolerance, equal_nan=True),
            ]
            if not all(close):
                return False
        return True


def as_leaves(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached leaves that share the vector's memory, ready to be differentiated."""
    return {name: view.detach().requires_grad_() for name, view in views.items()}


def positive(weights: float) -> float:
    """Return the total weight of the data; refuse to take a mean over nothing."""
    if weights <= 0:
        raise ValueError(f"the total weight of the data is {weights}, so there is no mean loss")
    return weights
