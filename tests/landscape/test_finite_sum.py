"""The data as a weighted sum: minibatches, batches with Jacobians, own gradients, metrics."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from truth import untouched

from thalweg.estimate import Cost
from thalweg.landscape import FiniteSum, ModelLandscape, Structured
from thalweg.zoo import cnn, lstm, mlp, transformer

PADDED = -100


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(
    penalty: float = 0.0, **options: object
) -> tuple[ModelLandscape, nn.Module, Tensor, Tensor]:
    model, inputs, targets = mlp((4, 5, 3), seed=0).double(), numbers(33, 4), torch.arange(33) % 3
    data = options.pop("data", (inputs, targets))
    land = ModelLandscape(model, F.cross_entropy, data, penalty=penalty, **options)
    return land, model, inputs, targets


def tokens(**options: object) -> ModelLandscape:
    """A weighted sum: sequences with 0 to 5 tokens that count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(7, (14, 5), generator=generator)
    targets = torch.randint(7, (14, 5), generator=generator)
    targets[torch.rand(14, 5, generator=generator) < 0.5] = PADDED
    targets[3] = PADDED

    def loss(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kept = (labels != PADDED).sum()
        return F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=PADDED), kept

    return ModelLandscape(model, loss, (inputs, targets), **options)


def here(land: ModelLandscape) -> Tensor:
    return land._sweep.network.theta()


def test_protocols() -> None:
    land = small()[0]
    assert isinstance(land, FiniteSum)
    assert isinstance(land, Structured)
    assert (land.size, land.examples) == (33.0, 33)


@pytest.mark.parametrize("form", ["tensors", "list", "loader", "dataset", "tokens"])
def test_a_partition_averages_to_the_whole(form: str) -> None:
    """The weighted mean of minibatch gradients over a partition is the full gradient."""
    if form == "tokens":
        land = tokens(penalty=0.3)
    else:
        _, _, inputs, targets = small()
        data = {
            "tensors": (inputs, targets),
            "list": [(inputs[:32], targets[:32]), (inputs[32:], targets[32:])],
            "loader": DataLoader(TensorDataset(inputs, targets), batch_size=8),
            "dataset": TensorDataset(inputs, targets),
        }[form]
        land = small(penalty=0.3, data=data)[0]
    theta = here(land)
    order = torch.randperm(land.examples, generator=torch.Generator().manual_seed(1))
    parts = [land.minibatch(part) for part in order.split(5)]
    before = land.cost
    loss = sum(part.size * part.loss(theta) for part in parts) / land.size
    gradient = sum(part.size * part.gradient(theta) for part in parts) / land.size
    spent = land.cost - before
    assert sum(part.size for part in parts) == land.size
    assert sum(part.examples for part in parts) == land.examples
    torch.testing.assert_close(loss, land.loss(theta), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, land.gradient(theta), rtol=1e-10, atol=1e-13)
    counting = len(parts) if form == "tokens" else 0
    assert (spent.losses, spent.gradients) == (2 * len(parts) + counting, len(parts))
    assert spent.passes == pytest.approx(2 + (form == "tokens"), rel=1e-12)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 32), min_size=1, max_size=12), st.integers(1, 32))
def test_any_choice_of_examples(chosen: list[int], cut: int) -> None:
    """Any order, with repetition, from tensors or from batches that they are scattered over."""
    land, model, inputs, targets = CACHED
    expected = F.cross_entropy(model(inputs[chosen]), targets[chosen]).item()
    data = [(inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:])]
    for whole in (land, land.with_data(data)):
        part = whole.minibatch(chosen)
        assert part.examples == len(chosen)
        assert part.loss(here(land)).item() == pytest.approx(expected, rel=1e-12)


CACHED = small()


def test_minibatches_of_minibatches() -> None:
    """A fraction of a fraction; the cost goes to the top."""
    land, model, inputs, targets = small()
    part = land.minibatch(range(10, 20)).minibatch([3, 4])
    before = land.cost
    loss = part.loss(here(land)).item()
    assert loss == pytest.approx(F.cross_entropy(model(inputs[13:15]), targets[13:15]).item())
    assert (land.cost - before).passes == pytest.approx(2 / 33)
    assert part.cost == land.cost
    assert part.digest != land.digest
    assert part.digest == land.minibatch([13, 14]).digest
    assert part.describe()["examples"] == 2
    other = part.with_data((inputs, targets))
    other.loss(here(land))
    assert other.cost.passes == 3
    assert other.digest == land.digest


