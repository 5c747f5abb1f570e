"""Older layouts of a survey's database, brought up to this version's."""

from __future__ import annotations

import sqlite3

from thalweg.survey.schema import SCHEMA

__all__ = ["upgrade", "upgraded_copy"]

_STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE measures ADD COLUMN spectrum JSON",
        "ALTER TABLE measures ADD COLUMN layers JSON",
    ),
}
"""What turns each layout into the next."""


def upgrade(database: sqlite3.Connection) -> None:
    """Bring a database up to this version's layout, whole or not at all.

    One that is newer, or that is no survey's, is left as it is.

    Args:
        database: A connection that may write and is in no transaction.

    Raises:
        sqlite3.Error: If it cannot be written; it is then as it was.
    """
    if not _outdated(database):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        for version in range(_version(database), SCHEMA):
            for statement in _STEPS[version]:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA}")
        database.commit()
    except BaseException:
        database.rollback()
        raise


def upgraded_copy(database: sqlite3.Connection) -> sqlite3.Connection:
    """Return the database in this version's layout, for who may not write it.

    Args:
        database: A connection; closed where a copy replaces it.

    Returns:
        The connection itself if its layout is this version's, else one to a copy in memory.
    """
    if not _outdated(database):
        return database
    copy = sqlite3.connect(":memory:")
    try:
        database.backup(copy)
        upgrade(copy)
    except BaseException:
        copy.close()
        raise
    finally:
        database.close()
    return copy


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _outdated(database: sqlite3.Connection) -> bool:
    return 1 <= _version(database) < SCHEMA
