"""Traps in the loss: what it averages, what it returns, what it depends on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from truth import naive, untouched

from thalweg.landscape import ModelLandscape

Data = tuple[Tensor, Tensor]
IGNORED = -100


@pytest.fixture
def padded(data: Data) -> Data:
    """Targets of which the first half holds more padding than the second."""
    targets = data[1].clone()
    targets[[0, 1, 2, 5, 7, 20]] = IGNORED
    return data[0], targets


def counted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over what is not padding, and how much that is."""
    kept = (targets != IGNORED).sum()
    return F.cross_entropy(outputs, targets, ignore_index=IGNORED), kept


def test_ignore_index(model: nn.Module, padded: Data) -> None:
    """Every peer weighs a batch by its examples; with ignore_index its loss is a mean over
    fewer, and the result depends on the batch size without a word."""
    by_batches = [
        F.cross_entropy(model(x), y).item() * len(y)
        for x, y in zip(padded[0].split(8), padded[1].split(8), strict=True)
    ]
    expected = F.cross_entropy(model(padded[0]), padded[1]).item()
    assert abs(sum(by_batches) / 33 - expected) > 1e-3, "the trap is not set"
    for size in (None, 8):
        with pytest.raises(ValueError, match=r"not a mean over examples.*return \(mean, weight\)"):
            ModelLandscape(model, F.cross_entropy, padded, batch_size=size)
    truth = naive(model, F.cross_entropy, [padded])
    for size in (None, 8, 5, 1):
        land = ModelLandscape(model, counted, padded, batch_size=size)
        theta = land.vector(model)
        assert land.size == 27
        assert land.examples == 33
        assert land.loss(theta).item() == pytest.approx(expected, rel=1e-13)
        leaf = theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(truth(leaf), leaf, create_graph=True)
        (product,) = torch.autograd.grad(slope @ theta, leaf)
        torch.testing.assert_close(land.gradient(theta), slope, rtol=1e-11, atol=1e-13)
        with land.at(theta) as point:
            torch.testing.assert_close(point.hvp(theta), product, rtol=1e-11, atol=1e-13)


def test_padding_that_begins_late(model: nn.Module, data: Data) -> None:
    """Looking at the first batches alone misses padding that only later ones have."""
    targets = data[1].clone()
    targets[30] = IGNORED
    with pytest.raises(ValueError, match="not a mean over examples"):
        ModelLandscape(model, F.cross_entropy, (data[0], targets), batch_size=4)


@pytest.mark.parametrize("memory", ["1 GiB", 4000])
def test_a_chunk_of_padding_alone(model: nn.Module, data: Data, memory: int | str) -> None:
    """Its mean is 0/0; weight zero must take it out, not turn the whole loss into NaN."""
    targets = data[1].clone()
    targets[:16] = IGNORED
    truth = F.cross_entropy(model(data[0][16:]), targets[16:]).item()
    for size in (8, 33):
        land = ModelLandscape(model, counted, (data[0], targets), batch_size=size, memory=memory)
        theta = land.vector(model)
        rows = torch.stack([theta, theta + 0.1])
        assert land.loss(theta).item() == pytest.approx(truth, rel=1e-13)
        assert land.loss(rows)[0].item() == pytest.approx(truth, rel=1e-13)
        assert land.gradient(theta).isfinite().all()
        assert land.gradient(rows).isfinite().all()
        estimate = land.loss_estimate(theta)
        assert estimate.value == pytest.approx(truth, rel=1e-13)
        assert 0 < estimate.stderr < 1
        if memory != 4000:
            with land.at(theta) as point:
                assert point.hvp(rows).isfinite().all()
        nothing = land.minibatch([0, 1, 2])
        assert nothing.size == 0
        for call in (nothing.loss, nothing.gradient, nothing.loss_estimate):
            with pytest.raises(ValueError, match=r"total weight of the data is 0.0"):
                call(theta)


def test_reduction_sum(model: nn.Module, data: Data) -> None:
    """A sum over the batch makes the Hessian grow with the batch size; the hint says so."""
    for loss in (
        nn.CrossEntropyLoss(reduction="sum"),
        lambda o, t: F.cross_entropy(o, t, reduction="sum"),
    ):
        with pytest.raises(ValueError, match=r"looks like a sum: use reduction='mean'"):
            ModelLandscape(model, loss, data)


