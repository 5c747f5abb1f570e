r"""Interval arithmetic through a torch function: what its values can be over a box.

The function is traced once into the elementary operations that torch runs, and its gradient
too. Each operation is then done on intervals, with ends rounded outwards, so that the result
encloses the exact function's values over the box whatever the rounding.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx import GraphModule

__all__ = ["Enclosure", "NotEnclosableError"]


class NotEnclosableError(ValueError):
    """The function uses an operation that has no interval form here."""


class Interval(NamedTuple):
    """All tensors between two, coordinate by coordinate."""

    low: Tensor
    high: Tensor


Value = Interval | Tensor | float | int
_TRIG = 1e-12  # far above the rounding of an argument of moderate size


def _wide(low: Tensor, high: Tensor, units: float = 1.0) -> Interval:
    """Round outwards by `units` of rounding; a NaN end becomes infinite."""
    info = torch.finfo(low.dtype)
    low = low - (2 * units * info.eps * low.abs() + info.tiny)
    high = high + (2 * units * info.eps * high.abs() + info.tiny)
    return _clean(low, high)


def _clean(low: Tensor, high: Tensor) -> Interval:
    return Interval(
        torch.nan_to_num(low, -math.inf, math.inf, -math.inf),
        torch.nan_to_num(high, math.inf, math.inf, -math.inf),
    )


def _all(like: Interval) -> Interval:
    return Interval(torch.full_like(like.low, -math.inf), torch.full_like(like.high, math.inf))


def _choose(where: Tensor, yes: Interval, no: Interval) -> Interval:
    return Interval(torch.where(where, yes.low, no.low), torch.where(where, yes.high, no.high))


def _as(value: Value, like: Tensor) -> Interval:
    if isinstance(value, Interval):
        return value
    tensor = value if isinstance(value, Tensor) else torch.full_like(like, float(value))
    return Interval(tensor, tensor)


def _pair(x: Value, y: Value) -> tuple[Interval, Interval]:
    like = next(v.low for v in (x, y) if isinstance(v, Interval))
    scalar = like.new_zeros(())
    return _as(x, scalar), _as(y, scalar)


def _add(x: Value, y: Value, *, alpha: float = 1) -> Interval:
    a, b = _pair(x, y if alpha == 1 else _mul(y, alpha) if isinstance(y, Interval) else y * alpha)
    return _wide(a.low + b.low, a.high + b.high)


def _neg(x: Interval) -> Interval:
    return Interval(-x.high, -x.low)


def _sub(x: Value, y: Value, *, alpha: float = 1) -> Interval:
    return _add(x, _neg(y) if isinstance(y, Interval) else -y, alpha=alpha)


def _rsub(x: Value, y: Value, alpha: float = 1) -> Interval:
    return _sub(y, x, alpha=alpha)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Multiply ends; a zero times an end at infinity is zero, for no member is infinite."""
    out = x * y
    return torch.where(torch.isnan(out), torch.zeros_like(out), out)


def _mul(x: Value, y: Value) -> Interval:
    if x is y and isinstance(x, Interval):
        return _power(x, 2)
    a, b = _pair(x, y)
    ends = [_product(p, q) for p in a for q in b]
    low = torch.minimum(torch.minimum(ends[0], ends[1]), torch.minimum(ends[2], ends[3]))
    high = torch.maximum(torch.maximum(ends[0], ends[1]), torch.maximum(ends[2], ends[3]))
    return _wide(low, high)


def _reciprocal(x: Interval) -> Interval:
    split = (x.low <= 0) & (x.high >= 0)
    return _choose(split, _all(x), _wide(1 / x.high, 1 / x.low))


def _div(x: Value, y: Value) -> Interval:
    if isinstance(y, Interval):
        return _mul(x, _reciprocal(y))
    a, b = _pair(x, y)
    low, high = a.low / b.low, a.high / b.low
    return _wide(torch.minimum(low, high), torch.maximum(low, high))


def _power(x: Interval, exponent: float) -> Interval:
    if exponent < 0:
        return _reciprocal(_power(x, -exponent))
    low, high = x.low**exponent, x.high**exponent
    if exponent != int(exponent):
        zero = torch.zeros_like(low)
        found = Interval(torch.maximum(x.low, zero) ** exponent, torch.maximum(high, zero))
        return _choose(x.low < 0, _all(x), _wide(*found, 4))
    if int(exponent) % 2:
        return _wide(low, high, 4)
    straddles = (x.low < 0) & (x.high > 0)
    least = torch.where(straddles, torch.zeros_like(low), torch.minimum(low, high))
    wide = _wide(least, torch.maximum(low, high), 4)
    return Interval(wide.low.clamp_min(0.0), wide.high)


