"""The certified tree holds the truth, whatever was searched, and takes proofs alone."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.estimate import Bound
from thalweg.topology import CertifiedTree, Divide, Searched, certified_tree, merge_tree


def found(a, b, upper, kind="certified", repeat=0):
    return Searched(a, b, Bound(0.0, upper, "estimated", kind), repeat)


def minimax(n, passes):
    """Floyd-Warshall with max for plus and min for min."""
    matrix = np.full((n, n), np.inf)
    for a, b, height in passes:
        matrix[a, b] = matrix[b, a] = height
    for k in range(n):
        matrix = np.minimum(matrix, np.maximum(matrix[:, k : k + 1], matrix[k : k + 1, :]))
    return matrix


@st.composite
def worlds(draw):
    """A true landscape of minima and passes, and some searches and proofs about it."""
    n = draw(st.integers(2, 6))
    rng = random.Random(draw(st.integers(0, 2**32)))
    heights = [rng.random() for _ in range(n)]
    passes = [(a, b, 1.0 + rng.random()) for a, b in itertools.combinations(range(n), 2)]
    true = minimax(n, passes)
    made = [
        found(a, b, float(true[a, b]) + rng.choice([0.0, rng.random()]), kind)
        for a, b, _ in passes
        if rng.random() < 0.6
        for kind in [rng.choice(["certified", "exact", "estimated"])]
    ]
    divides = [
        Divide(a, b, float(true[a, b]) - rng.choice([0.0, rng.random()]))
        for a, b, _ in passes
        if rng.random() < 0.4
    ]
    return heights, true, made, divides


@settings(max_examples=60)
@given(worlds())
def test_every_bracket_holds_the_truth(world):
    heights, true, made, divides = world
    tree = certified_tree(heights, made, divides=divides)
    for a, b in itertools.combinations(range(len(heights)), 2):
        assert float(true[a, b]) in tree.height_of_merge(a, b)
    for merge in tree.tree.merges:
        assert float(true[merge.survivor, merge.dying]) in merge.height
        assert merge.height == tree.height_of_merge(merge.survivor, merge.dying)
    for each in divides:
        assert tree.height_of_merge(each.a, each.b).lower >= each.height


@settings(max_examples=25)
@given(worlds())
def test_nothing_is_better_without_the_proofs(world):
    heights, _, made, divides = world
    bare, tree = certified_tree(heights, made), certified_tree(heights, made, divides=divides)
    for a, b in itertools.combinations(range(len(heights)), 2):
        assert bare.height_of_merge(a, b).lower == max(heights[a], heights[b])
        assert tree.height_of_merge(a, b).lower >= max(heights[a], heights[b])
        assert tree.height_of_merge(a, b).upper == bare.height_of_merge(a, b).upper


def test_a_wrong_lower_end_would_be_caught():
    """With lower ends of single paths, as one might naively take them, the bracket fails."""
    naive = merge_tree([0.0, 0.1, 0.2], [(0, 1, 2.0), (1, 2, 2.0)])
    assert 1.0 not in naive.height_of_merge(0, 2)  # joined at 1 by a pass never searched
    tree = certified_tree([0.0, 0.1, 0.2], [found(0, 1, 2.0), found(1, 2, 2.0)])
    assert 1.0 in tree.height_of_merge(0, 2)
    assert not tree.tree.resolved


def test_a_divide_holds_between_all_that_lie_on_its_sides():
    made = [found("a", "b", 1.0), found("c", "d", 1.5), found("b", "c", 3.0)]
    heights = dict.fromkeys("abcd", 0.0)
    tree = certified_tree(heights, made, divides=[Divide("a", "d", 2.0)])
    for pair in ("ac", "ad", "bc", "bd"):
        assert tree.height_of_merge(*pair) == Bound(2.0, 3.0, "certified", "certified")
    assert tree.height_of_merge("a", "b") == Bound(0.0, 1.0, "certified", "certified")
    assert [m.resolved for m in tree.tree.merges] == [True, True, True]
    assert "1 of 3 merges are proven to stand above their minima" in str(tree)
    low = certified_tree(heights, made, divides=[Divide("a", "d", 1.25)])
    assert low.height_of_merge("b", "d").lower == 1.25
    assert low.height_of_merge("b", "c").lower == 0.0  # c may lie on either side of it


def test_an_estimated_upper_end_joins_nothing():
    tree = certified_tree([0.0, 1.0], [found(0, 1, 2.0, "estimated")])
    assert len(tree.tree.roots) == 2
    assert np.isinf(tree.height_of_merge(0, 1).upper)
    assert "1 of 1 searches have no certified upper end and join nothing here" in str(tree)
    assert tree.__rich__() == str(tree)
    assert (tree.searches, tree.budget) == (1, 6)


def test_the_best_certified_end_counts_not_the_best():
    made = [found(0, 1, 2.0, "estimated"), found(0, 1, 4.0, repeat=1), found(0, 1, 3.0, repeat=2)]
    assert certified_tree([0.0, 1.0], made).height_of_merge(0, 1).upper == 3.0


def test_proofs_that_are_none():
    with pytest.raises(ValueError, match=r"divide between 0 and 1 at 1.5 is estimated, which is n"):
        certified_tree([0.0, 1.0], [], divides=[Divide(0, 1, 1.5, "estimated")])
    with pytest.raises(ValueError, match="at nan"):
        certified_tree([0.0, 1.0], [], divides=[Divide(0, 1, float("nan"))])
    with pytest.raises(ValueError, match=r"at 2.5 contradicts a certified pass at 2.0; one of"):
        certified_tree([0.0, 1.0], [found(0, 1, 2.0)], divides=[Divide(0, 1, 2.5)])
    with pytest.raises(ValueError, match="unknown minimum 3"):
        certified_tree([0.0, 1.0], [], divides=[Divide(0, 3, 2.5)])
    with pytest.raises(ValueError, match="not a stored certified tree"):
        CertifiedTree.from_json({"type": "certified_tree"})


@settings(max_examples=20)
@given(worlds())
def test_json_round_trip(world):
    heights, _, made, divides = world
    names = {f"m{i}": h for i, h in enumerate(heights)}
    tree = certified_tree(
        names,
        [Searched(f"m{s.a}", f"m{s.b}", s.height) for s in made],
        divides=[Divide(f"m{d.a}", f"m{d.b}", d.height, reason="a proof") for d in divides],
    )
    assert CertifiedTree.from_json(json.loads(json.dumps(tree.to_json(), allow_nan=False))) == tree
