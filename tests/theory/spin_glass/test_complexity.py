"""Complexity, levels, bands and ground states against printed values and direct integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rich.console import Console
from scipy.integrate import quad

from thalweg.theory.spin_glass.complexity import (
    asymptotic_log_count,
    complexity,
    energy_bands,
    energy_level,
    ground_state_energy,
    largest_index,
)
from thalweg.theory.spin_glass.kac_rice import expected_critical_points
from thalweg.theory.spin_glass.thresholds import (
    algorithmic_energy,
    one_step_ground_state,
    threshold_energy,
    trivialising_field,
)

LEVELS = {
    3: (1.656998, 1.652873, 1.650253, 1.648399, 1.646999, 1.645893),
    4: (1.794085, 1.783300, 1.776478, 1.771662, 1.768032, 1.765171),
}


@pytest.mark.parametrize(
    ("p", "edge", "plateau"), [(3, 1.632993, 0.013240), (4, 1.732051, 0.049306)]
)
def test_published_levels(p, edge, plateau):
    assert threshold_energy(p) == pytest.approx(edge, abs=5e-7)
    assert [energy_level(p, k) for k in range(6)] == pytest.approx(LEVELS[p], abs=6e-7)
    for k in (0, 3):
        assert complexity(-edge + 0.1, p, k) == pytest.approx(plateau, abs=5e-7)
        assert complexity(-energy_level(p, k), p, k) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("p", [2, 3, 4, 5, 7, 12, 40, 300])
def test_ground_state_two_ways(p):
    broken = one_step_ground_state(p)
    assert broken.valid
    assert broken.energy == pytest.approx(ground_state_energy(p), abs=1e-12)
    assert algorithmic_energy(p) == pytest.approx(threshold_energy(p), abs=1e-11)
    assert ground_state_energy(p) >= threshold_energy(p)


def test_step_of_the_3_spin():
    z = one_step_ground_state(3).ratio
    assert z == pytest.approx(1.8170, abs=5e-5)
    assert (1 + z) * math.log1p(z) / z**2 - 1 / z == pytest.approx(1 / 3, abs=1e-7)
    assert (3 + z) / math.sqrt(3 * (1 + z)) == pytest.approx(ground_state_energy(3), abs=1e-12)


@pytest.mark.slow
def test_ground_state_with_a_field():
    """Symmetric exactly where the field trivialises; continuous there; sqrt(xi'(1)) beyond."""
    assert trivialising_field(3) == 3.0
    assert trivialising_field({1: 5.0, 4: 1.0}) == 8.0
    strong = one_step_ground_state({1: 1.8, 3: 1.0})
    assert strong.kind == "symmetric"
    assert strong.valid
    assert strong.energy == pytest.approx(math.sqrt(3 + 1.8**2), abs=1e-12)
    weak = one_step_ground_state({1: 1.6, 3: 1.0})
    assert weak.kind == "one step"
    assert weak.valid
    assert weak.overlap > 0
    assert ground_state_energy(3) < weak.energy < math.sqrt(3 + 1.6**2)
    assert one_step_ground_state({1: 1e-4, 3: 1.0}).energy == pytest.approx(
        ground_state_energy(3), abs=1e-6
    )


def test_one_step_says_when_it_is_not_enough():
    """Near p = 2 with a weak 4 the order is of full breaking (xi''^(-1/2) is concave)."""
    full = one_step_ground_state({2: 1.0, 4: 0.3})
    assert not full.valid
    assert "ground state not below -1.53" in str(full)
    # full breaking is solved in closed form: the energy is then the algorithmic one
    assert 0 < full.energy - algorithmic_energy({2: 1.0, 4: 0.3}) < 2e-4
    assert one_step_ground_state({2: 1.0}).energy == pytest.approx(math.sqrt(2))
    assert full.to_json()["valid"] is False


def test_rate_is_the_integral_of_the_semicircle():
    """I(u) = int_1^t 2 sqrt(x^2 - 1) dx and the parabola, against quadrature."""
    for p, u in ((3, -1.7), (5, -2.4), (3, -1.633)):
        edge = threshold_energy(p)
        rate = quad(lambda x: 2 * math.sqrt(x * x - 1), 1, -u / edge)[0]
        parabola = 0.5 * math.log(p - 1) - (p - 2) * u * u / (4 * (p - 1))
        assert complexity(u, p) == pytest.approx(parabola - rate, abs=1e-10)
        assert complexity(u, p, 4) == pytest.approx(parabola - 5 * rate, abs=1e-10)


def test_complexity_is_monotone_and_continuous():
    u = np.linspace(-2.2, 0.5, 3001)
    for k in (None, 0, 1, 7):
        theta = complexity(u, 3, k)
        assert theta.shape == u.shape
        assert (np.diff(theta) > -1e-14).all()
        assert np.diff(theta).max() < 0.02
    assert (complexity(u, 3, 0) <= complexity(u, 3) + 1e-15).all()
    assert complexity(3.0, 3) == pytest.approx(math.log(2) / 2)
    assert math.isnan(complexity(math.nan, 3))


def test_levels_decrease_to_the_threshold():
    levels = [energy_level(5, k) for k in (0, 1, 2, 10, 100, 10_000)]
    assert levels == sorted(levels, reverse=True)
    assert threshold_energy(5) < levels[-1] < threshold_energy(5) + 1e-3
    assert energy_level(2, 0) == energy_level(2, 9) == math.sqrt(2)


def test_bands():
    levels = np.array(LEVELS[3])
    inside = -(levels[:-1] + levels[1:]) / 2
    np.testing.assert_array_equal(largest_index(inside, 3), np.arange(5.0))
    assert largest_index(-1.66, 3) == -1
    assert largest_index(-1.6, 3) == math.inf
    assert math.isnan(largest_index(math.nan, 3))
    bands = energy_bands(3, 2)
    console = Console(width=100)
    with console.capture() as shown:
        console.print(bands)
    for text in (str(bands), shown.get()):
        assert "-1.656998 to -1.652873" in text
        assert "nothing" in text


@pytest.mark.parametrize("u", [-1.66, -threshold_energy(3), -1.2, math.inf])
def test_exact_counts_approach_the_sharp_asymptotics(u):
    ratios = []
    for n in (100, 800):
        exact = expected_critical_points(n, 3, below=u)
        ratios.append(math.exp(exact.log - asymptotic_log_count(n, 3, u)))
    assert abs(ratios[1] - 1) < 0.62 * abs(ratios[0] - 1)
    assert abs(ratios[1] - 1) < 0.3


def test_published_ratios_of_the_total():
    for n, ratio in ((50, 0.980), (100, 0.990), (200, 0.995)):
        exact = expected_critical_points(n, 3).log
        assert math.exp(exact - asymptotic_log_count(n, 3)) == pytest.approx(ratio, abs=6e-4)


def test_counts_grow_with_the_complexity():
    """(1/n) log count -> Theta, the gap explained by the power and constant to 1e-3."""
    for u in (-1.7, -1.4, -0.5):
        log = expected_critical_points(400, 3, below=u).log
        assert log / 400 == pytest.approx(complexity(u, 3), abs=0.02)
        assert log / 400 == pytest.approx(asymptotic_log_count(400, 3, u) / 400, abs=1e-3)


def test_errors(unchecked):
    with pytest.raises(ValueError, match="integer of at least 2, got 1"):
        threshold_energy(1)
    with pytest.raises(ValueError, match=r"integer of at least 2, got 2\.5"):
        complexity(-1.0, 2.5)
    with pytest.raises(ValueError, match="an index is 0 or more, got -1"):
        complexity(-1.0, 3, -1)
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        energy_bands(3, 0)
    with pytest.raises(ValueError, match="holds without a random field"):
        algorithmic_energy({1: 1.0, 3: 1.0})
    with pytest.raises(ValueError, match="need p >= 3 and an energy off 0"):
        asymptotic_log_count(10, 2)
