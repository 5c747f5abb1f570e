"""Dynamic string sampling: beads below a level, and more of them where a segment rises above it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Verdict
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.bead_search import BeadSearch, How, Rule
from thalweg.paths.path import Path, check_ends, measure
from thalweg.paths.resume import Checkpoint, Progress, fingerprint, run
from thalweg.paths.segments import joined
from thalweg.paths.shorten import shorten as shorten_path

__all__ = ["BeadString", "dynamic_string"]

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
    _check_options(level, base, alpha, acceptance, insert, constraint, optimizer, lr)
    _check_counts(initial_beads, check_points, max_rounds, max_steps, max_samples)
    a, b = check_ends(land, a, b)
    before = land.cost
    rule = Rule(
        land=land,
        view=for_evaluation(land),
        target=base + alpha * (level - base),
        ceiling=base + acceptance * (level - base),
        span=float(torch.linalg.vector_norm((b - a).double())),
        insert=insert,
        check_points=check_points,
        threshold=threshold,
        tolerance=tolerance,
        max_samples=max_samples,
    )
    ends = rule.values(torch.stack([a, b]))
    for name, value in zip("ab", ends, strict=True):
        if not value <= level:
            raise ValueError(
                f"end {name} lies at {value:.8g}, not at or below the level {level:.8g}: no "
                "string from it stays below; train it further, or raise the level"
            )
    generator, recorded = make_generator(seed)
    batches = Minibatches(land, sys.maxsize if batch_size is None else batch_size, generator)
    constrained = constraint == "hyperplane"
    how = How(optimizer, lr, constrained, max_rounds, max_steps, max_gradients)
    search = BeadSearch(
        rule,
        how,
        torch.stack([a, b]),
        ends,
        batches,
        generator,
        initial_beads,
        land.cost - before,
    )
    key = fingerprint(
        a=a,
        b=b,
        rule=[rule.target, rule.ceiling, insert, check_points, tolerance, max_samples],
        how=[optimizer, lr, constrained, max_rounds, max_steps, max_gradients],
        start=[initial_beads, batch_size, threshold is not None, recorded],
    )
    run(search, None if checkpoint is None else Checkpoint(checkpoint, key), progress)
    path, verdict = _judge(search, recorded)
    shortened = None
    if shorten and verdict.yes and threshold is None and path.maximum.upper <= rule.ceiling:
        shortened = shorten_path(
            land,
            path,
            rule.ceiling,
            max_gradients=max_gradients,
            batch_size=batch_size,
            max_samples=max_samples,
            seed=recorded,
            checkpoint=None if checkpoint is None else f"{checkpoint}.shorten",
            progress=progress,
        )
        verdict = replace(verdict, evidence=shortened, cost=search.spent + shortened.cost)
    return BeadString(
        path,
        verdict,
        search.rounds,
        level,
        shortened,
        search.training,
        verdict.cost,
        recorded,
    )


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


def _judge(search: BeadSearch, seed: int) -> tuple[Path, Verdict]:
    """Measure the string and say what it shows."""
    rule, links = search.rule, search.links
    segments = [link.path for link in links if link.path is not None]
    if len(segments) == len(links):
        path = joined(segments)
    else:
        path = measure(
            rule.land,
            search.points,
            tolerance=rule.tolerance,
            max_samples=max(rule.max_samples, 4 * len(search.points)),
        )
        search.spent += path.cost
    yes = search.outcome == "joined"
    reason = _reason(search)
    path = replace(
        path,
        method="dynamic string sampling",
        converged=yes,
        note=reason,
        seed=seed,
        cost=search.spent,
    )
    return path, Verdict("yes" if yes else "unresolved", reason, path, search.spent)


def _reason(search: BeadSearch) -> str:
    rule, high = search.rule, [link.high for link in search.links]
    what = "loss" if rule.threshold is None else "threshold function"
    parts = rule.parts
    if search.outcome == "joined":
        count = f"{len(search.points)} beads, ends included"
        if parts is None:
            return f"a string of {count}, stays at or below {rule.ceiling:.8g}, segment by segment"
        return (
            f"a string of {count}, has a {what} at or below {rule.ceiling:.8g} at {parts + 1} "
            "points of each segment; between them nothing was looked at"
        )
    if search.outcome == "stuck":
        value = next(v for v in search.values if not v <= rule.ceiling)
        return (
            f"a bead stands at {value:.8g} after up to {search.how.max_steps} steps, not at or "
            f"below {rule.ceiling:.8g}; more steps, another seed or another rate may bring it down"
        )
    if search.outcome == "budget":
        return f"the budget of {search.how.max_gradients} gradients is spent; raise max_gradients"
    failed = [h for h, link in zip(high, search.links, strict=True) if not link.passed]
    worst = next((h for h in failed if math.isnan(h)), max(failed))
    return (
        f"{len(failed)} of {len(high)} segments are not shown to stay at or below "
        f"{rule.ceiling:.8g} after {search.rounds} rounds (the highest point seen: {worst:.8g}); "
        "more rounds may join them, and that they are apart is not proven"
    )
