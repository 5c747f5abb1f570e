r"""Proven maxima along a polyline: exact where the loss is known in closed form, else enclosed.

What is proven is the loss of exact arithmetic at the float weights; the landscape's own
rounding comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.estimate import BoundKind
from thalweg.landscape.enclosure import SegmentEnclosure, SegmentRange, own_rounding
from thalweg.landscape.protocols import Landscape

__all__ = ["Proof", "affordable", "enclosed_maximum", "exact_maximum", "tent_upper"]

Array = NDArray[np.float64]
WORK = 2.0**32
"""Multiplications above which no proof is tried unless it is asked for."""
_TOGETHER = 32  # sub-intervals divided per round
_ROWS = 16  # parameter vectors per sweep


@dataclass(frozen=True)
class Proof:
    """Samples along a polyline and a proven upper end of its maximum.

    Attributes:
        segments: The segment of each sample, in order along the path.
        times: The sample's place on its segment, in [0, 1].
        losses: The loss there.
        upper: What the loss does not exceed.
        method: How that is known.
        kind: ``"exact"`` where the upper end is attained up to rounding.
    """

    segments: NDArray[np.int64]
    times: Array
    losses: Array
    upper: float
    method: str
    kind: BoundKind = "certified"


def tent_upper(g0: Array, g1: Array, h: Array, low: Array, high: Array) -> Array:
    r"""Upper bound of $g$ on $[0, h]$ from bounds of its ends and of its slope.

    $$\max_{0 \le s \le h} \min\bigl(g_0 + d^+ s,\; g_1 - d^- (h - s)\bigr)$$

    where the slope lies in $[d^-, d^+]$ wherever it exists: kinks are no exception.

    Args:
        g0: Upper bounds at the left ends.
        g1: Upper bounds at the right ends.
        h: Lengths of the intervals.
        low: $d^-$.
        high: $d^+$.

    Returns:
        The upper bounds, rounded up.

    Example:
        >>> one = np.ones(1)
        >>> tent_upper(0 * one, 0 * one, 2 * one, -one, one).round(9)
        array([1.])
    """
    slope = high - low
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.clip(np.where(slope > 0, (g1 - low * h - g0) / slope, 0.0), 0.0, h)
    peak = np.minimum(g0 + high * crossing, g1 - low * (h - crossing))
    peak = np.where(high <= 0, g0, np.where(low >= 0, g1, peak))
    size = np.abs(g0) + np.abs(g1) + (np.abs(low) + np.abs(high)) * h
    out: Array = np.maximum(np.maximum(g0, g1), peak) + 2.0**-49 * size
    return out


def affordable(enclosure: SegmentEnclosure, segments: int, max_samples: int) -> str | None:
    """Say which proof is cheap enough to be tried unasked: ``"exact"``, ``"enclosed"`` or none.

    A rule of sizes alone: at most `WORK` multiplications.
    """
    if segments * enclosure.exact_operations <= WORK / 16:  # sorting, not products
        return "exact"
    if max_samples * enclosure.operations <= WORK and 2 * segments <= max_samples:
        return "enclosed"
    return None


def _losses(land: Landscape, points: Tensor, segments: NDArray[np.int64], t: Array) -> Array:
    """Return the landscape's own losses at places of a polyline."""
    where = torch.as_tensor(segments, device=points.device)
    part = torch.as_tensor(t, device=points.device).to(points.dtype)[:, None]
    found = [
        land.loss(torch.lerp(points[i], points[i + 1], s)).double().cpu().numpy()
        for i, s in zip(torch.split(where, _ROWS), torch.split(part, _ROWS), strict=True)
    ]
    return np.concatenate(found)


def exact_maximum(
    land: Landscape, enclosure: SegmentEnclosure, points: Tensor, per_segment: int
) -> Proof:
    """Return the exact maximum over a polyline, with samples for a figure.

    Args:
        land: The landscape.
        enclosure: Its enclosure, which has exact maxima.
        points: The corners, none repeated.
        per_segment: Samples on each segment, beside the highest point of each.

    Returns:
        The samples and the upper end, which is ``certified`` only where rounding may be more than
        1e-6 of it.

    Raises:
        OverflowError: If a loss is not finite.
        ValueError: If the landscape's loss at the highest point is not what was computed.
    """
    segments, times, upper, lower = list[int](), list[float](), -np.inf, -np.inf
    breakpoints = 0
    for i in range(len(points) - 1):
        top = enclosure.exact_maximum(points[i], points[i + 1])
        upper, lower = max(upper, top.upper), max(lower, top.lower)
        breakpoints += top.breakpoints
        grid = np.unique(np.append(np.arange(per_segment) / per_segment, top.time))
        grid = grid[grid < 1]
        segments += [i] * len(grid)
        times += grid.tolist()
    where = np.array([*segments, len(points) - 2])
    t = np.array([*times, 1.0])
    losses = _losses(land, points, where, t)
    highest = float(losses.max())
    _agree(land, highest, lower, upper)
    spare = own_rounding(land.dtype, highest, upper, upper)
    sharp = upper - highest <= max(1e-6 * abs(upper), spare)
    words = f"piecewise quartics with {breakpoints} breakpoints"
    return Proof(where, t, losses, upper, words, "exact" if sharp else "certified")


