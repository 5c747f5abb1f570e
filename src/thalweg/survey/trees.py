"""The trees and statements that a survey's minima and paths amount to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from thalweg.estimate import Bound
from thalweg.survey.plan import job_seed
from thalweg.survey.records import MinimumRecord, PathRecord
from thalweg.topology import (
    BasinStatement,
    BestKnownTree,
    CertifiedTree,
    Divide,
    Leaf,
    MergeTree,
    Searched,
    basin_statement,
    best_known_tree,
    certified_tree,
    merge_tree,
)

__all__ = ["basins", "divides", "lowest_first", "searched", "trees"]

_ONE = 0.01  # of the highest climb: minima that are no further apart count as one
_ROUNDING = 1e3 * 2.0**-23  # relative, as paths allow beside a floor in single precision


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

    The proofs are those kept with the paths (`divides`), so that a survey read without its
    landscape has the same trees.

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
    return best.tree, best, _certified(losses, found, paths)


def _certified(
    losses: dict[Leaf, float], found: Sequence[Searched], paths: Sequence[PathRecord]
) -> CertifiedTree:
    """Return the certified tree, which stands on the proofs that came with the paths.

    Raises:
        ValueError: If a certified pass lies below what another path's proof allows.
    """
    bare = certified_tree(losses, found)
    proofs = []
    for each in divides(paths):
        top = bare.height_of_merge(each.a, each.b).upper
        slack = _ROUNDING * max(abs(top), abs(each.height))
        proofs.append(replace(each, height=top) if 0 < each.height - top <= slack else each)
    return certified_tree(losses, found, divides=proofs) if proofs else bare


def divides(paths: Sequence[PathRecord]) -> list[Divide]:
    """Return what is proven to part two minima: the highest floor kept with their paths.

    Every search asks the landscape for the sets that separate its two ends, and keeps the
    proof as the lower end of its barrier. So nothing but the records is needed; a pair that
    no search joined was not asked.
    """
    best: dict[tuple[str, str], Divide] = {}
    for path in paths:
        low, base = path.barrier.lower, max(path.losses[0], path.losses[-1])
        if path.barrier.lower_kind == "estimated" or not (low > 0 and math.isfinite(low + base)):
            continue
        reason = path.barrier.method.partition("; upper end: ")[0].removeprefix("lower end: ")
        proof = Divide(path.a, path.b, base + low, path.barrier.lower_kind, reason)
        known = best.get((path.a, path.b))
        if known is None or proof.height > known.height:
            best[path.a, path.b] = proof
    return list(best.values())


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
