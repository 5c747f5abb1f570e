r"""Index against energy: the share of negative eigenvalues at critical points of given loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from thalweg.estimate import Estimate
from thalweg.theory.random_matrix.free import (
    FreeSum,
    pennington_bahri,
    pennington_bahri_refined,
)

__all__ = [
    "IndexFit",
    "critical_energy",
    "fit_index_power",
    "index_fraction",
    "index_prefactor",
]

Array = NDArray[np.float64]

_LEAST_POINTS = 12
_LEAST_POSITIVE = 8
_STARTS = (0.8, 0.9, 0.95, 0.99)
_KINKS = 5
_NAMES = ("exponent", "critical", "prefactor", "correction")
_FIRST_STEP, _FINE, _FAR, _LONGEST = 0.05, 0.05, 6.0, 40
_ROUNDING = 1e-20


def _law(energy: float, ratio: float, sigma2: float, refined: bool) -> FreeSum:
    make = pennington_bahri_refined if refined else pennington_bahri
    return make(energy, ratio, sigma2=sigma2)


def critical_energy(ratio: float, *, sigma2: float = 1.0, refined: bool = False) -> float:
    r"""Return the loss below which typical critical points are minima.

    $$\varepsilon_c = \frac{\sigma^4}{16}\bigl(1 - 20\varphi - 8\varphi^2
    + (1 + 8\varphi)^{3/2}\bigr)$$

    and, refined, with $\chi = 1 + 16\varphi - 8\varphi^2$,
    $\varepsilon_c = \sigma^4 (27 - 18\chi - \chi^2 + 8\chi^{3/2}) / (32\varphi(1 - \varphi)^3)$.

    Args:
        ratio: $\varphi$, parameters over examples, between 0 and 1.
        sigma2: $\sigma^2$, the scale of the Gauss-Newton part.
        refined: Whether the second part has the block structure of a ReLU network.

    Raises:
        ValueError: If `ratio` is not in (0, 1), where alone there is such an energy.

    References:
        J. Pennington & Y. Bahri (2017), equations 12 and 16.

    Example:
        >>> [round(critical_energy(phi), 6) for phi in (0.1, 0.25, 0.5, 0.75)]
        [0.083435, 0.04351, 0.011271, 0.001266]
    """
    if not 0 < ratio < 1:
        raise ValueError(
            f"ratio={ratio!r} must lie in (0, 1): with as many parameters as examples the "
            "Gauss-Newton part is singular, and any residual makes some curvature negative"
        )
    if not sigma2 > 0:
        raise ValueError(f"sigma2 must be positive, not {sigma2!r}")
    if refined:
        chi = 1 + 16 * ratio - 8 * ratio**2
        top = 27 - 18 * chi - chi**2 + 8 * chi**1.5
        return float(sigma2**2 * top / (32 * ratio * (1 - ratio) ** 3))
    return float(sigma2**2 * (1 - 20 * ratio - 8 * ratio**2 + (1 + 8 * ratio) ** 1.5) / 16)


def index_fraction(
    energy: ArrayLike, ratio: float, *, sigma2: float = 1.0, refined: bool = False
) -> Array:
    r"""Return $\alpha(\varepsilon)$, the mass of the Hessian's law below zero.

    Args:
        energy: $\varepsilon \ge 0$, any shape.
        ratio: $\varphi$.
        sigma2: $\sigma^2$.
        refined: See `critical_energy`.

    Returns:
        The index over the dimension, in the shape of `energy`.

    Raises:
        ValueError: If an energy is negative, or `ratio` not positive.

    Example:
        >>> index_fraction([0.05, 0.2085859], 0.1).round(4).tolist()
        [0.0, 0.0942]
    """
    energy = np.asarray(energy, np.float64)
    if np.any(energy < 0):
        raise ValueError(f"an energy of squared residuals is not negative, got {energy.min():g}")
    floor = critical_energy(ratio, sigma2=sigma2, refined=refined) if ratio < 1 else 0.0
    values = [
        float(_law(e, ratio, sigma2, refined).cdf(0.0)) if e > floor else 0.0 * e
        for e in map(float, energy.ravel())
    ]
    return np.asarray(values, np.float64).reshape(energy.shape)


def index_prefactor(ratio: float, *, sigma2: float = 1.0, refined: bool = False) -> float:
    r"""Return the factor of the 3/2 law just above the critical energy.

    $\alpha \approx \alpha_0 |(\varepsilon - \varepsilon_c) / \varepsilon_c|^{3/2}$.

    At the edge $z(G)$ has a critical point $G_c < 0$, so $\rho(x) \approx \frac1\pi
    \sqrt{2 (x - x_c) / |z''(G_c)|}$, and the edge moves with $\partial_\varepsilon
    R(G_c)$: $\alpha_0 = \frac{2}{3\pi} \sqrt{2 / |z''(G_c)|}\,
    |\varepsilon_c\,\partial_\varepsilon R(G_c)|^{3/2}$.

    Raises:
        ValueError: If `ratio` is not in (0, 1).

    Example:
        >>> round(index_prefactor(0.25), 5)
        0.07483
    """
    critical = critical_energy(ratio, sigma2=sigma2, refined=refined)
    law = _law(critical, ratio, sigma2, refined)
    edge = law.critical_points()[0]
    width = 1e-3 * critical
    low, high = (
        _law(critical + step, ratio, sigma2, refined).r_transform(edge).real
        for step in (-width, width)
    )
    drift = critical * float(high - low) / (2 * width)
    return float(2 / (3 * math.pi) * math.sqrt(2 / abs(law.bend(edge))) * abs(drift) ** 1.5)


@dataclass(frozen=True)
class IndexFit:
    r"""A power law of the index with its first correction; intervals by profile likelihood.

    $\alpha = \alpha_0 x_+^\kappa / (1 + c x)$ with $x = (\varepsilon - \varepsilon_c) /
    \varepsilon_c$.

    Attributes:
        exponent: $\kappa$; 3/2 where the law has a square-root edge.
        critical: $\varepsilon_c$.
        prefactor: $\alpha_0$.
        correction: $c$; without it a wide window would bend the exponent.
        window: The largest $x$ among the points: how far from $\varepsilon_c$ they reach.
        residual: Root mean square of what the fit leaves, over points of positive index.
    """

    exponent: Estimate
    critical: Estimate
    prefactor: Estimate
    correction: Estimate
    window: float
    residual: float

    def __str__(self) -> str:
        """Return the four numbers, and how far the points reach."""
        return (
            f"index ~ {self.prefactor} * x^k / (1 + c x), x = (energy - e_c)/e_c up to "
            f"{self.window:.3g}, with k = {self.exponent}, e_c = {self.critical} and c = "
            f"{self.correction}; rms residual {self.residual:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of the numbers."""
        return {
            "type": "index fit",
            **{name: getattr(self, name).to_json() for name in _NAMES},
            "window": self.window,
            "residual": self.residual,
        }


