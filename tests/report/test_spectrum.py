"""The figures of spectra and layers: what they hold, and what they leave out."""

from __future__ import annotations

import json
import math
import re

import plotly.graph_objects as go
import pytest

from thalweg.report import curvature, render
from thalweg.report.density import Curve, density
from thalweg.report.names import BELOW


def valid(spec):
    """Return the figure as plotly's own checker reads it."""
    text = re.sub(r'"@(ink|muted|grid|paper|accent)"', '"#123456"', json.dumps(spec))
    return go.Figure(json.loads(text))


def test_the_density_has_its_band_and_its_atoms(make):
    found = make.density()
    figure = valid(density([Curve("m0", 2410, found, 0.05)]))
    band, line, atoms = figure.data
    assert figure.layout.yaxis.type == "log"
    known = [
        (x, y) for x, y in zip(found.grid, found.values, strict=True) if y in line.y or y > 1e-3
    ]
    shown = {x: y for x, y in zip(line.x, line.y, strict=True) if y is not None}
    assert len(shown) > 50
    assert all(shown[float(f"{x:.6g}")] == pytest.approx(y, rel=1e-5) for x, y in known)
    half = len(band.x) // 2
    assert band.fill == "toself"
    assert list(band.x[:half]) == list(band.x[half:])[::-1]
    for x, top, low in zip(band.x[:half], band.y[:half], list(band.y[half:])[::-1], strict=True):
        assert top >= low
        assert shown.get(x) is None or low <= shown[x] <= top
    assert list(atoms.x) == [9.0, 7.5, 7.4]
    height = 1 / (2410 * found.broadening * math.sqrt(2 * math.pi))
    assert list(atoms.y) == pytest.approx([height] * 3)
    assert list(atoms.error_x.array) == pytest.approx([0.01] * 3)
    assert list(atoms.text) == ["9", "7.5", ""]  # 7.4 has no room beside 7.5
    window, zero = figure.layout.shapes
    assert (window.x0, window.x1) == (-0.05, 0.05)
    assert (zero.x0, zero.x1) == (0, 0)
    low, high = figure.layout.yaxis.range
    assert 10**low == pytest.approx(0.02 * height)
    assert 10**high > max(found.upper)


def test_several_densities_come_with_a_choice(make):
    curves = [Curve(f"m{k}", 100, make.density(), 0.01 * (k + 1)) for k in range(8)]
    spec = density(curves)
    figure = valid(spec)
    every, *single = spec["layout"]["meta"]
    assert [choice["name"] for choice in (every, *single)] == ["all", *(f"m{k}" for k in range(8))]
    visible = [patch["visible"] for patch in every["data"]]
    assert visible == [False, True, True] * 8
    assert [trace.visible is not False for trace in figure.data] == visible
    third = [patch["visible"] for patch in single[2]["data"]]
    assert third == [k // 3 == 2 for k in range(24)]
    assert single[2]["data"][8]["mode"] == "markers+text"
    assert "mode" not in every["data"][8]
    assert single[2]["shapes"][0]["x1"] == 0.03
    assert every["shapes"][0]["x1"] == 0.08
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.line.width == 2]
    assert len({(trace.line.color, trace.line.dash) for trace in lines}) == 8


def test_what_is_not_finite_or_not_there_is_left_out(make):
    assert density([]) is None
    empty = make.density(grid=(), values=(), lower=(), upper=(), outliers=())
    assert density([Curve("m0", 5, empty)]) is None
    gaps = make.density(
        grid=(0.0, 1.0, 2.0),
        values=(0.5, math.nan, 0.5),
        lower=(0.0, math.nan, 0.0),
        upper=(1.0, 1.0, math.inf),
        outliers=(),
    )
    figure = valid(density([Curve("m0", 5, gaps)]))
    band, line, atoms = figure.data
    assert list(line.y) == [0.5, None, 0.5]
    assert list(band.x) == [0.0, 0.0]
    assert len(atoms.x) == 0
    assert len(figure.layout.shapes) == 1


def test_names_are_never_markup(make):
    evil = "<b>m0</b>"
    spec = density([Curve(evil, 5, make.density()), Curve("m1", 5, make.density())])
    assert "<b>" not in json.dumps(spec["data"])


def test_layers_are_drawn_per_parameter(make):
    figure = valid(curvature.layers([("m0", make.layers()), ("m1", make.layers(2.0))]))
    assert list(figure.layout.xaxis.ticktext) == ["0", "2", "head"]
    trace, top = figure.data[:2]
    assert list(trace.y) == pytest.approx([20 / 1950, 31 / 310, 42 / 150])
    assert list(trace.error_y.array) == pytest.approx([1.5 / 1950, 1.5 / 310, 1.5 / 150])
    assert top.yaxis == "y2"
    assert list(top.y) == [1.5, 4.5, 7.5]
    assert list(top.error_y.array) == pytest.approx([0.2] * 3)
    assert figure.data[2].x[0] > trace.x[0]
    assert figure.layout.yaxis.type == "log"
    assert "(log)" in figure.layout.yaxis.title.text
    assert curvature.layers([]) is None
    assert curvature.layers([("m0", ())]) is None


def test_an_open_bracket_of_a_layer_is_an_open_mark(make):
    from dataclasses import replace

    from thalweg.estimate import Bound

    one, *rest = make.layers()
    loose = replace(one, top=Bound(1.0, math.inf, "certified", "estimated"))
    figure = valid(curvature.layers([("m0", (loose, *rest))]))
    assert list(figure.data[1].marker.symbol) == ["circle-open", "circle", "circle"]
    assert "between 1 and inf" in figure.data[1].text[0]


def test_negative_traces_have_a_linear_axis(make):
    from dataclasses import replace

    layers = [replace(x, trace=make.estimate(-3.0, 1.0)) for x in make.layers()]
    figure = valid(curvature.layers([("m0", layers)]))
    assert figure.layout.yaxis.type is None


def test_the_page_has_the_tables_of_spectra_and_layers(make):
    text = re.sub(r"<[^>]+>", " ", render(make.realistic()))
    for shown in (
        f"{BELOW} (index)",
        "4.5 (2 to 7)",
        "1260 (1010 to 1510), 12 for certain",
        "between -0.0043 and -0.0041",
        "412.0 ± 9.0",
        "-8203 ± 31",
        "1,950",
        "trace / parameter",
        "Curvature of the layers",
        "Spectrum of the Hessian",
    ):
        assert shown in text, shown
    assert '<select data-for="density"><option value="0">all</option>' in render(make.realistic())


def test_many_layers_are_folded_away(make):
    minima = [make.minimum(f"m{k}", layers=make.layers()) for k in range(15)]
    assert "All layers as a table" in render(make.survey(minima))
    assert "All layers as a table" not in render(make.survey(minima[:3]))


def test_a_page_without_spectra_has_no_such_section(make):
    page = render(make.survey([make.minimum("m0"), make.minimum("m1")]))
    assert "Spectrum of the Hessian" not in page
    assert "Curvature of the layers" not in page
    assert "data-for=" not in page.partition("<script")[0]
