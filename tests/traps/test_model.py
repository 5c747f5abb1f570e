"""Traps in the network: modes, shared and frozen parts, kernels. Each names the peer's fault."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conformance import naive, photograph, same, untouched
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.zoo import lstm, transformer

Data = tuple[Tensor, Tensor]


def test_two_objects_on_one_model(model: nn.Module, data: Data) -> None:
    """PyHessian reads .grad, which accumulates: a second object on the same model gives twice
    the Hessian (ratio 2.000000)."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    first = ModelLandscape(model, F.cross_entropy, data)
    theta = first.vector(model)
    with first.at(theta) as point:
        once = point.hvp(theta)
        second = ModelLandscape(model, F.cross_entropy, data)
        with second.at(theta) as other:
            assert torch.equal(other.hvp(theta), once)
        assert torch.equal(point.hvp(theta), once)
    assert torch.equal(second.gradient(theta), first.gradient(theta))
    assert all(bool((p.grad == 1).all()) for p in model.parameters())


def test_unused_weights(data: Data) -> None:
    """PyHessian crashes on an unused parameter: a float 0. in its list of gradients."""
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "spare": nn.Linear(7, 2)}).double()
    land = ModelLandscape(
        model, F.cross_entropy, data, forward=lambda m, batch: m["used"](batch[0])
    )
    theta = land.vector(model)
    spare = land.spec.mask("spare.*")
    assert spare.sum() == 16
    for found in (land.gradient(theta), land.gradient(torch.stack([theta, theta + 1]))):
        assert bool((found[..., spare] == 0).all())
        assert bool((found[..., ~spare] != 0).any())
    with land.at(theta) as point:
        product = point.hvp(torch.ones_like(theta))
    assert bool((product[spare] == 0).all())
    batch = next(land.batches(theta))
    assert bool((batch.vjp(torch.ones_like(batch.outputs))[spare] == 0).all())
    assert bool((batch.per_example_gradients()[:, spare] == 0).all())


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 3), nn.Linear(3, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids)))


def test_tied_weights() -> None:
    """A tool that lists a tied tensor twice moves its copies apart, and finds flat directions
    that do not exist."""
    torch.manual_seed(0)
    model, ids = Tied().double(), torch.arange(12) % 6
    land = ModelLandscape(model, F.cross_entropy, (ids, (ids * 5 + 1) % 6))
    assert land.dim == 18
    assert land.spec.tied == {"head.weight": "embed.weight"}
    theta = land.vector(model)
    truth = naive(model, F.cross_entropy, [(ids, (ids * 5 + 1) % 6)])
    leaf = theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(truth(leaf), leaf)
    torch.testing.assert_close(land.gradient(theta), slope, rtol=1e-11, atol=1e-13)
    both = model.state_dict()
    assert set(both) == {"embed.weight", "head.weight"}
    assert torch.equal(land.vector(both), theta)
    assert torch.equal(land.vector({"head.weight": both["head.weight"]}), theta)
    apart = {**both, "head.weight": both["head.weight"] + 1}
    with pytest.raises(ValueError, match=r"embed.weight and head.weight are one tied tensor"):
        land.vector(apart)
    untied = copy.deepcopy(model)
    untied.head.weight = nn.Parameter(torch.zeros(6, 3, dtype=torch.float64))
    land.load_into(untied, theta)
    assert torch.equal(untied.head.weight, untied.embed.weight)
    assert land.start(torch.Generator().manual_seed(0)).shape == (18,)


def test_frozen_weights(model: nn.Module, data: Data) -> None:
    """Only what requires a gradient is a coordinate; the rest are constants, and a checkpoint
    with other constants is another landscape."""
    model[0].requires_grad_(False)
    land = ModelLandscape(model, F.cross_entropy, data)
    assert land.spec.names == ("2.weight", "2.bias")
    theta = land.vector(model)
    assert land.loss(theta).item() == pytest.approx(
        F.cross_entropy(model(data[0]), data[1]).item(), rel=1e-13
    )
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias += 1
    with pytest.raises(ValueError, match=r"0.bias is a constant of this landscape.*parameters="):
        land.vector(other)
    land.load_into(other, theta)
    torch.testing.assert_close(other(data[0]), model(data[0]), rtol=0, atol=0)
    every = ModelLandscape(model, F.cross_entropy, data, parameters="*")
    assert every.dim == 43
    with pytest.raises(ValueError, match=r"pattern 'fc\*' matches no parameter; there are: 0.w"):
        ModelLandscape(model, F.cross_entropy, data, parameters="fc*")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        ModelLandscape(model, F.cross_entropy, data)


