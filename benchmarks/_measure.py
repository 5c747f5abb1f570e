"""What makes the numbers honest: agreement before timing, interleaving, ratios round by round."""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


class DisagreementError(AssertionError):
    """A kernel returned another product than plain autograd in float64."""


def agreement(product: Tensor, truth: Tensor) -> float:
    """Return the relative error of a block of products, and refuse a wrong one.

    Raises:
        DisagreementError: If the shape is wrong, or any row is further from the truth than
            the product's dtype allows.
    """
    if product.shape != truth.shape:
        raise DisagreementError(
            f"a product of shape {tuple(product.shape)} instead of {tuple(truth.shape)}"
        )
    error = (product.double() - truth.double()).norm(dim=-1) / truth.double().norm(dim=-1)
    worst = float(error.max())
    allowed = TOLERANCE[product.dtype]
    if not worst <= allowed:  # so that NaN is refused too
        raise DisagreementError(f"relative error {worst:.2g}, above {allowed:g}")
    return worst


def refuses(wrong: Tensor, truth: Tensor) -> bool:
    """Say whether the agreement check refuses this product."""
    try:
        agreement(wrong, truth)
    except DisagreementError:
        return True
    return False


def wrong_products(truth: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return products that the check must refuse, each a fault that a package could have."""
    truth = truth.double()
    one_off = truth.clone()
    one_off[-1] *= 1 + 10 * TOLERANCE[dtype]
    hole = truth.clone()
    hole[0, 0] = math.nan
    wrong = {
        "one row of the block off by ten tolerances": one_off,
        "a NaN": hole,
        "parameters in another order": truth.flip(-1),
        "a row missing": truth[1:],
    }
    return {name: product.to(dtype) for name, product in wrong.items()}


@dataclass(frozen=True)
class Reading:
    """Seconds of one product: of the clock on the wall, and of this process's processor time."""

    wall: float
    cpu: float


def interleave(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, seconds: float
) -> dict[str, list[Reading]]:
    """Time calls in turn, A B C A B C …, so that a change of the weather meets all of them.

    Args:
        calls: What to time, by name.
        rounds: How often each has its turn; each round starts with another one.
        seconds: About how long one turn takes; short calls are repeated within it.

    Returns:
        For each name, the time of one call in every round.
    """
    repeats = {}
    gc.collect()
    gc.freeze()  # what is here already is no turn's garbage
    for name, call in calls.items():
        call()
        start = time.process_time()
        call()
        repeats[name] = max(1, math.ceil(seconds / max(time.process_time() - start, 1e-7)))
    readings: dict[str, list[Reading]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            call, count = calls[name], repeats[name]
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                call()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            readings[name].append(Reading(wall / count, cpu / count))
    gc.unfreeze()
    return readings


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the spread of the ratios, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


@dataclass(frozen=True)
class Verdict:
    """One target on one net: what was measured, and whether it is met."""

    net: str
    target: str
    limit: float
    measured: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the median is within the limit."""
        return self.measured["median"] <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able fields."""
        return {
            "net": self.net,
            "target": self.target,
            "limit": self.limit,
            **self.measured,
            "passed": self.passed,
        }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Describe the machine, without a name or a path."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": usable,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load at the start": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
