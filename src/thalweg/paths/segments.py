"""The segments of a path, one by one: checked against a level, kept, and joined again."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Bound
from thalweg.landscape.protocols import FiniteSum, Landscape
from thalweg.paths.height import Profile
from thalweg.paths.path import Path, join, measure
from thalweg.paths.resume import cost_from, cost_state

__all__ = ["check_segment", "joined", "segment_from", "segment_state", "share_of"]


def check_segment(
    land: Landscape,
    left: Float[Tensor, " dim"],
    right: Float[Tensor, " dim"],
    ceiling: float,
    *,
    span: float,
    tolerance: float | None = None,
    max_samples: int = 100,
) -> Path:
    """Bracket a segment's maximum, as finely as it takes to compare it with a ceiling.

    The upper end is estimated; what can be proven is proven of the whole path that is found.

    Args:
        land: The landscape.
        left: One end, `(dim,)`.
        right: The other.
        ceiling: What the maximum is compared with.
        span: Length of a segment that gets 16 intervals at first; a shorter one gets as many
            per length, but 4 at least.
        tolerance: Width below which the bracket is not refined; by default none.
        max_samples: Most evaluations of one bracket.

    Returns:
        The segment, measured.
    """
    pair = torch.stack([left, right])
    share = float(torch.linalg.vector_norm((right - left).double())) / span
    initial = min(16, max(4, math.ceil(16 * share)))
    return measure(
        land,
        pair,
        tolerance=tolerance or 0.0,
        max_samples=max_samples,
        initial=initial,
        bounds="estimated",
        level=ceiling,
    )


def segment_state(path: Path) -> dict[str, Any]:
    """Return a measured segment as plain data; `segment_from` reads it."""
    profile, bound = path.profile, path.maximum
    return {
        "points": path.points,
        "losses": path.losses,
        "seen": [profile.times, profile.losses, profile.top, profile.top_time],
        "bound": [bound.lower, bound.upper, bound.lower_kind, bound.upper_kind, bound.method],
        "words": [path.method, path.note],
        "cost": cost_state(path.cost),
    }


def segment_from(state: dict[str, Any]) -> Path:
    """Return the segment that `segment_state` wrote down."""
    lower, upper, lower_kind, upper_kind, how = state["bound"]
    cost = cost_from(state["cost"])
    times, losses, top, top_time = state["seen"]
    bound = Bound(lower, upper, lower_kind, upper_kind, cost, how)
    profile = Profile(times, losses, bound, top, top_time)
    method, note = state["words"]
    return Path(state["points"], state["losses"], profile, method, True, note, cost)


def joined(segments: list[Path]) -> Path:
    """Return the path along measured segments; nothing is evaluated anew."""
    return functools.reduce(join, segments)


def share_of(batch: Landscape, land: Landscape) -> float:
    """Return the share of the data that a minibatch holds."""
    if batch is land or not (isinstance(batch, FiniteSum) and isinstance(land, FiniteSum)):
        return 1.0
    return batch.examples / land.examples
