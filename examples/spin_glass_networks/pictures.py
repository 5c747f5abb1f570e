"""The images: digits as they are, larger ones averaged down to 10 x 10."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from thalweg.zoo import ImageData, digits, fashion_mnist, mnist_folder
from thalweg.zoo.data import Split

SIDE = 10
# How often each class occurs in the training set of MNIST, by which it is known.
MNIST_COUNTS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)


def shrink(images: Tensor, side: int = SIDE) -> Tensor:
    """Average images `(N, 1, H, W)` over equal areas; a pixel on a border counts in parts.

    Args:
        images: The images, of at least `side` pixels each way.
        side: The pixels of a side afterwards.

    Raises:
        ValueError: If the images are smaller.
    """
    if min(images.shape[-2:]) < side:
        raise ValueError(
            f"images of {tuple(images.shape[-2:])} cannot be averaged to {side} pixels"
        )
    down, across = (_parts(length, side).to(images) for length in images.shape[-2:])
    return down @ images @ across.T


def _parts(length: int, side: int) -> Tensor:
    """Return the share of every pixel in every larger one, `(side, length)`; rows sum to 1."""
    edges = torch.arange(side + 1, dtype=torch.float64) * length / side
    pixel = torch.arange(length, dtype=torch.float64)
    low, high = edges[:-1, None], edges[1:, None]
    covered = torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)
    return covered.clamp(min=0) * side / length


@cache
def load(
    name: str, folder: Path | None, images: tuple[int, int] | None
) -> tuple[ImageData, ImageData]:
    """Return flat images for training and for testing.

    Args:
        name: ``"digits"``, ``"fashion"`` or ``"folder"``.
        folder: Where the files in the format of MNIST lie, for ``"folder"``.
        images: How many of each, with equal classes; None for all.

    Raises:
        FileNotFoundError: If the files are absent.
    """
    splits: tuple[Split, Split] = ("train", "test")
    both = [_read(name, folder, split) for split in splits]
    if images is not None:
        both = [data.subset(count) for data, count in zip(both, images, strict=True)]
    return _flat(both[0]), _flat(both[1])


def _read(name: str, folder: Path | None, split: Split) -> ImageData:
    if folder is not None:
        return mnist_folder(folder, split)
    return digits(split) if name == "digits" else fashion_mnist(split)


def _flat(data: ImageData) -> ImageData:
    if data.inputs.shape[-1] <= SIDE:
        return data.flat()
    scaling = f"{data.scaling}; area average to {SIDE} x {SIDE}"
    return replace(data, inputs=shrink(data.inputs), scaling=scaling).flat()


def is_mnist(folder: Path) -> bool:
    """Say whether a folder's training set is MNIST's, by how often each class occurs."""
    return mnist_folder(folder, "train").counts == MNIST_COUNTS
