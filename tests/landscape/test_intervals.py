"""The interval for the mean of skewed samples, on samples whose law is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from thalweg.landscape.intervals import mean_interval


def student(samples, level=0.95):
    half = stats.t.ppf((1 + level) / 2, len(samples) - 1) * stats.sem(samples)
    return samples.mean() - half, samples.mean() + half


def test_it_contains_students_interval_and_leans_to_the_long_side():
    samples = np.random.default_rng(0).chisquare(1, 96)
    low, high = mean_interval(samples)
    theirs = stats.t.interval(0.95, 95, samples.mean(), stats.sem(samples))
    assert low == pytest.approx(theirs[0])
    assert high > theirs[1]
    mirrored = mean_interval(-samples)
    assert mirrored == pytest.approx((-high, -low))


def test_symmetric_samples_get_students_interval():
    half = np.random.default_rng(0).normal(size=48)
    samples = np.concatenate([half, -half])
    assert mean_interval(samples) == pytest.approx(student(samples), rel=1e-6)


def test_constant_samples_get_a_point():
    assert mean_interval(np.full(40, 2.5)) == (2.5, 2.5)


@given(st.integers(0, 2**31), st.floats(-5, 5), st.floats(0.01, 100))
def test_it_moves_and_scales_with_the_samples(seed, shift, scale):
    samples = np.random.default_rng(seed).exponential(size=40)
    low, high = mean_interval(samples)
    moved = mean_interval(shift + scale * samples)
    assert moved == pytest.approx((shift + scale * low, shift + scale * high), rel=1e-6, abs=1e-6)


@given(st.floats(0.5, 0.98))
def test_a_higher_level_is_wider(level):
    samples = np.random.default_rng(1).exponential(size=40)
    inner, outer = mean_interval(samples, level), mean_interval(samples, level + 0.01)
    assert outer[0] < inner[0] < inner[1] < outer[1]


def test_samples_that_cannot_be():
    with pytest.raises(ValueError, match="31 samples are too few for an honest interval"):
        mean_interval(np.ones(31))
    with pytest.raises(ValueError, match="2 of 40 samples are not finite"):
        mean_interval([np.nan, np.inf] + [1.0] * 38)
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, not 95"):
        mean_interval(np.ones(40), 95)


def weighted_squares(weights):
    """Samples of the worst kind a quadratic form can give: sums of weighted squares."""
    weights = np.asarray(weights, dtype=float)

    def draw(seed, count):
        normal = np.random.default_rng(seed).normal(size=(count, len(weights)))
        return (normal**2) @ weights

    return draw, float(weights.sum()), float(np.sqrt(2 * (weights**2).sum()))


LAWS = {
    "one square": [1.0],
    "minus one square": [-1.0],
    "three unequal squares": [1.0, 0.5, 0.2],
    "difference of squares": [1.0, -1.0],
    "twelve squares": [1.0] * 12,
}


@pytest.mark.calibration
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [32, 96])
@pytest.mark.parametrize("law", LAWS)
def test_coverage(calibration, law, count, level):
    draw, mean, spread = weighted_squares(LAWS[law])
    ends = np.array([mean_interval(draw(seed, count), level) for seed in calibration.seeds])
    hits = int(((ends[:, 0] <= mean) & (mean <= ends[:, 1])).sum())
    oracle = 2 * stats.norm.ppf((1 + level) / 2) * spread / np.sqrt(count)
    ratio = float(np.median(ends[:, 1] - ends[:, 0]) / oracle)
    calibration.check(f"mean of {count} samples, {law}", hits, level=level, width_ratio=ratio)


@pytest.mark.calibration
def test_students_interval_is_rejected_at_32_samples(calibration):
    """The control: the textbook interval fails the rule that ours passes."""
    silent = dataclasses.replace(calibration, seeds=range(1000), record=lambda name, row: None)
    draw, mean, _ = weighted_squares(LAWS["one square"])
    ends = np.array([student(draw(seed, 32)) for seed in silent.seeds])
    hits = int(((ends[:, 0] <= mean) & (mean <= ends[:, 1])).sum())
    with pytest.raises(AssertionError, match="held the truth for"):
        silent.check("Student's interval", hits)
