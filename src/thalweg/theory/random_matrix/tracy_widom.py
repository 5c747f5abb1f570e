r"""Tracy-Widom laws of the largest eigenvalue, and whether an eigenvalue lies off the bulk.

With $B_s$ the operator of kernel $\operatorname{Ai}(x + y + s)$ on $L^2(0, \infty)$,

$$F_1(s) = \det(1 - B_s), \qquad F_2(s) = \det(1 - B_s^2) = F_1(s) \det(1 + B_s)$$

(Ferrari & Spohn 2005), Fredholm determinants which a Gauss-Legendre rule gives to rounding
(Bornemann 2010).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.polynomial import Chebyshev
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from thalweg.theory.random_matrix.semicircle import Law

__all__ = [
    "EdgeScaling",
    "edge_scaling",
    "goe_scaling",
    "tracy_widom_cdf",
    "tracy_widom_density",
    "tracy_widom_mean",
    "tracy_widom_quantile",
    "tracy_widom_survival",
    "tracy_widom_variance",
    "wishart_scaling",
]

Array = NDArray[np.float64]
Beta = Literal[1, 2]

_NODES = 64
_REACH = 16.0  # Ai(16) is 4e-20
_PANELS = (-10.0, -7.0, -4.5, -2.5, -0.5, 1.5, 4.0, 8.0, 16.0, 30.0)
_DEGREE = 15
_MOMENT_NODES = 16
_NEAR = 1e-4


@cache
def _rule(nodes: int) -> tuple[Array, Array]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2


def _check_beta(beta: int) -> None:
    if beta not in (1, 2):
        raise ValueError(f"beta must be 1 (real matrices) or 2 (complex ones), not {beta!r}")


@cache
def _determinants(s: float) -> tuple[float, float]:
    """Return log det(1 - B_s) and log det(1 - B_s^2)."""
    x, w = _rule(_NODES)
    length = _REACH + max(-s, 0.0)
    at, root = length * x, np.sqrt(length * w)
    rows, columns = np.triu_indices(_NODES)
    kernel = np.zeros((_NODES, _NODES))
    kernel[rows, columns] = special.airy(at[rows] + at[columns] + s)[0]
    kernel = (kernel + np.triu(kernel, 1).T) * root[:, None] * root
    values = np.clip(np.linalg.eigvalsh(kernel), -1 + 1e-16, 1 - 1e-16)
    return float(np.log1p(-values).sum()), float(np.log1p(-(values**2)).sum())


@cache
def _panels(beta: int) -> tuple[Chebyshev, ...]:
    r"""Return $\log(-\log F_\beta)$, piece by piece: smooth, and precise in both tails."""

    def value(s: float) -> float:
        return math.log(-_determinants(s)[beta - 1])

    return tuple(
        Chebyshev.interpolate(np.vectorize(value, otypes=[float]), _DEGREE, domain=[low, high])
        for low, high in pairwise(_PANELS)
    )


def _evaluated(s: ArrayLike, beta: int) -> tuple[Array, Array]:
    """Return log F and its derivative in the shape of `s`; NaN stays NaN."""
    _check_beta(beta)
    s = np.asarray(s, np.float64)
    logs, slopes = np.full_like(s, np.nan), np.full_like(s, np.nan)
    logs[s < _PANELS[0]], slopes[s < _PANELS[0]] = -np.inf, 0.0
    logs[s > _PANELS[-1]], slopes[s > _PANELS[-1]] = 0.0, 0.0
    for panel, (low, high) in zip(_panels(beta), pairwise(_PANELS), strict=True):
        inside = (s >= low) & (s <= high)
        if inside.any():
            size = -np.exp(panel(s[inside]))
            logs[inside], slopes[inside] = size, size * panel.deriv()(s[inside])
    return logs, slopes


def tracy_widom_cdf(s: ArrayLike, *, beta: Beta = 1) -> Array:
    r"""Return $F_\beta(s)$, to about 1e-14.

    Args:
        s: Where, any shape; below -10 the result is 0, which is right to 1e-18.
        beta: 1 for real symmetric matrices, 2 for Hermitian ones.

    Returns:
        The probability that the scaled largest eigenvalue is below `s`, in its shape.

    Raises:
        ValueError: If `beta` is neither.

    References:
        F. Bornemann (2010), On the numerical evaluation of Fredholm determinants, Math. Comp.

    Example:
        >>> tracy_widom_cdf([-2.0, 0.0]).round(6).tolist()
        [0.27432, 0.831908]
    """
    return np.asarray(np.exp(_evaluated(s, beta)[0]))


def tracy_widom_survival(s: ArrayLike, *, beta: Beta = 1) -> Array:
    r"""Return $1 - F_\beta(s)$ with full relative accuracy in the right tail: a p-value.

    Raises:
        ValueError: If `beta` is neither 1 nor 2.

    Example:
        >>> print(f"{float(tracy_widom_survival(10.0)):.4e}")
        1.7082e-11
    """
    return np.asarray(-np.expm1(_evaluated(s, beta)[0]))


def tracy_widom_density(s: ArrayLike, *, beta: Beta = 1) -> Array:
    r"""Return $F_\beta'(s)$.

    Raises:
        ValueError: If `beta` is neither 1 nor 2.

    Example:
        >>> round(float(tracy_widom_density(-1.0)), 6)
        0.304099
    """
    logs, slopes = _evaluated(s, beta)
    return np.asarray(np.exp(logs) * slopes)


def tracy_widom_quantile(share: ArrayLike, *, beta: Beta = 1) -> Array:
    r"""Return the $s$ with $F_\beta(s)$ = `share`, to about 1e-10.

    Args:
        share: Between 1e-12 and 1 - 1e-12, any shape.
        beta: 1 or 2.

    Raises:
        ValueError: If `beta` is neither 1 nor 2 or a share is out of range.

    Example:
        >>> tracy_widom_quantile([0.5, 0.95, 0.99]).round(4).tolist()
        [-1.2686, 0.9793, 2.0234]
    """
    _check_beta(beta)
    share = np.asarray(share, np.float64)
    if not np.all((share >= 1e-12) & (share <= 1 - 1e-12)):
        raise ValueError(f"a share must lie within [1e-12, 1 - 1e-12], got {share}")

    def solve(wanted: float) -> float:
        return float(
            optimize.brentq(
                lambda s: float(tracy_widom_cdf(s, beta=beta)) - wanted,
                _PANELS[0],
                _PANELS[-1],
                xtol=1e-12,
            )
        )

    return np.asarray([solve(p) for p in share.ravel()]).reshape(share.shape)


@cache
def _moments(beta: int) -> tuple[float, float]:
    x, w = _rule(_MOMENT_NODES)
    ends = np.asarray(_PANELS)
    s = (ends[:-1, None] + np.diff(ends)[:, None] * x).ravel()
    mass = (np.diff(ends)[:, None] * w).ravel()
    mass = mass * tracy_widom_density(s, beta=1 if beta == 1 else 2)
    mean = float(mass @ s)
    return mean, float(mass @ (s - mean) ** 2)


def tracy_widom_mean(*, beta: Beta = 1) -> float:
    """Return the mean of the law.

    Example:
        >>> round(tracy_widom_mean(), 10)
        -1.2065335746
    """
    _check_beta(beta)
    return _moments(beta)[0]


def tracy_widom_variance(*, beta: Beta = 1) -> float:
    """Return the variance of the law.

    Example:
        >>> round(tracy_widom_variance(), 10)
        1.607781035
    """
    _check_beta(beta)
    return _moments(beta)[1]


@dataclass(frozen=True, slots=True)
class EdgeScaling:
    r"""How the outermost eigenvalue of a bulk is centred and scaled.

    $(\lambda - c)/\tau$ follows Tracy-Widom as the matrix grows; for the smallest eigenvalue
    $(c - \lambda)/\tau$ does.

    Args:
        centre: $c$.
        scale: $\tau > 0$.
        side: 1 at the right edge, -1 at the left.
        beta: 1 or 2.

    Example:
        >>> edge = goe_scaling(1000)
        >>> bool(edge.p_value(2.2) < 1e-6), bool(edge.p_value(2.0) > 0.05)
        (True, True)
    """

    centre: float
    scale: float
    side: Literal[1, -1] = 1
    beta: Beta = 1

    def standardise(self, value: ArrayLike) -> Array:
        """Return how far beyond the edge `value` lies, in Tracy-Widom units."""
        return np.asarray(self.side * (np.asarray(value, np.float64) - self.centre) / self.scale)

    def p_value(self, value: ArrayLike) -> Array:
        """Return the chance that a bulk's outermost eigenvalue lies at least that far out."""
        return tracy_widom_survival(self.standardise(value), beta=self.beta)

    def reach(self, level: float = 0.999) -> float:
        """Return the point that the outermost eigenvalue stays within, with chance `level`."""
        return float(
            self.centre + self.side * self.scale * tracy_widom_quantile(level, beta=self.beta)
        )


