"""A closer look at the passes of the tree: what their tops are, and the level sets below."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape import Landscape
from thalweg.paths import level_set_geometry, line, measure, refine
from thalweg.survey.config import SurveyConfig
from thalweg.survey.curvature import certified_record
from thalweg.survey.outcomes import Levelled, Refined
from thalweg.survey.plan import Job, job_seed
from thalweg.survey.records import LevelRecord

__all__ = ["level_sets", "refine_top"]

Report = Callable[[float, str], None]
_LOWEST = 0.05  # of the way from the path's maximum to the line's
_NO_CLIMB = "the straight line climbs nowhere, so that every level above its ends holds it"


def refine_top(
    land: Landscape,
    config: SurveyConfig,
    job: Job,
    points: Float[Tensor, "points dim"],
    seed: int,
    report: Report,
) -> Refined:
    """Refine the highest point of a path to a critical point, and say what it is."""
    before = land.cost
    path = measure(land, points)
    report(0.2, f"highest at {path.maximum.lower:.6g}")
    refined = refine(
        land, path, max_gradients=config.saddle_gradients, seed=job_seed(seed, "refine")
    )
    found = refined.certificate
    lowest = certified_record(found.values, found.residuals, *found.intervals.unbind(1))
    return Refined(
        a=job.minima[0],
        b=job.minima[1],
        answer=refined.verdict.answer,
        reason=refined.verdict.reason,
        top=path.maximum,
        loss=found.loss,
        gradient_norm=found.gradient_norm,
        value=found.value,
        index=found.index,
        zero=found.zero,
        flat=found.flat,
        lowest=lowest,
        flatness=found.flatness,
        distance=found.distance,
        theta=found.theta,
        cost=land.cost - before,
    )


def level_sets(
    land: Landscape,
    config: SurveyConfig,
    job: Job,
    points: Float[Tensor, "points dim"],
    seed: int,
    report: Report,
) -> Levelled:
    """Measure the level sets between two minima, from the line's top down to the path's."""
    before = land.cost
    path, straight = measure(land, points), line(land, points[0], points[-1])
    if straight.height.upper <= straight.worth():
        return Levelled(job.minima[0], job.minima[1], (), _NO_CLIMB, land.cost - before)
    found = level_set_geometry(
        land,
        points[0],
        points[-1],
        _levels(path.maximum.upper, straight.maximum.upper, config.levels),
        seeds=config.level_seeds,
        seed=job_seed(seed, "levels"),
        base=path.base,
        max_gradients=config.level_gradients,
        progress=report,
    )
    rows = tuple(
        LevelRecord(
            level=row.level,
            yes=row.yes,
            no=row.no,
            unresolved=row.unresolved,
            raw=row.raw,
            shortened=row.shortened,
            beads=row.beads,
            note=row.note,
        )
        for row in found.rows
    )
    return Levelled(job.minima[0], job.minima[1], rows, found.method, land.cost - before)


def _levels(low: float, high: float, count: int) -> list[float]:
    """Return levels from just below the line's top to just above the path's, evenly."""
    room = max(high - low, 0.0)
    shares = torch.linspace(1 - _LOWEST, _LOWEST, count, dtype=torch.float64)
    return [low + room * share for share in shares.tolist()] if room else [high]
