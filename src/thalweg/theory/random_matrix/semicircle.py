r"""The semicircle law, and what every law of eigenvalues offers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Law",
    "Semicircle",
    "semicircle_cdf",
    "semicircle_density",
    "semicircle_moment",
    "semicircle_quantile",
    "semicircle_r_transform",
    "semicircle_stieltjes",
]

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

_BISECTIONS = 60


@runtime_checkable
class Law(Protocol):
    r"""The limiting law of the eigenvalues of a large random matrix.

    A law has a continuous part on finitely many intervals and perhaps an atom at zero.
    """

    @property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The intervals of the continuous part, by rising position."""
        ...

    @property
    def atom(self) -> float:
        """The mass at exactly zero."""
        ...

    @property
    def mean(self) -> float:
        """The mean."""
        ...

    @property
    def variance(self) -> float:
        """The variance."""
        ...

    def density(self, x: ArrayLike) -> Array:
        """Return the density of the continuous part, in the shape of `x`."""
        ...

    def cdf(self, x: ArrayLike) -> Array:
        r"""Return the mass at or below `x`, an atom included."""
        ...

    def stieltjes(self, z: ArrayLike) -> Complex:
        r"""Return $G(z) = \int \rho(dx) / (z - x)$ for `z` off the support."""
        ...


def _checked_radius(radius: float) -> float:
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"the radius of a semicircle must be positive and finite, not {radius!r}")
    return radius


def _unit(x: ArrayLike, radius: float, centre: float) -> Array:
    return np.asarray((np.asarray(x, np.float64) - centre) / _checked_radius(radius))


def semicircle_density(x: ArrayLike, *, radius: float = 2.0, centre: float = 0.0) -> Array:
    r"""Return $\rho(x) = \frac{2}{\pi R^2} \sqrt{R^2 - (x - c)^2}$, zero outside.

    Args:
        x: Where, any shape.
        radius: $R$; two standard deviations.
        centre: $c$.

    Returns:
        The density, in the shape of `x`.

    Raises:
        ValueError: If `radius` is not positive.

    Example:
        >>> float(semicircle_density(0.0))  # 1/pi
        0.3183098861837907
    """
    t = _unit(x, radius, centre)
    inside = np.where(np.abs(t) > 1, 0.0, 1 - t * t)  # a NaN stays one
    return np.asarray(2 / (math.pi * radius) * np.sqrt(inside))


def semicircle_cdf(x: ArrayLike, *, radius: float = 2.0, centre: float = 0.0) -> Array:
    r"""Return $F(x) = \frac12 + \frac1\pi(t\sqrt{1 - t^2} + \arcsin t)$, $t = (x - c)/R$.

    Args:
        x: Where, any shape.
        radius: $R$.
        centre: $c$.

    Returns:
        The mass below `x`, in its shape.

    Raises:
        ValueError: If `radius` is not positive.

    Example:
        >>> semicircle_cdf([-2.0, 0.0, 2.0]).tolist()
        [0.0, 0.5, 1.0]
    """
    t = np.clip(_unit(x, radius, centre), -1, 1)
    angle = 2 * np.arcsin(np.sqrt((1 - np.abs(t)) / 2))  # from the nearer edge: no cancellation
    beyond = (2 * angle - np.sin(2 * angle)) / (2 * math.pi)
    return np.asarray(np.where(t < 0, beyond, 1 - beyond))


def semicircle_quantile(share: ArrayLike, *, radius: float = 2.0, centre: float = 0.0) -> Array:
    r"""Return the $x$ with $F(x)$ = `share`, to rounding.

    With $t = \cos\varphi$ the equation is Kepler's, $2\varphi - \sin 2\varphi = 2\pi(1 - F)$,
    whose left side rises, so bisection is safe at the edges too.

    Args:
        share: Between 0 and 1, any shape.
        radius: $R$.
        centre: $c$.

    Raises:
        ValueError: If `radius` is not positive or a share is outside [0, 1].

    Example:
        >>> semicircle_quantile([0.0, 0.5, 1.0]).round(12).tolist()
        [-2.0, 0.0, 2.0]
    """
    _checked_radius(radius)
    share = np.asarray(share, np.float64)
    if np.any((share < 0) | (share > 1)):
        raise ValueError(
            f"a share must lie in [0, 1], got values from {share.min():g} to {share.max():g}"
        )
    wanted = 2 * math.pi * np.minimum(share, 1 - share)
    low, high = np.zeros_like(share), np.full_like(share, math.pi / 2)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = 2 * middle - np.sin(2 * middle) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    t = np.cos((low + high) / 2) * np.where(share < 0.5, -1.0, 1.0)
    return np.asarray(np.where(np.isnan(share), np.nan, centre + radius * t))


