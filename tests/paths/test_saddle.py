"""Climbing with zero modes, and certificates: each verdict where it is due, and only there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths import climb, line, measure, string
from thalweg.paths.critical import critical_point
from thalweg.paths.refine import refine
from thalweg.zoo import muller_brown, six_hump_camelback

D = torch.float64
Make = Callable[..., tuple[FunctionLandscape, Tensor]]


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=D)


def noise(dim: int, seed: int) -> Tensor:
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=D)


def deep_linear(singular: list[float]) -> tuple[FunctionLandscape, Tensor, Tensor]:
    """½|W2 W1 - M|², its pass (last singular value dropped, σ²/2) in a random gauge, the way."""
    n = len(singular)
    matrix = torch.diag(vector(*singular))
    turn = torch.linalg.qr(noise(n * n, 7).reshape(n, n)).Q
    kept = torch.diag(vector(*singular[:-1], 0.0)).sqrt()
    way = torch.zeros(n, n, dtype=D)
    way[-1, -1] = 1

    def loss(x: Tensor) -> Tensor:
        return 0.5 * ((x[n * n :].reshape(n, n) @ x[: n * n].reshape(n, n) - matrix) ** 2).sum()

    def both(middle: Tensor) -> Tensor:
        return torch.cat([(turn @ middle).reshape(-1), (middle @ turn.T).reshape(-1)])

    return FunctionLandscape(loss, 2 * n * n), both(kept), both(way)


def factored(eigenvalues: list[float], rank: int) -> tuple[FunctionLandscape, Tensor, Tensor]:
    """¼|U Uᵀ - M|², its pass (λ_rank swapped for the next), the way."""
    n = len(eigenvalues)
    matrix = torch.diag(vector(*eigenvalues))
    turn = torch.linalg.qr(noise(rank * rank, 3).reshape(rank, rank)).Q
    chosen = [*range(rank - 1), rank]
    point = matrix.sqrt()[:, chosen] @ turn
    way = torch.eye(n, dtype=D)[:, [*range(rank)]] * torch.eye(rank, dtype=D)[-1] @ turn
    return (
        FunctionLandscape(
            lambda x: 0.25 * ((x.reshape(n, rank) @ x.reshape(n, rank).T - matrix) ** 2).sum(),
            n * rank,
        ),
        point.reshape(-1),
        way.reshape(-1),
    )


@pytest.mark.parametrize(("size", "krylov"), [(1e-3, 12), (1e-2, 18), (0.1, 12)])
def test_climbing_where_a_gauge_leaves_zero_modes(size: float, krylov: int) -> None:
    land, saddle, way = deep_linear([3.0, 2.0, 1.0])
    start = saddle + size * noise(land.dim, 1)
    found = climb(land, start, way, tol=1e-10, krylov=krylov)
    assert found.converged
    assert found.gradient_norm <= 1e-10
    assert found.loss == pytest.approx(0.5, rel=1e-12)  # σ_r²/2
    assert found.negative == 1
    assert float((found.theta - start).norm()) < 10 * size * math.sqrt(land.dim)
    certificate = critical_point(land, found.theta, seed=0)
    assert certificate.verdict.yes, str(certificate)
    assert (certificate.index.lower, certificate.index.upper) == (1, 1)
    assert certificate.zero.lower == certificate.zero.upper >= 3  # the gauge group's, at least


def test_climbing_on_a_rotation_invariant_fit() -> None:
    land, saddle, way = factored([3.0, 2.0, 1.0, 0.5, 0.2], 3)
    found = climb(land, saddle + 1e-2 * noise(land.dim, 2), way, tol=1e-10)
    assert found.converged
    assert found.loss == pytest.approx((1.0 + 0.04) / 4, rel=1e-12)
    certificate = critical_point(land, found.theta, seed=0)
    assert certificate.verdict.yes
    assert certificate.index.upper == 1
    assert certificate.zero.upper == 3  # rotations of three columns


@pytest.mark.parametrize("dim", [4, 200])
def test_climbing_where_the_loss_does_not_depend_on_length(dim: int) -> None:
    """Newton's step is θ itself there; the climb must not follow it."""
    scales = torch.linspace(1.0, 7.0, dim, dtype=D)
    land = FunctionLandscape(lambda x: (scales * x**2).sum() / (x**2).sum(), dim)
    start = 1.3 * torch.eye(dim, dtype=D)[1] + 0.05 * noise(dim, 0) / math.sqrt(dim) * 2
    found = climb(land, start, torch.eye(dim, dtype=D)[0], tol=1e-10)
    assert found.converged, str(found)
    assert found.loss == pytest.approx(float(scales[1]), rel=1e-12)
    assert float(found.theta.norm()) < 2


