"""The merge tree of the lowest passes that path searches found, and how firm it is."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from thalweg.estimate import Bound
from thalweg.estimate import from_json as estimate_from_json
from thalweg.topology.merge_tree import Leaf, MergeTree, merge_tree

__all__ = [
    "BestKnownTree",
    "Heights",
    "Searched",
    "Support",
    "best_known_tree",
    "budget",
    "by_pair",
    "check_stored",
    "crossing",
    "heights_json",
    "lowest",
    "used",
]

Heights: TypeAlias = Mapping[Leaf, float] | Sequence[float]
"""Height of each minimum by name, or a sequence whose positions are the names."""

_ENOUGH = 3
"""Independent searches that give a merge a spread, and searches per minimum in all."""


@dataclass(frozen=True, slots=True)
class Searched:
    """A search for a low path between two minima, and the height that it found.

    Args:
        a: One minimum.
        b: The other.
        height: Bracket on the highest point of the path found; an upper end of infinity
            means that the search failed.
        repeat: 0 for the first search of this pair, and a number of its own for each
            further one with a fresh seed.
    """

    a: Leaf
    b: Leaf
    height: Bound
    repeat: int = 0

    def to_json(self) -> list[Any]:
        """Return a list that `from_json` turns back into an equal value."""
        return [self.a, self.b, self.height.to_json(), self.repeat]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Searched:
        """Rebuild a search from what `to_json` returned.

        Raises:
            ValueError: If `data` is something else.
        """
        a, b, height, repeat = data
        bound = estimate_from_json(height)
        if not isinstance(bound, Bound):
            raise ValueError(f"the height of search ({a!r}, {b!r}) is no bound: {height!r}")
        return cls(a, b, bound, repeat)


@dataclass(frozen=True, slots=True)
class Support:
    """What stands behind one merge of the best-known tree.

    Every search with one end on each side of a merge is an independent upper bound on its
    height, since min over paths of the highest point is the same for all such pairs.

    Args:
        survivor: The lowest minimum of the joint component.
        dying: The lowest minimum of the other component.
        height: Bracket on the height of the lowest path known.
        searches: How many finished searches cross the merge.
        failed: How many more failed.
        repeats: How many of the finished ones are of the pair that carries the merge.
        spread: The smallest, the median and the largest height that they found.
        share: In what share of the resamplings the same two sets of minima join; NaN if
            no pair was searched twice, which leaves nothing to resample.
    """

    survivor: Leaf
    dying: Leaf
    height: Bound
    searches: int
    failed: int
    repeats: int
    spread: tuple[float, float, float]
    share: float

    @property
    def confirmed(self) -> bool:
        """Whether at least three independent searches cross the merge."""
        return self.searches >= _ENOUGH

    def __str__(self) -> str:
        """Return the height, its spread and its support in a line."""
        low, middle, high = self.spread
        text = f"{self.survivor} with {self.dying} at {self.height.upper:.8g}"
        if self.confirmed:
            text += f": {self.searches} searches from {low:.6g} to {high:.6g}, median {middle:.6g}"
        else:
            found = "1 search" if self.searches == 1 else f"{self.searches} searches"
            text += f": only {found}, fewer than {_ENOUGH}, so its spread is not known"
        if self.failed:
            text += f"; {self.failed} failed"
        if not math.isnan(self.share):
            text += f"; the same sets join in {100 * self.share:.3g} % of the resamplings"
        return text


@dataclass(frozen=True)
class BestKnownTree:
    """The merge tree of the lowest passes known, and how firmly each merge stands.

    The result of `best_known_tree`.

    Args:
        tree: The tree.
        merges: What stands behind each of its merges, in the same order.
        searched: All searches, failed ones too.
        resamples: How many resamplings the shares rest on.
        seed: The seed of the resampling.
    """

    tree: MergeTree
    merges: tuple[Support, ...]
    searched: tuple[Searched, ...]
    resamples: int
    seed: int

    @property
    def searches(self) -> int:
        """How many searches were made."""
        return len(self.searched)

    @property
    def budget(self) -> int:
        """Three searches for each minimum."""
        return budget(self.tree)

    @property
    def confirmed(self) -> bool:
        """Whether at least three independent searches cross every merge."""
        return all(merge.confirmed for merge in self.merges)

    def __str__(self) -> str:
        """Return the tree, a line for each merge, and what is left to do."""
        lines = [
            f"best-known tree from {used(self.tree, self.searched)}",
            str(self.tree),
            *map(str, self.merges),
        ]
        thin = sum(not merge.confirmed for merge in self.merges)
        if thin:
            lines.append(
                f"{thin} of {len(self.merges)} merges rest on fewer than {_ENOUGH} searches; "
                "search what next_searches proposes under a larger budget"
            )
        if len(self.tree.roots) > 1:
            lines.append(
                f"{len(self.tree.roots)} groups are not joined by any path found, "
                "which is no proof that they are apart"
            )
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return the minima and the searches, from which `from_json` rebuilds the result."""
        return {
            "type": "best_known_tree",
            "heights": heights_json(self.tree),
            "searches": [each.to_json() for each in self.searched],
            "resamples": self.resamples,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BestKnownTree:
        """Rebuild the result from what `to_json` returned.

        Raises:
            ValueError: If `data` is something else.
        """
        check_stored(data, "best_known_tree", {"heights", "searches", "resamples", "seed"})
        return best_known_tree(
            dict(data["heights"]),
            map(Searched.from_json, data["searches"]),
            resamples=data["resamples"],
            seed=data["seed"],
        )


def best_known_tree(
    heights: Heights,
    searches: Iterable[Searched],
    *,
    resamples: int = 1000,
    seed: int | None = None,
) -> BestKnownTree:
    r"""Return the merge tree of the lowest passes that the searches found.

    A pair counts with the lowest of its searches, and all pairs together by the
    ultrametric inequality $H_{AC} \le \max(H_{AB}, H_{BC})$: the height of a merge is the
    minimax over chains of pairs. What stands behind a merge are the searches that cross
    it (`Support`). The bootstrap draws the searches of each pair anew, as many with
    replacement, and builds the tree again; a pair searched once stays as it is.

    Args:
        heights: Height of each minimum by name, or a sequence.
        searches: The searches, several for a pair under different repeat numbers.
        resamples: How many resamplings the shares rest on.
        seed: Seed of the resampling; None draws one, which the result records.

    Returns:
        The tree and its supports.

    Raises:
        ValueError: If a name is unknown, a height NaN or below its ends, a repeat number
            used twice for a pair, or `resamples` below 1.

    Source:
        Draxler et al., ICML 2018, for the inequality; Becker & Karplus, J. Chem. Phys.
        106, 1495 (1997); Felsenstein, Evolution 39, 783 (1985), for the bootstrap.

    Example:
        >>> found = [Searched("a", "b", Bound.exactly(h), k) for k, h in enumerate((3, 2, 5))]
        >>> best = best_known_tree({"a": 0.0, "b": 1.0}, found, seed=0)
        >>> print(best)
        best-known tree from 3 searches (3 for each minimum would be 6)
        2 minima, 1 merge, 1 root
        2 (exact)
        +- a  0
        `- b  1
        a with b at 2: 3 searches from 2 to 5, median 3; the same sets join in 100 % ...
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    seed = secrets.randbits(48) if seed is None else seed
    searched = tuple(searches)
    pairs = by_pair(heights, searched)
    edges = [(*pair, lowest([each.height for each in found])) for pair, found in pairs.items()]
    tree = merge_tree(heights, edges)
    shares = _shares(tree, pairs, resamples, seed)
    supports = []
    for merge, found, share in zip(tree.merges, crossing(tree, searched), shares, strict=True):
        ends = [each.height.upper for each in found if each.height.upper < math.inf]
        own = [each for each in found if {each.a, each.b} == set(merge.edge)]
        supports.append(
            Support(
                survivor=merge.survivor,
                dying=merge.dying,
                height=merge.height,
                searches=len(ends),
                failed=len(found) - len(ends),
                repeats=sum(each.height.upper < math.inf for each in own),
                spread=(min(ends), float(np.median(ends)), max(ends)),
                share=share,
            )
        )
    return BestKnownTree(tree, tuple(supports), searched, resamples, seed)


def crossing(tree: MergeTree, searches: Sequence[Searched]) -> list[list[Searched]]:
    """Return for each merge the searches with one end on each side of it.

    Args:
        tree: The tree.
        searches: The searches, between minima of the tree.
    """
    index = {leaf: i for i, leaf in enumerate(tree.leaves)}
    at = np.full((len(index), len(index)), -1)
    for k, merge in enumerate(tree.merges):
        one, other = ([index[leaf] for leaf in tree.members(child)] for child in merge.children)
        at[np.ix_(one, other)] = at[np.ix_(other, one)] = k
    found: list[list[Searched]] = [[] for _ in tree.merges]
    for each in searches:
        if (k := at[index[each.a], index[each.b]]) >= 0:
            found[k].append(each)
    return found


def by_pair(
    heights: Heights, searched: Sequence[Searched]
) -> dict[tuple[Leaf, Leaf], list[Searched]]:
    """Return the searches by pair, each pair in the order of the minima; all checked."""
    bare = merge_tree(heights, [(each.a, each.b, each.height) for each in searched])
    index = {leaf: i for i, leaf in enumerate(bare.leaves)}
    pairs: dict[tuple[Leaf, Leaf], list[Searched]] = {}
    for each in searched:
        pair = (each.a, each.b) if index[each.a] < index[each.b] else (each.b, each.a)
        pairs.setdefault(pair, []).append(each)
    for (a, b), found in pairs.items():
        if len({each.repeat for each in found}) < len(found):
            raise ValueError(
                f"two searches of ({a!r}, {b!r}) have one repeat number; number them, each with "
                "a seed of its own, or they are not independent"
            )
    return dict(sorted(pairs.items(), key=lambda item: (index[item[0][0]], index[item[0][1]])))


def lowest(heights: Sequence[Bound]) -> Bound:
    """Return the bracket on the lowest of several heights."""
    low, high = min(heights, key=lambda h: h.lower), min(heights, key=lambda h: h.upper)
    return Bound(low.lower, high.upper, low.lower_kind, high.upper_kind)


def _shares(
    tree: MergeTree,
    pairs: Mapping[tuple[Leaf, Leaf], Sequence[Searched]],
    resamples: int,
    seed: int,
) -> list[float]:
    """Return for each merge the share of the resamplings in which the same two sets join."""
    if all(len(found) < 2 for found in pairs.values()):
        return [math.nan] * len(tree.merges)
    index = {leaf: i for i, leaf in enumerate(tree.leaves)}
    ends = [(index[a], index[b]) for a, b in pairs]
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(ends)))
    for k, found in enumerate(pairs.values()):
        uppers = np.array([each.height.upper for each in found])
        picks = generator.integers(len(uppers), size=(resamples, len(uppers)))
        drawn[:, k] = uppers[picks].min(axis=1)
    masks = [sum(1 << index[leaf] for leaf in tree.members(n)) for n in range(len(tree.leaves))]
    masks += [
        sum(1 << index[leaf] for leaf in tree.members(len(index) + k))
        for k in range(len(tree.merges))
    ]
    hits = dict.fromkeys((frozenset(masks[c] for c in m.children) for m in tree.merges), 0)
    for uppers in drawn:
        for joined in _joins(len(index), ends, uppers):
            if joined in hits:
                hits[joined] += 1
    return [count / resamples for count in hits.values()]


def _joins(
    count: int, ends: Sequence[tuple[int, int]], heights: np.ndarray
) -> Iterator[frozenset[int]]:
    """Go through the joins of Kruskal's algorithm, each as its two sets, as bit masks."""
    sets = [1 << i for i in range(count)]
    for k in np.argsort(heights, kind="stable"):
        one, other = sets[ends[k][0]], sets[ends[k][1]]
        if one == other or heights[k] == math.inf:
            continue
        yield frozenset((one, other))
        joint = one | other
        sets = [joint if mask & joint else mask for mask in sets]


def used(tree: MergeTree, searched: Sequence[Searched]) -> str:
    """Return in words how many searches were made, beside three for each minimum."""
    searches = "1 search" if len(searched) == 1 else f"{len(searched)} searches"
    return f"{searches} ({_ENOUGH} for each minimum would be {budget(tree)})"


def budget(tree: MergeTree) -> int:
    """Return three searches for each minimum."""
    return _ENOUGH * len(tree.leaves)


def heights_json(tree: MergeTree) -> list[list[Any]]:
    """Return the heights of the minima in a form that JSON keeps the order of."""
    return [[leaf, height] for leaf, height in zip(tree.leaves, tree.heights, strict=True)]


def check_stored(data: Mapping[str, Any], kind: str, fields: set[str]) -> None:
    """Refuse a mapping that is not a stored result of this kind."""
    if data.get("type") != kind or not fields <= set(data):
        raise ValueError(f"not a stored {kind.replace('_', ' ')}: {dict(data)!r}")
