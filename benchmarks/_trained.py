"""Trained networks on real digits, small enough for a dense Hessian in float64.

Products cost what shapes say, but how many an algorithm needs depends on the spectrum: so
these networks are trained, and stopped at several stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from nets import Problem
from torch import Tensor, nn

from thalweg.landscape import ModelLandscape
from thalweg.zoo import cnn, digits, lstm, mlp, resnet


@dataclass(frozen=True)
class Stage:
    """A network after some steps of training.

    Args:
        name: What tables and ``--nets`` call it.
        make: Builds the network from a seed.
        steps: Full-batch steps of Adam; 0 for a network as it is drawn.
        flat: Whether the network takes the images as vectors of 64 numbers.
        squared: Mean squared error against one-hot targets instead of cross-entropy.
        rate: Adam's rate.
        slow: Whether its dense Hessian takes a minute, which only ``--full`` spends.
    """

    name: str
    make: Callable[[int], nn.Module]
    steps: int
    flat: bool = True
    squared: bool = False
    rate: float = 1e-2
    slow: bool = False

    def problem(self, examples: int, dtype: torch.dtype = torch.float64) -> Problem:
        """Return the network with its data, in evaluation mode; the same on every call."""
        return _train(self, examples, dtype)


@lru_cache(maxsize=32)
def _train(stage: Stage, examples: int, dtype: torch.dtype) -> Problem:
    inputs, targets = digits("train", image=not stage.flat).subset(examples).tensors
    inputs = inputs.to(dtype)
    if stage.squared:
        targets = F.one_hot(targets, 10).to(dtype)
    loss = nn.MSELoss() if stage.squared else nn.CrossEntropyLoss()
    model = stage.make(0).to(dtype)
    with torch.no_grad():
        model(inputs)  # BatchNorm's statistics
    model.eval()
    optimiser = torch.optim.Adam(model.parameters(), lr=stage.rate)
    for _ in range(stage.steps):
        optimiser.zero_grad()
        loss(model(inputs), targets).backward()
        optimiser.step()
    optimiser.zero_grad()
    return Problem(model, inputs, targets, loss)


def dense(problem: Problem) -> Tensor:
    """Return the Hessian in float64 by plain autograd, symmetrised: the truth."""
    params = problem.parameters
    parts = torch.autograd.grad(problem.mean_loss(), params, create_graph=True)
    slope = torch.cat([part.reshape(-1) for part in parts])
    rows = []
    for units in torch.eye(problem.dim, dtype=slope.dtype).split(64):
        found = torch.autograd.grad(
            slope, params, units, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(len(units), -1) for part in found], dim=1))
    matrix = torch.cat(rows).double()
    return (matrix + matrix.T) / 2


def gauss_newton(problem: Problem) -> Tensor:
    """Return the Gauss-Newton matrix in float64 from the dense Jacobian: the truth."""
    names = [name for name, _ in problem.model.named_parameters()]
    values = tuple(p.detach() for p in problem.parameters)

    def outputs(*parts: Tensor) -> Tensor:
        state = dict(zip(names, parts, strict=True))
        result: Tensor = torch.func.functional_call(problem.model, state, (problem.inputs,))
        return result

    parts = torch.func.jacrev(outputs, argnums=tuple(range(len(values))))(*values)
    examples = len(problem.inputs)
    jacobian = torch.cat([p.reshape(examples, 10, -1) for p in parts], dim=2).double()
    if isinstance(problem.loss, nn.MSELoss):  # the mean over examples and classes
        scaled = jacobian * (2 / 10) ** 0.5
    else:
        chances = outputs(*values).detach().double().softmax(1)
        roots = chances.sqrt()
        # diag(p) - p p^T = S^T S with S = (I - sqrt(p) sqrt(p)^T) diag(sqrt(p))
        mean = torch.einsum("nc,ncd->nd", chances, jacobian)
        scaled = roots[:, :, None] * (jacobian - mean[:, None])
    rows = scaled.reshape(-1, jacobian.shape[2])
    return rows.T @ rows / examples


def landscape(problem: Problem, **options: object) -> tuple[ModelLandscape, Tensor]:
    """Return Thalweg's landscape of a problem in its own dtype, and the network's vector."""
    data = (problem.inputs, problem.targets)
    land = ModelLandscape(problem.model, problem.loss, data, **options)
    return land, land.vector(problem.model)


def _digits_mlp(activation: str, *hidden: int) -> Callable[[int], nn.Module]:
    return lambda seed: mlp((64, *hidden, 10), activation=activation, seed=seed)


TANH, RELU = _digits_mlp("tanh", 16), _digits_mlp("relu", 16)
STAGES = (
    Stage("softmax regression", _digits_mlp("tanh"), 300),
    Stage("tanh, untrained", TANH, 0),
    Stage("tanh, 30 steps", TANH, 30),
    Stage("tanh, 400 steps", TANH, 400),
    Stage("ReLU, 30 steps", RELU, 30),
    Stage("ReLU, 400 steps", RELU, 400),
    Stage("deep ReLU, 200 steps", _digits_mlp("relu", 16, 12, 12), 200),
    Stage("squared error, 200 steps", TANH, 200, squared=True),
    Stage("CNN, 200 steps", lambda seed: cnn((4, 6), grid=2, seed=seed), 200, flat=False),
    Stage("ResNet, 100 steps", lambda seed: resnet(2, seed=seed), 100, flat=False, slow=True),
    Stage("LSTM, 100 steps", lambda seed: lstm(8, features=8, seed=seed), 100, flat=False),
)
LARGE = Stage("ReLU of 100,370", _digits_mlp("relu", 300, 260), 100, rate=1e-3)
