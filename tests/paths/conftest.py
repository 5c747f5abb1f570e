"""Landscapes whose passes are known in closed form, and digits in a small network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.optim import minimise


def _scalar_linear_net(decay: float) -> FunctionLandscape:
    """A product of two weights: minima at ±√(1-λ)(1, 1), barrier (1-λ)²/2."""
    return FunctionLandscape(lambda x: 0.5 * (x[0] * x[1] - 1) ** 2 + decay / 2 * (x**2).sum(), 2)


def _rank_one(eigenvalues: list[float], seed: int = 0) -> tuple[FunctionLandscape, Tensor]:
    """Fit M by u uᵀ; return the landscape and M's eigenvectors as rows, largest first."""
    n = len(eigenvalues)
    g = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q.T
    matrix = frame.T @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ frame
    return FunctionLandscape(lambda u: 0.25 * ((torch.outer(u, u) - matrix) ** 2).sum(), n), frame


def _rayleigh(eigenvalues: list[float]) -> FunctionLandscape:
    """The quadratic form on the sphere, as a function of the ray through x."""
    scales = torch.tensor(eigenvalues, dtype=torch.float64)
    return FunctionLandscape(lambda x: (scales * x**2).sum() / (x**2).sum(), len(eigenvalues))


def _digits_network() -> FunctionLandscape:
    """A ReLU network on digits with weight decay, of 64-hidden-10 units, in float32."""
    hidden, examples = 12, 300
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels[:examples] / 16, dtype=torch.float32)
    y = torch.tensor(labels[:examples])
    sizes = [hidden * 64, hidden, 10 * hidden, 10]

    def loss(theta: Tensor) -> Tensor:
        w, b, v, c = theta.split(sizes)
        h = torch.relu(x @ w.view(hidden, 64).T + b)
        fit = torch.nn.functional.cross_entropy(h @ v.view(10, hidden).T + c, y)
        return fit + 5e-4 * (theta**2).sum()

    dim = sum(sizes)
    return FunctionLandscape(
        loss,
        dim,
        dtype=torch.float32,
        start=lambda g: 0.15 * torch.randn(dim, generator=g),
    )


def _digits_pair(
    hidden: int, examples: int, max_gradients: int
) -> tuple[ModelLandscape, Tensor, Tensor]:
    """A ReLU network of 64-hidden-10 units on digits, and two minima, roughly."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels[:examples] / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    land = ModelLandscape(model, F.cross_entropy, (x, y[:examples]), penalty=1e-3)
    a, b = (
        minimise(
            land,
            land.start(torch.Generator().manual_seed(seed)),
            tol=1e-3,
            max_gradients=max_gradients,
        ).theta
        for seed in (0, 1)
    )
    return land, a, b


@pytest.fixture(scope="session")
def scalar_linear_net() -> Callable[[float], FunctionLandscape]:
    return _scalar_linear_net


@pytest.fixture(scope="session")
def rank_one() -> Callable[[list[float]], tuple[FunctionLandscape, Tensor]]:
    return _rank_one


@pytest.fixture(scope="session")
def rayleigh() -> Callable[[list[float]], FunctionLandscape]:
    return _rayleigh


@pytest.fixture(scope="session")
def digits_network() -> Callable[[], FunctionLandscape]:
    return _digits_network


@pytest.fixture(scope="session")
def digits_pair() -> Callable[[int, int, int], tuple[ModelLandscape, Tensor, Tensor]]:
    return _digits_pair
