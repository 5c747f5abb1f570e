"""Hessian spectra at an energy: closed forms, exact index laws, and a real spin glass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.one_point import index_probabilities
from thalweg.theory.spin_glass.spectra import (
    hessian_law,
    index_fraction,
    lowest_eigenvalue,
    sample_hessians,
)
from thalweg.theory.spin_glass.thresholds import threshold_energy

PRINTED = {-1.32: 0.049, -1.13: 0.098, -0.93: 0.159, -0.70: 0.236, -0.48: 0.314, -0.23: 0.410}
PRINTED |= {-0.01: 0.497, 0.18: 0.571}


def exact_index_fraction(n, p, u):
    """The mean number of eigenvalues below one at the place of this energy, over n - 1."""
    x = np.array([u / math.sqrt(2 * (p - 1) / (p * n))])
    return float(index_probabilities(x, n)[0] @ np.arange(n)) / (n - 1)


@pytest.mark.parametrize("p", [2, 3, 7])
def test_threshold_states_touch_zero(p):
    law = hessian_law(-threshold_energy(p), p)
    assert law.support[0][0] == pytest.approx(0, abs=1e-12)
    assert lowest_eigenvalue(-threshold_energy(p), p) == pytest.approx(0, abs=1e-12)
    assert index_fraction(-threshold_energy(p), p) == pytest.approx(0, abs=1e-12)


def test_law():
    law = hessian_law(-1.3, 3)
    assert (law.centre, law.radius) == pytest.approx((3.9, 4.898979))
    assert law.support[0][0] == pytest.approx(lowest_eigenvalue(-1.3, 3))
    assert law.cdf(np.zeros(1))[0] == pytest.approx(index_fraction(-1.3, 3))


def test_printed_index_against_energy():
    u = np.array(list(PRINTED))  # printed to two digits, and the slope is up to 0.43
    np.testing.assert_allclose(index_fraction(u, 3), list(PRINTED.values()), atol=0.005 * 0.5)
    assert index_fraction(-2.0, 3) == 0
    np.testing.assert_allclose(index_fraction(np.array([[0.0, 2.0]]), 4), [[0.5, 1.0]], rtol=1e-14)
    np.testing.assert_allclose(index_fraction(-u, 5), 1 - index_fraction(u, 5), atol=1e-15)


def test_three_halves_power_law():
    """alpha(u) -> (8 sqrt 2 / 6 pi) e^(3/2) with e = (u + E_inf) / E_inf."""
    edge = threshold_energy(3)
    for gap in (1e-4, 1e-3):
        power = 4 * math.sqrt(2) / (3 * math.pi) * gap**1.5
        assert index_fraction(-edge * (1 - gap), 3) == pytest.approx(power, rel=2e-3)


@pytest.mark.parametrize(("n", "p", "u"), [(8, 3, -1.1), (12, 4, -0.6), (20, 3, -1.4)])
def test_weighted_index_is_that_of_critical_points(n, p, u):
    """Against the exact law of the index; without the weights it is wrong."""
    drawn = sample_hessians(n, p, u, samples=6000, seed=1)
    found = drawn.index_fraction()
    exact = exact_index_fraction(n, p, u)
    assert abs(found.value - exact) < 4.5 * found.stderr
    plain = (drawn.eigenvalues < 0).mean(axis=1)
    assert abs(plain.mean() - exact) > 4.5 * plain.std() / math.sqrt(6000)
    assert drawn.effective < 6000


def test_large_samples_approach_the_law():
    drawn = sample_hessians(400, 3, -1.2, samples=10, seed=2)
    assert kstest(drawn.eigenvalues[0], hessian_law(-1.2, 3).cdf).statistic < 0.01  # rigid
    assert kstest(drawn.eigenvalues[0], hessian_law(-1.1, 3).cdf).statistic > 0.03
    assert drawn.lowest().value == pytest.approx(lowest_eigenvalue(-1.2, 3), abs=0.2)
    assert drawn.index_fraction().value == pytest.approx(index_fraction(-1.2, 3), abs=0.005)
    assert "10 Hessians of order 399 at energy -1.2 (p = 3)" in str(drawn)


def test_hessian_of_a_spin_glass():
    """At any point of the sphere, critical or not, given its energy."""
    glass = SphericalPSpin(120, 3, seed=4)
    sigma = glass.project(glass.start(torch.Generator().manual_seed(0)))
    u = float(glass.hamiltonian(sigma)) / 120
    values = torch.linalg.eigvalsh(glass.riemannian_hessian(sigma)).numpy()
    values = np.delete(values, np.argmin(np.abs(values)))  # the radial direction
    assert kstest(values, hessian_law(u, 3).cdf).statistic < 0.03
    assert kstest(values, hessian_law(u + 0.3, 3).cdf).statistic > 0.06


def test_record_and_errors(unchecked):
    drawn = sample_hessians(5, 3, -1.0, samples=3)
    again = sample_hessians(5, 3, -1.0, samples=3, seed=drawn.seed)
    np.testing.assert_array_equal(drawn.eigenvalues, again.eigenvalues)
    with pytest.raises(ValueError, match="n must be at least 3 and samples 2, got n=2"):
        sample_hessians(2, 3, 0.0)
    with pytest.raises(ValueError, match="integer of at least 2, got 1"):
        hessian_law(0.0, 1)
    with pytest.raises(ValueError, match="integer of at least 2"):
        index_fraction(0.0, {3: 1.0})


@pytest.mark.calibration
@pytest.mark.parametrize("u", [-1.5, -0.8])
def test_coverage_of_the_index_fraction(calibration, u):
    exact = exact_index_fraction(12, 3, u)
    found = [
        sample_hessians(12, 3, u, samples=1000, seed=20_000 + seed).index_fraction()
        for seed in calibration.seeds
    ]
    calibration.check(
        f"index fraction at energy {u:g}, n = 12, p = 3", sum(exact in f for f in found)
    )
