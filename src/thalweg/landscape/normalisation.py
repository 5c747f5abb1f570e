"""BatchNorm as a stated policy: frozen, batch, or recompute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.landscape.network import STATISTICS, Network, join

__all__ = ["POLICIES", "Moments", "Policy", "apply_policy", "collect"]

Policy = Literal["frozen", "batch", "recompute"]
POLICIES: tuple[Policy, ...] = ("frozen", "batch", "recompute")


def apply_policy(network: Network, policy: str) -> None:
    """Put the private copy's normalisation layers into the state that a policy means.

    Raises:
        ValueError: If the policy is unknown, or a layer has no stored statistics to freeze.
    """
    if policy not in POLICIES:
        raise ValueError(f"batchnorm must be one of {', '.join(POLICIES)}, not {policy!r}")
    bare = [name for name in network.norms if join(name, STATISTICS[0]) not in network.stored]
    if policy != "batch" and bare:
        raise ValueError(
            f"{bare[0] or 'the model'} keeps no running statistics (track_running_stats=False), so "
            f"batchnorm={policy!r} has nothing to work with; use batchnorm='batch'"
        )
    other = [name for name, m in network.norms.items() if not isinstance(m, _BatchNorm)]
    if policy == "recompute" and other:
        raise ValueError(
            f"{other[0]} ({type(network.norms[other[0]]).__name__}) is not a BatchNorm layer, so "
            "its statistics cannot be re-estimated; use batchnorm='frozen' or 'batch'"
        )
    for name, norm in network.norms.items():
        norm.eval()
        norm.track_running_stats = policy != "batch"
        for key in STATISTICS:
            stored = network.stored.get(join(name, key))
            norm.register_buffer(key, None if policy == "batch" else stored)


class Moments:
    """Mean and variance of each channel over all the data, merged batch by batch.

    The merge is exact for ragged batches (Chan, Golub and LeVeque 1983) and runs in
    float64. The variance is the unbiased one, as in PyTorch's running statistics.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.scatter: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in one batch `(examples, channels, ...)`."""
        flat = values.detach().transpose(0, 1).flatten(1).double()
        count, mean = flat.shape[1], flat.mean(1)
        scatter = ((flat - mean[:, None]) ** 2).sum(1)
        if self.mean is None or self.scatter is None:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.scatter = self.scatter + scatter + shift**2 * (self.count * count / total)
        self.count = total

    def statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return mean and unbiased variance."""
        if self.mean is None or self.scatter is None:
            raise ValueError("a BatchNorm layer saw no data; is it unused in the forward pass?")
        return self.mean.to(dtype), (self.scatter / max(self.count - 1, 1)).to(dtype)


def _observe(moments: Moments, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    moments.add(arguments[0])


@contextmanager
def _batch_mode(network: Network, moments: dict[str, Moments]) -> Iterator[None]:
    """Normalise by batch statistics and watch what goes in, leaving the copy as it was."""
    hooks = []
    try:
        for name, norm in network.norms.items():
            norm.track_running_stats = False
            for key in STATISTICS:
                norm.register_buffer(key, None)
            hooks.append(norm.register_forward_pre_hook(partial(_observe, moments[name])))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        apply_policy(network, "recompute")


def collect(
    network: Network, parameters: dict[str, Tensor], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Return the BatchNorm statistics of the data at these parameters.

    Every layer's input is normalised by its own batch's statistics on the way, as in
    training; the statistics of all batches are then merged with the right weights.
    """
    moments = {name: Moments() for name in network.norms}
    for batch in batches:  # fetching a batch may itself sweep a few examples, to measure memory
        with torch.no_grad(), _batch_mode(network, moments):
            network.call(parameters, batch)
    result = {}
    for name, found in moments.items():
        if found.mean is None:
            result.update({key: network.stored[key] for key in (join(name, k) for k in STATISTICS)})
            continue
        for key, value in zip(STATISTICS, found.statistics(network.dtype), strict=True):
            result[join(name, key)] = value
    return result
