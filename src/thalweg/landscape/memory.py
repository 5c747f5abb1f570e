"""How much memory a sweep takes, measured in bytes on small chunks, and kept under a cap.

What is counted is every tensor storage allocated during the sweep and alive at once: the
graph, its gradients and the transient of a product. Arguments, the user's data and the
returned values are not. Bytes are counted, never seconds, and a plan depends on sizes
alone: not on what was computed before it.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Budget", "Meter", "OverLimit", "parse_bytes"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(amount: int | str) -> int:
    """Return a number of bytes from ``"512 MiB"``, ``"2GB"`` or an integer.

    Raises:
        ValueError: If it cannot be read, or is not positive.

    Example:
        >>> parse_bytes("1.5 GiB")
        1610612736
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?i?b?)\s*", str(amount).lower())
    unit = _UNITS.get(match[2]) if match else None
    number = float(match[1]) if match and match[1].count(".") <= 1 and match[1] != "." else 0.0
    if unit is None or number * unit < 1:
        raise ValueError(
            f"memory must be a positive size such as '512 MiB' or 2**30, not {amount!r}"
        )
    return int(number * unit)


class OverLimit(Exception):
    """A metered computation reached its limit and was abandoned."""


class Meter(TorchDispatchMode):
    """Counts the bytes of tensor storages that are allocated inside it and alive at once.

    Args:
        limit: Abandon the computation, by raising `OverLimit`, when it holds more bytes.

    Example:
        >>> import torch
        >>> with Meter() as meter:
        ...     _ = torch.zeros(100, dtype=torch.float64) + 1
        >>> meter.peak
        1600
    """

    def __init__(self, limit: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.limit = limit
        self.live = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare every process the seconds that importing torch's compiler takes."""
        return False

    def exclude(self, values: Any) -> None:
        """Leave storages that were there before out of the count."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                self._seen.add(tensor.untyped_storage())

    def _release(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count the storages that it made."""
        self.exclude((args, kwargs))
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage in self._seen:
                continue
            self._seen.add(storage)
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, size)
        if self.limit is not None and self.live > self.limit:
            raise OverLimit
        return out


class Budget:
    """Keeps every sweep under a cap by choosing how many examples go at once.

    Peak bytes are measured on the data itself, from one example upwards and only as far
    as needed: against the number of examples they are convex and piecewise linear, so a
    prediction far below the cap is safe, and one near it is measured. A measurement stops
    where it reaches the cap.

    Args:
        cap: The number of bytes that a sweep may hold.
    """

    MARGIN = 4.0
    STRIDE = 8

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self._measured: dict[Any, float] = {}
        self._plans: dict[Any, tuple[int, float]] = {}
        self.chosen: dict[str, int] = {}

    def plan(
        self,
        mode: str,
        key: Any,
        total: int,
        measure: Callable[[int], float],
        *,
        whole: bool = False,
        fixed: float = 0.0,
    ) -> tuple[int, float]:
        """Return how many of a batch's `total` examples may go at once, and their peak bytes.

        Args:
            mode: What is computed (``loss``, ``gradient``, ``product`` …).
            key: What batches of equal cost per example share.
            total: The number of examples in the batch.
            measure: Runs the sweep on so many examples and returns its peak bytes, or those
                at which it was abandoned.
            whole: Whether the batch must not be divided.
            fixed: A guess at the bytes that do not grow with the examples, which helps to
                choose the second measurement.

        Raises:
            MemoryError: If not even the smallest possible chunk fits.
        """
        if (mode, key, total, whole) not in self._plans:

            def memoised(count: int) -> float:
                at = (mode, key, count)
                if at not in self._measured:
                    self._measured[at] = measure(count)
                return self._measured[at]

            self._plans[mode, key, total, whole] = self._plan(mode, total, memoised, whole, fixed)
        fit, used = self._plans[mode, key, total, whole]
        self.chosen[mode] = max(self.chosen.get(mode, 0), fit)
        return fit, used

    def _plan(
        self,
        mode: str,
        total: int,
        measure: Callable[[int], float],
        whole: bool,
        fixed: float,
    ) -> tuple[int, float]:
        """Return how many examples go at once and the bytes that they take."""
        points, over = [self._start(mode, total, measure, whole)], total + 1
        while (last := points[-1][0]) < total:
            used = points[-1][1]
            growing = used - min(fixed, used)
            room = int(last * (self.cap - used + growing) / growing) if growing else total
            if len(points) > 1:
                slope = (used - points[-2][1]) / (last - points[-2][0])
                expected = used + slope * (total - last)
                if used + self.MARGIN * (expected - used) <= self.cap:
                    return total, expected
                if whole and expected > self.cap:  # convex, so that it takes at least so much
                    raise self._refusal(mode, expected, whole)
                room = last + int((self.cap - used) / slope) if slope > 0 else total
            following = min(total, room, self.STRIDE * last)
            if over <= total:
                following = min(following, (last + over) // 2)
            if whole:
                following = total if len(points) > 1 else max(following, last + 1)
            if following < max(1.1 * last, last + 1):
                break
            measured = measure(following)
            if measured <= self.cap:
                points.append((following, measured))
            elif whole:
                raise self._refusal(mode, measured, whole)
            else:
                over = following
        return points[-1]

    def _start(
        self, mode: str, total: int, measure: Callable[[int], float], whole: bool
    ) -> tuple[int, float]:
        """Measure the smallest chunk."""
        first = min(total, 2) if whole else 1  # batch statistics need two examples
        try:
            used = measure(first)
        except (RuntimeError, ValueError, TypeError, IndexError):
            if total == first:
                raise
            first = 2  # forward() may not take a batch of one, if it calls squeeze() say
            used = measure(first)
        if used > self.cap:
            raise self._refusal(mode, used, whole)
        return first, used

    def _refusal(self, mode: str, used: float, whole: bool) -> MemoryError:
        what = "the whole batch" if whole else "one example"
        return MemoryError(
            f"{mode}: {what} needs at least {used / 2**20:.3g} MiB, above the cap of "
            f"{self.cap / 2**20:.3g} MiB; raise memory="
            + (", or make the batches smaller" if whole else "")
        )
