"""What is run, in units of a minute or so, each with a file of its own.

A unit whose file is there is not run again, so that a killed campaign goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from thalweg.landscape.replacing import replacing

THRESHOLD = 1e-3  # eigenvalues of smaller magnitude count as zero, as published


@dataclass(frozen=True)
class Plan:
    """How large the experiment is.

    Attributes:
        name: What it is called.
        networks: How many networks of each width.
        group: How many of them are trained side by side.
        epochs: Sweeps of SGD over the data.
        index: How many networks of each width get their index counted.
        images: Images for training and testing; None for all.
        starts: Random starts on the one disorder of each size, as published.
        disorders: Further disorders of each size, and the starts on each.
        together: Starts that descend side by side, by size of the spin glass.
    """

    name: str
    networks: dict[int, int]
    group: int
    epochs: int
    index: dict[int, int]
    images: tuple[int, int] | None
    starts: dict[int, int]
    disorders: dict[int, tuple[int, int]]
    together: Callable[[int], int]


def together(n: int) -> int:
    """Return how many starts share a unit, so that it takes a minute or two."""
    return 250 if n < 200 else 32


FEW = dict.fromkeys((200, 250, 300, 400, 500), 64)
PLANS = {
    "quick": Plan(
        "quick", {4: 6, 8: 6, 12: 6}, 3, 3, {4: 2, 8: 2}, (200, 100),
        {6: 8, 9: 8, 12: 8}, {6: (3, 4), 9: (3, 4), 12: (3, 4)}, lambda n: 4,
    ),
    "laptop": Plan(
        "laptop", {10: 200, 25: 200, 50: 200, 100: 200, 250: 40, 500: 40}, 20, 200,
        {10: 200, 25: 200, 50: 60, 100: 10}, None, {25: 1000, 50: 1000, 100: 1000, **FEW},
        {25: (100, 10), 50: (100, 10), 100: (50, 10), 200: (16, 4), 250: (16, 4), 300: (8, 4),
         400: (8, 4), 500: (8, 4)},
        together,
    ),
    "paper": Plan(
        "paper", dict.fromkeys((10, 25, 50, 100, 250, 500), 1000), 20, 200,
        dict.fromkeys((10, 25, 50, 100), 1000), None,
        dict.fromkeys((25, 50, 100, 200, 250, 300, 400, 500), 1000),
        {25: (1000, 10), 50: (1000, 10), 100: (200, 10), 200: (64, 4), 250: (64, 4), 300: (32, 4),
         400: (16, 4), 500: (16, 4)}, together,
    ),
}  # fmt: skip
LAPTOP_IMAGES = (6000, 2000)  # of Fashion-MNIST or a folder, unless the scale is the paper's
LAPTOP_EPOCHS = 50


@dataclass(frozen=True)
class Unit:
    """One piece of work: what makes it, from which arguments, and its file.

    Attributes:
        work: The function; it returns what the file will hold.
        arguments: Its arguments, which can be sent to another process.
        file: Where the result goes.
    """

    work: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]
    file: Path


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a file in one move."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as out:
        out.write((json.dumps(content) + "\n").encode())


def do(unit: Unit) -> str:
    """Do a unit, write its file, and say so."""
    torch.set_num_threads(1)
    began = time.process_time()
    content = unit.work(*unit.arguments)
    write(unit.file, content | {"cpu_seconds": time.process_time() - began})
    return f"{unit.file.parent.name}/{unit.file.stem}: {time.process_time() - began:.1f} s of CPU"


def run(units: Iterable[Unit], workers: int) -> int:
    """Do every unit whose file is not there, in their order; return how many were done.

    Args:
        units: The units.
        workers: How many processes, each with one thread; 1 stays in this one.
    """
    left = [unit for unit in units if not unit.file.exists()]
    if workers == 1:
        for unit in left:
            print(do(unit), flush=True)
        return len(left)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(do, unit) for unit in left]
        try:
            for done in as_completed(waiting):
                print(done.result(), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(left)


def read(folder: Path, pattern: str = "*") -> list[dict[str, Any]]:
    """Read every result of a folder whose name fits, in the order of the names."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob(f"{pattern}.json"))]


def groups(count: int, size: int) -> Sequence[range]:
    """Split so many numbers into groups of a size; the last may be smaller."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]
