"""What the report says of merges, saddles and level sets."""

from __future__ import annotations

import json
import re

import plotly.graph_objects as go
import pytest

from thalweg.report import render
from thalweg.report.passes import (
    critical,
    curved,
    level_set_figure,
    level_sets,
    merges,
    saddles,
    unseen,
)


def valid(spec):
    """Return the figure as plotly's own checker reads it."""
    text = re.sub(r'"@(ink|muted|grid|paper|accent)"', '"#123456"', json.dumps(spec))
    return go.Figure(json.loads(text))


def test_merges_say_how_many_searches_stand_behind_them(make):
    table = merges(make.realistic())
    assert "9 searches for 6 minima" in table
    assert "no, fewer than 3" in table
    assert "0.3107 / 0.3507 / 0.4411" in table
    assert merges(make.survey([make.minimum()])) == ""


def test_what_the_minima_found_say_of_others(make):
    said = unseen(make.realistic())
    assert said.startswith("All 6 sampled minima are joined below 0.3107")
    assert unseen(make.survey([make.minimum()])) == ""


def test_tops_are_passes_or_flat_or_undecided(make):
    record = make.realistic()
    said = critical(record)
    assert said.startswith("Of 3 path tops refined, 1 is a pass")
    assert "1 top (m2 – m3) ended where the gradient is merely flat" in said
    assert "1 top could not be decided" in said
    table = saddles(record)
    assert "between 0.0481 and 0.0481" in table or "0.0481" in table
    assert "1 to 4" in table
    assert ">0 to 5<" in table
    assert critical(make.survey()) == ""


def test_a_flat_top_is_never_called_a_pass(make):
    flat = make.survey(saddles=(make.saddle("m0", "m1", 0.3, answer="no", flatness=0.99),),
                       minima=[make.minimum("m0"), make.minimum("m1")])  # fmt: skip
    assert critical(flat).startswith("Of 1 path top refined, 0 are passes")


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (1.2, "the level set grows more curved as the level falls"),
        (1.01, "no growth that its intervals would show"),
    ],
)
def test_level_sets_grow_only_beyond_their_intervals(make, low, said):
    rows = [make.level(0.4, 1.0), make.level(0.2, low)]
    minima = [make.minimum("m0"), make.minimum("m1")]
    record = make.survey(minima, level_sets=(make.level_set(rows=rows),))
    assert said in curved(record)


def test_a_level_without_a_path_proves_nothing(make):
    minima = [make.minimum("m0"), make.minimum("m1")]
    record = make.survey(minima, level_sets=(make.level_set(),))
    assert "At 1 level some searches found none" in curved(record)
    table = level_sets(record)
    assert "0 of 2" in table
    assert "That none was found proves nothing" in table
    nowhere = make.level_set(rows=[make.level(0.2, 1.0, yes=0, unresolved=2)])
    assert "no path was found" in curved(make.survey(minima, level_sets=(nowhere,)))
    assert level_set_figure(nowhere) is None


def test_the_figure_shows_lengths_and_beads_with_their_intervals(make):
    figure = valid(level_set_figure(make.level_set()))
    short, raw, beads = figure.data
    assert list(short.x) == [0.4, 0.2]
    assert list(short.y) == [1.0, 1.2]
    assert list(short.error_y.array) == pytest.approx([0.02, 0.02])
    assert list(raw.y) == pytest.approx([1.05, 1.26])
    assert beads.yaxis == "y2"
    assert figure.layout.xaxis.title.text.startswith("level")
    assert figure.layout.yaxis.title.text == "length / distance"


def test_the_page_has_the_sections_and_escapes_their_text(make):
    record = make.realistic()
    page = render(record)
    assert page.count("<h2>Saddles</h2>") == page.count("<h2>Level sets</h2>") == 1
    assert "What are the tops of the paths?" in page
    assert "search 2" in page
    evil = make.survey(
        [make.minimum("m0"), make.minimum("m1")],
        saddles=(make.saddle("m0", "m1", 0.3, reason="<script>alert(1)</script>"),),
    )
    assert "<script>alert(1)" not in render(evil)
    bare = render(make.survey([make.minimum("m0")]))
    assert "Saddles" not in bare
    assert "Level sets" not in bare
