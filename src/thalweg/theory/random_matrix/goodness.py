r"""How far a measured spectrum is from a law, and how far a spectrum of the law would be.

Eigenvalues repel one another, so their empirical distribution strays from the law by
$O(\log n / n)$ and not by $n^{-1/2}$ as independent samples do: the textbook Kolmogorov-Smirnov
p-value would accept nearly anything. Distances are judged here by matrices drawn from the
ensemble at the same size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from thalweg.curvature.density import SpectralDensity
from thalweg.theory.random_matrix.semicircle import Law
from thalweg.theory.random_matrix.tracy_widom import edge_scaling

__all__ = [
    "LEAST_SIZE",
    "Peeled",
    "WeightedSpectrum",
    "ks_distance",
    "law_quantiles",
    "law_rule",
    "peel_outliers",
    "wasserstein_distance",
]

Array = NDArray[np.float64]

LEAST_SIZE = 20  # fewer eigenvalues tell no laws apart

_OUTLIER = 1e-3
_AHEAD = 5
_RULE = 256
_GRID = 1025
_REACH = 5.0


@dataclass(frozen=True, eq=False)
class WeightedSpectrum:
    r"""A spectrum as values with weights: eigenvalues, or the nodes of Lanczos chains.

    Args:
        values: Where, `(k,)`, ascending.
        weights: The share of each, `(k,)`, adding up to one.
        single: Which values are eigenvalues known one by one, `(k,)`.
        size: How many eigenvalues they stand for.
        broadening: The standard deviation of the Gaussian that distances are taken under.
        probes: How many random starts the weights come from; 0 where they are exact.
    """

    values: Array
    weights: Array
    single: NDArray[np.bool_]
    size: int
    broadening: float = 0.0
    probes: int = 0

    @classmethod
    def of(cls, eigenvalues: Array) -> WeightedSpectrum:
        """Return the spectrum of all eigenvalues of a matrix."""
        values, n = np.sort(eigenvalues), len(eigenvalues)
        return cls(values, np.full(n, 1 / n), np.ones(n, bool), n)

    @classmethod
    def measured(cls, density: SpectralDensity, *, bulk: bool = False) -> WeightedSpectrum:
        """Return a measured spectrum; of the `bulk`, without what is known to lie beyond it."""
        known = density.spectrum
        if known.exact:
            return cls.of(known.atoms)
        (nodes, weights), atoms, size = known.rule, known.atoms, known.dim
        if bulk:
            atoms, size = atoms[:0], known.free
        else:
            weights = weights * known.free / size
        values = np.concatenate([atoms, nodes])
        shares = np.concatenate([np.full(len(atoms), 1 / size), weights])
        single, order = np.arange(len(values)) < len(atoms), np.argsort(values)
        return cls(
            values[order],
            shares[order],
            single[order],
            size,
            density.broadening,
            len(known.chains),
        )

    def without(self, position: int) -> WeightedSpectrum:
        """Return the spectrum less one eigenvalue."""
        weights = np.delete(self.weights, position)
        return replace(
            self,
            values=np.delete(self.values, position),
            weights=weights / weights.sum(),
            single=np.delete(self.single, position),
            size=self.size - 1,
        )

    def cumulants(self) -> tuple[float, float, float]:
        """Return the mean, the variance and the third central moment: free cumulants."""
        mean = float(self.weights @ self.values)
        away = self.values - mean
        return mean, float(self.weights @ away**2), float(self.weights @ away**3)

    def cdf(self, x: Array) -> Array:
        """Return the broadened share of eigenvalues below each point."""
        if self.broadening:
            return _smoothed(x, self.values, self.weights, self.broadening)
        total = np.concatenate([[0.0], np.cumsum(self.weights)])
        return np.asarray(total[np.searchsorted(self.values, x, side="right")])


def _smoothed(x: Array, nodes: Array, weights: Array, width: float) -> Array:
    return np.asarray(special.ndtr((x[:, None] - nodes) / width) @ weights)


def law_rule(law: Law, points: int = _RULE) -> tuple[Array, Array]:
    """Return nodes and weights that integrate smooth functions against the law."""
    nodes, weights = [np.zeros(1)], [np.array([law.atom])]
    angle = (np.arange(points) + 0.5) * math.pi / points
    for low, high in law.support:
        half = (high - low) / 2
        x = low + half * (1 - np.cos(angle))
        nodes.append(x)
        weights.append(law.density(x) * half * np.sin(angle) * math.pi / points)
    return np.concatenate(nodes), np.concatenate(weights)


def law_quantiles(law: Law, count: int) -> Array:
    """Return `count` points, each with the same share of the law around it."""
    low, high = law.support[0][0], law.support[-1][1]
    if law.atom:
        low = min(low, 0.0)
    x = low + (high - low) * (1 - np.cos(np.linspace(0, math.pi, 4 * _GRID))) / 2
    share = (np.arange(count) + 0.5) / count
    return np.asarray(np.interp(share, law.cdf(x), x))


def ks_distance(spectrum: WeightedSpectrum, law: Law) -> float:
    r"""Return $\sup_x |F_n(x) - F(x)|$, both broadened alike.

    Args:
        spectrum: What was measured.
        law: The law; an atom at zero is compared on both of its sides.

    Example:
        >>> from thalweg.theory.random_matrix.semicircle import Semicircle, semicircle_quantile
        >>> middles = semicircle_quantile((np.arange(10) + 0.5) / 10)
        >>> round(ks_distance(WeightedSpectrum.of(middles), Semicircle()), 9)  # half a step
        0.05
    """
    if spectrum.broadening:
        x = _grid(spectrum, law)
        expected = _smoothed(x, *law_rule(law), spectrum.broadening)
        return float(np.abs(spectrum.cdf(x) - expected).max())
    tiny = 1e-12 * float(np.abs(spectrum.values).max())
    values = np.where(np.abs(spectrum.values) <= tiny, 0.0, spectrum.values)
    at, first = np.unique(values, return_index=True)
    total = np.concatenate([[0.0], np.cumsum(spectrum.weights)])
    below, upto = total[first], total[np.append(first[1:], len(values))]
    right = law.cdf(at)
    left = right - law.atom * (at == 0)
    return float(max(np.abs(upto - right).max(), np.abs(below - left).max()))


def wasserstein_distance(spectrum: WeightedSpectrum, law: Law) -> float:
    r"""Return $\int |F_n(x) - F(x)| dx$, both broadened alike, in the units of an eigenvalue.

    Args:
        spectrum: What was measured.
        law: The law.
    """
    x = _grid(spectrum, law)
    middle = (x[1:] + x[:-1]) / 2
    expected = (
        _smoothed(middle, *law_rule(law), spectrum.broadening)
        if spectrum.broadening
        else law.cdf(middle)
    )
    return float(np.abs(spectrum.cdf(middle) - expected) @ np.diff(x))


def _grid(spectrum: WeightedSpectrum, law: Law) -> Array:
    margin = _REACH * spectrum.broadening
    low = min(law.support[0][0], float(spectrum.values[0])) - margin
    high = max(law.support[-1][1], float(spectrum.values[-1])) + margin
    even = np.linspace(low, high, _GRID)
    return even if spectrum.broadening else np.union1d(even, spectrum.values)


@dataclass(frozen=True, eq=False)
class Peeled:
    """A spectrum parted into its bulk and what lies beyond the edges.

    Attributes:
        bulk: What is left.
        outliers: The values taken off, `(k,)`, the farthest first.
        p_values: The Tracy-Widom p-value of each when it was the outermost, `(k,)`.
        more: Whether the bulk still has a value beyond its edges, though no more may be taken off.
    """

    bulk: WeightedSpectrum
    outliers: Array
    p_values: Array
    more: bool


def _beyond(law: Law, spectrum: WeightedSpectrum, position: int) -> float:
    """Return the Tracy-Widom p-value of one value as the outermost of this law's bulk."""
    side: Literal[1, -1] = 1 if position else -1
    value = float(spectrum.values[position])
    if side == -1 and law.atom and abs(value) <= 1e-9 * law.support[-1][1]:
        return 1.0
    try:
        return float(edge_scaling(law, spectrum.size, side=side).p_value(value))
    except ValueError:  # a hard edge, at zero: only what is negative lies beyond it
        return float(value >= law.support[0][0] - 1e-9 * law.support[-1][1])


