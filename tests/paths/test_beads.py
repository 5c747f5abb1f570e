"""Dynamic string sampling: verdicts that are known, and the traps of the original."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.landscape.minibatches import Minibatches
from thalweg.paths import bead_search, bead_training, line, measure
from thalweg.paths.bead_search import BeadSearch, Rule
from thalweg.paths.bead_training import How
from thalweg.paths.beads import BeadString, dynamic_string, dynamic_strings
from thalweg.paths.segments import check_segment

Make = Callable[..., Any]


def ring() -> FunctionLandscape:
    return FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)


def across(dim: int = 2) -> tuple[Tensor, Tensor]:
    a = torch.zeros(dim, dtype=torch.float64)
    a[0] = 1
    return a, -a


def held(land: FunctionLandscape, string: BeadString, ceiling: float) -> bool:
    """Look at every segment anew, finely, away from the library's own sampling."""
    t = torch.linspace(0, 1, 201, dtype=torch.float64)[:, None]
    points = string.path.points
    return all(
        bool((land.loss(torch.lerp(p, q, t)) <= ceiling).all())
        for p, q in itertools.pairwise(points)
    )


@pytest.mark.parametrize("decay", [0.1, 0.5])
def test_scalar_linear_net_above_and_below_its_barrier(
    scalar_linear_net: Make, decay: float
) -> None:
    """Every path between the minima passes (1-λ)²/2 above them, at 1/2: the line stays there."""
    land = scalar_linear_net(decay)
    end = torch.full((2,), math.sqrt(1 - decay), dtype=torch.float64)
    above = dynamic_string(land, end, -end, 0.5 + 1e-3, seed=0)
    assert above.connected.yes
    assert above.beads == 2
    assert above.path.normalised_length == 1
    assert above.rounds == 0
    below = dynamic_string(land, end, -end, 0.5 - 1e-3, seed=0, max_gradients=300, max_rounds=3)
    assert below.connected.unresolved
    assert below.shortened is None
    assert below.training <= 300
    assert below.path.maximum.lower > 0.5 - 1e-3
    assert "not shown to stay" in below.connected.reason
    assert "not proven" in str(below)


@pytest.mark.parametrize(
    ("level", "insert", "optimizer"),
    [
        (0.05, "top", "adam"),
        (0.3, "middle", "adam"),
        (0.05, "middle", "polyak"),
        (0.9, "top", "polyak"),
    ],
)
def test_around_a_ring_the_level_is_held_strictly(
    level: float, insert: Any, optimizer: Any
) -> None:
    """From the ring's very centre, where the gradient vanishes, to either side and round."""
    land = ring()
    before = land.cost
    string = dynamic_string(
        land, *across(), level, insert=insert, optimizer=optimizer, shorten=False, seed=1
    )
    assert string.connected.yes
    assert string.cost == land.cost - before
    assert string.path.maximum.upper <= level
    assert held(land, string, level)
    assert torch.equal(string.path.points[0], across()[0])
    assert torch.equal(string.path.points[-1], across()[1])
    steps = (string.path.points[1:] - string.path.points[:-1]).norm(dim=1)
    assert float(steps.min()) > 1e-3  # no bead upon another
    assert bool((land.loss(string.path.points) <= 0.95 * level).all())


def test_the_original_acceptance_is_looser() -> None:
    """Fewer beads, and a maximum between the level and 1.1 times the level."""
    land, level = ring(), 0.1
    options: dict[str, Any] = {"insert": "middle", "initial_beads": 1, "shorten": False, "seed": 0}
    loose = dynamic_string(
        land, *across(), level, acceptance=1.1, check_points=100, alpha=0.999, **options
    )
    strict = dynamic_string(land, *across(), level, alpha=0.999, **options)
    assert loose.connected.yes
    assert strict.connected.yes
    assert "101 points" in loose.connected.reason
    assert level < loose.path.maximum.lower <= 1.1 * level
    assert strict.path.maximum.upper <= level
    assert loose.beads < strict.beads


