"""What second derivatives need: kernels that have them, and a check that they are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from thalweg.landscape.data import cut, divisible
from thalweg.landscape.network import Network

if TYPE_CHECKING:
    from thalweg.landscape.sweep import Sweep

__all__ = ["check_symmetric", "differentiate_again", "explained", "second_order"]


@contextmanager
def second_order(network: Network) -> Iterator[None]:
    """Choose kernels that can be differentiated twice (attention, recurrent layers)."""
    recurrent = network.device.type == "cuda" and any(
        isinstance(module, nn.RNNBase) for module in network.module.modules()
    )
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do about activation checkpointing, which torch's own words do not."""
    try:
        yield
    except CheckpointError as error:
        raise RuntimeError(
            "the network uses activation checkpointing, which runs parts of it again with other "
            "parameters than the landscape's; switch it off: memory= bounds what is held"
        ) from error


def differentiate_again(
    slopes: Sequence[Tensor], leaves: Mapping[str, Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the derivative of the slopes' product with the cotangents, keeping their graph.

    Raises:
        RuntimeError: If some operation of the network has no second derivative.
    """
    try:
        order = list(leaves.values())
        found = torch.autograd.grad(
            slopes, order, cotangents, retain_graph=True, allow_unused=True
        )  # materialize_grads=True would do as well, at 3 % of a small network's product
        return tuple(
            torch.zeros_like(leaf) if part is None else part
            for leaf, part in zip(order, found, strict=True)
        )
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if "is not implemented" in reason or "differentiate twice" in reason:
            raise RuntimeError(
                f"an operation of the network has no second derivative in torch ({reason}), so "
                "there are no Hessian products; losses and gradients work. Replace the operation "
                "by one made of ordinary torch functions"
            ) from error
        raise


def check_symmetric(sweep: Sweep) -> None:
    r"""Compare $u^\top H v$ with $v^\top H u$ on a few examples.

    Where an operation's own backward pass cannot be differentiated, torch may leave out its
    second derivative without a word; what remains is not symmetric.

    Raises:
        RuntimeError: If they differ.
    """
    batch, network = next(sweep.batches()), sweep.network
    if divisible(batch) and sweep.policy != "batch":
        batch = cut(batch, 0, min(sweep.plan("product", batch)[0], 2))
    weights = network.parameters()
    leaves = {name: weights[name].requires_grad_() for name in network.spec.names}
    _, weight, slopes = sweep.slopes(leaves, batch, graph=True)
    kept = [i for i, slope in enumerate(slopes) if slope.requires_grad]
    if not weight or not kept:
        return
    generator = torch.Generator().manual_seed(0)
    pair = [
        [torch.randn(slope.shape, generator=generator).to(slope) for slope in slopes]
        for _ in range(2)
    ]
    forms, scale = [], 0.0
    sizes = [_inner(rows, rows) ** 0.5 for rows in pair]
    floor = torch.finfo(network.dtype).eps * sizes[0] * sizes[1]  # a Hessian of rounding alone
    for mine, other in (pair, pair[::-1]):
        product = differentiate_again([slopes[i] for i in kept], leaves, [mine[i] for i in kept])
        forms.append(_inner(product, other))
        scale = max(scale, (_inner(product, product) * _inner(other, other)) ** 0.5)
    tolerance = min(max(1e3 * torch.finfo(network.dtype).eps, 1e-10), 0.2)
    if abs(forms[0] - forms[1]) > tolerance * scale + floor:
        raise RuntimeError(
            f"Hessian products of this network are not symmetric ({forms[0]:.6g} and "
            f"{forms[1]:.6g} for "
            "one pair of vectors), so torch leaves out the second derivative of some operation: "
            "look for a torch.autograd.Function whose backward is marked @once_differentiable or "
            "computes without torch, and for torch's own weight_norm. Losses and gradients work"
        )


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float(x.reshape(-1) @ y.reshape(-1)) for x, y in zip(a, b, strict=True))
