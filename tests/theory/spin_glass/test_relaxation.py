"""Quenches, aging and floors: planted laws are found again, and the numbers of the facts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.estimate import Cost
from thalweg.theory.spin_glass.dynamics import mean_over
from thalweg.theory.spin_glass.floor import EnergyFloor, FloorAtSize, _extrapolate, energy_floor
from thalweg.theory.spin_glass.mixture import Mixture
from thalweg.theory.spin_glass.relaxation import Relaxation, age, relax
from thalweg.theory.spin_glass.thresholds import threshold_energy


def planted(seed, *, floor=-1.63, amplitude=0.4, exponent=2 / 3, noise=0.004, disorders=12):
    """Energies that follow a power law, each disorder with an offset of its own."""
    rng = np.random.default_rng(seed)
    times = np.geomspace(1, 200, 20)
    law = floor + amplitude * times**-exponent
    offsets = rng.normal(0, noise, size=(disorders, 1, 1))
    energies = law[None, :, None] + offsets + rng.normal(0, noise, size=(disorders, 20, 4))
    return Relaxation(100, Mixture.of(3), times, energies, "planted", Cost(), seed)


def test_a_planted_power_law_is_found():
    fit = planted(0).fit(floor=-1.63)
    assert abs(fit.exponent.value - 2 / 3) < 4 * fit.exponent.stderr
    assert fit.exponent.stderr < 0.02
    free = planted(0, noise=0.0005).fit()
    for found, truth in ((free.floor, -1.63), (free.amplitude, 0.4), (free.exponent, 2 / 3)):
        assert abs(found.value - truth) < 5 * found.stderr
    assert "a = 0.6" in str(fit)
    other = planted(0, exponent=0.4).fit(floor=-1.63)  # the control
    assert 2 / 3 not in other.exponent
    with pytest.raises(ValueError, match="needs 4 times and 3 disorders, but has 0 between 500"):
        planted(0).fit(between=(500, 900))


def test_first_times_are_interpolated_and_censored():
    times = np.array([0.0, 1.0, 4.0])
    energies = np.array([[[0.0], [-1.0], [-2.0]], [[0.0], [-1.0], [-3.0]]])
    run = Relaxation(10, Mixture.of(3), times, energies, "planted", Cost(), 0)
    assert run.time_to(-0.5).value == pytest.approx(0.5)
    assert run.time_to(-1.5).value == pytest.approx((2 + 4**0.25) / 2)
    never = run.time_to(-2.5)
    assert math.isnan(never.value)
    assert never.samples == 1
    assert never.interval[1] == math.inf
    assert 3 < never.interval[0] <= 4
    assert run.time_to(0.0).value == 0


def test_a_quench_falls_and_slows():
    run = relax(20, times=[0.0, 0.5, 2.0, 6.0], disorders=3, replicas=6, seed=0)
    assert run.energies.shape == (3, 4, 6)
    assert (np.diff(run.energies, axis=1) < 0).all()
    assert abs(run.mean[0]) < 4 * run.stderr[0] + 0.05
    assert -1.65 < run.mean[-1] < -1.25
    assert "n = 20, xi = q^3: energy per spin -1." in str(run)
    again = relax(20, times=[0.0, 0.5], disorders=3, replicas=6, seed=0)
    assert np.allclose(again.energies[:, 0], run.energies[:, 0])
    slow = run.time_to(-0.8)
    assert 0.1 < slow.value < 3
    fixed = relax(20, times=[2.0], step=0.02, disorders=3, replicas=6, seed=0)
    assert np.allclose(fixed.energies[:, 0], run.energies[:, 2], atol=0.05)


def test_memory_ages_when_cold_and_not_when_hot():
    cold = age(30, waiting=[0.5, 4.0], delays=[0.5, 1.0], disorders=4, replicas=6,
               temperature=0.1, seed=0)  # fmt: skip
    assert cold.correlations.shape == (4, 2, 2)
    assert (cold.mean[1] - cold.mean[0] > 4 * (cold.stderr[1] + cold.stderr[0])).all()
    assert (np.diff(cold.mean, axis=1) < 0).all()
    assert "after a delay of 1 the correlation is" in str(cold)
    assert cold.__rich__().row_count == 2
    hot = age(30, waiting=[0.5, 2.0], delays=[0.1], disorders=6, replicas=16, temperature=5.0,
              step=0.02, seed=0)  # fmt: skip
    assert abs(hot.mean[1, 0] - hot.mean[0, 0]) < 4 * math.hypot(*hot.stderr[:, 0])
    # free diffusion at T: exp(-T (n - 1)/n t), the energy a correction
    assert abs(hot.at(0, 0).value - math.exp(-5.0 * 29 / 30 * 0.1)) < 0.05


def test_the_floor_of_small_sizes():
    seen = []
    found = energy_floor(
        [10, 25], disorders=4, starts=8, seed=3, progress=lambda share, text: seen.append(text)
    )
    small, large = found.sizes
    assert (small.certified, large.certified) == (32, 32)
    assert (small.lowest > 0).all()
    assert abs(small.mean.value + 1.331) < 4 * small.mean.stderr
    assert abs(large.mean.value + 1.465) < 4 * large.mean.stderr
    assert found.threshold == -threshold_energy(3)
    assert set(found.fits) == {"n^-1/2", "n^-2/3"}
    assert seen[-1] == "n = 25: 4 of 4 disorders"
    assert "n = 25: -1.4" in str(found)
    assert found.__rich__().row_count == 2


@pytest.mark.slow
def test_floors_of_gd_and_sgd_are_one():
    """Sagun et al.: one disorder at a time, both end in the same band."""
    runs = {
        method: energy_floor([25], disorders=4, starts=8, method=method, time=4.0, seed=1)
        for method in ("lbfgs", "gd", "sgd")
    }
    levels = {method: run.sizes[0].energies.mean(axis=1) for method, run in runs.items()}
    for other in ("gd", "sgd"):
        gap = mean_over((levels[other] - levels["lbfgs"]).tolist())  # the same disorders
        assert abs(gap.value) < 4 * gap.stderr + 0.01
    assert runs["sgd"].method == "SGD on 0.5"
    assert runs["sgd"].fits == {}


def planted_floor(seed, exponent):
    rng = np.random.default_rng(seed)
    sizes = []
    for n in (25, 50, 100, 200):
        truth = -1.633 + 0.8 * n**-exponent
        energies = truth + rng.normal(0, 1.0 / n, size=(8, 1)) + rng.normal(0, 1.0 / n, size=(8, 4))
        mean = mean_over(energies.mean(axis=1).tolist())
        sizes.append(FloorAtSize(n, energies, np.ones((8, 4)), 32, mean))
    return sizes


def test_a_planted_floor_is_found():
    found = _extrapolate(planted_floor(0, 0.5), 0.5)
    assert abs(found.value + 1.633) < 4 * found.stderr
    assert found.stderr < 0.02
    assert -1.55 not in found
    assert _extrapolate(planted_floor(0, 0.5), 2 / 3).value > found.value  # as in facts B6
    sizes = planted_floor(0, 0.5)
    assert _extrapolate(sizes[:1], 0.5) is None
    shown = EnergyFloor(tuple(sizes), {"n^-1/2": found}, -1.633, "planted", Cost(), 0)
    assert "n to infinity by n^-1/2: -1.6" in str(shown)


def test_what_cannot_be_quenched_is_said(unchecked):
    with pytest.raises(ValueError, match="an error over disorders needs at least 2 of them"):
        relax(10, disorders=1)
    with pytest.raises(ValueError, match="temperature must not be negative, got -1"):
        relax(10, temperature=-1)
    with pytest.raises(ValueError, match="delays must be positive and rise, but is"):
        age(10, delays=[2.0, 1.0])
    with pytest.raises(ValueError, match="unknown method 'adam'; use one of lbfgs, gd, sgd"):
        energy_floor([10], method="adam")
    with pytest.raises(ValueError, match="needs a size, at least 2 disorders"):
        energy_floor([10], disorders=1)


@pytest.mark.slow
def test_the_floor_against_size():
    """Facts B6: mean ± sd over starts and disorders at n = 25, 50, 100."""
    found = energy_floor([25, 50, 100], disorders=8, starts=8, seed=0)
    for at, mean, spread in zip(
        found.sizes, (-1.465, -1.515, -1.557), (0.101, 0.063, 0.035), strict=True
    ):
        assert at.certified == 64
        assert (at.lowest > 0).all()
        assert abs(at.mean.value - mean) < 4 * at.mean.stderr
        assert 0.5 < at.spread / spread < 2
    means = [at.mean.value for at in found.sizes]
    assert means == sorted(means, reverse=True)
    low = [at.lowest.mean() for at in found.sizes]
    assert low == sorted(low, reverse=True)
    assert found.threshold in found.fits["n^-1/2"]


@pytest.mark.calibration
def test_the_exponent_of_relaxation_is_covered(calibration):
    hits = sum(2 / 3 in planted(seed).fit(floor=-1.63).exponent for seed in calibration.seeds)
    calibration.check("exponent of a planted relaxation, 12 disorders", hits)


@pytest.mark.calibration
def test_the_extrapolated_floor_is_covered(calibration):
    hits = sum(-1.633 in _extrapolate(planted_floor(s, 0.5), 0.5) for s in calibration.seeds)
    calibration.check("floor extrapolated from 4 sizes of 8 disorders", hits)
