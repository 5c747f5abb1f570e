"""The store: what goes in comes out, and what cannot be trusted is refused."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thalweg.estimate import Bound, Cost, Estimate
from thalweg.survey import (
    DensityRecord,
    EigenRecord,
    LayerRecord,
    SpectrumRecord,
    SurveyError,
    arrays,
)
from thalweg.survey.lock import WriterLock
from thalweg.survey.outcomes import Connected, Found, Measured
from thalweg.survey.store import AttemptInfo, HeaderInfo, Store

HEADER = HeaderInfo(
    created="2026-01-01T00:00:00+00:00",
    config={"minima": 2},
    identity={"landscape": {"dim": 3, "probe": math.nan}, "held_out": None},
    provenance={"software": [{"torch": "2"}]},
    goal=2,
)
THETA = torch.tensor([1.0, 2.0, 1 / 3], dtype=torch.float64)


def attempt(job: str, error: str | None = None) -> AttemptInfo:
    return AttemptInfo(job, job.partition("/")[0], error, "2026-01-01", 0.5, Cost(losses=1))


def found(number: int = 0, **changes: object) -> Found:
    values = {
        "id": f"m{number:02d}", "position": number, "origin": "trained", "seed": 2**47 + number,
        "loss": 0.1 + 1e-17 * number, "gradient_norm": math.nan, "converged": False,
        "norm": math.inf, "theta": THETA + number, "cost": Cost(gradients=7, passes=1.5),
    }  # fmt: skip
    return Found(**{**values, **changes})  # type: ignore[arg-type]  # a shorthand for tests


def measured() -> Measured:
    estimate = Estimate(math.nan, 0.1, (-math.inf, math.inf), 3, Cost(hvps=3), seed=5)
    return Measured(
        id="m00", sampling=None, metrics={"accuracy": estimate}, held_out={"loss": estimate},
        eigenvalues=EigenRecord((2.0, math.nan), (0.0, 0.1), (2.0, 0.5), (2.0, 1.5), (True, False)),
        trace=estimate, vectors=torch.eye(3)[:, :2], cost=Cost(hvps=9), spectrum=spectrum(),
        layers=(
            LayerRecord("fc [1]", 2, estimate, Bound(1.0, math.inf, "certified", "estimated")),
            LayerRecord("head", 1, Estimate(1.0, 0.0, (1.0, 1.0), 1), Bound.exactly(1.0)),
        ),
    )  # fmt: skip


def spectrum() -> SpectrumRecord:
    number = Estimate(1 / 3, math.nan, (-math.inf, 0.5), 8, Cost(hvps=3), method="SLQ", seed=5)
    few = EigenRecord((2.0,), (0.1,), (1.9,), (2.1,), (True,))
    density = DensityRecord(
        grid=(-1.0, 0.0, 1 / 3), values=(0.0, math.nan, 1e-300), lower=(0.0, 0.0, 0.0),
        upper=(0.5, math.inf, 1.0), level=0.9, broadening=1e-3, outliers=few,
    )  # fmt: skip
    return SpectrumRecord(
        density=density, lowest=Bound(-1.0, -0.5, "estimated", "certified"), tau=1e-6,
        negative=number, zero=number, positive=number, certified=(1, 2),
        shift=1e-4, log_determinant=number, effective_dimension=number, frobenius_norm=number,
    )  # fmt: skip


def connected() -> Connected:
    bound = Bound(0.0, 1.5, "certified", "estimated", Cost(losses=2), "line")
    return Connected(
        a="m00", b="m01", method="string", times=(0.0, 0.1, 1.0), losses=(0.1, math.nan, 1 / 3),
        line_times=(0.0, 1.0), line_losses=(0.1, math.inf), maximum=bound,
        barrier=bound, line_maximum=Bound(math.nan, math.nan, "exact", "exact"),
        normalised_length=1.25, converged=True, points=torch.ones(3, 3), cost=Cost(gradients=4),
    )  # fmt: skip


def test_everything_survives_closing_and_opening(tmp_path: Path) -> None:
    folder = tmp_path / "a.survey"
    store = Store.create(folder, HEADER)
    store.save(attempt("minimum/seed=1"), found(1))
    store.save(attempt("minimum/seed=0"), found(0))
    store.save(attempt("characterise/m00"), measured())
    store.save(attempt("connect/m00-m01"), connected())
    store.save_failure(attempt("characterise/m01", "ValueError: no"))
    store.close()
    store = Store(folder)
    first, second = store.minima()
    assert (first.id, second.id) == ("m00", "m01")
    assert (first.seed, first.loss, second.seed) == (2**47, 0.1, 2**47 + 1)
    assert math.isnan(first.gradient_norm)
    assert first.norm == math.inf
    assert first.cost == Cost(gradients=7, hvps=9, passes=1.5)
    assert first.seconds == 1.0
    assert repr(first.metrics) == repr(measured().metrics)
    assert repr(first.held_out) == repr(measured().held_out)
    assert repr(first.eigenvalues) == repr(measured().eigenvalues)
    assert repr(first.trace) == repr(measured().trace)
    assert repr(first.spectrum) == repr(spectrum())
    assert repr(first.layers) == repr(measured().layers)
    assert second.eigenvalues is None
    assert second.spectrum is None
    assert second.layers == ()
    assert second.trace is None
    assert second.metrics == {}
    (path,) = store.paths()
    for name in ("times", "losses", "line_losses", "maximum", "line_maximum", "method"):
        assert repr(getattr(path, name)) == repr(getattr(connected(), name))
    assert torch.equal(store.theta("m01"), THETA + 1)
    assert torch.equal(store.eigenvectors("m00"), torch.eye(3)[:, :2])
    assert torch.equal(store.points("m00", "m01"), torch.ones(3, 3))
    assert repr(store.header()) == repr(HEADER)
    (failure,) = store.failures()
    assert (failure.job, failure.error, failure.when) == (
        "characterise/m01", "ValueError: no", "2026-01-01",
    )  # fmt: skip
    assert len(store.attempts()) == 5
    assert store.find(THETA + 1) == "m01"
    assert store.find(THETA - 1) is None


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a", HEADER)
    store.save(attempt("minimum/seed=0"), found())
    with pytest.raises(KeyError, match="no minimum 'm07'; there are: m00"):
        store.theta("m07")
    with pytest.raises(KeyError, match="no path between 'm00' and 'm07'"):
        store.points("m00", "m07")
    with pytest.raises(KeyError, match="no eigenvectors at 'm00'"):
        store.eigenvectors("m00")
    store.close()


def test_no_survey_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match=r"there is no survey in .*; check the path"):
        Store(tmp_path / "none")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(SurveyError, match=r"holds other files \(thesis.tex\) and no survey"):
        Store.create(tmp_path, HEADER)
    with pytest.raises(SurveyError, match="is a file"):
        Store.create(tmp_path / "thesis.tex", HEADER)


def test_a_crash_while_creating_leaves_a_folder_that_can_be_created_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            Store.create(folder, HEADER)
    store = Store.create(folder, HEADER)
    assert store.minima() == ()
    store.close()


def test_a_newer_layout_and_a_foreign_database_are_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "a", HEADER).close()
    database = tmp_path / "a" / "survey.sqlite"
    for version, message in ((99, "written by a newer thalweg .layout 99"), (0, "not a survey's")):
        with sqlite3.connect(database) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        with pytest.raises(SurveyError, match=message):
            Store.open(tmp_path / "a")
    database.write_bytes(b"not a database at all" * 100)
    with pytest.raises(SurveyError, match="cannot be used: file is not a database"):
        Store.open(tmp_path / "a")
    WriterLock(tmp_path / "a").release()


def test_a_missing_or_altered_array_file_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a", HEADER)
    store.save(attempt("minimum/seed=0"), found())
    file = tmp_path / "a" / "arrays" / "m00.theta.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SurveyError, match=r"m00\.theta\.safetensors is corrupt: its checksum"):
        store.theta("m00")
    file.unlink()
    with pytest.raises(SurveyError, match=r"m00\.theta\.safetensors is missing; restore"):
        store.theta("m00")
    store.close()


def test_a_file_that_was_never_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x" * 40)
    with pytest.raises(SurveyError, match="not readable"):
        arrays.read_arrays(path, arrays._checksum(b"x" * 40))


def _raise(error: BaseException):
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    store = Store.create(tmp_path / "a", HEADER)
    store.save(attempt("minimum/seed=0"), found(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _raise(OSError(code, os.strerror(code))))
        with pytest.raises(SurveyError, match="is full; every job that had ended is kept"):
            store.save(attempt("minimum/seed=1"), found(1))
    assert [m.id for m in store.minima()] == ["m00"]
    assert len(store.attempts()) == 1
    assert sorted(os.listdir(tmp_path / "a" / "arrays")) == ["m00.theta.safetensors"]
    store.save(attempt("minimum/seed=1"), found(1))
    assert [m.id for m in store.minima()] == ["m00", "m01"]
    store.close()


def test_a_database_that_cannot_grow_is_a_full_disk(tmp_path: Path) -> None:
    """SQLite's own limit on pages stands in for a disk: the error is the same."""
    store = Store.create(tmp_path / "a", HEADER)
    store.save(attempt("minimum/seed=0"), found(0))
    creator = store._engine.pool._creator  # type: ignore[attr-defined]  # the seam of the test

    def limited() -> sqlite3.Connection:
        connection = creator()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    store._engine.pool._creator = limited  # type: ignore[attr-defined]  # the same
    with pytest.raises(SurveyError, match="is full"):
        store.save_failure(attempt("connect/m00-m01", "x" * 100_000))
    store._engine.pool._creator = creator  # type: ignore[attr-defined]  # the same
    assert [m.id for m in store.minima()] == ["m00"]
    store.close()


