"""The searches of one experiment, each put into a file of its own as it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.landscape import Landscape
from thalweg.landscape.replacing import replacing
from thalweg.paths.beads import BeadString, dynamic_string, dynamic_strings
from thalweg.paths.shorten import shorten

LOOSE: dict[str, Any] = {"acceptance": 1.1, "check_points": 100, "insert": "middle"}
STRICT: dict[str, Any] = {"acceptance": 1.0, "insert": "middle"}
OURS: dict[str, Any] = {"acceptance": 1.0, "insert": "top", "initial_beads": 0, "lr": None}
TOGETHER = 50  # strings side by side: what a killed run may lose
SHORTENING = 20_000  # gradients for the shortening of one string on a small network
ACCEPTANCES = {"loose": LOOSE, "strict": STRICT, "ours": OURS}


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
        side_by_side: Whether all strings are sought in one stack.
    """

    name: str
    land: Callable[[], Landscape]
    levels: tuple[float, ...]
    ends: Callable[[float, int], Tensor | None]
    loss_of: Callable[[float], float]
    options: dict[str, Any]
    measured: slice | None = None
    side_by_side: bool = False


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a file in one move."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as out:
        out.write((json.dumps(content) + "\n").encode())


def length(points: Tensor, coordinates: slice | None) -> float:
    """Return a polyline's length over the distance of its ends, in some coordinates."""
    x = points if coordinates is None else points[:, coordinates]
    steps = torch.linalg.vector_norm((x[1:] - x[:-1]).double(), dim=1).sum()
    return float(steps / torch.linalg.vector_norm((x[-1] - x[0]).double()))


def row_of(
    experiment: Experiment, level: float, seed: int, acceptance: str, string: BeadString
) -> dict[str, Any]:
    """Return what the tables need of one search."""
    short = string.shortened
    return {
        "experiment": experiment.name,
        "acceptance": acceptance,
        "level": level,
        "seed": seed,
        "answer": string.connected.answer,
        "reason": string.connected.reason,
        "beads": string.beads,
        "rounds": string.rounds,
        "raw": length(string.path.points, experiment.measured),
        "shortened": None if short is None else length(short.points, experiment.measured),
        "maximum": string.path.maximum.to_json(),
        "training": string.training,
        "cost": string.cost.to_json(),
        "shortening": None if short is None else short.cost.to_json(),
    }


def run(experiment: Experiment, seeds: Iterable[int], acceptances: Iterable[str], out: Path) -> int:
    """Do every search that is not in the folder yet; return how many were done."""
    land, done, seeds = experiment.land(), 0, list(seeds)
    for acceptance in acceptances:
        folder = out / experiment.name / acceptance
        wanted = []
        for level in sorted(experiment.levels, reverse=True):
            for seed in seeds:
                file = folder / f"level-{level:g}_seed-{seed}.json"
                if file.exists():
                    continue
                done += 1
                if (ends := experiment.ends(level, seed)) is None:
                    head = {"experiment": experiment.name, "acceptance": acceptance}
                    reason = "training did not get below the level"
                    end = {"level": level, "seed": seed, "answer": "no ends", "reason": reason}
                    write(file, head | end)
                else:
                    wanted.append((level, seed, ends, file))
        for (level, seed, _, file), string in zip(
            wanted, strings(experiment, land, wanted, acceptance), strict=True
        ):
            row = row_of(experiment, level, seed, acceptance, string)
            write(file, row)
            for left in file.parent.glob(f"{file.stem}.state*"):
                left.unlink()
            head = f"{experiment.name} {acceptance}: level {level:g}, seed {seed}: {row['answer']}"
            print(f"{head}, {row['beads']} beads, length {row['raw']:.3f}", flush=True)
    return done


def told(part: float, message: str) -> None:
    """Show how far the searches are, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{message} ", end="", file=sys.stderr, flush=True)


def strings(
    experiment: Experiment,
    land: Landscape,
    wanted: list[tuple[float, int, Tensor, Path]],
    acceptance: str,
) -> Iterator[BeadString]:
    """Join every pair of ends below its level; strict strings are shortened too."""
    strict = acceptance != "loose"
    options = {"initial_beads": 1} | experiment.options | ACCEPTANCES[acceptance]
    if not experiment.side_by_side:
        for level, seed, ends, file in wanted:
            yield dynamic_string(
                land, ends[0], ends[1], experiment.loss_of(level), seed=seed, shorten=strict,
                checkpoint=file.with_suffix(".state"), **options,
            )  # fmt: skip
        return
    for start in range(0, len(wanted), TOGETHER):
        group = wanted[start : start + TOGETHER]
        stack = torch.stack([ends for _, _, ends, _ in group])
        levels = [experiment.loss_of(level) for level, _, _, _ in group]
        seeds = [seed for _, seed, _, _ in group]
        found = dynamic_strings(
            land, stack[:, 0], stack[:, 1], levels, seeds=seeds, shorten=False, progress=told,
            **options,
        )  # fmt: skip
        for string, level, seed in zip(found, levels, seeds, strict=True):
            if strict and string.connected.yes:
                short = shorten(land, string.path, level, max_gradients=SHORTENING, seed=seed)
                string = replace(string, shortened=short)
            yield string


def read(folder: Path, name: str, acceptance: str) -> list[dict[str, Any]]:
    """Read every finished search of an experiment."""
    files = sorted((folder / name / acceptance).glob("*.json"))
    return [json.loads(file.read_text("utf-8")) for file in files]
