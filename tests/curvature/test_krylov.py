"""The growing basis: its relations, its bound on what a chain overlooks, its memory."""

from __future__ import annotations

import pytest
import torch
from scipy.special import betainc

from thalweg.curvature import MatrixOperator
from thalweg.curvature.krylov import KrylovBasis
from thalweg.curvature.room import room


def grown(operator, steps, *, capacity=60, chains=1, seed=0):
    basis = KrylovBasis(operator, capacity, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(chains):
        basis.begin_chain(generator)
        for _ in range(steps):
            basis.advance()
    return basis


def vectors_of(basis):
    return basis.expand(torch.eye(basis.size, dtype=torch.float64))


@pytest.mark.parametrize("chains", [1, 3])
def test_the_basis_is_orthonormal_and_projects_the_operator(with_spectrum, chains):
    A = with_spectrum(torch.linspace(-1, 2, 80))
    basis = grown(A, 15, chains=chains)
    Q = vectors_of(basis)
    eye = torch.eye(15 * chains, dtype=torch.float64)
    torch.testing.assert_close(Q.T @ Q, eye, rtol=0, atol=1e-13)
    projected = torch.linalg.eigvalsh(Q.T @ A.matrix @ Q)
    torch.testing.assert_close(basis.ritz().values, projected, rtol=0, atol=1e-13)
    assert basis.products == A.cost.hvps == 15 * chains


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("restart", [False, True])
def test_residuals_without_products_are_the_true_ones(with_spectrum, chains, restart):
    A = with_spectrum(torch.linspace(-1, 2, 80))
    basis = grown(A, 15, chains=chains)
    if restart:
        ritz = basis.ritz()
        basis.restart(ritz, torch.tensor([basis.size - 1, basis.size - 2, 0]))
        basis.advance(0)
        basis.advance(-1)
    ritz = basis.ritz()
    Y = basis.expand(ritz.vectors)
    true = torch.linalg.vector_norm(A.matrix @ Y - Y * ritz.values, dim=0)
    torch.testing.assert_close(ritz.residuals, true, rtol=1e-8, atol=1e-12)


def test_an_invariant_subspace_ends_a_chain(with_spectrum):
    A = with_spectrum([3.0] * 5 + [1.0] * 5 + [0.0] * 30)
    basis = grown(A, 3)
    assert basis.pending == 0
    torch.testing.assert_close(
        basis.ritz().values, torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64), rtol=0, atol=1e-13
    )
    assert float(basis.ritz().residuals.max()) == 0


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_overlooked_bounds_the_overlap_with_the_start(with_spectrum, steps):
    A = with_spectrum(torch.linspace(0, 1, 50).double() ** 2)
    values, vectors = torch.linalg.eigh(A.matrix)
    for seed in range(20):
        basis = grown(A, steps, seed=seed)
        start = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        overlap = abs(float(vectors[:, -1] @ start / start.norm()))
        claimed = basis.overlooked(float(values[-1]))
        assert betainc(0.5, 49 / 2, overlap**2) <= claimed * (1 + 1e-9)


def test_overlooked_says_nothing_inside_the_spectrum_and_all_when_the_chain_is_complete(
    with_spectrum,
):
    basis = grown(with_spectrum(torch.linspace(0, 1, 50)), 8)
    assert basis.overlooked(0.5) == 1.0
    assert basis.overlooked(50.0) < 1e-9
    assert basis.overlooked(-50.0) < 1e-9
    assert grown(with_spectrum([1.0] * 40), 1).overlooked(1.0) == 0.0


def test_rounding_is_that_of_the_dtype(with_spectrum):
    values = torch.linspace(-1, 2, 80)
    exact, coarse = with_spectrum(values), with_spectrum(values, torch.float32)
    fine, rough = grown(exact, 30).rounding, grown(coarse, 30).rounding
    assert 1e-15 < fine < 1e-13
    assert 1e-6 < rough < 1e-4


class Skewed(MatrixOperator):
    """A product with something that is not symmetric."""

    def _product(self, vectors):
        return super()._product(vectors) + 0.1 * vectors.roll(1, 0)


class Restless(MatrixOperator):
    """A product that changes from call to call, as with dropout left on."""

    def _product(self, vectors):
        return super()._product(vectors) * (1 + 0.1 * (self.cost.hvps % 3))


@pytest.mark.parametrize("kind", [Skewed, Restless])
def test_an_operator_that_is_not_symmetric_is_refused(with_spectrum, kind):
    with pytest.raises(ValueError, match=r"is not symmetric, or gives different products.*dropout"):
        grown(kind(with_spectrum(torch.linspace(0, 1, 30)).matrix), 10)


def gathered(operator, starts, steps, width, capacity=60):
    basis = KrylovBasis(operator, capacity, torch.float64)
    basis.begin_chain(torch.Generator().manual_seed(starts), width)
    for _ in range(steps):
        basis.advance()
    return basis


