"""What stands behind the passes: independent searches, saddles, and the level sets below."""

from __future__ import annotations

import math
from typing import Any

from thalweg.estimate import Bound, Estimate
from thalweg.report.barriers import proven
from thalweg.report.frame import (
    MAIN,
    ORANGE,
    Figure,
    dots,
    escaped,
    frame,
    titled,
)
from thalweg.report.names import NONE, bracket, count, labels, listing, pair, plain
from thalweg.report.tables import Cell, table
from thalweg.survey.records import LevelRecord, LevelSetRecord, SaddleRecord, SurveyRecord
from thalweg.topology import Leaf

__all__ = ["critical", "curved", "level_set_figure", "level_sets", "merges", "saddles", "unseen"]

_BLUNT = 0.9  # Frye et al. (2021): above this a point is approximately gradient-flat


def merges(record: SurveyRecord) -> str:
    """Return the table of what stands behind each merge; nothing without a tree of searches."""
    best = record.best_known
    if best is None or not best.merges:
        return ""
    names = labels(record)
    rows: list[list[Cell]] = []
    for support in best.merges:
        low, middle, high = support.spread
        share = (
            NONE
            if math.isnan(support.share) or not support.confirmed
            else f"{100 * support.share:.3g} %"
        )
        rows.append(
            [
                _word(pair(names, str(support.survivor), str(support.dying))),
                (f"{support.height.upper:.6g}", support.height.upper),
                *_certain(record, support.survivor, support.dying),
                (str(support.searches), support.searches),
                (f"{low:.6g} / {middle:.6g} / {high:.6g}", middle),
                (share, -1.0 if math.isnan(support.share) else support.share),
                _word("yes" if support.confirmed else "no, fewer than 3"),
            ]
        )
    columns = [
        "joins",
        "lowest pass known",
        *(["proven height"] if record.certified is not None else []),
        "searches across",
        "lowest / median / highest found",
        "same sets in resamplings",
        "confirmed",
    ]
    searches = count(len(best.searched), "search", "searches")
    caption = (
        f"What stands behind each merge of the tree: {searches} "
        f"for {count(len(record.minima), 'minimum', 'minima')}. Every search with one end on each "
        "side of a merge is an upper bound on its height; resamplings draw the searches anew."
    )
    if record.certified is not None:
        caption += (
            " The proven height is of the lowest path there is between the two: at least the "
            "higher minimum, or what a proof raises it to, certified ends rounded outward."
        )
    return table(caption, columns, rows)


def _certain(record: SurveyRecord, survivor: Leaf, dying: Leaf) -> list[Cell]:
    """Return what is proven of the height between two minima, where there is a certified tree."""
    if record.certified is None:
        return []
    height = record.certified.height_of_merge(survivor, dying)
    return [(proven(height), height.lower)]


def unseen(record: SurveyRecord) -> str:
    """Return in words what the minima found say of those that were not."""
    return "" if record.basins is None else str(record.basins)


def critical(record: SurveyRecord) -> str:
    """Return in words what the highest points of the paths are."""
    found = record.saddles
    if not found:
        return ""
    names = labels(record)
    sure = sum(s.answer == "yes" for s in found)
    rest = [s for s in found if s.answer == "unresolved"]
    blunt = [s for s in found if s.answer == "no" and s.flatness > _BLUNT]
    parts = [
        f"Of {count(len(found), 'path top')} refined, {sure} "
        f"{'is a pass' if sure == 1 else 'are passes'}: critical points with one direction down."
    ]
    if blunt:
        where = listing([pair(names, s.a, s.b) for s in blunt], 3)
        parts.append(
            f"{count(len(blunt), 'top')} ({where}) ended where the gradient is merely flat: no "
            "Newton step shrinks it, so there is no critical point nearby (Frye et al., 2021)."
        )
    if rest:
        parts.append(f"{count(len(rest), 'top')} could not be decided.")
    return " ".join(parts)


def saddles(record: SurveyRecord) -> str:
    """Return the table of saddles."""
    names = labels(record)
    columns = [
        "path",
        "a pass?",
        "loss",
        "index",
        "zero modes",
        "lowest eigenvalue",
        "gradient norm",
        "gradient-flatness r",
        "why",
    ]
    rows = [
        [
            _word(pair(names, s.a, s.b)),
            _word(s.answer),
            _value(s),
            _whole(s.index),
            _whole(s.zero),
            _lowest(s),
            (f"{s.gradient_norm:.2g}", s.gradient_norm),
            (NONE if math.isnan(s.flatness) else f"{s.flatness:.2g}", s.flatness),
            _word(s.reason),
        ]
        for s in record.saddles
    ]
    caption = (
        "The highest point of each path that carries a merge, refined. The index counts the "
        "eigenvalues of the Hessian below zero; r is 0 where a Newton step would end at a critical "
        "point and 1 where it changes nothing."
    )
    return table(caption, columns, rows)


