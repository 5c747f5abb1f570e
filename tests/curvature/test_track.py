"""Training on record: against dense Hessians, resumed, interrupted, and left untouched."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.curvature import Hessian
from thalweg.curvature.step_rule import StepRule
from thalweg.curvature.track import Track, track
from thalweg.curvature.tracker import Tracker
from thalweg.landscape import FunctionLandscape, ModelLandscape

sys.path.insert(0, str(Path(__file__).parents[1] / "landscape"))
from truth import untouched

ROOT = Path(__file__).resolve().parents[2]
H = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
ONES = torch.ones(3, dtype=torch.float64)


def bowl():
    return FunctionLandscape(lambda x: 0.5 * (H * x**2).sum(), dim=3)


def small():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        inputs, targets = torch.randn(20, 3).double(), torch.randint(0, 2, (20,))
    return model, ModelLandscape(model, F.cross_entropy, (inputs, targets)), inputs, targets


def same(a, b):
    """Whether two tracks hold the same numbers, bit for bit."""
    records = [
        [(r.step, r.loss, r.gradient_norm, r.eigenvalues.tolist(), r.alignment,
          None if r.trace is None else r.trace.value) for r in t.records]
        for t in (a, b)
    ]  # fmt: skip
    return (
        records[0] == records[1]
        and torch.equal(a.training_losses, b.training_losses)
        and torch.equal(a.theta, b.theta)
    )


def test_gradient_descent_on_a_quadratic_in_closed_form():
    run = track(bowl(), ONES, lr=0.3, steps=12, every=4, k=1, trace_samples=32, seed=0)
    assert run.steps.tolist() == [0, 4, 8, 12]
    for record in run.records:
        x = (1 - 0.3 * H) ** record.step
        slope = H * x
        assert record.loss == pytest.approx(float(0.5 * (H * x**2).sum()))
        assert record.gradient_norm == pytest.approx(float(slope.norm()))
        assert record.alignment == pytest.approx(float(slope[2] ** 2 / (slope @ slope)))
        assert record.trace.value == pytest.approx(5.5)
    torch.testing.assert_close(run.theta, (1 - 0.3 * H) ** 12)
    torch.testing.assert_close(run.products, torch.full((4,), 1.2, dtype=torch.float64))
    assert run.thresholds.tolist() == [2.0] * 4
    assert len(run.training_losses) == 12


def test_records_hold_the_dense_eigenvalues_of_a_network():
    model, land, *_ = small()
    seen = []
    run = track(
        land, land.vector(model), lr=0.5, steps=30, at=[0, 7, 30], k=3, seed=0,
        progress=lambda fraction, message: seen.append((fraction, message)),
    )  # fmt: skip
    assert run.steps.tolist() == [0, 7, 30]
    theta = land.vector(model)
    for step in range(31):
        if step in (0, 7, 30):
            dense = Hessian(land, theta).to_dense()
            values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
            row = run.steps.tolist().index(step)
            low, high = run.records[row].intervals.T
            top = values.flip(0)[:3]
            assert bool(((low <= top) & (top <= high)).all())
            slope = land.gradient(theta)
            share = (vectors[:, -3:].T @ slope).square().sum() / (slope @ slope)
            assert run.records[row].alignment == pytest.approx(float(share), rel=1e-2, abs=1e-6)
            assert float(values.sum()) in run.records[row].trace
        theta = theta - 0.5 * land.gradient(theta)
    assert seen[-1][0] == 1.0
    assert "step 30 of 30" in seen[-1][1]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.3},
        pytest.param(
            {"lr": 0.1, "momentum": 0.9, "nesterov": True}, marks=pytest.mark.slow, id="nesterov"
        ),
        pytest.param({"lr": 0.1, "batch_size": 6}, marks=pytest.mark.slow, id="minibatches"),
        {"optimizer": lambda p: torch.optim.Adam(p, lr=0.05), "batch_size": 7},
    ],
)
def test_a_resumed_run_equals_an_unbroken_one(options):
    model, land, *_ = small()
    theta = land.vector(model)
    whole = track(land, theta, steps=20, every=5, seed=4, **options)
    half = track(land, theta, steps=10, every=5, seed=4, **options)
    assert same(track(land, steps=20, every=5, resume=half, **options), whole)
    other = track(land, theta, steps=20, every=5, seed=5, **options)
    assert not same(other, whole)


@pytest.mark.parametrize("batch_size", [None, 6])
def test_an_interrupt_keeps_what_was_recorded_and_can_be_resumed(batch_size):
    model, land, *_ = small()
    theta = land.vector(model)
    options = {"lr": 0.3, "batch_size": batch_size, "every": 5}
    whole = track(land, theta, steps=40, seed=4, **options)

    def stop(fraction, message):
        raise KeyboardInterrupt

    broken = track(land, theta, steps=40, seed=4, progress=stop, **options)
    assert broken.steps.tolist() == [0, 5, 10, 15]
    assert "interrupted" in broken.reason
    assert same(track(land, steps=40, resume=broken, **options), whole)


def test_a_run_that_diverges_ends_and_says_so():
    land = FunctionLandscape(lambda x: (x**4).sum(), dim=1)
    start = torch.full((1,), 10.0, dtype=torch.float64)
    run = track(land, start, lr=1.0, steps=50, every=1, seed=0)
    assert "stopped being finite" in run.reason
    assert run.step < 50
    assert math.isnan(float(run.sharpness[-1]))
    assert "did NOT converge" in str(run)
    assert "nan" in json.dumps(run.to_json())


def test_a_callback_leaves_everything_untouched():
    model, land, inputs, targets = small()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    tracker = Tracker(land, every=2, k=2, seed=0)
    for step in range(5):
        state = [value for p in model.parameters() for value in adam.state[p].values()]
        with untouched(model, *state):
            record = tracker(step, model, adam)
        assert (record is None) == (step % 2 == 1)
        adam.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        adam.step()
    assert tracker.records[0].preconditioned is None  # Adam has no state before its first step
    assert math.isnan(tracker.records[0].threshold)
    last = tracker.records[-1]
    assert last.threshold == pytest.approx(38)
    assert last.preconditioned.upper != last.sharpness.upper
    found = Track.of(tracker)
    assert found.steps.tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="cannot be resumed"):
        track(land, steps=9, lr=0.1, resume=found)


def test_a_record_does_not_depend_on_those_before_it():
    model, land, *_ = small()
    theta = land.vector(model)
    alone, after = Tracker(land, at=[3], seed=1), Tracker(land, every=1, seed=1)
    for step in range(4):
        after(step, theta + 0.1 * (3 - step))
    first, second = alone(3, theta), after.records[-1]
    assert first.trace.value == second.trace.value
    assert first.eigenvalues[0] == pytest.approx(float(second.eigenvalues[0]), rel=1e-6)


def test_an_optimiser_of_an_unknown_kind_has_no_threshold():
    run = track(bowl(), ONES, optimizer=lambda p: torch.optim.Rprop(p, lr=0.1), steps=3, every=1)
    assert bool(run.thresholds.isnan().all())
    assert bool((run.sharpness - 4).abs().max() < 1e-3)


def test_a_rule_can_stand_for_the_optimiser():
    tracker = Tracker(bowl(), every=1, seed=0)
    record = tracker(0, ONES, StepRule(lr=0.5, momentum=0.5))
    assert record.threshold == 3
    assert record.lr * record.felt.upper == pytest.approx(2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0, "lr": 0.1}, "steps must be at least 1"),
        ({"steps": 5}, "give either lr= "),
        ({"steps": 5, "lr": -1.0}, "lr must be positive"),
        ({"steps": 5, "lr": 0.1, "every": 0}, "every must be at least 1"),
        ({"steps": 5, "lr": 0.1, "k": 9}, "k must lie between 1 and 3"),
        ({"steps": 5, "lr": 0.1, "trace_samples": 2}, "trace_samples=2 is too few"),
        ({"steps": 5, "lr": 0.1, "batch_size": 2}, "has no minibatches"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match):
        track(bowl(), ONES, **options)


def test_resuming_another_run_is_refused():
    run = track(bowl(), ONES, lr=0.1, steps=2, seed=0)
    with pytest.raises(ValueError, match=r"is of a run with lr=0.1 \(now 0.2\)"):
        track(bowl(), lr=0.2, steps=4, resume=run)
    with pytest.raises(ValueError, match="goes on with its own seed 0, not 1"):
        track(bowl(), lr=0.1, steps=4, resume=run, seed=1)
    with pytest.raises(ValueError, match="give either theta="):
        track(bowl(), ONES, lr=0.1, steps=4, resume=run)


@pytest.fixture
def eos(scripts):
    """The example, as a module."""
    return scripts("examples")("edge_of_stability")


def test_the_example_runs_small(eos, capsys):
    rows = eos.main([eos.Case(3, 0.4, 60)], docs=None, records=12)
    assert rows[0]["converged"]
    assert "T3, η = 0.4: sharpness from" in capsys.readouterr().out
    drawn = eos.figure([eos.Case(3, 0.4, 60)], [eos.train(eos.Case(3, 0.4, 60), records=12)])
    assert len(drawn.data) == 3


@pytest.mark.slow
def test_the_sharpness_rises_to_the_edge_and_hovers_there(eos):
    case = eos.Case(4, 0.4, 3000)
    run = eos.train(case, records=60)
    mean, _ = eos.last_quarter(case, run)
    assert 0.95 < mean < 1.06
    below = eos.train(eos.Case(4, 0.05, 300), records=6)  # far below the edge it cannot hover
    assert float(below.sharpness.max()) < 0.5 * 2 / 0.05
