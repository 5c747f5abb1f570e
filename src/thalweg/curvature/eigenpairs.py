"""Extreme eigenpairs of a symmetric operator, each with an interval that holds an eigenvalue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thalweg.curvature.krylov import KrylovBasis, Ritz, room
from thalweg.curvature.operator import LinearOperator, finite_matmat
from thalweg.estimate import Bound, Cost
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["Eigenpairs", "eigenpairs"]

_WHICH = ("largest", "smallest", "magnitude")
_METHOD = "thick-restart Lanczos with two Gram-Schmidt passes (Wu & Simon 2000)"
_OVERLOOKED = 1e-4


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    r"""Eigenpairs with their certificates.

    Attributes:
        values: Rayleigh quotients $\theta_i$ of the vectors, `(k,)`, float64, in the order
            that was asked for.
        vectors: Unit eigenvectors, `(dim, k)`, in the operator's dtype.
        residuals: $\|H y_i - \theta_i y_i\|$, `(k,)`, recomputed from the returned vectors
            with one more product each.
        intervals: `(k, 2)`; each row, $\theta_i \pm (r_i + \text{rounding})$, holds a true
            eigenvalue.
        converged: `(k,)`; whether the residual is at most ``tol`` times the norm of the
            operator, or at the level of `rounding`.
        overlooked: A bound on the probability that the check after convergence, from a new
            random start, missed an eigenvalue beyond the last one returned (such as a
            further copy of a repeated one); 1 when nothing can be said: a near tie at the
            end of the list, or products or memory that ran out.
        rounding: The error of one product, estimated from the operator's own asymmetry,
            that every interval includes.
        tol: The tolerance that was asked for.
        products: How many products it took, those of the residuals included.
        cost: What it took.
        which: Which end of the spectrum.
        seed: The seed that reproduces it.
        method: How it was computed.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "dim k"]
    residuals: Float[Tensor, " k"]
    intervals: Float[Tensor, "k 2"]
    converged: Bool[Tensor, " k"]
    overlooked: float
    rounding: float
    tol: float
    products: int
    cost: Cost
    which: str
    seed: int
    method: str = _METHOD

    def bound(self, index: int) -> Bound:
        """Return the interval of one eigenvalue as a certified bound."""
        low, high = self.intervals[index].tolist()
        return Bound(low, high, "certified", "certified", self.cost, self.method)

    def __str__(self) -> str:
        """Return a table, and in words what is certain and what is not."""
        k, dim = len(self.values), len(self.vectors)
        end = {"magnitude": "largest in magnitude"}.get(self.which, f"algebraically {self.which}")
        lines = [f"{k} {end} of {dim} eigenvalues, {self.cost}", "   #       eigenvalue  ± radius"]
        radii = (self.intervals[:, 1] - self.intervals[:, 0]) / 2
        for i, (value, radius, done) in enumerate(
            zip(self.values.tolist(), radii.tolist(), self.converged.tolist(), strict=True)
        ):
            note = "" if done else "  NOT CONVERGED"
            lines.append(f"{i + 1:>4}  {value:>15.9g}  ± {radius:.2g}{note}")
        lines.append("each interval holds an eigenvalue; " + self._completeness())
        missing = int((~self.converged).sum())
        if missing:
            lines.append(
                f"{missing} of {k} did NOT converge to tol={self.tol:g} in {self.products} "
                f"products: raise max_products or tol, or ask for fewer"
            )
        return "\n".join(lines)

    def _completeness(self) -> str:
        if not bool(self.converged.all()):
            return (
                "larger ones may be missing"
                if self.which != "smallest"
                else ("smaller ones may be missing")
            )
        if self.overlooked <= _OVERLOOKED:
            return f"none beyond the last is missing (error probability <= {self.overlooked:.0e})"
        return "that none beyond the last is missing was not certified (a tie, or few products)"

    def __rich__(self) -> str:
        """Return the table with what is wrong in yellow."""
        text = str(self).replace("[", chr(92) + "[")
        for word in ("NOT CONVERGED", "NOT converge", "not certified"):
            text = text.replace(word, f"[yellow]{word}[/yellow]")
        return text

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything but the vectors."""
        return {
            "type": "eigenpairs",
            "values": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "intervals": self.intervals.tolist(),
            "converged": self.converged.tolist(),
            "overlooked": self.overlooked,
            "rounding": self.rounding,
            "tol": self.tol,
            "products": self.products,
            "cost": self.cost.to_json(),
            "which": self.which,
            "seed": self.seed,
            "method": self.method,
        }


def eigenpairs(
    operator: LinearOperator,
    k: int = 10,
    *,
    which: str = "largest",
    tol: float = 1e-6,
    max_products: int | None = None,
    seed: Seed = None,
) -> Eigenpairs:
    r"""Return `k` extreme eigenpairs, repeated eigenvalues as often as they occur.

    Lanczos from a random start until the `k` residuals are small; then a second random
    start, orthogonal to all that was found, looks for what the first cannot see (further
    copies of a repeated eigenvalue), until the probability of overlooking one is below
    1e-4. For a symmetric $H$ and a unit vector $y$ there is an eigenvalue within
    $r = \|H y - \theta y\|$ of $\theta$. So it is certain, up to rounding, that every
    interval holds an eigenvalue; that none was missed is probabilistic. (The bound is
    exact for copies of what was found; that the first start is not all but orthogonal to
    some other eigenvector rests on its own randomness.)

    Memory stays bounded: at most $\max(2^{30}$ bytes, $2k + 20$ vectors$)$, by thick
    restarts. The vectors are float64 where that fits, else of the operator's dtype.

    Args:
        operator: A symmetric operator on $\mathbb{R}^D$, such as ``Hessian(land, theta)``.
        k: How many, at most `dim`.
        which: ``"largest"`` or ``"smallest"`` algebraically, or largest ``"magnitude"``.
        tol: The residual aimed at, as a fraction of the operator's norm.
        max_products: How many products may be spent, at least `2 * k`; by default
            `max(300, 30 * k)`.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The eigenpairs; those that did not converge are marked and still certified.

    Raises:
        ValueError: If `k`, `which`, `tol` or `max_products` is out of range, or the
            operator is not symmetric.
        FloatingPointError: If a product is not finite.

    References:
        K. Wu & H. Simon (2000), Thick-restart Lanczos method for large symmetric
        eigenvalue problems; B. Parlett (1980), The symmetric eigenvalue problem, §4.5.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64)))
        >>> top = eigenpairs(A, k=3, seed=0)
        >>> [round(value, 6) for value in top.values.tolist()]
        [100.0, 99.0, 98.0]
        >>> bool(top.converged.all()), bool(top.residuals.max() < 1e-4)
        (True, True)
    """
    if not 1 <= k <= operator.dim:
        raise ValueError(
            f"k={k} eigenpairs of a {operator.dim} x {operator.dim} operator: k must lie "
            f"between 1 and {operator.dim}; pass k=min(k, operator.dim) for all of them"
        )
    if which not in _WHICH:
        raise ValueError(f"which must be one of {', '.join(map(repr, _WHICH))}, not {which!r}")
    if not tol >= 0:
        raise ValueError(f"tol must not be negative or NaN, got {tol}")
    budget = max(300, 30 * k) if max_products is None else max_products
    if budget < 2 * k:
        raise ValueError(
            f"max_products={budget} is too few: {k} eigenpairs take at least {2 * k} products, "
            f"half of them to check the residuals"
        )
    before = operator.cost
    generator, number = make_generator(seed)
    search = _Search(operator, k, which, tol, budget - k, generator)
    search.run()
    return _certify(search, before, number)


class _Search:
    """The state of one search: a basis, what is wanted of it, and what is left to spend."""

    def __init__(
        self,
        operator: LinearOperator,
        k: int,
        which: str,
        tol: float,
        budget: int,
        generator: torch.Generator,
    ) -> None:
        capacity, dtype = room(operator, 2 * k + 20)
        self.basis = KrylovBasis(operator, min(capacity, max(budget, k)), dtype)
        self.operator, self.k, self.which, self.tol = operator, k, which, tol
        self.budget, self.generator = budget, generator
        self.overlooked = 1.0

    def run(self) -> None:
        """Converge and check, until a check finds nothing new or the products run out."""
        while self._converge() and not self._check():
            pass

    def best(self, values: Tensor, count: int) -> Tensor:
        """Return the indices of the `count` best values, the best first."""
        score = {"largest": values, "smallest": -values, "magnitude": values.abs()}[self.which]
        return score.argsort(descending=True)[:count]

    def goal(self, ritz: Ritz) -> float:
        """Return the residual that counts as converged."""
        unit = torch.finfo(self.operator.dtype).eps
        return max(self.tol * float(ritz.values.abs().max()), 8 * unit * self.basis.scale)

    @property
    def _complete(self) -> bool:
        return self.basis.size == self.operator.dim

    @property
    def _spent(self) -> bool:
        return self.basis.products >= self.budget

    def _converge(self) -> bool:
        """Grow the basis until the wanted residuals are small; say whether they are."""
        basis = self.basis
        while True:
            index = -1
            if basis.size >= self.k:
                ritz = basis.ritz()
                wanted = self.best(ritz.values, self.k)
                if bool((ritz.residuals[wanted] <= self.goal(ritz)).all()):
                    return True
                if basis.pending > 1:
                    index = basis.most_coupled(ritz.vectors[:, wanted])
            if self._complete or self._spent:
                return False
            for _ in range(1 + basis.size // 50):
                if not self._grow(index) or self._spent:
                    break
                index = -1

    def _grow(self, index: int) -> bool:
        """Take one step, restarting first where the memory is full."""
        basis = self.basis
        if basis.size == basis.capacity:
            if self._complete:
                return False
            self._restart((basis.capacity - self.k) // 2)
        if not basis.pending:
            basis.begin_chain(self.generator)
        basis.advance(index)
        return not self._complete

    def _restart(self, extra: int) -> None:
        ritz = self.basis.ritz()
        self.basis.restart(ritz, self.best(ritz.values, min(self.k + extra, self.basis.size)))

    def _check(self) -> bool:
        """Look from a second random start for what the first overlooked.

        Returns:
            Whether the search is over: nothing new was found, or there is no way to go on.
        """
        basis = self.basis
        if self._complete:
            self.overlooked = 0.0
            return True
        if self._spent:
            return True
        short = basis.capacity - basis.size < min(self.budget, self.operator.dim) - basis.products
        if short and 2 * basis.size > basis.capacity + self.k:
            self._restart((basis.capacity - self.k) // 4)
        known = self._wanted_values()
        last = float(known[-1])
        basis.begin_chain(self.generator)
        while not self._spent and basis.size < basis.capacity:
            length = basis.advance()
            ends = (last, -last) if self.which == "magnitude" else (last,)
            self.overlooked = min(1.0, sum(map(basis.overlooked, ends)))
            ritz = basis.ritz()
            goal = self.goal(ritz)
            wanted = self.best(ritz.values, self.k)
            found = bool(((self._wanted_values() - known).abs() > goal).any())
            settled = length == 0.0 or self.overlooked <= _OVERLOOKED or self._chain_settled(goal)
            if found or settled:
                return not found and bool((ritz.residuals[wanted] <= goal).all())
        return True

    def _wanted_values(self) -> Tensor:
        """Return the wanted Ritz values in their order, by magnitude if that is wanted."""
        ritz = self.basis.ritz()
        values = ritz.values[self.best(ritz.values, self.k)]
        return values.abs() if self.which == "magnitude" else values

    def _chain_settled(self, goal: float) -> bool:
        values, residuals = self.basis.chain_ritz()
        return bool(residuals[self.best(values, 1)] <= goal)


def _certify(search: _Search, before: Cost, seed: int) -> Eigenpairs:
    """Recompute values and residuals from the vectors that are returned."""
    basis, operator = search.basis, search.operator
    ritz = basis.ritz()
    vectors = basis.expand(ritz.vectors[:, search.best(ritz.values, search.k)]).to(operator.dtype)
    rounding = basis.rounding
    products = finite_matmat(operator, vectors).double()
    exact = vectors.double()
    squares = (exact * exact).sum(0)
    values = (exact * products).sum(0) / squares
    residuals = torch.linalg.vector_norm(products - exact * values, dim=0) / squares.sqrt()
    order = search.best(values, search.k)
    values, residuals, vectors = values[order], residuals[order], vectors[:, order]
    radii = residuals + rounding
    goal = max(search.tol * float(ritz.values.abs().max()), rounding)
    converged = residuals <= goal
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        intervals=torch.stack([values - radii, values + radii], dim=1),
        converged=converged,
        overlooked=search.overlooked if bool(converged.all()) else 1.0,
        rounding=rounding,
        tol=search.tol,
        products=basis.products + search.k,
        cost=operator.cost - before,
        which=search.which,
        seed=seed,
    )