@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("restart", [False, True])
def test_a_block_advances_in_one_product(with_spectrum, width, restart):
    A = with_spectrum(torch.linspace(-1, 2, 80))
    basis = gathered(A, 0, 5, width)
    assert (A.cost.passes, A.cost.hvps, basis.size) == (5, 5 * width, 5 * width)
    if restart:
        basis.restart(basis.ritz(), torch.tensor([basis.size - 1, 0, 3]))
        basis.advance(*range(basis.pending))
    ritz = basis.ritz()
    Y = basis.expand(ritz.vectors)
    eye = torch.eye(basis.size, dtype=torch.float64)
    torch.testing.assert_close(Y.T @ Y, eye, rtol=0, atol=1e-13)
    true = torch.linalg.vector_norm(A.matrix @ Y - Y * ritz.values, dim=0)
    torch.testing.assert_close(ritz.residuals, true, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("steps", [2, 4, 9])
def test_overlooked_holds_for_a_block(with_spectrum, width, steps):
    A = with_spectrum(torch.linspace(0, 1, 50).double() ** 2)
    values, vectors = torch.linalg.eigh(A.matrix)
    for seed in range(10):
        basis = gathered(A, seed, steps, width)
        first = basis.expand(torch.eye(basis.size, dtype=torch.float64))[:, :width]
        weight = float((first.T @ vectors[:, -1]).square().sum())
        truth = betainc(width / 2, (50 - width) / 2, weight)
        assert truth <= basis.overlooked(float(values[-1])) * (1 + 1e-9)


def test_one_start_of_a_block_has_the_chain_of_that_start(with_spectrum):
    A = with_spectrum(torch.linspace(-1, 2, 80))
    block = gathered(A, 0, 6, 3)
    alone = KrylovBasis(A, 60, torch.float64)
    alone.begin_with(block.expand(torch.eye(block.size, dtype=torch.float64))[:, :1])
    for _ in range(6):
        alone.advance()
    nodes, norms = block._column_chain(0)
    theirs, expected = alone.chain()
    torch.testing.assert_close(nodes, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.tensor(norms), torch.tensor(expected), rtol=1e-9, atol=0)


def test_dependent_starts_leave_the_block_narrower(with_spectrum):
    A = with_spectrum(torch.linspace(0, 1, 30))
    one = torch.ones(30, 1, dtype=torch.float64)
    basis = KrylovBasis(A, 20, torch.float64)
    basis.begin_with(torch.cat([one, -2 * one, torch.eye(30, dtype=torch.float64)[:, :1]], 1))
    basis.advance()
    assert basis.size == basis.products == basis.pending == 2


def test_no_more_is_held_than_the_capacity(with_spectrum):
    basis = gathered(with_spectrum(torch.linspace(0, 1, 50)), 0, 4, 3, capacity=11)
    assert (basis.size, basis.pending, basis.free) == (8, 3, 0)
    assert basis.advance() == 0.0
    assert basis.products == 8


def test_mismatch_sees_an_operator_that_changed(with_spectrum):
    A = with_spectrum(torch.linspace(0, 1, 50))
    basis = gathered(A, 0, 10, 2)
    pairs, generator = torch.arange(5), torch.Generator().manual_seed(1)
    assert basis.mismatch(basis.ritz(), pairs, generator) < 1e-13
    A.matrix += 0.01 * torch.eye(50, dtype=torch.float64)
    assert basis.mismatch(basis.ritz(), pairs, generator) == pytest.approx(0.01 * 5**0.5)


def test_errors_of_ritz_values_are_far_below_their_residuals(with_spectrum):
    A = with_spectrum([5.0, 4.0, 4.0 + 1e-7, 3.0, *torch.linspace(0, 1, 100).tolist()])
    basis = gathered(A, 0, 14, 2)
    ritz, truth = basis.ritz(), torch.linalg.eigvalsh(A.matrix)
    error = (ritz.values[-4:] - truth[-4:]).abs()
    assert (error <= ritz.errors()[-4:] + 1e-13).all()
    assert ritz.errors()[-1] < 1e-3 * ritz.residuals[-1]
    assert (ritz.errors() <= ritz.residuals).all()
    lone = gathered(A, 0, 1, 2).ritz()  # nothing else is known, so there is no gap to speak of
    assert (lone.errors() > 1e-3 * lone.residuals).all()


def bytes_for(vectors, dim, *, wanted=10, block=1, size=8):
    return (vectors + max(5 * block, wanted)) * dim * size + 64 * vectors**2


@pytest.mark.parametrize("vectors", [40, 47])
def test_room_uses_the_memory_and_no_more(with_spectrum, vectors):
    A = with_spectrum([1.0] * 50)
    asked = bytes_for(vectors, 50)
    plan = room(A, 10, memory=asked)
    assert (plan.vectors, plan.dtype, plan.bytes) == (vectors, torch.float64, asked)
    assert room(A, 10, memory=asked - 1).vectors == vectors - 1
    assert room(A, 10).vectors == 102
    assert room(A, 10, enough=20).vectors == 42


def test_room_falls_back_to_the_dtype_of_the_operator_and_then_refuses(with_spectrum):
    A = with_spectrum([1.0] * 50, torch.float32)
    plan = room(A, 10, memory=bytes_for(35, 50, size=4))
    assert (plan.vectors, plan.dtype) == (35, torch.float32)
    least = bytes_for(15, 50, size=4)
    assert room(A, 10, memory=least).vectors == 15
    with pytest.raises(ValueError, match=r"cannot hold a search for 10 eigenvectors.*25 vectors"):
        room(A, 10, memory=least - 1)
