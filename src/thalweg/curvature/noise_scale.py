"""The gradient noise scale: from which batch size on more examples stop paying."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from thalweg.curvature.operator import Hessian, finite_matmat
from thalweg.estimate import Cost, Estimate
from thalweg.landscape.intervals import LEAST_SAMPLES, mean_interval
from thalweg.landscape.protocols import FiniteSum, check_theta
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["GradientNoiseScale", "gradient_noise_scale"]

_SIMPLE = "trace of the examples' gradient covariance over |g|^2 (McCandlish et al. 2018)"
_POPULATION = "ratio of unbiased estimates, Fieller interval with the jackknife"
_CURVED = "tr(H Sigma) / g.Hg, random signs over examples, Student and Hall interval"


@dataclass(frozen=True, eq=False)
class GradientNoiseScale:
    r"""How noisy a minibatch's gradient is; every scale is a number of examples.

    Attributes:
        simple: $B_{\text{simple}} = \operatorname{tr}\Sigma / |g|^2$ on these very data, where
            the full gradient is known: exact but for rounding.
        population: The same ratio for the distribution that the data were drawn from, with
            $|G|^2$ estimated by $|g|^2 - \operatorname{tr} S / n$; infinite where the data do
            not show that $G \ne 0$.
        curved: $B_{\text{noise}} = \operatorname{tr}(H\Sigma) / g^\top H g$ on these data,
            which heeds how much each direction of noise costs; None if it was not asked for.
        gradient_norm: $|g|$, of the full gradient.
        noise: $\operatorname{tr}\Sigma$.
        curvature: $g^\top H g$; where it is not positive, `curved` says nothing. NaN if
            `curved` was not asked for.
        examples: $n$.
        cost: What it took.
        seed: The seed that reproduces it.
    """

    simple: Estimate
    population: Estimate
    curved: Estimate | None
    gradient_norm: float
    noise: float
    curvature: float
    examples: int
    cost: Cost
    seed: int

    def __str__(self) -> str:
        """Return the scales, in examples, and what they mean."""
        low, high = self.population.interval
        lines = [
            f"gradient noise scale, in examples ({self.cost})",
            f"  these {self.examples} examples: {self.simple.value:.6g} "
            f"(tr Sigma {self.noise:.4g}, |g| {self.gradient_norm:.4g})",
            f"  their population: {self.population.value:.4g} in [{low:.4g}, {high:.4g}] "
            f"({self.population.level:.0%})".replace("%)", " %)"),
        ]
        if self.curved is not None:
            lines.append(f"  weighed by curvature: {_plain(self.curved)}")
            if not self.curvature > 0:
                lines.append(
                    "  the curvature along the gradient is not positive, so the last line says "
                    "nothing"
                )
        if not math.isfinite(high):
            lines.append("  the data do not show that the population's gradient is not zero")
        lines.append("  below the scale, doubling the batch nearly halves the steps; above, not")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the same with brackets kept."""
        return str(self).replace("[", chr(92) + "[")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "type": "gradient noise scale",
            "simple": self.simple.to_json(),
            "population": self.population.to_json(),
            "curved": None if self.curved is None else self.curved.to_json(),
            "gradient_norm": self.gradient_norm,
            "noise": self.noise,
            "curvature": self.curvature if math.isfinite(self.curvature) else repr(self.curvature),
            "examples": self.examples,
            "cost": self.cost.to_json(),
            "seed": self.seed,
        }


def _plain(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:.4g} in [{low:.4g}, {high:.4g}]"


