r"""Free sums: the spectrum of a sum of large matrices in general position.

The R-transform of a law, $R(g) = z(g) - 1/g$ with $z(g)$ the inverse of its Stieltjes transform
$G$, adds up under free sums (Voiculescu). Where every R-transform is a rational function, $G(z)$
is a root of a polynomial whose coefficients are linear in $z$.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

from thalweg.theory.random_matrix.marchenko_pastur import Mass

__all__ = [
    "FreeSum",
    "RTransform",
    "pennington_bahri",
    "pennington_bahri_refined",
    "wigner_transform",
    "wishart_transform",
]

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

_STEP = 0.7
_LOWEST = 1e-11
_TERMS = 512
_REAL = 1e-7
_MASSLESS = 1e-7


@dataclass(frozen=True, slots=True)
class RTransform:
    r"""A rational R-transform, $R(g) = N(g) / D(g)$.

    Args:
        numerator: The coefficients of $N$, the constant first.
        denominator: The coefficients of $D$, the constant first and not zero.

    Raises:
        ValueError: If a coefficient is not finite, or the constant of `denominator` is zero.

    Example:
        >>> RTransform((0.0, 2.0)).cumulants(4)  # a Wigner matrix of variance 2
        (0.0, 2.0, 0.0, 0.0)
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse what has no value at zero."""
        if not all(map(math.isfinite, (*self.numerator, *self.denominator))):
            raise ValueError(f"an R-transform needs finite coefficients, got {self}")
        if not self.denominator or self.denominator[0] == 0:
            raise ValueError(
                f"R(0) is the mean and must be finite, but the denominator "
                f"{self.denominator} vanishes at 0"
            )

    def cumulants(self, count: int) -> tuple[float, ...]:
        r"""Return the free cumulants $\kappa_1 \dots$: the power series of $R$."""
        top = [*self.numerator, *[0.0] * count]
        series: list[float] = []
        for k in range(count):
            known = sum(
                self.denominator[j] * series[k - j]
                for j in range(1, min(k, len(self.denominator) - 1) + 1)
            )
            series.append((top[k] - known) / self.denominator[0])
        return tuple(series)


def wigner_transform(variance: float) -> RTransform:
    r"""Return $R(g) = \sigma^2 g$ of the semicircle of radius $2\sigma$.

    Raises:
        ValueError: If `variance` is not positive.
    """
    if not variance > 0:
        raise ValueError(f"the variance of a Wigner matrix must be positive, not {variance!r}")
    return RTransform((0.0, variance))


def wishart_transform(ratio: float, sigma2: float = 1.0) -> RTransform:
    r"""Return $R(g) = \sigma^2 / (1 - \sigma^2 \varphi g)$ of Marchenko-Pastur.

    Raises:
        ValueError: If either is not positive.
    """
    if not (ratio > 0 and sigma2 > 0):
        raise ValueError(f"ratio={ratio!r} and sigma2={sigma2!r} must both be positive")
    return RTransform((sigma2,), (1.0, -sigma2 * ratio))


@dataclass(frozen=True)
class FreeSum:
    r"""The free sum of laws with rational R-transforms.

    $G$ solves $z = \sum_i R_i(G) + 1/G$. The branch is that of $1/z$ at infinity, followed
    down to the real axis; the edges are critical values of $z(G)$ on it.

    Args:
        transforms: The R-transforms $R_i$; together they must be more than Marchenko-Pastur
            with an atom (add a Wigner part), for a free sum with an atom is not drawn here.

    Raises:
        ValueError: If there are none.

    References:
        D. Voiculescu (1986); P. Biane (1997), On the free convolution with a semi-circular
        distribution.

    Example:
        >>> law = FreeSum((wigner_transform(1.0), wigner_transform(3.0)))
        >>> [round(x, 9) for x in law.support[0]]
        [-4.0, 4.0]
        >>> round(float(law.density(0.0)), 9)  # 2/(4 pi)
        0.159154943
    """

    transforms: tuple[RTransform, ...]

    def __post_init__(self) -> None:
        """Refuse an empty sum."""
        if not self.transforms:
            raise ValueError("a free sum needs at least one R-transform")

    @cached_property
    def _fraction(self) -> tuple[Polynomial, Polynomial]:
        """The inverse $z(G) = Q(G) / P(G)$."""
        top, bottom = Polynomial([0.0]), Polynomial([1.0])
        for r in self.transforms:
            over, under = Polynomial(r.numerator), Polynomial(r.denominator)
            top, bottom = top * under + over * bottom, bottom * under
        g = Polynomial([0.0, 1.0])
        return g * top + bottom, g * bottom

    def cumulants(self, count: int) -> tuple[float, ...]:
        """Return the first free cumulants, which add up over the sum."""
        return tuple(map(sum, zip(*(r.cumulants(count) for r in self.transforms), strict=True)))

    @property
    def mean(self) -> float:
        """The first free cumulant."""
        return self.cumulants(1)[0]

    @property
    def variance(self) -> float:
        """The second free cumulant."""
        return self.cumulants(2)[1]

    @property
    def atom(self) -> float:
        """No mass at zero."""
        return 0.0

    @cached_property
    def _coefficients(self) -> tuple[Array, Array]:
        """Those of the fraction, of one length, the constants first."""
        size = max(map(len, self._fraction))
        top, bottom = (
            np.pad(np.asarray(f.coef, np.float64), (0, size - len(f))) for f in self._fraction
        )
        return top, bottom

    def _roots(self, z: Complex) -> Complex:
        """Return all solutions $G$ at every `z`, `(k,)` to `(k, degree)`."""
        top, bottom = self._coefficients
        coefficients = top - z[:, None] * bottom
        degree = len(top) - 1
        companion = np.zeros((len(z), degree, degree), np.complex128)
        companion[:, np.arange(1, degree), np.arange(degree - 1)] = 1
        companion[:, :, -1] = -coefficients[:, :-1] / coefficients[:, -1:]
        return np.asarray(np.linalg.eigvals(companion))

    def stieltjes(self, z: ArrayLike) -> Complex:
        """Return $G(z)$; on the real axis the limit from above.

        Args:
            z: Any shape.
        """
        z = np.asarray(z, np.complex128)
        flat = z.ravel()
        target = np.where(flat.imag < 0, np.conj(flat), flat)
        scale = math.sqrt(self.variance)
        height = 8 * scale + np.abs(target.real - self.mean)
        g = 1 / (target + 1j * height - self.mean)
        while True:
            at = target + 1j * height
            roots = self._roots(at)
            nearest = np.abs(roots - g[:, None]).argmin(1)
            g = roots[np.arange(len(roots)), nearest]
            if not height.any():
                break
            height = np.where(height < _LOWEST * scale, 0.0, _STEP * height)
        g = np.where(flat.imag < 0, np.conj(g), g)
        return np.asarray(g.reshape(z.shape))

    @cached_property
    def _turns(self) -> tuple[float, ...]:
        """The real critical points of z(G)."""
        upper, lower = self._fraction
        points = (upper.deriv() * lower - upper * lower.deriv()).roots()
        real = np.abs(points.imag) < _REAL * (1 + np.abs(points))
        return tuple(float(point) for point in np.sort(points[real].real))

    def critical_points(self) -> tuple[float, ...]:
        """Return the values of $G$ at the left and right edge of every interval, in order."""
        upper, lower = self._fraction
        edges = [edge for interval in self.support for edge in interval]
        turns = np.asarray(self._turns)
        at = upper(turns) / lower(turns)
        return tuple(float(turns[np.nanargmin(np.abs(at - edge))]) for edge in edges)

    def bend(self, g: float) -> float:
        """Return the second derivative of $z(G)$."""
        upper, lower = self._fraction
        top, bottom = upper, lower
        for _ in range(2):
            top, bottom = top.deriv() * bottom - top * bottom.deriv(), bottom**2
        return float(top(g) / bottom(g))

    @cached_property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The intervals of the law."""
        upper, lower = self._fraction
        real = np.asarray(self._turns)
        with np.errstate(divide="ignore", invalid="ignore"):
            edges = np.sort(upper(real) / lower(real))
        edges = edges[np.isfinite(edges)]
        middles = (edges[1:] + edges[:-1]) / 2
        inside = -self.stieltjes(middles).imag / math.pi > _MASSLESS / math.sqrt(self.variance)
        intervals: list[tuple[float, float]] = []
        for low, high, kept in zip(edges, edges[1:], inside, strict=False):
            if kept and intervals and intervals[-1][1] == low:
                intervals[-1] = (intervals[-1][0], float(high))
            elif kept:
                intervals.append((float(low), float(high)))
        return tuple(intervals)

    def density(self, x: ArrayLike) -> Array:
        """Return the density, in the shape of `x`."""
        x = np.asarray(x, np.float64)
        inside = np.zeros(x.shape, bool)
        for low, high in self.support:
            inside |= (x > low) & (x < high)
        out = np.where(np.isnan(x), np.nan, 0.0)
        at = x[inside].astype(np.complex128)
        roots = self._roots(at)
        lower = roots.imag < -_MASSLESS * np.abs(roots).max(1, initial=0.0, keepdims=True)
        values = -roots.imag.min(1, initial=0.0) / math.pi
        several = lower.sum(1) > 1  # else one pair is complex, and it is the law's
        values[several] = np.maximum(0.0, -self.stieltjes(at[several]).imag / math.pi)
        out[inside] = values
        return out

    @cached_property
    def _masses(self) -> tuple[Mass, ...]:
        return tuple(Mass(self.density, low, high, _TERMS) for low, high in self.support)

    def cdf(self, x: ArrayLike) -> Array:
        """Return the mass below `x`, in its shape."""
        x = np.asarray(x, np.float64)
        return np.asarray(sum((mass.below(x) for mass in self._masses), np.zeros(x.shape)))

    def r_transform(self, g: ArrayLike) -> Complex:
        """Return the sum of the R-transforms."""
        g = np.asarray(g, np.complex128)
        parts = [Polynomial(r.numerator)(g) / Polynomial(r.denominator)(g) for r in self.transforms]
        return np.asarray(sum(parts, np.zeros(g.shape, np.complex128)))

    def __str__(self) -> str:
        """Return where the law lives."""
        pieces = " and ".join(f"[{low:.6g}, {high:.6g}]" for low, high in self.support)
        return f"free sum of {len(self.transforms)} laws on {pieces}"


