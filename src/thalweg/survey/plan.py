"""Which jobs a survey consists of, what they are called and what each draws from.

The plan is a function of what has been found, never of when or in which order: a survey
that was interrupted plans the same jobs, under the same names and with the same seeds, as
one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from thalweg.survey.config import SurveyConfig

__all__ = ["Job", "Kind", "Node", "job_seed", "pair_count", "pairs", "pending"]

Kind = Literal["minimum", "characterise", "connect"]


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work: its kind and the minima that it is about.

    Example:
        >>> print(Job("minimum", ("m03",), 3), Job("connect", ("m00", "m03")))
        minimum/seed=3 connect/m00-m03
    """

    kind: Kind
    minima: tuple[str, ...]
    number: int | None = None

    @property
    def key(self) -> str:
        """The job's name, from which its seed follows."""
        if self.number is not None:
            return f"{self.kind}/seed={self.number}"
        return f"{self.kind}/{'-'.join(self.minima)}"

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
    heights: Mapping[tuple[str, str], float],
    over: frozenset[str] | set[str],
) -> list[Job]:
    """Return the jobs that can run now and are not over; none when the survey is complete.

    Minima come first, then their measures, then the paths round by round: what comes later
    may depend on what came before.

    Args:
        config: The survey's configuration.
        goal: How many minima to look for.
        nodes: The minima known, in order.
        heights: The height of every path found, by the ids of its ends.
        over: The keys of the jobs that are done, or failed and are not to be tried again.
    """
    searches = (Job("minimum", (f"m{i:02d}",), i) for i in range(goal))
    stages: tuple[Iterator[Job], ...] = (
        searches,
        (Job("characterise", (node.id,)) for node in nodes),
    )
    for stage in stages:
        if jobs := [job for job in stage if job.key not in over]:
            return jobs
    for pair_round in pairs(config, nodes, heights):
        jobs = [Job("connect", pair) for pair in pair_round]
        if jobs := [job for job in jobs if job.key not in over]:
            return jobs
    return []


def pairs(
    config: SurveyConfig, nodes: Sequence[Node], heights: Mapping[tuple[str, str], float]
) -> Iterator[list[tuple[str, str]]]:
    """Go through the rounds of pairs to connect.

    Up to `config.all_pairs` minima there is one round of all pairs. Beyond, the first
    round joins every minimum to the lowest one; each further round takes the
    `config.round_size` untried pairs whose best known pass stands highest above their
    higher end, until `config.extra_pairs` are spent. A round is chosen from the results of
    the rounds before it alone, so that the choice does not depend on when it is made. A
    path that failed counts as infinitely high.
    """
    order = {node.id: i for i, node in enumerate(nodes)}
    if len(nodes) <= config.all_pairs:
        yield list(itertools.combinations(order, 2))
        return
    lowest = min(nodes, key=lambda node: (node.loss, order[node.id]))
    ends = [(lowest.id, node.id) for node in nodes if node is not lowest]
    tried = [(a, b) if order[a] < order[b] else (b, a) for a, b in ends]
    yield tried
    left = config.extra_pairs
    while left > 0:
        known = {pair: heights.get(pair, math.inf) for pair in tried}
        chosen = _most_improvable(nodes, known, min(left, config.round_size))
        if not chosen:
            return
        yield chosen
        tried += chosen
        left -= len(chosen)


def pair_count(config: SurveyConfig, minima: int) -> int:
    """Return how many pairs are connected at most among so many minima."""
    every = minima * (minima - 1) // 2
    if minima <= config.all_pairs:
        return every
    return min(every, minima - 1 + config.extra_pairs)


def _most_improvable(
    nodes: Sequence[Node], heights: Mapping[tuple[str, str], float], count: int
) -> list[tuple[str, str]]:
    """Return the untried pairs whose known minimax lies highest above their higher end."""
    size = len(nodes)
    order = {node.id: i for i, node in enumerate(nodes)}
    best = [[math.inf] * size for _ in range(size)]
    for (a, b), height in heights.items():
        i, j = order[a], order[b]
        best[i][j] = best[j][i] = height
    for k, i, j in itertools.product(range(size), repeat=3):
        if i != j:
            best[i][j] = min(best[i][j], max(best[i][k], best[k][j]))
    gaps = [
        (best[i][j] - max(nodes[i].loss, nodes[j].loss), i, j)
        for i, j in itertools.combinations(range(size), 2)
        if (nodes[i].id, nodes[j].id) not in heights
    ]
    gaps = sorted((gap for gap in gaps if gap[0] > 0), key=lambda gap: (-gap[0], gap[1], gap[2]))
    return [(nodes[i].id, nodes[j].id) for _, i, j in gaps[:count]]
