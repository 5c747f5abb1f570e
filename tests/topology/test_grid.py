"""The merge tree of a grid against gudhi, brute force and surfaces whose passes are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import generate_binary_structure, label

from thalweg.topology import barcode, grid_barcode, grid_merge_tree

SHAPES = [(1,), (9,), (1, 7), (6, 5), (9, 11), (3, 4, 5)]


def muller_brown(x, y):
    terms = zip(
        (-200, -100, -170, 15),
        (-1, -1, -6.5, 0.7),
        (0, 0, 11, 0.6),
        (-10, -10, -6.5, 0.7),
        (1, 0, -0.5, -1),
        (0, 0.5, 1.5, 1),
        strict=True,
    )
    return sum(
        big * np.exp(a * (x - u) ** 2 + b * (x - u) * (y - v) + c * (y - v) ** 2)
        for big, a, b, c, u, v in terms
    )


def camelback(x, y):
    return (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (4 * y**2 - 4) * y**2


def sampled(f, xs, ys, n):
    return f(*np.meshgrid(np.linspace(*xs, n), np.linspace(*ys, n), indexing="ij"))


@pytest.mark.parametrize("neighbours", ["faces", "all"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_the_barcode_is_that_of_the_cubical_complex(shape, neighbours, ties):
    rng = np.random.default_rng(7)
    for _ in range(5):
        values = rng.integers(4, size=shape).astype(float) if ties else rng.normal(size=shape)
        ours = barcode(grid_merge_tree(values, neighbours=neighbours))
        theirs = grid_barcode(values, neighbours=neighbours)
        np.testing.assert_array_equal(ours.births, theirs.births)
        np.testing.assert_array_equal(ours.deaths, theirs.deaths)


def test_the_two_neighbourhoods_differ():
    values = np.array([[0.0, 2.0], [2.0, 1.0]])
    assert len(grid_merge_tree(values).leaves) == 2
    assert grid_merge_tree(values, neighbours="all").leaves == ("0,0",)


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.sampled_from(["faces", "all"]))
def test_components_are_those_of_a_flooded_grid(seed, neighbours):
    values = np.random.default_rng(seed).integers(6, size=(7, 6)).astype(float)
    tree = grid_merge_tree(values, neighbours=neighbours)
    structure = generate_binary_structure(2, 1 if neighbours == "faces" else 2)
    for level in range(6):
        assert len(tree.at(level)) == label(values <= level, structure=structure)[1]


@settings(max_examples=12)
@given(st.integers(0, 2**32))
def test_turning_and_mirroring_the_grid_change_nothing(seed):
    values = np.random.default_rng(seed).normal(size=(5, 6))
    bars = barcode(grid_merge_tree(values))
    for other in (values[::-1], values[:, ::-1], values.T):
        turned = barcode(grid_merge_tree(other))
        np.testing.assert_array_equal(bars.births, turned.births)
        np.testing.assert_array_equal(bars.deaths, turned.deaths)


def test_a_leaf_is_named_by_its_place():
    values = np.random.default_rng(3).normal(size=(5, 6, 7))
    tree = grid_merge_tree(values)
    for leaf, height in zip(tree.leaves, tree.heights, strict=True):
        assert values[tuple(map(int, str(leaf).split(",")))] == height
    assert tree.heights == tuple(sorted(tree.heights))


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.floats(0.0, 3.0))
def test_pruning_leaves_the_persistent_bars_alone(seed, threshold):
    values = np.random.default_rng(seed).normal(size=(8, 8))
    whole = barcode(grid_merge_tree(values))
    pruned = barcode(grid_merge_tree(values, threshold=threshold))
    keep = whole.persistence > threshold
    np.testing.assert_array_equal(pruned.births, whole.births[keep])
    np.testing.assert_array_equal(pruned.deaths, whole.deaths[keep])


def test_a_plateau_is_one_minimum():
    horseshoe = np.array([[0.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 5.0, 0.0], [9.0, 9.0, 9.0]])
    for turned in (horseshoe, horseshoe[::-1], horseshoe.T):
        assert len(grid_merge_tree(turned).leaves) == 1
    assert grid_merge_tree(np.zeros((4, 4))).leaves == ("0,0",)


def test_a_wall_parts_the_grid():
    values = np.array([[0.0, np.inf, 1.0], [2.0, np.inf, 3.0]])
    tree = grid_merge_tree(values)
    assert tree.leaves == ("0,0", "0,2")
    assert len(tree.roots) == 2
    assert len(grid_barcode(values).births) == 2


@pytest.mark.parametrize("make", [grid_merge_tree, grid_barcode])
def test_what_cannot_be_a_grid_is_refused(make, unchecked):
    holes = np.zeros((3, 4))
    holes[1, 2] = holes[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"2 of 12 cells are NaN, the first at 1,2; no value is"):
        make(holes)
    with pytest.raises(ValueError, match="1 of 2 cells are -inf, the first at 0"):
        make(np.array([-np.inf, 0.0]))
    with pytest.raises(ValueError, match=r"a grid of values is wanted, not .* shape \(0, 3\)"):
        make(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"not an array of shape \(\)"):
        make(np.array(1.0))
    with pytest.raises(ValueError, match="every cell is \\+inf"):
        make(np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match="neighbours must be 'faces' or 'all', not 'four'"):
        make(np.zeros(3), neighbours="four")


def test_a_threshold_below_zero_is_refused():
    for threshold in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="threshold must not be negative"):
            grid_merge_tree(np.zeros(3), threshold=threshold)


@pytest.mark.parametrize("neighbours", ["faces", "all"])
def test_muller_brown_converges(neighbours):
    truth = np.array([-72.248940, -40.664844])
    errors = []
    for n in (81, 321):
        values = sampled(muller_brown, (-1.5, 1.2), (-0.2, 2.0), n)
        tree = grid_merge_tree(values, neighbours=neighbours, threshold=1.0)
        assert tree.heights == pytest.approx((-146.699517, -108.166724, -80.767818), abs=900 / n**2)
        errors.append(np.abs([m.height.upper for m in tree.merges] - truth).max())
    assert errors[0] < 0.1
    assert errors[1] < 0.005  # sixteen times as many cells: an error of second order


@pytest.mark.parametrize("neighbours", ["faces", "all"])
def test_six_hump_camelback_converges(neighbours):
    truth = [0.0, 0.543719, 0.543719, 2.229357, 2.229357]
    for n, error in ((81, 2e-3), (321, 1e-4)):
        values = sampled(camelback, (-2.2, 2.2), (-1.3, 1.3), n)
        tree = grid_merge_tree(values, neighbours=neighbours, threshold=0.02)
        assert len(tree.leaves) == 6
        assert [m.height.upper for m in tree.merges] == pytest.approx(truth, abs=error)


def test_too_coarse_a_grid_is_wrong():
    values = sampled(muller_brown, (-1.5, 1.2), (-0.2, 2.0), 41)
    assert len(grid_merge_tree(values, threshold=1.0).leaves) > 3  # a slanting valley falls apart
    assert len(grid_merge_tree(values, threshold=1.0, neighbours="all").leaves) == 3


@pytest.mark.parametrize("n", [13, 25])
def test_the_valley_of_venturi_bandeira_and_bruna(n):
    a, b, line = 1.0, 2.0, np.linspace(-3, 3, n)
    u, w1, w2 = np.meshgrid(line, line, line, indexing="ij")
    tree = grid_merge_tree(((u * w1**2 - a) ** 2 + (u * w2**2 + b) ** 2) / 2)
    deep = [leaf for leaf, h in zip(tree.leaves, tree.heights, strict=True) if h == a**2 / 2]
    valley = [leaf for leaf, h in zip(tree.leaves, tree.heights, strict=True) if h == b**2 / 2]
    assert deep
    assert valley
    for pair in itertools.product(deep, valley):
        assert tree.height_of_merge(*pair).upper == (a**2 + b**2) / 2


def test_noise_on_a_large_grid_takes_little_memory():
    values = np.random.default_rng(0).normal(size=(120, 120))
    tree = grid_merge_tree(values, threshold=3.0)
    assert 1 < len(tree.leaves) < 400
