"""Laws of random matrices in the report: the figure, the words, the table."""

from __future__ import annotations

import json
import math
import re

import plotly.graph_objects as go

from thalweg.report import laws, render


def valid(spec):
    text = re.sub(r'"@(ink|muted|grid|paper|accent)"', '"#123456"', json.dumps(spec))
    return go.Figure(json.loads(text))


def known(make, *sets):
    return [(f"m{k}", make.spectrum(laws=tuple(each))) for k, each in enumerate(sets)]


def test_the_law_lies_over_the_measured_density(make):
    law = make.law()
    figure = valid(laws.overlay(known(make, [law])))
    band, measured, drawn, edges = figure.data
    assert band.fill == "toself"
    assert list(measured.x) == list(make.density().grid)
    assert list(drawn.y) == list(law.values)
    assert drawn.line.dash == "solid"
    assert drawn.name == "semicircle, accepted"
    assert [x for x in edges.x if x is not None] == [-0.4, -0.4, 0.6, 0.6]
    low, high = figure.layout.xaxis.range
    assert low < -0.6
    assert 0.8 < high < 2  # the bulk, not the outliers at 7 and 9
    assert figure.layout.yaxis.type is None


def test_a_rejected_law_is_dashed_and_called_so(make):
    rejected, open_ = make.law(verdict="rejected"), make.law("free", "unresolved")
    spec = laws.overlay(known(make, [rejected], [open_]))
    figure = valid(spec)
    assert [figure.data[k].line.dash for k in (2, 6)] == ["dash", "dot"]
    assert [figure.data[k].name for k in (2, 6)] == [
        "semicircle, rejected",
        "free sum of Marchenko-Pastur and semicircle, unresolved",
    ]
    first, second = spec["layout"]["meta"]
    assert (first["name"], second["name"]) == ("m0", "m1")
    assert [patch["visible"] for patch in first["data"]] == [True] * 4 + [False] * 4
    assert [patch["visible"] for patch in second["data"]] == [False] * 4 + [True] * 4
    assert [trace.visible is not False for trace in figure.data] == [True] * 4 + [False] * 4


def test_an_atom_at_zero_makes_the_axis_logarithmic(make):
    figure = valid(laws.overlay(known(make, [make.law("marchenko-pastur", atom=0.6)])))
    assert figure.layout.yaxis.type == "log"
    low, high = figure.layout.yaxis.range
    assert 10**low < max(make.density().values) < 10**high


def test_without_a_fitted_law_there_is_no_figure(make):
    assert laws.overlay(known(make, [make.law(verdict="does not apply")], [])) is None
    assert laws.overlay([]) is None


def test_the_words_group_minima_by_their_best_law(make):
    text = laws.words(
        known(
            make,
            [make.law()],
            [make.law(p_value=0.7, outliers=2)],
            [make.law("marchenko-pastur", "rejected", distance=0.25), make.law(verdict="rejected")],
            [make.law(verdict="unresolved", outliers=0)],
            [make.law(verdict="does not apply")],
            [],
        )
    )
    assert (
        "At m0 and m1 the bulk agrees with the semicircle law (p = 0.4 to 0.7 of 99 random "
        "matrices); 2 to 5 eigenvalues lie beyond its edges."
    ) in text
    assert (
        "At m2 no law of random matrices describes the bulk: the Marchenko-Pastur law comes "
        "nearest and is rejected (its distribution function is off by up to 0.25)."
    ) in text
    assert "At m3 it is unresolved whether the bulk follows the semicircle law (p = 0.03" in text
    assert "none lies beyond its edges" in text
    assert (
        "At m4 no law of random matrices applies to the bulk: half of the bulk is a spike." in text
    )
    assert "m5" not in text
    assert "A law that is accepted is no proof" in text


def test_nothing_is_accepted_nothing_is_warned_of(make):
    assert "no proof" not in laws.words(known(make, [make.law(verdict="rejected")]))
    assert laws.words(known(make, [])) == ""


def test_the_table_holds_every_law(make):
    far = make.law("free", "rejected", p_value=math.nan, replicates=19)
    found = laws.beside(
        known(make, [make.law(), far, make.law("marchenko-pastur", "does not apply")])
    )
    text = re.sub(r"<[^>]+>", " ", found)
    for shown in (
        "centre 0.100 ± 0.020, radius 0.500 ± 0.030",
        "-0.4 to 0.6",
        "99.8%",
        "0.0123",
        "0.0045",
        "does not apply",
        "half of the bulk is a spike",
    ):
        assert shown in text, shown
    assert found.count("<tr>") == 4


def test_the_page_says_it_and_draws_it(make):
    page = render(make.realistic())
    text = re.sub(r"<[^>]+>", " ", page)
    assert "Is the bulk that of a random matrix?" in text
    assert "At m0 and m3 the bulk agrees with the semicircle law" in text
    assert "The bulk and random matrices" in text
    assert '<select data-for="laws"><option value="0">m0</option>' in page


def test_a_page_without_laws_has_no_such_section(make):
    page = render(make.survey([make.minimum("m0", spectrum=make.spectrum())]))
    assert "random matri" not in page.partition("<script")[0]
