"""Any torch function of one vector, seen as a landscape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Ledger, Point, check_theta
from thalweg.landscape.seeding import preserve_rng

__all__ = ["FunctionLandscape"]


class FunctionPoint:
    """A function landscape at one point, its gradient's graph kept."""

    def __init__(self, f: Callable[[Tensor], Tensor], theta: Tensor, ledger: Ledger) -> None:
        self.theta = theta
        self._ledger = ledger
        with torch.inference_mode(False), torch.enable_grad():
            self._leaf = theta.clone().requires_grad_()
            value = f(self._leaf)
            (graph,) = torch.autograd.grad(
                value, self._leaf, create_graph=True, materialize_grads=True
            )
        self._graph = graph
        self.loss: Tensor = value.detach()
        self.gradient: Tensor = graph.detach()
        self._open = True
        ledger.add(losses=1, gradients=1, passes=1)

    def close(self) -> None:
        """Free the graph."""
        self._open = False
        self._graph = self._leaf = self.theta

    def hvp(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the Hessian times each row of `vectors`."""
        if not self._open:
            raise RuntimeError("this point is closed; take products inside `with land.at(theta)`")
        dim = self.theta.shape[0]
        vectors = check_theta(vectors, dim, self.theta.dtype, self.theta.device)
        rows = vectors.reshape(-1, dim)
        self._ledger.add(hvps=len(rows), passes=1)
        if not self._graph.requires_grad:
            return torch.zeros_like(vectors)
        with torch.inference_mode(False):
            products = [
                torch.autograd.grad(
                    self._graph, self._leaf, row, retain_graph=True, materialize_grads=True
                )[0]
                for row in rows
            ]
        return torch.stack(products).reshape(vectors.shape) if products else vectors.clone()


class FunctionLandscape:
    r"""A torch function $f : \mathbb{R}^D \to \mathbb{R}$ as a landscape.

    Batches of vectors go through ``torch.func.vmap`` where `f` allows it and through a
    loop where it does not (data-dependent control flow, in-place writes); which of the
    two is decided once, at construction, and recorded in `kernel`.

    Args:
        f: A function of one `(dim,)` tensor that returns a scalar tensor, differentiable
            by autograd.
        dim: The number of coordinates.
        dtype: The dtype of the vectors; float64 by default.
        device: Where the vectors live.
        start: Draws a starting point, ``start(generator) -> (dim,)``; standard normal
            by default.

    Raises:
        ValueError: If `dim` is not positive, `f` does not return a scalar that depends
            differentiably on its argument, or two calls of it differ.

    Example:
        >>> import torch
        >>> bowl = FunctionLandscape(lambda x: (x**2).sum(), dim=3)
        >>> bowl.loss(torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64))
        tensor([9., 0.], dtype=torch.float64)
        >>> with bowl.at(torch.zeros(3, dtype=torch.float64)) as point:
        ...     point.hvp(torch.ones(3, dtype=torch.float64))
        tensor([2., 2., 2.], dtype=torch.float64)
        >>> print(bowl.cost)
        3 losses, 1 gradient, 1 HVP, 3 passes
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        dim: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        start: Callable[[torch.Generator], Tensor] | None = None,
    ) -> None:
        """Check that `f` is a differentiable scalar function and choose the kernel."""
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {dtype}")
        self.f = f
        self.dim = dim
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device
        self._start = start
        self._ledger = Ledger()
        probe = self.start(torch.Generator().manual_seed(0))
        with preserve_rng():
            self._check(probe)
            self.kernel = self._choose_kernel(probe)

    def _check(self, probe: Tensor) -> None:
        with torch.enable_grad():
            leaf = probe.clone().requires_grad_()
            value = self.f(leaf)
        if not isinstance(value, Tensor) or value.shape != ():
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"f must return a scalar tensor, but for a vector of shape ({self.dim},) it "
                f"returned {shown}; sum or average it"
            )
        if value.is_complex() or not value.is_floating_point():
            raise ValueError(f"f must return a real floating-point scalar, not {value.dtype}")
        if not value.requires_grad:
            raise ValueError(
                "f's value does not depend differentiably on its argument: look for .item(), "
                ".detach(), argmax, numpy or a comparison inside f"
            )
        values = []
        for seed in (20_221, 81_799):
            with preserve_rng(seed), torch.no_grad():
                values.append(self.f(probe.clone()))
        tolerance = 1e3 * torch.finfo(self.dtype).eps
        one, other = values
        if not torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise ValueError(
                f"f is not a function: one vector gave {one:.6g} and {other:.6g}, so it draws "
                "random numbers; take them as fixed constants instead"
            )

    def _choose_kernel(self, probe: Tensor) -> str:
        rows = torch.stack([probe, probe + 0.5])
        try:
            together = torch.func.vmap(self.f)(rows)
            torch.func.vmap(torch.func.grad(self.f))(rows)
        except (RuntimeError, ValueError, NotImplementedError, TypeError):
            return "loop"
        alone = torch.stack([self.f(row) for row in rows])
        tolerance = 1e3 * torch.finfo(self.dtype).eps
        agree = torch.allclose(together, alone, rtol=tolerance, atol=tolerance, equal_nan=True)
        return "vmap" if agree else "loop"

    @property
    def cost(self) -> Cost:
        """The running tally."""
        return self._ledger.total

    def loss(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the function's value at every row of `theta`."""
        theta = check_theta(theta, self.dim, self.dtype, self.device)
        rows = theta.reshape(-1, self.dim)
        self._ledger.add(losses=len(rows), passes=1)
        with torch.no_grad():
            if self.kernel == "vmap" and len(rows) > 1:
                values: Tensor = torch.func.vmap(self.f)(rows)
            else:
                values = torch.stack([self.f(row) for row in rows]) if len(rows) else rows[:, 0]
        return values.reshape(theta.shape[:-1])

    def gradient(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the function's gradient at every row of `theta`."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(
        self, theta: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return value and gradient at every row of `theta`."""
        theta = check_theta(theta, self.dim, self.dtype, self.device)
        rows = theta.reshape(-1, self.dim)
        self._ledger.add(losses=len(rows), gradients=len(rows), passes=1)
        with torch.inference_mode(False):
            values, gradients = self._value_and_gradient(rows)
        return values.reshape(theta.shape[:-1]), gradients.reshape(theta.shape)

    def _value_and_gradient(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.kernel == "vmap" and len(rows) > 1:
            gradients, values = torch.func.vmap(torch.func.grad_and_value(self.f))(rows)
            return values.detach(), gradients.detach()
        gradients, values = torch.empty_like(rows), rows.new_empty(len(rows))
        for i, row in enumerate(rows):
            with torch.enable_grad():
                leaf = row.clone().requires_grad_()
                value = self.f(leaf)
                (gradients[i],) = torch.autograd.grad(value, leaf, materialize_grads=True)
            values[i] = value.detach()
        return values, gradients

    @contextmanager
    def at(self, theta: Float[Tensor, " dim"]) -> Iterator[Point]:
        """Open the function at one point, keeping the gradient's graph until closed."""
        theta = check_theta(theta, self.dim, self.dtype, self.device, single=True)
        if not torch.isfinite(theta).all():
            raise ValueError("theta holds NaN or infinite values, so there is no curvature there")
        point = FunctionPoint(self.f, theta.clone(), self._ledger)
        try:
            yield point
        finally:
            point.close()

    def start(self, generator: torch.Generator) -> Float[Tensor, " dim"]:
        """Draw a starting point: standard normal, unless `start` was given."""
        if self._start is not None:
            drawn = self._start(generator).to(self.dtype).to(self.device)
            return check_theta(drawn, self.dim, self.dtype, self.device, single=True)
        return torch.randn(self.dim, generator=generator, dtype=self.dtype).to(self.device)