def _increasing(f: Callable[[Tensor], Tensor]) -> Callable[[Interval], Interval]:
    return lambda x: _wide(f(x.low), f(x.high), 4)


def _log(x: Interval) -> Interval:
    found = _wide(x.low.clamp_min(0.0).log(), x.high.clamp_min(0.0).log(), 4)
    return _choose(x.high <= 0, _all(x), found)


def _sqrt(x: Interval) -> Interval:
    found = _wide(x.low.clamp_min(0.0).sqrt(), x.high.clamp_min(0.0).sqrt())
    return _choose(x.low < 0, _all(x), Interval(found.low.clamp_min(0.0), found.high))


def _abs(x: Interval) -> Interval:
    zero = torch.zeros_like(x.low)
    return Interval(
        torch.maximum(torch.maximum(x.low, -x.high), zero), torch.maximum(x.high, -x.low)
    )


def _wave(f: Callable[[Tensor], Tensor], crest: float) -> Callable[[Interval], Interval]:
    """Return the enclosure of a wave of period 2π with a maximum at `crest`."""

    def passes(x: Interval, top: float) -> Tensor:
        slack = _TRIG * (1 + torch.maximum(x.low.abs(), x.high.abs()))
        first = torch.ceil((x.low - slack - top) / (2 * math.pi)) * (2 * math.pi) + top
        return first <= x.high + slack

    def enclose(x: Interval) -> Interval:
        eps = 8 * torch.finfo(x.low.dtype).eps
        low, high = f(x.low), f(x.high)
        one = torch.ones_like(low)
        top = torch.where(passes(x, crest), one, torch.maximum(low, high) + eps)
        bottom = torch.where(passes(x, crest + math.pi), -one, torch.minimum(low, high) - eps)
        known = torch.isfinite(x.low) & torch.isfinite(x.high)
        return _choose(known, Interval(bottom.clamp(-1, 1), top.clamp(-1, 1)), Interval(-one, one))

    return enclose


def _sum(x: Interval, *args: Any, **options: Any) -> Interval:
    low, high = x.low.sum(*args, **options), x.high.sum(*args, **options)
    count = max(1, x.low.numel() // max(1, low.numel()))
    unit = (count + 1) * torch.finfo(low.dtype).eps
    return _wide(
        low - unit * x.low.abs().sum(*args, **options),
        high + unit * x.high.abs().sum(*args, **options),
    )


def _mean(x: Interval, *args: Any, **options: Any) -> Interval:
    total = _sum(x, *args, **options)
    return _div(total, x.low.numel() / max(1, total.low.numel()))


def _shaped(x: Value, shape: Callable[[Tensor], Tensor]) -> Value:
    if isinstance(x, Interval):
        return Interval(shape(x.low), shape(x.high))
    return shape(x) if isinstance(x, Tensor) else x


def _matmul(x: Value, y: Value) -> Interval:
    """Multiply matrices (or stacks, or vectors) entry by entry, then add up."""
    first = x.low if isinstance(x, Interval) else x
    second = y.low if isinstance(y, Interval) else y
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    if second.ndim == 1:
        return _sum(_mul(x, y), -1)
    return _sum(
        _mul(_shaped(x, lambda t: t[..., None]), _shaped(y, lambda t: t[..., None, :, :])), -2
    )


def _addmm(c: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1) -> Interval:
    return _add(_mul(c, beta) if beta != 1 else c, _matmul(x, y), alpha=alpha)


def _extreme(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Value, Value], Interval]:
    def enclose(x: Value, y: Value) -> Interval:
        a, b = _pair(x, y)
        return Interval(f(a.low, b.low), f(a.high, b.high))

    return enclose


def _clamp(x: Interval, low: float | None = None, high: float | None = None) -> Interval:
    return Interval(x.low.clamp(low, high), x.high.clamp(low, high))


def _sign(x: Interval) -> Interval:
    return Interval(x.low.sign(), x.high.sign())


def _step(grad: Value, x: Interval, threshold: float) -> Interval:
    zero, one = torch.zeros_like(x.low), torch.ones_like(x.low)
    on = Interval(
        torch.where(x.low > threshold, one, zero), torch.where(x.high < threshold, zero, one)
    )
    return _mul(grad, on)


