"""One result as one figure: the same drawings as in the report."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from thalweg.curvature.density import SpectralDensity
from thalweg.curvature.eigenpairs import Eigenpairs
from thalweg.curvature.minibatch import MinibatchSharpness
from thalweg.curvature.profile import CurvatureProfile
from thalweg.curvature.track import Track
from thalweg.report import curvature, runs
from thalweg.report.density import Curve, density
from thalweg.report.frame import Figure
from thalweg.survey.curvature import density_record, eigen_record, layer_records

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

__all__ = ["plot"]

Plottable = SpectralDensity | CurvatureProfile | Track | MinibatchSharpness | Eigenpairs


def plot(result: Plottable, *, dark: bool = False) -> PlotlyFigure:
    """Draw a result of `thalweg.curvature`.

    A `SpectralDensity` is its bulk with its band and its outliers; a `CurvatureProfile` the
    same, above its layers; a `Track` the loss and the sharpness against the step, with the
    largest stable sharpness; a `MinibatchSharpness` every minibatch in rising order;
    `Eigenpairs` are the eigenvalues by their rank, with their intervals.

    Args:
        result: What to draw.
        dark: Whether the figure is for a dark background.

    Returns:
        A plotly figure: show it with ``.show()``, keep it with ``.write_html("x.html")``.

    Raises:
        TypeError: If there is no drawing for such a result.
        ValueError: If it holds nothing to draw.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator, eigenpairs
        >>> A = MatrixOperator(torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)))
        >>> figure = plot(eigenpairs(A, k=3, seed=0))
        >>> [round(value, 6) for value in figure.data[0].y]
        [8.0, 7.0, 6.0]
    """
    spec = _spec(result)
    if spec is None:
        raise ValueError(f"this {type(result).__name__} holds nothing that can be drawn")
    from plotly.graph_objects import Figure as PlotlyFigure

    colours = _colours(dark)
    spec["layout"] |= {"paper_bgcolor": "@paper", "plot_bgcolor": "@paper"}
    return PlotlyFigure(_painted(spec, colours))


def _spec(result: object) -> Figure | None:
    match result:
        case SpectralDensity():
            return density([Curve("density", result.dim, density_record(result))])
        case CurvatureProfile():
            return _profile(result)
        case Track():
            return runs.track(result)
        case MinibatchSharpness():
            return runs.minibatches(result)
        case Eigenpairs():
            return curvature.ranked([("eigenvalues", eigen_record(result))], of="")
    raise TypeError(
        f"there is no drawing of a {type(result).__name__}; plot draws a SpectralDensity, a "
        f"CurvatureProfile, a Track, a MinibatchSharpness or Eigenpairs"
    )


def _profile(profile: CurvatureProfile) -> Figure | None:
    """Put the density above the layers."""
    curve = Curve("density", profile.dim, density_record(profile.density), profile.inertia.tau)
    upper = density([curve])
    lower = curvature.layers([("layers", layer_records(profile.layers))])
    if upper is None or lower is None:
        return upper or lower
    moved = [
        {**trace, "xaxis": "x2", "yaxis": {"y": "y2", "y2": "y3"}[trace["yaxis"]]}
        for trace in lower["data"]
    ]
    layout = upper["layout"]
    layout["yaxis"]["domain"] = [0.62, 1]
    layout["xaxis"]["anchor"] = "y"
    layout["xaxis2"] = {**lower["layout"]["xaxis"], "anchor": "y3"}
    layout["yaxis2"] = {**lower["layout"]["yaxis"], "domain": [0.26, 0.46], "anchor": "x2"}
    layout["yaxis3"] = {**lower["layout"]["yaxis2"], "domain": [0, 0.2], "anchor": "x2"}
    layout["height"] = 900
    return {"data": [*upper["data"], *moved], "layout": layout}


@cache
def _colours(dark: bool) -> dict[str, str]:
    """Read the colours of the style sheet, in which the dark ones follow the light ones."""
    sheet = resources.files("thalweg.report").joinpath("style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    return dict(re.findall(r"--(\w+): (#\w+);", blocks[dark]))


def _painted(value: Any, colours: dict[str, str]) -> Any:
    """Put the colours in where a variable of the style sheet is named."""
    if isinstance(value, dict):
        return {
            key: colours[item[1:]]
            if key.endswith("color") and isinstance(item, str) and item.startswith("@")
            else _painted(item, colours)
            for key, item in value.items()
        }
    return [_painted(item, colours) for item in value] if isinstance(value, list) else value
