"""What makes two landscapes the same one: the door that a survey's folder keeps."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch

import thalweg
from thalweg.landscape import Landscape

__all__ = ["describe", "differences", "name_of", "software"]

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
    generator = torch.Generator().manual_seed(0)
    point = 0.05 * torch.randn(land.dim, generator=generator, dtype=torch.float64)
    result: dict[str, Any] = {
        "kind": type(land).__name__,
        "dim": land.dim,
        "dtype": str(land.dtype).removeprefix("torch."),
        "label": label,
        "probe": float(land.loss(point.to(land.dtype).to(land.device))),
    }
    provenance = getattr(land, "describe", None)
    if callable(provenance):
        result["describe"] = provenance()
    return result


def name_of(function: object) -> str:
    """Return the module and name of a function; of another callable, those of its type.

    Example:
        >>> name_of(math.sqrt)
        'math.sqrt'
    """
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
                phrases.append(f"loss at the probe point: {a!r} there, {b!r} here")
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
