r"""An orthonormal basis that grows by products: Lanczos, its restarts and its second starts.

The basis keeps, beside its vectors $Q$ and the matrix $T = Q^\top A Q$, the directions in
which $A$ leaves it:

$$A Q = Q T + \sum_c f_c u_c^\top, \qquad Q^\top f_c = 0.$$

One pending direction $f_c$ is the Lanczos method. Several of them are a block or band
method (Ruhe 1979), which is what a second random start makes of it; none is an invariant
subspace. Keeping Ritz vectors instead of all of $Q$ leaves the relation intact, which is
the thick restart of Wu & Simon (2000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature.operator import LinearOperator, finite_matmat

__all__ = ["KrylovBasis", "Ritz", "room"]

_BASIS_BYTES = 2**30
_MOST_VECTORS = 600
_CHUNK = 2**16


def room(operator: LinearOperator, least: int) -> tuple[int, torch.dtype]:
    """Return how many vectors a basis may hold, and of what dtype.

    Args:
        operator: The operator.
        least: How many vectors the algorithm cannot do without.

    Returns:
        As many vectors as fit into 1 GiB, at most 600, at least `least` (or all of the
        space); float64 if `least` of them fit, else the operator's dtype.
    """
    least = min(operator.dim, least)
    wide = 8 * operator.dim * least <= _BASIS_BYTES and operator.device.type != "mps"
    dtype = torch.float64 if wide else operator.dtype
    fits = _BASIS_BYTES // (operator.dim * dtype.itemsize)
    return min(operator.dim, max(least, min(fits, _MOST_VECTORS))), dtype


@dataclass(frozen=True, eq=False)
class Ritz:
    """Ritz values, their vectors in the basis, and the norms of their residuals."""

    values: Float[Tensor, " size"]
    vectors: Float[Tensor, "size size"]
    residuals: Float[Tensor, " size"]


@dataclass
class _Pending:
    """A direction in which the operator leaves the basis, and what it is coupled to."""

    direction: Tensor
    coupling: Tensor


class KrylovBasis:
    """An orthonormal basis of at most `capacity` vectors, grown one product at a time.

    Every new vector is orthogonalised twice against the whole basis ("twice is enough",
    Giraud & Langou 2003), so no eigenvalue appears more often than it should.

    Args:
        operator: The symmetric operator.
        capacity: How many vectors are held at most.
        dtype: Their dtype; the projected matrix is always float64.

    Attributes:
        size: How many vectors there are.
        products: How many products were spent.
        scale: The largest norm of a product with a unit vector so far; at most the
            operator's norm.
    """

    def __init__(self, operator: LinearOperator, capacity: int, dtype: torch.dtype) -> None:
        """Reserve the memory."""
        self.operator = operator
        self.capacity = capacity
        self.size = 0
        self.products = 0
        self.scale = 0.0
        self._rows = torch.empty(capacity, operator.dim, dtype=dtype, device=operator.device)
        self._matrix = torch.zeros(capacity, capacity, dtype=torch.float64)
        self._pending: list[_Pending] = []
        self._chain_start = 0
        self._chain_norms: list[float] = []
        self._mirror = 0.0
        self._mirrored = 0

    @property
    def pending(self) -> int:
        """In how many directions the operator leaves the basis."""
        return len(self._pending)

    @property
    def rounding(self) -> float:
        r"""An estimate of the error norm of one product.

        Without rounding, $q_i^\top A q_j$ would equal its mirror image. The root mean
        square of the differences, times $\sqrt{D}$ because each shows one component of
        the error, plus 16 units of rounding for errors that are themselves symmetric.
        """
        unit = torch.finfo(self.operator.dtype).eps
        seen = math.sqrt(self._mirror / self._mirrored) if self._mirrored else 0.0
        return 2 * math.sqrt(self.operator.dim) * seen + 16 * unit * self.scale

    def begin_chain(self, generator: torch.Generator) -> None:
        """Add a random direction, orthogonal to the basis, as the newest pending one."""
        drawn = torch.randn(self.operator.dim, generator=generator, dtype=torch.float64)
        start = drawn.to(self._rows.device, self._rows.dtype)
        for _ in range(2):
            start = self._orthogonalise(start)[0]
        coupling = torch.zeros(self.capacity, dtype=torch.float64)
        self._pending.append(_Pending(start, coupling))
        self._chain_start, self._chain_norms = self.size, []

    def advance(self, index: int = -1) -> float:
        """Make a pending direction a basis vector, at the price of one product.

        Args:
            index: Which pending direction; the newest by default.

        Returns:
            The norm of the new pending direction; 0 if there is none, because up to
            rounding the operator does not leave the basis from the new vector.

        Raises:
            FloatingPointError: If the product is not finite.
            ValueError: If the operator turns out not to be symmetric.
        """
        step, row = self._pending.pop(index), self.size
        norm = torch.linalg.vector_norm(step.direction)
        vector = self._orthogonalise(step.direction / norm)[0]
        vector = vector / torch.linalg.vector_norm(vector)
        expected = float(norm) * step.coupling
        for other in self._pending:
            overlap = vector @ other.direction
            other.direction = other.direction - overlap * vector
            expected = expected + float(overlap) * other.coupling
        self._rows[row] = vector
        self.size += 1
        product = finite_matmat(self.operator, vector[:, None])[:, 0]
        self.products += 1
        self.scale = max(self.scale, float(torch.linalg.vector_norm(product)))
        remainder, first = self._orthogonalise(product)
        remainder, second = self._orthogonalise(remainder)
        column = first + second
        self._compare(column[:row], expected[:row])
        self._matrix[row, : row + 1] = self._matrix[: row + 1, row] = column
        length = float(torch.linalg.vector_norm(remainder))
        if self.size == self.operator.dim or length <= self.rounding:
            length = 0.0
        else:
            coupling = torch.zeros(self.capacity, dtype=torch.float64)
            coupling[row] = 1.0
            self._pending.append(_Pending(remainder, coupling))
        self._chain_norms.append(length)
        return length

    def _orthogonalise(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._rows[: self.size]
        parts = rows @ vector
        return vector - parts @ rows, parts.to("cpu", torch.float64)

    def _compare(self, column: Tensor, expected: Tensor) -> None:
        """Use the symmetry of the operator to see how exact its products are."""
        if not len(column):
            return
        gaps = column - expected
        self._mirror += float(gaps @ gaps)
        self._mirrored += len(gaps)
        worst = float(gaps.abs().max())
        if worst > 30 * math.sqrt(torch.finfo(self.operator.dtype).eps) * self.scale:
            raise ValueError(
                f"{self.operator!r} is not symmetric, or gives different products at "
                f"different times: x.(A y) and y.(A x) differ by {worst:.3g}, where A has a "
                f"norm of at least {self.scale:.3g}; look for dropout, shuffled data or a "
                f"wrong product"
            )

    def ritz(self) -> Ritz:
        """Return the eigenpairs of the projected matrix, in ascending order."""
        values, vectors = torch.linalg.eigh(self._matrix[: self.size, : self.size])
        residuals = torch.zeros_like(values)
        if self._pending:
            directions = torch.stack([p.direction for p in self._pending])
            gram = (directions @ directions.T).to("cpu", torch.float64)
            couplings = torch.stack([p.coupling[: self.size] for p in self._pending])
            parts = couplings @ vectors
            residuals = (parts * (gram @ parts)).sum(0).clamp_min(0).sqrt()
        return Ritz(values, vectors, residuals)

    def most_coupled(self, vectors: Float[Tensor, "size k"]) -> int:
        """Return which pending direction the residuals of these vectors owe most to."""
        weights = [
            float(torch.linalg.vector_norm(p.coupling[: len(vectors)] @ vectors))
            * float(torch.linalg.vector_norm(p.direction))
            for p in self._pending
        ]
        return max(range(len(weights)), key=weights.__getitem__)

    def expand(self, vectors: Float[Tensor, "size k"]) -> Float[Tensor, "dim k"]:
        """Return vectors of the basis as vectors of the full space."""
        weights = vectors.T.to(self._rows.device, self._rows.dtype)
        return (weights @ self._rows[: self.size]).T

    def restart(self, ritz: Ritz, kept: Tensor) -> None:
        """Keep these Ritz vectors alone, in place; the relation above stays exact.

        Args:
            ritz: What `ritz` returned for the present basis.
            kept: The indices of the pairs to keep.
        """
        chosen = ritz.vectors[:, kept]
        weights = chosen.T.to(self._rows.device, self._rows.dtype)
        for first in range(0, self.operator.dim, _CHUNK):
            part = slice(first, first + _CHUNK)
            self._rows[: len(kept), part] = weights @ self._rows[: self.size, part]
        for pending in self._pending:
            coupling = torch.zeros_like(pending.coupling)
            coupling[: len(kept)] = pending.coupling[: self.size] @ chosen
            pending.coupling = coupling
        self._matrix.zero_()
        self._matrix[: len(kept), : len(kept)] = torch.diag(ritz.values[kept])
        self.size = len(kept)
        self._chain_start, self._chain_norms = self.size, []

    def chain_ritz(self) -> tuple[Float[Tensor, " steps"], Float[Tensor, " steps"]]:
        """Return the newest chain's own Ritz values and the norms of their residuals."""
        part = slice(self._chain_start, self.size)
        values, vectors = torch.linalg.eigh(self._matrix[part, part])
        return values, self._chain_norms[-1] * vectors[-1].abs()

    def overlooked(self, bound: float) -> float:
        r"""Bound the probability that the newest chain overlooked an eigenvalue.

        Let $B$ be the operator restricted to the complement of the basis in which the
        chain began, $q$ its random start, and $v$ a unit eigenvector of $B$ whose
        eigenvalue $\lambda$ lies at or beyond `bound`. After $m$ steps with norms
        $\beta_i$ and Ritz values $\theta_i$ the chain's last direction is $\prod_i (B -
        \theta_i)\, q / \prod_{i<m} \beta_i$ and has norm $\beta_m$, hence

        $$|\langle q, v\rangle| \le \prod_{i=1}^m \frac{\beta_i}{|\lambda - \theta_i|},$$

        and a uniformly random $q$ is that close to orthogonal to $v$ with a probability
        of at most $\sqrt{2 D / \pi}$ times the right-hand side.

        Args:
            bound: Where the eigenvalues in question begin, beyond all others.

        Returns:
            The bound on the probability; 1 where it says nothing.
        """
        if self._chain_norms[-1] == 0.0:
            return 0.0
        values = self.chain_ritz()[0]
        if not (bool((values < bound).all()) or bool((values > bound).all())):
            return 1.0
        free = self.operator.dim - self._chain_start
        log = 0.5 * math.log(2 * free / math.pi) + sum(map(math.log, self._chain_norms))
        log -= float((bound - values).abs().log().sum())
        return math.exp(min(log, 0.0))
