"""Rows of the database turned into the frozen values of a record, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from thalweg.estimate import Bound, Cost, Estimate, Verdict, from_json
from thalweg.survey import schema
from thalweg.survey.errors import SurveyError
from thalweg.survey.records import (
    AlongRecord,
    BalancedRecord,
    BarrierRecord,
    DensityRecord,
    EigenRecord,
    LawRecord,
    LayerRecord,
    LevelRecord,
    LevelSetRecord,
    MinimumRecord,
    PathRecord,
    SaddleRecord,
    SpectrumRecord,
)

__all__ = [
    "level_set_record",
    "minimum_record",
    "path_record",
    "plain",
    "saddle_record",
    "value",
]

_T = TypeVar("_T", Cost, Estimate, Bound)


def plain(value: Any) -> Any:
    """Turn the values of an outcome into what a column holds."""
    if isinstance(value, Cost | Estimate | Bound | Verdict):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def value(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """Read a number with its uncertainty from a column."""
    found = from_json(data)
    if not isinstance(found, kind):
        raise SurveyError(
            f"the database holds a {type(found).__name__} where a {kind.__name__} belongs",
            "restore it from a copy, or survey into a new folder",
        )
    return found


def _estimates(data: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: value(Estimate, item) for name, item in data.items()}


def _eigenvalues(data: Mapping[str, Any]) -> EigenRecord:
    return EigenRecord(**{name: tuple(item) for name, item in data.items()})


def _density(data: Mapping[str, Any]) -> DensityRecord:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return DensityRecord(**{**values, "outliers": _eigenvalues(data["outliers"])})


def _spectrum(data: Mapping[str, Any]) -> SpectrumRecord:
    values: dict[str, Any] = {
        name: from_json(item) if isinstance(item, Mapping) and "type" in item else item
        for name, item in data.items()
    }
    values["density"] = _density(data["density"])
    values["laws"] = tuple(map(_law, data.get("laws", ())))
    return SpectrumRecord(**{**values, "certified": tuple(data["certified"])})


def _law(data: Mapping[str, Any]) -> LawRecord:
    return LawRecord(
        **{
            **data,
            "parameters": _estimates(data["parameters"]),
            "support": tuple(map(tuple, data["support"])),
            "grid": tuple(data["grid"]),
            "values": tuple(data["values"]),
        }
    )


def _layer(data: Mapping[str, Any]) -> LayerRecord:
    trace, top = value(Estimate, data["trace"]), value(Bound, data["top"])
    return LayerRecord(data["name"], data["size"], trace, top)


def minimum_record(row: schema.Minimum, measures: schema.Measures | None) -> MinimumRecord:
    """Return a minimum, with its measures if there are any."""
    eigen = measures.eigenvalues if measures else None
    sampling = measures.sampling if measures else None
    trace = measures.trace if measures else None
    spectrum = measures.spectrum if measures else None
    return MinimumRecord(
        id=row.id,
        origin=row.origin,
        seed=row.seed,
        loss=row.loss,
        sampling=value(Estimate, sampling) if sampling else None,
        gradient_norm=row.gradient_norm,
        converged=row.converged,
        metrics=_estimates(measures.metrics) if measures else {},
        held_out=_estimates(measures.held_out) if measures else {},
        eigenvalues=_eigenvalues(eigen) if eigen else None,
        trace=value(Estimate, trace) if trace else None,
        norm=row.norm,
        cost=value(Cost, row.cost) + (value(Cost, measures.cost) if measures else Cost()),
        seconds=row.seconds + (measures.seconds if measures else 0.0),
        spectrum=_spectrum(spectrum) if spectrum else None,
        layers=tuple(map(_layer, (measures and measures.layers) or ())),
        shipped=value(Estimate, row.shipped) if row.shipped else None,
    )


def path_record(row: schema.Path) -> PathRecord:
    """Return a path."""
    return PathRecord(
        a=row.a,
        b=row.b,
        method=row.method,
        times=tuple(row.times),
        losses=tuple(row.losses),
        line_times=tuple(row.line_times),
        line_losses=tuple(row.line_losses),
        maximum=value(Bound, row.maximum),
        barrier=value(Bound, row.barrier),
        line_maximum=value(Bound, row.line_maximum),
        normalised_length=row.normalised_length,
        converged=row.converged,
        cost=value(Cost, row.cost),
        seconds=row.seconds,
        repeat=row.repeat,
        length=row.length,
        definitions=tuple(map(_barrier, row.definitions or ())),
        held_out=tuple(map(_along, row.held_out or ())),
        balanced=_balanced(row.balanced) if row.balanced else None,
        note=row.note or "",
        line_definitions=tuple(map(_barrier, row.line_definitions or ())),
    )


def _barrier(data: Mapping[str, Any]) -> BarrierRecord:
    sampling = value(Estimate, data["sampling"]) if data["sampling"] else None
    return BarrierRecord(**{**data, "bound": value(Bound, data["bound"]), "sampling": sampling})


def _along(data: Mapping[str, Any]) -> AlongRecord:
    asked = {name: value(Estimate, data[name]) for name in ("first", "last", "worst")}
    series = {name: tuple(data[name]) for name in ("times", "values")}
    return AlongRecord(**{**data, **series, **asked})


def _balanced(data: Mapping[str, Any]) -> BalancedRecord:
    bounds = {name: value(Bound, data[name]) for name in ("maximum", "line_maximum")}
    return BalancedRecord(**{**data, **bounds})


def saddle_record(row: schema.Saddle) -> SaddleRecord:
    """Return a saddle."""
    return SaddleRecord(
        a=row.a,
        b=row.b,
        answer=row.answer,
        reason=row.reason,
        top=value(Bound, row.top),
        loss=row.loss,
        gradient_norm=row.gradient_norm,
        value=value(Bound, row.value) if row.value else None,
        index=value(Bound, row.index),
        zero=value(Bound, row.zero),
        flat=row.flat,
        lowest=_eigenvalues(row.lowest),
        flatness=row.flatness,
        distance=row.distance,
        cost=value(Cost, row.cost),
        seconds=row.seconds,
    )


def level_set_record(row: schema.LevelSet) -> LevelSetRecord:
    """Return the level sets between two minima."""
    return LevelSetRecord(
        row.a,
        row.b,
        tuple(map(_level, row.rows)),
        row.method,
        value(Cost, row.cost),
        row.seconds,
    )


def _level(data: Mapping[str, Any]) -> LevelRecord:
    means = {
        name: value(Estimate, data[name]) if data[name] else None
        for name in ("raw", "shortened", "beads")
    }
    return LevelRecord(**{**data, **means})
