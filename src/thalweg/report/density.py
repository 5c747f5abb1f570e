"""The figure of spectral densities: the bulk with its band, outliers as atoms, zero marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.report.frame import CYCLE, MAIN, Figure, arms, escaped, frame, titled
from thalweg.report.names import bracket
from thalweg.survey.records import DensityRecord

__all__ = ["Curve", "density"]

_DASHES = ("solid", "dash", "dot")
_LEAST = 0.02
_APART = 0.09


@dataclass(frozen=True, slots=True)
class Curve:
    """One density to draw.

    Args:
        name: What it is the density of.
        dim: How many eigenvalues there are.
        density: The density.
        tau: What counts as zero, or None.
    """

    name: str
    dim: int
    density: DensityRecord
    tau: float | None = None

    @property
    def atom(self) -> float:
        """The height of one eigenvalue, smoothed like the density."""
        return 1 / (self.dim * self.density.broadening * math.sqrt(2 * math.pi))


def density(curves: Sequence[Curve]) -> Figure | None:
    """Return spectral densities on a logarithmic axis, or None where there is none.

    Heights below a fiftieth of what one eigenvalue would have are cut off. An eigenvalue
    outside the bulk is a mark as high as its own smoothed peak would be. With several
    curves, the layout's `meta` says how to show all of them, or one with its band.

    Args:
        curves: What to draw.
    """
    curves = [curve for curve in curves if curve.density.grid and math.isfinite(curve.atom)]
    if not curves:
        return None
    floor = _LEAST * min(curve.atom for curve in curves)
    alone = len(curves) == 1
    parts: list[tuple[int, str, dict[str, Any]]] = []
    for k, curve in enumerate(curves):
        colour = MAIN if alone else CYCLE[k % len(CYCLE)]
        parts.append((k, "band", _band(curve, colour, floor, visible=alone)))
        parts.append((k, "line", _line(curve, colour, _DASHES[k // len(CYCLE) % 3], floor)))
        parts.append((k, "atoms", _atoms(curve, colour, floor, labelled=alone)))
    ceiling = max(_ceiling(curve) for curve in curves)
    layout = frame(
        {**titled("eigenvalue λ"), "tickformat": "~g"},
        {
            **titled("share of eigenvalues per unit λ"),
            "type": "log",
            "exponentformat": "power",
            "dtick": 1,
            "range": [math.log10(floor), math.log10(ceiling) + 0.25],
        },
        shapes=_zero(max((c.tau for c in curves if c.tau is not None), default=None)),
        showlegend=not alone,
    )
    if not alone:
        layout["meta"] = _choices(curves, [(k, part) for k, part, _ in parts])
    return {"data": [trace for *_, trace in parts], "layout": layout}


def _ceiling(curve: Curve) -> float:
    shown = [y for y in (*curve.density.upper, *curve.density.values) if math.isfinite(y)]
    return max([curve.atom, *shown])


def _choices(curves: Sequence[Curve], parts: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """Say what changes when all curves, or only one of them, are to be seen."""

    def patch(k: int, part: str, chosen: int | None) -> dict[str, Any]:
        visible = part != "band" if chosen is None else k == chosen
        labelled = {"mode": "markers+text"} if part == "atoms" and chosen is not None else {}
        return {"visible": visible, **labelled}

    taus = [curve.tau for curve in curves]
    known = [tau for tau in taus if tau is not None]
    options: list[tuple[str, int | None, float | None]] = [
        ("all", None, max(known, default=None)),
        *((curve.name, k, curve.tau) for k, curve in enumerate(curves)),
    ]
    return [
        {
            "name": name,
            "data": [patch(k, part, chosen) for k, part in parts],
            "shapes": _zero(tau),
        }
        for name, chosen, tau in options
    ]


def _shown(value: float, floor: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) and value >= floor else None


def _line(curve: Curve, colour: str, dash: str, floor: float) -> dict[str, Any]:
    found = curve.density
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escaped(curve.name),
        "legendgroup": escaped(curve.name),
        "x": [float(f"{x:.6g}") for x in found.grid],
        "y": [_shown(y, floor) for y in found.values],
        "customdata": [
            [f"{low:.3g}", f"{high:.3g}"]
            for low, high in zip(found.lower, found.upper, strict=True)
        ],
        "hovertemplate": (
            "λ %{x:.4g}: density %{y:.3g}<br>"
            f"band ({100 * found.level:.4g} %) "
            "%{customdata[0]} to %{customdata[1]}"
            f"<extra>{escaped(curve.name)}</extra>"
        ),
        "line": {"color": colour, "width": 2, "dash": dash},
    }


def _band(curve: Curve, colour: str, floor: float, *, visible: bool) -> dict[str, Any]:
    """Return the band as one outline: along its upper end, and back along its lower."""
    found = curve.density
    ends = [
        (float(f"{x:.6g}"), max(low, floor), high)
        for x, low, high in zip(found.grid, found.lower, found.upper, strict=True)
        if math.isfinite(low) and math.isfinite(high) and high > floor
    ]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, *_ in ends] + [x for x, *_ in reversed(ends)],
        "y": [_shown(high, floor) for *_, high in ends]
        + [_shown(low, floor) for _, low, _ in reversed(ends)],
        "fill": "toself",
        "fillcolor": colour,
        "line": {"width": 0, "color": colour},
        "opacity": 0.25,
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": escaped(curve.name),
        "visible": visible,
    }


def _atoms(curve: Curve, colour: str, floor: float, *, labelled: bool) -> dict[str, Any]:
    """Return the outliers as pins whose heads stand at the height of one eigenvalue."""
    found = curve.density.outliers
    count = len(found.values)
    intervals = list(zip(found.lower, found.upper, strict=True))
    return {
        "type": "scatter",
        "mode": "markers+text" if labelled else "markers",
        "name": escaped(curve.name),
        "legendgroup": escaped(curve.name),
        "showlegend": False,
        "x": list(found.values),
        "y": [curve.atom] * count,
        "text": _labels(curve),
        "textposition": "top center",
        "textfont": {"size": 11, "color": "@ink"},
        "cliponaxis": False,
        "hovertext": [
            f"{escaped(curve.name)}: eigenvalue {bracket(*interval)}" for interval in intervals
        ],
        "hoverinfo": "text",
        "marker": {
            "color": colour,
            "size": 8,
            "symbol": "diamond",
        },
        "error_x": arms(intervals, found.values, colour),
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [0.0] * count,
            "arrayminus": [curve.atom - floor] * count,
            "color": colour,
            "thickness": 1,
            "width": 0,
        },
    }


def _labels(curve: Curve) -> list[str]:
    """Write the values of the outliers that have room for it."""
    values = curve.density.outliers.values
    known = [x for x in (*values, *curve.density.grid) if math.isfinite(x)]
    apart = _APART * (max(known) - min(known))
    written: list[float] = []
    texts = []
    for value in values:
        room = all(abs(value - other) >= apart for other in written)
        texts.append(f"{value:.3g}" if room else "")
        if room:
            written.append(value)
    return texts


def _zero(tau: float | None) -> list[dict[str, Any]]:
    """Mark zero, and what counts as zero."""
    upright = {"yref": "y domain", "y0": 0, "y1": 1, "layer": "below"}
    line = {
        "type": "line",
        "x0": 0,
        "x1": 0,
        **upright,
        "line": {"color": "@muted", "width": 1, "dash": "dot"},
    }
    if tau is None or not math.isfinite(tau):
        return [line]
    window = {
        "type": "rect",
        "x0": -tau,
        "x1": tau,
        **upright,
        "fillcolor": "@muted",
        "opacity": 0.25,
        "line": {"width": 0},
    }
    return [window, line]
