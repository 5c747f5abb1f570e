"""Where a band needs more images, and the schedule that AutoNEB published."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape

__all__ = ["Cycle", "Schedule", "autoneb_schedule", "bumps"]

_PUBLISHED = ((1000, 0.1),) * 4 + ((2000, 0.1),) * 2 + ((1000, 0.01),) * 4 + ((1000, 0.001),) * 4


@dataclass(frozen=True)
class Cycle:
    """Steps of gradient descent with momentum between two insertions.

    Args:
        steps: How many.
        rate: The learning rate.
    """

    steps: int
    rate: float


@dataclass(frozen=True)
class Schedule:
    """A band's steps, fixed in advance.

    Args:
        cycles: One after the other; before each but the first, images are inserted.
        pivots: Images between the ends at first.
        inserted: Most images inserted before a cycle.
        threshold: How far the loss between two images must stand above their chord to put
            one there, as a share of the range of the losses along the band.
        samples: Where it is looked for: so many points between two images.
        momentum: Of the descent, which starts afresh in every cycle.
        budget: Gradients over all the data that the cycles share, in proportion to their
            steps; None leaves the steps as they are.
    """

    cycles: tuple[Cycle, ...]
    pivots: int = 3
    inserted: int = 2
    threshold: float = 0.1
    samples: int = 9
    momentum: float = 0.9
    budget: float | None = None

    def steps(self, cycle: int, left: float, per_step: float) -> int:
        """Return the steps of a cycle when `left` gradients are there for it and all later ones.

        Args:
            cycle: Its number, from 0.
            left: Gradients left of the budget.
            per_step: Gradients that a step takes.
        """
        wanted = self.cycles[cycle].steps
        if self.budget is None:
            return wanted
        later = sum(one.steps for one in self.cycles[cycle:])
        return max(1, int(wanted * min(1.0, left / (per_step * later))))


def autoneb_schedule(budget: float | None = None) -> Schedule:
    """Return AutoNEB's published schedule, its steps scaled to a budget.

    Fourteen cycles: 4 of 1000 steps and 2 of 2000 at rate 0.1, 4 of 1000 at 0.01, 4 of
    1000 at 0.001; stochastic gradient descent with momentum 0.9; 3 pivots at first, then
    at most 2 more before every cycle, where one of 9 points between two images stands
    above their chord by more than 0.1 of the range.

    Args:
        budget: Gradients over all the data; the steps as published if None.

    Returns:
        The schedule.

    Raises:
        ValueError: If the budget does not hold one step per cycle of the first pivots.

    Source: Draxler, Veschgini, Salmhofer and Hamprecht, ICML 2018 (arXiv:1803.00885);
    ``configs/cifar10-resnet20.yaml`` of fdraxler/PyTorch-AutoNEB.

    Example:
        >>> schedule = autoneb_schedule(4800)
        >>> [schedule.steps(i, 4800, 3.0) for i in (0, 4, 13)]
        [100, 266, 1000]
    """
    least = 3 * len(_PUBLISHED)
    if budget is not None and not budget >= least:
        raise ValueError(
            f"a budget of {budget:g} gradients is less than the {least} that one step of 3 images "
            f"in each of the {len(_PUBLISHED)} cycles takes"
        )
    return Schedule(tuple(Cycle(steps, rate) for steps, rate in _PUBLISHED), budget=budget)


def bumps(
    land: Landscape,
    x: Float[Tensor, "images dim"],
    loss: Float[Tensor, " images"],
    *,
    samples: int,
    threshold: float,
    most: int,
) -> tuple[list[int], list[float]]:
    """Find the gaps between images where the loss stands far above the chord.

    Args:
        land: The landscape.
        x: The images.
        loss: The loss at each, on the same data as `land`.
        samples: Points looked at in every gap, equally spaced.
        threshold: The excess that counts, as a share of the range of all losses seen.
        most: Largest number of gaps to return.

    Returns:
        The worst gaps in order along the band, and where in each its highest excess is.
        A gap with a loss that is not finite is left out.

    Source: Draxler et al., arXiv:1803.00885, section 3.2.
    """
    part = torch.linspace(0, 1, samples + 2, dtype=x.dtype, device=x.device)[1:-1]
    between = torch.lerp(x[:-1, None], x[1:, None], part[None, :, None])
    seen = land.loss(between.reshape(-1, x.shape[1])).reshape(-1, samples).double()
    ends = loss.double()
    chord = torch.lerp(ends[:-1, None], ends[1:, None], part.double())
    everything = torch.cat([seen.flatten(), ends])
    everything = everything[torch.isfinite(everything)]
    if not len(everything) or float(everything.max() - everything.min()) == 0:
        return [], []
    excess = (seen - chord) / (everything.max() - everything.min())
    excess = torch.where(torch.isfinite(excess).all(1, keepdim=True), excess, -torch.inf)
    height, where = excess.max(1)
    order = [int(i) for i in height.argsort(descending=True)[:most]]
    gaps = sorted(i for i in order if float(height[i]) > threshold)
    return gaps, [float(part[where[i]]) for i in gaps]
