"""What every landscape must do, whatever it is made of.

A `Case` is a landscape with an independent truth: the same function written naively, as one
torch function of one vector, which autograd differentiates directly. `CHECKS` are functions of
a case that assert one promise each. A new kind of landscape is tested by writing a case:

    @pytest.mark.parametrize("check", CHECKS, ids=name_of)
    def test_mine(check):
        check(my_case())
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from truth import Truth, shapes_unchecked, untouched

from thalweg.estimate import Cost
from thalweg.landscape import Landscape, Point

DENSE = 600
ROWS = 16


@dataclass(frozen=True)
class Case:
    """A landscape, the truth about it, a point, and what it must leave alone.

    Args:
        name: What it is.
        land: The landscape.
        truth: The same function of one float64 vector, written naively.
        theta: Where to look, `(dim,)`.
        tolerance: The relative error that its dtype allows.
        watched: What no call may change: modules, tensors, generators.
    """

    name: str
    land: Landscape
    truth: Truth
    theta: Tensor
    tolerance: float = 1e-9
    watched: tuple[Any, ...] = ()

    def vectors(self, *shape: int, seed: int = 1) -> Tensor:
        """Draw directions."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, self.land.dim, generator=generator, dtype=torch.float64).to(
            self.land.dtype
        )

    def near(self, *shape: int) -> Tensor:
        """Draw points around `theta`."""
        return self.theta + 0.05 * self.vectors(*shape, seed=2)

    def assert_close(self, found: Tensor, truth: Tensor, what: str) -> None:
        """Compare with the truth, relative to its largest entry."""
        assert found.dtype == self.land.dtype, what
        assert found.device == self.land.device, what
        assert found.shape == truth.shape, what
        assert not found.requires_grad, what
        scale = float(truth.abs().max()) if truth.numel() else 0.0
        error = float((found.double() - truth).abs().max()) if truth.numel() else 0.0
        bound = self.tolerance * max(scale, 1.0)
        assert error <= bound, f"{what}: off by {error:.3g} of {scale:.3g}"


def dense(case: Case, theta: Tensor) -> tuple[list[int], Tensor]:
    """Return rows of the dense Hessian of the truth by double differentiation."""
    dim = case.land.dim
    rows = list(range(dim)) if dim <= DENSE else sorted(random.Random(0).sample(range(dim), ROWS))
    leaf = theta.double().clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        case.truth(leaf), leaf, create_graph=True, materialize_grads=True
    )
    if not slope.requires_grad:
        return rows, torch.zeros(len(rows), dim, dtype=torch.float64)
    return rows, torch.stack(
        [
            torch.autograd.grad(slope[i], leaf, retain_graph=True, materialize_grads=True)[0]
            for i in rows
        ]
    )


def slope(case: Case, theta: Tensor) -> Tensor:
    """Return the gradient of the truth."""
    leaf = theta.double().clone().requires_grad_()
    return torch.autograd.grad(case.truth(leaf), leaf, materialize_grads=True)[0]


def check_shapes(case: Case) -> None:
    """Any leading axes, none and empty ones included; dtype and device are the landscape's."""
    land = case.land
    assert isinstance(land, Landscape)
    for shape in ((), (3,), (2, 3), (0,)):
        theta = case.near(*shape)
        values, gradients = land.value_and_gradient(theta)
        for value in (values, land.loss(theta)):
            assert value.shape == shape
            assert value.dtype == land.dtype
        for gradient in (gradients, land.gradient(theta)):
            assert gradient.shape == theta.shape
            assert gradient.dtype == land.dtype
    with land.at(case.theta) as point:
        assert isinstance(point, Point)
        assert point.loss.shape == ()
        assert point.gradient.shape == point.theta.shape == (land.dim,)
        for shape in ((), (3,), (2, 3), (0,)):
            vectors = case.vectors(*shape)
            product = point.hvp(vectors)
            assert product.shape == vectors.shape
            assert product.dtype == land.dtype
            assert product.data_ptr() != vectors.data_ptr() or not product.numel()


