"""The plan: within 3K searches, the same however it is interrupted, and near a planted tree."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.estimate import Bound
from thalweg.topology import (
    Search,
    Searched,
    best_known_tree,
    next_searches,
    search_rounds,
    spanning_pairs,
)


def planted(count, seed):
    """Heights of minima and their minimax: random pairs join, higher and higher."""
    rng = np.random.default_rng(seed)
    heights, minimax = np.full(count, np.nan), np.zeros((count, count))
    groups = [[i] for i in range(count)]
    for height in np.sort(rng.uniform(1, 2, count - 1)):
        i, j = sorted(rng.choice(len(groups), 2, replace=False))
        minimax[np.ix_(groups[i], groups[j])] = minimax[np.ix_(groups[j], groups[i])] = height
        for group in (groups[i], groups[j]):
            if len(group) == 1:
                heights[group[0]] = height - rng.exponential(0.5)
        groups[i] += groups.pop(j)
    return heights.tolist(), minimax


def survey(heights, minimax, noise=0.0, seed=0, **options):
    """Make all searches of the plan; each finds the truth, or something above it."""
    rng, results, rounds = np.random.default_rng(seed), {}, []
    for chosen in search_rounds(heights, results, **options):
        rounds.append(chosen)
        for s in chosen:
            height = float(minimax[s.a, s.b] + noise * rng.exponential())
            results[s] = Bound(height, height, "estimated", "estimated")
    made = [Searched(s.a, s.b, bound, s.repeat) for s, bound in results.items()]
    return best_known_tree(heights, made, resamples=20, seed=0), rounds


def excess(best, minimax):
    """How far the minimax of the pairs lies above the truth, on average."""
    off = ~np.eye(len(minimax), dtype=bool)
    return float((best.tree.minimax_matrix() - minimax)[off].mean())


@pytest.mark.parametrize("count", [2, 3, 5, 10, 20, 30])
@pytest.mark.parametrize("seed", range(2))
def test_a_planted_tree_is_recovered_exactly(count, seed):
    heights, minimax = planted(count, seed)
    best, _ = survey(heights, minimax, repeats=1)
    assert best.searches <= 3 * count
    off = ~np.eye(count, dtype=bool)
    np.testing.assert_array_equal(best.tree.minimax_matrix()[off], minimax[off])


def test_a_spanning_tree_alone_does_not_recover_it():
    heights, minimax = planted(20, 0)
    best, _ = survey(heights, minimax, repeats=1, budget=19)
    assert excess(best, minimax) > 0.01


@pytest.mark.parametrize("count", [10, 25])
def test_distances_that_know_the_tree_give_it_at_once(count):
    heights, minimax = planted(count, 1)
    np.fill_diagonal(minimax, 0.0)
    best, rounds = survey(heights, minimax, distances=minimax)
    assert len(rounds[0]) == count - 1
    assert excess(best, minimax) == 0.0
    assert best.searches <= 3 * count
    assert np.mean([merge.confirmed for merge in best.merges]) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("count", [50, 60])
@pytest.mark.parametrize(("noise", "most"), [(0.0, 0.06), (0.1, 0.15), (0.3, 0.3)])
def test_sixty_minima_with_searches_that_stop_too_high(count, noise, most):
    """Heights of passes spread over [1, 2]; the mean excess of a pair's minimax is held."""
    for seed in range(2):
        heights, minimax = planted(count, seed)
        best, _ = survey(heights, minimax, noise, seed)
        assert best.searches == 3 * count
        assert 0 <= excess(best, minimax) < most
        assert np.mean([merge.confirmed for merge in best.merges]) > 0.5
        once = survey(heights, minimax, noise, seed, budget=count - 1)[0]
        assert excess(best, minimax) < 0.75 * excess(once, minimax)


@settings(max_examples=15)
@given(st.integers(2, 9), st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 4))
def test_the_budget_is_kept_and_every_search_is_new(count, seed, round_size, repeats):
    heights, minimax = planted(count, seed % 1000)
    results = {}
    rng = random.Random(seed)
    for step, chosen in enumerate(
        search_rounds(heights, results, round_size=round_size, repeats=repeats)
    ):
        assert step == 0 or len(chosen) <= round_size
        for s in chosen:
            assert s not in results
            assert s.a < s.b
            height = math.inf if rng.random() < 0.2 else float(minimax[s.a, s.b]) + rng.random()
            results[s] = Bound(1.0, height, "estimated", "estimated") if height < math.inf else (
                Bound.exactly(math.inf))  # fmt: skip
    assert len(results) <= 3 * count
    pairs = {(s.a, s.b) for s in results}
    for a, b in pairs:
        numbers = sorted(s.repeat for s in results if (s.a, s.b) == (a, b))
        assert numbers == list(range(len(numbers)))


