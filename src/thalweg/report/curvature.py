"""The figures of the curvature at the minima: eigenvalues, traces, layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from thalweg.report.frame import (
    CYCLE,
    MAIN,
    RED,
    SYMBOLS,
    Figure,
    arms,
    dots,
    escaped,
    finite,
    frame,
    titled,
    value_axis,
)
from thalweg.report.names import bracket, labels, plain, top_eigenvalue
from thalweg.survey.records import EigenRecord, LayerRecord, SurveyRecord

__all__ = ["curvature", "layers", "ranked", "spectra"]

_SPREAD = 0.5


def spectra(record: SurveyRecord) -> Figure | None:
    """Return the leading eigenvalues at every minimum, with their intervals."""
    names = labels(record)
    known = [(names[m.id], m.eigenvalues) for m in record.minima if m.eigenvalues is not None]
    return ranked(known)


def ranked(known: Sequence[tuple[str, EigenRecord]], *, of: str = "Hessian ") -> Figure | None:
    """Return named lists of eigenvalues by their rank, or None where they are empty."""
    known = [(name, eigen) for name, eigen in known if eigen.values]
    if not known:
        return None
    data = []
    for k, (name, eigen) in enumerate(known):
        shift = _shift(k, len(known))
        colour, symbol = _mark(k, len(known))
        intervals = list(zip(eigen.lower, eigen.upper, strict=True))
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escaped(name),
                "x": [rank + 1 + shift for rank in range(len(eigen.values))],
                "y": finite(eigen.values),
                "text": [
                    f"{escaped(name)}, eigenvalue {rank + 1}: {bracket(*interval)}"
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
                "error_y": arms(intervals, eigen.values, colour),
            }
        )
    most = max(len(eigen.values) for _, eigen in known)
    x = {
        **titled("rank of the eigenvalue"),
        "dtick": 1 if most <= 12 else 5,
        "range": [0.5, most + 0.5],
    }
    y = titled(f"{of}eigenvalue (loss / parameter²)")
    return {"data": data, "layout": frame(x, y, showlegend=len(known) > 1)}


def _shift(k: int, count: int) -> float:
    """Return how far the marks of one of several sets stand beside the middle."""
    return _SPREAD * ((k + 0.5) / count - 0.5)


def _mark(k: int, count: int) -> tuple[str, str]:
    colour = MAIN if count == 1 else CYCLE[k % len(CYCLE)]
    return colour, SYMBOLS[k % len(SYMBOLS)]


def curvature(record: SurveyRecord) -> Figure | None:
    """Return the Hessian's trace and largest eigenvalue at every minimum, one above the other."""
    names = labels(record)
    traced = [(names[m.id], m.trace) for m in record.minima if m.trace is not None]
    topped = [(names[m.id], top) for m in record.minima if (top := top_eigenvalue(m)) is not None]
    if not traced:
        return None
    data = [
        dots(
            [escaped(name) for name, _ in traced],
            [t.value for _, t in traced],
            [t.interval for _, t in traced],
            [f"{escaped(n)}: trace {plain(t)}" for n, t in traced],
            MAIN,
            "circle",
            "y",
        )
    ]
    order = [escaped(names[m.id]) for m in record.minima]
    x = {
        **titled("minimum"),
        "type": "category",
        "categoryorder": "array",
        "categoryarray": order,
        "tickangle": -90 if len(order) > 8 else 0,
    }
    layout = frame(x, titled("trace"), showlegend=False)
    if topped:
        data.append(
            dots(
                [escaped(name) for name, _ in topped],
                [top[0] for _, top in topped],
                [(top[1], top[2]) for _, top in topped],
                [f"{escaped(n)}: largest eigenvalue {bracket(t[1], t[2])}" for n, t in topped],
                RED,
                "diamond",
                "y2",
            )
        )
        layout["yaxis2"] = {
            **layout["yaxis"],
            **titled("largest eigenvalue"),
            "domain": [0, 0.46],
        }
        layout["yaxis"]["domain"] = [0.54, 1]
        layout["xaxis"]["anchor"] = "y2"
    return {"data": data, "layout": layout}


def layers(known: Sequence[tuple[str, Sequence[LayerRecord]]]) -> Figure | None:
    """Return each layer's trace per parameter, and its largest eigenvalue below.

    Args:
        known: Names, and the layers measured there.

    Returns:
        The figure, or None where no layer was measured.
    """
    known = [(name, found) for name, found in known if found]
    order = list(dict.fromkeys(layer.name for _, found in known for layer in found))
    if not order:
        return None
    data: list[dict[str, Any]] = []
    for k, (name, found) in enumerate(known):
        data += _layer_marks(name, found, order, k, len(known))
    ends = [end for _, found in known for layer in found for end in _ends(layer)]
    tops = [end for _, found in known for layer in found for end in (layer.top.lower, _far(layer))]
    x = {
        **titled("layer"),
        "tickvals": list(range(len(order))),
        "ticktext": [escaped(name) for name in order],
        "tickangle": -90 if len(order) > 8 or sum(map(len, order)) > 60 else 0,
        "range": [-0.5, len(order) - 0.5],
        "anchor": "y2",
    }
    layout = frame(x, value_axis("trace / parameter", ends), showlegend=len(known) > 1)
    layout["yaxis2"] = {
        **{k: v for k, v in layout["yaxis"].items() if k not in ("type", "tickvals", "ticktext")},
        **value_axis("largest eigenvalue", tops),
        "domain": [0, 0.46],
    }
    layout["yaxis"]["domain"] = [0.54, 1]
    return {"data": data, "layout": layout}


def _ends(layer: LayerRecord) -> tuple[float, float]:
    return layer.trace_per_parameter.interval


def _far(layer: LayerRecord) -> float:
    """Return the upper end of the bracket, or the lower where there is none."""
    return layer.top.upper if math.isfinite(layer.top.upper) else layer.top.lower


def _layer_marks(
    name: str, found: Sequence[LayerRecord], order: Sequence[str], k: int, count: int
) -> list[dict[str, Any]]:
    colour, symbol = _mark(k, count)
    xs = [order.index(layer.name) + _shift(k, count) for layer in found]
    traces = [layer.trace_per_parameter for layer in found]
    shared = {"name": escaped(name), "legendgroup": escaped(name)}
    upper = dots(
        xs,
        [each.value for each in traces],
        [each.interval for each in traces],
        [
            f"{escaped(name)}, {escaped(layer.name)}: trace / parameter {plain(each)}<br>"
            f"{layer.size:,} parameters"
            for layer, each in zip(found, traces, strict=True)
        ],
        colour,
        symbol,
        "y",
    )
    lower = dots(
        xs,
        [layer.top.lower for layer in found],
        [(layer.top.lower, layer.top.upper) for layer in found],
        [
            f"{escaped(name)}, {escaped(layer.name)}: largest eigenvalue "
            f"{bracket(layer.top.lower, layer.top.upper)}"
            for layer in found
        ],
        colour,
        symbol,
        "y2",
    )
    open_ended = [not math.isfinite(layer.top.upper) for layer in found]
    lower["marker"]["symbol"] = [f"{symbol}-open" if gap else symbol for gap in open_ended]
    return [{**upper, **shared}, {**lower, **shared, "showlegend": False}]
