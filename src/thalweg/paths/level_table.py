"""What a survey of level sets returns: one row per level, with intervals over pairs or seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from thalweg.estimate import Cost, Estimate, from_json
from thalweg.landscape.intervals import LEAST_SAMPLES, mean_interval
from thalweg.paths.laws import FAMILIES, LawChoice, curviness_law

__all__ = ["LevelRow", "LevelRun", "LevelSetGeometry", "Quantity"]

Quantity = Literal["shortened", "raw", "beads"]


@dataclass(frozen=True, slots=True)
class LevelRun:
    """One search: one pair of ends, one level, one seed.

    Attributes:
        pair: Which pair of ends.
        repeat: Which of the pair's seeds.
        stage: Which training checkpoint; 0 where there is one only.
        level: The level.
        answer: ``"yes"``, ``"no"`` or ``"unresolved"``.
        reason: Why.
        raw: Length over the straight distance of the string as found; NaN without one.
        shortened: The same after shortening; NaN where that was not done.
        beads: Beads of the string, ends included; 0 without one.
        rounds: How many times beads were put in.
        seed: The seed of this search.
        cost: What it took.
    """

    pair: int
    repeat: int
    stage: int
    level: float
    answer: str
    reason: str
    raw: float
    shortened: float
    beads: int
    rounds: int
    seed: int
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """Return everything."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "cost"}
        words = {name: _word(value) for name, value in plain.items()}
        return {"type": "level_run", **words, "cost": self.cost.to_json()}


