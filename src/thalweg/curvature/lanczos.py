r"""Lanczos chains in lockstep, and what a chain tells of its start's spectral measure.

From a start $q_1$ the Lanczos method makes an orthonormal basis in which the operator is
tridiagonal. That small matrix $T$ knows the start's *spectral measure*,
$\mu(B) = \|1_B(A)\, q_1\|^2$: the eigenvalues of $T$ and the squared first entries of its
eigenvectors integrate every polynomial of degree up to $2m - 1$ exactly (Gauss quadrature).
Several chains are advanced together, by one product of all of them per step, because that
is one sweep over the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from thalweg.curvature.operator import LinearOperator, finite_matmat
from thalweg.curvature.sums import lengths, own_products
from thalweg.landscape.memory import parse_bytes

__all__ = ["Restriction", "Tridiagonal", "lockstep", "most_chains"]

Restriction = Callable[[Tensor], Tensor]

_FAR = 1e3
_NEAR = 1e-9
_WORK = 7
"""Vectors that one chain takes while it advances, beside its basis."""


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    r"""What one chain of $m$ Lanczos steps leaves: a tridiagonal matrix, and its measure.

    Attributes:
        diagonal: $\alpha_1 \dots \alpha_m$, `(steps,)`, float64.
        off: $\beta_1 \dots \beta_m$, `(steps,)`; the last one is the norm of what is left, 0
            where the chain ended in an invariant subspace, so that its measure is exact.
        mass: $\|P z\|^2$ of the start $z$; the measure itself has mass one.
        rounding: The error of one product, estimated from the operator's own asymmetry.
            Every bracket below allows the eigenvalues to be off by that much.
        full: Whether the basis was kept orthonormal. If not (too little memory), converged
            eigenvalues appear more than once, with weights that add up to the right one, and
            brackets hold for a measure that is spread by a little more than `rounding`
            (Greenbaum 1989).

    Example:
        >>> import torch
        >>> one = torch.ones(2, dtype=torch.float64)
        >>> chain = Tridiagonal(diagonal=1.5 * one, off=torch.tensor([0.5, 0.0]).double())
        >>> chain.nodes.tolist(), chain.weights.tolist()
        ([1.0, 2.0], [0.5, 0.5])
        >>> chain.mass_below(1.5)
        (0.5, 0.5)
    """

    diagonal: Float[Tensor, " steps"]
    off: Float[Tensor, " steps"]
    mass: float = 1.0
    rounding: float = 0.0
    full: bool = True

    @property
    def steps(self) -> int:
        """How many steps the chain took."""
        return len(self.diagonal)

    @property
    def exact(self) -> bool:
        """Whether the chain ended in an invariant subspace, so that the measure is known."""
        return float(self.off[-1]) == 0.0

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.diagonal.numpy(), self.off.numpy()

    @cached_property
    def _gauss(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return the nodes, their weights, and the last entries of the eigenvectors."""
        diagonal, off = self._arrays
        nodes, vectors = np.linalg.eigh(_matrix(diagonal, off[:-1]))
        return nodes, vectors[0] ** 2, vectors[-1]

    @cached_property
    def nodes(self) -> Float[Tensor, " steps"]:
        """The nodes of the Gauss quadrature, ascending: the Ritz values."""
        return torch.from_numpy(self._gauss[0])

    @cached_property
    def weights(self) -> Float[Tensor, " steps"]:
        """The weights of the Gauss quadrature; they add up to one."""
        return torch.from_numpy(self._gauss[1])

    @cached_property
    def residuals(self) -> Float[Tensor, " steps"]:
        """How far from an eigenvalue each node can be, rounding apart."""
        return torch.from_numpy(self._arrays[1][-1] * np.abs(self._gauss[2]))

    @property
    def _scale(self) -> float:
        diagonal, off = self._arrays
        return float(np.abs(diagonal).max() + 2 * np.abs(off).max())

    def shortened(self, steps: int) -> Tridiagonal:
        """Return the same chain as it was after fewer steps.

        Raises:
            ValueError: If the chain never had so many or so few.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(f"the chain has {self.steps} steps and cannot be cut to {steps}")
        return Tridiagonal(
            self.diagonal[:steps], self.off[:steps], self.mass, self.rounding, self.full
        )

    def rule_through(self, points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        r"""Return the quadrature rules that have a node at each of `points`.

        $T$ with one more row, whose diagonal entry $x + \beta_m^2\, e_m^\top (T - x)^{-1} e_m$
        makes $x$ an eigenvalue. The rule is exact for polynomials of degree $2m$ (Gauss-Radau
        where $x$ lies outside the spectrum). Where $x$ is a node already, and after a
        breakdown, it is the Gauss rule, padded with a node of weight zero.

        Args:
            points: Where, `(k,)`.

        Returns:
            The nodes and the weights, `(k, steps + 1)` each, in ascending order of nodes.

        References:
            G. Golub (1973), Some modified matrix eigenvalue problems, SIAM Review 15.
        """
        at = np.atleast_1d(np.asarray(points, dtype=np.float64))
        diagonal, off = self._arrays
        gauss, weights, last = self._gauss
        gaps = gauss - at[:, None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            corner = at + ((off[-1] * last) ** 2 / gaps).sum(1)
        far = 1e4 * _FAR * max(self._scale, float(np.abs(at).max(initial=0.0)))
        near = ~(np.abs(corner) <= far) | self.exact
        matrices = np.zeros((len(at), self.steps + 1, self.steps + 1))
        matrices[:, :-1, :-1] = _matrix(diagonal, off[:-1])
        matrices[:, -1, -2] = matrices[:, -2, -1] = off[-1]
        matrices[:, -1, -1] = np.where(near, 0.0, corner)
        nodes = np.concatenate([np.tile(gauss, (len(at), 1)), np.full((len(at), 1), np.inf)], 1)
        shares = np.concatenate([np.tile(weights, (len(at), 1)), np.zeros((len(at), 1))], 1)
        if not near.all():
            values, vectors = np.linalg.eigh(matrices[~near])
            nodes[~near], shares[~near] = values, vectors[:, 0] ** 2
        return nodes, shares

    def brackets(self, points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        r"""Return lower and upper bounds of $\mu((-\infty, x))$ at many points at once.

        Args:
            points: The points $x$, `(k,)`.

        Returns:
            The bounds, `(k,)` each; see `mass_below`.
        """
        at = np.atleast_1d(np.asarray(points, dtype=np.float64))
        gauss, weights, _ = self._gauss
        if self.exact:
            lower = (weights * (gauss < (at - self._blur)[:, None])).sum(1)
            upper = (weights * (gauss <= (at + self._blur)[:, None])).sum(1)
        else:
            lower, upper = self._sum_before(at, -1), self._sum_before(at, 1)
        return np.clip(lower, 0, 1), np.clip(upper, 0, 1)

    @property
    def _blur(self) -> float:
        """How far a node may be off: the operator's rounding, and that of this file."""
        return self.rounding + 32 * float(np.finfo(np.float64).eps) * self._scale

    def _sum_before(self, points: NDArray[np.float64], side: int) -> NDArray[np.float64]:
        """Add up the weights left of a node (`side` -1), or up to and including it (1).

        The node is the point, moved outwards where it is so near to a Gauss node that the
        rule through it cannot be computed well; the bounds are monotone, so they still hold.
        """
        gauss, _, last = self._gauss
        zone = (self._arrays[1][-1] * last) ** 2 / (_FAR * self._scale)
        zone = np.maximum(zone, _NEAR * self._scale)
        moved = points + side * self._blur
        for _ in range(self.steps):
            inside = np.abs(gauss - moved[:, None]) < zone
            if not inside.any():
                break
            ends = np.where(inside, side * gauss + zone, -np.inf).max(1)
            moved = np.where(inside.any(1), side * np.maximum(ends, side * moved), moved)
        _, shares = self.rule_through(moved)
        sums = np.concatenate([np.zeros((len(moved), 1)), np.cumsum(shares, 1)], 1)
        index = np.searchsorted(gauss, moved) + (side > 0)
        return np.asarray(np.take_along_axis(sums, index[:, None], 1)[:, 0])

    def mass_below(self, x: float) -> tuple[float, float]:
        r"""Bracket the mass $\mu((-\infty, x))$ of the start's own spectral measure.

        Of the rule with a node at $x$, the weights left of $x$ are a lower bound and those up
        to and including $x$ an upper one, whatever the rest of the spectrum is (Chebyshev,
        Markov, Stieltjes). No measure with the same moments is left out, so no bracket from
        these products is narrower. After a breakdown the two differ only by what sits at $x$
        up to rounding.

        Args:
            x: Where.

        Returns:
            The lower and the upper bound.

        References:
            N. Akhiezer (1965), The classical moment problem, §2.5; T. Chen, T. Trogdon & S.
            Ubaru (2021), arXiv:2105.06595, §3.
        """
        lower, upper = self.brackets([x])
        return float(lower[0]), float(upper[0])

    def largest_atom(self, x: float) -> float:
        r"""Return the Christoffel number at `x`: no eigenvalue there has more of the start.

        $$\lambda_m(x) = \Big(\sum_{k=0}^m p_k(x)^2\Big)^{-1}$$

        with the orthonormal polynomials $p_k$ of the measure, by their recurrence, rescaled
        where it would overflow. The largest over the points that rounding cannot tell from
        `x` is returned.

        Args:
            x: Where.

        Returns:
            The bound, between 0 and 1.
        """
        blur = self._blur
        nodes, weights, _ = self._gauss
        here = float(weights[np.abs(nodes - x) <= 2 * blur].sum())
        if self.exact:
            return min(1.0, here)
        return min(1.0, max(here, *(self._christoffel(y) for y in (x - blur, x, x + blur))))

    def _christoffel(self, x: float) -> float:
        diagonal, off = (part.tolist() for part in self._arrays)
        before, now, total, exponent = 0.0, 1.0, 1.0, 0
        left = 0.0
        for alpha, beta in zip(diagonal, off, strict=True):
            before, now = now, ((x - alpha) * now - left * before) / beta
            left = beta
            shift = max(0, math.frexp(now)[1])
            if shift > 200:
                before, now = math.ldexp(before, -shift), math.ldexp(now, -shift)
                total = math.ldexp(total, -2 * shift) if shift < 500 else 0.0
                exponent += 2 * shift
            total += now * now
        return math.ldexp(1 / total, -exponent)


