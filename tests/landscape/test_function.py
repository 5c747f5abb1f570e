"""Any function of one vector as a landscape: what it must be, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from truth import untouched

from thalweg.landscape import FunctionLandscape


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x**2, r"must return a scalar tensor.*\(3,\).*sum or average it"),
        (lambda x: 1.0, "returned float"),
        (lambda x: torch.ones((), dtype=torch.float64), "does not depend differentiably"),
        (lambda x: x.detach().sum(), r"look for \.item\(\), \.detach\(\)"),
        (lambda x: x.argmax(), "real floating-point scalar, not torch.int64"),
        (lambda x: (x * 1j).sum(), "real floating-point scalar, not torch.complex128"),
        (lambda x: (x**2).sum() + torch.rand(()), "draws random numbers"),
    ],
)
def test_what_is_no_landscape(f: Callable[[Tensor], Tensor], message: str) -> None:
    with untouched(), pytest.raises(ValueError, match=message):
        FunctionLandscape(f, 3)


def test_impossible_arguments() -> None:
    for dim in (0, -1):
        with pytest.raises(ValueError, match="dim must be at least 1"):
            FunctionLandscape(lambda x: x.sum(), dim)
    with pytest.raises(ValueError, match=r"must be a floating-point type, got torch\.int64"):
        FunctionLandscape(lambda x: x.sum(), 2, dtype=torch.int64)


def test_kernels() -> None:
    """vmap where it can and agrees; a loop for control flow, in-place writes and the rest."""

    def in_place(x: Tensor) -> Tensor:
        out = torch.zeros(2, dtype=x.dtype)
        out[0] = x.sum()
        return out.sum() ** 2

    def branching(x: Tensor) -> Tensor:
        return x.sum() if x.detach().sum() > 0 else (x**2).sum()

    for f, kernel in ((lambda x: (x**2).sum(), "vmap"), (in_place, "loop"), (branching, "loop")):
        land = FunctionLandscape(f, 3)
        assert land.kernel == kernel
        rows = torch.tensor([[1.0, 2, 3], [-1, -2, 0.5]], dtype=torch.float64)
        assert land.loss(rows).tolist() == [float(f(row)) for row in rows]


def test_starts() -> None:
    """Standard normal, or drawn by the user's function in the landscape's dtype."""
    land = FunctionLandscape(lambda x: (x**2).sum(), 2000)
    drawn = land.start(torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean())) < 0.1
    assert abs(float(drawn.std()) - 1) < 0.1
    boxed = FunctionLandscape(
        lambda x: (x**2).sum(), 2, start=lambda g: torch.rand(2, generator=g) + 5
    )
    drawn = boxed.start(torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float64
    assert bool((drawn >= 5).all())


@pytest.mark.usefixtures("unchecked")
def test_a_start_of_the_wrong_size() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\).*2 coordinates"):
        FunctionLandscape(lambda x: x.sum(), 2, start=lambda g: torch.zeros(3))


def test_a_domain_with_an_edge() -> None:
    """NaN outside the domain is a value like any other, not a reason to refuse."""
    land = FunctionLandscape(lambda x: torch.log(x).sum(), 1)
    losses = land.loss(torch.tensor([[1.0], [-1.0], [0.0]], dtype=torch.float64))
    assert losses[0] == 0
    assert losses[1].isnan()
    assert losses[2] == -torch.inf