def test_dropout_left_on(data: Data) -> None:
    """hessian-eigenthings takes dropout silently: two products of one vector differ by 96 %."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    with untouched(model), pytest.raises(
        ValueError, match=r"dropout is on in 1 \(Dropout, p=0.5\).*model.eval\(\)"
    ):
        ModelLandscape(model, F.cross_entropy, data)
    assert model.training
    land = ModelLandscape(model.eval(), F.cross_entropy, data)
    assert torch.equal(land.loss(land.vector(model)), land.loss(land.vector(model)))


def test_dropout_behind_a_zero_layer(data: Data) -> None:
    """With a zero-initialised head the loss does not show the dropout at the first vector, and
    a check that compares two losses there is blind."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    nn.init.zeros_(model[2].weight)
    assert torch.equal(*(F.cross_entropy(model(data[0]), data[1]) for _ in range(2)))
    with pytest.raises(ValueError, match=r"dropout is on in 1"):
        ModelLandscape(model, F.cross_entropy, data)


@pytest.mark.parametrize("rate", [0.3, 0.0])
def test_dropout_inside_recurrent_and_attention_layers(rate: float) -> None:
    """Dropout is also an argument of LSTM and attention, in no module of its own."""
    inputs, targets = torch.randn(6, 3, 4), torch.arange(6) % 3

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 3, num_layers=2, dropout=rate, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    model = Net().train()
    if rate:
        with pytest.raises(ValueError, match=r"dropout is on in rnn \(LSTM, p=0.3\)"):
            ModelLandscape(model, F.cross_entropy, (inputs, targets))
    else:
        ModelLandscape(model, F.cross_entropy, (inputs, targets))


def test_randomness_without_a_module(model: nn.Module, data: Data) -> None:
    """F.dropout(training=self.training) shows in no module; noise in eval mode has no remedy
    but to take it out."""

    class Noisy(nn.Module):
        def __init__(self, always: bool) -> None:
            super().__init__()
            self.body, self.always = copy.deepcopy(model), always

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.body(x), 0.5, training=self.training or self.always)

    with untouched(model), pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        ModelLandscape(Noisy(False), F.cross_entropy, data)
    ModelLandscape(Noisy(False).eval(), F.cross_entropy, data)
    with untouched(model), pytest.raises(ValueError, match="in evaluation mode too"):
        ModelLandscape(Noisy(True).eval(), F.cross_entropy, data)


def test_weak_noise_in_a_large_data_set(model: nn.Module) -> None:
    """The mean over many batches hides noise that every single batch shows."""
    inputs, targets = torch.randn(4000, 4), torch.randint(3, (4000,))

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = copy.deepcopy(model).float()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + 1e-2 * torch.randn(3).sign()

    with pytest.raises(ValueError, match="not a function of the parameters"):
        ModelLandscape(Noisy(), F.cross_entropy, (inputs, targets), batch_size=20)


def test_batchnorm_in_train_mode(bn_model: nn.Module, data: Data) -> None:
    """curvlinops dies in functorch on BatchNorm in train mode; PyHessian switches the user's
    model to eval mode and leaves it there; each forward pass would move the statistics."""
    bn_model.train()
    with untouched(bn_model):
        land = ModelLandscape(bn_model, F.cross_entropy, data)
        theta = land.vector(bn_model)
        loss = land.loss(theta).item()
        land.gradient(theta)
        with land.at(theta) as point:
            point.hvp(theta)
    assert land.batchnorm == "frozen"
    expected = copy.deepcopy(bn_model).eval()
    assert loss == pytest.approx(F.cross_entropy(expected(data[0]), data[1]).item(), rel=1e-13)


def test_counters_and_statistics_are_not_coordinates(bn_model: nn.Module, data: Data) -> None:
    """AutoNEB makes num_batches_tracked a path coordinate: 1,589 of 274,063 coordinates are
    buffers, and its path geometry is counter noise; loss-landscapes perturbs running_var."""
    land = ModelLandscape(bn_model, F.cross_entropy, data)
    assert land.dim == sum(p.numel() for p in bn_model.parameters()) == 53
    assert not any("running" in n or "num_batches" in n for n in land.spec.names)
    moved = copy.deepcopy(bn_model)
    moved[1].num_batches_tracked += 4583
    assert torch.equal(land.vector(moved), land.vector(bn_model))


