"""A disconnectivity graph is drawn without crossings, whatever the tree."""

from __future__ import annotations

import itertools
import random

import pytest

from thalweg.topology import Layout, Line, layout, merge_tree


def random_tree(seed: int):
    rng = random.Random(seed)
    n = rng.randrange(1, 12)
    heights = [rng.randrange(4) + rng.random() for _ in range(n)]
    pairs = [p for p in itertools.combinations(range(n), 2) if rng.random() < 0.4]
    edges = [(a, b, max(heights[a], heights[b]) + rng.random()) for a, b in pairs]
    return merge_tree(heights, edges)


def segments(drawing: Layout):
    for line in drawing.lines:
        (x0, x1, x2), (y0, y1, y2) = line.xs, line.ys
        yield (x0, y0, x1, y1)
        yield (x1, y1, x2, y2)


def cross(one, other) -> bool:
    """Whether an upright and a level segment meet in the inside of both."""
    if (one[0] == one[2]) == (other[0] == other[2]):
        return False
    upright, level = (one, other) if one[0] == one[2] else (other, one)
    x, (y0, y1) = upright[0], sorted((upright[1], upright[3]))
    (x0, x1), y = sorted((level[0], level[2])), level[1]
    return x0 < x < x1 and y0 < y < y1


def overlap(one, other) -> bool:
    """Whether two parallel segments share more than a point."""
    for axis in (0, 1):
        if one[axis] == one[axis + 2] == other[axis] == other[axis + 2]:
            a, b = sorted((one[1 - axis], one[3 - axis]))
            c, d = sorted((other[1 - axis], other[3 - axis]))
            return max(a, c) < min(b, d)
    return False


@pytest.mark.parametrize("order", ["height", "size"])
def test_no_two_lines_cross_or_overlap(order):
    for seed in range(50):
        drawn = list(segments(layout(random_tree(seed), order=order)))
        for one, other in itertools.combinations(drawn, 2):
            assert not cross(one, other), (seed, one, other)
            assert not overlap(one, other), (seed, one, other)


def test_the_crossing_check_rejects_a_bad_drawing():
    bad = Layout((), {}, {}, (Line(0, 2, (0, 0, 2), (0, 2, 2)), Line(1, 2, (1, 1, 1), (0, 3, 3))))
    one, other = [s for s in segments(bad) if s[0] != s[2] or s[1] != s[3]][1:3]
    assert cross(one, other)
    assert overlap((0, 1, 2, 1), (1, 1, 3, 1))
    assert not overlap((0, 1, 1, 1), (1, 1, 3, 1))


@pytest.mark.parametrize("order", ["height", "size"])
def test_subtrees_fill_intervals_and_lines_rise(order):
    for seed in range(60):
        tree = random_tree(seed)
        drawing = layout(tree, order=order)
        assert sorted(drawing.order) == sorted(tree.leaves)
        place = {leaf: i for i, leaf in enumerate(drawing.order)}
        for node in range(len(tree.leaves) + len(tree.merges)):
            spots = sorted(place[leaf] for leaf in tree.members(node))
            assert spots == list(range(spots[0], spots[-1] + 1))
            assert spots[0] <= drawing.x[node] <= spots[-1]
        for line in drawing.lines:
            assert line.ys[0] <= line.ys[1] == line.ys[2] == drawing.y[line.parent]
            assert line.xs[2] == drawing.x[line.parent]
        assert len(drawing.lines) == 2 * len(tree.merges)


def test_order_by_height_and_by_size():
    tree = merge_tree(
        {"deep": -5.0, "p": 0.0, "q": 0.1, "r": 0.2},
        [("p", "q", 1.0), ("q", "r", 2.0), ("deep", "r", 3.0)],
    )
    assert layout(tree).order == ("deep", "p", "q", "r")
    assert layout(tree, order="size").order == ("p", "q", "r", "deep")


def test_an_unknown_order(unchecked):
    with pytest.raises(ValueError, match="order must be 'height' or 'size', not 'age'"):
        layout(merge_tree({}, []), order="age")


def test_roots_stand_side_by_side():
    drawing = layout(merge_tree({"a": 1.0, "b": 0.0}, []))
    assert drawing.order == ("b", "a")
    assert drawing.lines == ()
    assert layout(merge_tree({}, [])).order == ()