def check_loss(case: Case) -> None:
    """The loss is the truth, one vector or many."""
    rows = case.near(3)
    truth = torch.stack([case.truth(row.double()).detach() for row in rows])
    case.assert_close(case.land.loss(rows), truth, "loss of many")
    case.assert_close(case.land.loss(rows[1]), truth[1], "loss of one")
    case.assert_close(case.land.value_and_gradient(rows)[0], truth, "value")
    with case.land.at(rows[2]) as point:
        case.assert_close(point.loss, truth[2], "loss at a point")


def check_gradient(case: Case) -> None:
    """The gradient is the truth's, one vector or many."""
    rows = case.near(3)
    truth = torch.stack([slope(case, row) for row in rows])
    case.assert_close(case.land.gradient(rows), truth, "gradient of many")
    case.assert_close(case.land.gradient(rows[1]), truth[1], "gradient of one")
    with case.land.at(rows[2]) as point:
        case.assert_close(point.gradient, truth[2], "gradient at a point")


def check_hvp(case: Case) -> None:
    """Hessian products are those of the dense Hessian of the truth."""
    theta = case.near(1)[0]
    rows, hessian = dense(case, theta)
    vectors = case.vectors(3)
    with case.land.at(theta) as point:
        products = point.hvp(vectors)
        units = torch.eye(case.land.dim, dtype=case.land.dtype)[rows[:4]]
        columns = point.hvp(units)
    case.assert_close(products[:, rows], vectors.double() @ hessian.T, "product")
    case.assert_close(columns, hessian[:4], "columns of the Hessian")


def check_finite_differences(case: Case) -> None:
    """A second truth that knows nothing of autograd, at the tolerance that differences have."""
    if case.land.dtype != torch.float64:
        pytest.skip("finite differences need float64")
    theta, direction = case.theta, case.vectors() / case.land.dim**0.5
    step = 1e-5
    ahead, behind = theta + step * direction, theta - step * direction
    difference = (case.land.loss(ahead) - case.land.loss(behind)) / (2 * step)
    exact = case.land.gradient(theta) @ direction
    assert abs(float(difference - exact)) <= 1e-6 * max(1.0, abs(float(exact)))
    with case.land.at(theta) as point:
        product = point.hvp(direction)
    difference = (case.land.gradient(ahead) - case.land.gradient(behind)) / (2 * step)
    assert float((difference - product).norm()) <= 1e-5 * max(1.0, float(product.norm()))


def check_hvp_algebra(case: Case) -> None:
    """Products are linear and symmetric."""
    with case.land.at(case.theta) as point:

        @settings(max_examples=6, phases=(Phase.generate,))
        @given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(-3, 3))
        def algebra(seed: int, a: float, b: float) -> None:
            u, v = case.vectors(2, seed=seed)
            hu, hv, mixed = point.hvp(torch.stack([u, v, a * u + b * v]))
            scale = 1.0 + float(hu.norm() + hv.norm())
            bound = 1e-4 if case.land.dtype == torch.float32 else 1e-11
            assert float((mixed - a * hu - b * hv).norm()) <= 10 * bound * scale, "not linear"
            difference = abs(float(v @ hu - u @ hv))
            assert difference <= bound * scale * float(u.norm() + v.norm()), "not symmetric"

        algebra()


def check_many_is_one_by_one(case: Case) -> None:
    """Many vectors together give what they give alone."""
    rows, tight = case.near(4), 1e-5 if case.land.dtype == torch.float32 else 1e-12
    values, gradients = case.land.value_and_gradient(rows)
    losses = case.land.loss(rows)
    for i, row in enumerate(rows):
        value, gradient = case.land.value_and_gradient(row)
        for many in (values[i], losses[i], case.land.loss(row)):
            torch.testing.assert_close(many, value, rtol=tight, atol=tight)
        torch.testing.assert_close(gradients[i], gradient, rtol=tight, atol=tight)
    vectors = case.vectors(3)
    with case.land.at(case.theta) as point:
        together = point.hvp(vectors)
        alone = torch.stack([point.hvp(vector) for vector in vectors])
    torch.testing.assert_close(together, alone, rtol=tight, atol=tight)


