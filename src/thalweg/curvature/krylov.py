r"""An orthonormal basis that grows by products: block Lanczos, its restarts and second starts.

The basis keeps, beside its vectors $Q$ and the matrix $T = Q^\top A Q$, the directions in
which $A$ leaves it:

$$A Q = Q T + \sum_c f_c u_c^\top, \qquad Q^\top f_c = 0.$$

One pending direction $f_c$ is the Lanczos method. Several of them are a block or band
method (Ruhe 1979), which is also what a second random start makes of it; those that are
chosen advance together, in one product. None is an invariant subspace. Keeping Ritz vectors
instead of all of $Q$ leaves the relation intact, which is the thick restart of Wu & Simon
(2000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import betainc
from torch import Tensor

from thalweg.curvature.operator import LinearOperator, finite_matmat
from thalweg.curvature.room import WORK
from thalweg.curvature.sums import inner_products, lengths

__all__ = ["KrylovBasis", "Ritz", "rayleigh_quotients"]


@dataclass(frozen=True, eq=False)
class Ritz:
    """Ritz values, their vectors in the basis, and the norms of their residuals."""

    values: Float[Tensor, " size"]
    vectors: Float[Tensor, "size size"]
    residuals: Float[Tensor, " size"]

    def errors(self) -> Float[Tensor, " size"]:
        r"""Estimate the errors of the values, which are far smaller than the residuals.

        For neighbouring values $C$ that the gap $\delta$ separates from the others, the
        errors are at most $\sum_{i \in C} r_i^2 / \delta$ (Parlett 1980, §11.7), were the
        others exact; the least over clusters of up to four.
        """
        far = torch.tensor([math.inf], dtype=torch.float64)
        best = self.residuals.clone()
        padded = torch.cat([-far, self.values, far])
        for width in range(1, min(4, len(best)) + 1):
            squares = self.residuals.square().unfold(0, width, 1).sum(1)
            below = padded[1 : len(squares) + 1] - padded[: len(squares)]
            above = padded[width + 1 :] - padded[width:-1]
            gap = torch.minimum(below, above)
            error = torch.where(gap.isinf(), math.inf, squares / gap)
            for member in range(width):
                part = best[member : member + len(squares)]
                torch.fmin(part, error, out=part)
        return best


@dataclass
class _Pending:
    """A direction in which the operator leaves the basis, and what it is coupled to.

    The `i`-th is kept in the basis's row `capacity - 1 - i`.
    """

    direction: Tensor
    coupling: Tensor
    chain: int


class KrylovBasis:
    """An orthonormal basis of at most `capacity` vectors, grown by products.

    Every new vector is orthogonalised twice against the whole basis ("twice is enough",
    Giraud & Langou 2003), so no eigenvalue appears more often than it should.

    Args:
        operator: The symmetric operator.
        capacity: How many vectors and pending directions are held at most.
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
        self._chain = 0
        self._chain_start = self._chain_width = self._chain_steps = 0
        self._mirror = 0.0
        self._mirrored = 0

    @property
    def pending(self) -> int:
        """In how many directions the operator leaves the basis."""
        return len(self._pending)

    @property
    def free(self) -> int:
        """How many more directions there is memory for."""
        return self.capacity - self.size - self.pending

    @property
    def newest(self) -> list[int]:
        """The pending directions of the newest chain."""
        return [i for i, p in enumerate(self._pending) if p.chain == self._chain]

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

    def begin_chain(self, generator: torch.Generator, width: int = 1) -> None:
        """Add `width` random directions, orthogonal to the basis, as the newest chain."""
        self._new_chain()
        for _ in range(min(width, self.free, self.operator.dim - self.size)):
            drawn = torch.randn(self.operator.dim, generator=generator, dtype=torch.float64)
            self._begin(drawn.to(self._rows.device, self._rows.dtype))

    def begin_with(self, start: Float[Tensor, "dim j"]) -> None:
        """Add given directions as the newest chain."""
        self._new_chain()
        for column in start.unbind(1):
            self._begin(column.to(self._rows.device, self._rows.dtype, copy=True))

    def _new_chain(self) -> None:
        self._chain += 1
        self._chain_start, self._chain_width, self._chain_steps = self.size, 0, 0

    def _begin(self, direction: Tensor) -> None:
        direction /= float(lengths(direction))
        for _ in range(2):
            self._orthogonalise(direction)
        self._keep(direction, torch.zeros(self.capacity, dtype=torch.float64), self._chain)

    def _keep(self, direction: Tensor, coupling: Tensor, chain: int) -> None:
        row = self._rows[self.capacity - 1 - self.pending]
        self._pending.append(_Pending(row.copy_(direction), coupling, chain))

    def _drop(self, steps: list[_Pending]) -> None:
        """Forget pending directions, and close the gaps that they leave."""
        self._pending = [p for p in self._pending if not any(p is step for step in steps)]
        for i, pending in enumerate(self._pending):
            row = self._rows[self.capacity - 1 - i]
            if row.data_ptr() != pending.direction.data_ptr():
                pending.direction = row.copy_(pending.direction)

    def advance(self, *chosen: int) -> float:
        """Make pending directions basis vectors, all in one product.

        Args:
            chosen: Which pending directions; those of the newest chain by default. What
                does not fit into the capacity stays pending.

        Returns:
            The largest norm of the new pending directions; 0 if there is none, because up
            to rounding the operator does not leave the basis from the new vectors.

        Raises:
            FloatingPointError: If a product is not finite.
            ValueError: If the operator turns out not to be symmetric.
        """
        indices = sorted(range(self.pending)[i] for i in (chosen or self.newest))
        first = self.size
        steps = [self._pending[i] for i in indices[: self.free]]
        placed, expected = self._place(steps)
        self._drop(steps)
        if not placed:
            return 0.0
        if self._chain_steps == 0:
            self._chain_width = len(placed)
        self._chain_steps += 1
        block = self._rows[first : self.size]
        products = finite_matmat(self.operator, block.T).T
        self.products += len(block)
        self.scale = max(self.scale, float(lengths(products).max()))
        remainder = products.clone(memory_format=torch.contiguous_format)
        del products
        columns = self._orthogonalise(remainder) + self._orthogonalise(remainder)
        self._project(columns, expected, first)
        return self._leave(remainder, placed, first)

    def _place(self, steps: list[_Pending]) -> tuple[list[int], list[Tensor]]:
        """Orthonormalise directions into the basis; return their chains and expected columns."""
        placed: list[int] = []
        expected: list[Tensor] = []
        for at, step in enumerate(steps):
            fresh = not bool(step.coupling.any())
            length = float(lengths(step.direction))
            if self.size == self.operator.dim or length <= (1e-8 if fresh else self.rounding):
                continue
            vector = torch.div(step.direction, length, out=self._rows[self.size])
            for _ in range(2):
                self._orthogonalise(vector)
                vector /= float(lengths(vector))
            column = length * step.coupling
            waiting = [p for p in self._pending if not any(p is done for done in steps[: at + 1])]
            for other in waiting:
                overlap = float(inner_products(vector, other.direction[None]))
                other.direction.sub_(vector, alpha=overlap)
                column = column + overlap * other.coupling
            self.size += 1
            placed.append(step.chain)
            expected.append(column)
        return placed, expected

    def _project(self, columns: Tensor, expected: list[Tensor], first: int) -> None:
        """Enter the new rows of the projected matrix, and compare them with their mirror."""
        known = torch.stack(expected)[:, :first]
        inner = columns[:, first:]
        self._compare(
            torch.cat(
                [
                    (columns[:, :first] - known).flatten(),
                    (inner - inner.T)[tuple(torch.tril_indices(len(inner), len(inner), -1))],
                ]
            )
        )
        part = slice(first, self.size)
        self._matrix[part, :first] = columns[:, :first]
        self._matrix[:first, part] = columns[:, :first].T
        self._matrix[part, part] = (inner + inner.T) / 2

    def _leave(self, remainder: Tensor, chains: list[int], first: int) -> float:
        """Add what is left of the products as pending directions; return the largest norm."""
        left = lengths(remainder).tolist()
        longest = 0.0
        for row, (length, chain) in enumerate(zip(left, chains, strict=True), start=first):
            if self.size == self.operator.dim or length <= self.rounding:
                continue
            longest = max(longest, length)
            coupling = torch.zeros(self.capacity, dtype=torch.float64)
            coupling[row] = 1.0
            self._keep(remainder[row - first], coupling, chain)
        return longest

    def _orthogonalise(self, vectors: Tensor) -> Tensor:
        """Remove the basis from a vector or from rows, in place; return the coefficients."""
        rows = self._rows[: self.size]
        parts = inner_products(vectors, rows)
        if vectors.ndim == 1:
            vectors.addmv_(rows.T, parts.to(rows), alpha=-1)
        else:
            vectors.addmm_(parts.to(rows), rows, alpha=-1)
        return parts

    def _compare(self, gaps: Tensor) -> None:
        """Use the symmetry of the operator to see how exact its products are."""
        if not len(gaps):
            return
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
        return self._ritz(0)

    def chain_ritz(self) -> Ritz:
        """Return the newest chain's own Ritz pairs, of the complement in which it began."""
        return self._ritz(self._chain_start)

    def _ritz(self, first: int) -> Ritz:
        part = slice(first, self.size)
        values, vectors = torch.linalg.eigh(self._matrix[part, part])
        parts = self._couplings(first) @ vectors
        residuals = (parts * (self._gram() @ parts)).sum(0).clamp_min(0).sqrt()
        return Ritz(values, vectors, residuals)

    def _couplings(self, first: int = 0) -> Tensor:
        empty = torch.zeros(0, self.size - first, dtype=torch.float64)
        couplings = [p.coupling[None, first : self.size] for p in self._pending]
        return torch.cat([empty, *couplings])

    def _gram(self) -> Tensor:
        """The inner products of the pending directions."""
        directions = self._rows[self.capacity - self.pending :]
        return inner_products(directions, directions).flip(0, 1)

    def most_coupled(self, vectors: Float[Tensor, "size k"], count: int) -> list[int]:
        """Return which `count` pending directions the residuals of these vectors owe most to."""
        if self.pending <= count:
            return list(range(self.pending))
        weights = [
            float(torch.linalg.vector_norm(p.coupling[: len(vectors)] @ vectors))
            * float(lengths(p.direction))
            for p in self._pending
        ]
        return sorted(range(len(weights)), key=weights.__getitem__)[-count:]

    def expand(self, vectors: Float[Tensor, "size k"]) -> Float[Tensor, "dim k"]:
        """Return vectors of the basis as vectors of the full space."""
        weights = vectors.T.to(self._rows.device, self._rows.dtype)
        return (weights @ self._rows[: self.size]).T

    def mismatch(self, ritz: Ritz, pairs: Tensor, generator: torch.Generator) -> float:
        r"""Check the relation above, and with it the residuals, with one fresh product.

        Let $E$ be the difference between $A Y$ and what the relation says of it. For a random
        unit $g$ the mean of $\|E g\|^2$ is $\|E\|_F^2 / k$.

        Args:
            ritz: What `ritz` returned for the present basis.
            pairs: The indices of the `k` pairs $Y$.
            generator: Where $g$ comes from.

        Returns:
            $\sqrt k \|E g\|$.
        """
        mix = torch.randn(len(pairs), generator=generator, dtype=torch.float64)
        mix = ritz.vectors[:, pairs] @ (mix / torch.linalg.vector_norm(mix))
        image = finite_matmat(self.operator, self.expand(mix[:, None]))[:, 0].clone()
        expected = self._matrix[: self.size, : self.size] @ mix
        image -= self.expand(expected[:, None])[:, 0]
        for pending in self._pending:
            weight = float(pending.coupling[: self.size] @ mix)
            image.sub_(pending.direction, alpha=weight)
        return math.sqrt(len(pairs)) * float(lengths(image))

    def restart(self, ritz: Ritz, kept: Tensor) -> None:
        """Keep these Ritz vectors alone, in place; the relation above stays exact.

        Args:
            ritz: What `ritz` returned for the present basis.
            kept: The indices of the pairs to keep.
        """
        chosen = ritz.vectors[:, kept]
        weights = chosen.T.to(self._rows.device, self._rows.dtype)
        chunk = max(1, WORK * self.operator.dim // max(1, 2 * len(kept)))
        for first in range(0, self.operator.dim, chunk):
            part = slice(first, first + chunk)
            self._rows[: len(kept), part] = weights @ self._rows[: self.size, part]
        for pending in self._pending:
            coupling = torch.zeros_like(pending.coupling)
            coupling[: len(kept)] = pending.coupling[: self.size] @ chosen
            pending.coupling = coupling
        self._matrix.zero_()
        self._matrix[: len(kept), : len(kept)] = torch.diag(ritz.values[kept])
        self.size = len(kept)
        self._new_chain()

    def release(self, count: int) -> Float[Tensor, "dim count"]:
        """Return the first `count` basis vectors in the operator's dtype; free all the rest."""
        operator = self.operator
        kept = torch.empty(operator.dim, count, dtype=operator.dtype, device=operator.device)
        self._pending = []
        for column, row in zip(kept.unbind(1), self._rows, strict=False):
            column.copy_(row)
        self._rows = self._rows.new_empty(0, operator.dim)
        self.size = 0
        return kept

    def overlooked(self, bound: float) -> float:
        r"""Bound the probability that the newest chain overlooked an eigenvalue.

        Let $B$ be the operator restricted to the complement of the basis in which the
        chain began, $q$ one of its $w$ orthonormal starts, and $v$ a unit eigenvector of
        $B$ whose eigenvalue $\lambda$ lies at or beyond `bound`. The Lanczos chain of $q$
        is part of this one. After $m$ steps with norms $\beta_i$ and Ritz values
        $\theta_i$ its last direction is $\prod_i (B - \theta_i)\, q / \prod_{i<m} \beta_i$
        and has norm $\beta_m$, hence

        $$|\langle q, v\rangle| \le \delta_q = \prod_{i=1}^m \frac{\beta_i}{|\lambda - \theta_i|}.$$

        The squared length of $v$'s projection onto $w$ random directions of $D$ follows
        $\mathrm{Beta}(w/2, (D - w)/2)$, which gives the probability that it is as small as
        $\sum_q \delta_q^2$.

        Args:
            bound: Where the eigenvalues in question begin, beyond all others.

        Returns:
            The bound on the probability; 1 where it says nothing.
        """
        free, width = self.operator.dim - self._chain_start, self._chain_width
        if not self.newest or not width or free <= width:
            return 0.0
        total = 0.0
        for start in range(width):
            nodes, norms = self.chain() if width == 1 else self._column_chain(start)
            if min(norms) <= self.rounding:
                continue
            if not (bool((nodes < bound).all()) or bool((nodes > bound).all())):
                return 1.0
            log = sum(map(math.log, norms)) - float((bound - nodes).abs().log().sum())
            total += math.exp(min(2 * log, 0.0))
        return float(betainc(width / 2, (free - width) / 2, min(total, 1.0)))

    def chain(self) -> tuple[Float[Tensor, " steps"], list[float]]:
        r"""Return the Ritz values and the norms $\beta_i$ of the newest chain, of one start.

        The last norm is 0 where the operator does not leave the chain.
        """
        part = slice(self._chain_start, self.size)
        matrix, last = self._matrix[part, part], self._couplings(part.start)[:, -1]
        norms = [*matrix.diagonal(1).abs().tolist(), float(last @ self._gram() @ last) ** 0.5]
        return torch.linalg.eigvalsh(matrix), norms

    def _column_chain(self, start: int) -> tuple[Tensor, list[float]]:
        """Return the Ritz values and norms of the Lanczos chain of one start of the newest."""
        part = slice(self._chain_start, self.size)
        matrix, couplings, gram = (
            self._matrix[part, part],
            self._couplings(part.start),
            self._gram(),
        )
        vector = torch.zeros(len(matrix), dtype=torch.float64)
        vector[start] = 1.0
        chain, norms = [vector], []
        diagonal: list[float] = []
        for _ in range(self._chain_steps):
            product = matrix @ chain[-1]
            diagonal.append(float(chain[-1] @ product))
            outside = couplings @ chain[-1]
            square = max(float(outside @ gram @ outside), 0.0)
            basis = torch.stack(chain)
            for _ in range(2):
                product = product - (basis @ product) @ basis
            inside = float(torch.linalg.vector_norm(product))
            norms.append(math.hypot(inside, math.sqrt(square)))
            if square > (1e-10 * self.scale) ** 2 or norms[-1] <= self.rounding:
                break
            if inside <= self.rounding:
                break
            chain.append(product / inside)
        off = torch.tensor(norms[: len(diagonal) - 1], dtype=torch.float64)
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
        return torch.linalg.eigvalsh(tridiagonal), norms


def rayleigh_quotients(
    operator: LinearOperator, vectors: Float[Tensor, "dim k"], memory: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Return the Rayleigh quotients of vectors and the norms of their residuals.

    Args:
        operator: The operator.
        vectors: The vectors, `(dim, k)`, of any length but zero.
        memory: How many bytes to hold, the vectors included; decides how many go at once.

    Returns:
        The quotients and the residuals of the normalised vectors, `(k,)`, float64.
    """
    dim, count = vectors.shape
    size = vectors.dtype.itemsize
    group = (memory // dim - count * size - 40) // (2 * size + 2)
    values = torch.empty(count, dtype=torch.float64)
    residuals = torch.empty_like(values)
    for first in range(0, count, max(1, group)):
        part = vectors[:, first : first + max(1, group)]
        products = finite_matmat(operator, part)
        for i, (vector, product) in enumerate(zip(part.T, products.T, strict=True), start=first):
            exact, image = vector.double(), product.double()
            square = float(exact @ exact)
            values[i] = float(exact @ image) / square
            gap = torch.linalg.vector_norm(image.sub_(exact, alpha=float(values[i])))
            residuals[i] = float(gap) / math.sqrt(square)
    return values, residuals
