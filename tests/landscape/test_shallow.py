"""Exact maxima of shallow ReLU networks on segments: dense sampling, slabs, a needle."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from thalweg.landscape.shallow import ShallowNet, shallow_maximum

Array = NDArray[np.float64]


def random_case(seed: int) -> tuple[ShallowNet, ShallowNet, Array, Array]:
    """Two random networks and data; odd seeds with biases, every third with tied units."""
    r = np.random.default_rng(seed)
    d, m, k, n = (int(r.integers(1, top)) for top in (5, 8, 3, 20))

    def net() -> ShallowNet:
        w = r.normal(size=(m, d))
        if seed % 3 == 0:
            w[: m // 2] = 0.0  # dead units, which never switch
        return ShallowNet(
            w, r.normal(size=m) * (seed % 2), r.normal(size=(k, m)), r.normal(size=k) * (seed % 2)
        )

    return net(), net(), r.normal(size=(n, d)), r.normal(size=(n, k))


def loss(a: ShallowNet, b: ShallowNet, x: Array, y: Array, t: Array) -> Array:
    """The loss by its definition."""

    def at(s: float, name: str) -> Array:
        one, two = getattr(a, name), getattr(b, name)
        found: Array = (1 - s) * one + s * two
        return found

    values = []
    for s in t:
        hidden = np.maximum(x @ at(s, "weight").T + at(s, "bias"), 0)
        values.append(((hidden @ at(s, "head").T + at(s, "offset") - y) ** 2).mean())
    return np.array(values)


@pytest.mark.parametrize("seed", range(30))
def test_equals_dense_sampling(seed: int) -> None:
    a, b, x, y = random_case(seed)
    found = shallow_maximum(a, b, [(x, y)])
    coarse = np.linspace(0, 1, 1001)
    values = loss(a, b, x, y, coarse)
    at = coarse[values.argmax()]
    near = loss(a, b, x, y, np.linspace(max(at - 1e-3, 0), min(at + 1e-3, 1), 2001)).max()
    dense, there = max(values.max(), near), loss(a, b, x, y, np.array([found.time]))[0]
    assert found.lower <= there <= found.upper
    assert dense <= found.upper
    assert found.upper - there <= 1e-9 * (1 + there)
    assert there >= dense - 1e-9 * (1 + dense)


@pytest.mark.parametrize("seed", range(4))
def test_slabs_and_streams_change_nothing(seed: int) -> None:
    """Breakpoints a few at a time, data in two batches: the same maximum to rounding."""
    a, b, x, y = random_case(seed + 100)
    whole = shallow_maximum(a, b, [(x, y)])
    half = len(x) // 2
    parts = shallow_maximum(
        a, b, lambda: iter([(x[:half], y[:half]), (x[half:], y[half:])]), most=3
    )
    assert parts.breakpoints == whole.breakpoints
    assert abs(parts.upper - whole.upper) <= 1e-10 * (1 + whole.upper)


def needle(width: float, at: float) -> tuple[ShallowNet, ShallowNet]:
    """Outputs 1 but for a tent of height 1 and half-width `width` at t = `at`, against 0.

    Three units on x = 1 whose biases move linearly: relu(t - at + w) - 2 relu(t - at) +
    relu(t - at - w), over w.
    """
    shifts = np.array([at - width, at, at + width])
    head = np.array([[1.0, -2.0, 1.0]]) / width
    nothing = np.zeros((3, 1))
    return (
        ShallowNet(nothing, -shifts, head, np.ones(1)),
        ShallowNet(nothing, 1 - shifts, head, np.ones(1)),
    )


def test_a_needle_between_two_breakpoints_is_caught() -> None:
    a, b = needle(1e-4, 0.3217)
    x, y = np.ones((1, 1)), np.zeros((1, 1))
    assert loss(a, b, x, y, np.linspace(0, 1, 20)).max() < 1 + 1e-9
    found = shallow_maximum(a, b, [(x, y)])
    assert found.lower <= 4 <= found.upper
    assert found.upper - found.lower < 1e-8
    assert abs(found.time - 0.3217) < 1e-12


def test_a_penalty_and_a_factor_are_added() -> None:
    a, b, x, y = random_case(5)
    t = np.linspace(0, 1, 5001)
    truth = (3 * len(y[0]) * loss(a, b, x, y, t) + 0.5 - 2 * t + 7 * t**2).max()
    found = shallow_maximum(a, b, [(x, y)], factor=3.0, penalty=(0.5, -2.0, 7.0))
    assert truth <= found.upper <= truth + 1e-5 * (1 + truth)


def test_wrong_shapes_and_numbers_are_refused(unchecked: None) -> None:
    a, b, x, y = random_case(1)
    with pytest.raises(ValueError, match="at one end and"):
        shallow_maximum(a, ShallowNet(b.weight[:0], b.bias, b.head, b.offset), [(x, y)])
    wrong = ShallowNet(a.weight, a.bias[:0], a.head, a.offset)
    with pytest.raises(ValueError, match="do not fit"):
        shallow_maximum(wrong, wrong, [(x, y)])
    broken = ShallowNet(a.weight * np.nan, a.bias, a.head, a.offset)
    with pytest.raises(ValueError, match="NaN"):
        shallow_maximum(broken, b, [(x, y)])
    huge = ShallowNet(1e120 * a.weight, a.bias, 1e120 * a.head, a.offset)
    with pytest.raises(OverflowError, match="not finite on this segment"):
        shallow_maximum(huge, b, [(x, y)])
    with pytest.raises(ValueError, match="no data"):
        shallow_maximum(a, b, [])
