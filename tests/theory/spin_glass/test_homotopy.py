"""Paths of eigenvectors: start points, ends, counts of classes, and what must not be found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from thalweg.theory.spin_glass import homotopy
from thalweg.theory.spin_glass.homotopy import (
    class_count,
    eigenvector_classes,
    energy_form,
    start_classes,
)
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.tracking import DiagonalHomotopy, TensorBatch, _solve


def gaussian(samples, n, p, seed):
    draws = np.random.default_rng(seed).standard_normal((samples, *(n,) * p))
    orders = list(itertools.permutations(range(1, p + 1)))
    mean = np.mean([draws.transpose(0, *order) for order in orders], axis=0)
    return np.array([energy_form(torch.from_numpy(one)) for one in mean])


def streams(samples, seed=0):
    return [np.random.default_rng([seed, k]) for k in range(samples)]


def naive(tensor, x):
    """Contract all axes but one, entry by entry."""
    n, p = tensor.shape[0], tensor.ndim
    out = np.zeros(n, dtype=complex)
    for axes in itertools.product(range(n), repeat=p):
        out[axes[0]] += tensor[axes] * np.prod([x[i] for i in axes[1:]])
    return out


@pytest.mark.parametrize(("n", "p"), [(2, 3), (3, 4), (4, 3), (2, 6)])
def test_contractions_are_those_of_a_loop(n, p):
    rng = np.random.default_rng(1)
    tensors = gaussian(2, n, p, 2)
    x = rng.standard_normal((5, n)) + 1j * rng.standard_normal((5, n))
    sample = np.array([0, 0, 1, 1, 1])
    matrices = TensorBatch(tensors).contract(x, sample)
    for k in range(5):
        assert matrices[k] @ x[k] == pytest.approx(naive(tensors[sample[k]], x[k]), abs=1e-12)


def test_rotated_tensors_are_the_same_forms_in_other_axes():
    rng = np.random.default_rng(3)
    tensors = gaussian(2, 3, 4, 4)
    turns = np.array([np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2)])
    turned = TensorBatch(tensors).rotated(turns)
    x = rng.standard_normal((2, 3))
    y = np.einsum("kij,kj->ki", turns, x)
    both = np.arange(2)
    forms = [
        np.einsum("ki,kij,kj->k", v, batch.contract(v, both), v)
        for v, batch in ((x, TensorBatch(tensors)), (y, turned))
    ]
    assert forms[0] == pytest.approx(forms[1], rel=1e-12)


@pytest.mark.parametrize(("n", "p"), [(2, 3), (5, 3), (3, 4), (2, 7)])
def test_start_points_are_all_classes_of_the_diagonal_tensor(n, p):
    starts = start_classes(n, p)
    assert len(starts) == class_count(n, p) == ((p - 1) ** n - 1) // (p - 2)
    assert starts ** (p - 1) == pytest.approx(starts, abs=1e-12)
    unit = starts / np.linalg.norm(starts, axis=1, keepdims=True)
    overlap = np.abs(unit.conj() @ unit.T) - np.eye(len(unit))
    assert overlap.max() < 0.99


def test_the_linearisation_is_the_derivative():
    tensors = gaussian(1, 3, 4, 5)
    path = DiagonalHomotopy(TensorBatch(tensors), np.exp([[0.3j, 1.0j, 2.0j]]))
    rng = np.random.default_rng(6)
    state, move = rng.standard_normal((2, 1, 4, 2)) @ [1, 1j]
    alone, chart = np.array([0]), state[:, :3].conj()

    def at(s, t):
        return path.linearise(s[:, :3], s[:, 3], np.array([t]), alone, chart)

    step = 1e-6
    jacobian, _, speed = at(state, 0.4)
    moved = (at(state + step * move, 0.4)[1] - at(state - step * move, 0.4)[1]) / (2 * step)
    assert (jacobian[0] @ move[0])[:3] == pytest.approx(moved[0, :3], abs=1e-7)
    later = (at(state, 0.4 + step)[1] - at(state, 0.4 - step)[1]) / (2 * step)
    assert speed[0] == pytest.approx(later[0], abs=1e-7)


@pytest.mark.parametrize(
    ("n", "p"),
    [
        *((2, 3), (4, 3), (3, 4)),
        *(pytest.param(*s, marks=pytest.mark.slow) for s in ((6, 3), (4, 4), (3, 5), (2, 6))),
    ],
)
def test_all_classes_are_found_and_are_eigenvectors(n, p):
    tensors = gaussian(2, n, p, 10 * n + p)
    for tensor, classes in zip(tensors, eigenvector_classes(tensors, streams(2)), strict=True):
        assert classes.found == classes.expected == class_count(n, p)
        assert classes.undecided == classes.vanishing == 0
        scale = np.linalg.norm(tensor)
        for found in (classes.real, classes.complex):
            for x, value in zip(found.x, found.value, strict=True):
                assert np.abs(naive(tensor, x) - value * x).max() < 1e-12 * scale
        # of a real tensor, those that are not real come in conjugate pairs
        assert len(classes.complex.value) % 2 == 0
        others = np.abs(classes.complex.x @ classes.complex.x.T)
        assert np.all(np.isclose(others, 1, atol=1e-9).sum(axis=1) == 1)


def test_a_batch_gives_what_each_gives_alone():
    tensors = gaussian(3, 3, 3, 7)
    together = eigenvector_classes(tensors, streams(3))
    for k in range(3):
        (alone,) = eigenvector_classes(tensors[k : k + 1], [np.random.default_rng([0, k])])
        assert np.array_equal(np.sort(alone.real.value), np.sort(together[k].real.value))


def test_paths_that_end_together_count_once(monkeypatch):
    whole = homotopy.track

    def jumping(*args, tolerance):
        ends = whole(*args, tolerance=tolerance)
        x, value = ends.x.copy(), ends.value.copy()
        x[1:8], value[1:8] = x[0], value[0]
        return type(ends)(x, value, ends.arrived, ends.steps)

    monkeypatch.setattr(homotopy, "track", jumping)
    (classes,) = eigenvector_classes(gaussian(1, 4, 3, 8), streams(1), attempts=1)
    assert classes.found < classes.expected == 15
    assert classes.lost == 0


def test_further_attempts_find_what_the_first_lost(monkeypatch):
    whole = homotopy.track
    calls = []

    def lossy(*args, tolerance):
        ends = whole(*args, tolerance=tolerance)
        calls.append(tolerance)
        arrived = ends.arrived.copy()
        arrived[: len(arrived) // 2] &= len(calls) > 1
        return type(ends)(ends.x, ends.value, arrived, ends.steps)

    monkeypatch.setattr(homotopy, "track", lossy)
    (classes,) = eigenvector_classes(gaussian(1, 4, 3, 9), streams(1))
    assert classes.found == 15
    assert classes.attempts == 2 == len(calls)
    assert classes.lost == 7
    assert calls[1] < calls[0]


@pytest.mark.parametrize("drop", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 4, 6))])
def test_a_start_point_left_out_is_missed(monkeypatch, drop):
    starts = np.delete(start_classes(3, 3), drop, axis=0)
    monkeypatch.setattr(homotopy, "start_classes", lambda n, p: starts)
    tensors = gaussian(4, 3, 3, 11)
    found = eigenvector_classes(tensors, streams(4), attempts=1)
    # a lost class that is not real comes back as the conjugate of another; a real one does not
    lost = [classes.expected - classes.found for classes in found]
    assert set(lost) <= {0, 1}
    assert 1 in lost
    monkeypatch.undo()
    for classes, whole, missing in zip(
        found, eigenvector_classes(tensors, streams(4)), lost, strict=True
    ):
        assert len(whole.real.value) - len(classes.real.value) == missing


def test_a_singular_matrix_in_a_batch_spoils_only_its_own_path():
    matrices = np.array([np.eye(2), np.zeros((2, 2)), 2 * np.eye(2)], dtype=complex)
    solved = _solve(matrices, np.ones((3, 2), dtype=complex))
    assert solved[0] == pytest.approx(1)
    assert solved[2] == pytest.approx(0.5)
    assert np.isnan(solved[1]).all()


def test_degrees_of_one_parity_make_one_form():
    glass = SphericalPSpin(3, {1: 0.7, 3: 1.2}, seed=5)
    form = energy_form(glass)
    rng = np.random.default_rng(0)
    sigma = rng.standard_normal(3)
    sigma *= np.sqrt(3) / np.linalg.norm(sigma)
    whole = np.einsum("ijk,i,j,k", form, sigma, sigma, sigma)
    assert whole == pytest.approx(float(glass.hamiltonian(torch.from_numpy(sigma))), rel=1e-12)
    with pytest.raises(ValueError, match="degrees 1 and 4 do not mix here: only degrees of one"):
        energy_form(SphericalPSpin(3, {1: 1.0, 4: 1.0}, seed=0))


def test_forms_are_checked():
    skew = torch.zeros(2, 2, 2, dtype=torch.float64)
    skew[0, 0, 1] = 1.0
    with pytest.raises(
        ValueError, match=r"degree 3 is not symmetric: it differs .* by 0.667; pass"
    ):
        energy_form(skew)
    with pytest.raises(ValueError, match="degree 3 is not finite"):
        energy_form(skew * torch.nan)
    with pytest.raises(ValueError, match=r"not \(2, 3\)"):
        energy_form(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"degree at least 2, got \[1\]"):
        energy_form(torch.zeros(4))
    with pytest.raises(ValueError, match="n of at least 2"):
        energy_form(torch.zeros(1, 1, 1))
