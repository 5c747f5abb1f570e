"""Where to draw the lines of a disconnectivity graph: positions only, no plotting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from thalweg.topology.merge_tree import Leaf, MergeTree

__all__ = ["Layout", "Line", "layout"]


@dataclass(frozen=True, slots=True)
class Line:
    """The elbow from a node up to the height of its merge and across to it.

    Args:
        node: The node at the bottom, numbered as in `Merge.children`.
        parent: The merge at the top.
        xs: The three horizontal positions.
        ys: The three heights.
    """

    node: int
    parent: int
    xs: tuple[float, float, float]
    ys: tuple[float, float, float]


@dataclass(frozen=True)
class Layout:
    """Positions of a disconnectivity graph; no two of its lines cross.

    Args:
        order: The minima from left to right.
        x: Horizontal position of each node; the minima stand at 0, 1, 2, ...
        y: Height of each node.
        lines: The elbows, one for each node that has a parent.
    """

    order: tuple[Leaf, ...]
    x: Mapping[int, float]
    y: Mapping[int, float]
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        """Return the minima from left to right."""
        return f"{len(self.order)} minima from left to right: {', '.join(map(str, self.order))}"


def layout(tree: MergeTree, *, order: Literal["height", "size"] = "height") -> Layout:
    """Return where to draw the nodes of a merge tree as a disconnectivity graph.

    Minima stand side by side so that each subtree fills an interval; a merge stands
    midway between its two children, at its height.

    Args:
        tree: The merge tree; several roots stand side by side.
        order: Which branch goes to the left: ``"height"`` the one with the lowest
            minimum, ``"size"`` the one with more minima (the deeper one if equal).

    Returns:
        The positions, the same for the same tree.

    Raises:
        ValueError: If `order` is unknown.

    Source:
        Becker & Karplus, J. Chem. Phys. 106, 1495 (1997).

    Example:
        >>> from thalweg.topology.merge_tree import merge_tree
        >>> tree = merge_tree({"a": 1.0, "b": 0.0, "c": 0.5}, [("a", "b", 2.0), ("b", "c", 3.0)])
        >>> print(layout(tree))
        3 minima from left to right: b, a, c
        >>> layout(tree).x[4]
        1.25
    """
    if order not in ("height", "size"):
        raise ValueError(f"order must be 'height' or 'size', not {order!r}")
    leaves = len(tree.leaves)
    sizes = [1] * leaves
    for merge in tree.merges:
        sizes.append(sum(sizes[child] for child in merge.children))

    def ranked(nodes: tuple[int, ...]) -> list[int]:
        return list(nodes) if order == "height" else sorted(nodes, key=lambda n: -sizes[n])

    placed: list[int] = []
    stack = ranked(tree.roots)[::-1]
    while stack:
        node = stack.pop()
        if node < leaves:
            placed.append(node)
        else:
            stack += ranked(tree.merges[node - leaves].children)[::-1]

    x = {node: float(position) for position, node in enumerate(placed)}
    y = {node: tree.height_of_node(node) for node in range(leaves + len(tree.merges))}
    lines = []
    for k, merge in enumerate(tree.merges):
        parent = leaves + k
        x[parent] = sum(x[child] for child in merge.children) / 2
        for child in merge.children:
            xs, ys = (x[child], x[child], x[parent]), (y[child], y[parent], y[parent])
            lines.append(Line(child, parent, xs, ys))
    return Layout(tuple(tree.leaves[i] for i in placed), x, y, tuple(lines))
