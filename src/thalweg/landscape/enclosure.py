r"""Rigorous bounds of the loss and its slope along a segment, by interval arithmetic.

A landscape that can prove such bounds is `Enclosed`. `ModelLandscape` is, where its network is
a chain of known layers with a known loss; see `NetworkEnclosure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from thalweg.landscape.data import cut, leading
from thalweg.landscape.enclosure_layers import (
    Activation,
    Affine,
    Flatten,
    Jet,
    Layer,
    Segment,
    Value,
    slack,
)
from thalweg.landscape.enclosure_losses import SquaredError
from thalweg.landscape.enclosure_trace import NoEnclosure, names_of, recognise
from thalweg.landscape.shallow import SegmentMaximum, ShallowNet, shallow_maximum
from thalweg.landscape.sweep import Sweep

__all__ = [
    "Enclosed",
    "Enclosures",
    "NetworkEnclosure",
    "NoEnclosure",
    "SegmentEnclosure",
    "SegmentRange",
    "enclose",
    "own_rounding",
]

Array = NDArray[np.float64]
TEMPORARIES = 32
"""Tensors of a layer's width that are held at once for each sub-interval and example."""
CACHED = 2**16
"""Numbers in one of them, so that they stay in the processor's cache."""
PASSES = 2.0
"""Passes that one sub-interval counts: five products per layer, a gradient has three."""
PASSES_AT_POINT = 1.0
"""Passes that the loss at one point counts: a product per layer, and one more of the data."""


@dataclass(frozen=True, eq=False)
class SegmentRange:
    r"""Bounds of $g(t) = L(a + t (b - a))$ over sub-intervals $[t_0, t_1]$, in exact arithmetic.

    Attributes:
        middle_lo: Lower bounds of g at the middles, apart from `middle_hi` by rounding only.
        middle_hi: Upper bounds there.
        value_lo: Lower bounds of g over the sub-intervals.
        value_hi: Upper bounds.
        slope_lo: Lower bounds of $g'$ wherever it exists, so that difference quotients obey.
        slope_hi: Upper bounds.
    """

    middle_lo: Array
    middle_hi: Array
    value_lo: Array
    value_hi: Array
    slope_lo: Array
    slope_hi: Array


