"""The mean of independent samples, and how wrong it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from thalweg.estimate import Cost, Estimate

__all__ = ["sample_mean", "standard_error"]


def standard_error(samples: Float[np.ndarray, " samples *more"]) -> Float[np.ndarray, "*more"]:
    r"""Return the standard error $s / \sqrt n$ of the mean of independent samples.

    Args:
        samples: One sample a row, at least two.

    Returns:
        The error of the mean over the rows; NaN where a sample is NaN, and where all samples
        agree: their spread says nothing of what was not seen.

    Example:
        >>> standard_error(np.array([[1.0, 2.0], [3.0, 2.0]]))
        array([ 1., nan])
    """
    error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    return np.where(error > 0, error, math.nan)


def sample_mean(
    values: Float[np.ndarray, " samples"] | Sequence[float],
    *,
    level: float = 0.95,
    method: str = "Student's t",
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
        are NaN (`standard_error`).

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
        got = len(sample) if sample.ndim == 1 else f"an array of shape {sample.shape}"
        raise ValueError(f"an error needs at least 2 independent values, got {got}")
    value, stderr = float(sample.mean()), float(standard_error(sample))
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
