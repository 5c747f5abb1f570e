"""The laws that a survey fits to its spectra: planted ensembles, and what must be refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thalweg.curvature import MatrixOperator, SpectralDensity, spectral_density
from thalweg.landscape import FunctionLandscape
from thalweg.survey import LawRecord, Survey, SurveyConfig
from thalweg.survey.laws import law_records
from thalweg.survey.rows import _spectrum, plain

CONFIG = SurveyConfig(
    minima=1, tolerance=1e-9, trace_samples=0, searches_per_minimum=1, saddles=False, levels=0
)


def goe(n: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((n, n))
    return torch.from_numpy((noise + noise.T) / np.sqrt(2 * n))


def wishart(n: int, m: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((n, m))
    return torch.from_numpy(noise @ noise.T / m)


def clusters(n: int) -> torch.Tensor:
    half = torch.linspace(-0.1, 0.1, n // 2, dtype=torch.float64)
    return torch.diag(torch.cat([half, half + 2]))


def measure(matrix: torch.Tensor, **options: Any) -> SpectralDensity:
    """Measure a density as a survey does it; small ones come out exactly."""
    return spectral_density(MatrixOperator(matrix), probes=4, steps=40, seed=0, **options)


def laws(matrix: torch.Tensor, **options: Any) -> dict[str, LawRecord]:
    return {law.name: law for law in law_records(measure(matrix, **options), 1e-3, seed=1)}


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey of a quadratic whose Hessian is a GOE matrix of 60 rows, shifted by three."""
    hessian = goe(60) + 3 * torch.eye(60, dtype=torch.float64)
    land = FunctionLandscape(lambda theta: theta @ hessian @ theta / 2, dim=60)
    folder = tmp_path_factory.mktemp("laws") / "goe"
    with Survey.open(folder, land, CONFIG) as survey:
        assert survey.run(progress=False).complete
    return folder


def test_a_survey_finds_the_semicircle_of_a_goe_hessian(surveyed: Path) -> None:
    with Survey.read(surveyed) as survey:
        (minimum,) = survey.record().minima
    assert minimum.spectrum is not None
    best = minimum.spectrum.laws[0]
    assert (best.name, best.verdict) == ("semicircle", "accepted")
    assert 2.0 in best.parameters["radius"]
    assert 3.0 in best.parameters["centre"]
    assert best.size + best.outliers == 60
    assert best.p_value >= 0.05
    (low, high) = best.support[0]
    assert (low, high) == pytest.approx((1, 5), abs=0.2)
    area = np.trapezoid(best.values, best.grid)
    assert area == pytest.approx(best.fitted, rel=1e-2)


def test_laws_survive_the_database(surveyed: Path) -> None:
    with Survey.read(surveyed) as survey:
        spectrum = survey.record().minima[0].spectrum
    assert spectrum is not None
    again = _spectrum(plain(spectrum))
    assert repr(again) == repr(spectrum)
    assert isinstance(again.laws[0].support[0], tuple)
    older = plain(spectrum)
    del older["laws"]
    assert _spectrum(older) == dataclasses.replace(spectrum, laws=())


def test_without_the_switch_no_law_is_fitted(tmp_path: Path) -> None:
    land = FunctionLandscape(lambda theta: theta.square().sum(), dim=30)
    with Survey.open(tmp_path / "a", land, dataclasses.replace(CONFIG, laws=False)) as survey:
        survey.run(progress=False)
        (minimum,) = survey.record().minima
    assert minimum.spectrum is not None
    assert minimum.spectrum.laws == ()


def test_a_wishart_hessian_is_marchenko_pastur() -> None:
    found = laws(wishart(40, 80))
    best = found["marchenko-pastur"]
    assert best.verdict == "accepted"
    assert 0.5 in best.parameters["ratio"]
    assert 1.0 in best.parameters["sigma2"]
    assert "free" not in found  # one with fewer parameters is accepted
    assert best == next(iter(found.values()))


@pytest.mark.parametrize("size", [100, 400])  # known exactly, and through chains
def test_two_clusters_are_no_semicircle(size: int) -> None:
    density = measure(clusters(size))
    assert bool(density.chains) == (size == 400)
    found = {law.name: law for law in law_records(density, 1e-3, seed=1)}
    assert found["semicircle"].verdict == "rejected"
    assert found["semicircle"].grid
    assert "distribution function" in found["semicircle"].reason
    assert found["marchenko-pastur"].verdict == "does not apply"
    assert "lies below zero" in found["marchenko-pastur"].reason
    assert all(law.verdict != "accepted" for law in found.values())


def test_a_spike_at_zero_is_nothing_for_a_semicircle() -> None:
    values = torch.cat([torch.zeros(350), torch.linspace(-1, 1, 50)]).double()
    found = laws(torch.diag(values))
    for name in ("semicircle", "free"):
        assert found[name].verdict == "does not apply"
        assert "a spike, which this law does not have" in found[name].reason
        assert (found[name].grid, found[name].replicates) == ((), 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_equal_eigenvalues_are_no_law_of_matrices(value: float) -> None:
    found = laws(value * torch.eye(100, dtype=torch.float64))
    assert {law.verdict for law in found.values()} == {"does not apply"}
    assert all(law.reason for law in found.values())


def test_few_eigenvalues_tell_nothing() -> None:
    found = laws(goe(19))
    assert {law.verdict for law in found.values()} == {"does not apply"}
    assert "19 eigenvalues are too few" in found["semicircle"].reason


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_chains_show_the_laws_too(seed: int) -> None:
    """Through random starts: a GOE with three spikes, and a Wishart matrix of low rank."""
    spikes = torch.zeros(500, dtype=torch.float64)
    spikes[:3] = torch.tensor([5.0, 4.0, 3.5])
    best = laws(goe(500, seed) + torch.diag(spikes))["semicircle"]
    assert best.verdict == "accepted"
    assert 2.0 in best.parameters["radius"]
    assert best.outliers == 3
    low = laws(wishart(500, 125, seed), deflate=0)["marchenko-pastur"]
    assert low.verdict == "accepted"
    assert 4.0 in low.parameters["ratio"]
    assert low.atom == pytest.approx(0.75, abs=0.05)
    assert np.trapezoid(low.values, low.grid) == pytest.approx(low.fitted, rel=2e-2)
