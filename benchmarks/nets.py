"""The networks that the benchmarks run on: what decides the cost of a product is in each name.

The data is noise with random labels, seeded: the time of a product depends on shapes alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.zoo import cnn, lstm, mlp, resnet, transformer


@dataclass(frozen=True)
class WayRound:
    """A setting under which an operation can be differentiated twice, and rightly."""

    name: str
    context: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Case:
    """A network, the shape of its inputs, and the number of gradients a product may cost.

    Args:
        name: One word, for tables and ``--nets``.
        what: The network in words.
        make: Builds it, from a seed.
        shape: Shape of one input.
        examples: Examples in the batch.
        quick: Examples with ``--quick``.
        limit: The target: one retained product costs at most this many gradients.
        ways_round: What a peer may try, in turn, if it fails on the plain network.
    """

    name: str
    what: str
    make: Callable[[int], nn.Module]
    shape: tuple[int, ...]
    examples: int
    quick: int
    limit: float
    ways_round: tuple[WayRound, ...] = ()

    def problem(self, dtype: torch.dtype, quick: bool) -> Problem:
        """Return the network with its batch."""
        model = self.make(0).eval().to(dtype)
        generator = torch.Generator().manual_seed(1)
        examples = self.quick if quick else self.examples
        inputs = torch.randn(examples, *self.shape, generator=generator).to(dtype)
        targets = torch.randint(0, 10, (examples,), generator=generator)
        return Problem(model, inputs, targets)


@dataclass(frozen=True)
class Problem:
    """A network in evaluation mode, one batch, and the loss."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: nn.Module = nn.CrossEntropyLoss()  # noqa: RUF009 (it has no state)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The coordinates, in order."""
        return list(self.model.parameters())

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return sum(p.numel() for p in self.parameters)

    def mean_loss(self) -> Tensor:
        """Return the loss of the batch."""
        value: Tensor = self.loss(self.model(self.inputs), self.targets)
        return value

    def gradient(self) -> tuple[Tensor, ...]:
        """Return the gradient as torch gives it: the unit of every time."""
        return torch.autograd.grad(self.mean_loss(), self.parameters)

    def vectors(self, count: int) -> Tensor:
        """Return `count` unit vectors, `(count, dim)`."""
        generator = torch.Generator().manual_seed(2)
        rows = torch.randn(count, self.dim, generator=generator, dtype=torch.float64)
        unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
        return unit.to(self.inputs.dtype)


def written_out(
    x: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """Return the LayerNorm of `x` over its last axis, from elementary operations."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    result: Tensor = centred * (variance + eps).rsqrt() * weight + bias
    return result


@contextmanager
def plain_layer_norm() -> Iterator[None]:
    """Attention as for MATH, and LayerNorm from elementary operations."""
    fused = F.layer_norm
    with sdpa_kernel(SDPBackend.MATH):
        F.layer_norm = written_out  # type: ignore[assignment]  # the nets' LayerNorms are affine
        try:
            yield
        finally:
            F.layer_norm = fused


@contextmanager
def no_mkldnn() -> Iterator[None]:
    """Recurrent layers from elementary operations, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about TF32 on graphics cards
        flags = torch.backends.mkldnn.flags(enabled=False)
        flags.__enter__()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags.__exit__(None, None, None)


MATH_ATTENTION = WayRound("sdpa_kernel(MATH)", lambda: sdpa_kernel(SDPBackend.MATH))
PLAIN_LAYER_NORM = WayRound("sdpa_kernel(MATH), LayerNorm written out", plain_layer_norm)
NO_MKLDNN = WayRound("mkldnn off", no_mkldnn)

CASES = (
    Case(
        "MLP",
        "MLP 784-128-10, the first layer dominates",
        lambda seed: mlp((784, 128, 10), seed=seed),
        (784,),
        2048,
        512,
        1.5,
    ),
    Case(
        "deep MLP",
        "MLP 256-256-256-256-10, square layers",
        lambda seed: mlp((256, 256, 256, 256, 10), seed=seed),
        (256,),
        1024,
        256,
        2.3,
    ),
    Case(
        "CNN",
        "two convolutions (16, 32) on 28 x 28",
        lambda seed: cnn((16, 32), seed=seed),
        (1, 28, 28),
        256,
        64,
        2.3,
    ),
    Case(
        "ResNet",
        "BatchNorm ResNet-8 of width 8 on 28 x 28, frozen statistics",
        lambda seed: resnet(8, 8, seed=seed),
        (1, 28, 28),
        64,
        16,
        2.3,
    ),
    Case(
        "transformer",
        "4 blocks of width 64, 4 heads, 28 tokens, fused attention",
        lambda seed: transformer(64, 4, 4, seed=seed),
        (28, 28),
        64,
        16,
        2.5,
        (MATH_ATTENTION, PLAIN_LAYER_NORM),
    ),
    Case(
        "LSTM",
        "one LSTM layer of 64 over 28 steps",
        lambda seed: lstm(64, seed=seed),
        (28, 28),
        128,
        32,
        2.3,
        (NO_MKLDNN,),
    ),
)


if __name__ == "__main__":
    for case in CASES:
        problem = case.problem(torch.float32, quick=False)
        print(f"{case.name}: {case.what}; {problem.dim} parameters, {case.examples} examples")
