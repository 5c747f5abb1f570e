"""Eigenvalues nearest zero, returned only across a gap that a Lanczos chain certifies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from scipy.special import betaincinv
from torch import Tensor

from thalweg.curvature.krylov import KrylovBasis, rayleigh_quotients
from thalweg.curvature.operator import LinearOperator
from thalweg.curvature.room import room
from thalweg.estimate import Cost, Verdict
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["NearestZero", "nearest_zero"]

_METHOD = "Lanczos with two Gram-Schmidt passes; gaps by the Christoffel function of its start"
_HALVINGS = 50


@dataclass(frozen=True, eq=False)
class NearestZero:
    r"""The eigenvalues nearest zero on one side, as far as they could be told.

    Attributes:
        verdict: Yes: these are the `k` nearest. No: there are fewer than `k` on this side.
            Unresolved: the gaps were certified for those returned only, and why.
        values: Rayleigh quotients, `(found,)`, float64, the nearest first.
        vectors: Unit vectors, `(dim, found)`.
        residuals: $\|A y_i - \theta_i y_i\|$, recomputed from the vectors.
        intervals: `(found, 2)`; each row, $\theta_i \pm (r_i + \text{rounding})$, holds an
            eigenvalue.
        gap: The interval next to zero in which there is no eigenvalue, with an error
            probability of at most `risk`; None if not resolved. Its outer end is infinite
            if there is none on this side at all.
        side: ``"above"`` or ``"below"``.
        resolution: What is this near to zero counts as zero.
        risk: The error probability of all gaps together.
        rounding: The error of one product, estimated from the operator's own asymmetry.
        products: How many products it took, those of the residuals included.
        cost: What it took.
        seed: The seed that reproduces it.
        memory: The most tensor bytes that the search planned to hold.
        method: How it was computed.
    """

    verdict: Verdict
    values: Float[Tensor, " found"]
    vectors: Float[Tensor, "dim found"]
    residuals: Float[Tensor, " found"]
    intervals: Float[Tensor, "found 2"]
    gap: tuple[float, float] | None
    side: str
    resolution: float
    risk: float
    rounding: float
    products: int
    cost: Cost
    seed: int
    memory: int
    method: str = _METHOD

    def __str__(self) -> str:
        """Return the verdict, the gap and a table."""
        lines = [f"nearest zero from {self.side}: {self.verdict}, {self.cost}"]
        if self.gap is not None:
            low, high = self.gap
            lines.append(
                f"no eigenvalue between {low:.4g} and {high:.4g} "
                f"(error probability <= {self.risk:.0e})"
            )
        radii = (self.intervals[:, 1] - self.intervals[:, 0]) / 2
        for i, (value, radius) in enumerate(zip(self.values, radii, strict=True), start=1):
            lines.append(f"{i:>4}  {float(value):>15.9g}  ± {float(radius):.2g}")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the same with the verdict in colour."""
        head, _, rest = str(self).replace("[", chr(92) + "[").partition("\n")
        colour = {"yes": "green", "no": "green", "unresolved": "yellow"}[self.verdict.answer]
        return f"[{colour}]{head}[/{colour}]" + (f"\n{rest}" if rest else "")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything but the vectors."""
        gap = None
        if self.gap is not None:
            gap = [end if math.isfinite(end) else repr(end) for end in self.gap]
        return {
            "type": "nearest zero",
            "verdict": self.verdict.to_json(),
            "values": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "intervals": self.intervals.tolist(),
            "gap": gap,
            "side": self.side,
            "resolution": self.resolution,
            "risk": self.risk,
            "rounding": self.rounding,
            "products": self.products,
            "cost": self.cost.to_json(),
            "seed": self.seed,
            "memory": self.memory,
            "method": self.method,
        }


def nearest_zero(
    operator: LinearOperator,
    k: int = 1,
    *,
    side: str = "above",
    resolution: float | None = None,
    tol: float = 1e-6,
    risk: float = 1e-4,
    max_products: int | None = None,
    memory: int | str = "1 GiB",
    seed: Seed = None,
) -> NearestZero:
    r"""Return the `k` distinct eigenvalues nearest zero on one side, if gaps set them apart.

    A Lanczos chain of $m$ steps from a random unit vector $q$, with norms $\beta_i$ and Ritz
    values $\theta_i$, bounds the weight of every eigenvector $u$ by that of its eigenvalue
    $\lambda$,

    $$|\langle q, u \rangle| \le \prod_{i=1}^m \frac{\beta_i}{|\lambda - \theta_i|},$$

    and the logarithm of the right-hand side is convex between Ritz values, so it is largest
    at the ends of an interval. All $D$ squared weights of a uniformly random $q$ are above
    the $\text{risk} / D$ quantile of $\mathrm{Beta}(1/2, (D - 1)/2)$, but for a probability
    of `risk`. So there is no eigenvalue where the bound lies below that: a certified gap.
    Where a bulk of eigenvalues reaches zero no gap can be certified, and the answer is
    *unresolved*. Copies of a repeated eigenvalue are not told apart.

    Args:
        operator: A symmetric operator on $\mathbb{R}^D$, such as ``Hessian(land, theta)``.
        k: How many.
        side: ``"above"`` zero or ``"below"``.
        resolution: What is this near to zero counts as zero; by default 1e-5 of the norm.
        tol: How narrow a gap's blurred edges must be, as a fraction of the norm.
        risk: The probability that a gap holds an eigenvalue after all.
        max_products: How many products may be spent; by default `max(300, 30 * k)`.
        memory: The cap on the tensor bytes of the search. There is no restart within it.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The eigenvalues across certified gaps, each with its own interval, and the verdict.

    Raises:
        ValueError: If an argument is out of range, `memory` is too little, or the operator is
            not symmetric.
        FloatingPointError: If a product is not finite.

    References:
        N. Akhiezer (1965), The classical moment problem (the Christoffel function bounds a
        mass); J. Kuczyński & H. Woźniakowski (1992) for random starts.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> values = torch.tensor([-1.0, 0.0, 0.0, 0.25, *range(1, 30)], dtype=torch.float64)
        >>> found = nearest_zero(MatrixOperator(torch.diag(values)), seed=0)
        >>> found.verdict.yes, round(float(found.values[0]), 6)
        (True, 0.25)
    """
    _refuse(operator, k, side, resolution, tol, risk)
    budget = max(300, 30 * k) if max_products is None else max_products
    if budget < k + 1:
        raise ValueError(f"max_products={budget} is too few for k={k}: take at least {k + 1}")
    before = operator.cost
    generator, number = make_generator(seed)
    plan = room(operator, k, memory=memory, enough=budget)
    basis = KrylovBasis(operator, plan.vectors, plan.dtype)
    gaps = _Gaps(basis, k, 1 if side == "above" else -1, resolution, tol, risk)
    gaps.search(generator, budget - k)
    rounding, resolved = basis.rounding, len(gaps.chosen)
    vectors = gaps.vectors()
    values, residuals = rayleigh_quotients(operator, vectors, plan.memory)
    radii = residuals + rounding
    return NearestZero(
        verdict=Verdict(gaps.answer, gaps.reason),
        values=values,
        vectors=vectors,
        residuals=residuals,
        intervals=torch.stack([values - radii, values + radii], dim=1),
        gap=gaps.next_to_zero,
        side=side,
        resolution=gaps.resolution,
        risk=risk,
        rounding=rounding,
        products=basis.products + resolved,
        cost=operator.cost - before,
        seed=number,
        memory=plan.bytes,
    )


def _refuse(
    operator: LinearOperator,
    k: int,
    side: str,
    resolution: float | None,
    tol: float,
    risk: float,
) -> None:
    """Say what is wrong with the arguments."""
    if not 1 <= k <= operator.dim:
        raise ValueError(
            f"k={k} eigenvalues of a {operator.dim} x {operator.dim} operator: k must lie "
            f"between 1 and {operator.dim}"
        )
    if side not in ("above", "below"):
        raise ValueError(f"side must be 'above' or 'below', not {side!r}")
    if resolution is not None and not 0 <= resolution < math.inf:
        raise ValueError(f"resolution must be a distance from zero, not {resolution!r}")
    if not tol >= 0:
        raise ValueError(f"tol must not be negative or NaN, got {tol}")
    if not 0 < risk < 1:
        raise ValueError(f"risk must lie strictly between 0 and 1, not {risk!r}")


class _Gaps:
    """A chain, and the gaps that it certifies; seen from zero towards the side in question."""

    def __init__(
        self,
        basis: KrylovBasis,
        k: int,
        sign: int,
        resolution: float | None,
        tol: float,
        risk: float,
    ) -> None:
        self.basis, self.k, self.sign, self.tol = basis, k, sign, tol
        self.asked, self.resolution = resolution, resolution or 0.0
        dim = basis.operator.dim
        weight = float(betaincinv(0.5, (dim - 1) / 2, risk / dim)) if dim > 1 else 1.0
        self.least = 0.5 * math.log(weight)
        self.answer: Literal["yes", "no", "unresolved"] = "unresolved"
        self.reason = ""
        self.chosen = torch.empty(0, dtype=torch.long)
        self.next_to_zero: tuple[float, float] | None = None

    def search(self, generator: torch.Generator, budget: int) -> None:
        """Grow the chain until the answer is certain, or products or memory run out."""
        basis, length = self.basis, math.inf
        basis.begin_chain(generator)
        while True:
            for _ in range(1 + basis.size // 20):
                if not length or basis.products >= budget or not basis.free:
                    break
                length = basis.advance()
            self._look()
            if self.answer != "unresolved" or not length:
                return
            if basis.products >= budget or not basis.free:
                short = "max_products" if basis.products >= budget else "memory"
                self.reason += f" (raise {short}= or resolution=)"
                return

    def vectors(self) -> Tensor:
        """Return the vectors of the resolved values, and free the basis."""
        self.basis.restart(self.basis.ritz(), self.chosen)
        return self.basis.release(len(self.chosen))

    def _look(self) -> None:
        """See which of the Ritz values the present chain sets apart."""
        ritz, rounding = self.basis.ritz(), self.basis.rounding
        order = (self.sign * ritz.values).argsort()
        nodes, residuals = (self.sign * ritz.values)[order], ritz.residuals[order]
        norm = float(nodes.abs().max())
        slack = max(self.tol * norm, 4 * rounding)
        if self.asked is None:
            self.resolution = max(1e-5 * norm, 4 * rounding)
        first, chosen = int((nodes <= self.resolution).sum()), list[int]()
        self.next_to_zero, self.answer = None, "unresolved"
        for i in range(first, len(nodes) + 1):
            if len(chosen) == self.k or (i < len(nodes) and float(residuals[i]) > slack):
                break
            low, high = self._gap(nodes, i)
            inner = float(nodes[i - 1]) + slack if chosen else self.resolution - rounding
            if chosen and i < len(nodes) and float(nodes[i]) <= inner + slack:
                continue  # a further copy, which rounding let the chain see
            if low > inner:
                break
            if i == len(nodes):
                self.answer = "no"
            elif high < float(nodes[i]) - slack:
                break
            if not chosen:
                ends = (self.sign * self.resolution, self.sign * (high - rounding))
                self.next_to_zero = (min(ends), max(ends))
            if i < len(nodes):
                chosen.append(i)
        found = len(chosen)
        self.chosen = order[chosen]
        self.answer = "yes" if found == self.k else self.answer
        self._explain(nodes, first, found)

    def _gap(self, nodes: Tensor, i: int) -> tuple[float, float]:
        """Return the part of the interval before the `i`-th node that holds no eigenvalue."""
        left = float(nodes[i - 1]) if i else -math.inf
        right = float(nodes[i]) if i < len(nodes) else math.inf
        norms = self.basis.chain()[1]
        if norms[-1] <= self.basis.rounding:
            return left, right
        floor = sum(map(math.log, norms)) - self.least
        peak = _peak(nodes, left, right)
        if _height(nodes, peak) < floor:
            return math.inf, -math.inf
        low = _crossing(nodes, left, peak, floor) if math.isfinite(left) else left
        high = _crossing(nodes, right, peak, floor) if math.isfinite(right) else right
        return low, high

    def _explain(self, nodes: Tensor, first: int, found: int) -> None:
        where = "above" if self.sign > 0 else "below"
        edge = f"{self.sign * self.resolution:.3g}"
        if self.answer == "yes":
            self.reason = f"the {self.k} nearest, across gaps that were certified"
        elif self.answer == "no":
            self.reason = f"there are {found} {where} {edge}, not {self.k}"
        elif first == len(nodes):
            self.reason = f"nothing was seen {where} {edge}, but it was not excluded"
        else:
            near = f"{self.sign * float(nodes[min(first + found, len(nodes) - 1)]):.3g}"
            self.reason = (
                f"{found} of {self.k} were set apart; the gap before the next, near {near}, was "
                f"not certified after {self.basis.size} steps: a bulk may reach there"
            )


def _height(nodes: Tensor, point: float) -> float:
    """Return the logarithm of the distance's product over the nodes: concave between them."""
    return float((point - nodes).abs().log().sum())


def _peak(nodes: Tensor, left: float, right: float) -> float:
    """Return where the height between two nodes is largest; far out beyond the last."""
    span = float(nodes[-1] - nodes[0]) + float(nodes.abs().max())
    if not math.isfinite(left):
        return right - 4 * span
    if not math.isfinite(right):
        return left + 4 * span
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        rising = float((1 / (middle - nodes)).sum()) > 0
        left, right = (middle, right) if rising else (left, middle)
    return (left + right) / 2


def _crossing(nodes: Tensor, node: float, peak: float, floor: float) -> float:
    """Return the point between a node and the peak from which on the height reaches `floor`."""
    outside, inside = node, peak
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        enough = _height(nodes, middle) >= floor
        outside, inside = (outside, middle) if enough else (middle, inside)
    return inside