def _matrix(diagonal: NDArray[np.float64], off: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))


def lockstep(
    operator: LinearOperator,
    starts: Float[Tensor, "dim chains"],
    steps: int,
    *,
    restrict: Restriction | None = None,
    memory: int | str = "2 GiB",
    scale: float = 0.0,
) -> list[Tridiagonal]:
    r"""Run one Lanczos chain from every column of `starts`, all of them in one product a step.

    The chains are independent: each is the Lanczos process of $P A P$ from its own start,
    orthogonalised twice against its own basis (or only against the last two vectors where
    the bases do not fit into `memory`; the results say so in `full`). A chain whose start
    lies in an invariant subspace ends there, and the others go on without it: what is left
    of a product at the level of rounding is not made a direction, which is where phantom
    eigenvalues come from.

    Args:
        operator: A symmetric operator on $\mathbb{R}^D$.
        starts: The starts, `(dim, chains)`, of any length but zero.
        steps: How many steps each chain takes at most.
        restrict: A symmetric projector $P$, applied to `(dim, chains)` columns at once and
            to each column alone (chains may have different ones): off some directions, or
            onto the coordinates of a layer.
        memory: What the bases may take, in bytes or as text such as ``"2 GiB"``.
        scale: A known lower bound of the operator's norm, by which rounding is judged where
            the chains see little of it, such as when its largest eigenvalues are projected
            off.

    Returns:
        One tridiagonal matrix for every column.

    Raises:
        ValueError: If `steps` is not positive, a start is zero, not finite, or of the wrong
            shape, the chains do not fit into `memory`, or the operator is not symmetric.
        FloatingPointError: If a product is not finite.

    References:
        C. Lanczos (1950); G. Golub & G. Meurant (2010), Matrices, moments and quadrature;
        L. Giraud & J. Langou (2003) for "twice is enough".

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([1.0, 1.0, 3.0]).double()))
        >>> (chain,) = lockstep(A, torch.ones(3, 1, dtype=torch.float64), steps=3)
        >>> chain.nodes.tolist(), chain.weights.tolist(), chain.exact
        ([1.0, 3.0], [0.66666666, 0.33333333], True)
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: a chain takes at least one step")
    if starts.ndim != 2 or starts.shape[0] != operator.dim or not starts.shape[1]:
        raise ValueError(
            f"starts has shape {tuple(starts.shape)}; one chain per column of a "
            f"{operator.dim} x {operator.dim} operator is shape ({operator.dim}, chains)"
        )
    chains = _Chains(operator, starts, min(steps, operator.dim), restrict, parse_bytes(memory))
    chains.scale = scale
    while chains.running:
        chains.advance()
    return chains.results()


class _Chains:
    """The state of all chains: their bases, and the coefficients so far."""

    def __init__(
        self,
        operator: LinearOperator,
        starts: Tensor,
        steps: int,
        restrict: Restriction | None,
        memory: int,
    ) -> None:
        self.operator, self.steps = operator, steps
        self._restriction = restrict
        count, dim = starts.shape[1], operator.dim
        self.full, dtype = _plan(operator, count, steps, memory)
        rows = starts.detach().to(operator.device, dtype).T.contiguous()
        rows = self._restrict(rows)
        self.masses = lengths(rows).square()
        bad = ~(torch.isfinite(self.masses) & (self.masses > 0))
        if bool(bad.any()):
            raise ValueError(
                f"start {int(bad.nonzero()[0])} of {count} is zero (after the restriction, if "
                f"there is one) or not finite, and no chain can begin there"
            )
        self.current = rows / self.masses.sqrt().to(rows)[:, None]
        self.basis = torch.zeros(
            count, steps if self.full else 2, dim, dtype=dtype, device=operator.device
        )
        self.diagonal = torch.zeros(count, steps, dtype=torch.float64)
        self.off = torch.zeros(count, steps, dtype=torch.float64)
        self.lengths = torch.zeros(count, dtype=torch.int64)
        self.active = torch.arange(count)
        self.step = 0
        self.scale, self._mirror, self._mirrored = 0.0, 0.0, 0

    @property
    def running(self) -> bool:
        """Whether some chain has not ended."""
        return len(self.active) > 0 and self.step < self.steps

    @property
    def rounding(self) -> float:
        """The error of one product, as `KrylovBasis.rounding` has it, over all chains."""
        unit = torch.finfo(self.operator.dtype).eps
        seen = math.sqrt(self._mirror / self._mirrored) if self._mirrored else 0.0
        return 2 * math.sqrt(self.operator.dim) * seen + 16 * unit * self.scale

    def advance(self) -> None:
        """Take one step with every chain that has not ended, in one product."""
        place = self.step if self.full else self.step % 2
        self.basis[:, place] = self.current
        where = self.active.to(self.current.device)
        product = torch.zeros_like(self.current)
        product[where] = finite_matmat(self.operator, self.current[where].T.contiguous()).T
        norms = lengths(product)
        self.scale = max(self.scale, float(norms.max()))
        rest, first = self._orthogonalise(self._restrict(product))
        rest, second = self._orthogonalise(self._restrict(rest))
        column = (first + second).to("cpu", torch.float64)
        self._compare(column, place)
        self.diagonal[self.active, self.step] = column[self.active, place]
        left = lengths(rest)
        self.step += 1
        self.lengths[self.active] = self.step
        ended = left <= self.rounding
        if self.step == self.operator.dim:
            ended[:] = True
        left[ended] = 0.0
        self.off[self.active, self.step - 1] = left[self.active]
        self.active = self.active[~ended[self.active]]
        left[ended] = math.inf  # so that an ended chain goes on as a row of zeros
        self.current = rest / left.to(rest.device, rest.dtype)[:, None]

    def _orthogonalise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        basis = self.basis[:, : self.step + 1]
        parts = own_products(basis, rows)
        removed = torch.bmm(parts[:, None, :].to(rows), basis)[:, 0]
        return removed.neg_().add_(rows), parts

    def _restrict(self, rows: Tensor) -> Tensor:
        return rows if self._restriction is None else self._restriction(rows.T).T

    def _compare(self, column: Tensor, place: int) -> None:
        """Use the symmetry of the operator to see how exact its products are."""
        if not self.step:
            return
        gaps = column[self.active].clone()
        gaps[:, place - 1] -= self.off[self.active, self.step - 1]
        kept = torch.arange(gaps.shape[1]) != place % gaps.shape[1]
        gaps = gaps[:, kept]
        self._mirror += float(gaps.square().sum())
        self._mirrored += gaps.numel()
        worst = float(gaps.abs().max())
        if worst > 30 * math.sqrt(torch.finfo(self.operator.dtype).eps) * self.scale:
            raise ValueError(
                f"{self.operator!r} is not symmetric, or gives different products at "
                f"different times: x.(A y) and y.(A x) differ by {worst:.3g}, where A has a "
                f"norm of at least {self.scale:.3g}; look for dropout, shuffled data or a "
                f"wrong product"
            )

    def results(self) -> list[Tridiagonal]:
        """Return the chains as they ended."""
        return [
            Tridiagonal(
                self.diagonal[i, :length].clone(),
                self.off[i, :length].clone(),
                float(self.masses[i]),
                self.rounding,
                self.full,
            )
            for i, length in enumerate(self.lengths.tolist())
        ]


def most_chains(operator: LinearOperator, memory: int | str) -> int:
    """Return how many chains fit into the memory at once, orthogonalised locally.

    Raises:
        ValueError: If not even one does.
    """
    each = (2 + _WORK) * operator.dim * operator.dtype.itemsize
    if (fits := parse_bytes(memory) // each) < 1:
        raise ValueError(
            f"memory={memory!r} cannot hold one Lanczos chain of {operator!r}, which takes "
            f"{each / 2**20:.4g} MiB; raise it"
        )
    return fits


def _plan(
    operator: LinearOperator, count: int, steps: int, memory: int
) -> tuple[bool, torch.dtype]:
    """Return whether whole bases are kept, and the dtype: float64 where that fits."""
    wide = torch.float64 if operator.device.type != "mps" else operator.dtype
    for full, kept in ((True, steps), (False, 2)):
        for dtype in (wide, operator.dtype):
            if (kept + _WORK) * count * operator.dim * dtype.itemsize <= memory:
                return full, dtype
    raise ValueError(
        f"memory of {memory / 2**20:.4g} MiB holds {most_chains(operator, memory)} chains of "
        f"{operator!r} at once, not {count}; raise it, or run fewer"
    )
