"""What a survey is to do: one frozen value, checked when it is made."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

__all__ = ["SurveyConfig"]

_LEAST = {
    "seed": 0, "minima": 0, "threads": 1, "epochs": 0, "batch_size": 1, "max_gradients": 1,
    "eigenvalues": 0, "trace_samples": 0, "curvature_probes": 0, "curvature_passes": 20,
    "images": 3,
    "path_gradients": 1, "places": 0, "searches_per_minimum": 1, "repeats": 1, "round_size": 1,
    "saddle_gradients": 1, "levels": 0, "level_seeds": 1, "level_gradients": 1,
}  # fmt: skip
_POSITIVE = ("lr", "tolerance")
_SWITCHES = ("layers", "laws", "saddles")
_WORDS = {"path_method": ("auto", "line", "string", "band", "curve", "chain")}
_FEWEST_SAMPLES = 32  # what `curvature.trace` asks for
_FEWEST_PLACES = 2  # the ends
_FEWEST_PROBES = 4  # what `curvature.curvature_profile` asks for


@dataclass(frozen=True, slots=True)
class SurveyConfig:
    """How to survey a landscape; equal configurations give equal surveys.

    Everything but `minima` belongs to the survey for good: a folder is never continued
    under another configuration. `minima` is a goal that may grow.

    Args:
        seed: The survey's seed; each job draws from it and its own name.
        minima: How many minima to look for.
        threads: How many threads torch may use in every job; part of the result, because
            sums are rounded in another order under another count.
        epochs: Epochs of minibatch training before the descent, where the landscape is a
            mean over examples; 0 descends from the random start at once.
        batch_size: Examples in a minibatch.
        lr: Learning rate of the minibatch training.
        tolerance: The gradient norm at which a descent counts as converged.
        max_gradients: The most gradients a descent may take.
        eigenvalues: How many of the largest Hessian eigenvalues to compute at a minimum.
        trace_samples: Random vectors in the estimate of the Hessian's trace; 0 leaves the
            trace out.
        curvature_probes: Random starts of the Hessian's spectral density at a minimum, and of
            the counts, the log-determinant and the effective dimension that come with it; 0
            leaves these out, and the layers.
        curvature_passes: The most passes over the data that all this may take.
        layers: Whether to measure each layer's own trace and largest eigenvalue, where the
            landscape has layers.
        laws: Whether to fit laws of random-matrix theory to each density.
        path_method: How paths are searched for: a method of `thalweg.paths.connect` that needs
            no level.
        images: Points of the string between two minima.
        path_gradients: The most gradients and Hessian products that a path's search may take.
        places: At how many places along each path found, at equal steps, the ends included,
            the error rate and held-out data are asked; 0 leaves both out, and the sampling
            error of the path's height.
        searches_per_minimum: How many paths are searched for in all, for each minimum. The
            first join every minimum to the lowest one, the next are the pairs that may lower
            a pass, and the last search again for the paths that carry one.
        repeats: How many independent searches each pass of the merge tree shall have.
        round_size: How many searches are chosen at a time, in the light of the rounds before.
        saddles: Whether to refine the highest point of every path that carries a pass to a
            critical point, and to say what it is.
        saddle_gradients: The most gradients and Hessian products that this may take.
        levels: At how many levels to measure the level set between the two minima that the
            highest pass joins; 0 leaves it out.
        level_seeds: Searches at each level.
        level_gradients: The most gradients that one of these may take.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.

    Example:
        >>> config = SurveyConfig(minima=8)
        >>> SurveyConfig.from_json(config.to_json()) == config
        True
    """

    seed: int = 0
    minima: int = 6
    threads: int = 1
    epochs: int = 30
    batch_size: int = 64
    lr: float = 1e-2
    tolerance: float = 1e-4
    max_gradients: int = 500
    eigenvalues: int = 5
    trace_samples: int = 32
    curvature_probes: int = 8
    curvature_passes: int = 60
    layers: bool = True
    laws: bool = True
    path_method: str = "auto"
    images: int = 13
    path_gradients: int = 2000
    places: int = 11
    searches_per_minimum: int = 3
    repeats: int = 3
    round_size: int = 8
    saddles: bool = True
    saddle_gradients: int = 600
    levels: int = 4
    level_seeds: int = 2
    level_gradients: int = 300

    def __post_init__(self) -> None:
        """Refuse values that no survey can be made with."""
        values = self.to_json()
        _check_types(values)
        for name, least in _LEAST.items():
            if values[name] < least:
                raise ValueError(f"{name} must be at least {least}, got {values[name]}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must lie in [0, 2**63), got {self.seed}")
        if 0 < self.trace_samples < _FEWEST_SAMPLES:
            raise ValueError(
                f"trace_samples must be 0 or at least {_FEWEST_SAMPLES}, got {self.trace_samples}: "
                "fewer give no honest interval"
            )
        if 0 < self.curvature_probes < _FEWEST_PROBES:
            raise ValueError(
                f"curvature_probes must be 0 or at least {_FEWEST_PROBES}, got "
                f"{self.curvature_probes}: fewer give no honest interval"
            )
        if 0 < self.places < _FEWEST_PLACES:
            raise ValueError(
                f"places must be 0 or at least {_FEWEST_PLACES}, the ends, got {self.places}"
            )
        for name, known in _WORDS.items():
            if values[name] not in known:
                raise ValueError(f"unknown {name} {values[name]!r}; use one of {', '.join(known)}")
        for name in _POSITIVE:
            if not (values[name] > 0 and math.isfinite(values[name])):
                raise ValueError(f"{name} must be positive and finite, got {values[name]!r}")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `from_json` turns back into an equal value."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build a configuration from a mapping; what it leaves out has its default.

        Raises:
            ValueError: If a key is unknown; the message names the nearest known one.
        """
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"unknown survey option {key!r}; {meant}")
        _check_types(data)
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a configuration from a JSON file.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it does not hold a JSON object of known options.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f'{path} must hold a JSON object like {{"minima": 8}}')
        return cls.from_json(data)

    def differences(self, other: SurveyConfig) -> list[str]:
        """Return what differs from `other`, one phrase each; `minima` may differ freely."""
        return [
            f"{f.name}: {getattr(self, f.name)!r} there, {getattr(other, f.name)!r} here"
            for f in fields(self)
            if f.name != "minima" and getattr(self, f.name) != getattr(other, f.name)
        ]


def _check_types(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in _SWITCHES:
            fits, words = isinstance(value, bool), "true or false"
        elif name in _WORDS:
            fits, words = isinstance(value, str), "a word"
        elif name in _LEAST:
            fits, words = isinstance(value, int) and not isinstance(value, bool), "an integer"
        else:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            words = "a number"
        if not fits:
            raise TypeError(f"{name} must be {words}, not {value!r}")
