r"""Index against energy: the share of negative eigenvalues at critical points of given loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from thalweg.estimate import Estimate
from thalweg.landscape.seeding import Seed, make_generator
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
    "index_spin_glass",
]

Array = NDArray[np.float64]

_LEAST_POINTS = 12
_EXPONENTS = (0.3, 6.0)
_STARTS = (0.0, 0.5, 0.9)


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


def index_spin_glass(energy: ArrayLike, p: int) -> Array:
    r"""Return the index fraction of the spherical p-spin glass at energy $u$ per spin.

    $\alpha(u) = F_{sc}(u \sqrt{p / (p - 1)})$, the part of the semicircle around $-pu$ of radius
    $2\sqrt{p(p - 1)}$ that lies below zero; zero below $-E_\infty$.

    Args:
        energy: $u$, any shape.
        p: The degree, at least 2.

    Raises:
        ValueError: If `p` is below 2.

    Example:
        >>> index_spin_glass([-1.7, -0.7, 0.0], 3).round(3).tolist()
        [0.0, 0.236, 0.5]
    """
    from thalweg.theory.random_matrix.semicircle import semicircle_cdf

    if p < 2:
        raise ValueError(f"a spin glass has a degree of at least 2, not {p}")
    return semicircle_cdf(np.asarray(energy, np.float64) * math.sqrt(p / (p - 1)))


@dataclass(frozen=True)
class IndexFit:
    r"""A power law of the index, with intervals by the bootstrap over points.

    $\alpha = \alpha_0 ((\varepsilon - \varepsilon_c) / \varepsilon_c)_+^\kappa$.

    Attributes:
        exponent: $\kappa$; 3/2 where the law has a square-root edge.
        critical: $\varepsilon_c$.
        prefactor: $\alpha_0$.
        residual: Root mean square of what the fit leaves.
        failed: The share of bootstrap replicates without a fit.
    """

    exponent: Estimate
    critical: Estimate
    prefactor: Estimate
    residual: float
    failed: float

    def __str__(self) -> str:
        """Return the three numbers, and what failed."""
        lost = f"; {self.failed:.1%} of the replicates had no fit" if self.failed else ""
        return (
            f"index ~ {self.prefactor} * ((energy - e_c)/e_c)^k with k = {self.exponent} and "
            f"e_c = {self.critical}; rms residual {self.residual:.2g}{lost}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of the numbers."""
        names = ("exponent", "critical", "prefactor")
        return {
            "type": "index fit",
            **{name: getattr(self, name).to_json() for name in names},
            "residual": self.residual,
            "failed": self.failed,
        }


def _solve(energies: Array, indices: Array, start: Array | None = None) -> Array | None:
    """Return (exponent, critical, prefactor) by least squares, or None."""
    positive = energies[indices > 0]
    if len(positive) < 4:
        return None
    low, high = 0.2 * float(positive.min()), float(np.median(positive))
    scale = float(indices.max())

    def gaps(at: Array) -> Array:
        above = np.maximum(energies - at[1], 0) / at[1]
        return np.asarray((at[2] * scale * above ** at[0] - indices) / scale)

    box = ([_EXPONENTS[0], low, 0.0], [_EXPONENTS[1], high, np.inf])
    starts = [start] if start is not None else []
    least = float(positive.min())
    reach = (float(energies.max()) - least) / least
    starts += [
        np.array([1.5, least * (1 - 0.1 * k), 1 / max(reach, 0.1) ** 1.5])
        for k in (_STARTS if start is None else ())
    ]
    fits = [
        optimize.least_squares(
            gaps, np.clip(s, np.array(box[0]) * 1.001, np.array(box[1]) * 0.999), bounds=box
        )
        for s in starts
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    return np.array([best.x[0], best.x[1], best.x[2] * scale]) if best.success else None


def fit_index_power(
    energies: Float[np.ndarray, " points"],
    indices: Float[np.ndarray, " points"],
    *,
    replicates: int = 200,
    level: float = 0.95,
    seed: Seed = None,
) -> IndexFit:
    r"""Fit $\alpha = \alpha_0 ((\varepsilon - \varepsilon_c)/\varepsilon_c)_+^\kappa$.

    Least squares over all points, those of index zero among them; intervals are the quantiles
    of `replicates` fits to points drawn with replacement. The 3/2 law is asymptotic: leave out
    points far above $\varepsilon_c$.

    Args:
        energies: The losses of critical points, `(points,)`.
        indices: Their share of negative eigenvalues, `(points,)`, in [0, 1].
        replicates: How many bootstrap samples.
        level: Nominal coverage.
        seed: An int, a generator, or None; recorded in the result.

    Returns:
        The exponent, the critical energy and the prefactor.

    Raises:
        ValueError: If there are fewer than 12 points or 4 of positive index, a value is out of
            range, or no fit converges.
    """
    energies, indices = np.asarray(energies, np.float64), np.asarray(indices, np.float64)
    if len(energies) < _LEAST_POINTS or int((indices > 0).sum()) < 4:
        raise ValueError(
            f"a power law needs {_LEAST_POINTS} points and 4 of positive index, got "
            f"{len(energies)} and {int((indices > 0).sum())}; sample critical points at more "
            "energies"
        )
    if not (np.all(energies > 0) and np.all((indices >= 0) & (indices <= 1))):
        raise ValueError("energies must be positive and indices must lie in [0, 1], none NaN")
    found = _solve(energies, indices)
    if found is None:
        raise ValueError("least squares did not converge; leave out points far above the others")
    number = make_generator(seed)[1]
    rng = np.random.default_rng(number)
    draws = [rng.integers(0, len(energies), len(energies)) for _ in range(replicates)]
    raw = [found[0], found[1], found[2] / float(indices.max())]
    fits = [_solve(energies[d], indices[d], np.array(raw)) for d in draws]
    kept = np.array([f for f in fits if f is not None])
    ends = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2], axis=0)
    estimates = [
        Estimate(
            value=float(found[k]),
            stderr=float(kept[:, k].std(ddof=1)),
            interval=(float(ends[0, k]), float(ends[1, k])),
            samples=len(energies),
            level=level,
            method=f"least squares, bootstrap of {len(kept)} replicates",
            seed=number,
        )
        for k in range(3)
    ]
    gaps = indices - found[2] * np.maximum((energies - found[1]) / found[1], 0) ** found[0]
    failed = 1 - len(kept) / replicates
    exponent, critical, prefactor = estimates
    return IndexFit(exponent, critical, prefactor, float(np.sqrt(np.mean(gaps**2))), failed)