def test_foreign_parameters_under_frozen_statistics(bn_model: nn.Module, data: Data) -> None:
    """Every tool that averages or interpolates weights evaluates one network's parameters
    under another's statistics (AutoNEB, pylandscape): a network that nobody trained."""
    land = ModelLandscape(bn_model, F.cross_entropy, data)
    other = copy.deepcopy(bn_model)
    other[1].running_mean += 0.1
    with pytest.raises(ValueError, match=r"statistics differ \(1.running_mean\).*'recompute'"):
        land.vector(other)
    with pytest.raises(ValueError, match=r"lacks the BatchNorm statistics \(1.running_mean\)"):
        land.vector(dict(bn_model.named_parameters()))
    for policy in ("batch", "recompute"):
        free = land.with_batchnorm(policy)
        assert torch.equal(free.vector(other), land.vector(bn_model))
        assert torch.equal(free.vector(dict(other.named_parameters())), land.vector(bn_model))


def test_state_that_forward_changes(data: Data) -> None:
    """A buffer that counts calls or averages over them makes the loss depend on the past."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3).double()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.calls += 1
            return self.head(x)

    model = Counting()
    with untouched(model), pytest.raises(ValueError, match=r"changes the buffer calls.*eval\(\)"):
        ModelLandscape(model, F.cross_entropy, data)
    ModelLandscape(model.eval(), F.cross_entropy, data)
    norm = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match=r"changes the buffer .*_u"):
        ModelLandscape(norm, F.cross_entropy, data)
    land = ModelLandscape(norm.eval(), F.cross_entropy, data)
    assert land.gradient(land.vector(norm)).isfinite().all()


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
        lambda: land.loss(theta), lambda: batch.gradient(theta),
        lambda: batch.value_and_gradient(torch.stack([theta, theta])),
        lambda: land.loss_estimate(theta), lambda: next(batch.batches(theta)),
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
        assert torch.equal(point.hvp(torch.ones(2, 12, dtype=torch.float64)), torch.zeros(
            2, 12, dtype=torch.float64
        ))
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
    wrong = [torch.autograd.grad(slope_there, leaf, v, retain_graph=True)[0] for v in
             torch.eye(len(theta), dtype=torch.float64)]
    assert float((torch.stack(wrong) - torch.stack(wrong).T).abs().max()) > 0.01, "no trap"


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


def test_float64_and_float32(model: nn.Module, data: Data) -> None:
    """PyHessian's quadrature and curvlinops' ghosts are float32 troubles; a network can be
    examined in float64 without being converted, its data and its loss's weights with it."""
    single = copy.deepcopy(model).float()
    weighted = nn.CrossEntropyLoss(label_smoothing=0.1)
    weighted.register_buffer("scale", torch.ones(3))
    land = ModelLandscape(single, weighted, (data[0].float(), data[1]), dtype=torch.float64)
    theta = land.vector(single)
    assert theta.dtype == land.loss(theta).dtype == torch.float64
    assert next(single.parameters()).dtype == torch.float32
    assert weighted.scale.dtype == torch.float32
    double = copy.deepcopy(single).double()
    truth = naive(double, weighted, [(data[0].float(), data[1])])
    assert land.loss(theta).item() == pytest.approx(truth(theta).item(), rel=1e-12)
    with pytest.raises(TypeError, match=r"float32, but this landscape computes in torch.float64"):
        land.loss(theta.float())


def test_mixed_dtypes_need_a_choice(model: nn.Module, data: Data) -> None:
    """A network of two dtypes has no vector of its own."""
    model[2].float()
    with pytest.raises(ValueError, match=r"2 floating dtypes \(torch.float32, torch.float64\)"):
        ModelLandscape(model, F.cross_entropy, data)
    assert ModelLandscape(model, F.cross_entropy, data, dtype=torch.float64).dim == 43


