"""Descent: known minima, SciPy, honest ends, and training on minibatches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thalweg.landscape import FiniteSum, FunctionLandscape
from thalweg.optim import minimise, train


def quadratic(scales: Tensor, centre: Tensor) -> FunctionLandscape:
    return FunctionLandscape(lambda x: 0.5 * (scales * (x - centre) ** 2).sum(), len(scales))


class Regression(FunctionLandscape):
    """Least squares as a finite sum, with a record of the minibatches asked for."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets
        super().__init__(lambda w: 0.5 * ((inputs @ w - targets) ** 2).mean(), inputs.shape[1])
        self.size = float(len(targets))
        self.examples = len(targets)
        self.asked: list[list[int]] = []

    def minibatch(self, indices: Tensor) -> FunctionLandscape:
        self.asked.append(indices.tolist())
        part = Regression.__new__(Regression)
        Regression.__init__(part, self.inputs[indices], self.targets[indices])
        part._ledger = self._ledger
        return part

    def batches(self, theta: Tensor) -> None:
        raise NotImplementedError


def regression(seed: int = 0) -> tuple[Regression, Tensor]:
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(50, 4, generator=g, dtype=torch.float64)
    truth = torch.randn(4, generator=g, dtype=torch.float64)
    return Regression(inputs, inputs @ truth), truth


@settings(max_examples=15)
@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(0, 4))
def test_finds_the_minimum_of_any_quadratic(dim: int, seed: int, decades: float) -> None:
    g = torch.Generator().manual_seed(seed)
    scales = 10 ** (decades * torch.rand(dim, generator=g, dtype=torch.float64))
    centre = torch.randn(dim, generator=g, dtype=torch.float64)
    found = minimise(quadratic(scales, centre), torch.zeros(dim, dtype=torch.float64))
    assert found.converged
    assert found.gradient_norm <= 1e-6
    assert torch.allclose(found.theta, centre, atol=1e-5)


def test_agrees_with_scipy_on_rosenbrock() -> None:
    land = FunctionLandscape(
        lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(), 6
    )
    start = torch.full((6,), -1.2, dtype=torch.float64)
    found = minimise(land, start, tol=1e-8)
    there = scipy.optimize.minimize(
        scipy.optimize.rosen,
        start.numpy(),
        jac=scipy.optimize.rosen_der,
        method="BFGS",
        options={"gtol": 1e-9},
    )
    assert found.converged
    assert np.allclose(found.theta.numpy(), there.x, atol=1e-6)
    assert found.cost == land.cost
    assert found.cost.gradients >= found.steps
    assert "converged after" in str(found)


def test_float32_stops_at_its_rounding_floor_and_says_so() -> None:
    g = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 10, generator=g)
    targets = torch.randn(200, generator=g)

    def loss(w: Tensor) -> Tensor:
        return 0.5 * ((inputs @ w - targets) ** 2).mean() + 5.0

    land = FunctionLandscape(loss, 10, dtype=torch.float32)
    found = minimise(land, torch.ones(10), tol=1e-12, max_gradients=2000)
    assert not found.converged
    assert found.cost.gradients < 400
    assert found.gradient_norm < 1e-5
    assert "rounding of float32" in found.reason
    assert "dtype=torch.float64" in found.reason
    assert minimise(land, torch.ones(10), tol=1e-4).converged


def test_polish_reaches_what_differences_in_loss_cannot_show() -> None:
    """With a large constant added, the loss is flat to rounding at gradient norm 1e-5."""
    land = FunctionLandscape(lambda x: 1e6 + (x**2).sum() + 3 * x[0] ** 2, 5)
    found = minimise(land, torch.ones(5, dtype=torch.float64), tol=1e-9)
    assert found.converged


def test_a_spent_budget_is_reported() -> None:
    land = quadratic(torch.logspace(0, 6, 30, dtype=torch.float64), torch.ones(30))
    found = minimise(land, torch.zeros(30, dtype=torch.float64), tol=1e-9, max_gradients=5)
    assert not found.converged
    assert found.cost.gradients == 5
    assert "budget of 5 gradients" in found.reason


