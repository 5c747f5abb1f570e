"""Spectra that are known in closed form or from the literature, against the whole stack."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.curvature import (
    GaussNewton,
    Hessian,
    effective_dimension,
    eigenpairs,
    inertia,
    log_determinant,
    spectral_density,
    trace,
)
from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.zoo import digits, mlp

Float64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=Float64)


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(1).mean() / 2


def descending(values: Tensor) -> Tensor:
    return values.sort(descending=True).values


# ---- linear regression: H = X^T X / N


@pytest.fixture(scope="module")
def regression() -> tuple[ModelLandscape, Tensor, Tensor]:
    """More coordinates (300) than examples (60), so that H has at least 240 zero eigenvalues."""
    inputs = normal(60, 300) * torch.logspace(0, -1, 300, dtype=Float64)
    model = nn.Linear(300, 1, bias=False).double()
    land = ModelLandscape(model, half_squares, (inputs, normal(60, 1, seed=1)))
    spectrum = torch.zeros(300, dtype=Float64)
    spectrum[:60] = torch.linalg.svdvals(inputs) ** 2 / 60
    return land, land.vector(model), spectrum


def test_linear_regression_eigenvalues_are_squared_singular_values(regression) -> None:
    land, theta, spectrum = regression
    with Hessian(land, theta) as H:
        found = eigenpairs(H, k=12, seed=0)
    assert found.converged.all()
    torch.testing.assert_close(found.values, spectrum[:12], rtol=1e-9, atol=0)
    inside = (found.intervals[:, 0] <= spectrum[:12]) & (spectrum[:12] <= found.intervals[:, 1])
    assert inside.all()


def test_linear_regression_functions_of_the_spectrum(regression) -> None:
    land, theta, spectrum = regression
    with Hessian(land, theta) as H:
        rho = spectral_density(H, probes=16, steps=60, deflate=10, seed=1, method="quadrature")
        assert float(spectrum.sum()) in trace(H, samples=96, seed=2)
        assert float((spectrum + 0.01).log().sum()) in log_determinant(H, 0.01, seed=3)
        assert float((spectrum / (spectrum + 0.1)).sum()) in effective_dimension(H, 0.1, seed=4)
    assert float(spectrum.sum()) in rho.trace()
    assert float(spectrum.norm()) in rho.frobenius_norm()
    assert float((spectrum + 0.01).log().sum()) in rho.log_determinant(0.01)
    assert float((spectrum / (spectrum + 0.1)).sum()) in rho.effective_dimension(0.1)
    # wrong answers are refused: these are intervals, not excuses
    assert 1.5 * float(spectrum.sum()) not in rho.trace()
    assert float((spectrum + 0.02).log().sum()) not in rho.log_determinant(0.01)


def test_at_least_as_many_zeros_as_coordinates_beyond_the_examples(regression) -> None:
    """Sagun et al. (2018): of M coordinates with N examples at least M - N carry nothing."""
    land, theta, _ = regression
    with Hessian(land, theta) as H:
        counts = inertia(H, tau=1e-6, seed=5)
    assert 240.0 in counts.zero
    assert 60.0 in counts.rank
    assert counts.certified[0] == 0
    assert 0.0 in counts.negative


def test_gauss_newton_has_at_most_one_eigenvalue_per_output() -> None:
    """With C outputs the rank is at most N C, and N (C - 1) for the softmax's."""
    inputs, targets = digits("train", image=False).subset(20).tensors
    model = mlp((64, 16, 10), seed=0).double()
    land = ModelLandscape(model, F.cross_entropy, (inputs.double(), targets))
    values = torch.linalg.eigvalsh(GaussNewton(land, land.vector(model)).to_dense())
    assert float(values[0]) > -1e-14
    assert int((values > 1e-13 * values[-1]).sum()) <= 20 * 9


# ---- deep linear networks at a global minimum


def test_scalar_deep_linear_net() -> None:
    r"""$L = \frac12 s (a b - w)^2$; at $a b = w$ the Hessian is $s\, (b, a)(b, a)^\top$."""
    s, a, b = 1.7, 2.0, 0.25
    land = FunctionLandscape(lambda x: 0.5 * s * (x[0] * x[1] - a * b) ** 2, dim=2)
    with Hessian(land, torch.tensor([a, b], dtype=Float64)) as H:
        found = eigenpairs(H, k=2, seed=0)
    exact = torch.tensor([s * (a**2 + b**2), 0.0], dtype=Float64)
    torch.testing.assert_close(found.values, exact, rtol=1e-12, atol=1e-12)


