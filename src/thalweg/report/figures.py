"""The figures of the report, as plotly specifications in plain dictionaries.

A colour that begins with ``@`` names a variable of the style sheet; the page puts in its
value, and does so again when the reader switches between light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from thalweg.report.names import bracket, labels, plain, top_eigenvalue
from thalweg.report.words import passes, sampling_error
from thalweg.survey.records import MinimumRecord, PathRecord, SurveyRecord
from thalweg.topology import layout

__all__ = ["Figure", "curvature", "disconnectivity", "path", "spectra"]

Figure: TypeAlias = dict[str, Any]

# Okabe & Ito (2008), less the two that vanish on white or on black.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
MAIN = "@accent"  # BLUE on white, SKY on black
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")


def _finite(values: Iterable[float]) -> list[float | None]:
    """Put None, which plotly draws as a gap, where a value is not finite."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _text(value: object) -> str:
    """Escape what plotly would read as markup."""
    return html.escape(str(value), quote=False)


def _layout(x: dict[str, Any], y: dict[str, Any], **rest: Any) -> dict[str, Any]:
    axis = {
        "automargin": True,
        "gridcolor": "@grid",
        "zeroline": False,
        "linecolor": "@muted",
        "tickcolor": "@muted",
        "showline": True,
        "ticks": "outside",
    }
    return {
        "xaxis": {**axis, "showgrid": False, **x},
        "yaxis": {**axis, **y},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@ink"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 10, "r": 14, "t": 14, "b": 10},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@muted", "font": {"color": "@ink"}},
        "hovermode": "closest",
        "modebar": {
            "orientation": "v",
            "bgcolor": "rgba(0,0,0,0)",
            "color": "@muted",
            "activecolor": "@ink",
        },
        **rest,
    }


def _title(text: str) -> dict[str, Any]:
    return {"title": {"text": text, "standoff": 10}}


def _loss_axis(values: Iterable[float]) -> dict[str, Any]:
    """Return an axis for losses: logarithmic where they are positive and far apart."""
    known = [value for value in values if math.isfinite(value)]
    if not known or min(known) <= 0 or max(known) <= 5 * min(known):
        return _title("loss")
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {
        **_title("loss (log scale)"),
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def disconnectivity(record: SurveyRecord) -> Figure | None:
    """Return the disconnectivity graph, or None if the record has no tree to draw."""
    tree = record.tree
    if tree is None or not tree.leaves:
        return None
    drawing = layout(tree)
    names = labels(record)
    ticks = [_text(names.get(str(leaf), str(leaf))) for leaf in drawing.order]
    crowded = len(ticks) > 8 or max(map(len, ticks)) > 8
    shown = [drawing.y[node] for node in drawing.y]
    shown += [_around(m, m.loss)[0] for m in record.minima]
    shown += [merge.height.lower for merge in tree.merges]
    traces = [_branches(drawing.lines), *_stems(record), _leaves(record), *_joins(record)]
    return {
        "data": [trace for trace in traces if trace is not None],
        "layout": _layout(
            {
                **_title("minimum"),
                "tickvals": list(range(len(ticks))),
                "ticktext": ticks,
                "tickangle": -90 if crowded else 0,
                "range": [-0.6, len(ticks) - 0.4],
            },
            _loss_axis(shown),
        ),
    }


def _branches(lines: Sequence[Any]) -> dict[str, Any]:
    xs: list[float | None] = []
    ys: list[float | None] = []
    for line in lines:
        xs += [*line.xs, None]
        ys += [*line.ys, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "y": ys,
        "hoverinfo": "skip",
        "showlegend": False,
        "line": {"color": "@ink", "width": 1.6},
    }


def _stems(record: SurveyRecord) -> list[dict[str, Any]]:
    """Draw what nothing joins as dotted lines that end in the open."""
    tree = record.tree
    if tree is None or len(tree.roots) < 2:
        return []
    drawing = layout(tree)
    low, high = min(drawing.y.values()), max(drawing.y.values())
    top = high + 0.15 * ((high - low) or abs(high) or 1.0)
    xs: list[float | None] = []
    ys: list[float | None] = []
    for root in tree.roots:
        xs += [drawing.x[root], drawing.x[root], None]
        ys += [drawing.y[root], top, None]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": xs,
            "y": ys,
            "name": "no path known",
            "hoverinfo": "name",
            "line": {"color": "@muted", "width": 1.4, "dash": "dot"},
        }
    ]


