r"""The Marchenko-Pastur law of sample covariance matrices, with its atom at zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

__all__ = ["MarchenkoPastur", "Mass"]

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

_FELT = 1e-14  # of the whole mass: terms below are rounding


@dataclass(frozen=True, eq=False)
class Mass:
    r"""The mass of a density on one interval, with edges where it goes like a root.

    In $x = c - h\cos\theta$ the density times $dx/d\theta$ is smooth and even, whether it
    vanishes like $\sqrt{x - a}$ or diverges like $1/\sqrt{x - a}$ at an edge, so its cosine
    series converges geometrically and is integrated term by term.

    Args:
        density: The density, of an array of points.
        low: The left edge.
        high: The right edge.
        points: How many terms.

    Example:
        >>> from thalweg.theory.random_matrix.semicircle import semicircle_density
        >>> mass = Mass(semicircle_density, -2.0, 2.0, 32)
        >>> round(mass.total, 12), round(float(mass.below(np.array([0.0]))[0]), 12)
        (1.0, 0.5)
    """

    density: Callable[[Array], Array]
    low: float
    high: float
    points: int = 256

    @cached_property
    def _terms(self) -> Array:
        angle = (np.arange(self.points) + 0.5) * math.pi / self.points
        half = (self.high - self.low) / 2
        # the distance to the nearer edge, without cancellation
        x = np.where(
            angle < math.pi / 2,
            self.low + 2 * half * np.sin(angle / 2) ** 2,
            self.high - 2 * half * np.cos(angle / 2) ** 2,
        )
        values = self.density(x) * half * np.sin(angle)
        terms = np.asarray(fft.dct(values, type=2) / self.points)
        felt = np.flatnonzero(np.abs(terms) > _FELT * abs(terms[0]))
        return terms[: felt[-1] + 1] if len(felt) else terms[:1]

    @property
    def total(self) -> float:
        """The mass of the whole interval."""
        return float(self._terms[0] / 2 * math.pi)

    def below(self, x: Array) -> Array:
        """Return the mass of the interval's part below `x`, in its shape."""
        share = np.clip((x - self.low) / (self.high - self.low), 0, 1)
        angle = 2 * np.arcsin(np.sqrt(share))
        order = np.arange(1, len(self._terms))
        waves = np.sin(angle[..., None] * order) @ (self._terms[1:] / order)
        return np.asarray(self._terms[0] / 2 * angle + waves)


@dataclass(frozen=True)
class MarchenkoPastur:
    r"""The eigenvalues of $X X^\top / m$, with $X$ of shape $(n, m)$ and $\varphi = n / m$.

    $$\rho(x) = \frac{\sqrt{(b - x)(x - a)}}{2\pi\sigma^2\varphi x}, \qquad
    a, b = \sigma^2 (1 \mp \sqrt\varphi)^2,$$

    and an atom of mass $1 - 1/\varphi$ at zero where $\varphi > 1$.

    Args:
        ratio: $\varphi$: rows (dimensions) over columns (samples).
        sigma2: $\sigma^2$, the variance of an entry.

    Raises:
        ValueError: If either is not positive and finite.

    References:
        V. A. Marchenko & L. A. Pastur (1967).

    Example:
        >>> law = MarchenkoPastur(ratio=0.25)
        >>> law.support, law.mean, law.variance
        (((0.25, 2.25),), 1.0, 0.25)
        >>> MarchenkoPastur(ratio=4.0).atom
        0.75
    """

    ratio: float
    sigma2: float = 1.0

    def __post_init__(self) -> None:
        """Refuse parameters that cannot be."""
        for name, value in (("ratio", self.ratio), ("sigma2", self.sigma2)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, not {value!r}")

    @property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The one interval of the continuous part."""
        root = math.sqrt(self.ratio)
        return ((self.sigma2 * (1 - root) ** 2, self.sigma2 * (1 + root) ** 2),)

    @property
    def atom(self) -> float:
        """The mass at zero: the share of directions that no sample spans."""
        return max(0.0, 1 - 1 / self.ratio)

    @property
    def mean(self) -> float:
        """The variance of an entry."""
        return self.sigma2

    @property
    def variance(self) -> float:
        r"""$\sigma^4 \varphi$."""
        return self.sigma2**2 * self.ratio

    def density(self, x: ArrayLike) -> Array:
        """Return the density of the continuous part, in the shape of `x`."""
        x = np.asarray(x, np.float64)
        ((low, high),) = self.support
        outside = (x <= low) | (x >= high)
        at = np.where(outside, (low + high) / 2, x)
        value = np.sqrt((high - at) * (at - low)) / (2 * math.pi * self.sigma2 * self.ratio * at)
        return np.asarray(np.where(outside, 0.0, value))

    @cached_property
    def _mass(self) -> Mass:
        ((low, high),) = self.support
        return Mass(self.density, low, high)

    def cdf(self, x: ArrayLike) -> Array:
        """Return the mass at or below `x`, the atom included."""
        x = np.asarray(x, np.float64)
        return np.asarray(self._mass.below(x) + self.atom * (x >= 0))

    def stieltjes(self, z: ArrayLike) -> Complex:
        r"""Return $G(z)$, the root of $\sigma^2\varphi z G^2 - (z + \sigma^2(\varphi - 1)) G + 1$.

        On the support it is the limit from above.
        """
        z = np.asarray(z, np.complex128)
        ((low, high),) = self.support
        shifted = z + self.sigma2 * (self.ratio - 1)
        # the sign of z - b decides the side of the product's cut, so a real z is from above
        root = np.sqrt(z - low) * np.sqrt(z - high)
        with np.errstate(divide="ignore", invalid="ignore"):
            small = (shifted - root) / (2 * self.sigma2 * self.ratio * z)
            stable = 2 / (shifted + root)
        same = np.real(shifted * np.conj(root)) > 0
        return np.asarray(np.where(same, stable, small))

    def r_transform(self, g: ArrayLike) -> Complex:
        r"""Return $R(g) = \sigma^2 / (1 - \sigma^2 \varphi g)$."""
        g = np.asarray(g, np.complex128)
        return np.asarray(self.sigma2 / (1 - self.sigma2 * self.ratio * g))

    def __str__(self) -> str:
        """Return the law in words."""
        atom = f", {self.atom:.4g} of the mass at zero" if self.atom else ""
        ((low, high),) = self.support
        return (
            f"Marchenko-Pastur of ratio {self.ratio:.6g} and variance {self.sigma2:.6g} "
            f"on [{low:.6g}, {high:.6g}]{atom}"
        )
