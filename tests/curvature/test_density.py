"""The broadened density against the dense spectrum, its outliers and its band."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from thalweg.curvature import Hessian, MatrixOperator, eigenpairs, spectral_density


def broadened(values, rho):
    """The dense spectrum, convolved with the same kernel."""
    gaps = (rho.grid.numpy()[:, None] - np.asarray(values)) / rho.broadening
    peaks = np.exp(-0.5 * gaps**2) / (rho.broadening * math.sqrt(2 * math.pi))
    return peaks.sum(1) / len(values)


def inside(truth, rho):
    slack = 1e-9 * truth.max()
    low, high = rho.band.numpy()
    return (low - slack <= truth) & (truth <= high + slack)


def test_small_spectra_are_exact(net):
    point = net()
    values = torch.linalg.eigvalsh(point.dense()).numpy()
    with Hessian(point.land, point.theta) as H:
        rho = spectral_density(H, seed=0)
    assert rho.cost.hvps == H.dim
    assert rho.chains == ()
    assert rho.outliers is None
    assert np.allclose(rho.atoms.numpy(), values, atol=1e-12)
    assert np.allclose(rho.density.numpy(), broadened(values, rho), atol=1e-9)
    assert inside(broadened(values, rho), rho).all()
    assert np.trapezoid(rho.density.numpy(), rho.grid.numpy()) == pytest.approx(1, abs=1e-3)
    assert rho.edges == pytest.approx((values.min(), values.max()), rel=1e-9)
    assert "all known" in str(rho)


def test_network_by_quadrature(net):
    point = net()
    values = torch.linalg.eigvalsh(point.dense()).numpy()
    with Hessian(point.land, point.theta) as H:
        rho = spectral_density(H, steps=40, method="quadrature", seed=0)
    assert 5 <= len(rho.atoms) <= 10
    for atom in rho.atoms.tolist():
        assert np.abs(values - atom).min() < 1e-6
    truth = broadened(values, rho)
    assert inside(truth, rho).mean() > 0.8
    assert np.abs(rho.density.numpy() - truth).max() < 0.25 * truth.max()
    assert np.trapezoid(rho.density.numpy(), rho.grid.numpy()) == pytest.approx(1, abs=0.01)
    assert bool((rho.band[0] <= rho.density + 1e-12).all())
    assert bool((rho.density <= rho.band[1] + 1e-12).all())
    assert float(rho.quadrature.max()) < 0.01 * truth.max()


def test_outliers_are_atoms_of_weight_one_in_dim(with_spectrum):
    values = [1000.0, 500.0, -300.0, *np.linspace(-1, 1, 297)]
    A = with_spectrum(values)
    rho = spectral_density(A, deflate=3, steps=40, method="quadrature", seed=0)
    assert sorted(rho.atoms.tolist()) == pytest.approx([-300, 500, 1000])
    assert max(float(chain.nodes.abs().max()) for chain in rho.chains) < 1.01
    assert -1.01 < rho.edges[0] < rho.edges[1] < 1.01
    assert rho.broadening < 0.1  # that of the bulk
    peak = 1 / (300 * rho.broadening * math.sqrt(2 * math.pi))
    for outlier in (1000, 500, -300):
        place = int((rho.grid - outlier).abs().argmin())
        assert float(rho.density[place]) == pytest.approx(peak, rel=0.01)
        assert bool(rho.band[0, place] <= rho.density[place] <= rho.band[1, place])
    assert rho.count(tau=10).positive.interval == (2, 2)
    assert rho.count(tau=10).negative.interval == (1, 1)
    known = eigenpairs(A, 3, which="magnitude", seed=1)
    again = spectral_density(A, deflate=known, steps=40, method="quadrature", seed=0)
    assert again.outliers is known
    assert again.cost.hvps == 400


def test_only_converged_pairs_are_deflated(with_spectrum):
    A = with_spectrum(np.linspace(-1, 1, 300))
    found = eigenpairs(A, 10, which="magnitude", max_products=24, seed=0)
    assert not bool(found.converged.all())
    rho = spectral_density(A, deflate=found, steps=20, method="quadrature", seed=0)
    assert len(rho.atoms) == int(found.converged.sum())
    assert rho.spectrum.free == 300 - len(rho.atoms)


def test_cumulative_band_holds_the_dense_steps(with_spectrum):
    values = np.concatenate([np.zeros(200), np.linspace(0.5, 2, 100)])
    rho = spectral_density(with_spectrum(values), steps=25, deflate=5, method="quadrature", seed=0)
    at = torch.linspace(-0.5, 2.5, 61, dtype=torch.float64) + 0.003
    middle, band = rho.cumulative(at)
    truth = (values < at.numpy()[:, None]).mean(1)
    low, high = band.numpy()
    assert ((low <= truth) & (truth <= high)).mean() > 0.85
    assert (np.diff(middle.numpy()) >= -1e-6).all()
    assert (high - low)[0] < 0.02
    exact, edges = spectral_density(with_spectrum(values), seed=0).cumulative(at)
    assert np.allclose(exact.numpy(), truth)
    assert np.allclose(edges.numpy(), truth)


def test_degenerate_matrices(with_spectrum):
    for matrix in (torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(5, 5), torch.eye(4)):
        for method in ("dense", "quadrature"):
            rho = spectral_density(MatrixOperator(matrix), method=method, seed=0)
            assert bool(torch.isfinite(rho.band).all())
            assert float(matrix.trace()) in rho.trace()
            assert rho.count().zero.value == (matrix == 0).all() * len(matrix)
            json.dumps(rho.to_json(), allow_nan=False)
            assert str(rho)
    low = with_spectrum([3.0, 2.0, 1.0] + [0.0] * 297)
    rho = spectral_density(low, method="quadrature", seed=0)
    assert rho.count(tau=0.1).rank.interval[0] >= 3
    assert 3.0 in rho.count(tau=0.1).rank
    assert 6.0 in rho.trace()


def test_seeds_and_form(with_spectrum):
    A = with_spectrum([5.0, *np.linspace(-1, 1, 699)])
    rho = spectral_density(A, steps=15, points=101)
    again = spectral_density(A, steps=15, points=101, seed=rho.seed)
    assert torch.equal(rho.density, again.density)
    assert not torch.equal(rho.density, spectral_density(A, steps=15, points=101).density)
    data = json.loads(json.dumps(rho.to_json(), allow_nan=False))
    assert len(data["grid"]) == len(data["density"]) == len(data["band"][0])
    assert data["outliers"]["values"] == rho.outliers.values.tolist()
    assert data["broadening"] == pytest.approx((rho.edges[1] - rho.edges[0]) / 15)
    assert data["count"]["tau"] == pytest.approx(0.005, rel=1e-3)
    text = str(rho)
    for part in ("spectrum of 700 eigenvalues", "apart", "tau = 0.005", "HVPs", "95 % band"):
        assert part in text
    assert rho.__rich__()
    before = torch.get_rng_state()
    spectral_density(A, steps=4, points=11)
    assert torch.equal(before, torch.get_rng_state())
    wide = spectral_density(A, steps=15, broadening=0.3, seed=1)
    assert wide.broadening == 0.3


def test_passes_are_few(net):
    """All probes share a pass."""
    point = net()
    with Hessian(point.land, point.theta) as H:
        rho = spectral_density(H, steps=20, deflate=0, method="quadrature", seed=0)
    assert rho.cost.hvps == 200
    assert rho.cost.passes == 21


class Broken(MatrixOperator):
    """A product that overflows."""

    def _product(self, vectors):
        return super()._product(vectors) * math.nan


class Shifting(MatrixOperator):
    """A product that is not symmetric."""

    def _product(self, vectors):
        return super()._product(vectors) + 0.1 * vectors.roll(1, 0)


def test_what_cannot_be(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 40))
    for options, message in (
        ({"probes": 3}, "probes=3 is too few for an honest interval; take at least 4"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"points": 1}, "points=1 at least 2"),
        ({"broadening": 0.0}, "broadening=0.0 must be a positive number"),
        ({"level": 1.0}, "level must lie strictly between 0 and 1"),
        ({"method": "magic"}, "method must be one of 'auto', 'quadrature', 'dense'"),
        ({"deflate": -1}, "deflate=-1 must not be negative"),
        ({"deflate": eigenpairs(with_spectrum([1.0, 2.0]), 1)}, "they are another operator's"),
    ):
        with pytest.raises(ValueError, match=message):
            spectral_density(A, **options)
    for method in ("dense", "quadrature"):
        with pytest.raises(ValueError, match="is not symmetric"):
            spectral_density(Shifting(A.matrix), method=method)
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            spectral_density(Broken(A.matrix), method=method)
