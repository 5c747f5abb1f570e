"""The merge tree of a grid of values: a slice of a landscape, or a mountain range."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from thalweg.topology.merge_tree import Leaf, MergeTree, merge_tree
from thalweg.topology.sets import DisjointSets

__all__ = ["Neighbours", "check_grid", "grid_merge_tree"]

Neighbours: TypeAlias = Literal["faces", "all"]
"""Which cells touch: ``"faces"`` 2n of them (4 in a plane), ``"all"`` 3^n - 1 (8)."""


def grid_merge_tree(
    values: Float[np.ndarray, "*shape"],
    *,
    neighbours: Neighbours = "faces",
    threshold: float = 0.0,
) -> MergeTree:
    """Return the exact merge tree of the sublevel sets of a grid of values.

    Two touching cells join at the higher of the two. The tree is exact for the grid; for a
    continuous function sampled on it, it is no bound: refine the grid, and see how far the
    passes move. Ties are broken by the position in the array (simulation of simplicity),
    and a plateau is one minimum.

    Args:
        values: The values, in any number of dimensions; +inf is a wall.
        neighbours: Which cells touch, ``"faces"`` or ``"all"``.
        threshold: Minima of no more persistence are left out; at 0 only those that ties
            make.

    Returns:
        The tree; a minimum's name is its position, such as ``"3,7"``.

    Raises:
        ValueError: If a value is NaN or -inf, the array is empty or all walls, or an option
            is unknown.

    Source:
        Carr, Snoeyink & Axen, Comput. Geom. 24, 75 (2003); Edelsbrunner & Mücke, ACM
        Trans. Graph. 9, 66 (1990), for the ties.

    Example:
        >>> print(grid_merge_tree(np.array([[0.0, 4.0, 1.0], [5.0, 2.0, 3.0]])))
        3 minima, 2 merges, 1 root
        4 (exact)
        +- 0,0  0
        `- 3 (exact)
           +- 0,2  1
           `- 1,1  2
    """
    array = check_grid(values, neighbours)
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative, got {threshold!r}")
    flat = array.ravel()
    order = np.argsort(flat, kind="stable")
    rank = np.empty(flat.size, dtype=np.int64)
    rank[order] = np.arange(flat.size)
    basin = _basins(rank.reshape(array.shape), order, neighbours)
    low = np.unique(basin[np.isfinite(flat)])
    low = low[np.argsort(rank[low])]  # the oldest first
    position = {int(cell): i for i, cell in enumerate(low)}
    sets, eldest = DisjointSets(len(low)), list(range(len(low)))
    kept, edges = set(range(len(low))), []
    for one, other, top in _passes(basin, rank, order, array.shape, neighbours):
        if not math.isfinite(height := float(flat[top])):
            break
        i, j = sets.find(position[one]), sets.find(position[other])
        if i == j:
            continue
        elder, younger = sorted((eldest[i], eldest[j]))
        sets.join(i, j)
        eldest[sets.find(i)] = elder
        if height - float(flat[low[younger]]) <= threshold:
            kept.discard(younger)
        else:
            edges.append((elder, younger, height))
    names = [_name(int(cell), array.shape) for cell in low]
    heights: dict[Leaf, float] = {names[i]: float(flat[low[i]]) for i in sorted(kept)}
    return merge_tree(heights, [(names[i], names[j], height) for i, j, height in edges])


def check_grid(values: np.ndarray, neighbours: str) -> np.ndarray:
    """Return the values as floats.

    Args:
        values: The grid.
        neighbours: Which cells touch.

    Raises:
        ValueError: If there is nothing that a tree can be made of, or a value is NaN.
    """
    if neighbours not in ("faces", "all"):
        raise ValueError(f"neighbours must be 'faces' or 'all', not {neighbours!r}")
    array = np.asarray(values, dtype=float)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"a grid of values is wanted, not an array of shape {array.shape}")
    for bad, word in ((np.isnan(array), "NaN"), (np.isneginf(array), "-inf")):
        if bad.any():
            first = _name(int(np.flatnonzero(bad)[0]), array.shape)
            raise ValueError(
                f"{int(bad.sum())} of {array.size} cells are {word}, the first at {first}; no "
                "value is made up for them: compute them again, or mark them as walls with +inf"
            )
    if not np.isfinite(array).any():
        raise ValueError("every cell is +inf, so there is no minimum")
    return array


def _basins(rank: np.ndarray, order: np.ndarray, neighbours: Neighbours) -> np.ndarray:
    """Return for each cell the minimum to which steepest descent by rank leads."""
    down: np.ndarray
    lowest = rank.copy()
    for here, there in _shifts(rank.ndim, neighbours):
        np.minimum(lowest[here], rank[there], out=lowest[here])
        np.minimum(lowest[there], rank[here], out=lowest[there])
    down = order[lowest.ravel()]
    while not np.array_equal(further := down[down], down):
        down = further
    return down


def _passes(
    basin: np.ndarray,
    rank: np.ndarray,
    order: np.ndarray,
    shape: tuple[int, ...],
    neighbours: Neighbours,
) -> Iterator[tuple[int, int, int]]:
    """Go through the lowest passes between touching basins, as (basin, basin, top cell)."""
    basins, ranks = basin.reshape(shape), rank.reshape(shape)
    parts = []
    for here, there in _shifts(len(shape), neighbours):
        one, other = basins[here].ravel(), basins[there].ravel()
        top = np.maximum(ranks[here], ranks[there]).ravel()
        apart = one != other
        parts.append(np.stack([one, other, top], axis=1)[apart])
    found = np.concatenate(parts)
    found[:, :2].sort(axis=1)
    found = found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))]
    first = np.ones(len(found), dtype=bool)
    first[1:] = (found[1:, :2] != found[:-1, :2]).any(axis=1)
    found = found[first]
    for one, other, top in found[np.argsort(found[:, 2])].tolist():
        yield one, other, int(order[top])


def _shifts(
    dimensions: int, neighbours: Neighbours
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Go through the pairs of views that hold each pair of touching cells once."""
    here = {-1: slice(1, None), 0: slice(None), 1: slice(None, -1)}
    there = {-1: slice(None, -1), 0: slice(None), 1: slice(1, None)}
    for step in itertools.product((-1, 0, 1), repeat=dimensions):
        if step <= (0,) * dimensions or (neighbours == "faces" and sum(map(abs, step)) > 1):
            continue
        yield tuple(here[s] for s in step), tuple(there[s] for s in step)


def _name(cell: int, shape: tuple[int, ...]) -> str:
    return ",".join(str(int(i)) for i in np.unravel_index(cell, shape))
