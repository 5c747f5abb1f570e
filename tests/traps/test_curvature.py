"""Faults of PyHessian, hessian-eigenthings and curvlinops in curvature, as traps for ours."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.curvature import (
    Fisher,
    GaussNewton,
    GradientMoment,
    Hessian,
    MatrixOperator,
    diagonal,
    eigenpairs,
    inertia,
    spectral_density,
    trace,
)
from thalweg.landscape import ModelLandscape

Data = tuple[Tensor, Tensor]
OPERATORS = [
    GaussNewton,
    Fisher,
    lambda land, theta: Fisher(land, theta, kind="empirical"),
    lambda land, theta: Fisher(land, theta, kind="monte-carlo", seed=3),
    GradientMoment,
]
NAMES = ["gauss-newton", "fisher", "empirical", "monte-carlo", "moment"]


def matrix_of(values: list[float] | Tensor, seed: int = 0, dtype: torch.dtype | None = None):
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    spectrum = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(square)[0]
    matrix = (basis * spectrum) @ basis.T
    return ((matrix + matrix.T) / 2).to(dtype or torch.float64)


@pytest.mark.parametrize("make", OPERATORS, ids=NAMES)
def test_ragged_batches(make, model: nn.Module, data: Data) -> None:
    """hessian-eigenthings divides by the number of batches: with 32 + 1 examples the one
    counts as much as the 32."""
    inputs, targets = data
    ragged = [(inputs[:32], targets[:32]), (inputs[32:], targets[32:])]
    whole = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    parted = ModelLandscape(model, F.cross_entropy, ragged)
    theta = whole.vector(model)
    expected, found = make(whole, theta).to_dense(), make(parted, theta).to_dense()
    if make is OPERATORS[3]:  # its draws may differ, its scale may not
        exact = Fisher(whole, theta).to_dense().trace()
        assert 0.5 < float(found.trace() / exact) < 2
        return
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_two_operators_on_one_model(model: nn.Module, data: Data) -> None:
    """A second PyHessian object on a model doubles the Hessian, by way of .grad."""
    lands = [ModelLandscape(model, F.cross_entropy, data) for _ in range(2)]
    theta = lands[0].vector(model)
    found = [make(land, theta).to_dense() for make in (Hessian, GaussNewton) for land in lands]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[3], rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


class Odd(nn.Module):
    """One matrix used twice (tied), one never, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Parameter(torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.head = nn.Linear(4, 3).double()
        self.head.weight.data.copy_(torch.linspace(-0.5, 0.7, 12).reshape(3, 4))
        self.head.bias.data.copy_(torch.tensor([0.1, -0.2, 0.3]))
        self.head.bias.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(torch.tanh(inputs @ self.tied) @ self.tied))


def test_unused_tied_and_frozen_weights(data: Data) -> None:
    """PyHessian crashes on an unused parameter. Here it is a coordinate without curvature."""
    inputs, targets = data
    model = Odd()
    land = ModelLandscape(model, F.cross_entropy, data)
    theta = land.vector(model)
    assert land.dim == 16 + 2 + 12

    def outputs(flat: Tensor) -> Tensor:
        tied, head = flat[:16].reshape(4, 4), flat[18:].reshape(3, 4)
        hidden = torch.tanh(torch.tanh(inputs @ tied) @ tied)
        return hidden @ head.T + model.head.bias

    loss = lambda flat: F.cross_entropy(outputs(flat), targets)  # noqa: E731
    torch.testing.assert_close(
        Hessian(land, theta).to_dense(),
        torch.func.jacrev(torch.func.grad(loss))(theta),
        rtol=1e-9,
        atol=1e-12,
    )
    chances = outputs(theta).softmax(1)
    jacobian = torch.func.jacrev(outputs)(theta)
    middle = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]
    exact = torch.einsum("nca,ncd,ndb->ab", jacobian, middle, jacobian) / len(inputs)
    for make in (GaussNewton, Fisher):
        found = make(land, theta).to_dense()
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
    assert not exact[16:18].any()
    assert float(exact.trace()) in trace(GaussNewton(land, theta), seed=0)


