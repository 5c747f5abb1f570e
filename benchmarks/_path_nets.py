"""Pairs of trained networks on real data, between which the benchmark looks for low paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.landscape import ModelLandscape
from thalweg.optim import minimise, train
from thalweg.zoo import digits, lstm, mlp, transformer
from thalweg.zoo.landscapes import digits_mlp, digits_resnet, fashion_cnn


@dataclass(frozen=True)
class Net:
    """A network with its data.

    Args:
        name: What tables and ``--nets`` call it.
        make: Builds its landscape.
        examples: How many examples a quick run keeps.
        budgets: Its budgets in a quick run, in gradients over all the data.
    """

    name: str
    make: Callable[[], ModelLandscape]
    examples: int = 500
    budgets: tuple[int, ...] = (200, 600)

    def landscape(self, full: bool) -> ModelLandscape:
        """Return the landscape over all its data, or over the first examples."""
        land = self.make()
        if full or land.examples <= self.examples:
            return land
        part: ModelLandscape = land.minibatch(torch.arange(self.examples))
        return part

    def ends(self, land: ModelLandscape, pair: int) -> tuple[Tensor, Tensor]:
        """Return two minima from seeds of their own: minibatches first, then all the data."""
        found = []
        for seed in (2 * pair, 2 * pair + 1):
            theta = land.start(torch.Generator().manual_seed(seed))
            theta = train(land, theta, epochs=30, batch_size=64, lr=1e-2, seed=seed).theta
            found.append(minimise(land, theta, tol=1e-4, max_gradients=300).theta)
        return found[0], found[1]


def _on_digits(model: torch.nn.Module, *, image: bool, penalty: float = 1e-3) -> ModelLandscape:
    return ModelLandscape(
        model, F.cross_entropy, digits("train", image=image).tensors, penalty=penalty,
        metrics="accuracy",
    )  # fmt: skip


def _relu() -> ModelLandscape:
    return _on_digits(mlp((64, 16, 16, 10), activation="relu", seed=0), image=False)


def _transformer() -> ModelLandscape:
    return _on_digits(transformer(16, 2, 1, length=8, features=8, seed=0), image=True)


NETS = (
    Net("tanh MLP", digits_mlp),
    Net("ReLU MLP", _relu),
    Net("LSTM", lambda: _on_digits(lstm(12, features=8, seed=0), image=True), 300),
    Net("BatchNorm ResNet", digits_resnet, 300, (200,)),
    Net("CNN", fashion_cnn, 300, (200,)),
    Net("transformer", _transformer, 200, (200,)),
)
