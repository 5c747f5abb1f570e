"""The growing basis: its relations, its bound on what a chain overlooks, its memory."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.curvature import MatrixOperator
from thalweg.curvature.krylov import KrylovBasis, room


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
        assert min(1.0, math.sqrt(2 * 50 / math.pi) * overlap) <= claimed * (1 + 1e-9)


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


def test_room_is_bounded_and_never_too_small(with_spectrum, monkeypatch):
    A = with_spectrum([1.0] * 50, torch.float32)
    assert room(A, 30) == (50, torch.float64)
    monkeypatch.setattr("thalweg.curvature.krylov._BASIS_BYTES", 8 * 50 * 40)
    assert room(A, 30) == (40, torch.float64)
    monkeypatch.setattr("thalweg.curvature.krylov._BASIS_BYTES", 4 * 50 * 35)
    assert room(A, 30) == (35, torch.float32)
    monkeypatch.setattr("thalweg.curvature.krylov._BASIS_BYTES", 0)
    assert room(A, 30) == (30, torch.float32)
