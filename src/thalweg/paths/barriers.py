r"""The published definitions of a path's barrier, by name, and a height's sampling error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from thalweg.estimate import Bound, BoundKind, Cost, Estimate
from thalweg.landscape.intervals import LEAST_SAMPLES, mean_interval
from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.paths.path import Path
from thalweg.paths.sampling import upper_of_values

__all__ = ["Barrier", "Barriers", "barrier_definitions", "height_sampling"]


@runtime_checkable
class _Measured(Protocol):
    """A landscape with metrics beside its loss."""

    def metrics(self, theta: Float[Tensor, " dim"]) -> dict[str, Estimate]:
        """Return every metric at one vector."""
        ...


@runtime_checkable
class _Sampled(Protocol):
    """A landscape whose examples have losses of their own."""

    def example_losses(self, theta: Float[Tensor, " dim"]) -> tuple[Tensor, Tensor]:
        """Return every example's own loss and weight at one vector."""
        ...


@dataclass(frozen=True)
class Barrier:
    """One definition of a barrier, with its value on a path.

    Args:
        name: What it is called here.
        formula: What it is, in LaTeX.
        source: Who defined it so.
        bound: Its value on the path, bracketed.
        sampling: Its value with the data's sampling error, where the data are a sample.
    """

    name: str
    formula: str
    source: str
    bound: Bound
    sampling: Estimate | None = None

    def __str__(self) -> str:
        """Return name, value and source."""
        spread = f"; {self.sampling}" if self.sampling is not None else ""
        return f"{self.name}: {self.bound}{spread}  [{self.source}]"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "type": "barrier",
            "name": self.name,
            "formula": self.formula,
            "source": self.source,
            "bound": self.bound.to_json(),
            "sampling": None if self.sampling is None else self.sampling.to_json(),
        }


