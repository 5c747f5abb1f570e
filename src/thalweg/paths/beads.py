"""Dynamic string sampling: beads below a level, and more of them where a segment rises above it."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Verdict
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.bead_search import BeadSearch, Rule, together
from thalweg.paths.bead_training import How
from thalweg.paths.bead_verdict import judge
from thalweg.paths.path import Path, check_ends
from thalweg.paths.resume import Checkpoint, Progress, fingerprint, run
from thalweg.paths.shorten import shorten as shorten_path

__all__ = ["BeadString", "dynamic_string", "dynamic_strings"]

_CHOICES = {
    "insert": ("top", "middle"),
    "constraint": ("none", "hyperplane"),
    "optimizer": ("adam", "sgd", "polyak"),
}


@dataclass(frozen=True, eq=False)
class BeadString:
    """A string of beads under a level, and whether it joins its ends there.

    Attributes:
        path: The string as found; its corners are the beads, ends included. Its heights are
            those of the loss, bracketed, however the beads were judged.
        connected: *Yes* where every segment passes, with the shortest such path as evidence;
            else *unresolved*: not to find a string proves nothing.
        rounds: How many times beads were put in and trained.
        level: The level asked for.
        shortened: The string shortened under the level; None where it was not asked for, or
            where the string is not below the level itself.
        training: Gradients that the beads' training took, in gradients over all the data.
        cost: What everything took.
        seed: The seed that reproduces it.
    """

    path: Path
    connected: Verdict
    rounds: int
    level: float
    shortened: Path | None
    training: float
    cost: Cost
    seed: int

    @property
    def beads(self) -> int:
        """How many beads, the ends among them, as Freeman and Bruna count."""
        return len(self.path.points)

    @property
    def raw_length(self) -> float:
        """Length of the string as found, before it was shortened."""
        return self.path.length

    @property
    def normalised_length(self) -> float:
        """Length over the straight distance, of the shortened string where there is one."""
        return (self.shortened or self.path).normalised_length

    def __str__(self) -> str:
        """Return the verdict, the beads, both lengths and the cost."""
        lengths = f"{self.path.normalised_length:.4g} times the straight distance"
        if self.shortened is not None:
            lengths += (
                f"; shortened: {len(self.shortened.points)} points, "
                f"{self.shortened.normalised_length:.4g} times"
            )
        return (
            f"{self.connected}\n"
            f"  {self.beads} beads after {self.rounds} rounds, {lengths}\n"
            f"  maximum {self.path.maximum}, level {self.level:.8g}\n"
            f"  {self.cost} (seed {self.seed})"
        )

    def __rich__(self) -> str:
        """Return the same lines with the verdict in colour."""
        _, _, rest = str(self).partition("\n")
        return f"{self.connected.__rich__()}\n" + rest.replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return everything but the points themselves."""
        return {
            "type": "bead_string",
            "connected": self.connected.to_json(),
            "beads": self.beads,
            "rounds": self.rounds,
            "level": self.level,
            "raw_length": self.raw_length,
            "normalised_length": self.normalised_length,
            "path": self.path.to_json(),
            "shortened": None if self.shortened is None else self.shortened.to_json(),
            "training": self.training,
            "cost": self.cost.to_json(),
            "seed": self.seed,
        }


