r"""The complexity of a pure spherical spin glass: how fast the number of critical points grows.

$\Theta_p(u) = \lim \frac1n \log E[\#\{\text{critical points of energy per spin} \le u\}]$, and
$\Theta_{k,p}$ for those of index $k$. Its roots are energies $E_0 > E_1 > \dots > E_\infty$: with
overwhelming probability all critical points below $-n E_k$ have index at most $k - 1$.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from rich.table import Table
from scipy.optimize import brentq
from scipy.special import airy

from thalweg.theory.spin_glass.thresholds import threshold_energy

__all__ = [
    "EnergyBands",
    "asymptotic_log_count",
    "complexity",
    "energy_bands",
    "energy_level",
    "ground_state_energy",
    "largest_index",
]


def complexity(
    u: float | Float[np.ndarray, "*shape"], p: int, k: int | None = None
) -> float | Float[np.ndarray, "*shape"]:
    r"""Return $\Theta_p(u)$, or $\Theta_{k,p}(u)$ for critical points of index `k`.

    With $t = -u/E_\infty$ and $I = t \sqrt{t^2 - 1} - \operatorname{arccosh} t$ for $t \ge 1$, else
    0: $\Theta_p = \tfrac12 \log(p-1) - \frac{p-2}{4(p-1)} \min(u, 0)^2 - I$, and for an index
    $(k+1) I$ instead of $I$, constant $\tfrac12 \log(p-1) - \frac{p-2}{p}$ from $-E_\infty$ on.

    Args:
        u: Energies per spin, a number or any shape.
        p: Degree, at least 2.
        k: Index, from 0; None counts all critical points.

    Returns:
        The complexity at each energy, per spin; negative where no such point is expected.

    Raises:
        ValueError: If `p` is not an integer of at least 2 or `k` is negative.

    Source: Auffinger, Ben Arous and Černý 2013, section 2. The plateau is misprinted
    as $(p-2)/(4(p-1))$ in Choromanska et al. 2015.

    Example:
        >>> complexity(-1.0, 3, k=0)
        0.0132403
    """
    edge = threshold_energy(p)
    if k is not None and k < 0:
        raise ValueError(f"an index is 0 or more, got {k}")
    energy = np.minimum(np.asarray(u, float), 0.0)
    if k is not None:
        energy = np.minimum(energy, -edge)
    rate = _rate(-energy / edge) * (1 if k is None else k + 1)
    found = 0.5 * math.log(p - 1) - (p - 2) / (4 * (p - 1)) * energy**2 - rate
    return found if found.ndim else float(found)


def _rate(t: float | Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    r"""Return $t \sqrt{t^2-1} - \operatorname{arccosh} t$: an eigenvalue at $t$ edges, per $n$."""
    angle = np.arccosh(np.maximum(t, 1.0))
    return np.asarray(np.sinh(2 * angle) / 2 - angle)


def energy_level(p: int, k: int = 0) -> float:
    r"""Return $E_k$: below $-n E_k$ there is no critical point of index `k` or more.

    The root of $\Theta_{k,p}(-E_k) = 0$; strictly decreasing in `k` towards $E_\infty$ for
    $p \ge 3$, all equal to it for $p = 2$.

    Args:
        p: Degree, at least 2.
        k: Index, from 0.

    Returns:
        $E_k$, positive, per spin, to rounding.

    Raises:
        ValueError: As `complexity`.

    Source: Auffinger, Ben Arous and Černý 2013, section 2.

    Example:
        >>> [round(energy_level(3, k), 6) for k in range(3)]
        [1.656998, 1.652873, 1.650253]
    """
    edge = threshold_energy(p)
    if float(complexity(-edge, p, k)) <= 1e-15:
        return edge
    high = 2 * edge
    while float(complexity(-high, p, k)) > 0:
        high *= 2
    return float(brentq(lambda v: complexity(-v, p, k), edge, high, xtol=1e-15, rtol=1e-15))


def ground_state_energy(p: int) -> float:
    """Return $E_0$: minus the ground state energy per spin of a pure spin glass.

    Args:
        p: Degree, at least 2.

    Returns:
        $E_0$, positive; equal to `one_step_ground_state`.

    Raises:
        ValueError: As `threshold_energy`.

    Source: Auffinger, Ben Arous and Černý 2013; Subag 2017.

    Example:
        >>> ground_state_energy(4)
        1.7940850
    """
    return energy_level(p, 0)


def largest_index(
    u: float | Float[np.ndarray, "*shape"], p: int
) -> float | Float[np.ndarray, "*shape"]:
    r"""Return the largest index of a critical point of energy `u`, for large `n`.

    Between $-E_k$ and $-E_{k+1}$ it is `k`; -1 below $-E_0$ (there is none); infinity above
    $-E_\infty$, where the index grows with $n$.

    Args:
        u: Energies per spin, a number or any shape.
        p: Degree, at least 3 (for 2 all bands are empty).

    Returns:
        The largest index, as floats because it may be infinite.

    Raises:
        ValueError: If `p` is not an integer of at least 2.

    Source: Auffinger, Ben Arous and Černý 2013, section 2 (layers).

    Example:
        >>> largest_index(np.array([-1.7, -1.655, -1.651, -1.6]), 3)
        array([-1.,  0.,  1., inf])
    """
    edge = threshold_energy(p)
    energy = np.asarray(u, float)
    rate = _rate(-energy / edge)
    base = 0.5 * math.log(p - 1) - (p - 2) / (4 * (p - 1)) * energy**2
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.floor(np.maximum(base / rate, 0.0)) - 1
    found = np.where(energy >= -edge, math.inf, found)
    found = np.where(np.isnan(energy), math.nan, found)
    return found if found.ndim else float(found)


@dataclass(frozen=True, slots=True)
class EnergyBands:
    r"""The bands of a pure spin glass: which indices live at which energies.

    Args:
        p: Degree.
        levels: $E_0$, $E_1$, … as positive numbers, decreasing.
        threshold: $E_\infty$, their limit.

    Example:
        >>> print(energy_bands(3, 2))
        below -1.656998: nothing
        -1.656998 to -1.652873: index 0
        -1.652873 to -1.632993: index 0, 1 and more, each from its own level
        above -1.632993: saddles whose index is a fraction of n
    """

    p: int
    levels: tuple[float, ...]
    threshold: float

    def _rows(self) -> list[tuple[str, str]]:
        ends = [*self.levels, self.threshold]
        rows = [(f"below {-ends[0]:.6f}", "nothing")]
        for k in range(len(self.levels)):
            names = ", ".join(str(i) for i in range(k + 1))
            more = " and more, each from its own level" if k == len(self.levels) - 1 else ""
            rows.append((f"{-ends[k]:.6f} to {-ends[k + 1]:.6f}", f"index {names}{more}"))
        return [*rows, (f"above {-self.threshold:.6f}", "saddles whose index is a fraction of n")]

    def __str__(self) -> str:
        """Return one line per band."""
        return "\n".join(f"{where}: {what}" for where, what in self._rows())

    def __rich__(self) -> Table:
        """Return the bands as a table."""
        table = Table("energy per spin", "critical points", title=f"bands at p = {self.p}")
        for where, what in self._rows():
            table.add_row(where, what)
        return table


def energy_bands(p: int, levels: int = 6) -> EnergyBands:
    """Return the energies that separate the bands of index 0, 1, and so on.

    Args:
        p: Degree, at least 2.
        levels: How many levels above the ground state, itself included.

    Returns:
        The bands.

    Raises:
        ValueError: If `levels` is below 1, or as `threshold_energy`.

    Example:
        >>> energy_bands(4).levels[5]
        1.765171
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    edges = tuple(energy_level(p, k) for k in range(levels))
    return EnergyBands(p, edges, threshold_energy(p))


