"""Loss and metrics along a path: against a loop, on other data, under BatchNorm's policies."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.paths import line
from thalweg.paths.along import along


def _data(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=g)
    return x, (x.sum(1) > 0).long()


def _net(seed: int, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(5, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(8, 2)).eval()


def test_it_equals_a_loop_over_modules() -> None:
    a, b = _net(0), _net(1)
    land = ModelLandscape(a, F.cross_entropy, _data(0, 60), metrics="accuracy")
    path = line(land, land.vector(a), land.vector(b))
    test = _data(1, 40)
    found = along(land.with_data(test), path, times=[0.0, 0.3, 1.0])
    for t, loss, accuracy in zip(found.times, found.losses, found.metrics["accuracy"], strict=True):
        module = copy.deepcopy(a)
        land.load_into(module, path.at(t))
        out = module(test[0])
        assert loss.value == pytest.approx(float(F.cross_entropy(out, test[1]).detach()), rel=1e-5)
        assert accuracy.value == pytest.approx(float((out.argmax(1) == test[1]).float().mean()))
        assert loss.half_width > 0
    assert found.cost.losses == 6
    assert "accuracy" in str(found).splitlines()[0]
    assert found.worst[1].value == max(x.value for x in found.losses)
    assert found.to_json()["metrics"]["accuracy"][0]["type"] == "estimate"


def test_the_ends_of_a_batchnorm_path_keep_one_policy_and_are_shown_as_shipped() -> None:
    a, b = _net(0, norm=True), _net(1, norm=True)
    data = _data(0, 64)
    for net in (a, b):  # the statistics that training would leave: of a part of the data
        net.train()
        net(data[0][:32])
        net.eval()
    before = copy.deepcopy(b.state_dict())
    land = ModelLandscape(a, F.cross_entropy, data, batchnorm="batch", metrics="accuracy")
    ends = land.vector(a), land.vector(b)
    found = along(land, line(land, *ends), times=3, models=(a, b.state_dict()))
    evaluated = land.with_batchnorm("recompute")
    for place, end in ((0, ends[0]), (-1, ends[1])):
        assert found.losses[place].value == pytest.approx(float(evaluated.loss(end)), rel=1e-6)
    shipped = land.as_shipped(b)
    assert shipped.value == pytest.approx(
        float(F.cross_entropy(b(data[0]), data[1]).detach()), rel=1e-6
    )
    assert abs(shipped.value - found.losses[-1].value) > 1e-3
    assert found.shipped is not None
    assert [x.value for x in found.shipped] == [land.as_shipped(m).value for m in (a, b)]
    assert f"{shipped.value:.3g}"[:4] in str(found).splitlines()[-2]
    assert found.to_json()["shipped"][1]["value"] == shipped.value
    alone = along(land, line(land, *ends), times=3)
    assert alone.shipped is None
    assert found.cost.losses == alone.cost.losses + 2
    part = along(land, line(land, *ends), times=[0.5, 0.75], models=(a, b))
    assert [x.value for x in part.shipped or ()] == [x.value for x in found.shipped]
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in before.items())


def test_models_that_are_not_at_the_ends_are_refused(unchecked: None) -> None:
    a, b = _net(0, norm=True), _net(1, norm=True)
    land = ModelLandscape(a, F.cross_entropy, _data(0, 64), batchnorm="recompute")
    path = line(land, land.vector(a), land.vector(b))
    with pytest.raises(
        ValueError, match=r"begins at a loss of .* another, of loss .* the path's order"
    ):
        along(land, path, times=3, models=(b, a))
    with pytest.raises(ValueError, match="two networks at the path's ends, got 1"):
        along(land, path, times=3, models=(a,))  # type: ignore[arg-type] # the point
    bare = {name: x for name, x in b.state_dict().items() if "running" not in name}
    with pytest.raises(ValueError, match="lacks the BatchNorm statistics"):
        along(land, path, times=3, models=(a, bare))
    bowl = FunctionLandscape(lambda x: (x**2).sum(), 2)
    with pytest.raises(TypeError, match="models need a ModelLandscape, got a FunctionLandscape"):
        along(bowl, torch.eye(2, dtype=torch.float64), models=(a, b))


def test_without_data_there_is_no_sampling_error() -> None:
    bowl = FunctionLandscape(lambda x: (x**2).sum(), 2)
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = along(bowl, corners, times=5)
    assert found.metrics == {}
    assert [x.half_width for x in found.losses] == [0.0] * 5
    with pytest.raises(ValueError, match="at least two places"):
        along(bowl, corners, times=[0.5])
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        along(bowl, corners, times=[0.0, 1.5])
    with pytest.raises(ValueError, match="it needs"):
        along(bowl, corners[:1])
