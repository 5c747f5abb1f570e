"""Factored landscapes against brute force: ends, floors, passes and their index."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from thalweg.paths import string
from thalweg.paths.separation import separates
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


Chart = Callable[[torch.Tensor], torch.Tensor]  # all of a separating set, by free numbers


def low_rank(free: torch.Tensor, n: int) -> torch.Tensor:
    """Return P Q with P one column short: every singular matrix is such a product."""
    p, q = free.split(n * (n - 1))
    return p.view(n, n - 1) @ q.view(n - 1, n)


def charts(name: str, land: Factored) -> list[tuple[Chart, int]]:
    """Parametrise each separating set exactly, with the number of parameters.

    A penalty on the side would not do: det W_1 can be as small as one likes at no loss,
    with W_2 as large as needed.
    """
    match name:
        case "deep linear":

            def two(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
                return torch.cat([first.flatten(), second.flatten()])

            return [
                (lambda z: two(low_rank(z[:12], 3), z[12:]), 21),
                (lambda z: two(z[12:], low_rank(z[:12], 3)), 21),
            ]
        case "deeper linear":

            def layer(k: int) -> Chart:
                return lambda z: torch.cat(
                    [z[4 : 4 + 4 * k], low_rank(z[:4], 2).flatten(), z[4 + 4 * k :]]
                )

            return [(layer(k), 12) for k in range(3)]
        case "matrix factor" | "matrix factor, larger":
            n = land.dim // 2
            frame = torch.linalg.qr(land.ends(0)[0].view(n, 2), mode="complete").Q

            def factor(z: torch.Tensor) -> torch.Tensor:
                return (frame @ torch.cat([low_rank(z[:4], 2), z[4:].view(n - 2, 2)])).flatten()

            return [(factor, 2 * n)]
        case "scalar net":
            return [(lambda z: torch.cat([z, -z]), 1)]
        case "sphere":
            return [(lambda z: torch.cat([z.new_zeros(1), z]), 3)]
        case "Venturi":
            return [(lambda z: torch.cat([z, z.new_zeros(1)]), 2)]
        case "ReLU swap":
            return [(lambda z: torch.cat([low_rank(z[:4], 2).flatten(), z[4:]]), 8)]
    raise AssertionError(name)


def lowest_on(land: Factored, chart: Chart, free: int, tries: int = 6) -> float:
    """Search a set for the lowest loss, from a few random starts."""
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(tries):
        z = torch.randn(free, generator=g, dtype=torch.float64).requires_grad_()
        descent = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

        def value(z: torch.Tensor = z, descent: torch.optim.LBFGS = descent) -> torch.Tensor:
            descent.zero_grad()
            loss = land.f(chart(z))
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
            return loss

        descent.step(value)  # type: ignore[no-untyped-call] # torch leaves it so
        found.append(float(land.f(chart(z.detach()))))
    return min(found)


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
def test_floors_hold_on_their_sets_and_are_attained(name: str) -> None:
    land = KNOWN[name]()
    walls = land.separators(*land.ends(0))
    for wall, (chart, free) in zip(walls, charts(name, land), strict=True):
        g = torch.Generator().manual_seed(1)
        some = [chart(torch.randn(free, generator=g, dtype=torch.float64)) for _ in range(50)]
        assert max(abs(float(wall.side(theta))) for theta in some) < 1e-12  # the chart is right
        assert min(float(land.f(theta)) for theta in some) >= wall.floor
        low = lowest_on(land, chart, free)
        assert low >= wall.floor * (1 - 1e-12)
        assert low <= wall.floor * (1 + 1e-3)


def test_a_floor_too_high_would_be_seen() -> None:
    land = KNOWN["deep linear"]()
    (wall, _), (chart, free) = land.separators(*land.ends(0)), charts("deep linear", land)[0]
    assert lowest_on(land, chart, free) < wall.floor * 1.01


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


def left_in_the_cycle(rows: torch.Tensor) -> torch.Tensor:
    """The least loss of three_cycle where H has two rows: |Y n|^2 / 2, n normal to both."""
    angle = torch.arange(3, dtype=torch.float64) * (2 * torch.pi / 3)
    targets = torch.stack([angle.cos(), angle.sin()], 1).roll(-1, 0)
    normal = torch.linalg.cross(rows[:, 0], rows[:, 1])
    normal = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
    return (normal @ targets).square().sum(1) / 2


def test_the_cycles_floor_by_brute_force() -> None:
    """No pair of rows leaves less than 1/4; (e, 1, 0) and (0, 1, e) leave 1/4 as e falls."""
    g = torch.Generator().manual_seed(0)
    angle = torch.arange(3, dtype=torch.float64) * (2 * torch.pi / 3)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    turn = 2 * torch.pi * torch.rand(40_000, 2, generator=g, dtype=torch.float64)
    rows = torch.relu(torch.stack([turn.cos(), turn.sin()], -1) @ points.T)
    assert float(left_in_the_cycle(rows).nan_to_num(1.0).min()) >= 0.25
    for e in (1e-1, 1e-2, 1e-3, 1e-4):
        near = torch.tensor([[[e, 1.0, 0.0], [0.0, 1.0, e]]], dtype=torch.float64)
        left = float(left_in_the_cycle(near))
        assert left == pytest.approx(0.75 * (1 - (2 - e) ** 2 / (6 + 3 * e**2)), rel=1e-10)
        assert 0 < left - 0.25 < e


def test_the_cycle_comes_near_its_floor_with_ever_larger_weights() -> None:
    """A network on det H = 0 whose loss is within 1e-3 of the infimum, which none attains."""
    land, e = three_cycle(), 1e-3
    wall = land.separators(*land.ends(0))[0]
    angle = torch.arange(3, dtype=torch.float64) * (2 * torch.pi / 3)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    active = torch.tensor([[e, 1.0, -1 - e], [-1 - e, 1.0, e], [e, 1.0, -1 - e]]).double()
    w = torch.linalg.lstsq(points, active.T).solution.T  # rows of activations sum to 0
    hidden = torch.relu(w @ points.T)
    targets = points.roll(-1, 0)
    v = torch.linalg.lstsq(hidden.T, targets, driver="gelsd").solution.T
    theta = torch.cat([w.flatten(), v.flatten()])
    assert abs(float(wall.side(theta))) < 1e-15
    assert wall.floor < float(land.f(theta)) < wall.floor + 1e-3
    assert float(v.abs().max()) > 100


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
