"""Where a survey stands: jobs done, failed and to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from thalweg.survey.config import SurveyConfig
from thalweg.survey.plan import Job, Node, pending, search_count
from thalweg.survey.progress import in_words, seconds_left
from thalweg.survey.records import MinimumRecord, PathRecord
from thalweg.survey.store import AttemptInfo
from thalweg.survey.trees import searched
from thalweg.topology import Search

__all__ = ["State", "Status"]

_KINDS = {
    "minimum": "minima",
    "characterise": "measures of a minimum",
    "connect": "paths",
    "saddle": "saddles",
    "levels": "level sets",
}


_ALWAYS = ("minimum", "characterise", "connect")


@dataclass(frozen=True, slots=True)
class Status:
    """Where a survey stands.

    Attributes:
        folder: The survey's folder.
        done: Jobs that ended well, by kind.
        failed: Keys of the jobs whose last attempt failed.
        todo: Jobs that are left, by kind; the number of paths among many minima is the
            largest that may come.
        seconds_left: How long those may take, by the jobs so far; None if unknown.
    """

    folder: str
    done: dict[str, int]
    failed: tuple[str, ...]
    todo: dict[str, int]
    seconds_left: float | None

    @property
    def complete(self) -> bool:
        """Whether every planned job ended well."""
        return not self.failed and not any(self.todo.values())

    def __str__(self) -> str:
        """Return one line per kind of job, and what to do next."""
        lines = [self.folder]
        for kind, words in _KINDS.items():
            done, todo = self.done.get(kind, 0), self.todo.get(kind, 0)
            if done or todo or kind in _ALWAYS:
                lines.append(f"  {words}: {done} done, {todo} to do")
        if self.failed:
            lines.append(f"  failed: {', '.join(self.failed)} (try again with retry=True)")
        if self.complete:
            lines.append("  complete")
        elif self.seconds_left is not None and any(self.todo.values()):
            lines.append(f"  {in_words(self.seconds_left)}")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the lines with the first in bold."""
        head, _, rest = str(self).replace("[", "\\[").partition("\n")
        return f"[bold]{head}[/bold]\n{rest}"


@dataclass(frozen=True, slots=True)
class State:
    """What the plan needs to know, as read from the store."""

    config: SurveyConfig
    goal: int
    minima: tuple[MinimumRecord, ...]
    paths: tuple[PathRecord, ...]
    attempts: tuple[AttemptInfo, ...]

    @property
    def outcomes(self) -> dict[str, AttemptInfo]:
        """The last attempt at every job that was tried."""
        return {attempt.job: attempt for attempt in self.attempts}

    @property
    def failed(self) -> tuple[str, ...]:
        """The jobs whose last attempt failed."""
        return tuple(job for job, last in self.outcomes.items() if last.error is not None)

    def pending(self, again: Sequence[str] = ()) -> list[Job]:
        """Return the jobs that can run now, those to be tried `again` among them."""
        nodes = [Node(minimum.id, minimum.loss) for minimum in self.minima]
        results = {
            Search(each.a, each.b, each.repeat): each.height
            for each in searched(self.minima, self.paths)
        }
        over = self.outcomes.keys() - set(again)
        return pending(self.config, self.goal, nodes, results, over)

    def todo(self, again: Sequence[str] = ()) -> list[str]:
        """Return the kind of every job that is left, the most that there may be."""
        over = self.outcomes.keys() - set(again)
        searches = sum(f"minimum/seed={i}" not in over for i in range(self.goal))
        minima = len(self.minima) + searches
        merges = max(0, minima - 1)
        most = {
            "characterise": minima,
            "connect": search_count(self.config, minima),
            "saddle": merges if self.config.saddles else 0,
            "levels": 1 if self.config.levels and merges else 0,
        }
        ready = self.pending(again)
        begun = list(_KINDS).index(ready[0].kind) if ready else len(_KINDS)
        left = ["minimum"] * searches
        for kind, count in most.items():
            done = sum(job.startswith(f"{kind}/") for job in over)
            if searches or list(_KINDS).index(kind) >= begun:
                left += [kind] * max(0, count - done)
        return left

    def status(self, folder: str) -> Status:
        """Return where the survey stands."""
        todo = self.todo()
        history = [(attempt.kind, attempt.seconds) for attempt in self.attempts]
        done = Counter(
            job.partition("/")[0] for job, last in self.outcomes.items() if last.error is None
        )
        return Status(
            folder, dict(done), self.failed, dict(Counter(todo)), seconds_left(todo, history)
        )
