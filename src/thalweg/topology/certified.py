"""The merge tree of what is proven about the passes between minima."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from thalweg.estimate import Bound, BoundKind
from thalweg.topology.merge_tree import Leaf, MergeTree, merge_tree
from thalweg.topology.trees import (
    Heights,
    Searched,
    budget,
    by_pair,
    check_stored,
    heights_json,
    lowest,
    used,
)

__all__ = ["CertifiedTree", "Divide", "certified_tree"]


@dataclass(frozen=True, slots=True)
class Divide:
    """A proof that every path between two minima climbs to some height.

    Args:
        a: One minimum.
        b: The other.
        height: The height that every path between them reaches.
        kind: ``"exact"`` or ``"certified"``; an estimate is no proof.
        reason: The proof, in a sentence.
    """

    a: Leaf
    b: Leaf
    height: float
    kind: BoundKind = "certified"
    reason: str = ""


@dataclass(frozen=True)
class CertifiedTree:
    """The merge tree of what is proven; the result of `certified_tree`.

    Args:
        tree: The tree. It stands on the best certified upper ends; the bracket of each
            merge holds its true height.
        searched: All searches.
        divides: The proofs of lower ends that were given.
    """

    tree: MergeTree
    searched: tuple[Searched, ...]
    divides: tuple[Divide, ...]

    @property
    def searches(self) -> int:
        """How many searches were made."""
        return len(self.searched)

    @property
    def budget(self) -> int:
        """Three searches for each minimum."""
        return budget(self.tree)

    @cached_property
    def _edges(self) -> dict[frozenset[Leaf], Bound]:
        return {frozenset((edge.a, edge.b)): edge.height for edge in self.tree.edges}

    def height_of_merge(self, a: Leaf, b: Leaf) -> Bound:
        """Return the bracket on the lowest level that joins two minima.

        Raises:
            ValueError: If a minimum is unknown.
        """
        bound = self.tree.height_of_merge(a, b)
        return bound if a == b else _raised(bound, self._edges[frozenset((a, b))])

    def __str__(self) -> str:
        """Return the tree, and what is proven of it."""
        known = dict(zip(self.tree.leaves, self.tree.heights, strict=True))
        proven = sum(m.height.lower > known[m.dying] for m in self.tree.merges)
        lines = [
            f"certified tree from {used(self.tree, self.searched)}",
            str(self.tree),
            f"{proven} of {len(self.tree.merges)} merges are proven to stand above their minima",
        ]
        loose = sum(not _certain(each.height) for each in self.searched)
        if loose:
            lines.append(
                f"{loose} of {self.searches} searches have no certified upper end and join "
                "nothing here; the best-known tree uses them"
            )
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` rebuilds the result from."""
        return {
            "type": "certified_tree",
            "heights": heights_json(self.tree),
            "searches": [each.to_json() for each in self.searched],
            "divides": [[d.a, d.b, d.height, d.kind, d.reason] for d in self.divides],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CertifiedTree:
        """Rebuild the result from what `to_json` returned.

        Raises:
            ValueError: If `data` is something else.
        """
        check_stored(data, "certified_tree", {"heights", "searches", "divides"})
        return certified_tree(
            dict(data["heights"]),
            map(Searched.from_json, data["searches"]),
            divides=[Divide(*each) for each in data["divides"]],
        )


def certified_tree(
    heights: Heights, searches: Iterable[Searched], *, divides: Iterable[Divide] = ()
) -> CertifiedTree:
    r"""Return the merge tree of what is proven, whatever was never searched.

    Upper ends are the best certified ones of the searches, by the ultrametric inequality.
    Lower ends are the higher of the two minima, since a pair that was searched without
    success, or never, may still be joined there; only a divide raises them. A divide
    between $a$ and $b$ at $f$ holds as well between all that certified passes below $f$
    join to $a$ and to $b$: $f \le H_{ab} \le \max(H_{ac}, H_{cb})$.

    Args:
        heights: Height of each minimum by name, or a sequence.
        searches: The searches; only certified or exact upper ends are used, and no lower
            ends, which speak of one path.
        divides: Proofs that two minima are apart below some height.

    Returns:
        The tree; memory grows with the square of the number of minima.

    Raises:
        ValueError: As `best_known_tree`, and if a divide is only estimated or contradicts
            a certified pass.

    Source:
        Draxler et al., ICML 2018, for the inequality; any path crosses a separating set.

    Example:
        >>> pass_ = Searched("a", "b", Bound(2.0, 2.5, "estimated", "certified"))
        >>> proof = Divide("a", "b", 2.25, reason="the determinant vanishes in between")
        >>> print(certified_tree({"a": 0.0, "b": 1.0}, [pass_]).height_of_merge("a", "b"))
        between 1 (certified) and 2.5 (certified)
        >>> tree = certified_tree({"a": 0.0, "b": 1.0}, [pass_], divides=[proof])
        >>> print(tree.height_of_merge("a", "b"))
        between 2.25 (certified) and 2.5 (certified)
    """
    searched, proofs = tuple(searches), tuple(divides)
    pairs = by_pair(heights, searched)
    passes: dict[tuple[Leaf, Leaf], Bound] = {}
    for pair, found in pairs.items():
        if certain := [each.height for each in found if _certain(each.height)]:
            passes[pair] = lowest(certain)
    known = merge_tree(heights, [(*pair, bound) for pair, bound in passes.items()])
    floors = _floors(known, proofs)
    edges: list[tuple[Leaf, Leaf, Bound]] = []
    never = Bound.exactly(math.inf)
    for j, b in enumerate(known.leaves):
        for i, a in enumerate(known.leaves[:j]):
            upper = passes.get((a, b), never)
            bare = Bound(
                max(known.heights[i], known.heights[j]), upper.upper, "certified", upper.upper_kind
            )
            edges.append((a, b, _raised(bare, floors.get((a, b), bare))))
    tree = merge_tree(heights, edges)
    between = {frozenset((edge.a, edge.b)): edge.height for edge in tree.edges}
    merges = tuple(
        replace(m, height=_raised(m.height, between[frozenset((m.survivor, m.dying))]))
        for m in tree.merges
    )
    return CertifiedTree(replace(tree, merges=merges), searched, proofs)


def _raised(height: Bound, floor: Bound) -> Bound:
    return replace(height, lower=floor.lower, lower_kind=floor.lower_kind)


def _certain(height: Bound) -> bool:
    return height.upper_kind != "estimated" and height.upper < math.inf


def _floors(known: MergeTree, divides: Sequence[Divide]) -> dict[tuple[Leaf, Leaf], Bound]:
    """Return the highest proven floor of each pair that has one above its minima."""
    index = {leaf: i for i, leaf in enumerate(known.leaves)}
    minimax = known.minimax_matrix()
    floors: dict[tuple[Leaf, Leaf], Bound] = {}
    for each in divides:
        name = f"the divide between {each.a!r} and {each.b!r}"
        if each.kind == "estimated" or math.isnan(each.height):
            raise ValueError(
                f"{name} at {each.height!r} is {each.kind}, which is no proof; leave it out"
            )
        upper = known.height_of_merge(each.a, each.b).upper
        if each.height > upper:
            raise ValueError(
                f"{name} at {each.height!r} contradicts a certified pass at {upper!r}; one of the "
                "two proofs is wrong, or they are of different data"
            )
        sides = [
            [leaf for leaf in known.leaves if minimax[index[end], index[leaf]] < each.height]
            for end in (each.a, each.b)
        ]
        for one in sides[0]:
            for other in sides[1]:
                pair = (one, other) if index[one] < index[other] else (other, one)
                higher = max(known.heights[index[leaf]] for leaf in pair)
                if each.height > max(higher, floors[pair].lower if pair in floors else higher):
                    floors[pair] = Bound(each.height, math.inf, each.kind, "exact")
    return floors
