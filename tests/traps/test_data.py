"""Traps in the data: batches, order, randomness, shapes. Each names the peer that falls in."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from truth import untouched

from thalweg.landscape import ModelLandscape

Data = tuple[Tensor, Tensor]


def truth(model: nn.Module, data: Data) -> tuple[float, Tensor]:
    loss = F.cross_entropy(model(data[0]), data[1])
    slope = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([part.reshape(-1) for part in slope])


@pytest.mark.parametrize("form", ["list", "loader", "batch_size", "dataset"])
def test_ragged_batches(model: nn.Module, data: Data, form: str) -> None:
    """hessian-eigenthings averages batches without their sizes: 32 + 1 gives half the weight
    to one example; google/spectral-density divides by the number of batches too."""
    dataset, options = TensorDataset(*data), {}
    given = {
        "list": [(data[0][:32], data[1][:32]), (data[0][32:], data[1][32:])],
        "loader": DataLoader(dataset, batch_size=32),
        "batch_size": data,
        "dataset": dataset,
    }[form]
    if form in ("batch_size", "dataset"):
        options = {"batch_size": 32}
    land = ModelLandscape(model, F.cross_entropy, given, **options)
    loss, slope = truth(model, data)
    theta = land.vector(model)
    assert land.loss(theta).item() == pytest.approx(loss, rel=1e-13)
    torch.testing.assert_close(land.gradient(theta), slope, rtol=1e-11, atol=1e-13)
    whole = ModelLandscape(model, F.cross_entropy, data)
    vector = torch.ones_like(theta)
    with land.at(theta) as one, whole.at(theta) as other:
        torch.testing.assert_close(one.hvp(vector), other.hvp(vector), rtol=1e-11, atol=1e-13)
    halves = [
        F.cross_entropy(model(x), y).item()
        for x, y in [(data[0][:32], data[1][:32]), (data[0][32:], data[1][32:])]
    ]
    assert abs(sum(halves) / 2 - loss) > 0.01, "the trap is not set"


def test_drop_last(model: nn.Module, data: Data) -> None:
    """A loader made for training leaves out the last examples, and every peer follows it."""
    loader = DataLoader(TensorDataset(*data), batch_size=32, drop_last=True)
    with pytest.raises(ValueError, match=r"drops its last ragged batch.*drop_last=False"):
        ModelLandscape(model, F.cross_entropy, loader)
    sampler = BatchSampler(SequentialSampler(range(33)), 32, drop_last=True)
    with pytest.raises(ValueError, match="drops its last ragged batch"):
        ModelLandscape(
            model, F.cross_entropy, DataLoader(TensorDataset(*data), batch_sampler=sampler)
        )


def test_shuffling_loader(model: nn.Module, data: Data) -> None:
    """PyHessian's example passes the shuffling training loader; each product then sees other
    batches. Even an order that two passes happen to share is refused."""
    dataset, generator = TensorDataset(*data), torch.Generator().manual_seed(0)
    loaders = [
        DataLoader(dataset, shuffle=True),
        DataLoader(dataset, shuffle=True, generator=generator),
        DataLoader(dataset, sampler=WeightedRandomSampler([1.0] * 33, 33)),
        DataLoader(
            dataset,
            batch_sampler=BatchSampler(
                RandomSampler(dataset, generator=generator), 8, drop_last=False
            ),
        ),
        DataLoader(TensorDataset(data[0][:1], data[1][:1]), shuffle=True),
    ]
    for loader in loaders:
        with (
            untouched(model, generator, *data),
            pytest.raises(ValueError, match=r"DataLoader shuffles \(.*Sampler\).*shuffle=False"),
        ):
            ModelLandscape(model, F.cross_entropy, loader)


class Shuffled:
    """A home-made sampler that shuffles by a generator of its own."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 33

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(33, generator=self.generator).tolist())


