r"""The Hessian of a pure spherical spin glass at a given energy: its law, limit and samples.

At energy per spin $u$ the Riemannian Hessian of $H$ is $\sqrt{p(p-1)}\, G - p u I$ with $G$ from
the Gaussian orthogonal ensemble of order $n - 1$, entries of variance $1/n$. *At a critical point*
each matrix counts with weight $|\det|$ (Kac-Rice); the weight does not move the limiting law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from thalweg.estimate import Estimate
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.random_matrix.ensembles import goe_eigenvalues
from thalweg.theory.random_matrix.semicircle import Semicircle, semicircle_cdf
from thalweg.theory.spin_glass.thresholds import threshold_energy

__all__ = [
    "HessianSample",
    "hessian_law",
    "index_fraction",
    "lowest_eigenvalue",
    "sample_hessians",
]


def hessian_law(u: float, p: int) -> Semicircle:
    r"""Return the limiting law of the Hessian's eigenvalues at energy `u`.

    Centre $-pu$, radius $2\sqrt{p(p-1)}$. At $u = -E_\infty$, the threshold states, it begins at
    zero exactly.

    Args:
        u: Energy per spin.
        p: Degree, at least 2.

    Returns:
        A semicircle, with `.density`, `.cdf` and `.support`, for the Hessian of $H$ on the sphere
        of radius $\sqrt n$.

    Raises:
        ValueError: If `p` is not an integer of at least 2.

    Source: Auffinger, Ben Arous and Černý 2013, section 3.

    Example:
        >>> print(hessian_law(-threshold_energy(3), 3))
        semicircle of radius 4.89898 around 4.89898
    """
    threshold_energy(p)
    return Semicircle(radius=2 * math.sqrt(p * (p - 1)), centre=-p * float(u))


def lowest_eigenvalue(
    u: float | Float[np.ndarray, "*shape"], p: int
) -> float | Float[np.ndarray, "*shape"]:
    r"""Return the lower edge $p(-u - E_\infty)$ of the Hessian's limiting law.

    The smallest curvature of a minimum of energy `u` for large $n$; where it is negative the
    point is a saddle.

    Args:
        u: Energies per spin, a number or any shape.
        p: Degree, at least 2.

    Returns:
        The edge at each energy.

    Raises:
        ValueError: As `hessian_law`.

    Example:
        >>> lowest_eigenvalue(-1.65, 3)
        0.051020
    """
    found = p * (-np.asarray(u, float) - threshold_energy(p))
    return found if found.ndim else float(found)


def index_fraction(
    u: float | Float[np.ndarray, "*shape"], p: int
) -> float | Float[np.ndarray, "*shape"]:
    r"""Return the expected fraction of negative directions at energy `u`, for large $n$.

    $\alpha(u) = F(u \sqrt{p/(p-1)})$ with $F$ the semicircle's distribution function on
    $[-2, 2]$; just above the threshold it grows as $(u + E_\infty)^{3/2}$.

    Args:
        u: Energies per spin, a number or any shape.
        p: Degree, at least 2.

    Returns:
        Fractions in [0, 1].

    Raises:
        ValueError: As `hessian_law`.

    Example:
        >>> index_fraction(-1.13, 3)
        0.098
    """
    energy = np.asarray(u, float)
    scaled = np.atleast_1d(energy * (2 / threshold_energy(p)))
    found = semicircle_cdf(scaled).reshape(energy.shape)
    return found if found.ndim else float(found)


@dataclass(frozen=True, slots=True)
class HessianSample:
    """Hessian spectra at one energy, with the weights that they have at critical points.

    Args:
        eigenvalues: `(samples, n - 1)`, ascending along a row, of the Hessian of H.
        log_weights: `(samples,)`, log of the modulus of the determinant, largest 0.
        energy: Energy per spin.
        p: Degree.
        seed: What drew them.

    Example:
        >>> drawn = sample_hessians(60, 3, -1.13, samples=500, seed=0)
        >>> 0.091 in drawn.index_fraction()
        True
    """

    eigenvalues: Float[np.ndarray, "samples less"]
    log_weights: Float[np.ndarray, " samples"]
    energy: float
    p: int
    seed: int

    @property
    def effective(self) -> float:
        """The effective number of samples, once weighted."""
        log = 2 * logsumexp(self.log_weights) - logsumexp(2 * self.log_weights)
        return float(np.exp(log))

    def mean(self, values: Float[np.ndarray, " samples"]) -> Estimate:
        """Average a function of the spectrum over critical points of this energy.

        Args:
            values: The function at each spectrum, `(samples,)`.

        Returns:
            The weighted mean; its standard error is that of a ratio of means.
        """
        share = np.exp(self.log_weights - logsumexp(self.log_weights))
        value = float(share @ values)
        error = math.sqrt(float((share**2) @ (values - value) ** 2))
        method = f"spectra weighted by |det|, {self.effective:.0f} effective samples"
        ends = (value - 1.959964 * error, value + 1.959964 * error)
        return Estimate(value, error, ends, len(values), method=method, seed=self.seed)

    def index_fraction(self) -> Estimate:
        """Average the fraction of negative directions at critical points of this energy."""
        return self.mean((self.eigenvalues < 0).mean(axis=1))

    def lowest(self) -> Estimate:
        """Average the lowest eigenvalue at critical points of this energy."""
        return self.mean(self.eigenvalues[:, 0])

    def __str__(self) -> str:
        """Return what was drawn, and the mean index."""
        count, order = self.eigenvalues.shape
        return (
            f"{count} Hessians of order {order} at energy {self.energy:g} (p = {self.p}); "
            f"negative directions of critical points: {self.index_fraction()}"
        )


def sample_hessians(
    n: int, p: int, u: float, *, samples: int = 100, seed: Seed = None
) -> HessianSample:
    r"""Draw spectra of the Hessian at energy `u`, exactly at finite `n`.

    Args:
        n: Number of spins, at least 3.
        p: Degree, at least 2.
        u: Energy per spin.
        samples: How many spectra.
        seed: What draws them.

    Returns:
        The spectra of the Gaussian law, and the weights that make them those of critical points.

    Raises:
        ValueError: If `n` is below 3, `samples` below 2 or `p` not an integer of at least 2.

    Source: Auffinger, Ben Arous and Černý 2013, section 3.

    Example:
        >>> sample_hessians(10, 3, -1.5, samples=4, seed=0).eigenvalues.shape
        (4, 9)
    """
    threshold_energy(p)
    if n < 3 or samples < 2:
        raise ValueError(f"n must be at least 3 and samples 2, got n={n} and samples={samples}")
    recorded = make_generator(seed)[1]
    radius = 2 * math.sqrt(p * (p - 1) * (n - 1) / n)
    values = goe_eigenvalues(n - 1, samples, radius=radius, seed=recorded) - p * float(u)
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(values)).sum(axis=1)
    return HessianSample(values, logs - logs.max(), float(u), p, recorded)