def _check(energy: float, ratio: float, sigma2: float) -> None:
    for name, value in (("energy", energy), ("ratio", ratio), ("sigma2", sigma2)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, not {value!r}")


def pennington_bahri(energy: float, ratio: float, *, sigma2: float = 1.0) -> FreeSum:
    r"""Return the Hessian's law at a critical point of given loss: Wishart plus Wigner.

    $$2\varepsilon\varphi G^3 - (2\varepsilon + z\varphi) G^2 + (z + \varphi - 1) G - 1 = 0$$

    for $\sigma^2 = 1$: the Gauss-Newton part is Marchenko-Pastur of ratio $\varphi$, the rest,
    $\sum_i e_i \nabla^2 \hat y_i / m$, a semicircle of variance $2\varepsilon$.

    Args:
        energy: $\varepsilon = \frac{1}{2m} \sum_i e_i^2$, the loss at the critical point.
        ratio: $\varphi$, parameters over examples.
        sigma2: $\sigma^2$, the variance of an entry of the Jacobian.

    Raises:
        ValueError: If one is not positive.

    References:
        J. Pennington & Y. Bahri (2017), Geometry of neural network loss surfaces via random
        matrix theory, ICML.

    Example:
        >>> critical = (1 - 2 - 0.08 + 1.8**1.5) / 16  # below it, no curvature is negative
        >>> abs(pennington_bahri(critical, 0.1).support[0][0]) < 1e-9
        True
    """
    _check(energy, ratio, sigma2)
    return FreeSum((wishart_transform(ratio, sigma2), wigner_transform(2 * energy)))


def pennington_bahri_refined(energy: float, ratio: float, *, sigma2: float = 1.0) -> FreeSum:
    r"""Return the refined law, of a second part with the block structure of a ReLU network.

    $$R(g) = \frac{\sigma^2}{1 - \sigma^2\varphi g}
    + \frac{\varepsilon\varphi g}{2 - \varepsilon\varphi^2 g^2}$$

    Args:
        energy: $\varepsilon$, the loss at the critical point.
        ratio: $\varphi$, parameters over examples.
        sigma2: $\sigma^2$, the scale of the Gauss-Newton part.

    Raises:
        ValueError: If one is not positive.

    References:
        J. Pennington & Y. Bahri (2017), section 4.

    Example:
        >>> law = pennington_bahri_refined(1.0, 0.5)
        >>> [round(k, 9) for k in law.cumulants(2)]
        [1.0, 0.75]
    """
    _check(energy, ratio, sigma2)
    second = RTransform((0.0, energy * ratio), (2.0, 0.0, -energy * ratio**2))
    return FreeSum((wishart_transform(ratio, sigma2), second))
