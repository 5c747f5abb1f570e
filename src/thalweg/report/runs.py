"""The figures of single measurements along a run: sharpness against steps and minibatches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thalweg.report.frame import (
    GREEN,
    MAIN,
    ORANGE,
    RED,
    Figure,
    arms,
    finite,
    frame,
    loss_axis,
    titled,
)
from thalweg.report.names import bracket, plain

if TYPE_CHECKING:
    from thalweg.curvature.minibatch import MinibatchSharpness
    from thalweg.curvature.track import Track
    from thalweg.estimate import Bound

__all__ = ["minibatches", "track"]


def track(run: Track) -> Figure:
    """Return the loss and, below it, the sharpness beside the largest stable one.

    Args:
        run: What was recorded.
    """
    steps = run.steps.tolist()
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "loss",
            "x": steps,
            "y": finite(run.losses.tolist()),
            "line": {"color": ORANGE, "width": 2},
            "marker": {"size": 5, "color": ORANGE},
            "hovertemplate": "step %{x}: loss %{y:.6g}<extra></extra>",
            "showlegend": False,
        },
        _brackets("sharpness", steps, [r.sharpness for r in run.records], MAIN),
    ]
    felt = [record.preconditioned for record in run.records]
    if any(each is not None for each in felt):
        name, shown = "as the optimiser feels it", [r.felt for r in run.records]
        data.append(_brackets(name, steps, shown, GREEN))
    limits = [r.threshold / r.lr if r.lr > 0 else math.nan for r in run.records]
    if any(map(math.isfinite, limits)):
        data.append(_limit(run, steps, limits))
    layout = frame(
        {**titled("step"), "anchor": "y2"}, loss_axis(run.losses.tolist()), showlegend=True
    )
    layout["yaxis2"] = {
        **{k: v for k, v in layout["yaxis"].items() if k not in ("type", "tickvals", "ticktext")},
        **titled("largest eigenvalue"),
        "domain": [0, 0.58],
        "rangemode": "tozero",
    }
    layout["yaxis"]["domain"] = [0.66, 1]
    return {"data": data, "layout": layout}


def _limit(run: Track, steps: Sequence[int], limits: Sequence[float]) -> dict[str, Any]:
    plainly = all(r.preconditioned is None and r.threshold == 2 for r in run.records)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "2/η" if plainly else "largest stable",
        "x": list(steps),
        "y": finite(limits),
        "yaxis": "y2",
        "line": {"color": RED, "width": 2, "dash": "dash", "shape": "hv"},
        "hovertemplate": "stable up to %{y:.6g}<extra></extra>",
    }


def _brackets(
    name: str, steps: Sequence[int], bounds: Sequence[Bound], colour: str
) -> dict[str, Any]:
    middles = [(bound.lower + bound.upper) / 2 for bound in bounds]
    ends = [(bound.lower, bound.upper) for bound in bounds]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(steps),
        "y": finite(middles),
        "yaxis": "y2",
        "text": [
            f"step {step}: {name} {bracket(*pair)}" for step, pair in zip(steps, ends, strict=True)
        ],
        "hoverinfo": "text",
        "line": {"color": colour, "width": 2},
        "marker": {"size": 5, "color": colour},
        "error_y": arms(ends, middles, colour),
    }


def minibatches(found: MinibatchSharpness) -> Figure:
    """Return the sharpness of every minibatch in rising order, beside that of all the data.

    Args:
        found: The distribution.
    """
    values, order = found.values.sort()
    ends = [(float(low), float(high)) for low, high in found.intervals[order].tolist()]
    count = len(values)
    shares = [(k + 1) / count for k in range(count)]
    done = found.converged[order].tolist()
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"minibatch of {found.batch_size}",
            "x": finite(values.tolist()),
            "y": shares,
            "text": [
                f"{bracket(*pair)}" + ("" if converged else " (not converged)")
                for pair, converged in zip(ends, done, strict=True)
            ],
            "hoverinfo": "text",
            "marker": {
                "color": MAIN,
                "size": 7,
                "symbol": ["circle" if converged else "circle-open" for converged in done],
            },
            "error_x": arms(ends, values.tolist(), MAIN),
        },
        _upright("mean of minibatches", found.mean.value, ORANGE, "dot", plain(found.mean)),
        _upright("all the data", found.full.upper, RED, "dash", str(found.full)),
    ]
    shapes = [
        _window(*found.mean.interval, ORANGE),
        _window(found.full.lower, found.full.upper, RED),
    ]
    layout = frame(
        titled("largest eigenvalue"),
        {**titled("share of minibatches at or below"), "range": [0, 1.05]},
        shapes=[shape for shape in shapes if shape is not None],
        showlegend=True,
    )
    return {"data": data, "layout": layout}


def _upright(name: str, at: float, colour: str, dash: str, text: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": finite([at, at]),
        "y": [0, 1],
        "line": {"color": colour, "width": 2, "dash": dash},
        "text": [f"{name}: {text}"] * 2,
        "hoverinfo": "text",
    }


def _window(low: float, high: float, colour: str) -> dict[str, Any] | None:
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return {
        "type": "rect",
        "yref": "paper",
        "x0": low,
        "x1": high,
        "y0": 0,
        "y1": 1,
        "fillcolor": colour,
        "opacity": 0.2,
        "layer": "below",
        "line": {"width": 0},
    }
