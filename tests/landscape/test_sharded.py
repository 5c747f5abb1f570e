"""Two processes with unequal shards give the answer of one process with all the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from thalweg.estimate import Cost
from thalweg.landscape import ModelLandscape
from thalweg.landscape.sharded import ShardedLandscape

SIZES = (13, 4)


def _network() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    values = torch.linspace(-1, 1, sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    nn.utils.vector_to_parameters(values, model.parameters())
    return model


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(SIZES), 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (sum(SIZES),), generator=generator)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        inputs, targets = _data()
        part = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
        local = ModelLandscape(
            _network(), F.cross_entropy, (inputs[part], targets[part]), penalty=0.1
        )
        land = ShardedLandscape(local)
        theta = land.vector(_network())
        before = land.cost
        with land.at(theta) as point:
            product = point.hvp(torch.ones(2, land.dim, dtype=torch.float64))
        cost = land.cost - before
        assert cost == Cost(losses=1, gradients=1, hvps=2, passes=2)
        value, gradient = land.value_and_gradient(theta)
        start = land.start(torch.Generator().manual_seed(rank))
        result = {
            "loss": land.loss(theta),
            "value": value,
            "gradient": gradient,
            "product": product,
            "start": start,
            "size": torch.tensor(land.size),
        }
        torch.save(result, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_unequal_shards_equal_one_process(tmp_path: Path) -> None:
    """hessian-eigenthings averages ranks unweighted; unequal shards show it."""
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole = ModelLandscape(_network(), F.cross_entropy, _data(), penalty=0.1)
    theta = whole.vector(_network())
    with whole.at(theta) as point:
        product = point.hvp(torch.ones(2, whole.dim, dtype=torch.float64))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0)
    torch.testing.assert_close(first["loss"], whole.loss(theta), rtol=1e-12, atol=0)
    torch.testing.assert_close(first["gradient"], whole.gradient(theta), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(first["product"], product, rtol=1e-10, atol=1e-14)
    assert float(first["size"]) == sum(SIZES)
    unweighted = (
        sum(
            ModelLandscape(_network(), F.cross_entropy, part, penalty=0.1).loss(theta)
            for part in (
                tuple(t[: SIZES[0]] for t in _data()),
                tuple(t[SIZES[0] :] for t in _data()),
            )
        )
        / 2
    )
    assert abs(float(unweighted - whole.loss(theta))) > 1e-3


def test_needs_a_process_group() -> None:
    """Without torch.distributed the error says what to call."""
    local = ModelLandscape(_network(), F.cross_entropy, _data())
    with pytest.raises(RuntimeError, match=r"init_process_group"):
        ShardedLandscape(local)
