"""Orthogonally decomposable tensors: closed form against dense Hessians and Newton's method."""

from __future__ import annotations

import pytest
import torch

from thalweg.curvature import Hessian
from thalweg.theory.tensors.odeco import OdecoTensor
from thalweg.theory.tensors.power import decompose, power_iteration

F64 = torch.float64


def cases():
    basis = torch.linalg.qr(
        torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    )
    return [
        OdecoTensor([1.0, 1.0, 1.0], 4),
        OdecoTensor([3.0, 2.0, 0.5, 1.0], 3, random_basis=True, seed=1),
        OdecoTensor([1.0, -2.0, 0.5], 3, random_basis=True, seed=2),
        OdecoTensor([1.0, -2.0, 0.5, -0.7], 4, random_basis=True, seed=3),
        OdecoTensor([1.0, 2.0], 5, random_basis=True, seed=4),
        OdecoTensor([2.0, 1.0, 1.5], 6, random_basis=True, seed=5),
        OdecoTensor([1.0, 2.0, 3.0], 4, basis=basis[0]),
    ]


def tangent_spectrum(land, theta):
    """The Hessian's eigenvalues on the sphere, by a naive dense derivative."""
    dense = torch.autograd.functional.hessian(land.f, theta)
    frame = torch.linalg.qr(torch.cat([theta[:, None], torch.eye(len(theta), dtype=F64)], 1))[0]
    across = frame[:, 1:]
    return torch.linalg.eigvalsh(across.T @ dense @ across)


@pytest.mark.parametrize("land", cases(), ids=lambda land: f"p={land.p},r={len(land.values)}")
def test_every_point_is_critical_with_its_loss_and_index(land):
    found = land.critical_points()
    assert torch.allclose(land.loss(found.points), found.losses, atol=1e-12)
    assert float(land.gradient(found.points).abs().max()) < 1e-11
    for point, index in zip(found.points, found.indices.tolist(), strict=True):
        spectrum = tangent_spectrum(land, point)
        assert int((spectrum < -1e-9).sum()) == index
        assert float(spectrum.abs().min()) > 1e-3  # not degenerate
    gaps = torch.cdist(found.points, found.points) + 9 * torch.eye(len(found), dtype=F64)
    assert float(gaps.min()) > 1e-3  # distinct


@pytest.mark.parametrize("land", cases(), ids=lambda land: f"p={land.p},r={len(land.values)}")
def test_counts_equal_the_enumeration_and_euler_s_number(land):
    found, (n, r) = land.critical_points(), land.basis.shape
    counted = torch.bincount(found.indices).tolist()
    assert {k: c for k, c in enumerate(counted) if c} == land.counts()
    if r == n:  # else the sphere at loss 0 has its share
        assert sum((-1) ** k * c for k, c in land.counts().items()) == 1 + (-1) ** (n - 1)


def test_the_published_counts():
    for n in (2, 5, 9):
        counts = OdecoTensor([1.0] * n, 4).counts()
        assert sum(counts.values()) == 3**n - 1
        assert counts[0] == 2 * n
    assert sum(OdecoTensor([1.0] * 6, 3).counts().values()) == 2 * (2**6 - 1)
    assert sum(OdecoTensor([1.0] * 200, 4).counts().values()) == 3**200 - 1


@pytest.mark.slow
def test_newton_from_many_starts_finds_these_points_and_no_others():
    land = OdecoTensor([1.0, 0.6, 1.7], 4, random_basis=True, seed=6)
    known = land.critical_points().points
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([land.start(generator) for _ in range(600)])
    curvature = torch.func.vmap(torch.func.jacrev(torch.func.grad(land.f)))
    for _ in range(40):
        unit = x[:, :, None] @ x[:, None]
        dense = curvature(x) + unit  # of degree zero, so that x itself is in its null space
        across = torch.eye(3, dtype=F64) - unit
        x = x - torch.linalg.solve(across @ dense @ across + unit, land.gradient(x))
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    x = x[torch.linalg.vector_norm(land.gradient(x), dim=1) < 1e-10]
    gaps, which = torch.cdist(x, known).min(1)
    assert float(gaps.max()) < 1e-7
    seen = set(which.tolist())
    assert len(seen) == len(known) == 26


