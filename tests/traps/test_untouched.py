"""Traps of mutation: the user's model and global state after any call. Each names a fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from truth import photograph, same, untouched

from thalweg.landscape import ModelLandscape
from thalweg.zoo import lstm

Data = tuple[Tensor, Tensor]


def everything(land: ModelLandscape, theta: Tensor) -> None:
    land.loss(torch.stack([theta, theta + 0.1]))
    land.gradient(torch.stack([theta, theta + 0.1]))
    with land.at(theta) as point:
        point.hvp(torch.stack([theta, theta]))
    land.loss_estimate(theta)
    land.metrics(theta)
    land.start(torch.Generator().manual_seed(0))
    for batch in land.minibatch([0, 1, 2, 3]).batches(theta):
        batch.jvp(theta)
        batch.vjp(torch.ones_like(batch.outputs))
        batch.per_example_gradients()


@pytest.mark.parametrize("kind", ["plain", "lstm", "batchnorm", "hooked"])
def test_the_model_is_left_as_it_was(
    kind: str, model: nn.Module, bn_model: nn.Module, data: Data
) -> None:
    """PyHessian leaves eval mode and graphs in .grad; loss-landscapes leaves your model moved
    to the end of the line with requires_grad=False; an LSTM's flat weights break on a swap."""
    inputs, targets = data
    if kind == "lstm":
        model, inputs = lstm(3, features=2, classes=3, seed=0).double(), inputs.view(-1, 2, 2)
    if kind == "batchnorm":
        model = bn_model
    if kind == "hooked":
        model[0].register_forward_hook(lambda *_: None)
    list(model.parameters())[1].requires_grad_(False)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    output = model(inputs[:2]) if kind != "batchnorm" else None
    with untouched(model, inputs, targets):
        land = ModelLandscape(model, F.cross_entropy, (inputs, targets), metrics="accuracy")
        theta = land.vector(model)
        everything(land, theta)
    if kind == "batchnorm":
        with untouched(model, inputs, targets):
            land.with_batchnorm("recompute").loss(theta)
            land.with_batchnorm("batch").gradient(theta)
            land.with_batchnorm("recompute").metrics(theta)
    else:
        assert torch.equal(model(inputs[:2]), output)


def test_also_after_an_exception(bn_model: nn.Module, data: Data) -> None:
    """A tool that swaps weights in place leaves them swapped when the loss raises."""
    calls = []

    def fragile(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(torch.rand(()).item())
        if fragile.broken:
            raise ArithmeticError("out of luck")
        return F.cross_entropy(outputs, targets)

    fragile.broken = False
    land = ModelLandscape(bn_model, fragile, data, batchnorm="recompute")
    batch = land.with_batchnorm("batch")
    theta = land.vector(bn_model)
    before = land.loss(theta), batch.gradient(theta)
    fragile.broken = True
    actions: list[Callable[[], object]] = [
        lambda: land.loss(theta),
        lambda: batch.gradient(theta),
        lambda: batch.value_and_gradient(torch.stack([theta, theta])),
        lambda: land.loss_estimate(theta),
        lambda: next(batch.batches(theta)),
        lambda: ModelLandscape(bn_model, fragile, data),
        lambda: batch.at(theta).__enter__(),
    ]
    for action in actions:
        with untouched(bn_model, *data), pytest.raises(ArithmeticError):
            action()
    fragile.broken = False
    assert torch.equal(land.loss(theta), before[0])
    assert torch.equal(batch.gradient(theta), before[1])
    assert calls


def test_buffers_survive_a_failure_inside_recompute(bn_model: nn.Module, data: Data) -> None:
    """The private copy's statistics are taken away while they are re-estimated."""

    class Fragile(nn.Module):
        broken = False

        def __init__(self) -> None:
            super().__init__()
            self.body = bn_model

        def forward(self, x: Tensor) -> Tensor:
            if Fragile.broken:
                raise ArithmeticError
            return self.body(x)

    model = Fragile()
    land = ModelLandscape(model, F.cross_entropy, data)
    other = land.with_batchnorm("recompute")
    theta = land.vector(model)
    before, photo = (land.loss(theta), other.loss(theta)), photograph(other._sweep.network.module)
    Fragile.broken = True
    for failing in (land, other):
        with untouched(model), pytest.raises(ArithmeticError):
            failing.loss(theta)
    Fragile.broken = False
    assert same(photograph(other._sweep.network.module), photo)
    assert (land.loss(theta), other.loss(theta)) == before
