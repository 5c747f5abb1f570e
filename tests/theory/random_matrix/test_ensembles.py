"""Random eigenvalues: tridiagonal draws against dense ones and exact moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from thalweg.theory.random_matrix.ensembles import (
    goe_eigenvalue,
    goe_eigenvalues,
    goe_matrices,
    wishart_eigenvalues,
)


def mean_within(values, truth, sigmas=4.5):
    return abs(values.mean() - truth) < sigmas * values.std(ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_goe_moments_are_exact(n):
    """E tr A^2 / n = (n + 1)/n and E tr A^4 / n = (2 n^2 + 5 n + 5)/n^2 at radius 2."""
    values = goe_eigenvalues(n, 10_000, seed=3)
    assert mean_within((values**2).mean(1), (n + 1) / n)
    assert mean_within((values**4).mean(1), (2 * n * n + 5 * n + 5) / n**2)
    assert (np.diff(values) >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 2, 5])
def test_tridiagonal_equals_dense_in_law(k):
    dense = np.linalg.eigvalsh(goe_matrices(6, 6_000, seed=1))[:, k]
    sampled = goe_eigenvalues(6, 6_000, seed=2)[:, k]
    assert ks_2samp(dense, sampled).pvalue > 1e-4
    wrong = goe_eigenvalues(6, 6_000, radius=2.1, seed=2)[:, k]
    assert k == 2 or ks_2samp(dense, wrong).pvalue < 1e-8  # the middle hardly depends on it


def test_dense_variances():
    A = goe_matrices(4, 50_000, radius=math.sqrt(2), seed=0)
    assert A[:, 0, 1].var() == pytest.approx(1 / 8, rel=0.03)
    assert A[:, 2, 2].var() == pytest.approx(1 / 4, rel=0.03)


@pytest.mark.parametrize("k", [0, 7, -1])
def test_one_eigenvalue_is_that_of_all(k):
    whole = goe_eigenvalues(50, 20, radius=1.5, seed=4)
    np.testing.assert_allclose(
        goe_eigenvalue(50, k, 20, radius=1.5, seed=4), whole[:, k], atol=1e-13
    )
    assert goe_eigenvalue(1, 0, 3, seed=4).shape == (3,)


@pytest.mark.slow
def test_edge_at_large_order():
    """The highest eigenvalue is near 2 - 1.2065 n^(-2/3), the mean of Tracy and Widom's law."""
    n = 1000
    top = goe_eigenvalue(n, -1, 300, seed=5)
    assert top.mean() == pytest.approx(2 - 1.2065 * n ** (-2 / 3), abs=0.005)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (5, 5), (6, 4)])
def test_wishart_moments_are_exact(n, m):
    """E tr W / n = 1 and E tr W^2 / n = (n + m + 1)/m."""
    values = wishart_eigenvalues(n, m, 10_000, seed=6)
    assert mean_within(values.mean(1), 1.0)
    assert mean_within((values**2).mean(1), (n + m + 1) / m)
    assert (values >= 0).all()
    assert (values[:, : max(0, n - m)] == 0).all()


@pytest.mark.slow
def test_wishart_equals_dense_in_law():
    X = np.random.default_rng(0).standard_normal((6_000, 4, 6))
    dense = np.linalg.eigvalsh(X @ X.swapaxes(1, 2) / 6)
    sampled = wishart_eigenvalues(4, 6, 6_000, seed=7)
    doubled = wishart_eigenvalues(4, 6, 6_000, variance=2.0, seed=7)
    np.testing.assert_allclose(doubled, 2 * sampled)
    for k in range(4):
        assert ks_2samp(dense[:, k], sampled[:, k]).pvalue > 1e-4
        assert ks_2samp(dense[:, k], doubled[:, k]).pvalue < 1e-8


def test_seeds():
    np.testing.assert_array_equal(goe_eigenvalues(5, 3, seed=1), goe_eigenvalues(5, 3, seed=1))
    assert not np.array_equal(goe_eigenvalues(5, 3), goe_eigenvalues(5, 3))


def test_errors():
    with pytest.raises(ValueError, match="n and samples must be at least 1, got n=0"):
        goe_eigenvalues(0)
    with pytest.raises(ValueError, match="radius must be positive and finite, got 0"):
        goe_matrices(3, radius=0.0)
    with pytest.raises(ValueError, match="has eigenvalues 0 to 2, not 3"):
        goe_eigenvalue(3, 3)
    with pytest.raises(ValueError, match="m must be at least 1, got 0"):
        wishart_eigenvalues(3, 0)
    with pytest.raises(ValueError, match="variance must be positive and finite, got -1"):
        wishart_eigenvalues(3, 2, variance=-1.0)
