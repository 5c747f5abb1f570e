"""The spiked tensor: the landscape, its transition, and its critical points by overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from thalweg.landscape import Landscape
from thalweg.theory.spin_glass.enumeration import enumerate_samples
from thalweg.theory.spin_glass.kac_rice import expected_critical_points
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.trivialisation import circle_critical_points
from thalweg.theory.tensors.overlap_counts import expected_counts_by_overlap, overlap_complexity
from thalweg.theory.tensors.recovery import spike_recovery
from thalweg.theory.tensors.spiked import (
    SpikedTensor,
    maximum_likelihood,
    maximum_likelihood_threshold,
    metastable_threshold,
    second_moment_threshold,
)

F64 = torch.float64


@pytest.mark.parametrize("p", [2, 3, 4])
def test_the_landscape_is_noise_less_the_spike(p):
    land = SpikedTensor(6, p, 1.5, seed=3)
    quiet = SpikedTensor(6, p, 0.0, seed=3)
    assert isinstance(land, Landscape)
    theta = torch.randn(5, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    m = land.overlap(theta)
    assert torch.allclose(land.loss(theta), quiet.loss(theta) - 1.5 * m**p, atol=1e-12)
    x = theta[0] / theta[0].norm()
    value = land.tensor()
    for _ in range(p):
        value = value @ x
    assert float(value) == pytest.approx(-float(land.loss(x)))
    leaf = theta[0].clone().requires_grad_()
    unit = leaf / leaf.norm()
    dense = -land.tensor()
    for _ in range(p):
        dense = dense @ unit
    (gradient,) = torch.autograd.grad(dense, leaf)
    assert torch.allclose(land.gradient(theta[0]), gradient, atol=1e-12)
    with land.at(theta[0]) as point:
        assert float(point.hvp(theta[0]) @ theta[0]) == pytest.approx(0, abs=1e-10)


def test_a_matrix_has_the_bbp_transition():
    strong, n = SpikedTensor(400, 2, 1.5, seed=0), 400
    values, vectors = torch.linalg.eigh(strong.tensor())
    limit = maximum_likelihood(2, 1.5)
    assert float(values[-1]) == pytest.approx(-limit.energy, abs=4 * n**-0.5)
    assert float((vectors[:, -1] @ strong.spike) ** 2) == pytest.approx(limit.overlap**2, abs=0.1)
    weak = torch.linalg.eigh(SpikedTensor(400, 2, 0.5, seed=0).tensor())
    assert float(weak[0][-1]) == pytest.approx(math.sqrt(2), abs=0.1)
    assert maximum_likelihood(2, 0.5).overlap == 0
    assert maximum_likelihood_threshold(2).snr == pytest.approx(math.sqrt(0.5))
    assert "no overlap" in str(maximum_likelihood(2, 0.5))


@pytest.mark.parametrize("p", [3, 4, 5, 8])
def test_likelihood_and_information_have_one_threshold(p):
    found = maximum_likelihood_threshold(p)
    q = found.overlap**2
    assert found.snr**2 * q**p + math.log1p(-q) + q == pytest.approx(0, abs=1e-12)
    m = np.linspace(0, 1, 200_001)  # the variational formula on a grid
    branch = found.snr * m**p + np.sqrt(p * (1 - m**2))
    high = m**2 >= (p - 2) / (p - 1)
    assert branch[high].max() == pytest.approx(-found.energy, abs=1e-9)
    assert second_moment_threshold(p) < found.snr
    assert metastable_threshold(p).snr < found.snr


def test_published_thresholds():
    assert math.sqrt(6) * maximum_likelihood_threshold(3).snr == pytest.approx(2.955, abs=1e-3)
    # the informative minimum is born at the level where descents into noise stop
    for p, level in ((3, 1.632993), (4, 1.732051)):
        assert -metastable_threshold(p).energy == pytest.approx(level, abs=1e-6)
    assert -maximum_likelihood_threshold(4).energy == pytest.approx(1.794085, abs=1e-6)


def test_above_the_threshold_the_overlap_maximises_the_formula():
    for p, snr in ((3, 1.3), (3, 5.0), (4, 2.0)):
        found = maximum_likelihood(p, snr)
        best = optimize.minimize_scalar(
            lambda m, p=p, snr=snr: -(snr * m**p + math.sqrt(p * (1 - m * m))),
            bounds=(math.sqrt((p - 2) / (p - 1)), 1 - 1e-9),
            method="bounded",
            options={"xatol": 1e-12},
        )
        assert found.overlap == pytest.approx(best.x, abs=1e-6)
        assert found.energy == pytest.approx(best.fun, abs=1e-10)
        assert overlap_complexity(p, snr, found.overlap, found.energy) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_descent_from_the_spike_ends_where_the_theory_says():
    energies, overlaps = [], []
    for seed in range(6):
        land = SpikedTensor(100, 3, 1.6, seed=seed)
        theta = land.spike * 10
        for _ in range(150):
            theta = land.project(theta - 0.1 * 100 * land.gradient(theta))
        energies.append(float(land.loss(theta)))
        overlaps.append(float(land.overlap(theta)))
    limit = maximum_likelihood(3, 1.6)
    assert np.mean(energies) == pytest.approx(limit.energy, abs=0.1)
    assert np.mean(overlaps) == pytest.approx(limit.overlap, abs=0.03)


@pytest.mark.parametrize(
    "snr", [0.7, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 3.0))]
)
def test_a_matrix_has_2n_critical_points_at_any_signal(snr):
    found = expected_counts_by_overlap(4, 2, snr, samples=3000, level=0.999, seed=1)
    assert 8.0 in found.total
    assert found.by_index.sum(0) == pytest.approx([2, 2, 2, 2], rel=0.1)


@pytest.mark.parametrize(
    ("n", "p"), [(2, 3), *(pytest.param(*s, marks=pytest.mark.slow) for s in ((3, 4), (5, 3)))]
)
def test_without_a_spike_it_is_the_complexity_of_the_spin_glass(n, p):
    found = expected_counts_by_overlap(n, p, 0.0, samples=4000, level=0.999, seed=2)
    assert expected_critical_points(n, p).value in found.total
    assert 1.2 * expected_critical_points(n, p).value not in found.total
    minima = expected_critical_points(n, p, index=0).value
    assert found.by_index[:, 0].sum() == pytest.approx(minima, rel=0.1)


@pytest.mark.slow
def test_on_the_circle_it_is_what_polynomials_count():
    edges = [1.0, 0.5, 0.0, -0.5, -1.0]
    theory = expected_counts_by_overlap(2, 3, 1.0, edges=edges, samples=4000, seed=3)
    counts = np.zeros((600, 4))
    for seed in range(600):
        land = SpikedTensor(2, 3, 1.0, seed=seed)
        angles = circle_critical_points(land.glass, degree=3)
        m = np.cos(angles) * float(land.spike[0]) + np.sin(angles) * float(land.spike[1])
        counts[seed] = np.histogram(m, bins=edges[::-1])[0][::-1]
    error = np.hypot(counts.std(0, ddof=1) / math.sqrt(600), [b.stderr for b in theory.bins])
    z = (counts.mean(0) - [b.value for b in theory.bins]) / error
    assert np.abs(z).max() < 3.9
    assert "minima" in str(theory)


@pytest.mark.slow
def test_by_overlap_and_index_it_is_what_homotopy_counts():
    edges, samples = [1.0, 0.6, 0.0, -1.0], 150
    theory = expected_counts_by_overlap(4, 3, 1.2, edges=edges, samples=4000, seed=4)
    lands = [SpikedTensor(4, 3, 1.2, seed=seed) for seed in range(samples)]
    rows = np.zeros((samples, 3, 4))
    found = enumerate_samples([land.glass.tensor(3) for land in lands], seed=0)
    for row, land, one in zip(rows, lands, found, strict=True):
        assert one.complete
        m = land.overlap(torch.as_tensor(one.points)).numpy()
        for k in range(4):
            chosen = m[np.asarray(one.indices) == k]
            row[:, k] = np.histogram(chosen, bins=edges[::-1])[0][::-1]
    error = rows.std(0, ddof=1) / math.sqrt(samples) + 0.02 * theory.by_index + 0.02
    assert (np.abs(rows.mean(0) - theory.by_index) < 4 * error).all()


def test_the_complexity_without_a_spike():
    for u in (-1.2, 0.0, 0.7):
        expected = 0.5 * math.log(2) - u * u / 8
        assert overlap_complexity(3, 0.0, 0.0, u) == pytest.approx(expected)
    assert overlap_complexity(3, 0.0, 0.0) == pytest.approx(0.5 * math.log(2), abs=1e-9)
    assert overlap_complexity(3, 3.0, 0.5) < overlap_complexity(3, 3.0, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["power", "gradient"])
def test_recovery_needs_a_signal(method):
    found = spike_recovery(3, [8, 16], [0.3, 3.0, 30.0], trials=20, method=method, seed=0)
    assert found.rate(1, 0).value < 0.5
    assert found.rate(1, 2).value > 0.8
    assert 0.3 < found.transition(1).value < 30
    assert "half succeed" in str(found)
    again = spike_recovery(3, [8, 16], [0.3, 3.0, 30.0], trials=20, method=method, seed=0)
    assert np.array_equal(found.found, again.found)


def test_a_transition_off_the_grid_is_not_made_up():
    found = spike_recovery(3, [8], [50.0, 100.0], trials=10, steps=50, seed=0)
    assert math.isnan(found.transition(0).value)
    assert "not on this grid: widen snrs" in str(found)
    with pytest.raises(ValueError, match="three sizes"):
        found.exponent()


@pytest.mark.slow
def test_a_matrix_is_recovered_from_the_bbp_transition_on():
    found = spike_recovery(
        2, [150], [0.4, 0.6, 0.8, 1.0, 1.4], trials=20, steps=300, threshold=0.3, seed=0
    )
    half = found.transition(0)
    # at n = 150 the transition is smeared by n^(-1/3)
    assert half.value == pytest.approx(math.sqrt(0.5), abs=0.5 * 150 ** (-1 / 3))
    assert half.interval[0] < half.value < half.interval[1]


def test_refusals():
    with pytest.raises(ValueError, match="snr must be a finite number"):
        SpikedTensor(4, 3, -1.0)
    with pytest.raises(ValueError, match="p must be at least 2"):
        SpikedTensor(4, 1, 1.0)
    with pytest.raises(ValueError, match="at 2 there is one transition"):
        metastable_threshold(2)
    with pytest.raises(ValueError, match=r"edges must fall within"):
        expected_counts_by_overlap(4, 3, 1.0, edges=[-1.0, 1.0])
    with pytest.raises(ValueError, match=r"\|overlap\| below 1"):
        overlap_complexity(3, 1.0, 1.0)
    with pytest.raises(ValueError, match="must be positive and rise"):
        spike_recovery(3, [8], [1.0, 0.5])
    with pytest.raises(ValueError, match="trials = 0"):
        spike_recovery(3, [8], [1.0], trials=0)
    assert SphericalPSpin(3, 3, seed=0).n == 3
