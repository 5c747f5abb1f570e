"""Numbers that say how wrong they may be: their text, their JSON, and what they refuse."""

from __future__ import annotations

import json
import math
import re
from dataclasses import FrozenInstanceError
from io import StringIO

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import binomtest

from thalweg.estimate import (
    Bound,
    Cost,
    Estimate,
    Verdict,
    from_json,
    good_turing,
    success_rate,
)

counts = st.integers(0, 10**9)
costs = st.builds(Cost, counts, counts, counts, st.floats(0, 1e9))
anything = st.floats(allow_nan=True, allow_infinity=True)
kinds = st.sampled_from(["exact", "certified", "estimated"])
text = st.text(max_size=20)


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    low, high = sorted([draw(anything), draw(anything)], key=lambda x: (x != x, x))
    return Estimate(
        draw(anything),
        draw(anything),
        (low, high),
        draw(counts),
        draw(costs),
        level=draw(st.floats(0.01, 0.99)),
        method=draw(text),
        seed=draw(st.none() | st.integers(0, 2**63 - 1)),
    )


@st.composite
def bounds(draw: st.DrawFn) -> Bound:
    low, high = sorted([draw(anything), draw(anything)], key=lambda x: (x != x, x))
    return Bound(low, high, draw(kinds), draw(kinds), draw(costs), draw(text))


def verdicts() -> st.SearchStrategy[Verdict]:
    return st.builds(Verdict, st.sampled_from(["yes", "no", "unresolved"]), text, st.none(), costs)


def rendered(value: object) -> str:
    stream = StringIO()
    Console(file=stream, width=500, color_system=None).print(value)
    return stream.getvalue().rstrip("\n")


@given(costs | estimates() | bounds() | verdicts())
def test_json_round_trip(value: Cost | Estimate | Bound | Verdict) -> None:
    """Strict JSON, NaN and infinity included, and back to the same value."""
    stored = json.dumps(value.to_json(), allow_nan=False)
    again = from_json(json.loads(stored))
    assert type(again) is type(value)
    assert repr(again) == repr(value)


@given(costs | estimates() | bounds() | verdicts())
def test_everything_can_be_written(value: Cost | Estimate | Bound | Verdict) -> None:
    """No value breaks the text or the terminal form."""
    assert isinstance(str(value), str)
    assert rendered(value) is not None


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e6))
def test_an_estimates_text_keeps_its_digits(value: float, half: float) -> None:
    """What is printed lies within a twentieth of the half width of the truth."""
    assume(half > 1e-9 * abs(value))
    shown = str(Estimate(value, half / 2, (value - half, value + half), 10))
    number, width = re.fullmatch(r"(\S+) ± (\S+) \(95 %\)", shown).groups()
    assert abs(float(number) - value) <= 0.051 * half + 1e-14 * abs(value)
    assert float(width) == pytest.approx(half, rel=0.051)


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (
            Estimate(2.658, 0.0035, (2.651, 2.665), 96, Cost(hvps=96)),
            "2.6580 ± 0.0070 (95 %), 96 HVPs",
        ),
        (Estimate(2.658, 0.0035, (2.651, 2.665), 96, level=0.99), "2.6580 ± 0.0070 (99 %)"),
        (Estimate(0.3, 0.1, (0.28, 0.9), 5), "0.30 in [0.28, 0.90] (95 %)"),
        (Estimate(1.5e8, 2e6, (1.46e8, 1.54e8), 5), "1.500e+08 ± 4.0e+06 (95 %)"),
        (Estimate(2e-7, 1e-9, (1.98e-7, 2.02e-7), 5), "2.000e-07 ± 2.0e-09 (95 %)"),
        (Estimate(3.0, 400.0, (-800.0, 806.0), 5), "3 ± 803 (95 %)"),
        (Estimate(16777217.0, 0.0, (16777217.0, 16777217.0), 5), "16777217 ± 0 (95 %)"),
        (Estimate(math.nan, math.nan, (-math.inf, math.inf), 5), "nan ± inf (95 %)"),
        (Estimate(1.25, math.nan, (-math.inf, math.inf), 1), "1.25 ± inf (95 %)"),
    ],
)
def test_an_estimate_in_words(estimate: Estimate, shown: str) -> None:
    assert str(estimate) == shown
    assert rendered(estimate) == shown


