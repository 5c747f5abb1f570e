"""The images of a string or band, against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.optim import minimise
from thalweg.paths.images import (
    Images,
    advance,
    descend,
    enter,
    equal_arcs,
    force,
    insert,
    spacing,
    tangents,
)
from thalweg.zoo import muller_brown


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


CORNER = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
FLAT = FunctionLandscape(lambda x: 0 * x.sum(), 2)
SADDLE = FunctionLandscape(lambda x: 0.5 * (x[1] ** 2 - x[0] ** 2), 2)


@pytest.mark.parametrize(
    ("loss", "tangent"),
    [
        ((0.0, 1.0, 2.0), (0.0, 1.0)),  # uphill ahead: eq. 8
        ((2.0, 1.0, 0.0), (1.0, 0.0)),  # uphill behind: eq. 8
        ((0.0, 3.0, 2.0), (1.0, 3.0)),  # a peak, higher ahead: ahead counts |0 - 3|, eq. 10
        ((2.0, 3.0, 0.0), (3.0, 1.0)),  # a peak, higher behind
        ((3.0, 0.0, 1.0), (3.0, 1.0)),  # a valley, higher behind
        ((1.0, 0.0, 3.0), (1.0, 3.0)),  # a valley, higher ahead
        ((1.0, 1.0, 1.0), (1.0, 1.0)),  # no slope: both alike
    ],
)
def test_improved_tangent(loss: tuple[float, ...], tangent: tuple[float, ...]) -> None:
    """Henkelman and Jónsson's equations 8 to 11, by hand on a right angle."""
    wanted = vector(*tangent)
    found = tangents(CORNER, vector(*loss))[0]
    assert torch.allclose(found, wanted / wanted.norm(), atol=1e-15)


def test_the_weights_at_a_peak_are_not_swapped() -> None:
    """AutoNEB swaps them, and is 53° off here: weights 1 and 3 on a right angle."""
    found = tangents(CORNER, vector(0.0, 3.0, 2.0))[0]
    swapped = vector(3.0, 1.0) / math.sqrt(10)
    angle = math.degrees(math.acos(float(found @ swapped)))
    assert angle == pytest.approx(53.13, abs=0.01)
    assert float(found @ (vector(1.0, 3.0) / math.sqrt(10))) == pytest.approx(1.0)


def test_springs_pull_along_the_tangent_alone() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    now = enter(FLAT, x, (0, 2))
    assert force(now, spring=0.5)[1].tolist() == [-1.0, 0.0]  # 0.5 (3 - 1), towards the long gap
    assert force(now)[1].tolist() == [0.0, 0.0]
    uneven = enter(FLAT, x, (0, 2), vector(1.0, 3.0))
    assert force(uneven, spring=0.5)[1].tolist() == [0.0, 0.0]


def test_a_band_feels_the_loss_across_it_and_the_climber_goes_up() -> None:
    x = torch.tensor([[-1.0, 1.0], [0.5, 1.0], [2.0, 1.0]], dtype=torch.float64)
    now = enter(SADDLE, x, (0, 2))
    assert torch.allclose(now.gradient[1], vector(-0.5, 1.0))
    assert torch.allclose(force(now, spring=1.0)[1], vector(0.0, 1.0))
    assert torch.allclose(force(now, spring=1.0, climber=1)[1], vector(0.5, 1.0))


def test_the_climbing_image_reaches_the_pass_without_any_product() -> None:
    """Müller-Brown, by gradients alone; without climbing the images miss it by far."""
    land = muller_brown()
    a, b = (minimise(land, vector(*s), tol=1e-10).theta for s in ((0.623, 0.028), (-0.05, 0.467)))
    part = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    start = enter(land, torch.lerp(a, b, part), (0, 4))
    heights = {}
    for climbs in (True, False):
        now = start
        for _ in range(120):
            now = advance(land, now, spring=0.5, climber=now.top if climbs else None)
        heights[climbs] = float(now.loss.max())
    assert heights[True] == pytest.approx(-72.248940112325, rel=1e-6)
    assert abs(heights[False] + 72.248940112325) > 1e-3


def test_redistribution_keeps_proportions_between_pinned_images() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [8.0], [10.0]], dtype=torch.float64)
    moved = equal_arcs(x, (0, 3, 4), vector(1.0, 2.0, 1.0, 5.0))
    assert moved.flatten().tolist() == [0.0, 2.0, 6.0, 8.0, 10.0]


def test_inserted_images_keep_order_pins_and_what_was_known() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    now = enter(SADDLE, x, (0, 2, 3))
    before = SADDLE.cost
    more = insert(SADDLE, now, [0, 1], [0.5, 0.25])
    assert (SADDLE.cost - before).gradients == 2
    assert more.x[:, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 3.0, 4.0]
    assert more.pinned == (0, 4, 5)
    assert torch.equal(more.loss, SADDLE.loss(more.x))
    assert torch.equal(more.gradient, SADDLE.gradient(more.x))
    assert torch.equal(more.shares, spacing(more.x))


def test_descent_with_momentum_by_hand() -> None:
    """A middle image over a bowl: two steps at rate 0.1 with momentum 0.5."""
    bowl = FunctionLandscape(lambda x: 0.5 * x[1] ** 2, 2)
    x = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    now = descend(bowl, enter(bowl, x, (0, 2)), rate=0.1, momentum=0.5)
    assert torch.allclose(now.x[1], vector(0.0, 0.9))
    now = descend(bowl, now, rate=0.1, momentum=0.5)
    assert torch.allclose(now.x[1], vector(0.0, 0.9 - 0.1 * (0.5 + 0.9)))


def test_images_survive_their_state() -> None:
    now = enter(SADDLE, CORNER, (0, 2))
    again = Images.of(now.state(), torch.device("cpu"))
    assert again.pinned == now.pinned
    for name in ("x", "loss", "gradient", "curvature", "velocity", "shares"):
        assert torch.equal(getattr(again, name), getattr(now, name))
