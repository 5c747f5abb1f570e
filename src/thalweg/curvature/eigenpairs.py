"""Extreme eigenpairs of a symmetric operator, each with an interval that holds an eigenvalue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thalweg.curvature.krylov import KrylovBasis, Ritz, rayleigh_quotients
from thalweg.curvature.operator import LinearOperator
from thalweg.curvature.room import Room, room
from thalweg.estimate import Bound, Cost
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["OVERLOOKED", "Eigenpairs", "eigenpairs"]

_ENDS = {
    "largest": "algebraically largest",
    "smallest": "algebraically smallest",
    "magnitude": "largest in magnitude",
    "both": "algebraically largest, then smallest,",
}
_METHOD = "thick-restart block Lanczos with two Gram-Schmidt passes (Wu & Simon 2000)"
OVERLOOKED = 1e-4


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    r"""Eigenpairs with their certificates.

    Attributes:
        values: Rayleigh quotients $\theta_i$ of the vectors, `(k,)`, float64, in the order
            that was asked for.
        vectors: Unit eigenvectors, `(dim, k)`, in the operator's dtype.
        residuals: $\|H y_i - \theta_i y_i\|$, `(k,)`, computed from the very products that
            the vectors are made of and confirmed by a fresh product with a random mixture of
            them (what that finds wrong is part of `rounding`); or, with ``recompute=True``,
            from one fresh product each.
        intervals: `(k, 2)`; each row, $\theta_i \pm (r_i + \text{rounding})$, holds a true
            eigenvalue.
        converged: `(k,)`; whether the residual is at most ``tol`` times the norm of the
            operator, or at the level of `rounding`, or the estimated error is at most
            ``accuracy`` times the value.
        overlooked: A bound on the probability that the check after convergence, from a new
            random start, missed an eigenvalue beyond the last one returned (such as a
            further copy of a repeated one); 1 when nothing can be said: a near tie at the
            end of the list, or products or memory that ran out.
        rounding: The error of the products, estimated from the operator's own asymmetry and
            from that fresh product, that every interval includes.
        tol: The tolerance that was asked for.
        products: How many products it took, those of the residuals included.
        cost: What it took.
        which: Which end of the spectrum.
        seed: The seed that reproduces it.
        memory: The most tensor bytes that the search planned to hold.
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
    memory: int = 0
    method: str = _METHOD

    @property
    def passes(self) -> float:
        """How many sweeps over the data it took."""
        return self.cost.passes

    @property
    def multiplicities(self) -> Int[Tensor, " k"]:
        """For every pair, the size of the cluster of values that its own belongs to.

        Clusters are chains of overlapping intervals. The members of one may be copies of a
        repeated eigenvalue, and their vectors mean something as a subspace only.
        """
        order = self.intervals[:, 0].argsort()
        low, high = self.intervals[order].unbind(1)
        fresh = torch.ones_like(order)
        fresh[1:] = (low[1:] > high.cummax(0).values[:-1]).long()
        cluster = fresh.cumsum(0) - 1
        sizes = torch.empty_like(order)
        sizes[order] = cluster.bincount()[cluster]
        return sizes

    def bound(self, index: int) -> Bound:
        """Return the interval of one eigenvalue as a certified bound."""
        low, high = self.intervals[index].tolist()
        return Bound(low, high, "certified", "certified", self.cost, self.method)

    def __str__(self) -> str:
        """Return a table, and in words what is certain and what is not."""
        k, dim = len(self.values), len(self.vectors)
        lines = [
            f"{k} {_ENDS[self.which]} of {dim} eigenvalues, {self.cost}",
            "   #       eigenvalue  ± radius",
        ]
        radii = (self.intervals[:, 1] - self.intervals[:, 0]) / 2
        columns = (self.values, radii, self.converged, self.multiplicities)
        for i, (value, radius, done, copies) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            note = f"  one of {copies} alike" if copies > 1 and done else ""
            note = note if done else "  NOT CONVERGED"
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
            beyond = {"smallest": "smaller ones", "both": "ones beyond them"}
            return f"{beyond.get(self.which, 'larger ones')} may be missing"
        if self.overlooked <= OVERLOOKED:
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
            "multiplicities": self.multiplicities.tolist(),
            "overlooked": self.overlooked,
            "rounding": self.rounding,
            "tol": self.tol,
            "products": self.products,
            "cost": self.cost.to_json(),
            "which": self.which,
            "seed": self.seed,
            "memory": self.memory,
            "method": self.method,
        }


