r"""Exact maxima on segments, for one hidden layer of ReLU units with square loss.

Along $a + t (b - a)$ every pre-activation is linear in t, the outputs are piecewise quadratic
and the loss is piecewise quartic, with a breakpoint wherever a unit switches for an example.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import NDArray

__all__ = ["SegmentMaximum", "ShallowNet", "shallow_maximum"]

Array = NDArray[np.float64]
Data = Callable[[], Iterable[tuple[Array, Array]]]
MOST = 2**17
"""Breakpoints that are sorted together, so that memory does not grow with their number."""
REFINEMENTS = 12
"""How often the highest part of a segment may be cut in four to lessen its rounding."""
CHUNK = 2**20
"""Numbers in one array of quadratics."""
_UNIT = 2.0**-52
_BERNSTEIN = np.array(
    [[math.comb(i, k) / math.comb(4, k) if k <= i else 0.0 for k in range(5)] for i in range(5)]
)
_SHIFT = np.array([[math.comb(j, k) if j >= k else 0 for j in range(5)] for k in range(5)])


@dataclass(frozen=True)
class SegmentMaximum:
    """The maximum of the loss on a segment, up to rounding.

    Attributes:
        lower: A loss that is attained, less rounding.
        upper: What the loss does not exceed anywhere, rounding included.
        time: Where it is attained, in [0, 1].
        breakpoints: How many times a unit switches for an example.
    """

    lower: float
    upper: float
    time: float
    breakpoints: int


@dataclass(frozen=True, eq=False)
class ShallowNet:
    r"""The weights of $f(x) = V\,\mathrm{relu}(W x + b) + c$.

    Args:
        weight: $W$, `(units, inputs)`.
        bias: $b$, `(units,)`; zeros where there is none.
        head: $V$, `(outputs, units)`.
        offset: $c$, `(outputs,)`; zeros where there is none.
    """

    weight: Float[ndarray, "units inputs"]
    bias: Float[ndarray, " units"]
    head: Float[ndarray, "outputs units"]
    offset: Float[ndarray, " outputs"]


@dataclass
class _Slab:
    """Part of the segment, with the loss as one quartic and its changes at breakpoints."""

    start: float
    width: float
    quartic: Array
    error: float
    times: list[Array]
    changes: list[Array]


class _Lines:
    """Pre-activations and outgoing weights of some examples along the segment."""

    def __init__(self, a: ShallowNet, b: ShallowNet, x: Array) -> None:
        step = b.weight - a.weight
        self.p0 = x @ a.weight.T + a.bias
        self.p1 = x @ step.T + (b.bias - a.bias)
        size = np.abs(x) @ (np.abs(a.weight) + np.abs(step)).T
        size += np.abs(a.bias) + np.abs(b.bias - a.bias)
        self.lost = (x.shape[1] + 8) * _UNIT * size

    def roots(self, start: float = 0.0, width: float = 1.0) -> Array:
        """Return where each unit switches; NaN or infinity where it never does."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            roots: Array = -(self.p0 + start * self.p1) / (width * self.p1)
        return roots


