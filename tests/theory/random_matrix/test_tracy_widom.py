"""Tracy-Widom against published values, Painlevé II, and edges of sampled matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import airy

from thalweg.theory.random_matrix.ensembles import goe_eigenvalue, wishart_eigenvalues
from thalweg.theory.random_matrix.free import pennington_bahri
from thalweg.theory.random_matrix.marchenko_pastur import MarchenkoPastur
from thalweg.theory.random_matrix.semicircle import Semicircle
from thalweg.theory.random_matrix.tracy_widom import (
    edge_scaling,
    goe_scaling,
    tracy_widom_cdf,
    tracy_widom_density,
    tracy_widom_mean,
    tracy_widom_quantile,
    tracy_widom_survival,
    tracy_widom_variance,
    wishart_scaling,
)


def test_published_moments() -> None:
    """Bornemann (2010), table 4."""
    assert tracy_widom_mean(beta=1) == pytest.approx(-1.2065335745820, abs=1e-11)
    assert tracy_widom_variance(beta=1) == pytest.approx(1.6077810345810, abs=1e-11)
    assert tracy_widom_mean(beta=2) == pytest.approx(-1.7710868074116, abs=1e-11)
    assert tracy_widom_variance(beta=2) == pytest.approx(0.8131947928329, abs=1e-11)


def test_painleve() -> None:
    r"""q'' = sq + 2q^3 with q ~ Ai: F_2 = exp(-int (x - s) q^2), F_1^2 = F_2 exp(-int q)."""
    start = 8.0
    value, slope, _, _ = airy(start)

    def flow(s, y):
        return [y[1], s * y[0] + 2 * y[0] ** 3, y[3], y[0] ** 2, -y[0]]

    found = solve_ivp(
        flow, (start, -3), [value, slope, 0, 0, 0], rtol=1e-12, atol=1e-14, t_eval=[2, 0, -1.5, -3]
    )
    log2, one = -found.y[2], found.y[4]
    assert np.allclose(tracy_widom_cdf(found.t, beta=2), np.exp(log2), atol=1e-7)
    assert np.allclose(tracy_widom_cdf(found.t), np.exp((log2 - one) / 2), atol=1e-7)


@pytest.mark.parametrize("beta", [1, 2])
def test_density_survival_and_quantile_belong_together(beta) -> None:
    s, h = np.array([-6.0, -3.3, -1.0, 0.4, 3.0]), 1e-5
    slope = (tracy_widom_cdf(s + h, beta=beta) - tracy_widom_cdf(s - h, beta=beta)) / (2 * h)
    assert np.allclose(tracy_widom_density(s, beta=beta), slope, atol=1e-8)
    whole = tracy_widom_cdf(s, beta=beta) + tracy_widom_survival(s, beta=beta)
    assert np.allclose(whole, 1, atol=1e-14)
    share = np.array([1e-6, 0.05, 0.5, 0.999])
    x = tracy_widom_quantile(share, beta=beta)
    assert np.allclose(tracy_widom_cdf(x, beta=beta), share, rtol=1e-9)


def test_the_tails() -> None:
    far = np.array([-200.0, -10.5, 40.0, 500.0, np.nan])
    assert tracy_widom_cdf(far)[:4].tolist() == [0, 0, 1, 1]
    assert np.isnan(tracy_widom_cdf(far)[4])
    # to first order the survival is half the integral of Ai
    for s in (6.0, 12.0, 20.0):
        x = s + np.linspace(0, 12, 20001)
        tail = 0.5 * float(np.trapezoid(airy(x)[0], x))
        assert float(tracy_widom_survival(s)) == pytest.approx(tail, rel=1e-5)


@pytest.mark.slow
def test_p_values_of_sampled_edges_are_uniform_enough() -> None:
    top = goe_eigenvalue(200, -1, 1000, seed=1)
    p = goe_scaling(200).p_value(top)
    assert 0.02 < (p < 0.05).mean() < 0.08
    assert 0.42 < (p < 0.5).mean() < 0.58
    wide = wishart_eigenvalues(60, 120, 400, variance=2.0, seed=1)[:, -1]
    q = wishart_scaling(60, 120, sigma2=2.0).p_value(wide)
    assert 0.015 < (q < 0.05).mean() < 0.09
    moved = goe_scaling(200).p_value(top + 0.3)  # an outlier is found
    assert (moved < 1e-3).mean() > 0.9


def test_the_general_scaling_agrees_with_the_special_ones() -> None:
    n = 5000
    goe = edge_scaling(Semicircle(radius=3.0), n)
    assert goe.centre == 3.0
    assert goe.scale == pytest.approx(goe_scaling(n, radius=3.0).scale, rel=1e-3)
    mp = edge_scaling(MarchenkoPastur(0.5, 2.0), n)
    exact = wishart_scaling(n, 2 * n, sigma2=2.0)
    assert mp.centre == pytest.approx(exact.centre, rel=1e-3)
    assert mp.scale == pytest.approx(exact.scale, rel=2e-3)
    left = edge_scaling(pennington_bahri(0.2, 0.5), n, side=-1)
    assert left.side == -1
    assert left.standardise(left.centre - 2 * left.scale) == pytest.approx(2)
    assert left.reach() < left.centre


def test_refusals() -> None:
    with pytest.raises(ValueError, match="not of square-root kind"):
        edge_scaling(MarchenkoPastur(1.0), 100, side=-1)
    with pytest.raises(ValueError, match="needs n of at least 2, got 1"):
        goe_scaling(1)
    with pytest.raises(ValueError, match=r"within \[1e-12, 1 - 1e-12\]"):
        tracy_widom_quantile(0.0)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_beta_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta must be 1 .* not 4"):
        tracy_widom_cdf(0.0, beta=4)
