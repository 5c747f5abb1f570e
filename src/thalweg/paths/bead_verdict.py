"""What a finished search for a string of beads shows, measured and in words."""

from __future__ import annotations

import math
from dataclasses import replace

from thalweg.estimate import Verdict
from thalweg.paths.bead_search import BeadSearch
from thalweg.paths.height import provable
from thalweg.paths.path import Path, measure
from thalweg.paths.segments import joined

__all__ = ["judge"]


def judge(search: BeadSearch) -> tuple[Path, Verdict]:
    """Measure the string and say what it shows."""
    rule, links = search.rule, search.links
    segments = [link.path for link in links if link.path is not None]
    if len(segments) == len(links):
        path = _proven(search, joined(segments))
    else:
        path = measure(
            rule.land,
            search.points,
            tolerance=rule.tolerance,
            max_samples=max(rule.max_samples, 4 * len(search.points)),
        )
        search.spent += path.cost
    yes = search.outcome == "joined"
    reason = _reason(search)
    path = replace(
        path,
        method="dynamic string sampling",
        converged=yes,
        note=reason,
        seed=search.seed,
        cost=search.spent,
    )
    return path, Verdict("yes" if yes else "unresolved", reason, path, search.spent)


def _proven(search: BeadSearch, path: Path) -> Path:
    """Return the path with a proven maximum, where there is a proof that it is low enough."""
    rule = search.rule
    if not provable(rule.land):
        return path
    again = measure(
        rule.land,
        path.points,
        tolerance=rule.tolerance,
        max_samples=max(rule.max_samples, 4 * len(path.points)),
        level=rule.ceiling,
    )
    search.spent += again.cost
    kept = again.maximum.upper_kind != "estimated" and again.maximum.upper <= rule.ceiling
    return again if kept else path


def _reason(search: BeadSearch) -> str:
    rule, high = search.rule, [link.high for link in search.links]
    what = "loss" if rule.threshold is None else "threshold function"
    parts = rule.parts
    if search.outcome == "joined":
        count = f"{len(search.points)} beads, ends included"
        if parts is None:
            return f"a string of {count}, stays at or below {rule.ceiling:.8g}, segment by segment"
        return (
            f"a string of {count}, has a {what} at or below {rule.ceiling:.8g} at {parts + 1} "
            "points of each segment; between them nothing was looked at"
        )
    if search.outcome == "stuck":
        value = next(v for v in search.values if not v <= rule.ceiling)
        return (
            f"a bead stands at {value:.8g} after up to {search.how.max_steps} steps, not at or "
            f"below {rule.ceiling:.8g}; more steps, another seed or another rate may bring it down"
        )
    if search.outcome == "budget":
        return f"the budget of {search.how.max_gradients} gradients is spent; raise max_gradients"
    failed = [h for h, link in zip(high, search.links, strict=True) if not link.passed]
    worst = next((h for h in failed if math.isnan(h)), max(failed))
    return (
        f"{len(failed)} of {len(high)} segments are not shown to stay at or below "
        f"{rule.ceiling:.8g} after {search.rounds} rounds (the highest point seen: {worst:.8g}); "
        "more rounds may join them, and that they are apart is not proven"
    )
