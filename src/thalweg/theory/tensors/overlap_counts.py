r"""How many critical points a spiked tensor has at each overlap with the spike, in the mean.

Kac-Rice, with the law of the Hessian: at overlap $m$ and loss $\ell = u - \lambda m^p$ it is on
the tangent space
$\sqrt{p(p-1)}\, G - \lambda p (p-1) m^{p-2} v_\perp v_\perp^\top - p \ell I$
with $G$ Gaussian orthogonal, of off-diagonal variance $1/n$, and $|v_\perp|^2 = 1 - m^2$.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import optimize, special, stats

from thalweg.estimate import Estimate
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["OverlapCounts", "expected_counts_by_overlap", "overlap_complexity"]

_ANGLES = 6  # quadrature nodes within a bin
_ENERGIES = 48


@dataclass(frozen=True)
class OverlapCounts:
    r"""Mean numbers of critical points of a spiked tensor by overlap and index.

    Attributes:
        n: The dimension.
        p: The order.
        snr: The signal-to-noise ratio.
        edges: Of the bins of overlap, falling from 1 to -1, `(bins + 1,)`.
        bins: The mean number in each.
        by_index: The mean number in each bin with so many negative directions, `(bins, n)`.
        total: The mean number in all bins.
        seed: What drew the random matrices.
    """

    n: int
    p: int
    snr: float
    edges: Float[np.ndarray, " edges"]
    bins: tuple[Estimate, ...]
    by_index: Float[np.ndarray, "bins n"]
    total: Estimate
    seed: int

    def __str__(self) -> str:
        """Return a table over the bins."""
        lines = [
            f"critical points of a spiked tensor, n = {self.n}, p = {self.p}, snr = {self.snr:g}: "
            f"{self.total}",
            "  overlap            number           minima",
        ]
        for k, count in enumerate(self.bins):
            lines.append(
                f"  {self.edges[k + 1]:6.3f} to {self.edges[k]:6.3f}   "
                f"{str(count).partition(' (')[0]:16} {self.by_index[k, 0]:.4g}"
            )
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", r"\[")


def _matrices(d: int, n: int, samples: int, rng: np.random.Generator) -> Float[np.ndarray, "s d d"]:
    """Draw tridiagonal forms of G, whose first axis is the first of G (Dumitriu and Edelman)."""
    diagonal = rng.standard_normal((samples, d)) * math.sqrt(2)
    beside = np.sqrt(rng.chisquare(np.arange(d - 1, 0, -1), size=(samples, d - 1)))
    out = np.zeros((samples, d, d))
    rows = np.arange(d)
    out[:, rows, rows] = diagonal
    out[:, rows[:-1], rows[1:]] = out[:, rows[1:], rows[:-1]] = beside
    return out / math.sqrt(n)


def expected_counts_by_overlap(
    n: int,
    p: int,
    snr: float,
    *,
    edges: Sequence[float] | None = None,
    samples: int = 2000,
    level: float = 0.95,
    seed: Seed = None,
) -> OverlapCounts:
    r"""Return the mean number of critical points at each overlap with the spike.

    $$E N = |S^{n-2}| \int d\varphi\, \sin^{n-2}\varphi \left(\frac{n}{2 \pi p}\right)^{(n-1)/2}
      e^{-n p \lambda^2 m^{2p-2} (1-m^2)/2}\; E_{u, G} |\det \nabla^2 u|, \quad m = \cos\varphi$$

    with $u \sim N(0, 1/n)$ by Gauss-Hermite quadrature and $G$ sampled, tridiagonal with the
    spike in its corner: exact at every $n$ but for the sampling error, which grows with $n$
    (fine to about n = 30).

    Args:
        n: The dimension, at least 2.
        p: The order, at least 2; at 2 the total is $2n$ at every `snr`.
        snr: The signal-to-noise ratio.
        edges: Of the bins, falling from at most 1 to at least -1; ten equal bins by default.
        samples: How many random matrices.
        level: Nominal coverage.
        seed: What draws them.

    Returns:
        The counts; the same matrices serve all bins.

    Raises:
        ValueError: If a size is too small, or `edges` do not fall within [-1, 1].

    Source:
        Ben Arous, Mei, Montanari and Nica, Comm. Pure Appl. Math. 72 (2019), Section 5.

    Example:
        >>> 8.0 in expected_counts_by_overlap(4, 2, 3.0, samples=400, seed=0).total
        True
    """
    if n < 2 or p < 2 or samples < 2:
        raise ValueError(f"n, p and samples must be at least 2, got {n}, {p}, {samples}")
    if not snr >= 0:
        raise ValueError(f"snr must not be negative, got {snr}")
    borders = np.linspace(1, -1, 11) if edges is None else np.asarray(edges, dtype=np.float64)
    if len(borders) < 2 or not (np.diff(borders) < 0).all() or abs(borders).max() > 1:
        raise ValueError(f"edges must fall within [-1, 1], got {borders.tolist()}")
    _, number = make_generator(seed)
    matrices = _matrices(n - 1, n, samples, np.random.default_rng(number))
    x, weights = np.polynomial.legendre.leggauss(_ANGLES)
    angles = np.arccos(borders)
    counts = np.zeros((samples, len(borders) - 1, n))
    for k, (low, high) in enumerate(itertools.pairwise(angles.tolist())):
        half = (high - low) / 2
        for node, weight in zip(low + half * (1 + x), half * weights, strict=True):
            counts[:, k] += weight * _density(float(node), n, p, snr, matrices)
    z = float(stats.norm.ppf(0.5 + level / 2))
    method = "Kac-Rice, sampled Gaussian orthogonal matrices"

    def estimate(values: Float[np.ndarray, " s"]) -> Estimate:
        mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(samples)
        ends = (mean - z * error, mean + z * error)
        return Estimate(mean, error, ends, samples, level=level, method=method, seed=number)

    per_bin = counts.sum(2)
    bins = tuple(estimate(column) for column in per_bin.T)
    total = estimate(per_bin.sum(1))
    return OverlapCounts(n, p, float(snr), borders, bins, counts.mean(0), total, number)


def _density(
    angle: float, n: int, p: int, snr: float, matrices: Float[np.ndarray, "s d d"]
) -> Float[np.ndarray, "s n"]:
    """Return the density of critical points by index at one angle, for each random matrix."""
    d, m = n - 1, math.cos(angle)
    across = math.sin(angle) ** 2
    shifted = math.sqrt(p * (p - 1)) * matrices
    shifted[:, 0, 0] -= snr * p * (p - 1) * m ** (p - 2) * across
    values = np.linalg.eigvalsh(shifted)
    nodes, weights = special.roots_hermitenorm(_ENERGIES)
    losses = nodes / math.sqrt(n) - snr * m**p
    log_constant = (
        math.log(2)
        + (d / 2) * math.log(math.pi)
        - math.lgamma(d / 2)
        + (n - 2) * math.log(math.sin(angle))
        + (d / 2) * math.log(n / (2 * math.pi * p))
        - n * p * snr**2 * m ** (2 * p - 2) * across / 2
    )
    out = np.zeros((len(matrices), n))
    rows = np.arange(len(matrices))
    for loss, weight in zip(losses, weights / math.sqrt(2 * math.pi), strict=True):
        hessian = values - p * loss
        size = np.exp(np.log(np.maximum(np.abs(hessian), 1e-300)).sum(1) + log_constant)
        out[rows, (hessian < 0).sum(1)] += weight * size
    return out


def _log_potential(t: float) -> float:
    r"""Return $\int \ln|x - t|\, d\mu(x)$ for the semicircle on [-2, 2]."""
    size = abs(t)
    inside = size * size / 4 - 0.5
    if size <= 2:
        return inside
    root = math.sqrt(size * size - 4)
    return inside - size * root / 4 + math.log((size + root) / 2)


def overlap_complexity(p: int, snr: float, overlap: float, loss: float | None = None) -> float:
    r"""Return the growth rate of the mean number of critical points at an overlap and a loss.

    $$\Sigma = \tfrac12 (1 + \ln(p-1)) + \tfrac12 \ln(1 - m^2) - \tfrac12 p \lambda^2 m^{2p-2}
      (1-m^2) - \tfrac12 (\ell + \lambda m^p)^2 + \Phi(\ell \sqrt{p/(p-1)})$$

    with $\Phi$ the logarithmic potential of the semicircle on $[-2, 2]$. At $\lambda = m = 0$ it is
    the complexity of the p-spin.

    Args:
        p: The order, at least 2.
        snr: The signal-to-noise ratio.
        overlap: $m$, strictly between -1 and 1.
        loss: $\ell$; by default the one of most points.

    Returns:
        $\lim \frac1n \ln E N$ near there.

    Raises:
        ValueError: If `p` is below 2 or `overlap` is not within (-1, 1).

    Source:
        Ben Arous, Mei, Montanari and Nica, Comm. Pure Appl. Math. 72 (2019), Theorem 1.

    Example:
        >>> overlap_complexity(3, 0.0, 0.0, 0.0) - 0.5 * math.log(2)
        0.0
    """
    if p < 2 or not -1 < overlap < 1:
        raise ValueError(f"p must be at least 2 and |overlap| below 1, got {p} and {overlap}")
    signal, across = snr * overlap**p, 1 - overlap**2

    def part(level: float) -> float:
        return -((level + signal) ** 2) / 2 + _log_potential(level * math.sqrt(p / (p - 1)))

    if loss is None:  # concave in the loss
        reach = abs(signal) + 10
        found = optimize.minimize_scalar(
            lambda level: -part(level),
            bounds=(-reach, reach),
            method="bounded",
            options={"xatol": 1e-10},
        )
        loss = float(found.x)
    noise = p * snr**2 * overlap ** (2 * p - 2) * across
    return (1 + math.log(p - 1) + math.log(across) - noise) / 2 + part(loss)