def check_cost(case: Case) -> None:
    """The tally counts every evaluation, gradient, product and sweep, and nothing else."""
    land, share = case.land, _share(case.land)

    def spent(work: Callable[[], object]) -> Cost:
        before = land.cost
        work()
        return land.cost - before

    def counted(cost: Cost, losses: int, gradients: int, hvps: int, passes: float) -> None:
        assert (cost.losses, cost.gradients, cost.hvps) == (losses, gradients, hvps)
        assert cost.passes == pytest.approx(passes * share, rel=1e-12)

    def products(*shapes: tuple[int, ...]) -> None:
        with land.at(case.theta) as point:
            assert point.loss.isfinite()
            assert point.gradient.isfinite().all()
            for shape in shapes:
                point.hvp(case.vectors(*shape))

    for _ in range(2):  # what is planned the first time costs nothing
        counted(spent(lambda: land.loss(case.near())), 1, 0, 0, 1)
        counted(spent(lambda: land.loss(case.near(2, 3))), 6, 0, 0, 1)
        counted(spent(lambda: land.gradient(case.near(3))), 3, 3, 0, 1)
        counted(spent(lambda: land.value_and_gradient(case.near())), 1, 1, 0, 1)
        counted(spent(products), 1, 1, 0, 1)
        counted(spent(lambda: products((), (2, 3))), 1, 1, 7, 3)
        counted(spent(lambda: land.start(torch.Generator().manual_seed(0))), 0, 0, 0, 0)


def _share(land: Any) -> float:
    """A minibatch's pass is a fraction of its parent's."""
    return float(getattr(getattr(land, "_sweep", None), "share", 1.0))


def check_nothing_is_touched(case: Case) -> None:
    """Arguments, the model, the data's generators, RNGs and switches stay as they were."""
    theta, vectors = case.near(3), case.vectors(2)
    with untouched(theta, vectors, *case.watched):
        case.land.loss(theta)
        case.land.gradient(theta)
        with case.land.at(theta[0]) as point:
            point.hvp(vectors)
    with untouched(theta, *case.watched), torch.no_grad():
        case.land.gradient(theta)
    with untouched(theta, *case.watched), pytest.raises(ZeroDivisionError), case.land.at(theta[0]):
        raise ZeroDivisionError


def check_bits(case: Case) -> None:
    """The same call gives the same bits, whatever was computed in between."""
    rows, vectors = case.near(3), case.vectors(2)

    def everything() -> list[Tensor]:
        with case.land.at(rows[0]) as point:
            return [
                case.land.loss(rows),
                case.land.loss(rows[0]),
                case.land.gradient(rows),
                point.loss.clone(),
                point.gradient.clone(),
                point.hvp(vectors),
                point.hvp(vectors[1]),
            ]

    first = everything()
    case.land.loss(case.near(5))
    torch.randn(3)
    for a, b in zip(first, everything(), strict=True):
        assert torch.equal(a, b)


def check_start(case: Case) -> None:
    """A start is drawn from the generator, and from nothing else."""

    def draw(seed: int) -> Tensor:
        return case.land.start(torch.Generator().manual_seed(seed))

    with untouched(*case.watched):
        first = draw(3)
    torch.randn(7)
    assert first.shape == (case.land.dim,)
    assert first.dtype == case.land.dtype
    assert torch.equal(first, draw(3))
    assert not torch.equal(first, draw(4))
    generator = torch.Generator().manual_seed(5)
    assert not torch.equal(case.land.start(generator), case.land.start(generator))
    assert case.land.loss(first).isfinite()


