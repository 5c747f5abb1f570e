"""Small networks and data for the traps; the conformance suite's cameras are shared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "landscape"))


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """33 examples of 4 numbers in 3 classes: 32 and 1 left over."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(33, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (33,), generator=generator)


@pytest.fixture
def model() -> nn.Module:
    """A smooth network of 43 parameters."""
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    values = torch.randn(43, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nn.utils.vector_to_parameters(values, network.parameters())
    return network


@pytest.fixture
def bn_model() -> nn.Module:
    """A network with BatchNorm whose stored statistics are not the trivial ones."""
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in [*network.parameters(), network[1].running_mean]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        network[1].running_var.uniform_(0.5, 2.0, generator=generator)
    return network.double()
