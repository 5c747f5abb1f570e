"""Every network of the zoo at 2,000 parameters or fewer, for checks against dense algebra."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from thalweg.zoo.data import digits
from thalweg.zoo.models import Classifier, cnn, lstm, mlp, resnet, transformer

__all__ = ["TINY_NAMES", "tiny", "tiny_models"]

_MAKERS: dict[str, Callable[..., Classifier]] = {
    "mlp": partial(mlp, (64, 16, 10)),
    "cnn": partial(cnn, (4, 6), grid=2),
    "resnet": partial(resnet, 2),
    "transformer": partial(transformer, 8, heads=2, layers=1, length=8, features=8),
    "lstm": partial(lstm, 8, features=8),
}
TINY_NAMES = tuple(_MAKERS)


def tiny(
    name: str, *, examples: int = 20, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Classifier, Tensor, Tensor]:
    """Return a network of at most 2,000 parameters with a few real digits.

    It is a fixture: the same call gives the same numbers. The ResNet has seen its images
    once in training mode, so its BatchNorm statistics are not the trivial ones; every
    network is returned in evaluation mode.

    Args:
        name: ``"mlp"``, ``"cnn"``, ``"resnet"``, ``"transformer"`` or ``"lstm"``.
        examples: How many images, with equal classes.
        dtype: The dtype of the parameters and the images.
        seed: What draws the parameters.

    Returns:
        The network, the images `(examples, 1, 8, 8)` and their classes `(examples,)`.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> model, inputs, targets = tiny("cnn")
        >>> model.size, inputs.shape, targets.shape
        (512, torch.Size([20, 1, 8, 8]), torch.Size([20]))
    """
    if name not in _MAKERS:
        raise ValueError(f"unknown network {name!r}; use one of {', '.join(TINY_NAMES)}")
    inputs, targets = digits("train").subset(examples).tensors
    inputs = inputs.to(dtype)
    model = _MAKERS[name](seed=seed).to(dtype)
    with torch.no_grad():
        model(inputs)
    return model.eval(), inputs, targets


def tiny_models() -> dict[str, Callable[[], tuple[Classifier, Tensor, Tensor]]]:
    """Return `tiny` for every name, as functions without arguments.

    Example:
        >>> sorted(tiny_models())
        ['cnn', 'lstm', 'mlp', 'resnet', 'transformer']
    """
    return {name: partial(tiny, name) for name in TINY_NAMES}
