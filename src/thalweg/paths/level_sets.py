"""The geometry of level sets: lengths and beads of strings against the level, with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape, check_theta, for_evaluation
from thalweg.landscape.replacing import replacing
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.beads import dynamic_string
from thalweg.paths.level_table import LevelRow, LevelRun, LevelSetGeometry, row_of, run_from
from thalweg.paths.resume import Progress, fingerprint

__all__ = [
    "LevelRow",
    "LevelRun",
    "LevelSetGeometry",
    "level_set_geometry",
    "level_sets_through_training",
]

_OWN = ("level", "seed", "shorten", "checkpoint", "progress")  # options that are not passed on


@dataclass(frozen=True, eq=False)
class _Job:
    """One search to do."""

    stage: int
    pair: int
    repeat: int
    level: float
    seed: int
    a: Tensor
    b: Tensor
    ends: tuple[float, float]

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"stage-{self.stage}_pair-{self.pair}_seed-{self.repeat}_level-{self.level:.9g}"


def level_set_geometry(
    land: Landscape,
    a: Float[Tensor, "*pairs dim"],
    b: Float[Tensor, "*pairs dim"],
    levels: Sequence[float],
    *,
    seeds: int = 3,
    shorten: bool = True,
    folder: str | FilePath | None = None,
    seed: Seed = None,
    progress: Progress | None = None,
    **options: Any,
) -> LevelSetGeometry:
    r"""Measure how curved the way from `a` to `b` is below each level.

    At every level $\lambda$, for every pair and seed, a string of beads is sought in
    $\{L \le \lambda\}$ (`dynamic_string`) and shortened there. Reported are the length over
    $|a - b|$, raw and shortened, which bound the geodesic's from above, and the beads; each
    a mean with Student's interval over the pairs (each first averaged over its seeds), or
    over the seeds where there is one pair. Searches that found no string are counted as
    unresolved and are in no mean; levels below an end are answered *no*.

    Over the seeds of *one* pair on all the data little is random (`dynamic_string` nudges
    new beads), so that intervals say how repeatable the method is and not how the
    landscape varies: give several pairs for that.

    Args:
        land: The landscape.
        a: One end, `(dim,)`, or one per pair, `(pairs, dim)`.
        b: The other ends, of the same shape.
        levels: The levels.
        seeds: Searches per pair and level; a pair's seeds are the same at every level.
        shorten: Whether to shorten the strings.
        folder: Where every finished search is put, with the state of the unfinished one: a
            run that was killed goes on from there, and ends with the same numbers.
        seed: Draws the searches' seeds; in a folder, the one that it was begun with.
        progress: Called with a fraction in [0, 1] and a message.
        options: Passed on to `dynamic_string`.

    Returns:
        The rows, highest level first; ``.law()`` decides which law the lengths follow.

    Raises:
        TypeError: If an option is not `dynamic_string`'s, or an end no tensor of the
            landscape's dtype.
        ValueError: If shapes are wrong, there are no levels, or the folder belongs to other
            ends or options.

    Source: Freeman and Bruna, Topology and geometry of half-rectified network optimization,
    ICLR 2017, section 4; the shortening is not theirs.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> ring = FunctionLandscape(lambda x: ((x**2).sum() - 1)**2, dim=2)
        >>> a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> found = level_set_geometry(ring, a, b, [0.25, 1.5], seeds=1, seed=0)
        >>> [(row.level, row.yes, round(row.shortened.value, 2)) for row in found.rows]
        [(1.5, 1, 1.0), (0.25, 1, 1.26)]
    """
    first, second = _pairs(land, a, "a"), _pairs(land, b, "b")
    if first.shape != second.shape:
        raise ValueError(
            f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}: each row of one is joined to "
            "the same row of the other"
        )
    wanted = sorted({float(level) for level in levels}, reverse=True)
    if not wanted or not all(math.isfinite(level) for level in wanted):
        raise ValueError(f"levels must be one or more finite numbers, got {list(levels)!r}")
    survey = _Survey(land, seeds, shorten, folder, seed, progress, options)
    ends = survey.losses(first, second)
    for level in wanted:
        for pair, (one, other) in enumerate(zip(first, second, strict=True)):
            survey.plan(0, pair, level, one, other, ends[pair])
    return survey.geometry(len(first), "level")


def level_sets_through_training(
    land: Landscape,
    checkpoints_a: Float[Tensor, "stages *pairs dim"],
    checkpoints_b: Float[Tensor, "stages *pairs dim"],
    *,
    margin: float | None = None,
    share: float = 0.1,
    seeds: int = 3,
    shorten: bool = True,
    folder: str | FilePath | None = None,
    seed: Seed = None,
    progress: Progress | None = None,
    **options: Any,
) -> LevelSetGeometry:
    r"""Measure the same between two networks at successive checkpoints of their training.

    At stage $i$ the level of a pair is $m_i + \text{margin}$, with
    $m_i = \max(L(a_i), L(b_i))$ the higher end, or $m_i + \text{share}\,|m_i|$ without a
    margin: how much room a path has is the same at every stage, absolutely or relatively.

    Args:
        land: The landscape.
        checkpoints_a: One network's checkpoints, `(stages, dim)`, or those of several,
            `(stages, pairs, dim)`.
        checkpoints_b: The other's, of the same shape.
        margin: How far the level lies above the higher end.
        share: The same as a share of the higher end's loss, where `margin` is None.
        seeds: See `level_set_geometry`, like all that follow.
        shorten: See there.
        folder: See there.
        seed: See there.
        progress: See there.
        options: See there.

    Returns:
        One row per stage, in the order given.

    Raises:
        TypeError: As `level_set_geometry`.
        ValueError: As `level_set_geometry`, or if `margin` or `share` is not positive.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> ring = FunctionLandscape(lambda x: ((x**2).sum() - 1)**2, dim=2)
        >>> way = torch.tensor([[1.5, 0.0], [1.1, 0.0]], dtype=torch.float64)
        >>> found = level_sets_through_training(ring, way, -way, share=0.5, seeds=1, shorten=False)
        >>> [round(row.level, 4) for row in found.rows]
        [2.3438, 0.0661]
    """
    room = share if margin is None else margin
    if not (room > 0 and math.isfinite(room)):
        raise ValueError(f"the level must lie above the ends: margin or share must be > 0: {room}")
    if checkpoints_a.shape != checkpoints_b.shape or checkpoints_a.ndim not in (2, 3):
        raise ValueError(
            f"checkpoints have shapes {tuple(checkpoints_a.shape)} and "
            f"{tuple(checkpoints_b.shape)}; give (stages, {land.dim}) or (stages, pairs, "
            f"{land.dim}) for both"
        )
    survey = _Survey(land, seeds, shorten, folder, seed, progress, options)
    pairs = 0
    for stage, (a, b) in enumerate(zip(checkpoints_a, checkpoints_b, strict=True)):
        first, second = _pairs(land, a, f"a, stage {stage}"), _pairs(land, b, f"b, stage {stage}")
        pairs = len(first)
        for pair, ends in enumerate(survey.losses(first, second)):
            high = max(ends) if not any(math.isnan(x) for x in ends) else math.nan
            level = high + (share * abs(high) if margin is None else margin)
            survey.plan(stage, pair, level, first[pair], second[pair], ends)
    return survey.geometry(pairs, "stage")


def _pairs(land: Landscape, ends: Tensor, name: str) -> Tensor:
    ends = check_theta(ends, land.dim, land.dtype, land.device)
    if ends.ndim > 2 or not ends.numel():
        raise ValueError(
            f"end {name} has shape {tuple(ends.shape)}; give ({land.dim},) or (pairs, {land.dim})"
        )
    bad = int((~torch.isfinite(ends)).any(-1).sum())
    if bad:
        raise ValueError(
            f"end {name} holds {bad} vectors with NaN or infinite values of "
            f"{ends.numel() // land.dim}; leave out what has diverged"
        )
    return ends.reshape(-1, land.dim)


class _Survey:
    """The searches of one call: planned, done or read from the folder, and put together."""

    def __init__(
        self,
        land: Landscape,
        seeds: int,
        shorten: bool,
        folder: str | FilePath | None,
        seed: Seed,
        progress: Progress | None,
        options: dict[str, Any],
    ) -> None:
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        for name in _OWN:
            if name in options:
                raise TypeError(f"{name} is set for every search by itself; leave it out")
        self.land, self.view = land, for_evaluation(land)
        self.seeds, self.shorten, self.options = seeds, shorten, options
        self.folder = None if folder is None else FilePath(folder)
        self.progress, self.before, self.read = progress, land.cost, Cost()
        begun = None if self.folder is None else _load(self.folder / "seed.json")
        generator, self.seed = make_generator(begun["seed"] if begun and seed is None else seed)
        if self.folder is not None and begun is None:
            _save(self.folder / "seed.json", {"seed": self.seed})
        self.draws, self.generator = dict[tuple[int, int], int](), generator
        self.jobs: list[_Job] = []

    def losses(self, a: Tensor, b: Tensor) -> list[tuple[float, float]]:
        """Return the losses of every pair's ends."""
        found = self.view.loss(torch.cat([a, b])).double().tolist()
        return list(zip(found[: len(a)], found[len(a) :], strict=True))

    def plan(
        self, stage: int, pair: int, level: float, a: Tensor, b: Tensor, ends: tuple[float, float]
    ) -> None:
        """Note the searches of one pair at one level."""
        for repeat in range(self.seeds):
            if (pair, repeat) not in self.draws:
                drawn = torch.randint(2**62, (), generator=self.generator)
                self.draws[pair, repeat] = int(drawn)
            number = self.draws[pair, repeat]
            self.jobs.append(_Job(stage, pair, repeat, level, number, a, b, ends))

    def geometry(self, pairs: int, rows_by: Literal["level", "stage"]) -> LevelSetGeometry:
        """Do what is not done yet and put everything together."""
        runs: list[LevelRun] = []
        for i, job in enumerate(self.jobs):
            runs.append(self._run(job, i))
            if self.progress is not None:
                done = f"level {job.level:.6g}, pair {job.pair}, seed {job.repeat}"
                self.progress((i + 1) / len(self.jobs), f"{done}: {runs[-1].answer}")
        grouped: dict[float, list[LevelRun]] = {}
        for run in runs:
            grouped.setdefault(getattr(run, rows_by), []).append(run)
        rows = tuple(row_of(some, pairs) for some in grouped.values())
        unit = "pairs of ends" if pairs > 1 else "seeds of one pair"
        names = ", ".join(f"{name}={value!r}" for name, value in sorted(self.options.items()))
        method = f"dynamic string sampling ({names or 'default options'}), means over {unit}"
        cost = self.land.cost - self.before + self.read
        return LevelSetGeometry(rows, tuple(runs), pairs, self.seeds, method, self.seed, cost)

    def _run(self, job: _Job, i: int) -> LevelRun:
        """Return one search's result, from the folder if it is there."""
        if self.folder is None:
            return self._search(job, i, None)
        file = self.folder / f"{job.name}.json"
        named = {k: repr(type(v) if callable(v) else v) for k, v in self.options.items()}
        key = fingerprint(
            a=job.a, b=job.b, ends=list(job.ends), level=job.level, seed=job.seed,
            options=[list(item) for item in sorted(named.items())], shorten=self.shorten,
        )  # fmt: skip
        stored = _load(file)
        if stored is not None:
            if stored.get("key") != key:
                raise ValueError(
                    f"{file} belongs to other ends or options; name another folder, or move it "
                    "away to start anew"
                )
            run = run_from(stored)
            self.read += run.cost
            return run
        state = self.folder / f"{job.name}.state"
        run = self._search(job, i, state)
        _save(file, {"key": key, **run.to_json()})
        for left in self.folder.glob(f"{job.name}.state*"):
            left.unlink()
        return run

    def _search(self, job: _Job, i: int, state: FilePath | None) -> LevelRun:
        for name, loss in zip("ab", job.ends, strict=True):
            if not loss <= job.level:
                reason = f"end {name} lies at {loss:.8g}, above the level {job.level:.8g}"
                answer = "unresolved" if math.isnan(loss) or math.isnan(job.level) else "no"
                return LevelRun(
                    job.pair, job.repeat, job.stage, job.level, answer, reason, math.nan, math.nan,
                    0, 0, job.seed, Cost(),
                )  # fmt: skip
        string = dynamic_string(
            self.land, job.a, job.b, job.level, shorten=self.shorten, seed=job.seed,
            checkpoint=state, progress=self._within(i), **self.options,
        )  # fmt: skip
        short = string.shortened
        return LevelRun(
            job.pair, job.repeat, job.stage, job.level, string.connected.answer,
            string.connected.reason, string.path.normalised_length,
            math.nan if short is None else short.normalised_length,
            string.beads, string.rounds, job.seed, string.cost,
        )  # fmt: skip

    def _within(self, i: int) -> Progress | None:
        told, total = self.progress, len(self.jobs)
        if told is None:
            return None
        return lambda part, message: told((i + part) / total, message)


def _load(file: FilePath) -> dict[str, Any] | None:
    """Read a file of the folder; None if there is none yet."""
    if not file.exists():
        return None
    try:
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); move it away to start anew") from error
    return stored


def _save(file: FilePath, content: dict[str, Any]) -> None:
    """Write a file of the folder in one move."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write(json.dumps(content).encode())
