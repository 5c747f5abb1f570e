"""Free sums against matrices, the semicircle's closure, and the polynomial of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.theory.random_matrix.free import (
    FreeSum,
    RTransform,
    pennington_bahri,
    pennington_bahri_refined,
    wigner_transform,
    wishart_transform,
)
from thalweg.theory.random_matrix.marchenko_pastur import MarchenkoPastur
from thalweg.theory.random_matrix.semicircle import Law, Semicircle


def test_semicircles_add_to_a_semicircle() -> None:
    law = FreeSum((wigner_transform(1.0), wigner_transform(3.0), RTransform((0.5,))))
    exact = Semicircle(radius=4.0, centre=0.5)
    x = np.linspace(-4, 5, 31)
    assert isinstance(law, Law)
    assert np.allclose(law.density(x), exact.density(x), atol=1e-10)
    assert np.allclose(law.cdf(x), exact.cdf(x), atol=1e-10)
    z = np.array([6.0, -5.0, 1j, 2 - 0.3j, 0.5 + 1e-3j])
    assert np.allclose(law.stieltjes(z), exact.stieltjes(z), atol=1e-9)
    assert law.support[0] == pytest.approx((-3.5, 4.5), abs=1e-9)


def test_one_wishart_part_is_marchenko_pastur() -> None:
    law, exact = FreeSum((wishart_transform(0.4, 1.5),)), MarchenkoPastur(0.4, 1.5)
    assert law.support[0] == pytest.approx(exact.support[0], abs=1e-9)
    x = np.linspace(0.3, 4.0, 17)
    assert np.allclose(law.density(x), exact.density(x), atol=1e-9)


@pytest.mark.parametrize("energy", [0.01, 0.2, 3.0])
@pytest.mark.parametrize("ratio", [0.1, 0.9, 2.5])
def test_the_cubic_of_pennington_and_bahri(energy: float, ratio: float) -> None:
    law = pennington_bahri(energy, ratio)
    z = np.array([5.0 + 0j, 0.3 + 0.2j, -0.1 + 1e-6j, 1.0])
    g = law.stieltjes(z)
    cubic = 2 * energy * ratio * g**3 - (2 * energy + z * ratio) * g**2 + (z + ratio - 1) * g - 1
    assert np.abs(cubic).max() < 1e-8
    assert np.all(g.imag <= 1e-12)
    omega = z - 2 * energy * g  # subordination singles the branch out
    assert np.allclose(g[:3], MarchenkoPastur(ratio).stieltjes(omega)[:3], atol=1e-6)
    assert sum(mass.total for mass in law._masses) == pytest.approx(1, abs=1e-8)
    assert law.mean == pytest.approx(1)
    assert law.variance == pytest.approx(ratio + 2 * energy)


def test_the_spectrum_splits_where_the_noise_is_small() -> None:
    law = pennington_bahri(0.001, 4.0)
    assert len(law.support) == 2
    assert [m.total for m in law._masses] == pytest.approx([0.75, 0.25], abs=1e-8)
    between = (law.support[0][1] + law.support[1][0]) / 2
    assert float(law.density(between)) == 0
    assert float(law.cdf(between)) == pytest.approx(0.75, abs=1e-8)


def test_a_sum_of_large_matrices_follows_the_law() -> None:
    n, m, energy = 500, 1000, 0.15
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((n, m)), rng.standard_normal((n, n))
    matrix = x @ x.T / m + (w + w.T) * math.sqrt(2 * energy / (2 * n))
    values = np.linalg.eigvalsh(matrix)
    rank = (np.arange(n) + 0.5) / n
    assert np.abs(pennington_bahri(energy, 0.5).cdf(values) - rank).max() < 0.01
    assert np.abs(pennington_bahri(0.5 * energy, 0.5).cdf(values) - rank).max() > 0.03


def test_the_refined_second_part_is_a_block_matrix() -> None:
    """R = e phi g / (2 - e phi^2 g^2) is that of a large random matrix [[0, B], [B^T, 0]]."""
    energy, ratio = 0.8, 0.5
    law = FreeSum(pennington_bahri_refined(energy, ratio).transforms[1:])
    assert law.cumulants(4) == pytest.approx((0, energy * ratio / 2, 0, energy**2 * ratio**3 / 4))
    z = np.array([1.5 + 0.1j, -2.0, 0.2 + 1e-3j])
    g = law.stieltjes(z)
    assert np.allclose(law.r_transform(g) + 1 / g, z, atol=1e-8)
    assert law.support[0][0] == pytest.approx(-law.support[-1][1], abs=1e-9)


def test_the_right_edge_is_a_critical_value() -> None:
    law = pennington_bahri(0.3, 0.7)
    left, right = law.critical_points()
    for g, edge in zip((left, right), law.support[0], strict=True):
        assert float(law.r_transform(g).real) + 1 / g == pytest.approx(edge, abs=1e-9)
    h = 1e-4
    curve = [float(law.r_transform(left + k * h).real) + 1 / (left + k * h) for k in (-1, 0, 1)]
    assert law.bend(left) == pytest.approx((curve[0] - 2 * curve[1] + curve[2]) / h**2, rel=1e-4)


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one R-transform"):
        FreeSum(())
    with pytest.raises(ValueError, match=r"denominator .* vanishes at 0"):
        RTransform((1.0,), (0.0, 1.0))
    with pytest.raises(ValueError, match="finite coefficients"):
        RTransform((math.inf,))
    with pytest.raises(ValueError, match="variance of a Wigner matrix must be positive"):
        wigner_transform(0.0)
    with pytest.raises(ValueError, match=r"ratio=-1.0 .* must both be positive"):
        wishart_transform(-1.0)
    with pytest.raises(ValueError, match="energy must be positive"):
        pennington_bahri(0.0, 0.5)
