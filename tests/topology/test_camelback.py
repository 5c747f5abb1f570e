"""The six-hump camelback, from its gradient alone: descend from its saddles, build the tree."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label
from scipy.optimize import fsolve, minimize

from thalweg.topology import merge_tree


def camelback(p):
    x, y = p
    return (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (4 * y**2 - 4) * y**2


def gradient(p):
    x, y = p
    return np.array([8 * x - 8.4 * x**3 + 2 * x**5 + y, x - 8 * y + 16 * y**3])


def hessian(p):
    x, y = p
    return np.array([[8 - 25.2 * x**2 + 10 * x**4, 1.0], [1.0, 48 * y**2 - 8]])


@pytest.fixture(scope="module")
def critical():
    found = []
    for x in np.linspace(-2, 2, 17):
        for y in np.linspace(-1, 1, 17):
            p, _, status, _ = fsolve(gradient, (x, y), full_output=True, xtol=1e-13)
            if status == 1 and not any(np.linalg.norm(p - q) < 1e-6 for q in found):
                found.append(p)
    index = [int((np.linalg.eigvalsh(hessian(p)) < 0).sum()) for p in found]
    return [[p for p, i in zip(found, index, strict=True) if i == k] for k in range(3)]


@pytest.fixture(scope="module")
def tree(critical):
    minima, saddles, _ = critical
    names = [f"{camelback(p):.4f} at x={p[0]:+.2f}" for p in minima]
    edges = []
    for saddle in saddles:
        downhill = np.linalg.eigh(hessian(saddle))[1][:, 0]
        ends = []
        for sign in (-1, 1):
            end = minimize(camelback, saddle + 1e-3 * sign * downhill, jac=gradient, tol=1e-9).x
            distances = [np.linalg.norm(end - p) for p in minima]
            assert min(distances) < 1e-3
            ends.append(names[int(np.argmin(distances))])
        if ends[0] != ends[1]:
            edges.append((*ends, float(camelback(saddle))))
    heights = {n: float(camelback(p)) for n, p in zip(names, minima, strict=True)}
    return merge_tree(heights, edges)


def test_critical_points_are_the_published_ones(critical):
    values = [sorted(float(camelback(p)) for p in points) for points in critical]
    expected = [
        [-1.031628] * 2 + [-0.215464] * 2 + [2.104250] * 2,
        [0.0] + [0.543719] * 2 + [2.229357] * 2 + [2.229471] * 2,
        [2.496295] * 2,
    ]
    for got, want in zip(values, expected, strict=True):
        assert got == pytest.approx(want, abs=1e-6)


def test_the_tree_is_exact(tree):
    heights = [merge.height.upper for merge in tree.merges]
    assert heights == pytest.approx([0.0, *[0.543719] * 2, *[2.229357] * 2], abs=1e-6)
    deaths = [tree.heights[tree.leaves.index(merge.dying)] for merge in tree.merges]
    births = [-1.031628, *[-0.215464] * 2, *[2.104250] * 2]
    assert deaths == pytest.approx(births, abs=1e-6)
    assert len(tree.roots) == 1
    assert tree.resolved


@pytest.mark.parametrize("level", [-1.1, -0.5, -0.1, 0.1, 0.5, 0.6, 2.0, 2.15, 2.22, 2.24, 3.0])
def test_components_are_those_of_a_flooded_grid(tree, level):
    x, y = np.meshgrid(np.linspace(-2.2, 2.2, 881), np.linspace(-1.3, 1.3, 521), indexing="ij")
    _, components = label(camelback((x, y)) <= level, structure=np.ones((3, 3)))
    assert len(tree.at(level)) == components
