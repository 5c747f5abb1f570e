"""Eigenvalues nearest zero: right across a gap, unresolved without one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from thalweg.curvature import MatrixOperator, nearest_zero

GAPPED = [*-np.linspace(0.5, 2, 30), *[0.0] * 40, *np.linspace(0.3, 5, 60)]


def truth(matrix, side, k, resolution):
    values = torch.linalg.eigvalsh(matrix.double())
    if side == "above":
        return values[values > resolution][:k]
    return values[values < -resolution].flip(0)[:k]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", ["above", "below"])
def test_across_a_gap(with_spectrum, side, dtype):
    A = with_spectrum(GAPPED, dtype)
    for seed in range(3):
        found = nearest_zero(A, 2, side=side, seed=seed)
        assert found.verdict.yes
        exact = truth(A.matrix, side, 2, found.resolution)
        assert ((found.intervals[:, 0] <= exact) & (exact <= found.intervals[:, 1])).all()
        low, high = found.gap
        values = torch.linalg.eigvalsh(A.matrix.double())
        assert not ((values > low) & (values < high)).any()
        assert max(abs(low), abs(high)) > 0.999 * float(exact[0].abs())
        assert found.products == found.cost.hvps
        assert found.vectors.dtype == dtype


@pytest.mark.parametrize(
    "spectrum",
    [
        np.linspace(0, 1, 500),
        [*0.01 * np.random.default_rng(0).normal(size=400), *np.linspace(1, 2, 5)],
    ],
)
def test_a_bulk_at_zero_is_unresolved(with_spectrum, spectrum):
    found = nearest_zero(with_spectrum(spectrum), max_products=120, seed=0)
    assert found.verdict.unresolved
    assert found.gap is None
    assert len(found.values) == 0
    assert "a bulk may reach there (raise max_products= or resolution=)" in str(found)


def test_a_gap_that_only_looks_empty_is_not_certified(with_spectrum):
    """The control: early chains see nothing near zero, where there is a small eigenvalue."""
    A = with_spectrum([0.02, *np.linspace(0.3, 5, 100), *-np.linspace(0.3, 5, 100)])
    for steps in (5, 10, 20, 40, 80, 150, 300):
        found = nearest_zero(A, max_products=steps, seed=0)
        assert found.verdict.unresolved or abs(float(found.values[0]) - 0.02) < 1e-5
    assert found.verdict.yes


def test_partly_resolved(with_spectrum):
    A = with_spectrum([0.3, 0.6, *np.linspace(1, 2, 400), *-np.linspace(1, 2, 50)])
    found = nearest_zero(A, 3, max_products=80, seed=0)
    assert found.verdict.unresolved
    torch.testing.assert_close(found.values, torch.tensor([0.3, 0.6]).double())
    assert found.verdict.reason.startswith("2 of 3 were set apart; the gap before the next, near")


def test_none_on_this_side(with_spectrum):
    found = nearest_zero(with_spectrum([0.0] * 40 + [1.0, 2.0, 3.0]), side="below", seed=0)
    assert found.verdict.no
    assert found.gap == (-math.inf, pytest.approx(-found.resolution))
    assert json.loads(json.dumps(found.to_json()))["gap"][0] == "-inf"
    few = nearest_zero(with_spectrum([0.0] * 40 + [1.0, 2.0, 3.0]), 4, seed=0)
    assert few.verdict.no
    assert few.verdict.reason.startswith("there are 3 above")
    torch.testing.assert_close(few.values, torch.tensor([1.0, 2, 3]).double())


def test_none_above_a_wide_spectrum_takes_a_gap_to_infinity(with_spectrum):
    found = nearest_zero(with_spectrum(-np.linspace(1, 2, 300)), seed=0)
    assert found.verdict.no
    assert found.gap[1] == math.inf
    assert found.products < 60


@pytest.mark.parametrize(("value", "answer"), [(3.0, "yes"), (-3.0, "no"), (0.0, "no")])
def test_one_row(value, answer):
    found = nearest_zero(MatrixOperator(torch.tensor([[value]])), seed=0)
    assert found.verdict.answer == answer


def test_the_zero_matrix_has_nothing_beside_zero():
    found = nearest_zero(MatrixOperator(torch.zeros(40, 40)), seed=0)
    assert found.verdict.no
    assert found.gap == (0.0, math.inf)


def test_resolution_moves_what_counts_as_zero(with_spectrum):
    A = with_spectrum([1e-3, *[0.0] * 20, *np.linspace(0.5, 2, 50)])
    fine, coarse = nearest_zero(A, seed=0), nearest_zero(A, resolution=0.01, seed=0)
    assert float(fine.values[0]) == pytest.approx(1e-3)
    assert float(coarse.values[0]) == pytest.approx(0.5)


def test_memory_that_runs_out_is_reported(with_spectrum):
    A = with_spectrum(np.linspace(0, 1, 500))
    found = nearest_zero(A, memory=500 * 8 * 40, seed=0)
    assert found.verdict.unresolved
    assert "raise memory= or resolution=" in found.verdict.reason
    assert found.memory <= 500 * 8 * 40


def test_text(with_spectrum):
    found = nearest_zero(with_spectrum(GAPPED), 2, seed=0)
    lines = str(found).splitlines()
    assert lines[0].startswith("nearest zero from above: yes: the 2 nearest, across gaps")
    assert lines[1] == "no eigenvalue between 5e-05 and 0.3 (error probability <= 1e-04)"
    assert lines[2].split()[:2] == ["1", "0.3"]
    assert found.__rich__().startswith("[green]nearest zero")


def test_arguments_that_cannot_be():
    A = MatrixOperator(torch.eye(4))
    for options, message in [
        ({"k": 5}, "k=5 eigenvalues of a 4 x 4 operator"),
        ({"side": "left"}, "side must be 'above' or 'below', not 'left'"),
        ({"resolution": -1.0}, "resolution must be a distance from zero"),
        ({"tol": math.nan}, "tol must not be negative or NaN"),
        ({"risk": 0.0}, "risk must lie strictly between 0 and 1"),
        ({"max_products": 1}, "max_products=1 is too few for k=1"),
    ]:
        with pytest.raises(ValueError, match=message):
            nearest_zero(A, **options)
    assert A.cost.hvps == 0


@pytest.mark.calibration
def test_certified_gaps_are_empty(with_spectrum, calibration):
    """Also of chains that are stopped early, where a gap is easily taken for empty."""
    A = with_spectrum([0.3, 0.5, *np.linspace(1, 2, 150), *-np.linspace(1, 2, 150)])
    values, hits, certified = torch.linalg.eigvalsh(A.matrix), 0, 0
    for seed in calibration.seeds:
        empty = True
        for steps in (34, 40):
            found = nearest_zero(A, risk=0.1, tol=1e-2, max_products=steps, seed=seed)
            if found.gap is not None:
                certified += 1
                low, high = found.gap
                empty &= not bool(((values > low) & (values < high)).any())
        hits += empty
    assert certified > len(calibration.seeds) // 2
    calibration.check("gap next to zero is empty, risk 0.1", hits, level=0.9)


def test_what_a_gap_cannot_tell_apart_is_one_eigenvalue(with_spectrum):
    """Rounding may let a chain see a repeated eigenvalue twice: still one, and not the two."""
    operator = with_spectrum([0.05, 0.05 + 3e-7, 1.0, 2.0, 3.0])
    found = nearest_zero(operator, 2, resolution=0.01, tol=1e-6, seed=0)
    assert found.verdict.yes
    assert found.values.tolist() == pytest.approx([0.05, 1.0], abs=1e-5)
    fewer = nearest_zero(operator, 5, resolution=0.01, tol=1e-6, seed=0)
    assert fewer.verdict.no
    assert len(fewer.values) == 4
