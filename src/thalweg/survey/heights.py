"""What a path is worth beyond its maximum: by name, on held-out data, and in a gauge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Estimate
from thalweg.landscape import Landscape, for_evaluation
from thalweg.paths import Gauge, Path, along, barrier_definitions, height_sampling, in_gauge, line
from thalweg.paths.gauge import chosen
from thalweg.survey.records import AlongRecord, BalancedRecord, BarrierRecord

__all__ = ["Worth", "check_gauge", "worth"]

_Value = TypeVar("_Value")

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
    line_definitions: tuple[BarrierRecord, ...] = ()


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
    straight: Path,
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
        straight: The straight line between its ends, of which the definitions speak as well:
            most were made for it.
        places: Where error rate and held-out data are asked; 0 leaves both out, and the
            sampling error of the height.
    """
    notes: list[str] = []

    def tried(what: str, measure: Callable[[], _Value], otherwise: _Value) -> _Value:
        """Go without a measure that fails: the path that was paid for is kept."""
        try:
            return measure()
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            notes.append(f"{what}: {kind}{error}")
            return otherwise

    def defined(along: Path, where: str) -> tuple[BarrierRecord, ...]:
        free = _definitions(land, along, 0)
        return tried(where, lambda: _definitions(land, along, places), free) if places else free

    found = Worth(path.length, defined(path, "metrics"))
    if torch.equal(path.points, straight.points):
        found = replace(found, line_definitions=found.definitions)
    else:
        found = replace(found, line_definitions=defined(straight, "metrics on the straight line"))
    if held_out is not None and places:
        outside = tried(
            "on held-out data", lambda: _outside(held_out, path, places), found.held_out
        )
        found = replace(found, held_out=outside)
    if gauge is not None:
        balanced = tried("in the gauge", lambda: _balanced(land, gauge, path), None)
        found = replace(found, balanced=balanced)
    return replace(found, note="; ".join(notes))


def _definitions(land: Landscape, path: Path, places: int) -> tuple[BarrierRecord, ...]:
    """Return the height by every definition that the landscape has what it takes for."""
    metrics = _metrics(land, path.points[0]) if places else {}
    scored = _METRIC in metrics and _is_share(metrics[_METRIC])
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


def _is_share(accuracy: Estimate) -> bool:
    """Say whether a metric of that name is a share of the examples, and not per cent, say."""
    return not (accuracy.value < 0 or accuracy.value > 1)


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
    if _METRIC in found.metrics and all(map(_is_share, found.metrics[_METRIC])):
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
