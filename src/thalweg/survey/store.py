"""The survey's folder: a database of results, array files, and one writer at a time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path as FilePath
from typing import Any, Self

from sqlalchemy import Engine, NullPool, create_engine, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session
from torch import Tensor

from thalweg.estimate import Cost, Estimate
from thalweg.survey import schema
from thalweg.survey.arrays import checksum_of, read_arrays, write_arrays
from thalweg.survey.errors import SurveyError, is_disk_full
from thalweg.survey.lock import WriterLock
from thalweg.survey.migration import upgrade, upgraded_copy
from thalweg.survey.outcomes import Connected, Found, Levelled, Measured, Outcome, Refined
from thalweg.survey.records import (
    FailureRecord,
    LevelSetRecord,
    MinimumRecord,
    PathRecord,
    SaddleRecord,
)
from thalweg.survey.rows import (
    level_set_record,
    minimum_record,
    path_record,
    plain,
    saddle_record,
    value,
)

__all__ = ["AttemptInfo", "HeaderInfo", "Store"]

_DATABASE = "survey.sqlite"
_OURS = (_DATABASE, "arrays", "writer.lock", "writer.txt")


@dataclass(frozen=True, slots=True)
class HeaderInfo:
    """What is surveyed and how, as stored when the survey was created."""

    created: str
    config: dict[str, Any]
    identity: dict[str, Any]
    provenance: dict[str, Any]
    goal: int


@dataclass(frozen=True, slots=True)
class AttemptInfo:
    """One attempt at a job; `error` is None where it succeeded."""

    job: str
    kind: str
    error: str | None
    started: str
    seconds: float
    cost: Cost


class Store:
    """A survey on disk.

    A result is its array file first, written atomically, and then its rows in one
    transaction: a process killed at any moment leaves a whole survey that lacks at most
    the job it was at.

    Args:
        folder: The survey's folder.
        writer: The lock that its only writer holds; None to read.

    Raises:
        SurveyError: If there is no survey, or its database cannot be read by this version.
    """

    def __init__(self, folder: FilePath, writer: WriterLock | None = None) -> None:
        if not (folder / _DATABASE).is_file():
            raise SurveyError(
                f"there is no survey in {folder}",
                "check the path, or create one with Survey.open(folder, landscape)",
            )
        self.folder = folder
        self._writer = writer
        self._engine = _engine(folder / _DATABASE, writing=writer is not None)
        try:
            self._check_version()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: FilePath) -> Self:
        """Open an existing survey as its only writer."""
        if not exists(folder):
            return cls(folder)
        lock = WriterLock(folder)
        try:
            return cls(folder, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def create(cls, folder: FilePath, header: HeaderInfo) -> Self:
        """Create a survey in a folder that does not exist or is empty, and open it.

        The database is made under another name and renamed, so that a crash leaves no
        half of one.
        """
        _check_empty(folder)
        with _full_disk_explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(folder)
            try:
                if not exists(folder):
                    _create_database(folder / _DATABASE, header)
                return cls(folder, lock)
            except BaseException:
                lock.release()
                raise

    def close(self) -> None:
        """Let go of the database and of the lock; harmless when done twice."""
        self._engine.dispose()
        if self._writer is not None:
            self._writer.release()

    @property
    def writable(self) -> bool:
        """Whether this object is the survey's writer."""
        return self._writer is not None

    def header(self) -> HeaderInfo:
        """Return what is surveyed and how."""
        with self._session() as session:
            row = session.execute(select(schema.Header)).scalar_one()
            return HeaderInfo(row.created, row.config, row.identity, row.provenance, row.goal)

    def update_header(self, *, goal: int, provenance: dict[str, Any]) -> None:
        """Set how many minima are wanted, and with what the survey was continued."""
        with self._session() as session:
            row = session.execute(select(schema.Header)).scalar_one()
            row.goal, row.provenance = goal, provenance

    def ship(self, minimum: str, shipped: Estimate) -> None:
        """Set the loss of a minimum as it was shipped, and count what that took."""
        with self._session() as session:
            row = session.execute(select(schema.Minimum).where(schema.Minimum.id == minimum))
            one = row.scalar_one()
            one.shipped, one.cost = plain(shipped), plain(value(Cost, one.cost) + shipped.cost)

    def attempts(self) -> list[AttemptInfo]:
        """Return every attempt at every job, in the order they ended."""
        with self._session() as session:
            rows = session.scalars(select(schema.Attempt).order_by(schema.Attempt.id))
            return [
                AttemptInfo(
                    row.job, row.kind, row.error, row.started, row.seconds, value(Cost, row.cost)
                )
                for row in rows
            ]

    def failures(self) -> tuple[FailureRecord, ...]:
        """Return every failed attempt, those that a later one made good included."""
        return tuple(
            FailureRecord(attempt.job, attempt.error, attempt.started)
            for attempt in self.attempts()
            if attempt.error is not None
        )

    def save_failure(self, attempt: AttemptInfo) -> None:
        """Record that a job failed."""
        with self._session() as session:
            session.add(_attempt_row(attempt))

    def save(self, attempt: AttemptInfo, outcome: Outcome) -> None:
        """Record what a job found: its arrays, then its rows at a stroke."""
        table, file, tensors = _place(outcome)
        with _full_disk_explained(self.folder):
            bare = {"file": None, "checksum": None} if hasattr(table, "file") else {}
            kept: dict[str, str | None] = {**bare}
            if tensors:
                checksum = write_arrays(self.folder / "arrays" / file, tensors)
                kept = {"file": file, "checksum": checksum}
        values = {
            f.name: plain(getattr(outcome, f.name))
            for f in fields(outcome)
            if f.name not in ("theta", "vectors", "points")
        }
        if isinstance(outcome, Measured):
            values["minimum"] = values.pop("id")
        with self._session() as session:
            session.add(table(**values, **kept, seconds=attempt.seconds))
            session.add(_attempt_row(attempt))

    def minima(self) -> tuple[MinimumRecord, ...]:
        """Return the minima in the order of their numbers."""
        with self._session() as session:
            measures = {row.minimum: row for row in session.scalars(select(schema.Measures))}
            rows = session.scalars(select(schema.Minimum).order_by(schema.Minimum.position))
            return tuple(minimum_record(row, measures.get(row.id)) for row in rows)

    def paths(self) -> tuple[PathRecord, ...]:
        """Return the paths, ordered by the numbers of their ends."""
        with self._session() as session:
            order = {row.id: row.position for row in session.scalars(select(schema.Minimum))}
            records = [path_record(row) for row in session.scalars(select(schema.Path))]
        return tuple(sorted(records, key=lambda path: (order[path.a], order[path.b], path.repeat)))

    def saddles(self) -> tuple[SaddleRecord, ...]:
        """Return the saddles, in the order in which they were found."""
        with self._session() as session:
            return tuple(map(saddle_record, session.scalars(select(schema.Saddle))))

    def level_sets(self) -> tuple[LevelSetRecord, ...]:
        """Return the level sets, in the order in which they were measured."""
        with self._session() as session:
            return tuple(map(level_set_record, session.scalars(select(schema.LevelSet))))

    def find(self, theta: Tensor) -> str | None:
        """Return the id of the minimum that is this very vector, if there is one."""
        checksum = checksum_of({"theta": theta})
        with self._session() as session:
            return session.scalar(
                select(schema.Minimum.id).where(schema.Minimum.checksum == checksum)
            )

    def theta(self, minimum: str) -> Tensor:
        """Return the `(dim,)` coordinates of a minimum."""
        with self._session() as session:
            row = session.get(schema.Minimum, minimum)
            known = list(session.scalars(select(schema.Minimum.id)))
            if row is None:
                raise KeyError(f"no minimum {minimum!r}; there are: {', '.join(known) or 'none'}")
            file, checksum = row.file, row.checksum
        return read_arrays(self.folder / "arrays" / file, checksum)["theta"]

    def points(self, a: str, b: str, repeat: int = 0) -> Tensor:
        """Return the `(points, dim)` coordinates of the path between two minima."""
        with self._session() as session:
            row = session.get(schema.Path, (a, b, repeat))
            if row is None:
                again = f" of repeat {repeat}" if repeat else ""
                raise KeyError(f"no path{again} between {a!r} and {b!r}")
            file, checksum = row.file, row.checksum
        return read_arrays(self.folder / "arrays" / file, checksum)["points"]

    def saddle(self, a: str, b: str) -> Tensor:
        """Return the `(dim,)` coordinates of what the path's highest point refined to."""
        with self._session() as session:
            row = session.get(schema.Saddle, (a, b))
            if row is None:
                raise KeyError(f"no saddle between {a!r} and {b!r}")
            file, checksum = row.file, row.checksum
        return read_arrays(self.folder / "arrays" / file, checksum)["theta"]

    def eigenvectors(self, minimum: str) -> Tensor:
        """Return the `(k, dim)` leading Hessian eigenvectors at a minimum."""
        with self._session() as session:
            row = session.get(schema.Measures, minimum)
            if row is None or row.file is None or row.checksum is None:
                raise KeyError(f"no eigenvectors at {minimum!r}")
            file, checksum = row.file, row.checksum
        return read_arrays(self.folder / "arrays" / file, checksum)["vectors"]

    def _check_version(self) -> None:
        with self._session() as session:
            version = int(session.execute(text("PRAGMA user_version")).scalar_one())
        if version > schema.SCHEMA:
            raise SurveyError(
                f"{self.folder} was written by a newer thalweg (layout {version}; this one "
                f"knows up to {schema.SCHEMA})",
                "update: pip install --upgrade thalweg",
            )
        if version < 1:
            raise SurveyError(
                f"{self.folder / _DATABASE} is a database, but not a survey's",
                "check the path, or survey into a new folder",
            )

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """One transaction; what the database cannot do is said in a sentence."""
        with (
            _full_disk_explained(self.folder),
            Session(self._engine) as session,
            session.begin(),
        ):
            yield session


