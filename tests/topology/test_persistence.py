"""Barcodes against the merge tree and gudhi, their distance against gudhi's and brute force."""

from __future__ import annotations

import itertools
import json
import math
import random

import gudhi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.estimate import Bound
from thalweg.topology import (
    Barcode,
    BarcodeBand,
    barcode,
    barcode_band,
    bottleneck,
    grid_barcode,
    merge_tree,
)


@st.composite
def brackets(draw, ties=True):
    """Minima 0 .. n-1 and brackets on passes above their ends."""
    n = draw(st.integers(1, 8))
    rng = random.Random(draw(st.integers(0, 2**32)))
    heights = [float(rng.randrange(6)) if ties else rng.uniform(0, 5) for _ in range(n)]
    edges = []
    for a, b in itertools.combinations(range(n), 2):
        if rng.random() < 0.6:
            low = max(heights[a], heights[b]) + (rng.randrange(4) if ties else rng.random())
            high = low + (rng.randrange(3) if ties else rng.random())
            edges.append((a, b, Bound(float(low), float(high), "certified", "estimated")))
    return heights, edges


def bars(code):
    return np.stack([code.births, code.deaths], axis=1)


@settings(max_examples=50)
@given(st.one_of(brackets(), brackets(ties=False)))
def test_the_bars_are_the_pairs_of_the_merge_tree(graph):
    tree = merge_tree(*graph)
    pairs = [(pair.birth, pair.death.upper) for pair in tree.persistence()]
    np.testing.assert_array_equal(bars(barcode(tree)), np.array(pairs).reshape(-1, 2))


def test_a_wrong_pairing_is_caught():
    tree = merge_tree({"a": 0.0, "b": 1.0, "c": 2.0}, [("a", "c", 3.0), ("b", "c", 5.0)])
    younger_survives = np.array([[1.0, math.inf], [0.0, 5.0], [2.0, 3.0]])
    assert not np.array_equal(bars(barcode(tree)), younger_survives)


def random_code(rng, count, forever=1):
    births = rng.uniform(0, 3, count + forever)
    deaths = births + rng.uniform(0, 2, count + forever)
    deaths[:forever] = np.inf
    return Barcode(births, deaths)


@pytest.mark.parametrize("seed", range(25))
def test_bottleneck_is_that_of_gudhi(seed):
    rng = np.random.default_rng(seed)
    one, other = (random_code(rng, rng.integers(9)) for _ in range(2))
    expected = gudhi.bottleneck_distance(bars(one), bars(other), 0.0)
    assert bottleneck(one, other) == pytest.approx(expected, abs=1e-12)
    assert bottleneck(one, other) == bottleneck(other, one)
    assert bottleneck(one, one) == 0.0


def test_bottleneck_of_brute_force():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        one, other = (random_code(rng, 3, 0) for _ in range(2))
        best = math.inf
        first, second = bars(one), bars(other)
        for size in range(4):
            for some in itertools.combinations(range(3), size):
                for others in itertools.permutations(range(3), size):
                    alone = [first[i] for i in range(3) if i not in some]
                    alone += [second[j] for j in range(3) if j not in others]
                    prices = [(bar[1] - bar[0]) / 2 for bar in alone]
                    prices += [
                        np.abs(first[i] - second[j]).max()
                        for i, j in zip(some, others, strict=True)
                    ]
                    best = min(best, max(prices, default=0.0))
        assert bottleneck(one, other) == best


def test_bars_that_never_die_must_be_as_many():
    rng = np.random.default_rng(0)
    assert bottleneck(random_code(rng, 3, 1), random_code(rng, 3, 2)) == math.inf
    empty = Barcode(np.array([]), np.array([]))
    assert bottleneck(empty, empty) == 0.0


@settings(max_examples=30)
@given(brackets(ties=False), st.randoms(use_true_random=False))
def test_stability_and_the_band(graph, rng):
    """No realisation within the brackets leaves the band, or is further off than they are wide."""
    heights, edges = graph
    band = barcode_band(merge_tree(heights, edges))
    exact = [(a, b, rng.uniform(h.lower, h.upper)) for a, b, h in edges]
    real = barcode(merge_tree(heights, exact))
    widest = max((h.width for *_, h in edges), default=0.0)
    assert bottleneck(real, band.upper) <= widest + 1e-12
    assert bottleneck(real, band.lower) <= widest + 1e-12
    assert band.distance <= widest + 1e-12
    for level in np.linspace(-0.5, 8, 10):
        fewest, most = band.components(level)
        assert fewest <= real.alive(level) <= most
    for low, true, high in zip(
        *(np.sort(c.deaths) for c in (band.lower, real, band.upper)), strict=True
    ):
        assert low <= true <= high


def test_a_realisation_outside_the_brackets_leaves_the_band():
    band = barcode_band(merge_tree([0.0, 1.0], [(0, 1, Bound(2.0, 3.0, "exact", "exact"))]))
    outside = barcode(merge_tree([0.0, 1.0], [(0, 1, 4.0)]))
    assert not band.components(3.5)[0] <= outside.alive(3.5) <= band.components(3.5)[1]


def test_a_second_pass_between_two_minima_counts_by_its_lower_end():
    tree = merge_tree([0.0, 1.0], [(0, 1, 5.0), (0, 1, 3.0)])
    assert barcode(tree).deaths.tolist() == [math.inf, 3.0]


def test_loops_of_a_grid():
    ring = np.array([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    loops = grid_barcode(ring, dimension=1)
    assert (loops.births.tolist(), loops.deaths.tolist()) == ([0.0], [9.0])
    assert "1 bar in dimension 1" in str(loops)
    with pytest.raises(ValueError, match="dimension must not be negative, got -1"):
        grid_barcode(ring, dimension=-1)


def test_words_and_json(unchecked):
    tree = merge_tree([0.0, 1.0], [(0, 1, Bound(2.0, 3.0, "certified", "estimated"))])
    band = barcode_band(tree)
    assert isinstance(band, BarcodeBand)
    assert str(band).endswith("1 to 3\nbottleneck distance 1")
    assert band.__rich__() == str(band)
    stored = json.loads(json.dumps(band.to_json(), allow_nan=False))
    assert stored["upper"]["deaths"] == [None, 3.0]
    assert barcode(tree).__rich__().startswith("2 bars in dimension 0\n0 to inf")
    with pytest.raises(ValueError, match="end must be 'lower' or 'upper', not 'best'"):
        barcode(tree, end="best")
    assert len(barcode(merge_tree([], [])).births) == 0
