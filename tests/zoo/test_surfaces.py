"""The analytic surfaces against Newton, dense Hessians and steepest descent."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from thalweg.landscape import Landscape
from thalweg.zoo import (
    MULLER_BROWN_CRITICAL_POINTS,
    SIX_HUMP_CAMELBACK_CRITICAL_POINTS,
    CriticalPoint,
    Surface,
    double_well,
    eggcarton,
    muller_brown,
    quadratic,
    six_hump_camelback,
)

SURFACES: dict[str, Callable[[], Surface]] = {
    "muller_brown": muller_brown,
    "six_hump_camelback": six_hump_camelback,
    "double_well": double_well,
    "double_well, lopsided": lambda: double_well(3, left=1.0, right=2.0, height=3.0, stiffness=2.0),
    "double_well, the other way": lambda: double_well(1, left=1.5, right=0.5, height=0.2),
    "eggcarton": eggcarton,
    "eggcarton, three": lambda: eggcarton(3),
    "quadratic": lambda: quadratic([4.0, 1.0, -2.0, -3.0], rotated=True, seed=3, offset=2.0),
}


def dense_hessian(surface: Surface, theta: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.hessian(surface.f, theta)


def check_critical_point(surface: Surface, point: CriticalPoint) -> None:
    """Refuse a point that is not critical, or whose value or index is not the true one."""
    theta = surface.vector(point)
    for _ in range(20):  # Newton's method, from where the facts say it is
        gradient = surface.gradient(theta)
        hessian = dense_hessian(surface, theta)
        theta = theta - torch.linalg.solve(hessian, gradient)
    moved = float((theta - surface.vector(point)).norm())
    assert moved < 1e-9, f"the critical point nearby is {moved:.2e} away"
    slope = float(surface.gradient(surface.vector(point)).norm())
    assert slope < 1e-9, f"the gradient there is {slope:.2e}"
    value = float(surface.loss(theta))
    assert abs(value - point.value) < 1e-6, f"the value is {value:.6f}, not {point.value:.6f}"
    index = int((torch.linalg.eigvalsh(dense_hessian(surface, theta)) < 0).sum())
    assert index == point.index, f"the index is {index}, not {point.index}"


@pytest.mark.parametrize("name", SURFACES)
def test_facts(name: str) -> None:
    surface = SURFACES[name]()
    assert surface.critical_points
    for point in surface.critical_points:
        check_critical_point(surface, point)


def test_the_checker_rejects_what_is_wrong() -> None:
    surface = muller_brown()
    saddle = MULLER_BROWN_CRITICAL_POINTS[4]
    with pytest.raises(AssertionError, match=r"the value is -40\.664844, not -46\.62"):
        check_critical_point(surface, CriticalPoint(saddle.theta, -46.62, 1))
    with pytest.raises(AssertionError, match="the index is 1, not 0"):
        check_critical_point(surface, CriticalPoint(saddle.theta, saddle.value, 0))
    with pytest.raises(AssertionError, match="critical point nearby is"):
        check_critical_point(surface, CriticalPoint((-0.822, 0.624), saddle.value, 1))


def test_published_values() -> None:
    values = [point.value for point in MULLER_BROWN_CRITICAL_POINTS]
    published = [-146.699517, -108.166724, -80.767818, -72.248940, -40.664844]
    assert values == pytest.approx(published, abs=1e-6)
    values = [point.value for point in SIX_HUMP_CAMELBACK_CRITICAL_POINTS]
    published = [-1.031628] * 2 + [-0.215464] * 2 + [2.104250] * 2 + [0.0] + [0.543719] * 2
    published += [2.229357] * 2 + [2.229471] * 2 + [2.496295] * 2
    assert values == pytest.approx(published, abs=1e-6)


def test_camelback_is_complete() -> None:
    """All critical points lie where f_x = 0 gives y and f_y(y) is a polynomial of degree 15."""
    # f_x = 8x - 8.4x^3 + 2x^5 + y = 0, so y = p(x); f_y = x - 8y + 16y^3 = 0.
    p = np.polynomial.Polynomial([0, -8, 0, 8.4, 0, -2])
    x = np.polynomial.Polynomial([0, 1])
    roots = (x - 8 * p + 16 * p**3).roots()
    real = sorted(roots[np.abs(roots.imag) < 1e-7].real)
    assert len(real) == len(SIX_HUMP_CAMELBACK_CRITICAL_POINTS) == 15
    known = sorted(point.theta[0] for point in SIX_HUMP_CAMELBACK_CRITICAL_POINTS)
    assert real == pytest.approx(known, abs=1e-7)


@pytest.mark.parametrize("dim", [0, 7, True, 2.5, "2"])
def test_an_egg_carton_of_no_whole_dimension_is_refused(dim: object, unchecked: None) -> None:
    with pytest.raises(ValueError, match="dim must be a whole number from 1 to 6, got"):
        eggcarton(dim)  # type: ignore[arg-type] # the point


def test_euler_characteristic() -> None:
    """Both double wells, like the camelback, grow at infinity: the signed count is 1."""
    for surface in (six_hump_camelback(), double_well(), double_well(3, left=2.0)):
        assert sum((-1) ** point.index for point in surface.critical_points) == 1


@pytest.mark.parametrize("name", [name for name in SURFACES if name != "quadratic"])
def test_descent_from_each_saddle_finds_the_minima_it_joins(name: str) -> None:
    surface = SURFACES[name]()
    minima = [surface.vector(point).numpy() for point in surface.minima]
    for saddle in surface.saddles:
        theta = surface.vector(saddle)
        unstable = torch.linalg.eigh(dense_hessian(surface, theta)).eigenvectors[:, 0]
        ends = []
        for side in (-1e-4, 1e-4):
            flow = solve_ivp(
                lambda _, x: -surface.gradient(torch.tensor(x)).numpy(),
                (0.0, 200.0),
                (theta + side * unstable).numpy(),
                method="LSODA",
            )
            away = [np.linalg.norm(flow.y[:, -1] - minimum) for minimum in minima]
            assert min(away) < 1e-3
            ends.append(int(np.argmin(away)))
        assert tuple(sorted(ends)) == saddle.joins


@pytest.mark.parametrize("name", SURFACES)
def test_batches_go_through_vmap(name: str) -> None:
    surface = SURFACES[name]()
    assert isinstance(surface, Landscape)
    assert surface.kernel == "vmap"
    rows = torch.stack([surface.vector(point) for point in surface.critical_points] * 2)
    values = torch.stack([surface.f(row) for row in rows])
    torch.testing.assert_close(surface.loss(rows), values, rtol=1e-12, atol=1e-12)
    looped = torch.stack([surface.gradient(row) for row in rows])
    torch.testing.assert_close(surface.gradient(rows), looped, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("surface", "low", "high"),
    [
        (muller_brown(), [-1.5, -0.2], [1.2, 2.0]),
        (six_hump_camelback(), [-2.0, -1.2], [2.0, 1.2]),
        (double_well(2, left=1.0, right=2.0, stiffness=4.0), [-1.5, -1.0], [3.0, 1.0]),
        (eggcarton(), [-1.0, -1.0], [1.0, 1.0]),
    ],
    ids=["muller_brown", "six_hump_camelback", "double_well", "eggcarton"],
)
def test_starts_fill_their_box(surface: Surface, low: list[float], high: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([surface.start(generator) for _ in range(400)])
    corner, opposite = torch.tensor(low).double(), torch.tensor(high).double()
    assert (starts >= corner).all()
    assert (starts <= opposite).all()
    torch.testing.assert_close(
        starts.mean(0), (corner + opposite) / 2, rtol=0, atol=0.1 * float((opposite - corner).max())
    )
    again = surface.start(torch.Generator().manual_seed(0))
    assert torch.equal(again, starts[0])
    for point in surface.minima:
        assert (surface.vector(point) > corner).all()
        assert (surface.vector(point) < opposite).all()


def test_double_well_closed_form() -> None:
    surface = double_well(2, left=1.0, right=2.0, height=3.0, stiffness=5.0)
    deep, shallow = surface.minima
    assert deep == CriticalPoint((2.0, 0.0), 0.0, 0)
    scale = 12 * 3.0 / (2.0**3 * 4.0)
    assert shallow.value == pytest.approx(3.0 - scale * 5.0 / 12)
    assert surface.saddles[0].value == 3.0
    hessian = dense_hessian(surface, surface.vector(deep))
    torch.testing.assert_close(hessian.diagonal(), torch.tensor([6 * scale, 5.0]).double())
    even = double_well(height=2.0)
    x = torch.tensor([0.3, 0.7]).double()
    assert float(even.loss(x)) == pytest.approx(2.0 * (0.3**2 - 1) ** 2 + 0.7**2 / 2)


def test_quadratic_has_the_spectrum_asked_for() -> None:
    spectrum = [5.0, 2.0, 0.0, -1.0]
    plain = quadratic(spectrum, centre=[1.0, 2.0, 3.0, 4.0], offset=-1.0)
    assert plain.seed is None
    assert float(plain.loss(plain.centre)) == -1.0
    assert torch.equal(plain.hessian.diagonal(), torch.tensor(spectrum).double())
    turned = quadratic(spectrum, rotated=True, seed=5)
    assert turned.seed == 5
    identity = turned.eigenvectors.T @ turned.eigenvectors
    torch.testing.assert_close(identity, torch.eye(4).double(), atol=1e-14, rtol=0)
    dense = dense_hessian(turned, turned.start(torch.Generator().manual_seed(0)))
    torch.testing.assert_close(dense, turned.hessian, atol=1e-13, rtol=0)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(dense), torch.tensor(sorted(spectrum)).double(), atol=1e-13, rtol=0
    )
    assert not torch.allclose(dense, plain.hessian)
    assert torch.equal(quadratic(spectrum, rotated=True, seed=5).hessian, turned.hessian)
    assert quadratic([1.0], dtype=torch.float32).gradient(torch.ones(1)).dtype == torch.float32


def test_unseeded_rotation_records_its_seed() -> None:
    first = quadratic([1.0, 2.0, 3.0], rotated=True)
    second = quadratic([1.0, 2.0, 3.0], rotated=True)
    assert first.seed is not None
    assert second.seed is not None
    assert first.seed != second.seed
    assert torch.equal(
        quadratic([1.0, 2.0, 3.0], rotated=True, seed=first.seed).hessian, first.hessian
    )


def test_rotations_are_uniform() -> None:
    """Without the signs of R, the first column of Q would lean to one side."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.stack(
        [quadratic([1.0, 2.0], rotated=True, seed=generator).eigenvectors[0] for _ in range(200)]
    )
    assert corner.mean(0).abs().max() < 4 * math.sqrt(0.5 / 200)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: quadratic([]), r"at least one finite number, got shape \(0,\)"),
        (lambda: quadratic([1.0, float("nan")]), "at least one finite number"),
        (lambda: quadratic([[1.0]]), r"got shape \(1, 1\)"),  # type: ignore[list-item]
        (lambda: quadratic([1.0], centre=[0.0, 0.0]), r"centre has shape \(2,\), but there are 1"),
        (lambda: double_well(left=0.0), r"left must be positive and finite, got 0\.0"),
        (lambda: double_well(height=float("nan")), "height must be positive and finite, got nan"),
        (lambda: double_well(0), "dim must be positive"),
    ],
)
def test_bad_input(build: Callable[[], Surface], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_strings() -> None:
    lines = str(double_well()).splitlines()
    assert lines[0] == "double well, 2 coordinates"
    assert lines[-1] == "  saddle of index 1 at (0, 0), value 1, joins minima 0 and 1"
    assert CriticalPoint((0.0,), 1.0, 1).__rich__() == "maximum at (0), value 1"
