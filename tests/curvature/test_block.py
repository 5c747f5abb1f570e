"""Blocks, both ends, warm starts and memory: what eigenpairs does beside one chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thalweg.curvature import Hessian, MatrixOperator, eigenpairs
from thalweg.landscape.memory import Meter

CASES = {
    "zero": ([0.0] * 40, 10),
    "one row": ([3.0], 1),
    "fewer rows than the block": ([5.0, -2.0, 0.5, 0.0, -7.0], 5),
    "identity": ([1.0] * 60, 7),
    "triple, and double": ([5.0, 5.0, 5.0, 4.0, 4.0, *np.linspace(0, 1, 100)], 5),
    "two clusters": ([1.0] * 30 + [0.0] * 120, 20),
    "plus and minus": ([*np.linspace(1, 3, 20), *-np.linspace(1, 3, 20)], 8),
    "tiny": ([0.7252e-6, 0.5231e-6, 0.4487e-6, *np.linspace(0, 1e-7, 200)], 3),
    "rank 3": ([12.723, 12.525, 4.085] + [0.0] * 97, 10),
    "close": ([3.0, 3.0 - 1e-9, 3.0 - 2e-9, 2.0, *np.linspace(0, 1, 80)], 4),
}


def held(intervals, truth):
    low, high = intervals[:, :1], intervals[:, 1:]
    return ((low <= truth) & (truth <= high)).any(1)


def wanted(matrix, which, k):
    values = torch.linalg.eigvalsh(matrix.double())
    top, low = values.flip(0)[:k], values[: min(k, len(values) - k)]
    return {"largest": top, "smallest": values[:k], "both": torch.cat([top, low])}[which]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize("case", CASES)
def test_block_of_eight(with_spectrum, case, which, dtype):
    spectrum, k = CASES[case]
    A = with_spectrum(spectrum, dtype)
    truth = torch.linalg.eigvalsh(A.matrix.double())
    size = float(truth.abs().max())
    for seed in range(2):
        found = eigenpairs(A, k=k, which=which, block=8, seed=seed)
        assert found.converged.all()
        error = (found.values - wanted(A.matrix, which, k)).abs().max()
        assert error <= (1e-9 + 30 * torch.finfo(dtype).eps) * size
        assert held(found.intervals, truth).all()
        assert found.cost.hvps == found.products


@pytest.mark.parametrize("block", [1, 4])
def test_both_ends_of_a_network(net, block):
    point = net()
    found = eigenpairs(Hessian(point.land, point.theta), 4, which="both", block=block, seed=0)
    assert found.converged.all()
    assert found.overlooked <= 1e-4
    torch.testing.assert_close(found.values, wanted(point.dense(), "both", 4), rtol=1e-8, atol=1e-9)
    assert str(found).startswith("8 algebraically largest, then smallest, of ")


def test_both_ends_that_meet_take_every_eigenvalue_once(with_spectrum):
    A = with_spectrum([5.0, 4.0, 3.0, 2.0, 1.0])
    found = eigenpairs(A, 3, which="both", seed=0)
    torch.testing.assert_close(
        found.values, torch.tensor([5.0, 4, 3, 1, 2]).double(), rtol=0, atol=1e-12
    )


def test_a_block_takes_few_passes(with_spectrum):
    spectrum = torch.cat([torch.linspace(2, 20, 10), 0.02 * torch.randn(990).abs()])
    found = eigenpairs(with_spectrum(spectrum), k=10, block=8, seed=0)
    assert found.converged.all()
    assert found.overlooked <= 1e-4
    assert found.passes <= 8 < 16 <= found.products


def test_the_control_a_single_chain_sees_one_copy_and_a_block_sees_them_all(
    with_spectrum, monkeypatch
):
    import sys

    search = sys.modules["thalweg.curvature.eigenpairs"]._Search
    monkeypatch.setattr(search, "_check", lambda self: True)
    A = with_spectrum([5.0, 5.0, 5.0, 3.0, *np.linspace(0, 1, 100)])
    assert (eigenpairs(A, k=2, tol=1e-4, seed=0).values > 4.5).sum() == 1
    assert (eigenpairs(A, k=3, tol=1e-4, block=4, seed=0).values > 4.5).sum() == 3


def test_multiplicities(with_spectrum):
    A = with_spectrum([5.0, 5.0, 5.0, 4.0, 3.0, 3.0, *np.linspace(0, 1, 80)])
    found = eigenpairs(A, k=6, seed=0)
    assert found.multiplicities.tolist() == [3, 3, 3, 1, 2, 2]
    assert str(found).count("one of 3 alike") == 3
    ends = eigenpairs(A, k=6, which="both", seed=0)
    assert ends.multiplicities.tolist() == [3, 3, 3, 1, 2, 2] + [1] * 6


def test_a_warm_start_saves_products_and_stays_checked(with_spectrum):
    spectrum = [*np.linspace(3, 9, 10), *np.linspace(0, 1, 390)]
    A, noise = with_spectrum(spectrum), with_spectrum(0.003 * np.linspace(-1, 1, 400), seed=1)
    B = MatrixOperator(A.matrix + noise.matrix)
    before = eigenpairs(A, k=10, seed=0)
    cold = eigenpairs(B, k=10, tol=1e-3, seed=1)
    warm = eigenpairs(B, k=10, tol=1e-3, start=before.vectors, seed=1)
    assert warm.converged.all()
    assert warm.overlooked <= 1e-4
    assert warm.products < cold.products
    truth = wanted(B.matrix, "largest", 10)
    torch.testing.assert_close(warm.values, truth, rtol=1e-4, atol=0)
    assert held(warm.intervals, truth).all()


def test_a_start_that_holds_none_of_it_does_no_harm(with_spectrum):
    A = MatrixOperator(torch.diag(torch.tensor([9.0, 8.0, *np.linspace(0, 1, 100)]).double()))
    useless = torch.eye(102, dtype=torch.float64)[:, 50:53]
    found = eigenpairs(A, k=2, start=useless, seed=0)
    torch.testing.assert_close(found.values, torch.tensor([9.0, 8.0]).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("vectors", [45, 90])
def test_the_memory_cap_holds_to_the_byte(dtype, block, vectors):
    spectrum = torch.tensor([*np.linspace(2, 4, 8), *np.linspace(0, 1, 1992)])
    A = MatrixOperator(torch.diag(spectrum.to(dtype)))
    memory = vectors * 2000 * 8
    with Meter() as meter:
        meter.exclude(A.matrix)
        found = eigenpairs(A, k=8, block=block, tol=1e-4, memory=memory, seed=0)
    assert found.converged.all()
    assert meter.peak <= found.memory <= memory
    assert meter.peak > 0.6 * memory


def test_memory_that_is_too_little_is_refused(with_spectrum):
    A = with_spectrum(np.linspace(0, 1, 300))
    with pytest.raises(ValueError, match=r"memory='20 kB' cannot hold a search for 10.*the least"):
        eigenpairs(A, k=10, memory="20 kB")
    assert A.cost.hvps == 0


def test_accuracy_stops_earlier_and_reaches_it(net):
    point = net()
    H = Hessian(point.land, point.theta)
    truth = wanted(point.dense(), "largest", 20)
    loose, tight = (eigenpairs(H, k=20, seed=0, **o) for o in ({"accuracy": 1e-4}, {}))
    assert loose.converged.all()
    assert loose.products < tight.products
    assert ((loose.values - truth) / truth).abs().max() <= 1e-4
    assert held(loose.intervals, truth).all()


def test_recompute_spends_a_product_on_each_residual(net):
    point = net()
    H = Hessian(point.land, point.theta)
    plain = eigenpairs(H, k=6, tol=1e-3, seed=0)
    again = eigenpairs(H, k=6, tol=1e-3, recompute=True, seed=0)
    assert again.products == plain.products + 5
    torch.testing.assert_close(again.residuals, plain.residuals, rtol=1e-6, atol=1e-12)


def test_arguments_that_cannot_be():
    A = MatrixOperator(torch.eye(4))
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        eigenpairs(A, k=1, block=0)
    with pytest.raises(ValueError, match=r"start holds vectors as columns, \(4, j\).*\(3, 2\)"):
        eigenpairs(A, k=1, start=torch.ones(3, 2))
    with pytest.raises(ValueError, match="start has a column that is zero or not finite"):
        eigenpairs(A, k=1, start=torch.zeros(4, 1))
    assert A.cost.hvps == 0


@pytest.mark.calibration
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float64, {}),
        (torch.float32, {}),
        (torch.float64, {"accuracy": 1e-4}),
        (torch.float32, {"max_products": 24}),
    ],
)
def test_intervals_of_a_block_hold_an_eigenvalue(net, calibration, dtype, options):
    point = net(dtype, steps=5)
    H, truth = Hessian(point.land, point.theta), torch.linalg.eigvalsh(point.dense())
    hits = 0
    for seed in calibration.seeds:
        found = eigenpairs(H, k=5, block=8, seed=seed, **options)
        hits += bool(held(found.intervals, truth).all())
    words = ", ".join(f"{key}={value:g}" for key, value in options.items()) or "defaults"
    calibration.check(f"eigenvalue intervals, block 8, {dtype}, {words}", hits, level=0.9999)
    assert hits == len(calibration.seeds)
