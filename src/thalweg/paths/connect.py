"""Connect two minima: pick the methods, combine them, and say what the result is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import FiniteSum, Landscape, Normalised
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.landscape.separators import Separator
from thalweg.paths.band import band
from thalweg.paths.beads import dynamic_string
from thalweg.paths.boxes import Region, box_floor
from thalweg.paths.curve import curve
from thalweg.paths.gauge import Gauge, chosen
from thalweg.paths.line import line
from thalweg.paths.path import Floor, Path, check_ends
from thalweg.paths.resume import Progress
from thalweg.paths.separation import floor_between, reconciled
from thalweg.paths.string import string

__all__ = ["Align", "Method", "connect"]

Align = Callable[[Tensor, Tensor], Tensor]
Method = Literal["auto", "line", "string", "band", "curve", "chain", "beads"]
_METHODS = ("auto", "line", "string", "band", "curve", "chain", "beads")
_BATCH = 64  # examples in a minibatch at least, where it is left to us
_MOST_IN_BATCH = 256
_BATCHES = 32  # of all the examples at most, in between
_TIMES = 4  # on a curve at each minibatch: more steps count for more than sharper ones
_TIMES_NORMALISED = 2  # the noise of its statistics leaves least to gain from more
_ON_CURVE = 0.8  # of the budget, where a string relaxes the curve afterwards
_STEPS = 20  # of the string are the fewest that are worth it then
_BELOW = 0.5  # of the budget, for a string of beads below the level
_BENDS = {"bezier": 2, "chain": 3}
_MARGIN = 0.05  # of the level, below which beads are trained where an end lies at it


@dataclass(frozen=True)
class _Search:
    """The ends, and the options that the methods share."""

    land: Landscape
    straight: Path
    level: float | None
    tolerance: float | None
    images: int
    max_gradients: int
    max_samples: int
    batch_size: int | None
    seed: int
    checkpoint: File | None
    progress: Progress | None

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.straight.points[0], self.straight.points[-1]

    @property
    def times(self) -> int | None:
        """How many points of a curve share a minibatch; None leaves it to the curve."""
        if self.batch_size is None:
            return None
        noisy = isinstance(self.land, Normalised) and self.land.batchnorm == "batch"
        return _TIMES_NORMALISED if noisy else _TIMES

    def file(self, stage: str) -> File | None:
        """Where a stage keeps its state."""
        if self.checkpoint is None:
            return None
        return self.checkpoint.with_name(f"{self.checkpoint.name}.{stage}")

    def report(self, start: float, stop: float) -> Progress | None:
        """Return the progress of a stage as a part of the whole."""
        outer = self.progress
        if outer is None:
            return None
        return lambda part, message: outer(start + (stop - start) * part, message)

    def relax(self, start: Path, budget: int, begun: float) -> Path:
        """Relax a path as a string."""
        return string(
            self.land,
            *self.ends,
            start=start,
            level=self.level,
            images=self.images,
            max_gradients=budget,
            tolerance=self.tolerance,
            max_samples=self.max_samples,
            batch_size=None,
            seed=self.seed,
            checkpoint=self.file("string"),
            progress=self.report(begun, 1.0),
        )

    def banded(self) -> Path:
        """Relax the straight line as an elastic band."""
        return band(
            self.land,
            *self.ends,
            start=self.straight,
            max_gradients=self.max_gradients,
            tolerance=self.tolerance,
            max_samples=self.max_samples,
            batch_size=self.batch_size,
            seed=self.seed,
            checkpoint=self.file("band"),
            progress=self.report(0.1, 1.0),
        )

    def bent(self, kind: Literal["bezier", "chain"], budget: int, stop: float) -> Path:
        """Train a curve for its highest points."""
        return curve(
            self.land,
            *self.ends,
            kind=kind,
            bends=_BENDS[kind],
            objective="softmax",
            start=self.straight,
            max_gradients=budget,
            batch_size=self.batch_size,
            samples=self.times,
            tolerance=self.tolerance,
            max_samples=self.max_samples,
            seed=self.seed,
            checkpoint=self.file(kind),
            progress=self.report(0.1, stop),
        )

    def below(self, level: float, budget: int, stop: float) -> Path:
        """Put beads below a level, and shorten the string there."""
        found = dynamic_string(
            self.land,
            *self.ends,
            level,
            base=_base(self.straight.base, level),
            max_gradients=budget,
            tolerance=self.tolerance,
            batch_size=self.batch_size,
            seed=self.seed,
            checkpoint=self.file("beads"),
            progress=self.report(0.1, stop),
        )
        best = found.shortened or found.path
        words = found.connected.reason
        return replace(best, method="beads", note=words, converged=found.connected.yes,
                       seed=found.seed, cost=found.cost)  # fmt: skip

    def on_curve(self, budget: int) -> int:
        """Return the curve's part of a budget: all of it, if the rest is no use to a string."""
        share = max(1, math.floor(_ON_CURVE * budget))
        return share if budget - share >= _STEPS * (self.images - 2) else budget

    def automatic(self) -> Path:
        """Go on until a path is low enough, from the cheapest method to the best."""
        best, spent, begun = self.straight, self.straight.cost, 0.1
        budget = self.max_gradients
        if self.level is not None and max(map(float, best.losses)) <= self.level:
            share = max(1, math.floor(_BELOW * budget))
            found = self.below(self.level, share, 0.1 + 0.9 * _BELOW)
            spent, best = spent + found.cost, _lower(found, best)
            if best.maximum.upper <= self.level:
                return replace(best, cost=spent)
            budget, begun = max(1, budget - share), 0.1 + 0.9 * _BELOW
        if self.batch_size is not None:
            share = self.on_curve(budget)
            stop = begun + (1 - begun) * share / budget
            found = replace(self, straight=best).bent("bezier", share, stop)
            spent, best = spent + found.cost - best.cost, _lower(found, best)
            if share == budget or _low_enough(best, self.level, self.tolerance):
                return replace(best, seed=self.seed, cost=spent)
            budget, begun = budget - share, stop
        found = self.relax(best, max(1, budget), begun)
        return replace(found, cost=spent + found.cost - best.cost)


