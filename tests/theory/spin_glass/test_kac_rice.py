"""Expected numbers of critical points: closed forms, printed values, naive Kac-Rice."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.special import airy, gammaln

from thalweg.theory.random_matrix.ensembles import goe_eigenvalues, goe_matrices
from thalweg.theory.spin_glass.kac_rice import (
    critical_energy_log_density,
    expected_critical_points,
)
from thalweg.theory.spin_glass.mixture import Mixture
from thalweg.theory.spin_glass.one_point import index_probabilities, log_one_point
from thalweg.theory.spin_glass.tilted import log_mean_at_eigenvalue

TOTALS = [
    (3, {2: 5.2915, 3: 10.5524, 4: 18.7902, 5: 31.4969, 10: 286.92}),
    (4, {2: 6.3246, 3: 15.1453, 4: 32.5082}),
]
BY_INDEX = [
    (3, 3, (3.138, 4.276, 3.138)),
    (4, 3, (3.58, 5.82, 5.82, 3.58)),
    (5, 3, (4.005, 7.375, 8.749, 7.375, 4.005)),
    (3, 4, (4.285, 6.570, 4.285)),
    (4, 4, (5.48, 10.77, 10.77, 5.48)),
]
FIELDS = [(10, 0, 286.92), (10, 1.5, 56.60), (10, 3, 20.0), (10, 6, 6.198), (10, 12, 2.778)]
FIELDS += [(10, 50, 2.010), (25, 6, 4.266), (25, 12, 2.180)]


def with_field(p, square):
    return {1: math.sqrt(square), p: 1.0} if square else p


@pytest.mark.parametrize(("p", "totals"), TOTALS)
def test_printed_totals(p, totals):
    for n, total in totals.items():
        digits = 0.006 if total > 100 else 6e-5
        assert expected_critical_points(n, p).value == pytest.approx(total, abs=digits)


@pytest.mark.parametrize("n", [2, 3, 8, 15, 20, 101, 1000])
def test_two_spin_has_two_points_per_dimension(n):
    found = expected_critical_points(n, 2)
    assert found.value == pytest.approx(2 * n, rel=1e-10)
    assert 2 * n in found
    assert found.exact
    if n <= 15:
        for k in {0, n // 2, n - 1}:
            assert expected_critical_points(n, 2, index=k).value == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize("p", [2, 3, 4, 9])
@pytest.mark.parametrize("square", [0.0, 0.3, 40.0])
def test_circle(p, square):
    """2 sqrt((p (3 p - 2) + s^2)/(p + s^2)), half of them minima: the Rice formula."""
    total = 2 * math.sqrt((p * (3 * p - 2) + square) / (p + square))
    mixture = with_field(p, square)
    assert expected_critical_points(2, mixture).value == pytest.approx(total, rel=1e-11)
    assert expected_critical_points(2, mixture, index=0).value == pytest.approx(total / 2, rel=1e-9)


@pytest.mark.parametrize(("n", "square", "total"), FIELDS)
def test_printed_totals_in_a_field(n, square, total):
    found = expected_critical_points(n, with_field(3, square)).value
    assert found == pytest.approx(total, abs=0.006 if total > 20 else 6e-4)


@pytest.mark.parametrize(("n", "p", "counts"), BY_INDEX)
def test_printed_counts_by_index(n, p, counts):
    """The printed values are of 4e5 matrices: within three of their standard errors."""
    for k, printed in enumerate(counts):
        exact = expected_critical_points(n, p, index=k).value
        assert exact == pytest.approx(printed, rel=3e-3)


def test_three_spins_by_euler():
    for p in (3, 4, 6):
        total = expected_critical_points(3, p).value
        found = [expected_critical_points(3, p, index=k).value for k in range(3)]
        assert found == pytest.approx(
            [(total + 2) / 4, (total - 2) / 2, (total + 2) / 4], rel=1e-10
        )


@pytest.mark.parametrize(
    "mixture",
    [
        3,
        *(pytest.param(m, marks=pytest.mark.slow) for m in (4, {1: 0.7, 3: 1.0}, {2: 0.5, 5: 0.8})),
    ],
)
def test_euler_and_the_sum(mixture):
    for n in (4, 7, 10):
        found = np.array([expected_critical_points(n, mixture, index=k).value for k in range(n)])
        assert found.sum() == pytest.approx(expected_critical_points(n, mixture).value, rel=1e-9)
        assert (found * (-1.0) ** np.arange(n)).sum() == pytest.approx(
            1 + (-1) ** (n - 1), abs=1e-9 * found.sum()
        )
        np.testing.assert_allclose(found, found[::-1], rtol=1e-8)


def naive_counts(n, p, below, samples, seed):
    """Kac-Rice as it stands: gradient density, dense Hessians, their determinants and indices."""
    xi = Mixture.of(p)
    value, slope, curve = xi.xi(1.0), xi.slope(1.0), xi.curvature(1.0)
    rng = np.random.default_rng(seed)
    radial = rng.standard_normal(samples) * math.sqrt((slope + curve) / n)
    rest = max(value - slope**2 / (slope + curve), 0.0)
    energy = slope / (slope + curve) * radial
    energy = energy + rng.standard_normal(samples) * math.sqrt(rest / n)
    G = goe_matrices(n - 1, samples, radius=2 * math.sqrt((n - 1) / n), seed=seed)
    values = np.linalg.eigvalsh(math.sqrt(curve) * G) - radial[:, None]
    area = math.log(2) + n / 2 * math.log(math.pi) - gammaln(n / 2) + (n - 1) / 2 * math.log(n)
    scale = math.exp(area - (n - 1) / 2 * math.log(2 * math.pi * slope))
    terms = scale * np.abs(values.prod(1)) * (energy <= below)
    index = (values < 0).sum(1)
    rows = np.array([np.where(index == k, terms, 0.0) for k in range(n)])
    return rows.mean(1), rows.std(1) / math.sqrt(samples)


@pytest.mark.parametrize(
    ("n", "p", "below"),
    [
        (3, 3, -0.8),
        (4, 4, math.inf),
        (6, 3, -1.0),
        (4, {1: 1.1, 3: 1.0}, -0.9),
        (5, {2: 0.8, 4: 0.6}, -0.4),
    ],
)
def test_against_the_unreduced_formula(n, p, below):
    means, errors = naive_counts(n, p, below, 50_000, 11)
    exact = np.array([expected_critical_points(n, p, index=k, below=below).value for k in range(n)])
    seen = means > 5 * errors  # some 25 matrices at least
    assert seen.sum() >= 2
    assert (np.abs(means - exact) < 4.5 * errors)[seen].all()
    total = expected_critical_points(n, p, below=below).value
    assert exact.sum() == pytest.approx(total, rel=1e-8)
    wrong = expected_critical_points(n, p, below=min(below, 0.5) - 0.3).value
    assert abs(means.sum() - wrong) > 4.5 * np.sqrt((errors**2).sum())


def test_density_of_two_eigenvalues():
    """n = 2: integrate |x - t| exp(-(x^2 + t^2)/2) over t, above and below."""
    x = np.array([-3.0, -0.4, 0.0, 1.7])
    t = np.linspace(-14, 14, 400_001)
    joint = np.abs(x[:, None] - t) * np.exp(-(x[:, None] ** 2 + t**2) / 2) * (t[1] - t[0])
    whole = 4 * math.sqrt(math.pi)  # 2 pi times E|x - t|, a Gaussian of variance 2
    density = 2 * joint.sum(1) / whole
    np.testing.assert_allclose(np.exp(log_one_point(x, 2)), density, rtol=1e-7)
    lowest = np.where(t > x[:, None], joint, 0.0).sum(1) / joint.sum(1)
    np.testing.assert_allclose(index_probabilities(x, 2)[:, 0], lowest, atol=1e-7)


def test_density_of_three_eigenvalues():
    """n = 3, on a grid of the other two."""
    x = np.array([-2.0, 0.3])
    t = np.linspace(-8, 8, 1601)
    s = t[:, None]
    for at in x:
        weight = np.abs((s - t) * (s - at) * (t - at)) * np.exp(-(s**2 + t**2) / 2)
        both = np.where((s > at) & (t > at), weight, 0.0).sum() / weight.sum()
        none = np.where((s < at) & (t < at), weight, 0.0).sum() / weight.sum()
        found = index_probabilities(np.array([at]), 3)[0]
        np.testing.assert_allclose(found, [both, 1 - both - none, none], atol=2e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17])
def test_density_against_samples(n):
    values = goe_eigenvalues(n, 4000, radius=math.sqrt(2 * n), seed=n)
    counts, edges = np.histogram(
        values, bins=8, range=(-math.sqrt(2 * n) - 1, math.sqrt(2 * n) + 1)
    )
    x = np.linspace(edges[0], edges[-1], 8001)
    mass = np.exp(log_one_point((x[:-1] + x[1:]) / 2, n)) * (x[1] - x[0])
    expected = mass.reshape(8, -1).sum(1) * 4000
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected) + 3).all()  # rigid: below Poisson


@pytest.mark.parametrize(
    "n", [3, 50, 51, *(pytest.param(n, marks=pytest.mark.slow) for n in (1000, 1001))]
)
def test_density_is_normalised_and_tends_to_the_laws(n):
    edge = math.sqrt(2 * n)
    x = np.linspace(-edge - 12, edge + 12, 40 * n + 2000)
    density = np.exp(log_one_point(x, n))
    assert density.sum() * (x[1] - x[0]) == pytest.approx(n, rel=1e-11)
    assert (density >= 0).all()
    if n >= 1000:
        assert math.exp(log_one_point(np.zeros(1), n)[0]) == pytest.approx(edge / math.pi, rel=2e-3)


def test_density_at_the_edge_tends_to_airy():
    """The gap closes as n^(-1/3): by two from 1000 to 8000."""
    ai, slope, _, _ = airy(0.0)
    gaps = []
    for n in (1000, 8000):
        log = log_one_point(np.array([math.sqrt(2 * n)]), n)[0]
        gaps.append(math.exp(log) / (math.sqrt(2) * n ** (1 / 6)) / (slope**2 + ai / 3) - 1)
    assert abs(gaps[0]) < 0.05
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)


def test_density_far_outside():
    """No underflow: at x >> edge it is that of a lone Gaussian times x^(2(n-1)) / constants."""
    x = np.array([200.0, 400.0])
    for n in (10, 1000, 1001):
        logs = log_one_point(x, n)
        # E |det(x - G)| = x^(n-1) up to order n^2 / x^2
        slope = (logs[1] + x[1] ** 2 / 2) - (logs[0] + x[0] ** 2 / 2)
        correction = (n - 1) * (n - 2) / 4 * (1 / x[0] ** 2 - 1 / x[1] ** 2)
        assert slope == pytest.approx((n - 1) * math.log(2) + correction, abs=0.15)
    assert np.isfinite(log_one_point(np.array([1e4]), 1000)).all()


@pytest.mark.parametrize("n", [4, 9, 15])
def test_index_law_integrates_to_one(n):
    """Each order statistic has mass 1: couples the Pfaffian and the density."""
    reach = math.sqrt(2 * n) + 7
    x = np.linspace(-reach, reach, 60 * n)
    law = np.exp(log_one_point(x, n))[:, None] * index_probabilities(x, n)
    np.testing.assert_allclose(law.sum(0) * (x[1] - x[0]), 1.0, rtol=1e-10)
    means = (x[:, None] * law).sum(0) * (x[1] - x[0])
    drawn = goe_eigenvalues(n, 3000, radius=math.sqrt(2 * n), seed=0)
    assert (np.abs(drawn.mean(0) - means) < 4.5 * drawn.std(0) / math.sqrt(3000)).all()


@pytest.mark.parametrize("mixture", [3, {1: 0.8, 3: 1.0}])
@pytest.mark.parametrize("index", [None, 1])
def test_density_in_energy_integrates_to_the_counts(mixture, index):
    u = np.linspace(-6, 6, 4001)
    density = np.exp(critical_energy_log_density(u, 6, mixture, index))
    step = u[1] - u[0]
    for cut in (-1.2, 0.3):
        below = (
            density[u <= cut - step / 2].sum() * step
            + density[np.abs(u - cut) < step / 2].sum() * step / 2
        )
        exact = expected_critical_points(6, mixture, index, below=cut).value
        assert below == pytest.approx(exact, rel=3e-3)
    whole = expected_critical_points(6, mixture, index).value
    assert density.sum() * step == pytest.approx(whole, rel=1e-8)


def test_energy_ranges_add_up():
    for mixture in (3, {1: 0.5, 2: 0.4, 3: 1.0}):
        low = expected_critical_points(9, mixture, below=-1.1)
        high = expected_critical_points(9, mixture, above=-1.1)
        assert low.value + high.value == pytest.approx(
            expected_critical_points(9, mixture).value, rel=1e-10
        )
        middle = expected_critical_points(9, mixture, below=0.2, above=-1.1).value
        assert 0 < middle < high.value
    none = expected_critical_points(9, 3, below=-1.0, above=0.0)
    assert none.value == 0
    assert expected_critical_points(9, 3, below=-math.inf).value == 0
    # only the covariance's shape matters, and energies scale with it
    scaled = expected_critical_points(9, {3: 2.0}, below=-2.2).value
    assert scaled == pytest.approx(expected_critical_points(9, 3, below=-1.1).value, rel=1e-10)


@pytest.mark.slow
def test_huge_counts_are_logs():
    found = expected_critical_points(3000, 4)
    assert found.value == math.inf
    assert found.log == pytest.approx(3000 * math.log(3) / 2, rel=0.01)
    assert "e+" in str(found)
    stored = json.loads(json.dumps(found.to_json()))
    assert stored["log"] == found.log
    assert expected_critical_points(1000, 3).log == pytest.approx(351.1870, abs=2e-4)


def test_strong_field_leaves_two():
    assert expected_critical_points(500, with_field(3, 30.0)).value == pytest.approx(2, rel=1e-6)
    assert expected_critical_points(400, with_field(3, 3.0)).value == pytest.approx(800, rel=1e-9)


@pytest.mark.parametrize("index", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in (0, 19))])
def test_sampled_counts_hold_the_exact_ones(index):
    exact = expected_critical_points(20, 3, index)
    found = expected_critical_points(20, 3, index, samples=2000, level=0.9999, seed=5)
    assert exact.value in found
    assert not found.exact
    assert found.log_interval[1] - found.log < 0.12
    assert (found.seed, found.samples) == (5, 2000)
    again = expected_critical_points(20, 3, index, samples=2000, level=0.9999, seed=5)
    assert again == found
    assert "2000 matrices" in str(found)


def test_a_rare_range_is_reported_not_guessed():
    found = expected_critical_points(60, 3, 0, below=-2.5, samples=200, seed=0)
    assert found.interval[0] == 0
    assert found.interval[1] >= expected_critical_points(60, 3, below=-2.5).value * (1 - 1e-9)
    assert "drawn too rarely" in str(found)
    far = expected_critical_points(1000, 3, 0, below=-1.66, samples=1000, seed=0)
    assert expected_critical_points(1000, 3, below=-1.66).value in far
    assert far.interval[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("index", "below"), [(0, -1.8), (0, -2.0), (1, -1.7), (3, -1.6)])
def test_the_guard_gives_up_where_the_draws_miss_the_exact_count(index, below):
    """At n = 30, where the exact count is known and plain intervals miss it by far."""
    exact = expected_critical_points(30, 3, index, below)
    for seed in range(5):
        found = expected_critical_points(30, 3, index, below, samples=1000, seed=seed)
        assert found.interval[0] == 0
        assert exact.value in found


def test_likelihood_ratio_averages_to_one():
    for n, k in ((25, 0), (25, 20), (200, 1)):
        found = log_mean_at_eigenvalue(
            n, k, lambda x: np.zeros_like(x), samples=1000, rng=np.random.default_rng(1)
        )
        assert abs(math.expm1(found.log)) < 4.5 * found.relative_error + 1e-12


@pytest.mark.slow
def test_sampling_against_the_exact_law_at_forty(monkeypatch):
    monkeypatch.setattr("thalweg.theory.spin_glass.kac_rice.EXACT_ORDER", 40)
    exact = expected_critical_points(40, 3, 0)
    found = expected_critical_points(40, 3, 0, samples=20_000, level=0.9999, seed=1)
    assert exact.value in found
    assert found.log_interval[1] - found.log < 0.06


@pytest.mark.slow
def test_large_sizes_agree_across_seeds_and_with_the_complexity():
    """At n = 1000 minima below -E_infinity are nearly all points there."""
    first, second = (expected_critical_points(1000, 3, 0, seed=seed) for seed in (1, 2))
    spread = math.hypot(*(f.log_interval[1] - f.log for f in (first, second))) / 1.96
    assert abs(first.log - second.log) < 4 * spread
    for n, below in ((300, -1.645), (1000, -1.645)):
        total = expected_critical_points(n, 3, below=below).value
        assert total in expected_critical_points(n, 3, 0, below, level=0.9999, seed=3)


def test_errors(unchecked):
    with pytest.raises(ValueError, match="a sphere needs n of at least 2, got 1"):
        expected_critical_points(1, 3)
    with pytest.raises(ValueError, match="between 0 and n - 1 = 4, got 5"):
        expected_critical_points(5, 3, index=5)
    with pytest.raises(ValueError, match="only with an index"):
        expected_critical_points(5, 3, samples=1000)
    with pytest.raises(ValueError, match="samples=50: at least 100"):
        expected_critical_points(5, 3, 0, samples=50)
    with pytest.raises(ValueError, match="energies must be numbers"):
        expected_critical_points(5, 3, below=math.nan)
    with pytest.raises(ValueError, match="exact up to n = 30, got n=31"):
        critical_energy_log_density(np.zeros(1), 31, 3, 0)
    with pytest.raises(ValueError, match="needs a degree of at least 2"):
        expected_critical_points(5, 1)


@pytest.mark.calibration
@pytest.mark.parametrize(
    ("n", "mixture", "index", "below", "samples"),
    [
        (12, 3, 0, None, 1000),
        (20, 3, 1, -1.3, 1000),
        (20, 3, 0, -1.6, 2000),
        (16, {1: 1.0, 3: 1.0}, 1, -0.9, 1000),
        (24, 4, 0, None, 1000),
        (30, 3, 0, -1.55, 1000),
    ],
)
def test_coverage_of_sampled_counts(calibration, n, mixture, index, below, samples):
    exact = expected_critical_points(n, mixture, index, below).value
    hits = given_up = 0
    for seed in calibration.seeds:
        found = expected_critical_points(
            n, mixture, index, below, samples=samples, seed=10_000 + seed
        )
        given_up += found.interval[0] == 0
        hits += exact in found
    assert given_up <= len(calibration.seeds) / 20
    cut = "" if below is None else f", energy below {below:g}"
    name = f"critical points of index {index}, n = {n}, xi = {Mixture.of(mixture)}{cut}"
    calibration.check(name, hits)
