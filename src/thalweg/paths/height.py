r"""How high a polyline climbs: a bracket of $\max_t L(\gamma(t))$ by adaptive sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from thalweg.estimate import Bound, BoundKind, Cost
from thalweg.landscape.protocols import Landscape, Normalised

__all__ = ["Profile", "bracket_maximum", "chord_upper", "tangent_upper"]

Array = NDArray[np.float64]
_ROWS = 16  # parameter vectors per sweep, so that memory does not grow with the samples
_TOGETHER = 8  # intervals divided per sweep


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


def tangent_upper(
    g0: Array, d0: Array, g1: Array, d1: Array, h: Array, curvature: Array
) -> tuple[Array, Array]:
    r"""Upper bound of $g$ on $[0, h]$ from values, slopes and $g'' \le K$.

    $$\max_{0 \le t \le h} \min\bigl(g_0 + g_0' t + K t^2/2,\;
    g_1 - g_1'(h-t) + K(h-t)^2/2\bigr)$$

    Both parabolas are convex and their difference is linear in $t$, so that the maximum
    is $g_0$, $g_1$ or the value where they cross,
    $t^* = (g_1 - g_0 - g_1' h + K h^2/2) / (g_0' - g_1' + K h)$.

    Only $g'' \le K$ is used, so that a concave kink (slope falls) never breaks it. One
    convex kink per interval, with $|g''| \le K$ elsewhere, can exceed it by at most
    $K h^2/8$.

    Args:
        g0: Values at the left ends.
        d0: Slopes there.
        g1: Values at the right ends.
        d1: Slopes there.
        h: Lengths of the intervals.
        curvature: $K \ge 0$ of each.

    Returns:
        The upper bounds, and where each is attained.

    Example:
        >>> one = np.ones(1)
        >>> tangent_upper(0 * one, one, 0 * one, -one, 2 * one, 0 * one)[0]   # a tent
        array([1.])
    """
    slope = d0 - d1 + curvature * h
    offset = g1 - g0 - d1 * h + curvature * h**2 / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.clip(np.where(slope > 0, offset / slope, 0.0), 0.0, h)
        at_crossing = g0 + d0 * crossing + curvature * crossing**2 / 2
    ends = np.maximum(g0, g1)
    return np.maximum(ends, at_crossing), np.where(at_crossing > ends, crossing, h / 2)


def chord_upper(g0: Array, g1: Array, h: Array, curvature: Array) -> tuple[Array, Array]:
    r"""Upper bound of $g$ on $[0, h]$ from values and $|g''| \le K$ alone.

    $$\max_t\; g_0 + (g_1 - g_0)\,t/h + K t (h-t)/2 = \tfrac12(g_0+g_1) + K h^2/8 +
    \frac{(g_1-g_0)^2}{2 K h^2}$$ where $|g_1 - g_0| < K h^2/2$, else the higher end.

    Args:
        g0: Values at the left ends.
        g1: Values at the right ends.
        h: Lengths of the intervals.
        curvature: $K \ge 0$ of each.

    Returns:
        The upper bounds, and where each is attained.

    Example:
        >>> chord_upper(np.zeros(1), np.zeros(1), np.full(1, 2.0), np.ones(1))[0]
        array([0.5])
    """
    rise = g1 - g0
    inside = np.abs(rise) < curvature * h**2 / 2
    bent = np.where(inside, curvature * h**2, 1.0)
    peak = (g0 + g1) / 2 + curvature * h**2 / 8 + rise**2 / (2 * bent)
    return (
        np.where(inside, peak, np.maximum(g0, g1)),
        np.where(inside, h * (0.5 + rise / bent), h / 2),
    )


class _Polyline:
    """Points, arc lengths and the landscape along them."""

    def __init__(self, land: Landscape, points: Tensor) -> None:
        self.land, self.points = land, points
        steps = points[1:] - points[:-1]
        self.lengths = torch.linalg.vector_norm(steps.double(), dim=1).cpu().numpy()
        self.knots = np.concatenate([[0.0], np.cumsum(self.lengths)])
        self.slopes = not (isinstance(land, Normalised) and land.batchnorm == "recompute")
        self.gradient_scale = 0.0

    def tangent(self, segments: NDArray[np.int64]) -> Tensor:
        where = torch.as_tensor(segments, device=self.points.device)
        length = torch.as_tensor(self.lengths[segments], device=self.points.device)
        step = self.points[where + 1] - self.points[where]
        return step / length.to(step.dtype)[:, None]

    def position(self, segments: NDArray[np.int64], s: Array) -> Tensor:
        where = torch.as_tensor(segments, device=self.points.device)
        part = torch.as_tensor(s / self.lengths[segments], device=self.points.device)
        return torch.lerp(
            self.points[where], self.points[where + 1], part.to(self.points.dtype)[:, None]
        )

    def values(self, segments: NDArray[np.int64], s: Array) -> tuple[Array, Array, Array]:
        """Loss, slope in the sample's own segment, slope in the one before it."""
        losses, own, previous = [], [], []
        for start in range(0, len(s), _ROWS):
            part = slice(start, start + _ROWS)
            theta = self.position(segments[part], s[part])
            if not self.slopes:
                losses.append(self.land.loss(theta).double().cpu().numpy())
                own.append(np.full(len(theta), np.nan))
                previous.append(own[-1])
                continue
            value, gradient = self.land.value_and_gradient(theta)
            losses.append(value.double().cpu().numpy())
            rows = gradient.double()
            norms = torch.linalg.vector_norm(rows, dim=1)
            self.gradient_scale = max(self.gradient_scale, float(norms.max()))
            for into, at in ((own, segments[part]), (previous, np.maximum(segments[part] - 1, 0))):
                into.append((rows * self.tangent(at).double()).sum(1).cpu().numpy())
        return np.concatenate(losses), np.concatenate(own), np.concatenate(previous)


@dataclass
class _Intervals:
    """The intervals between neighbouring samples, in order along the path."""

    segment: NDArray[np.int64]
    s0: Array
    s1: Array
    g0: Array
    g1: Array
    d0: Array
    d1: Array

    @property
    def h(self) -> Array:
        return self.s1 - self.s0

    def split(self, at: NDArray[np.int64], s: Array, g: Array, d: Array) -> _Intervals:
        """Divide the intervals numbered `at` at arc lengths `s`, with values and slopes."""
        new = {
            name: np.insert(getattr(self, name), at + 1, value)
            for name, value in (
                ("segment", self.segment[at]),
                ("s0", s),
                ("s1", self.s1[at]),
                ("g0", g),
                ("g1", self.g1[at]),
                ("d0", d),
                ("d1", self.d1[at]),
            )
        }
        left = at + np.arange(len(at))
        new["s1"][left], new["g1"][left], new["d1"][left] = s, g, d
        return _Intervals(**new)


def _initial(line: _Polyline, per_segment: int) -> _Intervals:
    segments = np.repeat(np.arange(len(line.lengths)), per_segment)
    fractions = np.tile(np.arange(per_segment) / per_segment, len(line.lengths))
    s = fractions * line.lengths[segments]
    last = len(line.lengths) - 1
    g, own, before = line.values(np.append(segments, last), np.append(s, line.lengths[last]))
    at_vertex = np.append(fractions[1:] == 0.0, False)
    right_slope = np.where(at_vertex, before[1:], own[1:])
    s1 = np.where(at_vertex, line.lengths[segments], np.append(s[1:], line.lengths[last]))
    return _Intervals(segments, s, s1, g[:-1], g[1:], own[:-1], right_slope)


def _curvatures(line: _Polyline, cells: _Intervals, eps: float) -> Array:
    r"""The upper ends of $g''$ that the samples force, per interval (rows of estimates).

    Rounding of values and slopes is taken off, because on a short interval it would look
    like a large curvature.
    """
    h = cells.h
    level = 32 * eps * np.maximum(np.abs(cells.g0), np.abs(cells.g1))
    if not line.slopes:
        return _second_differences(cells, level)
    tilt = 32 * eps * line.gradient_scale
    raw = np.stack(
        [
            (cells.d1 - cells.d0) / h,
            2 * (cells.g1 - cells.g0 - cells.d0 * h) / h**2,
            2 * (cells.g0 - cells.g1 + cells.d1 * h) / h**2,
        ]
    )
    noise = np.stack([tilt / h, 2 * (level + tilt * h) / h**2, 2 * (level + tilt * h) / h**2])
    return np.sign(raw) * np.maximum(np.abs(raw) - noise, 0.0)


def _second_differences(cells: _Intervals, level: Array) -> Array:
    """Second divided differences with the neighbours inside the same segment."""
    chords, h = (cells.g1 - cells.g0) / cells.h, cells.h
    gap = (h[1:] + h[:-1]) / 2
    raw = (chords[1:] - chords[:-1]) / gap
    noise = (level[1:] / h[1:] + level[:-1] / h[:-1]) / gap
    raw = np.sign(raw) * np.maximum(np.abs(raw) - noise, 0.0)
    raw = np.where(cells.segment[1:] == cells.segment[:-1], raw, np.nan)
    both = np.stack([np.append(raw, np.nan), np.insert(raw, 0, np.nan)])
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(both), both[::-1], both)


def _estimated_curvature(rows: Array, slopes: bool, safety: float) -> Array:
    """Extrapolate the largest curvature near an interval by `safety` times its spread."""
    high, low = rows.max(0), rows.min(0)
    padded_high = np.pad(high, 1, mode="edge")
    padded_low = np.pad(low, 1, mode="edge")
    high = np.maximum(np.maximum(padded_high[:-2], padded_high[1:-1]), padded_high[2:])
    low = np.minimum(np.minimum(padded_low[:-2], padded_low[1:-1]), padded_low[2:])
    if not slopes:
        either: Array = (1 + safety) * np.maximum(np.abs(high), np.abs(low))
        return either
    upper: Array = np.maximum(0.0, high + safety * (high - low))
    return upper


def bracket_maximum(
    land: Landscape,
    points: Float[Tensor, "points dim"],
    *,
    tolerance: float | None = None,
    max_samples: int = 200,
    initial: int | None = None,
    curvature: float | None = None,
    safety: float = 1.0,
) -> Profile:
    r"""Bracket the maximum of the loss over a polyline by adaptive sampling.

    The lower end is the highest sample, hence certified. The upper end is the largest
    `tangent_upper` over the intervals between samples; the intervals that hold it are
    divided until the bracket is narrower than `tolerance` or the samples are spent.

    With `curvature`, a known $K \ge |d^2L/ds^2|$ per unit of arc length (the largest
    Hessian eigenvalue in absolute value will do), the upper end is ``certified``. Without
    it, $K$ is estimated in every interval from what the samples force on it and its two neighbours
    (changes of slope and Taylor remainders): the largest such value plus `safety` times
    their spread. The upper end is then ``estimated``: it rests on $d^2L/ds^2$ between
    samples not exceeding its neighbouring averages by more than that, so that it can miss
    a needle much narrower than the initial spacing. A concave kink needs no curvature
    bound at all; one convex ReLU kink per interval is met by the change of slope that it
    causes.

    A BatchNorm network under ``recompute`` has no gradient: values alone are used then
    (`chord_upper`, $K$ from second differences), which needs more samples.

    Args:
        land: The landscape.
        points: The polyline's corners, `(K, dim)`.
        tolerance: The width to reach; by default 1e-3 of the range of the losses seen.
        max_samples: The budget; the initial samples are always taken.
        initial: Intervals per segment at first; by default 16 on one segment, 2 on many.
        curvature: A known bound on the second derivative along the path, if there is one.
        safety: How far the estimated curvature extrapolates.

    Returns:
        The samples and the bracket. A loss that is NaN makes both ends NaN, one that is
        infinite both ends infinite.

    Raises:
        ValueError: If there are fewer than two points, or the samples contradict
            `curvature`.

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
    before = land.cost
    line = _Polyline(land, _without_repeats(points))
    per_segment = initial or (16 if len(line.lengths) == 1 else 2)
    if not line.slopes:
        per_segment = max(2, per_segment)
    cells = _initial(line, per_segment)
    upper = np.array([np.inf])
    while bool(np.isfinite(cells.g0).all() and np.isfinite(cells.g1).all()):
        upper, where = _uppers(line, cells, curvature, safety)
        best = max(float(cells.g0.max()), float(cells.g1.max()))
        worth = _tolerance(land, cells, tolerance)
        room = max_samples - len(cells.h) - 1
        wide = np.flatnonzero((upper > best + worth) & (cells.h > 1e-12 * line.knots[-1]))
        if room <= 0 or not len(wide):
            break
        chosen = np.sort(wide[np.argsort(-upper[wide])][: min(room, _TOGETHER)])
        inside = np.clip(where[chosen], cells.h[chosen] / 4, 3 * cells.h[chosen] / 4)
        s = cells.s0[chosen] + inside
        g, d, _ = line.values(cells.segment[chosen], s)
        cells = cells.split(chosen, s, g, d)
    kind: BoundKind = "estimated" if curvature is None else "certified"
    return _profile(line, cells, float(upper.max()), kind, land.cost - before)


def _uppers(
    line: _Polyline, cells: _Intervals, curvature: float | None, safety: float
) -> tuple[Array, Array]:
    forced = _curvatures(line, cells, torch.finfo(line.points.dtype).eps)
    if curvature is None:
        bend = _estimated_curvature(forced, line.slopes, safety)
    else:
        with np.errstate(invalid="ignore"):
            worst = int(np.argmax(np.nan_to_num(forced, nan=-np.inf).max(0)))
        if forced[:, worst].max() > curvature * (1 + 1e-6):
            raise ValueError(
                f"curvature={curvature:g} is no bound: near t="
                f"{(line.knots[cells.segment[worst]] + cells.s0[worst]) / line.knots[-1]:.4g} the "
                f"samples need at least {forced[:, worst].max():.6g} per unit of arc length"
            )
        bend = np.full(len(cells.h), float(curvature))
    if line.slopes:
        upper, where = tangent_upper(cells.g0, cells.d0, cells.g1, cells.d1, cells.h, bend)
    else:
        upper, where = chord_upper(cells.g0, cells.g1, cells.h, bend)
    return np.where(np.isnan(upper), np.inf, upper), where


def _tolerance(land: Landscape, cells: _Intervals, tolerance: float | None) -> float:
    losses = np.append(cells.g0, cells.g1[-1])
    wanted = 1e-3 * float(np.ptp(losses)) if tolerance is None else tolerance
    return max(wanted, 8 * torch.finfo(land.dtype).eps * float(np.abs(losses).max()))


def _without_repeats(points: Tensor) -> Tensor:
    """Drop corners that repeat their predecessor; keep two even if they coincide."""
    moved = torch.linalg.vector_norm((points[1:] - points[:-1]).double(), dim=1) > 0
    if not bool(moved.any()):
        raise ValueError("the path's points all coincide, so there is nothing to bracket")
    first = torch.ones(1, dtype=torch.bool, device=points.device)
    return points[torch.cat([first, moved])]


def _profile(
    line: _Polyline, cells: _Intervals, upper: float, kind: BoundKind, cost: Cost
) -> Profile:
    total = line.knots[-1]
    s = np.append(line.knots[cells.segment] + cells.s0, total)
    losses = np.append(cells.g0, cells.g1[-1])
    top = int(np.argmax(losses))  # the first NaN if there is one
    lower = float(losses[top])
    upper = lower if math.isnan(lower) else max(lower, upper)
    last = len(cells.h)
    where = (
        (cells.segment[[top]], cells.s0[[top]])
        if top < last
        else (cells.segment[[-1]], cells.s1[[-1]])
    )
    slopes = "values and slopes" if line.slopes else "values alone"
    bound = Bound(
        lower,
        upper,
        "certified",
        kind,
        cost,
        f"adaptive sampling of {slopes}, {len(s)} samples",
    )
    return Profile(
        torch.from_numpy(s / total),
        torch.from_numpy(losses),
        bound,
        line.position(*where)[0],
        float(s[top] / total),
    )