def connect(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    *,
    method: Method = "auto",
    align: Align | None = None,
    gauge: Gauge | None = None,
    start: Path | None = None,
    level: float | None = None,
    separators: Sequence[Separator] = (),
    region: Region | Literal["auto"] | None = None,
    max_boxes: int = 4000,
    tolerance: float | None = None,
    images: int = 13,
    max_gradients: int = 2500,
    max_samples: int = 200,
    batch_size: int | Literal["auto"] | None = "auto",
    seed: Seed = None,
    checkpoint: str | File | None = None,
    progress: Progress | None = None,
) -> Path:
    r"""Find a low path from `a` to `b` and say how high it climbs.

    ``"auto"`` begins with the straight line, or with `start`, and is content with it if its
    height is at most `tolerance`, or its maximum at most `level`. With a `level` it goes on
    with beads below it. Then, where there are enough examples for minibatches, it bends a
    Bezier curve with them, for four fifths of the budget, or for all of it where a fifth
    holds fewer than 20 steps of the string (`max_gradients` below 1100 for 13 images): on
    networks minibatches then come lower, see ``docs/benchmarks-paths.md``. The best path so
    far is relaxed on all the data as a string that climbs to a pass. The lowest path is
    returned.

    Alone: ``"line"``; ``"string"`` (`string`); ``"band"``, an elastic band with pivots put
    in where they are needed (`band`); ``"curve"``, a Bezier curve with two bends, and
    ``"chain"``, a polygonal chain with three, both trained for their highest points
    (`curve`); ``"beads"``, dynamic string sampling below `level`, shortened there
    (`dynamic_string`).

    Paths are searched on `land` itself. Heights are those of ``for_evaluation(land)``: a
    network with BatchNorm is evaluated with statistics re-estimated at every point, the
    ends included.

    Args:
        land: The landscape.
        a: One end, `(dim,)`; a minimum, if the height is to be a pass between minima.
        b: The other end.
        method: See above.
        align: ``align(a, b) -> b'``: a vector that computes the same function as `b`, and
            that the path ends at instead. `b` itself by default.
        gauge: ``gauge(theta) -> theta'``: the vector chosen among those that compute the
            same. The search is then made again between the chosen ends, and is the result's
            `Path.balanced`: heights and lengths that do not depend on scales.
        start: A path between the same ends, measured on the same landscape, that the search
            goes on from in place of the straight line; a line measured already (`line`) is not
            measured again. What it took is part of the result's cost.
        level: A loss that is low enough: no search goes on below it.
        separators: Sets that may separate the ends; what is known of the loss on them, and
            on those that the landscape knows itself, is a lower bound of the barrier
            (`floor_between`).
        region: Where branch and bound in boxes is to prove a lower bound of the barrier, in up
            to three dimensions (`box_floor`); ``"auto"`` is a box around both ends, five times
            as wide. None looks for no such proof.
        max_boxes: Most boxes of that proof.
        tolerance: A difference in loss that does not matter; by default 1e-3 of the range
            of the losses along the line, or along `start`.
        images: Points of the string.
        max_gradients: Largest number of gradients and HVPs that the search may take, each
            over all the data; on a minibatch one counts as its share. Brackets come on top.
        max_samples: Largest number of evaluations for the bracket.
        batch_size: Examples in a minibatch of the band, the curve and the beads; None takes
            all the data, as the line and the string always do. ``"auto"`` takes a
            thirty-second of the examples, but 64 to 256 of them, where there are at least 128.
            Networks with BatchNorm take as many: larger
            minibatches, though their statistics are less noisy, came out higher. What helped
            is fewer times on the curve at each minibatch and so more steps: 2 for them, 4
            for other networks.
        seed: An integer repeats the path bit for bit.
        checkpoint: Keeps the state of each stage in ``FILE.stage``: killed and run again,
            the call goes on from there and ends at the same path.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The path. ``path.height`` is about this path, ``path.barrier`` about all of them;
        both are measured above $\max(L(a), L(b))$, ``path.maximum`` is absolute.

    Raises:
        TypeError: If an end is no tensor of the landscape's dtype, or a region no `Region`.
        ValueError: If an end has the wrong shape or holds NaN, both coincide, `method`
            is unknown, `start` joins other ends, beads are asked for without a level, `level`
            or `tolerance` is no number, a separating set is crossed below the loss that it
            claims, minibatches are asked of the line or the string, or boxes in more than three
            dimensions.
        NotEnclosableError: If boxes are asked for and the loss has no interval form.
        ContradictionError: If the path stays below a proven floor, even when it is measured
            with more samples.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> ring = FunctionLandscape(lambda x: ((x**2).sum() - 1)**2, dim=2)
        >>> a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> connect(ring, a, b, method="line").height.lower
        1.0
        >>> connect(ring, a, b, seed=0).height.upper < 0.01     # around the ring
        True
    """
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}; use one of {', '.join(_METHODS)}")
    if method == "beads" and level is None:
        raise ValueError("beads are put below a level: give level=, a loss above both ends'")
    if max_gradients < 1:
        raise ValueError(f"max_gradients must be at least 1, got {max_gradients}")
    if method in ("line", "string") and isinstance(batch_size, int):
        raise ValueError(
            f"the {method} takes all the data: leave batch_size={batch_size} out, or choose band, "
            "curve, chain or beads"
        )
    _check_numbers(level, tolerance)
    a, b = check_ends(land, a, b)
    _, number = make_generator(seed)
    aligning = Cost()
    if align is not None:
        before = land.cost
        a, b = check_ends(land, a, align(a, b))
        aligning = land.cost - before
    if start is not None:
        _check_start(start, a, b, method)
    found = _connected(
        land,
        a,
        b,
        method,
        start=start,
        level=level,
        tolerance=tolerance,
        images=images,
        max_gradients=max_gradients,
        max_samples=max_samples,
        batch_size=_batch(land, batch_size),
        seed=number,
        checkpoint=None if checkpoint is None else File(checkpoint),
        progress=progress,
    )
    before = land.cost
    floor = _floor(land, a, b, separators, region, max_boxes)
    spent = found.cost + aligning
    found = reconciled(land, found, floor)
    found = replace(found, floor=floor, cost=spent + (land.cost - before))
    if gauge is None:
        return found
    moved = chosen(land, gauge, a), chosen(land, gauge, b)
    balanced = connect(
        land,
        *moved,
        method=method,
        level=level,
        separators=separators,
        region=None if region is None else "auto",
        max_boxes=max_boxes,
        tolerance=tolerance,
        images=images,
        max_gradients=max_gradients,
        max_samples=max_samples,
        batch_size=batch_size,
        seed=number,
        checkpoint=None if checkpoint is None else f"{checkpoint}.gauge",
        progress=progress,
    )
    return replace(found, balanced=balanced)