def dynamic_string(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    level: float,
    *,
    base: float = 0.0,
    alpha: float = 0.95,
    acceptance: float = 1.0,
    insert: Literal["top", "middle"] = "top",
    constraint: Literal["none", "hyperplane"] = "none",
    initial_beads: Literal[0, 1] = 0,
    optimizer: Literal["adam", "sgd", "polyak"] = "adam",
    lr: float | None = None,
    max_rounds: int = 10,
    max_steps: int = 2000,
    batch_size: int | None = None,
    check_points: int | None = None,
    threshold: Callable[[Tensor], float] | None = None,
    max_gradients: int = 50_000,
    shorten: bool = True,
    tolerance: float | None = None,
    max_samples: int = 100,
    seed: Seed = None,
    checkpoint: str | FilePath | None = None,
    progress: Progress | None = None,
) -> BeadString:
    r"""Join `a` and `b` below a level by a string of beads (dynamic string sampling).

    A segment that rises above the level $\lambda$ gets a bead at its highest point, which
    is trained until its loss is at most $\ell_0 + \alpha(\lambda - \ell_0)$ (`base`
    $\ell_0$); then its two halves are checked, and so on. A segment passes when its maximum
    is at most $\ell_0 + m(\lambda - \ell_0)$ with $m$ = `acceptance`: with $m = 1$ the
    level is held strictly, by the upper end of `bracket_maximum`. The published figures
    come of ``acceptance=1.1, check_points=100``, which is looser.

    All beads of a round share one minibatch per step, and each stops on its own. A bead
    that `max_steps` leave above the level ends the search. Afterwards the string is
    shortened under the level (`shorten`), which the original lacks.

    Args:
        land: The landscape.
        a: One end, `(dim,)`, at or below the level.
        b: The other end.
        level: $\lambda$, above `base`.
        base: $\ell_0$: 0 suits a loss that is never negative.
        alpha: $\alpha < 1$.
        acceptance: $m$; 1 or more.
        insert: ``"top"``, the highest point of a segment; ``"middle"``.
        constraint: ``"hyperplane"`` keeps a bead in the hyperplane through its first place
            and orthogonal to the chord of its neighbours.
        initial_beads: 0 begins with the straight line, 1 with a bead in its middle.
        optimizer: ``"adam"``; ``"sgd"``; ``"polyak"``: the step that would reach the
            target if the loss were linear, which needs no rate.
        lr: Learning rate. Adam's default crosses a hundredth of the segment per step.
        max_rounds: How many times beads may be put in.
        max_steps: Steps of one bead.
        batch_size: Examples per step; None takes all. Beads then stop by their loss on all
            the data, looked at twice per epoch.
        check_points: Look at a segment at this many equal parts, both ends included, in
            the place of the bracket; nothing is then known in between.
        threshold: Another function of one vector that must stay below the level, such as
            the error on a test set, while the loss is trained on. It cannot be bracketed:
            by default 20 parts of every segment are looked at. Its cost is its own.
        max_gradients: Budget of the training, in gradients over all the data: on a
            minibatch a gradient counts as the share of the examples. `shorten` gets the
            same again.
        shorten: Whether to shorten the string that was found.
        tolerance: A width of bracket below which a segment's check stops refining.
        max_samples: Evaluations for the bracket of one segment.
        seed: Of minibatches, and of the nudge that takes a new bead off a critical point.
        checkpoint: A file to go on from (``FILE.shorten`` holds the shortening).
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The string, its verdict, and the shortened path.

    Raises:
        ValueError: If an end is not at or below the level, the level is not above `base`,
            or an option is out of range.

    Source: Freeman and Bruna, Topology and geometry of half-rectified network optimization,
    ICLR 2017, Algorithm 1; the hyperplane is their constrained version.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> ring = FunctionLandscape(lambda x: ((x**2).sum() - 1)**2, dim=2)
        >>> a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> string = dynamic_string(ring, a, b, level=0.25, seed=0)
        >>> string.connected.answer, string.path.maximum.upper <= 0.25
        ('yes', True)
    """
    request = _Request(**{name: value for name, value in locals().items() if name in _FIELDS})
    search = request.search()
    run(search, request.kept(search), progress)
    return request.result(search, progress)