def test_no_phantom_negative_curvature() -> None:
    """PyHessian's density of a PSD matrix of rank 3 has nodes at -0.415 and +0.429, after a
    breakdown that it does not see."""
    matrix = matrix_of([0.0] * 7 + [4.085, 12.525, 12.723])
    operator = MatrixOperator(matrix)
    rho = spectral_density(operator, probes=8, steps=9, deflate=0, method="quadrature", seed=0)
    for chain in rho.chains:
        heavy = chain.nodes[chain.weights > 1e-8]
        gaps = (heavy[:, None] - torch.tensor([0.0, 4.085, 12.525, 12.723])).abs().amin(1)
        assert float(gaps.max()) < 1e-6
    counts = inertia(operator, tau=1e-6, seed=0)
    assert (counts.negative.value, counts.zero.value, counts.positive.value) == (0, 7, 3)
    assert float(eigenpairs(operator, 10, seed=0).values.min()) > -1e-12


def test_tiny_curvature() -> None:
    """PyHessian adds 1e-6 to norms: at eigenvalues of 1e-6 it returns the first one twice."""
    truth = 1e-6 * torch.tensor([0.7252, 0.5231, 0.4487] + [0.01] * 17, dtype=torch.float64)
    found = eigenpairs(MatrixOperator(matrix_of(truth)), 3, seed=0)
    torch.testing.assert_close(found.values, truth[:3], rtol=1e-9, atol=0)
    assert found.converged.all()


def test_pairs_of_opposite_sign() -> None:
    """Power iteration does not converge on a pair +a, -a; its Rayleigh quotients do."""
    truth = [5.0, -5.0, 3.0, -3.0] + [0.1] * 26
    found = eigenpairs(MatrixOperator(matrix_of(truth)), 4, which="magnitude", seed=0)
    expected = torch.tensor([-5.0, -3.0, 3.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(found.values.sort().values, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "run",
    [
        lambda A, seed: trace(A, samples=32, method="hutchinson", seed=seed),
        lambda A, seed: eigenpairs(A, 2, seed=seed),
        lambda A, seed: spectral_density(
            A, probes=4, steps=10, deflate=0, method="quadrature", seed=seed
        ).trace(),
    ],
    ids=["trace", "eigenpairs", "density"],
)
def test_no_seed_means_random_and_recorded(run) -> None:
    """With seed=None hessian-eigenthings repeats itself: a fresh generator has a fixed seed, so
    that repeated runs show no spread."""
    A = MatrixOperator(matrix_of(torch.linspace(-1, 2, 200)))
    torch.manual_seed(0)
    first = run(A, None)
    torch.manual_seed(0)
    second = run(A, None)
    assert first.seed != second.seed
    value = lambda found: found.values.tolist() if hasattr(found, "values") else found.value  # noqa: E731
    assert value(first) == value(run(A, first.seed))
    assert hasattr(first, "values") or first.value != second.value


def test_products_of_a_relu_net_are_not_finite_differences(data: Data) -> None:
    """hessian-eigenthings differences gradients: across the kinks of a ReLU network in float32
    that is off by 107 to 2400 %."""
    inputs, targets = data
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    torch.manual_seed(0)
    nn.utils.vector_to_parameters(torch.randn(131), model.parameters())
    exact_model = copy.deepcopy(model).double()
    single = ModelLandscape(model, F.cross_entropy, (inputs.float(), targets))
    double = ModelLandscape(exact_model, F.cross_entropy, (inputs.float().double(), targets))
    exact = Hessian(double, double.vector(exact_model)).to_dense()
    found = Hessian(single, single.vector(model)).to_dense().double()
    assert float((found - exact).norm() / exact.norm()) < 1e-4
    middle = GaussNewton(single, single.vector(model)).to_dense().double()
    truth = GaussNewton(double, double.vector(exact_model)).to_dense()
    assert float((middle - truth).norm() / truth.norm()) < 1e-4


def test_no_ghost_copies_in_float32() -> None:
    """curvlinops' Lanczos finds 14, 14, 16 and 18 copies of these outliers in 100 steps."""
    outliers = [50.0, 30.0, 20.0, 10.0]
    values = torch.cat([torch.linspace(0, 1, 496), torch.tensor(outliers)])
    A = MatrixOperator(matrix_of(values, dtype=torch.float32))
    rho = spectral_density(A, probes=4, steps=100, deflate=0, method="quadrature", seed=0)
    for chain in rho.chains:
        assert [int((chain.nodes > 5).sum())] == [4]
    counts = rho.count(tau=5.0).positive
    assert 4.0 in counts
    rho = spectral_density(A, probes=4, steps=100, deflate=6, method="quadrature", seed=0)
    assert int((rho.atoms > 5).sum()) == 4
    assert (rho.count(tau=5.0).positive.interval) == (4.0, 4.0)
    assert [round(v, 2) for v in eigenpairs(A, 4, seed=0).values.tolist()] == outliers


@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "auto"])
@pytest.mark.parametrize("rank", [0, 5])
def test_sketches_of_low_rank(method: str, rank: int) -> None:
    """curvlinops' XTrace inverts a triangular matrix that low rank makes singular: a crash."""
    values = torch.zeros(100, dtype=torch.float64)
    values[:rank] = torch.arange(1, rank + 1)
    operator = MatrixOperator(matrix_of(values), definite=True)
    found = trace(operator, samples=32, method=method, seed=0)
    assert float(values.sum()) in found
    assert abs(found.value - float(values.sum())) < 1e-8


