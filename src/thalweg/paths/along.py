"""Loss and metrics along a path on other data: what the path is worth to a test set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.estimate import Cost, Estimate
from thalweg.landscape.model import ModelLandscape
from thalweg.landscape.protocols import Landscape, check_theta, for_evaluation
from thalweg.paths.path import Path, places

__all__ = ["Along", "Sampled", "along"]

Model = nn.Module | Mapping[str, Tensor] | str | File


@runtime_checkable
class Sampled(Protocol):
    """A landscape over examples: its loss and metrics have a sampling error."""

    def loss_estimate(self, theta: Float[Tensor, " dim"]) -> Estimate:
        """Return the loss with the data's sampling error."""
        ...

    def metrics(self, theta: Float[Tensor, " dim"]) -> dict[str, Estimate]:
        """Return every metric with the data's sampling error."""
        ...


@dataclass(frozen=True, eq=False)
class Along:
    """Loss and metrics at places along a path.

    Attributes:
        times: Normalised arc lengths, from 0 to 1.
        losses: The loss at each, with the data's sampling error.
        metrics: By name, one estimate for each place.
        cost: What it took.
        shipped: The loss of the two networks between which the path runs, each with its own
            BatchNorm statistics; None where they were not given.
    """

    times: tuple[float, ...]
    losses: tuple[Estimate, ...]
    metrics: dict[str, tuple[Estimate, ...]]
    cost: Cost
    shipped: tuple[Estimate, Estimate] | None = None

    @property
    def worst(self) -> tuple[float, Estimate]:
        """Where the loss is highest, and the loss there; NaN counts as highest."""
        at = int(torch.tensor([x.value for x in self.losses]).argmax())
        return self.times[at], self.losses[at]

    def __str__(self) -> str:
        """Return a table, one line per place."""
        names = list(self.metrics)
        rows = [f"{'t':>6}  {'loss':<28}" + "".join(f"  {name:<24}" for name in names)]
        for i, (t, loss) in enumerate(zip(self.times, self.losses, strict=True)):
            cells = [_short(self.metrics[name][i]) for name in names]
            rows.append(
                f"{t:6.3f}  {_short(loss):<28}" + "".join(f"  {cell:<24}" for cell in cells)
            )
        if self.shipped is not None:
            first, last = map(_short, self.shipped)
            rows.append(f"as shipped: {first} at t = 0, {last} at t = 1")
        return "\n".join([*(row.rstrip() for row in rows), str(self.cost)])

    def __rich__(self) -> str:
        """Return the table."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "type": "along",
            "times": list(self.times),
            "losses": [x.to_json() for x in self.losses],
            "metrics": {k: [x.to_json() for x in v] for k, v in self.metrics.items()},
            "cost": self.cost.to_json(),
            "shipped": None if self.shipped is None else [x.to_json() for x in self.shipped],
        }


def _short(value: Estimate) -> str:
    return str(replace(value, cost=Cost()))


def along(
    land: Landscape,
    path: Path | Float[Tensor, "points dim"],
    *,
    times: int | Sequence[float] = 21,
    models: tuple[Model, Model] | None = None,
) -> Along:
    """Evaluate loss and metrics at places along a path, each with its sampling error.

    The landscape may be another than the path was found on: ``land.with_data(test_set)``.
    A network with BatchNorm is evaluated with its statistics re-estimated on the data given,
    at every place, the ends included; with `models`, the loss of the two networks with the
    statistics they came with stands beside it.

    Args:
        land: The landscape to evaluate on.
        path: A path, or its corners `(K, dim)`.
        times: How many places at equal distances, the ends among them, or the normalised
            arc lengths themselves.
        models: The networks at the two ends (modules, state dicts or checkpoints); the loss
            of each as shipped is given as well.

    Returns:
        The loss and every metric of the landscape, place by place. A landscape without data
        has no sampling error: intervals of no width and no metrics.

    Raises:
        ValueError: If there are fewer than two places, or one lies outside [0, 1]; if a model
            is not what the path's end is, or lacks its statistics.
        TypeError: If models are given for a landscape that is no network.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> bowl = FunctionLandscape(lambda x: (x**2).sum(), dim=2)
        >>> corners = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> [round(x.value, 3) for x in along(bowl, corners, times=3).losses]
        [1.0, 0.5, 1.0]
    """
    view = for_evaluation(land)
    asked = torch.linspace(0, 1, times).tolist() if isinstance(times, int) else list(times)
    if len(asked) < 2:
        raise ValueError(f"times must name at least two places, got {times!r}")
    before = view.cost
    corners = _corners(land, path)
    points = places(corners, torch.tensor(asked, dtype=torch.float64))
    shipped = None if models is None else _shipped(view, corners[[0, -1]], models)
    losses: list[Estimate] = []
    metrics: dict[str, list[Estimate]] = {}
    for theta in points:
        if isinstance(view, Sampled):
            losses.append(view.loss_estimate(theta))
            for name, metric in view.metrics(theta).items():
                metrics.setdefault(name, []).append(metric)
        else:
            loss = float(view.loss(theta))
            losses.append(Estimate(loss, 0.0, (loss, loss), 1, method="one evaluation"))
    return Along(
        tuple(float(t) for t in asked),
        tuple(losses),
        {name: tuple(values) for name, values in metrics.items()},
        view.cost - before,
        shipped,
    )


def _shipped(
    land: Landscape, ends: Tensor, models: tuple[Model, Model]
) -> tuple[Estimate, Estimate]:
    if not isinstance(land, ModelLandscape):
        raise TypeError(f"models need a ModelLandscape, got a {type(land).__name__}")
    if len(models) != 2:
        raise ValueError(f"models must be the two networks at the path's ends, got {len(models)}")
    owns = [land.vector(model) for model in models]
    for where, end, own, other in zip(("begins", "ends"), ends, owns, reversed(ends), strict=True):
        if torch.equal(own, end):
            continue
        # a relabelled end is another vector and the same function
        here, there = float(land.loss(end)), float(land.loss(own))
        if torch.equal(own, other) or not math.isclose(here, there, rel_tol=1e-4, abs_tol=1e-7):
            raise ValueError(
                f"the path {where} at a loss of {here:.6g}, the model given for that end is "
                f"another, of loss {there:.6g} under the same policy; pass the models in the "
                "path's order"
            )
    return land.as_shipped(models[0]), land.as_shipped(models[1])


def _corners(land: Landscape, path: Path | Tensor) -> Tensor:
    corners = path.points if isinstance(path, Path) else path
    corners = check_theta(corners, land.dim, land.dtype, land.device)
    if corners.ndim != 2 or len(corners) < 2:
        raise ValueError(
            f"path has shape {tuple(corners.shape)}; it needs (at least 2, {land.dim})"
        )
    return corners