class DeepLinear(nn.Module):
    """$x \\mapsto W_2 W_1 x$."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.first.T @ self.second.T


def test_deep_linear_net_with_whitened_inputs() -> None:
    r"""At a global minimum $W_2 W_1 = A$ with $X^\top X / N = I$ the loss is quadratic in the
    product, so $H = J^\top J$ with $J(d_1, d_2) = W_2 d_1 + d_2 W_1$, and
    $J J^\top M = W_2 W_2^\top M + M W_1^\top W_1$: the eigenvalues are
    $\sigma_i(W_2)^2 + \sigma_j(W_1)^2$ for every output $i$ and input $j$, and zeros."""
    inputs, hidden, outputs, count = 5, 4, 3, 40
    whitened = torch.linalg.qr(normal(count, inputs))[0] * math.sqrt(count)
    first, second = normal(hidden, inputs, seed=1), normal(outputs, hidden, seed=2)
    model = DeepLinear(first, second)
    land = ModelLandscape(model, half_squares, (whitened, whitened @ (second @ first).T))
    theta = land.vector(model)
    assert float(land.loss(theta)) < 1e-25
    left = torch.linalg.svdvals(second) ** 2
    right = torch.zeros(inputs, dtype=Float64)
    right[:hidden] = torch.linalg.svdvals(first) ** 2
    exact = torch.zeros(land.dim, dtype=Float64)
    exact[: outputs * inputs] = descending((left[:, None] + right).flatten())
    with Hessian(land, theta) as H:
        dense = H.to_dense()
        found = eigenpairs(H, k=outputs * inputs + 2, seed=0)
        assert float(exact.sum()) in trace(H, samples=land.dim, seed=0)
        index = inertia(H, tau=1e-8, seed=0)
    values = descending(torch.linalg.eigvalsh(dense))
    torch.testing.assert_close(values, exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.values, exact[: len(found.values)], rtol=1e-9, atol=1e-9)
    assert (index.negative.value, index.positive.value) == (0, outputs * inputs)
    # away from the minimum the formula does not hold
    with Hessian(land, 1.1 * theta) as H:
        elsewhere = descending(torch.linalg.eigvalsh(H.to_dense()))
    assert float((elsewhere - 1.21 * exact).abs().max()) > 0.1


# ---- logistic and softmax regression


def test_logistic_regression() -> None:
    r"""$H = X^\top \operatorname{diag}(p (1 - p)) X / N$, with a penalty $c\,|\theta|^2 / 2$
    plus $c I$; the Gauss-Newton matrix is the same without the penalty."""
    inputs, weights = normal(80, 30), normal(30, seed=3)
    targets = (normal(80, 1, seed=4) > 0).double()
    model = nn.Linear(30, 1, bias=False).double()
    model.weight.data.copy_(weights)
    loss = F.binary_cross_entropy_with_logits
    land = ModelLandscape(model, loss, (inputs, targets), penalty=0.05)
    theta = land.vector(model)
    chance = torch.sigmoid(inputs @ weights)
    exact = inputs.T @ ((chance * (1 - chance))[:, None] * inputs) / 80
    bare = descending(torch.linalg.eigvalsh(exact))
    with Hessian(land, theta) as H:
        full = H.to_dense()
        shift = (full - exact).diagonal().mean()
        found = eigenpairs(H, k=5, seed=0)
    torch.testing.assert_close(
        full, exact + shift * torch.eye(30, dtype=Float64), atol=1e-12, rtol=0
    )
    assert float(shift) == pytest.approx(0.05)
    torch.testing.assert_close(found.values, bare[:5] + 0.05, rtol=1e-9, atol=0)
    with GaussNewton(land, theta) as G:
        torch.testing.assert_close(G.to_dense(), exact, rtol=1e-10, atol=1e-13)
        assert float(bare.sum()) in trace(G, seed=0)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_softmax_regression_at_zero_repeats_every_eigenvalue(classes: int) -> None:
    r"""At $\theta = 0$ every class has chance $1/K$ and $H = (I / K - 1 1^\top / K^2) \otimes
    X^\top X / N$: each eigenvalue of the data's second moment, over $K$, occurs $K - 1$ times,
    and $K$ clusters around orthogonal means make $K (K - 1)$ outliers."""
    means = 3 * torch.linalg.qr(normal(20, classes))[0].T
    targets = torch.arange(20 * classes) % classes
    inputs = means[targets] + 0.1 * normal(20 * classes, 20, seed=1)
    model = nn.Linear(20, classes, bias=False).double()
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    moment = descending(torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs)))
    outliers = classes * (classes - 1)
    exact = moment.repeat_interleave(classes - 1)[: outliers + 1] / classes
    with Hessian(land, torch.zeros(land.dim, dtype=Float64)) as H:
        found = eigenpairs(H, k=outliers + 1, seed=0)
    assert found.converged.all()
    torch.testing.assert_close(found.values, exact, rtol=1e-6, atol=0)
    ratios = found.values[:-1] / found.values[1:]
    assert int(ratios.argmax()) + 1 == outliers
    assert float(ratios[-1]) > 10


# ---- the outliers of a classifier on real data


def gaps(land: ModelLandscape, theta: Tensor, count: int) -> Tensor:
    """The ratios of each of the largest eigenvalues to the next."""
    with Hessian(land, theta) as H:
        found = eigenpairs(H, k=count + 1, seed=0)
    assert found.converged.all()
    return found.values[:-1] / found.values[1:]


@pytest.mark.parametrize(("hidden", "steps"), [((), 30), ((), 300), ((16,), 30), ((16,), 300)])
def test_digits_have_one_outlier_less_than_classes(hidden: tuple[int, ...], steps: int) -> None:
    """Papyan (2018), Sagun et al. (2018): about K outliers stand above the bulk. On these ten
    digits it is K - 1 = 9, at every stage: the largest of the first 20 ratios of neighbouring
    eigenvalues follows the ninth. (Only the depth 0 and 1: with two hidden layers of 16 the
    outliers spread into the bulk and no ratio stands out.)"""
    inputs, targets = digits("train", image=False).subset(300).tensors
    model = mlp((64, *hidden, 10), activation="relu", seed=0).double()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(inputs.double()), targets).backward()
        optimiser.step()
    land = ModelLandscape(model, F.cross_entropy, (inputs.double(), targets))
    ratios = gaps(land, land.vector(model), 20)
    assert int(ratios.argmax()) + 1 == 9
    assert float(ratios[8]) > 1.2 * float(ratios[9:].max())