def test_a_budget_in_gradients_and_products_holds() -> None:
    land, saddle, way = deep_linear([3.0, 2.0, 1.0])
    found = climb(land, saddle + 0.1 * noise(18, 1), way, tol=1e-14, max_gradients=20)
    assert not found.converged
    assert "max_gradients=20 is spent" in found.reason
    assert found.cost.gradients + found.cost.hvps <= 20 + 13


def test_known_points_get_their_index() -> None:
    for land in (muller_brown(), six_hump_camelback()):
        for known in land.critical_points:
            found = critical_point(land, land.vector(known), seed=0)
            assert found.verdict.yes, str(found)
            assert found.index.lower == found.index.upper == known.index
            assert found.index.lower_kind == found.index.upper_kind == "certified"
            assert found.zero.upper == 0
            assert found.value is not None
            assert found.value.lower - 1e-12 <= known.value <= found.value.upper + 1e-12


def test_index_of_a_quadratic_form_on_the_sphere() -> None:
    """2n critical points ±v_i of index i - 1, each with the one zero mode of its length."""
    scales = vector(1.0, 2.0, 4.0, 7.0, 7.5)
    land = FunctionLandscape(lambda x: (scales * x**2).sum() / (x**2).sum(), 5)
    for i in range(5):
        for sign in (-1.7, 0.6):
            found = critical_point(land, sign * torch.eye(5, dtype=D)[i], seed=0)
            assert found.verdict.yes
            assert (found.index.lower, found.index.upper) == (i, i)
            assert (found.zero.lower, found.zero.upper) == (1, 1)
            assert "1 zero modes" in found.verdict.reason


def test_gradient_flat_points_are_not_critical() -> None:
    """Frye et al.'s examples: x³/3 + εx at 0, and x + y² on y = 0."""
    cubic = FunctionLandscape(lambda x: x[0] ** 3 / 3 + 0.1 * x[0], 1)
    ramp = FunctionLandscape(lambda x: x[0] + x[1] ** 2, 2)
    for land, theta in ((cubic, vector(0.0)), (ramp, vector(0.0, 0.0)), (ramp, vector(5.0, 0.0))):
        found = critical_point(land, theta, seed=0)
        assert found.verdict.no
        assert "merely gradient-flat" in found.verdict.reason
        assert found.flatness == pytest.approx(1.0)
        assert found.distance == math.inf
        assert found.value is None
    true = critical_point(FunctionLandscape(lambda x: x[0] ** 3 / 3 - x[0], 1), vector(-1.0 + 1e-5))
    assert true.verdict.yes
    assert true.flatness < 1e-9
    nearly = FunctionLandscape(lambda x: 0.1 * x[0] + 1e-9 * x[0] ** 2 + x[1] ** 2, 2)
    far = critical_point(nearly, vector(0.0, 0.0), seed=0)
    assert far.verdict.no
    assert far.distance == pytest.approx(5e7, rel=1e-3)
    assert "about 5e+07 away" in str(far)


def test_degenerate_points_have_no_index() -> None:
    monkey = FunctionLandscape(lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2, 2)
    at = critical_point(monkey, vector(0.0, 0.0), seed=0)
    assert at.verdict.unresolved
    assert "degenerate" in at.verdict.reason
    assert at.zero.lower == 2
    near = critical_point(monkey, vector(1e-5, 2e-6), seed=0)
    assert near.verdict.unresolved
    assert "degenerate" in near.verdict.reason
    assert near.contraction == pytest.approx(0.25, rel=1e-3)
    quartic = critical_point(FunctionLandscape(lambda x: x[0] ** 4 - x[1] ** 2, 2), vector(0, 0))
    assert quartic.verdict.unresolved
    ring = FunctionLandscape(lambda x: (x[0] ** 2 + x[1] ** 2 - 1) ** 2 - x[2] ** 2, 3)
    circle = critical_point(ring, vector(0.6, 0.8, 0.0), seed=0)
    assert circle.verdict.yes
    assert (circle.index.upper, circle.zero.upper) == (1, 1)


def test_the_value_holds_the_truth_and_tol_decides() -> None:
    land = six_hump_camelback()
    known = land.saddles[1]
    for size in (1e-6, 1e-4, 1e-2):
        theta = land.vector(known) + size * vector(0.6, -0.8)
        found = critical_point(land, theta, tol=1e-6, seed=0)
        assert found.value is not None
        assert found.value.lower <= known.value <= found.value.upper
        assert found.distance == pytest.approx(size, rel=0.1)
        assert found.verdict.yes == (size < 1e-3)
        loose = critical_point(land, theta, tol=1e-2, seed=0)
        assert loose.verdict.yes
    assert "refine, to the critical point nearby" in found.verdict.reason
    slope = critical_point(land, vector(0.5, 0.3), seed=0)
    assert slope.verdict.no
    assert "none is near" in slope.verdict.reason