def test_another_error_of_the_system_passes_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path / "a", HEADER)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _raise(PermissionError(errno.EACCES, "denied")))
        with pytest.raises(PermissionError, match="denied"):
            store.save(attempt("minimum/seed=0"), found())
    store.close()


def test_rows_and_attempt_are_one_transaction(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a", HEADER)
    store.save(attempt("minimum/seed=0"), found(0))
    with pytest.raises(SurveyError, match="cannot be used: UNIQUE constraint failed"):
        store.save(attempt("minimum/seed=0"), found(0))
    assert len(store.attempts()) == 1
    store.close()


def test_one_writer_at_a_time_and_readers_besides(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a", HEADER)
    with pytest.raises(SurveyError, match=rf"being written by process {os.getpid()} on "):
        Store.open(tmp_path / "a")
    reader = Store(tmp_path / "a")
    store.save(attempt("minimum/seed=0"), found())
    assert [m.id for m in reader.minima()] == ["m00"]
    store.close()
    store.close()
    Store.open(tmp_path / "a").close()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from thalweg.survey.lock import WriterLock\n"
        "lock = WriterLock(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SurveyError, match=f"being written by process {other.pid} on "):
            WriterLock(tmp_path)
        other.kill()
    WriterLock(tmp_path).release()


def test_a_folder_that_cannot_be_written_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path / "a", HEADER)
    store.save(attempt("minimum/seed=0"), found())
    store.close()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert [m.id for m in Store(tmp_path / "a").minima()] == ["m00"]
