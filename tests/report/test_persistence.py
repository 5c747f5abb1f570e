"""What the report says of births and deaths, and of what is proven of them."""

from __future__ import annotations

import json
import math
import re

import plotly.graph_objects as go
import pytest

from thalweg.estimate import Bound
from thalweg.report import render
from thalweg.report.barriers import proven
from thalweg.report.passes import merges
from thalweg.report.persistence import bars, caption, certain, table_of_bars
from thalweg.survey.trees import trees
from thalweg.topology import barcode

REASON = "it crosses det W1 = 0, where the product loses rank"


@pytest.fixture
def walled(make):
    """Four minima: one behind a wall, one joined without proof, one that nothing joins."""
    minima = [
        make.minimum("m0", 0.05),
        make.minimum("m1", 0.08),
        make.minimum("m2", 0.12),
        make.minimum("m3", 0.3, noise=None),
    ]
    said = f"lower end: {REASON}; upper end: string"
    floor = Bound(0.62, 0.82, "certified", "certified", method=said)
    top = Bound(0.88, 0.9, "estimated", "certified")
    paths = [
        make.path("m0", "m1", 0.9, ends=(0.05, 0.08), bracket=top, barrier=floor),
        make.path("m1", "m2", 0.5, ends=(0.08, 0.12)),
    ]
    _, best_known, certified = trees(minima, paths, 0)
    return make.survey(minima, paths, best_known=best_known, certified=certified)


def test_bars_are_the_barcode_with_errors_at_both_ends(make):
    record = make.realistic()
    spec = bars(record)
    text = re.sub(r'"@(ink|muted|grid|paper|accent)"', '"#123456"', json.dumps(spec))
    drawn = go.Figure(json.loads(text))  # validates every property
    assert drawn.layout.xaxis.title.text == "loss (log scale)"
    assert drawn.layout.yaxis.title.text == "minimum"
    traces = {trace.name: trace for trace in drawn.data}
    assert set(traces) == {
        "to the lowest pass known",
        "no pass to a lower minimum known",
        "minimum ± sampling error",
        "pass, with its bracket",
    }
    exact = barcode(record.tree)
    births, deaths = traces["minimum ± sampling error"], traces["pass, with its bracket"]
    assert list(births.x) == exact.births.tolist()
    assert list(deaths.x) == [x for x in exact.deaths.tolist() if math.isfinite(x)]
    assert list(deaths.y) == [1, 2, 3, 4, 5]
    line = traces["to the lowest pass known"].x
    assert [line[k + 1] - line[k] for k in range(0, 15, 3)] == exact.persistence[1:].tolist()
    assert list(births.error_x.array) == pytest.approx([0.0061] * 6)
    assert list(deaths.error_x.array) == [0.0] * 5
    assert deaths.error_x.arrayminus[0] == pytest.approx(0.009)  # the bracket of m2 to m3
    (end,) = [x for x in traces["no pass to a lower minimum known"].x if x][1:]
    assert end > max(deaths.x)


def test_a_proof_is_a_triangle_and_its_reason_is_in_the_table(walled):
    traces = {trace["name"]: trace for trace in bars(walled)["data"]}
    floors = traces["no death below, proven"]
    assert floors["y"] == [2]
    assert floors["x"] == pytest.approx([0.7])
    assert floors["text"] == ["m1: proven to die at 0.7 to 0.9 (certified)"]
    assert "Triangles" in caption(walled)
    table = table_of_bars(walled).replace("\N{NO-BREAK SPACE}", " ")
    for shown in (
        ">0.88 (estimated) to 0.9 (certified)<",
        ">0.7 to 0.9 (certified)<",
        f">{REASON}<",
        ">0.498 to 0.5 (estimated)<",
        ">at least 0.12 (certified)<",
        ">at least 0.3 (certified)<",
    ):
        assert shown in table
    assert table.count("never, as far as known") == 2
    assert certain(walled).startswith(
        "Of 3 minima that may join a lower one, 1 is proven to do so only above the minimum "
        "itself, and 1 has a certified upper end."
    )
    behind = merges(walled)
    assert ">proven height<" in behind
    assert ">0.7 to 0.9 (certified)<" in behind
    assert ">at least 0.12 (certified)<" in behind


def test_a_death_is_proven_against_every_lower_minimum(make):
    """A wall to one lower minimum proves nothing where another may be joined below it."""
    minima = [make.minimum("m0", 0.05), make.minimum("m1", 0.08), make.minimum("m2", 0.12)]
    floor = Bound(0.5, 0.6, "certified", "certified")
    paths = [make.path("m0", "m2", 0.72, ends=(0.05, 0.12), barrier=floor)]
    _, best_known, certified = trees(minima, paths, 0)
    record = make.survey(minima, paths, best_known=best_known, certified=certified)
    assert certified.height_of_merge("m0", "m2").lower == pytest.approx(0.62)
    assert "no death below, proven" not in {trace["name"] for trace in bars(record)["data"]}
    assert "Triangles" not in caption(record)
    assert certain(record).startswith("Of 2 minima that may join a lower one, none are proven")
    assert ">at least 0.12 (certified)<" in table_of_bars(record)


def test_what_is_missing_is_left_out(make):
    lone = make.survey([make.minimum()])
    assert bars(lone) is None
    assert [certain(lone), table_of_bars(lone)] == ["", ""]
    assert "Persistence of the minima" not in render(lone)
    plain = make.survey(
        [make.minimum("m0"), make.minimum("m1", 0.12)], [make.path("m0", "m1", 0.5)]
    )
    assert certain(plain) == ""
    page = render(plain)
    assert 'data-figure="persistence"' in page
    assert "proven to die at" not in page
    assert "Persistence of the minima" in page
    many = make.survey([make.minimum(f"m{k}", 0.1 + k / 100) for k in range(50)])
    assert len(bars(many)["layout"]["yaxis"]["ticktext"]) == 40
    assert "Drawn are the 40 longest of 50; the table has all." in caption(many)
    assert table_of_bars(many).count("<tr>") == 51


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        (Bound(0.1, math.inf, "exact", "exact"), "at least 0.1 (exact)"),
        (Bound(0.123456, math.inf, "certified", "exact"), "at least 0.1234 (certified)"),
        (Bound(0.123456, 0.2345678, "certified", "certified"), "0.1234 to 0.2346 (certified)"),
        (Bound(0.1, 0.2, "exact", "certified"), "0.1 (exact) to 0.2 (certified)"),
    ],
)
def test_proven_heights_are_rounded_outward(bound, said):
    assert proven(bound) == said
