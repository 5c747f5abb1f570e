"""The peers' ways from one minimum to another, at a budget of full-data gradients.

AutoNEB is run with its authors' own code, which a checkout has to provide; Garipov's
training script no longer parses (``async`` became a keyword) and wants CUDA, so that its
published schedule is run here.
"""

from __future__ import annotations

import importlib
import math
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.landscape import ModelLandscape
from thalweg.landscape.minibatches import Minibatches

AUTONEB_STEPS = [1000] * 4 + [2000] * 2 + [1000] * 8  # configs/cifar10-resnet20.yaml
AUTONEB_RATES = [0.1] * 6 + [0.01] * 4 + [0.001] * 4
AUTONEB_BATCH, GARIPOV_BATCH, GARIPOV_RATE = 512, 128, 0.03
_FIRST_PIVOTS, _MORE_PIVOTS = 3, 2


class Diverged(ArithmeticError):
    """A path left the finite numbers."""


@contextmanager
def autoneb(folder: Path | None) -> Iterator[types.ModuleType]:
    """Import AutoNEB from a checkout of github.com/fdraxler/PyTorch-AutoNEB.

    Raises:
        ImportError: If there is no checkout, or it does not import.
    """
    if folder is None:
        raise ImportError("no checkout given (--autoneb FOLDER)")
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("torch_autoneb")
    finally:
        sys.path.remove(str(folder))


class _Seen:
    """A landscape as AutoNEB's band sees a model: a fresh minibatch for every pivot."""

    def __init__(self, land: ModelLandscape, generator: torch.Generator) -> None:
        self.land, self.generator = land, generator
        self.theta = torch.zeros(land.dim, dtype=land.dtype)
        self.stored_parameters = [self.theta]
        self.slope = torch.zeros_like(self.theta)
        self.batches = Minibatches(land, land.examples, generator)

    def to(self, *_: Any, **__: Any) -> None:
        """Stay where it is."""

    def adapt_to_config(self, config: Any) -> None:
        self.batches = Minibatches(
            self.land, min(config.batch_size, self.land.examples), self.generator
        )

    def set_coords_no_grad(self, coords: Tensor) -> None:
        self.theta = coords.detach().clone()

    def get_coords(self, target: Tensor, **_: Any) -> None:
        target[:] = self.theta

    def get_grad(self, target: Tensor, **_: Any) -> None:
        target[:] = self.slope

    def apply(self, gradient: bool = False) -> float:
        part = self.batches.draw()
        if not gradient:
            return float(part.loss(self.theta))
        loss, self.slope = part.value_and_gradient(self.theta)
        if not math.isfinite(float(loss)):
            raise Diverged("a pivot's loss is not finite")
        return float(loss)

    def analyse(self) -> dict[str, float]:
        return {"train_loss": float(self.land.loss(self.theta))}


def run_autoneb(
    neb: types.ModuleType, land: ModelLandscape, a: Tensor, b: Tensor, budget: float, seed: int
) -> Tensor:
    """Run AutoNEB's own code with its published cycles, their steps scaled to the budget.

    What is left of the budget is shared among the cycles left, as if no more pivots came.

    Returns:
        The pivots.
    """
    batch = min(AUTONEB_BATCH, land.examples)
    share, left = batch / land.examples, budget
    model = _Seen(land, torch.Generator().manual_seed(seed))
    data: dict[str, Any] = {"path_coords": torch.stack([a, b]), "target_distances": torch.ones(1)}
    with redirect_stderr(StringIO()):
        for k, (count, rate) in enumerate(zip(AUTONEB_STEPS, AUTONEB_RATES, strict=True)):
            insert = (
                {"name": "equal", "count": _FIRST_PIVOTS}
                if k == 0
                else {"name": "highest", "count": _MORE_PIVOTS, "key": "dense_train_loss"}
            )
            free = len(data["path_coords"]) - 2 + (_FIRST_PIVOTS if k == 0 else 0)
            scale = left / (sum(AUTONEB_STEPS[k:]) * max(free, 1) * share)
            steps = max(1, round(count * scale))
            config = neb.config.NEBConfig.from_dict(
                {
                    "insert": insert,
                    "subsample_pivot_count": 9,
                    "spring_constant": "inf",
                    "weight_decay": 0.0,  # the landscape has its own
                    "optim": {
                        "nsteps": steps,
                        "algorithm": {"name": "SGD", "lr": rate, "momentum": 0.9},
                        "eval": {"batch_size": batch},
                    },
                }
            )
            data = neb.neb(data, model, config)
            left -= steps * (len(data["path_coords"]) - 2) * share
    pivots: Tensor = data["path_coords"]
    return pivots


def run_garipov(
    land: ModelLandscape, a: Tensor, b: Tensor, budget: float, seed: int, kind: str
) -> Tensor:
    """Train one bend by the published schedule: SGD, momentum .9, one t a minibatch.

    The rate is flat for half the epochs, falls linearly to a hundredth at nine tenths and
    stays there; an epoch is one full-data gradient.

    Returns:
        61 points of the curve, as many as they evaluate.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = Minibatches(land, min(GARIPOV_BATCH, land.examples), generator)
    steps = max(1, round(budget * batches.per_epoch))
    bend = ((a + b) / 2).clone().requires_grad_()
    rule = torch.optim.SGD([bend], lr=GARIPOV_RATE, momentum=0.9)
    for step in range(steps):
        t = float(torch.rand((), generator=generator))
        weights = _basis(kind, t)
        theta = weights[0] * a + weights[1] * bend.detach() + weights[2] * b
        loss, slope = batches.draw().value_and_gradient(theta)
        if not math.isfinite(float(loss)):
            raise Diverged(f"the curve's loss is not finite after {step} steps")
        done = step / steps
        factor = 1.0 if done <= 0.5 else max(0.01, 1.0 - (done - 0.5) / 0.4 * 0.99)
        rule.param_groups[0]["lr"] = GARIPOV_RATE * factor
        bend.grad = weights[1] * slope
        rule.step()
    times = torch.linspace(0, 1, 61, dtype=torch.float64).tolist()
    centre = bend.detach()
    return torch.stack(
        [w[0] * a + w[1] * centre + w[2] * b for w in (_basis(kind, t) for t in times)]
    )


def _basis(kind: str, t: float) -> tuple[float, float, float]:
    if kind == "bezier":
        return (1 - t) ** 2, 2 * t * (1 - t), t**2
    return max(0.0, 1 - 2 * t), 1 - abs(2 * t - 1), max(0.0, 2 * t - 1)
