"""Lennard-Jones clusters against autograd and the energies that the literature prints."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths.descent import descend
from thalweg.zoo import LENNARD_JONES_MINIMA, lennard_jones

D = torch.float64


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("atoms", [2, 3, 4, 7])
def test_derivatives_are_those_of_autograd(atoms: int) -> None:
    land = lennard_jones(atoms)
    naive = FunctionLandscape(land.f, land.dim)
    generator = _random(atoms)
    thetas = torch.stack([land.start(generator) for _ in range(3)])
    losses, gradients = land.value_and_gradient(thetas)
    expected = naive.value_and_gradient(thetas)
    assert torch.allclose(losses, expected[0], rtol=1e-12)
    assert torch.allclose(gradients, expected[1], rtol=1e-10, atol=1e-9)
    vectors = torch.randn(2, 3, land.dim, generator=generator, dtype=D)
    with land.at(thetas[0]) as point, naive.at(thetas[0]) as other:
        assert torch.allclose(point.gradient, other.gradient, rtol=1e-10, atol=1e-9)
        assert torch.allclose(point.loss, other.loss, rtol=1e-12)
        assert torch.allclose(point.hvp(vectors), other.hvp(vectors), rtol=1e-10, atol=1e-8)
    assert land.cost.gradients == 4
    assert land.cost.hvps == 6


@pytest.mark.parametrize(("atoms", "dim"), [(2, 1), (3, 3), (4, 6), (7, 15), (13, 33)])
def test_no_rigid_motion_is_left(atoms: int, dim: int) -> None:
    land = lennard_jones(atoms)
    assert land.dim == dim
    theta = land.start(_random(1))
    placed = land.positions(theta)
    assert placed[0].tolist() == [0, 0, 0]
    assert placed[1, 1:].tolist() == [0, 0]
    assert float(placed[1, 0]) > 0
    if atoms > 2:
        assert float(placed[2, 2]) == 0
        assert float(placed[2, 1]) > 0
    apart = torch.pdist(placed)
    assert float(apart.min()) > 0.8
    turn = torch.linalg.qr(torch.randn(3, 3, generator=_random(2), dtype=D)).Q
    turn = turn * torch.linalg.det(turn)
    again = land.coordinates(placed @ turn + torch.randn(3, generator=_random(3), dtype=D))
    assert torch.allclose(again, theta, atol=1e-10)


@pytest.mark.parametrize(
    ("atoms", "starts"), [(2, 2), (3, 3), (4, 4), pytest.param(5, 6, marks=pytest.mark.slow)]
)
def test_small_clusters_have_one_isomer(atoms: int, starts: int) -> None:
    land, generator = lennard_jones(atoms), _random(0)
    ends = [descend(land, land.start(generator), stride=0.2) for _ in range(starts)]
    best = min(ends, key=lambda end: end.loss)
    assert best.converged
    assert best.loss == pytest.approx(land.energies[0], abs=1e-6)


def test_signature_knows_an_isomer_by_any_order_and_mirror_image() -> None:
    land = lennard_jones(6)
    one = land.start(_random(4))
    order = torch.randperm(6, generator=_random(5))
    mirrored = land.positions(one)[order] * torch.tensor([1.0, 1.0, -1.0], dtype=D)
    other = land.coordinates(mirrored)
    assert not torch.allclose(one, other, atol=1e-3)
    assert float(land.loss(one)) == pytest.approx(float(land.loss(other)), rel=1e-12)
    assert land.same_isomer(one, other)
    assert not land.same_isomer(one, land.start(_random(6)))
    both: Tensor = land.distances_signature(torch.stack([one, other]))
    assert both.shape == (2, 15)
    assert torch.allclose(both[0], both[1], atol=1e-12)


@pytest.mark.slow
def test_six_atoms_have_two_isomers_and_thirteen_an_icosahedron() -> None:
    land, generator = lennard_jones(6), _random(0)
    found = {
        round(end.loss, 5)
        for end in (descend(land, land.start(generator), stride=0.2) for _ in range(25))
        if end.converged
    }
    assert found == {round(energy, 5) for energy in land.energies}
    land = lennard_jones(13)
    golden = (1 + 5**0.5) / 2
    ring = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    corners = [p[i:] + p[:i] for p in ring for i in range(3)]
    shell = 0.57 * torch.tensor([(0.0, 0.0, 0.0), *corners], dtype=D)
    end = descend(land, land.coordinates(shell), stride=0.1, tol=1e-7)
    assert end.loss == pytest.approx(LENNARD_JONES_MINIMA[13][0], abs=1e-6)


def test_thirty_eight_atoms_have_two_funnels() -> None:
    """A truncated octahedron, and the upper 38 of an icosahedron's 55; both true minima."""
    land = lennard_jones(38)
    golden = (1 + 5**0.5) / 2
    odd = [p for p in itertools.product(range(-3, 4), repeat=3) if sum(p) % 2]
    octahedron = [p for p in odd if sum(map(abs, p)) <= 3 and max(map(abs, p)) <= 2]
    ring = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    corners = torch.tensor([p[i:] + p[:i] for p in ring for i in range(3)], dtype=D)
    pairs = itertools.combinations(corners, 2)
    edges = torch.stack([a + b for a, b in pairs if float((a - b).norm()) < 3])
    whole = 0.57 * torch.cat([torch.zeros(1, 3, dtype=D), corners, 2 * corners, edges])
    assert len(whole) == 55
    part = whole[(whole @ corners[0]).argsort(descending=True)[:38]]
    for energy, shape in zip(
        land.energies, (0.79 * torch.tensor(octahedron, dtype=D), part), strict=True
    ):
        assert len(shape) == 38
        end = descend(land, land.coordinates(shape), stride=0.1, tol=1e-7)
        assert end.loss == pytest.approx(energy, rel=1e-8)
        lowest = torch.linalg.eigvalsh(torch.autograd.functional.hessian(land.f, end.theta))[0]
        assert float(lowest) > 0.1


def test_refusals(unchecked: None) -> None:
    with pytest.raises(ValueError, match="at least 2 atoms, got 1"):
        lennard_jones(1)
    land = lennard_jones(3)
    assert land.merges == ()
    with (
        pytest.raises(ValueError, match="NaN or infinite"),
        land.at(torch.tensor([float("nan"), 1.0, 1.0], dtype=D)),
    ):
        pass
    with pytest.raises(ValueError, match="3 coordinates"):
        land.loss(torch.zeros(4, dtype=D))
