"""The search for a string of beads below a level: train, check, put in beads, step by step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import FiniteSum, Landscape
from thalweg.paths.bead_training import How, Stack, Training, begin
from thalweg.paths.path import Path
from thalweg.paths.resume import Progress, cost_from, cost_state
from thalweg.paths.segments import check_segment, segment_from, segment_state, share_of

__all__ = ["BeadSearch", "How", "Link", "Rule", "together", "train"]

_ERRORS = 20  # parts of a segment, where a threshold cannot be bracketed
_STRIDES = (16, 4, 1)  # points of a segment are looked at in this order, coarse first


@dataclass(frozen=True, eq=False)
class Link:
    """The segment between two beads, and what its check said."""

    passed: bool | None = None  # None: not checked yet
    high: float = math.nan  # the highest value seen on it
    place: float = 0.5  # where along it a new bead goes
    path: Path | None = None  # its bracket, where one was taken

    @functools.cached_property
    def plain(self) -> list[Any]:
        """It as plain data."""
        path = None if self.path is None else segment_state(self.path)
        return [self.passed, self.high, self.place, path]

    @classmethod
    def load(cls, state: list[Any]) -> Link:
        """Return what `plain` holds."""
        passed, high, place, path = state
        return cls(passed, high, place, None if path is None else segment_from(path))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a bead and a segment must satisfy."""

    land: Landscape
    view: Landscape
    target: float  # beads are trained until they are at or below it
    ceiling: float  # segments pass at or below it
    span: float  # the straight distance of the ends
    insert: str
    check_points: int | None
    threshold: Callable[[Tensor], float] | None
    tolerance: float | None
    max_samples: int

    @property
    def parts(self) -> int | None:
        """Into how many parts a segment is divided to be looked at; None if it is bracketed."""
        return self.check_points or (_ERRORS if self.threshold is not None else None)

    def values(self, stack: Tensor) -> list[float]:
        """Return what must stay below the level, at every row."""
        if self.threshold is not None:
            return [float(self.threshold(row)) for row in stack]
        return [float(x) for x in self.view.loss(stack)]

    def check(self, left: Tensor, right: Tensor, ends: tuple[float, float]) -> Link:
        """Say whether the segment between two beads passes, and where it is highest."""
        parts = self.parts
        if parts is None:
            path = check_segment(
                self.land,
                left,
                right,
                self.ceiling,
                span=self.span,
                tolerance=self.tolerance,
                max_samples=self.max_samples,
            )
            high, place = path.maximum.lower, path.top_time
            return Link(path.maximum.upper <= self.ceiling, high, self._inside(place), path)
        values = torch.tensor(self._looked(left, right, ends, parts), dtype=torch.float64)
        high = float(values.max())  # NaN if there is one
        highest = torch.nonzero(values.isnan() if math.isnan(high) else values == high).flatten()
        top = int(highest[len(highest) // 2])  # the middle of a plateau
        return Link(high <= self.ceiling, high, self._inside(top / parts))

    def _looked(
        self, left: Tensor, right: Tensor, ends: tuple[float, float], parts: int
    ) -> list[float]:
        """Return values at all points of a segment that were looked at; -inf where none was.

        Where the highest point is not asked for, none is looked at once one lies too high.
        """
        seen = [ends[0], *[-math.inf] * (parts - 1), ends[1]]
        for stride in _STRIDES if self.insert == "middle" else (1,):
            new = [i for i in range(stride, parts, stride) if seen[i] == -math.inf]
            if not new:
                continue
            times = torch.tensor(new, dtype=torch.float64, device=left.device) / parts
            inner = torch.lerp(left, right, times.to(left.dtype)[:, None])
            for i, value in zip(new, self.values(inner), strict=True):
                seen[i] = value
            if self.insert == "middle" and not all(seen[i] <= self.ceiling for i in new):
                break
        return seen

    def _inside(self, place: float) -> float:
        """Return where the new bead goes: never upon one that is there already."""
        return place if self.insert == "top" and 0.02 <= place <= 0.98 else 0.5


class BeadSearch:
    """A string of beads: train the new ones, check the new segments, put beads where they fail."""

    def __init__(
        self,
        rule: Rule,
        how: How,
        points: Tensor,
        values: list[float],
        batches: Minibatches,
        generator: torch.Generator,
        initial_beads: int,
        spent: Cost,
        seed: int,
    ) -> None:
        self.rule, self.how, self.batches, self.generator = rule, how, batches, generator
        self.points, self.values, self.spent, self.seed = points, values, spent, seed
        self.links = [Link()] if initial_beads == 0 else [Link(passed=False)]
        self.job: Training | None = None
        self.rounds, self.training, self.outcome = 0, 0.0, ""
        whole = batches.per_epoch == 1 and rule.view is rule.land
        self.pause = 1 if whole else max(1, batches.per_epoch // 2)
        self.exact = whole and rule.threshold is None

    @property
    def finished(self) -> bool:
        """Whether every segment passes, or the search has given up."""
        return self.outcome != ""

    def step(self) -> None:
        """Take one step of the beads in training, or check one segment, or put in beads."""
        before = self.rule.land.cost
        unchecked = [i for i, link in enumerate(self.links) if link.passed is None]
        if self.job is not None:
            self._train(self.job)
        elif unchecked:
            i = unchecked[0]
            ends = (self.values[i], self.values[i + 1])
            link = self.rule.check(self.points[i], self.points[i + 1], ends)
            self.links = [*self.links[:i], link, *self.links[i + 1 :]]
        elif all(link.passed for link in self.links):
            self.outcome = "joined"
        elif self.rounds >= self.how.max_rounds:
            self.outcome = "rounds"
        else:
            self._insert()
        self.spent += self.rule.land.cost - before

    def _insert(self) -> None:
        """Put a bead into every segment that failed."""
        self.rounds += 1
        points, values, links, rows = [self.points[0]], [self.values[0]], [], []
        left, right = [], []
        for i, link in enumerate(self.links):
            if link.passed:
                links.append(link)
            else:
                rows.append(len(points))
                points.append(torch.lerp(self.points[i], self.points[i + 1], link.place))
                values.append(math.nan)
                links += [Link(), Link()]
                left.append(self.points[i])
                right.append(self.points[i + 1])
            points.append(self.points[i + 1])
            values.append(self.values[i + 1])
        self.points, self.values, self.links = torch.stack(points), values, links
        self._seat(rows, (torch.stack(right) - torch.stack(left)).double())

    def _seat(self, rows: list[int], chords: Tensor) -> None:
        """Begin to train the new beads."""
        x = self.points[rows]
        values, target = self.rule.values(x), self.rule.target
        self.job = begin(rows, x, values, chords, target, self.how, self.generator)

    @property
    def due(self) -> float:
        """What one step of the beads in training takes of the budget; 0 if none moves."""
        land, batches = self.rule.land, self.batches
        moving = 0 if self.job is None else int(self.job.live.sum())
        if batches.per_epoch == 1 or not isinstance(land, FiniteSum):
            return float(moving)
        return moving * batches.batch_size / land.examples

    @property
    def training_now(self) -> bool:
        """Whether the next thing to do is a step of beads."""
        return self.due > 0 and self.training + self.due <= self.how.max_gradients

    def _train(self, job: Training) -> None:
        """Take some steps of all live beads; each stops on its own."""
        if self.training_now:
            train([self])
            return
        self._settle(job)
        if bool(job.live.any()):
            self.outcome = self.outcome or "budget"

    def _settle(self, job: Training) -> None:
        """Put the trained beads into the string; a bead above the ceiling ends the search."""
        points, values = self.points.clone(), list(self.values)
        points[job.rows] = job.x
        for row, value in zip(job.rows, job.values, strict=True):
            values[row] = value
        self.points, self.values, self.job = points, values, None
        if any(not value <= self.rule.ceiling for value in job.values):
            self.outcome = "" if bool(job.live.any()) else "stuck"

    def describe(self) -> tuple[float, str]:
        """Say which round it is, and how many segments pass."""
        passed = sum(link.passed is True for link in self.links)
        part = max(self.training / self.how.max_gradients, self.rounds / (self.how.max_rounds + 1))
        return (
            1.0 if self.finished else min(1.0, part),
            f"round {self.rounds}: {passed} of {len(self.links)} segments below the level",
        )

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "points": self.points,
            "values": list(self.values),
            "links": [link.plain for link in self.links],
            "job": None if self.job is None else self.job.state(),
            "rounds": self.rounds,
            "training": self.training,
            "outcome": self.outcome,
            "spent": cost_state(self.spent),
            "batches": self.batches.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        device = self.points.device
        self.points, self.values = state["points"].to(device), list(state["values"])
        self.links = [Link.load(link) for link in state["links"]]
        job = state["job"]
        self.job = None if job is None else Training(**_moved(job, device))
        self.rounds, self.training = state["rounds"], state["training"]
        self.outcome, self.spent = state["outcome"], cost_from(state["spent"])
        self.batches.load(state["batches"])


def train(searches: Sequence[BeadSearch]) -> None:
    """Take some steps of the beads of several searches in one stack, until one of them stops.

    Several must be of one landscape, with all the data (`exact`), trained in one way; each
    comes out as it would alone, up to rounding.
    """
    lead = searches[0]
    rule, batches = lead.rule, lead.batches
    jobs = [s.job for s in searches if s.job is not None]
    stack = Stack(jobs, [s.rule.target for s in searches], lead.how)
    due = [s.due for s in searches]
    room = min((s.how.max_gradients - s.training) / d for s, d in zip(searches, due, strict=True))
    going: list[bool] | None = None
    used = 0.0  # gradients of one bead
    for _ in range(min(stack.steps, max(1, int(room)))):
        batch = batches.draw()
        used += share_of(batch, rule.land)
        v, g = batch.value_and_gradient(stack.x)
        v, g = v.double(), g.double()
        values: list[float] | None = None
        if lead.exact:
            values = v.tolist()
        elif (jobs[0].steps + stack.taken) % lead.pause == 0 or any(stack.spent):
            values = rule.values(stack.x)
        going = stack.running(v, g, values)
        stack.move(v, g, going)
        if going is not None:
            break
    for search, job, count in zip(searches, stack.hand_back(going), stack.counts, strict=True):
        search.job = job
        search.training += count * used


def together(searches: Sequence[BeadSearch], progress: Progress | None = None) -> None:
    """Carry on several searches side by side, the beads of all in one stack, to their ends.

    What one step costs is divided among them by the beads each has in it.
    """
    open_ones = list(searches)
    while open_ones:
        for search in open_ones:
            while not (search.finished or search.training_now):
                search.step()
        open_ones = [search for search in open_ones if not search.finished]
        if not open_ones:
            return
        land = open_ones[0].rule.land
        counts = [search.due for search in open_ones]
        before, total = land.cost, sum(counts)
        train(open_ones)
        took = land.cost - before
        for search, count in zip(open_ones, counts, strict=True):
            part = count / total
            losses, gradients = round(took.losses * part), round(took.gradients * part)
            search.spent += Cost(losses, gradients, 0, took.passes * part)
        if progress is not None:
            done = len(searches) - len(open_ones)
            progress(done / len(searches), f"{done} of {len(searches)} strings done")


def _moved(fields: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in fields.items()}