def asymptotic_log_count(n: int, p: int, below: float = math.inf) -> float:
    r"""Return the log of the sharp asymptotic of the expected number of critical points.

    $c(u)\, n^{\nu} e^{n \Theta_p(u)}$ with the constant and the power of each regime; its ratio
    to the exact count tends to 1. Below $-E_\infty$ it serves for minima as well.

    Args:
        n: Number of spins.
        p: Degree, at least 3.
        below: Energy per spin up to which points are counted; not exactly 0.

    Returns:
        The log of the asymptotic count.

    Raises:
        ValueError: If `p` is below 3 (at 2 the count is exactly $2n$) or `below` is 0 or NaN.

    Source: Choromanska et al. 2015, theorem 11.1, after Auffinger, Ben Arous and Černý 2013. At
    exactly $-E_\infty$ the printed constant has $\mathrm{Ai}(0)/3$ in place of the density of
    eigenvalues at the edge, $\mathrm{Ai}'(0)^2 + \mathrm{Ai}(0)/3$, which is used here: the exact
    counts confirm it.

    Example:
        >>> print(f"{asymptotic_log_count(1000, 3):.4f}")
        351.1880
    """
    edge = threshold_energy(p)
    if p < 3 or below == 0 or math.isnan(below):
        raise ValueError(f"sharp asymptotics need p >= 3 and an energy off 0, got p={p}, {below}")
    u = float(below)
    exponent = n * float(complexity(u, p))
    if u > 0:
        return exponent + math.log(4 * math.sqrt(2 * n / (math.pi * (p - 2))))
    if u == -edge:
        ai, slope, _, _ = airy(0.0)  # density of eigenvalues at the soft edge: slope^2 + Ai/3
        factor = 2 * (float(slope) ** 2 + float(ai) / 3) * math.sqrt(2 * p) / (p - 2)
        return exponent + math.log(factor) - math.log(n) / 3
    if u > -edge:
        factor = 2 * math.sqrt(2 * p * (edge**2 - u**2)) / ((2 - p) * math.pi * u)
        return exponent + math.log(factor)
    v = math.sqrt(2) * -u / edge
    root = math.sqrt(v * v - 2)
    quarter = abs((v - math.sqrt(2)) / (v + math.sqrt(2))) ** 0.25
    factor = (quarter + 1 / quarter) / math.sqrt(2 * p * math.pi * n)
    inner = float(_rate(np.asarray(-u / edge))) - v / 2 * root
    return exponent + math.log(factor / ((p - 2) / p * v + root)) + inner
