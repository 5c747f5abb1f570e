"""One sweep over the data: losses and gradients of many vectors, in chunks under the cap."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.landscape.data import Source, cut, divisible, leading, place, signature, tensors
from thalweg.landscape.memory import Budget, Meter
from thalweg.landscape.network import Network
from thalweg.landscape.normalisation import collect
from thalweg.landscape.objective import Objective, Penalty
from thalweg.landscape.protocols import Ledger
from thalweg.landscape.seeding import preserve_rng

__all__ = ["Census", "Sweep"]

VMAP_WORK = 2**21
"""Multiply-adds of one vector's forward pass below which many vectors go through vmap."""


@dataclass
class Census:
    """What the first pass over the data found."""

    examples: int = 0
    weight: float | None = 0.0
    digest: str = ""
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
    census: Census = field(default_factory=Census)

    def minibatch(self, source: Source, share: float) -> Sweep:
        """Return the same sweep over some of the data; its cost is counted here."""
        part = copy.copy(self)
        part.source, part.share, part.keeps = source, share, None
        return part

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Leave the global RNG, the loader's generators and global switches as found."""
        fast = torch.backends.mha.get_fastpath_enabled()
        generators = [(g, g.get_state()) for g in self.source.generators()]
        with ExitStack() as stack:
            if self.census.draws:
                stack.enter_context(preserve_rng())
            try:
                torch.backends.mha.set_fastpath_enabled(False)
                yield
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)
                for generator, state in generators:
                    generator.set_state(state)

    @contextmanager
    def second_order(self) -> Iterator[None]:
        """Choose kernels that can be differentiated twice (attention, recurrent layers)."""
        recurrent = self.network.device.type == "cuda" and any(
            isinstance(m, nn.RNNBase) for m in self.network.module.modules()
        )
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield

    def batches(self) -> Iterator[Any]:
        """Yield the data's batches on the landscape's device and in its dtype."""
        for raw in self.source:
            yield place(raw, self.network.dtype, self.network.device)

    def chunks(self, mode: str) -> Iterator[Any]:
        """Yield the data in pieces that fit the memory cap."""
        for batch in self.batches():
            total, step = leading(batch), self.step(mode, batch)
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
                self.keeps = self._graph_fits()
        return self.keeps

    def _graph_fits(self) -> bool:
        total = 0.0
        streamed = self.source.kind in ("DataLoader", "Dataset")
        for batch in self.batches():
            size = leading(batch)
            if self.step("product", batch) < size:
                return False
            units = size if divisible(batch) else 1
            total += self.budget.bytes("product", self._kind(batch), units)
            if streamed:
                total += sum(t.nbytes for t in tensors(batch))
            if total > self.budget.cap:
                return False
        return True

    def _kind(self, batch: Any) -> Any:
        """Return what batches of equal cost per example share."""
        alone = None if divisible(batch) else leading(batch)
        return signature(batch), self.policy, alone

    def step(self, mode: str, batch: Any) -> int:
        """Return how many of a batch's examples go at once."""
        total, key = leading(batch), self._kind(batch)
        if not divisible(batch):
            return total * self.budget.examples(
                mode, key, 1, lambda _: self._probe(mode, batch), whole=True
            )
        return self.budget.examples(
            mode,
            key,
            total,
            lambda n: self._probe(mode, cut(batch, 0, n)),
            whole=self.policy == "batch" or mode == "statistics",
        )

    def _probe(self, mode: str, batch: Any) -> int:
        """Return the peak bytes of one mode's sweep over a batch."""
        parameters = self.network.parameters()
        chosen = {name: parameters[name] for name in self.network.spec.names}
        meter = Meter()
        meter.exclude([batch, parameters, dict(self.network.module.named_buffers())])
        with meter:
            if mode == "loss":
                with torch.no_grad():
                    self.score(chosen, batch)
            elif mode == "statistics":
                collect(self.network, chosen, [batch])
            else:
                leaves = as_leaves(chosen)
                with self.second_order(), torch.enable_grad():
                    mean, _ = self.score(leaves, batch)
                    order = list(leaves.values())
                    first = torch.autograd.grad(
                        mean, order, create_graph=mode == "product", materialize_grads=True
                    )
                    kept = [g for g in first if g.requires_grad]
                    if mode == "product" and kept:
                        torch.autograd.grad(
                            kept,
                            order,
                            [torch.ones_like(g) for g in kept],
                            retain_graph=True,
                            materialize_grads=True,
                        )
        return meter.peak

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
        sums = rows.new_zeros(len(rows), dtype=torch.float64)
        weights = 0.0
        together = buffers is None and self.together(rows)
        views = [self.network.spec.views(row) for row in rows]
        for chunk in self.chunks("loss"):
            if together:
                means, weight = self._vmapped(rows, chunk, gradients=False)[:2]
                sums += weight * means.double()
            else:
                for i, parameters in enumerate(views):
                    mean, given = self.score(parameters, chunk, buffers)
                    weight = float(given)
                    sums[i] += weight * mean.double()
            weights += weight if len(rows) else 1.0
        return self._finish(sums, weights, rows)

    def _finish(self, sums: Tensor, weights: float, rows: Tensor) -> Tensor:
        if weights <= 0:
            raise ValueError(f"the total weight of the data is {weights}, so there is no mean loss")
        values = (sums / weights).to(rows.dtype)
        if self.penalty and len(rows):
            values = values + torch.stack([self.penalty.value_and_gradient(r)[0] for r in rows])
        return values

    def gradients(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient at every row."""
        with self.guard():
            self.ledger.add(losses=len(rows), gradients=len(rows), passes=self.share)
            sums = rows.new_zeros(len(rows), dtype=torch.float64)
            gradients = torch.zeros_like(rows)
            weights = 0.0
            together = self.together(rows)
            leaves = [as_leaves(self.network.spec.views(row)) for row in rows]
            for chunk in self.chunks("gradient"):
                if together:
                    means, weight, slopes = self._vmapped(rows, chunk, gradients=True)
                    sums += weight * means.double()
                    gradients.add_(slopes, alpha=weight)
                else:
                    for i, parameters in enumerate(leaves):
                        mean, slope, weight = self.slope(parameters, chunk)
                        sums[i] += weight * mean.double()
                        gradients[i].add_(slope, alpha=weight)
                weights += weight if len(rows) else 1.0
            values = self._finish(sums, weights, rows)
            gradients /= weights
            if self.penalty:
                for i, row in enumerate(rows):
                    gradients[i] += self.penalty.value_and_gradient(row)[1]
            return values, gradients

    def slope(
        self, leaves: dict[str, Tensor], chunk: Any
    ) -> tuple[Tensor, Tensor, float]:
        """Return mean loss, flat gradient and weight of one chunk."""
        with torch.enable_grad():
            mean, weight = self.score(leaves, chunk)
            parts = torch.autograd.grad(mean, list(leaves.values()), materialize_grads=True)
        return mean.detach(), torch.cat([part.reshape(-1) for part in parts]), float(weight)

    def _vmapped(
        self, rows: Tensor, chunk: Any, *, gradients: bool
    ) -> tuple[Tensor, float, Tensor]:
        """Return means, weight and (if asked) gradients of all rows on one chunk."""
        spec, mode = self.network.spec, "gradient" if gradients else "loss"
        units = leading(chunk) if divisible(chunk) else 1
        room = int(self.budget.cap // max(self.budget.bytes(mode, self._kind(chunk), units), 1))
        if len(rows) > max(room, 1):
            parts = [self._vmapped(p, chunk, gradients=gradients) for p in rows.split(max(room, 1))]
            means, slopes = (torch.cat([part[i] for part in parts]) for i in (0, 2))
            return means, parts[0][1], slopes

        def scored(row: Tensor) -> tuple[Tensor, Tensor]:
            mean, weight = self.score(spec.views(row), chunk)
            return mean, torch.as_tensor(weight, dtype=torch.float64, device=row.device)

        with self.second_order():
            if gradients:
                sloped = torch.func.grad_and_value(scored, has_aux=True)
                slopes, (means, weights) = torch.func.vmap(sloped)(rows)
                return means.detach(), float(weights[0]), slopes.detach()
            means, weights = torch.func.vmap(scored)(rows)
        return means.detach(), float(weights[0]), rows

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
        theta = self.network.theta()
        try:
            first = next(self.chunks("gradient"))
            with warnings.catch_warnings():  # torch warns where vmap would be a slow loop inside
                warnings.simplefilter("error")
                means, _, slopes = self._vmapped(torch.stack([theta, theta]), first, gradients=True)
        except (RuntimeError, ValueError, NotImplementedError, TypeError, UserWarning):
            return "loop"
        mean, slope, _ = self.slope(as_leaves(self.network.spec.views(theta)), first)
        tolerance = 1e4 * torch.finfo(theta.dtype).eps
        agree = torch.allclose(means[1], mean, rtol=tolerance) and torch.allclose(
            slopes[1], slope, rtol=tolerance, atol=tolerance * float(slope.abs().max())
        )
        return "vmap" if agree else "loop"


def as_leaves(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached leaves that share the vector's memory, ready to be differentiated."""
    return {name: view.detach().requires_grad_() for name, view in views.items()}
