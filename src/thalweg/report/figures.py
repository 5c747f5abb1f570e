"""The figures of the tree and of the paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg.report.frame import (
    GREEN,
    MAIN,
    ORANGE,
    RED,
    Figure,
    arms,
    escaped,
    finite,
    frame,
    loss_axis,
    strip,
    titled,
)
from thalweg.report.names import labels, plain
from thalweg.report.words import passes, sampling_error
from thalweg.survey.records import MinimumRecord, PathRecord, SurveyRecord
from thalweg.topology import layout

__all__ = ["disconnectivity", "path"]


def disconnectivity(record: SurveyRecord) -> Figure | None:
    """Return the disconnectivity graph, or None if the record has no tree to draw."""
    tree = record.tree
    if tree is None or not tree.leaves:
        return None
    drawing = layout(tree)
    names = labels(record)
    ticks = [escaped(names.get(str(leaf), str(leaf))) for leaf in drawing.order]
    crowded = len(ticks) > 8 or max(map(len, ticks)) > 8
    shown = [drawing.y[node] for node in drawing.y]
    shown += [_around(m, m.loss)[0] for m in record.minima]
    shown += [merge.height.lower for merge in tree.merges]
    traces = [_branches(drawing.lines), *_stems(record), _leaves(record), *_joins(record)]
    return {
        "data": [trace for trace in traces if trace is not None],
        "layout": frame(
            {
                **titled("minimum"),
                "tickvals": list(range(len(ticks))),
                "ticktext": ticks,
                "tickangle": -90 if crowded else 0,
                "range": [-0.6, len(ticks) - 0.4],
            },
            loss_axis(shown),
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
            f"{escaped(names.get(str(leaf), leaf))}: loss "
            + (plain(m.sampling) if m and m.sampling else f"{y:.6g}")
            for leaf, m, y in zip(drawing.order, found, ys, strict=True)
        ],
        "hoverinfo": "text",
        "marker": {"color": MAIN, "size": 9},
        "error_y": arms([_around(m, y) for m, y in zip(found, ys, strict=True)], ys, MAIN),
    }


def _around(minimum: MinimumRecord | None, y: float) -> tuple[float, float]:
    half = sampling_error(minimum) or 0.0
    return y - half, y + half


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
                        f"{escaped(found[k].names[0])} and {escaped(found[k].names[1])}<br>"
                        f"loss {found[k].height}<br>barrier {found[k].barrier}"
                        for k in chosen
                    ],
                    "hoverinfo": "text",
                    "marker": {"size": 9, "color": colour, "symbol": symbol},
                    "error_y": arms([(h.lower, h.upper) for h in heights], ys, colour),
                }
            )
    return traces


def path(record: SurveyRecord, found: PathRecord) -> Figure:
    """Return the loss along one path, on held-out data too, and along the straight line."""
    method = escaped(found.method)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "straight line",
            "x": finite(found.line_times),
            "y": finite(found.line_losses),
            "line": {"color": ORANGE, "width": 2, "dash": "dash"},
            "hovertemplate": "t %{x:.3f}, loss %{y:.6g}<extra>line</extra>",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": method,
            "x": finite(found.times),
            "y": finite(found.losses),
            "line": {"color": MAIN, "width": 2},
            "marker": {"size": 5, "color": MAIN},
            "hovertemplate": "t %{x:.3f}, loss %{y:.6g}<extra>path</extra>",
        },
    ]
    outside = [found.held_out[0]] if found.held_out else []
    data += [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "held-out data",
            "x": finite(each.times),
            "y": finite(each.values),
            "line": {"color": GREEN, "width": 2, "dash": "dot"},
            "hovertemplate": "t %{x:.3f}, loss %{y:.6g}<extra>held out</extra>",
        }
        for each in outside
    ]
    shown = [*found.losses, *found.line_losses, *(y for each in outside for y in each.values)]
    shapes = [strip(found.maximum.lower, found.maximum.upper, MAIN)]
    minima = {minimum.id: minimum for minimum in record.minima}
    ends = [minima[end] for end in (found.a, found.b) if end in minima]
    noise = max((x for x in map(sampling_error, ends) if x is not None), default=None)
    if noise is not None:
        base = max(end.loss for end in ends)
        shapes.append(strip(base, base + noise, "@muted"))
    return {
        "data": data,
        "layout": frame(
            {**titled("position t on the path"), "range": [-0.03, 1.03]},
            loss_axis(shown),
            shapes=[shape for shape in shapes if shape is not None],
            showlegend=False,
        ),
    }
