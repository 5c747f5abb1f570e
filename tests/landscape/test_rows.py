"""Many vectors at once: each row's gradient is its own, whatever the network is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thalweg.landscape import ModelLandscape


class Clipped(torch.autograd.Function):
    """The identity, whose gradient is clipped by its norm: over all rows, if they come together."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * torch.clamp(0.05 / slope.norm(), max=1.0)

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> Any:
        return Clipped.apply(x), dims[0]


class Net(nn.Module):
    """Two layers, with or without the clipping between them."""

    def __init__(self, clips: bool) -> None:
        super().__init__()
        self.first, self.last, self.clips = nn.Linear(5, 4), nn.Linear(4, 1), clips

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        return self.last(Clipped.apply(hidden) if self.clips else hidden)


@pytest.mark.parametrize(("clips", "kernel"), [(False, "vmap"), (True, "loop")])
def test_rows_do_not_mix(clips: bool, kernel: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(16, 5, generator=g, dtype=torch.float64)
    land = ModelLandscape(Net(clips).double(), nn.functional.mse_loss, (x, x[:, :1]))
    rows = torch.stack([land.start(g) for _ in range(5)])
    together = land.gradient(rows)
    assert land.plan["many vectors"] == kernel
    for row, found in zip(rows, together, strict=True):
        torch.testing.assert_close(found, land.gradient(row), rtol=1e-12, atol=1e-15)
    rows[2] = 1e200  # its loss overflows; the others' gradients do not notice
    lost = land.gradient(rows)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(lost[kept], together[kept], rtol=1e-12, atol=1e-15)
