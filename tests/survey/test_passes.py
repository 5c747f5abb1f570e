"""A closer look at the passes of a survey's tree: repeats, saddles, level sets."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from thalweg.estimate import Bound
from thalweg.landscape import FunctionLandscape
from thalweg.optim import minimise
from thalweg.survey import Survey
from thalweg.survey.trees import divides, trees
from thalweg.zoo import venturi_valley

sys.path.insert(0, str(Path(__file__).parent))
import surfaces
from surfaces import CONFIG, timeless


def test_passes_are_searched_for_again_refined_and_looked_below(tmp_path: Path) -> None:
    """Four wells on a square: the lowest passes lie on its sides, not in its centre."""
    config = dataclasses.replace(CONFIG, **surfaces.CLOSER)
    starts = [torch.tensor(x, dtype=torch.float64) for x in ([1.0, 1], [1, -1.0], [-1.0, 1])]
    land = surfaces.function()
    with Survey.open(tmp_path / "a", land, config, label="wells") as survey:
        for start in starts:
            survey.add(minimise(land, start, tol=1e-9).theta)
        assert survey.run(minima=0, progress=False).complete
        record = survey.record()
        assert len(record.paths) + len(record.further) <= 3 * 3
        assert record.best_known is not None
        assert record.best_known.confirmed
        assert len(record.saddles) == len(record.tree.merges) == 2
        for found in record.saddles:
            assert found.answer == "yes"
            assert (found.index.lower, found.index.upper) == (1, 1)
            theta = survey.saddle(found.a, found.b)
            assert float(land.gradient(theta).norm()) < 1e-6
            path = next(p for p in record.paths if (p.a, p.b) == (found.a, found.b))
            assert found.loss == pytest.approx(path.maximum.upper, rel=1e-3)
        (levels,) = record.level_sets
        assert [row.yes for row in levels.rows] == [2, 2, 2]
        assert [row.level for row in levels.rows] == sorted(
            (row.level for row in levels.rows), reverse=True
        )
        assert all(row.shortened.value >= 1 for row in levels.rows)
        # no minimum was drawn at random, so nothing is said of other seeds
        assert record.basins is None
        page = survey.report(tmp_path / "a.html").read_text("utf-8")
    for said in (
        "Saddles",
        "Level sets",
        "What stands behind each merge",
        'data-figure="levels-0"',
    ):
        assert said in page
    again = timeless(record)
    with Survey.read(tmp_path / "a") as survey:
        assert timeless(survey.record()) == again


def test_a_level_set_without_a_climb_is_said_to_be_one(tmp_path: Path) -> None:
    bowl = FunctionLandscape(lambda x: (x**2).sum(), dim=2)
    config = dataclasses.replace(CONFIG, minima=0, levels=2)
    with Survey.open(tmp_path / "a", bowl, config) as survey:
        for x in ([0.0, 0.0], [1e-3, 0.0]):
            survey.add(torch.tensor(x, dtype=torch.float64))
        assert survey.run(progress=False).complete
        (levels,) = survey.record().level_sets
        assert levels.rows == ()
        page = survey.report(tmp_path / "a.html").read_text("utf-8")
    assert "the straight line climbs nowhere" in page


def test_a_wall_that_the_landscape_knows_raises_the_certified_tree(tmp_path: Path) -> None:
    """Venturi et al.'s valleys at losses 2 and 1/2: every path between them climbs to 5/2."""
    land = venturi_valley()
    with Survey.open(tmp_path / "v", land, CONFIG, label="valley") as survey:
        a, b = (survey.add(end) for end in land.ends())
        assert survey.run(minima=0, progress=False).complete
    with Survey.read(tmp_path / "v") as survey:  # the proof is kept, the landscape is not
        record = survey.record()
    (divide,) = record.certified.divides
    assert (divide.a, divide.b, divide.height, divide.kind) == (a, b, 2.5, "exact")
    assert divide.reason == "it crosses u = 0, where the network is 0"
    assert record.certified.height_of_merge(a, b) == Bound(2.5, float("inf"), "exact", "exact")

    def certified(top: float, **rest: object) -> object:
        (path,) = record.paths
        height = Bound(2.2, top, "estimated", "certified")
        return trees(record.minima, [dataclasses.replace(path, maximum=height, **rest)], 0)[2]

    (merge,) = certified(2.75).tree.merges
    assert (merge.height.lower, merge.height.upper) == (2.5, 2.75)
    assert "1 of 1 merges are proven" in str(certified(2.75))
    (merge,) = certified(2.5 - 1e-7).tree.merges  # the same height, in single precision
    assert merge.height.lower == merge.height.upper == 2.5 - 1e-7
    with pytest.raises(ValueError, match=r"2\.5 contradicts a certified pass at 2\.25"):
        certified(2.25)
    guess = Bound(0.5, 0.75, "estimated", "certified")
    assert certified(2.75, barrier=guess).height_of_merge(a, b).lower == 2.0
    assert divides([dataclasses.replace(record.paths[0], barrier=guess)]) == []
    again = dataclasses.replace(
        record.paths[0], repeat=1, barrier=Bound(0.25, 0.75, "certified", "certified")
    )
    assert [each.height for each in divides([again, *record.paths, again])] == [2.5]
