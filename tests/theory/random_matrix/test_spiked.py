"""Spikes: outliers and overlaps against dense matrices, and the transition located."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.theory.random_matrix.free import pennington_bahri
from thalweg.theory.random_matrix.marchenko_pastur import MarchenkoPastur
from thalweg.theory.random_matrix.semicircle import Semicircle
from thalweg.theory.random_matrix.spiked import (
    locate_transition,
    spiked_law,
    spiked_overlaps,
    spiked_wigner,
    spiked_wishart,
)

STRENGTHS = np.linspace(0.6, 1.4, 7).tolist()


def test_the_general_rule_contains_the_special_one() -> None:
    for strength in (-2.5, 1.2, 3.0):
        general = spiked_law(Semicircle(radius=2.0), strength)
        special = spiked_wigner(strength)
        assert general.location == pytest.approx(special.location, abs=1e-7)
        assert general.overlap == pytest.approx(special.overlap, abs=1e-6)
    inside = spiked_law(Semicircle(radius=3.0), 1.4)
    assert not inside.detached
    assert inside.threshold == pytest.approx(1.5, abs=1e-4)
    assert inside.overlap == 0


def test_wigner_spikes_in_dense_matrices() -> None:
    n, rng = 400, np.random.default_rng(0)
    w = rng.standard_normal((n, n))
    v = rng.standard_normal(n)
    v /= np.linalg.norm(v)
    base = (w + w.T) * 0.5 / math.sqrt(2 * n)
    values, vectors = np.linalg.eigh(base - 1.0 * np.outer(v, v))
    found = spiked_wigner(-1.0, sigma=0.5)
    assert values[0] == pytest.approx(found.location, abs=0.1)
    assert (vectors[:, 0] @ v) ** 2 == pytest.approx(found.overlap, abs=0.08)
    assert found.location == -1.25


def test_the_tridiagonal_spike_is_the_dense_one() -> None:
    values, overlaps = spiked_overlaps(200, 1.5, 200, seed=1)
    found = spiked_wigner(1.5)
    assert values.mean() == pytest.approx(found.location, abs=0.03)
    assert overlaps.mean() == pytest.approx(found.overlap, abs=0.03)
    # the variance of the outlier is 2 (1 - 1/theta^2) / n
    assert values.var() * 200 == pytest.approx(2 * (1 - 1 / 1.5**2), rel=0.35)
    hidden, lost = spiked_overlaps(200, 0.3, 50, seed=1)
    assert hidden.mean() == pytest.approx(2, abs=0.1)
    assert lost.mean() < 0.05


@pytest.mark.parametrize("strength", [3.0, 0.1])
def test_wishart_spikes_in_dense_matrices(strength: float) -> None:
    n, m, rng = 300, 900, np.random.default_rng(1)
    x = rng.standard_normal((n, m)) * math.sqrt(2.0)
    x[0] *= math.sqrt(strength)
    values, vectors = np.linalg.eigh(x @ x.T / m)
    found = spiked_wishart(strength, n / m, sigma2=2.0)
    place = -1 if strength > 1 else 0
    assert found.detached
    assert values[place] == pytest.approx(found.location, rel=0.1)
    assert vectors[0, place] ** 2 == pytest.approx(found.overlap, abs=0.08)


def test_weak_spikes_stay_in_the_bulk() -> None:
    found = spiked_wishart(1.5, 0.5)
    assert not found.detached
    assert found.location == pytest.approx((1 + math.sqrt(0.5)) ** 2)
    assert "stays in the bulk" in str(found)
    assert not spiked_wishart(0.1, 2.0).detached
    assert "squared overlap" in str(spiked_wigner(3.0))


@pytest.mark.slow
def test_a_spike_on_a_free_sum() -> None:
    n, energy, rng = 400, 0.1, np.random.default_rng(2)
    x, w = rng.standard_normal((n, 2 * n)), rng.standard_normal((n, n))
    base = x @ x.T / (2 * n) + (w + w.T) * math.sqrt(energy / n)
    base[0, 0] += 3.0
    values, vectors = np.linalg.eigh(base)
    found = spiked_law(pennington_bahri(energy, 0.5), 3.0)
    assert values[-1] == pytest.approx(found.location, abs=0.25)
    assert vectors[0, -1] ** 2 == pytest.approx(found.overlap, abs=0.05)
    assert found.location > 4
    # an atom at the left edge gives way to any spike
    assert spiked_law(MarchenkoPastur(2.0), -0.5).threshold == 0


@pytest.mark.slow
def test_the_transition_is_located_within_its_interval() -> None:
    found = locate_transition(STRENGTHS, sizes=(50, 200), samples=100, seed=0)
    assert 1.0 in found
    assert found.half_width < 0.1
    assert found.seed == 0
    # the interval never shrinks below what the sizes allow
    assert found.half_width > 0.2 * (50 * 200) ** (-1 / 3)


@pytest.mark.slow
def test_the_crossing_of_small_sizes_is_off_by_no_more_than_is_allowed_for() -> None:
    found = locate_transition(STRENGTHS, sizes=(20, 80), samples=3000, seed=1)
    assert abs(found.value - 1) < 0.2 * (20 * 80) ** (-1 / 3) + 3 * found.stderr


@pytest.mark.calibration
def test_the_interval_of_the_transition(calibration) -> None:
    hits = sum(
        1.0 in locate_transition(STRENGTHS, sizes=(30, 120), samples=40, seed=seed)
        for seed in calibration.seeds
    )
    calibration.check("BBP transition, n = 30 and 120", hits)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="sigma must be positive"):
        spiked_wigner(1.0, sigma=0.0)
    with pytest.raises(ValueError, match="strength must be finite, not nan"):
        spiked_wigner(math.nan)
    with pytest.raises(ValueError, match="ratio must be positive"):
        spiked_wishart(2.0, -1.0)
    with pytest.raises(ValueError, match="strength 0 is none"):
        spiked_law(Semicircle(), 0.0)
    with pytest.raises(ValueError, match="n=1 must be at least 2"):
        spiked_overlaps(1, 1.0, 5)
    with pytest.raises(ValueError, match="needs five strengths and rising sizes, got 2"):
        locate_transition([0.5, 1.5])
    with pytest.raises(ValueError, match="do not cross for strengths from 2 to 3"):
        locate_transition(np.linspace(2, 3, 5).tolist(), sizes=(20, 60), samples=20, seed=0)