@dataclass(frozen=True, slots=True)
class LevelRow:
    """All searches at one level (of one stage of training).

    Attributes:
        level: The level; the mean over the pairs where each has its own.
        stage: Which training checkpoint.
        yes: How many searches found a string below the level.
        no: How many were refused, an end lying above it.
        unresolved: How many found none.
        raw: Mean length over the straight distance, of the strings found; None without any.
        shortened: The same after shortening.
        beads: Mean number of beads, ends included.
        cost: What all of them took.
        note: What the reader must know of this row; empty if nothing.
    """

    level: float
    stage: int
    yes: int
    no: int
    unresolved: int
    raw: Estimate | None
    shortened: Estimate | None
    beads: Estimate | None
    cost: Cost
    note: str

    @property
    def searches(self) -> int:
        """How many searches there were."""
        return self.yes + self.no + self.unresolved

    def to_json(self) -> dict[str, Any]:
        """Return everything."""
        means = {name: getattr(self, name) for name in ("raw", "shortened", "beads")}
        return {
            "type": "level_row",
            "level": self.level,
            **{name: getattr(self, name) for name in ("stage", "yes", "no", "unresolved")},
            **{name: None if mean is None else mean.to_json() for name, mean in means.items()},
            "cost": self.cost.to_json(),
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class LevelSetGeometry:
    """Lengths and beads against the level.

    Attributes:
        rows: One per level, from the highest down (or one per stage of training).
        runs: Every search.
        pairs: How many pairs of ends.
        repeats: How many seeds per pair.
        method: How it was measured.
        seed: The seed that reproduces it.
        cost: What everything took, parts read from the folder included.
    """

    rows: tuple[LevelRow, ...]
    runs: tuple[LevelRun, ...]
    pairs: int
    repeats: int
    method: str
    seed: int
    cost: Cost

    def law(
        self,
        of: Quantity = "shortened",
        *,
        candidates: Sequence[str] = FAMILIES,
        folds: int | None = None,
    ) -> LawChoice:
        """Decide which law the lengths or the beads follow as the level falls.

        The groups left out are the pairs of ends, or the seeds where there is one pair. Only
        searches that found a string count, so that a law is about the ends that are joined;
        see `curviness_law` for the candidates and the rule.

        Args:
            of: ``"shortened"`` or ``"raw"`` length (Gaussian errors), or ``"beads"``
                (log-normal).
            candidates: Which laws compete.
            folds: See `curviness_law`.

        Raises:
            ValueError: If `of` is unknown, or too few searches found a string.
        """
        if of not in ("shortened", "raw", "beads"):
            raise ValueError(f"of must be 'shortened', 'raw' or 'beads', not {of!r}")
        cells = _by_unit(self.runs, of, self.pairs, by_level=True)
        levels = [level for level, _ in cells]
        return curviness_law(
            levels,
            list(cells.values()),
            [unit for _, unit in cells],
            candidates=candidates,
            errors="lognormal" if of == "beads" else "gaussian",
            folds=folds,
        )

    def __str__(self) -> str:
        """Return a table, one line per level, and what to know of it."""
        staged = len({row.stage for row in self.rows}) > 1
        head = ["stage"] * staged + ["level", "joined", "length", "shortened", "beads", "gradients"]
        lines = [head]
        for row in self.rows:
            cells = [str(row.stage)] * staged + [f"{row.level:.6g}", f"{row.yes}/{row.searches}"]
            cells += [_cell(row.raw), _cell(row.shortened), _cell(row.beads)]
            lines.append([*cells, f"{row.cost.gradients}"])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = ["  ".join(c.rjust(w) for c, w in zip(x, widths, strict=True)) for x in lines]
        notes = [f"  level {row.level:.6g}: {row.note}" for row in self.rows if row.note]
        return "\n".join([*table, *notes, f"{self.method} (seed {self.seed}); {self.cost}"])

    def __rich__(self) -> str:
        """Return the table with its head in bold."""
        head, _, rest = str(self).replace("[", "\\[").partition("\n")
        return f"[bold]{head}[/bold]\n{rest}"

    def to_json(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "type": "level_set_geometry",
            "rows": [row.to_json() for row in self.rows],
            "runs": [run.to_json() for run in self.runs],
            "pairs": self.pairs,
            "repeats": self.repeats,
            "method": self.method,
            "seed": self.seed,
            "cost": self.cost.to_json(),
        }


def row_of(runs: Sequence[LevelRun], pairs: int) -> LevelRow:
    """Put the searches of one row together."""
    cost = sum((run.cost for run in runs), Cost())
    count = {word: sum(run.answer == word for run in runs) for word in ("yes", "no", "unresolved")}
    means = {}
    quantities: tuple[Quantity, ...] = ("raw", "shortened", "beads")
    for of in quantities:
        means[of] = _mean(list(_by_unit(runs, of, pairs, by_level=False).values()))
    level = float(np.mean([run.level for run in runs]))
    return LevelRow(
        level, runs[0].stage, count["yes"], count["no"], count["unresolved"],
        means["raw"], means["shortened"], means["beads"], cost, _note(runs),
    )  # fmt: skip


def _note(runs: Sequence[LevelRun]) -> str:
    """Quote the first reason of every answer that is not yes."""
    parts = []
    for word in ("no", "unresolved"):
        reasons = [run.reason for run in runs if run.answer == word]
        if reasons:
            parts.append(f"{len(reasons)} {word} ({reasons[0]})")
    return "; ".join(parts)


def _by_unit(
    runs: Sequence[LevelRun], of: Quantity, pairs: int, *, by_level: bool
) -> dict[tuple[float, int], float]:
    """Average a quantity of the strings found over every unit (pair, or seed of one pair)."""
    cells: dict[tuple[float, int], list[float]] = {}
    for run in runs:
        value = float(getattr(run, of))
        if run.answer == "yes" and not math.isnan(value):
            unit = run.pair if pairs > 1 else run.repeat
            cells.setdefault((run.level if by_level else 0.0, unit), []).append(value)
    return {cell: float(np.mean(values)) for cell, values in cells.items()}


def _mean(values: Sequence[float]) -> Estimate | None:
    """Return the mean with Student's interval: without an end where there is one value only."""
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, math.nan, (-math.inf, math.inf), 1, method="one value")
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    if n >= LEAST_SAMPLES:
        return Estimate(mean, error, mean_interval(values), n, method="mean_interval")
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    return Estimate(mean, error, (mean - reach, mean + reach), n, method="Student's interval")


def _cell(mean: Estimate | None) -> str:
    """Write a mean with the half width of its interval, and with how many it rests on."""
    if mean is None:
        return "-"
    if mean.samples == 1:
        return f"{mean.value:.4g} (n=1)"
    return f"{mean.value:.4g} ± {mean.half_width:.2g} (n={mean.samples})"


def _word(value: Any) -> Any:
    """Strict JSON has no NaN or infinity, so these become words."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def run_from(stored: dict[str, Any]) -> LevelRun:
    """Rebuild a search from what its `to_json` returned."""
    fields = {name: stored[name] for name in LevelRun.__slots__ if name != "cost"}
    fields |= {name: float(fields[name]) for name in ("level", "raw", "shortened")}
    cost = from_json(stored["cost"])
    assert isinstance(cost, Cost)
    return LevelRun(**fields, cost=cost)
