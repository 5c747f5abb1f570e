"""How much memory a sweep takes, measured in bytes on small chunks, and kept under a cap.

What is counted is every tensor storage allocated during the sweep and alive at once: the
graph, its gradients and the transient of a product. Arguments, the user's data and the
returned values are not. Bytes are counted, never seconds, so the plan depends on the
network and the data alone.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Budget", "Meter", "parse_bytes"]

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
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise ValueError(f"memory must be a positive size such as '512 MiB' or 2**30, not {amount!r}")
    return int(float(match[1]) * unit)


class Meter(TorchDispatchMode):
    """Counts the bytes of tensor storages that are allocated inside it and alive at once.

    Example:
        >>> with Meter() as meter:
        ...     _ = torch.zeros(100, dtype=torch.float64) + 1
        >>> meter.peak
        1600
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.live = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def exclude(self, values: Any) -> None:
        """Leave storages that were there before out of the count."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                self._seen.add(tensor.untyped_storage())

    def _release(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and count the storages that it made."""
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
        return out


@dataclass
class _Curve:
    """Measured peak bytes against the number of examples: convex, piecewise linear."""

    points: list[tuple[int, int]] = field(default_factory=list)

    def slope(self) -> float:
        (n0, b0), (n1, b1) = self.points[-2:] if len(self.points) > 1 else [(0, 0), self.points[0]]
        return max((b1 - b0) / (n1 - n0), 0.0)

    def bytes(self, examples: int) -> float:
        """Interpolate between measurements; extrapolate with the last slope."""
        before = (0, self.points[0][1])
        for point in self.points:
            if examples <= point[0]:
                share = (examples - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1] + self.slope() * (examples - before[0])

    def largest(self, cap: float) -> int:
        """Return the largest number of examples whose bytes stay under the cap."""
        low, high = 0, 1
        while self.bytes(high) <= cap and high < 2**40:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.bytes(middle) <= cap else (low, middle)
        return low


class Budget:
    """Keeps every sweep under a cap by choosing how many examples go at once.

    The curve of peak bytes against examples is measured on the data itself, from a few
    examples upwards, and only as far as needed: it is convex, so a prediction far below
    the cap is safe, and one near it is measured.

    Args:
        cap: The number of bytes that a sweep may hold.
    """

    MARGIN = 4.0

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self._curves: dict[Any, _Curve] = {}
        self.chosen: dict[str, int] = {}

    def examples(
        self, mode: str, key: Any, total: int, measure: Callable[[int], int], *, whole: bool
    ) -> int:
        """Return how many of a batch's `total` examples may go at once.

        Args:
            mode: What is computed (``loss``, ``gradient``, ``product`` …).
            key: What batches of equal cost per example share.
            total: The number of examples in the batch.
            measure: Runs the sweep on so many examples and returns its peak bytes.
            whole: Whether the batch must not be divided.

        Raises:
            MemoryError: If not even the smallest possible chunk fits.
        """
        curve = self._curves.setdefault((mode, key), _Curve())
        self._extend(curve, total, measure)
        fit = total if curve.bytes(total) <= self.cap else curve.largest(self.cap)
        if fit < 1 or (whole and fit < total):
            need, what = (total, "the whole batch") if whole else (1, "one example")
            raise MemoryError(
                f"{mode}: {what} needs about {curve.bytes(need) / 2**20:.1f} MiB, above the cap "
                f"of {self.cap / 2**20:.1f} MiB; raise memory="
                + (", or make the batches smaller" if whole else "")
            )
        self.chosen[mode] = max(self.chosen.get(mode, 0), fit)
        return fit

    def bytes(self, mode: str, key: Any, examples: int) -> float:
        """Return the predicted peak bytes for so many examples of a measured kind."""
        return self._curves[(mode, key)].bytes(examples)

    def _extend(self, curve: _Curve, total: int, measure: Callable[[int], int]) -> None:
        while not curve.points or curve.points[-1][0] < total:
            if not curve.points:
                following = min(total, 2)
            else:
                last, used = curve.points[-1]
                slope = curve.slope()
                if len(curve.points) > 1:
                    if used + self.MARGIN * slope * (total - last) <= self.cap:
                        return
                    room = last + int((self.cap - used) / 2 / slope) if slope else total
                    following = min(total, 8 * last, room)
                    if following < 1.1 * last:
                        return
                else:
                    following = min(total, 4 * last)
            curve.points.append((following, measure(following)))