def _tanh_backward(grad: Value, out: Interval) -> Interval:
    return _mul(grad, _rsub(_power(out, 2), 1.0))


def _sigmoid_backward(grad: Value, out: Interval) -> Interval:
    return _mul(grad, _mul(out, _rsub(out, 1.0)))


_RULES: dict[str, Callable[..., Interval]] = {
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "reciprocal": _reciprocal,
    "pow": _power,
    "square": lambda x: _power(x, 2),
    "exp": lambda x: (lambda y: Interval(y.low.clamp_min(0.0), y.high))(
        _wide(x.low.exp(), x.high.exp(), 4)
    ),
    "log": _log,
    "sqrt": _sqrt,
    "sin": _wave(torch.sin, math.pi / 2),
    "cos": _wave(torch.cos, 0.0),
    "tanh": _increasing(torch.tanh),
    "sigmoid": _increasing(torch.sigmoid),
    "atan": _increasing(torch.atan),
    "abs": _abs,
    "relu": lambda x: Interval(x.low.relu(), x.high.relu()),
    "maximum": _extreme(torch.maximum),
    "minimum": _extreme(torch.minimum),
    "clamp": _clamp,
    "clamp_min": lambda x, low: _clamp(x, low),
    "clamp_max": lambda x, high: _clamp(x, None, high),
    "sum": _sum,
    "mean": _mean,
    "dot": _matmul,
    "mv": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "sgn": _sign,
    "sign": _sign,
    "threshold_backward": _step,
    "tanh_backward": _tanh_backward,
    "sigmoid_backward": _sigmoid_backward,
}
# fmt: off
_SHAPES = frozenset((
    "select", "slice", "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "t",
    "transpose", "permute", "clone", "detach", "alias", "select_backward", "slice_backward",
    "index", "cat", "stack", "unbind", "split", "diagonal", "flip", "lift_fresh_copy",
))
# fmt: on
_NO_SLOPE = frozenset(("sgn", "sign", "detach", "threshold_backward"))  # in the function itself


def _name(target: Any) -> str:
    """Return the short name of an operation of the trace."""
    return str(target).split(".")[1] if str(target).startswith("aten.") else str(target)


def _ends(args: Any, which: int) -> Any:
    if isinstance(args, Interval):
        return args[which]
    if isinstance(args, (list, tuple)):
        return type(args)(_ends(x, which) for x in args)
    return args


def _touched(args: Any) -> bool:
    if isinstance(args, Interval):
        return True
    return isinstance(args, (list, tuple)) and any(_touched(x) for x in args)