def _leaves(record: SurveyRecord) -> dict[str, Any]:
    tree, names = record.tree, labels(record)
    if tree is None:
        return {}
    drawing = layout(tree)
    minima = {minimum.id: minimum for minimum in record.minima}
    found = [minima.get(str(leaf)) for leaf in drawing.order]
    number = {leaf: i for i, leaf in enumerate(tree.leaves)}
    ys = [drawing.y[number[leaf]] for leaf in drawing.order]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(range(len(ys))),
        "y": ys,
        "name": "minimum ± sampling error",
        "text": [
            f"{_text(names.get(str(leaf), leaf))}: loss "
            + (plain(m.sampling) if m and m.sampling else f"{y:.6g}")
            for leaf, m, y in zip(drawing.order, found, ys, strict=True)
        ],
        "hoverinfo": "text",
        "marker": {"color": MAIN, "size": 9},
        "error_y": _errors([_around(m, y) for m, y in zip(found, ys, strict=True)], ys, MAIN),
    }


def _around(minimum: MinimumRecord | None, y: float) -> tuple[float, float]:
    half = sampling_error(minimum) or 0.0
    return y - half, y + half


def _errors(
    intervals: Sequence[tuple[float, float]], values: Sequence[float], colour: str
) -> dict[str, Any]:
    def arm(length: float) -> float:
        return max(length, 0.0) if math.isfinite(length) else 0.0

    pairs = list(zip(intervals, values, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "color": colour,
        "thickness": 1.5,
        "width": 4,
        "array": [arm(high - value) for (_, high), value in pairs],
        "arrayminus": [arm(value - low) for (low, _), value in pairs],
    }


def _joins(record: SurveyRecord) -> list[dict[str, Any]]:
    """Mark the merges, the resolved and the unresolved ones apart, with their brackets."""
    tree = record.tree
    if tree is None:
        return []
    drawing, found = layout(tree), passes(record)
    traces = []
    for resolved, name, colour, symbol in (
        (True, "pass, with its bracket", GREEN, "square"),
        (False, "pass, order unresolved", RED, "diamond-open"),
    ):
        chosen = [k for k, merge in enumerate(tree.merges) if merge.resolved == resolved]
        heights = [tree.merges[k].height for k in chosen]
        ys = [height.upper for height in heights]
        if chosen:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "y": ys,
                    "x": [drawing.x[len(tree.leaves) + k] for k in chosen],
                    "text": [
                        f"{_text(found[k].names[0])} and {_text(found[k].names[1])}<br>"
                        f"loss {found[k].height}<br>barrier {found[k].barrier}"
                        for k in chosen
                    ],
                    "hoverinfo": "text",
                    "marker": {"size": 9, "color": colour, "symbol": symbol},
                    "error_y": _errors([(h.lower, h.upper) for h in heights], ys, colour),
                }
            )
    return traces


def path(record: SurveyRecord, found: PathRecord) -> Figure:
    """Return the loss along one path and along the straight line between its ends."""
    method = _text(found.method)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "straight line",
            "x": _finite(found.line_times),
            "y": _finite(found.line_losses),
            "line": {"color": ORANGE, "width": 2, "dash": "dash"},
            "hovertemplate": "t %{x:.3f}, loss %{y:.6g}<extra>line</extra>",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": method,
            "x": _finite(found.times),
            "y": _finite(found.losses),
            "line": {"color": MAIN, "width": 2},
            "marker": {"size": 5, "color": MAIN},
            "hovertemplate": "t %{x:.3f}, loss %{y:.6g}<extra>path</extra>",
        },
    ]
    shapes = [_band(found.maximum.lower, found.maximum.upper, MAIN)]
    minima = {minimum.id: minimum for minimum in record.minima}
    ends = [minima[end] for end in (found.a, found.b) if end in minima]
    noise = max((x for x in map(sampling_error, ends) if x is not None), default=None)
    if noise is not None:
        base = max(end.loss for end in ends)
        shapes.append(_band(base, base + noise, "@muted"))
    return {
        "data": data,
        "layout": _layout(
            {**_title("position t on the path"), "range": [-0.03, 1.03]},
            _loss_axis([*found.losses, *found.line_losses]),
            shapes=[shape for shape in shapes if shape is not None],
            showlegend=False,
        ),
    }


