"""Eigenpairs against dense and SciPy truth, and the traps that peers fall into."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from thalweg.curvature import Hessian, MatrixOperator, eigenpairs
from thalweg.estimate import Bound
from thalweg.landscape import FunctionLandscape


def held(intervals, truth):
    """Say of each interval whether it holds one of the true eigenvalues."""
    low, high = intervals[:, :1], intervals[:, 1:]
    return ((low <= truth) & (truth <= high)).any(1)


def sorted_truth(matrix, which, k):
    values = torch.linalg.eigvalsh(matrix.double())
    score = {"largest": values, "smallest": -values, "magnitude": values.abs()}[which]
    return values[score.argsort(descending=True)[:k]]


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_hessian_of_a_network(net, which):
    point = net()
    dense = point.dense()
    with Hessian(point.land, point.theta) as H:
        found = eigenpairs(H, k=6, which=which, seed=0)
    truth = sorted_truth(dense, which, 6)
    assert found.converged.all()
    torch.testing.assert_close(found.values, truth, rtol=1e-8, atol=1e-10)
    assert held(found.intervals, torch.linalg.eigvalsh(dense)).all()
    gap = dense @ found.vectors - found.vectors * found.values
    torch.testing.assert_close(
        torch.linalg.vector_norm(gap, dim=0), found.residuals, rtol=1e-3, atol=1e-12
    )
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(found.vectors.T @ found.vectors, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("which", "theirs"), [("largest", "LA"), ("smallest", "SA")])
def test_agrees_with_arpack(net, which, theirs):
    point = net(steps=0)
    H = Hessian(point.land, point.theta)
    found = eigenpairs(H, k=5, which=which, seed=1)
    arpack = scipy.sparse.linalg.eigsh(H.to_scipy(), k=5, which=theirs, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found.values.numpy()), np.sort(arpack), rtol=1e-8)


def test_cost_is_what_the_operator_counted(net):
    point = net()
    with Hessian(point.land, point.theta) as H:
        H @ point.theta
        before = H.cost
        found = eigenpairs(H, k=3, seed=0)
        assert found.cost == H.cost - before
        assert found.cost.hvps == found.products
        assert found.products <= 45


def test_outliers_are_cheap(with_spectrum):
    spectrum = torch.cat([torch.linspace(2, 20, 10), 0.02 * torch.randn(990).abs()])
    found = eigenpairs(with_spectrum(spectrum), k=10, seed=0)
    assert found.converged.all()
    assert found.products <= 40
    torch.testing.assert_close(found.values, torch.linspace(20, 2, 10).double(), rtol=1e-6, atol=0)


def test_evenly_spaced_spectrum(with_spectrum):
    """hessian-eigenthings' default stops at 20 steps with none of 10 converged."""
    A = with_spectrum(torch.linspace(0, 1, 200).double())
    found = eigenpairs(A, k=10, seed=0)
    assert found.converged.all()
    assert found.overlooked <= 1e-4
    assert A.cost.hvps == found.products <= 170
    torch.testing.assert_close(
        found.values, sorted_truth(A.matrix, "largest", 10), rtol=0, atol=1e-9
    )