def _check_size(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 2:
            raise ValueError(f"the edge of a spectrum needs {name} of at least 2, got {size}")


def goe_scaling(n: int, *, radius: float = 2.0) -> EdgeScaling:
    r"""Return the scaling at the right edge of the Gaussian orthogonal ensemble.

    $c = R$, $\tau = \frac R2 n^{-2/3}$; its error is of order $n^{-1/3}$ in $\tau$.

    Raises:
        ValueError: If `n` is below 2.
    """
    _check_size(n=n)
    return EdgeScaling(radius, radius / 2 * n ** (-2 / 3))


def wishart_scaling(n: int, m: int, *, sigma2: float = 1.0) -> EdgeScaling:
    r"""Return Johnstone's scaling for the largest eigenvalue of $X X^\top / m$.

    $$c = \frac{\sigma^2}{m}(\sqrt{m - 1} + \sqrt n)^2, \qquad \tau = \frac{\sigma^2}{m}
    (\sqrt{m - 1} + \sqrt n)\Bigl(\frac{1}{\sqrt{m - 1}} + \frac{1}{\sqrt n}\Bigr)^{1/3}$$

    Args:
        n: Rows of $X$.
        m: Columns.
        sigma2: The variance of an entry.

    Raises:
        ValueError: If a size is below 2.

    References:
        I. M. Johnstone (2001), On the distribution of the largest eigenvalue in principal
        components analysis, Ann. Statist. 29.
    """
    _check_size(n=n, m=m)
    a, b = math.sqrt(m - 1), math.sqrt(n)
    return EdgeScaling(sigma2 / m * (a + b) ** 2, sigma2 / m * (a + b) * (1 / a + 1 / b) ** (1 / 3))


def edge_scaling(law: Law, n: int, *, side: Literal[1, -1] = 1) -> EdgeScaling:
    r"""Return the scaling at the outermost edge of any law with a square-root edge.

    Where $\rho(x) \approx \frac{A}{\pi}\sqrt{|E - x|}$, $c = E$ and $\tau = (A n)^{-2/3}$.

    Args:
        law: The limiting law.
        n: The number of eigenvalues.
        side: 1 for the right edge, -1 for the left.

    Raises:
        ValueError: If `n` is below 2, or the edge is a hard one, where the density diverges.

    Example:
        >>> from thalweg.theory.random_matrix.semicircle import Semicircle
        >>> edge_scaling(Semicircle(), 1000).scale / goe_scaling(1000).scale  # doctest: +ELLIPSIS
        1.0000...
    """
    _check_size(n=n)
    low, high = law.support[-1] if side == 1 else law.support[0]
    edge, width = (high, high - low) if side == 1 else (low, high - low)
    gaps = _NEAR * width * np.array([1.0, 4.0])
    with np.errstate(divide="ignore", invalid="ignore"):  # a point mass has no width
        slopes = math.pi * law.density(edge - side * gaps) / np.sqrt(gaps)
    near, far = map(float, slopes)
    if not (near > 0 and far > 0 and 0.5 < near / far < 2):
        raise ValueError(
            f"the edge at {edge:.6g} is not of square-root kind (density over root {near:.3g} and "
            f"{far:.3g} nearby), so Tracy-Widom does not hold there"
        )
    return EdgeScaling(edge, (near * n) ** (-2 / 3), side)