def test_a_segment_that_fails_is_looked_at_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same string as with all points looked at, for fewer losses; the top needs them all."""
    level = 0.1
    options: dict[str, Any] = {
        "acceptance": 1.1, "check_points": 100, "alpha": 0.999, "initial_beads": 1,
        "shorten": False, "seed": 0,
    }  # fmt: skip
    strings = {}
    for strides in [bead_search._STRIDES, (1,)]:
        monkeypatch.setattr(bead_search, "_STRIDES", strides)
        for insert in ("middle", "top"):
            strings[strides, insert] = dynamic_string(
                ring(), *across(), level, insert=insert, **options
            )
    for insert, fewer in [("middle", True), ("top", False)]:
        one, all_of_them = (found for (_, kind), found in strings.items() if kind == insert)
        assert torch.equal(one.path.points, all_of_them.path.points)
        assert one.connected.reason == all_of_them.connected.reason
        assert (one.cost.losses < all_of_them.cost.losses) is fewer
        assert one.cost.gradients == all_of_them.cost.gradients


def test_a_check_of_few_points_misses_what_the_bracket_sees() -> None:
    """A wall between the sampled places: the original joins through it."""
    land = FunctionLandscape(lambda x: torch.exp(-(((x[0] - 0.05) / 0.03) ** 2)) + 0 * x[1], 2)
    a, b = across()
    sampled = dynamic_string(
        land, a, b, 0.5, check_points=20, acceptance=1.1, max_rounds=1, seed=0, shorten=False
    )
    assert sampled.connected.yes
    assert sampled.path.maximum.lower > 0.9  # the path itself says so all the same
    strict = dynamic_string(land, a, b, 0.5, max_rounds=2, max_steps=50, seed=0)
    assert strict.connected.unresolved


def test_beads_in_the_first_round_and_counts() -> None:
    """One bead in the middle: at least three, ends included; untrained where it is low."""
    land = FunctionLandscape(lambda x: (x**2).sum(), 3)
    a = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    one = dynamic_string(land, a, -a, 1.2, initial_beads=1, shorten=False, seed=0)
    assert one.beads == 3
    assert one.rounds == 1
    assert one.training == 0
    assert one.path.normalised_length == 1
    none = dynamic_string(land, a, -a, 1.2, initial_beads=0, seed=0)
    assert none.beads == 2
    assert none.shortened is not None
    assert none.shortened.normalised_length == 1


def test_ends_above_the_level_and_bad_options_are_refused() -> None:
    land, (a, b) = ring(), across()
    with pytest.raises(ValueError, match=r"end b lies at 9, not at or below the level 0\.5"):
        dynamic_string(land, a, 2 * b, 0.5)
    with pytest.raises(ValueError, match="end a lies at nan"):
        dynamic_string(FunctionLandscape(lambda x: x.sum().sqrt(), 2), -a, a, 5.0)
    for options, text in (
        ({"level": 0.0}, r"level 0\.0 is not above base 0.0: .* pass base="),
        ({"level": -1.0}, "not above base"),
        ({"level": math.nan}, "level must be a finite number"),
        ({"alpha": 1.0}, "alpha must lie strictly between"),
        ({"acceptance": 0.9}, "acceptance must be 1"),
        ({"optimizer": "sgd"}, "'sgd' needs a learning rate"),
        ({"lr": -1.0}, "lr must be a positive number"),
        ({"check_points": 1}, "check_points must be at least 2"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"max_rounds": -1}, "max_rounds must not be negative"),
    ):
        with pytest.raises(ValueError, match=text):
            dynamic_string(land, a, b, **{"level": 0.5, **options})


def test_unknown_choices_are_named(unchecked: None) -> None:
    land, (a, b) = ring(), across()
    for name in ("insert", "constraint", "optimizer"):
        with pytest.raises(ValueError, match=f"unknown {name} 'other'; use one of"):
            dynamic_string(land, a, b, 0.5, **{name: "other"})
    with pytest.raises(ValueError, match="initial_beads must be 0 or 1"):
        dynamic_string(land, a, b, 0.5, initial_beads=2)


def test_negative_losses_with_a_base() -> None:
    """The same search on the same ring, five lower."""
    low = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2 - 5, 2)
    string = dynamic_string(low, *across(), -4.75, base=-5.0, shorten=False, seed=0)
    plain = dynamic_string(ring(), *across(), 0.25, shorten=False, seed=0)
    assert string.connected.yes
    assert string.beads == plain.beads
    torch.testing.assert_close(string.path.points, plain.path.points, rtol=1e-6, atol=1e-8)


def test_losses_that_are_no_numbers() -> None:
    """A hole of NaN in the middle is gone round; an all-NaN half-plane leaves it unresolved."""
    hole = FunctionLandscape(
        lambda x: ((x**2).sum() - 1) ** 2 + 0 * torch.log((x**2).sum() - 0.01), 2
    )
    string = dynamic_string(hole, *across(), 0.5, insert="top", seed=0, max_steps=300)
    assert string.connected.unresolved
    assert "nan" in string.connected.reason
    quotient = FunctionLandscape(lambda x: (x[0] ** 2 + 4 * x[1] ** 2) / (x**2).sum(), 2)
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert math.isnan(line(quotient, a, -a).maximum.lower)
    joined = dynamic_string(quotient, a, -a, 4.5, seed=0, shorten=False)
    assert joined.connected.yes


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "polyak"])
def test_beads_stay_in_their_hyperplane(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bead of the first round stays at its place along the chord, to 1e-10."""
    monkeypatch.setattr(bead_training, "_CHUNK", 1)  # look at every step
    scales = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    land = FunctionLandscape(lambda x: ((scales * x**2).sum() - 1) ** 2, 4)
    a, b = across(4)
    rule = Rule(
        land=land,
        view=land,
        target=0.05,
        ceiling=0.06,
        span=2.0,
        insert="middle",
        check_points=None,
        threshold=None,
        tolerance=None,
        max_samples=100,
    )
    how = How(optimizer, 0.02 if optimizer == "sgd" else None, True, 5, 500, 10_000)
    generator = torch.Generator().manual_seed(0)
    points = torch.stack([a, b])
    search = BeadSearch(
        rule, how, points, [0.0, 0.0], Minibatches(land, 1, generator), generator, 0, land.cost, 0
    )
    trained = 0
    while not search.finished and trained < 40:
        search.step()
        if search.job is not None:
            trained += 1
            along = ((search.job.x - search.job.origin) * search.job.normal).sum(1)
            assert float(along.abs().max()) < 1e-10
            assert torch.allclose(search.job.normal.norm(dim=1), torch.ones(1).double())
    assert trained > 5
    free = replace(how, constrained=False)
    other = BeadSearch(
        rule, free, points, [0.0, 0.0], Minibatches(land, 1, generator), generator, 0, land.cost, 0
    )
    strayed = 0.0
    for _ in range(40):
        if not other.finished:
            other.step()
        if other.job is not None:
            along = ((other.job.x - other.job.origin) * other.job.normal).sum(1)
            strayed = max(strayed, float(along.abs().max()))
    assert strayed > 1e-6  # without the constraint it would have moved


