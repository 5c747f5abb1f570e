"""Statistics of many runs: scaled losses, variance against size, correlation; with intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from thalweg.estimate import Estimate

Array = NDArray[np.float64]
REPEATS = 2000
FEWEST = 5  # values without which nothing is said of their spread


def unknown(value: float, samples: int, method: str) -> Estimate:
    """Return a number of which nothing more is known."""
    return Estimate(value, math.nan, (-math.inf, math.inf), samples, method=method)


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's interval."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return unknown(float(x.mean()) if len(x) else math.nan, len(x), "mean")
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    reach = float(stats.t.ppf(0.975, len(x) - 1)) * error
    middle = float(x.mean())
    return Estimate(middle, error, (middle - reach, middle + reach), len(x), method="mean")


def resampled(
    clusters: Sequence[Array], statistic: Callable[[Array], float], seed: int
) -> tuple[float, Array]:
    """Return a statistic and its bootstrap values; whole clusters are drawn anew.

    Args:
        clusters: Values that belong together, such as the starts on one disorder; a cluster of
            one value each for independent ones.
        statistic: Of all values.
        seed: What draws.
    """
    source = np.random.default_rng(seed)
    whole = statistic(np.concatenate(clusters))
    single = len(clusters) == sum(len(c) for c in clusters)
    flat = np.concatenate(clusters)
    values = np.empty(REPEATS)
    for i in range(REPEATS):
        drawn = source.integers(len(clusters), size=len(clusters))
        values[i] = statistic(
            flat[drawn] if single else np.concatenate([clusters[j] for j in drawn])
        )
    return whole, values


def apart(values: Sequence[float]) -> list[Array]:
    """Return independent values as clusters of one."""
    return [np.array([x]) for x in values]


def variance(clusters: Sequence[Array], seed: int) -> tuple[Estimate, Array]:
    """Return the variance with a bootstrap interval, and the bootstrap's log variances."""
    if len(clusters) < FEWEST:
        flat = np.concatenate(clusters)
        spread = float(flat.var(ddof=1)) if len(flat) > 1 else math.nan
        return unknown(spread, len(clusters), "variance"), np.full(REPEATS, math.nan)
    value, drawn = resampled(clusters, lambda x: float(x.var(ddof=1)), seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = Estimate(
        value, float(drawn.std()), (float(low), float(high)), len(clusters),
        method="variance, percentile bootstrap", seed=seed,
    )  # fmt: skip
    with np.errstate(divide="ignore"):
        return found, np.log(drawn)


@dataclass(frozen=True)
class Power:
    """A power law of the variance in the size.

    Attributes:
        exponent: The power, with its bootstrap interval.
        amplitude: The factor.
        sizes: The sizes that it was fitted to.
        misfit: The probability of residuals as large if the law held (chi-squared).
    """

    exponent: Estimate
    amplitude: float
    sizes: tuple[int, ...]
    misfit: float

    def __str__(self) -> str:
        """Return the law in words."""
        held = (
            "which the residuals allow"
            if self.misfit > 0.01
            else "but the residuals exceed the errors"
        )
        return (
            f"variance = {self.amplitude:.3g} n^b with b = {self.exponent} over n = "
            f"{', '.join(map(str, self.sizes))}, {held} (p = {self.misfit:.2g})"
        )


def power(clusters: Mapping[int, Sequence[Array]], seed: int = 0) -> Power | None:
    """Fit a power to the variance by weighted least squares of logarithms; None below 3 sizes."""
    found = {n: variance(of, seed + n) for n, of in clusters.items()}
    kept = sorted(n for n, (value, logs) in found.items() if np.isfinite(logs).all())
    if len(kept) < 3:
        return None
    x = np.log(np.array(kept, dtype=np.float64))
    logs = np.stack([found[n][1] for n in kept])
    errors = logs.std(1)
    y = np.log([found[n][0].value for n in kept])
    weights = 1 / errors**2
    design = np.stack([np.ones_like(x), x], 1)
    solve = np.linalg.solve(design.T * weights @ design, design.T * weights)
    offset, slope = solve @ y
    slopes = (solve @ logs)[1]
    low, high = np.quantile(slopes, [0.025, 0.975])
    rest = float((((y - offset - slope * x) / errors) ** 2).sum())
    exponent = Estimate(
        float(slope), float(slopes.std()), (float(low), float(high)), len(kept),
        method="weighted least squares of log variances, percentile bootstrap", seed=seed,
    )  # fmt: skip
    chance = float(stats.chi2.sf(rest, len(kept) - 2))
    return Power(exponent, float(np.exp(offset)), tuple(kept), chance)


def correlation(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Estimate:
    """Return Pearson's correlation with a bias-corrected, accelerated bootstrap interval."""
    a, b = np.asarray(x), np.asarray(y)
    if len(a) < FEWEST or a.std() == 0 or b.std() == 0:
        return unknown(math.nan, len(a), "Pearson")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (a, b), lambda u, v: stats.pearsonr(u, v).statistic, paired=True, vectorized=False,
            n_resamples=REPEATS, method="BCa", rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = found.confidence_interval
    value = float(stats.pearsonr(a, b).statistic)
    if not (math.isfinite(low) and math.isfinite(high)):
        return unknown(value, len(a), "Pearson; the bootstrap is degenerate")
    return Estimate(
        value, float(found.standard_error), (float(low), float(high)), len(a),
        method="Pearson, BCa bootstrap", seed=seed,
    )  # fmt: skip


@dataclass(frozen=True)
class Scale:
    r"""The published scaling, $\mathrm{E}[L] = c\, e^{\alpha n^\beta}$.

    Attributes:
        alpha: The factor in the exponent.
        beta: The power of the size; at an end of `RANGE` the form is not the data's.
        constant: c.
        worst: The largest relative distance of a mean from the fit.
    """

    alpha: float
    beta: float
    constant: float
    worst: float

    RANGE = (-3.0, 3.0)

    def of(self, n: int) -> float:
        """Return what a loss is divided by, without the constant, as published."""
        return math.exp(self.alpha * n**self.beta)

    def __str__(self) -> str:
        """Return the fit in words."""
        ends = min(abs(self.beta - end) for end in self.RANGE) < 0.02 or abs(self.beta) < 0.02
        note = "; β is at an end of its range, so that the form is not the data's" if ends else ""
        return (
            f"E[L] = {self.constant:.4g} exp({self.alpha:.4g} n^{self.beta:.3f}), "
            f"means within {100 * self.worst:.1f} % of it{note}"
        )


def scale(losses: Mapping[int, Sequence[float]]) -> Scale | None:
    """Fit the published scaling to the mean losses by least squares of logarithms.

    None below four sizes, which three numbers would fit whatever they are.
    """
    sizes = sorted(losses)
    if len(sizes) < 4:
        return None
    y = np.log([np.mean(losses[n]) for n in sizes])
    x = np.array(sizes, dtype=np.float64)
    best = (math.inf, 0.0, 0.0, 0.0, 0.0)
    for beta in np.arange(*Scale.RANGE, 0.01):
        if abs(beta) < 0.005:
            continue
        raised = (x / x[0]) ** beta
        design = np.stack([np.ones_like(x), raised], 1)
        (constant, alpha), *_ = np.linalg.lstsq(design, y, rcond=None)
        gap = y - design @ [constant, alpha]
        best = min(best, (float(gap @ gap), beta, alpha / x[0] ** beta, constant, abs(gap).max()))
    _, beta, alpha, constant, worst = best
    return Scale(float(alpha), float(beta), math.exp(constant), float(math.expm1(worst)))


def trend(values: Mapping[int, Estimate]) -> Estimate:
    """Return the slope of numbers against the logarithm of the size, by weighted least squares."""
    known = [(n, e) for n, e in sorted(values.items()) if e.stderr > 0 and math.isfinite(e.stderr)]
    if len(known) < 3:
        return unknown(math.nan, len(known), "trend")
    x = np.log10([n for n, _ in known])
    y, w = np.array([e.value for _, e in known]), np.array([e.stderr**-2 for _, e in known])
    middle = (w * x).sum() / w.sum()
    spread = float((w * (x - middle) ** 2).sum())
    slope = float((w * (x - middle) * y).sum() / spread)
    error = spread**-0.5
    reach = 1.959964 * error
    return Estimate(
        slope, error, (slope - reach, slope + reach), len(known), method="weighted slope"
    )
