"""The mean-field limit: exact moments for linear units, 1/m fluctuations for the others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from thalweg.theory.mean_field import LinearMoments, mean_field, two_layer

F64 = torch.float64


def white(examples, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(examples, dim, dtype=F64, generator=generator)
    return torch.linalg.qr(raw)[0] * math.sqrt(examples)


def test_the_landscape_is_the_network():
    inputs = torch.randn(7, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    targets = inputs[:, 0]
    land = two_layer(3, inputs, targets)
    theta = land.start(torch.Generator().manual_seed(1))
    total = 0.0
    for x, y in zip(inputs, targets, strict=True):
        out = sum(
            float(theta[3 * i]) * math.tanh(float(theta[3 * i + 1 : 3 * i + 3] @ x))
            for i in range(3)
        )
        total += (out / 3 - float(y)) ** 2 / 14
    assert float(land.loss(theta)) == pytest.approx(total)


@pytest.mark.parametrize("width", [4, *(pytest.param(m, marks=pytest.mark.slow) for m in (1, 50))])
def test_the_moments_of_a_finite_network_are_exact_at_every_step(width):
    inputs = white(12, 3, 0)
    teacher = torch.tensor([1.0, -0.5, 2.0], dtype=F64)
    land = two_layer(width, inputs, inputs @ teacher, activation="linear")
    theta = land.start(torch.Generator().manual_seed(2))
    moments = LinearMoments.of(theta, 3)
    for _ in range(60):
        assert float(land.loss(theta)) == pytest.approx(moments.loss(teacher), rel=1e-10, abs=1e-13)
        theta = theta - 0.05 * width * land.gradient(theta)
        moments = moments.step(teacher, lr=0.05)
    last = LinearMoments.of(theta, 3)
    assert torch.allclose(last.b, moments.b, atol=1e-12)
    assert torch.allclose(last.c, moments.c, atol=1e-12)
    assert last.a2 == pytest.approx(moments.a2, abs=1e-12)


def test_small_steps_follow_the_ordinary_differential_equation():
    teacher = torch.tensor([0.6, 0.8], dtype=F64)

    def flow(_, y):
        b, a2, c = y[:2], y[2], y[3:].reshape(2, 2)
        e = b - teacher.numpy()
        change = -(a2 * e + c @ e)
        outer = np.outer(b, e)
        return np.concatenate([change, [-2 * e @ b], -(outer + outer.T).ravel()])

    begin = np.concatenate([np.zeros(2), [1.0], np.eye(2).ravel()])
    exact = solve_ivp(flow, (0, 1), begin, rtol=1e-10, atol=1e-12).y[:, -1]
    gaps = []
    for steps in (50, 100, 200):
        moments = LinearMoments.initial(2)
        for _ in range(steps):
            moments = moments.step(teacher, lr=1 / steps)
        gaps.append(float(np.abs(moments.b.numpy() - exact[:2]).max()))
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)  # Euler's method is of first order
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)
    # the flow keeps <a^2> - tr <w w'>
    assert exact[2] - exact[3] - exact[6] == pytest.approx(1 - 2, abs=1e-8)


@pytest.mark.slow
def test_linear_networks_reach_the_exact_limit():
    study = mean_field(
        (16, 64, 256), activation="linear", dim=3, examples=20, replicas=30, time=3.0, seed=1
    )
    means = study.losses.mean(1)
    errors = study.losses.std(1, ddof=1) / math.sqrt(30)
    # a network's own distance falls as m^(-1/2), that of the mean as 1/m and its noise
    slope = np.polyfit(np.log(study.widths), np.log(study.gaps), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.15)
    assert (np.abs(means[2] - study.limit) < 5 * errors[2] + 0.02 * study.limit[0]).all()
    # and it is the limit for these inputs and this teacher: another one is refused
    assert (np.abs(means[2] - 1.3 * study.limit) > 5 * errors[2]).any()
    assert study.exponent.interval[0] - 0.05 < -1 < study.exponent.interval[1] + 0.05
    assert "the exact limit" in str(study)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_fluctuations_fall_as_one_over_the_width(activation):
    study = mean_field(
        (8, 32, 128), activation=activation, dim=3, examples=30, replicas=30, time=4.0, seed=2
    )
    assert study.exponent.value == pytest.approx(-1, abs=0.25)
    assert study.gaps[0] > study.gaps[1]
    assert (study.losses[:, :, -1] < study.losses[:, :, 0]).mean() > 0.95
    assert study.cost.gradients == 3 * 30 * 40
    assert "theory -1" in str(study)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_study():
    first, again = (
        mean_field((2, 4), dim=2, examples=5, replicas=3, time=1.0, seed=3) for _ in range(2)
    )
    assert np.array_equal(first.losses, again.losses)
    assert first.exponent == again.exponent


@pytest.mark.slow
def test_a_rate_that_is_too_large_is_told():
    study = mean_field(
        (2, 4), dim=2, examples=5, replicas=3, activation="square", time=4000.0, lr=40.0, seed=0
    )
    assert "not finite: lower lr" in str(study)


def test_refusals(unchecked):
    with pytest.raises(ValueError, match="numbers that rise"):
        mean_field((8, 8))
    with pytest.raises(ValueError, match="replicas must be at least 3"):
        mean_field((8, 16), replicas=2)
    with pytest.raises(ValueError, match="lr must be positive and at most time"):
        mean_field((8, 16), lr=20.0)
    with pytest.raises(ValueError, match="probe_time must lie between"):
        mean_field((8, 16), probe_time=11.0)
    with pytest.raises(ValueError, match="at least one unit"):
        two_layer(0, torch.ones(1, 1), torch.ones(1))
    with pytest.raises(ValueError, match="must be one of linear, tanh"):
        two_layer(1, torch.ones(1, 1), torch.ones(1), activation="swish")


@pytest.mark.slow
def test_the_exponent_at_larger_widths():
    study = mean_field((16, 64, 256), replicas=40, time=4.0, seed=5)
    assert study.exponent.interval[0] - 0.05 < -1 < study.exponent.interval[1] + 0.05
