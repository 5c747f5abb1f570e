r"""Interval arithmetic along a segment: what each layer makes of values and their slopes.

For every sub-interval $[t_m - h, t_m + h]$ of a segment $a + t (b - a)$ and every example, a
`Jet` holds the value at the middle with its rounding error, an enclosure of the value and one
of its derivative in $t$, each as middle and radius. Radii are widened by more than what
float64 can lose (Rump 1999, "Fast and parallel interval arithmetic"; Higham 2002, section
3.1), so that exact arithmetic stays inside. The slope of a kink is the interval between its
two sides, which is what the mean value theorem needs of a Lipschitz function.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Activation",
    "Affine",
    "Convolution",
    "Flatten",
    "Jet",
    "Layer",
    "Pool",
    "Segment",
    "Value",
    "largest_of",
    "slack",
]

TINY = 1e-300
"""Added to radii: more than gradual underflow can lose."""


def slack(terms: int) -> float:
    """Return a bound on the relative rounding error of a sum of products, with room."""
    return (terms + 16) * 2.0**-51


@dataclass
class Value:
    """Values at the middles of sub-intervals: tensors `(intervals, examples, ...)`.

    Attributes:
        centre: The value at the middle.
        error: A bound on its rounding error, `(intervals, examples, 1, ...)`.
    """

    centre: Tensor
    error: Tensor

    def at_middle(self, linear: Callable[[Tensor], Tensor]) -> Value:
        """Apply a rearrangement of the entries of each example to the value at the middle."""
        centre = linear(self.centre)
        shape = (*self.error.shape[:2], *([1] * (centre.ndim - 2)))
        return Value(centre, self.error.reshape(shape))


@dataclass
class Jet(Value):
    """Values and slopes over sub-intervals: tensors `(intervals, examples, ...)`.

    Attributes:
        centre: The value at the middle.
        error: A bound on its rounding error, `(intervals, examples, 1, ...)`.
        mid: Middle of an enclosure of the value over the sub-interval.
        rad: Its radius.
        slope: Middle of an enclosure of the derivative in t.
        spread: Its radius.
    """

    mid: Tensor
    rad: Tensor
    slope: Tensor
    spread: Tensor

    def map(self, linear: Callable[[Tensor], Tensor]) -> Jet:
        """Apply a rearrangement of the entries of each example."""
        base = self.at_middle(linear)
        rest = (linear(part) for part in (self.mid, self.rad, self.slope, self.spread))
        return Jet(base.centre, base.error, *rest)


@dataclass
class Segment:
    """Sub-intervals of one segment, and the weights along it.

    Attributes:
        first: The weights at its start, by name, in float64.
        step: The weights at its end less those.
        middle: Middles of the sub-intervals, `(intervals,)`.
        half: Half their widths, `(intervals,)`.
    """

    first: Mapping[str, Tensor]
    step: Mapping[str, Tensor]
    middle: Tensor
    half: Tensor

    def along(self, values: Tensor, like: int) -> Tensor:
        """Reshape one number per sub-interval to broadcast over `like` axes."""
        return values.reshape(-1, *([1] * (like - 1)))

    def at_middle(self, name: str) -> Tensor:
        """Return a weight at every middle, `(intervals, ...)`."""
        step = self.step[name]
        return self.first[name] + self.along(self.middle, step.ndim + 1) * step

    def largest(self, name: str) -> Tensor:
        """Return a bound on a weight's size anywhere on the segment."""
        first, step = self.first[name].abs(), self.step[name].abs()
        return first + step


@runtime_checkable
class Layer(Protocol):
    """One layer: what it makes of data, of values at the middles, and of jets."""

    def data(self, x: Tensor, segment: Segment) -> Tensor | Jet:
        """Go on from data, which do not depend on t."""
        ...

    def value(self, x: Tensor | Value, segment: Segment) -> Tensor | Value:
        """Go on from data or from values at the middles, to values at the middles alone."""
        ...

    def jet(self, jet: Jet, segment: Segment) -> Jet:
        """Go on from a jet."""
        ...


def largest_of(x: Tensor) -> Tensor:
    """Return the largest size in each example, kept as axes of one."""
    return x.abs().amax(dim=tuple(range(2, x.ndim)), keepdim=True)


