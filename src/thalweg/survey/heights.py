"""What a path is worth beyond its maximum: by name, on held-out data, and in a gauge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Estimate
from thalweg.landscape import Landscape, for_evaluation
from thalweg.paths import Gauge, Path, along, barrier_definitions, height_sampling, in_gauge, line
from thalweg.paths.gauge import chosen
from thalweg.survey.records import AlongRecord, BalancedRecord, BarrierRecord

__all__ = ["Worth", "check_gauge", "worth"]

_METRIC = "accuracy"
"""The metric that is one less the error rate."""


@dataclass(frozen=True)
class Worth:
    """What `worth` hands on, under the names that an outcome has; see `PathRecord`."""

    length: float
    definitions: tuple[BarrierRecord, ...] = ()
    held_out: tuple[AlongRecord, ...] = ()
    balanced: BalancedRecord | None = None
    note: str = ""


def check_gauge(
    land: Landscape, gauge: Gauge | None, ends: Sequence[Float[Tensor, " dim"]]
) -> None:
    """Refuse a gauge that does not keep the loss at the ends, before a search is spent.

    Raises:
        ValueError: If it returns another shape, NaN, or a vector with another loss.
    """
    if gauge is not None:
        for end in ends:
            chosen(land, gauge, end)


def worth(
    land: Landscape,
    held_out: Landscape | None,
    gauge: Gauge | None,
    path: Path,
    places: int,
) -> Worth:
    """Measure a path beyond its maximum.

    What a landscape cannot say is left out: a function has no error rate, examples that cannot
    be told apart no sampling error. Why is part of the note, where it is not plain.

    Args:
        land: The landscape that the path was searched for on.
        held_out: The same on data that the search never saw.
        gauge: Maps a vector to the one chosen among those that compute the same.
        path: The path.
        places: Where error rate and held-out data are asked; 0 leaves both out, and the
            sampling error of the height.
    """
    found, notes = Worth(path.length, _definitions(land, path, places)), []
    if held_out is not None and places:
        try:
            found = replace(found, held_out=_outside(held_out, path, places))
        except ValueError as error:
            notes.append(f"on held-out data: {error}")
    if gauge is not None:
        try:
            found = replace(found, balanced=_balanced(land, gauge, path))
        except ValueError as error:
            notes.append(f"in the gauge: {error}")
    return replace(found, note="; ".join(notes))


def _definitions(land: Landscape, path: Path, places: int) -> tuple[BarrierRecord, ...]:
    """Return the height by every definition that the landscape has what it takes for."""
    scored = places and _METRIC in _metrics(land, path.points[0])
    named = barrier_definitions(path, land if scored else None, samples=max(places, 2))
    return tuple(
        BarrierRecord(
            each.name,
            each.formula,
            each.source,
            each.bound,
            _sampled(land, path) if each.name == "above_ends" and places else each.sampling,
        )
        for each in named
    )


def _sampled(land: Landscape, path: Path) -> Estimate | None:
    """Return the height's sampling error, where the examples can be told apart."""
    try:
        return height_sampling(land, path)
    except ValueError:
        return None


def _metrics(land: Landscape, theta: Tensor) -> dict[str, Estimate]:
    metrics = getattr(for_evaluation(land), "metrics", None)
    return dict(metrics(theta)) if callable(metrics) else {}


def _outside(held_out: Landscape, path: Path, places: int) -> tuple[AlongRecord, ...]:
    """Return loss and error rate on other data, also where the path is highest on its own."""
    steps = torch.linspace(0, 1, places, dtype=torch.float64)
    times = torch.unique(torch.cat([steps, steps.new_tensor([path.top_time])])).tolist()
    found = along(held_out, path, times=times)
    series = {"loss": found.losses}
    if _METRIC in found.metrics:
        series["error"] = tuple(map(_error, found.metrics[_METRIC]))
    return tuple(_record(name, found.times, values) for name, values in series.items())


def _error(accuracy: Estimate) -> Estimate:
    low, high = accuracy.interval
    return replace(
        accuracy,
        value=1 - accuracy.value,
        interval=(1 - high, 1 - low),
        method=accuracy.method.replace(_METRIC, "error"),
    )


def _record(name: str, times: Sequence[float], values: Sequence[Estimate]) -> AlongRecord:
    at = int(torch.tensor([x.value for x in values], dtype=torch.float64).argmax())  # NaN is most
    return AlongRecord(
        name=name,
        times=tuple(times),
        values=tuple(x.value for x in values),
        first=values[0],
        last=values[-1],
        worst=values[at],
        worst_time=times[at],
    )


def _balanced(land: Landscape, gauge: Gauge, path: Path) -> BalancedRecord:
    moved = in_gauge(land, path, gauge)
    straight = line(land, moved.points[0], moved.points[-1])
    return BalancedRecord(moved.length, moved.normalised_length, moved.maximum, straight.maximum)
