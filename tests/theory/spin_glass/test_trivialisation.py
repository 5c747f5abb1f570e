"""A random field leaves one minimum and one maximum: counted, and against Kac-Rice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from thalweg.theory.spin_glass.kac_rice import expected_critical_points
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.thresholds import trivialising_field
from thalweg.theory.spin_glass.trivialisation import circle_critical_points, trivialisation


def test_the_trivialising_field_is_where_kac_rice_gives_2n():
    assert trivialising_field(2) == 0
    for p in (3, 4, 5):
        mixture = {1: math.sqrt(trivialising_field(p)), p: 1.0}
        assert expected_critical_points(7, mixture).value == pytest.approx(14, rel=1e-9)


@pytest.mark.parametrize("p", [2, 3, 4])
def test_the_circle_s_points_are_critical_and_all(p):
    for seed in range(8):
        glass = SphericalPSpin(2, {1: 0.5, p: 1.0}, seed=seed)
        angles = circle_critical_points(glass, degree=p)
        points = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1))
        assert float(glass.gradient(points).norm(dim=1).max()) < 1e-7
        fine = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
        along = glass.loss(torch.stack([fine.cos(), fine.sin()], 1)).diff().sign()
        turns = int((along != along.roll(1)).sum())
        assert len(angles) == turns
        assert len(angles) % 2 == 0


@pytest.mark.slow
def test_the_counts_on_the_circle_have_the_exact_means():
    found = trivialisation(2, 3, [0.0, 1.0, 4.0], disorders=200, level=0.999, seed=1)
    closed = [2 * math.sqrt((21 + s * s) / (3 + s * s)) for s in (0.0, 1.0, 4.0)]
    assert found.expected == pytest.approx(closed)
    for exact, mean in zip(closed, found.means, strict=True):
        assert exact in mean
        assert 1.3 * exact not in mean
    assert found.complete
    assert (found.minima * 2 == found.counts).all()  # they alternate with maxima


@pytest.mark.slow
def test_few_spins_completely():
    found = trivialisation(3, 3, [0.0, 20.0], disorders=15, level=0.999, seed=2)
    assert found.complete
    assert float(found.expected[0]) in found.means[0]
    assert (found.counts[1] == 2).all()
    assert (found.minima[1] == 1).all()
    assert found.trivial[1].value == 1.0
    assert math.isnan(found.means[1].stderr)  # no spread was seen, so no error is known
    assert "homotopy" in str(found)
    assert found.to_json()["complete"] is True


@pytest.mark.slow
def test_four_spins_completely():
    seen = []
    found = trivialisation(
        4, 3, [1.0, 2.0], disorders=100, level=0.999, seed=100, progress=lambda f, w: seen.append(f)
    )
    for exact, mean in zip(found.expected.tolist(), found.means, strict=True):
        assert exact in mean
        assert 1.5 * exact not in mean
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.slow
def test_ten_spins_above_the_transition():
    found = trivialisation(10, 3, [50.0**0.5], disorders=12, starts=20, seed=3)
    assert found.expected[0] == pytest.approx(2.010, abs=5e-4)
    assert found.trivial[0].interval[1] == 1.0
    assert (found.minima >= 1).all()
    assert not found.complete
    assert "lower bounds; raise starts" in str(found)


def test_refusals():
    with pytest.raises(ValueError, match="none negative"):
        trivialisation(3, 3, [-1.0])
    with pytest.raises(ValueError, match="two disorders"):
        trivialisation(3, 3, [1.0], disorders=1)
    with pytest.raises(ValueError, match="at least 2"):
        trivialisation(1, 3, [1.0])
    with pytest.raises(ValueError, match="does not apply to 3 spins"):
        trivialisation(3, 3, [1.0], method="circle")
    with pytest.raises(ValueError, match="two spins live on a circle"):
        circle_critical_points(SphericalPSpin(3, 3, seed=0), degree=3)