def test_constrained_strings_join_too() -> None:
    string = dynamic_string(ring(), *across(), 0.25, constraint="hyperplane", seed=0)
    assert string.connected.yes
    assert string.path.maximum.upper <= 0.25


@pytest.mark.parametrize(("option", "word"), [("max_gradients", "budget"), ("max_steps", "stands")])
def test_budgets_end_the_search(option: str, word: str) -> None:
    """Where the original would run for ever."""
    walls = FunctionLandscape(lambda x: 2 - torch.exp(-20 * (x[0] ** 2 - 1) ** 2), 2)
    tight = {"max_gradients": 100, "max_steps": 2}[option]
    limits: dict[str, Any] = {"max_gradients": 300, "max_steps": 5000, option: tight}
    string = dynamic_string(walls, *across(), 1.5, seed=0, **limits)
    assert string.connected.unresolved
    assert word in string.connected.reason
    assert string.training <= limits["max_gradients"]


def test_a_threshold_is_held_and_the_loss_trained() -> None:
    """Beads stop by the other function, sampled; the heights stay those of the loss."""
    land = ring()

    def error(x: Tensor) -> float:
        return float(abs(x.norm() - 1) > 0.2)

    string = dynamic_string(land, *across(), 0.5, threshold=error, seed=0)
    assert string.connected.yes
    assert "threshold function at or below 0.5 at 21 points" in string.connected.reason
    assert string.shortened is None
    points = string.path.points
    places = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None]
    for p, q in itertools.pairwise(points):
        assert all(error(x) == 0 for x in torch.lerp(p, q, places))
    assert string.path.maximum.lower == pytest.approx(measure(land, points).maximum.lower, rel=0.1)


