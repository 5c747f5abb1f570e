"""A network as a finite sum: batches, Jacobian products, own gradients, minibatches."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from thalweg.landscape import ModelLandscape
from thalweg.zoo import tiny_models

NAMES = sorted(tiny_models())


def landscape(name: str, **options: object) -> tuple[ModelLandscape, Tensor, list[Tensor]]:
    """Return a tiny network over ragged batches, its vector and its whole data."""
    model, inputs, targets = tiny_models()[name]()
    cuts = (0, 3, 11, len(inputs))
    batches = [(inputs[a:b], targets[a:b]) for a, b in itertools.pairwise(cuts)]
    land = ModelLandscape(model.eval(), F.cross_entropy, batches, **options)
    return land, land.vector(model), [inputs, targets]


def outputs_of(land: ModelLandscape, name: str, theta: Tensor, inputs: Tensor) -> Tensor:
    model, _, _ = tiny_models()[name]()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return functional_call(model.eval(), land.spec.views(theta), (inputs,))


@pytest.mark.parametrize("name", NAMES)
def test_batches_cover_the_data_in_order(name):
    land, theta, (inputs, _) = landscape(name)
    batches = list(land.batches(theta))
    assert [i for batch in batches for i in batch.indices] == list(range(len(inputs)))
    assert sum(batch.weight for batch in batches) == land.size == len(inputs)
    together = torch.cat([batch.outputs for batch in batches])
    torch.testing.assert_close(
        together, outputs_of(land, name, theta, inputs).detach(), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_jacobian_products_are_those_of_the_dense_jacobian(name, generator):
    land, theta, (inputs, _) = landscape(name)
    dense = torch.autograd.functional.jacobian(
        lambda t: outputs_of(land, name, t, inputs[:3]), theta
    )
    batch = next(iter(land.batches(theta)))
    vectors = torch.randn(2, land.dim, generator=generator, dtype=theta.dtype)
    torch.testing.assert_close(
        batch.jvp(vectors), torch.einsum("bcd,kd->kbc", dense, vectors), rtol=1e-9, atol=1e-11
    )
    dual = torch.randn(batch.outputs.shape, generator=generator, dtype=theta.dtype)
    torch.testing.assert_close(
        batch.vjp(dual), torch.einsum("bcd,bc->d", dense, dual), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("name", NAMES)
def test_own_gradients_are_those_of_single_examples(name):
    land, theta, (inputs, targets) = landscape(name, penalty=0.3)
    rows = torch.cat([batch.per_example_gradients() for batch in land.batches(theta)])
    for i in (0, 5, len(inputs) - 1):
        leaf = theta.clone().requires_grad_()
        loss = F.cross_entropy(outputs_of(land, name, leaf, inputs[i : i + 1]), targets[i : i + 1])
        (own,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(rows[i], own, rtol=1e-9, atol=1e-11)
    without_penalty = land.gradient(theta) - 0.3 * theta
    torch.testing.assert_close(rows.mean(0), without_penalty, rtol=1e-9, atol=1e-11)


def test_a_wrong_cotangent_is_refused():
    land, theta, _ = landscape("mlp")
    batch = next(iter(land.batches(theta)))
    with pytest.raises(ValueError, match=r"cotangents have shapes .* the outputs"):
        batch.vjp(torch.zeros(1, 2, dtype=theta.dtype))


def test_between_two_batches_nothing_of_the_caller_is_touched():
    """A generator that kept its guard up would undo the caller's own random draws."""
    land, theta, _ = landscape("mlp")
    torch.manual_seed(5)
    expected = [torch.rand(()) for _ in range(3)]
    torch.manual_seed(5)
    drawn = [torch.rand(()) for _ in land.batches(theta)]
    assert drawn == expected
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", NAMES)
def test_minibatches_of_a_partition_average_to_the_whole(name, generator):
    land, theta, (inputs, _) = landscape(name, penalty=0.1)
    order = torch.randperm(len(inputs), generator=generator)
    total = torch.zeros_like(theta)
    before = land.cost
    for part in order.split(7):
        mini = land.minibatch(part)
        assert mini.examples == mini.size == len(part)
        total += mini.gradient(theta) * len(part) / len(inputs)
    spent = land.cost - before
    assert spent.gradients == len(order.split(7))
    assert spent.passes == pytest.approx(1.0)
    torch.testing.assert_close(total, land.gradient(theta), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("indices", "message"),
    [([], r"at least one position"), ([0, 99], r"must lie in \[0, 20\)"), ([-1], r"must lie in")],
)
def test_impossible_minibatches_are_refused(indices, message):
    land, _, _ = landscape("mlp")
    with pytest.raises(ValueError, match=message):
        land.minibatch(indices)


def test_weights_of_tokens_are_those_of_the_loss(generator):
    """With a loss that returns (mean, weight), examples weigh what it says."""
    model = torch.nn.Linear(4, 3).double().eval()
    inputs = torch.randn(12, 5, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (12, 5), generator=generator)
    targets[::2, 3:] = -100

    def loss(outputs: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        kept = (tokens != -100).sum()
        return F.cross_entropy(outputs.flatten(0, 1), tokens.flatten()), kept

    land = ModelLandscape(model, loss, (inputs, targets), batch_size=5)
    theta = land.vector(model)
    naive = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).detach()
    assert land.size == float((targets != -100).sum())
    torch.testing.assert_close(land.loss(theta), naive, rtol=1e-12, atol=0)
    weights = torch.cat([batch.weights for batch in land.batches(theta)])
    assert weights.tolist() == (targets != -100).sum(1).tolist()
    rows = torch.cat([batch.per_example_gradients() for batch in land.batches(theta)])
    average = (weights[:, None] * rows).sum(0) / weights.sum()
    torch.testing.assert_close(average, land.gradient(theta), rtol=1e-10, atol=1e-13)
