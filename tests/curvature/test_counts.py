"""Counts of eigenvalues: exact, certified, bracketed, and refused without a tolerance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from thalweg.curvature import Hessian, MatrixOperator, inertia, spectral_density
from thalweg.curvature.quadrature import dimension_interval


def counts(values, tau):
    values = np.asarray(values)
    return [int(x.sum()) for x in (values < -tau, np.abs(values) <= tau, values > tau)]


def parts(found):
    return [found.negative, found.zero, found.positive]


def test_small_matrices_are_counted_exactly(net):
    point = net()
    values = torch.linalg.eigvalsh(point.dense()).numpy()
    with Hessian(point.land, point.theta) as H:
        found = inertia(H, seed=0)
    assert found.tau == pytest.approx(1e-3 * np.abs(values).max(), rel=1e-9)
    for part, number in zip(parts(found), counts(values, found.tau), strict=True):
        assert part.interval == (number, number)
        assert part.value == number
    assert found.certified == (found.negative.value, found.positive.value)
    assert found.index == found.negative
    assert found.rank.value == found.negative.value + found.positive.value
    assert "exactly" in str(found)
    assert "tau = 0.000989" in str(found)
    data = found.to_json()
    assert data["negative"]["value"] == found.negative.value
    assert data["tau"] == found.tau


def test_a_planted_negative_direction_is_counted(with_spectrum):
    """Deflated it is certain; not deflated, the chains must see it."""
    for deflate in (0, 12):
        A = with_spectrum([*np.linspace(1, 2, 10), *[0.0] * 290, -0.3])
        rho = spectral_density(A, deflate=deflate, steps=14, method="quadrature", seed=0)
        found = rho.count(tau=0.01)
        assert found.certified[0] == 1
        assert found.negative.interval[0] >= 1
        assert 1 in found.negative
        assert 10 in found.positive
        assert 290 in found.zero
    clean = with_spectrum([*np.linspace(1, 2, 10), *[0.0] * 291])
    rho = spectral_density(clean, deflate=0, steps=14, method="quadrature", seed=0)
    assert rho.count(tau=0.01).negative.interval == (0, 0)
    assert rho.count(tau=0.01).certified == (0, 10)


def test_never_below_what_is_certain(with_spectrum):
    values = [*np.linspace(-2, -1, 40), *np.linspace(0.1, 0.3, 300)]
    A = with_spectrum(values)
    for seed in range(4):
        found = spectral_density(A, probes=4, steps=20, method="quadrature", seed=seed).count(0.5)
        assert 10 <= found.certified[0] <= 40
        assert found.negative.interval[0] >= found.certified[0]
        assert found.positive.interval[1] <= len(values) - found.certified[0]
        assert 0 <= found.certified[1] <= 300


def test_unresolved_counts_say_so(with_spectrum):
    """Three steps cannot tell where a dense bulk divides; the bracket must stay open."""
    values = np.linspace(-1, 1, 300)
    A = with_spectrum(values)
    wide, narrow = (
        spectral_density(A, steps=s, method="quadrature", deflate=0, seed=0).count(0.05)
        for s in (3, 60)
    )
    for found in (wide, narrow):
        for part, number in zip(parts(found), counts(values, 0.05), strict=True):
            assert number in part
    assert wide.negative.half_width > 60
    assert narrow.negative.half_width < 0.5 * wide.negative.half_width
    assert "certified" in wide.negative.method


def test_tau_is_needed(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 30))
    for tau in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="an index needs a positive tolerance"):
            inertia(A, tau=tau)
    with pytest.raises(ValueError, match="is not above the error of a product"):
        inertia(A, tau=1e-18)
    nothing = inertia(MatrixOperator(torch.zeros(4, 4)))
    assert nothing.zero.interval == (4, 4)
    assert nothing.tau > 0


def test_dimension_interval_is_that_of_beta_shares():
    """Coverage by simulation of subspaces, and a narrower interval that fails."""
    rng = np.random.default_rng(0)
    free, probes, seeds = 200, 8, 2000
    for k in (1, 5, 100, 199):
        shares = rng.beta(k / 2, (free - k) / 2, size=(seeds, probes)).mean(1)
        low, high = dimension_interval(shares, shares, free, probes, 0.95)
        covered = ((low <= k) & (k <= high)).mean()
        assert covered >= 0.94
        middle, half = (low + high) / 2, (high - low) / 2
        assert (np.abs(k - middle) <= 0.6 * half).mean() < 0.9
        ends = [
            stats.beta.cdf(shares[0], probes * x[0] / 2, probes * (free - x[0]) / 2)
            for x in (high, low)
        ]
        assert ends == pytest.approx([0.025, 0.975], abs=1e-6)
    low, high = dimension_interval(np.zeros(1), np.ones(1), free, probes, 0.95)
    assert (low[0], high[0]) == (0, free)
