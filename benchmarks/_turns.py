"""Contestants that answer a question: what they answer, what it cost, and in what time."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

import thalweg


@dataclass(frozen=True)
class Answer:
    """What one run returned.

    Args:
        values: The numbers themselves.
        products: Matrix-vector products that it took.
        passes: Sweeps over the data; vectors that travel together share one.
        converged: What it says about itself; None if it says nothing.
    """

    values: Any
    products: int
    passes: float
    converged: bool | None = None


@dataclass(frozen=True)
class Contestant:
    """One way to answer.

    Args:
        name: What the tables call it.
        package: The distribution that it comes from.
        solve: Answers a problem, with a seed.
        reference: Whether it is run for its counts alone, so that its time means nothing.
    """

    name: str
    package: str
    solve: Callable[[Any, int], Answer]
    reference: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is Thalweg's."""
        return self.package == "thalweg"


def version(package: str) -> str | None:
    """Return the version of a distribution, or None where it is not installed."""
    if package == "thalweg":
        return thalweg.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Turn:
    """One answer with its processor time."""

    answer: Answer
    seconds: float


@contextmanager
def quiet(dtype: torch.dtype = torch.float64, seed: int | None = None) -> Iterator[None]:
    """Silence a peer's warnings, and give it its dtype and its random numbers."""
    before = torch.get_default_dtype()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.set_default_dtype(dtype)
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def reason(error: BaseException) -> str:
    """Return why something failed, in one short line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].split('. ')[0][:160]}"


def take_turns(
    contestants: Mapping[str, Contestant], problem: Any, rounds: int
) -> dict[str, list[Turn] | str]:
    """Let every contestant answer once per round, A B C, B C A, …, each round a new seed.

    Args:
        contestants: By name.
        problem: What `solve` takes.
        rounds: How many seeds.

    Returns:
        For each name its turns, or why it failed.
    """
    found: dict[str, list[Turn] | str] = {}
    for name, contestant in contestants.items():
        if version(contestant.package) is None:
            found[name] = f"not installed (pip install {contestant.package})"
            continue
        try:
            contestant.solve(problem, rounds)  # untimed, on a seed of its own
            found[name] = []
        except Exception as error:  # whatever a peer raises is a result
            if contestant.ours:
                raise
            found[name] = reason(error)
    names = list(contestants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            turns = found[name]
            if isinstance(turns, str):
                continue
            gc.collect()
            start = time.process_time()
            answer = contestants[name].solve(problem, number)
            turns.append(Turn(answer, time.process_time() - start))
    return found