def test_class_weights(model: nn.Module, data: Data) -> None:
    """CrossEntropyLoss(weight=) is a mean over weights, not over examples."""
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"return \(mean, weight\)"):
        ModelLandscape(model, nn.CrossEntropyLoss(weight=weight), data)
    land = ModelLandscape(
        model,
        lambda o, t: (F.cross_entropy(o, t, weight=weight), weight[t].sum()),
        data,
        batch_size=7,
    )
    expected = F.cross_entropy(model(data[0]), data[1], weight=weight).item()
    assert land.loss(land.vector(model)).item() == pytest.approx(expected, rel=1e-13)
    assert land.size == pytest.approx(float(weight[data[1]].sum()), rel=1e-13)


def test_weights_that_happen_to_sum_to_the_examples(data: Data) -> None:
    """A minibatch's weight is counted, not inferred from its parent's total."""
    weight = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
    model, targets = nn.Linear(4, 3).double(), torch.tensor([0, 1])

    def loss(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(outputs, labels, weight=weight), weight[labels].sum()

    land = ModelLandscape(model, loss, (data[0][:2], targets))
    assert land.size == land.examples == 2
    assert land.minibatch([0]).size == 0.5


def test_examples_that_depend_on_each_other(model: nn.Module, data: Data) -> None:
    """A contrastive loss is not a sum over examples, in the loss or in the network."""

    def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x - x.mean(0))

    for network, loss in ((model, contrast), (Centred(), F.cross_entropy)):
        with pytest.raises(ValueError, match=r"examples of a batch depend on each other"):
            ModelLandscape(network, loss, data)


def test_lambda_loss(model: nn.Module, data: Data) -> None:
    """curvlinops asks a loss for .reduction and dies on any lambda."""
    land = ModelLandscape(model, lambda o, t: ((o - F.one_hot(t, 3)) ** 2).sum(1).mean(), data)
    theta = land.vector(model)
    with land.at(theta) as point:
        assert point.hvp(theta).isfinite().all()
    assert "lambda" in land.describe()["loss"]


def test_signed_losses_that_cancel(model: nn.Module, data: Data) -> None:
    """A mean near zero is no reason to see a difference in rounding errors."""
    single, signs = model.float(), torch.ones(32)
    signs[::2] = -1.0
    inputs = data[0][:32].float()
    inputs[1::2] = inputs[::2]
    land = ModelLandscape(single, lambda o, s: (s * o[:, 0]).mean(), (inputs, signs))
    assert abs(land.loss(land.vector(single)).item()) < 1e-6


def test_a_loss_of_almost_zero() -> None:
    """A fitted float32 network loses its last digits in the loss; that is not randomness."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 4, generator=generator)
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[16.0, 0, 0, 0], [-16.0, 0, 0, 0]]))
        model.bias.zero_()
    inputs[:, 0] = inputs[:, 0].abs() * 0.1 + 0.42
    land = ModelLandscape(model, F.cross_entropy, (inputs, torch.zeros(400).long()))
    assert 0 < land.loss(land.vector(model)).item() < 1e-5


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: F.cross_entropy(o, t, reduction="none"), r"returned shape \(.*\); use red"),
        (lambda o, t: F.cross_entropy(o, t)[None], r"returned shape \(1,\)"),
        (lambda o, t: F.cross_entropy(o, t).item(), "returned float"),
        (lambda o, t: (F.cross_entropy(o, t), 1.0, 2.0), "returned a tuple of 3"),
        (lambda o, t: (F.cross_entropy(o, t), torch.ones(2)), r"a weight of shape \(2,\)"),
        (lambda o, t: (F.cross_entropy(o, t), -1.0), "the weight -1.0 for batch 0"),
        (lambda o, t: (F.cross_entropy(o, t), 0.0), "weights that loss returned sum to zero"),
        (lambda o, t: None, "returned NoneType"),
    ],
)
def test_losses_that_are_not_scalars(
    model: nn.Module, data: Data, loss: Callable[[Tensor, Tensor], object], message: str
) -> None:
    """Asked of PyHessian, autograd answers "grad can be implicitly created only for scalars"."""
    with untouched(model), pytest.raises(ValueError, match=message):
        ModelLandscape(model, loss, data)


@pytest.mark.usefixtures("unchecked")
def test_a_loss_that_cannot_be_called(model: nn.Module, data: Data) -> None:
    """The name of a loss is not a loss."""
    with pytest.raises(TypeError, match="loss must be a callable"):
        ModelLandscape(model, "cross_entropy", data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: (o.argmax(1) != t).double().mean(),
        lambda o, t: torch.tensor(F.cross_entropy(o, t).item(), dtype=o.dtype),
        lambda o, t: F.cross_entropy(o.detach(), t),
        lambda o, t: torch.zeros((), dtype=torch.float64),
    ],
    ids=["error rate", "item", "detached", "ignores the parameters"],
)
def test_losses_without_a_gradient(
    model: nn.Module, data: Data, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """A sharpness of the error rate is zero everywhere; it belongs in metrics."""
    with pytest.raises(ValueError, match=r"does not depend differentiably.*argmax.*metrics="):
        ModelLandscape(model, loss, data)


def test_a_forward_that_calls_another_module(model: nn.Module, data: Data) -> None:
    """A closure over the user's own model gives a loss with a graph and a gradient of zero."""
    with pytest.raises(ValueError, match=r"forward= that calls another module"):
        ModelLandscape(model, F.cross_entropy, data, forward=lambda module, b: model(b[0]))


