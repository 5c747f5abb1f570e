"""A survey: what a landscape holds, found job by job and kept in a folder."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Estimate
from thalweg.landscape import Landscape
from thalweg.paths import Gauge
from thalweg.survey import given, identity, jobs, passes, store
from thalweg.survey.config import SurveyConfig
from thalweg.survey.errors import Interrupted, SurveyError
from thalweg.survey.outcomes import Outcome
from thalweg.survey.plan import Job, job_seed
from thalweg.survey.progress import Progress
from thalweg.survey.records import SurveyRecord
from thalweg.survey.status import State, Status
from thalweg.survey.store import AttemptInfo, HeaderInfo, Store
from thalweg.survey.trees import basins, lowest_first, trees

__all__ = ["Survey"]

_FIRST_ADDED = 1_000_000
_NAME = re.compile(r"(?!m\d+$)[A-Za-z0-9][A-Za-z0-9._]*")


class Survey:
    """The minima of one landscape, their measures and the paths between them, on disk.

    Made by `open`, which creates a survey or goes on with one, or by `read`, which needs
    no landscape. Every job draws its randomness from the survey's seed and its own name,
    and is kept the moment that it ends: a survey that was interrupted, even killed, and
    run again is the same as one that was not.

    Example:
        >>> import tempfile
        >>> from thalweg.landscape import FunctionLandscape
        >>> well = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Survey.open(folder, well, label="double well") as survey:
        ...         status = survey.run(minima=2, progress=False)
        ...         found = survey.record()
        >>> status.complete, [round(minimum.loss, 6) for minimum in found.minima]
        (True, [0.0, 0.0])
    """

    def __init__(
        self,
        stored: Store,
        land: Landscape | None = None,
        held_out: Landscape | None = None,
        gauge: Gauge | None = None,
    ) -> None:
        self._store = stored
        self._land = land
        self._held_out = held_out
        self._gauge = gauge
        self.config = SurveyConfig.from_json(stored.header().config)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        landscape: Landscape,
        config: SurveyConfig | None = None,
        *,
        held_out: Landscape | None = None,
        gauge: Gauge | None = None,
        label: str | None = None,
    ) -> Self:
        """Create a survey, or go on with the one that the folder holds.

        Args:
            folder: Where it is, or will be.
            landscape: What is surveyed.
            config: How; None takes what the folder says, or the defaults.
            held_out: The same network on data that the search never sees, for measures.
            gauge: ``gauge(theta) -> theta'``, the vector chosen among those that compute the
                same: paths are then measured there too, because rescaling layers changes
                lengths. Known by its name and by what it
                makes of a fixed point, both of which belong to the survey.
            label: A name for the landscape, for one that cannot describe itself.

        Raises:
            SurveyError: If the folder holds a survey of another landscape or under
                another configuration, is being written by another process, or cannot be
                read; or if the landscape's BatchNorm policy does not allow a survey.
        """
        folder = Path(folder)
        jobs.check_policy(landscape)
        _check_held_out(landscape, held_out)
        here = {
            "landscape": identity.describe(landscape, label),
            "held_out": identity.describe(held_out) if held_out is not None else None,
            **identity.describe_gauge(landscape, gauge),
        }
        if store.exists(folder):
            stored = Store.open(folder)
        else:
            chosen = config or SurveyConfig()
            provenance = {**here, "software": identity.software()}
            stored = Store.create(
                folder,
                HeaderInfo(_now(), chosen.to_json(), here, provenance, chosen.minima),
            )
        try:
            _check_same(folder, stored.header(), here, config)
            return cls(stored, landscape, held_out, gauge)
        except BaseException:
            stored.close()
            raise

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Open a survey to read it, without its landscape, also while another writes it.

        Raises:
            SurveyError: If the folder holds no survey that this version can read.
        """
        return cls(Store(Path(folder)))

    def __enter__(self) -> Self:
        """Return the survey, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the folder, so that another process may write; harmless when done twice."""
        self._store.close()

    @property
    def folder(self) -> Path:
        """Where the survey is."""
        return self._store.folder

    def run(
        self, *, minima: int | None = None, retry: bool = False, progress: bool = True
    ) -> Status:
        """Do every job that is left: find minima, measure them, connect them.

        Args:
            minima: How many minima to look for, those already found included; None takes
                the goal that was last set, at first `config.minima`.
            retry: Whether jobs that failed are tried again. Their earlier failures stay
                on record.
            progress: Whether to show a bar, where there is a terminal.

        Returns:
            Where the survey stands.

        Raises:
            SurveyError: If the survey was opened for reading, or the disk is full.
            Interrupted: On Ctrl-C; what had ended is kept.
        """
        land = self._writing()
        if minima is not None and minima < 0:
            raise ValueError(f"minima must not be negative, got {minima}")
        self._announce(minima)
        state = self._state()
        again = set(state.failed) if retry else set()
        current = "the plan"
        with Progress(
            progress, [(attempt.kind, attempt.seconds) for attempt in state.attempts]
        ) as shown:
            try:
                while batch := state.pending(tuple(again)):
                    todo, done = state.todo(tuple(again)), len(state.outcomes.keys() - again)
                    for i, job in enumerate(batch):
                        current = job.key
                        shown.begin(current, done + i, todo[i:])
                        self._attempt(land, job, shown)
                        again.discard(current)
                    state = self._state()
            except KeyboardInterrupt:
                raise Interrupted(self._farewell(current)) from None
        return self.status()

    def add(
        self,
        minimum: Float[Tensor, " dim"] | torch.nn.Module | Mapping[str, Tensor] | str | Path,
        name: str | None = None,
    ) -> str:
        """Add a minimum that was found elsewhere; `run` then measures and connects it.

        Args:
            minimum: A vector; or a module, a state dict or a checkpoint's path, where the
                landscape is a network. Checkpoints are read without running any code.
            name: Its id: letters, digits, dots and underscores; None numbers it.

        Returns:
            Its id; that of the minimum already there, if it is the same vector.

        Raises:
            SurveyError: If the survey was opened for reading, the name is taken, or the same
                vector is there with other BatchNorm statistics.
            ValueError: If the vector does not fit the landscape or its loss is not finite.
        """
        land = self._writing()
        theta = given.vector(land, minimum)
        if (known := self._store.find(theta)) is not None:
            self._ship(known, given.shipped(land, minimum))
            return known
        state = self._state()
        number = sum(m.seed is None for m in state.minima)
        chosen = name if name is not None else f"a{number:02d}"
        _check_name(chosen, [m.id for m in state.minima])
        origin = str(minimum) if isinstance(minimum, str | Path) else "added"
        began, started, before = time.monotonic(), _now(), land.cost
        with jobs.threads(self.config.threads):
            found = jobs.adopt(
                land,
                self.config,
                theta,
                id=chosen,
                position=_FIRST_ADDED + number,
                origin=origin,
                shipped=lambda: given.shipped(land, minimum),
            )
        attempt = AttemptInfo(
            f"minimum/added={chosen}",
            "add",
            None,
            started,
            time.monotonic() - began,
            land.cost - before,
        )
        self._store.save(attempt, found)
        return chosen

    def theta(self, minimum: str) -> Float[Tensor, " dim"]:
        """Return the coordinates of a minimum, on the landscape's device if there is one.

        Raises:
            KeyError: If there is no such minimum.
            SurveyError: If its array file is missing or corrupt.
        """
        theta = self._store.theta(minimum)
        return theta if self._land is None else theta.to(self._land.device)

    def points(self, a: str, b: str) -> Float[Tensor, "points dim"]:
        """Return the corners of the lowest path found between two minima.

        Raises:
            KeyError: If there is no such path.
            SurveyError: If its array file is missing or corrupt.
        """
        between = [path for path in self._store.paths() if (path.a, path.b) == (a, b)]
        repeat = lowest_first(between)[0][0].repeat if between else 0
        return self._store.points(a, b, repeat)

    def saddle(self, a: str, b: str) -> Float[Tensor, " dim"]:
        """Return the point that the highest point of the path between two minima refined to.

        Raises:
            KeyError: If there is none.
            SurveyError: If its array file is missing or corrupt.
        """
        return self._store.saddle(a, b)

    def eigenvectors(self, minimum: str) -> Float[Tensor, "dim k"]:
        """Return the leading Hessian eigenvectors at a minimum, one per column.

        Raises:
            KeyError: If there are none.
            SurveyError: If their array file is missing or corrupt.
        """
        return self._store.eigenvectors(minimum)

    def status(self) -> Status:
        """Return where the survey stands."""
        return self._state().status(str(self.folder))

    def outlook(self, minima: int | None = None) -> Status:
        """Return where the survey would stand at the start of ``run(minima=minima)``."""
        state = self._state()
        if minima is not None:
            state = dataclasses.replace(state, goal=minima)
        return state.status(str(self.folder))

    def record(self) -> SurveyRecord:
        """Return all that was found, as plain frozen values.

        Raises:
            ValueError: If two proofs kept with its paths contradict each other.
        """
        header, state = self._store.header(), self._state()
        tree, best_known, certified = trees(state.minima, state.paths, self.config.seed)
        paths, further = lowest_first(state.paths)
        return SurveyRecord(
            name=self.folder.resolve().stem,
            created=header.created,
            config={**header.config, "minima": header.goal},
            provenance=header.provenance,
            dim=int(header.identity["landscape"]["dim"]),
            minima=state.minima,
            paths=paths,
            failures=self._store.failures(),
            tree=tree,
            cost=sum((attempt.cost for attempt in state.attempts), Cost()),
            seconds=sum(attempt.seconds for attempt in state.attempts),
            complete=state.status("").complete,
            further=further,
            best_known=best_known,
            certified=certified,
            basins=basins(state.minima, best_known),
            saddles=self._store.saddles(),
            level_sets=self._store.level_sets(),
        )

    def report(self, path: str | Path) -> Path:
        """Write the survey as one self-contained HTML file.

        Args:
            path: Where to.

        Returns:
            The same path.
        """
        # `report` reads surveys and so stands above this room; the import by name keeps
        # the one door that leads back out of the module graph, and its weight out of runs.
        importlib.import_module("thalweg.report").write(self.record(), path)
        return Path(path)

    def _attempt(self, land: Landscape, job: Job, shown: Progress) -> None:
        """Do one job and keep what it found, or that it failed."""
        began, started, before = time.monotonic(), _now(), self._spent(land)
        error: str | None = None
        outcome: Outcome | None = None
        try:
            with jobs.threads(self.config.threads):
                outcome = self._work(land, job, shown)
        except SurveyError:
            raise
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        seconds = time.monotonic() - began
        attempt = AttemptInfo(
            job.key, job.kind, error, started, seconds, self._spent(land) - before
        )
        if outcome is None:
            self._store.save_failure(attempt)
        else:
            self._store.save(attempt, outcome)
        shown.end(job.kind, seconds)

    def _work(self, land: Landscape, job: Job, shown: Progress) -> Outcome:
        seed = job_seed(self.config.seed, job.key)
        thetas = [self.theta(minimum) for minimum in job.minima if job.kind != "minimum"]
        match job.kind:
            case "minimum":
                return jobs.search(land, self.config, job, seed, shown.within)
            case "characterise":
                return jobs.characterise(
                    land, self._held_out, self.config, job, thetas[0], seed, shown.within
                )
            case "connect":
                return jobs.join(
                    land,
                    self._held_out,
                    self._gauge,
                    self.config,
                    job,
                    thetas[0],
                    thetas[1],
                    seed,
                    shown.within,
                )
            case "saddle":
                points = self.points(*job.minima).to(land.device)
                return passes.refine_top(land, self.config, job, points, seed, shown.within)
            case "levels":
                points = self.points(*job.minima).to(land.device)
                return passes.level_sets(land, self.config, job, points, seed, shown.within)

    def _spent(self, land: Landscape) -> Cost:
        return land.cost if self._held_out is None else land.cost + self._held_out.cost

    def _ship(self, known: str, shipped: Estimate | None) -> None:
        """Keep a loss as shipped that comes later than its vector; refuse a second one."""
        before = next(m.shipped for m in self._store.minima() if m.id == known)
        if shipped is None or before == shipped:
            return
        if before is None:
            self._store.ship(known, shipped)
        elif not math.isclose(before.value, shipped.value, rel_tol=1e-6):
            raise SurveyError(
                f"{known} is this vector with other BatchNorm statistics: its loss as shipped is "
                f"{before.value:.6g}, this network's {shipped.value:.6g}",
                "a survey keeps one network for each vector; leave this one out",
            )

    def _writing(self) -> Landscape:
        if self._land is None:
            raise SurveyError(
                f"{self.folder} was opened for reading",
                "open it with Survey.open(folder, landscape)",
            )
        return self._land

    def _announce(self, minima: int | None) -> None:
        header = self._store.header()
        provenance, software = dict(header.provenance), identity.software()
        others = provenance.get("continued with", [])
        if software not in (provenance["software"], *others):
            provenance["continued with"] = [*others, software]
        goal = header.goal if minima is None else minima
        if (goal, provenance) != (header.goal, header.provenance):
            self._store.update_header(goal=goal, provenance=provenance)

    def _farewell(self, job: str) -> str:
        done = len(self._state().outcomes)
        return (
            f"stopped at {job}, which will be done anew; {done} jobs are kept in {self.folder}. "
            "Run the same again to go on"
        )

    def _state(self) -> State:
        return State(
            config=self.config,
            goal=self._store.header().goal,
            minima=self._store.minima(),
            paths=self._store.paths(),
            attempts=tuple(self._store.attempts()),
        )