def _floor(
    land: Landscape,
    a: Tensor,
    b: Tensor,
    separators: Sequence[Separator],
    region: Region | Literal["auto"] | None,
    max_boxes: int,
) -> Floor | None:
    """Return the best that separating sets and, where they are asked for, boxes prove."""
    known = floor_between(land, a, b, separators)
    if region is None:
        return known
    where = None if region == "auto" else region
    walled = box_floor(land, a, b, region=where, max_boxes=max_boxes).floor
    if known is None:
        return walled
    return max(known, walled, key=lambda one: (one.kind != "estimated", one.loss))


def _check_numbers(level: float | None, tolerance: float | None) -> None:
    """Refuse a level that nothing is below, and a tolerance that is none."""
    if level is not None and math.isnan(level):
        raise ValueError("level is NaN; give the loss below which a path is low enough")
    if tolerance is not None and not (tolerance > 0 and math.isfinite(tolerance)):
        raise ValueError(f"tolerance must be a positive difference in loss, got {tolerance}")


def _check_start(start: Path, a: Tensor, b: Tensor, method: Method) -> None:
    """Refuse a path that does not join the ends."""
    kind = (start.points.dtype, start.points.device, start.points.shape[1:])
    alike = kind == (a.dtype, a.device, a.shape)
    if not (alike and torch.equal(start.points[0], a) and torch.equal(start.points[-1], b)):
        raise ValueError(
            "start joins other ends than a and b (than b aligned, where align moves it); leave it "
            "out, or give a path from a to b"
        )
    if method == "line" and len(start.points) > 2:
        raise ValueError(
            f"start has {len(start.points)} points, so it is no straight line; leave it out, or "
            "choose another method"
        )