def test_indices_that_are_none() -> None:
    land = small()[0]
    with pytest.raises(ValueError, match=r"a mask becomes positions with mask.nonzero"):
        land.minibatch(torch.ones(33, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"integer positions, not torch.float32"):
        land.minibatch(torch.tensor([0.5]))
    for empty in ([], torch.zeros(0, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="at least one position"):
            land.minibatch(empty)
    for wrong in ([33], [-1], [0, 99]):
        with pytest.raises(ValueError, match=r"indices must lie in \[0, 33\), got \["):
            land.minibatch(wrong)


def test_a_loader_of_ready_batches() -> None:
    """batch_size=None: the data set's items are batches, and positions still mean examples."""
    _, model, inputs, targets = small()
    batches = list(zip(inputs.split(10), targets.split(10), strict=True))
    loader = DataLoader(batches, batch_size=None)
    land = ModelLandscape(model, F.cross_entropy, loader)
    assert land.examples == 33
    chosen = [0, 25, 11, 32]
    expected = F.cross_entropy(model(inputs[chosen]), targets[chosen]).item()
    assert land.minibatch(chosen).loss(here(land)).item() == pytest.approx(expected, rel=1e-12)


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    return {
        "mlp": (mlp((4, 5, 3), seed=0), numbers(11, 4)),
        "cnn": (cnn((2, 3), classes=3, seed=0), numbers(11, 1, 6, 6)),
        "transformer": (
            transformer(4, 2, 1, length=3, features=4, classes=3, seed=0),
            numbers(11, 3, 4),
        ),
        "lstm": (lstm(3, features=4, classes=3, seed=0), numbers(11, 3, 4)),
    }


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("memory", [pytest.param("2 GiB", marks=pytest.mark.slow), "60 kB"])
def test_jacobian_products(name: str, memory: str) -> None:
    """Against the dense Jacobian, row by row; Jv and J'u are adjoint."""
    model, inputs = networks()[name]
    model, targets = model.double(), torch.arange(11) % 3
    land = ModelLandscape(
        model, F.cross_entropy, (inputs, targets), batch_size=6, memory=memory, penalty=9.0
    )
    theta, vectors = here(land), numbers(2, 3, land.dim, seed=3)
    seen: list[int] = []
    total, slope, weight = 0.0, torch.zeros_like(theta), 0.0
    for batch in land.batches(theta):
        rows = list(batch.indices)
        seen += rows
        leaf = theta.clone().requires_grad_()
        outputs = torch.func.functional_call(model, land.spec.views(leaf), (inputs[rows],))
        torch.testing.assert_close(batch.outputs, outputs.detach(), rtol=1e-12, atol=1e-13)
        jacobian = torch.stack(
            [torch.autograd.grad(o, leaf, retain_graph=True)[0] for o in outputs.flatten()]
        )
        expected = (vectors @ jacobian.T).reshape(2, 3, len(rows), 3)
        torch.testing.assert_close(batch.jvp(vectors), expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(batch.jvp(vectors[0, 0]), expected[0, 0], rtol=1e-9, atol=1e-11)
        assert batch.jvp(vectors[:0]).shape == (0, 3, len(rows), 3)
        cotangent = numbers(len(rows), 3, seed=4)
        back = batch.vjp(cotangent)
        torch.testing.assert_close(back, cotangent.flatten() @ jacobian, rtol=1e-9, atol=1e-11)
        forward = (batch.jvp(vectors[1, 2]) * cotangent).sum()
        torch.testing.assert_close(forward, back @ vectors[1, 2], rtol=1e-10, atol=1e-12)
        own = batch.per_example_gradients()
        assert batch.weights.tolist() == [1.0] * len(rows)
        total += batch.weight * batch.loss.item()
        slope += own.sum(0)
        weight += batch.weight
        one = ModelLandscape(model, F.cross_entropy, (inputs[rows[:1]], targets[rows[:1]]))
        torch.testing.assert_close(own[0], one.gradient(theta), rtol=1e-9, atol=1e-12)
        with pytest.raises(ValueError, match=r"cotangents have shapes \[\(1, 3\)\]"):
            batch.vjp(numbers(1, 3))
    assert seen == list(range(11))
    assert weight == land.size
    slope = slope / weight + 9 * theta
    torch.testing.assert_close(slope, land.gradient(theta), rtol=1e-9, atol=1e-11)
    assert total / weight + 4.5 * float(theta @ theta) == pytest.approx(land.loss(theta).item())


@pytest.mark.parametrize("name", ["mlp", pytest.param("lstm", marks=pytest.mark.slow)])
@pytest.mark.parametrize("memory", ["2 GiB", "60 kB"])
def test_stacked_and_own_products(name: str, memory: str) -> None:
    """Many cotangents at once, every example's own, the loss's Hessian, and J' M J v."""
    model, inputs = networks()[name]
    model, targets = model.double(), torch.arange(11) % 3
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), batch_size=6, memory=memory)
    theta = here(land)
    for batch in land.batches(theta):
        count, own_targets = len(batch.indices), targets[list(batch.indices)]
        stacked = numbers(2, 4, count, 3, seed=5)
        back = batch.vjp(stacked)
        assert back.shape == (2, 4, land.dim)
        torch.testing.assert_close(back[1, 2], batch.vjp(stacked[1, 2]))
        rows = batch.per_example_vjp(stacked[0, 0])
        torch.testing.assert_close(rows.sum(0), back[0, 0], rtol=1e-9, atol=1e-11)
        alone = torch.zeros_like(stacked[0, 0])
        alone[-1] = stacked[0, 0, -1]
        torch.testing.assert_close(rows[-1], batch.vjp(alone), rtol=1e-9, atol=1e-11)
        p = batch.outputs.softmax(1)
        slope = (p - F.one_hot(own_targets, 3)) / count
        torch.testing.assert_close(batch.loss_gradient(), slope)
        curved = p * (stacked - (p * stacked).sum(-1, keepdim=True)) / count
        torch.testing.assert_close(batch.loss_hvp(stacked), curved)
        flat = (stacked - stacked.mean(-1, keepdim=True)) / 3 / count
        zeros = torch.zeros_like(batch.outputs)
        torch.testing.assert_close(batch.loss_hvp(stacked, outputs=zeros), flat)
        vectors = numbers(2, land.dim, seed=6)
        product = batch.sandwich(vectors, lambda t: 2 * t)
        expected = batch.vjp(2 * batch.jvp(vectors))
        torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-11)
        with pytest.raises(
            ValueError, match=r"cotangents have shapes \[\(2, 1, 3\)\], the outputs"
        ):
            batch.vjp(numbers(2, 1, 3))


