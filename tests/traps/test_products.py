"""Traps in second derivatives: none, or a wrong one. Each names the peer's fault."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from truth import naive

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.zoo import lstm, transformer

Data = tuple[Tensor, Tensor]


def test_attention_without_double_backward() -> None:
    """Fused attention has no double backward (pytorch #116350); every tool leaves the switch to
    the user and dies."""
    torch.manual_seed(0)
    model = transformer(8, 2, 1, length=4, features=3, classes=3, seed=0)
    inputs, targets = torch.randn(5, 4, 3), torch.arange(5) % 3

    def twice() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            loss = F.cross_entropy(model(inputs), targets)
            weights = list(model.parameters())
            slope = torch.autograd.grad(loss, weights, create_graph=True)
            torch.autograd.grad(sum((part**2).sum() for part in slope), weights)

    with pytest.raises(RuntimeError):
        twice()
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    theta = land.vector(model)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), land.at(theta) as point:
        product = point.hvp(theta)
    step = 1e-2 * theta / theta.norm()
    difference = (land.gradient(theta + step) - land.gradient(theta - step)) / 2e-2 * theta.norm()
    assert float((difference - product).norm()) < 0.05 * float(product.norm())


def test_lstm_has_no_forward_mode() -> None:
    """jvp through an LSTM raises; Jv must come from a double vjp there (Laplace issue 143)."""
    model = lstm(3, features=4, classes=3, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 2, 4, generator=generator, dtype=torch.float64)
    land = ModelLandscape(model, F.cross_entropy, (inputs, torch.arange(6) % 3))
    theta = land.vector(model)
    vectors = torch.randn(2, land.dim, generator=generator, dtype=torch.float64)
    (batch,) = land.batches(theta)
    batch.forward_mode = False  # which torch lacks for this layer on some devices
    found = batch.jvp(vectors)
    step = 1e-6
    for vector, product in zip(vectors, found, strict=True):
        ahead, behind = (next(land.batches(theta + s * vector)).outputs for s in (step, -step))
        torch.testing.assert_close(product, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)
    straight = nn.Sequential(nn.Linear(4, 3)).double()
    other = ModelLandscape(straight, F.cross_entropy, (inputs[:, 0], torch.arange(6) % 3))
    (batch,) = other.batches(other.vector(straight))
    forward = batch.jvp(other.vector(straight))
    assert batch.forward_mode
    batch.forward_mode = False
    torch.testing.assert_close(batch.jvp(other.vector(straight)), forward, rtol=1e-12, atol=1e-14)


def test_many_vectors_through_an_lstm() -> None:
    """Without a graph torch runs an LSTM through a fused kernel that vmap does not know."""
    model = lstm(3, features=4, classes=3, seed=0).double()
    inputs = torch.randn(6, 2, 4, dtype=torch.float64)
    land = ModelLandscape(model, F.cross_entropy, (inputs, torch.arange(6) % 3))
    theta = land.vector(model)
    losses = land.loss(torch.stack([theta, theta + 0.1]))
    torch.testing.assert_close(losses[0], land.loss(theta))
    torch.testing.assert_close(losses[1], land.loss(theta + 0.1))


def test_a_linear_gradient(data: Data) -> None:
    """Where the gradient does not depend on the parameters, its graph requires no gradient and
    autograd raises; the Hessian is zero."""
    model = nn.Linear(4, 3, bias=False).double()
    land = ModelLandscape(model, lambda o, t: (o * F.one_hot(t, 3)).sum(1).mean(), data)
    theta = land.vector(model)
    with land.at(theta) as point:
        assert torch.equal(
            point.hvp(torch.ones(2, 12, dtype=torch.float64)),
            torch.zeros(2, 12, dtype=torch.float64),
        )
    flat = ModelLandscape(
        model, lambda o, t: (o * F.one_hot(t, 3)).sum(1).mean(), data, penalty=0.5
    )
    with flat.at(theta) as point:
        torch.testing.assert_close(point.hvp(theta), 0.5 * theta, rtol=0, atol=0)


def test_a_second_derivative_left_out(data: Data) -> None:
    """torch leaves out the second derivative of a @once_differentiable function silently when
    gradients are taken with respect to the parameters, as every tool does."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, slope: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return slope * x.cos()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Once.apply(self.a(x)))

    model = Net()
    land = ModelLandscape(model, F.cross_entropy, data)
    theta = land.vector(model)
    assert land.gradient(theta).isfinite().all()
    with (
        pytest.raises(RuntimeError, match=r"not symmetric.*once_differentiable.*gradients work"),
        land.at(theta),
    ):
        pass
    leaf = theta.clone().requires_grad_()
    truth = naive(model, F.cross_entropy, [data])
    (slope_there,) = torch.autograd.grad(truth(leaf), leaf, create_graph=True)
    wrong = [
        torch.autograd.grad(slope_there, leaf, v, retain_graph=True)[0]
        for v in torch.eye(len(theta), dtype=torch.float64)
    ]
    assert float((torch.stack(wrong) - torch.stack(wrong).T).abs().max()) > 0.01, "no trap"


def test_weight_norm(data: Data) -> None:
    """torch's own weight_norm has a wrong second derivative: it takes the norms of the rows as
    constants, and every tool returns that Hessian without a word."""
    generator = torch.Generator().manual_seed(0)
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).abs() + 0.1)
    land = ModelLandscape(model, F.cross_entropy, data)
    theta = land.vector(model)
    with pytest.raises(RuntimeError, match=r"not symmetric.*weight_norm"), land.at(theta):
        pass
    bias, length, direction = theta.split([3, 3, 12])

    def by_hand(row: Tensor) -> Tensor:
        bias, length, direction = row.split([3, 3, 12])
        rows = direction.view(3, 4)
        weight = length.view(3, 1) * rows / rows.norm(dim=1, keepdim=True)
        return F.cross_entropy(data[0] @ weight.T + bias, data[1])

    assert len(bias) + len(length) + len(direction) == land.dim
    assert land.loss(theta).item() == pytest.approx(by_hand(theta).item(), rel=1e-12)
    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_hand(leaf), leaf)
    torch.testing.assert_close(land.gradient(theta), expected, rtol=1e-10, atol=1e-12)


