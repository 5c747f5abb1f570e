"""The tables of the report, as HTML; every cell is escaped here."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.estimate import Bound, Cost, Estimate
from thalweg.report.names import NONE, bracket, count, labels, number, pair, plain, top_eigenvalue
from thalweg.survey.records import MinimumRecord, SurveyRecord

__all__ = ["costs", "duration", "failures", "minima", "paths", "settings", "table"]

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


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table in a box that scrolls sideways, with headers that sort."""
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button></th>'
        for name in columns
    )
    body = []
    for row in rows:
        body.append(f"<tr>{''.join(_cell(i, *cell) for i, cell in enumerate(row))}</tr>")
    return (
        f'<p class="caption">{html.escape(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        '<table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(column: int, shown: str, key: float | str) -> str:
    value = f'data-value="{html.escape(str(key))}"'
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
    columns = [
        "minimum",
        "loss",
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


def paths(record: SurveyRecord) -> str:
    """Return the table of paths."""
    names = labels(record)
    columns = [
        "path",
        "largest loss",
        "barrier",
        "straight line, largest loss",
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
    rows += [row(f"path {pair(names, p.a, p.b)}", p.cost, p.seconds) for p in record.paths]
    return table(
        "Cost: evaluations of the loss, its gradient and products with its Hessian.", columns, rows
    )


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