def exists(folder: FilePath) -> bool:
    """Say whether a folder holds a survey."""
    return (folder / _DATABASE).is_file()


def _engine(path: FilePath, *, writing: bool) -> Engine:
    """Open a SQLite file that exists; opening for writing is what heals it after a crash.

    An older layout is brought up to this one in place by the survey's writer, and in a
    copy in memory by a reader.
    """
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"

    def connect() -> sqlite3.Connection:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True)
        try:
            if not writing:
                return upgraded_copy(database)
            upgrade(database)
        except BaseException:
            database.close()
            raise
        return database

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def _create_database(path: FilePath, header: HeaderInfo) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{temporary}", poolclass=NullPool)
    try:
        schema.Base.metadata.create_all(engine)
        with Session(engine) as session, session.begin():
            session.add(schema.Header(id=1, **asdict(header)))
            session.execute(text(f"PRAGMA user_version = {schema.SCHEMA}"))
        engine.dispose()
        os.replace(temporary, path)
    finally:
        engine.dispose()
        temporary.unlink(missing_ok=True)


def _check_empty(folder: FilePath) -> None:
    if folder.exists() and not folder.is_dir():
        raise SurveyError(f"{folder} is a file", "give the path of a folder for the survey")
    others = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    others = sorted(n for n in others if n not in _OURS and not n.endswith((".tmp", "-journal")))
    if others:
        raise SurveyError(
            f"{folder} holds other files ({', '.join(others[:3])}) and no survey",
            "give a new folder",
        )


