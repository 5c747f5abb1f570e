r"""Spiked matrices: when a planted direction shows as an eigenvalue off the bulk.

Below the transition of Baik, Ben Arous and Péché a spike leaves no trace at the edge; above it
one eigenvalue leaves the bulk, and its eigenvector overlaps the planted direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

from thalweg.curvature.profile import Progress
from thalweg.estimate import Estimate
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.random_matrix.semicircle import Law

__all__ = [
    "Outlier",
    "locate_transition",
    "spiked_law",
    "spiked_overlaps",
    "spiked_wigner",
    "spiked_wishart",
]

Array = NDArray[np.float64]

_BOOTSTRAPS = 200
_DIFFERENCE = 1e-5
_SHIFT = 0.2


@dataclass(frozen=True, slots=True)
class Outlier:
    r"""Where a spike puts an eigenvalue, in the limit of a large matrix.

    Attributes:
        strength: The spike.
        threshold: The strength at which the eigenvalue leaves the bulk.
        location: The eigenvalue; the bulk's edge below the threshold.
        overlap: $\langle u, v \rangle^2$ of its eigenvector with the planted direction.
        detached: Whether it lies off the bulk.
    """

    strength: float
    threshold: float
    location: float
    overlap: float
    detached: bool

    def __str__(self) -> str:
        """Return what the spike does, in a sentence."""
        if not self.detached:
            return (
                f"a spike of {self.strength:.6g} stays in the bulk, whose edge is "
                f"{self.location:.6g}: it must be beyond {self.threshold:.6g}"
            )
        return (
            f"a spike of {self.strength:.6g} (threshold {self.threshold:.6g}) gives an eigenvalue "
            f"at {self.location:.6g} of squared overlap {self.overlap:.4g}"
        )


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value!r}")


def spiked_wigner(strength: float, *, sigma: float = 1.0) -> Outlier:
    r"""Return the outlier of $W + \theta v v^\top$, $W$ Wigner of radius $2\sigma$.

    For $|\theta| > \sigma$ at $\theta + \sigma^2/\theta$, with overlap $1 - \sigma^2/\theta^2$.

    Args:
        strength: $\theta$; negative for an outlier at the left.
        sigma: $\sigma$: entries have variance $\sigma^2 / n$.

    Raises:
        ValueError: If `sigma` is not positive or `strength` not finite.

    References:
        F. Benaych-Georges & R. R. Nadakuditi (2011), Adv. Math. 227.

    Example:
        >>> found = spiked_wigner(2.0)
        >>> found.location, found.overlap
        (2.5, 0.75)
    """
    _finite(strength=strength)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be positive and finite, not {sigma!r}")
    if abs(strength) <= sigma:
        return Outlier(strength, sigma, math.copysign(2 * sigma, strength), 0.0, False)
    return Outlier(
        strength, sigma, strength + sigma**2 / strength, 1 - (sigma / strength) ** 2, True
    )


def spiked_wishart(strength: float, ratio: float, *, sigma2: float = 1.0) -> Outlier:
    r"""Return the outlier of a sample covariance whose population has one eigenvalue apart.

    The population covariance is $\sigma^2 (I + (\ell - 1) v v^\top)$. For $|\ell - 1| >
    \sqrt\varphi$ the outlier is at $\sigma^2 \ell (1 + \varphi / (\ell - 1))$, with overlap
    $(1 - \varphi/(\ell - 1)^2) / (1 + \varphi/(\ell - 1))$.

    Args:
        strength: $\ell > 0$, a factor of the population's variance along $v$; below 1 the
            outlier is at the left (where $\varphi < 1$).
        ratio: $\varphi$, dimensions over samples.
        sigma2: $\sigma^2$.

    Raises:
        ValueError: If an argument is not positive and finite.

    References:
        J. Baik, G. Ben Arous & S. Péché (2005); D. Paul (2007).

    Example:
        >>> found = spiked_wishart(3.0, 0.5)
        >>> found.location, round(found.overlap, 6)
        (3.75, 0.7)
    """
    for name, value in (("strength", strength), ("ratio", ratio), ("sigma2", sigma2)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, not {value!r}")
    root, away = math.sqrt(ratio), strength - 1
    side = 1 if away >= 0 else -1
    threshold = 1 + side * root
    if abs(away) <= root or (side < 0 and ratio >= 1):
        return Outlier(strength, threshold, sigma2 * (1 + side * root) ** 2, 0.0, False)
    return Outlier(
        strength,
        threshold,
        sigma2 * strength * (1 + ratio / away),
        (1 - ratio / away**2) / (1 + ratio / away),
        True,
    )


def spiked_law(law: Law, strength: float) -> Outlier:
    r"""Return the outlier of $A + \theta v v^\top$ for any law of $A$ and a random direction.

    $G(\lambda) = 1/\theta$ and the overlap is $-1/(\theta^2 G'(\lambda))$; the threshold is
    $1/G$ at the edge.

    Args:
        law: The law of $A$'s eigenvalues.
        strength: $\theta > 0$ for an outlier at the right, negative at the left.

    Raises:
        ValueError: If `strength` is zero or not finite.

    Example:
        >>> from thalweg.theory.random_matrix.semicircle import Semicircle
        >>> found = spiked_law(Semicircle(), 2.0)
        >>> round(found.location, 8), round(found.overlap, 6)
        (2.5, 0.75)
    """
    _finite(strength=strength)
    if strength == 0:
        raise ValueError("a spike of strength 0 is none")
    low, high = law.support[0][0], law.support[-1][1]
    if law.atom:
        low = min(low, 0.0)
    side, edge = (1, high) if strength > 0 else (-1, low)
    width = high - low

    def transform(distance: float) -> float:
        return float(np.real(law.stieltjes(edge + side * distance * width))) * side

    least = 1e-12
    threshold = side / transform(least)
    if abs(threshold) < 1e-9 * width:  # an atom at the edge: any spike takes it off
        threshold = 0.0
    if abs(strength) <= abs(threshold):
        return Outlier(strength, threshold, edge, 0.0, False)
    far = (abs(strength) / width + 1) * 4
    distance = float(
        optimize.brentq(lambda d: transform(d) - 1 / abs(strength), least, far, xtol=1e-14)
    )
    step = _DIFFERENCE * distance
    slope = (transform(distance + step) - transform(distance - step)) / (2 * step * width)
    return Outlier(
        strength, threshold, edge + side * distance * width, -1 / (strength**2 * slope), True
    )


def spiked_overlaps(
    n: int, strength: float, samples: int, *, sigma: float = 1.0, seed: Seed = None
) -> tuple[Array, Array]:
    r"""Draw the largest eigenvalue and its overlap for spiked Wigner matrices.

    The tridiagonal model of the Gaussian orthogonal ensemble keeps its first direction, so the
    spike is added to one entry: $O(n)$ numbers for each matrix.

    Args:
        n: Order of the matrices, at least 2.
        strength: $\theta$.
        samples: How many matrices.
        sigma: $\sigma$.
        seed: What draws them.

    Returns:
        The largest eigenvalues and the squared overlaps, `(samples,)` each.

    Raises:
        ValueError: If `n` is below 2 or `samples` below 1.
    """
    if n < 2 or samples < 1:
        raise ValueError(f"n={n} must be at least 2 and samples={samples} at least 1")
    rng = np.random.default_rng(make_generator(seed)[1])
    scale = sigma / math.sqrt(n)
    values, overlaps = np.empty(samples), np.empty(samples)
    for k in range(samples):
        diagonal = rng.standard_normal(n) * math.sqrt(2) * scale
        off = np.sqrt(rng.chisquare(np.arange(n - 1, 0, -1))) * scale
        diagonal[0] += strength
        top, vector = linalg.eigh_tridiagonal(
            diagonal, off, select="i", select_range=(n - 1, n - 1)
        )
        values[k], overlaps[k] = top[0], vector[0, 0] ** 2
    return values, overlaps


def _crossings(
    drawn: Array, at: Array, log_ratio: float, rng: np.random.Generator
) -> tuple[float, Array]:
    """Return the crossing of two sizes' overlaps `(2, strengths, samples)`, and resampled ones."""

    def crossing(overlaps: Array) -> float:
        ratio = np.log(overlaps[1].mean(-1) / overlaps[0].mean(-1)) / log_ratio
        roots = np.polynomial.Polynomial.fit(at, ratio + 1 / 3, 3).roots()
        real = roots[np.abs(roots.imag) < 1e-9].real
        inside = real[(real >= at[0]) & (real <= at[-1])]
        return float(inside[np.argmin(np.abs(inside - at.mean()))]) if len(inside) else math.nan

    picks = (rng.integers(0, drawn.shape[-1], drawn.shape) for _ in range(_BOOTSTRAPS))
    others = np.array([crossing(np.take_along_axis(drawn, pick, -1)) for pick in picks])
    return crossing(drawn), others[~np.isnan(others)]


def locate_transition(
    strengths: Sequence[float],
    *,
    sizes: tuple[int, int] = (100, 800),
    samples: int = 200,
    level: float = 0.95,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Estimate:
    r"""Locate the transition of spiked Wigner matrices ($\sigma = 1$) from samples alone.

    The mean squared overlap goes like $n^{-1}$ below the transition, like $n^0$ above and like
    $n^{-1/3}$ at it, so $n^{1/3} \langle u, v \rangle^2$ of two sizes crosses there. The
    crossing is that of a cubic through the log ratio of both. With $n^{1/3} q = f(y)
    (1 + g\,n^{-1/3})$, $y = (\theta - \theta_c) n^{1/3}$, it is off by $g (f/f') (n_1
    n_2)^{-1/3}$; with 2500 matrices at each strength the factor $g f/f'$ was found to be
    $-0.03 \pm 0.08$, so the interval is that of the bootstrap over matrices, longer by
    $0.2\,(n_1 n_2)^{-1/3}$ at both ends.

    Args:
        strengths: At least five values of $\theta$, on both sides of the transition.
        sizes: The two orders, rising.
        samples: Matrices per strength and size.
        level: Nominal coverage.
        seed: An int, a generator, or None; recorded in the result.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The strength of the crossing; 1 in theory.

    Raises:
        ValueError: If there are too few strengths, the sizes do not rise, or the curves do not
            cross within the strengths given.
    """
    at = np.sort(np.asarray(strengths, np.float64))
    small, large = sizes
    if len(at) < 5 or not 2 <= small < large:
        raise ValueError(f"needs five strengths and rising sizes, got {len(at)} and {sizes}")
    number = make_generator(seed)[1]
    rng = np.random.default_rng(number)
    drawn = np.empty((2, len(at), samples))
    for done, (k, j) in enumerate(np.ndindex(2, len(at)), start=1):
        drawn[k, j] = spiked_overlaps(
            sizes[k], float(at[j]), samples, seed=int(rng.integers(2**62))
        )[1]
        if progress is not None:
            progress(done / (2 * len(at)), f"n = {sizes[k]}, strength {at[j]:.4g}")
    value, others = _crossings(drawn, at, math.log(large / small), rng)
    if math.isnan(value):
        raise ValueError(
            f"the curves of n = {small} and {large} do not cross for strengths from {at[0]:g} to "
            f"{at[-1]:g}; spread the strengths about the transition"
        )
    tail = (1 - level) / 2
    low, high = np.quantile(others, [tail, 1 - tail])
    off = _SHIFT * (small * large) ** (-1 / 3)
    return Estimate(
        value=value,
        stderr=float(others.std(ddof=1)),
        interval=(float(min(low, value)) - off, float(max(high, value)) + off),
        samples=drawn.size,
        level=level,
        method=f"crossing of n^(1/3) overlap at n = {small} and {large}; {off:.2g} for their size",
        seed=number,
    )
