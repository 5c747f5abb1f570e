"""Training of beads: those of one round, of one string or of several, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["How", "Stack", "Training", "begin"]

_NUDGE = 1e-3  # of the segment: leaves a critical point that an interpolated bead may sit on
_REACH = 0.1  # of the segment: longest step of Polyak's rule
_CROSSING = 0.01  # of the segment: length of one step of Adam, where no rate is given
_CHUNK = 20_000  # coordinates moved between two looks at the state: keeps small problems fast


@dataclass(frozen=True)
class How:
    """How beads are put in and trained."""

    optimizer: str
    lr: float | None
    constrained: bool
    max_rounds: int
    max_steps: int
    max_gradients: int


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
        """Return it as plain data."""
        return dict(vars(self))


def begin(
    rows: list[int],
    x: Tensor,
    values: list[float],
    chords: Tensor,
    target: float,
    how: How,
    generator: torch.Generator,
) -> Training:
    """Begin to train the beads that stand above the target, off any critical point."""
    live = torch.tensor([not v <= target for v in values], device=x.device)
    span = torch.linalg.vector_norm(chords, dim=1)
    normal = chords / span[:, None]
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    if how.constrained:
        noise = noise - (noise * normal).sum(1, keepdim=True) * normal
    norm = torch.linalg.vector_norm(noise, dim=1, keepdim=True).clamp_min(1e-300)
    moved = x.double() + _NUDGE * span[:, None] * noise / norm
    start = torch.where(live[:, None], moved, x.double()).to(x.dtype)
    zero = torch.zeros_like(moved)
    return Training(rows, start, x.double(), normal, span, zero, zero, live, values)


class Stack:
    """The moving beads of several trainings in one stack, for as long as none of them stops.

    Args:
        jobs: The trainings.
        targets: Where each one's beads are to go.
        how: How they are trained.
    """

    def __init__(self, jobs: Sequence[Training], targets: Sequence[float], how: How) -> None:
        self.jobs, self.how = jobs, how
        self.live = [job.live.nonzero().flatten() for job in jobs]
        self.counts = [len(live) for live in self.live]

        def gather(name: str) -> Tensor:
            return torch.cat([getattr(j, name)[i] for j, i in zip(jobs, self.live, strict=True)])

        self.x, self.span = gather("x"), gather("span")[:, None]
        self.first, self.second = gather("first"), gather("second")
        self.origin, self.normal = gather("origin"), gather("normal")
        pairs = list(zip(targets, self.counts, strict=True))
        self.targets = [target for target, count in pairs for _ in range(count)]
        self.aims = torch.tensor(self.targets, dtype=torch.float64, device=self.x.device)[:, None]
        self.values = [
            job.values[i] for job, live in zip(jobs, self.live, strict=True) for i in live.tolist()
        ]
        self.taken = 0
        spent = [job.steps >= how.max_steps for job in jobs]
        self.spent = [x for x, count in zip(spent, self.counts, strict=True) for _ in range(count)]
        begun = [float(job.steps) for job in jobs]
        self.time: float | Tensor = begun[0]
        if len(set(begun)) > 1:  # one number for all is faster
            times = [t for t, count in zip(begun, self.counts, strict=True) for _ in range(count)]
            self.time = torch.tensor(times, dtype=torch.float64, device=self.x.device)[:, None]

    @property
    def steps(self) -> int:
        """How many steps may be taken before the beads are handed back; always the same."""
        spare = min(self.how.max_steps - job.steps for job in self.jobs)
        return max(1, min(spare, len(self.jobs) * _CHUNK // self.x.numel()))

    def running(self, v: Tensor, g: Tensor, values: list[float] | None) -> list[bool] | None:
        """Say which beads go on, or None if all do: all is finite and none at its target.

        Args:
            v: What was descended on, perhaps of a minibatch only, `(B,)`.
            g: Its gradients, `(B, D)`.
            values: What must reach the target; None where it was not looked at.
        """
        finite = torch.isfinite(g).all(1) & torch.isfinite(v)
        if values is None and bool(finite.all()):
            return None
        on = finite.tolist()
        if values is not None:
            self.values = values
            on = [
                ok and not x <= target and not spent
                for ok, x, target, spent in zip(on, values, self.targets, self.spent, strict=True)
            ]
        return None if all(on) else on

    def move(self, v: Tensor, g: Tensor, going: list[bool] | None) -> None:
        """Take one step with the beads that go on, within the hyperplanes if so asked."""
        how = self.how
        self.taken, self.time = self.taken + 1, self.time + 1
        if how.constrained:
            g = g - (g * self.normal).sum(1, keepdim=True) * self.normal
        if how.optimizer == "adam":
            step = self._adam(g)
        elif how.optimizer == "polyak":
            norm = torch.linalg.vector_norm(g, dim=1, keepdim=True).clamp_min(1e-300)
            wanted = 1.2 * (v[:, None] - self.aims).clamp_min(0) / norm
            step = -g / norm * torch.minimum(wanted, _REACH * self.span)
        else:
            step = -(how.lr or 0.0) * g
        moved = self.x.double() + step
        if how.constrained:
            away = ((moved - self.origin) * self.normal).sum(1, keepdim=True)
            moved = moved - away * self.normal
        moved = moved.to(self.x.dtype)
        if going is not None:
            moved = torch.where(torch.tensor(going, device=moved.device)[:, None], moved, self.x)
        self.x = moved

    def _adam(self, g: Tensor) -> Tensor:
        self.first.lerp_(g, 0.1)
        self.second.mul_(0.999).addcmul_(g, g, value=0.001)
        root = self.second.sqrt()
        root = root.add_(1e-8 * root.amax(1, keepdim=True).clamp_min(1e-30))
        crossing = _CROSSING * self.span / math.sqrt(g.shape[1])
        rate = crossing if self.how.lr is None else self.how.lr
        factor = rate * (1 - 0.999**self.time) ** 0.5 / (1 - 0.9**self.time)
        step: Tensor = -factor * self.first / root
        return step

    def hand_back(self, going: list[bool] | None) -> list[Training]:
        """Return the trainings as they stand; `going` says which beads have not stopped."""
        rest, jobs = going or [True] * len(self.values), []
        moving = (self.x, self.first, self.second)
        split = [torch.split(t, self.counts) for t in moving]
        start = 0
        for k, (job, live) in enumerate(zip(self.jobs, self.live, strict=True)):
            part = slice(start, start + len(live))
            start += len(live)
            fields = [getattr(job, name).clone() for name in ("x", "first", "second")]
            for whole, pieces in zip(fields, split, strict=True):
                whole[live] = pieces[k]
            on, values = job.live.clone(), list(job.values)
            on[live] = torch.tensor(rest[part], device=on.device)
            for row, value in zip(live.tolist(), self.values[part], strict=True):
                values[row] = value
            x, first, second = fields
            jobs.append(
                replace(job, x=x, first=first, second=second, live=on, values=values,
                        steps=job.steps + self.taken)
            )  # fmt: skip
        return jobs
