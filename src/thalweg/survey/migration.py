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
    2: (
        # what was found stays complete: nothing that the older version did not plan is added
        "UPDATE survey SET config = json_set(json_remove(config, '$.all_pairs', "
        "'$.extra_pairs'), '$.searches_per_minimum', 1, '$.repeats', 1, "
        "'$.saddles', json('false'), '$.levels', 0)",
        "ALTER TABLE paths RENAME TO older_paths",
        "CREATE TABLE paths (a VARCHAR NOT NULL, b VARCHAR NOT NULL, repeat INTEGER NOT NULL, "
        "method VARCHAR NOT NULL, times JSON NOT NULL, losses JSON NOT NULL, "
        "line_times JSON NOT NULL, line_losses JSON NOT NULL, maximum JSON NOT NULL, "
        "barrier JSON NOT NULL, line_maximum JSON NOT NULL, "
        "normalised_length DOUBLE PRECISION NOT NULL, converged BOOLEAN NOT NULL, "
        "cost JSON NOT NULL, seconds DOUBLE PRECISION NOT NULL, file VARCHAR NOT NULL, "
        "checksum VARCHAR NOT NULL, PRIMARY KEY (a, b, repeat))",
        "INSERT INTO paths SELECT a, b, 0, method, times, losses, line_times, line_losses, "
        "maximum, barrier, line_maximum, normalised_length, converged, cost, seconds, file, "
        "checksum FROM older_paths",
        "DROP TABLE older_paths",
        "CREATE TABLE saddles (a VARCHAR NOT NULL, b VARCHAR NOT NULL, answer VARCHAR NOT NULL, "
        "reason VARCHAR NOT NULL, top JSON NOT NULL, loss DOUBLE PRECISION NOT NULL, "
        'gradient_norm DOUBLE PRECISION NOT NULL, value JSON, "index" JSON NOT NULL, '
        "zero JSON NOT NULL, flat DOUBLE PRECISION NOT NULL, lowest JSON NOT NULL, "
        "flatness DOUBLE PRECISION NOT NULL, distance DOUBLE PRECISION NOT NULL, "
        "cost JSON NOT NULL, seconds DOUBLE PRECISION NOT NULL, file VARCHAR NOT NULL, "
        "checksum VARCHAR NOT NULL, PRIMARY KEY (a, b))",
        'CREATE TABLE level_sets (a VARCHAR NOT NULL, b VARCHAR NOT NULL, "rows" JSON NOT NULL, '
        "method VARCHAR NOT NULL, cost JSON NOT NULL, seconds DOUBLE PRECISION NOT NULL, "
        "PRIMARY KEY (a, b))",
    ),
    3: (  # all paths were strings and no law was fitted, and the survey goes on so
        "UPDATE survey SET config = json_set(config, '$.path_method', 'string', "
        "'$.laws', json('false'))",
    ),
    4: (  # paths were measured on the data of the search alone, and the survey goes on so
        "ALTER TABLE paths ADD COLUMN length DOUBLE PRECISION",
        "ALTER TABLE paths ADD COLUMN definitions JSON",
        "ALTER TABLE paths ADD COLUMN held_out JSON",
        "ALTER TABLE paths ADD COLUMN balanced JSON",
        "ALTER TABLE paths ADD COLUMN note VARCHAR",
        "UPDATE survey SET config = json_set(config, '$.places', 0)",
    ),
    5: (
        "ALTER TABLE minima ADD COLUMN shipped JSON",
        "ALTER TABLE paths ADD COLUMN line_definitions JSON",
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