def test_no_bias_by_momentum() -> None:
    """hessian-eigenthings with momentum b returns the largest eigenvalue less b."""
    A = MatrixOperator(matrix_of([10.0, 4.0] + [1.0] * 48))
    with pytest.raises(TypeError):
        eigenpairs(A, 1, momentum=0.1)  # there is nothing to set wrongly
    assert eigenpairs(A, 1, seed=0).values.item() == pytest.approx(10.0, rel=1e-12)


def test_defaults_converge_or_say_so() -> None:
    """hessian-eigenthings' default is 2 k steps: on 200 evenly spaced eigenvalues none of ten
    converges, and nothing warns."""
    truth = torch.arange(1.0, 201.0, dtype=torch.float64)
    A = MatrixOperator(torch.diag(truth))
    found = eigenpairs(A, 10, seed=0)
    assert found.converged.all()
    torch.testing.assert_close(found.values, truth.flip(0)[:10], rtol=1e-6, atol=0)
    starved = eigenpairs(A, 10, max_products=20, seed=0)
    assert not starved.converged.all()
    assert "did NOT converge" in str(starved)


def test_a_loss_that_is_a_lambda(model: nn.Module, data: Data) -> None:
    """curvlinops needs loss.reduction; a lambda is an AttributeError."""
    plain = ModelLandscape(model, F.cross_entropy, data)
    own = ModelLandscape(model, lambda o, t: -o.log_softmax(1)[range(len(t)), t].mean(), data)
    theta = plain.vector(model)
    for make in (Hessian, GaussNewton, Fisher):
        expected, found = make(plain, theta).to_dense(), make(own, theta).to_dense()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Named(nn.Module):
    """A network that takes its input by name, as Hugging Face's do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = self.inner(features)
        return result


def test_a_dictionary_batch(model: nn.Module, data: Data) -> None:
    """PyHessian unpacks a batch into two; curvlinops wants to be told how to measure it."""
    inputs, targets = data
    named = Named(model)
    batches = [{"features": inputs[i : i + 20], "labels": targets[i : i + 20]} for i in (0, 20)]
    plain = ModelLandscape(model, F.cross_entropy, data)
    land = ModelLandscape(named, lambda o, b: F.cross_entropy(o, b["labels"]), batches)
    theta = plain.vector(model)
    for make in (Hessian, GaussNewton, Fisher):
        expected, found = make(plain, theta).to_dense(), make(land, theta).to_dense()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_constant_function(data: Data) -> None:
    """No curvature at all: PyHessian divides by its norm, curvlinops' sketches crash."""
    zero = MatrixOperator(torch.zeros(50, 50, dtype=torch.float64), definite=True)
    found = eigenpairs(zero, 3, seed=0)
    assert found.values.tolist() == [0.0] * 3
    assert found.converged.all()
    assert 0.0 in trace(zero, samples=32, seed=0)
    assert not diagonal(zero, seed=0).values.any()
    counts = inertia(zero, tau=1e-9, seed=0)
    assert (counts.zero.value, counts.rank.value) == (50, 0)
