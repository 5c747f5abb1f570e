"""The sharpness of random minibatches, beside that of all the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from thalweg.curvature.advice import sharpness_bound
from thalweg.curvature.eigenpairs import Eigenpairs, eigenpairs
from thalweg.curvature.operator import Hessian
from thalweg.estimate import Bound, Cost, Estimate
from thalweg.landscape.intervals import LEAST_SAMPLES, mean_interval
from thalweg.landscape.model import ModelLandscape
from thalweg.landscape.protocols import FiniteSum, Landscape, check_theta
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["Augment", "MinibatchSharpness", "minibatch_sharpness"]

Augment = Callable[[Any, torch.Generator], Any]
_MEAN = "mean over random minibatches, Student and Hall interval"
_QUANTILE = "order statistics (binomial)"


@dataclass(frozen=True, eq=False)
class MinibatchSharpness:
    r"""The largest Hessian eigenvalue over random minibatches.

    Attributes:
        values: One per minibatch, `(batches,)`, float64, weight decay included.
        intervals: `(batches, 2)`; each row certainly holds an eigenvalue of its minibatch.
        converged: `(batches,)`; whether the eigenvalue converged.
        full: The largest eigenvalue over all the data, weight decay included.
        mean: The mean over the distribution of minibatches.
        batch_size: Examples in each.
        examples: How many there are to draw from.
        weight_decay: What was added to every eigenvalue.
        level: Nominal coverage of the intervals of `mean` and `quantile`.
        cost: What it took.
        seed: The seed that reproduces it.
        augmented: Whether the inputs were augmented.
    """

    values: Float[Tensor, " batches"]
    intervals: Float[Tensor, "batches 2"]
    converged: Bool[Tensor, " batches"]
    full: Bound
    mean: Estimate
    batch_size: int
    examples: int
    weight_decay: float
    level: float
    cost: Cost
    seed: int
    augmented: bool = False

    def quantile(self, q: float) -> Estimate:
        r"""Return a quantile of the distribution over minibatches, with its interval.

        The interval runs between two order statistics $X_{(l)}, X_{(u)}$ with
        $P(l \le \mathrm{Bin}(m, q) < u) \ge$ `level`, whatever the distribution, widened by
        the intervals of the eigenvalues themselves; infinite at an end where `batches` are
        too few.

        Args:
            q: Which, in (0, 1); 0.5 is the median.

        Returns:
            The quantile.

        Raises:
            ValueError: If `q` is out of range.
        """
        if not 0 < q < 1:
            raise ValueError(f"q must lie strictly between 0 and 1, not {q!r}")
        count, tail = len(self.values), (1 - self.level) / 2
        lower = int(stats.binom.ppf(tail, count, q))
        upper = int(stats.binom.ppf(1 - tail, count, q)) + 1
        lows, highs = (side.sort().values for side in self.intervals.unbind(1))
        interval = (
            float(lows[lower - 1]) if lower >= 1 else -math.inf,
            float(highs[upper - 1]) if upper <= count else math.inf,
        )
        value = float(torch.quantile(self.values, q))
        return Estimate(
            value, math.nan, interval, count, self.cost, self.level, _QUANTILE, self.seed
        )

    def __str__(self) -> str:
        """Return the distribution in a few lines."""
        head = f"largest eigenvalue over {len(self.values)} random minibatches"
        size = f"{self.batch_size} of {self.examples} examples"
        if self.augmented:
            size += ", augmented"
        if self.weight_decay:
            size += f", weight decay {self.weight_decay:g} included"
        lines = [f"{head} of {size} ({self.cost})"]
        low, high = self.mean.interval
        lines.append(f"  mean      {self.mean.value:>10.5g} in [{low:.5g}, {high:.5g}]")
        for q, name in ((0.1, "10 %"), (0.5, "median"), (0.9, "90 %")):
            found = self.quantile(q)
            low, high = found.interval
            lines.append(f"  {name:<9} {found.value:>10.5g} in [{low:.5g}, {high:.5g}]")
        lines.append(f"  all data  {self.full}")
        missing = int((~self.converged).sum())
        if missing:
            lines.append(
                f"  {missing} of {len(self.values)} did NOT converge: raise max_products or tol"
            )
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the lines with what is wrong in yellow."""
        text = str(self).replace("[", chr(92) + "[")
        return text.replace("NOT converge", "[yellow]NOT converge[/yellow]")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values, the usual quantiles included."""
        return {
            "type": "minibatch sharpness",
            "values": self.values.tolist(),
            "intervals": self.intervals.tolist(),
            "converged": self.converged.tolist(),
            "full": self.full.to_json(),
            "mean": self.mean.to_json(),
            "quantiles": {str(q): self.quantile(q).to_json() for q in (0.1, 0.25, 0.5, 0.75, 0.9)},
            "batch_size": self.batch_size,
            "examples": self.examples,
            "weight_decay": self.weight_decay,
            "level": self.level,
            "augmented": self.augmented,
            "cost": self.cost.to_json(),
            "seed": self.seed,
        }


def minibatch_sharpness(
    land: FiniteSum,
    theta: Float[Tensor, " dim"],
    *,
    batch_size: int,
    batches: int = 32,
    weight_decay: float | None = None,
    augment: Augment | None = None,
    tol: float = 1e-4,
    max_products: int | None = None,
    level: float = 0.95,
    seed: Seed = None,
) -> MinibatchSharpness:
    r"""Return the distribution of $\lambda_{\max}(\nabla^2 L_B(\theta))$ over minibatches $B$.

    Each minibatch is drawn without replacement, independently of the others. Minibatches are
    sharper than all the data on average: $\lambda_{\max}$ is convex, so
    $\mathbb{E}\,\lambda_{\max}(H_B) \ge \lambda_{\max}(\mathbb{E} H_B)$ (Jensen), where
    $\mathbb{E} H_B = H$ if all examples weigh the same and nothing is augmented.

    Args:
        land: A weighted mean over examples. Its own penalty is part of every minibatch.
        theta: The point, `(dim,)`.
        batch_size: Examples in a minibatch, at most `examples`.
        batches: How many minibatches, at least 32.
        weight_decay: $\lambda$ of a decay that the landscape leaves out; adds exactly
            $\lambda$ to every eigenvalue, those of all the data too.
        augment: ``augment(inputs, generator)``, which returns changed inputs (the whole batch
            if that is a dict); called on every minibatch, never on all the data. It must draw
            from `generator` alone. Takes a `ModelLandscape`.
        tol: The residual aimed at, as a fraction of the operator's norm.
        max_products: How many products one minibatch may take.
        level: Nominal coverage of the intervals.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The values with certified intervals, their mean and quantiles, and the full batch.

    Raises:
        TypeError: If `augment` is given for a landscape that is no `ModelLandscape`.
        ValueError: If `batch_size`, `batches` or `weight_decay` is out of range.

    Example:
        >>> import torch.nn.functional as F
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.eye(2, dtype=torch.float64).repeat(8, 1)
        >>> land = ModelLandscape(model, F.mse_loss, (x, x.sum(1, keepdim=True)))
        >>> found = minibatch_sharpness(land, torch.zeros(2).double(), batch_size=1, seed=0)
        >>> found.full.upper, round(float(found.values.min()), 9)  # one example: 2 and 0
        (1.0, 2.0)
    """
    if not isinstance(land, FiniteSum):
        raise ValueError("this landscape is no mean over examples, so it has no minibatches")
    if augment is not None and not isinstance(land, ModelLandscape):
        raise TypeError(f"augment= takes a ModelLandscape, not a {type(land).__name__}")
    if not 1 <= batch_size <= land.examples:
        raise ValueError(f"batch_size must lie between 1 and {land.examples}, got {batch_size}")
    if batches < LEAST_SAMPLES:
        raise ValueError(
            f"batches={batches} is too few for an honest interval; take at least {LEAST_SAMPLES}"
        )
    decay = 0.0 if weight_decay is None else float(weight_decay)
    if not (decay >= 0 and math.isfinite(decay)):
        raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay!r}")
    theta = check_theta(theta, land.dim, land.dtype, land.device, single=True)
    generator, number = make_generator(seed)
    top = _Top(theta, tol, max_products, generator)
    full, cost = top.of(land)
    found: list[Eigenpairs] = []
    for _ in range(batches):
        chosen = torch.randperm(land.examples, generator=generator)[:batch_size].sort().values
        part, extra, share = land.minibatch(chosen), Cost(), 1.0
        if augment is not None and isinstance(part, ModelLandscape):
            part, extra = _augmented(part, theta, augment, generator)
            share = batch_size / land.examples  # a tally of its own counts it as all the data
        pairs, spent = top.of(part)
        spent = extra + spent
        cost += Cost(spent.losses, spent.gradients, spent.hvps, spent.passes * share)
        found.append(pairs)
    values = torch.cat([pairs.values[:1] for pairs in found]) + decay
    intervals = torch.stack([pairs.intervals[0] for pairs in found]) + decay
    whole = sharpness_bound(full)
    return MinibatchSharpness(
        values=values,
        intervals=intervals,
        converged=torch.cat([pairs.converged[:1] for pairs in found]),
        full=Bound(
            whole.lower + decay,
            whole.upper + decay,
            whole.lower_kind,
            whole.upper_kind,
            whole.cost,
            whole.method,
        ),
        mean=_mean(values, intervals, cost, level, number),
        batch_size=batch_size,
        examples=land.examples,
        weight_decay=decay,
        level=level,
        cost=cost,
        seed=number,
        augmented=augment is not None,
    )


@dataclass(frozen=True)
class _Top:
    """Finds the largest eigenvalue of one landscape after the other, at the same point."""

    theta: Tensor
    tol: float
    max_products: int | None
    generator: torch.Generator

    def of(self, land: Landscape) -> tuple[Eigenpairs, Cost]:
        """Return the pair, and what it took."""
        with Hessian(land, self.theta) as hessian:
            pairs = eigenpairs(
                hessian, 1, tol=self.tol, max_products=self.max_products, seed=self.generator
            )
            return pairs, hessian.cost


def _augmented(
    part: ModelLandscape, theta: Tensor, augment: Augment, generator: torch.Generator
) -> tuple[ModelLandscape, Cost]:
    """Return the landscape of a minibatch whose inputs went through `augment`."""
    changed: list[Any] = []
    for batch in (piece.batch for piece in part.batches(theta)):
        if isinstance(batch, Mapping):
            changed.append(augment(dict(batch), generator))
        elif isinstance(batch, (tuple, list)):
            changed.append((augment(batch[0], generator), *batch[1:]))
        else:
            changed.append(augment(batch, generator))
    other = part.with_data(changed)
    return other, other.cost


def _mean(values: Tensor, intervals: Tensor, cost: Cost, level: float, seed: int) -> Estimate:
    """Return the mean, its interval widened by that of the eigenvalues."""
    low, high = mean_interval(values.numpy(), level)
    below = float((values - intervals[:, 0]).mean())
    above = float((intervals[:, 1] - values).mean())
    error = float(np.std(values.numpy(), ddof=1)) / math.sqrt(len(values))
    return Estimate(
        float(values.mean()), error, (low - below, high + above), len(values), cost, level, _MEAN,
        seed,
    )  # fmt: skip
