"""A closer look at the passes of a survey's tree: repeats, saddles, level sets."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from thalweg.landscape import FunctionLandscape
from thalweg.optim import minimise
from thalweg.survey import Survey

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