class _Fit:
    """Least squares in the logarithms of (exponent, critical, prefactor, c + floor)."""

    def __init__(self, energies: Array, indices: Array) -> None:
        self.energies, self.indices = energies, indices
        self.least = float(energies[indices > 0].min())
        self.reach = max(float(energies.max()) / self.least - 1, 0.01)
        self.scale = float(indices.max())
        self.floor = 0.5 / self.reach

    def curve(self, at: Array) -> tuple[Array, Array]:
        """Return the indices over their scale, and their derivatives `(points, 4)`."""
        kappa, critical, prefactor, shifted = np.exp(np.clip(at, -30, 30))
        x = np.maximum(self.energies / critical - 1, 0)
        bend = 1 + (shifted - self.floor) * x
        held = np.maximum(bend, 1e-6)
        above = x > 0
        log_x = np.log(np.where(above, x, 1))
        value = np.where(above, prefactor * np.exp(np.clip(kappa * log_x, -80, 80)) / held, 0)
        ratio = np.where(above, (x + 1) / np.where(above, x, 1), 0)  # - dx/x by log critical
        slope = kappa - (shifted - self.floor) * x / held
        columns = kappa * log_x, -slope * ratio, np.ones_like(x), -shifted * x / held
        return value / self.scale, value[:, None] / self.scale * np.stack(columns, 1)

    def solve(self, start: Array, held: int | None = None) -> tuple[Array, float]:
        """Return the best point, and its sum of squares; one coordinate may be held."""
        free = [k for k in range(len(start)) if k != held]
        at = start.copy()

        def placed(part: Array) -> Array:
            at[free] = part
            return at

        target = self.indices / self.scale
        part = optimize.leastsq(
            lambda part: self.curve(placed(part))[0] - target,
            start[free],
            Dfun=lambda part: self.curve(placed(part))[1][:, free],
            maxfev=200,
        )[0]
        best = placed(np.asarray(part)).copy()
        return best, float(((self.curve(best)[0] - target) ** 2).sum())

    def basins(self) -> list[tuple[Array, float]]:
        """Return the local minima, best first: there is a kink where `critical` passes a point."""
        first = np.sort(self.energies[self.indices > 0])[:_KINKS]
        places = [self.least * share for share in _STARTS] + list((first[1:] + first[:-1]) / 2)
        found: list[tuple[Array, float]] = []
        for place in places:
            start = [1.5, float(place), self.scale / self.reach**1.5, 0.6 / self.reach]
            at, squares = self.solve(self.solve(np.log(start), held=1)[0])
            if not any(np.allclose(at, known, atol=1e-3) for known, _ in found):
                found.append((at, squares))
        return sorted(found, key=lambda pair: pair[1])

    def reached(self, found: Array, k: int, side: int, most: float) -> float:
        """Return where the squares pass `most` as coordinate `k` moves; infinite if nowhere."""
        step, inside, outside, at = _FIRST_STEP, 0.0, math.inf, found
        for _ in range(_LONGEST):
            tried = inside + step if math.isinf(outside) else (inside + outside) / 2
            start = at.copy()
            start[k] = found[k] + side * tried
            moved, squares = self.solve(start, held=k)
            if squares <= most:
                inside, at, step = tried, moved, 2 * step
            else:
                outside = tried
            if math.isinf(outside) and inside > _FAR:
                break
            if outside - inside < _FINE * outside:
                break
        return float(found[k] + side * outside)