def dynamic_strings(
    land: Landscape,
    a: Float[Tensor, "strings dim"],
    b: Float[Tensor, "strings dim"],
    levels: Sequence[float],
    *,
    seeds: Sequence[int],
    progress: Progress | None = None,
    **options: Any,
) -> list[BeadString]:
    """Seek many strings side by side, the beads of all of them in one stack.

    Each comes out as `dynamic_string` would find it, up to rounding; on a small network, where
    one step of a stack costs little more than that of a single bead, many times sooner. All
    the data are used, and no checkpoints are kept.

    Args:
        land: The landscape.
        a: One end of every string, `(strings, dim)`.
        b: The other ends.
        levels: The level of each.
        seeds: The seed of each.
        progress: Called with a fraction in [0, 1] and a message.
        options: Of `dynamic_string`, the same for all.

    Returns:
        The strings, in the order given.

    Raises:
        TypeError: If an option is not `dynamic_string`'s, or is set for each string by itself.
        ValueError: As `dynamic_string`, or if the counts differ.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> ring = FunctionLandscape(lambda x: ((x**2).sum() - 1)**2, dim=2)
        >>> a = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
        >>> strings = dynamic_strings(ring, a, -a, [0.25, 0.5], seeds=[0, 1], shorten=False)
        >>> [string.connected.answer for string in strings]
        ['yes', 'yes']
    """
    for name in ("level", "seed", "checkpoint", "batch_size", "threshold"):
        if name in options:
            raise TypeError(f"{name} cannot be set for strings that are sought side by side")
    if not len(a) == len(b) == len(levels) == len(seeds):
        raise ValueError(
            f"{len(a)} and {len(b)} ends, {len(levels)} levels and {len(seeds)} seeds: give one "
            "of each per string"
        )
    parameters = inspect.signature(dynamic_string).parameters.values()
    every = {p.name: p.default for p in parameters if p.default is not p.empty} | options
    unknown = sorted(set(every) - _FIELDS - {"progress"})
    if unknown:
        raise TypeError(f"dynamic_string has no option {', '.join(unknown)}")
    every.pop("progress")
    requests = [
        _Request(**every | {"land": land, "a": one, "b": other, "level": level, "seed": seed})
        for one, other, level, seed in zip(a, b, levels, seeds, strict=True)
    ]
    searches = [request.search() for request in requests]
    together(searches, progress)
    return [
        request.result(search, progress) for request, search in zip(requests, searches, strict=True)
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Request:
    """What `dynamic_string` was asked for."""

    land: Landscape
    a: Tensor
    b: Tensor
    level: float
    base: float
    alpha: float
    acceptance: float
    insert: str
    constraint: str
    initial_beads: int
    optimizer: str
    lr: float | None
    max_rounds: int
    max_steps: int
    batch_size: int | None
    check_points: int | None
    threshold: Callable[[Tensor], float] | None
    max_gradients: int
    shorten: bool
    tolerance: float | None
    max_samples: int
    seed: Seed
    checkpoint: str | FilePath | None

    def search(self) -> BeadSearch:
        """Check what was asked for, and return the search at its beginning."""
        _check_options(
            self.level, self.base, self.alpha, self.acceptance,
            self.insert, self.constraint, self.optimizer, self.lr,
        )  # fmt: skip
        _check_counts(
            self.initial_beads, self.check_points, self.max_rounds, self.max_steps,
            self.max_samples,
        )  # fmt: skip
        land, room = self.land, self.level - self.base
        a, b = check_ends(land, self.a, self.b)
        before = land.cost
        rule = Rule(
            land=land,
            view=for_evaluation(land),
            target=self.base + self.alpha * room,
            ceiling=self.base + self.acceptance * room,
            span=float(torch.linalg.vector_norm((b - a).double())),
            insert=self.insert,
            check_points=self.check_points,
            threshold=self.threshold,
            tolerance=self.tolerance,
            max_samples=self.max_samples,
        )
        points = torch.stack([a, b])
        ends = rule.values(points)
        for name, value in zip("ab", ends, strict=True):
            if not value <= self.level:
                raise ValueError(
                    f"end {name} lies at {value:.8g}, not at or below the level "
                    f"{self.level:.8g}: no string from it stays below; train it further, or "
                    "raise the level"
                )
        generator, seed = make_generator(self.seed)
        size = sys.maxsize if self.batch_size is None else self.batch_size
        return BeadSearch(
            rule, self._how(), points, ends, Minibatches(land, size, generator), generator,
            self.initial_beads, land.cost - before, seed,
        )  # fmt: skip

    def _how(self) -> How:
        constrained = self.constraint == "hyperplane"
        limits = self.max_rounds, self.max_steps, self.max_gradients
        return How(self.optimizer, self.lr, constrained, *limits)

    def kept(self, search: BeadSearch) -> Checkpoint | None:
        """Return the file that the search is kept in."""
        if self.checkpoint is None:
            return None
        rule = search.rule
        checked = [self.insert, self.check_points, self.tolerance, self.max_samples]
        key = fingerprint(
            a=self.a,
            b=self.b,
            rule=[rule.target, rule.ceiling, *checked],
            how=list(vars(search.how).values()),
            start=[self.initial_beads, self.batch_size, self.threshold is not None, search.seed],
        )
        return Checkpoint(self.checkpoint, key)

    def result(self, search: BeadSearch, progress: Progress | None) -> BeadString:
        """Measure and judge the string, and shorten it if so asked."""
        path, verdict = judge(search)
        ceiling, shortened = search.rule.ceiling, None
        wanted = self.shorten and verdict.yes and self.threshold is None
        if wanted and path.maximum.upper <= ceiling:
            shortened = shorten_path(
                self.land,
                path,
                ceiling,
                max_gradients=self.max_gradients,
                batch_size=self.batch_size,
                max_samples=self.max_samples,
                seed=search.seed,
                checkpoint=None if self.checkpoint is None else f"{self.checkpoint}.shorten",
                progress=progress,
            )
            cost = search.spent + shortened.cost
            verdict = replace(verdict, evidence=shortened, cost=cost)
        return BeadString(
            path, verdict, search.rounds, self.level, shortened, search.training, verdict.cost,
            search.seed,
        )  # fmt: skip


_FIELDS = {field.name for field in fields(_Request)}


def _check_options(
    level: float,
    base: float,
    alpha: float,
    acceptance: float,
    insert: str,
    constraint: str,
    optimizer: str,
    lr: float | None,
) -> None:
    if not math.isfinite(level):
        raise ValueError(f"level must be a finite number, got {level!r}")
    if not level > base:
        raise ValueError(
            f"level {level!r} is not above base {base!r}: beads are trained to base + alpha * "
            "(level - base); pass base=, a loss below the level, such as the lowest one known"
        )
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha!r}")
    if not (acceptance >= 1 and math.isfinite(acceptance)):
        raise ValueError(f"acceptance must be 1 (the level itself) or more, got {acceptance!r}")
    asked = {"insert": insert, "constraint": constraint, "optimizer": optimizer}
    for name, value in asked.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"unknown {name} {value!r}; use one of {', '.join(_CHOICES[name])}")
    if lr is not None and not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    if optimizer == "sgd" and lr is None:
        raise ValueError("optimizer 'sgd' needs a learning rate: pass lr=")


def _check_counts(
    initial_beads: int, check_points: int | None, max_rounds: int, max_steps: int, max_samples: int
) -> None:
    if initial_beads not in (0, 1):
        raise ValueError(f"initial_beads must be 0 or 1, got {initial_beads!r}")
    if check_points is not None and check_points < 2:
        raise ValueError(f"check_points must be at least 2, got {check_points}")
    for name, value in {"max_rounds": max_rounds, "max_samples": max_samples}.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
