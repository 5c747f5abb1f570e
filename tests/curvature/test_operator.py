"""Operators: products against dense matrices, the life of a Hessian's graph, bad input."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.curvature import Hessian, MatrixOperator
from thalweg.curvature.operator import finite_matmat
from thalweg.estimate import Cost
from thalweg.landscape import FunctionLandscape


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_hessian_is_the_dense_hessian(net):
    point = net()
    with Hessian(point.land, point.theta) as H:
        dense = point.dense()
        torch.testing.assert_close(H.to_dense(), dense, rtol=1e-9, atol=1e-11)
        block = random(H.dim, 7)
        torch.testing.assert_close(H @ block, dense @ block, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(H.matmat(block), H @ block)
        torch.testing.assert_close(H @ block[:, 0], dense @ block[:, 0], rtol=1e-9, atol=1e-11)


@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_products_are_linear_and_symmetric(seed, factor):
    land = FunctionLandscape(lambda x: (x.sin() * x.roll(1)).sum() + (x**4).mean(), dim=6)
    theta, x, y = random(3, 6, seed=seed)
    with Hessian(land, theta) as H:
        torch.testing.assert_close(H @ (x + factor * y), H @ x + factor * (H @ y))
        torch.testing.assert_close(x @ (H @ y), y @ (H @ x))


def test_two_hessians_of_one_landscape_are_equal(net):
    """PyHessian's second object on a model returns twice the Hessian (.grad accumulates)."""
    point = net()
    vector = random(point.land.dim)
    with Hessian(point.land, point.theta) as first, Hessian(point.land, point.theta) as second:
        expected = first @ vector
        assert torch.equal(second @ vector, expected)
        assert torch.equal(first @ vector, expected)


def test_hessian_is_lazy_and_its_products_share_one_gradient(net):
    point = net()
    before = point.land.cost
    H = Hessian(point.land, point.theta)
    assert H.cost == Cost()
    assert point.land.cost == before
    H @ random(H.dim)
    H @ random(H.dim, 4)
    assert H.cost == Cost(losses=1, gradients=1, hvps=5, passes=3)
    assert point.land.cost - before == H.cost


def test_hessian_counts_only_its_own_work(net):
    point = net()
    H = Hessian(point.land, point.theta)
    H @ random(H.dim)
    spent = H.cost
    point.land.gradient(point.theta)
    assert H.cost == spent


def test_hessian_keeps_its_point_when_the_caller_changes_theta(net):
    point = net()
    theta = point.theta.clone()
    H = Hessian(point.land, theta)
    theta.zero_()
    torch.testing.assert_close(H.to_dense(), point.dense(), rtol=1e-9, atol=1e-11)


class Watched(FunctionLandscape):
    """A landscape that counts how many of its points are open."""

    opened = 0

    def at(self, theta):
        outer = super().at(theta)
        land = self

        class Manager:
            def __enter__(self):
                land.opened += 1
                return outer.__enter__()

            def __exit__(self, *error):
                land.opened -= 1
                return outer.__exit__(*error)

        return Manager()


def test_closing_frees_the_point_and_refuses_products():
    land = Watched(lambda x: (x**4).sum(), dim=3)
    H = Hessian(land, torch.ones(3, dtype=torch.float64))
    H @ torch.ones(3, dtype=torch.float64)
    assert land.opened == 1
    H.close()
    assert land.opened == 0
    assert H.closed
    H.close()
    with pytest.raises(RuntimeError, match="closed and its graph is freed; build a new one"):
        H @ torch.ones(3, dtype=torch.float64)


def test_a_with_block_and_an_exception_close():
    land = Watched(lambda x: (x**4).sum(), dim=3)
    theta = torch.ones(3, dtype=torch.float64)

    def fail():
        with Hessian(land, theta) as H:
            H @ theta
            assert land.opened == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert land.opened == 0


def test_garbage_collection_closes():
    land = Watched(lambda x: (x**4).sum(), dim=3)
    H = Hessian(land, torch.ones(3, dtype=torch.float64))
    H @ torch.ones(3, dtype=torch.float64)
    gone = weakref.ref(H)
    del H
    gc.collect()
    assert gone() is None
    assert land.opened == 0


def test_products_leave_no_gradient_behind():
    theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with Hessian(FunctionLandscape(lambda x: (x**4).sum(), dim=3), theta) as H:
        product = H @ torch.ones(3, dtype=torch.float64)
    assert theta.grad is None
    assert not product.requires_grad


def test_products_work_without_grad_mode(net):
    point = net()
    with torch.no_grad(), Hessian(point.land, point.theta) as H:
        torch.testing.assert_close(H.to_dense(), point.dense(), rtol=1e-9, atol=1e-11)


