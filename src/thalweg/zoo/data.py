"""Real images: scikit-learn's digits, Fashion-MNIST, any folder in the format of MNIST.

Every split and every subset is fixed by a stated rule, without a random number, and the
result records which images it holds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.zoo.idx import read_idx

__all__ = ["FASHION_CLASSES", "ImageData", "Split", "digits", "fashion_mnist", "mnist_folder"]

Split = Literal["train", "test", "all"]

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FASHION_VARIABLE = "THALWEG_FASHION_MNIST"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
_HOW_TO_GET = (
    "on Debian or Ubuntu run 'apt install dataset-fashion-mnist'; elsewhere fetch the four "
    "files named in https://github.com/zalandoresearch/fashion-mnist and pass folder=..., or "
    f"set {FASHION_VARIABLE} to their folder; any folder in the format of MNIST will do"
)


@dataclass(frozen=True)
class ImageData:
    """Some labelled images, and where they come from.

    Args:
        inputs: The images, `(N, 1, H, W)`, or `(N, H * W)` where flat; float32.
        targets: The class of each, `(N,)`, int64.
        name: What the data set is called.
        split: ``"train"``, ``"test"`` or ``"all"``.
        classes: The names of the classes; ``targets`` index them.
        source: Where it was read.
        scaling: What was done to the pixels.
        indices: Position of each image in the split as stored.
        rule: How the images were chosen.
    """

    inputs: Float[Tensor, " examples *shape"]
    targets: Int[Tensor, " examples"]
    name: str
    split: str
    classes: tuple[str, ...]
    source: str
    scaling: str
    indices: tuple[int, ...]
    rule: str

    def __post_init__(self) -> None:
        """Refuse images and labels that do not belong together."""
        if not len(self.inputs) == len(self.targets) == len(self.indices):
            raise ValueError(
                f"{self.name}: {len(self.inputs)} images, {len(self.targets)} labels and "
                f"{len(self.indices)} indices; there must be one of each per example"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, as `ModelLandscape` takes its data."""
        return self.inputs, self.targets

    @property
    def counts(self) -> tuple[int, ...]:
        """How many images each class has."""
        return tuple(torch.bincount(self.targets, minlength=len(self.classes)).tolist())

    def flat(self) -> ImageData:
        """Return the same images as vectors `(N, H * W)`."""
        return replace(self, inputs=self.inputs.flatten(1))

    def subset(self, size: int) -> ImageData:
        """Return a fixed, class-balanced subset: the first images of each class.

        Every class gives `size // classes` images, and the first `size % classes` classes
        one more; the order of the data set is kept.

        Args:
            size: How many images.

        Raises:
            ValueError: If a class has too few images.

        Example:
            >>> digits("train").subset(25).counts
            (3, 3, 3, 3, 3, 2, 2, 2, 2, 2)
        """
        share, extra = divmod(size, len(self.classes))
        wanted = [share + (label < extra) for label in range(len(self.classes))]
        short = [label for label, n in enumerate(wanted) if n > self.counts[label]]
        if size < 1 or short:
            fewest = min(self.counts)
            raise ValueError(
                f"cannot take a balanced subset of {size} from {self.name} ({self.split}): it has "
                f"{len(self)} images and its rarest class {fewest}; ask for 1 to "
                f"{fewest * len(self.classes)}"
            )
        chosen = (
            torch.cat([(self.targets == label).nonzero()[:n, 0] for label, n in enumerate(wanted)])
            .sort()
            .values
        )
        return replace(
            self,
            inputs=self.inputs[chosen],
            targets=self.targets[chosen],
            indices=tuple(self.indices[i] for i in chosen.tolist()),
            rule=f"{self.rule}; of these the first {size} with equal classes",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the provenance, without the pixels."""
        return {
            "type": "image_data",
            "name": self.name,
            "split": self.split,
            "examples": len(self),
            "shape": list(self.inputs.shape[1:]),
            "classes": list(self.classes),
            "source": self.source,
            "scaling": self.scaling,
            "rule": self.rule,
            "indices": list(self.indices),
        }

    def __str__(self) -> str:
        """Return name, size, scaling and rule in one line."""
        shape = " x ".join(map(str, self.inputs.shape[1:]))
        return (
            f"{self.name} ({self.split}): {len(self)} images of {shape}, {len(self.classes)} "
            f"classes, {self.scaling}; {self.rule}"
        )

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", "\\[")


def _check_split(split: str, allowed: Sequence[str]) -> None:
    if split not in allowed:
        raise ValueError(f"split must be one of {', '.join(map(repr, allowed))}, not {split!r}")


def digits(split: Split = "train", *, image: bool = True) -> ImageData:
    """Return scikit-learn's handwritten digits: 1,797 images of 8 x 8 in 10 classes.

    The split is fixed and stratified: within each class, in the order of the data set, each
    fifth image is for testing. That gives 1,442 images for training and 355 for testing.

    Args:
        split: ``"train"``, ``"test"`` or ``"all"``.
        image: Whether to return images `(N, 1, 8, 8)` or vectors `(N, 64)`.

    Returns:
        The images; pixels, 0 to 16 in the source, are divided by 16.

    Raises:
        ValueError: If `split` is unknown.

    References:
        E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI (1998).

    Example:
        >>> print(digits("test", image=False))
        digits (test): 355 images of 64, 10 classes, pixel / 16; each fifth image of its class
    """
    from sklearn.datasets import load_digits

    _check_split(split, ("train", "test", "all"))
    pixels, labels = load_digits(return_X_y=True)
    targets = torch.as_tensor(labels, dtype=torch.int64)
    place = torch.empty_like(targets)  # how many images of the same class come before
    for label in range(10):
        place[targets == label] = torch.arange(int((targets == label).sum()))
    held_out = place % 5 == 4
    keep = {"train": ~held_out, "test": held_out, "all": torch.ones_like(held_out)}[split]
    inputs = torch.as_tensor(pixels, dtype=torch.float32)[keep] / 16
    return ImageData(
        inputs=inputs.reshape(-1, 1, 8, 8) if image else inputs,
        targets=targets[keep],
        name="digits",
        split=split,
        classes=tuple("0123456789"),
        source="sklearn.datasets.load_digits",
        scaling="pixel / 16",
        indices=tuple(keep.nonzero()[:, 0].tolist()),
        rule={
            "train": "all but each fifth image of its class",
            "test": "each fifth image of its class",
            "all": "all images",
        }[split],
    )


def _find(folder: Path, split: str, kind: str) -> Path:
    """Return the images or labels file of a split, whichever way it is spelt."""
    prefixes = ("train",) if split == "train" else ("t10k", "test")
    axes = {"images": 3, "labels": 1}[kind]
    names = [
        f"{prefix}-{kind}{joint}idx{axes}-ubyte{ending}"
        for ending in ("", ".gz")
        for joint in ("-", ".")
        for prefix in prefixes
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no {kind} of the {split} split: no {', '.join(names)}")


def mnist_folder(
    folder: str | Path,
    split: Split = "train",
    *,
    subset: int | None = None,
    image: bool = True,
    name: str | None = None,
    classes: Sequence[str] | None = None,
) -> ImageData:
    """Read a folder in the format of MNIST: MNIST, Fashion-MNIST, KMNIST, your own.

    Args:
        folder: Where ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two
            ``t10k`` (or ``test``) files lie; plain or ``.gz``, with ``-idx3`` or ``.idx3``.
        split: ``"train"`` or ``"test"``.
        subset: How many images to take, with equal classes (see `ImageData.subset`).
        image: Whether to return images `(N, 1, H, W)` or vectors `(N, H * W)`.
        name: What to call the data set; the folder's name by default.
        classes: The names of the classes; by default the labels 0 to the largest found.

    Returns:
        The images; pixels, 0 to 255 in the files, are divided by 255.

    Raises:
        FileNotFoundError: If the folder or a file is missing; the message lists the names.
        ValueError: If a file is corrupt, is of another shape, does not belong to the other,
            or holds a label without a class.

    Example:
        >>> import tempfile, torch
        >>> from thalweg.zoo import write_idx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_idx(f"{folder}/train-images.idx3-ubyte", torch.zeros(4, 28, 28).byte())
        ...     write_idx(f"{folder}/train-labels.idx1-ubyte", torch.tensor([0, 1, 1, 0]).byte())
        ...     print(mnist_folder(folder, name="mine"))
        mine (train): 4 images of 1 x 28 x 28, 2 classes, pixel / 255; all images
    """
    _check_split(split, ("train", "test"))
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    image_file, label_file = _find(folder, split, "images"), _find(folder, split, "labels")
    pixels, labels = read_idx(image_file, ndim=3), read_idx(label_file, ndim=1)
    if len(pixels) != len(labels):
        raise ValueError(
            f"{image_file} holds {len(pixels)} images, but {label_file} {len(labels)} labels; "
            "they do not belong together"
        )
    if not pixels.numel():
        raise ValueError(f"{image_file} holds no pixels: its shape is {tuple(pixels.shape)}")
    largest = int(labels.max())
    names = tuple(classes) if classes is not None else tuple(map(str, range(largest + 1)))
    if largest >= len(names):
        raise ValueError(f"{label_file} holds label {largest}, but there are {len(names)} classes")
    data = ImageData(
        inputs=pixels[:, None].float() / 255,
        targets=labels.long(),
        name=folder.resolve().name if name is None else name,
        split=split,
        classes=names,
        source=str(folder),
        scaling="pixel / 255",
        indices=tuple(range(len(labels))),
        rule="all images",
    )
    data = data if subset is None else data.subset(subset)
    return data if image else data.flat()


def fashion_mnist(
    split: Split = "train",
    *,
    subset: int | None = None,
    folder: str | Path | None = None,
    image: bool = True,
) -> ImageData:
    """Return Fashion-MNIST: 60,000 and 10,000 images of 28 x 28 in 10 classes.

    Nothing is downloaded. The files are looked for in `folder`, else where the environment
    variable ``THALWEG_FASHION_MNIST`` points, else where Debian's package
    ``dataset-fashion-mnist`` puts them.

    Args:
        split: ``"train"`` or ``"test"``.
        subset: How many images to take, with equal classes (see `ImageData.subset`).
        folder: Where the four files lie.
        image: Whether to return images `(N, 1, 28, 28)` or vectors `(N, 784)`.

    Returns:
        The images; pixels are divided by 255.

    Raises:
        FileNotFoundError: If the files are absent; the message says how to get them.
        ValueError: If a file is corrupt.

    References:
        H. Xiao, K. Rasul and R. Vollgraf, arXiv:1708.07747 (2017).
    """
    _check_split(split, ("train", "test"))
    if folder is None:
        folder = os.environ.get(FASHION_VARIABLE) or DEBIAN_FOLDER
    try:
        return mnist_folder(
            folder,
            split,
            subset=subset,
            image=image,
            name="Fashion-MNIST",
            classes=FASHION_CLASSES,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Fashion-MNIST is not here: {error}. To get it, {_HOW_TO_GET}"
        ) from error
