r"""Energies at which something changes in a spherical spin glass, as positive numbers.

The threshold above which saddles rule, the level that the best known algorithms reach, the ground
state by replica symmetry breaking, and the random field that leaves two critical points only.
Energies are per spin and in units where the covariance is $n \xi$ (facts of physics papers with
variance $n/2$ are smaller by $\sqrt 2$).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.integrate import quad
from scipy.optimize import brentq, minimize, minimize_scalar

from thalweg.theory.spin_glass.mixture import Mixture

__all__ = [
    "GroundState",
    "algorithmic_energy",
    "one_step_ground_state",
    "threshold_energy",
    "trivialising_field",
]


def threshold_energy(p: int) -> float:
    r"""Return $E_\infty = 2 \sqrt{(p - 1)/p}$: critical points above $-E_\infty$ are saddles.

    There the Hessian's semicircle touches zero; above it the index of a typical critical point
    is a fraction of $n$.

    Args:
        p: Degree, at least 2.

    Returns:
        $E_\infty$, positive, per spin.

    Raises:
        ValueError: If `p` is not an integer of at least 2.

    Source: Auffinger, Ben Arous and Černý 2013, section 2.

    Example:
        >>> threshold_energy(3)
        1.632993
    """
    if isinstance(p, bool) or not isinstance(p, int) or p < 2:
        raise ValueError(f"the degree of a pure spin glass is an integer of at least 2, got {p!r}")
    return 2 * math.sqrt((p - 1) / p)


def algorithmic_energy(p: int | Mapping[int, float] | Mixture) -> float:
    r"""Return $\int_0^1 \sqrt{\xi''(q)}\, dq$: what descent along the Hessian reaches.

    Subag's algorithm attains it in polynomial time at any mixture (where a field is present, the
    part of it beyond the field); for a pure spin glass it equals `threshold_energy`.

    Args:
        p: Degree, amplitudes by degree, or a `Mixture`, without a random field.

    Returns:
        The energy, positive, per spin.

    Raises:
        ValueError: If the mixture has a field.

    Source: Subag, Following the ground states of full-RSB spherical spin glasses, Comm. Pure
    Appl. Math. 74 (2021).

    Example:
        >>> algorithmic_energy(3)
        1.632993
    """
    mixture = Mixture.of(p)
    if mixture.field:
        raise ValueError(
            f"the limit of Subag's algorithm holds without a random field, got {mixture}"
        )
    # q = t^2 removes the root at 0
    found, _ = quad(
        lambda t: 2 * t * math.sqrt(mixture.curvature(t * t)), 0, 1, epsabs=1e-13, epsrel=1e-13
    )
    return float(found)


def trivialising_field(p: int | Mapping[int, float] | Mixture) -> float:
    r"""Return the variance of a random field, per spin, beyond which two critical points remain.

    $s^2 = \xi''(1) - \xi'(1)$, without the field in $\xi$; $p(p - 2)$ for a pure spin glass. Then
    $B = 0$ in Kac-Rice and the expected count is exactly $2n$; above, it tends to 2.

    Args:
        p: Degree, amplitudes by degree, or a `Mixture`; a field that is in it is left out.

    Returns:
        $s^2$; zero or below where no field is needed.

    Source: Fyodorov and Le Doussal 2014; Fyodorov, High-dimensional random fields and random
    matrix theory, Markov Process. Related Fields 21 (2015).

    Example:
        >>> trivialising_field(3)
        3.0
    """
    mixture = Mixture.of(p)
    return mixture.curvature(1.0) - mixture.slope(1.0) + mixture.field**2


@dataclass(frozen=True, slots=True)
class GroundState:
    """A ground state energy by replica symmetry breaking, and whether that is the truth.

    Args:
        energy: Minus the ground state energy per spin; the least value of the functional.
        kind: ``"symmetric"`` or ``"one step"``.
        valid: Whether the condition of optimality holds over *all* ways of breaking, so that
            `energy` is exact; otherwise it is only an upper bound.
        overlap: Where the step lies, $q_0$.
        ratio: $z$, the reduced weight of the step; 0 where symmetric.
        slack: Least value of the condition, not below zero (to rounding) where valid.

    Example:
        >>> print(one_step_ground_state(3))
        ground state at -1.6569984 per spin (one step of replica symmetry breaking, exact)
    """

    energy: float
    kind: Literal["symmetric", "one step"]
    valid: bool
    overlap: float
    ratio: float
    slack: float

    def __str__(self) -> str:
        """Return the energy, and what it is worth."""
        how = "replica symmetric"
        if self.kind == "one step":
            how = "one step of replica symmetry breaking"
        if self.valid:
            return f"ground state at {-self.energy:.8g} per spin ({how}, exact)"
        return (
            f"ground state not below {-self.energy:.8g} per spin ({how}: not enough here, its "
            f"condition fails by {-self.slack:.2g}; more steps would give a tighter bound)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain values."""
        return {
            "type": "ground state",
            "energy": self.energy,
            "kind": self.kind,
            "valid": self.valid,
            "overlap": self.overlap,
            "ratio": self.ratio,
            "slack": self.slack,
        }


