r"""Sums of a function over a spectrum, from random starts whose law is known.

A start $u$, uniform on the unit sphere of an $N$-dimensional invariant subspace, has the
squared components $u_i^2$ in the eigenvectors there, which are Dirichlet distributed with
parameters ½ whatever the eigenvectors are. So the law of a sample $N u^\top f(A) u$ depends
on the spectrum alone, and the spectrum is what the same chains have measured:

$$\mathbb{E} = \sum_i f_i, \qquad \operatorname{Var} = \frac{2N^2}{N + 2}\, \overline{(f -
\bar f)^2}, \qquad \kappa_3 = \frac{8 N^3}{(N + 2)(N + 4)}\, \overline{(f - \bar f)^3}.$$

That is why starts are projected Gaussians and not random signs, whose variance hangs on the
eigenvectors: the intervals below need no sample variance of ten numbers, see the skewness
that ten numbers hide, and a constant $f$ is integrated without error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from thalweg.curvature.lanczos import Tridiagonal
from thalweg.estimate import Cost, Estimate

__all__ = ["Spectrum", "dimension_interval", "pooled", "sum_interval"]

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_LEAST_SKEWNESS = 1e-4
_MOST_SKEWNESS = 4.0
"""In units of what one lone eigenvalue gives; a node of less weight than that is no eigenvalue."""


def sum_interval(
    mean: Array, second: Array, third: Array, free: int, probes: int, level: float
) -> tuple[Array, Array, Array]:
    r"""Return an interval for the mean $\bar f$ over `free` eigenvalues, and its error.

    The union of the normal interval, with the variance above, and of the shifted gamma
    distribution that has this variance and skewness, read as a distribution of the ratio of
    estimate to truth: exact where $f$ is the indicator of few eigenvalues, whose samples are
    chi-squared.

    Args:
        mean: $\bar f$, any shape, as measured over all probes.
        second: The mean of $(f - \bar f)^2$ over the measured spectrum.
        third: The mean of $(f - \bar f)^3$.
        free: The number of eigenvalues, $N$.
        probes: How many independent starts.
        level: Nominal coverage.

    Returns:
        The lower end, the upper end and the standard error, each in the shape of `mean`.
    """
    error = np.sqrt(2 * second / ((free + 2) * probes))
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = 8 * third / ((free + 2) * (free + 4)) / (probes**2 * error**3)
    skewness = np.where(np.isfinite(skewness), skewness, 0.0)
    most = _MOST_SKEWNESS * math.sqrt(8 / probes)
    size = np.clip(np.abs(skewness), _LEAST_SKEWNESS, most)
    shape, arm = 4 / size**2, 2 * error / size
    tail = (1 - level) / 2
    inner = arm * (shape / stats.gamma.ppf(1 - tail, shape) - 1)
    outer = arm * (shape / stats.gamma.ppf(tail, shape) - 1)
    plain = float(stats.norm.ppf(1 - tail)) * error
    below = np.where(skewness > 0, -inner, outer)
    above = np.where(skewness > 0, outer, -inner)
    return mean - np.maximum(plain, below), mean + np.maximum(plain, above), error


def dimension_interval(
    lower: Array, upper: Array, free: int, probes: int, level: float
) -> tuple[Array, Array]:
    r"""Return an interval for the dimension of a subspace from the starts' mean share in it.

    The share of a uniform unit vector in $k$ of $N$ dimensions is Beta distributed with
    parameters $k/2, (N - k)/2$, so the mean of $m$ of them nearly with $mk/2, m(N - k)/2$;
    the dimensions that make neither tail of the measured share smaller than it may be are
    the interval (Clopper & Pearson).

    Args:
        lower: What the mean share is at least, any shape.
        upper: What it is at most.
        free: $N$.
        probes: How many independent starts.
        level: Nominal coverage.

    Returns:
        The lower and the upper end, real numbers between 0 and `free`.
    """
    tail = (1 - level) / 2

    def solve(share: Array, wanted: float) -> Array:
        low, high = np.zeros_like(share), np.full_like(share, free)
        for _ in range(60):
            middle = (low + high) / 2
            chance = special.betainc(probes * middle / 2, probes * (free - middle) / 2, share)
            big = chance < wanted  # the larger the subspace, the rarer so small a share
            low, high = np.where(big, low, middle), np.where(big, middle, high)
        return (low + high) / 2

    most = np.where(upper >= 1, free, np.where(upper <= 0, 0, solve(upper, tail)))
    least = np.where(lower >= 1, free, np.where(lower <= 0, 0, solve(lower, 1 - tail)))
    return least, most


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What is known of a spectrum: some eigenvalues, and chains from random starts off them.

    Attributes:
        atoms: Eigenvalues that are known one by one, `(atoms,)`.
        radii: How far off each may be, `(atoms,)`.
        free: How many eigenvalues there are besides.
        chains: Lanczos chains from independent uniform starts in what is left; empty where
            nothing is.
        dim: The number of all eigenvalues.
        rounding: The error of one product.
        definite: Whether no eigenvalue is negative, by how the operator is made.
        level: Nominal coverage of every interval.
        cost: What it took.
        seed: The seed that reproduces it.
        source: How it was measured, in words.
    """

    atoms: Array
    radii: Array
    free: int
    chains: tuple[Tridiagonal, ...]
    dim: int
    rounding: float
    definite: bool
    level: float
    cost: Cost
    seed: int
    source: str

    @cached_property
    def rule(self) -> tuple[Array, Array]:
        """The nodes and weights of all chains together; the weights add up to one."""
        return pooled(self.chains)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value seen, which no eigenvalue bounds from outside."""
        both = np.concatenate([self.atoms, self.rule[0]])
        return float(both.min()), float(both.max())

    @property
    def top(self) -> float:
        """The largest magnitude seen."""
        return max(map(abs, self.ends))

    @property
    def exact(self) -> bool:
        """Whether every eigenvalue is known one by one."""
        return not self.free

    @cached_property
    def shift(self) -> float:
        """By how much rounding may move an eigenvalue, all of them to the same side."""
        return self.rounding / math.sqrt(self.dim)

    def floor(self) -> float | None:
        """Return a bound below all eigenvalues in the chains, or None where none is known."""
        return -self.shift if self.definite else None

    def total(
        self,
        function: Function,
        *,
        name: str,
        smooth: str = "no",
    ) -> Estimate:
        r"""Return the sum of `function` over all eigenvalues.

        Args:
            function: Of an array of eigenvalues.
            name: What is estimated, for `method`.
            smooth: ``"polynomial"`` where the quadrature is exact; ``"upper"`` or
                ``"lower"`` where its even derivatives have the sign that makes the Gauss
                rule a bound on that side, and its odd ones the other sign, so that the
                rule through `floor` is a bound on the other; else ``"no"``.

        Returns:
            The estimate, whose interval is that of the sampling, widened on either side by
            what the quadrature may have left out and by rounding.
        """
        known = function(self.atoms)
        with np.errstate(all="ignore"):
            ends = np.stack([known, function(self.atoms - self.radii)])
            ends = np.stack([*ends, function(self.atoms + self.radii)])
        low, high = ends.min(0).sum(), ends.max(0).sum()
        value, error, note = float(known.sum()), 0.0, ""
        if self.free:
            nodes, weights = self.rule
            values = function(nodes)
            mean = float(weights @ values)
            below, above, note = self._left_out(function, mean, smooth)
            rounding = self._rounding(function, nodes, weights)
            second, third = (np.array([weights @ (values - mean) ** k]) for k in (2, 3))
            left, right, spread = sum_interval(
                np.array([mean]), second, third, self.free, len(self.chains), self.level
            )
            value += self.free * (mean + (above - below) / 2)
            low += self.free * (float(left[0]) - below - rounding)
            high += self.free * (float(right[0]) + above + rounding)
            error = self.free * float(spread[0])
        return Estimate(
            value=value,
            stderr=error,
            interval=(min(float(low), value), max(float(high), value)),
            samples=len(self.chains) or self.dim,
            cost=self.cost,
            level=self.level,
            method=f"{name}: {self.source}{note}",
            seed=self.seed,
        )

    def _left_out(self, function: Function, mean: float, smooth: str) -> tuple[float, float, str]:
        """Return what the quadrature may be too high and too low by, and how that is known."""
        if smooth == "polynomial" or all(chain.exact for chain in self.chains):
            return 0.0, 0.0, ""
        floor = self.floor()
        if floor is not None and smooth in ("upper", "lower"):
            rules = [chain.rule_through([floor]) for chain in self.chains]
            other = np.mean(
                [
                    weights[0][weights[0] > 0]
                    @ function(np.maximum(nodes[0][weights[0] > 0], floor))
                    for nodes, weights in rules
                ]
            )
            gap = abs(mean - float(other))
            note = f"; quadrature within {self.free * gap:.2g} (certified, Gauss-Radau)"
            return (gap, 0.0, note) if smooth == "upper" else (0.0, gap, note)
        gap = self._change(function, mean)
        note = f"; quadrature within {self.free * gap:.2g} (estimated, from fewer steps)"
        return gap, gap, note

    @cached_property
    def earlier(self) -> list[tuple[Tridiagonal, ...]]:
        """The chains as they were some steps ago, to see what the quadrature still moves by."""
        longest = max(chain.steps for chain in self.chains)
        return [
            tuple(c if c.exact else c.shortened(max(1, c.steps - back)) for c in self.chains)
            for back in (1, 2, 3, 5, 8, 13, 21)
            if back <= max(1, longest // 4)
        ]

    def _change(self, function: Function, mean: float) -> float:
        """Return how far the mean of `function` was from its present value in those steps."""
        gaps = []
        for chains in self.earlier:
            nodes, weights = pooled(chains)
            gaps.append(abs(float(weights @ function(nodes)) - mean))
        return max(gaps)

    def _rounding(self, function: Function, nodes: Array, weights: Array) -> float:
        now = function(nodes)
        sides = [np.abs(function(nodes + side * self.shift) - now) for side in (-1, 1)]
        return float(weights @ np.nan_to_num(np.maximum(*sides)))


def pooled(chains: tuple[Tridiagonal, ...]) -> tuple[Array, Array]:
    """Return the nodes and weights of all chains together, the weights adding up to one."""
    if not chains:
        return np.zeros(0), np.zeros(0)
    nodes = np.concatenate([chain.nodes.numpy() for chain in chains])
    weights = np.concatenate([chain.weights.numpy() for chain in chains])
    return nodes, weights / weights.sum()
