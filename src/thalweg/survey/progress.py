"""How far a survey is, and how long it may still take."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Progress", "in_words", "seconds_left"]


def seconds_left(todo: Sequence[str], history: Iterable[tuple[str, float]]) -> float | None:
    """Return how long jobs of these kinds will take, by the mean of each kind so far.

    Args:
        todo: The kind of every job that is left.
        history: Kind and seconds of every job that ended.

    Returns:
        Seconds, or None where a kind has not been seen yet.

    Example:
        >>> seconds_left(["minimum", "minimum"], [("minimum", 2.0), ("minimum", 4.0)])
        6.0
        >>> seconds_left(["connect"], [("minimum", 2.0)]) is None
        True
    """
    seen: dict[str, list[float]] = defaultdict(list)
    for kind, seconds in history:
        seen[kind].append(seconds)
    if any(kind not in seen for kind in todo):
        return None
    return float(sum(sum(seen[kind]) / len(seen[kind]) for kind in todo))


class Progress:
    """A bar on a terminal; silent where there is none, or where it is not wanted.

    Args:
        wanted: Whether to show anything at all.
        history: Kind and seconds of the jobs of earlier runs.
    """

    def __init__(self, wanted: bool, history: Iterable[tuple[str, float]] = ()) -> None:
        self._history = list(history)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._todo: list[str] = []
        self._began = 0.0
        if wanted and sys.stderr.isatty():
            self._bar = _rich_bar()

    def __enter__(self) -> Progress:
        """Start the bar."""
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, message="", left="")
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was found."""
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str, done: int, todo: Sequence[str]) -> None:
        """Say which job begins, how many ended, and the kinds of those that are left."""
        self._todo, self._began = list(todo), time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                completed=done,
                total=done + len(todo),
                description=name,
                message="",
                left=in_words(seconds_left(self._todo, self._history)),
            )

    def within(self, fraction: float, message: str) -> None:
        """Say how far the job is."""
        if self._bar is not None and self._task is not None:
            left = seconds_left(self._todo, self._history)
            if left is not None:
                left = max(0.0, left - (time.monotonic() - self._began))
            self._bar.update(
                self._task,
                message=f"{min(1.0, max(0.0, fraction)):.0%}, {message}",
                left=in_words(left),
            )

    def end(self, kind: str, seconds: float) -> None:
        """Say that the job ended."""
        self._history.append((kind, seconds))


def in_words(seconds: float | None) -> str:
    """Return a duration in words; nothing where it is unknown."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def _rich_bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[message]}", style="dim", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
