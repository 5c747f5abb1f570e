"""The search for a string of beads below a level: train, check, put in beads, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import Landscape
from thalweg.paths.path import Path
from thalweg.paths.resume import cost_from, cost_state
from thalweg.paths.segments import check_segment, segment_from, segment_state, share_of

__all__ = ["BeadSearch", "How", "Link", "Rule"]

_NUDGE = 1e-3  # of the segment: leaves a critical point that an interpolated bead may sit on
_REACH = 0.1  # of the segment: longest step of Polyak's rule
_CROSSING = 0.01  # of the segment: length of one step of Adam, where no rate is given
_ERRORS = 20  # parts of a segment, where a threshold cannot be bracketed


@dataclass(frozen=True, eq=False)
class Link:
    """The segment between two beads, and what its check said."""

    passed: bool | None = None  # None: not checked yet
    high: float = math.nan  # the highest value seen on it
    place: float = 0.5  # where along it a new bead goes
    path: Path | None = None  # its bracket, where one was taken

    def state(self) -> list[Any]:
        """Return it as plain data."""
        path = None if self.path is None else segment_state(self.path)
        return [self.passed, self.high, self.place, path]

    @classmethod
    def load(cls, state: list[Any]) -> Link:
        """Return what `state` wrote down."""
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
        times = torch.arange(1, parts, dtype=torch.float64, device=left.device) / parts
        inner = torch.lerp(left, right, times.to(left.dtype)[:, None])
        values = torch.tensor([ends[0], *self.values(inner), ends[1]], dtype=torch.float64)
        high = float(values.max())  # NaN if there is one
        highest = torch.nonzero(values.isnan() if math.isnan(high) else values == high).flatten()
        top = int(highest[len(highest) // 2])  # the middle of a plateau
        return Link(high <= self.ceiling, high, self._inside(top / parts))

    def _inside(self, place: float) -> float:
        """Return where the new bead goes: never upon one that is there already."""
        return place if self.insert == "top" and 0.02 <= place <= 0.98 else 0.5


@dataclass(frozen=True, eq=False)
class Training:
    """The beads of one round, trained side by side: row i is bead ``rows[i]`` of the string."""

    rows: list[int]
    x: Tensor  # (B, D)
    origin: Tensor  # (B, D) where each began
    normal: Tensor  # (B, D) along the chord of the neighbours
    span: Tensor  # (B,) length of that chord
    first: Tensor  # (B, D) Adam's mean of the gradients
    second: Tensor  # (B, D) and of their squares
    live: Tensor  # (B,) which of them still move
    values: list[float]  # the last value of each
    steps: int = 0

    def state(self) -> dict[str, Any]:
        return dict(vars(self))


def _update(job: Training, v: Tensor, g: Tensor, how: How, target: float) -> Training:
    """Move the live beads by one step, within their hyperplanes if so asked."""
    live, t = job.live, job.steps + 1
    first, second = job.first.clone(), job.second.clone()
    span = job.span[live][:, None]
    if how.constrained:
        normal = job.normal[live]
        g = g - (g * normal).sum(1, keepdim=True) * normal
    if how.optimizer == "adam":
        first[live] = 0.9 * first[live] + 0.1 * g
        second[live] = 0.999 * second[live] + 0.001 * g**2
        mean, square = first[live] / (1 - 0.9**t), second[live] / (1 - 0.999**t)
        rate = _CROSSING * span / math.sqrt(g.shape[1]) if how.lr is None else how.lr
        step = -rate * mean / (square.sqrt() + 1e-8 * square.sqrt().amax().clamp_min(1e-30))
    elif how.optimizer == "polyak":
        norm = torch.linalg.vector_norm(g, dim=1, keepdim=True).clamp_min(1e-300)
        wanted = 1.2 * (v[:, None] - target).clamp_min(0) / norm
        step = -g / norm * torch.minimum(wanted, _REACH * span)
    else:
        step = -(how.lr or 0.0) * g
    x = job.x.clone()
    moved = x[live].double() + step
    if how.constrained:
        normal = job.normal[live]
        moved = moved - ((moved - job.origin[live]) * normal).sum(1, keepdim=True) * normal
    x[live] = moved.to(x.dtype)
    return replace(job, x=x, first=first, second=second, steps=t)


@dataclass(frozen=True)
class How:
    """How beads are put in and trained."""

    optimizer: str
    lr: float | None
    constrained: bool
    max_rounds: int
    max_steps: int
    max_gradients: int


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
    ) -> None:
        self.rule, self.how, self.batches, self.generator = rule, how, batches, generator
        self.points, self.values, self.spent = points, values, spent
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
        """Begin to train the beads that stand above the target, off any critical point."""
        x = self.points[rows]
        values = self.rule.values(x)
        live = torch.tensor([not v <= self.rule.target for v in values], device=x.device)
        span = torch.linalg.vector_norm(chords, dim=1)
        normal = chords / span[:, None]
        noise = torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x.device)
        if self.how.constrained:
            noise = noise - (noise * normal).sum(1, keepdim=True) * normal
        norm = torch.linalg.vector_norm(noise, dim=1, keepdim=True).clamp_min(1e-300)
        moved = x.double() + _NUDGE * span[:, None] * noise / norm
        start = torch.where(live[:, None], moved, x.double()).to(x.dtype)
        zero = torch.zeros_like(moved)
        self.job = Training(rows, start, x.double(), normal, span, zero, zero, live, values)

    def _train(self, job: Training) -> None:
        """Take one step of all live beads on one shared minibatch; each stops on its own."""
        if not bool(job.live.any()):
            self._settle(job)
            return
        batch = self.batches.draw()
        due = int(job.live.sum()) * share_of(batch, self.rule.land)
        if self.training + due > self.how.max_gradients:
            self._settle(job)
            self.outcome = self.outcome or "budget"
            return
        self.training += due
        v, g = batch.value_and_gradient(job.x[job.live])
        v, g = v.double(), g.double()
        finite = torch.isfinite(v) & torch.isfinite(g).all(1)
        spent = job.steps >= self.how.max_steps
        live, values = job.live.clone(), list(job.values)
        if job.steps % self.pause == 0 or spent or not bool(finite.all()):
            judged = v.tolist() if self.exact else self.rule.values(job.x[job.live])
            for row, value in zip(job.live.nonzero().flatten().tolist(), judged, strict=True):
                values[row] = value
                live[row] = not value <= self.rule.target and not spent
        live[job.live] &= finite
        keep = live[job.live]
        job = replace(job, live=live, values=values)
        if bool(live.any()):
            job = _update(job, v[keep], g[keep], self.how, self.rule.target)
        self.job = job

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
            "links": [link.state() for link in self.links],
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


def _moved(fields: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in fields.items()}
