"""Factored landscapes against brute force: ends, floors, passes and their index."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from thalweg.paths import string
from thalweg.paths.separation import Separator, separates
from thalweg.zoo import (
    Factored,
    deep_linear,
    matrix_factor,
    scalar_linear_net,
    sphere_form,
    swap_path,
    tanh_swap,
    three_cycle,
    two_relu_swap,
    venturi_valley,
)

KNOWN: dict[str, Callable[[], Factored]] = {
    "deep linear": lambda: deep_linear([2.0, 1.5, 1.0], seed=1),
    "deeper linear": lambda: deep_linear([2.0, 1.0], depth=3, seed=2),
    "matrix factor": lambda: matrix_factor([3.0, 2.0], seed=3),
    "matrix factor, larger": lambda: matrix_factor([3.0, 2.0], size=4, seed=3),
    "scalar net": lambda: scalar_linear_net(0.3),
    "sphere": lambda: sphere_form([1.0, 2.0, 4.0, 7.0]),
    "Venturi": venturi_valley,
    "ReLU swap": lambda: two_relu_swap((1.0, 2.0), seed=4),
}


def lowest_on(land: Factored, tries: int = 4) -> float:
    """Search a separating set for the lowest loss, by a penalty on the side."""
    wall = land.separators(*land.ends(0))[0]
    g = torch.Generator().manual_seed(0)
    found = [_descend(land, wall, land.start(g)) for _ in range(tries)]
    return min(loss for loss, side in found if abs(side) < 1e-4)


def _descend(land: Factored, wall: Separator, theta: torch.Tensor) -> tuple[float, float]:
    theta = theta.requires_grad_()
    for weight in (1.0, 1e2, 1e4, 1e6):
        best = torch.optim.LBFGS([theta], max_iter=60, line_search_fn="strong_wolfe")

        def value(best: torch.optim.LBFGS = best, weight: float = weight) -> torch.Tensor:
            best.zero_grad()
            total: torch.Tensor = land.f(theta) + weight * wall.side(theta) ** 2
            total.backward()
            return total

        best.step(value)
    return float(land.f(theta.detach())), float(wall.side(theta.detach()))


@pytest.mark.parametrize("name", KNOWN)
def test_ends_lie_where_they_should(name: str) -> None:
    land = KNOWN[name]()
    for seed in range(5):
        a, b = land.ends(seed)
        assert any(separates(wall, a, b) for wall in land.separators(a, b))
        assert float(land.gradient(torch.stack([a, b])).abs().max()) < 1e-12
        base = max(land.loss(torch.stack([a, b])).tolist())
        assert land.barrier is not None
        floor = max(wall.floor for wall in land.separators(a, b))
        assert floor - base == pytest.approx(land.barrier, rel=1e-12)
        near = land.ends(seed, apart=False)
        assert not any(separates(wall, *near) for wall in land.separators(*near))


@pytest.mark.parametrize("name", KNOWN)
def test_floors_hold_on_their_sets(name: str) -> None:
    """That they are attained is shown by the strings below."""
    land = KNOWN[name]()
    floor = land.separators(*land.ends(0))[0].floor
    assert lowest_on(land) >= floor * (1 - 1e-3)


@pytest.mark.parametrize("name", KNOWN)
def test_critical_points(name: str) -> None:
    land = KNOWN[name]()
    for point in land.critical_points:
        theta = land.vector(point)
        assert float(land.gradient(theta).abs().max()) < 1e-12
        assert float(land.loss(theta)) == pytest.approx(point.value, rel=1e-12)
        hessian = torch.autograd.functional.hessian(land.f, theta)
        assert int((torch.linalg.eigvalsh(hessian) < -1e-9).sum()) == point.index


@pytest.mark.parametrize("name", KNOWN)
def test_a_string_attains_the_barrier(name: str) -> None:
    land = KNOWN[name]()
    a, b = land.ends(0)
    path = string(land, a, b, seed=0, max_gradients=4000)
    floor = max(wall.floor for wall in land.separators(a, b))
    assert land.barrier is not None
    assert abs(path.maximum.lower - floor) <= 1e-6 * land.barrier


@pytest.mark.parametrize(
    "wide",
    [
        deep_linear([2.0, 1.0], width=3),
        deep_linear([2.0, 1.0], width=3, depth=3),
        matrix_factor([3.0, 2.0], width=3),
        two_relu_swap(units=3),
        venturi_valley(units=2),
        tanh_swap(units=3),
    ],
    ids=str,
)
def test_one_unit_more_and_nothing_separates(wide: Factored) -> None:
    a, b = wide.ends(1)
    assert wide.barrier == 0.0
    assert not wide.separators(a, b)
    assert float(wide.loss(b)) < 1e-25


@pytest.mark.parametrize(
    ("land", "outputs"), [(two_relu_swap(units=3), 2), (tanh_swap(units=3), 1)]
)
def test_the_swap_path_never_changes_the_network(land: Factored, outputs: int) -> None:
    for seed in range(3):
        corners = swap_path(*land.ends(seed), outputs=outputs)
        part = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None, None]
        points = torch.lerp(corners[:-1], corners[1:], part).reshape(-1, land.dim)
        assert float(land.loss(points).max()) < 1e-28
        ends = land.ends(seed)
        assert torch.equal(corners[0], ends[0])
        assert torch.equal(corners[-1], ends[1])


def test_tanh_minima_are_isolated_at_the_least_width() -> None:
    land = tanh_swap()
    a, _ = land.ends(0)
    assert land.barrier is None
    assert float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(land.f, a))[0]) > 1e-4


def test_the_cycle() -> None:
    land = three_cycle()
    for seed in range(5):
        a, b = land.ends(seed)
        assert float(land.loss(torch.stack([a, b])).max()) < 1e-28
        assert separates(land.separators(a, b)[0], a, b)
        assert not separates(land.separators(a, b)[0], *land.ends(seed, apart=False))


def test_the_cycles_floor_by_brute_force() -> None:
    """Over 40,000 pairs of rows of H, the best output leaves no less than 1/4, but nearly that."""
    g = torch.Generator().manual_seed(0)
    angle = torch.arange(3) * (2 * torch.pi / 3)
    points = torch.stack([angle.cos(), angle.sin()], 1).double()
    turn = 2 * torch.pi * torch.rand(40_000, 2, generator=g, dtype=torch.float64)
    rows = torch.relu(torch.stack([turn.cos(), turn.sin()], -1) @ points.T)
    normal = torch.linalg.cross(rows[:, 0], rows[:, 1])
    size = torch.linalg.vector_norm(normal, dim=1)
    normal = normal[size > 1e-6] / size[size > 1e-6, None]
    left = (points.roll(-1, 0).T @ normal.T).square().sum(0) / 2  # |Y n|^2 / 2
    assert float(left.min()) >= 0.25
    assert float(left.min()) < 0.2501


def test_errors() -> None:
    with pytest.raises(ValueError, match="singular_values must be a vector of positive numbers"):
        deep_linear([1.0, 0.0])
    with pytest.raises(ValueError, match="depth must be at least 2 and width at least 2, got 1, 2"):
        deep_linear([2.0, 1.0], depth=1)
    with pytest.raises(ValueError, match="width and size must be at least 2, got 1 and 2"):
        matrix_factor([2.0, 1.0], width=1)
    with pytest.raises(ValueError, match="decay must lie strictly between 0 and 1, got 1"):
        scalar_linear_net(1.0)
    with pytest.raises(ValueError, match="two or more distinct numbers"):
        sphere_form([1.0, 1.0])
    with pytest.raises(ValueError, match="needs 0 < a < b and 1 or 2 units"):
        venturi_valley(2.0, 1.0)
    with pytest.raises(ValueError, match="two positive scales and 2 or 3 units"):
        two_relu_swap(units=4)
    with pytest.raises(ValueError, match="needs 2 or 3 units, got 1"):
        tanh_swap(units=1)
