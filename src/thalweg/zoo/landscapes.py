"""Ready-made landscapes of real networks on real data, for the command line and the lab.

Each function takes no argument, so that ``thalweg survey run thalweg.zoo:digits_mlp`` works.
For every landscape `name` there are `name`, the training loss; `name_test`, the same network
over the held-out images; and `name_pair`, both. The penalty belongs to all of them, so a
landscape's loss is what training minimises, also on held-out images.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from thalweg.landscape.model import ModelLandscape
from thalweg.zoo.data import digits, fashion_mnist
from thalweg.zoo.models import cnn, mlp, resnet

__all__ = [
    "digits_mlp",
    "digits_mlp_pair",
    "digits_mlp_test",
    "digits_resnet",
    "digits_resnet_pair",
    "digits_resnet_test",
    "fashion_cnn",
    "fashion_cnn_pair",
    "fashion_cnn_test",
]

Part = Literal["train", "test"]
Pair = tuple[ModelLandscape, ModelLandscape]
FASHION_IMAGES = 1500


def digits_mlp(split: Part = "train") -> ModelLandscape:
    """Return the landscape of a 64-32-10 tanh network on digits: 2,410 coordinates.

    Cross-entropy over all images of the split, in float64, with a penalty of 1e-3: weak
    enough that training fits every image, strong enough that L-BFGS ends at a true minimum
    (gradient norm 1e-8 after some 1,500 steps), since without it there is none at finite
    weights.

    Args:
        split: ``"train"`` (1,442 images) or ``"test"`` (355).

    Example:
        >>> land = digits_mlp()
        >>> land.dim, land.examples
        (2410, 1442)
    """
    return ModelLandscape(
        mlp((64, 32, 10), seed=0),
        F.cross_entropy,
        digits(split, image=False).tensors,
        penalty=1e-3,
        metrics="accuracy",
        dtype=torch.float64,
    )


def digits_mlp_test() -> ModelLandscape:
    """Return `digits_mlp` over the held-out images."""
    return digits_mlp("test")


def digits_mlp_pair() -> Pair:
    """Return `digits_mlp` over the training and the held-out images."""
    return digits_mlp(), digits_mlp_test()


def digits_resnet(split: Part = "train") -> ModelLandscape:
    """Return the landscape of a BatchNorm ResNet-8 of width 4 on digits: 5,142 coordinates.

    Cross-entropy with a penalty of 1e-3, in float32, softplus activations. The policy is
    ``batch`` and the split is one batch, so the statistics are those of all its images, and
    ``recompute`` differs only by its unbiased variance. Held-out images are thus normalised
    by their own statistics, not by those of the training images.

    Args:
        split: ``"train"`` (1,442 images) or ``"test"`` (355).

    Example:
        >>> land = digits_resnet("test")
        >>> land.dim, land.batchnorm
        (5142, 'batch')
    """
    return ModelLandscape(
        resnet(4, activation="softplus", seed=0),
        F.cross_entropy,
        digits(split).tensors,
        penalty=1e-3,
        batchnorm="batch",
        metrics="accuracy",
    )


def digits_resnet_test() -> ModelLandscape:
    """Return `digits_resnet` over the held-out images."""
    return digits_resnet("test")


def digits_resnet_pair() -> Pair:
    """Return `digits_resnet` over the training and the held-out images."""
    return digits_resnet(), digits_resnet_test()


def fashion_cnn(split: Part = "train") -> ModelLandscape:
    """Return the landscape of a small tanh CNN on Fashion-MNIST: 2,650 coordinates.

    Two strided convolutions of 6 and 12 channels and a linear layer; cross-entropy with a
    penalty of 5e-3, in float32, over a fixed subset: the first 150 images of each class.

    Args:
        split: ``"train"`` or ``"test"``; 1,500 images of either.

    Raises:
        FileNotFoundError: If Fashion-MNIST is absent; the message says how to get it.
    """
    return ModelLandscape(
        cnn((6, 12), grid=4, seed=0),
        F.cross_entropy,
        fashion_mnist(split, subset=FASHION_IMAGES).tensors,
        penalty=5e-3,
        metrics="accuracy",
    )


def fashion_cnn_test() -> ModelLandscape:
    """Return `fashion_cnn` over 1,500 held-out images."""
    return fashion_cnn("test")


def fashion_cnn_pair() -> Pair:
    """Return `fashion_cnn` over the training and the held-out images."""
    return fashion_cnn(), fashion_cnn_test()