@pytest.mark.parametrize("seed", [None, 5])
def test_a_sampler_that_shuffles_by_other_means(
    model: nn.Module, data: Data, seed: int | None
) -> None:
    """curvlinops compares two passes, but from the same RNG state."""
    generator = torch.Generator().manual_seed(seed) if seed else None
    loader = DataLoader(TensorDataset(*data), batch_size=8, sampler=Shuffled(generator))
    with (
        untouched(model, *([generator] if generator else [])),
        pytest.raises(
            ValueError,
            match=r"two passes over the data differ: the DataLoader shuffles \(Shuffled\)",
        ),
    ):
        ModelLandscape(model, F.cross_entropy, loader)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: Data, source: str) -> None:
        self.data, self.source = data, source

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = {
            "torch": lambda: float(torch.randn(())),
            "numpy": lambda: float(np.random.randn()),  # noqa: NPY002 (users' data sets do this)
            "python": random.random,
        }[self.source]()
        return self.data[0][i] + 0.1 * noise, self.data[1][i]


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_random_augmentation(model: nn.Module, data: Data, source: str) -> None:
    """Two passes that start from one seed see the same augmentation, and a check that seeds
    them alike is blind; ours start from different states of all three RNGs."""
    dataset = Augmented(data, source)
    for given in (dataset, DataLoader(dataset, batch_size=8)):
        with (
            untouched(model),
            pytest.raises(
                ValueError, match=r"two passes over the data differ: .*augmentation.*deterministic"
            ),
        ):
            ModelLandscape(model, F.cross_entropy, given)


def test_one_shot_iterators(model: nn.Module, data: Data) -> None:
    """A generator of batches gives its data to the first product and none to the second."""
    batches = [(data[0][:20], data[1][:20]), (data[0][20:], data[1][20:])]
    for iterator in (iter(batches), (b for b in batches), zip(*data, strict=True)):
        with pytest.raises(TypeError, match=r"gone through only once.*list of batches"):
            ModelLandscape(model, F.cross_entropy, iterator)

    class Once(IterableDataset[tuple[Tensor, Tensor]]):
        def __init__(self) -> None:
            self.items = iter(list(zip(*data, strict=True)))

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return self.items

    with pytest.raises(ValueError, match=r"saw 33 examples and the next 0: .*only once"):
        ModelLandscape(model, F.cross_entropy, Once())

    class Again(Once):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(list(zip(*data, strict=True)))

    land = ModelLandscape(model, F.cross_entropy, Again(), batch_size=10)
    assert land.loss(land.vector(model)).item() == pytest.approx(truth(model, data)[0], rel=1e-12)
    with pytest.raises(TypeError, match="map-style dataset"):
        land.minibatch([0, 1])


def test_zero_batches(model: nn.Module, data: Data) -> None:
    """No data gives PyHessian a division by zero; the sum over nothing is no landscape."""
    empty = (data[0][:0], data[1][:0])
    for nothing in ([], DataLoader(TensorDataset(*empty)), TensorDataset(*empty)):
        with pytest.raises(ValueError, match="zero batches"):
            ModelLandscape(model, F.cross_entropy, nothing)
    with pytest.raises(ValueError, match="zero examples"):
        ModelLandscape(model, F.cross_entropy, empty)
    with pytest.raises(ValueError, match="batch 1 of the data holds zero examples"):
        ModelLandscape(model, F.cross_entropy, [data, empty])


def test_data_that_is_not_finite(model: nn.Module, data: Data) -> None:
    """landscaper turns NaN into the mean; here bad data is named before anything is computed."""
    for bad in (float("nan"), float("inf")):
        inputs = data[0].clone()
        inputs[20, 1] = bad
        with pytest.raises(ValueError, match="batch 2 of the data holds NaN or infinite values"):
            ModelLandscape(model, F.cross_entropy, (inputs, data[1]), batch_size=8)


def test_ambiguous_data(model: nn.Module, data: Data) -> None:
    """[inputs, targets] could be two batches or one data set."""
    with pytest.raises(ValueError, match=r"ambiguous: pass a tuple \(inputs, targets\)"):
        ModelLandscape(model, F.cross_entropy, list(data))
    with pytest.raises(ValueError, match=r"share their first axis.*\[33, 32\]"):
        ModelLandscape(model, F.cross_entropy, (data[0], data[1][:32]))
    for wrong in ("digits", 3, None, {"x": [1, 2]}):
        with pytest.raises(TypeError, match="data"):
            ModelLandscape(model, F.cross_entropy, wrong)
    for size in (0, -1):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            ModelLandscape(model, F.cross_entropy, data, batch_size=size)


