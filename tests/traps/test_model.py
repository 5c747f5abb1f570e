"""Traps in the network: modes, shared and frozen parts, kernels. Each names the peer's fault."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from truth import naive, untouched

from thalweg.landscape import ModelLandscape

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
    with (
        untouched(model),
        pytest.raises(ValueError, match=r"dropout is on in 1 \(Dropout, p=0.5\).*model.eval\(\)"),
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
    inputs, targets = torch.randn(1500, 4), torch.randint(3, (1500,))

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
    rows, truth = (
        batch.per_example_gradients(),
        naive(model, F.cross_entropy, [(inputs, data[1][:8])]),
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
