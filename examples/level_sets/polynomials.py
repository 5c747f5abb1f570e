"""The two regressions of Freeman and Bruna: y = x²/2 + x/4 + 1/10 and y = 8x³ - 10x² + 3x.

A 1-4-4-1 network of sigmoids, mean absolute error. The quadratic's has no biases and a sigmoid on
its output; the cubic's has biases and a linear output. Weights begin uniform in [-1, 1], biases
normal. Theirs takes 10,000 inputs drawn from [0, 1]; this one the midpoints of 64 equal parts,
which integrates the error at least as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from searches import Experiment
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.landscape.replacing import replacing

WIDTH = 4
POINTS = 64
RATE = 1e-3  # of Adam, for the ends and for the beads
SQUARE = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125)
CUBE = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.14, 0.15, 0.152, 0.154)
CUBE += (0.156, 0.158, 0.16, 0.162, 0.164, 0.168, 0.17, 0.2, 0.24, 0.28, 0.32)


@dataclass(frozen=True)
class Task:
    """A target, and the network that is fitted to it."""

    name: str
    target: Callable[[Tensor], Tensor]
    biases: bool
    levels: tuple[float, ...]

    @property
    def weights(self) -> int:
        """How many weights there are; biases come after them."""
        return WIDTH * (WIDTH + 2)

    @property
    def dim(self) -> int:
        """How many coordinates there are."""
        return self.weights + (2 * WIDTH + 1 if self.biases else 0)


QUADRATIC = Task("quadratic", lambda x: 0.5 * x**2 + 0.25 * x + 0.1, False, SQUARE)
CUBIC = Task("cubic", lambda x: 8 * x**3 - 10 * x**2 + 3 * x, True, CUBE)
TASKS = {task.name: task for task in (QUADRATIC, CUBIC)}


class Regression(FunctionLandscape):
    """The mean absolute error, at many networks in one sweep.

    `FunctionLandscape` would do it by vmap; written out in batched products it is several times
    faster at this size, and the numbers are the same (the tests compare them).
    """

    def __init__(self, task: Task, points: int = POINTS) -> None:
        self.task = task
        self.x = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        self.y = task.target(self.x)
        super().__init__(
            lambda theta: self.errors(theta[None])[0],
            task.dim,
            start=self.draw,
        )

    def draw(self, g: torch.Generator) -> Tensor:
        """Draw a network as they did."""
        weights = 2 * torch.rand(self.task.weights, generator=g, dtype=torch.float64) - 1
        biases = self.task.dim - self.task.weights
        return torch.cat([weights, torch.randn(biases, generator=g, dtype=torch.float64)])

    def layers(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return both hidden layers `(rows, width, points)` and the output `(rows, 1, points)`."""
        w, task = WIDTH, self.task
        first, second, third = self.matrices(theta)
        if task.biases:
            b1, b2, b3 = theta[:, task.weights :, None].split([w, w, 1], 1)
            h1 = torch.sigmoid(torch.addcmul(b1, first, self.x))
            h2 = torch.sigmoid(torch.baddbmm(b2, second, h1))
            return h1, h2, torch.baddbmm(b3, third, h2)
        h1 = torch.sigmoid(first * self.x)
        h2 = torch.sigmoid(torch.bmm(second, h1))
        return h1, h2, torch.sigmoid(torch.bmm(third, h2))

    def matrices(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights as `(rows, width, 1)`, `(rows, width, width)`, `(rows, 1, width)`."""
        n, w = len(theta), WIDTH
        first, second, third = theta[:, : self.task.weights].split([w, w * w, w], 1)
        return first[:, :, None], second.reshape(n, w, w), third[:, None]

    def errors(self, theta: Tensor) -> Tensor:
        """Return the error of every row."""
        return (self.layers(theta)[2][:, 0] - self.y).abs().mean(1)

    def loss(self, theta: Tensor) -> Tensor:
        """Return the error at every row."""
        rows = theta.detach().reshape(-1, self.dim)
        self._ledger.add(losses=len(rows), passes=1)
        with torch.no_grad():
            return self.errors(rows).reshape(theta.shape[:-1])

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the error and its gradient at every row, by the chain rule written out."""
        rows = theta.detach().reshape(-1, self.dim)
        self._ledger.add(losses=len(rows), gradients=len(rows), passes=1)
        with torch.no_grad():
            h1, h2, out = self.layers(rows)
            rest = out - self.y
            d3 = rest.sign() / len(self.y)
            if not self.task.biases:
                d3 *= out * (1 - out)
            _, second, third = self.matrices(rows)
            d2 = third.mT * d3 * (h2 - h2 * h2)
            d1 = torch.bmm(second.mT, d2) * (h1 - h1 * h1)
            parts = [d1 @ self.x, torch.bmm(d2, h1.mT).flatten(1), torch.bmm(h2, d3.mT)[:, :, 0]]
            if self.task.biases:
                parts += [d1.sum(2), d2.sum(2), d3.sum(2)]
            values = rest[:, 0].abs().mean(1)
        return values.reshape(theta.shape[:-1]), torch.cat(parts, 1).reshape(theta.shape)


def ends(task: Task, seeds: int, max_steps: int = 60_000) -> dict[tuple[float, int], Tensor]:
    """Train two networks per seed by Adam, and keep each as it first passes below every level.

    Args:
        task: The task.
        seeds: How many pairs.
        max_steps: A pair that is not below a level by then has no ends there.

    Returns:
        The pairs `(2, dim)`, by level and seed.
    """
    land = Regression(task)
    draws = [torch.Generator().manual_seed(1000 * s + i) for s in range(seeds) for i in range(2)]
    theta = torch.stack([land.start(g) for g in draws])
    levels = sorted(task.levels, reverse=True)
    kept = [dict[float, Tensor]() for _ in draws]
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in range(1, max_steps + 1):
        values, gradient = land.value_and_gradient(theta)
        for row, value in enumerate(values.tolist()):
            for level in levels[len(kept[row]) :]:
                if value >= level:
                    break
                kept[row][level] = theta[row].clone()
        if all(len(one) == len(levels) for one in kept):
            break
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scaled = second.sqrt() / (1 - 0.999**step) ** 0.5 + 1e-8
        theta = theta - RATE * first / (1 - 0.9**step) / scaled
    return {
        (level, s): torch.stack([kept[2 * s][level], kept[2 * s + 1][level]])
        for s in range(seeds)
        for level in levels
        if level in kept[2 * s] and level in kept[2 * s + 1]
    }


def experiment(name: str, seeds: int, out: Path, *, quick: bool = False) -> Experiment:
    """Return the experiment, its ends trained or read from the folder.

    Args:
        name: ``"quadratic"`` or ``"cubic"``.
        seeds: How many pairs of ends.
        out: The folder.
        quick: Three high levels only.
    """
    task = TASKS[name]
    if quick:
        task = replace(task, levels=task.levels[-3:])
    file = out / name / f"ends-{seeds}.pt"
    if file.exists():
        trained = torch.load(file, weights_only=True)
    else:
        trained = ends(task, seeds, 2_000 if quick else 60_000)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as kept:
            torch.save(trained, kept)
    return Experiment(
        name,
        lambda: Regression(task),
        task.levels,
        lambda level, seed: trained.get((level, seed)),
        lambda level: level,
        {"lr": RATE, "max_steps": 50_000, "max_gradients": 2_000_000},
        slice(0, task.weights),
        side_by_side=True,
    )
