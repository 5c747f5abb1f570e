"""The same promises on a GPU, where there is one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from truth import untouched

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.zoo import lstm, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_results_and_randomness_stay_on_their_device() -> None:
    model, inputs, targets = tiny("cnn", examples=10)
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), device="cuda")
    assert land.device == torch.device("cuda:0")
    theta = land.vector(model)
    here = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    before = torch.cuda.get_rng_state()
    with untouched(model, inputs, targets):
        value, slope = land.value_and_gradient(torch.stack([theta, theta + 0.1]))
        with land.at(theta) as point:
            product = point.hvp(theta)
        start = land.start(torch.Generator().manual_seed(0))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert value.device == slope.device == product.device == start.device == land.device
    there = here.vector(model)
    torch.testing.assert_close(slope[0].cpu(), here.gradient(there), rtol=1e-9, atol=1e-11)
    with here.at(there) as point:
        torch.testing.assert_close(product.cpu(), point.hvp(there), rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match=r"theta is on cpu, but this landscape is on cuda:0"):
        land.loss(there)
    written = copy.deepcopy(model)
    land.load_into(written, theta)
    assert torch.equal(here.vector(written), there)


def test_a_recurrent_network_has_second_derivatives() -> None:
    """cuDNN's recurrent layers have no double backward (pytorch #25315)."""
    model = lstm(3, features=4, classes=3, seed=0)
    inputs = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6) % 3
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), device="cuda")
    here = ModelLandscape(model, F.cross_entropy, (inputs, targets), dtype=torch.float64)
    theta = land.vector(model)
    with land.at(theta) as point, here.at(theta.cpu().double()) as truth:
        found, expected = point.hvp(theta).cpu().double(), truth.hvp(theta.cpu().double())
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())
    assert torch.backends.cudnn.enabled


def test_a_function_on_a_gpu() -> None:
    land = FunctionLandscape(lambda x: (x**4).sum(), 3, device="cuda")
    start = land.start(torch.Generator().manual_seed(0))
    assert start.device == land.device
    with land.at(start) as point:
        torch.testing.assert_close(point.hvp(start), 12 * start**3)


def test_dropout_is_seen() -> None:
    """The GPU's own generator is watched too."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).cuda()
    nn.init.zeros_(model[2].weight)
    data = torch.randn(8, 4), torch.arange(8) % 3
    with pytest.raises(ValueError, match="dropout is on in 1"):
        ModelLandscape(model, F.cross_entropy, data)