def test_a_kink_is_not_called_converged() -> None:
    land = FunctionLandscape(lambda x: x.abs().sum() + 0.1 * (x**2).sum(), 3)
    found = minimise(land, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    assert not found.converged
    assert "kink" in found.reason


def test_a_loss_that_is_not_finite_is_returned_as_it_is() -> None:
    land = FunctionLandscape(lambda x: torch.log(x).sum(), 2)
    found = minimise(land, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert math.isnan(found.loss)
    assert not found.converged
    assert "not finite" in found.reason
    assert found.to_json()["loss"] == "nan"
    falling = minimise(land, torch.tensor([1.0, 1.0], dtype=torch.float64), max_gradients=200)
    assert not falling.converged


def test_already_there_costs_one_gradient() -> None:
    land = quadratic(torch.ones(3), torch.zeros(3))
    found = minimise(land, torch.zeros(3, dtype=torch.float64))
    assert found.converged
    assert (found.steps, found.cost.gradients) == (0, 1)


def test_progress_is_told() -> None:
    told: list[tuple[float, str]] = []
    land = quadratic(torch.logspace(0, 4, 20, dtype=torch.float64), torch.ones(20))
    minimise(
        land,
        torch.zeros(20, dtype=torch.float64),
        progress=lambda part, text: told.append((part, text)),
    )
    assert told
    assert all(0 <= part <= 1.5 for part, _ in told)
    assert "gradient norm" in told[0][1]


def test_wrong_arguments_are_named(unchecked: None) -> None:
    land = quadratic(torch.ones(3), torch.zeros(3))
    good = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="unknown method 'newton'; use one of lbfgs"):
        minimise(land, good, method="newton")  # type: ignore[arg-type] # the point of the test
    with pytest.raises(ValueError, match="2 NaN or infinite values of 3"):
        minimise(land, torch.tensor([math.nan, math.inf, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"has shape \(4,\), but this landscape has 3"):
        minimise(land, torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="tol must be positive"):
        minimise(land, good, tol=0.0)
    with pytest.raises(ValueError, match="either steps= or epochs="):
        train(land, good)
    with pytest.raises(ValueError, match="unknown optimizer 'lion'; use one of adam, sgd"):
        train(land, good, steps=1, optimizer="lion")  # type: ignore[arg-type] # ditto
    with pytest.raises(ValueError, match="unknown schedule"):
        train(land, good, steps=1, schedule="step")  # type: ignore[arg-type] # ditto
    with pytest.raises(ValueError, match="lr must be positive"):
        train(land, good, steps=1, lr=-1.0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        train(land, good, steps=1, batch_size=0)


def test_full_batch_adam_is_torchs_adam() -> None:
    scales = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    start = torch.ones(3, dtype=torch.float64)
    found = train(
        quadratic(scales, torch.zeros(3)), start, steps=25, lr=0.1, schedule="constant", seed=0
    )
    leaf = start.clone().requires_grad_()
    rule = torch.optim.Adam([leaf], lr=0.1)
    for _ in range(25):
        rule.zero_grad()
        (0.5 * (scales * leaf**2).sum()).backward()
        rule.step()
    assert torch.equal(found.theta, leaf.detach())
    assert torch.equal(start, torch.ones(3, dtype=torch.float64))
    assert not found.converged
    assert "go on with minimise" in found.reason


def test_each_epoch_visits_every_example_once_in_a_fresh_order() -> None:
    land, truth = regression()
    assert isinstance(land, FiniteSum)
    found = train(land, torch.zeros(4, dtype=torch.float64), epochs=2, batch_size=16, seed=3)
    assert found.steps == len(land.asked) == 8
    assert [len(batch) for batch in land.asked] == [16, 16, 16, 2] * 2
    first = list(itertools.chain(*land.asked[:4]))
    second = list(itertools.chain(*land.asked[4:]))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert found.cost.gradients == 9
    long = train(
        land, torch.zeros(4, dtype=torch.float64), epochs=60, batch_size=16, lr=0.05, seed=3
    )
    assert torch.allclose(long.theta, truth, atol=1e-3)


def test_a_seed_repeats_training_bit_for_bit_and_is_recorded() -> None:
    runs = []
    for seed in (5, 5, 6):
        land, _ = regression()
        runs.append(
            train(land, torch.zeros(4, dtype=torch.float64), steps=20, batch_size=7, seed=seed)
        )
    assert torch.equal(runs[0].theta, runs[1].theta)
    assert not torch.equal(runs[0].theta, runs[2].theta)
    assert runs[0].seed == 5
    land, _ = regression()
    drawn = train(land, torch.zeros(4, dtype=torch.float64), steps=5, batch_size=7)
    again = train(land, torch.zeros(4, dtype=torch.float64), steps=5, batch_size=7, seed=drawn.seed)
    assert torch.equal(drawn.theta, again.theta)


def test_divergence_is_reported_not_repaired() -> None:
    land = FunctionLandscape(lambda x: torch.exp((x**2).sum()), 2)
    found = train(
        land, torch.ones(2, dtype=torch.float64), steps=200, lr=10.0, optimizer="sgd", seed=0
    )
    assert not found.converged
    assert not math.isfinite(found.loss)
    assert "lower lr=10" in found.reason
