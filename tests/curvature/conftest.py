"""Landscapes and matrices whose curvature is known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.curvature import MatrixOperator
from thalweg.landscape import FunctionLandscape

for room in ("curvature", "landscape"):  # the truths that lie beside the tests
    sys.path.insert(0, str(Path(__file__).parents[1] / room))

INPUTS, HIDDEN, CLASSES, EXAMPLES = 5, 16, 3, 40
DIM = INPUTS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES


def outputs(theta: Tensor, inputs: Tensor) -> Tensor:
    """A tanh network with one hidden layer, as a function of its flat parameters."""
    sizes = [INPUTS * HIDDEN, HIDDEN, HIDDEN * CLASSES, CLASSES]
    first, bias, second, last = theta.split(sizes)
    hidden = torch.tanh(inputs @ first.reshape(INPUTS, HIDDEN) + bias)
    return hidden @ second.reshape(HIDDEN, CLASSES) + last


def blobs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Three noisy clouds."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.arange(EXAMPLES) % CLASSES
    centres = torch.randn(CLASSES, INPUTS, generator=generator, dtype=torch.float64)
    noise = torch.randn(EXAMPLES, INPUTS, generator=generator, dtype=torch.float64)
    return (centres[targets] + noise).to(dtype), targets


class Net:
    """The network's loss on the clouds, at a partly trained point."""

    def __init__(self, dtype: torch.dtype, steps: int) -> None:
        inputs, targets = blobs(dtype)
        self.loss = lambda theta: F.cross_entropy(outputs(theta, inputs), targets)
        self.land = FunctionLandscape(self.loss, DIM, dtype=dtype)
        generator = torch.Generator().manual_seed(5)
        double = Net.descend(torch.randn(DIM, generator=generator, dtype=torch.float64), steps)
        self.theta = double.to(dtype)

    @staticmethod
    def descend(theta: Tensor, steps: int) -> Tensor:
        """Take some steps of gradient descent in float64."""
        inputs, targets = blobs(torch.float64)
        for _ in range(steps):
            leaf = theta.clone().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(outputs(leaf, inputs), targets), leaf)
            theta = theta - 0.5 * slope
        return theta

    def dense(self) -> Tensor:
        """The Hessian in float64 at this very point, by torch.func."""
        inputs, targets = blobs(torch.float64)
        loss = lambda theta: F.cross_entropy(outputs(theta, inputs), targets)  # noqa: E731
        return torch.func.jacrev(torch.func.grad(loss))(self.theta.double())

    def gauss_newton(self) -> Tensor:
        """The Gauss-Newton matrix of the summed squared outputs: positive semidefinite."""
        inputs, _ = blobs(torch.float64)
        jacobian = torch.func.jacrev(lambda theta: outputs(theta, inputs).flatten())(
            self.theta.double()
        )
        return jacobian.T @ jacobian / EXAMPLES


@pytest.fixture(scope="session")
def net() -> Callable[..., Net]:
    """Build the network's landscape in some dtype, after some steps of training."""
    return lambda dtype=torch.float64, steps=30: Net(dtype, steps)


@pytest.fixture(scope="session")
def with_spectrum() -> Callable[..., MatrixOperator]:
    """Build a dense matrix with the given eigenvalues and random eigenvectors."""

    def build(
        values: Sequence[float], dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> MatrixOperator:
        spectrum = torch.as_tensor(values, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        square = torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(square)[0]
        matrix = (basis * spectrum) @ basis.T
        return MatrixOperator(((matrix + matrix.T) / 2).to(dtype))

    return build
