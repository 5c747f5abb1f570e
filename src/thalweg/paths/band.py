"""The elastic band: images on springs, the highest one climbing, more where they are needed."""

from __future__ import annotations

import math
import pathlib
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths import resume
from thalweg.paths.images import descend, insert, spacing
from thalweg.paths.path import Path
from thalweg.paths.pivots import Schedule, autoneb_schedule, bumps
from thalweg.paths.relaxation import PATIENCE, Options, Relaxation, begin, keep, lowest
from thalweg.paths.resume import Progress

__all__ = ["autoneb_schedule", "band"]

_PIVOTS = ("auto", "fixed")
_LOOKS = tuple(0.1 * i for i in range(1, 9))  # of the minibatches' budget: where it looks for bumps
_SAMPLES = 4  # points looked at between two images


class _Band(Relaxation):
    """A band on its way: relax, insert, let the highest image climb, pin the pass."""

    name = "band"

    def __init__(self, *args: Any, auto: bool, threshold: float) -> None:
        self.auto, self.threshold, self.looks = auto, threshold, 0
        super().__init__(*args)

    def grow(self, samples: int, most: int) -> bool:
        """Insert images where the loss stands far above the chord of its neighbours."""
        before = self.land.cost
        loss = self.land.loss(self.now.x) if self.noisy else self.now.loss
        where = bumps(
            self.land, self.now.x, loss, samples=samples, threshold=self.threshold, most=most
        )
        if where[0]:
            self.now = insert(self.land, self.now, *where)
            self.climber = None
        self.charge(before)
        return bool(where[0])

    def drift(self) -> None:
        """Take a step on a minibatch, and look for bumps on all the data from time to time."""
        super().drift()
        due = self.auto and self.noisy and self.looks < len(_LOOKS)
        if due and self.used >= _LOOKS[self.looks] * self.noisy_until:
            self.looks += 1
            self.grow(_SAMPLES, 2)

    def decide(self) -> None:
        """Insert, let the highest image climb, pin a pass; stop at an end or a pass."""
        change = abs(self.level - float(self.now.loss.max()))
        settled, slow = change <= self.options.worth, change <= 0.2 * self.rise
        if self.now.top in self.now.pinned and settled and self.at_a_pass():
            self.done = True
            return
        if self.auto and slow and self.room and self.grow(_SAMPLES, 2):
            self.remember()
            self.wait = PATIENCE
            return
        if not self.options.climbing:
            self.done = settled and self.wait > PATIENCE
            self.wait = 2 * PATIENCE
            return
        if not slow or (self.now.top in self.now.pinned and not settled):
            return
        if self.now.top not in self.now.pinned and self.climber != self.now.top:
            self.climber = self.now.top
            return
        if self.try_to_climb():
            return
        self.done = settled and self.failures > 3
        self.wait *= 2

    def replace(self, x: Tensor, pinned: tuple[int, ...]) -> Tensor:
        """Leave the images where they were put on purpose."""
        return x if self.auto else super().replace(x, pinned)

    def shares(self, x: Tensor) -> Tensor | None:
        """Keep them as dense as they are there."""
        return spacing(x).clamp_min(1e-300) if self.auto else None

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from here, bit for bit."""
        return {**super().state(), "looks": self.looks}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load(state)
        self.looks = state["looks"]


class _Scheduled(_Band):
    """A band that follows a schedule: descent with momentum, insertions between cycles."""

    def __init__(self, *args: Any, schedule: Schedule) -> None:
        self.schedule, self.cycle, self.ahead = schedule, 0, 0
        super().__init__(*args, auto=True, threshold=schedule.threshold)
        self.noisy = False

    @property
    def finished(self) -> bool:
        """Whether the schedule is over, or the budget."""
        return self.done or not self.now.finite

    def step(self) -> None:
        """Take one step of descent; at the start of a cycle, insert images first."""
        part, share = self.draw()
        if self.ahead == 0:
            self.now = replace(self.now, velocity=torch.zeros_like(self.now.velocity))
            if self.cycle > 0:
                self.grow(self.schedule.samples, self.schedule.inserted)
            left = (self.schedule.budget or 0.0) - self.used - self.reserve
            self.ahead = self.schedule.steps(self.cycle, left, share * self.free)
        cycle = self.schedule.cycles[self.cycle]
        before = self.land.cost
        now = descend(part, self.now, rate=cycle.rate, momentum=self.schedule.momentum)
        self.taken += 1
        self.charge(before, share)
        finite = now.finite and bool(torch.isfinite(now.x).all())
        self.now = now if finite else self.now
        self.ahead -= 1
        self.cycle += self.ahead == 0
        over = self.cycle == len(self.schedule.cycles)
        left = self.options.max_gradients - self.used - self.reserve
        if over or not finite or left < share * self.free:
            self.settle()
            self.done = True

    @property
    def reserve(self) -> int:
        """The gradients that looking at all the data in the end takes."""
        return len(self.now.x)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from here, bit for bit."""
        return {**super().state(), "cycle": [self.cycle, self.ahead]}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load(state)
        self.cycle, self.ahead = state["cycle"]


