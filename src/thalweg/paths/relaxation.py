"""What a string and a band have in common: budget, minibatches, climbing, pinning, judging."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import FiniteSum, Landscape
from thalweg.landscape.seeding import Seed
from thalweg.paths.height import Bounds, provable
from thalweg.paths.images import Images, advance, drift, enter, equal_arcs, nudge, spacing
from thalweg.paths.line import line
from thalweg.paths.path import Path, check_ends, measure
from thalweg.paths.resume import Checkpoint, cost_from, cost_state, fingerprint
from thalweg.paths.saddle import Saddle, climb

__all__ = ["Options", "Pass", "Relaxation", "begin", "keep", "lowest"]

PATIENCE = 8  # steps between climbs at first; doubled after each that fails
_NOISY = 0.8  # of the budget goes to minibatches, where there are any
_CLIMB = 0.15  # of the budget is the most that one climb may take
_CAUTION = 0.1  # a minibatch's step against one on all the data, at first
_PROBE = 4  # minibatch steps between two looks at the curvature


@dataclass(frozen=True)
class Options:
    """How to relax, as the caller said it."""

    images: int
    max_gradients: int
    climbing: bool
    tol: float
    worth: float
    max_samples: int
    batch_size: int | None
    spring: float = math.inf
    level: float | None = None


@dataclass(frozen=True, eq=False)
class Pass:
    """A critical point that is pinned on the path."""

    theta: Tensor
    loss: float
    gradient_norm: float
    negative: int


class Relaxation(ABC):
    """Images on their way down: relax, climb, pin the pass, relax on.

    A subclass says what follows when a round of steps is over (`decide`).
    """

    name = "relaxation"

    def __init__(
        self, land: Landscape, start: Path, options: Options, generator: torch.Generator, seed: int
    ) -> None:
        self.land, self.options, self.generator, self.seed = land, options, generator, seed
        self.taken, self.used, self.spent, self.bracketing = 0, 0.0, Cost(), Cost()
        self.measured: tuple[Tensor, Path] | None = None
        self.saddles: list[Pass] = []
        self.climber: int | None = None
        self.wait, self.left, self.failures, self.done = PATIENCE, PATIENCE, 0, False
        self.batches = (
            None if options.batch_size is None else Minibatches(land, options.batch_size, generator)
        )
        times = torch.linspace(0, 1, options.images, dtype=torch.float64)
        x = start.at(times.to(start.points.device))
        x[0], x[-1] = start.points[0], start.points[-1]
        self.now = self.enter(nudge(x, 1e-3, generator), (0, options.images - 1))
        self.level = float(self.now.loss.max())
        self.best, self.best_loss = self.now.x, math.inf
        self.remember()
        self.noisy_until = self._noisy_budget()
        self.noisy = self.noisy_until > self.used

    def _noisy_budget(self) -> float:
        """How much of the budget minibatches may use, so that all the data can follow."""
        if self.batches is None or self.batches.per_epoch == 1:
            return 0.0
        whole = self.options.max_gradients
        return min(_NOISY * whole, whole - 2.0 * len(self.now.x))

    # What a search must answer.

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done or not self.now.finite or not (self.noisy or self.room)

    def step(self) -> None:
        """Take one step; after the last one of a round, decide how to go on."""
        if self.noisy:
            self.drift()
            return
        self.relax()
        self.left -= 1
        if self.left <= 0 or not self.room:
            self.decide()
            self.left, self.level = self.wait, float(self.now.loss.max())

    @abstractmethod
    def decide(self) -> None:
        """Say what follows after a round: climb, wait longer, or be done."""

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from here, bit for bit."""
        return {
            "now": self.now.state(),
            "best": self.best,
            "numbers": [self.best_loss, self.used, self.level],
            "counts": [self.taken, self.wait, self.left, self.failures],
            "flags": [self.done, self.noisy],
            "climber": self.climber,
            "costs": [cost_state(self.spent), cost_state(self.bracketing)],
            "saddles": [vars(found) for found in self.saddles],
            "measured": None if self.measured is None else self.measured[0],
            "seed": self.seed,
            "generator": self.generator.get_state(),
            "batches": None if self.batches is None else self.batches.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        device = self.land.device
        self.now = Images.of(state["now"], device)
        self.best = state["best"].to(device)
        self.best_loss, self.used, self.level = state["numbers"]
        self.taken, self.wait, self.left, self.failures = state["counts"]
        self.done, self.noisy = state["flags"]
        self.climber, self.seed = state["climber"], state["seed"]
        self.generator.set_state(state["generator"])
        if self.batches is not None:
            self.batches.load(state["batches"])
        self.saddles = [
            Pass(**{**kept, "theta": kept["theta"].to(device)}) for kept in state["saddles"]
        ]
        self.measured = None
        if state["measured"] is not None:
            self.measure(state["measured"].to(device))
        self.spent, self.bracketing = (cost_from(numbers) for numbers in state["costs"])

    def describe(self) -> tuple[float, str]:
        """Say how far it is, as a fraction of its budget, and what it is doing."""
        high = float(self.now.loss.max())
        kind = "minibatch" if self.noisy else self.name
        part = min(1.0, self.used / self.options.max_gradients)
        return part, f"{kind} step {self.taken}, highest image {high:.6g}"

    # Steps.

    def charge(self, before: Cost, share: float = 1.0) -> None:
        """Count what was done since `before`, on a share of the data."""
        done = self.land.cost - before
        self.spent += done
        self.used += (done.gradients + done.hvps) * share

    def enter(self, x: Tensor, pinned: tuple[int, ...], shares: Tensor | None = None) -> Images:
        """Evaluate new images on all the data."""
        before = self.land.cost
        now = enter(self.land, x, pinned, shares)
        self.charge(before)
        return now

    def remember(self) -> None:
        """Keep the images if they are the lowest so far."""
        top = float(self.now.loss.max())
        if top < self.best_loss or len(self.now.x) != len(self.best):
            self.best, self.best_loss = self.now.x, top

    @property
    def free(self) -> int:
        """How many images are free to move: the gradients of one step."""
        return len(self.now.x) - len(self.now.pinned)

    @property
    def room(self) -> bool:
        """Whether steps and gradients are left."""
        return self.free > 0 and self.used + self.free <= self.options.max_gradients

    @property
    def rise(self) -> float:
        """How far the highest image stands above the lower end."""
        return float(self.now.loss.max() - torch.minimum(self.now.loss[0], self.now.loss[-1]))

    def relax(self) -> None:
        """Take a step on all the data; one that meets a non-finite loss is taken back."""
        before = self.land.cost
        now = advance(self.land, self.now, spring=self.options.spring, climber=self.climber)
        self.taken += 1
        self.charge(before)
        if now.finite:
            self.now = now
            self.remember()
        else:
            self.brake()

    def brake(self) -> None:
        """Stand still, and take shorter steps."""
        self.now = replace(
            self.now,
            curvature=4 * self.now.curvature,
            velocity=torch.zeros_like(self.now.velocity),
        )

    def draw(self) -> tuple[Landscape, float]:
        """Return the next minibatch, one for all images, and its share of the data."""
        part = self.land if self.batches is None else self.batches.draw()
        if isinstance(part, FiniteSum) and isinstance(self.land, FiniteSum):
            return part, part.examples / self.land.examples
        return part, 1.0

    def drift(self) -> None:
        """Take a step on a minibatch, shorter as the budget for them runs out; then settle."""
        part, share = self.draw()
        before = self.land.cost
        part_done = min(1.0, self.used / self.noisy_until)
        scale = _CAUTION * (1 + math.cos(math.pi * part_done)) / 2
        probe = self.taken % _PROBE == 0
        now = drift(part, self.now, scale=scale, spring=self.options.spring, probe=probe)
        self.taken += 1
        self.charge(before, share)
        if now.finite and bool(torch.isfinite(now.x).all()):
            self.now = now
        else:
            self.brake()
        if self.used + 2 * self.free * share > self.noisy_until:
            self.settle()

    def settle(self) -> None:
        """Go over from minibatches to all the data."""
        self.noisy = False
        self.now = self.enter(self.now.x, self.now.pinned, self.now.shares)
        self.remember()
        self.level, self.left = float(self.now.loss.max()), self.wait

    # Climbing and pinning.

    def climb(self) -> tuple[Saddle, tuple[int, int]]:
        """Climb along the tangent from the highest image, or between two pinned ones.

        Returns:
            Where the climb ended, and which images a pass would take the place of.
        """
        x, top = self.now.x, self.now.top
        if top not in self.now.pinned:
            place = (top, top + 1)
            theta, tangent = x[top], x[top + 1] - x[top - 1]
        else:
            path = self.measure()
            i = int(torch.searchsorted(path.times, path.top_time).clamp(1, len(x) - 1)) - 1
            theta, tangent = path.top, x[i + 1] - x[i]
            near = [k for k in (i, i + 1) if k not in self.now.pinned]
            near.sort(key=lambda k: float(torch.linalg.vector_norm(x[k] - theta)))
            place = (near[0], near[0] + 1) if near else (i + 1, i + 1)
        reach = 2 * float(spacing(x).max())
        found = self.follow(theta, tangent, self.options.tol, reach)
        if found.converged and found.negative > 1:  # zero modes look curved away from the pass
            sharp = self.follow(found.theta, found.direction, 1e-4 * self.options.tol, reach)
            found = sharp if sharp.converged else found
        return found, place

    def follow(self, theta: Tensor, tangent: Tensor, tol: float, reach: float) -> Saddle:
        """Climb from a point, for a part of the budget."""
        before, whole = self.land.cost, self.options.max_gradients
        afford = max(1, int(min(_CLIMB * whole, whole - self.used)))
        found = climb(self.land, theta, tangent, tol=tol, radius=reach, max_gradients=afford)
        self.charge(before)
        return found

    def pin(self, found: Saddle, place: tuple[int, int]) -> None:
        """Make a pass a corner of the path, with a foothold on either side.

        It takes the place of the image nearest to where the climb began.
        """
        first, last = place
        before = self.land.cost
        step = 0.1 * float(spacing(self.now.x).mean())
        for _ in range(8):
            feet = found.theta + step * torch.stack([-found.direction, found.direction])
            if bool((self.land.loss(feet) < found.loss).all()):
                break
            step /= 2
        self.charge(before)
        x = self.now.x
        new = torch.cat([x[:first], feet[:1], found.theta[None], feet[1:], x[last:]])
        grown = len(new) - len(x)
        kept = {i if i < first else i + grown for i in self.now.pinned}
        pinned = tuple(sorted({*kept, first, first + 1, first + 2}))
        self.saddles.append(Pass(found.theta, found.loss, found.gradient_norm, found.negative))
        self.climber = None
        self.now = self.enter(self.replace(new, pinned), pinned, self.shares(new))
        self.best_loss = math.inf
        self.remember()

    def replace(self, x: Tensor, pinned: tuple[int, ...]) -> Tensor:
        """Return where the images go when a pass was pinned: to equal arc lengths."""
        return equal_arcs(x, pinned)

    def shares(self, x: Tensor) -> Tensor | None:
        """Return what the gaps aim at when a pass was pinned: equal ones."""
        return None

    def try_to_climb(self) -> bool:
        """Climb, and pin a pass that is new; bend the path if it met a higher index."""
        found, place = self.climb()
        if found.converged and found.negative == 1 and not self.known(found):
            self.pin(found, place)
            self.wait = PATIENCE
            return True
        self.failures += 1
        if found.converged and found.negative > 1:
            self.shake()
        return False

    def shake(self) -> None:
        """Bend the images at random, away from a critical point of higher index."""
        x, pinned = nudge(self.now.x, 1e-2, self.generator), list(self.now.pinned)
        x[pinned] = self.now.x[pinned]
        self.now = self.enter(x, self.now.pinned, self.now.shares)

    def known(self, found: Saddle) -> bool:
        """Whether this pass is pinned already."""
        near = 1e-4 * float(spacing(self.now.x).max())
        return any(
            float(torch.linalg.vector_norm(s.theta - found.theta)) < near for s in self.saddles
        )

    # Measuring.

    def measure(self, x: Tensor | None = None) -> Path:
        """Bracket the height of the images as they stand; nothing is measured twice."""
        x = self.now.x if x is None else x
        if self.measured is None or not torch.equal(self.measured[0], x):
            self.measured = (x, self.bracket(x))
        return self.measured[1]

    def bracket(self, x: Tensor, bounds: Bounds = "estimated") -> Path:
        """Bracket the height of some images; proofs are left for the path that is returned."""
        path = measure(
            self.land,
            x,
            tolerance=self.options.worth,
            max_samples=max(self.options.max_samples, 4 * len(x)),
            bounds=bounds,
            method=self.name,
        )
        self.bracketing += path.cost
        return path

    def paths(self) -> list[Path]:
        """The paths that may be the lowest found, measured."""
        found = [self.measure()]
        if self.best_loss < float(self.now.loss.max()) - self.options.worth:
            found.append(self.bracket(self.best))
        return found

    def low_enough(self) -> bool:
        """Whether the path, measured, stays at or under the level asked for."""
        level = self.options.level
        if level is None or self.noisy or not float(self.now.loss.max()) <= level:
            return False
        return self.measure().maximum.upper <= level

    def at_a_pass(self) -> bool:
        """Whether the highest point of the path is a pinned image: an end or a pass."""
        top = self.now.top
        high = self.measure().maximum.lower
        worth = self.options.worth
        return top in self.now.pinned and high <= float(self.now.loss[top]) + worth


def begin(
    land: Landscape,
    a: Tensor,
    b: Tensor,
    *,
    start: Path | None,
    tolerance: float | None,
    max_samples: int,
    max_gradients: int,
    images: int,
) -> Path:
    """Check what a string or a band was given; return the path to relax."""
    a, b = check_ends(land, a, b)
    if images < 3:
        raise ValueError(f"images must be at least 3 (two ends and one between), got {images}")
    if max_gradients < 1:
        raise ValueError(f"max_gradients must be at least 1, got {max_gradients}")
    start = start or line(land, a, b, tolerance=tolerance, max_samples=max_samples)
    if not (torch.equal(start.points[0], a) and torch.equal(start.points[-1], b)):
        raise ValueError("start joins other ends than a and b")
    return start


def keep(
    checkpoint: Any, name: str, start: Path, options: Options, seed: Seed, recorded: int, more: str
) -> Checkpoint | None:
    """Return the checkpoint of a search, or None where there is no file to keep it in."""
    if checkpoint is None:
        return None
    key = fingerprint(
        name=name,
        points=start.points,
        losses=start.losses,
        options=repr(options),
        seed=None if seed is None else recorded,
        more=more,
    )
    return Checkpoint(checkpoint, key)


def _upper(path: Path) -> float:
    return math.inf if math.isnan(path.maximum.upper) else path.maximum.upper


def lowest(search: Relaxation, start: Path) -> Path:
    """Return the lowest path found, or `start` if nothing came lower.

    Between paths that differ by rounding, one through a pass is preferred.
    """
    found = min(search.paths(), key=_upper)
    rounding = (
        64
        * torch.finfo(start.points.dtype).eps
        * max(abs(start.maximum.upper), abs(start.maximum.lower))
    ) + 1e-9 * search.options.worth  # a pass is met to the square of its gradient norm
    passes, note = _judge(search, found)
    if _upper(found) > _upper(start) and not (
        passes and found.maximum.lower <= start.maximum.lower + rounding
    ):
        found = start
        passes, note = _judge(search, start)
        note = f"no {search.name} came below the path that it started from; {note}"
    elif provable(search.land):
        found = search.bracket(found.points, "auto")
    return replace(
        found,
        method=search.name,
        converged=passes,
        note=note,
        seed=search.seed,
        cost=start.cost + search.spent + search.bracketing,
    )


def _judge(search: Relaxation, path: Path) -> tuple[bool, str]:
    """Say whether the highest point is an end or a pass, or what to try."""
    worth = search.options.worth
    if path.maximum.lower <= path.base + worth:
        return True, f"no point of it is more than {worth:.3g} higher than its ends"
    for found in search.saddles:
        on_path = bool((path.points == found.theta).all(1).any())
        if on_path and path.maximum.lower <= found.loss + worth:
            return True, (
                f"its highest point is a critical point at loss {found.loss:.9g} with gradient "
                f"norm {found.gradient_norm:.2g} and {found.negative} negative curvature"
            )
    if search.options.level is not None and path.maximum.upper <= search.options.level:
        return True, f"it stays at or under the level {search.options.level:.8g} asked for"
    if not search.now.finite:
        return False, (
            f"the loss is not finite at an image of the {search.name}, which could not relax"
        )
    spent = "" if search.room else f" and the budget is spent after {search.taken} steps"
    return False, (
        f"its highest point is no critical point yet{spent}; it is a path all the same, and its "
        "height an upper bound of the barrier. Raise max_gradients to go lower"
    )