def test_a_penalty_inside_the_loss(model: nn.Module, data: Data) -> None:
    """Weight decay over model.parameters() is a constant to anyone who moves a copy."""

    def decayed(outputs: Tensor, targets: Tensor) -> Tensor:
        decay = sum((p**2).sum() for p in model.parameters())
        return F.cross_entropy(outputs, targets) + decay

    with pytest.raises(ValueError, match=r"trainable tensors besides the outputs.*penalty="):
        ModelLandscape(model, decayed, data)
    land = ModelLandscape(model, F.cross_entropy, data, penalty=2.0)
    theta = land.vector(model)
    assert land.loss(theta).item() == pytest.approx(
        decayed(model(data[0]), data[1]).item(), rel=1e-13
    )


def test_penalties(model: nn.Module, data: Data) -> None:
    """The penalty is a term of its own: in loss and Hessian, not in Fisher or gradient noise."""
    plain = ModelLandscape(model, F.cross_entropy, data)
    land = ModelLandscape(model, F.cross_entropy, data, penalty=0.5)
    theta = land.vector(model)
    torch.testing.assert_close(land.loss(theta) - plain.loss(theta), 0.25 * theta @ theta)
    torch.testing.assert_close(land.gradient(theta) - plain.gradient(theta), 0.5 * theta)
    with land.at(theta) as one, plain.at(theta) as other:
        torch.testing.assert_close(one.hvp(theta) - other.hvp(theta), 0.5 * theta)
    (batch,), (bare,) = land.batches(theta), plain.batches(theta)
    assert torch.equal(batch.per_example_gradients(), bare.per_example_gradients())
    assert torch.equal(batch.loss, bare.loss)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="penalty must be a finite number >= 0"):
            ModelLandscape(model, F.cross_entropy, data, penalty=bad)
    with pytest.raises(ValueError, match=r"penalty must return a scalar tensor.*\(43,\)"):
        ModelLandscape(model, F.cross_entropy, data, penalty=lambda x: x**2)
    with pytest.raises(ValueError, match="does not depend differentiably"):
        ModelLandscape(model, F.cross_entropy, data, penalty=lambda x: torch.ones(()))
    linear = ModelLandscape(model, F.cross_entropy, data, penalty=lambda x: x.sum())
    with linear.at(theta) as one, plain.at(theta) as other:
        assert torch.equal(one.hvp(theta), other.hvp(theta))


def test_non_finite_losses_are_reported(model: nn.Module, data: Data) -> None:
    """landscaper replaces NaN by the mean of the rest, Goldstein recomputes values <= 0."""
    land = ModelLandscape(
        model, lambda o, t: torch.log(o[:, 0] + 1e3).mean(), data, metrics={"o": lambda o, t: o}
    )
    theta = land.vector(model)
    far = torch.stack([theta, -1e6 * torch.ones_like(theta), theta * float("inf")])
    losses, gradients = land.value_and_gradient(far)
    assert losses.isnan().tolist() == [False, True, True]
    assert land.loss(far).isnan().tolist() == [False, True, True]
    assert gradients[0].isfinite().all()
    estimate = land.loss_estimate(far[1])
    assert estimate.value != estimate.value
    assert estimate.stderr != estimate.stderr
    assert estimate.interval == (float("-inf"), float("inf"))
    overflow = ModelLandscape(model, lambda o, t: torch.exp(o).mean(), data)
    assert overflow.loss(1e6 * torch.ones_like(theta)).item() == float("inf")
    found = land.metrics(theta * float("nan"))["o"]
    assert found.value != found.value


def test_a_model_that_squeezes(data: Data) -> None:
    """forward(x).squeeze() loses its batch axis on one example; the planner must not need that."""

    class Regressor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            out = self.head(x).squeeze()
            return out.reshape(len(out))

    model, targets = Regressor(), data[0][:, 0]
    land = ModelLandscape(model, F.mse_loss, (data[0], targets))
    theta = land.vector(model)
    assert land.loss(theta).item() == pytest.approx(F.mse_loss(model(data[0]), targets).item())
    with land.at(theta) as point:
        assert point.hvp(theta).isfinite().all()
