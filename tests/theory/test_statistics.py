"""Means and their errors: one number and many alike, and no error from samples that agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import sem, ttest_1samp

from thalweg.theory.statistics import sample_mean, standard_error


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(2.0, 3.0, 12)
    mean = sample_mean(values, level=0.9)
    exact = ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert mean.interval == pytest.approx((exact.low, exact.high), rel=1e-12)
    assert mean.stderr == pytest.approx(sem(values), rel=1e-12)
    assert (mean.samples, mean.level, mean.method) == (12, 0.9, "Student's t")


def test_errors_of_many_means_are_those_of_each():
    rows = np.random.default_rng(1).normal(size=(9, 2, 3))
    errors = standard_error(rows)
    assert errors.shape == (2, 3)
    for at in np.ndindex(2, 3):
        assert errors[at] == pytest.approx(sample_mean(rows[:, *at]).stderr, rel=1e-14)


def test_samples_that_agree_or_are_nan_give_no_error():
    errors = standard_error(np.array([[1.0, 1.0, math.nan], [1.0, 3.0, 2.0]]))
    assert np.isnan(errors).tolist() == [True, False, True]
    same = sample_mean([2.0, 2.0, 2.0])
    assert same.value == 2.0
    assert all(math.isnan(x) for x in (same.stderr, *same.interval))


@pytest.mark.usefixtures("unchecked")
def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="an error needs at least 2 independent values, got 1"):
        sample_mean([1.0])
    with pytest.raises(ValueError, match=r"2 independent values, got an array of shape \(3, 2\)"):
        sample_mean(np.ones((3, 2)))
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, not 1"):
        sample_mean([1.0, 2.0], level=1)