def test_autocast_around_a_call(model: nn.Module, data: Data) -> None:
    """An ambient autocast would silently compute in bfloat16 what is reported as float32."""
    single = model.float()
    land = ModelLandscape(single, F.cross_entropy, data)
    theta = land.vector(single)

    def all_of_it() -> list[Tensor]:
        with land.at(theta) as point:
            return [land.loss(theta), land.gradient(theta), point.hvp(theta)]

    plain = all_of_it()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert single(data[0].float()).dtype == torch.bfloat16, "the trap is not set"
        found = all_of_it()
    for a, b in zip(plain, found, strict=True):
        assert torch.equal(a, b)


def test_encoder_fast_path(data: Data) -> None:
    """In eval mode torch's encoder layer takes a fast path that has no derivative."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 3)).double().eval()
    inputs = data[0][:8, None]
    land = ModelLandscape(model, F.cross_entropy, (inputs, data[1][:8]))
    theta = land.vector(model)
    (batch,) = land.batches(theta)
    rows, truth = batch.per_example_gradients(), naive(
        model, F.cross_entropy, [(inputs, data[1][:8])]
    )
    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(truth(leaf), leaf)
    torch.testing.assert_close(rows.mean(0), expected, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn_like(batch.outputs)
    inner = float((batch.jvp(theta) * cotangent).sum())
    assert inner == pytest.approx(float(batch.vjp(cotangent) @ theta), rel=1e-10)


def test_wrapped_networks(model: nn.Module, data: Data) -> None:
    """DataParallel and torch.compile put a prefix before every name; a child may really be
    called `module`."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    for wrapped, prefix in ((Wrapper(), "module."), (nn.DataParallel(model), "")):
        land = ModelLandscape(wrapped, F.cross_entropy, data)
        assert land.spec.names[0] == f"{prefix}0.weight"
        for state in (wrapped, wrapped.state_dict()):
            assert torch.equal(land.vector(state), expected)
        land.load_into(wrapped, expected + 1)
        assert torch.equal(land.vector(wrapped), expected + 1)
        land.load_into(wrapped, expected)
    plain = ModelLandscape(model, F.cross_entropy, data)
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        state = {prefix + name: value for name, value in model.state_dict().items()}
        assert torch.equal(plain.vector(state), expected)


@pytest.mark.usefixtures("unchecked")
def test_models_that_cannot_be(model: nn.Module, data: Data) -> None:
    """What is no network is refused in words."""
    for wrong in (None, model.forward, "resnet18"):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
            ModelLandscape(wrong, F.cross_entropy, data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameters"):
        ModelLandscape(nn.ReLU(), F.cross_entropy, data)
    with pytest.raises(ValueError, match="lazy parameters"):
        ModelLandscape(nn.LazyLinear(3), F.cross_entropy, data)
    model.kept = model(data[0])
    with pytest.raises(ValueError, match="cannot be copied"):
        ModelLandscape(model, F.cross_entropy, data)


def test_weights_that_are_not_numbers(bn_model: nn.Module, data: Data) -> None:
    """NaN weights give a NaN Hessian and no word of warning anywhere else."""
    for name, value in (("3.weight", "nan"), ("3.bias", "inf"), ("1.running_var", "nan")):
        broken = copy.deepcopy(bn_model)
        dict([*broken.named_parameters(), *broken.named_buffers()])[name].data[0] = float(value)
        with pytest.raises(ValueError, match=rf"{name} holds .*NaN or infinite values"):
            ModelLandscape(broken, F.cross_entropy, data)
        land = ModelLandscape(bn_model, F.cross_entropy, data, batchnorm="batch")
        if "weight" in name or "bias" in name:
            with pytest.raises(ValueError, match=rf"{name} holds .*NaN or infinite"):
                land.vector(broken)
    bn_model[0].requires_grad_(False).weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight holds NaN"):
        ModelLandscape(bn_model, F.cross_entropy, data)


def test_random_start_of_an_unknown_module(data: Data) -> None:
    """A module with parameters of its own and no reset_parameters cannot be drawn anew."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.head = nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) * self.scale

    model = Scaled()
    land = ModelLandscape(model, F.cross_entropy, data)
    with pytest.raises(ValueError, match=r"the model \(Scaled\) owns parameters.*start=function"):
        land.start(torch.Generator())

    def start(module: Scaled, generator: torch.Generator) -> None:
        module.head.reset_parameters()
        with torch.no_grad():
            module.scale.copy_(torch.rand(3, generator=generator))

    with untouched(model):
        land = ModelLandscape(model, F.cross_entropy, data, start=start)
        draws = [land.start(torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not (draws[0] == draws[2]).any()
