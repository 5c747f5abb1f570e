"""The networks: sizes, seeds, resets, and derivatives against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.zoo import Classifier, cnn, lstm, mlp, resnet, tiny, tiny_models, transformer
from thalweg.zoo.models import ACTIVATIONS

FACTORIES: dict[str, Callable[..., Classifier]] = {
    "mlp": lambda **kw: mlp((784, 12, 10), **kw),
    "cnn": lambda **kw: cnn((4, 8), **kw),
    "resnet": lambda **kw: resnet(2, **kw),
    "transformer": lambda **kw: transformer(8, 2, 1, **kw),
    "lstm": lambda **kw: lstm(8, layers=2, **kw),
}


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", FACTORIES)
def test_scores_for_images(name: str) -> None:
    model = FACTORIES[name](seed=0)
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert model.size == len(parameters(model))


@pytest.mark.parametrize("name", FACTORIES)
def test_seeds(name: str) -> None:
    build = FACTORIES[name]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 (read only)
    first, again, other = build(seed=3), build(seed=3), build(seed=4)
    drawn = build()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002 (read only)
    assert torch.equal(parameters(first), parameters(again))
    assert not torch.equal(parameters(first), parameters(other))
    assert first.seed == 3
    assert torch.equal(parameters(build(seed=drawn.seed)), parameters(drawn))
    generator = torch.Generator().manual_seed(1)
    assert build(seed=generator).seed != build(seed=generator).seed


def owners(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if list(module.parameters(recurse=False))]


@pytest.mark.parametrize("name", FACTORIES)
def test_every_owner_of_parameters_can_draw_them_anew(name: str) -> None:
    model = FACTORIES[name](seed=0)
    fresh = FACTORIES[name](seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in owners(model):
            assert callable(getattr(module, "reset_parameters", None)), type(module)
            module.reset_parameters()
    for (label, ours), theirs in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert not (ours == 7.0).any(), label
        if ours.numel() > 50:  # the same law as at construction
            ratio = ours.detach().std() / theirs.detach().std()
            assert 0.6 < float(ratio) < 1.6, label


def test_the_test_of_owners_would_see_a_missing_reset() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    assert [hasattr(module, "reset_parameters") for module in owners(Bare())] == [False]


@pytest.mark.parametrize("name", tiny_models())
def test_tiny_models_are_small_functions_of_their_parameters(name: str) -> None:
    model, inputs, targets = tiny_models()[name]()
    assert model.size <= 2000
    assert inputs.dtype == next(model.parameters()).dtype == torch.float64
    assert not model.training
    assert torch.bincount(targets).tolist() == [2] * 10
    again = tiny(name)
    assert torch.equal(model(inputs), again[0](again[1]))
    assert tiny(name, dtype=torch.float32, examples=7)[0](inputs[:7].float()).shape == (7, 10)


@pytest.mark.parametrize("name", tiny_models())
@pytest.mark.parametrize("train", [False, True])
def test_second_derivatives_agree_with_differences(name: str, train: bool) -> None:
    """H v by double backward against a central difference of the gradient."""
    model, inputs, targets = tiny(name)
    model.train(train)
    params = dict(model.named_parameters())

    def gradient(shift: dict[str, torch.Tensor], step: float, graph: bool = False):
        moved = {k: (p + step * shift[k]).detach().requires_grad_() for k, p in params.items()}
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        scores = torch.func.functional_call(model, {**moved, **buffers}, (inputs,))
        loss = F.cross_entropy(scores, targets)
        return moved, torch.autograd.grad(loss, list(moved.values()), create_graph=graph)

    generator = torch.Generator().manual_seed(0)
    v = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}
    size = sum(float((x**2).sum()) for x in v.values()) ** 0.5
    v = {k: x / size for k, x in v.items()}
    with sdpa_kernel(SDPBackend.MATH):
        moved, slopes = gradient(v, 0.0, graph=True)
        product = torch.autograd.grad(slopes, list(moved.values()), list(v.values()))
        high, low = gradient(v, 1e-5)[1], gradient(v, -1e-5)[1]
    exact = torch.cat([x.flatten() for x in product])
    rough = torch.cat([((a - b) / 2e-5).flatten() for a, b in zip(high, low, strict=True)])
    torch.testing.assert_close(exact, rough, rtol=0, atol=1e-6 * float(exact.norm()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    model = mlp((4, 3, 2), activation=activation, seed=0)
    inner, _, last = list(model.layers)[1:]
    x = torch.rand(5, 4)
    by_name = {"identity": lambda z: z, "elu": F.elu, "gelu": F.gelu, "silu": F.silu}
    apply = by_name.get(activation) or getattr(torch, activation, None) or getattr(F, activation)
    torch.testing.assert_close(model(x), last(apply(inner(x))))


def test_mlp_layers_and_flattening() -> None:
    model = mlp((64, 32, 16, 10), seed=0)
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes == [(32, 64), (32,), (16, 32), (16,), (10, 16), (10,)]
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(images), model(images.flatten(1)))
    assert mlp((5, 2), seed=0).size == 12


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 17)])
def test_convolutions_take_any_image(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    assert cnn((4, 4, 4), in_channels=3, classes=7, seed=0)(images).shape == (2, 7)
    assert resnet(4, in_channels=3, classes=7, seed=0)(images).shape == (2, 7)


def test_resnet_has_the_depth_of_the_paper() -> None:
    """He et al. (2016), table 6: ResNet-20 has 0.27 million parameters."""
    for depth, million in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)):
        model = resnet(16, depth, in_channels=3, seed=0)
        assert model.size / 1e6 == pytest.approx(million, abs=0.007)
        weights = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        shortcuts = [m for m in weights if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        assert len(weights) - len(shortcuts) == depth
    assert any(isinstance(m, nn.BatchNorm2d) for m in resnet(2, seed=0).modules())


def test_transformer_reads_tokens_and_attends() -> None:
    model = transformer(8, 2, 2, vocabulary=11, length=6, seed=0)
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    assert model(tokens).shape == (4, 10)
    assert model(tokens[:, :3]).shape == (4, 10)
    assert not torch.allclose(model(tokens), model(tokens.flip(1)))  # positions matter


def test_attention_against_the_formula() -> None:
    block = transformer(8, 2, 1, seed=0).blocks[0].attention
    x = torch.rand(3, 5, 8)
    query, key, value = block.qkv(x).split(8, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (query[..., part] @ key[..., part].mT / 2).softmax(-1)
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(block(x), block.out(torch.cat(heads, dim=-1)))


def test_lstm_reads_rows_in_order() -> None:
    model = lstm(6, features=8, seed=0)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(images), model(images.squeeze(1)))
    assert not torch.allclose(model(images), model(images.flip(-2)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp((64,)), r"at least an input and an output, got \[64\]"),
        (lambda: mlp((64, 0, 10)), r"widths\[1\] must be at least 1, got 0"),
        (lambda: mlp((64, 5, 10), activation="swish"), "activation 'swish'; use one of elu"),
        (lambda: cnn(()), r"at least one layer, for example \(8, 16\)"),
        (lambda: cnn((4,), grid=0), "grid must be at least 1, got 0"),
        (lambda: resnet(4, depth=18), r"depth must be 6 n \+ 2 \(8, 14, 20, 26, ...\), got 18"),
        (lambda: transformer(10, 3, 1), "multiple of heads, got dim=10, heads=3"),
        (lambda: lstm(0), "hidden must be at least 1, got 0"),
        (lambda: tiny("vgg"), "unknown network 'vgg'; use one of mlp, cnn"),
        (lambda: cnn((4,), seed=0)(torch.zeros(5, 64)), r"shape \(5, 64\); this network reads"),
        (lambda: lstm(4, seed=0)(torch.zeros(5, 64)), r"shape \(5, 64\); this network reads"),
        (
            lambda: transformer(4, 1, 1, length=8, features=8, seed=0)(torch.zeros(1, 9, 8)),
            "has 9 positions, but this network was built for at most 8",
        ),
    ],
)
def test_bad_input(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
