"""What all figures share: colours, axes, error bars and the frame around the data.

A figure is a plotly specification in plain dictionaries. A colour that begins with ``@``
names a variable of the style sheet; the page puts in its value, and does so again when the
reader switches between light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

__all__ = [
    "BLUE",
    "CYCLE",
    "GREEN",
    "MAIN",
    "ORANGE",
    "RED",
    "SYMBOLS",
    "Figure",
    "arms",
    "dots",
    "escaped",
    "finite",
    "frame",
    "loss_axis",
    "strip",
    "titled",
    "value_axis",
]

Figure: TypeAlias = dict[str, Any]

# Okabe & Ito (2008), less the two that vanish on white or on black.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
MAIN = "@accent"  # BLUE on white, SKY on black
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")


def finite(values: Iterable[float]) -> list[float | None]:
    """Put None, which plotly draws as a gap, where a value is not finite."""
    return [float(value) if math.isfinite(value) else None for value in values]


def escaped(value: object) -> str:
    """Escape what plotly would read as markup."""
    return html.escape(str(value), quote=False)


def frame(x: dict[str, Any], y: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """Return a layout with these axes, in the report's style."""
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


def titled(text: str) -> dict[str, Any]:
    """Return the title of an axis."""
    return {"title": {"text": text, "standoff": 10}}


def loss_axis(values: Iterable[float]) -> dict[str, Any]:
    """Return an axis for losses: logarithmic where they are positive and far apart."""
    return value_axis("loss", values, far=5, note="log scale")


def value_axis(
    title: str, values: Iterable[float], *, far: float = 20, note: str = "log"
) -> dict[str, Any]:
    """Return an axis: logarithmic where all values are positive and `far` times apart."""
    known = [value for value in values if math.isfinite(value)]
    if not known or min(known) <= 0 or max(known) <= far * min(known):
        return titled(title)
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {
        **titled(f"{title} ({note})"),
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def arms(
    intervals: Sequence[tuple[float, float]], values: Sequence[float], colour: str
) -> dict[str, Any]:
    """Return error bars that reach from each value to the ends of its interval."""

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


def strip(low: float, high: float, colour: str) -> dict[str, Any] | None:
    """Return a horizontal strip behind the data, or None where an end is not finite."""
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


def dots(
    xs: Sequence[str | float],
    ys: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colour: str,
    symbol: str,
    axis: str,
) -> dict[str, Any]:
    """Return marks with their intervals, on one of the vertical axes."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(xs),
        "y": finite(ys),
        "text": list(texts),
        "hoverinfo": "text",
        "yaxis": axis,
        "marker": {"color": colour, "size": 9, "symbol": symbol},
        "error_y": arms(intervals, ys, colour),
    }