def semicircle_moment(order: int, *, radius: float = 2.0, centre: float = 0.0) -> float:
    r"""Return the moment $\int x^k \rho(x) dx$.

    About the centre those of even order $2m$ are $(R/2)^{2m} C_m$, $C_m$ the Catalan numbers.

    Raises:
        ValueError: If `order` is negative or `radius` not positive.

    Example:
        >>> [semicircle_moment(k) for k in range(7)]
        [1.0, 0.0, 1.0, 0.0, 2.0, 0.0, 5.0]
    """
    if order < 0:
        raise ValueError(f"the order of a moment must not be negative, got {order}")
    half = _checked_radius(radius) / 2
    total = 0.0
    for even in range(0, order + 1, 2):
        catalan = math.comb(even, even // 2) // (even // 2 + 1)
        total += math.comb(order, even) * centre ** (order - even) * catalan * half**even
    return float(total)


def semicircle_stieltjes(z: ArrayLike, *, radius: float = 2.0, centre: float = 0.0) -> Complex:
    r"""Return $G(z) = \frac{2}{R^2}\,(w - \sqrt{w - R}\sqrt{w + R})$, $w = z - c$.

    The branch decays like $1/z$, and $-\operatorname{Im} G(x + i0)/\pi$ is the density.

    Raises:
        ValueError: If `radius` is not positive.

    Example:
        >>> complex(semicircle_stieltjes(2.5))
        (0.5+0j)
    """
    _checked_radius(radius)
    w = np.asarray(z, np.complex128) - centre
    return np.asarray(2 / (w + np.sqrt(w - radius) * np.sqrt(w + radius)))


def semicircle_r_transform(g: ArrayLike, *, radius: float = 2.0, centre: float = 0.0) -> Complex:
    r"""Return $R(g) = c + (R^2/4)\,g$: free cumulants beyond the second vanish.

    Here $z = R(G) + 1/G$ inverts the Stieltjes transform.

    Raises:
        ValueError: If `radius` is not positive.

    Example:
        >>> complex(semicircle_r_transform(0.5) + 1 / 0.5)
        (2.5+0j)
    """
    return np.asarray(centre + _checked_radius(radius) ** 2 / 4 * np.asarray(g, np.complex128))


@dataclass(frozen=True, slots=True)
class Semicircle:
    r"""Wigner's law: the eigenvalues of a large symmetric matrix of independent entries.

    Args:
        radius: $R$; two standard deviations, $2\sigma$ for entries of variance
            $\sigma^2 / n$.
        centre: $c$.

    Raises:
        ValueError: If `radius` is not positive.

    Example:
        >>> law = Semicircle(radius=3.0, centre=1.0)
        >>> print(law)
        semicircle of radius 3 around 1
        >>> law.support, law.variance
        (((-2.0, 4.0),), 2.25)
    """

    radius: float = 2.0
    centre: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a radius that cannot be one."""
        _checked_radius(self.radius)

    @property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The one interval."""
        return ((self.centre - self.radius, self.centre + self.radius),)

    @property
    def atom(self) -> float:
        """No mass at zero."""
        return 0.0

    @property
    def mean(self) -> float:
        """The centre."""
        return self.centre

    @property
    def variance(self) -> float:
        """A quarter of the squared radius."""
        return self.radius**2 / 4

    def density(self, x: ArrayLike) -> Array:
        """Return the density, in the shape of `x`."""
        return semicircle_density(x, radius=self.radius, centre=self.centre)

    def cdf(self, x: ArrayLike) -> Array:
        """Return the mass below `x`."""
        return semicircle_cdf(x, radius=self.radius, centre=self.centre)

    def quantile(self, share: ArrayLike) -> Array:
        """Return the point below which `share` of the mass lies."""
        return semicircle_quantile(share, radius=self.radius, centre=self.centre)

    def stieltjes(self, z: ArrayLike) -> Complex:
        """Return the Stieltjes transform off the support."""
        return semicircle_stieltjes(z, radius=self.radius, centre=self.centre)

    def r_transform(self, g: ArrayLike) -> Complex:
        """Return the R-transform."""
        return semicircle_r_transform(g, radius=self.radius, centre=self.centre)

    def __str__(self) -> str:
        """Return the law in words."""
        return f"semicircle of radius {self.radius:.6g} around {self.centre:.6g}"
