"""What the report says of paths by definition, on held-out data and in a gauge."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from thalweg.estimate import Bound
from thalweg.report import figures, render
from thalweg.report.barriers import between, definitions, lengths, outside
from thalweg.survey import AlongRecord, BalancedRecord, BarrierRecord


@pytest.fixture
def measured(make):
    """Two minima and a path with all that a survey can say of it."""
    bounds = {
        "above_ends": Bound(0.0712, 0.0731, "certified", "certified"),
        "above_mean": Bound(0.0812, 0.0831, "certified", "certified"),
        "above_chord": Bound(0.0765, 0.0766, "certified", "estimated"),
        "error": Bound(0.04, 0.05, "certified", "estimated"),
    }
    sampling = {"above_ends": make.estimate(0.0712, 0.012), "error": make.estimate(0.04, 0.011)}
    loss = AlongRecord(
        "loss",
        (0.0, 0.3, 1.0),
        (0.21, 0.34, 0.22),
        make.estimate(0.21, 0.03),
        make.estimate(0.22, 0.03),
        make.estimate(0.34, 0.05),
        0.3,
    )
    error = AlongRecord(
        "error",
        (0.0, 0.3, 1.0),
        (0.061, 0.122, 0.063),
        make.estimate(0.061, 0.02),
        make.estimate(0.063, 0.02),
        make.estimate(0.122, 0.04),
        0.3,
    )
    return {
        "length": 12.5,
        "definitions": tuple(
            BarrierRecord(name, "", f"{name} et al.", bound, sampling.get(name))
            for name, bound in bounds.items()
        ),
        "held_out": (loss, error),
    }


def broken(text):
    """Return the text with spaces where a line may not break."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def survey(make, paths, **rest):
    ends = dict.fromkeys(end for path in paths for end in (path.a, path.b))
    return make.survey([make.minimum(end) for end in ends], paths, **rest)


def test_every_definition_has_its_value_its_source_and_its_error(make, measured):
    table = broken(definitions(survey(make, [make.path("m0", "m1", 0.2, **measured)])))
    for shown in (
        ">0.0712 to 0.0731 (certified)<",
        ">0.071 ± 0.012<",
        ">0.0812 to 0.0831 (certified)<",
        ">0.0765 to 0.0766<",
        ">0.04 to 0.05<",
        ">0.040 ± 0.011<",
        "above_chord et al. (above the chord)",
    ):
        assert shown in table
    assert table.count('<th scope="col">') == 7
    assert "not measured" not in table


def test_what_a_path_lacks_is_a_dash_and_no_definitions_no_table(make, measured):
    full = make.path("m0", "m1", 0.2, **measured)
    bare = make.path("m1", "m2", 0.2, definitions=measured["definitions"][:3], note="in the <b>")
    table = definitions(survey(make, [full, bare]))
    row = table[table.index("m1 – m2") :]
    assert row.count("<td") == 7
    assert row.count(">–<") == 2
    assert "in the &lt;b&gt;" in row
    assert "straight line is missing where an older version measured" in table
    straight = make.path("m0", "m1", 0.2, **measured, line_definitions=bare.definitions)
    table = definitions(survey(make, [straight]))
    assert table.count("<tr") == 3
    assert "m0 – m1, straight line" in broken(table)
    assert "an older version" not in table
    same = dataclasses.replace(straight, line_definitions=straight.definitions)
    assert "straight line<" not in definitions(survey(make, [same]))
    older = survey(make, [make.path("m0", "m1", 0.2)])
    assert [part(older) for part in (definitions, outside, lengths)] == ["", "", ""]


def test_held_out_ends_and_top_stand_with_their_sampling_error(make, measured):
    table = broken(outside(survey(make, [make.path("m0", "m1", 0.2, **measured)])))
    for shown in (
        ">0.210 ± 0.030 and 0.220 ± 0.030<",
        ">0.340 ± 0.050<",
        ">0.061 ± 0.020 and 0.063 ± 0.020<",
        ">0.122 ± 0.040<",
        "that of 3 places along the path",
    ):
        assert shown in table
    alone = {**measured, "held_out": measured["held_out"][:1]}
    assert "error rate" not in outside(survey(make, [make.path("m0", "m1", 0.2, **alone)]))


def test_a_survey_without_a_gauge_says_so(make, measured):
    record = survey(make, [make.path("m0", "m1", 0.2, **measured)])
    assert "Gauge: none was given" in lengths(record)
    moved = BalancedRecord(
        7.25, 1.125, Bound.exactly(0.2), Bound(0.4, 0.5, "certified", "estimated")
    )
    there = make.path("m0", "m1", 0.2, **measured, balanced=moved)
    table = lengths(survey(make, [there], provenance={"gauge": "mine.balance"}))
    for shown in ("in the gauge mine.balance", ">12.5<", ">7.25<", ">1.125<", ">0.4 to 0.5<"):
        assert shown in table
    lost = survey(make, [make.path("m0", "m1", 0.2, **measured)], provenance={"gauge": "g"})
    assert lengths(lost) == ""


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        (Bound(0.1, 0.2, "certified", "estimated"), "0.1 to 0.2"),
        (Bound(0.1, 0.2, "certified", "certified"), "0.1 to 0.2 (certified)"),
        (Bound(0.1, 0.2, "estimated", "certified"), "0.1 (estimated) to 0.2 (certified)"),
        (Bound(0.123456, 0.123457, "certified", "estimated"), "0.1234 to 0.1235"),
        (Bound(0.123456, 0.123457, "estimated", "estimated"), "0.1235 (estimated)"),
        (Bound(0.123441, 0.123449, "certified", "certified"), "0.1234 to 0.1235 (certified)"),
        (Bound(math.nan, math.nan, "certified", "estimated"), "not a number"),
    ],
)
def test_brackets_are_short_and_keep_their_kinds(bound, said):
    assert between(bound) == said


def test_the_page_stacks_the_tables_where_it_is_narrow(make, measured):
    path = make.path("m0", "m1", 0.2, **measured)
    record = survey(make, [path])
    page = render(record)
    assert page.count('<table class="sortable stacked">') == 3  # persistence too
    assert 'data-name="above the chord"' in page
    assert ".stacked td::before { content: attr(data-name)" in page
    assert "path found, on held-out data" in page
    assert "path found, on held-out data" not in render(survey(make, [make.path("m0", "m1", 0.2)]))
    line, _, held = figures.path(record, path)["data"]
    assert (line["name"], held["name"]) == ("straight line", "held-out data")
    assert held["y"] == [0.21, 0.34, 0.22]
    assert re.search(r">12\.5</td>", page)
