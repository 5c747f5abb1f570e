"""Arithmetic of operators against dense matrices, what is known of the results, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thalweg.curvature import Hessian, LinearOperator, MatrixOperator, eigenpairs
from thalweg.estimate import Cost, Estimate

N = 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(seed: int, dim: int = N) -> Tensor:
    square = random(dim, dim, seed=seed)
    return square + square.T


def definite(seed: int) -> MatrixOperator:
    square = random(N, 3, seed=seed)
    return MatrixOperator(square @ square.T, definite=True)


class Knowing(MatrixOperator):
    """A matrix that knows its trace and its diagonal, or a noisy trace."""

    noise = 0.0

    def own_trace(self, *, level: float = 0.95, seed: object = None) -> Estimate:
        value = float(self.matrix.trace())
        ends = (value - self.noise, value + self.noise)
        return Estimate(value, self.noise / 2, ends, 9, Cost(), level, "told", 1)

    def own_diagonal(self) -> Tensor:
        return self.matrix.diagonal()


@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(-3, 3))
def test_combinations_are_those_of_matrices(seed: int, factor: float, shift: float) -> None:
    a, b = symmetric(seed), symmetric(seed + 1)
    A, B = MatrixOperator(a), MatrixOperator(b)
    eye = torch.eye(N, dtype=torch.float64)
    for made, truth in (
        (A + B, a + b),
        (A - B, a - b),
        (factor * A, factor * a),
        (A * np.float64(factor), factor * a),
        (np.float64(factor) * A, factor * a),
        (-A, -a),
        (A.shifted(shift), a + shift * eye),
        (2 * (A - factor * B).shifted(shift) + A, 3 * a - 2 * factor * b + 2 * shift * eye),
    ):
        torch.testing.assert_close(made.to_dense(), truth, rtol=1e-12, atol=1e-11)
        vector = random(N, seed=seed)
        torch.testing.assert_close(made @ vector, truth @ vector, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 2**31), st.integers(1, N))
def test_projection_is_that_of_matrices(seed: int, count: int) -> None:
    a, basis = symmetric(seed), random(N, count, seed=seed)
    made = MatrixOperator(a).projected(basis)
    q = torch.linalg.qr(basis)[0]
    off = torch.eye(N, dtype=torch.float64) - q @ q.T
    torch.testing.assert_close(made.to_dense(), off @ a @ off, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made @ basis, torch.zeros_like(basis), rtol=0, atol=1e-8)


@given(st.integers(0, 2**31), st.lists(st.integers(0, N - 1), min_size=1, unique=True))
def test_restriction_is_the_principal_submatrix(seed: int, chosen: list[int]) -> None:
    a = symmetric(seed)
    A = MatrixOperator(a)
    made = A.restricted(chosen)
    assert made.dim == len(chosen)
    torch.testing.assert_close(made.to_dense(), a[chosen][:, chosen], rtol=1e-14, atol=0)
    mask = torch.zeros(N, dtype=torch.bool)
    mask[chosen] = True
    kept = sorted(chosen)
    assert torch.equal(A.restricted(mask).to_dense(), a[kept][:, kept])


def test_a_slice_is_a_restriction() -> None:
    a = symmetric(0)
    assert torch.equal(MatrixOperator(a).restricted(slice(2, 5)).to_dense(), a[2:5, 2:5])
    twice = MatrixOperator(a).restricted(slice(2, 7)).restricted([0, 3])
    assert torch.equal(twice.to_dense(), a[[2, 5]][:, [2, 5]])


def test_algorithms_take_what_arithmetic_makes() -> None:
    a = symmetric(0)
    A = MatrixOperator(a)
    values, vectors = torch.linalg.eigh(a)
    found = eigenpairs(A.projected(vectors[:, -2:]).shifted(-100.0), k=1, seed=0)
    assert float(found.values[0]) == pytest.approx(max(float(values[-3]), 0.0) - 100.0)
    theirs = (A + A).to_scipy()
    np.testing.assert_allclose(theirs @ np.ones(N), 2 * a.numpy() @ np.ones(N))


def test_cost_counts_every_operator_once() -> None:
    A, B = MatrixOperator(symmetric(0)), MatrixOperator(symmetric(1))
    made = (A + B).projected(random(N, 2)) + 2 * A.shifted(1.0) - B.restricted(slice(0, N))
    assert made.cost == Cost()
    made @ random(N, 3)
    assert made.cost == A.cost + B.cost == Cost(hvps=12, passes=4)
    assert (A + A).leaves() == (A,)
    before = A.cost
    (A + A) @ random(N, 3)
    assert A.cost - before == Cost(hvps=3, passes=1), "equal operators share a product"


def test_what_is_known_to_be_semidefinite() -> None:
    A, B, C = definite(0), definite(1), MatrixOperator(symmetric(2))
    for made in (
        A + B,
        2 * A,
        A.shifted(0.5),
        A.projected(random(N)),
        A.restricted([1, 2]),
        2 * A - A,
        0.0 * C + B,
        -1.0 * (-A),
    ):
        assert made.definite
        assert float(torch.linalg.eigvalsh(made.to_dense())[0]) > -1e-12
    for made in (A - B, -A, A + C, A.shifted(-0.1), C.shifted(9.0), C.projected(random(N))):
        assert not made.definite


def test_a_matrix_said_to_be_semidefinite_is_checked() -> None:
    assert MatrixOperator(torch.zeros(3, 3), definite=True).definite
    low_rank = random(30, 2).float()
    assert MatrixOperator(low_rank @ low_rank.T, definite=True).definite
    with pytest.raises(ValueError, match=r"least eigenvalue is -0.001; leave definite=False"):
        MatrixOperator(torch.diag(torch.tensor([1.0, -1e-3])), definite=True)


def test_known_traces_and_diagonals_travel() -> None:
    a, b = symmetric(0), symmetric(1)
    A, B = Knowing(a), Knowing(b)
    basis = random(N, 2)
    for made in (
        A + 2 * B,
        -A.shifted(3.0),
        A.projected(basis),
        (A - B).restricted([0, 4]),
        A.projected(basis).shifted(1.0),
    ):
        dense = made.to_dense()
        trace = made.own_trace(level=0.9)
        assert trace is not None
        assert trace.level == 0.9
        assert trace.value == pytest.approx(float(dense.trace()), rel=1e-12)
        torch.testing.assert_close(made.own_diagonal(), dense.diagonal(), rtol=1e-10, atol=1e-10)
    spent = A.projected(basis).own_trace()
    assert spent is not None
    assert spent.cost == Cost(hvps=2, passes=1)
    C = MatrixOperator(a)
    for made in (C, A + C, C.projected(basis), C.restricted([0])):
        assert made.own_trace() is None
        assert made.own_diagonal() is None


def test_intervals_of_several_traces_add() -> None:
    A, B = Knowing(symmetric(0)), Knowing(symmetric(1))
    A.noise, B.noise = 1.0, 0.5
    found = (A - 2 * B).own_trace()
    assert found is not None
    assert found.half_width == pytest.approx(2.0)
    assert found.stderr == pytest.approx(1.0)
    assert found.seed is not None


def test_operators_that_do_not_fit() -> None:
    A, B = MatrixOperator(torch.eye(3)), MatrixOperator(torch.eye(4))
    with pytest.raises(ValueError, match=r"MatrixOperator\(3 x 3.* and MatrixOperator\(4 x 4"):
        A + B
    with pytest.raises(TypeError, match=r"float32, cpu\) and MatrixOperator\(3 x 3, torch.float64"):
        A - MatrixOperator(torch.eye(3, dtype=torch.float64))
    other = MatrixOperator(torch.eye(3))
    other.device = torch.device("meta")
    with pytest.raises(
        ValueError, match=r"different devices cannot be combined: .*cpu.* and .*meta"
    ):
        A + other
    with pytest.raises(TypeError, match="unsupported operand"):
        A + 1.0  # type: ignore[operator]  # what is meant is shifted(1.0)


def test_numbers_that_do_not_fit(unchecked: None) -> None:
    A = MatrixOperator(torch.eye(3))
    for wrong in (A, torch.ones(3), 1j):
        with pytest.raises(TypeError, match=r"by a real number, not .*; write operator @ vectors"):
            A * wrong  # type: ignore[operator]  # refused
    with pytest.raises(ValueError, match="multiplied or shifted by nan"):
        A.shifted(float("nan"))


def test_directions_that_do_not_fit(unchecked: None) -> None:
    A = MatrixOperator(torch.eye(4, dtype=torch.float64))
    line = random(4, 1)
    for basis, count in (
        (torch.cat([line, 2 * line], 1), 2),
        (torch.zeros(4, 1, dtype=torch.float64), 1),
        (random(4, 5), 5),
    ):
        with pytest.raises(ValueError, match=f"the {count} directions .* are not independent"):
            A.projected(basis)
    with pytest.raises(ValueError, match=r"takes shape \(4,\) or \(4, k\), got \(3,"):
        A.projected(random(3))
    with pytest.raises(TypeError, match=r"vectors are torch\.float32"):
        A.projected(torch.ones(4))
    with pytest.raises(ValueError, match="directions to project off hold NaN"):
        A.projected(torch.full((4,), torch.nan, dtype=torch.float64))
    assert torch.equal((A.projected(random(4, 0)) @ line), line)


def test_coordinates_that_do_not_fit(unchecked: None) -> None:
    A: LinearOperator = MatrixOperator(torch.eye(4))
    for empty in ([], slice(2, 2), torch.zeros(4, dtype=torch.bool), [0.5]):
        with pytest.raises(ValueError, match="which names none of 4"):
            A.restricted(empty)
    with pytest.raises(ValueError, match=r"must lie in \[0, 4\), got \[4, -1\]"):
        A.restricted([0, 4, -1])
    with pytest.raises(ValueError, match="a coordinate is named twice"):
        A.restricted([0, 1, 0])
    with pytest.raises(ValueError, match=r"mask of coordinates must have shape \(4,\), got \(3,\)"):
        A.restricted(torch.ones(3, dtype=torch.bool))


def test_arithmetic_of_a_hessian(net: object) -> None:
    point = net()  # type: ignore[operator]  # a fixture that builds
    with Hessian(point.land, point.theta) as H:
        made = (2 * H).restricted(slice(0, 10)).shifted(1.0)
        truth = 2 * point.dense()[:10, :10] + torch.eye(10, dtype=torch.float64)
        torch.testing.assert_close(made.to_dense(), truth, rtol=1e-9, atol=1e-10)
        assert made.cost == H.cost
