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
from thalweg.landscape.intervals import LEAST_SAMPLES, mean_interval
from thalweg.landscape.seeding import preserve_rng
from thalweg.landscape.sweep import Sweep, positive

__all__ = ["Metric", "loss_estimate", "make_metrics", "measure", "own_losses"]

Metric = Callable[[Any, Any], Tensor]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the largest output names the target class, else 0, per example.

    Raises:
        ValueError: If the outputs are not one score per class, in the last axis.
    """
    whole = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if not whole or outputs.shape[:-1] != targets.shape or outputs.shape[-1] < 2:
        shapes = [
            tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            for t in (outputs, targets)
        ]
        raise ValueError(
            f"accuracy needs outputs (..., classes) with two or more classes and integer targets "
            f"(...), but has {shapes[0]} and {shapes[1]}; pass metrics={{'accuracy': "
            "function(outputs, targets) -> one value per example}"
        )
    return (outputs.argmax(-1) == targets).double()


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
            mean,
            math.sqrt(mean * (1 - mean) / count),
            (float(low), float(high)),
            count,
            cost,
            method=f"{method}; Wilson interval",
        )
    return _sampled(values, method, cost)


def _sampled(values: Tensor, method: str, cost: Cost, shift: float = 0.0) -> Estimate:
    """Estimate a population mean, plus a known shift, from independent values."""
    count, mean = len(values), float(values.mean()) + shift
    if count < 2 or not bool(torch.isfinite(values).all()):
        return Estimate(mean, math.nan, (-math.inf, math.inf), count, cost, method=method)
    stderr = float(values.std()) / math.sqrt(count)
    if count >= LEAST_SAMPLES:
        low, high = (end + shift for end in mean_interval(values.cpu().numpy()))
        return Estimate(
            mean, stderr, (low, high), count, cost, method=f"{method}; Student and Hall interval"
        )
    half = float(stats.t.ppf(0.975, count - 1)) * stderr
    return Estimate(
        mean, stderr, (mean - half, mean + half), count, cost, method=f"{method}; Student interval"
    )


def measure(sweep: Sweep, metrics: Mapping[str, Metric], theta: Tensor) -> dict[str, Estimate]:
    """Return every metric at one vector, with the sampling error of the data."""
    before = sweep.ledger.total
    found: dict[str, list[Tensor]] = {name: [] for name in metrics}
    for outputs, chunk in _outputs(sweep, theta):
        for name, metric in metrics.items():
            with preserve_rng(), torch.no_grad():
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

    For weights $w_i$ and own losses $\ell_i$ of the examples, the ratio estimator has the error
    of the mean of its linearisation, $u_i = L + n w_i (\ell_i - L) / \sum_j w_j$ (Cochran 1977,
    Sampling techniques, chapter 6). The penalty is added to the value; it has no sampling
    error.
    """
    before = sweep.ledger.total
    losses, weights = [], []
    for outputs, chunk in _outputs(sweep, theta):
        with sweep.guard(), torch.no_grad():
            own, weight = own_losses(sweep, outputs, chunk, theta)
        losses.append(own)
        weights.append(weight)
    loss, weight = torch.cat(losses), torch.cat(weights)
    count, total = len(loss), float(weight.sum())
    loss = torch.where(weight == 0, 0.0, loss)  # without weight there is no loss, but 0 / 0
    mean = float((weight * loss).sum() / positive(total))
    penalty = float(sweep.penalty.value_and_gradient(theta)[0]) if sweep.penalty else 0.0
    return _sampled(
        mean + count / total * weight * (loss - mean),
        "mean loss over examples",
        sweep.ledger.total - before,
        penalty,
    )


def own_losses(sweep: Sweep, outputs: Any, chunk: Any, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return every example's own loss and weight.

    Raises:
        ValueError: If the examples cannot be told apart.
    """
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
        torch.tensor(
            [float(weight) for _, weight in scored], dtype=torch.float64, device=theta.device
        ),
    )


def _together(sweep: Sweep, outputs: Any, chunk: Any) -> tuple[Tensor, Tensor]:
    """Return own losses and weights of all examples by vmap."""

    def own(output: Any, example: Any) -> tuple[Tensor, Tensor]:
        mean, weight = sweep.objective(
            tree_map(lambda t: t[None], output), tree_map(lambda t: t[None], example)
        )
        return mean.double(), torch.as_tensor(weight, dtype=torch.float64, device=mean.device)

    return torch.func.vmap(own)(outputs, chunk)
