"""A network's loss at one point: the gradient's graph, kept or rebuilt, and products.

Products differentiate the gradient's graph with respect to detached leaves that share the
vector's memory, and loop vectors over one graph. Where the graph of all the data fits the
memory cap it is built once and retained; where it does not, it is rebuilt chunk by chunk,
once for a whole block of vectors.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import check_theta
from thalweg.landscape.second_order import differentiate_again
from thalweg.landscape.sweep import Sweep, as_leaves, positive

__all__ = ["ModelPoint"]


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
        self._graphs: list[tuple[float, tuple[Tensor, ...]]] = []
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
                    self._graphs.append((weight, parts))
                    total += weight * mean.double()
                    views = sweep.network.spec.views(gradient).values()
                    for view, part in zip(views, parts, strict=True):
                        view.add_(part.detach(), alpha=weight)
                    weights += weight
        self._weight = positive(weights)
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
        with sweep.guard():
            result = self._retained(rows) if self.kernel == "retained" else self._rebuilt(rows)
            if sweep.penalty:
                sweep.penalty.add_hvp(theta, rows, result)
            return result.reshape(vectors.shape)

    def _retained(self, rows: Tensor) -> Tensor:
        shares = [weight / self._weight for weight, _ in self._graphs]
        result = torch.empty_like(rows)
        for row, out in zip(rows, result, strict=True):
            self._product(list(zip(shares, self._graphs, strict=True)), row, out)
        return result

    def _product(
        self, graphs: list[tuple[float, tuple[float, tuple[Tensor, ...]]]], row: Tensor, out: Tensor
    ) -> None:
        """Write the sum of the chunks' products with one vector into `out`."""
        views = list(self._sweep.network.spec.views(row).values())
        outputs, cotangents = [], []
        for share, (_, parts) in graphs:
            for part, view in zip(parts, views, strict=True):
                if part.requires_grad:
                    outputs.append(part)
                    cotangents.append(view if share == 1 else view * share)
        if not outputs:
            out.zero_()
            return
        products = differentiate_again(outputs, self._leaves, cotangents)
        torch.cat([product.reshape(-1) for product in products], out=out)

    def _rebuilt(self, rows: Tensor) -> Tensor:
        sweep, weights = self._sweep, 0.0
        result, work = torch.zeros_like(rows), torch.empty_like(self.theta)
        for chunk in sweep.chunks("product"):
            _, weight, parts = sweep.slopes(self._leaves, chunk, graph=True)
            if weight:
                for row, total in zip(rows, result, strict=True):
                    self._product([(1.0, (weight, parts))], row, work)
                    total.add_(work, alpha=weight)
            del parts
            weights += weight
        return result.div_(positive(weights))

    def close(self) -> None:
        """Free the graph."""
        self._graphs.clear()
        self._open = False