def _check_held_out(land: Landscape, held_out: Landscape | None) -> None:
    if held_out is not None and held_out.dim != land.dim:
        raise SurveyError(
            f"the held-out landscape has {held_out.dim} coordinates, the landscape {land.dim}",
            "build it as landscape.with_data(held_out_data)",
        )


def _check_same(
    folder: Path, header: HeaderInfo, here: dict[str, Any], config: SurveyConfig | None
) -> None:
    if found := identity.differences(header.identity, here):
        raise SurveyError(
            f"{folder} holds a survey of another landscape ({'; '.join(found[:5])})",
            "open it with the landscape (and the gauge=, --gauge) that it was made with, or give "
            "a new folder",
        )
    if config is None:
        return
    if found := SurveyConfig.from_json(header.config).differences(config):
        raise SurveyError(
            f"{folder} holds a survey under another configuration ({'; '.join(found)})",
            "leave the configuration out to go on with that one, or give a new folder",
        )


def _check_name(name: str, taken: list[str]) -> None:
    if not _NAME.fullmatch(name):
        raise SurveyError(
            f"{name!r} cannot name a minimum",
            "use letters, digits, dots and underscores, and not m and a number, which are the "
            "survey's own",
        )
    if name in taken:
        raise SurveyError(f"there is another minimum named {name!r}", "choose another name")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
