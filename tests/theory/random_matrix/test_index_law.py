"""Index against energy: closed forms, the published values, matrices, and fits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.theory.random_matrix.free import pennington_bahri, pennington_bahri_refined
from thalweg.theory.random_matrix.index_law import (
    critical_energy,
    fit_index_power,
    index_fraction,
    index_prefactor,
)

RATIOS = (0.1, 0.25, 0.5, 0.75)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_critical_energy_is_where_the_edge_reaches_zero(ratio: float) -> None:
    for refined, make in ((False, pennington_bahri), (True, pennington_bahri_refined)):
        critical = critical_energy(ratio, sigma2=1.3, refined=refined)
        law = make(critical, ratio, sigma2=1.3)
        assert law.support[0][0] == pytest.approx(0, abs=1e-8)
        assert make(1.01 * critical, ratio, sigma2=1.3).support[0][0] < -1e-6
        assert make(0.99 * critical, ratio, sigma2=1.3).support[0][0] > 1e-6


def test_the_printed_values() -> None:
    found = [critical_energy(ratio) for ratio in RATIOS]
    assert np.round(found, 6).tolist() == [0.083435, 0.043510, 0.011271, 0.001266]
    near = 0.999
    assert critical_energy(near) == pytest.approx(2 / 27 * (1 - near) ** 3, rel=1e-2)
    # the facts' values are of matrices with n = 1500, two eigenvalues of which are 0.0013
    for ratio, low, high in zip(
        RATIOS, (0.0320, 0.0187, 0.0087, 0.0040), (0.0947, 0.0620, 0.0313, 0.0127), strict=True
    ):
        at = critical_energy(ratio)
        drawn = index_fraction([0.5 * at, at, 1.5 * at, 2.5 * at], ratio)
        assert drawn[:2].tolist() == [0, 0]
        assert drawn[2:].tolist() == pytest.approx([low, high], abs=2 / 1500)


@pytest.mark.slow
def test_sampled_matrices_have_this_index() -> None:
    n, ratio = 400, 0.25
    energy = 2.5 * critical_energy(ratio)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(8):
        x, w = rng.standard_normal((n, int(n / ratio))), rng.standard_normal((n, n))
        matrix = x @ x.T / x.shape[1] + (w + w.T) * math.sqrt(energy / n)
        shares.append((np.linalg.eigvalsh(matrix) < 0).mean())
    exact = float(index_fraction(energy, ratio))
    assert np.mean(shares) == pytest.approx(exact, abs=4 * np.std(shares) / math.sqrt(8) + 0.5 / n)


@pytest.mark.parametrize("refined", [False, True])
def test_the_three_halves_law(refined: bool) -> None:
    for ratio in (0.1, 0.6):
        at, scale = critical_energy(ratio, refined=refined), index_prefactor(ratio, refined=refined)
        ratios = [
            float(index_fraction(at * (1 + d), ratio, refined=refined)) / (scale * d**1.5)
            for d in (0.01, 0.001)
        ]
        assert ratios[0] == pytest.approx(1, abs=0.02)
        assert ratios[1] == pytest.approx(1, abs=0.002)


def _points(seed: int, exponent: float = 1.5, noise: float = 0.001, bend: float = 0.8):
    rng = np.random.default_rng(seed)
    energies = rng.uniform(0.05, 0.25, 60)
    above = np.maximum(energies - 0.1, 0) / 0.1
    indices = 0.1 * above**exponent / (1 + bend * above)
    indices = indices + noise * rng.standard_normal(60) * (above > 0)
    return energies, np.clip(indices, 0, 1)


def test_a_planted_power_law_is_found_and_another_is_not() -> None:
    energies, indices = _points(3)
    fit = fit_index_power(energies, indices)
    assert 1.5 in fit.exponent
    assert 0.1 in fit.critical
    assert 0.1 in fit.prefactor
    assert 0.8 in fit.correction
    assert fit.window == pytest.approx(energies.max() / fit.critical.value - 1)
    assert "k = " in str(fit)
    assert fit.to_json()["exponent"]["value"] == fit.exponent.value
    steep = fit_index_power(*_points(3, exponent=2.5, noise=1e-4))
    assert 1.5 not in steep.exponent
    assert 2.5 in steep.exponent


@pytest.mark.slow
@pytest.mark.parametrize(("reach", "within"), [(0.06, 1e-4), (0.5, 0.01), (1.5, 0.02)])
def test_the_law_itself_has_this_exponent_in_any_window(reach: float, within: float) -> None:
    """A bare power finds 1.456 at a reach of 0.06 and 1.24 at 0.5."""
    ratio = 0.25
    at = critical_energy(ratio)
    energies = at * (1 + np.linspace(-0.5 * reach, reach, 46))
    fit = fit_index_power(energies, index_fraction(energies, ratio))
    assert fit.exponent.value == pytest.approx(1.5, abs=within)
    assert fit.critical.value == pytest.approx(at, rel=0.2 * within)
    assert fit.prefactor.value == pytest.approx(index_prefactor(ratio), rel=5 * within)
    assert 0.7 < fit.correction.value < 0.9


@pytest.mark.slow
def test_points_that_do_not_bound_the_correction_say_so() -> None:
    fit = fit_index_power(*_points(3, noise=0.01))
    assert fit.correction.interval[1] == math.inf
    assert 1.5 in fit.exponent


@pytest.mark.calibration
def test_intervals_of_the_power_law(calibration) -> None:
    planted = {"exponent": 1.5, "critical": 0.1, "prefactor": 0.1, "correction": 0.8}
    hits = dict.fromkeys(planted, 0)
    for seed in calibration.seeds:
        fit = fit_index_power(*_points(seed))
        for name, truth in planted.items():
            hits[name] += truth in getattr(fit, name)
    for name, count in hits.items():
        calibration.check(f"index power law, {name}", count)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"ratio=1.0 must lie in \(0, 1\)"):
        critical_energy(1.0)
    with pytest.raises(ValueError, match="sigma2 must be positive"):
        critical_energy(0.5, sigma2=-1.0)
    with pytest.raises(ValueError, match="squared residuals is not negative"):
        index_fraction(-0.1, 0.5)
    with pytest.raises(ValueError, match="12 points and 8 of positive index, got 3 and 3"):
        fit_index_power(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="none NaN"):
        fit_index_power(np.full(20, np.nan), np.full(20, 0.5))
