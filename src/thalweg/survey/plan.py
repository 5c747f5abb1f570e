"""Which jobs a survey consists of, what they are called and what each draws from.

The plan is a function of what has been found, never of when or in which order: a survey
that was interrupted plans the same jobs, under the same names and with the same seeds, as
one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from thalweg.estimate import Bound
from thalweg.survey.config import SurveyConfig
from thalweg.topology import Leaf, Search, merge_tree, search_rounds

__all__ = ["Job", "Kind", "Node", "job_seed", "pending", "search_count"]

Kind = Literal["minimum", "characterise", "connect", "saddle", "levels"]


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work: its kind and the minima that it is about.

    Example:
        >>> print(Job("minimum", ("m03",), 3), Job("connect", ("m00", "m03")))
        minimum/seed=3 connect/m00-m03
        >>> print(Job("connect", ("m00", "m03"), repeat=1))
        connect/m00-m03/1
    """

    kind: Kind
    minima: tuple[str, ...]
    number: int | None = None
    repeat: int = 0

    @property
    def key(self) -> str:
        """The job's name, from which its seed follows."""
        if self.number is not None:
            return f"{self.kind}/seed={self.number}"
        again = f"/{self.repeat}" if self.repeat else ""
        return f"{self.kind}/{'-'.join(self.minima)}{again}"

    def __str__(self) -> str:
        """Return the key."""
        return self.key


@dataclass(frozen=True, slots=True)
class Node:
    """A minimum as the plan sees it."""

    id: str
    loss: float


def job_seed(seed: int, key: str) -> int:
    """Return the seed of a job: a hash of the survey's seed and the job's name.

    It has 48 bits, so that a reader in JavaScript sees the same number.

    Example:
        >>> job_seed(0, "minimum/seed=3") == job_seed(0, "minimum/seed=3")
        True
        >>> job_seed(0, "minimum/seed=3") == job_seed(1, "minimum/seed=3")
        False
    """
    digest = hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def pending(
    config: SurveyConfig,
    goal: int,
    nodes: Sequence[Node],
    results: Mapping[Search, Bound],
    over: Container[str],
) -> list[Job]:
    """Return the jobs that can run now and are not over; none when the survey is complete.

    Minima come first, then their measures, then the paths round by round
    (`topology.search_rounds`), then the saddles and level sets of the tree that they make:
    what comes later may depend on what came before.

    Args:
        config: The survey's configuration.
        goal: How many minima to look for.
        nodes: The minima known, in order.
        results: The height of every path found.
        over: The keys of the jobs that are done, or failed and are not to be tried again.
    """
    stages: tuple[Iterator[Job], ...] = (
        (Job("minimum", (f"m{i:02d}",), i) for i in range(goal)),
        (Job("characterise", (node.id,)) for node in nodes),
    )
    heights: dict[Leaf, float] = {node.id: node.loss for node in nodes}
    rounds = search_rounds(
        heights,
        results,
        budget=search_count(config, len(nodes)),
        round_size=config.round_size,
        repeats=config.repeats,
    )
    searches = (
        (Job("connect", (str(s.a), str(s.b)), repeat=s.repeat) for s in each) for each in rounds
    )
    for stage in itertools.chain(stages, searches, [_closer_looks(config, heights, results)]):
        if jobs := [job for job in stage if job.key not in over]:
            return jobs
    return []


def search_count(config: SurveyConfig, minima: int) -> int:
    """Return how many paths are searched for at most among so many minima."""
    return config.searches_per_minimum * minima if minima > 1 else 0


def _closer_looks(
    config: SurveyConfig, heights: Mapping[Leaf, float], results: Mapping[Search, Bound]
) -> Iterator[Job]:
    """Yield what is done with the passes of the tree, once it stands."""
    tree = merge_tree(heights, [(s.a, s.b, height) for s, height in results.items()])
    order = {leaf: i for i, leaf in enumerate(tree.leaves)}
    pairs = [tuple(map(str, sorted(merge.edge, key=order.__getitem__))) for merge in tree.merges]
    if config.saddles:
        yield from (Job("saddle", pair) for pair in pairs)
    if config.levels:
        yield from (Job("levels", pair) for pair in pairs[-1:])
