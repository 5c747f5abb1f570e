"""The tables of a survey's database, and the version of their layout.

Rows never leave the store: it turns them into the frozen values of `records`.
"""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import JSON, BigInteger, Dialect, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

__all__ = [
    "SCHEMA",
    "Attempt",
    "Base",
    "Header",
    "LevelSet",
    "Measures",
    "Minimum",
    "Path",
    "Saddle",
]

SCHEMA = 6
"""Layout version, kept in the database's ``PRAGMA user_version``."""


class Number(UserDefinedType[float]):
    """A float that may be NaN, which SQLite would otherwise store as NULL."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the column's type, in SQLite and in PostgreSQL."""
        return "DOUBLE PRECISION"

    def bind_processor(self, dialect: Dialect) -> Any:
        """Write NaN as a word where the database has no NaN."""
        if dialect.name != "sqlite":
            return None
        return lambda value: "nan" if value is not None and math.isnan(value) else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Read the word back."""
        return lambda value: None if value is None else float(value)


class Document(TypeDecorator[Any]):
    """A JSON value whose non-finite floats survive in strict JSON, as tagged words."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Tag what strict JSON cannot say."""
        return _tagged(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Take the tags off."""
        return _untagged(value)


def _tagged(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, dict):
        return {key: _tagged(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(item) for item in value]
    return value


def _untagged(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"float"}:
            return float(value["float"])
        return {key: _untagged(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_untagged(item) for item in value]
    return value


class Base(DeclarativeBase):
    """The tables' common parent."""

    type_annotation_map = {float: Number, dict[str, Any]: Document, list[Any]: Document}  # noqa: RUF012 (SQLAlchemy's own form)


class Header(Base):
    """The one row that says what is surveyed, and how."""

    __tablename__ = "survey"
    id: Mapped[int] = mapped_column(primary_key=True)
    created: Mapped[str]
    config: Mapped[dict[str, Any]]
    identity: Mapped[dict[str, Any]]
    provenance: Mapped[dict[str, Any]]
    goal: Mapped[int]


class Attempt(Base):
    """One attempt at one job; a failed one stays for good."""

    __tablename__ = "attempts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(String, index=True)
    kind: Mapped[str]
    error: Mapped[str | None]
    started: Mapped[str]
    seconds: Mapped[float]
    cost: Mapped[dict[str, Any]]


class Minimum(Base):
    """A minimum; its coordinates are in an array file."""

    __tablename__ = "minima"
    id: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(unique=True)
    origin: Mapped[str]
    seed: Mapped[int | None] = mapped_column(BigInteger)
    loss: Mapped[float]
    gradient_norm: Mapped[float]
    converged: Mapped[bool]
    norm: Mapped[float]
    cost: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    file: Mapped[str]
    checksum: Mapped[str]
    shipped: Mapped[dict[str, Any] | None] = mapped_column(Document)


class Measures(Base):
    """The measures of a minimum; its eigenvectors are in an array file."""

    __tablename__ = "measures"
    minimum: Mapped[str] = mapped_column(primary_key=True)
    sampling: Mapped[dict[str, Any] | None] = mapped_column(Document)
    metrics: Mapped[dict[str, Any]]
    held_out: Mapped[dict[str, Any]]
    eigenvalues: Mapped[dict[str, Any] | None] = mapped_column(Document)
    trace: Mapped[dict[str, Any] | None] = mapped_column(Document)
    cost: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    file: Mapped[str | None]
    checksum: Mapped[str | None]
    spectrum: Mapped[dict[str, Any] | None] = mapped_column(Document)
    layers: Mapped[list[Any] | None] = mapped_column(Document)


class Path(Base):
    """A path between two minima, one for each search; its points are in an array file."""

    __tablename__ = "paths"
    a: Mapped[str] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column(primary_key=True)
    repeat: Mapped[int] = mapped_column(primary_key=True)
    method: Mapped[str]
    times: Mapped[list[Any]]
    losses: Mapped[list[Any]]
    line_times: Mapped[list[Any]]
    line_losses: Mapped[list[Any]]
    maximum: Mapped[dict[str, Any]]
    barrier: Mapped[dict[str, Any]]
    line_maximum: Mapped[dict[str, Any]]
    normalised_length: Mapped[float]
    converged: Mapped[bool]
    cost: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    file: Mapped[str]
    checksum: Mapped[str]
    length: Mapped[float | None]
    definitions: Mapped[list[Any] | None] = mapped_column(Document)
    held_out: Mapped[list[Any] | None] = mapped_column(Document)
    balanced: Mapped[dict[str, Any] | None] = mapped_column(Document)
    note: Mapped[str | None]
    line_definitions: Mapped[list[Any] | None] = mapped_column(Document)


class Saddle(Base):
    """What the highest point of the path between two minima refines to."""

    __tablename__ = "saddles"
    a: Mapped[str] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column(primary_key=True)
    answer: Mapped[str]
    reason: Mapped[str]
    top: Mapped[dict[str, Any]]
    loss: Mapped[float]
    gradient_norm: Mapped[float]
    value: Mapped[dict[str, Any] | None] = mapped_column(Document)
    index: Mapped[dict[str, Any]]
    zero: Mapped[dict[str, Any]]
    flat: Mapped[float]
    lowest: Mapped[dict[str, Any]]
    flatness: Mapped[float]
    distance: Mapped[float]
    cost: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    file: Mapped[str]
    checksum: Mapped[str]


class LevelSet(Base):
    """Lengths and beads of paths between two minima below several levels."""

    __tablename__ = "level_sets"
    a: Mapped[str] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column(primary_key=True)
    rows: Mapped[list[Any]]
    method: Mapped[str]
    cost: Mapped[dict[str, Any]]
    seconds: Mapped[float]
