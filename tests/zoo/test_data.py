"""Digits, MNIST folders, Fashion-MNIST: splits, subsets and clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from thalweg.zoo import ImageData, digits, fashion_mnist, mnist_folder, write_idx
from thalweg.zoo.data import FASHION_CLASSES, FASHION_VARIABLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty random images of 5 x 6 in four classes, ten of each."""
    generator = torch.Generator().manual_seed(0)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = torch.randint(0, 256, (40, 5, 6), generator=generator).byte()
        labels = torch.randperm(40, generator=generator).remainder(4).byte()
        ending = ".gz" if split == "test" else ""
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{ending}", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{ending}", labels)
    return tmp_path


def test_digits_are_those_of_scikit_learn() -> None:
    pixels, labels = load_digits(return_X_y=True)
    whole = digits("all", image=False)
    assert len(whole) == 1797
    np.testing.assert_array_equal(whole.inputs.numpy() * 16, pixels)
    np.testing.assert_array_equal(whole.targets.numpy(), labels)
    assert whole.inputs.dtype == torch.float32
    assert float(whole.inputs.max()) == 1.0
    assert float(whole.inputs.min()) == 0.0


def test_digits_split_is_fixed_stratified_and_disjoint() -> None:
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.inputs.shape == (1442, 1, 8, 8)
    assert sorted(train.indices + test.indices) == list(range(1797))
    whole = digits("all")
    for part in (train, test):
        assert torch.equal(whole.inputs[list(part.indices)], part.inputs)
        assert torch.equal(whole.targets[list(part.indices)], part.targets)
    shares = [held / (held + kept) for held, kept in zip(test.counts, train.counts, strict=True)]
    assert all(0.19 < share <= 0.2 for share in shares)
    for label in range(10):  # the rule as it is stated, image by image
        of_class = [i for i, t in enumerate(whole.targets.tolist()) if t == label]
        held_out = [i for i in test.indices if whole.targets[i] == label]
        assert held_out == of_class[4::5]


def test_flat_images_are_the_same_numbers() -> None:
    images = digits("test")
    assert torch.equal(images.flat().inputs, digits("test", image=False).inputs)
    assert images.flat().inputs.shape == (355, 64)
    assert images.tensors[0] is images.inputs


@pytest.mark.parametrize("size", [1, 10, 25, 1340])
def test_subset_is_balanced_and_recorded(size: int) -> None:
    whole = digits("train")
    part = whole.subset(size)
    assert len(part) == size
    assert max(part.counts) - min(part.counts) <= 1
    everything = digits("all")
    assert torch.equal(everything.inputs[list(part.indices)], part.inputs)
    assert list(part.indices) == sorted(part.indices)
    assert f"of these the first {size} with equal classes" in part.rule
    for label in range(10):  # the first of each class, no later one
        first = [
            i for i, t in zip(whole.indices, whole.targets.tolist(), strict=True) if t == label
        ]
        mine = [i for i, t in zip(part.indices, part.targets.tolist(), strict=True) if t == label]
        assert mine == first[: len(mine)]


@pytest.mark.parametrize("size", [0, -3, 1442, 10**6])
def test_impossible_subsets_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"balanced subset of .* from digits \(train\).*1 to 1400"):
        digits("train").subset(size)


def test_json_and_strings() -> None:
    data = digits("train").subset(20)
    stored = json.loads(json.dumps(data.to_json()))
    assert stored["examples"] == 20
    assert stored["shape"] == [1, 8, 8]
    assert stored["scaling"] == "pixel / 16"
    assert stored["indices"] == list(data.indices)
    assert str(data).startswith("digits (train): 20 images of 1 x 8 x 8, 10 classes")
    assert data.__rich__() == str(data)


