"""The random energy model: its limit, its law at finite size, and samples of both."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from thalweg.theory.random_energy import (
    CRITICAL_BETA,
    GROUND_STATE,
    RandomEnergyModel,
    thermodynamic_limit,
)


def test_the_published_constants():
    assert pytest.approx(-0.832555, abs=5e-7) == GROUND_STATE
    assert pytest.approx(2 * math.sqrt(math.log(2)), rel=1e-15) == CRITICAL_BETA
    asymptotic = [RandomEnergyModel(n).minimum_mean_asymptotic() for n in (12, 16, 20)]
    assert asymptotic == pytest.approx([-0.745, -0.762, -0.772], abs=5e-4)


@pytest.mark.parametrize(("n", "exact"), [(12, -0.7402), (16, -0.7586), (20, -0.7704)])
def test_the_exact_mean_of_the_minimum(n, exact):
    """The least of M normals has the density M phi(x) Phi(-x)^(M-1): on a grid."""
    x = np.linspace(-12, 3, 300_001)
    count = 2.0**n
    density = count * stats.norm.pdf(x) * np.exp((count - 1) * stats.norm.logsf(x))
    mean = (x * density).sum() * (x[1] - x[0]) / math.sqrt(2 * n)  # a level has variance n / 2
    assert mean == pytest.approx(exact, abs=5e-5)
    assert RandomEnergyModel(n).minimum_mean() == pytest.approx(mean, abs=1e-9)


def test_the_limit_freezes_continuously():
    below, above = (thermodynamic_limit(CRITICAL_BETA + d) for d in (-1e-7, 1e-7))
    for name in ("free_energy", "energy", "entropy", "participation"):
        assert getattr(below, name) == pytest.approx(getattr(above, name), abs=1e-6)
    assert (below.frozen, above.frozen) == (False, True)
    assert thermodynamic_limit(2 * CRITICAL_BETA).participation == pytest.approx(0.5)
    for beta in (0.5, 1.0, 3.0):  # f = e - s / beta, and Jensen's inequality
        phase = thermodynamic_limit(beta)
        assert phase.free_energy == pytest.approx(phase.energy - phase.entropy / beta)
        assert phase.annealed <= phase.free_energy + 1e-15


def test_the_law_of_the_minimum_is_that_of_all_levels():
    model, rng = RandomEnergyModel(6), np.random.default_rng(0)
    drawn = (rng.standard_normal((4000, 64)) * math.sqrt(3)).min(1) / 6
    law = np.vectorize(model.minimum_cdf)
    assert stats.kstest(drawn, law).pvalue > 1e-3
    assert stats.kstest(drawn + 0.05, law).pvalue < 1e-3  # a law that is off is refused
    lowest, seed = model.lowest(1, samples=4000, seed=1)
    assert seed == 1
    assert stats.kstest(lowest[:, 0], law).pvalue > 1e-3


def test_the_moments_of_the_minimum_in_closed_form():
    one = RandomEnergyModel(1)  # the least of two normals of variance 1/2
    assert one.minimum_mean() == pytest.approx(-math.sqrt(0.5) / math.sqrt(math.pi), abs=1e-10)
    assert one.minimum_std() ** 2 == pytest.approx(0.5 * (1 - 1 / math.pi), abs=1e-10)


@pytest.mark.parametrize("n", [1, 8, 40, 500, 5000])
def test_quantiles_invert_the_law_at_any_size(n):
    model = RandomEnergyModel(n)
    for probability in (1e-9, 0.1, 0.5, 0.999):
        at = model.minimum_quantile(probability)
        assert model.minimum_cdf(at) == pytest.approx(probability, rel=1e-9)


def test_the_asymptotic_mean_approaches_the_exact_one():
    gaps = []
    for n in (20, 200, 2000):
        model = RandomEnergyModel(n)
        gaps.append(n * abs(model.minimum_mean() - model.minimum_mean_asymptotic()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.01


def test_several_lowest_levels_have_the_law_of_sorted_draws():
    model, rng = RandomEnergyModel(5), np.random.default_rng(3)
    drawn = np.sort(rng.standard_normal((3000, 32)) * math.sqrt(2.5), axis=1)[:, :3] / 5
    lowest, _ = model.lowest(3, samples=3000, seed=4)
    assert (np.diff(lowest, axis=1) > 0).all()
    for k in range(3):
        assert stats.ks_2samp(drawn[:, k], lowest[:, k]).pvalue > 1e-3
    whole, _ = model.lowest(32, samples=2000, seed=5)  # all levels: their mean is that of one
    assert abs(whole.mean()) < 5 * math.sqrt(0.1 / whole.size)


def test_exact_thermodynamics_of_two_levels_by_cubature():
    beta, (nodes, weights) = 1.7, np.polynomial.hermite_e.hermegauss(80)
    a, b = np.meshgrid(nodes, nodes) / np.sqrt(2)
    measure = np.outer(weights, weights) / (2 * np.pi)
    z = np.exp(-beta * a) + np.exp(-beta * b)
    exact = RandomEnergyModel(1).exact(beta)
    assert exact.free_energy == pytest.approx(-(measure * np.log(z)).sum() / beta, abs=1e-8)
    energy = (measure * (a * np.exp(-beta * a) + b * np.exp(-beta * b)) / z).sum()
    assert exact.energy == pytest.approx(energy, abs=1e-8)
    pairs = (measure * (np.exp(-2 * beta * a) + np.exp(-2 * beta * b)) / z**2).sum()
    assert exact.participation == pytest.approx(pairs, abs=1e-8)


def test_exact_thermodynamics_are_consistent():
    model, step = RandomEnergyModel(12), 1e-4
    low, at, high = (model.exact(1.5 + d) for d in (-step, 0.0, step))
    slope = (high.beta * high.free_energy - low.beta * low.free_energy) / (2 * step)
    assert at.energy == pytest.approx(slope, abs=1e-7)  # e = d(beta f) / d beta
    # Gaussian integration by parts: e = -beta/2 (1 - Y_2)
    assert at.energy == pytest.approx(-0.75 * (1 - at.participation), abs=1e-9)
    assert at.annealed < at.free_energy


@pytest.mark.slow
def test_finite_size_tends_to_the_limit():
    limit = thermodynamic_limit(2 * CRITICAL_BETA)
    gaps = []
    for n in (25, 100):
        exact = RandomEnergyModel(n).exact(2 * CRITICAL_BETA)
        gaps.append((abs(exact.free_energy - limit.free_energy), abs(exact.participation - 0.5)))
    assert gaps[1][0] < gaps[0][0] / 2
    assert gaps[1][1] < gaps[0][1] / 2
    warm = RandomEnergyModel(100).exact(0.8)
    assert warm.free_energy == pytest.approx(thermodynamic_limit(0.8).free_energy, abs=1e-9)


@pytest.mark.slow
def test_samples_agree_with_the_exact_values():
    found = RandomEnergyModel(12).sample(
        [0.8, CRITICAL_BETA, 4.0], disorders=200, level=0.999, seed=7
    )
    for one in found:
        for name in ("free_energy", "energy", "entropy", "participation"):
            assert getattr(one.exact, name) in getattr(one, name)
        assert "OUTSIDE" not in str(one)
    assert found[0].free_energy.seed == 7


def test_refusals():
    with pytest.raises(ValueError, match=r"2\^30 levels are too many"):
        RandomEnergyModel(30).sample([1.0])
    with pytest.raises(ValueError, match="underflows; use thermodynamic_limit"):
        RandomEnergyModel(1000).exact(1.0)
    with pytest.raises(ValueError, match="between 1 and 2\\^3"):
        RandomEnergyModel(3).lowest(9)
    with pytest.raises(ValueError, match="beta must be positive"):
        thermodynamic_limit(0.0)
    with pytest.raises(ValueError, match="at least one spin"):
        RandomEnergyModel(0)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        RandomEnergyModel(3).minimum_quantile(1.0)
    with pytest.raises(ValueError, match="two disorders"):
        RandomEnergyModel(3).sample([1.0], disorders=1)


@pytest.mark.calibration
def test_intervals_cover(calibration):
    model = RandomEnergyModel(8)
    exact, hits = model.exact(1.0), 0
    for seed in calibration.seeds:
        (one,) = model.sample([1.0], disorders=40, seed=seed)
        hits += exact.energy in one.energy
    calibration.check("random energy model, mean energy, N = 8, 40 disorders", hits)