@pytest.mark.slow
def test_many_dimensions_with_few_products() -> None:
    scales = torch.linspace(1.0, 20.0, 150, dtype=D)
    land = FunctionLandscape(lambda x: (scales * x**2).sum() / (x**2).sum(), 150)
    for i in (1, 5):
        found = critical_point(land, 2 * torch.eye(150, dtype=D)[i], seed=0)
        assert found.verdict.yes, str(found)
        assert (found.index.lower, found.index.upper) == (i, i)
        assert (found.zero.lower, found.zero.upper) == (1, 1)
        assert found.index.upper_kind == "estimated"
        exact = torch.sort(2 * (scales - scales[i]) / 4).values[: len(found.values)]
        assert bool((found.intervals[:, 0] <= exact + 1e-12).all())
        assert bool((found.intervals[:, 1] >= exact - 1e-12).all())
    short = critical_point(land, 2 * torch.eye(150, dtype=D)[5], max_products=12, seed=0)
    assert short.verdict.unresolved
    assert "raise max_products" in short.verdict.reason
    assert short.index.lower <= 5 <= short.index.upper


@pytest.mark.slow
def test_the_top_of_a_line_between_networks_is_not_critical(
    digits_network: Callable[[], FunctionLandscape],
) -> None:
    land = digits_network()
    generator = torch.Generator().manual_seed(0)
    a, b = land.start(generator), land.start(generator)
    straight = line(land, a, b)
    found = critical_point(land, straight.top, max_products=150, seed=0)
    assert found.verdict.no, str(found)
    assert found.index.lower <= found.index.upper
    climbed = refine(land, straight, max_gradients=150, seed=0)
    assert not climbed.verdict.yes


def test_refining_the_top_of_a_path() -> None:
    land = muller_brown()
    a, b = land.vector(land.minima[0]), land.vector(land.minima[1])
    rough = string(land, a, b, climbing=False, max_gradients=500, seed=0)
    assert not rough.converged
    before = land.cost
    found = refine(land, rough, seed=0)
    assert found.cost == land.cost - before
    assert found.verdict.yes, str(found)
    assert found.saddle.loss == pytest.approx(land.saddles[1].value, rel=1e-12)
    assert found.certificate.index.upper == 1
    assert found.saddle.loss < found.top
    assert "pass of index 1" in str(found)


def test_refining_refuses_what_is_not_the_paths_pass() -> None:
    land = muller_brown()
    a, b, c = (land.vector(point) for point in land.minima)
    straight = refine(land, line(land, a, b), seed=0)
    assert straight.verdict.no
    low = refine(land, line(land, b, c, max_samples=50), reach=1e-3, seed=0)
    assert not low.verdict.yes
    hill = FunctionLandscape(lambda x: torch.exp(-(x[0] ** 2) - x[1] ** 2) + 0.01 * x[0] ** 4, 2)
    over = refine(hill, line(hill, vector(-1.0, 0.0), vector(1.0, 0.0)), seed=0)
    assert over.verdict.no
    assert "index 2" in over.verdict.reason
    assert "lowered around it" in over.verdict.reason
    ramp = FunctionLandscape(lambda x: x[0] + x[1] ** 2, 2)
    bent = measure(ramp, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.2, 0.0], [0.0, 0.01]], dtype=D))
    flat = refine(ramp, bent, seed=0)
    assert flat.verdict.no
    assert "gradient-flat" in flat.verdict.reason