def test_jacobian_products_that_are_wrong() -> None:
    """torch leaves a backward pass that it cannot differentiate out of J v without a word."""

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

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.layer(x))

    land = ModelLandscape(Model(), F.cross_entropy, (numbers(6, 4), torch.arange(6) % 3))
    theta = here(land)
    with pytest.raises(RuntimeError, match=r"differentiate|not adjoint"):
        next(land.batches(theta)).jvp(torch.stack([theta, theta]))


def test_weighted_examples() -> None:
    """Own gradients average to the gradient with the examples' own weights, not with one each."""
    for memory in ("2 GiB", "12 kB"):
        land = tokens(memory=memory)
        theta = here(land)
        slope, mass, plain = torch.zeros_like(theta), 0.0, torch.zeros_like(theta)
        for batch in land.batches(theta):
            own = batch.per_example_gradients()
            assert own.isfinite().all()
            assert float(batch.weights.sum()) == batch.weight
            slope += batch.weights @ own
            plain += own.sum(0)
            mass += batch.weight
        assert mass == land.size
        torch.testing.assert_close(slope / mass, land.gradient(theta), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(plain / 14, land.gradient(theta), rtol=1e-2)


def test_structured_outputs() -> None:
    """Outputs can be any nest of tensors; products have its shape."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp((4, 5, 3), seed=0).double()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            scores = self.body(x)
            return {"scores": scores, "sum": scores.sum(1)}

    model, inputs = Two(), numbers(6, 4)
    land = ModelLandscape(
        model,
        lambda o, t: F.cross_entropy(o["scores"], t) + (o["sum"] ** 2).mean(),
        (inputs, torch.arange(6) % 3),
    )
    theta = here(land)
    (batch,) = land.batches(theta)
    product = batch.jvp(torch.stack([theta, 2 * theta]))
    assert product["scores"].shape == (2, 6, 3)
    torch.testing.assert_close(product["sum"], product["scores"].sum(-1))
    torch.testing.assert_close(product["sum"][1], 2 * product["sum"][0])
    back = batch.vjp(
        {
            "scores": torch.zeros(6, 3, dtype=torch.float64),
            "sum": torch.ones(6, dtype=torch.float64),
        }
    )
    assert float(back @ theta) == pytest.approx(float(product["sum"][0].sum()))


def test_cost_of_batches() -> None:
    """Going through the data is a pass, and so is each product over all of it."""
    land = small(batch_size=8)[0]
    theta, before = here(land), land.cost
    for batch in land.batches(theta):
        batch.jvp(torch.stack([theta] * 7))
        batch.vjp(torch.ones_like(batch.outputs))
        batch.per_example_gradients()
    spent = land.cost - before
    assert (spent.losses, spent.gradients, spent.hvps) == (0, 0, 0)
    assert spent.passes == pytest.approx(4, rel=1e-12)


def test_metrics() -> None:
    """Any function per example, beside the loss, with its sampling error."""
    land, model, inputs, _ = small(
        batch_size=8,
        metrics={
            "margin": lambda o, t: o.max(1).values - o.min(1).values,
            "both": lambda o, t: torch.stack([o[:, 0], o[:, 1]], 1),
        },
    )
    theta, before = here(land), land.cost
    outputs = model(inputs).detach()
    margin = outputs.max(1).values - outputs.min(1).values
    found = land.metrics(theta)
    assert list(found) == ["margin", "both"]
    assert found["margin"].value == pytest.approx(float(margin.mean()), rel=1e-12)
    assert found["margin"].stderr == pytest.approx(float(margin.std()) / 33**0.5, rel=1e-12)
    assert found["margin"].cost == land.cost - before == Cost(losses=1, passes=1)
    assert float(margin.mean()) in found["margin"]
    assert found["both"].value == pytest.approx(float(outputs[:, :2].mean()), rel=1e-12)
    assert small()[0].metrics(theta) == {}


def test_accuracy_against_a_loop() -> None:
    land, model, inputs, targets = small(metrics="accuracy", batch_size=8)
    hits = sum(int(model(x[None]).argmax()) == int(y) for x, y in zip(inputs, targets, strict=True))
    found = land.metrics(here(land))["accuracy"]
    assert found.value == pytest.approx(hits / 33, rel=1e-14)
    assert found.stderr == pytest.approx(math.sqrt(hits / 33 * (1 - hits / 33) / 33))
    z = 1.959963984540054
    centre = (hits + z * z / 2) / (33 + z * z)
    half = z / (33 + z * z) * math.sqrt(hits * (33 - hits) / 33 + z * z / 4)
    assert found.interval == pytest.approx((centre - half, centre + half), rel=1e-9)
    assert "Wilson" in found.method


def test_metrics_that_are_none() -> None:
    land, _, inputs, targets = small(metrics={"scalar": lambda o, t: o.mean()})
    with pytest.raises(ValueError, match=r"'scalar' must return one value per example, .*\(33,\)"):
        land.metrics(here(land))
    with pytest.raises(ValueError, match="unknown metric 'f1'; known: accuracy; or pass"):
        small(metrics=["accuracy", "f1"])
    one = nn.Linear(4, 1).double()
    binary = ModelLandscape(
        one,
        lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.double()),
        (inputs, (targets > 0).long()),
        metrics="accuracy",
    )
    with pytest.raises(ValueError, match=r"two or more classes .* has \(33, 1\) and \(33,\)"):
        binary.metrics(here(binary))
    soft = ModelLandscape(
        nn.Linear(4, 3).double(),
        F.cross_entropy,
        (inputs, torch.full((33, 3), 1 / 3)),
        metrics="accuracy",
    )
    with pytest.raises(ValueError, match=r"has \(33, 3\) and \(33, 3\)"):
        soft.metrics(here(soft))


def test_metrics_may_draw() -> None:
    """A user's metric that draws random numbers draws none of the caller's."""
    land = small(metrics={"noise": lambda o, t: torch.rand(len(o), dtype=torch.float64)})[0]
    with untouched():
        land.metrics(here(land))


def test_loss_estimate_covers_every_policy_of_weights() -> None:
    """Value and sampling error with and without weights, chunks and penalty."""
    land, model, inputs, targets = small(batch_size=8, penalty=0.5)
    theta = here(land)
    own = F.cross_entropy(model(inputs), targets, reduction="none").detach()
    estimate = land.loss_estimate(theta)
    assert estimate.value == pytest.approx(land.loss(theta).item(), rel=1e-12)
    assert estimate.stderr == pytest.approx(float(own.std()) / 33**0.5, rel=1e-12)
    assert estimate.samples == 33
    assert estimate.cost == Cost(losses=1, passes=1)
    assert estimate.interval[0] < estimate.value < estimate.interval[1]
    weighted = tokens()
    values = [
        weighted.loss_estimate(here(weighted)),
        tokens(memory="12 kB").loss_estimate(here(weighted)),
        tokens(batch_size=3).loss_estimate(here(weighted)),
    ]
    for value in values:
        assert value.value == pytest.approx(weighted.loss(here(weighted)).item(), rel=1e-12)
        assert value.stderr == pytest.approx(values[0].stderr, rel=1e-9)
    one = land.minibatch([4]).loss_estimate(theta)
    assert one.stderr != one.stderr
    assert one.interval == (-math.inf, math.inf)


def test_standard_error_against_the_bootstrap() -> None:
    """The ratio estimator's error is the spread of the loss over resampled sequences."""
    land = tokens()
    theta = here(land)
    with torch.no_grad():
        parts = [land.minibatch([i]) for i in range(14)]
        weights = torch.tensor([part.size for part in parts], dtype=torch.float64)
        losses = torch.stack(
            [
                part.loss(theta) if part.size else torch.zeros((), dtype=torch.float64)
                for part in parts
            ]
        )
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(14, (20_000, 14), generator=generator)
    means = (weights[picks] * losses[picks]).sum(1) / weights[picks].sum(1)
    found = land.loss_estimate(theta).stderr
    assert found == pytest.approx(float(means.std()) * math.sqrt(14 / 13), rel=0.1)


def test_with_data() -> None:
    """A held-out set under the same network, loss and penalty, with a tally of its own."""
    land, model, inputs, targets = small(penalty=0.5, metrics="accuracy", batch_size=8)
    before = land.cost
    held_out = land.with_data((inputs[:5] + 1, targets[:5]))
    theta = here(land)
    expected = F.cross_entropy(model(inputs[:5] + 1), targets[:5]).item()
    assert held_out.loss(theta).item() == pytest.approx(
        expected + 0.25 * float(theta @ theta), rel=1e-12
    )
    assert held_out.examples == 5
    assert held_out.metrics(theta)["accuracy"].samples == 5
    assert land.cost == before
    assert held_out.digest != land.digest
    with pytest.raises(ValueError, match="zero examples"):
        land.with_data((inputs[:0], targets[:0]))


def test_provenance() -> None:
    """Plain values that say what was measured; equal data give equal digests."""
    import json

    land, _, inputs, targets = small(penalty=0.5)
    described = land.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["digest"] == small()[0].digest
    assert described["penalty"] == "0.5/2 |theta|^2"
    assert described["loss"] == "cross_entropy"
    swapped = inputs.clone()
    swapped[[0, 1]] = inputs[[1, 0]]
    digests = {
        small(data=data)[0].digest
        for data in (
            (inputs, targets),
            (swapped, targets),
            (inputs, targets.roll(1)),
            (inputs + 1e-12, targets),
        )
    }
    assert len(digests) == 4
    assert str(land) == "MLP with 43 coordinates over 33 examples (float64 on cpu)"