@pytest.mark.usefixtures("unchecked")
def test_images_and_labels_must_match() -> None:
    with pytest.raises(ValueError, match="broken: 2 images, 3 labels and 2 indices"):
        ImageData(
            torch.zeros(2, 1, 1, 1),
            torch.zeros(3).long(),
            "broken",
            "train",
            ("a",),
            "",
            "",
            (0, 1),
            "",
        )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("load", [digits, fashion_mnist, lambda s: mnist_folder(".", s)])
def test_unknown_split(load: Callable[[str], ImageData]) -> None:
    with pytest.raises(ValueError, match=r"split must be one of 'train', 'test'.* not 'valid'"):
        load("valid")


def test_folder_plain_and_packed(folder: Path) -> None:
    train, test = mnist_folder(folder, "train"), mnist_folder(folder, "test", image=False)
    assert train.inputs.shape == (40, 1, 5, 6)
    assert test.inputs.shape == (40, 30)
    assert train.counts == test.counts == (10, 10, 10, 10)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 5, 6), generator=generator)
    torch.testing.assert_close(train.inputs[:, 0], pixels / 255)
    assert train.name == folder.name
    assert train.classes == ("0", "1", "2", "3")
    assert mnist_folder(folder, "train", subset=8, name="mine").counts == (2, 2, 2, 2)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("prefix", ["t10k", "test"])
def test_spellings(tmp_path: Path, ending: str, joint: str, prefix: str) -> None:
    write_idx(tmp_path / f"{prefix}-images{joint}idx3-ubyte{ending}", torch.ones(2, 3, 3).byte())
    write_idx(tmp_path / f"{prefix}-labels{joint}idx1-ubyte{ending}", torch.tensor([0, 1]).byte())
    assert len(mnist_folder(tmp_path, "test")) == 2


def test_folder_refusals(folder: Path) -> None:
    labels = folder / "train-labels-idx1-ubyte"
    images = folder / "train-images-idx3-ubyte"
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte holds label 3, but there are 2 cl"):
        mnist_folder(folder, classes=("a", "b"))
    write_idx(labels, torch.zeros(39).byte())
    with pytest.raises(ValueError, match=r"images.* holds 40 images, but .*labels.* 39 labels"):
        mnist_folder(folder)
    images.write_bytes(labels.read_bytes())
    with pytest.raises(ValueError, match=r"images-idx3-ubyte has 1 axes, expected 3 \(images\)"):
        mnist_folder(folder)
    write_idx(images, torch.zeros(0, 5, 6).byte())
    write_idx(labels, torch.zeros(0).byte())
    with pytest.raises(ValueError, match=r"holds no pixels: its shape is \(0, 5, 6\)"):
        mnist_folder(folder)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no labels of the train split: no train-la"):
        mnist_folder(folder)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        mnist_folder(folder / "nowhere")


def test_fashion_mnist_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist") as caught:
        fashion_mnist(folder=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "any folder in the format of MNIST" in str(caught.value)
    monkeypatch.setenv(FASHION_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        fashion_mnist()


def test_fashion_mnist_reads_the_folder_of_the_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FASHION_VARIABLE, str(folder))
    data = fashion_mnist("test")
    assert len(data) == 40
    assert data.source == str(folder)
    assert data.classes == FASHION_CLASSES


def test_fashion_mnist_itself(fashion_mnist_folder: Path) -> None:
    test = fashion_mnist("test")
    assert test.source == str(fashion_mnist_folder)
    assert test.inputs.shape == (10_000, 1, 28, 28)
    assert test.counts == (1000,) * 10
    assert [FASHION_CLASSES[t] for t in test.targets[:3].tolist()] == [
        "ankle boot",
        "pullover",
        "trouser",
    ]
    assert 0.28 < float(test.inputs.mean()) < 0.29  # published: 0.2860 over the training set
    part = fashion_mnist("test", subset=100, image=False)
    assert part.inputs.shape == (100, 784)
    assert part.counts == (10,) * 10
    assert torch.equal(test.inputs[list(part.indices)].flatten(1), part.inputs)
