"""Which pairs of minima to search next, so that few searches give a firm merge tree.

The plan is a function of what is known and of nothing else: asked again with the same
results it says the same, and it never draws at random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from thalweg.estimate import Bound
from thalweg.topology.merge_tree import Leaf, MergeTree, merge_tree
from thalweg.topology.trees import Heights, Searched, crossing

__all__ = ["Search", "next_searches", "search_rounds", "spanning_pairs"]

Pairs = list[tuple[Leaf, Leaf]]


@dataclass(frozen=True, slots=True)
class Search:
    """A search to make: its ends, in the order of the minima, and its number.

    Args:
        a: One minimum.
        b: The other.
        repeat: 0 for the first search of the pair; each further one wants a fresh seed.
    """

    a: Leaf
    b: Leaf
    repeat: int = 0

    def __str__(self) -> str:
        """Return the pair, and the number of a repeat."""
        return f"{self.a} - {self.b}" + (f", repeat {self.repeat}" if self.repeat else "")


def next_searches(
    heights: Heights,
    searched: Sequence[Searched],
    *,
    budget: int | None = None,
    round_size: int = 8,
    repeats: int = 3,
    distances: Float[np.ndarray, "leaves leaves"] | None = None,
) -> list[Search]:
    r"""Return the searches to make next; none when the budget is spent or all is confirmed.

    Three stages. First a spanning tree of pairs (`spanning_pairs`). Then, for two thirds
    of the budget, new pairs that may lower a merge: a component that dies at $d_j$, with
    its lowest minimum at $h_j$, is paired with the one of a lower minimum whose own death
    $d_i$ is nearest, and pairs are taken by $|d_i - d_j| / (d_j - h_j)$, the smallest
    first. (If $d_i \gg d_j$ were exact, the ultrametric inequality would leave nothing to
    gain.) Last, further searches of the pairs that carry the merges of the best-known
    tree, the highest merge first, until at least `repeats` searches cross each merge.

    A plan cannot know every tree: to tell K leaves apart takes of the order of K log K
    comparisons in general.

    Args:
        heights: Height of each minimum by name, or a sequence.
        searched: All searches so far; a failed one has an upper end of infinity.
        budget: The most searches in all; 3K for K minima unless given.
        round_size: How many to propose at most, after the first stage.
        repeats: How many independent searches a merge needs; 1 leaves out the last stage
            and gives its share of the budget to the second.
        distances: Distances between the minima, where they are known: the first stage
            then takes their minimum spanning tree.

    Returns:
        The searches, the most urgent first.

    Raises:
        ValueError: If `budget` is too small for a spanning tree, `round_size` or `repeats`
            below 1, distances are no distances, or a search is refused by `merge_tree`.

    Source:
        Draxler et al., ICML 2018, for the inequality and the spanning tree; Becker &
        Karplus, J. Chem. Phys. 106, 1495 (1997). The order of the pairs is ours.

    Example:
        >>> for search in next_searches({"a": 1.0, "b": 0.0, "c": 2.0}, []):
        ...     print(search)
        a - b
        b - c
    """
    total = _checked_budget(len(heights), budget, round_size, repeats)
    left = total - len(searched)
    first = _unsearched(spanning_pairs(heights, distances=distances), searched)
    if first or left <= 0 or len(heights) < 2:
        return [Search(a, b) for a, b in first[: max(left, 0)]]
    tree = merge_tree(heights, [(each.a, each.b, each.height) for each in searched])
    counts = [len(found) for found in crossing(tree, searched)]
    spare = total if repeats == 1 else max(len(heights) - 1, (2 * total) // 3)
    room = min(round_size, left, spare - len(searched))
    gain = _promising(tree, searched, counts, repeats, distances)[: max(room, 0)]
    if gain:
        return [Search(a, b) for a, b in gain]
    return _confirming(tree, searched, counts, repeats)[: min(round_size, left)]


def search_rounds(
    heights: Heights,
    results: Mapping[Search, Bound],
    *,
    budget: int | None = None,
    round_size: int = 8,
    repeats: int = 3,
    distances: Float[np.ndarray, "leaves leaves"] | None = None,
) -> Iterator[list[Search]]:
    """Go through the rounds of searches, each chosen from the results of those before it.

    Fill `results` while you go: a search of an earlier round that is missing from it
    counts as failed. So the plan is the same however often the work is interrupted, and
    in whatever order a round is done.

    Args:
        heights: Height of each minimum by name, or a sequence.
        results: The height found by each search.
        budget: As in `next_searches`.
        round_size: As there.
        repeats: As there.
        distances: As there.

    Yields:
        The searches of a round.

    Example:
        >>> found = {}
        >>> for searches in search_rounds([0.0, 1.0], found, budget=3):
        ...     found |= {search: Bound.exactly(2.0) for search in searches}
        >>> print(*found, sep="; ")
        0 - 1; 0 - 1, repeat 1; 0 - 1, repeat 2
    """
    failed = Bound.exactly(math.inf)
    made: list[Search] = []
    while True:
        searched = [Searched(s.a, s.b, results.get(s, failed), s.repeat) for s in made]
        chosen = next_searches(
            heights,
            searched,
            budget=budget,
            round_size=round_size,
            repeats=repeats,
            distances=distances,
        )
        if not chosen:
            return
        yield chosen
        made += chosen


def spanning_pairs(
    heights: Heights, *, distances: Float[np.ndarray, "leaves leaves"] | None = None
) -> Pairs:
    """Return K - 1 pairs that join K minima: every one with the lowest, or near ones.

    Args:
        heights: Height of each minimum by name, or a sequence.
        distances: Distances between the minima; their minimum spanning tree is then taken.

    Returns:
        The pairs, each in the order of the minima.

    Raises:
        ValueError: If the distances are not symmetric, finite and non-negative.

    Example:
        >>> spanning_pairs({"a": 1.0, "b": 0.0, "c": 2.0})
        [('a', 'b'), ('b', 'c')]
    """
    tree = merge_tree(heights, [])
    names, count = tree.leaves, len(tree.leaves)
    if distances is None:
        if not names:
            return []
        lowest = min(range(count), key=lambda i: (tree.heights[i], i))
        return [(names[min(i, lowest)], names[max(i, lowest)]) for i in range(count) if i != lowest]
    far = _checked_distances(distances, count)
    edges = [(i, j, float(far[i, j])) for i, j in itertools.combinations(range(count), 2)]
    near = merge_tree([0.0] * count, edges)
    ends = [sorted(merge.edge) for merge in near.merges]
    return [(names[int(i)], names[int(j)]) for i, j in ends]


def _promising(
    tree: MergeTree,
    searched: Sequence[Searched],
    counts: Sequence[int],
    repeats: int,
    distances: np.ndarray | None,
) -> Pairs:
    """Return new pairs that may lower a merge, at most one for each component that dies."""
    names, heights = tree.leaves, tree.heights
    tried = {frozenset((each.a, each.b)) for each in searched}
    death, crossed = _deaths(tree, counts)
    ages = sorted(range(len(names)), key=lambda i: (heights[i], i))
    found = []
    for age, j in enumerate(ages):
        gain = death[j] - heights[j]
        if gain <= 0 or crossed[j] >= max(repeats, 2):
            continue
        elders = [
            (_apart(death[i], death[j]), 0.0 if distances is None else distances[i, j], rank, i)
            for rank, i in enumerate(ages[:age])
            if frozenset((names[i], names[j])) not in tried and death[i] > heights[j]
        ]
        if elders:
            apart, _, _, i = min(elders)
            share = apart / gain if apart < math.inf and gain < math.inf else apart
            found.append((share, -gain, min(i, j), max(i, j)))
    return [(names[i], names[j]) for _, _, i, j in sorted(found)]


def _deaths(tree: MergeTree, counts: Sequence[int]) -> tuple[list[float], list[int]]:
    """Return where the component of each minimum dies, and how many searches cross there.

    The eldest of a whole tree is given the highest merge; those of a forest die nowhere.
    """
    index = {leaf: i for i, leaf in enumerate(tree.leaves)}
    whole = len(tree.roots) == 1 and tree.merges
    death = [tree.merges[-1].height.upper if whole else math.inf] * len(index)
    crossed = [0] * len(index)
    for merge, count in zip(tree.merges, counts, strict=True):
        death[index[merge.dying]] = merge.height.upper
        crossed[index[merge.dying]] = count
    return death, crossed


def _apart(one: float, other: float) -> float:
    return 0.0 if one == other else abs(one - other)


def _confirming(
    tree: MergeTree, searched: Sequence[Searched], counts: Sequence[int], repeats: int
) -> list[Search]:
    """Return further searches of the pairs that carry a merge with too few, highest first."""
    last: dict[frozenset[Leaf], int] = {}
    for each in searched:
        pair = frozenset((each.a, each.b))
        last[pair] = max(last.get(pair, 0), each.repeat)
    chosen = []
    for merge, count in reversed(list(zip(tree.merges, counts, strict=True))):
        start = last[frozenset(merge.edge)] + 1
        chosen += [Search(*merge.edge, start + k) for k in range(repeats - count)]
    return chosen


def _unsearched(pairs: Pairs, searched: Sequence[Searched]) -> Pairs:
    tried = {frozenset((each.a, each.b)) for each in searched}
    return [pair for pair in pairs if frozenset(pair) not in tried]


def _checked_budget(minima: int, budget: int | None, round_size: int, repeats: int) -> int:
    for name, value in (("round_size", round_size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if budget is None:
        return 3 * minima
    if budget < minima - 1:
        raise ValueError(
            f"a budget of {budget} searches cannot join {minima} minima; give {minima - 1} or more"
        )
    return budget


def _checked_distances(distances: np.ndarray, count: int) -> np.ndarray:
    far = np.asarray(distances, dtype=float)
    if far.shape != (count, count):
        raise ValueError(f"distances of {count} minima must be ({count}, {count}), not {far.shape}")
    if not (np.isfinite(far).all() and (far >= 0).all() and np.array_equal(far, far.T)):
        raise ValueError("distances must be finite, non-negative and symmetric")
    return far
