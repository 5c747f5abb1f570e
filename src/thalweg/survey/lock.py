"""One writer at a time, by a lock that dies with its process."""

from __future__ import annotations

import os
import platform
import sqlite3
from pathlib import Path

from thalweg.survey.errors import SurveyError

__all__ = ["WriterLock"]


class WriterLock:
    """An exclusive lock on a survey's folder, held by the operating system.

    It is SQLite's own lock on an empty database, which works alike on Linux, macOS and
    Windows and vanishes with the process that holds it, so that nothing is left to clear
    up after ``kill -9``. The file beside it only tells a second writer who the first is.

    Args:
        folder: The survey's folder, which exists.

    Raises:
        SurveyError: If another process, or another object of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(
            folder / "writer.lock", timeout=0, isolation_level=None, check_same_thread=False
        )
        owner = folder / "writer.txt"
        try:
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._connection.close()
            if "locked" not in str(error):
                raise
            raise SurveyError(
                f"{folder} is being written by {_read(owner)}",
                "wait until that ends, stop it, or open the survey for reading: "
                "Survey.read(folder)",
            ) from None
        try:
            owner.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let the next writer in; harmless when done twice."""
        self._connection.close()


def _read(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"