def gradient_noise_scale(
    land: FiniteSum,
    theta: Float[Tensor, " dim"],
    *,
    samples: int = 64,
    level: float = 0.95,
    seed: Seed = None,
) -> GradientNoiseScale:
    r"""Return the gradient noise scale, simple and weighed by curvature.

    With $g_i$ the gradient of example $i$ (weight decay included in all alike), $g$ their mean
    and $\Sigma$ their covariance,

    $$B_{\text{simple}} = \frac{\operatorname{tr} \Sigma}{|g|^2}, \qquad
      B_{\text{noise}} = \frac{\operatorname{tr}(H \Sigma)}{g^\top H g}:$$

    a minibatch of $B_{\text{simple}}$ examples drawn with replacement has a gradient whose
    squared noise equals its squared mean. On the data at hand both moments are exact. As a
    statement on the population, $|g|^2$ is too large by $\operatorname{tr} S / n$ on average
    ($S$ with divisor $n - 1$); that is taken off, and the interval is Fieller's: all ratios
    that the jackknife over examples does not reject, unbounded above where the gradient is
    not told from zero. The jackknife's variance is right to first order and up to twice too
    large where the gradient vanishes, so the interval errs to the wide side.

    Where examples have unequal weights (tokens), $\Sigma$ is that of the linearised weighted
    mean, still per example.

    Args:
        land: A weighted mean over examples, each with a gradient of its own.
        theta: The point, `(dim,)`.
        samples: Random combinations of the examples for $\operatorname{tr}(H\Sigma)$, one
            Hessian product each, at least 32; `examples` of them or more make it exact. 0
            leaves $B_{\text{noise}}$ out.
        level: Nominal coverage of the intervals.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The scales; see `GradientNoiseScale`.

    Raises:
        ValueError: If there are fewer than three examples, or `samples` or `level` is out of
            range, or the examples have no gradients of their own.
        FloatingPointError: If a gradient is not finite.

    References:
        S. McCandlish, J. Kaplan, D. Amodei et al. (2018), An empirical model of large-batch
        training, eq. 2.7 and 2.9, appendix A; E. Fieller (1954); B. Efron & C. Stein (1981)
        for the sign of the jackknife's bias.

    Example:
        >>> import torch.nn.functional as F
        >>> from thalweg.landscape import ModelLandscape
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [1.0], [1.0], [1.0]]).double()
        >>> y = torch.tensor([[0.0], [2.0], [4.0], [6.0]]).double()
        >>> land = ModelLandscape(model, F.mse_loss, (x, y))
        >>> found = gradient_noise_scale(land, torch.zeros(1).double(), seed=0)
        >>> round(found.simple.value, 9)  # gradients 0, -4, -8, -12: 20 / 36
        0.555555556
    """
    if not isinstance(land, FiniteSum):
        raise ValueError("this landscape is no mean over examples, so its gradient has no noise")
    if land.examples < 3:
        raise ValueError(f"{land.examples} examples have no spread to speak of; at least 3 needed")
    if samples and samples < min(LEAST_SAMPLES, land.examples):
        raise ValueError(
            f"samples={samples} is too few for an honest interval; take at least "
            f"{LEAST_SAMPLES}, or 0 to leave the curvature out"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, not {level!r}")
    theta = check_theta(theta, land.dim, land.dtype, land.device, single=True)
    before = land.cost
    generator, number = make_generator(seed)
    gradient = land.gradient(theta)
    _refuse_infinite(gradient)
    with torch.inference_mode(False):
        spread = _spread(land, theta.clone(), gradient, samples, generator)
    simple = _simple(spread, land.cost - before, level, number)
    population = _population(spread, land.cost - before, level, number)
    curved, curvature = None, math.nan
    if samples:
        curved, curvature = _curved(land, theta, gradient, spread, level, number)
    return GradientNoiseScale(
        simple=simple,
        population=population,
        curved=curved,
        gradient_norm=math.sqrt(spread.signal),
        noise=float(spread.squares.mean()),
        curvature=curvature,
        examples=len(spread.squares),
        cost=land.cost - before,
        seed=number,
    )


@dataclass(frozen=True, eq=False)
class _Spread:
    r"""The examples' deviations from the mean gradient, reduced to what the scales need.

    Attributes:
        squares: $|z_i|^2$, `(n,)`.
        along: $g \cdot z_i$, `(n,)`.
        signal: $|g|^2$.
        mixed: Random combinations $n^{-1/2} \sum_i \xi_i z_i$, or all $z_i$, `(m, dim)`.
        whole: Whether `mixed` holds all of them.
    """

    squares: NDArray[np.float64]
    along: NDArray[np.float64]
    signal: float
    mixed: Tensor
    whole: bool


def _refuse_infinite(gradients: Tensor) -> None:
    bad = int((~torch.isfinite(gradients)).sum())
    if bad:
        raise FloatingPointError(
            f"{bad} of {gradients.numel()} entries of the gradient are NaN or infinite; look at "
            "the loss at this point"
        )


def _spread(
    land: FiniteSum, theta: Tensor, gradient: Tensor, samples: int, generator: torch.Generator
) -> _Spread:
    """Go through the examples twice: their mean, then their deviations from it."""
    total, weight = torch.zeros_like(theta, dtype=torch.float64), 0.0
    for batch in land.batches(theta):
        weights = batch.weights.double()
        total += weights @ batch.per_example_gradients().double()
        weight += float(weights.sum())
    mean = total / weight  # without the penalty, which every example shares
    _refuse_infinite(mean)
    count = land.examples
    whole = samples >= count
    mixed = theta.new_zeros(min(samples, count), land.dim)
    squares, along, first = [], [], 0
    for batch in land.batches(theta):
        weights = batch.weights.double()[:, None] * (count / weight)
        deviations = weights * (batch.per_example_gradients().double() - mean)
        squares.append((deviations**2).sum(1).cpu())
        along.append((deviations @ gradient.double()).cpu())
        few = len(deviations)
        if whole:
            mixed[first : first + few] = deviations.to(theta.dtype)
        elif samples:
            signs = 2.0 * torch.randint(0, 2, (samples, few), generator=generator) - 1
            signs = signs.to(theta.device, torch.float64) / math.sqrt(count)
            mixed += (signs @ deviations).to(theta.dtype)
        first += few
    signal = float((gradient.double() ** 2).sum())
    return _Spread(torch.cat(squares).numpy(), torch.cat(along).numpy(), signal, mixed, whole)


def _simple(spread: _Spread, cost: Cost, level: float, seed: int) -> Estimate:
    noise = float(spread.squares.mean())
    value = noise / spread.signal if spread.signal else math.inf
    return Estimate(
        value, 0.0, (value, value), len(spread.squares), cost, level, f"{_SIMPLE}, exact", seed
    )


def _population(spread: _Spread, cost: Cost, level: float, seed: int) -> Estimate:
    r"""Return the ratio for the population, by Fieller's interval.

    Both moments are U-statistics, so leaving one example out takes its two scalars alone:
    with $u_i = |z_i|^2$ and $c_i = g \cdot z_i$ the sum of squares becomes $Q - u_i n/(n-1)$,
    and the mean $g - z_i/(n-1)$.
    """
    n, squares, signal = len(spread.squares), spread.squares, spread.signal
    total = float(squares.sum())
    noise, power = total / (n - 1), signal - total / (n - 1) / n
    noises = (total - squares * n / (n - 1)) / (n - 2)
    signals = signal - 2 * spread.along / (n - 1) + squares / (n - 1) ** 2
    powers = signals - noises / (n - 1)
    replicas = np.stack([n * noise - (n - 1) * noises, n * power - (n - 1) * powers])
    covariance = np.cov(replicas) / n
    value = noise / power if power > 0 else math.inf
    low, high = _fieller(noise, power, covariance, float(stats.t.ppf((1 + level) / 2, n - 1)))
    error = math.nan
    if power > 0:
        error = (
            math.sqrt(max(0.0, float(np.array([1, -value]) @ covariance @ np.array([1, -value]))))
            / power
        )
    return Estimate(
        value, error, (min(low, value), max(high, value)), n, cost, level, _POPULATION, seed
    )


def _fieller(
    top: float, bottom: float, covariance: NDArray[np.float64], quantile: float
) -> tuple[float, float]:
    """Return the positive ratios r for which top - r * bottom is not significantly nonzero."""
    limit = quantile**2
    a = bottom**2 - limit * float(covariance[1, 1])
    b = top * bottom - limit * float(covariance[0, 1])
    c = top**2 - limit * float(covariance[0, 0])
    root = math.sqrt(max(0.0, b * b - a * c))
    if a > 0 and bottom > 0:
        return max(0.0, (b - root) / a), (b + root) / a
    # The denominator is not told from zero: all ratios above the one accepted end.
    ends = [end for end in ((b - root) / a, (b + root) / a) if end > 0] if a else []
    return (min(ends) if ends and c > 0 else 0.0), math.inf


def _curved(
    land: FiniteSum, theta: Tensor, gradient: Tensor, spread: _Spread, level: float, seed: int
) -> tuple[Estimate, float]:
    """Return tr(H Sigma) / g.Hg and its denominator."""
    with Hessian(land, theta) as hessian:
        along = finite_matmat(hessian, gradient[:, None])[:, 0]
        curvature = float(gradient.double() @ along.double())
        products = finite_matmat(hessian, spread.mixed.T.contiguous())
        cost = hessian.cost
    forms = (spread.mixed.T.double() * products.double()).sum(0).cpu().numpy()
    value = float(forms.mean())
    error, interval = 0.0, (value, value)
    if not spread.whole:
        error = float(forms.std(ddof=1)) / math.sqrt(len(forms))
        interval = mean_interval(forms, level)
    if curvature == 0:
        nothing = (-math.inf, math.inf)
        return Estimate(
            math.nan, math.nan, nothing, len(forms), cost, level, _CURVED, seed
        ), curvature
    low, high = sorted(end / curvature for end in interval)
    method = "tr(H Sigma) / g.Hg over all examples, exact" if spread.whole else _CURVED
    return Estimate(
        value / curvature,
        error / abs(curvature),
        (low, high),
        len(forms),
        cost,
        level,
        method,
        seed,
    ), curvature
