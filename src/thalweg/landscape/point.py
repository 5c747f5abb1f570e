"""A network's loss at one point: the gradient's graph, kept or rebuilt, and products.

Products differentiate the gradient's graph with respect to detached leaves that share the
vector's memory, and loop vectors over one graph. Where the graph of all the data fits the
memory cap it is built once and retained; where it does not, it is rebuilt chunk by chunk,
once for a whole block of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import check_theta
from thalweg.landscape.second_order import differentiate_again
from thalweg.landscape.sweep import Sweep, as_leaves, positive

__all__ = ["ModelPoint"]


class _Graph:
    """Slopes that can be differentiated again, and each one's place and share in the mean."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.kept: list[tuple[int, float]] = []

    def keep(self, parts: Sequence[Tensor], weight: float) -> None:
        """Take in one chunk's slopes; one that does not depend on the leaves has no graph."""
        for i, part in enumerate(parts):
            if part.requires_grad:
                self.outputs.append(part)
                self.kept.append((i, weight))

    def divide(self, total: float) -> None:
        """Turn the chunks' weights into shares."""
        self.kept = [(i, weight / total) for i, weight in self.kept]


class ModelPoint:
    """A model landscape at one vector; open it with ``landscape.at(theta)``.

    Attributes:
        theta: The vector, `(dim,)`.
        kernel: ``"retained"`` or ``"rebuilt"``: how products are computed, by size.
    """

    def __init__(self, sweep: Sweep, theta: Tensor) -> None:
        self.theta = theta.clone()
        self._sweep = sweep
        self._open = True
        self._leaves = as_leaves(sweep.network.spec.views(self.theta))
        self.kernel = "retained" if sweep.graph_fits() else "rebuilt"
        self._shapes = [leaf.shape for leaf in self._leaves.values()]
        self._sizes = [leaf.numel() for leaf in self._leaves.values()]
        self._graph = _Graph()
        if self.kernel == "retained":
            self._first = self._build()

    def _build(self) -> tuple[Tensor, Tensor]:
        """Keep every chunk's gradient graph; return the loss and the gradient."""
        sweep, theta = self._sweep, self.theta
        total, weights = torch.zeros((), dtype=torch.float64, device=theta.device), 0.0
        gradient = torch.zeros_like(theta)
        with sweep.guard():
            sweep.ledger.add(losses=1, gradients=1, passes=sweep.share)
            for chunk in sweep.chunks("product"):
                mean, weight, parts = sweep.slopes(self._leaves, chunk, graph=True)
                if weight:  # a chunk of weight zero has no mean, and adds nothing
                    self._graph.keep(parts, weight)
                    total += weight * mean.double()
                    views = sweep.network.spec.views(gradient).values()
                    for view, part in zip(views, parts, strict=True):
                        view.add_(part.detach(), alpha=weight)
                    weights += weight
        self._graph.divide(positive(weights))
        loss, gradient = (total / weights).to(theta.dtype), gradient.div_(weights)
        if sweep.penalty:
            value, slope = sweep.penalty.value_and_gradient(theta)
            loss, gradient = loss + value, gradient + slope
        return loss, gradient

    @cached_property
    def _value_and_gradient(self) -> tuple[Tensor, Tensor]:
        if self.kernel == "retained":
            return self._first
        values, gradients = self._sweep.gradients(self.theta[None])
        return values[0], gradients[0]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The loss here."""
        return self._value_and_gradient[0]

    @property
    def gradient(self) -> Float[Tensor, " dim"]:
        """The gradient here."""
        return self._value_and_gradient[1]

    def hvp(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        r"""Return $\nabla^2 L(\theta)\, v$ for every row of `vectors`.

        Args:
            vectors: One or many directions, `(..., dim)`.

        Returns:
            The products, in the shape of `vectors`.

        Raises:
            ValueError: If the shape is wrong.
            RuntimeError: If the point has been closed.
        """
        if not self._open:
            raise RuntimeError("this point is closed; take products inside `with land.at(theta)`")
        theta = self.theta
        vectors = check_theta(vectors, theta.shape[0], theta.dtype, theta.device)
        rows = vectors.reshape(-1, theta.shape[0])
        sweep = self._sweep
        sweep.ledger.add(hvps=len(rows), passes=sweep.share)
        if not len(rows):
            return vectors.clone()
        kept = self.kernel == "retained"
        with nullcontext() if kept and not sweep.exposed() else sweep.guard():
            result = self._retained(rows) if kept else self._rebuilt(rows)
            if sweep.penalty:
                sweep.penalty.add_hvp(theta, rows, result)
            return result.reshape(vectors.shape)

    def _retained(self, rows: Tensor) -> Tensor:
        result = torch.empty_like(rows)
        if not self._graph.outputs:
            return result.zero_()
        for row, out in zip(rows, result, strict=True):
            parts = self._differentiate(self._graph, row)
            torch.cat([part.reshape(-1) for part in parts], out=out)
        return result

    def _rebuilt(self, rows: Tensor) -> Tensor:
        sweep, weights = self._sweep, 0.0
        result = torch.zeros_like(rows)
        totals = [list(sweep.network.spec.views(row).values()) for row in result]
        for chunk in sweep.chunks("product"):
            _, weight, parts = sweep.slopes(self._leaves, chunk, graph=True)
            graph = _Graph()
            graph.keep(parts, 1.0)
            if weight and graph.outputs:
                for row, views in zip(rows, totals, strict=True):
                    for view, part in zip(views, self._differentiate(graph, row), strict=True):
                        view.add_(part, alpha=weight)
            del parts, graph
            weights += weight
        return result.div_(positive(weights))

    def _differentiate(self, graph: _Graph, row: Tensor) -> tuple[Tensor, ...]:
        """Return the parts of one product: the derivative of the kept slopes along `row`."""
        pieces = torch.split_with_sizes(row, self._sizes)
        cotangents = [
            pieces[i].view(self._shapes[i])
            if share == 1
            else pieces[i].view(self._shapes[i]) * share
            for i, share in graph.kept
        ]
        return differentiate_again(graph.outputs, self._leaves, cotangents)

    def close(self) -> None:
        """Free the graph."""
        self._graph = _Graph()
        self._open = False
