"""The two intervals that sampled theory needs: of a mean, and of a success rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from thalweg.estimate import Cost, Estimate

__all__ = ["sample_mean", "success_rate"]


def sample_mean(
    values: Float[np.ndarray, " samples"] | Sequence[float],
    *,
    level: float = 0.95,
    method: str = "sample mean",
    seed: int | None = None,
    cost: Cost | None = None,
) -> Estimate:
    r"""Return the mean of independent samples with Student's interval.

    $$\bar x \pm t_{n-1} s / \sqrt n$$

    Args:
        values: The samples, at least two.
        level: Nominal coverage.
        method: How the samples were made.
        seed: What drew them.
        cost: What they took.

    Returns:
        The estimate; NaN if a sample is NaN. Where all samples agree, the error and the interval
        are NaN: their spread says nothing of what was not seen.

    Raises:
        ValueError: If there are fewer than two samples or `level` is not in (0, 1).

    Example:
        >>> print(sample_mean([1.0, 2.0, 3.0]))
        2.0 ± 2.5 (95 %)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, not {level!r}")
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2:
        raise ValueError(f"a mean with an error needs two samples or more, got {sample.shape}")
    value = float(sample.mean())
    stderr = float(sample.std(ddof=1)) / math.sqrt(len(sample))
    stderr = stderr if stderr > 0 else math.nan
    half = float(stats.t.ppf(0.5 + level / 2, len(sample) - 1)) * stderr
    return Estimate(
        value,
        stderr,
        (value - half, value + half),
        len(sample),
        cost or Cost(),
        level=level,
        method=method,
        seed=seed,
    )


def success_rate(
    successes: int,
    trials: int,
    *,
    level: float = 0.95,
    method: str = "Clopper-Pearson",
    seed: int | None = None,
) -> Estimate:
    r"""Return the probability of success behind `successes` of `trials`, by Clopper and Pearson.

    Args:
        successes: How many trials succeeded.
        trials: How many there were.
        level: Nominal coverage; the exact two-sided interval covers at least so often.
        method: What the trials were.
        seed: What drew them.

    Returns:
        The estimate; its standard error is NaN where all or none succeeded, because the
        plug-in error would be a false zero.

    Raises:
        ValueError: If the counts cannot be or `level` is not in (0, 1).

    Source:
        Clopper & Pearson, Biometrika 26, 404 (1934).

    Example:
        >>> print(success_rate(18, 20))
        0.90 in [0.68, 0.99] (95 %)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, not {level!r}")
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} trials cannot have succeeded")
    tail, value = (1 - level) / 2, successes / trials
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    lost = trials - successes
    high = stats.beta.ppf(1 - tail, successes + 1, lost) if lost else 1.0
    stderr = math.sqrt(value * (1 - value) / trials) if 0 < successes < trials else math.nan
    return Estimate(
        value, stderr, (float(low), float(high)), trials, level=level, method=method, seed=seed
    )
