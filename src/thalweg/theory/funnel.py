r"""Is a landscape a funnel? Two numbers from points, their energies and a solution.

In a funnel, energy falls towards the solution (Bryngelson and Wolynes), and the fall is large
beside the roughness. In a spherical p-spin glass it falls no further than its covariance has it:
at overlap q with a point of energy u the mean is u q^p, which vanishes beside the roughness as n
grows. At small n a weak correlation is left (some -0.2 at n = 80, p = 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from thalweg.estimate import Estimate

__all__ = ["Funnel", "funnel"]

_SAME = 0.01  # of the median distance to the solution: nearer is the solution, found again
Measure = Literal["overlap", "distance"]


@dataclass(frozen=True, slots=True)
class Funnel:
    """What points and energies say of a funnel.

    Attributes:
        correlation: Of energy with closeness to the solution; negative in a funnel.
        gap_ratio: Mean energy above the solution's, in standard deviations of the energy.
        measure: What closeness is.
    """

    correlation: Estimate
    gap_ratio: Estimate
    measure: str

    @property
    def present(self) -> bool:
        """Whether the correlation is significantly on the funnel's side."""
        return self.correlation.interval[1] < 0

    def __str__(self) -> str:
        """Return both numbers and what they mean."""
        if self.present:
            word = "energy falls towards the solution: a funnel"
        elif self.correlation.interval[0] > 0:
            word = "energy rises towards the solution: the opposite of a funnel"
        else:
            word = "energy does not know where the solution is: no funnel seen"
        return (
            f"{word}\n  correlation of energy and closeness ({self.measure}): {self.correlation}\n"
            f"  gap over roughness: {self.gap_ratio}"
        )

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", r"\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain numbers."""
        return {
            "type": "funnel",
            "correlation": self.correlation.to_json(),
            "gap_ratio": self.gap_ratio.to_json(),
            "measure": self.measure,
        }


def funnel(
    points: Float[Tensor, "points dim"],
    energies: Float[Tensor, " points"],
    solution: Float[Tensor, " dim"],
    solution_energy: float,
    *,
    measure: Measure = "overlap",
    signless: bool = False,
    level: float = 0.95,
) -> Funnel:
    r"""Measure how far a landscape is a funnel around a solution.

    The correlation is Pearson's, with Fisher's interval $\operatorname{artanh} r \pm
    z/\sqrt{k - 3}$; the ratio is $(\bar E - E^*)/s_E$, with the interval of the noncentral t of
    which $\sqrt k$ times it is a draw. Both take independent points, and Gaussian values for
    exact coverage. Descents that ended at the solution itself (within a hundredth of the median
    distance) must be left out: they say that it was found often, and not how the rest lies.

    Args:
        points: Independent points, such as the ends of descents, at least 5.
        energies: Their energies.
        solution: The deepest point known.
        solution_energy: Its energy.
        measure: Closeness as the cosine ``"overlap"``, or as minus the Euclidean
            ``"distance"``.
        signless: Take the absolute overlap, where a point and its negative are the same.
        level: Nominal coverage.

    Returns:
        Correlation and ratio, with their errors.

    Raises:
        ValueError: If there are fewer than five points, energies are not finite or do not vary,
            or the solution is among the points.

    Source:
        Bryngelson and Wolynes, PNAS 84 (1987); Martin 2015 (the conjecture for networks).

    Example:
        >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> bowl = funnel(x, (x**2).sum(1), torch.zeros(3).double(), 0.0, measure="distance")
        >>> bowl.present
        True
    """
    if len(points) < 5:
        raise ValueError(f"a funnel takes at least 5 points, got {len(points)}")
    if not bool(torch.isfinite(energies).all()) or not math.isfinite(solution_energy):
        raise ValueError("an energy is NaN or infinite; leave such points out and say so")
    if float(energies.std()) == 0:
        raise ValueError(f"all {len(energies)} energies are {float(energies[0]):g}: no roughness")
    distances = torch.linalg.vector_norm(points - solution, dim=1)
    same = (distances <= _SAME * distances.median()).nonzero()[:, 0].tolist()
    if same:
        raise ValueError(
            f"points {same} are the solution itself; leave them out, for the correlation would "
            "look like a funnel whatever the landscape"
        )
    if measure == "distance":
        closeness = -distances
    else:
        closeness = torch.nn.functional.cosine_similarity(points, solution[None], dim=1)
        closeness = closeness.abs() if signless else closeness
    e, c = energies.double().cpu().numpy(), closeness.double().cpu().numpy()
    words = "minus distance" if measure == "distance" else "overlap"
    return Funnel(_correlation(e, c, level), _ratio(e, solution_energy, level), words)


def _correlation(x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"], level: float) -> Estimate:
    count = len(x)
    value = float(np.corrcoef(x, y)[0, 1])
    centre, reach = math.atanh(value), float(stats.norm.ppf(0.5 + level / 2)) / math.sqrt(count - 3)
    ends = (math.tanh(centre - reach), math.tanh(centre + reach))
    error = (1 - value**2) / math.sqrt(count - 3)
    return Estimate(value, error, ends, count, level=level, method="Pearson's r, Fisher's interval")


def _ratio(energies: Float[np.ndarray, " k"], ground: float, level: float) -> Estimate:
    count = len(energies)
    value = float((energies.mean() - ground) / energies.std(ddof=1))
    root, tail = math.sqrt(count), (1 - level) / 2
    width = 10 * math.sqrt(1 / count + value**2 / (2 * (count - 1)))

    def end(probability: float) -> float:
        low, high = value - width, value + width  # the t's tail falls as the centre grows
        for _ in range(60):
            middle = (low + high) / 2
            if stats.nct.cdf(root * value, count - 1, root * middle) > probability:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    error = math.sqrt(1 / count + value**2 / (2 * (count - 1)))
    ends = (end(1 - tail), end(tail))
    method = "mean gap over standard deviation, noncentral t"
    return Estimate(value, error, ends, count, level=level, method=method)
