"""The trees and statements that a survey's minima and paths amount to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from thalweg.estimate import Bound
from thalweg.survey.plan import job_seed
from thalweg.survey.records import MinimumRecord, PathRecord
from thalweg.topology import (
    BasinStatement,
    BestKnownTree,
    CertifiedTree,
    Leaf,
    MergeTree,
    Searched,
    basin_statement,
    best_known_tree,
    certified_tree,
    merge_tree,
)

__all__ = ["basins", "lowest_first", "searched", "trees"]

_ONE = 0.01  # of the highest climb: minima that are no further apart count as one


def searched(minima: Sequence[MinimumRecord], paths: Sequence[PathRecord]) -> list[Searched]:
    """Return every path as a search; a path holds its ends, so its top is at least theirs."""
    losses = {minimum.id: minimum.loss for minimum in minima}
    found = []
    for path in paths:
        top, floor = path.maximum, max(losses[path.a], losses[path.b])
        if math.isnan(top.upper):
            continue
        height = Bound(max(top.lower, floor), max(top.upper, floor), top.lower_kind, top.upper_kind)
        found.append(Searched(path.a, path.b, height, path.repeat))
    return found


def lowest_first(
    paths: Sequence[PathRecord],
) -> tuple[tuple[PathRecord, ...], tuple[PathRecord, ...]]:
    """Split paths into the lowest of each pair, and the others; both in the order given."""
    best: dict[tuple[str, str], PathRecord] = {}
    for path in paths:
        known = best.get((path.a, path.b))
        if known is None or _height(path) < _height(known):
            best[path.a, path.b] = path
    first = tuple(path for path in paths if best[path.a, path.b] is path)
    return first, tuple(path for path in paths if best[path.a, path.b] is not path)


def _height(path: PathRecord) -> float:
    return math.inf if math.isnan(path.maximum.upper) else path.maximum.upper


def trees(
    minima: Sequence[MinimumRecord], paths: Sequence[PathRecord], seed: int
) -> tuple[MergeTree | None, BestKnownTree | None, CertifiedTree | None]:
    """Return the merge tree, what stands behind it, and how much of it is proven.

    Args:
        minima: The minima.
        paths: All paths.
        seed: The survey's seed, from which the resampling draws.
    """
    if not minima:
        return None, None, None
    losses: dict[Leaf, float] = {minimum.id: minimum.loss for minimum in minima}
    found = searched(minima, paths)
    if not found:
        return merge_tree(losses, []), None, None
    best = best_known_tree(losses, found, seed=job_seed(seed, "trees"))
    return best.tree, best, certified_tree(losses, found)


def basins(minima: Sequence[MinimumRecord], best: BestKnownTree | None) -> BasinStatement | None:
    """Return what the minima that seeds led to say of those that other seeds would find.

    The basin is the component of the lowest minimum below the highest pass known. Two minima
    count as one where the lowest path between them climbs by at most 1 % of the highest
    climb of all.

    Returns:
        The statement; None where fewer than two seeds, or no path, say anything.
    """
    if best is None:
        return None
    tree = best.tree
    seeded = {minimum.id for minimum in minima if minimum.seed is not None}
    drawn = [leaf for leaf in tree.leaves if leaf in seeded]
    if len(drawn) < 2 or not tree.merges:
        return None
    level = tree.merges[-1].height.upper
    basin = next(iter(tree.at(level)))
    climbs = tree.barrier_matrix()
    finite = [float(x) for x in climbs.ravel() if math.isfinite(x)]
    allowed = _ONE * max(finite)
    index = {leaf: i for i, leaf in enumerate(tree.leaves)}
    labels: dict[Leaf, Leaf] = {}
    for leaf in drawn:
        same = (known for known in labels if climbs[index[leaf], index[known]] <= allowed)
        labels[leaf] = labels[known] if (known := next(same, None)) is not None else leaf
    return basin_statement(
        sum(leaf in basin for leaf in drawn),
        len(drawn),
        labels=[labels[leaf] for leaf in drawn],
        below=level,
        reference="sampled",
        tolerance=f"the lowest path known between them climbs by at most {allowed:.2g}",
    )
