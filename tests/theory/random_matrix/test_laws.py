"""The semicircle and Marchenko-Pastur laws against integrals, samples and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from thalweg.theory.random_matrix.ensembles import goe_eigenvalues, wishart_eigenvalues
from thalweg.theory.random_matrix.marchenko_pastur import MarchenkoPastur
from thalweg.theory.random_matrix.semicircle import (
    Law,
    Semicircle,
    semicircle_cdf,
    semicircle_density,
    semicircle_moment,
    semicircle_quantile,
    semicircle_r_transform,
    semicircle_stieltjes,
)

LAWS = [
    Semicircle(),
    Semicircle(radius=0.3, centre=-2.0),
    *[MarchenkoPastur(ratio, 1.7) for ratio in (0.1, 0.5, 1.0, 2.0, 5.0)],
]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_density_cdf_and_stieltjes_agree_with_integrals(law: Law) -> None:
    assert isinstance(law, Law)
    ((low, high),) = law.support
    width = high - low

    def integral(f, upto=high):  # in the angle, where the edges are smooth
        def at(angle):
            x = low + width * math.sin(angle / 2) ** 2
            return f(x) * float(law.density(x)) * width * math.sin(angle) / 2

        top = 2 * math.asin(math.sqrt((upto - low) / width))
        return quad(at, 0, top, epsabs=1e-12, limit=200)[0]

    assert integral(lambda x: 1.0) + law.atom == pytest.approx(1, abs=1e-10)
    assert integral(lambda x: x) == pytest.approx(law.mean, abs=1e-10)
    second = integral(lambda x: x * x)
    assert second - law.mean**2 == pytest.approx(law.variance, abs=1e-9)
    for share in (0.1, 0.7):
        x = low + share * width
        start = law.atom if low >= 0 else 0.0
        assert float(law.cdf(x)) == pytest.approx(start + integral(lambda x: 1.0, x), abs=1e-10)
    assert float(law.cdf(low - 10)) == 0
    for scalar in (law.cdf(0.0), law.density(0.1), law.stieltjes(1j)):  # not a numpy scalar
        assert isinstance(scalar, np.ndarray)
    assert float(law.cdf(high + 10)) == pytest.approx(1, abs=1e-12)
    for z in (high + 0.5, low - 1.0, 1j, low - 0.2j, high + 0.1 - 0.3j):
        parts = [integral(lambda x, z=z, k=k: (k / (z - x)).real) for k in (1, -1j)]
        exact = complex(*parts) + law.atom / z
        assert complex(law.stieltjes(z)) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_stieltjes_transform_on_the_axis_gives_the_density_and_r_inverts_it(law) -> None:
    ((low, high),) = law.support
    x = np.linspace(low, high, 23)[1:-1]
    assert np.allclose(-law.stieltjes(x).imag / math.pi, law.density(x), atol=1e-12)
    z = np.array([high + 3.0, 1 + 2j, low - 4.0])
    g = law.stieltjes(z)
    assert np.allclose(law.r_transform(g) + 1 / g, z, atol=1e-10)


def test_semicircle_quantiles_and_moments() -> None:
    share = np.array([0, 1e-12, 0.01, 0.3, 0.5, 0.9, 1 - 1e-9, 1])
    x = semicircle_quantile(share, radius=3.0, centre=1.0)
    assert np.allclose(semicircle_cdf(x, radius=3.0, centre=1.0), share, atol=1e-14)
    assert np.allclose(semicircle_cdf(x, radius=3.0, centre=1.0)[1:3], share[1:3], rtol=1e-6)
    assert np.isnan(semicircle_quantile(np.array([np.nan]))).all()
    assert np.isnan(semicircle_density(np.array([np.nan]))).all()
    exact = quad(
        lambda t: (1 + 3 * math.sin(t)) ** 5 * 2 / math.pi * math.cos(t) ** 2,
        -math.pi / 2,
        math.pi / 2,
    )[0]
    assert semicircle_moment(5, radius=3.0, centre=1.0) == pytest.approx(exact, rel=1e-12)
    g = semicircle_stieltjes(7.0, radius=3.0, centre=1.0)
    assert semicircle_r_transform(g, radius=3.0, centre=1.0) + 1 / g == pytest.approx(7)


def test_large_matrices_follow_the_laws() -> None:
    goe = goe_eigenvalues(600, radius=3.0, seed=1)[0]
    rank = (np.arange(600) + 0.5) / 600
    assert np.abs(Semicircle(radius=3.0).cdf(goe) - rank).max() < 0.01
    wide = wishart_eigenvalues(600, 300, variance=2.0, seed=1)[0]
    law = MarchenkoPastur(2.0, 2.0)
    assert np.abs(law.cdf(wide)[300:] - rank[300:]).max() < 0.01
    wrong = MarchenkoPastur(2.2, 2.0)  # a law that is not theirs
    assert np.abs(wrong.cdf(wide)[300:] - rank[300:]).max() > 0.02


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"radius of a semicircle must be positive.*-1"):
        Semicircle(radius=-1.0)
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\].*1.5"):
        semicircle_quantile([0.5, 1.5])
    with pytest.raises(ValueError, match="order of a moment must not be negative"):
        semicircle_moment(-1)
    with pytest.raises(ValueError, match="ratio must be positive and finite, not nan"):
        MarchenkoPastur(math.nan)
    with pytest.raises(ValueError, match="sigma2 must be positive"):
        MarchenkoPastur(0.5, 0.0)
