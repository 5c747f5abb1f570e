"""Proofs: balls that hold exactly one eigenvector, real or not, with its index; and refusals."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from thalweg.theory.spin_glass.certify import (
    Certificates,
    certify,
    distance_to_reals,
    distinct,
    signatures,
)
from thalweg.theory.spin_glass.homotopy import eigenvector_classes
from thalweg.theory.spin_glass.tracking import TensorBatch

ALONE = np.array([0])


def diagonal(n, p):
    tensor = np.zeros((1, *(n,) * p))
    for i in range(n):
        tensor[(0, *(i,) * p)] = 1.0
    return TensorBatch(tensor)


def binary_cubic(a, b, c, d):
    """The tensor of a x^3 + 3 b x^2 y + 3 c x y^2 + d y^3."""
    entries = [a, b, c, d]
    tensor = np.zeros((1, 2, 2, 2))
    for axes in itertools.product(range(2), repeat=3):
        tensor[(0, *axes)] = entries[sum(axes)]
    return TensorBatch(tensor)


@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_the_ball_holds_the_known_eigenvector(p):
    tensors = diagonal(3, p) if p > 2 else TensorBatch(np.diag([1.0, 2.0, 4.0])[None])
    exact = np.array([[1.0, 1, 0]]) / np.sqrt(2) if p > 2 else np.array([[1.0, 0, 0]])
    value = np.array([2 ** (1 - p / 2)]) if p > 2 else np.ones(1)
    start = exact + 1e-4 * np.array([[1.0, -2, 3]])
    found = certify(tensors, start, value, ALONE)
    assert found.proven[0]
    # the exact pair in the chart of the computed one
    chart = exact / np.sum(exact * found.x) * np.sum(found.x**2)
    scale = (np.linalg.norm(chart) / np.linalg.norm(exact)) ** (p - 2)
    away = np.hypot(np.linalg.norm(chart - found.x), abs(value[0] * scale - found.value[0]))
    assert away <= found.radius[0] < 1e-11
    assert found.radius[0] < found.unique[0]
    assert found.x.dtype == float


def test_the_ball_holds_the_exact_zero_of_a_rational_system():
    # x^3 + 3 b x^2 y + 3 c x y^2 + d y^3 with eigenvector (3, 4): solve the two equations exactly
    x, y, value = Fraction(3), Fraction(4), Fraction(2)
    b, c = Fraction(1, 2), Fraction(-3, 4)
    a = (5 * value * x - 2 * b * x * y - c * y * y) / (x * x)
    d = (5 * value * y - b * x * x - 2 * c * x * y) / (y * y)
    tensors = binary_cubic(*(float(q) for q in (a, b, c, d)))
    start = np.array([[0.6 + 1e-5, 0.8 - 1e-5]])
    found = certify(tensors, start, np.array([2.0]), ALONE)
    angle = abs(found.x[0, 0] * 0.8 - found.x[0, 1] * 0.6)
    # the coefficients a and d are rounded, which moves the eigenvector by some 1e-16
    assert angle <= found.radius[0] + 1e-15
    assert abs(found.value[0] - 2) <= found.radius[0] + 1e-14


def test_a_double_eigenvector_or_none_at_all_is_not_proven():
    double = binary_cubic(1.0, 0.0, 0.5, 0.0)  # (1, 0): 2 T x - value has a kernel across
    found = certify(double, np.array([[1.0, 0.0]]), np.array([1.0]), ALONE)
    assert not found.proven[0]
    assert found.unique[0] == 0
    nan = certify(diagonal(3, 3), np.full((1, 3), np.nan), np.ones(1), ALONE)
    assert not nan.proven[0]


def test_near_a_double_eigenvector_the_proof_stops_before_it_is_wrong():
    proven = []
    for gap in 10.0 ** -np.arange(2, 16):
        tensors = binary_cubic(1.0, 0.0, 0.5 - gap, 0.0)  # simple, and another nearby
        found = certify(tensors, np.array([[1.0, 0.0]]), np.array([1.0]), ALONE)
        proven.append(bool(found.proven[0]))
        if proven[-1]:
            # a x^2 y + c y^3 = 2 c x^2 y: the others have slopes +-sqrt((2 c - a) / c), here small
            assert found.unique[0] < np.sqrt(2 * gap / (0.5 - gap))
    assert proven[0]
    assert not proven[-1]


def test_distance_to_the_reals():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((5, 4))
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    turned = real * np.exp(1j * rng.uniform(0, 6, 5))[:, None]
    away, back = distance_to_reals(turned)
    assert away == pytest.approx(0, abs=1e-15)
    assert np.abs(np.sum(back.real * real, axis=1)) == pytest.approx(1)
    away, _ = distance_to_reals(np.array([[1, 1j]]) / np.sqrt(2))
    assert away == pytest.approx(np.sqrt(0.5))  # isotropic: as far as can be
    x = rng.standard_normal((50, 3)) + 1j * rng.standard_normal((50, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    phases = np.exp(1j * np.linspace(0, np.pi, 2001))
    scan = [np.linalg.norm((phases[:, None] * one).imag, axis=1).min() for one in x]
    assert distance_to_reals(x)[0] == pytest.approx(np.array(scan), abs=1e-3)


def test_distinct_keeps_one_of_two_that_may_be_equal():
    x = np.array([[1.0, 0], [1.0, 1e-9], [np.sqrt(0.5), np.sqrt(0.5)], [0.0, 1]], dtype=complex)
    x[2] *= np.exp(0.7j)
    again = np.concatenate([x, x[2:3] * 1j])

    def rows(radius, last=np.inf):
        radii = np.full(5, radius)
        radii[3] = min(last, radius)
        return distinct(Certificates(again, np.ones(5, complex), radii, np.ones(5))).tolist()

    assert rows(1e-12) == [0, 1, 2, 3]
    assert rows(1e-9) == [0, 2, 3]
    radii = np.array([1e-12, 1e-12, np.inf, 1e-12, 1e-12])  # no proof, no row
    found = Certificates(again, np.ones(5, complex), radii, np.ones(5))
    assert distinct(found).tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_signatures_of_a_diagonal_tensor(n):
    # of sum x^4: support S has value 1/|S|, and n - |S| negative directions
    (classes,) = eigenvector_classes(diagonal(n, 4).full, [np.random.default_rng(0)])
    real = classes.real
    assert len(real.value) == classes.expected == (3**n - 1) // 2
    signed = signatures(diagonal(n, 4), real, np.zeros(len(real.value), dtype=int))
    support = np.sum(np.abs(real.x) > 0.1, axis=1)
    assert np.all(np.abs(signed.value - 1 / support) <= signed.value_radius)
    assert np.all(signed.value_radius < 1e-11)
    assert np.array_equal(signed.index, n - support)
    assert np.all(signed.margin > 0)


def test_an_index_without_proof_has_no_margin():
    tensors = binary_cubic(1.0, 0.0, 0.5, 0.0)
    flat = Certificates(np.array([[1.0, 0.0]]), np.ones(1), np.array([1e-12]), np.ones(1))
    assert signatures(tensors, flat, ALONE).margin[0] < 0
    unproven = Certificates(np.array([[1.0, 0.0]]), np.ones(1), np.array([np.inf]), np.zeros(1))
    assert signatures(diagonal(2, 3), unproven, ALONE).margin[0] < 0


def test_the_bounds_hold_against_fifty_digits():
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 50
    rng = np.random.default_rng(5)
    draws = rng.standard_normal((4, 2, 2, 2))
    mean = np.mean([draws.transpose(0, *o) for o in itertools.permutations((1, 2, 3))], axis=0)
    for one in mean:
        entries = [float(one[k]) for k in ((0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1))]
        tensors = binary_cubic(*entries)
        (classes,) = eigenvector_classes(tensors.full, [np.random.default_rng(1)])
        a, b, c, d = (mpmath.mpf(q) for q in entries)
        # y (a x^2 + 2 b x y + c y^2) = x (b x^2 + 2 c x y + d y^2) with x = 1, y = s
        slopes = mpmath.polyroots([c, 2 * b - d, a - 2 * c, -b], maxsteps=200, extraprec=200)
        real = [s for s in slopes if abs(mpmath.im(s)) < 1e-30]
        assert len(real) == len(classes.real.value)
        for x, value, radius in zip(
            classes.real.x, classes.real.value, classes.real.radius, strict=True
        ):
            sines = [abs(x[0] * s - x[1]) / mpmath.sqrt(1 + s * s) for s in map(mpmath.re, real)]
            nearest = min(range(len(real)), key=sines.__getitem__)
            assert sines[nearest] <= radius
            s = mpmath.re(real[nearest])
            unit = [1 / mpmath.sqrt(1 + s * s), s / mpmath.sqrt(1 + s * s)]
            energy = (a * unit[0] ** 2 + 2 * b * unit[0] * unit[1] + c * unit[1] ** 2) / unit[0]
            sign = 1 if x[0] * unit[0] > 0 else -1
            assert abs(sign * energy - value) <= 2 * radius