def test_it_is_a_landscape_of_degree_zero(generator):
    land = OdecoTensor([1.0, 2.0, 3.0], 3, random_basis=True, seed=0)
    x = torch.randn(3, dtype=F64, generator=generator)
    assert torch.allclose(land.loss(5 * x), land.loss(x))
    with land.at(x) as point:
        dense = torch.stack([point.hvp(row) for row in torch.eye(3, dtype=F64)])
    assert torch.allclose(dense, torch.autograd.functional.hessian(land.f, x), atol=1e-12)
    assert torch.allclose(Hessian(land, x) @ x, -land.gradient(x), atol=1e-12)
    naive = -torch.einsum("ijk,i,j,k->", land.tensor(), x, x, x) / x.norm() ** 3
    assert torch.allclose(land.loss(x), naive)


@pytest.mark.parametrize("p", [3, 4, 5])
def test_power_iteration_ends_at_the_component_that_the_order_predicts(p, generator):
    land = OdecoTensor([1.0, 2.0, 0.7, 1.3], p, random_basis=True, seed=p)
    starts = torch.randn(200, 4, dtype=F64, generator=generator)
    ends = power_iteration(land.tensor(), starts)
    assert bool(ends.converged.all())
    assert "200 of 200 starts converged" in str(ends)
    reached = (ends.vectors @ land.basis).abs().argmax(-1)
    assert torch.equal(reached, land.component(starts))
    assert torch.allclose(ends.values.abs(), land.values[reached], atol=1e-9)


def test_equal_weights_share_the_starts_equally(generator):
    land = OdecoTensor([1.0] * 5, 4)
    starts = torch.randn(20_000, 5, dtype=F64, generator=generator)
    shares = torch.bincount(land.component(starts)) / 20_000
    assert float((shares - 0.2).abs().max()) < 4 * (0.16 / 20_000) ** 0.5


def test_a_component_lost_to_the_cap_is_reported():
    land = OdecoTensor([1.0, 1.0], 3)
    slow = power_iteration(land.tensor(), torch.tensor([[1.0, 1.0 - 1e-12]], dtype=F64), steps=3)
    held = power_iteration(
        land.tensor(), torch.tensor([[1.0, 0.9]], dtype=F64), steps=1, tolerance=1e-14
    )
    assert bool(slow.converged.all())  # it sits near the saddle, whose residual is small too
    assert not bool(held.converged.any())
    assert "raise steps" in str(held)


def test_decomposition_recovers_weights_and_components():
    land = OdecoTensor([3.0, 2.0, 1.0, 0.5], 3, random_basis=True, seed=7)
    found = decompose(land.tensor(), 4, seed=0)
    order = found.values.abs().argsort(descending=True)
    assert torch.allclose(found.values[order].abs(), land.values, atol=1e-9)
    overlap = (found.vectors[:, order] * land.basis).sum(0).abs()
    assert torch.allclose(overlap, torch.ones(4, dtype=F64), atol=1e-9)
    assert found.relative < 1e-9
    assert found.orthogonality < 1e-8


def test_decomposition_errors_follow_the_noise():
    land = OdecoTensor([3.0, 2.0, 1.0], 3, random_basis=True, seed=8)
    noise = torch.randn(3, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    noise = sum(noise.permute(order) for order in orders) / 6
    errors = []
    for size in (1e-2, 1e-4):
        found = decompose(land.tensor() + size * noise, 3, seed=0)
        order = found.values.abs().argsort(descending=True)
        errors.append(float((found.values[order].abs() - land.values).abs().max()))
        assert errors[-1] < 5 * size
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)


def test_a_tensor_that_is_not_explained_is_told(generator):
    noise = OdecoTensor([1.0] * 8, 3, random_basis=True, seed=0).tensor()
    assert "most of the tensor is not explained" in str(decompose(noise, 1, seed=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 0.0], 3), "none zero"),
        (([1.0, 2.0], 2), "at 2 the points are eigenvectors"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        OdecoTensor(*arguments)


def test_more_refusals():
    skew = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=F64)
    with pytest.raises(ValueError, match=r"orthonormal; they fail by 0\.5"):
        OdecoTensor([1.0, 2.0], 3, basis=skew)
    with pytest.raises(ValueError, match="not both"):
        OdecoTensor([1.0, 2.0], 3, basis=torch.eye(2, dtype=F64), random_basis=True)
    with pytest.raises(ValueError, match=r"counts\(\) tells them by index"):
        OdecoTensor([1.0] * 20, 4).critical_points()
    lopsided = torch.zeros(2, 2, 2, dtype=F64)
    lopsided[0, 0, 1] = 1.0
    with pytest.raises(ValueError, match="not symmetric"):
        decompose(lopsided, 1)
    with pytest.raises(ValueError, match="must be positive"):
        decompose(torch.zeros(2, 2, 2, dtype=F64), 0)
