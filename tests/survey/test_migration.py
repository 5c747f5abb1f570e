"""Surveys that an older version wrote: read as they are, and continued in the new layout."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

from thalweg.survey import Survey, SurveyConfig, SurveyError, SurveyRecord
from thalweg.survey.migration import upgrade, upgraded_copy
from thalweg.survey.schema import SCHEMA

sys.path.insert(0, str(Path(__file__).parent))
import surfaces

VERSION_1 = Path(__file__).parent / "data" / "version1"
"""A survey of the four wells with two minima of a goal of two, as version 1 wrote it."""


VERSION_4 = Path(__file__).parent / "data" / "version4"
"""A survey of `surfaces.network` with held-out data and two minima, as layout 4 had it."""

OLD = dataclasses.replace(surfaces.CONFIG, searches_per_minimum=1, path_method="string", places=0)
"""How it was made, in the words of this version: what later versions added is left out."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder of layout 1."""
    folder = restored(VERSION_1, tmp_path / "wells.survey")
    assert layout(folder) == 1
    return folder


def restored(source: Path, folder: Path) -> Path:
    """Make a survey's folder of its text and its arrays."""
    shutil.copytree(source / "arrays", folder / "arrays")
    database = sqlite3.connect(folder / "survey.sqlite")
    database.executescript((source / "survey.sql").read_text("utf-8"))
    database.close()
    return folder


def layout(folder: Path) -> int:
    database = sqlite3.connect(folder / "survey.sqlite")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return version


def content(folder: Path) -> list[str]:
    database = sqlite3.connect(folder / "survey.sqlite")
    lines = list(database.iterdump())
    database.close()
    return lines


def check(record: SurveyRecord) -> None:
    """Hold the first two minima to what version 1 recorded."""
    first, second = record.minima[:2]
    assert (first.loss, second.loss) == (-0.050774615611857615, -0.1507726620861545)
    assert first.eigenvalues is not None
    assert first.eigenvalues.values == (8.29636270172938, 7.849047551861466)
    assert first.eigenvalues.upper == (8.296362701729413, 7.8490475518614975)
    assert first.trace is not None
    assert first.trace.value == 16.145410253590846
    assert [(m.spectrum, m.layers) for m in (first, second)] == [(None, ())] * 2
    assert record.failures[0].error == "ArithmeticError: no eigenvalues today"


def test_an_old_survey_is_read_and_left_as_it_was(old: Path) -> None:
    before = (old / "survey.sqlite").read_bytes()
    with Survey.read(old) as survey:
        check(survey.record())
        assert survey.status().complete
        assert survey.config == dataclasses.replace(OLD, minima=4)
        assert not survey.config.laws
        assert survey.theta("m01").shape == (2,)
        survey.report(old.parent / "old.html")
    assert (old / "survey.sqlite").read_bytes() == before