def band(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    *,
    start: Path | None = None,
    images: int = 5,
    pivots: Literal["auto", "fixed"] = "auto",
    threshold: float = 0.1,
    spring: float = math.inf,
    climbing: bool = True,
    schedule: Schedule | None = None,
    max_gradients: int = 2500,
    tol: float = 1e-6,
    tolerance: float | None = None,
    max_samples: int = 200,
    batch_size: int | None = None,
    seed: Seed = None,
    checkpoint: str | pathlib.Path | None = None,
    progress: Progress | None = None,
) -> Path:
    r"""Relax an elastic band of images between `a` and `b`, its highest image climbing.

    Every image moves against

    $$\nabla L - (\nabla L\cdot\tau)\,\tau - k\,(|x_{i+1}-x_i| - |x_i-x_{i-1}|)\,\tau,$$

    the loss's gradient across the band and the springs along it, with the tangent $\tau$
    that looks uphill. The highest image feels no spring and goes up along the tangent; near
    the pass `climb` refines it, and the pass is pinned with a foothold on either side. With
    automatic pivots an image is put wherever the loss between two neighbours stands above
    their chord by more than `threshold` of the range, until there is no such place. There
    is no learning rate to choose: steps follow the curvature that an image has met, as in
    `string`. Coordinates are parameters alone, never a network's buffers, and all images
    are compared on the same examples.

    The result is never higher than `start` (by default the straight line). A band need not
    converge, because paths of steepest descent need not be isolated (Cameron, Kohn and
    Vanden-Eijnden, J. Nonlinear Sci. 21 (2011) 193): ``converged`` says whether its highest
    point is an end or a critical point of index 1 as far as products show, and the height
    holds for the path as it is in either case.

    Args:
        land: The landscape.
        a: One end, `(dim,)`.
        b: The other end.
        start: A path between the same ends to relax.
        images: Points of the band at first, the ends among them.
        pivots: ``"auto"`` inserts images; ``"fixed"`` does not.
        threshold: See above; a share of the range of the losses along the band.
        spring: Stiffness in units of the curvature that an image has met, at most 1. By
            default the springs are infinite, as AutoNEB has them: the images are put back
            at their distances after every step, which also keeps the band from kinking
            where minima form families.
        climbing: Whether the highest image climbs; else the band relaxes until it settles.
        schedule: Steps fixed in advance (`autoneb_schedule`), which replace all of the
            above: descent with momentum, infinite springs, no climbing, on minibatches if
            `batch_size` is given.
        max_gradients: Largest number of gradients and HVPs that the search may take (a
            climb in progress is finished); a gradient on a share of the data counts as
            that share. Losses and the bracket (`max_samples`) come on top.
        tol: See `string`, as for `tolerance`, `max_samples` and `batch_size`.
        tolerance: A difference in loss that does not matter.
        max_samples: Largest number of evaluations for the bracket.
        batch_size: Examples per step, one minibatch for all images.
        seed: Draws the minibatches, and bends the first band by 1e-3 of its length, so
            that no symmetry holds it.
        checkpoint: A file that keeps the search's state; see `string`.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The path; `points` holds the pass where one was found.

    Raises:
        ValueError: If an end is wrong, `start` joins other ends, an option is out of its
            range, or `checkpoint` holds another search.

    Source: Henkelman and Jónsson, J. Chem. Phys. 113 (2000) 9978; Henkelman, Uberuaga and
    Jónsson, J. Chem. Phys. 113 (2000) 9901; Draxler et al., arXiv:1803.00885.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> net = FunctionLandscape(
        ...     lambda x: 0.5 * (x[0] * x[1] - 1)**2 + 0.1 * (x**2).sum(), dim=2)
        >>> end = torch.full((2,), 0.8**0.5, dtype=torch.float64)
        >>> path = band(net, end, -end, seed=0)
        >>> path.converged, round(path.height.lower, 6)     # (1 - 0.2)^2 / 2
        (True, 0.32)
    """
    if pivots not in _PIVOTS:
        raise ValueError(f"unknown pivots {pivots!r}; use one of {', '.join(_PIVOTS)}")
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be a positive share of the range, got {threshold}")
    if not (0 <= spring <= 1 or spring == math.inf):
        raise ValueError(f"spring must lie in [0, 1] or be math.inf, got {spring}")
    if schedule is not None:
        images, spring, climbing = schedule.pivots + 2, math.inf, False
    start = begin(
        land,
        a,
        b,
        start=start,
        tolerance=tolerance,
        max_samples=max_samples,
        max_gradients=max_gradients,
        images=images,
    )
    worth = start.worth(tolerance)
    options = Options(images, max_gradients, climbing, tol, worth, max_samples, batch_size, spring)
    generator, recorded = make_generator(seed)
    more = repr((pivots, threshold, schedule))
    kept = keep(checkpoint, "band", start, options, seed, recorded, more)
    given = (land, start, options, generator, recorded)
    search = (
        _Band(*given, auto=pivots == "auto", threshold=threshold)
        if schedule is None
        else _Scheduled(*given, schedule=schedule)
    )
    resume.run(search, kept, progress)
    return lowest(search, start)