@contextmanager
def _full_disk_explained(folder: FilePath) -> Iterator[None]:
    try:
        yield
    except (OSError, DatabaseError) as error:
        if is_disk_full(error):
            raise SurveyError(
                f"the disk that holds {folder} is full; every job that had ended is kept",
                "free some space and run the same again: it goes on where it stopped",
            ) from error
        if isinstance(error, DatabaseError):
            raise SurveyError(
                f"the database {folder / _DATABASE} cannot be used: {error.orig}",
                "restore it from a copy, or survey into a new folder",
            ) from error
        raise


def _place(outcome: Outcome) -> tuple[type[schema.Base], str, dict[str, Tensor]]:
    """Return the table, the file's name and the arrays of an outcome."""
    match outcome:
        case Found():
            return schema.Minimum, f"{outcome.id}.theta.safetensors", {"theta": outcome.theta}
        case Measured():
            vectors = {} if outcome.vectors is None else {"vectors": outcome.vectors}
            return schema.Measures, f"{outcome.id}.vectors.safetensors", vectors
        case Connected():
            again = f".{outcome.repeat}" if outcome.repeat else ""
            name = f"{outcome.a}-{outcome.b}{again}.path.safetensors"
            return schema.Path, name, {"points": outcome.points}
        case Refined():
            name = f"{outcome.a}-{outcome.b}.saddle.safetensors"
            return schema.Saddle, name, {"theta": outcome.theta}
        case Levelled():
            return schema.LevelSet, "", {}


def _attempt_row(attempt: AttemptInfo) -> schema.Attempt:
    return schema.Attempt(**{f.name: plain(getattr(attempt, f.name)) for f in fields(attempt)})
