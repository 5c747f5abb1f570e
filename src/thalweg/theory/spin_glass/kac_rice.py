r"""The expected number of critical points of a spherical spin glass, at finite size.

The Kac-Rice formula counts the critical points of a Gaussian landscape. On the sphere it reduces to
one eigenvalue of a matrix of the Gaussian orthogonal ensemble (Auffinger, Ben Arous and Černý
2013). With $\xi$ the covariance, $B = (\xi''(1) - \xi'(1)) / (\xi''(1) + \xi'(1))$, and eigenvalues
$x$ in raw units (semicircle edge $\sqrt{2n}$), the count of index $k$ is

$$2 \sqrt{1 - B} \left(\frac{\xi''(1)}{\xi'(1)}\right)^{n/2}
E\left[ e^{-B x_k^2 / 2}\, P(u \in U \mid x_k) \right],$$

where the energy per spin $u$, given the radial derivative $\sqrt{2 \xi''(1) / n}\, x$, is Gaussian;
for a pure $p$-spin it is $u = \sqrt{2(p-1)/(pn)}\, x$ without spread. Summed over $k$, the average
is an integral over the density of eigenvalues. All of it is in logs: counts are exponential in $n$.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_ndtr, logsumexp
from scipy.stats import norm

from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.mixture import Mixture
from thalweg.theory.spin_glass.one_point import index_probabilities, log_one_point
from thalweg.theory.spin_glass.tilted import log_mean_at_eigenvalue

__all__ = ["ExpectedCount", "critical_energy_log_density", "expected_critical_points"]

EXACT_ORDER = 30  # up to here the law of the k-th eigenvalue is computed, beyond it is sampled
_NODES, _PHASE, _TOLERANCE, _DEPTH = 20, 5.0, 1e-10, 48.0
_MOST_PANELS = 4000
_MOST_SKEW, _FARTHEST = 1.0, 2.2  # of a sampled mean; Tracy-Widom units beyond the edge


@dataclass(frozen=True, slots=True)
class ExpectedCount:
    """An expected number of critical points, as a log, because it may exceed any float.

    Args:
        log: Natural log of the count; minus infinity for none.
        log_interval: Logs of the ends: the error of the quadrature where `samples` is 0, else
            a confidence interval at `level`.
        what: What was counted, in words.
        method: How.
        samples: Random matrices drawn; 0 where the value is exact up to quadrature.
        level: Nominal coverage of a sampled interval.
        seed: What drew them.

    Example:
        >>> print(expected_critical_points(10, 2))
        20 critical points (n = 10, p = 2; exact up to a relative error of 1e-10)
    """

    log: float
    log_interval: tuple[float, float]
    what: str
    method: str
    samples: int = 0
    level: float = 0.95
    seed: int | None = None

    @property
    def value(self) -> float:
        """The count; infinity if it exceeds the largest float."""
        return _exp(self.log)

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval of the count."""
        return _exp(self.log_interval[0]), _exp(self.log_interval[1])

    @property
    def exact(self) -> bool:
        """Whether the value rests on quadrature alone."""
        return self.samples == 0

    def __contains__(self, count: float) -> bool:
        """Say whether a count lies inside the interval."""
        return self.interval[0] <= count <= self.interval[1]

    def __str__(self) -> str:
        """Return the count, what it counts, and how far it can be trusted."""
        size = _number(self.log)
        if self.exact:
            error = max(self.log_interval[1] - self.log, 1e-10) if self.log > -math.inf else 0.0
            trust = f"exact up to a relative error of {error:.0e}" if error else "exact"
            return f"{size} critical points ({self.what}; {trust})"
        low, high = self.log_interval
        ends = f"{_number(low)} to {_number(high)} at {100 * self.level:g} %"
        tail = "" if low > -math.inf else "; drawn too rarely: all that is known is the total"
        return f"{size} critical points ({self.what}; {ends}, {self.samples} matrices{tail})"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain values; an infinite log becomes the word."""
        logs = [self.log, *self.log_interval]
        log, *ends = [x if math.isfinite(x) else repr(float(x)) for x in logs]
        return {
            "type": "expected count",
            "log": log,
            "log_interval": ends,
            "what": self.what,
            "method": self.method,
            "samples": self.samples,
            "level": self.level,
            "seed": self.seed,
        }


def expected_critical_points(
    n: int,
    p: int | Mapping[int, float] | Mixture,
    index: int | None = None,
    below: float | None = None,
    above: float | None = None,
    *,
    samples: int | None = None,
    level: float = 0.95,
    seed: Seed = None,
) -> ExpectedCount:
    r"""Return the expected number of critical points of a spherical spin glass of `n` spins.

    Exact by quadrature over all indices at any `n` (a second at $n = 1000$), and by index up to
    $n = 30$; beyond that, or where `samples` is given, the average over the `index`-th eigenvalue
    is by importance sampling with an interval. Where the draws do not carry it (energies far below
    the edge), the interval is from 0 to the exact count over all indices, and `str` says so; far
    below $-E_\infty$ nearly all critical points are minima, so the total serves.

    Args:
        n: Number of spins, at least 2; the sphere has dimension `n` - 1.
        p: Degree, amplitudes by degree (degree 1 is a random field), or a `Mixture`.
        index: Count only points with so many negative directions, 0 to `n` - 1; None for all.
        below: Count only energies per spin at most this.
        above: Count only energies per spin at least this.
        samples: Random matrices to draw; None draws 4000 where the exact law is out of reach.
        level: Nominal coverage of a sampled interval.
        seed: What draws them.

    Returns:
        The count; `.value`, `.log`, `.interval`.

    Raises:
        ValueError: If `n` is below 2, `index` is not in [0, n), `samples` is below 100 or comes
            without an index, or a bound is NaN.

    Source: Auffinger, Ben Arous and Černý, Random matrices and complexity of spin glasses, Comm.
    Pure Appl. Math. 66 (2013), theorems 2.1 and 2.2; mixtures: Auffinger and Ben Arous 2013,
    Fyodorov 2015.

    Example:
        >>> expected_critical_points(3, 3).value
        10.5523597
        >>> expected_critical_points(3, 3, index=0).value
        3.1380899
    """
    mixture = Mixture.of(p)
    if n < 2:
        raise ValueError(f"a sphere needs n of at least 2, got {n}")
    if index is not None and not 0 <= index < n:
        raise ValueError(f"an index lies between 0 and n - 1 = {n - 1}, got {index}")
    if samples is not None and (samples < 100 or index is None):
        raise ValueError(
            f"samples={samples}: at least 100, and only with an index; all indices are exact"
        )
    low, high = -math.inf if above is None else above, math.inf if below is None else below
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"energies must be numbers, got above={above} and below={below}")
    problem = _Integrand(n, mixture, low, high)
    what = _words(n, mixture, index, below, above)
    if low >= high:
        return ExpectedCount(-math.inf, (-math.inf, -math.inf), what, "empty range of energies")
    if samples is None and (index is None or n <= EXACT_ORDER):
        log, error = problem.integrate(index)
        ends = (log + math.log1p(-min(error, 0.999999)), log + math.log1p(error))
        return ExpectedCount(log, ends, what, "Kac-Rice by Gauss-Legendre quadrature")
    assert index is not None
    recorded = make_generator(seed)[1]
    draws = samples or 4000
    log, ends = problem.sample(index, draws, level, np.random.default_rng(recorded))
    method = "Kac-Rice by importance sampling of the tridiagonal model"
    return ExpectedCount(log, ends, what, method, draws, level, recorded)


def critical_energy_log_density(
    u: Float[np.ndarray, " m"],
    n: int,
    p: int | Mapping[int, float] | Mixture,
    index: int | None = None,
) -> Float[np.ndarray, " m"]:
    r"""Return the log of the expected density of critical points in energy per spin.

    Its integral over `u` is `expected_critical_points`; divided by `n` it tends to the rate of
    which `complexity` is the running maximum.

    Args:
        u: Energies per spin `(m,)`.
        n: Number of spins.
        p: Degree, amplitudes by degree, or a `Mixture`.
        index: Only points of this index; None for all. By index for `n` up to 30.

    Returns:
        Log of the number of critical points per unit of energy, `(m,)`; minus infinity where
        the index is too improbable to be resolved (below 1e-13 of all).

    Raises:
        ValueError: If an index is asked for above `n` = 30, or as in `expected_critical_points`.

    Example:
        >>> u = np.linspace(-6, 6, 601)
        >>> density = np.exp(critical_energy_log_density(u, 3, 3))
        >>> print(f"{density.sum() * 0.02:.3f}")
        10.552
    """
    mixture = Mixture.of(p)
    if n < 2 or (index is not None and not 0 <= index < n):
        raise ValueError(f"n is at least 2 and an index in [0, n), got n={n} and index={index}")
    if index is not None and n > EXACT_ORDER:
        raise ValueError(
            f"the density by index is exact up to n = {EXACT_ORDER}, got n={n}; "
            "count with expected_critical_points, which samples"
        )
    problem = _Integrand(n, mixture, -math.inf, math.inf)
    u = np.asarray(u, float)
    if problem.spread == 0:
        x = u / problem.slope
        return problem.log_values(x, index) - math.log(problem.slope)
    x, log_widths = problem.nodes(*problem.region(None), 1.0)
    logs = problem.log_values(x, index) + log_widths
    z = (u[:, None] - problem.slope * x) / problem.spread
    kernel = -(z**2) / 2 - math.log(problem.spread * math.sqrt(2 * math.pi))
    return np.asarray(logsumexp(logs + kernel, axis=1))


class _Integrand:
    """What is integrated over an eigenvalue: its density times the weight of Kac-Rice."""

    def __init__(self, n: int, mixture: Mixture, low: float, high: float) -> None:
        self.n, self.low, self.high = n, low, high
        value, slope, curve = mixture.xi(1.0), mixture.slope(1.0), mixture.curvature(1.0)
        self.B = (curve - slope) / (curve + slope)
        self.log_factor = math.log(2) + 0.5 * math.log(2 * slope / (curve + slope))
        self.log_factor += n / 2 * math.log(curve / slope)
        self.slope = slope / (curve + slope) * math.sqrt(2 * curve / n)  # of the mean energy in x
        rest = value - slope**2 / (curve + slope)
        self.spread = 0.0 if len(mixture.amplitudes) == 1 else math.sqrt(rest / n)
        # the integrand falls off from its peak at least as fast as a Gaussian of this variance
        drop = min(self.B, 0.0)
        reach = math.sqrt(2 * n / (1 - drop**2)) + math.sqrt(2 * (_DEPTH + 2) / (1 + drop))
        self.limits = (-reach, reach)
        if self.spread == 0:
            self.limits = (max(-reach, low / self.slope), min(reach, high / self.slope))

    def log_weight(self, x: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Return the log of the weight of an eigenvalue, without the constant in front."""
        x = np.asarray(x, float)
        plain = -self.B * x**2 / 2
        if self.low == -math.inf and self.high == math.inf:
            return plain
        mean = self.slope * x
        if self.spread == 0:
            return np.where((mean >= self.low) & (mean <= self.high), plain, -math.inf)
        low, high = (self.low - mean) / self.spread, (self.high - mean) / self.spread
        low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
        log_low, log_high = log_ndtr(low), log_ndtr(high)
        with np.errstate(divide="ignore"):
            return np.asarray(plain + log_high + np.log1p(-np.exp(log_low - log_high)))

    def log_values(self, x: Float[np.ndarray, " m"], index: int | None) -> Float[np.ndarray, " m"]:
        """Return the log of the integrand, without the indicator of a sharp energy range."""
        weight = -self.B * x**2 / 2 if self.spread == 0 else self.log_weight(x)
        logs = self.log_factor + log_one_point(x, self.n) + weight
        if index is None:
            return logs
        share = index_probabilities(x, self.n)[:, index]
        with np.errstate(divide="ignore"):
            return logs + np.log(np.where(share > 1e-13, share, 0.0))

    def region(self, index: int | None) -> tuple[float, float]:
        """Return where the integrand is within a factor e^-48 of its largest value."""
        low, high = self.limits
        x = np.linspace(low, high, 801 if index is None else 161)
        logs = self.log_values(x, index)
        kept = np.flatnonzero(logs > logs.max() - _DEPTH)
        if len(kept) == 0:
            return low, high
        return float(x[max(kept[0] - 1, 0)]), float(x[min(kept[-1] + 1, len(x) - 1)])

    def nodes(
        self, low: float, high: float, finer: float
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Return Gauss-Legendre nodes on panels that resolve the spacing of eigenvalues."""
        panels = math.ceil((high - low) * math.sqrt(2 * self.n) / _PHASE * finer) + 2
        panels = min(panels, _MOST_PANELS)
        edges = np.linspace(low, high, panels + 1)
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        half = (high - low) / panels / 2
        x = ((edges[:-1] + edges[1:]) / 2)[:, None] + half * nodes
        return x.ravel(), np.log(np.tile(weights * half, panels))

    def integrate(self, index: int | None) -> tuple[float, float]:
        """Return the log of the integral and a bound on its relative error.

        The error of a panel is at most about its last two Legendre coefficients; what is left
        outside the region, and the rounding of the recurrences, are added.
        """
        low, high = self.limits
        if low >= high:
            return -math.inf, 0.0
        low, high = self.region(index)
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        basis = np.polynomial.legendre.legvander(nodes, _NODES - 1)[:, -2:]
        to_tail = weights[:, None] * basis * (np.arange(_NODES - 2, _NODES) + 0.5)
        log, error = -math.inf, math.inf
        for finer in (1.0, 2.0, 4.0):
            x, log_widths = self.nodes(low, high, finer)
            logs = self.log_values(x, index)
            top = float(logs.max())
            if top == -math.inf:
                return -math.inf, 0.0
            values = np.exp(logs - top)
            widths = np.exp(log_widths)
            total = float((values * widths).sum())
            tails = np.abs(values.reshape(-1, _NODES) @ to_tail).sum()
            error = float(tails) * (high - low) / (len(x) // _NODES) / total
            if index is not None:
                error += self._unresolved(x, widths, top) / total
            log = top + math.log(total)
            if error < _TOLERANCE or (index is not None and finer == 2.0):
                break
        return log, error + 1e-13 * math.sqrt(self.n)

    def _unresolved(
        self, x: Float[np.ndarray, " m"], widths: Float[np.ndarray, " m"], top: float
    ) -> float:
        """Return what indices of probability below the rounding could add."""
        return float((1e-14 * np.exp(self.log_values(x, None) - top) * widths).sum())

    def sample(
        self, index: int, samples: int, level: float, rng: np.random.Generator
    ) -> tuple[float, tuple[float, float]]:
        """Return the log of the count of one index and its interval, from random matrices.

        The normal interval needs a mean that is not skew. Weights of variance s around a mean of
        1 are near log-normal, of skewness (s + 3) sqrt(s); the skewness of the draws themselves
        says little, for the largest weights are the rarest.
        """
        found = log_mean_at_eigenvalue(self.n, index, self.log_weight, samples=samples, rng=rng)
        # R_1 integrates to n, and the law of one eigenvalue to 1: the same constant serves both
        log = self.log_factor + found.log
        spread = samples / found.effective - 1 if found.effective > 0 else math.inf
        skew = (spread + 3) * math.sqrt(spread / samples)
        if skew > _MOST_SKEW or found.outside > _FARTHEST:
            return log, (-math.inf, max(log, self.integrate(None)[0]))
        reach = float(norm.ppf((1 + level) / 2)) * found.relative_error
        return log, (log - reach, log + reach)


def _exp(log: float) -> float:
    return math.exp(log) if log < 709.7 else math.inf


def _number(log: float) -> str:
    """Write e^log, however large."""
    if log == -math.inf:
        return "0"
    if abs(log) < 13:
        return f"{math.exp(log):.8g}"
    power = math.floor(log / math.log(10))
    return f"{math.exp(log - power * math.log(10)):.4f}e{power:+d}"


def _words(
    n: int, mixture: Mixture, index: int | None, below: float | None, above: float | None
) -> str:
    words = [f"n = {n}", f"p = {mixture.degree}" if mixture.degree else f"xi = {mixture}"]
    words += [f"index {index}"] if index is not None else []
    words += [f"energy at least {above:g}"] if above is not None else []
    words += [f"energy at most {below:g}"] if below is not None else []
    return ", ".join(words)