def _agree(land: Landscape, value: float, low: float, high: float) -> None:
    """Refuse an enclosure that a loss lies outside of."""
    room = own_rounding(land.dtype, value, low, high)
    if np.isfinite(value) and not low - room <= value <= high + room:
        raise ValueError(
            f"the enclosure [{low:.9g}, {high:.9g}] does not hold the loss {value:.9g} that the "
            "landscape has there, so that nothing can be proven with it; please report this, and "
            'use bounds="estimated"'
        )


@dataclass
class _Cells:
    """Sub-intervals with what is known of each, in no order."""

    segment: NDArray[np.int64]
    t0: Array
    t1: Array
    g0: Array
    g1: Array
    found: dict[str, Array]

    def upper(self) -> Array:
        """Bound the loss over each: two tents that meet in the middle."""
        f, h = self.found, (self.t1 - self.t0) / 2
        left = tent_upper(self.g0, f["middle_hi"], h, f["slope_lo"], f["slope_hi"])
        right = tent_upper(f["middle_hi"], self.g1, h, f["slope_lo"], f["slope_hi"])
        return np.minimum(np.maximum(left, right), np.maximum(f["value_hi"], f["middle_hi"]))

    def where(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> _Cells:
        """Return some of them."""
        found = {name: values[rows] for name, values in self.found.items()}
        ends = self.t0[rows], self.t1[rows], self.g0[rows], self.g1[rows]
        return _Cells(self.segment[rows], *ends, found)

    def joined(self, other: _Cells) -> _Cells:
        """Return both."""
        return _Cells(
            np.concatenate([self.segment, other.segment]),
            np.concatenate([self.t0, other.t0]),
            np.concatenate([self.t1, other.t1]),
            np.concatenate([self.g0, other.g0]),
            np.concatenate([self.g1, other.g1]),
            {n: np.concatenate([v, other.found[n]]) for n, v in self.found.items()},
        )


_FIELDS = ("middle_lo", "middle_hi", "value_hi", "slope_lo", "slope_hi")


def _sorted_out(found: SegmentRange, rows: slice) -> dict[str, Array]:
    return {name: getattr(found, name)[rows] for name in _FIELDS}


class _Search:
    """Bisection of a polyline, the highest upper bounds first."""

    def __init__(self, land: Landscape, enclosure: SegmentEnclosure, points: Tensor) -> None:
        self.land, self.enclosure, self.points = land, enclosure, points
        self.asked = 0
        self.samples: list[tuple[NDArray[np.int64], Array, Array, Array, NDArray[np.bool_]]] = []
        self.best, self.rounding = -np.inf, 0.0
        self.least, self.most = np.inf, -np.inf

    def _value(self, segment: int, t: Array) -> tuple[Array, Array]:
        return self.enclosure.value_range(self.points[segment], self.points[segment + 1], t)

    def _range(self, segment: int, t0: Array, t1: Array) -> SegmentRange:
        self.asked += int((t1 > t0).sum())
        a, b = self.points[segment], self.points[segment + 1]
        return self.enclosure.slope_range(a, b, t0, t1)

    def _keep(
        self, segment: int, t: Array, low: Array, high: Array, *, middle: bool = False
    ) -> None:
        self.samples.append((np.full(len(t), segment), t, low, high, np.full(len(t), middle)))
        self.best = max(self.best, float(low.max()))
        self.least, self.most = min(self.least, float(low.min())), max(self.most, float(high.max()))
        self.rounding = max(self.rounding, float((high - low).max()))

    def first(self, per_segment: int) -> _Cells:
        """Enclose every segment in `per_segment` equal parts, and the loss at their ends."""
        knots = np.arange(per_segment + 1) / per_segment
        left, right, points = knots[:-1], knots[1:], self.points
        lows, highs = zip(
            *(self._value(i, left) for i in range(len(points) - 1)),
            self._value(len(points) - 2, knots[-1:]),
            strict=True,
        )
        starts = np.concatenate(highs)  # a corner is the end of one segment and starts the next
        parts = []
        for i in range(len(points) - 1):
            ends = starts[i * per_segment : (i + 1) * per_segment + 1]
            cells = _sorted_out(self._range(i, left, right), slice(0, per_segment))
            parts.append(_Cells(np.full(per_segment, i), left, right, ends[:-1], ends[1:], cells))
            self._keep(i, left, lows[i], highs[i])
            middle = cells["middle_lo"], cells["middle_hi"]
            self._keep(i, (left + right) / 2, *middle, middle=True)
        self._keep(len(points) - 2, knots[-1:], lows[-1], highs[-1])
        cells_all = parts[0]
        for part in parts[1:]:
            cells_all = cells_all.joined(part)
        return cells_all

    def divide(self, cells: _Cells) -> _Cells:
        """Return the halves of some sub-intervals, which inherit the slopes' bounds."""
        out = None
        for i in np.unique(cells.segment):
            mine = cells.where(np.flatnonzero(cells.segment == i))
            middle, at = (mine.t0 + mine.t1) / 2, mine.found["middle_hi"]
            t0, t1 = np.append(mine.t0, middle), np.append(middle, mine.t1)
            found = _sorted_out(self._range(int(i), t0, t1), slice(0, len(t0)))
            for name, narrower in (("slope_lo", np.maximum), ("slope_hi", np.minimum)):
                found[name] = narrower(found[name], np.tile(mine.found[name], 2))
            new = _Cells(
                np.full(len(t0), i), t0, t1, np.append(mine.g0, at), np.append(at, mine.g1), found
            )
            middle_values = found["middle_lo"], found["middle_hi"]
            self._keep(int(i), (t0 + t1) / 2, *middle_values, middle=True)
            out = new if out is None else out.joined(new)
        assert out is not None, "divide() needs sub-intervals"
        return out

    def worth(self, tolerance: float | None) -> float:
        """Return the width to reach; rounding allows no less than four times its bound."""
        wanted = 1e-3 * (self.most - self.least) if tolerance is None else tolerance
        size = max(abs(self.least), abs(self.most))
        floor = 8 * torch.finfo(self.land.dtype).eps * size
        return max(wanted, floor, 4 * self.rounding)

    def proof(self, upper: float) -> Proof:
        """Return the samples in order, those that the landscape is asked for as it has them.

        They are the corners, the highest of all, and the highest middle of a sub-interval: both
        enclosures, of places and of sub-intervals, are held against the landscape.
        """
        parts = [np.concatenate(part) for part in zip(*self.samples, strict=True)]
        order = np.lexsort((parts[1], parts[0]))
        segment, t, low, high, middle = (part[order] for part in parts)
        losses = (low + high) / 2
        highest = int(np.argmax(losses)), int(np.argmax(np.where(middle, losses, -np.inf)))
        own = np.union1d(np.flatnonzero((t == 0) | (t == 1)), highest)
        checked = _losses(self.land, self.points, segment[own], t[own])
        for place, value in zip(own, checked, strict=True):
            _agree(self.land, float(value), float(low[place]), float(high[place]))
        losses[own] = checked
        return Proof(segment, t, losses, upper, f"interval enclosure of {self.asked} sub-intervals")


@np.errstate(invalid="ignore", over="ignore")
def enclosed_maximum(
    land: Landscape,
    enclosure: SegmentEnclosure,
    points: Tensor,
    *,
    tolerance: float | None,
    max_samples: int,
    per_segment: int,
    patient: bool,
    level: float | None = None,
) -> tuple[Proof | None, float]:
    r"""Bound the maximum over a polyline by enclosures of sub-intervals, halved adaptively.

    Args:
        land: The landscape, asked only at the corners and at the top.
        enclosure: Its enclosure.
        points: The corners, none repeated.
        tolerance: The width to reach; None for 1e-3 of the range of the losses seen.
        max_samples: How many sub-intervals may be enclosed.
        per_segment: Sub-intervals of each segment at first.
        patient: Whether to go on where the budget will not do: halving divides the excess of
            a sub-interval by four, so that $\sum_i \sqrt{\text{excess}_i / \text{tolerance}}$ are
            needed; past half the budget one gives up if that is four times what is left.
        level: Stop once the bracket lies on one side of it.

    Returns:
        The proof, None where a bound is not finite; and the tolerance.

    Raises:
        ValueError: If a loss lies outside its enclosure.
    """
    search = _Search(land, enclosure, points)
    cells, settled = search.first(per_segment), -np.inf
    while True:
        upper = cells.upper()
        if not np.isfinite(upper).all():
            return None, 0.0
        worth = search.worth(tolerance)
        over, target = upper - search.best, worth
        if level is not None:
            target = max(worth, level - search.best)
        wide = over > target
        settled = max(settled, float(upper[~wide].max(initial=-np.inf)))
        cells, upper, over = cells.where(wide), upper[wide], over[wide]
        room = (max_samples - search.asked) // 2
        need = float(np.sqrt(over / max(target, 1e-300)).sum()) if len(over) else 0.0
        hopeless = not patient and 2 * search.asked > max_samples and need > 8 * room
        above = level is not None and search.best > level
        if not len(upper) or room <= 0 or hopeless or above:
            break
        order = np.argsort(-upper, kind="stable")
        chosen, rest = order[: min(room, _TOGETHER)], order[min(room, _TOGETHER) :]
        cells = cells.where(np.sort(rest)).joined(search.divide(cells.where(np.sort(chosen))))
    top = max(settled, float(upper.max(initial=-np.inf)))
    return search.proof(top), worth
