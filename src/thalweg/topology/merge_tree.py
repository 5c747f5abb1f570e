"""The merge tree of the sublevel sets: which minima join, and at what height."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from thalweg.estimate import Bound, BoundKind
from thalweg.estimate import from_json as estimate_from_json
from thalweg.topology.sets import DisjointSets

__all__ = ["Edge", "Leaf", "Merge", "MergeTree", "Pair", "merge_tree"]

Leaf: TypeAlias = str | int
"""The name of a minimum."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A pass between two minima, with a bracket on its height."""

    a: Leaf
    b: Leaf
    height: Bound


@dataclass(frozen=True, slots=True)
class Merge:
    """Two components of the sublevel set that join at a pass.

    Args:
        height: Bracket on the lowest level that joins `survivor` to `dying`. Its upper
            end, the best known, is the height at which the tree is drawn.
        children: The two nodes that join, the one that holds `survivor` first. Nodes
            0 .. n-1 are the minima and node n + k is the k-th merge, as in SciPy.
        survivor: The lowest minimum of the joint component.
        dying: The lowest minimum of the other component (the elder rule).
        edge: The pass that joins them.
        resolved: Whether the same two sets of minima join into the same set whatever the
            true heights within the brackets are.
    """

    height: Bound
    children: tuple[int, int]
    survivor: Leaf
    dying: Leaf
    edge: tuple[Leaf, Leaf]
    resolved: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Birth and death of a component; a component that nothing joins dies at infinity."""

    minimum: Leaf
    birth: float
    death: Bound

    @property
    def persistence(self) -> Bound:
        """Height of the death above the birth."""
        return self.death.above(self.birth)


@dataclass(frozen=True)
class MergeTree:
    """How the components of {L ≤ c} appear and join as the level c rises.

    The result of `merge_tree`. Several roots mean that no given pass joins them.

    Args:
        leaves: The minima, in the order given.
        heights: Their heights, in the same order.
        merges: The joins, by height (upper end).
        edges: All passes given, by height; their lower ends raised to the higher minimum.
    """

    leaves: tuple[Leaf, ...]
    heights: tuple[float, ...]
    merges: tuple[Merge, ...]
    edges: tuple[Edge, ...]

    @cached_property
    def _index(self) -> dict[Leaf, int]:
        return {leaf: i for i, leaf in enumerate(self.leaves)}

    @cached_property
    def _members(self) -> tuple[tuple[int, ...], ...]:
        members: list[tuple[int, ...]] = [(i,) for i in range(len(self.leaves))]
        for merge in self.merges:
            first, second = merge.children
            members.append((*members[first], *members[second]))
        return tuple(members)

    @cached_property
    def _carriers(self) -> dict[str, np.ndarray]:
        ends = [(self._index[e.a], self._index[e.b]) for e in self.edges]
        return {
            "lower": _minimax(len(self.leaves), ends, [e.height.lower for e in self.edges]),
            "upper": _minimax(len(self.leaves), ends, [e.height.upper for e in self.edges]),
        }

    @property
    def roots(self) -> tuple[int, ...]:
        """Nodes that nothing joins, the one with the lowest minimum first."""
        joined = {child for merge in self.merges for child in merge.children}
        roots = [node for node in range(len(self._members)) if node not in joined]
        return tuple(sorted(roots, key=self._age))

    @property
    def resolved(self) -> bool:
        """Whether every merge is resolved."""
        return all(merge.resolved for merge in self.merges)

    def _age(self, node: int) -> tuple[float, int]:
        return min((self.heights[i], i) for i in self._members[node])

    def members(self, node: int) -> tuple[Leaf, ...]:
        """Return the minima below a node, in the order in which they were given."""
        return tuple(self.leaves[i] for i in sorted(self._members[node]))

    def height_of_node(self, node: int) -> float:
        """Return the height of a minimum, or the upper end of that of a merge."""
        leaves = len(self.leaves)
        return self.heights[node] if node < leaves else self.merges[node - leaves].height.upper

    def height_of_merge(self, a: Leaf, b: Leaf) -> Bound:
        """Return the bracket on the minimax height between two minima.

        H(a, b) = min over chains of passes from a to b of the highest pass. Both ends
        are sharp: the minimax of the lower ends and that of the upper ends.

        Args:
            a: One minimum.
            b: The other; the same one gives its own height.

        Returns:
            The bracket; infinite where no given pass joins the two.

        Raises:
            ValueError: If a minimum is unknown.
        """
        i, j = self._position(a), self._position(b)
        if i == j:
            return Bound.exactly(self.heights[i])
        lower, lower_kind = self._end(i, j, "lower")
        upper, upper_kind = self._end(i, j, "upper")
        return Bound(lower, upper, lower_kind, upper_kind)

    def _end(self, i: int, j: int, end: Literal["lower", "upper"]) -> tuple[float, BoundKind]:
        carrier = int(self._carriers[end][i, j])
        if carrier < 0:
            return math.inf, "exact"
        height = self.edges[carrier].height
        if end == "lower":
            return height.lower, height.lower_kind
        return height.upper, height.upper_kind

    def _position(self, leaf: Leaf) -> int:
        if leaf not in self._index:
            raise ValueError(f"unknown minimum {leaf!r}; there are: {_some(self.leaves)}")
        return self._index[leaf]

    def persistence(self) -> tuple[Pair, ...]:
        """Return the birth and death of every component, the most persistent first.

        The elder rule: where two components join, the one with the higher minimum dies.
        """
        deaths = {merge.dying: merge.height for merge in self.merges}
        forever = Bound.exactly(math.inf)
        pairs = [
            Pair(leaf, birth, deaths.get(leaf, forever))
            for leaf, birth in zip(self.leaves, self.heights, strict=True)
        ]
        return tuple(sorted(pairs, key=lambda p: (p.birth - p.death.upper, p.birth)))

    def minimax_matrix(
        self, end: Literal["lower", "upper"] = "upper"
    ) -> Float[np.ndarray, "leaves leaves"]:
        """Return the minimax height of every pair; the minima's own on the diagonal."""
        values = np.array([*(getattr(e.height, end) for e in self.edges), math.inf])
        matrix: np.ndarray = values[self._carriers[end]]
        np.fill_diagonal(matrix, self.heights)
        return matrix

    def barrier_matrix(
        self, end: Literal["lower", "upper"] = "upper"
    ) -> Float[np.ndarray, "leaves leaves"]:
        """Return the barrier of every pair, B(a, b) = H(a, b) - max(L(a), L(b)).

        Args:
            end: Which end of the brackets to use.

        Returns:
            A symmetric matrix in the order of `leaves`, zero on the diagonal, infinite
            where no given pass joins the two.
        """
        heights = np.array(self.heights)
        higher = np.maximum.outer(heights, heights)
        barriers: np.ndarray = self.minimax_matrix(end) - higher
        return barriers

    def at(
        self, level: float, end: Literal["lower", "upper"] = "upper"
    ) -> tuple[tuple[Leaf, ...], ...]:
        """Return the components of {L ≤ level} as sets of minima, the deepest first.

        Args:
            level: The level c.
            end: ``"upper"`` joins only what a known pass joins at this level; ``"lower"``
                joins all that the lower ends of the brackets do not keep apart.

        Raises:
            ValueError: If the level is NaN.
        """
        if math.isnan(level):
            raise ValueError("the level is NaN; give a number")
        sets = DisjointSets(len(self.leaves))
        for edge in self.edges:
            height = edge.height.upper if end == "upper" else edge.height.lower
            if height <= level and height < math.inf:
                sets.join(self._index[edge.a], self._index[edge.b])
        groups: dict[int, list[int]] = {}
        for i, height in enumerate(self.heights):
            if height <= level:
                groups.setdefault(sets.find(i), []).append(i)
        ordered = sorted(groups.values(), key=lambda g: min((self.heights[i], i) for i in g))
        return tuple(tuple(self.leaves[i] for i in group) for group in ordered)

    def __str__(self) -> str:
        """Return the tree drawn in ASCII, roots at the top, the deeper branch first."""
        counts = [
            (len(self.leaves), "minimum", "minima"),
            (len(self.merges), "merge", "merges"),
            (len(self.roots), "root", "roots"),
        ]
        head = ", ".join(f"{n} {one if n == 1 else many}" for n, one, many in counts)
        return "\n".join([head, *self._lines()])

    def _lines(self) -> Iterator[str]:
        stack = [(root, "", "") for root in reversed(self.roots)]
        while stack:
            node, first, rest = stack.pop()
            if node < len(self.leaves):
                yield f"{first}{self.leaves[node]}  {self.heights[node]:.8g}"
                continue
            merge = self.merges[node - len(self.leaves)]
            yield f"{first}{merge.height}{'' if merge.resolved else '  order unresolved'}"
            deeper, higher = merge.children
            stack.append((higher, f"{rest}`- ", f"{rest}   "))
            stack.append((deeper, f"{rest}+- ", f"{rest}|  "))

    def __rich__(self) -> str:
        """Return the drawing for a terminal."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return the minima and the passes, from which `from_json` rebuilds the tree."""
        return {
            "type": "merge_tree",
            "heights": [[leaf, h] for leaf, h in zip(self.leaves, self.heights, strict=True)],
            "edges": [[edge.a, edge.b, edge.height.to_json()] for edge in self.edges],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MergeTree:
        """Rebuild the tree from what `to_json` returned.

        Raises:
            ValueError: If `data` is something else.
        """
        if data.get("type") != "merge_tree" or not {"heights", "edges"} <= set(data):
            raise ValueError(f"not a stored merge tree: {dict(data)!r}")
        edges = []
        for a, b, height in data["edges"]:
            bound = estimate_from_json(height)
            if not isinstance(bound, Bound):
                raise ValueError(f"the height of edge ({a!r}, {b!r}) is no bound: {height!r}")
            edges.append((a, b, bound))
        return merge_tree(dict(data["heights"]), edges)


def merge_tree(
    heights: Mapping[Leaf, float] | Sequence[float],
    edges: Iterable[tuple[Leaf, Leaf, float | Bound]],
) -> MergeTree:
    """Return the exact merge tree of the sublevel sets over minima and passes.

    Kruskal's algorithm with union-find: passes are taken from the lowest upwards, and
    each that joins two components is a merge, H = min over chains of the highest pass.

    Heights of passes may be brackets. The tree then stands on their upper ends, the best
    known, and a merge is `resolved` if its two sides join in every realisation of the
    heights within the brackets. That holds exactly when neither side, nor their union,
    has a way out that may be lower than its own highest inner merge. Brackets that only
    touch do not overlap.

    Ties: passes of one upper height are taken by lower end, then by the order of their
    minima; of two minima equally high the one given first survives. The order of the
    edges never matters.

    Args:
        heights: Height of each minimum by name (``str`` or ``int``), or a sequence whose
            positions are the names.
        edges: Passes ``(a, b, height)``; a height is a float or a `Bound`. Infinity means
            that no pass is known, and joins nothing. A lower end below either minimum is
            raised to it (certified: a path passes its own ends).

    Returns:
        The tree, or a forest where the passes do not join all minima.

    Raises:
        ValueError: If a height is NaN, a minimum is not finite, a name is unknown or of
            another type, an edge joins a minimum to itself or is lower than one of its
            minima.

    Source:
        Becker & Karplus, J. Chem. Phys. 106, 1495 (1997); Edelsbrunner, Letscher &
        Zomorodian, Discrete Comput. Geom. 28, 511 (2002), for the elder rule.

    Example:
        >>> tree = merge_tree(
        ...     {"A": -146.7, "B": -108.2, "C": -80.8}, [("B", "C", -72.2), ("A", "C", -40.7)]
        ... )
        >>> print(tree)
        3 minima, 2 merges, 1 root
        -40.7 (exact)
        +- A  -146.7
        `- -72.2 (exact)
           +- B  -108.2
           `- C  -80.8
        >>> print(tree.height_of_merge("A", "B"))
        -40.7 (exact)
    """
    named = heights if isinstance(heights, Mapping) else dict(enumerate(heights))
    leaves = tuple(named)
    values = tuple(_checked_height(leaf, height) for leaf, height in named.items())
    index = {leaf: i for i, leaf in enumerate(leaves)}
    checked = [_checked_edge(edge, index, values) for edge in edges]
    checked.sort(key=lambda e: (e.height.upper, e.height.lower, index[e.a], index[e.b]))
    bare = MergeTree(leaves, values, (), tuple(checked))
    return MergeTree(leaves, values, tuple(_merges(bare)), bare.edges)


def _merges(bare: MergeTree) -> Iterator[Merge]:
    """Yield the merges, from the lowest upwards."""
    ends = [(bare._position(e.a), bare._position(e.b)) for e in bare.edges]
    count = len(bare.leaves)
    sets = DisjointSets(count)
    node, eldest, size = list(range(count)), list(range(count)), [1] * count
    joins: list[tuple[int, int, int, int, int]] = []
    for k, (i, j) in enumerate(ends):
        one, other = sets.find(i), sets.find(j)
        if one == other or bare.edges[k].height.upper == math.inf:
            continue
        if (bare.heights[eldest[other]], eldest[other]) < (bare.heights[eldest[one]], eldest[one]):
            one, other = other, one
        joins.append((k, node[one], node[other], eldest[one], eldest[other]))
        survivor = eldest[one]
        size.append(size[node[one]] + size[node[other]])
        sets.join(one, other)
        top = sets.find(one)
        node[top], eldest[top] = count + len(joins) - 1, survivor
    steady = [True] * count + _steady(bare.edges, ends, joins, size)
    for n, (k, first, second, survivor, dying) in enumerate(joins):
        names = bare.leaves[survivor], bare.leaves[dying]
        yield Merge(
            height=bare.height_of_merge(*names),
            children=(first, second),
            survivor=names[0],
            dying=names[1],
            edge=(bare.edges[k].a, bare.edges[k].b),
            resolved=steady[first] and steady[second] and steady[count + n],
        )


def _steady(
    edges: Sequence[Edge],
    ends: Sequence[tuple[int, int]],
    joins: Sequence[tuple[int, int, int, int, int]],
    size: Sequence[int],
) -> list[bool]:
    """Say of each merged set whether it is a component in every realisation.

    It is when no edge out of it may be lower than the highest merge within it, so: close
    the set under the edges whose lower end lies below that height, and see if it grew.
    """
    count = len(size) - len(joins)
    sets = DisjointSets(count)
    by_lower = sorted(range(len(edges)), key=lambda k: edges[k].height.lower)
    result, position = [], 0
    for n, (k, *_) in enumerate(joins):
        level = edges[k].height.upper
        while position < len(by_lower) and edges[by_lower[position]].height.lower < level:
            sets.join(*ends[by_lower[position]])
            position += 1
        sets.join(*ends[k])
        result.append(sets.size(ends[k][0]) == size[count + n])
    return result


def _minimax(count: int, ends: Sequence[tuple[int, int]], heights: Sequence[float]) -> np.ndarray:
    """Return for each pair the number of the edge that carries its minimax, -1 for none."""
    carrier = np.full((count, count), -1, dtype=np.int64)
    sets = DisjointSets(count)
    members = [[i] for i in range(count)]
    for k in sorted(range(len(ends)), key=lambda k: heights[k]):
        one, other = sets.find(ends[k][0]), sets.find(ends[k][1])
        if one == other or heights[k] == math.inf:
            continue
        carrier[np.ix_(members[one], members[other])] = k
        carrier[np.ix_(members[other], members[one])] = k
        sets.join(one, other)
        top = sets.find(one)
        members[top] = members[one] + members[other]
    return carrier


def _checked_height(leaf: object, height: float) -> float:
    if not isinstance(leaf, str | int) or isinstance(leaf, bool):
        raise ValueError(f"a minimum's name must be a string or an integer, not {leaf!r}")
    if not math.isfinite(height):
        raise ValueError(f"minimum {leaf!r} has height {height!r}; leave it out")
    return float(height)


def _checked_edge(
    edge: tuple[Leaf, Leaf, float | Bound], index: Mapping[Leaf, int], heights: Sequence[float]
) -> Edge:
    a, b, height = edge
    name = f"edge ({a!r}, {b!r})"
    for leaf in (a, b):
        if leaf not in index:
            raise ValueError(f"{name}: unknown minimum {leaf!r}; there are: {_some(tuple(index))}")
    if a == b:
        raise ValueError(f"{name} joins a minimum to itself")
    bound = height if isinstance(height, Bound) else Bound.exactly(float(height))
    if math.isnan(bound.lower) or math.isnan(bound.upper):
        raise ValueError(f"{name} has a NaN height; leave it out, or give the end that is known")
    floor, leaf = max((heights[index[leaf]], leaf) for leaf in (a, b))
    if bound.upper < floor:
        raise ValueError(
            f"{name} has height {bound.upper!r}, lower than its minimum {leaf!r} at {floor!r}; "
            "a pass is never lower than its ends, so evaluate both on the same data"
        )
    if bound.lower < floor:
        bound = Bound(floor, bound.upper, "certified", bound.upper_kind, bound.cost, bound.method)
    first, second = sorted((a, b), key=lambda leaf: index[leaf])
    return Edge(first, second, bound)


def _some(names: Sequence[Leaf], limit: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