@dataclass(frozen=True)
class Barriers:
    """Every published definition of a barrier on one path; index it by name.

    Attributes:
        above_ends: Above the higher end.
        above_mean: Above the mean of the ends.
        above_chord: Above the straight line between the ends' losses.
        error: The same for the error rate, above the mean of the ends; None without a metric.
        cost: What they took beyond the path's own measurement.
    """

    above_ends: Barrier
    above_mean: Barrier
    above_chord: Barrier
    error: Barrier | None
    cost: Cost

    def __iter__(self) -> Iterator[Barrier]:
        """Go through the definitions that have a value."""
        every = (self.above_ends, self.above_mean, self.above_chord, self.error)
        return iter([barrier for barrier in every if barrier is not None])

    def __getitem__(self, name: str) -> Barrier:
        """Return one by name.

        Raises:
            KeyError: If it is unknown.
        """
        known = {barrier.name: barrier for barrier in self}
        if name not in known:
            raise KeyError(f"no barrier is called {name!r}; known: {', '.join(known)}")
        return known[name]

    def __str__(self) -> str:
        """Return one line for each definition."""
        lines = [str(barrier) for barrier in self]
        if self.error is None:
            lines.append("error: not measured; build the landscape with metrics='accuracy'")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the lines with their names in bold."""
        lines = str(self).replace("[", "\\[").split("\n")
        return "\n".join(
            f"[bold]{name}[/bold]{colon}{rest}"
            for name, colon, rest in (line.partition(":") for line in lines)
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "type": "barriers",
            "definitions": [barrier.to_json() for barrier in self],
            "cost": self.cost.to_json(),
        }


def barrier_definitions(
    path: Path,
    land: Landscape | None = None,
    *,
    metric: str = "accuracy",
    samples: int = 25,
) -> Barriers:
    r"""Return every published definition of a barrier on a path, by name.

    With $t$ the normalised arc length and $L_a$, $L_b$ the losses of the ends:

    - ``above_ends``: $\sup_t L - \max(L_a, L_b)$ (Draxler et al. 2018; `Path.height`),
    - ``above_mean``: $\sup_t L - (L_a + L_b)/2$ (Ainsworth et al. 2023, Git Re-Basin; the form
      of Frankle et al. for losses),
    - ``above_chord``: $\sup_t\, [L(\gamma(t)) - (1-t) L_a - t L_b]$ (Entezari et al. 2022),
    - ``error``: $\sup_t E - (E_a + E_b)/2$ with $E$ one less the metric (Frankle et al. 2020).

    They differ: on a slope without a bump the first is 0 and the second half the drop. The first
    two inherit the kinds of the path's maximum. The chord's supremum is bracketed from the
    same samples: below by the largest excess seen, above by values and second differences of
    the excess (estimated), but never above what is sure, the path's upper end less
    $\min(L_a, L_b)$. The error is sampled at `samples` equal steps, so that its upper end is
    estimated.

    Args:
        path: A measured path.
        land: The landscape, for the error; evaluated as `for_evaluation` has it.
        metric: Which of the landscape's metrics is one less the error.
        samples: Where the error is asked, ends included.

    Returns:
        The definitions.

    Raises:
        ValueError: If `samples` is below 2, or the landscape lacks the metric.

    References:
        F. Draxler et al. (2018), ICML. J. Frankle et al. (2020), ICML. R. Entezari et al.
        (2022), ICLR. S. Ainsworth, J. Hayase, S. Srinivasa (2023), ICLR.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> from thalweg.paths.path import measure
        >>> land = FunctionLandscape(lambda x: x[0], dim=1)
        >>> slope = measure(land, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
        >>> found = barrier_definitions(slope)
        >>> found["above_ends"].bound.lower, found["above_mean"].bound.lower
        (0.0, 0.5)
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, the ends, got {samples}")
    first, last = float(path.losses[0]), float(path.losses[-1])
    found = [
        Barrier(
            "above_ends",
            r"\sup_t L - \max(L_a, L_b)",
            "Draxler et al. 2018",
            path.height,
        ),
        Barrier(
            "above_mean",
            r"\sup_t L - (L_a + L_b)/2",
            "Ainsworth et al. 2023; Frankle et al. 2020",
            path.maximum.above((first + last) / 2),
        ),
        Barrier(
            "above_chord",
            r"\sup_t [L(\gamma(t)) - (1-t) L_a - t L_b]",
            "Entezari et al. 2022",
            _above_chord(path, first, last),
        ),
    ]
    if land is None:
        return Barriers(found[0], found[1], found[2], None, Cost())
    view = for_evaluation(land)
    before = view.cost
    error = _error(path, view, metric, samples)
    return Barriers(found[0], found[1], found[2], error, view.cost - before)


def _above_chord(path: Path, first: float, last: float) -> Bound:
    """Bracket the largest excess over the chord from the samples of the path's maximum."""
    profile, maximum = path.profile, path.maximum
    if not math.isfinite(maximum.lower):
        return maximum
    if first == last:
        return maximum.above(first)
    times, losses = profile.times.double().numpy(), profile.losses.double().numpy()
    excess = losses - ((1 - times) * first + times * last)
    corners = path.times.cpu().numpy()
    segments = np.clip(np.searchsorted(corners, times[:-1], side="right") - 1, 0, None)
    eps = torch.finfo(path.points.dtype).eps
    lower, proven = float(excess.max()), maximum.upper - min(first, last)
    guess = max(lower, upper_of_values(times, excess, segments, eps))
    kind: BoundKind = "estimated" if guess < proven else maximum.upper_kind
    upper = max(lower, min(guess, proven))
    return Bound(lower, upper, "certified", kind, method="samples of the path's maximum")


def _error(path: Path, view: Landscape, metric: str, samples: int) -> Barrier:
    """Bracket the error barrier from equally spaced samples, with the data's error."""
    before = view.cost
    times = torch.linspace(0, 1, samples, dtype=torch.float64)
    times = torch.unique(torch.cat([times, times.new_tensor([path.top_time])]))
    points = path.at(times.to(path.points.device))
    rates = []
    for point in points:
        found = view.metrics(point) if isinstance(view, _Measured) else {}
        if metric not in found:
            raise ValueError(
                f"the landscape has no metric {metric!r}, so there is no error barrier; build it "
                f"with metrics={metric!r}, or leave the landscape out"
            )
        rates.append(found[metric])
    errors = np.array([1 - rate.value for rate in rates])
    top, mean = rates[int(np.argmax(errors))], (errors[0] + errors[-1]) / 2
    lower = float(errors.max() - mean)
    jump = float(np.abs(np.diff(errors)).max())
    cost = view.cost - before
    bound = Bound(
        lower,
        min(lower + jump, 1.0 - mean),
        "certified",
        "estimated",
        cost,
        f"{len(errors)} samples; the upper end adds the largest step between two",
    )
    ends = (rates[0], rates[-1])
    low = (1 - top.interval[1]) - sum(1 - end.interval[0] for end in ends) / 2
    high = (1 - top.interval[0]) - sum(1 - end.interval[1] for end in ends) / 2
    sampling = Estimate(
        lower,
        top.stderr + (ends[0].stderr + ends[1].stderr) / 2,
        (low, high),
        top.samples,
        cost,
        method="intervals of the three error rates added, right for any correlation",
    )
    return Barrier("error", r"\sup_t E - (E_a + E_b)/2", "Frankle et al. 2020", bound, sampling)


def height_sampling(land: Landscape, path: Path, *, level: float = 0.95) -> Estimate:
    r"""Return a height's sampling error, the data seen as a sample of a population.

    $$ h = L(\theta^*) - \max(L_a, L_b) = \min(D_a, D_b), \qquad
    D_e = \frac{\sum_i w_i\, [\ell_i(\theta^*) - \ell_i(e)]}{\sum_i w_i} $$

    at the path's top $\theta^*$. The differences are paired, example by example, so that what
    makes an example hard at both points cancels. Each $D_e$ has an interval at the level
    $(1 + \text{level})/2$; if both hold, the smaller difference lies between the smaller of
    the lower and the smaller of the upper ends. The top is taken as given: that it was chosen
    on the same data makes the height of another sample lower, not higher. A penalty has no
    sampling error; its difference is added.

    Args:
        land: The landscape of a network over data, evaluated as `for_evaluation` has it.
        path: A measured path.
        level: Nominal coverage.

    Returns:
        The height at the top, with its interval.

    Raises:
        ValueError: If the landscape is no mean over examples that can be told apart.

    References:
        W. G. Cochran (1977), Sampling techniques, Wiley, chapter 6 (ratio estimators).

    Example:
        >>> from thalweg.landscape import ModelLandscape
        >>> from thalweg.paths.path import measure
        >>> x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
        >>> net = torch.nn.Linear(1, 1).double()
        >>> land = ModelLandscape(net, torch.nn.functional.mse_loss, (x, x**2))
        >>> ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> path = measure(land, ends)
        >>> path.height.lower in height_sampling(land, path)
        True
    """
    view = for_evaluation(land)
    if not isinstance(view, _Sampled):
        raise ValueError(
            f"a {type(land).__name__} has no losses of its examples, so a height has no "
            "sampling error here"
        )
    before = view.cost
    top, weights = view.example_losses(path.top)
    penalty = float(path.losses.new_tensor(path.maximum.lower)) - _mean(top, weights)
    found, errors = [], []
    for end, loss in ((path.points[0], path.losses[0]), (path.points[-1], path.losses[-1])):
        own, _ = view.example_losses(end)
        shift = penalty - (float(loss) - _mean(own, weights))
        value, stderr, interval = _paired(top - own, weights, (1 + level) / 2)
        found.append((value + shift, interval[0] + shift, interval[1] + shift))
        errors.append(stderr)
    smaller = int(found[1][0] < found[0][0])
    return Estimate(
        found[smaller][0],
        errors[smaller],
        (min(found[0][1], found[1][1]), min(found[0][2], found[1][2])),
        len(top),
        view.cost - before,
        level,
        "paired differences of the examples' losses at the top and at the ends",
    )


def _mean(losses: Tensor, weights: Tensor) -> float:
    return float((weights * losses).sum() / weights.sum())


def _paired(
    difference: Tensor, weights: Tensor, level: float
) -> tuple[float, float, tuple[float, float]]:
    """Return a weighted mean difference, its standard error and its interval."""
    mean, count = _mean(difference, weights), len(difference)
    own = mean + count / weights.sum() * weights * (difference - mean)
    if count < 2 or not bool(torch.isfinite(own).all()):
        return mean, math.nan, (-math.inf, math.inf)
    stderr = float(own.std()) / math.sqrt(count)
    if count >= LEAST_SAMPLES:
        return mean, stderr, mean_interval(own.cpu().numpy(), level)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * stderr
    return mean, stderr, (mean - half, mean + half)