def test_to_dense_refuses_what_is_too_large():
    land = FunctionLandscape(lambda x: (x**2).sum(), dim=5000)
    H = Hessian(land, torch.zeros(5000, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"5000 x 5000 matrix takes 5000 products and 0.186 GiB"):
        H.to_dense()
    assert H.cost == Cost()
    assert torch.equal(MatrixOperator(torch.eye(3)).to_dense(limit=3), torch.eye(3))


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float64, np.float64), (torch.float32, np.float32)]
)
def test_to_scipy(dtype, kind):
    matrix = random(20, 20, dtype=dtype)
    matrix = matrix + matrix.T
    theirs = MatrixOperator(matrix).to_scipy()
    assert theirs.shape == (20, 20)
    assert theirs.dtype == kind
    block = random(20, 3, seed=1, dtype=dtype).numpy()
    np.testing.assert_allclose(theirs @ block, matrix.numpy() @ block, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(
        theirs @ block[:, 0], matrix.numpy() @ block[:, 0], rtol=2e-5, atol=1e-5
    )
    np.testing.assert_allclose(theirs.H @ block, theirs @ block, rtol=1e-7)


def test_scipy_solves_with_a_hessian(net):
    point = net()
    with Hessian(point.land, point.theta) as H:
        theirs = H.to_scipy()
        largest = scipy.sparse.linalg.eigsh(theirs, k=3, which="LA", return_eigenvectors=False)
    truth = torch.linalg.eigvalsh(point.dense())[-3:].numpy()
    np.testing.assert_allclose(largest, truth, rtol=1e-8)


def test_theta_that_cannot_be(net):
    point = net()
    sick = point.theta.clone()
    sick[[3, 5]] = torch.tensor([torch.nan, torch.inf], dtype=torch.float64)
    with pytest.raises(ValueError, match=f"holds 2 NaN or infinite values among {len(sick)}"):
        Hessian(point.land, sick)
    with pytest.raises(ValueError, match=r"theta has shape \(4,\), but this landscape has 147"):
        Hessian(point.land, point.theta[:4])
    with pytest.raises(TypeError, match=r"theta is torch.float32.*pass theta.to\(torch.float64\)"):
        Hessian(point.land, point.theta.float())


def test_vectors_that_do_not_fit(unchecked):
    A = MatrixOperator(torch.eye(4))
    with pytest.raises(ValueError, match=r"is 4 x 4 and takes shape \(4,\) or \(4, k\), got \(5,"):
        A @ torch.ones(5)
    with pytest.raises(ValueError, match=r"got \(3, 4\); these look like rows: pass vectors.T"):
        A @ torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"got \(4, 2, 2\)"):
        A @ torch.ones(4, 2, 2)
    with pytest.raises(ValueError, match=r"columns of shape \(4, k\), got \(4,\)"):
        A.matmat(torch.ones(4))
    with pytest.raises(TypeError, match=r"vectors are torch.float64.*pass vectors.to\(torch.float"):
        A @ torch.ones(4, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"not ndarray; to_scipy\(\) takes NumPy arrays"):
        A @ np.ones(4)
    with pytest.raises(ValueError, match="vectors are on meta, but this operator is on cpu"):
        A @ torch.ones(4, device="meta")


def test_matrices_that_cannot_be():
    with pytest.raises(ValueError, match=r"must be square, got shape \(2, 3\)"):
        MatrixOperator(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"not symmetric: entries differ .* by up to 1"):
        MatrixOperator(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="holds 1 NaN or infinite entries"):
        MatrixOperator(torch.tensor([[torch.nan, 1.0], [1.0, 0.0]]))
    with pytest.raises(TypeError, match=r"not torch.int64"):
        MatrixOperator(torch.eye(2, dtype=torch.int64))


def test_matrix_operator_takes_numpy_and_copies():
    array = np.eye(3)
    A = MatrixOperator(array)
    array[:] = 7
    assert torch.equal(A @ torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert A.cost == Cost(hvps=1, passes=1)


def test_a_product_that_is_not_finite_is_refused_by_name():
    kink = FunctionLandscape(lambda x: (x.abs() ** 1.5).sum(), dim=2)
    H = Hessian(kink, torch.tensor([0.0, 1.0], dtype=torch.float64))
    vector = torch.ones(2, 1, dtype=torch.float64)
    assert not torch.isfinite(H @ vector).all()
    with pytest.raises(FloatingPointError, match=r"1 of 2 entries of a product with Hessian\(2"):
        finite_matmat(H, vector)