def _chunks(data: Data, units: int, outputs: int) -> Iterable[tuple[Array, Array]]:
    step = max(1, CHUNK // (3 * units * outputs))
    for x, y in data():
        for first in range(0, len(x), step):
            yield x[first : first + step], y[first : first + step]


def _edges(a: ShallowNet, b: ShallowNet, data: Data, most: int) -> tuple[Array, int, int]:
    """Return where to cut the segment, the number of breakpoints and that of examples."""
    grid = np.linspace(0, 1, 4097)
    found, examples = np.zeros(len(grid) - 1), 0
    for x, _ in _chunks(data, len(a.weight), len(a.head)):
        roots = _Lines(a, b, x).roots()
        found += np.histogram(roots[(roots > 0) & (roots < 1)], bins=grid)[0]
        examples += len(x)
    edges, held = [0.0], 0.0
    for right, count in zip(grid[1:], found, strict=True):
        if held and held + count > most:
            edges.append(float(right - (grid[1] - grid[0])))
            held = 0.0
        held += count
    return np.array([*edges, 1.0]), int(found.sum()), examples


def _square(f: Array) -> Array:
    """Return the quartics of sums over outputs of squared quadratics `(..., outputs, 3)`."""
    f0, f1, f2 = f[..., 0], f[..., 1], f[..., 2]
    parts = (f0 * f0, 2 * f0 * f1, 2 * f0 * f2 + f1 * f1, 2 * f1 * f2, f2 * f2)
    return np.stack([part.sum(-1) for part in parts], -1)


def _add(slab: _Slab, a: ShallowNet, b: ShallowNet, x: Array, y: Array) -> None:
    """Add some examples' quartics and their changes to a slab, in its own variable."""
    lines = _Lines(a, b, x)
    p0, p1 = lines.p0 + slab.start * lines.p1, slab.width * lines.p1
    step = b.head - a.head
    v0, v1 = a.head + slab.start * step, slab.width * step
    c0 = a.offset + slab.start * (b.offset - a.offset)
    c1 = slab.width * (b.offset - a.offset)
    parts = np.empty((*p0.shape, len(v0), 3))  # examples, units, outputs, powers
    parts[..., 0] = p0[..., None] * v0.T
    parts[..., 1] = p0[..., None] * v1.T + p1[..., None] * v0.T
    parts[..., 2] = p1[..., None] * v1.T
    roots = lines.roots(slab.start, slab.width)
    inside = (roots > 0) & (roots < 1)
    active = (p0 > 0) | ((p0 == 0) & (p1 > 0))
    left = np.einsum("eu,euop->eop", active.astype(float), parts)
    left[..., 0] += c0 - y
    left[..., 1] += c1
    slab.error += _lost(lines, p0, p1, v0, v1, parts, np.abs(c0 - y) + np.abs(c1) + np.abs(y))
    count = int(inside.sum(1).max(initial=0))
    order = np.argsort(np.where(inside, roots, np.inf), axis=1)[:, :count]
    switches = np.take_along_axis(inside, order, 1)
    sign = np.where(switches, np.sign(np.take_along_axis(p1, order, 1)), 0.0)
    turned = np.take_along_axis(parts, order[..., None, None], 1) * sign[..., None, None]
    pieces = np.concatenate([left[:, None], left[:, None] + np.cumsum(turned, 1)], 1)
    quartics = _square(pieces)
    slab.quartic += quartics[:, 0].sum(0)
    slab.error += len(x) * _UNIT * float(np.abs(quartics[:, 0]).sum())
    slab.times.append(np.take_along_axis(roots, order, 1)[switches])
    slab.changes.append(np.diff(quartics, axis=1)[switches])


def _lost(
    lines: _Lines, p0: Array, p1: Array, v0: Array, v1: Array, parts: Array, constant: Array
) -> float:
    r"""Bound what rounding may change in the summed squares, breakpoints included.

    A computed breakpoint may lie on the wrong side of t only where the pre-activation is
    below its own rounding error, so that a unit's contribution is wrong by no more than
    that error times its outgoing weight.
    """
    head = np.abs(v0) + np.abs(v1)
    near = 6 * lines.lost + 16 * _UNIT * (np.abs(p0) + np.abs(p1))
    size = constant + np.abs(parts).sum((1, 3))
    lost = near @ head.T + (p0.shape[1] + 12) * _UNIT * size
    terms = 2 * size * lost + lost**2 + (size.shape[1] + 8) * _UNIT * size**2
    return float(terms.sum()) * (1 + 1e-9)


def _pieces(slab: _Slab) -> tuple[Array, Array, Array, float]:
    """Return left ends, widths and Bernstein coefficients of the pieces, and their rounding."""
    times = np.concatenate(slab.times) if slab.times else np.zeros(0)
    changes = np.concatenate(slab.changes) if slab.changes else np.zeros((0, 5))
    order = np.argsort(times, kind="stable")
    left = np.concatenate([[0.0], times[order]])
    width = np.diff(np.append(left, 1.0))
    sums = slab.quartic + np.concatenate([np.zeros((1, 5)), np.cumsum(changes[order], 0)])
    lost = _UNIT * float(np.abs(changes).sum() + 2 * np.abs(sums).sum())
    lost += 2.0**-45 * float(np.abs(sums).sum(1).max())
    powers = left[:, None] ** np.arange(5)
    local = np.zeros_like(sums)
    for k in range(5):
        for j in range(k, 5):
            local[:, k] += _SHIFT[k, j] * sums[:, j] * powers[:, j - k]
    return left, width, (local * width[:, None] ** np.arange(5)) @ _BERNSTEIN.T, lost


def _halves(control: Array) -> tuple[Array, Array]:
    """Divide Bezier quartics in the middle (de Casteljau)."""
    rows, left, right = control, [control[:, 0]], [control[:, -1]]
    while rows.shape[1] > 1:
        rows = (rows[:, 1:] + rows[:, :-1]) / 2
        left.append(rows[:, 0])
        right.append(rows[:, -1])
    return np.stack(left, 1), np.stack(right[::-1], 1)


def _climb(left: Array, width: Array, control: Array) -> tuple[float, float, float]:
    """Return the highest value met on some quartic pieces, its time and an upper bound."""
    best, time = -math.inf, 0.0
    scale = float(np.abs(control).max())
    for _ in range(64):
        ends = np.maximum(control[:, 0], control[:, -1])
        top = int(np.argmax(ends))
        if ends[top] > best:
            best = float(ends[top])
            time = float(left[top] + (0.0 if control[top, 0] >= control[top, -1] else width[top]))
        upper = control.max(1)
        open_ = upper > best + 2.0**-50 * scale
        if not open_.any():
            return best, time, max(best, min(float(upper.max()), best + 2.0**-50 * scale))
        left, width, control = left[open_], width[open_] / 2, control[open_]
        one, two = _halves(control)
        left = np.concatenate([left, left + width])
        width = np.concatenate([width, width])
        control = np.concatenate([one, two])
    return best, time, max(best, float(control.max()))


@np.errstate(over="ignore", invalid="ignore")
def shallow_maximum(
    a: ShallowNet,
    b: ShallowNet,
    data: Sequence[tuple[Array, Array]] | Data,
    *,
    factor: float | None = None,
    penalty: tuple[float, float, float] = (0.0, 0.0, 0.0),
    most: int = MOST,
) -> SegmentMaximum:
    r"""Return the exact maximum of a shallow ReLU network's square loss on a segment.

    $$ \max_{0 \le t \le 1} \frac{c}{n} \sum_{i=1}^n |f_{a + t (b - a)}(x_i) - y_i|^2 + r(t) $$

    The quartic coefficients of the pieces are one sum at the left end and cumulative sums of
    the changes at the sorted breakpoints (up to units times examples of them; the segment is cut
    so that at most `most` are held at once). Pieces whose Bernstein bound reaches above the
    highest end of a piece are divided until the bracket is closed to rounding. A running bound
    on all rounding errors is added to the upper end (Higham 2002, chapter 3); where it is
    large, as beside a needle, the highest part of the segment is cut and summed anew.

    Args:
        a: Weights at t = 0.
        b: Weights at t = 1.
        data: Pairs ``(inputs (n, d), targets (n, outputs))``, or a function that returns them
            anew each time, for data that are streamed.
        factor: $c$; by default one over the number of outputs, as ``F.mse_loss`` has it.
        penalty: Coefficients of $r(t) = r_0 + r_1 t + r_2 t^2$.
        most: How many breakpoints are held at once.

    Returns:
        The maximum, bracketed to rounding.

    Raises:
        ValueError: If the shapes do not fit, or a weight is not finite.
        OverflowError: If the loss is not finite somewhere.

    References:
        N. J. Higham (2002), Accuracy and stability of numerical algorithms, SIAM.

    Example:
        >>> one = np.ones((1, 1))
        >>> a = ShallowNet(one, np.zeros(1), -one, np.zeros(1))
        >>> b = ShallowNet(-one, np.zeros(1), one, np.zeros(1))
        >>> top = shallow_maximum(a, b, [(one, one)])
        >>> round(top.upper, 12), top.time, top.breakpoints     # (-1 - 1)^2 at the start
        (4.0, 0.0, 1)
    """
    source: Data = data if callable(data) else lambda: data
    _check(a, b)
    edges, breakpoints, examples = _edges(a, b, source, most)
    if not examples:
        raise ValueError("there is no data, so there is no loss")
    scale = (1.0 / len(a.head) if factor is None else factor) / examples

    def top_of(start: float, stop: float) -> _Top:
        slab = _Slab(start, stop - start, np.zeros(5), 0.0, [], [])
        for x, y in _chunks(source, len(a.weight), len(a.head)):
            _add(slab, a, b, x, y)
        return _top(slab, scale, penalty)

    tops = [top_of(start, stop) for start, stop in itertools.pairwise(edges.tolist())]
    for _ in range(REFINEMENTS):
        high = max(tops, key=lambda top: top.upper)
        below = max(top.lower for top in tops)
        if high.final or high.upper - below <= 1e-10 * (1 + abs(high.upper)):
            break
        tops.remove(high)
        cuts = np.linspace(high.start, high.stop, 5).tolist()
        parts = [top_of(start, stop) for start, stop in itertools.pairwise(cuts)]
        tops += [replace(part, final=part.room > high.room / 2) for part in parts]
    best = max(tops, key=lambda top: top.lower)
    return SegmentMaximum(
        best.lower, max(top.upper for top in tops), min(1.0, best.time), breakpoints
    )


@dataclass(frozen=True)
class _Top:
    """The highest point of a slab, bracketed; final if a narrower slab would not help."""

    start: float
    stop: float
    lower: float
    upper: float
    time: float
    room: float
    final: bool = False


def _top(slab: _Slab, scale: float, penalty: tuple[float, float, float]) -> _Top:
    """Bracket the highest point of a slab's loss, rounding included."""
    left, width, control, lost = _pieces(slab)
    extra, extra_lost = _quadratic(penalty, slab)
    control = scale * control + _bernstein_of(extra, left, width)
    value, where, top = _climb(left, width, control)
    room = (scale * (slab.error + lost)) * (1 + 1e-9) + extra_lost
    room += 2.0**-46 * float(np.abs(control).max())
    if not math.isfinite(value + room):
        raise OverflowError("the loss is not finite on this segment, so it has no maximum")
    time = slab.start + where * slab.width
    return _Top(slab.start, slab.start + slab.width, value - room, top + room, time, room)


def _quadratic(penalty: tuple[float, float, float], slab: _Slab) -> tuple[Array, float]:
    """Return a quadratic of t in the slab's own variable, and its rounding."""
    r0, r1, r2 = penalty
    s, w = slab.start, slab.width
    local = np.array([r0 + s * r1 + s * s * r2, w * (r1 + 2 * s * r2), w * w * r2, 0.0, 0.0])
    return local, 64 * _UNIT * (abs(r0) + abs(r1) + abs(r2))


def _bernstein_of(quadratic: Array, left: Array, width: Array) -> Array:
    """Return the Bernstein coefficients of one quadratic on every piece."""
    q0, q1, q2 = quadratic[:3]
    zero = np.zeros_like(left)
    local = np.stack(
        [q0 + left * (q1 + left * q2), width * (q1 + 2 * left * q2), width**2 * q2, zero, zero], 1
    )
    out: Array = local @ _BERNSTEIN.T
    return out


def _check(a: ShallowNet, b: ShallowNet) -> None:
    for name in ("weight", "bias", "head", "offset"):
        one, two = getattr(a, name), getattr(b, name)
        if one.shape != two.shape:
            raise ValueError(
                f"{name} has shape {one.shape} at one end and {two.shape} at the other"
            )
        if not (np.isfinite(one).all() and np.isfinite(two).all()):
            raise ValueError(f"{name} holds NaN or infinite values")
    units, outputs = len(a.weight), len(a.head)
    shapes = (a.bias.shape, a.head.shape, a.offset.shape)
    if shapes != ((units,), (outputs, units), (outputs,)):
        raise ValueError(
            f"weight {a.weight.shape}, bias {shapes[0]}, head {shapes[1]} and offset {shapes[2]} "
            "do not fit: (units, inputs), (units,), (outputs, units), (outputs,) are needed"
        )