def test_an_old_survey_in_a_folder_that_cannot_be_written_is_read(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Survey.read(old) as survey:
        check(survey.record())
    assert layout(old) == 1


def test_an_old_survey_is_continued_in_the_new_layout(old: Path) -> None:
    with Survey.open(old, surfaces.function(), OLD, label="wells") as survey:
        assert layout(old) == SCHEMA
        check(survey.record())
        assert survey.run(minima=3, progress=False).complete
        record = survey.record()
        check(record)
        assert len(record.minima) == 3
        assert record.minima[2].spectrum is not None
    with Survey.read(old) as survey:
        assert repr(survey.record().minima) == repr(record.minima)


def test_the_new_layout_is_that_of_a_new_survey(old: Path, tmp_path: Path) -> None:
    """Column for column, in the same order: there is one layout, however it came to be."""
    Survey.open(old, surfaces.function(), label="wells").close()
    Survey.open(tmp_path / "new", surfaces.function(), SurveyConfig()).close()

    def columns(folder: Path) -> dict[str, list[tuple[str, str, int]]]:
        database = sqlite3.connect(folder / "survey.sqlite")
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        found = {
            table: [
                (name, kind, required)
                for _, name, kind, required, *_ in database.execute(f"PRAGMA table_info({table})")
            ]
            for (table,) in tables.fetchall()
        }
        database.close()
        return found

    assert columns(old) == columns(tmp_path / "new")


def test_an_upgrade_that_fails_leaves_the_old_layout(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old)
    with monkeypatch.context() as patch:
        steps = {1: ("ALTER TABLE measures ADD COLUMN spectrum JSON", "ALTER TABLE nothing")}
        patch.setattr("thalweg.survey.migration._STEPS", steps)
        with pytest.raises(SurveyError, match="cannot be used: near"):
            Survey.open(old, surfaces.function(), label="wells")
    assert content(old) == before
    assert layout(old) == 1
    Survey.open(old, surfaces.function(), label="wells").close()
    assert layout(old) == SCHEMA


def test_a_full_disk_during_the_upgrade_is_said(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {1: ("CREATE TABLE large AS SELECT zeroblob(1000000) AS x",)}
    connect = sqlite3.connect

    def limited(*arguments: object, **options: object) -> sqlite3.Connection:
        database = connect(*arguments, **options)  # type: ignore[call-overload]  # passed on
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages + 1}")
        return database

    with monkeypatch.context() as patch:
        patch.setattr("thalweg.survey.migration._STEPS", steps)
        patch.setattr("thalweg.survey.store.sqlite3.connect", limited)
        with pytest.raises(SurveyError, match="is full; every job that had ended is kept"):
            Survey.open(old, surfaces.function(), label="wells")
    assert layout(old) == 1


def test_what_is_up_to_date_or_foreign_is_not_touched() -> None:
    for version in (0, SCHEMA, SCHEMA + 1):
        database = sqlite3.connect(":memory:")
        database.execute(f"PRAGMA user_version = {version}")
        upgrade(database)
        assert upgraded_copy(database) is database
        assert database.execute("PRAGMA user_version").fetchone() == (version,)
        database.close()


def held_to_layout_4(record: SurveyRecord) -> None:
    """Hold the path between the first two minima to what layout 4 recorded of it."""
    path = next(path for path in record.paths if (path.a, path.b) == ("m00", "m01"))
    assert (path.maximum.lower, path.maximum.upper) == (0.29955786228953285, 0.2996770346954426)
    assert path.maximum.upper_kind == "certified"
    assert path.normalised_length == 1.1742556432084164
    assert (path.length, path.definitions, path.held_out) == (None, (), ())
    assert (path.balanced, path.note) == (None, "")


def test_a_survey_of_layout_4_is_read_and_as_complete_as_it_was(tmp_path: Path) -> None:
    folder = restored(VERSION_4, tmp_path / "net.survey")
    assert layout(folder) == 4
    with Survey.read(folder) as survey:
        held_to_layout_4(survey.record())
        assert survey.status().complete
        assert survey.config.places == 0
        page = survey.report(tmp_path / "net.html").read_text("utf-8")
    assert "Loss along the paths" in page
    for absent in ("Barriers by their", "on held-out data</li>", "Gauge:"):
        assert absent not in page
    assert layout(folder) == 4


@pytest.mark.slow
def test_a_survey_of_layout_4_goes_on_at_its_old_cost(tmp_path: Path) -> None:
    """What is free is measured for new paths; what takes evaluations is not."""
    folder = restored(VERSION_4, tmp_path / "net.survey")
    land, held_out = surfaces.network(), surfaces.network(seed=1)
    with Survey.open(folder, land, held_out=held_out) as survey:
        assert survey.run(minima=3, progress=False).complete
        record = survey.record()
    held_to_layout_4(record)
    new = [path for path in record.paths if "m02" in (path.a, path.b)]
    assert new
    for path in new:
        assert path.length is not None
        assert [each.name for each in path.definitions] == [
            "above_ends",
            "above_mean",
            "above_chord",
        ]
        assert path.held_out == ()
    with Survey.read(folder) as survey:
        page = survey.report(tmp_path / "net.html").read_text("utf-8")
    assert "Barriers by their published definitions" in page