def eigenpairs(
    operator: LinearOperator,
    k: int = 10,
    *,
    which: str = "largest",
    tol: float = 1e-6,
    accuracy: float = 0.0,
    block: int = 1,
    max_products: int | None = None,
    start: Float[Tensor, "dim j"] | None = None,
    memory: int | str = "1 GiB",
    recompute: bool = False,
    check: bool = True,
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

    With ``block=b``, `b` directions advance together, each step one sweep over the data: more
    products than with one, in far fewer passes.

    Args:
        operator: A symmetric operator on $\mathbb{R}^D$, such as ``Hessian(land, theta)``.
        k: How many, at most `dim`.
        which: ``"largest"`` or ``"smallest"`` algebraically, largest ``"magnitude"``, or
            ``"both"``: the `k` largest, the largest first, followed by the `k` smallest (of
            what is left, where `2 * k > dim`), the smallest first.
        tol: The residual aimed at, as a fraction of the operator's norm.
        accuracy: A relative error of the eigenvalues that is good enough: a pair is done
            when $r_i^2$ over its gap, which its error does not exceed, is at most this times
            its size, even if $r_i$ is above `tol`. For eigenvalues alone ``accuracy=1e-5``
            saves products; the vectors and the intervals are then as rough as $r_i$.
        block: How many directions go into one product.
        max_products: How many products may be spent, more than the number of pairs; by
            default `max(300, 30 * pairs)`.
        start: Vectors to begin with, `(dim, j)`, such as the eigenvectors of a point nearby:
            the better they are, the fewer products it takes. The check stays random.
        memory: The cap on the tensor bytes of the search (not those inside the operator's
            products), kept by thick restarts. The basis is float64 where that leaves enough
            vectors, else of the operator's dtype.
        recompute: Whether to spend one more product per pair on residuals from scratch.
        check: Whether to look from a second random start for what the first overlooked;
            without it `overlooked` stays 1.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The eigenpairs; those that did not converge are marked and still certified.

    Raises:
        ValueError: If `k`, `which`, `tol`, `block`, `start` or `max_products` is out of
            range, `memory` is too little, or the operator is not symmetric.
        FloatingPointError: If a product is not finite.

    References:
        K. Wu & H. Simon (2000), Thick-restart Lanczos method for large symmetric
        eigenvalue problems; B. Parlett (1980), The symmetric eigenvalue problem, §4.5;
        A. Ruhe (1979), Implementation aspects of band Lanczos algorithms.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64)))
        >>> top = eigenpairs(A, k=3, seed=0)
        >>> [round(value, 6) for value in top.values.tolist()]
        [100.0, 99.0, 98.0]
        >>> ends = eigenpairs(A, k=2, which="both", block=4, seed=0)
        >>> [round(value, 6) for value in ends.values.tolist()]
        [100.0, 99.0, 1.0, 2.0]
    """
    _refuse(operator, k, which, min(tol, accuracy), block, start)
    pairs = min(2 * k, operator.dim) if which == "both" else k
    budget = max(300, 30 * pairs) if max_products is None else max_products
    checks = pairs if recompute else 1
    if budget < pairs + checks:
        raise ValueError(
            f"max_products={budget} is too few: {pairs} eigenpairs take at least "
            f"{pairs + checks} products, {checks} of them to check the residuals"
        )
    width = max(block, 0 if start is None else start.shape[1])
    plan = room(operator, pairs, block=width, memory=memory, enough=budget)
    before = operator.cost
    generator, number = make_generator(seed)
    basis = KrylovBasis(operator, plan.vectors, plan.dtype)
    search = _Search(
        basis, _Wanted(which, k, pairs), tol, accuracy, budget - checks, block, generator
    )
    search.run(start, check)
    return _certify(search, before, number, plan, recompute)


def _refuse(
    operator: LinearOperator, k: int, which: str, tol: float, block: int, start: Tensor | None
) -> None:
    """Say what is wrong with the arguments."""
    if not 1 <= k <= operator.dim:
        raise ValueError(
            f"k={k} eigenpairs of a {operator.dim} x {operator.dim} operator: k must lie "
            f"between 1 and {operator.dim}; pass k=min(k, operator.dim) for all of them"
        )
    if which not in _ENDS:
        raise ValueError(f"which must be one of {', '.join(map(repr, _ENDS))}, not {which!r}")
    if not tol >= 0:
        raise ValueError(f"tol and accuracy must not be negative or NaN, got {tol}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if start is None:
        return
    if start.ndim != 2 or start.shape[0] != operator.dim or not start.shape[1]:
        raise ValueError(
            f"start holds vectors as columns, ({operator.dim}, j) with j >= 1, got "
            f"{tuple(start.shape)}; for one vector pass start[:, None]"
        )
    lengths = torch.linalg.vector_norm(start, dim=0)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        raise ValueError("start has a column that is zero or not finite; leave it out")


@dataclass(frozen=True)
class _Wanted:
    """Which Ritz pairs are wanted: an order of preference, and how many."""

    which: str
    k: int
    pairs: int

    def best(self, values: Tensor, extra: int = 0) -> Tensor:
        """Return the indices of the wanted values and `extra` more, the best first."""
        if self.which != "both":
            score = {"largest": values, "smallest": -values, "magnitude": values.abs()}
            return score[self.which].argsort(descending=True)[: self.pairs + extra]
        order = values.argsort(descending=True)
        count = min(self.pairs + extra, len(values))
        top = min(self.k + extra // 2, count)
        return torch.cat([order[:top], order.flip(0)[: count - top]])

    def ends(self, values: Tensor) -> list[float]:
        """Return the bounds beyond which nothing may be missing, for values best first."""
        last = float(values[-1])
        if self.which == "magnitude":
            return [abs(last), -abs(last)]
        if self.which == "both" and self.pairs > self.k:
            return [float(values[self.k - 1]), last]
        return [last]

    def extremes(self, values: Tensor) -> list[int]:
        """Return the indices of the first value of every end."""
        first, last = int(values.argmax()), int(values.argmin())
        if self.which == "magnitude":
            return [int(values.abs().argmax())]
        return {"largest": [first], "smallest": [last], "both": [first, last]}[self.which]


class _Search:
    """The state of one search: a basis, what is wanted of it, and what is left to spend."""

    def __init__(
        self,
        basis: KrylovBasis,
        wanted: _Wanted,
        tol: float,
        accuracy: float,
        budget: int,
        block: int,
        generator: torch.Generator,
    ) -> None:
        self.basis, self.operator, self.wanted = basis, basis.operator, wanted
        self.tol, self.accuracy, self.budget, self.block = tol, accuracy, budget, block
        self.generator = generator
        self.overlooked = 1.0

    def run(self, start: Tensor | None, check: bool) -> None:
        """Converge and check, until a check finds nothing new or the products run out."""
        if start is not None:
            self.basis.begin_with(start)
            self.basis.advance(*self.basis.newest[: self._left])
        while self._converge() and check and not self._check():
            pass

    def goal(self, ritz: Ritz) -> float:
        """Return the residual that counts as converged."""
        unit = torch.finfo(self.operator.dtype).eps
        return max(self.tol * float(ritz.values.abs().max()), 8 * unit * self.basis.scale)

    def accurate(self, ritz: Ritz, best: Tensor) -> Bool[Tensor, " k"]:
        """Say which of the wanted values have, by estimate, the relative accuracy asked for."""
        return ritz.errors()[best] <= self.accuracy * ritz.values[best].abs()

    def _good(self, ritz: Ritz, best: Tensor) -> bool:
        """Say whether all that is wanted has converged."""
        small = ritz.residuals[best] <= self.goal(ritz)
        return bool((small | self.accurate(ritz, best)).all())

    @property
    def _complete(self) -> bool:
        return self.basis.size == self.operator.dim

    @property
    def _left(self) -> int:
        return self.budget - self.basis.products

    def _converge(self) -> bool:
        """Grow the basis until the wanted residuals are small; say whether they are."""
        basis = self.basis
        while True:
            chosen: list[int] = []
            if basis.size >= self.wanted.pairs:
                ritz = basis.ritz()
                best = self.wanted.best(ritz.values)
                if self._good(ritz, best):
                    return True
                chosen = basis.most_coupled(ritz.vectors[:, best], self.block)
            for _ in range(1 + basis.size // (50 * self.block)):
                if self._complete or self._left <= 0 or not self._grow(chosen):
                    return False
                chosen = basis.newest if len(basis.newest) <= self.block else []

    def _grow(self, chosen: list[int]) -> bool:
        """Take one step, restarting first where the memory is full; say whether it could."""
        basis = self.basis
        if not basis.pending:
            if not basis.free and not self._restart(2):
                return False
            basis.begin_chain(self.generator, self.block)
        chosen = (chosen or list(range(basis.pending)))[-min(self.block, self._left) :]
        if basis.free < len(chosen) and not self._restart(2):
            return False
        basis.advance(*chosen)
        return True

    def _restart(self, share: int) -> bool:
        """Keep the wanted and some more; say whether that freed the memory of a step."""
        basis, pairs = self.basis, self.wanted.pairs
        spare = basis.capacity - basis.pending - 2 * self.block - pairs
        if spare < 0 or basis.size <= pairs:
            return False
        ritz = basis.ritz()
        kept = self.wanted.best(ritz.values, spare // share)
        if len(kept) < basis.size:
            basis.restart(ritz, kept)
        return basis.free >= self.block

    def _check(self) -> bool:
        """Look from a second random start for what the first overlooked.

        Returns:
            Whether the search is over: nothing new was found, or there is no way to go on.
        """
        basis = self.basis
        if self._complete:
            self.overlooked = 0.0
            return True
        short = basis.free < min(self.budget, self.operator.dim) - basis.products
        if short and 2 * basis.size > basis.capacity + self.wanted.pairs:
            self._restart(4)
        if self._left <= 0 or basis.free < 2:
            return True
        known = self._wanted_values()
        ends = self.wanted.ends(known)
        basis.begin_chain(self.generator, min(self.block, basis.free // 2))
        while self._left > 0 and basis.free:
            length = basis.advance(*basis.newest[: self._left])
            self.overlooked = min(1.0, sum(map(basis.overlooked, ends)))
            ritz = basis.ritz()
            goal = self.goal(ritz)
            best = self.wanted.best(ritz.values)
            slack = (self.accuracy * known.abs()).clamp_min(goal)
            found = bool((self._distance(ritz.values[best], known) > slack).any())
            settled = length == 0.0 or self.overlooked <= OVERLOOKED or self._chain_settled(goal)
            if found or settled:
                return not found and self._good(ritz, best)
        return True

    def _wanted_values(self) -> Tensor:
        """Return the wanted Ritz values, the best first."""
        values = self.basis.ritz().values
        return values[self.wanted.best(values)]

    def _distance(self, values: Tensor, known: Tensor) -> Tensor:
        if self.wanted.which == "magnitude":
            values, known = values.abs(), known.abs()
        return (values - known).abs()

    def _chain_settled(self, goal: float) -> bool:
        chain = self.basis.chain_ritz()
        return bool((chain.residuals[self.wanted.extremes(chain.values)] <= goal).all())


def _certify(search: _Search, before: Cost, seed: int, plan: Room, recompute: bool) -> Eigenpairs:
    """Turn the wanted Ritz pairs into results, checked with products that nothing else used."""
    basis, wanted = search.basis, search.wanted
    ritz = basis.ritz()
    norm, best = float(ritz.values.abs().max()), wanted.best(ritz.values)
    values, residuals, rounding = ritz.values[best], ritz.residuals[best], basis.rounding
    if not recompute:
        rounding = max(rounding, basis.mismatch(ritz, best, search.generator))
    accurate = search.accurate(ritz, best)
    basis.restart(ritz, best)
    vectors = basis.release(len(best))
    if recompute:
        values, residuals = rayleigh_quotients(search.operator, vectors, plan.memory)
        order = wanted.best(values)
        values, residuals, accurate = values[order], residuals[order], accurate[order]
        vectors = vectors if bool((order.diff() > 0).all()) else vectors[:, order]
    radii = residuals + rounding
    converged = (residuals <= max(search.tol * norm, rounding)) | accurate
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        intervals=torch.stack([values - radii, values + radii], dim=1),
        converged=converged,
        overlooked=search.overlooked if bool(converged.all()) else 1.0,
        rounding=rounding,
        tol=search.tol,
        products=basis.products + (len(best) if recompute else 1),
        cost=search.operator.cost - before,
        which=wanted.which,
        seed=seed,
        memory=plan.bytes,
    )