def _apply(target: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if not _touched(args):
        return target(*args, **options)
    if target is operator.getitem:
        return args[0][args[1]]
    name = _name(target)
    if name in _RULES:
        return _RULES[name](*args, **options)
    if name in _SHAPES:
        low, high = (target(*_ends(args, k), **options) for k in (0, 1))
        if isinstance(low, (list, tuple)):
            return [Interval(*pair) for pair in zip(low, high, strict=True)]
        return Interval(low, high)
    if name in ("ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full"):
        return target(*_ends(args, 0), **options)
    raise NotEnclosableError(
        f"the function calls {name}, which has no interval form here; rewrite it with "
        "arithmetic, exp, log, sin, cos, tanh, sqrt, abs, relu, sums and matrix products, or "
        "give a Lipschitz constant"
    )


def _run(graph: GraphModule, box: Interval) -> Any:
    """Run a trace on intervals."""
    known: dict[Any, Any] = {}

    def look(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return known[value]
        if isinstance(value, (list, tuple)):
            return type(value)(look(x) for x in value)
        return value

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = box
        elif node.op == "get_attr":
            known[node] = getattr(graph, str(node.target))
        elif node.op == "output":
            return look(node.args[0])
        else:
            args = tuple(look(x) for x in node.args)
            known[node] = _apply(node.target, args, dict(node.kwargs))
    raise AssertionError("a trace ends in an output")


class Enclosure:
    r"""Rigorous bounds of a torch function over boxes.

    The natural extension runs the function on intervals. Where the function is continuous
    with slopes that can be enclosed, so does the mean value form,

    $$f(x) \ge f(c) + \sum_i \min_{x_i \in X_i} g_i\,(x_i - c_i), \qquad g_i \in G_i(X),$$

    with $c$ chosen so that the sum is largest (at a corner where the signs of $G_i$ are
    known); the higher of the two lower bounds counts.

    Args:
        f: A function of one `(dim,)` tensor that returns a scalar tensor.
        dim: The number of coordinates.
        dtype: The dtype that it is run in.

    Raises:
        NotEnclosableError: If an operation has no interval form, or the function branches on
            values.

    References:
        E. Baumann, BIT 28 (1988) 80: the optimal centre of the mean value form.

    Example:
        >>> square = Enclosure(lambda x: (x**2).sum(), 2)
        >>> low = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        >>> square.lower(low, low + 2)[0].round(decimals=9)
        tensor([1.], dtype=torch.float64)
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], dim: int, dtype: torch.dtype = torch.float64
    ) -> None:
        """Trace the function and its gradient, and try both on one box."""
        self.dim, self.dtype = dim, dtype
        probe = torch.linspace(0.3, 0.7, dim, dtype=dtype)
        self._value = _trace(f, probe)
        names = {_name(node.target) for node in self._value.graph.nodes}
        one = probe[None]
        self.values(one, one + 0.1)
        self._gradient: GraphModule | None = None
        if not names & _NO_SLOPE:
            try:
                self._gradient = _trace(torch.func.grad(f), probe)
                self.slopes(one, one + 0.1)
            except NotEnclosableError:
                self._gradient = None

    @property
    def order(self) -> int:
        """1 where the mean value form is at work, 0 where only the natural extension is."""
        return int(self._gradient is not None)

    def _over(self, graph: GraphModule, low: Tensor, high: Tensor) -> Interval:
        def one(bottom: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
            found = _run(graph, Interval(bottom, top))
            return (found.low, found.high) if isinstance(found, Interval) else (found, found)

        with torch.no_grad():
            return Interval(*torch.func.vmap(one)(low, high))

    def values(
        self, low: Float[Tensor, "boxes dim"], high: Float[Tensor, "boxes dim"]
    ) -> tuple[Float[Tensor, " boxes"], Float[Tensor, " boxes"]]:
        """Return bounds of the function over each box by the natural extension."""
        found = self._over(self._value, low, high)
        return found.low, found.high

    def slopes(
        self, low: Float[Tensor, "boxes dim"], high: Float[Tensor, "boxes dim"]
    ) -> tuple[Float[Tensor, "boxes dim"], Float[Tensor, "boxes dim"]]:
        """Return bounds of each slope over each box; infinite where none are known."""
        if self._gradient is None:
            return torch.full_like(low, -math.inf), torch.full_like(high, math.inf)
        found = self._over(self._gradient, low, high)
        return found.low, found.high

    def lower(
        self, low: Float[Tensor, "boxes dim"], high: Float[Tensor, "boxes dim"]
    ) -> tuple[Float[Tensor, " boxes"], Float[Tensor, "boxes dim"]]:
        """Return a lower bound over each box, and how much each coordinate can change it.

        Args:
            low: The boxes' lower corners, `(boxes, dim)`.
            high: Their upper corners.

        Returns:
            The bounds `(boxes,)`, and widths times largest slopes `(boxes, dim)`.
        """
        natural, _ = self.values(low, high)
        if self._gradient is None:
            return natural, high - low
        least, most = self.slopes(low, high)
        centre = _best_centre(low, high, least, most)
        start, _ = self.values(centre, centre)
        down = torch.minimum(least * (high - centre), most * (low - centre))
        known = torch.isfinite(least) & torch.isfinite(most)
        down = torch.where(known, down.clamp_max(0.0), torch.full_like(down, -math.inf))
        sizes = start.abs() + down.abs().sum(1)
        slack = 8 * (self.dim + 2) * torch.finfo(self.dtype).eps * sizes
        mean_value = torch.nan_to_num(start + down.sum(1) - slack, -math.inf)
        reach = torch.maximum(least.abs(), most.abs()) * (high - low)
        return torch.maximum(natural, mean_value), reach


def _best_centre(low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Return Baumann's centre: the corner where signs are known, else where both sides tie."""
    between = (most * low - least * high) / (most - least)
    centre = torch.where(least >= 0, low, torch.where(most <= 0, high, between))
    centre = torch.where(torch.isfinite(centre), centre, (low + high) / 2)
    return torch.minimum(torch.maximum(centre, low), high)


def _trace(f: Callable[[Tensor], Tensor], probe: Tensor) -> GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import, and rarely needed

    try:
        return make_fx(f)(probe)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise NotEnclosableError(
            f"the function cannot be traced ({reason}); a branch that depends on values has no "
            "interval form. Give a Lipschitz constant instead"
        ) from error