def test_activation_checkpointing(model: nn.Module, data: Data) -> None:
    """Checkpointing runs forward again in the backward pass, when the parameters are back."""

    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False)

    with pytest.raises(RuntimeError, match=r"activation checkpointing.*switch it off"):
        ModelLandscape(Saving(), F.cross_entropy, data)


def test_an_operation_without_a_second_derivative() -> None:
    """What torch refuses to differentiate twice is said in words (PyHessian issue 7)."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.query(x)[:, None]
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(heads, heads, heads)[0]

    model, inputs = Fused(), torch.randn(4, 3, 4)
    land = ModelLandscape(model, lambda o, t: (o**2).mean(), (inputs, inputs))
    theta = land.vector(model)
    assert land.gradient(theta).isfinite().all()
    with (
        pytest.raises(RuntimeError, match=r"no second derivative.*losses and gradients work"),
        land.at(theta),
    ):
        pass


def test_positive_semidefinite_of_low_rank() -> None:
    """PyHessian's Lanczos finds -0.415 and +0.429 in a PSD Hessian of rank 3: products must not
    add curvature that is not there."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    land = FunctionLandscape(lambda x: 0.5 * (factor @ x).square().sum(), 10)
    model = nn.Linear(10, 1, bias=False).double()
    data = factor, torch.zeros(3)
    other = ModelLandscape(model, lambda o, t: 1.5 * (o[:, 0] ** 2).mean(), data)
    for each, theta in ((land, torch.ones(10, dtype=torch.float64)), (other, other.vector(model))):
        with each.at(theta) as point:
            hessian = point.hvp(torch.eye(10, dtype=torch.float64))
        values = torch.linalg.eigvalsh(hessian)
        assert float(values[0]) > -1e-13 * float(values[-1])
        assert int((values > 1e-12 * values[-1]).sum()) == 3
        torch.testing.assert_close(hessian, factor.T @ factor, rtol=1e-12, atol=1e-13)


def test_a_hessian_that_is_all_but_zero_is_not_called_asymmetric():
    """At a loss of 1e-13 the products are rounding, whose asymmetry says nothing."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = (inputs[:, 0] > 0).long()
    model = model.double()
    with torch.no_grad():
        model[0].weight[:] = 0.0
        model[0].weight[:, 0] = 1e4
        model[2].weight[0], model[2].weight[1] = -2.3, 2.3
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    assert float(land.loss(land.initial)) < 1e-12
    with land.at(land.initial) as point:
        assert float(point.hvp(torch.ones(land.dim, dtype=torch.float64)).norm()) < 1e-9