def test_a_seed_repeats_a_string_and_another_differs() -> None:
    one, two = (dynamic_string(ring(), *across(), 0.25, shorten=False, seed=3) for _ in range(2))
    other = dynamic_string(ring(), *across(), 0.25, shorten=False, seed=4)
    drawn = dynamic_string(ring(), *across(), 0.25, shorten=False)
    again = dynamic_string(ring(), *across(), 0.25, shorten=False, seed=drawn.seed)
    assert torch.equal(one.path.points, two.path.points)
    assert one.seed == 3
    assert not torch.equal(one.path.points, other.path.points)
    assert torch.equal(drawn.path.points, again.path.points)


@pytest.mark.parametrize("optimizer", ["adam", "polyak"])
def test_strings_side_by_side_are_those_found_alone(optimizer: Any) -> None:
    land, levels, seeds = ring(), [0.25, 0.05, 0.5, 0.2], [0, 1, 2, 3]
    a = torch.stack([across(2)[0], across(2)[0], across(2)[1], across(2)[0]])
    options: dict[str, Any] = {"optimizer": optimizer, "insert": "middle", "initial_beads": 1}
    before = land.cost
    strings = dynamic_strings(land, a, -a, levels, seeds=seeds, shorten=False, **options)
    total = land.cost - before
    for i, string in enumerate(strings):
        one = dynamic_string(land, a[i], -a[i], levels[i], seed=seeds[i], shorten=False, **options)
        assert string.connected.yes
        assert string.path.points.shape == one.path.points.shape
        assert torch.allclose(string.path.points, one.path.points, atol=1e-6)
        assert string.training == pytest.approx(one.training, abs=2)
        assert string.cost.gradients == pytest.approx(one.cost.gradients, abs=4)
    assert sum(s.cost.gradients for s in strings) == pytest.approx(total.gradients, abs=8)


def test_side_by_side_options_are_checked() -> None:
    a = torch.stack([across(2)[0]] * 2)
    with pytest.raises(ValueError, match="2 and 2 ends, 1 levels and 2 seeds"):
        dynamic_strings(ring(), a, -a, [0.5], seeds=[0, 1])
    with pytest.raises(TypeError, match="batch_size cannot be set for strings"):
        dynamic_strings(ring(), a, -a, [0.5, 0.5], seeds=[0, 1], batch_size=3)
    with pytest.raises(TypeError, match="dynamic_string has no option speed"):
        dynamic_strings(ring(), a, -a, [0.5, 0.5], seeds=[0, 1], speed=3)
    with pytest.raises(ValueError, match=r"end a lies at 0\.4096, not at or below the level 0.2"):
        dynamic_strings(ring(), 0.6 * a, -a, [0.5, 0.2], seeds=[0, 1])