def _batch(land: Landscape, batch_size: int | Literal["auto"] | None) -> int | None:
    """Return the examples in a minibatch, or None for all of them."""
    if batch_size == "auto":
        if not (isinstance(land, FiniteSum) and land.examples >= 2 * _BATCH):
            return None
        return min(_MOST_IN_BATCH, max(_BATCH, land.examples // _BATCHES))
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def _connected(
    land: Landscape,
    a: Tensor,
    b: Tensor,
    method: Method,
    *,
    start: Path | None,
    level: float | None,
    tolerance: float | None,
    images: int,
    max_gradients: int,
    max_samples: int,
    batch_size: int | None,
    seed: int,
    checkpoint: File | None,
    progress: Progress | None,
) -> Path:
    straight = start or line(land, a, b, tolerance=tolerance, max_samples=max_samples)
    if progress is not None:
        words = "straight line" if len(straight.points) == 2 else "start"
        progress(0.1 if method != "line" else 1.0, f"{words}: height {straight.height}")
    if method == "line" or (method == "auto" and _low_enough(straight, level, tolerance)):
        return straight
    straight = replace(straight, seed=seed)
    search = _Search(
        land,
        straight,
        level,
        tolerance,
        images,
        max_gradients,
        max_samples,
        batch_size,
        seed,
        checkpoint,
        progress,
    )
    match method:
        case "string":
            return search.relax(straight, max_gradients, 0.1)
        case "band":
            return search.banded()
        case "curve":
            return search.bent("bezier", max_gradients, 1.0)
        case "chain":
            return search.bent("chain", max_gradients, 1.0)
        case "beads":
            assert level is not None
            return search.below(level, max_gradients, 1.0)
    return search.automatic()


def _low_enough(path: Path, level: float | None, tolerance: float | None) -> bool:
    if level is not None:
        return path.maximum.upper <= level
    return path.height.upper <= path.worth(tolerance)


def _base(ends: float, level: float) -> float:
    """Return the loss from which a level's height is counted: the higher end, if it is lower."""
    return ends if ends < level else level - _MARGIN * max(abs(level), 1e-12)


def _lower(one: Path, other: Path) -> Path:
    """Return the path whose bracket ends lower; a NaN is never lower."""
    return one if one.maximum.upper <= other.maximum.upper else other