def _word(text: str) -> Cell:
    return text, text


def _value(saddle: SaddleRecord) -> Cell:
    if saddle.value is None:
        return f"{saddle.loss:.6g}", saddle.loss
    return bracket(saddle.value.lower, saddle.value.upper), saddle.loss


def _whole(number: Bound) -> Cell:
    low, high = round(number.lower), round(number.upper)
    return (f"{low}" if low == high else f"{low} to {high}"), number.lower


def _lowest(saddle: SaddleRecord) -> Cell:
    if not saddle.lowest.values:
        return NONE, math.inf
    return bracket(saddle.lowest.lower[0], saddle.lowest.upper[0]), saddle.lowest.values[0]


def curved(record: SurveyRecord) -> str:
    """Return in words how the level sets change as the level falls."""
    parts = []
    names = labels(record)
    for found in record.level_sets:
        joined = [row for row in found.rows if row.yes and (row.shortened or row.raw)]
        where = pair(names, found.a, found.b)
        if not found.rows:
            parts.append(f"Between {where} {found.method}.")
            continue
        if not joined:
            parts.append(f"Between {where} no path was found below any of the levels tried.")
            continue
        high, low = joined[0], joined[-1]
        lost = sum(row.unresolved > 0 for row in found.rows)
        parts.append(
            f"Between {where}, below the level {high.level:.4g} the shortest path found is "
            f"{_length(high)} times the straight distance, below {low.level:.4g} {_length(low)} "
            "times: "
            + (
                "the level set grows more curved as the level falls."
                if _grows(high, low)
                else "no growth that its intervals would show."
            )
            + (f" At {count(lost, 'level')} some searches found none." if lost else "")
        )
    return " ".join(parts)


def _length(row: LevelRecord) -> str:
    mean = row.shortened or row.raw
    return NONE if mean is None else plain(mean)


def _grows(high: LevelRecord, low: LevelRecord) -> bool:
    before, after = high.shortened or high.raw, low.shortened or low.raw
    if before is None or after is None:
        return False
    return _end(after, 0) > _end(before, 1)


def _end(value: Estimate, which: int) -> float:
    end = value.interval[which]
    return end if math.isfinite(end) else value.value


def level_sets(record: SurveyRecord) -> str:
    """Return the table of levels."""
    names = labels(record)
    columns = [
        "between",
        "level",
        "paths found",
        "length, shortened",
        "length, as found",
        "beads",
        "note",
    ]
    rows: list[list[Cell]] = [
        [
            _word(pair(names, found.a, found.b)),
            (f"{row.level:.6g}", row.level),
            (f"{row.yes} of {row.yes + row.no + row.unresolved}", row.yes),
            _mean(row.shortened),
            _mean(row.raw),
            _mean(row.beads),
            _word(row.note),
        ]
        for found in record.level_sets
        for row in found.rows
    ]
    caption = (
        "Strings of beads below each level. Lengths are over the straight distance, and bound "
        "that of the shortest path in the level set from above; ± is the 95 % interval over "
        "searches. That none was found proves nothing."
    )
    return table(caption, columns, rows)


def _mean(value: Estimate | None) -> Cell:
    if value is None:
        return NONE, math.inf
    return plain(value).replace(" (95 %)", ""), value.value


def level_set_figure(found: LevelSetRecord) -> Figure | None:
    """Return lengths and beads against the level, or None where no path was found."""
    rows = [row for row in found.rows if row.raw is not None]
    if not rows:
        return None
    data: list[dict[str, Any]] = []
    for name, colour, symbol, axis in (
        ("shortened", MAIN, "circle", "y"),
        ("raw", ORANGE, "diamond", "y"),
        ("beads", MAIN, "square", "y2"),
    ):
        known = [(row.level, mean) for row in rows if (mean := getattr(row, name)) is not None]
        if not known:
            continue
        words = {"raw": "as found", "shortened": "shortened below the level"}.get(name, name)
        marks = dots(
            [level for level, _ in known],
            [mean.value for _, mean in known],
            [_finite(mean) for _, mean in known],
            [f"level {level:.6g}: {escaped(words)} {plain(mean)}" for level, mean in known],
            colour,
            symbol,
            axis,
        )
        data.append({**marks, "name": words, "showlegend": axis == "y"})
    layout = frame(
        {**titled("level (loss not to be exceeded)"), "anchor": "y2"},
        {**titled("length / distance"), "domain": [0.46, 1]},
    )
    layout["yaxis2"] = {
        **layout["yaxis"],
        **titled("beads"),
        "domain": [0, 0.38],
        "rangemode": "tozero",
    }
    return {"data": data, "layout": layout}


def _finite(mean: Estimate) -> tuple[float, float]:
    low, high = mean.interval
    known = math.isfinite(low) and math.isfinite(high)
    return (low, high) if known else (mean.value, mean.value)
