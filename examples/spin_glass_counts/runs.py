"""The enumerations of the experiment, each batch put into a file of its own as it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thalweg.landscape.replacing import replacing
from thalweg.theory.spin_glass.enumeration import enumerate_samples
from thalweg.theory.spin_glass.homotopy import class_count
from thalweg.theory.spin_glass.model import SphericalPSpin

CLASSES = 4000  # in one batch


def samples_of(n: int) -> int:
    """Return how many spin glasses of a size are enumerated by default."""
    return 2000 if n <= 5 else 200


def batches(n: int, p: int, samples: int) -> Iterator[range]:
    """Divide the samples of a size, always in the same way."""
    size = min(100, max(1, CLASSES // class_count(n, p)))
    for first in range(0, samples, size):
        yield range(first, first + size)


def glass_seed(n: int, p: int, sample: int) -> int:
    """Return the seed of the couplings."""
    return (100 * p + n) * 1_000_000 + sample


def write(file: Path, content: Any) -> None:
    """Write a file in one move."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as out:
        out.write((json.dumps(content) + "\n").encode())


def run_batch(n: int, p: int, samples: range) -> list[dict[str, Any]]:
    """Enumerate some spin glasses, and return what the tables need of each."""
    glasses = [SphericalPSpin(n, p, glass_seed(n, p, k)) for k in samples]
    found = enumerate_samples(glasses, seed=glass_seed(n, p, samples.start))
    return [
        {
            "sample": k,
            "counts": one.counts(),
            "complete": one.complete,
            "missing": one.missing,
            "morse": one.morse_holds,
            "attempts": one.attempts,
            "lost": one.lost,
            "largest_radius": float(one.radii.max()) if len(one) else None,
            "seconds": one.seconds,
        }
        for k, one in zip(samples, found, strict=True)
    ]


def run(n: int, p: int, samples: int, out: Path) -> int:
    """Run the batches that are not in the folder yet; return how many there were."""
    done = 0
    for batch in batches(n, p, samples):
        file = out / f"p{p}-n{n}" / f"{batch.start:05d}.json"
        if not file.exists():
            write(file, run_batch(n, p, batch))
            done += 1
    return done


def read(n: int, p: int, samples: int, out: Path) -> list[dict[str, Any]]:
    """Return the samples that are in the folder, at most so many."""
    files = sorted((out / f"p{p}-n{n}").glob("*.json"))
    rows = [row for file in files for row in json.loads(file.read_text("utf-8"))]
    return rows[:samples]