EDGES = {
    "zero": ([0.0] * 40, 10),
    "one row": ([3.0], 1),
    "one negative row": ([-3.0], 1),
    "all of them": ([5.0, -2.0, 0.5, 0.0, -7.0, 1e-3, 3.0, 2.0], 8),
    "identity": ([1.0] * 60, 7),
    "triple, and double": ([5.0, 5.0, 5.0, 4.0, 4.0, *np.linspace(0, 1, 100)], 5),
    "cut through a triple": ([5.0, 5.0, 5.0, 4.0, 4.0, *np.linspace(0, 1, 100)], 2),
    "two clusters": ([1.0] * 30 + [0.0] * 120, 20),
    "all of one cluster and some of the next": ([1.0] * 15 + [0.0] * 60, 20),
    "plus and minus": ([*np.linspace(1, 3, 20), *-np.linspace(1, 3, 20)], 8),
    "tiny": ([0.7252e-6, 0.5231e-6, 0.4487e-6, *np.linspace(0, 1e-7, 200)], 3),
    "huge": ([7e30, 5e30, 4e30, *np.linspace(0, 1e29, 100)], 3),
    "rank 3": ([12.723, 12.525, 4.085] + [0.0] * 97, 10),
    "rank 3 of 10": ([12.723, 12.525, 4.085] + [0.0] * 7, 9),
    "negative": (list(-np.linspace(1, 2, 50)), 4),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("case", EDGES)
def test_edges(with_spectrum, case, which, dtype):
    """Among them PyHessian's traps: phantom curvature, lambda ~ 1e-6 found twice."""
    spectrum, k = EDGES[case]
    A = with_spectrum(spectrum, dtype)
    truth = torch.linalg.eigvalsh(A.matrix.double())
    size = float(truth.abs().max())
    for seed in range(2):
        found = eigenpairs(A, k=k, which=which, seed=seed)
        assert found.converged.all()
        error = (found.values - sorted_truth(A.matrix, which, k)).abs().max()
        assert error <= (1e-9 + 30 * torch.finfo(dtype).eps) * size
        assert held(found.intervals, truth).all()
        widest = float(found.intervals.diff(dim=1).max())
        assert widest <= (3e-6 + 100 * torch.finfo(dtype).eps) * size


def test_no_phantom_negative_curvature():
    """PyHessian finds -0.415 in an exactly semidefinite rank-3 Hessian of 10 parameters."""
    rows = torch.randn(3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    land = FunctionLandscape(lambda x: 0.5 * (rows @ x).square().sum(), dim=10)
    H = Hessian(land, torch.zeros(10, dtype=torch.float64))
    found = eigenpairs(H, k=9, which="smallest", seed=0)
    assert found.values.min() > -1e-13
    assert (found.values < 1e-13).sum() == 7


def test_no_ghosts_in_float32(with_spectrum):
    """Lanczos without reorthogonalisation repeats 10, 20, 30, 50 some 14 times each."""
    A = with_spectrum([50.0, 30.0, 20.0, 10.0, *np.linspace(0, 0.1, 296)], torch.float32)
    found = eigenpairs(A, k=8, tol=1e-5, seed=0)
    torch.testing.assert_close(
        found.values[:4], torch.tensor([50.0, 30, 20, 10]).double(), rtol=1e-6, atol=0
    )
    assert found.values[4:].max() < 0.11


def test_magnitude_takes_both_ends(with_spectrum):
    A = with_spectrum([-9.0, 7.0, -5.0, 3.0, *np.linspace(-1, 1, 80)])
    found = eigenpairs(A, k=4, which="magnitude", seed=0)
    expected = torch.tensor([-9.0, 7, -5, 3]).double()
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=0)


def test_a_repeated_pair_at_the_negative_end_is_found_by_magnitude(with_spectrum):
    A = with_spectrum([-9.0, -9.0, 9.0, 3.0, *np.linspace(-1, 1, 80)])
    found = eigenpairs(A, k=4, which="magnitude", seed=0)
    assert sorted(found.values.round(decimals=6).tolist()) == [-9.0, -9.0, 3.0, 9.0]


def test_without_the_second_start_copies_would_be_missed(with_spectrum, monkeypatch):
    """The control of the tests above: the first chain alone sees each eigenvalue once."""
    import sys

    search = sys.modules["thalweg.curvature.eigenpairs"]._Search
    monkeypatch.setattr(search, "_check", lambda self: True)
    A = with_spectrum([5.0, 5.0, 5.0, 3.0, *np.linspace(0, 1, 100)])
    found = eigenpairs(A, k=2, tol=1e-4, seed=0)
    assert found.converged.all()
    assert (found.values > 4.5).sum() == 1
    assert found.overlooked == 1.0
    assert "not certified" in str(found)
    monkeypatch.undo()
    assert (eigenpairs(A, k=2, tol=1e-4, seed=0).values > 4.5).all()


@pytest.mark.parametrize("case", ["triple, and double", "two clusters", "rank 3", "evenly"])
def test_little_memory_restarts_and_still_converges(with_spectrum, case):
    spectrum, k = {"evenly": (np.linspace(0, 1, 200), 5), **EDGES}[case]
    A = with_spectrum(spectrum)
    vectors = 2 * k + 20
    memory = 8 * A.dim * (vectors + max(5, k)) + 64 * vectors**2
    found = eigenpairs(A, k=k, seed=0, max_products=1000, memory=memory)
    assert found.memory <= memory
    assert found.converged.all()
    torch.testing.assert_close(
        found.values, sorted_truth(A.matrix, "largest", k), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("steps", [0, 30])
def test_float32_network_holds_the_float64_eigenvalues(net, steps):
    point = net(torch.float32, steps=steps)
    truth = torch.linalg.eigvalsh(point.dense())
    for seed in range(4):
        found = eigenpairs(Hessian(point.land, point.theta), k=5, seed=seed)
        assert found.vectors.dtype == torch.float32
        assert found.values.dtype == torch.float64
        assert found.converged.all()
        assert held(found.intervals, truth).all()
        assert found.rounding < 1e-4 * truth.abs().max()


def test_products_that_run_out_are_reported(with_spectrum):
    A = with_spectrum(np.linspace(0, 1, 400))
    found = eigenpairs(A, k=10, max_products=40, seed=0)
    assert found.products <= 40
    assert not found.converged.any()
    assert found.overlooked == 1.0
    assert held(found.intervals, torch.linalg.eigvalsh(A.matrix)).all()
    text = str(found)
    assert "10 of 10 did NOT converge to tol=1e-06 in 40 products: raise max_products" in text
    assert "larger ones may be missing" in text
    smallest = eigenpairs(A, k=3, which="smallest", max_products=10, seed=0)
    assert "smaller ones may be missing" in str(smallest)


def test_the_checker_rejects_intervals_of_another_matrix(with_spectrum):
    """A control: intervals that are too narrow, or those of another matrix, are caught."""
    A, B = with_spectrum(np.linspace(0, 1, 50)), with_spectrum(np.linspace(0.01, 1.2, 50))
    found = eigenpairs(A, k=5, max_products=20, seed=0)
    truth = torch.linalg.eigvalsh(A.matrix)
    middle = found.intervals.mean(1, keepdim=True)
    assert not held(middle + 1e-3 * (found.intervals - middle), truth).all()
    full = eigenpairs(A, k=5, seed=0)
    assert not held(full.intervals, torch.linalg.eigvalsh(B.matrix)).any()


def test_seeds(with_spectrum):
    A = with_spectrum(np.linspace(0, 1, 50))
    first, again = eigenpairs(A, k=2, seed=7), eigenpairs(A, k=2, seed=7)
    assert first.seed == 7
    assert torch.equal(first.vectors, again.vectors)
    fresh, other = eigenpairs(A, k=2), eigenpairs(A, k=2)
    assert fresh.seed != other.seed  # hessian-eigenthings' seed=None is the same every time
    assert torch.equal(fresh.vectors, eigenpairs(A, k=2, seed=fresh.seed).vectors)
    before = torch.get_rng_state()
    eigenpairs(A, k=2)
    assert torch.equal(before, torch.get_rng_state())


def test_text_and_json(with_spectrum):
    found = eigenpairs(with_spectrum([3.0, 2.0, *np.linspace(0, 1, 50)]), k=2, seed=0)
    lines = str(found).splitlines()
    assert lines[0].startswith(f"2 algebraically largest of 52 eigenvalues, {found.products} HVPs")
    assert lines[2].split()[:2] == ["1", "3"]
    assert "none beyond the last is missing (error probability <= " in lines[-1]
    stored = json.loads(json.dumps(found.to_json()))
    assert stored["values"] == found.values.tolist()
    assert stored["seed"] == 0
    assert "vectors" not in stored
    bound = found.bound(0)
    assert isinstance(bound, Bound)
    assert bound.lower_kind == bound.upper_kind == "certified"
    assert 3.0 in Bound(bound.lower - 1e-12, bound.upper + 1e-12, "certified", "certified")
    assert (
        "[yellow]"
        in eigenpairs(with_spectrum(np.linspace(0, 1, 50)), k=2, max_products=6, seed=0).__rich__()
    )


def test_nan_hessian_is_an_error_not_a_loop():
    kink = FunctionLandscape(lambda x: (x.abs() ** 1.5).sum(), dim=50)
    H = Hessian(kink, torch.zeros(50, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match=r"product with Hessian.*NaN or infinite"):
        eigenpairs(H, k=3, seed=0)


def test_arguments_that_cannot_be():
    A = MatrixOperator(torch.eye(4))
    with pytest.raises(ValueError, match="k=5 eigenpairs of a 4 x 4 operator: k must lie between"):
        eigenpairs(A, k=5)
    with pytest.raises(ValueError, match="k=0 eigenpairs"):
        eigenpairs(A, k=0)
    with pytest.raises(ValueError, match="which must be one of 'largest', 'smallest', 'magnitude'"):
        eigenpairs(A, k=1, which="LM")
    with pytest.raises(ValueError, match="tol and accuracy must not be negative or NaN, got -1"):
        eigenpairs(A, k=1, tol=-1.0)
    with pytest.raises(ValueError, match="max_products=2 is too few: 2 eigenpairs take at least 3"):
        eigenpairs(A, k=2, max_products=2)
    assert A.cost.hvps == 0


def test_tolerance_zero_goes_to_rounding(with_spectrum):
    found = eigenpairs(with_spectrum([3.0, 2.0, *np.linspace(0, 1, 50)]), k=2, tol=0.0, seed=0)
    assert found.converged.all()
    assert found.residuals.max() < 1e-13


@pytest.mark.calibration
@pytest.mark.parametrize("products", [25, 300])
@pytest.mark.parametrize("case", ["indefinite network", "network in float32", "even spectrum"])
def test_intervals_hold_an_eigenvalue(net, with_spectrum, calibration, case, products):
    """A certificate has no level: every interval of every seed must hold, converged or not."""
    if case == "even spectrum":
        operator = with_spectrum(np.linspace(0, 1, 200))
        truth = torch.linalg.eigvalsh(operator.matrix)
    else:
        point = net(torch.float32 if "32" in case else torch.float64, steps=5)
        operator, truth = Hessian(point.land, point.theta), torch.linalg.eigvalsh(point.dense())
    hits = complete = 0
    for seed in calibration.seeds:
        found = eigenpairs(operator, k=5, seed=seed, max_products=products)
        hits += bool(held(found.intervals, truth).all())
        right = (found.values - truth.flip(0)[:5]).abs() <= found.residuals + found.rounding
        complete += bool(right.all())
    calibration.check(f"eigenvalue intervals, {case}, {products} products", hits, level=0.9999)
    assert hits == len(calibration.seeds)
    if products == 300:
        assert complete == len(calibration.seeds)


@pytest.mark.calibration
def test_no_copy_of_a_repeated_eigenvalue_is_missed(with_spectrum, calibration):
    spectrum, k = EDGES["triple, and double"]
    A = with_spectrum(spectrum)
    truth = sorted_truth(A.matrix, "largest", k)
    hits = 0
    for seed in calibration.seeds:
        found = eigenpairs(A, k=k, seed=seed)
        assert found.overlooked <= 1e-4
        hits += bool(((found.values - truth).abs() < 1e-9).all())
    calibration.check("complete list with a triple eigenvalue", hits, level=0.9999)