def one_step_ground_state(p: int | Mapping[int, float] | Mixture) -> GroundState:
    r"""Return the ground state energy by one-step replica symmetry breaking at zero temperature.

    The functional $\tfrac12 [\xi'(1) L - \int \xi'' \hat\alpha + \int dq / (L - \hat\alpha)]$ with
    $\hat\alpha(q) = a (q - q_0)_+$ is minimised. It is convex in $\alpha$, so a condition in one
    variable tells whether any other $\alpha$ is better; it is checked on a grid. For a pure
    $p$-spin $z$ solves $1/p = (1+z) \log(1+z)/z^2 - 1/z$ and the energy is
    $(p+z)/\sqrt{p(1+z)}$.

    Args:
        p: Degree, amplitudes by degree (degree 1 is a random field), or a `Mixture`.

    Returns:
        The energy and whether one step is enough.

    Source: Crisanti and Sommers 1992; Chen and Sen, Parisi formula, disorder chaos and
    fluctuation for the ground state energy in the spherical mixed p-spin models, Comm. Math.
    Phys. 350 (2017), theorem 1; Jagannath and Tobasco 2017.

    Example:
        >>> one_step_ground_state(3).energy
        1.6569983
    """
    xi = Mixture.of(p)
    symmetric = math.sqrt(xi.slope(1.0))
    overlap, ratio, square = 0.0, 0.0, xi.slope(1.0)
    found = minimize_scalar(
        lambda w: _squared_energy(xi, math.exp(w), 0.0),
        bounds=(-12, 12),
        method="bounded",
        options={"xatol": 1e-10},
    )
    if float(found.fun) < square:
        ratio = _stationary(xi, float(found.x))
        square = _squared_energy(xi, ratio, 0.0)
    if xi.field:
        stepped = _with_overlap(xi)
        if stepped[2] < square:
            ratio, overlap, square = stepped
    energy = math.sqrt(square)
    if energy > symmetric * (1 - 1e-9):
        energy, overlap, ratio = symmetric, 0.0, 0.0
    slack = _slack(xi, ratio, overlap)
    valid = slack > -1e-7 * xi.slope(1.0)
    return GroundState(energy, "one step" if ratio else "symmetric", valid, overlap, ratio, slack)


def _terms(xi: Mixture, z: float, q0: float) -> tuple[float, float]:
    """Return the coefficients of y and 1/y in twice the functional, y = L - a (1 - q0)."""
    rise = (xi.xi(1.0) - xi.xi(q0)) / (1 - q0)
    return (
        xi.slope(1.0) + z * rise,
        q0 / (1 + z) + (1 - q0) * (math.log1p(z) / z if z else 1.0),
    )


def _squared_energy(xi: Mixture, z: float, q0: float) -> float:
    """Return the square of the functional at its best y."""
    growing, falling = _terms(xi, z, q0)
    return growing * falling


def _with_overlap(xi: Mixture) -> tuple[float, float, float]:
    """Return z, q0 and the squared energy where a field gives the step an overlap."""

    def objective(w: Float[np.ndarray, " two"]) -> float:
        q0 = 1 / (1 + math.exp(-w[1]))
        return _squared_energy(xi, math.exp(w[0]), q0) / xi.slope(1.0) - 1

    starts = [(w, q) for w in (-3.0, 1.0) for q in (-2.0, 1.0, 4.0)]
    best = min(
        (minimize(objective, start, method="BFGS", options={"gtol": 1e-12}) for start in starts),
        key=lambda found: float(found.fun),
    )
    polished = minimize(
        objective,
        best.x,
        method="Nelder-Mead",
        options={"fatol": 1e-16, "xatol": 1e-9, "maxfev": 4000},
    )
    z, q0 = math.exp(float(polished.x[0])), 1 / (1 + math.exp(-float(polished.x[1])))
    return z, q0, _squared_energy(xi, z, q0)


def _stationary(xi: Mixture, start: float) -> float:
    """Return the z near e^start at which the functional without overlap is stationary."""

    def slope(w: float) -> float:
        z = math.exp(w)
        share = z * xi.xi(1.0) / (xi.slope(1.0) + z * xi.xi(1.0))
        return share + z / ((1 + z) * math.log1p(z)) - 1

    low, high = start - 0.1, start + 0.1
    if slope(low) * slope(high) >= 0:
        return math.exp(start)
    return math.exp(brentq(slope, low, high, xtol=1e-14))


def _slack(xi: Mixture, z: float, q0: float) -> float:
    """Return the least value over a grid of the condition of optimality; 0 or more is optimal."""
    growing, falling = _terms(xi, z, q0)
    y = math.sqrt(falling / growing)
    L, a = (1 + z) * y, z * y / (1 - q0)
    t = np.linspace(0, 1, 4001)
    late, early = np.maximum(t, q0), np.maximum(q0 - t, 0.0)
    if a:
        rest = ((1 - late) / y - np.log((L - a * (late - q0)) / y) / a) / a
        rest += early * (1 / y - 1 / L) / a + early**2 / (2 * L**2)
    else:
        rest = (1 - t) ** 2 / (2 * L**2)
    condition = rest - xi.slope(1.0) * (1 - t) + xi.xi(1.0)
    condition -= np.array([xi.xi(float(q)) for q in t])
    return float(condition.min())
