"""What can go wrong with a survey, said in one sentence and a remedy."""

from __future__ import annotations

import errno
import sqlite3

__all__ = ["Interrupted", "SurveyError", "is_disk_full"]


class SurveyError(RuntimeError):
    """A survey cannot go on: what is wrong, and what to do about it.

    Args:
        problem: One sentence without a full stop: what is wrong.
        hint: What to do about it.

    Example:
        >>> print(SurveyError("my.survey is open in another process", "wait for it to end"))
        my.survey is open in another process; wait for it to end
    """

    def __init__(self, problem: str, hint: str) -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem}; {hint}")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C reached a survey between two of its writes: nothing is lost.

    It is a ``KeyboardInterrupt``, so that ``except Exception`` does not swallow it.
    """


def is_disk_full(error: BaseException | None) -> bool:
    """Say whether `error`, or what caused it, is a full disk or an exhausted quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
