"""What paths are worth beyond their maximum: by definition, on held-out data, in a gauge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

from thalweg.estimate import Bound, Estimate
from thalweg.report.names import NONE, labels, pair, plain
from thalweg.report.tables import Cell, table
from thalweg.survey.records import AlongRecord, BarrierRecord, PathRecord, SurveyRecord

__all__ = ["between", "definitions", "digits", "lengths", "outside", "proven"]

_COLUMNS = {
    "above_ends": "above the higher end",
    "above_mean": "above the mean",
    "above_chord": "above the chord",
    "error": "error rate",
}
_SAMPLED = ("above_ends", "error")
_KEPT = "\N{NO-BREAK SPACE}"
_QUANTITIES = {"loss": "loss", "error": "error rate"}


def definitions(record: SurveyRecord) -> str:
    """Return the table of heights by each published definition; nothing where none is known."""
    measured = [found for found in record.paths if found.definitions]
    if not measured:
        return ""
    present = {each.name: each.source for found in measured for each in found.definitions}
    names = [name for name in _COLUMNS if name in present]
    columns = ["path"]
    for name in names:
        columns += [_COLUMNS[name], *(["sampling error"] if name in _SAMPLED else [])]
    noted = any(found.note for found in measured)
    rows = []
    for found in measured:
        shown, _ = _path(record, found)
        each_way = [(shown, found.definitions, found.note)]
        if found.line_definitions not in ((), found.definitions):
            each_way.append((f"{shown}, straight line", found.line_definitions, ""))
        for label, known, note in each_way:
            row: list[Cell] = [(label, label)]
            for name in names:
                row += _definition(known, name)
            rows.append([*row, *([(note or NONE, note)] if noted else [])])
    sources = "; ".join(f"{present[name]} ({_COLUMNS[name]})" for name in names)
    caption = (
        "Barriers by their published definitions, on the lowest path of each pair and on the "
        "straight line, for which most were made: the largest loss, above the ends as the column "
        "says, and the largest error rate above the ends' mean. "
        "The lower end of a bracket was seen on the path; the upper end is estimated where nothing "
        f"else is said. The sampling error is that of the data, at 95 %. Defined so by {sources}."
    )
    if not all(found.line_definitions for found in measured):
        caption += " The straight line is missing where an older version measured the path."
    return table(caption, [*columns, *(["not measured"] if noted else [])], rows, stacked=True)


def _definition(known: Sequence[BarrierRecord], name: str) -> list[Cell]:
    each = next((each for each in known if each.name == name), None)
    cells: list[Cell] = [(NONE, math.inf)]
    if each is not None:
        cells = [(between(each.bound), each.bound.upper)]
    if name in _SAMPLED:
        cells.append(_estimate(each.sampling if each else None))
    return cells


def between(bound: Bound) -> str:
    """Return a bracket in few characters, to four digits, certified ends rounded outward.

    Example:
        >>> between(Bound(0.07718, 0.0773, "certified", "estimated"))
        '0.07718 to 0.0773'
        >>> between(Bound.exactly(0.25))
        '0.25 (exact)'
    """
    if math.isnan(bound.lower) or math.isnan(bound.upper):
        return "not a number"
    low = digits(bound.lower, bound.lower_kind, ROUND_FLOOR)
    high = digits(bound.upper, bound.upper_kind, ROUND_CEILING)
    ends = low if low == high else f"{low} to {high}"
    if (bound.lower_kind, bound.upper_kind) == ("certified", "estimated"):
        return ends
    if bound.lower_kind == bound.upper_kind:
        return f"{ends} ({bound.upper_kind})"
    return f"{low} ({bound.lower_kind}) to {high} ({bound.upper_kind})"


def proven(bound: Bound) -> str:
    """Return what is proven of a height; without an upper end, the least that it is.

    Example:
        >>> proven(Bound(0.123456, math.inf, "certified", "exact"))
        'at least 0.1234 (certified)'
    """
    if bound.upper < math.inf:
        return between(bound)
    return f"at least {digits(bound.lower, bound.lower_kind, ROUND_FLOOR)} ({bound.lower_kind})"


def digits(end: float, kind: str, away: str) -> str:
    """Write an end to four digits; a certified one is never rounded to where it does not hold.

    Args:
        end: The end of a bracket.
        kind: What it is worth.
        away: Where a certified one is rounded: `ROUND_FLOOR` for a lower end, `ROUND_CEILING`
            for an upper one.

    Example:
        >>> digits(0.123456, "certified", ROUND_CEILING)
        '0.1235'
    """
    if kind == "certified" and math.isfinite(end):
        end = float(Context(prec=4, rounding=away).create_decimal(repr(float(end))))
    return f"{end:.4g}"


def outside(record: SurveyRecord) -> str:
    """Return the table of loss and error along the paths on held-out data, if there are any."""
    measured = [found for found in record.paths if found.held_out]
    if not measured:
        return ""
    present = {each.name for found in measured for each in found.held_out}
    names = [name for name in _QUANTITIES if name in present]
    columns = ["path"]
    for name in names:
        said = _QUANTITIES[name]
        columns += [f"{said} at the ends", f"highest {said}", f"at t ({said})"]
    rows = []
    for found in measured:
        row = [_path(record, found)]
        for name in names:
            row += _series(next((each for each in found.held_out if each.name == name), None))
        rows.append(row)
    caption = (
        "The same paths on held-out data, which no search has seen. ± is the 95 % sampling error. "
        f"The highest is that of {_places(measured)} places along the path, so the true one may "
        "be higher; that its place was chosen on the same data is not part of its error."
    )
    return table(caption, columns, rows, stacked=True)


def _places(measured: list[PathRecord]) -> str:
    counts = sorted({len(each.times) for found in measured for each in found.held_out})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _series(each: AlongRecord | None) -> list[Cell]:
    if each is None:
        return [(NONE, math.inf)] * 3
    first, last = _estimate(each.first), _estimate(each.last)
    return [
        (f"{first[0]} and {last[0]}", max(each.first.value, each.last.value)),
        _estimate(each.worst),
        (f"{each.worst_time:.3g}", each.worst_time),
    ]


def lengths(record: SurveyRecord) -> str:
    """Return the table of lengths and heights in the survey's gauge, or that there is none.

    Nothing where no path's length is known.
    """
    if all(found.length is None for found in record.paths):
        return ""
    gauge = record.provenance.get("gauge")
    moved = [(found, found.balanced) for found in record.paths if found.balanced is not None]
    if not moved:
        return (
            '<p class="caption">Gauge: none was given. Lengths, and heights of straight lines, '
            "are those of the coordinates as they are: where networks have symmetries, such as "
            "layers rescaled around a ReLU, equal networks elsewhere would give others.</p>"
            if gauge is None
            else ""
        )
    columns = [
        "path",
        "length",
        "length in the gauge",
        "length / distance",
        "the same in the gauge",
        "straight line, largest loss",
        "straight line in the gauge",
        "path in the gauge",
    ]
    rows: list[list[Cell]] = [
        [
            _path(record, found),
            _bare(found.length),
            _bare(there.length),
            _bare(found.normalised_length),
            _bare(there.normalised_length),
            *_bounds(found.line_maximum, there.line_maximum, there.maximum),
        ]
        for found, there in moved
    ]
    caption = (
        f"Raw, and in the gauge {gauge}: every point of a path moved to the one chosen among those "
        "that compute the same. The straight line is drawn anew between the ends there."
    )
    return table(caption, columns, rows, stacked=True)


def _bounds(*values: Bound) -> list[Cell]:
    return [(between(value), value.upper) for value in values]


def _bare(value: float | None) -> Cell:
    return (NONE, math.inf) if value is None else (f"{value:.4g}", value)


def _path(record: SurveyRecord, found: PathRecord) -> Cell:
    name = pair(labels(record), found.a, found.b)
    return name, name


def _estimate(value: Estimate | None) -> Cell:
    if value is None:
        return NONE, math.inf
    said = plain(value).replace(" (95 %)", "")
    return said.replace(" ± ", f"{_KEPT}±{_KEPT}").replace(", ", f",{_KEPT}"), value.value