def test_estimates_refuse() -> None:
    with pytest.raises(ValueError, match=r"interval is reversed: lower end 2.0 > upper end 1.0"):
        Estimate(1.5, 0.1, (2.0, 1.0), 5)
    for level in (0.0, 1.0, 95.0, -0.5):
        with pytest.raises(ValueError, match="level must lie strictly between 0 and 1"):
            Estimate(1.5, 0.1, (1.0, 2.0), 5, level=level)
    with pytest.raises(ValueError, match="samples must not be negative, got -1"):
        Estimate(1.5, 0.1, (1.0, 2.0), -1)
    with pytest.raises(FrozenInstanceError):
        Estimate(1.5, 0.1, (1.0, 2.0), 5).value = 2.0  # type: ignore[misc]


def test_intervals_contain() -> None:
    estimate = Estimate(1.5, 0.1, (1.0, 2.0), 5)
    assert all(x in estimate for x in (1.0, 1.5, 2.0))
    assert not any(x in estimate for x in (0.999, 2.001, math.nan))
    assert estimate.half_width == 0.5
    bound = Bound(1.0, 2.0, "certified", "estimated")
    assert 1.0 in bound
    assert 2.5 not in bound
    assert bound.width == 1.0


@given(costs, costs)
def test_costs_add_and_subtract(a: Cost, b: Cost) -> None:
    total = a + b
    assert (total.losses, total.gradients, total.hvps) == (
        a.losses + b.losses,
        a.gradients + b.gradients,
        a.hvps + b.hvps,
    )
    assert total.passes == a.passes + b.passes
    back = total - b
    assert (back.losses, back.gradients, back.hvps) == (a.losses, a.gradients, a.hvps)
    assert back.passes == pytest.approx(a.passes, rel=1e-6, abs=1e-6)
    assert a - a == Cost()


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        (Cost(), "nothing"),
        (Cost(1, 1, 1, 1), "1 loss, 1 gradient, 1 HVP, 1 pass"),
        (Cost(2, 0, 96, 3.5), "2 losses, 96 HVPs, 3.5 passes"),
        (Cost(passes=1 / 3), "0.333 passes"),
    ],
)
def test_costs_in_words(cost: Cost, shown: str) -> None:
    assert str(cost) == shown


@pytest.mark.parametrize(
    ("bound", "shown"),
    [
        (Bound(1.0, 1.25, "certified", "estimated"), "between 1 (certified) and 1.25 (estimated)"),
        (Bound.exactly(2.5), "2.5 (exact)"),
        (Bound(-math.inf, 3.0, "certified", "exact"), "between -inf (certified) and 3 (exact)"),
        (
            Bound(1.0, 1.0 + 1e-9, "exact", "estimated"),
            "between 1 (exact) and 1.000000001 (estimated)",
        ),
        (Bound(1.0, 1.0, "exact", "estimated"), "between 1 (exact) and 1 (estimated)"),
        (
            Bound(math.nan, math.nan, "estimated", "estimated"),
            "between nan (estimated) and nan (estimated)",
        ),
    ],
)
def test_bounds_in_words(bound: Bound, shown: str) -> None:
    assert str(bound) == rendered(bound) == shown


@given(st.floats(-1e6, 1e6), st.floats(1e-8, 1e3))
def test_a_bounds_text_tells_its_ends_apart(lower: float, width: float) -> None:
    bound = Bound(lower, lower + width, "certified", "estimated")
    first, second = re.findall(r"(?:between|and) (\S+) \(", str(bound))
    if bound.width > 1e-12 * max(abs(lower), 1e-300):
        assert float(first) < float(second)