def peel_outliers(
    spectrum: WeightedSpectrum, fit: Callable[[WeightedSpectrum], Law], most: int
) -> Peeled:
    """Take off the values beyond the edges: as many as the last that is significant.

    Each is judged by the fit to what is left without it, so that several do not hide one
    another (Rosner's generalised extreme studentised deviates).

    Args:
        spectrum: What was measured; only values known one by one are taken off.
        fit: Returns the law fitted to a spectrum.
        most: How many may be taken off; a few more are looked at, to say whether there are more.
    """
    current, removed, chances, keep = spectrum, [], [], 0
    stages = [spectrum]
    for count in range(1, most + _AHEAD + 1):
        ends = [p for p in (0, len(current.values) - 1) if current.single[p]]
        if not ends or current.size <= LEAST_SIZE:
            break
        centre = current.cumulants()[0]
        worst = max(ends, key=lambda p: abs(float(current.values[p]) - centre))
        rest = current.without(worst)
        chance = _beyond(fit(rest), current, worst)
        removed.append(float(current.values[worst]))
        chances.append(chance)
        stages.append(rest)
        current = rest
        if chance < _OUTLIER:
            keep = count
        elif count - keep >= _AHEAD:
            break
    taken = min(keep, most)
    return Peeled(stages[taken], np.array(removed[:taken]), np.array(chances[:taken]), keep > most)