def test_only_new_segments_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No segment is bracketed twice."""
    from thalweg.paths import bead_search

    seen: list[bytes] = []

    def counted(land: Any, left: Tensor, right: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(torch.stack([left, right]).numpy().tobytes())
        return check_segment(land, left, right, *args, **options)

    monkeypatch.setattr(bead_search, "check_segment", counted)
    string = dynamic_string(ring(), *across(), 0.05, seed=0, shorten=False)
    assert string.connected.yes
    assert len(seen) == len(set(seen))
    assert len(seen) >= string.beads - 1


@pytest.fixture(scope="module")
def digits(digits_pair: Make) -> tuple[ModelLandscape, Tensor, Tensor, float, float]:
    """A small network on digits, two minima, the ends' loss and the line's height above it."""
    land, a, b = digits_pair(6, 100, 100)
    straight = line(land, a, b)
    return land, a, b, straight.base, straight.height.lower


@pytest.mark.parametrize("batch_size", [None, pytest.param(25, marks=pytest.mark.slow)])
def test_resumed_is_unbroken_bit_for_bit(
    batch_size: int | None, digits: Any, ctrl_c: Any, tmp_path: FilePath
) -> None:
    """Stopped again and again, in training, checking and shortening."""
    land, a, b, base, height = digits if batch_size else (ring(), *across(), 0.0, 1.0)
    level = base + 0.25 * height
    options: dict[str, Any] = {"batch_size": batch_size, "seed": 5, "max_gradients": 150}
    whole = dynamic_string(land, a, b, level, **options)
    file, stops, count = tmp_path / "string", 0, 3
    while True:
        try:
            parts = dynamic_string(
                land, a, b, level, checkpoint=file, progress=ctrl_c(count), **options
            )
            break
        except KeyboardInterrupt:
            stops, count = stops + 1, count + 4
    assert stops >= 3
    assert whole.shortened is not None
    assert parts.shortened is not None
    assert torch.equal(parts.path.points, whole.path.points)
    assert torch.equal(parts.shortened.points, whole.shortened.points)
    assert replace(parts.cost, passes=0) == replace(whole.cost, passes=0)
    assert parts.cost.passes == pytest.approx(whole.cost.passes)
    assert json.dumps(parts.path.to_json()["losses"]) == json.dumps(whole.path.to_json()["losses"])
    with pytest.raises(ValueError, match="other options"):
        dynamic_string(land, a, b, 1.01 * level, checkpoint=file, **options)


@pytest.mark.parametrize("batch_size", [None, 25])
def test_a_network_below_the_line(batch_size: int | None, digits: Any) -> None:
    """Held on all the data though trained on minibatches; the budget counts their share."""
    land, a, b, base, height = digits
    level = base + 0.1 * height
    before = land.cost
    string = dynamic_string(land, a, b, level, batch_size=batch_size, shorten=False, seed=0)
    assert string.connected.yes
    assert string.path.maximum.upper <= level
    assert replace(string.cost, passes=0) == replace(land.cost - before, passes=0)
    assert 2 < string.beads < 12
    assert 0 < string.training < 200
    assert bool((land.loss(string.path.points) <= level).all())


def test_what_a_string_says(digits: Any) -> None:
    string = dynamic_string(ring(), *across(), 0.25, seed=0)
    assert string.shortened is not None
    text = str(string)
    assert text.startswith("yes: a string of ")
    assert "shortened" in text
    assert "[green]yes" in string.__rich__()
    report = json.loads(json.dumps(string.to_json()))
    assert report["type"] == "bead_string"
    assert report["beads"] == string.beads == len(string.path.points)
    assert report["shortened"]["length"] < report["raw_length"]
    assert string.normalised_length < string.path.normalised_length
    with pytest.raises(TypeError, match="not true or false"):
        bool(string.connected)