def test_bounds_refuse_and_move() -> None:
    with pytest.raises(ValueError, match=r"bound is reversed: lower 2.0 > upper 1.0"):
        Bound(2.0, 1.0, "exact", "exact")
    moved = Bound(1.0, 2.0, "certified", "estimated", Cost(losses=3), "line").above(0.75)
    assert moved == Bound(0.25, 1.25, "certified", "estimated", Cost(losses=3), "line")


@pytest.mark.usefixtures("unchecked")
def test_unknown_words() -> None:
    with pytest.raises(ValueError, match="unknown kind 'guessed'; use one of exact, certified"):
        Bound(1.0, 2.0, "guessed", "exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="answer must be 'yes', 'no' or 'unresolved', not 'maybe'"):
        Verdict("maybe", "who knows")  # type: ignore[arg-type]


def test_verdicts() -> None:
    """A verdict is not a truth value: unresolved would read as one of the other two."""
    for answer in ("yes", "no", "unresolved"):
        verdict = Verdict(answer, "the path [a, b] climbs to 0.31", evidence=object())
        assert (verdict.yes, verdict.no, verdict.unresolved) == tuple(
            answer == word for word in ("yes", "no", "unresolved")
        )
        with pytest.raises(TypeError, match=r"ask for \.yes, \.no or \.unresolved"):
            bool(verdict)
        assert str(verdict) == rendered(verdict) == f"{answer}: the path [a, b] climbs to 0.31"
        assert "evidence" not in verdict.to_json()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"type": "trace"}, "unknown type 'trace'; expected 'cost', 'estimate', 'bound'"),
        ({}, "unknown type None"),
        ({"type": "estimate", "value": 1.0}, "not a stored estimate"),
        ({"type": "bound", "cost": {"type": "cost"}}, "not a stored bound"),
        ({"type": "cost", "losses": 1, "epochs": 3}, "not a stored cost"),
        ({**Bound.exactly(1.0).to_json(), "upper": "much"}, "could not convert"),
    ],
)
def test_what_was_not_stored_here(stored: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        from_json(stored)


def test_unseen_kinds_by_hand():
    unseen = good_turing(3, 2, 12)
    assert unseen.value == 3 / 12
    assert unseen.stderr == pytest.approx(math.sqrt(0.25 * 0.75 / 12 + 4 / 144))
    low, high = unseen.interval
    assert low == 0.0
    variance = high * (1 - high) / 12 + 2 * 2 / 144
    assert (high - 3.5 / 12) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-6)
    nothing = good_turing(0, 0, 0)
    assert math.isnan(nothing.value)
    assert nothing.interval == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 kinds seen once and 2 twice are not in 6 draws"):
        good_turing(3, 2, 6)
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, not 1"):
        good_turing(0, 0, 3, level=1)


@pytest.mark.parametrize("trials", [1, 7, 40])
@pytest.mark.parametrize("level", [0.68, 0.95])
def test_success_rates_are_those_of_scipy(trials: int, level: float) -> None:
    for successes in range(trials + 1):
        rate = success_rate(successes, trials, level=level, method="coins", seed=3)
        exact = binomtest(successes, trials).proportion_ci(level, "exact")
        assert rate.interval == pytest.approx((exact.low, exact.high), abs=1e-12)
        assert (rate.value, rate.samples) == (successes / trials, trials)
        assert (rate.method, rate.seed) == ("coins", 3)
        assert math.isnan(rate.stderr) == (successes in (0, trials))


@pytest.mark.parametrize(
    ("successes", "trials"),
    [(0, 0), (-1, 4), (5, 4), (1.5, 4), (1, 2.5), (math.inf, math.inf), (math.nan, 4)],
)
def test_success_rates_that_cannot_be(unchecked: None, successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {trials} trials cannot have succeeded"):
        success_rate(successes, trials)
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, not 0"):
        success_rate(2, 4, level=0)
