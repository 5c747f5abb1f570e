"""What makes two landscapes the same one: the door that a survey's folder keeps."""

from __future__ import annotations

import functools
import inspect
import math
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

import thalweg
from thalweg.landscape import Landscape
from thalweg.paths import Gauge
from thalweg.survey.errors import SurveyError

__all__ = ["describe", "describe_gauge", "differences", "name_of", "software"]

_PACKAGES = ("torch", "numpy", "scipy")


def describe(land: Landscape, label: str | None = None) -> dict[str, Any]:
    """Return what is known of a landscape, and its loss at one fixed point.

    A landscape that can say what it is (``describe()``, with the digest of its data) says
    it; of a bare function only its dimension and the caller's `label` are known. The loss
    at the fixed point tells functions apart that describe themselves alike, such as two
    lambdas.

    Args:
        land: The landscape; one pass over its data is spent.
        label: A name for it, of the caller's choice.
    """
    point = _point(land)
    result: dict[str, Any] = {
        "kind": type(land).__name__,
        "dim": land.dim,
        "dtype": str(land.dtype).removeprefix("torch."),
        "label": label,
        "probe": float(land.loss(point)),
    }
    provenance = getattr(land, "describe", None)
    if callable(provenance):
        result["describe"] = provenance()
    return result


def describe_gauge(land: Landscape, gauge: Gauge | None) -> dict[str, Any]:
    """Return a gauge's name, and one number of what it makes of the fixed point; both may be None.

    The number tells gauges of one name apart. It is None where the gauge fails there, as one
    may that was made for trained networks; it then fails again, and is reported, where it is used.

    Raises:
        SurveyError: If it is no function of one vector, or returns something else than a vector.
    """
    if gauge is None:
        return {"gauge": None}
    weights = _point(land, seed=1)
    try:
        inspect.signature(gauge).bind(weights)
    except TypeError as error:
        raise SurveyError(
            f"the gauge {name_of(gauge)} cannot be called with one vector: {error}",
            "pass the function theta -> theta' itself, not what makes it",
        ) from None
    except ValueError:  # a builtin that does not tell its signature
        pass
    try:
        moved = gauge(_point(land))
    except Exception:
        return {"gauge": name_of(gauge), "gauge_at": {"probe": None}}
    if not isinstance(moved, Tensor) or moved.shape != weights.shape:
        shape = f" of shape {tuple(moved.shape)}" if isinstance(moved, Tensor) else ""
        raise SurveyError(
            f"the gauge {name_of(gauge)} returned a {type(moved).__name__}{shape}, not a vector "
            f"of shape ({land.dim},)",
            "pass the function theta -> theta' itself, not what makes it",
        )
    return {"gauge": name_of(gauge), "gauge_at": {"probe": float(moved.detach() @ weights)}}


def _point(land: Landscape, seed: int = 0) -> Tensor:
    """Return a fixed point."""
    generator = torch.Generator().manual_seed(seed)
    point = 0.05 * torch.randn(land.dim, generator=generator, dtype=torch.float64)
    return point.to(land.dtype).to(land.device)


def name_of(function: object) -> str:
    """Return the module and name of a function; of another callable, those of its type.

    Example:
        >>> name_of(math.sqrt)
        'math.sqrt'
    """
    if isinstance(function, functools.partial):
        return f"partial({name_of(function.func)})"
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return what differs between two descriptions, one phrase each.

    The loss at the fixed point may differ by rounding, as between two machines.
    """
    old, new = dict(_leaves(there)), dict(_leaves(here))
    single = "float32" in (str(there.get("dtype")), str(here.get("dtype")))
    phrases = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        if name.rpartition(".")[2] == "probe":
            if not _close(a, b, 1e-3 if single else 1e-7):
                what = "gauge" if name.startswith("gauge") else "loss"
                phrases.append(f"{what} at the probe point: {a!r} there, {b!r} here")
        elif a != b:
            phrases.append(f"{name}: {a!r} there, {b!r} here")
    return phrases


def software() -> dict[str, str]:
    """Return the versions that a result depends on."""
    versions = {package: version(package) for package in _PACKAGES}
    return {
        "thalweg": thalweg.__version__,
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple):
        yield name, list(value)
    else:
        yield name, value


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if not (isinstance(a, float) and isinstance(b, float)):
        return bool(a == b)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
