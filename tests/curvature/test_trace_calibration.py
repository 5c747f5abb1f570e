"""Coverage of the sketched and cross-fitted traces, and of two rules that do not hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from thalweg.curvature import MatrixOperator, trace
from thalweg.curvature.sketch import LeaveOneOut

pytestmark = pytest.mark.calibration

STEPS = [0, 10, 30, 100, 300, 1000]
DEFINITE = {
    "1/k": 1 / torch.arange(1, 151),
    "1/k^2": 1 / torch.arange(1, 151) ** 2,
    "0.9^k": 0.9 ** torch.arange(150),
    "0.7^k": 0.7 ** torch.arange(150),
    "40 large, 110 small": torch.cat([torch.ones(40), torch.full((110,), 1e-3)]),
    "rank 33": torch.cat([torch.ones(33), torch.zeros(117)]),
    "flat": torch.linspace(1, 3, 150),
    "one large": torch.cat([torch.tensor([1e3]), torch.ones(149)]),
    "rank one": torch.cat([torch.ones(1), torch.zeros(149)]),
    "zero": torch.zeros(150),
}
SIGN = (-1.0) ** torch.arange(150)
INDEFINITE = {
    "+-1/k in pairs": SIGN / (torch.arange(150) // 2 + 1),
    "+-1/k^2": SIGN / torch.arange(1, 151) ** 2,
    "five outliers and a bulk": torch.cat(
        [torch.tensor([50.0, -40, 30, -20, 10]), torch.linspace(-1, 1, 145)]
    ),
    "flat": torch.linspace(-1, 3, 150),
    "rank 40": torch.cat([torch.linspace(-1, 2, 40), torch.zeros(110)]),
}


def judge(calibration, case, operator, **options):
    """Hold one case to the rule, with an oracle who knows the estimator's true error."""
    truth = float(operator.matrix.diagonal().sum())
    found = [trace(operator, seed=seed, **options) for seed in calibration.seeds]
    error = float(np.sqrt(np.mean([(f.value - truth) ** 2 for f in found])))
    half = float(np.median([f.half_width for f in found]))
    blurred = error < 1e-9 * max(1.0, abs(truth))  # nothing but rounding is left
    calibration.check(
        f"{case}, {options['samples']} samples",
        sum(truth in f for f in found),
        width_ratio=None if blurred else half / error / 1.96,
    )


@pytest.mark.parametrize("samples", [32, 96])
@pytest.mark.parametrize("steps", STEPS)
def test_gauss_newton_matrices(net, calibration, steps, samples):
    A = MatrixOperator(net(steps=steps).gauss_newton(), definite=True)
    judge(calibration, f"XNysTrace, Gauss-Newton after {steps} steps", A, samples=samples)


@pytest.mark.parametrize("samples", [32, 96])
@pytest.mark.parametrize(
    ("method", "steps"),
    [*(("auto", steps) for steps in STEPS), ("xtrace", 0), ("xtrace", 100), ("xtrace", 1000)],
)
def test_hessians(net, calibration, method, steps, samples):
    A = MatrixOperator(net(steps=steps).dense())
    name = f"{method} trace, Hessian after {steps} steps"
    judge(calibration, name, A, samples=samples, method=method)


@pytest.mark.parametrize("samples", [32, 96])
@pytest.mark.parametrize("spectrum", DEFINITE)
def test_definite_spectra(with_spectrum, calibration, spectrum, samples):
    A = MatrixOperator(with_spectrum(DEFINITE[spectrum]).matrix, definite=True)
    judge(calibration, f"XNysTrace, spectrum {spectrum}", A, samples=samples)


@pytest.mark.parametrize("samples", [32, 96])
@pytest.mark.parametrize(
    ("method", "spectrum"),
    [(method, name) for method in ("auto", "xtrace") for name in INDEFINITE]
    + [("crossfit", "flat")],
)
def test_indefinite_spectra(with_spectrum, calibration, method, spectrum, samples):
    A = with_spectrum(INDEFINITE[spectrum])
    judge(calibration, f"{method} trace, spectrum {spectrum}", A, samples=samples, method=method)


@pytest.mark.parametrize("level", [0.9, 0.99])
def test_other_levels(net, calibration, level):
    A = MatrixOperator(net(steps=100).gauss_newton(), definite=True)
    B = MatrixOperator(net(steps=100).dense())
    for operator in (A, B):
        truth = float(operator.matrix.trace())
        found = [trace(operator, level=level, samples=48, seed=s) for s in calibration.seeds]
        hits = sum(truth in f for f in found)
        calibration.check(f"{found[0].method[:22]}, 48 samples", hits, level=level)


def test_the_textbooks_interval_is_rejected(with_spectrum, calibration, monkeypatch):
    """The control: the same estimate with the error bar of the papers."""
    silent = dataclasses.replace(calibration, seeds=range(60), record=lambda name, row: None)
    A = MatrixOperator(with_spectrum(DEFINITE["0.9^k"]).matrix, definite=True)
    monkeypatch.setattr(LeaveOneOut, "stderr", property(lambda self: self.textbook))
    with pytest.raises(AssertionError, match="held the truth for"):
        judge(silent, "textbook", A, samples=96)


def test_the_jackknifes_interval_is_rejected(with_spectrum, calibration, monkeypatch):
    """The other control: never too short, but far too long."""
    silent = dataclasses.replace(calibration, seeds=range(60), record=lambda name, row: None)
    A = MatrixOperator(with_spectrum(DEFINITE["0.9^k"]).matrix, definite=True)
    monkeypatch.setattr(LeaveOneOut, "stderr", property(lambda self: self.jackknife))
    with pytest.raises(AssertionError, match="more than twice"):
        judge(silent, "jackknife", A, samples=96)