@runtime_checkable
class SegmentEnclosure(Protocol):
    """What can bound the loss along any segment.

    Attributes:
        operations: About how many multiplications one sub-interval takes.
        exact_operations: The same for an exact maximum; infinity where there is none.
    """

    @property
    def operations(self) -> float:
        """About how many multiplications one sub-interval takes."""
        ...

    @property
    def exact_operations(self) -> float:
        """About how many multiplications `exact_maximum` takes; infinity where it cannot be."""
        ...

    def slope_range(
        self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"], t0: Array, t1: Array
    ) -> SegmentRange:
        """Bound loss and slope over the sub-intervals [t0, t1] of the segment from a to b."""
        ...

    def value_range(
        self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"], t: Array
    ) -> tuple[Array, Array]:
        """Bound the loss at places of the segment from a to b, wrong by rounding only."""
        ...

    def exact_maximum(self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"]) -> SegmentMaximum:
        """Return the maximum on the segment, where `exact_operations` is finite."""
        ...


@runtime_checkable
class Enclosed(Protocol):
    """A landscape that may be able to bound itself."""

    def enclosure(self) -> SegmentEnclosure:
        """Return what bounds it.

        Raises:
            NoEnclosure: If there is nothing; the message says why.
        """
        ...


class NetworkEnclosure:
    r"""Bounds of a network's loss along segments, by centre-radius interval arithmetic.

    Over $[t_m - h, t_m + h]$ every activation is enclosed with its derivative in t: the
    derivative by the chain rule on intervals (weights $W(t_m) \pm h |W_b - W_a|$; a kink's slope
    is the interval between its sides), the value by the mean value theorem,
    $x(t) \in x(t_m) \pm h |x'|$. The bounds of the slope are wrong by $O(h)$, so that lines drawn
    with them from known values are wrong by $O(h^2)$, at kinks too, where a bound on the second
    derivative says nothing.

    The loss bounded is that of exact arithmetic at the float weights and data; what the
    landscape computes in its own dtype differs by rounding. A sub-interval takes five products
    per layer and is counted as two passes (`PASSES`), no loss, gradient or product.

    References:
        R. E. Moore, R. B. Kearfott and M. J. Cloud (2009), Introduction to interval analysis,
        SIAM, chapter 6 (mean value form). S. M. Rump (1999), Fast and parallel interval
        arithmetic, BIT 39 (centre-radius products).
    """

    def __init__(self, sweep: Sweep) -> None:
        """Recognise the network, or raise `NoEnclosure`."""
        self._sweep = sweep
        self.layers, self.loss = recognise(sweep)
        network = sweep.network
        self._constants = {
            name: value.double() for name, value in network.reference.items() if value.ndim
        }
        self._widest = 0
        self.operations = self._count()
        self.exact_operations = self._count_exact()
        self._check()

    def _count(self) -> float:
        """Return the multiplications of one sub-interval, by a run on one example."""
        network = self._sweep.network
        theta = network.theta()
        example = cut(next(self._sweep.batches()), 0, 1)
        segment = self._segment(theta, theta, np.zeros(1), np.zeros(1))
        x: Tensor | Jet = example[0].double()
        total = 0.0
        for layer in self.layers:
            new = _go(layer, x, segment)
            if isinstance(new, Jet):
                width = new.centre.numel()
                self._widest = max(self._widest, width)
                total += 60.0 * width
                weight = getattr(layer, "weight", None)
                if weight is not None and isinstance(x, Jet):
                    total += 5.0 * width * math.prod(segment.step[weight].shape[1:])
            x = new
        return total * self._sweep.census.examples

    def _weights(self, theta: Tensor) -> dict[str, Tensor]:
        views = self._sweep.network.spec.views(theta.double())
        return {**self._constants, **views}

    def _segment(self, a: Tensor, b: Tensor, t0: Array, t1: Array) -> Segment:
        first, last = self._weights(a), self._weights(b)
        middle, half = (torch.from_numpy(part).to(a.device) for part in _halved(t0, t1))
        used = {n for la in self.layers for n in names_of(la)}
        step = {name: last[name] - first[name] for name in used}
        return Segment({name: first[name] for name in used}, step, middle, half)

    def _check(self) -> None:
        """Refuse an enclosure that does not hold the loss where the model stands."""
        theta = self._sweep.network.theta()
        value = float(self._sweep.losses(theta[None])[0])
        found = self.slope_range(theta, theta, np.zeros(1), np.zeros(1))
        room = own_rounding(theta.dtype, value, found.middle_lo[0], found.middle_hi[0])
        if not found.middle_lo[0] - room <= value <= found.middle_hi[0] + room:
            raise NoEnclosure(
                f"the enclosure [{found.middle_lo[0]:.9g}, {found.middle_hi[0]:.9g}] does not hold "
                f"the loss {value:.9g} at the model's own parameters"
            )

    def slope_range(
        self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"], t0: Array, t1: Array
    ) -> SegmentRange:
        """Bound loss and slope over the sub-intervals [t0, t1] of the segment from a to b.

        Args:
            a: Start, `(dim,)`.
            b: End, `(dim,)`.
            t0: Left ends in [0, 1], `(m,)`.
            t1: Right ends, `(m,)`.

        Returns:
            The bounds, `(m,)` each.

        Raises:
            ValueError: If a sub-interval is reversed or leaves [0, 1].
        """
        t0, t1 = np.asarray(t0, dtype=np.float64), np.asarray(t1, dtype=np.float64)
        if not ((t0 >= 0) & (t0 <= t1) & (t1 <= 1)).all():
            raise ValueError("sub-intervals must obey 0 <= t0 <= t1 <= 1")
        self._sweep.ledger.add(passes=PASSES * self._sweep.share * len(t0))
        return self._finish(a, b, t0, t1, self._summed(a, b, t0, t1, self._over, 4))

    def value_range(
        self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"], t: Array
    ) -> tuple[Array, Array]:
        """Bound the loss at places of the segment from a to b: `middle_lo` and `middle_hi` alone.

        Args:
            a: Start, `(dim,)`.
            b: End, `(dim,)`.
            t: Places in [0, 1], `(m,)`.

        Returns:
            Lower and upper bounds, `(m,)` each, apart by rounding only.

        Raises:
            ValueError: If a place lies outside [0, 1].
        """
        t = np.asarray(t, dtype=np.float64)
        if not ((t >= 0) & (t <= 1)).all():
            raise ValueError("places on a segment must obey 0 <= t <= 1")
        self._sweep.ledger.add(passes=PASSES_AT_POINT * self._sweep.share * len(t))
        return self._settled(a, b, t, self._summed(a, b, t, t, self._at, 2))

    def _summed(
        self,
        a: Tensor,
        b: Tensor,
        t0: Array,
        t1: Array,
        parts: Callable[[Any, Segment], Iterator[Array]],
        count: int,
    ) -> list[Array]:
        """Return the sums over all examples of the `count` parts of some of them, `(m,)` each."""
        sums = [np.zeros(len(t0)) for _ in range(count)]
        with self._sweep.guard(), torch.no_grad():
            for batch in self._sweep.batches():
                for piece, part in self._pieces(batch, len(t0)):
                    segment = self._segment(a, b, t0[part], t1[part])
                    for total, new in zip(sums, parts(piece, segment), strict=True):
                        total[part] += new
        return sums

    def _pieces(self, batch: Any, intervals: int) -> Iterator[tuple[Any, slice]]:
        """Yield examples and sub-intervals that fit the memory cap together."""
        most = min(self._sweep.budget.cap / (8 * TEMPORARIES), CACHED)
        room = max(1, int(most / self._widest))
        examples = min(leading(batch), room)
        together = max(1, min(intervals, room // examples, 64))
        for start in range(0, leading(batch), examples):
            piece = cut(batch, start, min(start + examples, leading(batch)))
            for first in range(0, intervals, together):
                yield piece, slice(first, min(first + together, intervals))

    def _at(self, batch: Any, segment: Segment) -> Iterator[Array]:
        x: Tensor | Value = batch[0].double()
        for layer in self.layers:
            x = layer.value(x, segment)
        if not isinstance(x, Value):
            raise NoEnclosure("the network has no layer with weights")
        value, error = self.loss.value(x, _targets(batch))
        u = slack(self._sweep.census.examples)
        for part in (value, (error + u * value.abs()) * (1 + u)):
            yield part.sum(1).cpu().numpy()

    def _over(self, batch: Any, segment: Segment) -> Iterator[Array]:
        x: Tensor | Jet = batch[0].double()
        for layer in self.layers:
            x = _go(layer, x, segment)
        if not isinstance(x, Jet):
            raise NoEnclosure("the network has no layer with weights")
        targets = _targets(batch)
        value, error, slope, spread = self.loss.jet(x, targets)
        u = slack(self._sweep.census.examples)  # of this sum, and of those over the pieces
        error = error + u * value.abs()
        spread = (spread + u * slope.abs()) * (1 + u)
        for part in (value, error * (1 + u), slope, spread):
            yield part.sum(1).cpu().numpy()

    @np.errstate(invalid="ignore", over="ignore")
    def _settled(self, a: Tensor, b: Tensor, t: Array, sums: list[Array]) -> tuple[Array, Array]:
        """Return bounds of the loss at places from the sums of values and errors."""
        count = self._sweep.census.examples
        value, error = (part / count for part in sums)
        if self._sweep.penalty:
            extra = _decay(self._sweep.penalty.decay, a, b, t, 0 * t)
            value, error = value + extra[0], error + extra[1]
        error = error + slack(count) * np.abs(value)
        return value - error, value + error

    @np.errstate(invalid="ignore", over="ignore")
    def _finish(
        self, a: Tensor, b: Tensor, t0: Array, t1: Array, sums: list[Array]
    ) -> SegmentRange:
        count = self._sweep.census.examples
        value, error, slope, spread = (part / count for part in sums)
        middle, half = _halved(t0, t1)
        if self._sweep.penalty:
            extra = _decay(self._sweep.penalty.decay, a, b, middle, half)
            value, error = value + extra[0], error + extra[1]
            slope, spread = slope + extra[2], spread + extra[3]
        u = slack(count)
        error = error + u * np.abs(value)
        spread = spread + u * np.abs(slope)
        reach = half * (np.abs(slope) + spread) * (1 + 2.0**-49)
        if not np.isfinite(value).all():
            value = np.where(np.isfinite(value), value, np.nan)
        return SegmentRange(
            value - error,
            value + error,
            value - error - reach,
            value + error + reach,
            slope - spread,
            slope + spread,
        )

    def _count_exact(self) -> float:
        """Return about how many multiplications an exact maximum takes; infinity if none can be."""
        chain = [layer for layer in self.layers if not isinstance(layer, Flatten)]
        kinds = tuple(type(layer) for layer in chain)
        if kinds != (Affine, Activation, Affine) or not isinstance(self.loss, SquaredError):
            return math.inf
        hidden, activation, head = chain
        if not (isinstance(hidden, Affine) and isinstance(head, Affine)):
            return math.inf
        if not isinstance(activation, Activation) or activation.kind != "relu":
            return math.inf
        self._shallow = hidden, head
        units, inputs = self._constants_shape(hidden.weight)
        outputs, width = self._constants_shape(head.weight)
        rows = next(self._sweep.batches())[0]
        if width != units or rows[0].numel() != inputs:  # one linear map for each of many rows
            return math.inf
        return self._sweep.census.examples * units * (inputs + 40.0 * outputs)

    def _constants_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._sweep.network.reference[name].shape)

    def exact_maximum(self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"]) -> SegmentMaximum:
        """Return the exact maximum, for one hidden layer of ReLU with square loss.

        Every time that the data are gone through counts as one pass.

        Raises:
            ValueError: If this is another network.
            OverflowError: If a weight or a loss is not finite.
        """
        if not math.isfinite(self.exact_operations) or not isinstance(self.loss, SquaredError):
            raise ValueError("exact maxima are for one hidden layer of ReLU with square loss")
        if not bool(torch.isfinite(torch.stack([a, b])).all()):
            raise OverflowError("a weight is not finite, so the loss has no maximum")
        sweep = self._sweep

        def data() -> Iterator[tuple[Array, Array]]:
            sweep.ledger.add(passes=sweep.share)
            for inputs, targets in sweep.batches():
                rows = inputs.double().flatten(1).cpu().numpy()
                yield rows, targets.double().reshape(len(rows), -1).cpu().numpy()

        with sweep.guard():
            first, last = self._net(a), self._net(b)
            return shallow_maximum(
                first, last, data, factor=self.loss.factor, penalty=self._decay(a, b)
            )

    def _decay(self, a: Tensor, b: Tensor) -> tuple[float, float, float]:
        start, step, decay = a.double(), b.double() - a.double(), self._sweep.penalty.decay
        return (
            decay / 2 * float(start @ start),
            decay * float(start @ step),
            decay / 2 * float(step @ step),
        )

    def _net(self, theta: Tensor) -> ShallowNet:
        weights = {name: value.cpu().numpy() for name, value in self._weights(theta).items()}
        hidden, head = self._shallow
        units, outputs = len(weights[hidden.weight]), len(weights[head.weight])
        return ShallowNet(
            weights[hidden.weight],
            weights[hidden.bias] if hidden.bias else np.zeros(units),
            weights[head.weight],
            weights[head.bias] if head.bias else np.zeros(outputs),
        )


def own_rounding(dtype: torch.dtype, value: float, low: float, high: float) -> float:
    r"""Return what a landscape's own rounding may amount to, of a loss enclosed in [low, high].

    The ends are apart by what float64 may lose, in first order linear in its unit: the same
    errors in `dtype` are as many times larger as its unit is. A floor of
    $2^{10} \epsilon (1 + |L|)$ covers what is not counted.
    """
    eps = torch.finfo(dtype).eps
    counted = (high - low) * (eps * 2.0**52) if math.isfinite(high - low) else math.inf
    return max(2.0**10 * eps * (1 + abs(value)), counted)


class Enclosures:
    """Remembers what a sweep's enclosure is, or why it has none; views of it ask anew."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._last: tuple[Sweep, NetworkEnclosure | NoEnclosure] | None = None

    def of(self, sweep: Sweep) -> NetworkEnclosure:
        """Return the sweep's enclosure.

        Raises:
            NoEnclosure: If it has none.
        """
        if self._last is None or self._last[0] is not sweep:
            try:
                self._last = sweep, NetworkEnclosure(sweep)
            except NoEnclosure as reason:
                self._last = sweep, reason
        found = self._last[1]
        if isinstance(found, NoEnclosure):
            raise NoEnclosure(str(found))
        return found


def _go(layer: Layer, x: Tensor | Jet, segment: Segment) -> Tensor | Jet:
    return layer.jet(x, segment) if isinstance(x, Jet) else layer.data(x, segment)


def _targets(batch: Any) -> Tensor:
    targets: Tensor = batch[1]
    return targets.double() if targets.is_floating_point() else targets


def _halved(t0: Array, t1: Array) -> tuple[Array, Array]:
    """Return the middles as floats, and half-widths that reach both ends from there."""
    middle = (t0 + t1) / 2
    return middle, np.maximum(middle - t0, t1 - middle) * (1 + 2.0**-50)


def _decay(
    decay: float, a: Tensor, b: Tensor, middle: Array, half: Array
) -> tuple[Array, Array, Array, Array]:
    r"""Return value, error, slope and spread of $\frac{\lambda}{2} |a + t (b - a)|^2$."""
    start, step = a.double(), b.double() - a.double()
    p0, p1, p2 = float(start @ start), float(start @ step), float(step @ step)
    u = slack(len(start))
    lost = decay * u * (p0 + p2)  # |p1| and its sum of sizes are at most (p0 + p2) / 2
    value = decay * (p0 / 2 + middle * p1 + middle**2 * p2 / 2)
    slope = decay * (p1 + middle * p2)
    return value, lost + 0 * value, slope, 3 * lost + decay * p2 * half * (1 + u)


def enclose(land: object) -> SegmentEnclosure:
    """Return what bounds a landscape along segments.

    Args:
        land: Any landscape.

    Returns:
        Its enclosure.

    Raises:
        NoEnclosure: If it has none; the message says why.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> enclose(FunctionLandscape(lambda x: (x**2).sum(), dim=2))
        Traceback (most recent call last):
            ...
        thalweg.landscape.enclosure_trace.NoEnclosure: a FunctionLandscape cannot bound itself
    """
    if isinstance(land, Enclosed):
        return land.enclosure()
    raise NoEnclosure(f"a {type(land).__name__} cannot bound itself")