class _Linear(ABC):
    """What a linear layer and a convolution share: products of weights with entries."""

    def __init__(self, weight: str, bias: str | None) -> None:
        self.weight, self.bias = weight, bias

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the layer's product of entries `(intervals, examples, ...)` and weights."""

    @abstractmethod
    def spread_out(self, bias: Tensor, ndim: int) -> Tensor:
        """Reshape a bias `(..., outputs)` to broadcast over the outputs."""

    def _bias(self, segment: Segment, ndim: int) -> tuple[Tensor | float, Tensor | float]:
        if self.bias is None:
            return 0.0, 0.0
        return (
            self.spread_out(segment.at_middle(self.bias), ndim),
            self.spread_out(segment.step[self.bias], ndim),
        )

    def data(self, x: Tensor, segment: Segment) -> Jet:
        """Go on from data: the outputs are linear in t, so that one product serves all t."""
        first, step = segment.first[self.weight], segment.step[self.weight]
        start, rise = self.product(x[None], first), self.product(x[None], step)
        size = self.product(x[None].abs(), segment.largest(self.weight))
        bias, bias_step = self._bias(segment, start.ndim)
        middle = segment.along(segment.middle, start.ndim)
        if self.bias is not None:
            size = size + self.spread_out(segment.largest(self.bias), start.ndim)
        centre = start + middle * rise + bias
        slope = (rise + bias_step).expand_as(centre)
        spread = (slack(math.prod(first.shape[1:])) * size + TINY).expand_as(centre)
        error = largest_of(spread)
        rad = segment.along(segment.half, start.ndim) * (slope.abs() + spread) + error
        return Jet(centre, error, centre, rad, slope, spread)

    def value(self, x: Tensor | Value, segment: Segment) -> Value:
        """Go on from data, or from values at the middles: one product, two of data."""
        weight, largest = segment.at_middle(self.weight), segment.largest(self.weight)
        u = slack(math.prod(largest.shape[1:]))
        if isinstance(x, Tensor):
            centre, size = self.product(x[None], weight), self.product(x[None].abs(), largest)
            if self.bias is not None:
                size = size + self.spread_out(segment.largest(self.bias), size.ndim)
            error = (u * largest_of(size) + TINY).expand(len(centre), *[-1] * (size.ndim - 1))
            return Value(centre + self._bias(segment, centre.ndim)[0], error)
        centre = self.product(x.centre, weight) + self._bias(segment, x.centre.ndim)[0]
        norm = largest.flatten(1).sum(1).max()
        error = norm * (x.error * (1 + u) + u * largest_of(x.centre)) + TINY
        if self.bias is not None:
            error = error + u * segment.largest(self.bias).max()
        return Value(centre, error)

    def jet(self, jet: Jet, segment: Segment) -> Jet:
        r"""Go on from a jet: $y = W x$, $y' = W' x + W x'$ with $W' $ constant."""
        weight, step = segment.at_middle(self.weight), segment.step[self.weight]
        largest, steps = segment.largest(self.weight), step.abs()
        half = segment.along(segment.half, jet.mid.ndim)
        count = math.prod(step.shape[1:])
        size = jet.slope.abs() + jet.spread
        bias_step = self._bias(segment, jet.centre.ndim)[1]
        base = self.value(jet, segment)
        slope = self.product(jet.slope, weight) + self.product(jet.mid, step) + bias_step
        spread = self.product(jet.spread, weight.abs()) + self.product(jet.rad + half * size, steps)
        norm = largest.flatten(1).sum(1).max()
        step_norm = steps.flatten(1).sum(1).max()
        u = slack(count)
        lost = norm * largest_of(size) + step_norm * largest_of(
            jet.mid.abs() + jet.rad + half * size
        )
        if self.bias is not None:
            lost = lost + segment.largest(self.bias).max()
        spread = spread * (1 + u) + u * lost + TINY
        rad = half * (slope.abs() + spread) * (1 + u) + base.error
        return Jet(base.centre, base.error, base.centre, rad, slope, spread)


class Affine(_Linear):
    """`nn.Linear`: weights and bias by name."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return $x W^T$, each sub-interval with weights of its own where they have the axis."""
        turned = weight.transpose(-1, -2)
        if weight.ndim == 3:
            turned = turned.reshape(len(weight), *([1] * (x.ndim - 3)), *turned.shape[1:])
        return torch.matmul(x, turned)

    def spread_out(self, bias: Tensor, ndim: int) -> Tensor:
        """Reshape `(intervals, outputs)` or `(outputs,)`."""
        if bias.ndim == 1:
            return bias
        return bias.reshape(len(bias), *([1] * (ndim - 2)), -1)


