"""A funnel where there is one, none where there is none, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from thalweg.theory.funnel import funnel
from thalweg.theory.spin_glass.model import SphericalPSpin

F64 = torch.float64


def cloud(count, dim, seed):
    return torch.randn(count, dim, dtype=F64, generator=torch.Generator().manual_seed(seed))


def descents(glass, count, seed):
    """The ends of gradient descents, on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.stack([glass.start(generator) for _ in range(count)])
    for _ in range(300):
        theta = glass.project(theta - 0.1 * glass.n * glass.gradient(theta))
    return theta, glass.loss(theta)


def test_a_rough_bowl_is_a_funnel():
    x = cloud(100, 20, 0)
    energies = (x**2).sum(1) + cloud(1, 100, 1)[0]
    found = funnel(x, energies, torch.zeros(20, dtype=F64), 0.0, measure="distance")
    assert found.present
    assert found.correlation.value < -0.9
    assert "a funnel" in str(found)


def test_an_inverted_bowl_is_the_opposite():
    x = cloud(60, 5, 2)
    found = funnel(x, -(x**2).sum(1), torch.zeros(5, dtype=F64), -99.0, measure="distance")
    assert not found.present
    assert "opposite of a funnel" in str(found)


@pytest.mark.slow
def test_a_spin_glass_is_no_funnel_beyond_its_covariance():
    """Given H(s) = n u, the mean energy at overlap q with s is u q^3, and there is no more.

    That is a weak fall at n = 80: the correlation is some -0.2, where a rough bowl has -0.9.
    """
    n, slopes, correlations = 80, [], []
    for seed in range(30, 38):
        glass = SphericalPSpin(n, 3, seed=seed)
        ends, energies = descents(glass, 40, seed=1)
        best = int(energies.argmin())
        overlap = ends @ ends[best] / n
        rest = overlap < 0.99
        lowest = float(energies[best])
        found = funnel(ends[rest], energies[rest], ends[best], lowest)
        assert found.gap_ratio.value > 0
        correlations.append(found.correlation.value)
        given = lowest * overlap[rest].numpy() ** 3
        slopes.append(np.polyfit(given, energies[rest].numpy(), 1)[0])
    error = np.std(slopes, ddof=1) / math.sqrt(8)
    assert np.mean(slopes) < 1 + 3.5 * error
    assert error < 1  # so that a slope of 5 would be refused
    assert np.mean(correlations) > -0.5


@pytest.mark.slow
def test_ends_at_the_solution_itself_would_fake_a_funnel():
    glass = SphericalPSpin(60, 3, seed=1)  # so small that descents meet again
    ends, energies = descents(glass, 60, seed=1)
    best = int(energies.argmin())
    rest = torch.arange(60) != best
    with pytest.raises(ValueError, match="the solution itself"):
        funnel(ends[rest], energies[rest], ends[best], float(energies[best]))


def test_the_correlation_is_numpy_s_and_its_error_fisher_s():
    x, energies = cloud(30, 4, 3), cloud(1, 30, 4)[0]
    solution = cloud(1, 4, 5)[0]
    found = funnel(x, energies, solution, -5.0)
    cosine = (x @ solution) / x.norm(dim=1) / solution.norm()
    expected = np.corrcoef(cosine.numpy(), energies.numpy())[0, 1]
    assert found.correlation.value == pytest.approx(expected)
    low, high = found.correlation.interval
    middle = (math.atanh(low) + math.atanh(high)) / 2
    assert middle == pytest.approx(math.atanh(expected))
    assert found.gap_ratio.value == pytest.approx(float((energies.mean() + 5) / energies.std()))
    folded = funnel(x, energies, solution, -5.0, signless=True)
    assert folded.correlation.value != found.correlation.value


def test_refusals():
    x, e = cloud(10, 3, 0), cloud(1, 10, 1)[0]
    with pytest.raises(ValueError, match=r"points \[4\] are the solution itself"):
        funnel(x, e, x[4], float(e[4]))
    with pytest.raises(ValueError, match="at least 5 points"):
        funnel(x[:4], e[:4], torch.zeros(3, dtype=F64), 0.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        funnel(x, e * math.nan, torch.zeros(3, dtype=F64), 0.0)
    with pytest.raises(ValueError, match="no roughness"):
        funnel(x, torch.ones(10, dtype=F64), torch.zeros(3, dtype=F64), 0.0, measure="distance")


@pytest.mark.calibration
def test_both_intervals_cover(calibration):
    correlation = ratio = 0
    for seed in calibration.seeds:
        rng = np.random.default_rng(seed)
        closeness, noise = rng.standard_normal((2, 25))
        energies = torch.tensor(-0.6 * closeness + 0.8 * noise)
        distance = torch.tensor(closeness)  # on a line, far to the left of all points
        points = (distance + 100)[:, None]
        found = funnel(-points, energies, torch.zeros(1, dtype=F64), -3.0, measure="distance")
        correlation += 0.6 in found.correlation
        ratio += 3.0 in found.gap_ratio
    calibration.check("funnel: correlation, 25 Gaussian points", correlation)
    calibration.check("funnel: gap over roughness, 25 Gaussian points", ratio)