def check_refusals(case: Case) -> None:
    """Vectors that do not belong here are refused in words; NaN is not repaired."""
    land, dim = case.land, case.land.dim
    other = torch.float32 if land.dtype == torch.float64 else torch.float64
    calls: list[Callable[[Tensor], object]] = [land.loss, land.gradient, land.value_and_gradient]

    def at(theta: Tensor) -> None:
        with land.at(theta):
            pass

    def hvp(vector: Tensor) -> None:
        with land.at(case.theta) as point:
            point.hvp(vector)

    with shapes_unchecked():
        for call in (*calls, at, hvp):
            with pytest.raises(ValueError, match=rf"has shape \({dim + 1},\).*{dim} coordinates"):
                call(torch.zeros(dim + 1, dtype=land.dtype))
            with pytest.raises(TypeError, match=f"theta is {other}, but .* {land.dtype}"):
                call(torch.zeros(dim, dtype=other))
            with pytest.raises(TypeError, match="theta must be a torch tensor"):
                call([0.0] * dim)  # type: ignore[arg-type]  # a wrong argument is the point
        with pytest.raises(ValueError, match=rf"has shape \(2, {dim}\).*takes shape \({dim},\)"):
            at(case.near(2))
    for bad in (float("nan"), float("inf")):
        broken = case.theta.clone()
        broken[dim // 2] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            at(broken)
    with land.at(case.theta) as point:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        point.hvp(case.vectors())


def check_nan_stays(case: Case) -> None:
    """A loss that is not a number is reported as such, and only where it is."""
    rows = case.near(3)
    rows[1] = float("nan")
    losses, (values, gradients) = case.land.loss(rows), case.land.value_and_gradient(rows)
    for found in (losses, values):
        assert found.isnan().tolist() == [False, True, False]
    assert torch.equal(gradients[1].isnan(), slope(case, rows[1]).isnan())
    assert gradients[[0, 2]].isfinite().all()


def check_any_layout(case: Case) -> None:
    """Strides, expanded rows and a required gradient change nothing but what they are."""
    rows = case.near(3)
    strided = torch.stack([rows, rows], dim=-1)[..., 0].detach()
    expanded = case.theta.expand(2, -1)
    tight = (
        {"rtol": 1e-5, "atol": 1e-5}
        if rows.dtype == torch.float32
        else {"rtol": 1e-12, "atol": 1e-12}
    )
    assert not strided.is_contiguous()
    torch.testing.assert_close(case.land.loss(strided), case.land.loss(rows), **tight)
    torch.testing.assert_close(case.land.gradient(strided), case.land.gradient(rows), **tight)
    once = case.land.gradient(case.theta)
    torch.testing.assert_close(case.land.gradient(expanded), torch.stack([once, once]), **tight)
    with case.land.at(strided[0]) as point:
        torch.testing.assert_close(point.hvp(rows.T.contiguous().T), point.hvp(rows), **tight)
        torch.testing.assert_close(point.hvp(expanded)[0], point.hvp(case.theta), **tight)
    leaf = case.theta.clone().requires_grad_()
    assert not case.land.loss(leaf).requires_grad
    assert not case.land.gradient(leaf).requires_grad
    assert leaf.grad is None


def check_surroundings(case: Case) -> None:
    """No-grad and inference mode around a call do not change its answer."""
    theta, vector = case.theta, case.vectors()

    def everything() -> list[Tensor]:
        with case.land.at(theta) as point:
            return [case.land.loss(theta), case.land.gradient(theta), point.hvp(vector)]

    plain = everything()
    for surrounding in (torch.no_grad, torch.inference_mode):
        with surrounding():
            found = everything()
        for a, b in zip(plain, found, strict=True):
            assert torch.equal(a, b), surrounding.__name__


def check_point_stands_still(case: Case) -> None:
    """A point does not move when the vector it was opened at is overwritten."""
    theta, vector = case.theta.clone(), case.vectors()
    with case.land.at(theta) as point:
        before = point.hvp(vector)
        theta.zero_()
        assert torch.equal(point.theta, case.theta)
        assert torch.equal(point.hvp(vector), before)


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_shapes,
    check_loss,
    check_gradient,
    check_hvp,
    check_finite_differences,
    check_hvp_algebra,
    check_many_is_one_by_one,
    check_cost,
    check_nothing_is_touched,
    check_bits,
    check_start,
    check_refusals,
    check_nan_stays,
    check_any_layout,
    check_surroundings,
    check_point_stands_still,
)


def name_of(check: Any) -> str:
    """Return a check's name for pytest."""
    return str(check.__name__).removeprefix("check_")
