"""Products with random vectors, checked for symmetry and with their rounding measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature.operator import LinearOperator, finite_matmat

__all__ = ["Rounding", "double", "draw_normals", "draw_signs", "probe", "read_diagonal"]

_BLOCK = 16
_BLOCK_BYTES = 2**30

Draw = Callable[[LinearOperator, int, torch.Generator], Tensor]


def _width(operator: LinearOperator) -> int:
    return max(1, min(_BLOCK, _BLOCK_BYTES // (16 * operator.dim)))


def draw_signs(
    operator: LinearOperator, count: int, generator: torch.Generator
) -> Float[Tensor, "dim count"]:
    """Return columns of independent random signs."""
    signs = [
        torch.randint(0, 2, (operator.dim,), generator=generator, dtype=torch.int8)
        for _ in range(count)
    ]
    return (2 * torch.stack(signs, dim=1) - 1).to(operator.device, operator.dtype)


def draw_normals(
    operator: LinearOperator, count: int, generator: torch.Generator
) -> Float[Tensor, "dim count"]:
    """Return columns of independent standard normal numbers."""
    dtype = torch.float64 if operator.dtype == torch.float64 else torch.float32
    columns = [torch.randn(operator.dim, generator=generator, dtype=dtype) for _ in range(count)]
    return torch.stack(columns, dim=1).to(operator.device, operator.dtype)


@dataclass
class Rounding:
    r"""What rounding may do to a mean of quadratic forms, seen from the products themselves.

    In exact arithmetic $x^\top A y = y^\top A x$; how far the two differ for independent
    random $x$, $y$ is the noise of a product.
    """

    operator: LinearOperator
    _gaps: list[Tensor] = field(default_factory=list)
    _sizes: list[Tensor] = field(default_factory=list)

    def see(self, vectors: Tensor, products: Tensor) -> Tensor:
        """Take in one block, and return its forms $Z^T (A Z)$ as float64 on the CPU.

        Raises:
            ValueError: If the operator is not symmetric.
        """
        forms = double(vectors).T.matmul(double(products)).cpu()
        gap = forms - forms.T
        self._check(gap, products)
        self._gaps.append(gap[torch.ones_like(gap, dtype=torch.bool).triu(1)])
        self._sizes.append((double(vectors) * double(products)).abs().sum(0).cpu())
        return forms

    def _check(self, gap: Tensor, products: Tensor) -> None:
        size = float(torch.linalg.vector_norm(double(products), dim=0).max())
        worst = float(gap.abs().max())
        if worst > 30 * math.sqrt(torch.finfo(self.operator.dtype).eps) * size:
            raise ValueError(
                f"{self.operator!r} is not symmetric, or gives different products at different "
                f"times: x.(A y) and y.(A x) differ by {worst:.3g} for random signs x, y with "
                f"|A y| about {size:.3g}; look for dropout, shuffled data or a wrong product"
            )

    def bound(self) -> float:
        """Return an estimate of the bias that rounding may give the mean of the forms."""
        seen = torch.cat(self._gaps)
        noise = float(seen.square().mean().sqrt()) if len(seen) else 0.0
        unit = torch.finfo(self.operator.dtype).eps
        return 2 * noise + 4 * unit * float(torch.cat(self._sizes).mean())


def double(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, on the CPU where its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def probe(
    operator: LinearOperator,
    count: int,
    generator: torch.Generator,
    draw: Draw,
    rounding: Rounding,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield random vectors, their products and forms, a block of columns to a sweep.

    The vectors do not depend on the size of the blocks.
    """
    missing = count
    while missing:
        vectors = draw(operator, min(_width(operator), missing), generator)
        products = finite_matmat(operator, vectors)
        missing -= vectors.shape[1]
        yield vectors, products, rounding.see(vectors, products)


def read_diagonal(operator: LinearOperator) -> tuple[Tensor, Tensor]:
    """Return the diagonal, with `dim` products, and a bound on each entry's rounding.

    Returns:
        Both `(dim,)`; the bounds are float64.
    """
    width = _width(operator)
    entries, sizes = [], []
    for first in range(0, operator.dim, width):
        columns = torch.arange(first, min(first + width, operator.dim), device=operator.device)
        basis = torch.zeros(
            operator.dim, len(columns), dtype=operator.dtype, device=operator.device
        )
        basis[columns, columns - first] = 1
        products = finite_matmat(operator, basis)
        entries.append(products[columns, columns - first])
        sizes.append(torch.linalg.vector_norm(double(products), dim=0))
    return torch.cat(entries), 16 * torch.finfo(operator.dtype).eps * torch.cat(sizes)