def fit_index_power(
    energies: Float[np.ndarray, " points"],
    indices: Float[np.ndarray, " points"],
    *,
    level: float = 0.95,
) -> IndexFit:
    r"""Fit $\alpha = \alpha_0 x_+^\kappa/(1 + c x)$ with $x = \varepsilon/\varepsilon_c - 1$.

    Least squares over all points, those of index zero among them. An interval holds the values
    at which the best fit of the others is not significantly worse (F-test: normal errors, alike
    above $\varepsilon_c$). The law of Pennington and Bahri has this form to 1 % up to $x = 1/2$,
    with $c$ between 0.6 and 1; a bare power would find exponents near 1.24 there.

    Args:
        energies: The losses of critical points, `(points,)`.
        indices: Their share of negative eigenvalues, `(points,)`, in [0, 1].
        level: Nominal coverage.

    Returns:
        The exponent, the critical energy, the prefactor and the correction.

    Raises:
        ValueError: If there are fewer than 12 points or 8 of positive index, or a value is out
            of range.

    Example:
        >>> energies = np.linspace(0.03, 0.065, 15)
        >>> fit = fit_index_power(energies, index_fraction(energies, 0.25))
        >>> round(fit.exponent.value, 2), round(fit.critical.value, 4)  # in theory 0.0435
        (1.50, 0.0435)
    """
    energies, indices = np.asarray(energies, np.float64), np.asarray(indices, np.float64)
    count = int((indices > 0).sum())
    if len(energies) < _LEAST_POINTS or count < _LEAST_POSITIVE:
        raise ValueError(
            f"a power law needs {_LEAST_POINTS} points and {_LEAST_POSITIVE} of positive index, "
            f"got {len(energies)} and {count}; sample critical points at more energies"
        )
    if not (np.all(energies > 0) and np.all((indices >= 0) & (indices <= 1))):
        raise ValueError("energies must be positive and indices must lie in [0, 1], none NaN")
    fit, spare = _Fit(energies, indices), count - len(_NAMES)
    basins = fit.basins()
    found, squares = basins[0]
    most = squares * (1 + float(stats.f.ppf(level, 1, spare)) / spare) + _ROUNDING
    shift = np.array([0.0, 0.0, 0.0, fit.floor])
    value = np.exp(found) - shift
    near = [at for at, worse in basins if worse <= most]
    ends = [
        [
            math.exp(side * max(side * fit.reached(at, k, side, most) for at in near)) - shift[k]
            for side in (-1, 1)
        ]
        for k in range(len(_NAMES))
    ]
    width = 2 * float(stats.t.ppf((1 + level) / 2, spare))
    estimates = {
        name: Estimate(
            value=float(value[k]),
            stderr=float(ends[k][1] - ends[k][0]) / width,
            interval=(float(ends[k][0]), float(ends[k][1])),
            samples=len(energies),
            level=level,
            method="least squares, profile F-test",
        )
        for k, name in enumerate(_NAMES)
    }
    window = float(energies.max() / value[1] - 1)
    return IndexFit(**estimates, window=window, residual=fit.scale * math.sqrt(squares / count))
