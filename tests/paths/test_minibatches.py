"""One minibatch a step for every image of a string or band, as for the beads of a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.landscape import Landscape, ModelLandscape
from thalweg.landscape.minibatches import Minibatches
from thalweg.optim import minimise
from thalweg.paths import autoneb_schedule, band, dynamic_string, string

EXAMPLES, SIZE = 60, 20
Event = tuple[str, ModelLandscape, int]  # what was asked, of which landscape, of how many vectors


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Everything that is drawn and asked, in order."""
    found: list[Event] = []
    draw = Minibatches.draw

    def drawn(self: Minibatches) -> Landscape:
        part = draw(self)
        assert isinstance(part, ModelLandscape)
        found.append(("draw", part, 0))
        return part

    def spy(name: str) -> Callable[[ModelLandscape, Tensor], Any]:
        asked = getattr(ModelLandscape, name)

        def answer(self: ModelLandscape, theta: Tensor) -> Any:
            found.append((name, self, theta.numel() // self.dim))
            return asked(self, theta)

        return answer

    monkeypatch.setattr(Minibatches, "draw", drawn)
    for name in ("loss", "gradient", "value_and_gradient"):
        monkeypatch.setattr(ModelLandscape, name, spy(name))
    return found


def network() -> tuple[ModelLandscape, Tensor, Tensor]:
    """A small classifier on random data, and two points far apart."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 3, generator=g, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    land = ModelLandscape(model, F.cross_entropy, (x, (x[:, 0] > 0).long()))
    return land, 2 * land.start(g), 2 * land.start(g)


def steps(events: list[Event]) -> list[list[Event]]:
    """Cut what was asked of minibatches into steps, one from each draw to the next."""
    found: list[list[Event]] = []
    for name, land, count in events:
        if name == "draw":
            found.append([(name, land, count)])
        elif land.examples < EXAMPLES:
            found[-1].append((name, land, count))
    return [step for step in found if step[0][1].examples < EXAMPLES]


@pytest.mark.parametrize(
    "kind",
    [
        "fixed band",
        pytest.param("string", marks=pytest.mark.slow),
        pytest.param("band", marks=pytest.mark.slow),
        pytest.param("schedule", marks=pytest.mark.slow),
    ],
)
def test_all_images_see_the_same_minibatch(events: list[Event], kind: str) -> None:
    """After each draw all images that move are asked at once, of the minibatch drawn."""
    land, a, b = network()
    options: dict[str, Any] = {
        "batch_size": SIZE, "max_gradients": 45, "max_samples": 20, "seed": 0
    }  # fmt: skip
    if kind == "string":
        string(land, a, b, images=7, **options)
    elif kind == "schedule":
        band(land, a, b, schedule=autoneb_schedule(45), **options)
    else:
        pivots: Any = "fixed" if kind == "fixed band" else "auto"
        band(land, a, b, images=7, pivots=pivots, **options)
    taken, images = steps(events), []
    assert len(taken) >= 10
    for (_, part, _), *asked in taken:
        assert all(land is part for _, land, _ in asked)
        moved = {count for name, _, count in asked if name == "value_and_gradient"}
        assert len(moved) == 1
        images.append(moved.pop())
        held = [count for name, _, count in asked if name == "loss"]
        assert held == [2]  # the ends, for the tangents' sake
        assert all(name != "gradient" for name, _, _ in asked)
    assert images == sorted(images)  # a band grows
    least = 3 if kind == "schedule" else 5
    assert images[0] >= least
    assert kind in ("band", "schedule") or images[-1] == least


def test_all_beads_of_a_round_see_the_same_minibatch(events: list[Event]) -> None:
    """From a network to the one whose hidden units have their signs turned, of the same loss."""
    land, a, _ = network()
    a = minimise(land, a, tol=1e-3, max_gradients=60).theta
    b = torch.cat([-a[:24], a[24:]])
    level = float(land.loss(a)) + 0.05
    events.clear()
    dynamic_string(
        land, a, b, level, batch_size=SIZE, max_gradients=120, shorten=False, max_samples=20, seed=0
    )
    taken = steps(events)
    assert max(step[1][2] for step in taken) > 1
    for (_, part, _), *asked in taken:
        assert [(name, land is part) for name, land, _ in asked] == [("value_and_gradient", True)]
