"""The searches of one experiment, each put into a file of its own as it ends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.landscape import Landscape
from thalweg.paths.beads import dynamic_string

LOOSE: dict[str, Any] = {"acceptance": 1.1, "check_points": 100, "insert": "middle"}
STRICT: dict[str, Any] = {"acceptance": 1.0, "insert": "middle"}
ACCEPTANCES = {"loose": LOOSE, "strict": STRICT}


@dataclass(frozen=True, eq=False)
class Experiment:
    """A landscape, the ends at every level and seed, and how beads are trained.

    Attributes:
        name: What it is called.
        land: The landscape of a seed.
        levels: The levels, as published (losses, errors or perplexities).
        ends: The ends `(2, dim)` at a level, of a seed; None where training did not get there.
        loss_of: Turns a level as published into a loss.
        options: For `dynamic_string`.
        measured: Which coordinates the published length counts; None for all.
    """

    name: str
    land: Callable[[], Landscape]
    levels: tuple[float, ...]
    ends: Callable[[float, int], Tensor | None]
    loss_of: Callable[[float], float]
    options: dict[str, Any]
    measured: slice | None = None


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a file in one move."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content) + "\n", "utf-8")
    os.replace(part, file)


def length(points: Tensor, coordinates: slice | None) -> float:
    """Return a polyline's length over the distance of its ends, in some coordinates."""
    x = points if coordinates is None else points[:, coordinates]
    steps = torch.linalg.vector_norm((x[1:] - x[:-1]).double(), dim=1).sum()
    return float(steps / torch.linalg.vector_norm((x[-1] - x[0]).double()))


def search(
    experiment: Experiment, land: Landscape, level: float, seed: int, acceptance: str, state: Path
) -> dict[str, Any]:
    """Join the two ends of one seed below one level, and return what the tables need."""
    head = {"experiment": experiment.name, "acceptance": acceptance, "level": level, "seed": seed}
    ends = experiment.ends(level, seed)
    if ends is None:
        return head | {"answer": "no ends", "reason": "training did not get below the level"}
    began = time.perf_counter()
    strict = acceptance == "strict"
    string = dynamic_string(
        land, ends[0], ends[1], experiment.loss_of(level), initial_beads=1, seed=seed,
        shorten=strict, checkpoint=state, **ACCEPTANCES[acceptance], **experiment.options,
    )  # fmt: skip
    short = string.shortened
    return head | {
        "answer": string.connected.answer,
        "reason": string.connected.reason,
        "beads": string.beads,
        "rounds": string.rounds,
        "raw": length(string.path.points, experiment.measured),
        "shortened": None if short is None else length(short.points, experiment.measured),
        "maximum": string.path.maximum.to_json(),
        "training": string.training,
        "cost": string.cost.to_json(),
        "seconds": time.perf_counter() - began,
    }


def run(experiment: Experiment, seeds: Iterable[int], acceptances: Iterable[str], out: Path) -> int:
    """Do every search that is not in the folder yet; return how many were done."""
    land, done = experiment.land(), 0
    seeds = list(seeds)
    for acceptance in acceptances:
        for level in sorted(experiment.levels, reverse=True):
            for seed in seeds:
                file = out / experiment.name / acceptance / f"level-{level:g}_seed-{seed}.json"
                if file.exists():
                    continue
                state = file.with_suffix(".state")
                row = search(experiment, land, level, seed, acceptance, state)
                write(file, row)
                for left in file.parent.glob(f"{state.name}*"):
                    left.unlink()
                done += 1
                said = f"{row['beads']} beads, length {row['raw']:.3f}" if "raw" in row else ""
                print(f"{experiment.name} {acceptance}: level {level:g}, seed {seed}: "
                      f"{row['answer']} {said}", flush=True)  # fmt: skip
    return done


def read(folder: Path, name: str, acceptance: str) -> list[dict[str, Any]]:
    """Read every finished search of an experiment."""
    files = sorted((folder / name / acceptance).glob("*.json"))
    return [json.loads(file.read_text("utf-8")) for file in files]
