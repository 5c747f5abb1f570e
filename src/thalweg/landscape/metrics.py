"""Numbers beside the loss, and how far the data as a sample determines them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor
from torch.utils._pytree import tree_map

from thalweg.estimate import Cost, Estimate
from thalweg.landscape.data import cut, divisible, leading, target_of
from thalweg.landscape.sweep import Sweep

__all__ = ["Metric", "loss_estimate", "make_metrics", "measure"]

Metric = Callable[[Any, Any], Tensor]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the largest output names the target class, else 0, per example."""
    return (outputs.argmax(-1) == targets).double().flatten(1).mean(1) if targets.ndim > 1 else (
        outputs.argmax(-1) == targets
    ).double()


KNOWN: dict[str, Metric] = {"accuracy": accuracy}


def make_metrics(metrics: str | Sequence[str] | Mapping[str, Metric] | None) -> dict[str, Metric]:
    """Look up metrics by name, or take the user's own.

    Raises:
        ValueError: If a name is unknown.
    """
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping):
        return dict(metrics)
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise ValueError(
            f"unknown metric {unknown[0]!r}; known: {', '.join(KNOWN)}; or pass "
            "{'name': function(outputs, targets) -> one value per example}"
        )
    return {name: KNOWN[name] for name in names}


def _mean(values: Tensor, method: str, cost: Cost) -> Estimate:
    """Estimate a population mean from one value per example."""
    values = values.double()
    count, mean = len(values), float(values.mean())
    if bool(((values == 0) | (values == 1)).all()):
        test = stats.binomtest(int(values.sum()), count)
        low, high = test.proportion_ci(0.95, method="wilson")
        return Estimate(
            mean, math.sqrt(mean * (1 - mean) / count), (float(low), float(high)), count, cost,
            method=f"{method}; Wilson interval",
        )
    stderr = float(values.std()) / math.sqrt(count) if count > 1 else math.nan
    return _symmetric(mean, stderr, count, method, cost)


def _symmetric(mean: float, stderr: float, count: int, method: str, cost: Cost) -> Estimate:
    if not math.isfinite(stderr):
        return Estimate(mean, math.nan, (-math.inf, math.inf), count, cost, method=method)
    half = float(stats.t.ppf(0.975, max(count - 1, 1))) * stderr
    return Estimate(
        mean, stderr, (mean - half, mean + half), count, cost, method=f"{method}; Student interval"
    )


def measure(sweep: Sweep, metrics: Mapping[str, Metric], theta: Tensor) -> dict[str, Estimate]:
    """Return every metric at one vector, with the sampling error of the data."""
    before = sweep.ledger.total
    found: dict[str, list[Tensor]] = {name: [] for name in metrics}
    for outputs, chunk in _outputs(sweep, theta):
        for name, metric in metrics.items():
            values = metric(outputs, target_of(chunk))
            if not isinstance(values, Tensor) or values.shape[:1] != (leading(chunk),):
                shown = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ValueError(
                    f"metric {name!r} must return one value per example, shape "
                    f"({leading(chunk)},), but returned {shown}"
                )
            found[name].append(values.detach().reshape(leading(chunk), -1).double().mean(1))
    cost = sweep.ledger.total - before
    return {
        name: _mean(torch.cat(parts), f"mean of {name} over examples", cost)
        for name, parts in found.items()
    }


def _outputs(sweep: Sweep, theta: Tensor) -> Iterator[tuple[Any, Any]]:
    """Yield (outputs, chunk) over the data at one vector."""
    buffers = sweep.statistics(theta) if sweep.policy == "recompute" else None
    views = sweep.network.spec.views(theta)
    sweep.ledger.add(losses=1, passes=sweep.share)
    for chunk in sweep.guarded("loss"):
        with sweep.guard(), torch.no_grad():
            outputs = sweep.network.call(views, chunk, buffers)
        yield outputs, chunk


def loss_estimate(sweep: Sweep, theta: Tensor) -> Estimate:
    r"""Return the loss with its sampling error, the data seen as a sample of a population.

    For weights $w_i$ and own losses $\ell_i$ of the examples, the ratio estimator's error is
    $\frac{n}{n-1} \sum_i w_i^2 (\ell_i - L)^2 / (\sum_i w_i)^2$ under the root. The penalty is
    added to the value; it has no sampling error.
    """
    before = sweep.ledger.total
    losses, weights = [], []
    for outputs, chunk in _outputs(sweep, theta):
        own, weight = _own_losses(sweep, outputs, chunk, theta)
        losses.append(own)
        weights.append(weight)
    loss, weight = torch.cat(losses), torch.cat(weights)
    count, total = len(loss), float(weight.sum())
    mean = float((weight * loss).sum() / total)
    spread = float((weight**2 * (loss - mean) ** 2).sum())
    stderr = math.sqrt(count / (count - 1) * spread) / total if count > 1 else math.nan
    penalty = float(sweep.penalty.value_and_gradient(theta)[0]) if sweep.penalty else 0.0
    return _symmetric(
        mean + penalty, stderr, count, "mean loss over examples", sweep.ledger.total - before
    )


def _own_losses(
    sweep: Sweep, outputs: Any, chunk: Any, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return every example's own loss and weight."""
    count = leading(chunk)
    if divisible(outputs) and leading(outputs) == count and divisible(chunk):
        try:
            return _together(sweep, outputs, chunk)
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            scored = [
                sweep.objective(cut(outputs, i, i + 1), cut(chunk, i, i + 1)) for i in range(count)
            ]
    elif divisible(chunk) and sweep.policy in (None, "frozen"):
        views = sweep.network.spec.views(theta)
        scored = [sweep.score(views, cut(chunk, i, i + 1)) for i in range(count)]
    else:
        raise ValueError(
            "the examples of this data cannot be told apart, so the loss has no sampling error"
        )
    return (
        torch.stack([mean.detach().double() for mean, _ in scored]),
        torch.tensor([float(weight) for _, weight in scored], dtype=torch.float64),
    )


def _together(sweep: Sweep, outputs: Any, chunk: Any) -> tuple[Tensor, Tensor]:
    """Return own losses and weights of all examples by vmap."""

    def own(output: Any, example: Any) -> tuple[Tensor, Tensor]:
        mean, weight = sweep.objective(
            tree_map(lambda t: t[None], output), tree_map(lambda t: t[None], example)
        )
        return mean.double(), torch.as_tensor(weight, dtype=torch.float64, device=mean.device)

    with torch.no_grad():
        means, weights = torch.func.vmap(own)(outputs, chunk)
    return means, weights