class Convolution(_Linear):
    """`nn.Conv2d` in one group: weights and bias by name, stride, padding, dilation."""

    def __init__(self, weight: str, bias: str | None, options: Mapping[str, Any]) -> None:
        super().__init__(weight, bias)
        self.options = dict(options)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve, each sub-interval with weights of its own where they have the axis."""
        intervals, examples = x.shape[:2]
        if weight.ndim == 4:
            out = F.conv2d(x.flatten(0, 1), weight, **self.options)
            return out.reshape(intervals, examples, *out.shape[1:])
        groups = len(weight)
        stacked = x.expand(groups, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        out = F.conv2d(stacked, weight.flatten(0, 1), groups=groups, **self.options)
        return out.reshape(examples, groups, -1, *out.shape[2:]).transpose(0, 1)

    def spread_out(self, bias: Tensor, ndim: int) -> Tensor:
        """Reshape `(intervals, channels)` or `(channels,)` to images."""
        if bias.ndim == 1:
            return bias[:, None, None]
        return bias[:, None, :, None, None]


class Flatten:
    """One row per example."""

    def data(self, x: Tensor, segment: Segment) -> Tensor:
        """Flatten the data."""
        return x.flatten(1)

    def value(self, x: Tensor | Value, segment: Segment) -> Tensor | Value:
        """Flatten data, or values at the middles."""
        if isinstance(x, Tensor):
            return self.data(x, segment)
        return x.at_middle(lambda part: part.flatten(2))

    def jet(self, jet: Jet, segment: Segment) -> Jet:
        """Flatten each part."""
        return jet.map(lambda part: part.flatten(2))


class Pool:
    """Averages of entries: a linear map whose weights are positive and constant."""

    def __init__(self, average: Callable[[Tensor], Tensor]) -> None:
        self.average = average

    def _apply(self, x: Tensor) -> Tensor:
        out = self.average(x.flatten(0, 1))
        return out.reshape(*x.shape[:2], *out.shape[1:])

    def data(self, x: Tensor, segment: Segment) -> Tensor:
        """Refuse: the chain was checked to begin with weights."""
        raise ValueError("pooling of the data themselves has no enclosure here")

    def value(self, x: Tensor | Value, segment: Segment) -> Tensor | Value:
        """Average values at the middles, with what the sums may lose."""
        if isinstance(x, Tensor):
            return self.data(x, segment)
        u = slack(math.prod(x.centre.shape[3:]))
        out = x.at_middle(self._apply)
        out.error = x.error * (1 + u) + u * largest_of(x.centre)
        return out

    def jet(self, jet: Jet, segment: Segment) -> Jet:
        """Average each part, widened by what the sums may lose."""
        u = slack(math.prod(jet.mid.shape[3:]))
        out = jet.map(self._apply)
        out.error = jet.error * (1 + u) + u * largest_of(jet.centre)
        out.rad = out.rad * (1 + u) + u * largest_of(jet.mid) + TINY
        out.spread = out.spread * (1 + u) + u * largest_of(jet.slope) + TINY
        return out


def _gauss(x: Tensor) -> Tensor:
    """Return the derivative of GELU."""
    out: Tensor = torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return out


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


_SILU_TURN = 2.399357280515468
_KINDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[float, ...], bool]] = {
    # value, derivative, where the derivative turns, whether the value is monotone
    "tanh": (torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, (0.0,), True),
    "sigmoid": (
        torch.sigmoid,
        lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
        (0.0,),
        True,
    ),
    "softplus": (
        lambda x, beta=1.0, threshold=20.0: (
            x.clamp(min=0) + torch.log1p(torch.exp(-(beta * x).abs())) / beta
        ),
        lambda x, beta=1.0, threshold=20.0: torch.sigmoid(beta * x),
        (),
        True,
    ),
    "elu": (
        lambda x, alpha=1.0: F.elu(x, alpha),
        lambda x, alpha=1.0: torch.where(x > 0, 1.0, alpha * torch.exp(x.clamp(max=0))),
        (),
        True,
    ),
    "gelu": (F.gelu, _gauss, (-math.sqrt(2), math.sqrt(2)), False),
    "silu": (F.silu, _silu_slope, (-_SILU_TURN, _SILU_TURN), False),
}


class Activation:
    r"""An activation of one entry at a time.

    Above its threshold torch drops softplus's $\log(1 + e^{-\beta x})/\beta$, at most
    $2.1 \cdot 10^{-9}/\beta$; where that may happen, values are widened to hold both.

    Args:
        kind: Its name in torch.
        options: Its parameters.
    """

    def __init__(self, kind: str, options: Mapping[str, Any]) -> None:
        self.kind, self.options = kind, dict(options)
        low = float(options.get("negative_slope", 0.0))
        if kind == "leaky_relu" and not 0 <= low <= 1:
            raise ValueError(f"a leaky ReLU of slope {low} has no enclosure here")
        if kind == "elu" and not 0 < float(options.get("alpha", 1.0)) <= 1:
            raise ValueError("an ELU with alpha above 1 has no enclosure here")
        if kind == "softplus" and not (options["threshold"] >= 20 and options["beta"] > 0):
            raise ValueError("a softplus with a threshold below 20 has no enclosure here")
        self.low = low

    def data(self, x: Tensor, segment: Segment) -> Tensor:
        """Refuse: the chain was checked to begin with weights."""
        raise ValueError("an activation of the data themselves has no enclosure here")

    def _value(self, x: Tensor) -> Tensor:
        if self.kind in ("relu", "leaky_relu"):
            return torch.where(x > 0, x, self.low * x)
        return _KINDS[self.kind][0](x, **self.options)

    def _dropped(self, high: Tensor) -> Tensor | float:
        """Return what torch may leave out of softplus in an example that goes up to `high`."""
        if self.kind != "softplus":
            return 0.0
        beta = self.options["beta"]
        over = beta * high.amax(dim=tuple(range(2, high.ndim)), keepdim=True) >= 19.999
        dropped: Tensor = over * (2.1e-9 / beta)
        return dropped

    def _slopes(self, low: Tensor, high: Tensor, values: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the range of the derivative over [low, high], where the activation is `values`."""
        if self.kind in ("relu", "leaky_relu"):
            one = torch.ones_like(low)
            return torch.where(low >= 0, one, self.low), torch.where(high > 0, one, self.low)
        _, derivative, turns, _ = _KINDS[self.kind]
        if self.kind == "tanh":
            ends = [1 - value * value for value in values]
        else:
            ends = [derivative(end, **self.options) for end in (low, high)]
        least, most = torch.minimum(*ends), torch.maximum(*ends)
        for turn in turns:
            inside = (low <= turn + 1e-6) & (high >= turn - 1e-6)
            there = derivative(low.new_tensor(turn))
            least = torch.where(inside, torch.minimum(least, there), least)
            most = torch.where(inside, torch.maximum(most, there), most)
        return least - 2.0**-46, most + 2.0**-46

    @property
    def monotone(self) -> bool:
        """Whether it never falls."""
        return self.kind not in _KINDS or _KINDS[self.kind][3]

    def value(self, x: Tensor | Value, segment: Segment) -> Tensor | Value:
        """Go on from values at the middles."""
        if isinstance(x, Tensor):
            return self.data(x, segment)
        return self._around(x, self._dropped(x.centre + x.error))

    def _around(self, x: Value, dropped: Tensor | float) -> Value:
        centre = self._value(x.centre)
        return Value(centre, 1.2 * x.error + 2.0**-46 * (1 + largest_of(centre)) + dropped)

    def _chained(self, jet: Jet, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range of the slope times a derivative in [least, most]."""
        slow, fast = jet.slope - jet.spread, jet.slope + jet.spread
        if self.monotone:
            least = least.clamp(min=0)
            below = least * slow.clamp(min=0) + most * slow.clamp(max=0)
            return below, most * fast.clamp(min=0) + least * fast.clamp(max=0)
        corners = (least * slow, least * fast, most * slow, most * fast)
        below = torch.minimum(torch.minimum(*corners[:2]), torch.minimum(*corners[2:]))
        return below, torch.maximum(torch.maximum(*corners[:2]), torch.maximum(*corners[2:]))

    def jet(self, jet: Jet, segment: Segment) -> Jet:
        """Go on from a jet by the chain rule."""
        low, high = jet.mid - jet.rad, jet.mid + jet.rad
        values = [self._value(low), self._value(high)] if self.monotone else []
        below, above = self._chained(jet, *self._slopes(low, high, values))
        slope = (below + above) / 2
        spread = torch.maximum(above - slope, slope - below)
        size = slope.abs() + spread
        spread = spread + 2.0**-49 * size + TINY
        dropped = self._dropped(high)  # anywhere on the sub-interval: later layers see this error
        base = self._around(jet, dropped)
        half = segment.along(segment.half, jet.mid.ndim)
        rad = half * (slope.abs() + spread) * (1 + 2.0**-49) + base.error
        mid = base.centre
        if self.monotone:
            room = 2.0**-46 * (1 + torch.maximum(low.abs(), high.abs())) + dropped
            bottom = torch.maximum(values[0] - room, mid - rad)
            top = torch.minimum(values[1] + room, mid + rad)
            mid = (bottom + top) / 2
            rad = torch.maximum(top - mid, mid - bottom) + 2.0**-49 * (bottom.abs() + top.abs())
        return Jet(base.centre, base.error, mid, rad, slope, spread)
