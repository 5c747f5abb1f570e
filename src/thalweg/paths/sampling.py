"""Bounds of a function between samples of its values and slopes along a polyline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.landscape.protocols import Landscape, Normalised

__all__ = [
    "Intervals",
    "Polyline",
    "chord_upper",
    "sample_maximum",
    "tangent_upper",
    "upper_of_values",
]

Array = NDArray[np.float64]
_ROWS = 16  # parameter vectors per sweep, so that memory does not grow with the samples
_TOGETHER = 8  # intervals divided per sweep
_OFF_MIDDLE = 0.382  # where an interval that looks settled is asked once more
_PROBES = 16  # how many such intervals


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


class Polyline:
    """Points, arc lengths and the landscape along them."""

    def __init__(self, land: Landscape, points: Tensor) -> None:
        self.land, self.points = land, points
        steps = points[1:] - points[:-1]
        self.lengths = torch.linalg.vector_norm(steps.double(), dim=1).cpu().numpy()
        self.knots = np.concatenate([[0.0], np.cumsum(self.lengths)])
        self.slopes = not (isinstance(land, Normalised) and land.batchnorm == "recompute")
        self.gradient_scale = 0.0

    def tangent(self, segments: NDArray[np.int64]) -> Tensor:
        """Return the unit vectors along segments."""
        where = torch.as_tensor(segments, device=self.points.device)
        length = torch.as_tensor(self.lengths[segments], device=self.points.device)
        step = self.points[where + 1] - self.points[where]
        return step / length.to(step.dtype)[:, None]

    def position(self, segments: NDArray[np.int64], s: Array) -> Tensor:
        """Return the points at arc lengths `s` of segments."""
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
class Intervals:
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
        """Their lengths."""
        return self.s1 - self.s0

    def split(self, at: NDArray[np.int64], s: Array, g: Array, d: Array) -> Intervals:
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
        return Intervals(**new)


def _initial(line: Polyline, per_segment: int) -> Intervals:
    segments = np.repeat(np.arange(len(line.lengths)), per_segment)
    fractions = np.tile(np.arange(per_segment) / per_segment, len(line.lengths))
    s = fractions * line.lengths[segments]
    last = len(line.lengths) - 1
    g, own, before = line.values(np.append(segments, last), np.append(s, line.lengths[last]))
    at_vertex = np.append(fractions[1:] == 0.0, False)
    right_slope = np.where(at_vertex, before[1:], own[1:])
    s1 = np.where(at_vertex, line.lengths[segments], np.append(s[1:], line.lengths[last]))
    return Intervals(segments, s, s1, g[:-1], g[1:], own[:-1], right_slope)


def _curvatures(line: Polyline, cells: Intervals, eps: float) -> Array:
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


def _second_differences(cells: Intervals, level: Array) -> Array:
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


@np.errstate(over="ignore", invalid="ignore")
def sample_maximum(
    line: Polyline,
    tolerance: float | None,
    max_samples: int,
    initial: int | None,
    curvature: float | None,
    safety: float,
    level: float | None,
) -> tuple[Intervals, float]:
    """Bracket the maximum by values and slopes at samples; see `bracket_maximum`.

    Returns:
        The intervals between the samples, and the upper end.
    """
    per_segment = initial or (16 if len(line.lengths) == 1 else 2)
    if not line.slopes:
        per_segment = max(2, per_segment)
    cells = _initial(line, per_segment)
    first = float(cells.h.max())
    probed = curvature is not None or tolerance == np.inf or level is not None
    upper = np.array([np.inf])
    while bool(np.isfinite(cells.g0).all() and np.isfinite(cells.g1).all()):
        upper, where = _uppers(line, cells, curvature, safety)
        best = max(float(cells.g0.max()), float(cells.g1.max()))
        worth = _tolerance(line.land, cells, tolerance)
        if level is not None:
            if best > level:
                break
            worth = max(worth, level - best)
        room = max_samples - len(cells.h) - 1
        wide = np.flatnonzero((upper > best + worth) & (cells.h > 1e-12 * line.knots[-1]))
        if not len(wide) and not probed:
            probed = True
            chosen = np.flatnonzero(cells.h >= first * (1 - 1e-9))
            highest = np.argsort(-upper[chosen], kind="stable")[: min(_PROBES, max(room, 0))]
            chosen = np.sort(chosen[highest])
            inside = _OFF_MIDDLE * cells.h[chosen]
        elif room <= 0 or not len(wide):
            break
        else:
            chosen = np.sort(wide[np.argsort(-upper[wide])][: min(room, _TOGETHER)])
            inside = np.clip(where[chosen], cells.h[chosen] / 4, 3 * cells.h[chosen] / 4)
        if not len(chosen):
            break
        s = cells.s0[chosen] + inside
        g, d, _ = line.values(cells.segment[chosen], s)
        cells = cells.split(chosen, s, g, d)
    return cells, float(upper.max())


def _uppers(
    line: Polyline, cells: Intervals, curvature: float | None, safety: float
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


def _tolerance(land: Landscape, cells: Intervals, tolerance: float | None) -> float:
    losses = np.append(cells.g0, cells.g1[-1])
    wanted = 1e-3 * float(np.ptp(losses)) if tolerance is None else tolerance
    return max(wanted, 8 * torch.finfo(land.dtype).eps * float(np.abs(losses).max()))


def upper_of_values(
    times: Array, values: Array, segments: NDArray[np.int64], eps: float, safety: float = 1.0
) -> float:
    """Estimate an upper end of a function's maximum from given samples of its values.

    Args:
        times: Where it was sampled, increasing, `(n,)`.
        values: What it was there.
        segments: The smooth piece that each interval between samples belongs to, `(n - 1,)`.
        eps: Rounding of the values.
        safety: How far the curvature of second differences extrapolates.

    Returns:
        The largest `chord_upper`; infinity where a piece has too few samples to tell.
    """
    none = np.full(len(times) - 1, np.nan)
    cells = Intervals(segments, times[:-1], times[1:], values[:-1], values[1:], none, none)
    level = 32 * eps * np.maximum(np.abs(cells.g0), np.abs(cells.g1))
    bend = _estimated_curvature(_second_differences(cells, level), False, safety)
    upper, _ = chord_upper(cells.g0, cells.g1, cells.h, bend)
    return float(np.where(np.isnan(upper), np.inf, upper).max())