@settings(max_examples=8)
@given(st.integers(2, 8), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_plan_is_the_same_however_often_it_is_interrupted(count, seed, rng):
    heights, minimax = planted(count, seed)

    def height(s):
        extra = random.Random(f"{s.a},{s.b},{s.repeat}").random()
        return Bound.exactly(float(minimax[s.a, s.b]) + extra)

    whole = {}
    for chosen in search_rounds(heights, whole):
        whole |= {s: height(s) for s in chosen}
    results = {}
    while True:  # one search at a time, in any order within the round
        for chosen in search_rounds(heights, results):
            if left := [s for s in chosen if s not in results]:
                pick = rng.choice(left)
                results[pick] = height(pick)
                break
        else:
            break
    assert results == whole


def test_relabelling_renames_the_plan():
    heights, minimax = planted(9, 4)
    lowest = int(np.argmin(heights))
    made = [
        Searched(min(i, lowest), max(i, lowest), Bound.exactly(float(minimax[i, lowest])))
        for i in range(9)
        if i != lowest
    ]
    plan = next_searches(heights, made)
    names = {f"m{i}": h for i, h in enumerate(heights)}
    renamed = [Searched(f"m{s.b}", f"m{s.a}", s.height) for s in made]
    assert next_searches(names, renamed) == [Search(f"m{s.a}", f"m{s.b}") for s in plan]
    assert plan


def test_the_stages():
    heights = {"a": 0.0, "b": 0.5, "c": 0.6, "d": 0.7}
    star = [("a", "b"), ("a", "c"), ("a", "d")]
    assert next_searches(heights, []) == [Search(*pair) for pair in star]
    levels = {("a", "b"): 2.0, ("a", "c"): 2.0, ("a", "d"): 1.0}
    made = [Searched(*pair, Bound.exactly(h)) for pair, h in levels.items()]
    assert next_searches(heights, made[:1]) == [Search("a", "c"), Search("a", "d")]
    assert next_searches(heights, made, round_size=1) == [Search("b", "c")]  # of one height
    made.append(Searched("b", "c", Bound.exactly(0.9)))
    plan = next_searches(heights, made, repeats=3, budget=5)
    assert plan == [Search("a", "b", 1)]  # the highest merge, which two searches cross
    assert next_searches(heights, made, budget=4) == []
    assert str(plan[0]) == "a - b, repeat 1"


def test_what_failed_is_searched_another_way():
    failed = Bound(1.0, math.inf, "certified", "exact")
    made = [Searched(0, 1, Bound.exactly(1.1)), Searched(0, 2, failed)]
    assert next_searches([0.0, 1.0, 1.0], made) == [Search(1, 2)]


def test_nothing_is_left_when_all_is_confirmed():
    made = [Searched(0, 1, Bound.exactly(2.0), k) for k in range(3)]
    assert next_searches([0.0, 1.0], made, budget=100) == []
    assert next_searches([0.0], []) == next_searches([], []) == []


def test_spanning_pairs():
    assert spanning_pairs([2.0, 1.0, 1.0]) == [(0, 1), (1, 2)]
    line = np.abs(np.subtract.outer([0.0, 5.0, 6.0, 1.0], [0.0, 5.0, 6.0, 1.0]))
    assert sorted(spanning_pairs([0.0] * 4, distances=line)) == [(0, 3), (1, 2), (1, 3)]
    assert spanning_pairs([]) == spanning_pairs([1.0]) == []


def test_the_messages(unchecked):
    with pytest.raises(ValueError, match="a budget of 1 searches cannot join 3 minima; give 2"):
        next_searches([0.0, 1.0, 2.0], [], budget=1)
    with pytest.raises(ValueError, match="round_size must be at least 1, got 0"):
        next_searches([0.0, 1.0], [], round_size=0)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        next_searches([0.0, 1.0], [], repeats=0)
    with pytest.raises(ValueError, match=r"distances of 2 minima must be \(2, 2\), not \(3, 3\)"):
        spanning_pairs([0.0, 1.0], distances=np.zeros((3, 3)))
    for wrong in ([[0.0, 1.0], [2.0, 0.0]], [[0.0, math.nan], [math.nan, 0.0]], -np.eye(2)):
        with pytest.raises(ValueError, match="must be finite, non-negative and symmetric"):
            spanning_pairs([0.0, 1.0], distances=np.array(wrong))