def test_dictionaries_of_tensors(data: Data) -> None:
    """PyHessian crashes on a dict batch; a Hugging Face model is called by keyword."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3).double()

        def forward(
            self, input_values: Tensor, labels: Tensor, note: str = ""
        ) -> dict[str, Tensor]:
            return {"logits": self.head(input_values), "labels": labels}

    model = Reads()

    def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs["logits"], batch["labels"])

    whole = {"input_values": data[0], "labels": data[1]}
    expected = F.cross_entropy(model.head(data[0]), data[1]).item()
    for given in (
        whole,
        [{**whole, "note": "one"}],
        [{k: v[:20] for k, v in whole.items()}, {k: v[20:] for k, v in whole.items()}],
    ):
        land = ModelLandscape(model, loss, given)
        theta = land.vector(model)
        assert land.loss(theta).item() == pytest.approx(expected, rel=1e-13)
        assert land.examples == 33
        with land.at(theta) as point:
            assert point.hvp(theta).isfinite().all()
    pairs = ModelLandscape(model, lambda o, t: F.cross_entropy(o["logits"], t), [(whole, data[1])])
    assert pairs.loss(pairs.vector(model)).item() == pytest.approx(expected, rel=1e-13)
    part = ModelLandscape(model, loss, whole).minibatch([3, 1])
    assert part.loss(part.vector(model)).item() == pytest.approx(
        F.cross_entropy(model.head(data[0][[3, 1]]), data[1][[3, 1]]).item(), rel=1e-13
    )


def test_several_inputs(data: Data) -> None:
    """A batch (a, b, targets) calls model(a, b); so does ((a, b), targets)."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Bilinear(4, 4, 3).double()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(a, b)

    model, (x, y) = Two(), data
    expected = F.cross_entropy(model(x, x.flip(0)), y).item()
    for given in ((x, x.flip(0), y), ((x, x.flip(0)), y), [((x, x.flip(0)), y)]):
        land = ModelLandscape(model, F.cross_entropy, given)
        assert land.loss(land.vector(model)).item() == pytest.approx(expected, rel=1e-13)


def test_data_without_targets() -> None:
    """A physics-informed loss or an autoencoder has inputs alone (PyHessian issue 15)."""
    model, x = nn.Linear(4, 4).double(), torch.randn(9, 4, dtype=torch.float64)
    land = ModelLandscape(model, F.mse_loss, x)
    assert land.loss(land.vector(model)).item() == pytest.approx(F.mse_loss(model(x), x).item())


def test_the_batch_is_not_written_into(data: Data) -> None:
    """nn.ReLU(inplace=True) on the inputs changes the data for every later pass."""
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    with untouched(*data), pytest.raises(ValueError, match="writes into the batch"):
        ModelLandscape(model, F.cross_entropy, data)

    def masking(outputs: Tensor, targets: Tensor) -> Tensor:
        targets[targets == 2] = 0
        return F.cross_entropy(outputs, targets)

    model = nn.Linear(4, 3).double()
    with untouched(*data), pytest.raises(ValueError, match="masked in place"):
        ModelLandscape(model, masking, data)
    inside = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    with untouched(*data):
        land = ModelLandscape(inside, F.cross_entropy, data)
        assert land.gradient(land.vector(inside)).isfinite().all()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_iterating_a_loader_leaves_the_global_rng(
    model: nn.Module, data: Data, workers: int
) -> None:
    """Iterating a DataLoader draws a base seed from the global RNG, with no worker at all;
    every peer that loops over a loader changes the caller's random numbers."""
    generator = torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    next(iter(DataLoader(TensorDataset(*data))))
    assert not torch.equal(torch.get_rng_state(), before), "the trap is not set"
    for held in (None, generator):
        loader = DataLoader(TensorDataset(*data), batch_size=8, num_workers=workers, generator=held)
        with untouched(model, generator, *data):
            land = ModelLandscape(model, F.cross_entropy, loader, metrics="accuracy")
            theta = land.vector(model)
            land.loss(theta)
            land.gradient(theta)
            with land.at(theta) as point:
                point.hvp(theta)
            land.metrics(theta)
            land.loss_estimate(theta)
            land.minibatch([0, 32]).gradient(theta)
            for batch in land.batches(theta):
                batch.jvp(theta)


def test_batches_do_not_leak_between_yields(model: nn.Module, data: Data) -> None:
    """A generator that holds a context open changes the caller's world between two yields."""
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*data), batch_size=8, generator=generator)
    land = ModelLandscape(model, F.cross_entropy, loader)
    theta, drawn = land.vector(model), []
    torch.manual_seed(0)
    expected = [torch.rand(()).item() for _ in range(5)]
    torch.manual_seed(0)
    with untouched(model, generator), torch.random.fork_rng():
        for batch in land.batches(theta):
            drawn.append(torch.rand(()).item())
            assert torch.backends.mha.get_fastpath_enabled()
            assert torch.is_grad_enabled()
            batch.jvp(theta)
    assert drawn == expected
    with untouched(model, generator):
        for _ in land.batches(theta):
            break
    batches = land.batches(theta)
    with untouched(model, generator):
        next(batches)
        batches.close()
