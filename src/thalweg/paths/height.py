r"""How high a polyline climbs: a bracket of $\max_t L(\gamma(t))$ by adaptive sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from thalweg.estimate import Bound, BoundKind
from thalweg.landscape.enclosure import NoEnclosure, enclose
from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.paths.certified import Proof, affordable, enclosed_maximum, exact_maximum
from thalweg.paths.sampling import Intervals, Polyline, chord_upper, sample_maximum, tangent_upper

__all__ = ["Bounds", "Profile", "bracket_maximum", "chord_upper", "tangent_upper"]

Bounds = Literal["auto", "certified", "estimated"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Profile:
    r"""The loss along a path, as sampled, and the bracket of its maximum.

    Attributes:
        times: Normalised arc lengths of the samples, increasing, in [0, 1].
        losses: The loss at each.
        maximum: Bracket of the maximum; the lower end is attained, at `top`.
        top: The highest sample, `(dim,)`.
        top_time: Its time.
    """

    times: Float[Tensor, " samples"]
    losses: Float[Tensor, " samples"]
    maximum: Bound
    top: Float[Tensor, " dim"]
    top_time: float


def bracket_maximum(
    land: Landscape,
    points: Float[Tensor, "points dim"],
    *,
    tolerance: float | None = None,
    max_samples: int = 200,
    initial: int | None = None,
    curvature: float | None = None,
    safety: float = 1.0,
    bounds: Bounds = "auto",
    level: float | None = None,
) -> Profile:
    r"""Bracket the maximum of the loss over a polyline: proven where it can be, else estimated.

    The lower end is the highest sample, hence certified. The upper end, by `bounds`:

    - ``exact``: one hidden layer of ReLU with square loss, whose loss is piecewise quartic
      (`shallow_maximum`); equal to the maximum up to rounding.
    - ``certified``: other chains of known layers (`NetworkEnclosure`): intervals that hold loss
      and slope, kinks included, halved until the bracket is narrower than `tolerance`.
    - ``estimated``: anything else. The largest `tangent_upper` over the intervals between
      samples; the intervals that hold it are divided until the bracket is narrower than
      `tolerance` or the samples are spent.

    ``"auto"`` takes the first of the three that there is and that is `affordable`, a rule of
    sizes alone. An enclosure whose bracket is still wider than twice the tolerance when the
    budget is spent is reported only as a cap on the estimate, and in the method's words.
    ``"certified"`` insists on a proof, however wide; ``"estimated"`` wants none.

    With `curvature`, a known $K \ge |d^2L/ds^2|$ per unit of arc length (the largest
    Hessian eigenvalue in absolute value will do), sampling itself is ``certified``. Without
    it, $K$ is estimated in every interval from what the samples force on it and its two neighbours
    (changes of slope and Taylor remainders): the largest such value plus `safety` times
    their spread. The upper end is then ``estimated``: it rests on $d^2L/ds^2$ between
    samples not exceeding its neighbouring averages by more than that. Once the bracket is
    narrow, every interval that is still as wide as at first is asked once more, off its middle,
    so that a needle escapes only if it is narrower than about half of that. A concave kink
    needs no curvature bound at all; one convex ReLU kink per interval is met by the change of
    slope that it causes.

    A BatchNorm network under ``recompute`` has no gradient: values alone are used then
    (`chord_upper`, $K$ from second differences), which needs more samples.

    Args:
        land: The landscape.
        points: The polyline's corners, `(K, dim)`.
        tolerance: The width to reach; by default 1e-3 of the range of the losses seen.
        max_samples: The budget, in samples or in enclosed sub-intervals (each counted as two
            passes); the initial ones are always taken.
        initial: Intervals per segment at first; by default 16 on one segment, 2 on many.
        curvature: A known bound on the second derivative along the path, if there is one.
        safety: How far the estimated curvature extrapolates.
        bounds: ``"auto"``, ``"certified"`` or ``"estimated"``.
        level: A loss to compare with: stop as soon as the bracket lies on one side of it
            (upper end at most the level, or lower end above it), without the second look
            for needles. The initial samples are always taken.

    Returns:
        The samples and the bracket. A loss that is NaN makes both ends NaN, one that is
        infinite both ends infinite.

    Raises:
        ValueError: If there are fewer than two points, one is not finite, the samples contradict
            `curvature` or an enclosure, or `bounds` is unknown.
        NoEnclosure: If `bounds` is ``"certified"`` and there is no proof; the message says why.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> well = FunctionLandscape(lambda x: (x[0]**2 - 1)**2, dim=1)
        >>> ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> bracket_maximum(well, ends, tolerance=1e-6).maximum.lower
        1.0
    """
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(
            f"points has shape {tuple(points.shape)}; a path needs (at least 2, {land.dim})"
        )
    if curvature is not None and not (curvature >= 0 and math.isfinite(curvature)):
        raise ValueError(f"curvature must be a finite number that is not negative: {curvature!r}")
    if bounds not in ("auto", "certified", "estimated"):
        raise ValueError(f"bounds must be 'auto', 'certified' or 'estimated', not {bounds!r}")
    if level is not None and math.isnan(level):
        raise ValueError("level is NaN, which no loss can be compared with")
    before = land.cost
    line = Polyline(land, _without_repeats(points))
    cap: Bound | None = None
    if curvature is None and bounds != "estimated":
        insist = bounds == "certified"
        proven = _proven(line, tolerance, max_samples, initial, level, insist=insist)
        if proven is not None and (bounds == "certified" or proven[1]):
            bound = replace(proven[0].maximum, cost=land.cost - before)
            return replace(proven[0], maximum=bound)
        cap = proven[0].maximum if proven is not None else None
    cells, top = sample_maximum(line, tolerance, max_samples, initial, curvature, safety, level)
    found = _profile(line, cells, top, "estimated" if curvature is None else "certified")
    bound = replace(found.maximum, cost=land.cost - before)
    if bounds == "certified" and curvature is None and math.isfinite(bound.lower):
        raise NoEnclosure(
            "no certified upper end is available: intervals overflow on this path; use "
            'bounds="estimated"'
        )
    if cap is not None and math.isfinite(bound.upper):
        upper = max(bound.lower, min(bound.upper, cap.upper))
        words = f"{bound.method}; certified not to exceed {cap.upper:.6g}"
        bound = replace(bound, upper=upper, method=words)
    return replace(found, maximum=bound)


def provable(land: Landscape) -> bool:
    """Say whether maxima may be proven: whether the landscape under evaluation is enclosed."""
    try:
        enclose(for_evaluation(land))
    except NoEnclosure:
        return False
    return True


def _proven(
    line: Polyline,
    tolerance: float | None,
    max_samples: int,
    initial: int | None,
    level: float | None,
    *,
    insist: bool,
) -> tuple[Profile, bool] | None:
    """Return a proven profile and whether it is narrow enough; None where there is none.

    Raises:
        NoEnclosure: If one insists and there is no proof.
    """
    land, segments = line.land, len(line.lengths)
    try:
        enclosure = enclose(land)
    except NoEnclosure as reason:
        if insist:
            raise NoEnclosure(
                f"no certified upper end is available: {reason}; pass curvature= if a bound of "
                'the second derivative is known, or use bounds="estimated"'
            ) from reason
        return None
    way = affordable(enclosure, segments, max_samples)
    if insist and math.isfinite(enclosure.exact_operations):
        way = "exact"
    if way == "exact":
        grid = initial or (16 if segments == 1 else 2)
        try:
            return _proven_profile(line, exact_maximum(land, enclosure, line.points, grid)), True
        except OverflowError:
            return None
    if way is None and not insist:
        return None
    found, worth = enclosed_maximum(
        land,
        enclosure,
        line.points,
        tolerance=tolerance,
        max_samples=max_samples,
        per_segment=initial or (8 if segments == 1 else 1),
        patient=insist,
        level=level,
    )
    if found is None:
        return None
    profile = _proven_profile(line, found)
    bound = profile.maximum
    settled = level is not None and (bound.upper <= level or bound.lower > level)
    return profile, settled or bound.width <= 2 * worth


def _proven_profile(line: Polyline, proof: Proof) -> Profile:
    """Return the samples of a proof along the whole polyline."""
    s = line.knots[proof.segments] + proof.times * line.lengths[proof.segments]
    top = int(np.argmax(proof.losses))
    return _finished(
        line,
        s,
        proof.losses,
        (proof.segments[[top]], (proof.times * line.lengths[proof.segments])[[top]]),
        proof.upper,
        (proof.kind, proof.kind),
        proof.method,
    )


def _without_repeats(points: Tensor) -> Tensor:
    """Drop corners that repeat their predecessor; keep two even if they coincide."""
    bad = int((~torch.isfinite(points)).sum())
    if bad:
        raise ValueError(f"the path's points hold {bad} NaN or infinite values")
    if not bool(torch.isfinite(torch.linalg.vector_norm(points.double(), dim=1)).all()):
        raise ValueError("the path's points are too large: their norms overflow")
    moved = torch.linalg.vector_norm((points[1:] - points[:-1]).double(), dim=1) > 0
    if not bool(moved.any()):
        raise ValueError("the path's points all coincide, so there is nothing to bracket")
    first = torch.ones(1, dtype=torch.bool, device=points.device)
    return points[torch.cat([first, moved])]


def _profile(line: Polyline, cells: Intervals, upper: float, kind: BoundKind) -> Profile:
    s = np.append(line.knots[cells.segment] + cells.s0, line.knots[-1])
    losses = np.append(cells.g0, cells.g1[-1])
    top = int(np.argmax(losses))  # the first NaN if there is one
    last = len(cells.h)
    where = (
        (cells.segment[[top]], cells.s0[[top]])
        if top < last
        else (cells.segment[[-1]], cells.s1[[-1]])
    )
    slopes = "values and slopes" if line.slopes else "values alone"
    method = f"adaptive sampling of {slopes}, {len(s)} samples"
    return _finished(line, s, losses, where, upper, ("certified", kind), method)


def _finished(
    line: Polyline,
    s: Array,
    losses: Array,
    where: tuple[NDArray[np.int64], Array],
    upper: float,
    kinds: tuple[BoundKind, BoundKind],
    method: str,
) -> Profile:
    """Return the profile of samples at arc lengths `s`, whose highest lies at `where`."""
    top = int(np.argmax(losses))
    lower = float(losses[top])
    upper = lower if math.isnan(lower) else max(lower, upper)
    return Profile(
        torch.from_numpy(s / line.knots[-1]),
        torch.from_numpy(losses),
        Bound(lower, upper, *kinds, method=method),
        line.position(*where)[0],
        float(s[top] / line.knots[-1]),
    )
