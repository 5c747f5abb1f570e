"""Every verdict on a loss spike, on a case built to deserve it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.curvature import Hessian
from thalweg.curvature.spike import explain_spike
from thalweg.curvature.step_rule import StepRule
from thalweg.landscape import FunctionLandscape, ModelLandscape

sys.path.insert(0, str(Path(__file__).parents[1] / "landscape"))
from truth import untouched

H = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)


def bowl():
    return FunctionLandscape(lambda x: 0.5 * (H * x**2).sum(), dim=3)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_an_unstable_step_on_a_quadratic():
    land, x = bowl(), vector(1.0, 1.0, 0.5)
    found = explain_spike(land, x, x - 0.25 * land.gradient(x), StepRule(lr=0.25), seed=0)
    assert found.kind == "unstable step"
    assert found.sharpness.product.lower == pytest.approx(2.5)
    assert found.remainder == pytest.approx(0, abs=1e-12)
    step = -0.25 * H * x
    assert found.top_share == pytest.approx(float(step[2] ** 2 / (step @ step)))
    assert found.curvature == pytest.approx(float(step @ (H * step) / (step @ step)))
    assert "unstable step: lr x sharpness = 2.5" in found.verdict
    assert "a learning rate below 0.2 is stable" in found.verdict


def test_the_same_step_by_a_rule_that_would_be_stable_is_an_overshoot():
    land, x = bowl(), vector(1.0, 1.0, 0.5)
    found = explain_spike(land, x, x - 0.25 * land.gradient(x), StepRule(lr=0.1), seed=0)
    assert found.kind == "overshoot"
    assert "longer than this rule takes" in found.verdict


def test_momentum_s_overshoot_below_its_threshold():
    land = bowl()
    x = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    rule = torch.optim.SGD([x], lr=0.02, momentum=0.9)
    kinds = set()
    for _ in range(12):
        before = x.detach().clone()
        x.grad = land.gradient(before)
        rule.step()
        kinds.add(explain_spike(land, before, x.detach(), rule, seed=0).kind)
    assert "unstable step" not in kinds
    assert "not explained by curvature" in kinds  # past the bottom, velocity carries it uphill


def test_a_wall_beyond_the_quadratic_model():
    land = FunctionLandscape(lambda x: 0.5 * x[0] ** 2 + torch.relu(x[0] - 1) ** 4 * 50, dim=1)
    found = explain_spike(land, vector(-1.5), vector(2.0), StepRule(lr=0.1), seed=0)
    assert found.kind == "beyond the quadratic model"
    assert "crossing beyond the quadratic model" in found.verdict
    assert found.remainder == pytest.approx(50)


def test_an_uphill_step_is_not_curvature():
    land, x = bowl(), vector(1.0, 1.0, 1.0)
    found = explain_spike(land, x, x + 1e-3 * land.gradient(x), StepRule(lr=1e-3), seed=0)
    assert found.kind == "not explained by curvature"
    assert "uphill" in found.verdict


def test_no_rise_and_a_loss_that_is_not_finite():
    land, x = bowl(), vector(1.0, 1.0, 1.0)
    found = explain_spike(land, x, 0.9 * x, StepRule(lr=0.1), seed=0)
    assert found.kind == "no rise"
    root = FunctionLandscape(lambda x: (2 - x).sqrt().sum(), dim=1)
    broken = explain_spike(root, vector(0.0), vector(3.0), StepRule(lr=0.1), seed=0)
    assert broken.kind == "not finite"
    assert math.isnan(broken.after)
    assert broken.to_json()["after"] == "nan"


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        inputs = torch.randn(30, 3, dtype=torch.float64)
        targets = torch.randint(0, 2, (30,))
    return model, ModelLandscape(model, F.cross_entropy, (inputs, targets)), inputs, targets


def test_minibatch_noise_is_measured():
    model, land, *_ = small_net()
    before = land.vector(model)
    chosen = [0, 1]
    own = land.minibatch(chosen).gradient(before)
    found = explain_spike(
        land, before, before - 3 * own, StepRule(lr=3.0), minibatch=chosen, seed=0
    )
    full = land.gradient(before)
    assert found.noise_share == pytest.approx(float((own - full).norm() ** 2 / own.norm() ** 2))
    assert "of the minibatch gradient was noise" in str(found)


def test_adam_s_step_is_seen_in_adam_s_coordinates():
    model, land, inputs, targets = small_net()
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(4):
        before = land.vector(model)
        adam.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        adam.step()
    with untouched(model):
        found = explain_spike(land, before, land.vector(model), adam, k=2, seed=0)
    scale = found.sharpness.rule.diagonal.sqrt()
    dense = Hessian(land, before).to_dense()
    vectors = torch.linalg.eigh((dense + dense.T) / 2 / scale / scale[:, None])[1][:, -2:]
    step = scale * (land.vector(model) - before)
    share = float((vectors.T @ step).square().sum() / (step @ step))
    assert found.top_share == pytest.approx(share, rel=1e-2)
    assert found.k == 2


def test_refusals():
    land, x = bowl(), vector(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="are equal, so there was no step"):
        explain_spike(land, x, x, StepRule(lr=0.1))
    with pytest.raises(ValueError, match="has no minibatches"):
        explain_spike(land, x, 2 * x, StepRule(lr=0.1), minibatch=[0])
    leaf = x.clone().requires_grad_()
    with pytest.raises(ValueError, match="this Adam has taken no step yet"):
        explain_spike(land, x, 2 * x, torch.optim.Adam([leaf]))
