"""The merge tree against brute force, SciPy, and landscapes whose tree is known."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from thalweg.estimate import Bound
from thalweg.topology import MergeTree, merge_tree

MULLER_BROWN = {"A": -146.699517, "B": -108.166724, "C": -80.767818}
MULLER_BROWN_PASSES = [("B", "C", -72.248940), ("A", "C", -40.664844)]


def bracket(lower: float, upper: float) -> Bound:
    return Bound(lower, upper, "certified", "estimated")


@st.composite
def graphs(draw, max_leaves=7, distinct=False):
    """Minima 0 .. n-1 and passes above their ends; ties unless `distinct`."""
    n = draw(st.integers(1, max_leaves))
    rng = random.Random(draw(st.integers(0, 2**32)))
    heights = [float(rng.randrange(6)) for _ in range(n)]
    edges = []
    for a, b in itertools.combinations(range(n), 2):
        if rng.random() < 0.5:
            step = rng.random() if distinct else rng.randrange(5)
            edges.append((a, b, max(heights[a], heights[b]) + step))
    if distinct:
        heights = [h + rng.random() / 100 for h in heights]
        edges = [(a, b, h + 0.01) for a, b, h in edges]
    rng.shuffle(edges)
    return heights, edges


def naive_components(heights, edges, level):
    """Threshold, then breadth first."""
    alive = {i for i, h in enumerate(heights) if h <= level}
    near = {i: set() for i in alive}
    for a, b, h in edges:
        if h <= level:
            near[a].add(b)
            near[b].add(a)
    result = set()
    while alive:
        seen, queue = set(), [next(iter(alive))]
        while queue:
            node = queue.pop(0)
            if node not in seen:
                seen.add(node)
                queue.extend(near[node])
        result.add(frozenset(seen))
        alive -= seen
    return result


def naive_minimax(heights, edges):
    """Floyd-Warshall with max for plus and min for min."""
    n = len(heights)
    matrix = np.full((n, n), math.inf)
    for a, b, h in edges:
        matrix[a, b] = matrix[b, a] = min(matrix[a, b], h)
    for k in range(n):
        matrix = np.minimum(matrix, np.maximum(matrix[:, k : k + 1], matrix[k : k + 1, :]))
    np.fill_diagonal(matrix, heights)
    return matrix


@settings(max_examples=60)
@given(graphs())
def test_components_and_minimax_agree_with_brute_force(graph):
    heights, edges = graph
    tree = merge_tree(heights, edges)
    levels = {*heights, *(h for *_, h in edges)}
    for level in {*levels, *(x + 0.5 for x in levels), -1.0}:
        got = {frozenset(group) for group in tree.at(level)}
        assert got == naive_components(heights, edges, level)
    expected = naive_minimax(heights, edges)
    np.testing.assert_array_equal(tree.minimax_matrix(), expected)
    np.testing.assert_array_equal(tree.minimax_matrix("lower"), expected)
    for a, b in itertools.product(range(len(heights)), repeat=2):
        assert tree.height_of_merge(a, b) == Bound.exactly(expected[a, b])


def test_brute_force_rejects_a_wrong_tree():
    heights, edges = [0.0, 0.0, 0.0], [(0, 1, 1.0), (1, 2, 2.0)]
    wrong = merge_tree(heights, [(0, 1, 1.0), (1, 2, 3.0)])
    assert {frozenset(g) for g in wrong.at(2.0)} != naive_components(heights, edges, 2.0)
    assert not np.array_equal(wrong.minimax_matrix(), naive_minimax(heights, edges))


@settings(max_examples=60)
@given(graphs(distinct=True))
def test_merges_are_scipy_single_linkage_of_the_minimax(graph):
    heights, edges = graph
    n = len(heights)
    spanning = [(a, b, 20.0 + a + b / 10) for a, b in itertools.pairwise(range(n))]
    tree = merge_tree(heights, edges + spanning)
    assert len(tree.merges) == n - 1
    assert len(tree.roots) == 1
    if n < 2:
        return
    distances = tree.minimax_matrix()
    np.fill_diagonal(distances, 0.0)
    reference = linkage(squareform(distances), method="single")
    ours = [sorted(tree.members(n + k)) for k in range(n - 1)]
    members = [[i] for i in range(n)]
    for first, second, height, size in reference:
        members.append(sorted(members[int(first)] + members[int(second)]))
        assert len(members[-1]) == size
        assert tree.merges[ours.index(members[-1])].height.upper == height
    assert sorted(ours) == sorted(members[n:])


@settings(max_examples=50)
@given(graphs(), st.randoms(use_true_random=False))
def test_relabelling_and_edge_order_change_nothing(graph, rng):
    heights, edges = graph
    tree = merge_tree(heights, edges)
    rename = {i: f"m{rng.randrange(10**6)}-{i}" for i in range(len(heights))}
    shuffled = [(b, a, h) if rng.random() < 0.5 else (a, b, h) for a, b, h in edges]
    rng.shuffle(shuffled)
    other = merge_tree(
        {rename[i]: h for i, h in enumerate(heights)},
        [(rename[a], rename[b], h) for a, b, h in shuffled],
    )
    assert [m.children for m in other.merges] == [m.children for m in tree.merges]
    assert [m.height for m in other.merges] == [m.height for m in tree.merges]
    assert [m.survivor for m in other.merges] == [rename[m.survivor] for m in tree.merges]
    assert [m.dying for m in other.merges] == [rename[m.dying] for m in tree.merges]


@settings(max_examples=50)
@given(graphs(distinct=True), st.randoms(use_true_random=False))
def test_order_of_the_minima_does_not_matter_without_ties(graph, rng):
    heights, edges = graph
    order = list(range(len(heights)))
    rng.shuffle(order)
    other = merge_tree({i: heights[i] for i in order}, edges)
    tree = merge_tree(heights, edges)
    assert {(m.survivor, m.dying, m.height.upper) for m in other.merges} == {
        (m.survivor, m.dying, m.height.upper) for m in tree.merges
    }


@settings(max_examples=50)
@given(graphs())
def test_monotone_transforms_commute(graph):
    heights, edges = graph
    tree = merge_tree(heights, edges)
    lift = math.expm1
    image = merge_tree(list(map(lift, heights)), [(a, b, lift(h)) for a, b, h in edges])
    assert [m.children for m in image.merges] == [m.children for m in tree.merges]
    assert [m.height.upper for m in image.merges] == [lift(m.height.upper) for m in tree.merges]
    for pair, other in zip(tree.persistence(), sorted_like(image, tree), strict=True):
        assert other.birth == lift(pair.birth)


def sorted_like(image, tree):
    by_name = {pair.minimum: pair for pair in image.persistence()}
    return [by_name[pair.minimum] for pair in tree.persistence()]


@settings(max_examples=25)
@given(graphs(max_leaves=5), st.randoms(use_true_random=False))
def test_resolved_means_the_same_join_in_every_realisation(graph, rng):
    heights, edges = graph
    edges = edges[:6]
    ends = rng.sample(range(10, 10 + 4 * len(edges)), 2 * len(edges))  # all different: no ties
    brackets = [
        (a, b, sorted(map(float, ends[2 * k : 2 * k + 2]))) for k, (a, b, _) in enumerate(edges)
    ]
    tree = merge_tree(heights, [(a, b, bracket(*ends)) for a, b, ends in brackets])
    sides = [frozenset(map(tree.members, merge.children)) for merge in tree.merges]
    always, matrices = set(sides), []
    for choice in itertools.product((0, 1), repeat=len(brackets)):
        exact = [(a, b, ends[pick]) for (a, b, ends), pick in zip(brackets, choice, strict=True)]
        real = merge_tree(heights, exact)
        always &= {frozenset(map(real.members, merge.children)) for merge in real.merges}
        matrices.append(naive_minimax(heights, exact))
    assert [merge.resolved for merge in tree.merges] == [side in always for side in sides]
    np.testing.assert_array_equal(tree.minimax_matrix("lower"), np.min(matrices, axis=0))
    np.testing.assert_array_equal(tree.minimax_matrix("upper"), np.max(matrices, axis=0))


@settings(max_examples=60)
@given(graphs(), st.randoms(use_true_random=False))
def test_json_round_trip(graph, rng):
    heights, edges = graph
    bounds = [(a, b, bracket(h - rng.random(), h + rng.random())) for a, b, h in edges]
    tree = merge_tree(heights, bounds)
    stored = json.dumps(tree.to_json(), allow_nan=False)
    assert MergeTree.from_json(json.loads(stored)) == tree


def test_muller_brown_is_exact():
    tree = merge_tree(MULLER_BROWN, MULLER_BROWN_PASSES)
    first, second = tree.merges
    assert (first.survivor, first.dying, first.children) == ("B", "C", (1, 2))
    assert first.height == Bound.exactly(-72.248940)
    assert (second.survivor, second.dying, second.children) == ("A", "B", (0, 3))
    assert second.height == Bound.exactly(-40.664844)
    assert tree.roots == (4,)
    assert tree.resolved
    assert tree.at(-100) == (("A",), ("B",))
    assert tree.at(-72) == (("A",), ("B", "C"))
    assert tree.at(-40.664844) == (("A", "B", "C"),)
    births = [(p.minimum, p.birth, p.death.upper) for p in tree.persistence()]
    assert births == [
        ("A", -146.699517, math.inf),
        ("B", -108.166724, -40.664844),
        ("C", -80.767818, -72.248940),
    ]
    assert tree.persistence()[2].persistence.upper == pytest.approx(8.518878)
    assert tree.barrier_matrix()[0, 1] == pytest.approx(-40.664844 + 108.166724)
    assert str(tree) == (
        "3 minima, 2 merges, 1 root\n"
        "-40.664844 (exact)\n"
        "+- A  -146.69952\n"
        "`- -72.24894 (exact)\n"
        "   +- B  -108.16672\n"
        "   `- C  -80.767818"
    )


def test_names_of_every_kind_of_error():
    with pytest.raises(
        ValueError,
        match=r"edge \('A', 'B'\) has height -120.0, lower than its "
        r"minimum 'B' at -108.166724; .* evaluate both on the same data",
    ):
        merge_tree(MULLER_BROWN, [("A", "B", -120.0)])
    with pytest.raises(ValueError, match=r"edge \('A', 'D'\): unknown minimum 'D'; there are: 'A'"):
        merge_tree(MULLER_BROWN, [("A", "D", 0.0)])
    with pytest.raises(ValueError, match=r"edge \('A', 'B'\) has a NaN height; leave it out"):
        merge_tree(MULLER_BROWN, [("A", "B", math.nan)])
    with pytest.raises(ValueError, match="has a NaN height"):
        merge_tree(MULLER_BROWN, [("A", "B", bracket(math.nan, 1.0))])
    with pytest.raises(ValueError, match="minimum 'A' has height nan; leave it out"):
        merge_tree({"A": math.nan}, [])
    with pytest.raises(ValueError, match="minimum 1 has height inf"):
        merge_tree([0.0, math.inf], [])
    with pytest.raises(ValueError, match=r"edge \(0, 0\) joins a minimum to itself"):
        merge_tree([0.0], [(0, 0, 1.0)])
    with pytest.raises(ValueError, match="unknown minimum 'Z'; there are: 'A', 'B', 'C'"):
        merge_tree(MULLER_BROWN, []).height_of_merge("A", "Z")
    with pytest.raises(ValueError, match="the level is NaN"):
        merge_tree(MULLER_BROWN, []).at(math.nan)
    with pytest.raises(ValueError, match="not a stored merge tree"):
        MergeTree.from_json({"type": "bound"})


def test_a_name_of_another_type(unchecked):
    with pytest.raises(ValueError, match=r"must be a string or an integer, not \(1, 2\)"):
        merge_tree({(1, 2): 0.0}, [])
    with pytest.raises(ValueError, match="must be a string or an integer, not True"):
        merge_tree({True: 0.0}, [])


def test_no_join_is_invented():
    tree = merge_tree({"a": 0.0, "b": 1.0, "c": 2.0}, [("a", "b", 3.0), ("b", "c", math.inf)])
    assert [tree.members(root) for root in tree.roots] == [("a", "b"), ("c",)]
    assert tree.height_of_merge("a", "c") == Bound.exactly(math.inf)
    assert tree.at(1e308) == (("a", "b"), ("c",)) == tree.at(math.inf)
    assert np.isinf(tree.barrier_matrix()[2]).tolist() == [True, True, False]
    assert str(tree).splitlines()[-1] == "c  2"
    half_known = merge_tree({"a": 0.0, "b": 1.0}, [("a", "b", bracket(2.0, math.inf))])
    assert len(half_known.roots) == 2
    assert half_known.height_of_merge("a", "b").lower == 2.0
    assert half_known.at(5.0) == (("a",), ("b",))
    assert half_known.at(5.0, "lower") == (("a", "b"),)


def test_empty_and_single():
    assert str(merge_tree({}, [])) == "0 minima, 0 merges, 0 roots"
    assert merge_tree({}, []).roots == ()
    assert merge_tree({}, []).at(0.0) == ()
    assert merge_tree({}, []).minimax_matrix().shape == (0, 0)
    alone = merge_tree([2.0], [])
    assert alone.roots == (0,)
    assert alone.resolved
    assert alone.at(2.0) == ((0,),)


def test_overlapping_brackets_are_flagged_and_touching_ones_are_not():
    minima = {"a": 0.0, "b": 0.0, "c": 0.0}
    overlapping = merge_tree(minima, [("a", "b", bracket(1, 3)), ("b", "c", bracket(2, 4))])
    assert [m.resolved for m in overlapping.merges] == [False, False]
    assert "between 1 (certified) and 3 (estimated)  order unresolved" in str(overlapping)
    touching = merge_tree(minima, [("a", "b", bracket(1, 2)), ("b", "c", bracket(2, 4))])
    assert touching.resolved
    apart = {**minima, "d": 0.0}
    elsewhere = merge_tree(
        apart, [("a", "b", bracket(1, 3)), ("c", "d", bracket(2, 4)), ("a", "d", bracket(5, 6))]
    )
    assert elsewhere.resolved  # which of two far joins comes first does not alter the tree


def test_a_second_pass_may_lower_a_merge_and_a_lower_end_is_raised_to_the_minima():
    tree = merge_tree({"a": 0.0, "b": 1.0}, [("a", "b", 5.0), ("b", "a", bracket(-2.0, 7.0))])
    assert tree.merges[0].height == Bound(1.0, 5.0, "certified", "exact")
    assert tree.edges[1].height.lower == 1.0
    assert tree.merges[0].edge == ("a", "b")


def test_ties_follow_the_order_of_the_minima():
    tree = merge_tree({"x": 0.0, "y": 0.0, "z": 0.0}, [("z", "y", 1.0), ("z", "x", 1.0)])
    assert [(m.survivor, m.dying) for m in tree.merges] == [("x", "z"), ("x", "y")]
    assert tree.resolved  # exact heights: a tie is known, its order is a convention


def test_markup_in_a_name_does_not_reach_the_terminal():
    assert merge_tree({"[red]": 0.0}, []).__rich__().endswith("\\[red]  0")


def test_a_deep_chain_and_many_edges():
    n = 1500
    chain = merge_tree(list(range(n)), [(i, i + 1, float(2 * n + i)) for i in range(n - 1)])
    assert len(chain.merges) == n - 1
    assert len(str(chain).splitlines()) == 2 * n