def _band(low: float, high: float, colour: str) -> dict[str, Any] | None:
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": low,
        "y1": high,
        "fillcolor": colour,
        "opacity": 0.25,
        "layer": "below",
        "line": {"width": 1, "color": colour},
    }


def spectra(record: SurveyRecord) -> Figure | None:
    """Return the leading eigenvalues at every minimum, with their intervals."""
    names = labels(record)
    known = [m for m in record.minima if m.eigenvalues is not None and m.eigenvalues.values]
    if not known:
        return None
    data = []
    for k, minimum in enumerate(known):
        eigen = minimum.eigenvalues
        if eigen is None:
            continue
        shift = 0.5 * ((k + 0.5) / len(known) - 0.5)
        colour, symbol = CYCLE[k % len(CYCLE)], SYMBOLS[k % len(SYMBOLS)]
        intervals = list(zip(eigen.lower, eigen.upper, strict=True))
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _text(names[minimum.id]),
                "x": [rank + 1 + shift for rank in range(len(eigen.values))],
                "y": _finite(eigen.values),
                "text": [
                    f"{_text(names[minimum.id])}, eigenvalue {rank + 1}: {bracket(*interval)}"
                    + ("" if done else " (not converged)")
                    for rank, (interval, done) in enumerate(
                        zip(intervals, eigen.converged, strict=True)
                    )
                ],
                "hoverinfo": "text",
                "marker": {
                    "color": colour,
                    "size": 8,
                    "symbol": [symbol if done else f"{symbol}-open" for done in eigen.converged],
                },
                "error_y": _errors(intervals, eigen.values, colour),
            }
        )
    most = max(len(m.eigenvalues.values) for m in known if m.eigenvalues is not None)
    x = {
        **_title("rank of the eigenvalue"),
        "dtick": 1 if most <= 12 else 5,
        "range": [0.5, most + 0.5],
    }
    y = _title("Hessian eigenvalue (loss / parameter²)")
    return {"data": data, "layout": _layout(x, y, showlegend=True)}


def curvature(record: SurveyRecord) -> Figure | None:
    """Return the Hessian's trace and largest eigenvalue at every minimum, one above the other."""
    names = labels(record)
    traced = [(names[m.id], m.trace) for m in record.minima if m.trace is not None]
    topped = [(names[m.id], top) for m in record.minima if (top := top_eigenvalue(m)) is not None]
    if not traced:
        return None
    data = [
        _dots(
            [_text(name) for name, _ in traced],
            [t.value for _, t in traced],
            [t.interval for _, t in traced],
            [f"{_text(n)}: trace {plain(t)}" for n, t in traced],
            MAIN,
            "circle",
            "y",
        )
    ]
    order = [_text(names[m.id]) for m in record.minima]
    x = {
        **_title("minimum"),
        "type": "category",
        "categoryorder": "array",
        "categoryarray": order,
        "tickangle": -90 if len(order) > 8 else 0,
    }
    frame = _layout(x, _title("trace"), showlegend=False)
    if topped:
        data.append(
            _dots(
                [_text(name) for name, _ in topped],
                [top[0] for _, top in topped],
                [(top[1], top[2]) for _, top in topped],
                [f"{_text(n)}: largest eigenvalue {bracket(t[1], t[2])}" for n, t in topped],
                RED,
                "diamond",
                "y2",
            )
        )
        frame["yaxis2"] = {
            **frame["yaxis"],
            **_title("largest eigenvalue"),
            "domain": [0, 0.46],
        }
        frame["yaxis"]["domain"] = [0.54, 1]
        frame["xaxis"]["anchor"] = "y2"
    return {"data": data, "layout": frame}


def _dots(
    xs: Sequence[str],
    ys: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colour: str,
    symbol: str,
    axis: str,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(xs),
        "y": _finite(ys),
        "text": list(texts),
        "hoverinfo": "text",
        "yaxis": axis,
        "marker": {"color": colour, "size": 9, "symbol": symbol},
        "error_y": _errors(intervals, ys, colour),
    }
