"""The best-known tree: the ultrametric inequality, spreads, and support by resampling."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.estimate import Bound
from thalweg.topology import BestKnownTree, Searched, best_known_tree, merge_tree
from thalweg.topology.trees import crossing


def found(a, b, height, repeat=0):
    return Searched(a, b, Bound(height, height, "estimated", "estimated"), repeat)


@st.composite
def searches(draw, max_leaves=6):
    """Minima 0 .. n-1 and up to three searches of each pair, no two equally high."""
    n = draw(st.integers(2, max_leaves))
    rng = random.Random(draw(st.integers(0, 2**32)))
    heights = [rng.random() for _ in range(n)]
    made = [
        found(a, b, 1.0 + rng.random(), k)
        for a, b in itertools.combinations(range(n), 2)
        if rng.random() < 0.7
        for k in range(rng.randint(1, 3))
    ]
    return heights, made


@settings(max_examples=40)
@given(searches())
def test_the_tree_is_an_ultrametric_below_every_search(case):
    heights, made = case
    matrix = best_known_tree(heights, made, resamples=1, seed=0).tree.minimax_matrix()
    for each in made:
        assert matrix[each.a, each.b] <= each.height.upper
    for a, b, c in itertools.permutations(range(len(heights)), 3):
        assert matrix[a, c] <= max(matrix[a, b], matrix[b, c])


@settings(max_examples=30)
@given(searches(), st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(case, rng):
    heights, made = case
    name = {i: f"m{rng.randrange(10**6)}-{i}" for i in range(len(heights))}
    other = [found(*rng.sample([name[s.a], name[s.b]], 2), s.height.upper, s.repeat) for s in made]
    rng.shuffle(other)
    one = best_known_tree(heights, made, resamples=20, seed=1)
    two = best_known_tree({name[i]: h for i, h in enumerate(heights)}, other, resamples=20, seed=1)
    assert [(m.searches, m.repeats, m.spread) for m in one.merges] == [
        (m.searches, m.repeats, m.spread) for m in two.merges
    ]
    assert [(name[m.survivor], name[m.dying]) for m in one.merges] == [
        (m.survivor, m.dying) for m in two.merges
    ]


@settings(max_examples=30)
@given(searches())
def test_each_search_crosses_one_merge_and_none_is_lower(case):
    heights, made = case
    best = best_known_tree(heights, made, resamples=1, seed=0)
    across = crossing(best.tree, made)
    assert sum(map(len, across)) == len(made)
    for merge, support, group in zip(best.tree.merges, best.merges, across, strict=True):
        sides = [set(best.tree.members(child)) for child in merge.children]
        for each in group:
            assert (each.a in sides[0]) != (each.a in sides[1])
            assert (each.a in sides[0]) == (each.b in sides[1])
        assert support.searches == len(group) >= support.repeats >= 1
        assert support.spread[0] == support.height.upper
        assert support.spread == (
            min(s.height.upper for s in group),
            np.median([s.height.upper for s in group]),
            max(s.height.upper for s in group),
        )


def test_support_is_the_share_of_all_resamplings():
    """Small enough to go through every resampling: 3**3 * 2**2 of them."""
    heights = [0.0, 0.1, 0.2]
    first, second = (1.0, 1.5, 3.0), (2.0, 2.5)
    made = [found(0, 1, h, k) for k, h in enumerate(first)]
    made += [found(1, 2, h, k) for k, h in enumerate(second)]
    hits, all_ = 0, 0
    for one in itertools.product(first, repeat=3):
        for other in itertools.product(second, repeat=2):
            hits += min(one) < min(other)
            all_ += 1
    best = best_known_tree(heights, made, resamples=4000, seed=0)
    share = hits / all_
    error = 4 * math.sqrt(share * (1 - share) / 4000)
    assert error < 0.02 < 1 - share
    assert [m.share for m in best.merges] == pytest.approx([share, share], abs=error)


def test_searches_that_agree_support_every_merge():
    made = [found(a, b, float(a + b), k) for a, b in [(0, 1), (1, 2), (2, 3)] for k in range(3)]
    best = best_known_tree([0.0] * 4, made, resamples=50, seed=0)
    assert best.confirmed
    assert [m.share for m in best.merges] == [1.0] * 3


def test_too_few_searches_are_said_to_be_too_few():
    made = [found("a", "b", 2.0, k) for k in range(3)] + [found("a", "c", 3.0)]
    best = best_known_tree({"a": 0.0, "b": 0.0, "c": 0.0}, made, resamples=10, seed=0)
    assert [m.confirmed for m in best.merges] == [True, False]
    assert not best.confirmed
    text = str(best)
    assert "best-known tree from 4 searches (3 for each minimum would be 9)" in text
    assert "a with c at 3: only 1 search, fewer than 3, so its spread is not known" in text
    assert "1 of 2 merges rest on fewer than 3 searches; search what next_searches" in text
    assert best.__rich__() == text


def test_nothing_repeated_leaves_nothing_to_resample():
    best = best_known_tree([0.0, 1.0], [found(0, 1, 2.0)], seed=0)
    assert math.isnan(best.merges[0].share)
    assert "resamplings" not in str(best)


def test_a_failed_search_joins_nothing_but_is_reported():
    failed = Searched(0, 1, Bound(1.0, math.inf, "certified", "exact"), 1)
    best = best_known_tree([0.0, 1.0, 0.5], [found(0, 1, 2.0), failed], resamples=100, seed=0)
    (merge,) = best.merges
    assert (merge.searches, merge.failed, merge.repeats) == (1, 1, 1)
    assert 0.6 < merge.share < 0.9  # the failure alone is drawn one time in four
    assert "; 1 failed" in str(best)
    assert "2 groups are not joined by any path found, which is no proof" in str(best)


def test_a_seed_is_drawn_and_recorded_and_gives_the_same_again():
    made = [found(0, 1, 1.0 + k, k) for k in range(3)] + [found(1, 2, 1.5 + k, k) for k in range(3)]
    best = best_known_tree([0.0, 0.1, 0.2], made, resamples=50)
    again = best_known_tree([0.0, 0.1, 0.2], made, resamples=50, seed=best.seed)
    assert best == again
    assert best.seed != best_known_tree([0.0, 0.1, 0.2], made, resamples=50).seed


@settings(max_examples=15)
@given(searches())
def test_json_round_trip(case):
    heights, made = case
    best = best_known_tree({f"m{i}": h for i, h in enumerate(heights)}, [
        found(f"m{s.a}", f"m{s.b}", s.height.upper, s.repeat) for s in made
    ], resamples=5, seed=3)  # fmt: skip
    stored = json.loads(json.dumps(best.to_json(), allow_nan=False))
    again = BestKnownTree.from_json(stored)
    assert (again.tree, again.searched, again.seed) == (best.tree, best.searched, best.seed)
    assert str(again) == str(best)


def test_the_messages():
    with pytest.raises(ValueError, match=r"two searches of \(0, 1\) have one repeat number"):
        best_known_tree([0.0, 1.0], [found(0, 1, 2.0), found(1, 0, 3.0)])
    with pytest.raises(ValueError, match="unknown minimum 5"):
        best_known_tree([0.0, 1.0], [found(0, 5, 2.0)])
    with pytest.raises(ValueError, match="lower than its minimum"):
        best_known_tree([0.0, 1.0], [found(0, 1, 0.5)])
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        best_known_tree([0.0, 1.0], [], resamples=0)
    with pytest.raises(ValueError, match="not a stored best known tree"):
        BestKnownTree.from_json({"type": "merge_tree"})
    with pytest.raises(ValueError, match=r"the height of search \('a', 'b'\) is no bound"):
        Searched.from_json(["a", "b", {"type": "cost"}, 0])


def test_no_minima():
    assert best_known_tree([], []).tree == merge_tree([], [])
