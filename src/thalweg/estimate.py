"""Numbers that say how wrong they may be: estimates, bounds, verdicts and costs.

This room knows nothing of torch. Every result of the library is built from these
four frozen values, and each has three honest forms: ``str`` for a log, ``__rich__``
for a terminal, ``to_json`` for a file. Nothing here rounds a number, hides a NaN or
drops an uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import NormalDist
from typing import Any, Literal, Self

from scipy.special import betainccinv, betaincinv

__all__ = [
    "Bound",
    "BoundKind",
    "Cost",
    "Estimate",
    "Verdict",
    "from_json",
    "good_turing",
    "success_rate",
]

BoundKind = Literal["exact", "certified", "estimated"]
_KINDS: tuple[BoundKind, ...] = ("exact", "certified", "estimated")


def _number_to_json(value: float) -> float | str:
    """Strict JSON has no NaN or infinity, so these become words instead of being lost."""
    return value if math.isfinite(value) else repr(float(value))


def _count(number: float) -> str:
    """Write a count in full, and a fraction of a pass to three digits."""
    return f"{number:.0f}" if number == int(number) or number >= 100 else f"{number:.3g}"


def _digits(value: float, scale: float) -> str:
    """Write `value` to the second significant digit of its uncertainty `scale`."""
    if scale == 0:  # known exactly, so nothing is rounded away
        return f"{value:.15g}"
    if not math.isfinite(value) or not math.isfinite(scale) or scale < 0:
        return f"{value:.6g}"
    places = 1 - math.floor(math.log10(scale))
    if abs(value) >= 1e6 or 0 < max(abs(value), scale) < 1e-3:
        lead = math.floor(math.log10(max(abs(value), scale)))
        return f"{value:.{max(0, min(15, lead + places))}e}"
    return f"{value:.{max(0, min(15, places))}f}"


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, not {level!r}")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a computation took: evaluations, gradients, Hessian products, data passes.

    A *pass* is one sweep over all the data (forward, backward or both) for however
    many parameter vectors or directions travel together; a minibatch is a fraction of
    a pass. For a landscape without data a pass is one call. `losses`, `gradients` and
    `hvps` count single evaluations, so 16 directions in one sweep are 16 HVPs and one
    pass.

    Example:
        >>> spent = Cost(losses=1, hvps=16, passes=2)
        >>> print(spent + Cost(gradients=1, passes=1))
        1 loss, 1 gradient, 16 HVPs, 3 passes
        >>> (spent - spent) == Cost()
        True
    """

    losses: int = 0
    gradients: int = 0
    hvps: int = 0
    passes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of doing both."""
        return Cost(
            self.losses + other.losses,
            self.gradients + other.gradients,
            self.hvps + other.hvps,
            self.passes + other.passes,
        )

    def __sub__(self, other: Cost) -> Cost:
        """Return the difference of two readings of a running tally."""
        return self + Cost(-other.losses, -other.gradients, -other.hvps, -other.passes)

    def __str__(self) -> str:
        """Return the counts that are not zero, in words."""
        counts = [
            (self.losses, "loss", "losses"),
            (self.gradients, "gradient", "gradients"),
            (self.hvps, "HVP", "HVPs"),
            (self.passes, "pass", "passes"),
        ]
        words = [f"{_count(n)} {one if n == 1 else many}" for n, one, many in counts if n]
        return ", ".join(words) or "nothing"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `from_json` turns back into an equal value."""
        return {"type": "cost", **{f.name: getattr(self, f.name) for f in fields(self)}}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A stochastic number: value, standard error, interval, sample count and cost.

    Args:
        value: The point estimate.
        stderr: Its standard error, in the units of `value`; NaN where none is known.
        interval: Lower and upper end of the confidence interval at `level`.
        samples: How many independent samples the estimate rests on.
        cost: What it took.
        level: Nominal coverage of `interval`.
        method: How it was computed, with its source.
        seed: The seed that reproduces it, recorded even when the caller gave none.

    Raises:
        ValueError: If `interval` is reversed, `level` is not in (0, 1) or `samples`
            is negative.

    Example:
        >>> e = Estimate(2.658, 0.0035, (2.651, 2.665), 96, Cost(hvps=96))
        >>> print(e)
        2.6580 ± 0.0070 (95 %), 96 HVPs
        >>> from_json(e.to_json()) == e
        True
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    samples: int
    cost: Cost = field(default_factory=Cost)
    level: float = 0.95
    method: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse an interval that cannot be one."""
        low, high = self.interval
        if low > high:
            raise ValueError(f"interval is reversed: lower end {low!r} > upper end {high!r}")
        _check_level(self.level)
        if self.samples < 0:
            raise ValueError(f"samples must not be negative, got {self.samples!r}")

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.interval[1] - self.interval[0]) / 2

    def __contains__(self, value: float) -> bool:
        """Say whether `value` lies inside the interval."""
        return bool(self.interval[0] <= value <= self.interval[1])  # numpy truths are no bools

    def __str__(self) -> str:
        """Return ``value ± half width (level), cost``; both ends if it is lopsided."""
        low, high = self.interval
        half = self.half_width
        tail = f", {self.cost}" if self.cost != Cost() else ""
        if abs((high + low) / 2 - self.value) > 0.05 * half:
            ends = f"[{_digits(low, half)}, {_digits(high, half)}]"
            return f"{_digits(self.value, half)} in {ends} ({self.level:.0%}){tail}".replace(
                "%)", " %)"
            )
        return (
            f"{_digits(self.value, half)} ± {_digits(half, half)} ({100 * self.level:.4g} %){tail}"
        )

    def __rich__(self) -> str:
        """Return the string form with the value in bold."""
        head, _, tail = str(self).partition(" ")
        return f"[bold]{head}[/bold] [dim]{tail.replace('[', chr(92) + '[')}[/dim]"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `from_json` turns back into an equal value."""
        return {
            "type": "estimate",
            "value": _number_to_json(self.value),
            "stderr": _number_to_json(self.stderr),
            "interval": [_number_to_json(x) for x in self.interval],
            "samples": self.samples,
            "cost": self.cost.to_json(),
            "level": self.level,
            "method": self.method,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Bound:
    """A bracketed number: lower and upper end, and what each end is worth.

    Kinds: ``exact`` (equals the quantity up to rounding), ``certified`` (a proof, given
    the arithmetic), ``estimated`` (rests on a constant that was measured, not proven).

    Raises:
        ValueError: If the ends are reversed or a kind is unknown.

    Example:
        >>> print(Bound(1.0, 1.25, "certified", "estimated"))
        between 1 (certified) and 1.25 (estimated)
        >>> print(Bound.exactly(2.5))
        2.5 (exact)
    """

    lower: float
    upper: float
    lower_kind: BoundKind
    upper_kind: BoundKind
    cost: Cost = field(default_factory=Cost)
    method: str = ""

    def __post_init__(self) -> None:
        """Refuse reversed ends and unknown kinds."""
        if self.lower > self.upper:
            raise ValueError(f"bound is reversed: lower {self.lower!r} > upper {self.upper!r}")
        for kind in (self.lower_kind, self.upper_kind):
            if kind not in _KINDS:
                raise ValueError(f"unknown kind {kind!r}; use one of {', '.join(_KINDS)}")

    @classmethod
    def exactly(cls, value: float, *, cost: Cost | None = None, method: str = "") -> Self:
        """Return the bound of a number known up to rounding."""
        return cls(value, value, "exact", "exact", cost or Cost(), method)

    @property
    def width(self) -> float:
        """Distance between the ends."""
        return self.upper - self.lower

    def __contains__(self, value: float) -> bool:
        """Say whether `value` lies between the ends."""
        return bool(self.lower <= value <= self.upper)

    def above(self, base: float) -> Bound:
        """Return the same bracket measured upwards from `base`."""
        return Bound(
            self.lower - base,
            self.upper - base,
            self.lower_kind,
            self.upper_kind,
            self.cost,
            self.method,
        )

    def __str__(self) -> str:
        """Return both ends with their kinds, or one number (with its radius) if narrow."""
        if self.lower == self.upper and self.lower_kind == self.upper_kind:
            return f"{self.lower:.8g} ({self.lower_kind})"
        half, scale = self.width / 2, max(abs(self.lower), abs(self.upper))
        if self.lower_kind == self.upper_kind and half < 1e-4 * scale:
            return (
                f"{_digits((self.lower + self.upper) / 2, half)} ± {half:.1e} ({self.lower_kind})"
            )
        places = 6 if half else 10
        if 0 < half < 1e-4 * scale and math.isfinite(scale):
            places = min(12, 2 + math.ceil(math.log10(scale / half)))
        return (
            f"between {self.lower:.{places}g} ({self.lower_kind}) "
            f"and {self.upper:.{places}g} ({self.upper_kind})"
        )

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `from_json` turns back into an equal value."""
        return {
            "type": "bound",
            "lower": _number_to_json(self.lower),
            "upper": _number_to_json(self.upper),
            "lower_kind": self.lower_kind,
            "upper_kind": self.upper_kind,
            "cost": self.cost.to_json(),
            "method": self.method,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision with its evidence: yes, no or unresolved.

    A verdict has no truth value of its own, because ``if verdict:`` would silently read
    *unresolved* as one of the other two; ask for ``.yes``, ``.no`` or ``.unresolved``.

    Args:
        answer: ``"yes"``, ``"no"`` or ``"unresolved"``.
        reason: One sentence: what decides it, or what would.
        evidence: Whatever shows it (a path, a bound); not part of the JSON form.
        cost: What it took.

    Raises:
        ValueError: If `answer` is not one of the three words.

    Example:
        >>> v = Verdict("unresolved", "the best path found climbs to 0.31, above 0.25")
        >>> print(v)
        unresolved: the best path found climbs to 0.31, above 0.25
        >>> v.yes, v.unresolved
        (False, True)
    """

    answer: Literal["yes", "no", "unresolved"]
    reason: str
    evidence: Any = None
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        """Refuse a fourth answer."""
        if self.answer not in ("yes", "no", "unresolved"):
            raise ValueError(f"answer must be 'yes', 'no' or 'unresolved', not {self.answer!r}")

    @property
    def yes(self) -> bool:
        """Whether the answer is yes."""
        return self.answer == "yes"

    @property
    def no(self) -> bool:
        """Whether the answer is no."""
        return self.answer == "no"

    @property
    def unresolved(self) -> bool:
        """Whether the evidence does not decide it."""
        return self.answer == "unresolved"

    def __bool__(self) -> bool:
        """Refuse to be read as true or false."""
        raise TypeError("a Verdict is not true or false; ask for .yes, .no or .unresolved")

    def __str__(self) -> str:
        """Return ``answer: reason``."""
        return f"{self.answer}: {self.reason}"

    def __rich__(self) -> str:
        """Return the answer in colour and the reason."""
        colour = {"yes": "green", "no": "red", "unresolved": "yellow"}[self.answer]
        return f"[{colour}]{self.answer}[/{colour}]: {self.reason.replace('[', chr(92) + '[')}"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary; the evidence stays behind."""
        return {
            "type": "verdict",
            "answer": self.answer,
            "reason": self.reason,
            "cost": self.cost.to_json(),
        }


def from_json(data: Mapping[str, Any]) -> Cost | Estimate | Bound | Verdict:
    """Rebuild a value from what its `to_json` returned.

    Args:
        data: A mapping with a ``"type"`` key.

    Returns:
        An equal `Cost`, `Estimate` or `Bound`; a `Verdict` without its evidence.

    Raises:
        ValueError: If the type is unknown or a field is missing.

    Example:
        >>> from_json({"type": "cost", "losses": 2, "gradients": 0, "hvps": 0, "passes": 2.0})
        Cost(losses=2, gradients=0, hvps=0, passes=2.0)
    """
    kind = data.get("type")
    rest = {key: value for key, value in data.items() if key != "type"}
    try:
        if kind == "cost":
            return Cost(**rest)
        if kind in ("estimate", "bound", "verdict"):
            rest["cost"] = Cost(**{k: v for k, v in rest["cost"].items() if k != "type"})
        if kind == "estimate":
            low, high = rest["interval"]
            rest["interval"] = (float(low), float(high))
            rest |= {key: float(rest[key]) for key in ("value", "stderr")}
            return Estimate(**rest)
        if kind == "bound":
            rest |= {key: float(rest[key]) for key in ("lower", "upper")}
            return Bound(**rest)
        if kind == "verdict":
            return Verdict(**rest)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a stored {kind}: {error}; got {dict(data)!r}") from error
    raise ValueError(f"unknown type {kind!r}; expected 'cost', 'estimate', 'bound' or 'verdict'")


def good_turing(once: int, twice: int, total: int, *, level: float = 0.95) -> Estimate:
    r"""Return the probability that one more draw is of a kind not seen yet, by Good and Turing.

    $\hat M = n_1 / K$ with $n_1$ kinds seen once in $K$ draws; $\hat M - M$ has variance about
    $M(1-M)/K + 2 n_2/K^2$. The interval solves $(\hat M - M)^2 \le z^2 \mathrm{Var}$ for $M$,
    as Wilson's does, with $n_1$ less 1 for the lower end and plus 1/2 for the upper one, so
    that few draws do not make it collapse. It is approximate below about 20 draws.

    Args:
        once: $n_1$, how many kinds were drawn once.
        twice: $n_2$, how many were drawn twice.
        total: $K$, how many draws there were.
        level: Nominal coverage.

    Returns:
        The estimate; NaN in [0, 1] without any draw.

    Raises:
        ValueError: If the counts cannot be, or `level` is not in (0, 1).

    Source:
        Good, Biometrika 40, 237 (1953); Esty, Ann. Statist. 11, 905 (1983), for the
        variance; McAllester & Schapire, COLT 2000, for a bound without approximation,
        which is several times as wide.

    Example:
        >>> print(good_turing(3, 0, 20))
        0.15 in [0.03, 0.39] (95 %)
    """
    _check_level(level)
    if min(once, twice) < 0 or once + 2 * twice > total:
        raise ValueError(f"{once} kinds seen once and {twice} twice are not in {total} draws")
    method = "Good-Turing, score interval with Esty's variance"
    if total == 0:
        return Estimate(math.nan, math.nan, (0.0, 1.0), 0, level=level, method=method)
    z = NormalDist().inv_cdf((1 + level) / 2)
    low = _score_end(max(once - 1.0, 0.0), twice, total, -z)
    high = _score_end(min(once + 0.5, float(total)), twice, total, z)
    value = once / total
    variance = value * (1 - value) / total + 2 * twice / total**2
    return Estimate(
        value,
        math.sqrt(variance) if variance > 0 else math.nan,
        (min(max(0.0, low), value), max(min(1.0, high), value)),  # a root may be an ulp off
        total,
        level=level,
        method=method,
    )


def _score_end(once: float, twice: int, total: int, z: float) -> float:
    """Return one root M of (once/total - M)^2 = z^2 (M (1 - M)/total + 2 twice/total^2)."""
    share, square = once / total, z * z
    a, b = 1 + square / total, 2 * share + square / total
    c = share**2 - 2 * square * twice / total**2
    return (b + math.copysign(math.sqrt(max(b * b - 4 * a * c, 0.0)), z)) / (2 * a)


def success_rate(
    successes: int,
    trials: int,
    *,
    level: float = 0.95,
    method: str = "Clopper-Pearson",
    seed: int | None = None,
) -> Estimate:
    r"""Return the probability of success behind `successes` of `trials`, by Clopper and Pearson.

    From quantile $t$ of Beta(s, n-s+1) to $1-t$ of Beta(s+1, n-s), where $t$ is (1 - level)/2.

    Args:
        successes: How many trials succeeded.
        trials: How many there were.
        level: Nominal coverage; the exact two-sided interval covers at least so often.
        method: What the trials were.
        seed: What drew them.

    Returns:
        The estimate; its standard error is NaN, no false zero, where all or none succeeded.

    Raises:
        ValueError: If the counts cannot be or `level` is not in (0, 1).

    Source:
        Clopper & Pearson, Biometrika 26, 404 (1934).

    Example:
        >>> print(success_rate(18, 20))
        0.90 in [0.68, 0.99] (95 %)
    """
    _check_level(level)
    if successes % 1 or trials % 1 or trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} trials cannot have succeeded")
    lost, tail, value = trials - successes, (1 - level) / 2, successes / trials
    low = float(betaincinv(successes, lost + 1, tail)) if successes else 0.0
    high = float(betainccinv(successes + 1, lost, tail)) if lost else 1.0
    stderr = math.sqrt(value * (1 - value) / trials) if successes and lost else math.nan
    return Estimate(value, stderr, (low, high), trials, level=level, method=method, seed=seed)
