"""Laws fitted to spectra: planted parameters, wrong laws, outliers, densities."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from thalweg.curvature import MatrixOperator, spectral_density
from thalweg.theory.random_matrix.ensembles import goe_eigenvalues, wishart_eigenvalues
from thalweg.theory.random_matrix.fit import compare_laws, fit_law
from thalweg.theory.random_matrix.goodness import (
    WeightedSpectrum,
    ks_distance,
    law_quantiles,
    law_rule,
    wasserstein_distance,
)
from thalweg.theory.random_matrix.marchenko_pastur import MarchenkoPastur
from thalweg.theory.random_matrix.semicircle import Semicircle, semicircle_quantile

N = 100


def free_sample(n: int, ratio: float, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((n, round(n / ratio))), rng.standard_normal((n, n))
    matrix = x @ x.T / x.shape[1] + (w + w.T) * math.sqrt(noise / (2 * n))
    return np.linalg.eigvalsh(matrix)


def test_planted_parameters_are_recovered() -> None:
    fit = fit_law(3 + goe_eigenvalues(N, radius=0.5, seed=2)[0], replicates=99, seed=1)
    assert fit.verdict.yes
    assert 3 in fit.parameters["centre"]
    assert 0.5 in fit.parameters["radius"]
    assert fit.fitted == 1
    assert "semicircle is accepted" in str(fit)
    stored = json.loads(json.dumps(fit.to_json()))
    assert stored["p_value"] == fit.p_value
    assert stored["support"][0] == list(fit.law.support[0])
    again = fit_law(3 + goe_eigenvalues(N, radius=0.5, seed=2)[0], replicates=99, seed=1)
    assert again.p_value == fit.p_value
    assert again.parameters == fit.parameters


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.4, 2.0])
def test_marchenko_pastur_with_and_without_an_atom(ratio: float) -> None:
    values = wishart_eigenvalues(N, round(N / ratio), variance=1.5, seed=4)[0]
    fit = fit_law(values, "marchenko-pastur", replicates=99, distance="ks", seed=1)
    assert fit.verdict.yes
    assert ratio in fit.parameters["ratio"]
    assert 1.5 in fit.parameters["sigma2"]
    assert not len(fit.outliers)
    wrong = fit_law(values, "semicircle", replicates=99, seed=1)
    assert wrong.verdict.no
    assert wrong.p_value == 0.01


@pytest.mark.slow
def test_the_free_sum_is_told_from_its_parts() -> None:
    values = free_sample(150, 0.5, 0.2, seed=1)
    found = compare_laws(values, replicates=99, seed=1)
    assert found.best is not None
    assert found.best.name == "free"
    assert 0.2 in found.best.parameters["noise"]
    assert 0.5 in found.best.parameters["ratio"]
    assert [fit.verdict.answer for fit in found.fits[1:]] == ["no", "no"]
    assert str(found).count("rejected") == 2
    assert found.__rich__().row_count == 3


@pytest.mark.slow
def test_spectra_of_no_ensemble_are_rejected() -> None:
    rng = np.random.default_rng(5)
    for values in (np.linspace(1, 3, N), 1 + rng.pareto(1.5, N), rng.standard_normal(N) + 5):
        for law in ("semicircle", "marchenko-pastur"):
            assert fit_law(values, law, replicates=99, seed=1).verdict.no


@pytest.mark.slow
def test_independent_samples_of_the_law_are_rejected_for_they_are_not_rigid() -> None:
    """The textbook p-value would accept them, and almost anything else."""
    rng = np.random.default_rng(6)
    values = semicircle_quantile(rng.random(300))
    fit = fit_law(values, replicates=99, seed=1)
    assert fit.verdict.no
    assert stats.kstwo.sf(fit.distance, 300) > 0.05
    rigid = [
        ks_distance(WeightedSpectrum.of(row), Semicircle())
        for row in goe_eigenvalues(300, 99, seed=1)
    ]
    assert fit.distance > max(rigid)


@pytest.mark.slow
def test_outliers_are_found_and_left_out() -> None:
    bulk = goe_eigenvalues(N, seed=7)[0]
    values = np.concatenate([bulk, [2.9, 3.0, 30.0, -4.0]])
    fit = fit_law(values, replicates=99, seed=1)
    assert sorted(fit.outliers.tolist()) == [-4.0, 2.9, 3.0, 30.0]
    assert np.all(fit.outlier_p < 1e-3)
    assert fit.fitted == pytest.approx(N / (N + 4))
    assert 2.0 in fit.parameters["radius"]
    assert fit.verdict.yes
    assert "4 beyond the edges" in str(fit)
    assert "accepted apart from 4 eigenvalues beyond its edges" in str(fit.verdict)
    kept = fit_law(values, outliers=2, replicates=99, seed=1)
    assert kept.verdict.no
    assert "more eigenvalues lie beyond its edges than the 2 that were let off" in str(kept)


@pytest.mark.slow
def test_a_tail_is_no_set_of_outliers() -> None:
    """A bulk with as many values beyond its edges as may be let off, and one more."""
    bulk = goe_eigenvalues(N, seed=7)[0]
    for count, answer in ((11, "yes"), (12, "no")):
        values = np.concatenate([bulk, np.geomspace(2.9, 30, count)])
        fit = fit_law(values, replicates=99, seed=1)
        assert fit.verdict.answer == answer
        assert len(fit.outliers) == 11  # a tenth of them


def test_too_few_matrices_reject_nothing_and_accept_nothing() -> None:
    fit = fit_law(np.linspace(1, 3, N), replicates=49, seed=1)
    assert fit.p_value == 0.02
    assert fit.verdict.unresolved
    assert "0 of 49 matrices" in str(fit)
    assert "take replicates=99 or more" in str(fit)


def test_progress_is_told() -> None:
    told: list[tuple[float, str]] = []
    values = goe_eigenvalues(30, seed=1)[0]
    fit_law(values, replicates=19, seed=1, progress=lambda *told_of: told.append(told_of))
    assert len(told) == 19
    assert told[-1] == (1.0, "semicircle: 19 of 19 matrices")


def test_few_eigenvalues_decide_nothing() -> None:
    fit = fit_law(goe_eigenvalues(10, seed=1)[0], replicates=19, seed=1)
    assert fit.verdict.unresolved
    assert "10 eigenvalues are too few" in str(fit)


@pytest.mark.slow
def test_a_lanczos_density() -> None:
    n = 900
    values = np.append(wishart_eigenvalues(n, 2 * n, seed=1)[0], [6.0, 8.0])
    operator = MatrixOperator(torch.diag(torch.from_numpy(values)))
    rho = spectral_density(operator, probes=6, steps=40, deflate=6, method="quadrature", seed=1)
    fit = fit_law(rho, "marchenko-pastur", replicates=99, seed=1)
    assert sorted(fit.outliers.tolist()) == pytest.approx([6.0, 8.0], abs=1e-6)
    assert fit.verdict.yes
    assert 0.5 in fit.parameters["ratio"]
    assert 1.0 in fit.parameters["sigma2"]
    assert fit.within_band > 0.8
    wrong = fit_law(rho, "semicircle", replicates=99, seed=1)
    assert wrong.verdict.no
    assert wrong.within_band < 0.5


def test_distances() -> None:
    law = Semicircle()
    shifted = WeightedSpectrum.of(semicircle_quantile((np.arange(500) + 0.5) / 500) + 0.25)
    assert wasserstein_distance(shifted, law) == pytest.approx(0.25, abs=1e-3)
    assert ks_distance(shifted, law) == pytest.approx(
        float(law.cdf(0.125) - law.cdf(-0.125)), abs=2e-3
    )
    nodes, weights = law_rule(MarchenkoPastur(3.0))
    assert weights.sum() == pytest.approx(1, abs=1e-10)
    assert weights @ nodes**2 == pytest.approx(4, abs=1e-9)
    middles = law_quantiles(law, 50)
    exact = semicircle_quantile((np.arange(50) + 0.5) / 50)
    assert np.allclose(middles, exact, atol=1e-4)
    wide = WeightedSpectrum.of(np.array([0.0, 0.0, 0.0, 4.0]))
    top = float(MarchenkoPastur(4.0).cdf(4.0))
    assert ks_distance(wide, MarchenkoPastur(4.0)) == pytest.approx(max(top - 0.75, 1 - top))


def test_refusals(unchecked) -> None:
    good = goe_eigenvalues(30, seed=0)[0]
    with pytest.raises(ValueError, match=r"law must be one of 'semicircle'.* not 'uniform'"):
        fit_law(good, "uniform")
    with pytest.raises(ValueError, match="replicates=3 must be at least 19"):
        fit_law(good, replicates=3)
    with pytest.raises(ValueError, match="1 values that are not finite"):
        fit_law(np.append(good, np.nan))
    with pytest.raises(ValueError, match=r"needs a positive mean .* Fit a semicircle"):
        fit_law(good - 3, "free")
    found = compare_laws(good - 3, ("semicircle", "free"), replicates=19, seed=0)
    assert list(found.failed) == ["free"]
    assert "no fit" in str(found)


PLANTED = {
    "semicircle": {"centre": 0.0, "radius": 2.0},
    "marchenko-pastur": {"ratio": 0.5, "sigma2": 1.0},
    "free": {"ratio": 0.5, "sigma2": 1.0, "noise": 0.1},
}


def covered(law: str, n: int, seeds: range) -> dict[str, int]:
    """Count the seeds whose intervals hold what was planted, and whose p exceeds 0.05."""
    hits = dict.fromkeys([*PLANTED[law], "p > 0.05"], 0)
    for seed in seeds:
        if law == "semicircle":
            values = goe_eigenvalues(n, seed=seed)[0]
        elif law == "free":
            values = free_sample(n, 0.5, 0.1, seed)
        else:
            values = wishart_eigenvalues(n, 2 * n, seed=seed)[0]
        fit = fit_law(values, law, distance="ks", replicates=19, seed=10_000 + seed)
        hits["p > 0.05"] += fit.p_value > 0.05
        for name, truth in PLANTED[law].items():
            hits[name] += truth in fit.parameters[name]
    return hits


@pytest.mark.calibration
@pytest.mark.parametrize("law", ["semicircle", "marchenko-pastur"])
def test_intervals_and_p_values_are_calibrated(law, calibration) -> None:
    for name, count in covered(law, 40, calibration.seeds).items():
        calibration.check(f"{law}: {name}, n = 40", count)


@pytest.mark.slow
def test_intervals_of_the_free_sum_cover() -> None:
    """Its law is the dearest: 25 seeds, held to the calibration's rule, here 18 of them."""
    least = int(stats.binom.ppf(1e-4, 25, 0.95))
    assert least == 18
    assert min(covered("free", 60, range(25)).values()) >= least
