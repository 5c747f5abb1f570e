"""The tables of the report, as HTML; every cell is escaped here."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.estimate import Bound, Cost, Estimate
from thalweg.report.index import how_many
from thalweg.report.names import (
    BELOW,
    NONE,
    bracket,
    count,
    labels,
    number,
    pair,
    plain,
    top_eigenvalue,
)
from thalweg.survey.records import LayerRecord, MinimumRecord, SpectrumRecord, SurveyRecord

__all__ = [
    "Cell",
    "costs",
    "duration",
    "failures",
    "layers",
    "minima",
    "paths",
    "settings",
    "spectra",
    "table",
]

_LONG = 70

Cell = tuple[str, float | str]
"""What a cell shows and what it sorts by."""


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> duration(3.14159), duration(75), duration(7384)
        ('3.1 s', '1 min 15 s', '2 h 3 min')
    """
    if not math.isfinite(seconds) or seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, stacked: bool = False
) -> str:
    """Return a table in a box that scrolls sideways, with headers that sort.

    Args:
        caption: What stands above it.
        columns: The names of the columns.
        rows: The cells.
        stacked: Whether each row becomes a list of names and values where the page is narrow.
    """
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button></th>'
        for name in columns
    )
    body = []
    for row in rows:
        names = columns if stacked else [""] * len(row)
        cells = [_cell(i, *cell, names[i]) for i, cell in enumerate(row)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<p class="caption">{html.escape(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f'<table class="sortable{" stacked" if stacked else ""}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(column: int, shown: str, key: float | str, name: str) -> str:
    value = f'data-value="{html.escape(str(key))}"'
    if name and column:
        value += f' data-name="{html.escape(name)}"'
    wide = ' class="long"' if len(shown) > _LONG else ""
    if column == 0:
        return f'<th scope="row" {value}{wide}>{html.escape(shown)}</th>'
    return f"<td {value}{wide}>{html.escape(shown)}</td>"


def _estimate(value: Estimate | None) -> Cell:
    if value is None:
        return NONE, math.inf
    return plain(value).replace(" (95 %)", ""), value.value


def _bound(value: Bound) -> Cell:
    return str(value).replace(" (estimated)", ""), value.upper


def _word(text: object) -> Cell:
    return str(text), str(text)


def _yes(value: bool) -> Cell:
    return "yes" if value else "no", int(not value)


def _bare(value: float) -> Cell:
    return f"{value:.4g}", value


def minima(record: SurveyRecord) -> str:
    """Return the table of minima."""
    names = labels(record)
    metrics = list(dict.fromkeys(key for m in record.minima for key in m.metrics))
    held = list(dict.fromkeys(key for m in record.minima for key in m.held_out))
    shipped = any(m.shipped is not None for m in record.minima)
    columns = [
        "minimum",
        "loss",
        *(["loss as shipped"] if shipped else []),
        *metrics,
        *(f"held out: {name}" for name in held),
        "Hessian trace",
        "largest eigenvalue",
        "gradient norm",
        "converged",
        "norm of θ",
        "origin",
        "seed",
    ]
    rows = [
        [
            _word(names[m.id]),
            _loss(m),
            *([_estimate(m.shipped)] if shipped else []),
            *(_estimate(m.metrics.get(name)) for name in metrics),
            *(_estimate(m.held_out.get(name)) for name in held),
            _estimate(m.trace),
            _top(m),
            _bare(m.gradient_norm),
            _yes(m.converged),
            _bare(m.norm),
            _word(m.origin),
            (NONE, -1) if m.seed is None else (str(m.seed), m.seed),
        ]
        for m in record.minima
    ]
    caption = "Minima. ± is the 95 % interval; brackets hold the eigenvalue."
    if shipped:
        caption += (
            " The loss as shipped is an added network's with its own BatchNorm statistics; "
            "all else here is under one policy for all."
        )
    return table(caption, columns, rows)


def _loss(minimum: MinimumRecord) -> Cell:
    if minimum.sampling is None:
        return number(minimum.loss), minimum.loss
    return _estimate(minimum.sampling)[0], minimum.loss


def _top(minimum: MinimumRecord) -> Cell:
    top = top_eigenvalue(minimum)
    if top is None:
        return NONE, math.inf
    value, lower, upper, converged = top
    return bracket(lower, upper) + ("" if converged else " (not converged)"), value


def spectra(rows: Sequence[tuple[str, SpectrumRecord]]) -> str:
    """Return the table of what was counted and summed over whole spectra."""
    columns = [
        "at",
        f"{BELOW} (index)",
        "within ±τ",
        "above τ",
        "τ",
        "smallest eigenvalue",
        "Frobenius norm",
        "effective dimension",
        "log det (A₊ + shift)",
        "shift",
    ]
    body = [
        [
            _word(name),
            _tally(s.negative, s.certified[0]),
            _tally(s.zero),
            _tally(s.positive, s.certified[1]),
            _bare(s.tau),
            _within(s.lowest),
            _estimate(s.frobenius_norm),
            _estimate(s.effective_dimension),
            _estimate(s.log_determinant),
            _bare(s.shift),
        ]
        for name, s in rows
    ]
    caption = (
        "Whole spectra. Numbers of eigenvalues are given with their 95 % range, and depend on what "
        "counts as zero, τ. The effective dimension is the sum of λ/(λ + shift) over "
        "positive λ, and the log-determinant puts negative λ to zero. "
        "± is the 95 % interval."
    )
    return table(caption, columns, body)


def _tally(value: Estimate, certain: int = 0) -> Cell:
    surely = f", {certain} for certain" if 0 < certain < value.interval[1] else ""
    return how_many(value) + surely, value.value


def _within(value: Bound) -> Cell:
    return bracket(value.lower, value.upper), value.lower


def layers(rows: Sequence[tuple[str, Sequence[LayerRecord]]]) -> str:
    """Return the table of the layers' own curvature."""
    columns = [
        "at",
        "layer",
        "parameters",
        "trace",
        "trace / parameter",
        "largest eigenvalue",
    ]
    body = [
        [
            _word(name),
            _word(layer.name),
            (f"{layer.size:,}", layer.size),
            _estimate(layer.trace),
            _estimate(layer.trace_per_parameter),
            _within(layer.top),
        ]
        for name, found in rows
        for layer in found
    ]
    caption = (
        "Layers: the diagonal blocks, each with the other layers held fixed. ± is "
        "the 95 % interval."
    )
    return table(caption, columns, body)


def paths(record: SurveyRecord) -> str:
    """Return the table of paths."""
    names = labels(record)
    columns = [
        "path",
        "largest loss",
        "barrier",
        "straight line, largest loss",
        "length",
        "length / distance",
        "converged",
        "method",
    ]
    rows = [
        [
            _word(pair(names, p.a, p.b)),
            _bound(p.maximum),
            _bound(p.barrier),
            _bound(p.line_maximum),
            (NONE, math.inf) if p.length is None else _bare(p.length),
            _bare(p.normalised_length),
            _yes(p.converged),
            _word(p.method),
        ]
        for p in record.paths
    ]
    caption = (
        "Paths. The largest loss is that along the path; the barrier is over all paths, measured "
        "above the higher end. Ends of brackets are estimated where nothing else is said."
    )
    return table(caption, columns, rows)


def costs(record: SurveyRecord) -> str:
    """Return what the survey and each of its jobs took."""
    names = labels(record)
    columns = ["job", "losses", "gradients", "HVPs", "passes over the data", "time"]

    def row(name: str, cost: Cost, seconds: float) -> list[Cell]:
        counts: list[Cell] = [(f"{n:,}", n) for n in (cost.losses, cost.gradients, cost.hvps)]
        spent = (f"{cost.passes:,.4g}" if cost.passes < 1e4 else f"{cost.passes:,.0f}", cost.passes)
        return [_word(name), *counts, spent, (duration(seconds), seconds)]

    rows = [row("whole survey", record.cost, record.seconds)]
    rows += [row(f"minimum {names[m.id]}", m.cost, m.seconds) for m in record.minima]
    rows += [
        row(f"path {pair(names, p.a, p.b)}{_again(p.repeat)}", p.cost, p.seconds)
        for p in (*record.paths, *record.further)
    ]
    rows += [row(f"saddle {pair(names, s.a, s.b)}", s.cost, s.seconds) for s in record.saddles]
    rows += [row(f"levels {pair(names, v.a, v.b)}", v.cost, v.seconds) for v in record.level_sets]
    return table(
        "Cost: evaluations of the loss, its gradient and products with its Hessian.", columns, rows
    )


def _again(repeat: int) -> str:
    return f", search {repeat + 1}" if repeat else ""


def failures(record: SurveyRecord) -> str:
    """Return the jobs that failed and why."""
    rows = [[_word(f.job), _word(f.error), _word(f.when)] for f in record.failures]
    return table(f"{count(len(record.failures), 'job')} failed.", ["job", "error", "when"], rows)


def settings(caption: str, values: Mapping[str, Any]) -> str:
    """Return nested settings as a table of names and values."""
    rows: list[list[Cell]] = []
    stack: list[tuple[str, Any]] = [(key, value) for key, value in reversed(list(values.items()))]
    while stack:
        key, value = stack.pop()
        if isinstance(value, Mapping) and value:
            stack += [(f"{key}.{name}", inner) for name, inner in reversed(list(value.items()))]
        else:
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            rows.append([_word(key), _word(shown)])
    return table(caption, ["name", "value"], rows)
