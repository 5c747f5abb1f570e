r"""Which law a quantity follows as the level falls: decided by cross-validated likelihood.

Three families, named in advance, with the same number of free parameters. With $g$ one of

- ``power``: $g(L) = a\, L^{-b}$,
- ``exponential``: $g(L) = a\, e^{-bL}$,
- ``logarithmic``: $g(L) = a \log(1 + b/L)$,

a length is $y = c + g(L)$ with Gaussian errors, a count $y = g(L)$ with log-normal ones. The
rate $b$ is positive; all three are flat far above some level and rise below it, without a
bound in the first and third, to $a$ in the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from thalweg.estimate import Estimate

__all__ = ["FAMILIES", "LawChoice", "LawFit", "curviness_law"]

Array = NDArray[np.float64]
Errors = Literal["gaussian", "lognormal"]
FAMILIES = ("power", "exponential", "logarithmic")
_NULL = "constant"  # what a law must beat to be one
_GRID = 17
_RATIOS = (0.0, 1e3)  # between-seed over within-seed variance
_FORMS = {
    "power": "{a:.4g} L^-{b:.4g}",
    "exponential": "{a:.4g} exp(-{b:.4g} L)",
    "logarithmic": "{a:.4g} log(1 + {b:.4g} / L)",
}


def _log_shape(family: str, level: Array, b: float, low: float) -> Array:
    """Return the logarithm of $g$ over its value at the level `low`."""
    if family == "power":
        return np.asarray(-b * np.log(level / low))
    if family == "exponential":
        return np.asarray(-b * (level - low))
    return np.asarray(np.log(np.log1p(b / level) / math.log1p(b / low)))


def _scale(family: str, low: float, b: float) -> float:
    """Return what turns the coefficient of the scaled shape into $a$."""
    if family == "power":
        return math.exp(b * math.log(low))
    if family == "exponential":
        return math.exp(min(b * low, 700.0))
    return 1 / math.log1p(b / low)


def _rates(family: str, level: Array) -> tuple[float, float]:
    """Return the rates between which $b$ is sought."""
    low, high = float(level.min()), float(level.max())
    if family == "power":
        return 1e-2, 10.0
    if family == "exponential":
        return 1e-2 / high, 10 / low
    return 1e-3 * low, 1e3 * high


@dataclass(frozen=True)
class _Data:
    """Levels, responses (logarithms for counts) and the seed that each point belongs to."""

    level: Array
    y: Array
    group: NDArray[np.int64]
    errors: Errors

    def take(self, keep: NDArray[np.bool_]) -> _Data:
        return _Data(self.level[keep], self.y[keep], self.group[keep], self.errors)


@dataclass(frozen=True)
class _Fitted:
    """One family on some data: a mean, and the two variances."""

    family: str
    low: float
    b: float
    coefficients: Array  # of the constant and of the shape
    within: float  # variance of a point about its seed
    ratio: float  # variance between seeds over `within`
    freedom: int  # degrees of freedom of the variance between seeds

    def mean(self, level: Array, errors: Errors) -> Array:
        if self.family == _NULL:
            return np.full(len(level), self.coefficients[0])
        shape = _log_shape(self.family, level, self.b, self.low)
        if errors == "lognormal":
            return np.asarray(self.coefficients[0] + shape)
        with np.errstate(over="ignore"):  # a steep law may well blow up below the data
            return np.asarray(self.coefficients[0] + self.coefficients[1] * np.exp(shape))

    def parameters(self, errors: Errors) -> dict[str, float]:
        scale = _scale(self.family, self.low, self.b)
        if errors == "lognormal":
            return {"a": float(np.exp(self.coefficients[0])) * scale, "b": self.b}
        c, a = self.coefficients
        return {"c": float(c), "a": float(a) * scale, "b": self.b}

    def log_density(self, data: _Data) -> float:
        """Return the log density of one new seed's points.

        Their mean has Student's distribution, since the variance between seeds was learnt from
        few; what they deviate from it is Gaussian.
        """
        rest = data.y - self.mean(data.level, data.errors)
        n, middle = len(rest), float(rest.mean())
        wide = math.sqrt(self.within * (1 + self.ratio * n))
        density = float(stats.t.logpdf(math.sqrt(n) * middle / wide, self.freedom))
        density -= math.log(wide) + (n - 1) / 2 * math.log(2 * math.pi * self.within)
        density -= 0.5 * float(np.square(rest - middle).sum()) / self.within
        return density - (float(data.y.sum()) if data.errors == "lognormal" else 0.0)


class _Profile:
    """The likelihood of one family as a function of the rate and of the variance ratio."""

    def __init__(self, family: str, data: _Data) -> None:
        order = np.argsort(data.group, kind="stable")
        self.family, self.errors = family, data.errors
        self.level, self.y = data.level[order], data.y[order]
        self.low = float(data.level.min())
        _, self.starts, self.sizes = np.unique(
            data.group[order], return_index=True, return_counts=True
        )
        self.free = 1 if family == _NULL else 2 if data.errors == "lognormal" else 3
        self.spare = max(1, len(data.y) - self.free)

    def solve(self, b: float, ratio: float) -> tuple[Array, float]:
        """Return the coefficients and the sum of squares for one rate and ratio.

        Products are taken with the inverse covariance of the errors, in which the share that a
        seed's values have in common is a term of rank one.
        """
        y, columns = self.y, [np.ones_like(self.y)]
        if self.family != _NULL:
            shape = _log_shape(self.family, self.level, b, self.low)
            if self.errors == "lognormal":
                y = y - shape
            else:
                columns.append(np.exp(shape))
        table = np.stack([*columns, y])
        sums = np.add.reduceat(table, self.starts, axis=1)
        product = table @ table.T - (sums * (ratio / (1 + ratio * self.sizes))) @ sums.T
        cross = product[:-1, -1]
        solved = _normal_equations(product)
        return solved, max(0.0, float(product[-1, -1] - cross @ solved))

    def loss(self, b: float, ratio: float) -> float:
        """Return minus twice the log likelihood, up to a constant."""
        _, squares = self.solve(b, ratio)
        floor = np.finfo(float).tiny
        penalty = float(np.log1p(ratio * self.sizes).sum())
        return len(self.y) * math.log(max(squares, floor)) + penalty

    def fit(self) -> _Fitted:
        """Maximise over the rate and the ratio in turn."""
        b, ratio = 1.0, 0.0
        grouped = bool((self.sizes > 1).any()) and len(self.sizes) > 1
        for _ in range(2 if grouped else 1):
            if self.family != _NULL:
                low, high = _rates(self.family, self.level)
                b = math.exp(_least(lambda x: self.loss(math.exp(x), ratio), low, high))  # noqa: B023
            if grouped:
                ratio = _least_ratio(lambda x: self.loss(b, x))  # noqa: B023
        solved, squares = self.solve(b, ratio)
        tiny = np.finfo(float).eps * (1e-12 + float(np.square(self.y).mean()))
        return _Fitted(
            self.family, self.low, b, solved,
            max(squares / self.spare, tiny), ratio, len(self.sizes) - 1,
        )  # fmt: skip


def _normal_equations(product: Array) -> Array:
    """Solve for one or two coefficients; a shape that is constant gets none."""
    whole = product[0, 0]
    if len(product) == 3:
        mixed, own = product[0, 1], product[1, 1]
        det = whole * own - mixed**2
        if det > 1e-12 * whole * own:
            c = (own * product[0, 2] - mixed * product[1, 2]) / det
            return np.array([c, (whole * product[1, 2] - mixed * product[0, 2]) / det])
        return np.array([product[0, 2] / whole, 0.0])
    return np.array([product[0, 1] / whole])


def _least(loss: Callable[[float], float], low: float, high: float) -> float:
    """Return the logarithm at which `loss` is least: a grid, then Brent's method."""
    grid = np.linspace(math.log(low), math.log(high), _GRID)
    best = int(np.argmin([loss(float(x)) for x in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    found = optimize.minimize_scalar(loss, bounds=ends, method="bounded")
    return float(found.x) if found.fun <= loss(float(grid[best])) else float(grid[best])


def _least_ratio(loss: Callable[[float], float]) -> float:
    found = optimize.minimize_scalar(
        lambda x: loss(math.expm1(x)),
        bounds=(math.log1p(_RATIOS[0]), math.log1p(_RATIOS[1])),
        method="bounded",
    )
    ratio = math.expm1(float(found.x))
    return ratio if found.fun <= loss(0.0) else 0.0


@dataclass(frozen=True, slots=True)
class LawFit:
    """One candidate: its parameters on all the data, and how well it predicts new seeds.

    Attributes:
        family: Its name.
        parameters: ``a``, ``b`` and, for lengths, ``c``.
        rate: The rate b with its jackknife interval over the seeds left out.
        score: The log-likelihood of the seeds left out, summed.
        stderr: Its standard error over the seeds.
        lead: The winner's score minus this one.
        lead_stderr: The standard error of that difference, seed by seed.
    """

    family: str
    parameters: dict[str, float]
    rate: Estimate
    score: float
    stderr: float
    lead: float
    lead_stderr: float

    @property
    def formula(self) -> str:
        """The law with its numbers."""
        tail = _FORMS[self.family].format(**self.parameters)
        return f"{self.parameters['c']:.4g} + {tail}" if "c" in self.parameters else tail

    def __str__(self) -> str:
        """Return one line: the law, its rate, its score."""
        return (
            f"{self.family:<12} y = {self.formula:<34} b = {self.rate.value:.4g} in "
            f"[{self.rate.interval[0]:.4g}, {self.rate.interval[1]:.4g}], "
            f"log-likelihood {self.score:.2f} ± {self.stderr:.2f}, "
            f"behind by {self.lead:.2f} ± {self.lead_stderr:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "type": "law_fit",
            "family": self.family,
            "parameters": {name: _word(x) for name, x in self.parameters.items()},
            "rate": self.rate.to_json(),
            **{
                name: _word(getattr(self, name))
                for name in ("score", "stderr", "lead", "lead_stderr")
            },
        }


@dataclass(frozen=True, slots=True)
class LawChoice:
    """Which law was chosen, or that the data do not decide.

    Attributes:
        answer: The family's name, or ``"unresolved"``.
        reason: What decides it, or what would, in a sentence.
        fits: Every candidate, best first.
        constant: The score of no law at all: the same errors about a constant.
        errors: ``"gaussian"`` or ``"lognormal"``.
        groups: How many seeds (or single points, where no seeds were given).
        points: How many values.
    """

    answer: str
    reason: str
    fits: tuple[LawFit, ...]
    constant: float
    errors: Errors
    groups: int
    points: int

    @property
    def unresolved(self) -> bool:
        """Whether the data do not decide."""
        return self.answer == "unresolved"

    def __getitem__(self, family: str) -> LawFit:
        """Return the fit of one candidate."""
        for fit in self.fits:
            if fit.family == family:
                return fit
        known = ", ".join(fit.family for fit in self.fits)
        raise KeyError(f"{family!r} was no candidate; there are {known}")

    def __str__(self) -> str:
        """Return the answer, and every candidate on a line."""
        head = f"{self.answer}: {self.reason}"
        null = f"{_NULL:<12} log-likelihood {self.constant:.2f}"
        return "\n".join([head, *(f"  {fit}" for fit in self.fits), f"  {null}"])

    def __rich__(self) -> str:
        """Return the lines with the answer in colour."""
        colour = "yellow" if self.unresolved else "green"
        text = str(self).replace("[", "\\[")
        return text.replace(self.answer, f"[{colour}]{self.answer}[/{colour}]", 1)

    def to_json(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "type": "law_choice",
            "answer": self.answer,
            "reason": self.reason,
            "fits": [fit.to_json() for fit in self.fits],
            "constant": _word(self.constant),
            "errors": self.errors,
            "groups": self.groups,
            "points": self.points,
        }


def _word(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def curviness_law(
    levels: ArrayLike,
    values: ArrayLike,
    seeds: Sequence[int | str] | NDArray[Any] | None = None,
    *,
    candidates: Sequence[str] = FAMILIES,
    errors: Errors = "gaussian",
    folds: int | None = None,
) -> LawChoice:
    r"""Decide which law `values` follow as the level falls.

    Candidates: ``power`` $aL^{-b}$, ``exponential`` $ae^{-bL}$, ``logarithmic``
    $a\log(1 + b/L)$; with ``errors="gaussian"`` (lengths) each with an additive constant
    $c$, with ``"lognormal"`` (counts) without. Two or three free parameters, the same for
    all. Errors are $u_s + \epsilon_{sj}$, the first shared by all levels of seed $s$.

    Every seed is left out in turn, the law and both variances are fitted by maximum
    likelihood to the others (the variance with the degrees of freedom that are left), and
    the left-out seed's values are scored together by their log density: Student's for their
    mean (as many degrees of freedom as seeds less one), Gaussian about it. The candidate with the
    highest total wins if it leads each of the others, and a constant, by more than
    $\max(2, t_{0.975, S-1})$ standard errors of the difference over the $S$ seeds, else the
    answer is ``"unresolved"``.

    Args:
        levels: The loss level of every value, `(n,)`, positive.
        values: The values, `(n,)`; positive for log-normal errors.
        seeds: Which seed each belongs to, `(n,)`; None makes every value its own seed, for
            published means of which nothing else is known.
        candidates: Which families compete.
        errors: ``"gaussian"`` or ``"lognormal"``.
        folds: Into how many parts the seeds are divided, one left out at a time; by default
            each seed is a part.

    Returns:
        The choice, with every candidate's fit and score.

    Raises:
        ValueError: If lengths differ, a number is not finite, a level (or a count) is not
            positive, a candidate is unknown, or there are too few levels or seeds.

    Source:
        The published beads are figure 1b of Freeman and Bruna, ICLR 2017.

    Example:
        >>> levels = [.001, .0025, .005, .0075, .01, .025, .05, .075, .1, .125]
        >>> beads = [62.4, 38.3, 23.5, 18.8, 13.8, 8.17, 6.81, 5.40, 5.04, 3.98]
        >>> law = curviness_law(levels, beads, errors="lognormal")
        >>> law.answer, round(-law["power"].parameters["b"], 2)
        ('power', -0.57)
    """
    data, count = _checked(levels, values, seeds, candidates, errors)
    parts = _parts(data.group, count, folds)
    scores = {name: np.zeros(count) for name in (*candidates, _NULL)}
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for part in parts:
        away = np.isin(data.group, part)
        for name in scores:
            fitted = _Profile(name, data.take(~away)).fit()
            if name != _NULL:
                rates[name].append(fitted.b)
            for seed in part:
                scores[name][seed] = fitted.log_density(data.take(data.group == seed))
    order = sorted(candidates, key=lambda name: -float(scores[name].sum()))
    fits = tuple(_report(name, data, scores, rates[name], order[0]) for name in order)
    answer, reason = _decide(fits, scores, seeds is not None)
    constant = float(scores[_NULL].sum())
    return LawChoice(answer, reason, fits, constant, errors, count, len(data.y))


def _checked(
    levels: ArrayLike,
    values: ArrayLike,
    seeds: Sequence[int | str] | NDArray[Any] | None,
    candidates: Sequence[str],
    errors: str,
) -> tuple[_Data, int]:
    x = np.asarray(levels, dtype=np.float64).ravel()
    y = np.asarray(values, dtype=np.float64).ravel()
    names = np.arange(len(y)) if seeds is None else np.asarray(seeds).ravel()
    if not len(x) == len(y) == len(names):
        raise ValueError(
            f"levels, values and seeds must be of one length, not {len(x)}, {len(y)} and "
            f"{len(names)}"
        )
    if errors not in ("gaussian", "lognormal"):
        raise ValueError(f"errors must be 'gaussian' or 'lognormal', not {errors!r}")
    unknown = [name for name in candidates if name not in FAMILIES]
    if unknown or not candidates:
        raise ValueError(f"unknown candidates {unknown}; use some of {', '.join(FAMILIES)}")
    bad = int((~np.isfinite(x)).sum() + (~np.isfinite(y)).sum())
    if bad:
        raise ValueError(
            f"{bad} levels or values are not finite; leave out the runs that found no path"
        )
    if bool((x <= 0).any()):
        raise ValueError(f"levels must be positive, the lowest is {x.min():g}")
    if errors == "lognormal" and bool((y <= 0).any()):
        raise ValueError(f"log-normal errors need positive values, the lowest is {y.min():g}")
    _, group = np.unique(names, return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    if len(np.unique(x)) < 4 or count < 3:
        raise ValueError(
            f"{len(np.unique(x))} levels and {count} seeds tell no law; give at least 4 levels "
            "and 3 seeds"
        )
    return _Data(x, np.log(y) if errors == "lognormal" else y, group, errors), count  # type: ignore[arg-type]  # checked above


def _parts(group: NDArray[np.int64], count: int, folds: int | None) -> list[NDArray[np.int64]]:
    if folds is not None and not 2 <= folds <= count:
        raise ValueError(f"folds must lie between 2 and the {count} seeds, not {folds}")
    return [np.asarray(part) for part in np.array_split(np.arange(count), folds or count)]


def _report(
    name: str, data: _Data, scores: dict[str, Array], rates: list[float], best: str
) -> LawFit:
    whole = _Profile(name, data).fit()
    n = len(rates)
    spread = math.sqrt((n - 1) / n * float(np.square(np.array(rates) - np.mean(rates)).sum()))
    reach = float(stats.t.ppf(0.975, n - 1)) * spread
    rate = Estimate(
        whole.b, spread, (whole.b - reach, whole.b + reach), n,
        method="maximum likelihood; jackknife over the parts left out",
    )  # fmt: skip
    own, gap = scores[name], scores[best] - scores[name]
    return LawFit(
        name, whole.parameters(data.errors), rate, float(own.sum()), _error(own),
        float(gap.sum()), _error(gap),
    )  # fmt: skip


def _error(terms: Array) -> float:
    """Return the standard error of a sum of terms."""
    return math.sqrt(len(terms)) * float(terms.std(ddof=1))


def _decide(fits: tuple[LawFit, ...], scores: dict[str, Array], grouped: bool) -> tuple[str, str]:
    best, count = fits[0], len(scores[_NULL])
    wanted = max(2.0, float(stats.t.ppf(0.975, count - 1)))
    gain = scores[best.family] - scores[_NULL]
    if not float(gain.sum()) > wanted * _error(gain):
        return "unresolved", (
            f"no law predicts a left-out {'seed' if grouped else 'value'} better than a constant "
            f"does: the best, {best.family}, gains {gain.sum():.2f} ± {_error(gain):.2f}"
        )
    for rival in fits[1:]:
        if not rival.lead > wanted * rival.lead_stderr:
            return "unresolved", (
                f"{best.family} predicts best, but leads {rival.family} by "
                f"{rival.lead:.2f} ± {rival.lead_stderr:.2f} only, where {wanted:.2g} standard "
                "errors were asked for; more seeds or lower levels would decide"
            )
    against = (
        f"leads {fits[1].family} by {fits[1].lead:.2f} ± {fits[1].lead_stderr:.2f}"
        if len(fits) > 1
        else "was the only candidate"
    )
    return best.family, f"{against} in cross-validated log-likelihood over {count} " + (
        "seeds" if grouped else "values"
    )
