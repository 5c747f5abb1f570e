"""What a sample of minima says: exact binomial bounds, and calibration on simulated species."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from thalweg.estimate import from_json
from thalweg.topology import (
    basin_statement,
    distinct_minima,
    outside_probability,
    unseen_probability,
)


@pytest.mark.parametrize("total", [1, 5, 20, 60])
def test_all_joined_gives_the_bound_of_the_issue(total):
    bound = outside_probability(total, total)
    assert bound.interval == pytest.approx((0.0, 1 - 0.05 ** (1 / total)), rel=1e-14)
    assert bound.value == 0.0
    assert math.isnan(bound.stderr)


@settings(max_examples=30)
@given(st.integers(1, 40), st.data())
def test_the_interval_is_that_of_scipy(total, data):
    out = data.draw(st.integers(1, total))
    interval = outside_probability(total - out, total).interval
    exact = binomtest(out, total).proportion_ci(0.95, "exact")
    assert interval == pytest.approx((exact.low, exact.high), abs=1e-12)


@pytest.mark.parametrize("total", [3, 10, 25])
def test_coverage_is_at_least_nominal_by_summing_over_all_outcomes(total):
    intervals = [outside_probability(total - k, total).interval for k in range(total + 1)]
    for p in np.linspace(0.001, 0.999, 199):
        weights = binom.pmf(np.arange(total + 1), total, p)
        covered = [low <= p <= high for low, high in intervals]
        # one-sided where none lies outside: at most 5 % there and 2.5 % above
        assert weights[covered].sum() >= 0.925
        assert weights[0] <= 0.05 or covered[0]


def test_a_normal_approximation_would_fail_that():
    total, p = 25, 0.02
    k = np.arange(total + 1)
    half = 1.96 * np.sqrt(k / total * (1 - k / total) / total)
    covered = (k / total - half <= p) & (p <= k / total + half)
    assert binom.pmf(k, total, p)[covered].sum() < 0.5


def chance_of_a_wrong_bound(weights, total, reference):
    """How often all seeds fall in one basin that is smaller than the bound then says."""
    bound = outside_probability(total, total, reference=reference).interval[1]
    return sum(w**total for w in weights if 1 - w > bound)


def test_a_basin_that_the_sample_names_costs_a_seed():
    thirds = [1 / 3] * 3
    assert chance_of_a_wrong_bound(thirds, 3, "named") > 0.1  # not the 5 % that was promised
    for total in range(2, 30):
        for basins in range(2, 12):
            assert chance_of_a_wrong_bound([1 / basins] * basins, total, "sampled") <= 0.05
    assert outside_probability(1, 1, reference="sampled").interval == (0.0, 1.0)


def test_good_turing_and_chao_by_hand():
    labels = ["a"] * 5 + ["b", "b", "c", "c", "d", "e", "f"]
    unseen = unseen_probability(labels)
    assert unseen.value == 3 / 12
    assert unseen.stderr == pytest.approx(math.sqrt(0.25 * 0.75 / 12 + 4 / 144))
    low, high = unseen.interval
    assert low == 0.0
    variance = high * (1 - high) / 12 + 2 * 2 / 144
    assert (high - 3.5 / 12) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-6)
    distinct = distinct_minima(labels)
    assert distinct.value == pytest.approx(6 + 11 / 12 * 3 * 2 / (2 * 3))
    assert distinct.interval[0] >= 6
    assert distinct.value in distinct


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(labels, rng):
    other = [f"minimum {x}" for x in labels]
    rng.shuffle(other)
    assert unseen_probability(labels) == unseen_probability(other)
    assert str(distinct_minima(labels)) == str(distinct_minima(other))
    low, high = unseen_probability(labels).interval
    assert 0 <= low <= unseen_probability(labels).value <= high <= 1


def test_everything_seen_often_and_everything_seen_once():
    often = [i % 3 for i in range(60)]
    assert unseen_probability(often).value == 0.0
    assert unseen_probability(often).interval[0] == 0.0
    assert 0 < unseen_probability(often).interval[1] < 0.1
    assert distinct_minima(often).interval == (3.0, 3.0)
    once = list(range(20))
    assert unseen_probability(once).value == 1.0
    assert unseen_probability(once).interval[1] == 1.0
    assert distinct_minima(once).value > 190


def test_the_words():
    text = str(basin_statement(20, 20, below=0.31))
    assert text == (
        "All 20 sampled minima are joined below 0.31: a fresh seed leads outside that basin with "
        "probability below 0.139 (95 %, exact). This assumes that the seeds are independent draws "
        "of one procedure and that the basin was named before these seeds were drawn."
    )
    labels = ["a"] * 10 + ["b"] * 7 + ["c", "d", "e"]
    some = basin_statement(
        18, 20, labels=labels, reference="sampled", tolerance="they are within 1e-3"
    )
    assert str(some).startswith("18 of 20 sampled minima are joined: a fresh seed leads outside ")
    assert "with probability between 0.013 and 0.331 (95 %, exact)" in str(some)
    assert "not seen yet with probability about 0.15 (between 0.0279 and 0.389, 95 %)" in str(some)
    assert "about 7.85 distinct minima or more (Chao's lower bound, 5.32 to 30.1)" in str(some)
    assert str(some).endswith(
        "assumes that the seeds are independent draws of one procedure and that two minima are "
        "one exactly if they are within 1e-3."
    )
    assert some.__rich__() == str(some)
    stored = json.loads(json.dumps(some.to_json(), allow_nan=False))
    assert from_json(stored["unseen"]) == some.unseen
    assert basin_statement(3, 3).to_json()["distinct"] is None


def test_the_messages():
    with pytest.raises(ValueError, match="5 of 4 seeds cannot lie in a named basin; at least 0"):
        outside_probability(5, 4)
    with pytest.raises(ValueError, match="0 of 4 seeds cannot lie in a sampled basin; at least 1"):
        outside_probability(0, 4, reference="sampled")
    with pytest.raises(ValueError, match="0 of 0 seeds"):
        outside_probability(0, 0)
    for make in (unseen_probability, distinct_minima):
        with pytest.raises(ValueError, match="no seeds: give one label for each minimum"):
            make([])
        with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, not 95"):
            make(["a"], level=95)
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, not 1"):
        outside_probability(1, 2, level=1)
    with pytest.raises(ValueError, match="3 seeds need 3 labels, one each, not 2"):
        basin_statement(3, 3, labels=["a", "b"])


SPECIES = {
    "20 alike": np.ones(20),
    "100 alike": np.ones(100),
    "1000 alike": np.ones(1000),
    "geometric": 0.7 ** np.arange(60),
    "Zipf": 1 / np.arange(1, 300.0),
    "one and 50 rare": np.r_[0.9, np.full(50, 0.002)],
    "0.97 and 0.03": np.array([0.97, 0.03]),
}


@pytest.mark.calibration
@pytest.mark.parametrize("total", [20, 60, 200])
@pytest.mark.parametrize("name", SPECIES)
def test_good_turing_covers(calibration, name, total):
    weights = SPECIES[name] / SPECIES[name].sum()
    hits, widths, errors, once = 0, [], [], []
    for seed in calibration.seeds:
        counts = np.random.default_rng(seed).multinomial(total, weights)
        unseen = unseen_probability(np.repeat(np.arange(len(weights)), counts).tolist())
        missing = float(weights[counts == 0].sum())
        hits += missing in unseen
        widths.append(unseen.interval[1] - unseen.interval[0])
        errors.append(unseen.value - missing)
        once.append(int((counts == 1).sum()))
    oracle = np.subtract(*np.quantile(errors, [0.975, 0.025]))
    # where nothing or everything was seen once, an oracle has nothing to be wrong about
    ratio = float(np.median(widths) / oracle) if 1 <= np.mean(once) <= total - 1 else None
    calibration.check(f"Good-Turing, {name}, {total} seeds", hits, width_ratio=ratio)


@pytest.mark.calibration
@pytest.mark.parametrize("total", [8, 20, 60])
@pytest.mark.parametrize("outside", [0.02, 0.1, 0.4])
def test_clopper_pearson_covers(calibration, outside, total):
    hits = 0
    for seed in calibration.seeds:
        out = int(np.random.default_rng(seed).binomial(total, outside))
        hits += outside in outside_probability(total - out, total)
    calibration.check(f"Clopper-Pearson, {outside:g} outside, {total} seeds", hits)


@pytest.mark.calibration
def test_good_s_plain_interval_does_not_cover(calibration):
    """The negative control: G ± 1.96 of Esty's standard error, 1000 minima alike, 20 seeds."""
    hits = 0
    for seed in calibration.seeds:
        counts = np.random.default_rng(seed).multinomial(20, np.full(1000, 0.001))
        unseen = unseen_probability(np.repeat(np.arange(1000), counts).tolist())
        error = 0.0 if math.isnan(unseen.stderr) else 1.96 * unseen.stderr
        hits += abs(unseen.value - 0.001 * (counts == 0).sum()) <= error
    assert hits < binom.ppf(1e-4, len(calibration.seeds), 0.95)