@pytest.mark.parametrize(("dim", "steps", "seed"), [(2, 3, None), (70, 3, 4)])
def test_refining_resumed_is_unbroken_bit_for_bit(
    dim: int, steps: int, seed: int | None, ctrl_c: Any, tmp_path: Path
) -> None:
    """Stopped after every step; in 70 dimensions the climb goes on with a larger Krylov space."""
    scales = torch.logspace(0, 2, dim, dtype=D)
    shear = 0.2 * torch.linspace(-1, 1, dim, dtype=D)

    def loss(x: Tensor) -> Tensor:
        bent = (x - shear * (x[0] ** 2 - 1))[1:]
        return (x[0] ** 2 - 1) ** 2 + (scales[1:] * bent**2).sum()

    land = FunctionLandscape(loss, dim)
    ends = torch.eye(dim, dtype=D)[[0, 0]] * torch.tensor([[-1.0], [1.0]], dtype=D)
    path = measure(land, torch.stack([ends[0], 0.3 * torch.ones(dim, dtype=D) * shear, ends[1]]))
    options: dict[str, Any] = {"reach": 10.0, "max_gradients": 300}
    file, stops = tmp_path / "refined", 0
    while True:
        try:
            parts = refine(land, path, seed=seed, checkpoint=file, progress=ctrl_c(1), **options)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= steps
    whole = refine(land, path, seed=parts.certificate.seed, **options)
    assert torch.equal(parts.theta, whole.theta)
    assert parts.to_json() == whole.to_json()
    assert torch.equal(parts.saddle.direction, whole.saddle.direction)
    assert torch.equal(parts.certificate.directions, whole.certificate.directions)
    assert parts.cost == whole.cost
    with pytest.raises(ValueError, match="other options"):
        refine(land, path, seed=seed, checkpoint=file, **{**options, "max_gradients": 301})


def test_a_path_whose_highest_point_is_an_end_is_not_climbed() -> None:
    slope = FunctionLandscape(lambda x: x[0] + x[1] ** 2, 2)
    wells = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, 2)
    for land, a, b in (
        (slope, vector(0.0, 0.0), vector(1.0, 0.0)),
        (wells, vector(-1.0, 0.0), vector(0.0, 0.0)),  # from a minimum up to the pass itself
        (wells, vector(-1.0, 0.0), vector(-0.9, 0.5)),
    ):
        for path, name in ((line(land, a, b), "b"), (line(land, b, a), "a")):
            before = land.cost
            found = refine(land, path, seed=0)
            assert found.verdict.no
            assert f"the highest point is an end, {name}, at loss" in found.verdict.reason
            assert torch.equal(found.theta, b)
            assert found.saddle.steps == 0
            assert found.cost == land.cost - before
            assert found.cost.hvps <= 2 * land.dim  # its certificate, and no climb
            assert json.loads(json.dumps(found.to_json(), allow_nan=False))["moved"] == 0.0
    over = refine(wells, line(wells, vector(-1.0, 0.0), vector(0.5, 0.0)), seed=0)
    assert over.verdict.yes  # a hair beyond the pass, and there is one on the path


def test_a_higher_pass_is_another_pass() -> None:
    """The path turns back on the flank below a pass, so its top is lower than the pass."""
    land = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, 2)
    flank = torch.tensor([[-1.0, -0.2], [-0.3, 0.0], [-0.35, 0.01]], dtype=D)
    under = measure(land, flank)
    found = refine(land, under, reach=2.0, seed=0)
    assert found.certificate.verdict.yes
    assert found.verdict.no
    assert "ran to another pass, at loss 1" in found.verdict.reason


def test_certificates_read_and_travel() -> None:
    land = six_hump_camelback()
    found = critical_point(land, land.vector(land.saddles[0]), seed=4)
    again = critical_point(land, land.vector(land.saddles[0]), seed=found.seed)
    assert found.to_json() == again.to_json()
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["verdict"]["answer"] == "yes"
    assert stored["flatness"] == "nan"
    assert str(found).startswith("yes: a critical point of index 1\n")
    assert found.__rich__().startswith("[green]yes[/green]")
    a, b = land.vector(land.minima[0]), land.vector(land.minima[1])
    refined = refine(land, line(land, a, b), seed=0)
    assert json.loads(json.dumps(refined.to_json(), allow_nan=False))["type"] == "refined"
    assert refined.__rich__().startswith("[")


def test_what_is_not_finite_is_said() -> None:
    land = FunctionLandscape(lambda x: torch.log(x[0]) + x[1] ** 2, 2)
    found = critical_point(land, vector(-1.0, 0.0))
    assert found.verdict.unresolved
    assert "the loss is nan" in found.verdict.reason
    assert math.isnan(found.loss)
    assert (found.index.lower, found.index.upper) == (0, 2)
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(ValueError, match="NaN or infinite"):
        critical_point(land, vector(math.nan, 0.0))
    with pytest.raises(ValueError, match="flat_tolerance=-1"):
        critical_point(land, vector(1.0, 0.0), flat_tolerance=-1.0)
    with pytest.raises(ValueError, match="max_gradients must be at least 1, got 0"):
        refine(muller_brown(), line(muller_brown(), vector(-1.0, 0.0), vector(1.0, 0.0)),
               max_gradients=0)  # fmt: skip
    climbed = climb(land, vector(-1.0, 0.0), vector(1.0, 0.0))
    assert not climbed.converged
    assert "stopped being finite" in climbed.reason
