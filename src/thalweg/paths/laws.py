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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from thalweg.estimate import Estimate
from thalweg.paths.law_fits import FAMILIES, NULL, Array, Data, Errors, Profile, at_edge, rate_range

__all__ = ["FAMILIES", "LawChoice", "LawFit", "curviness_law"]

_FORMS = {
    "power": "{a:.4g} L^-{b:.4g}",
    "exponential": "{a:.4g} exp(-{b:.4g} L)",
    "logarithmic": "{a:.4g} log(1 + {b:.4g} / L)",
}


_STEEP = "steeper than the steepest rate sought"
_LIMITS: dict[Errors, dict[tuple[str, int], str]] = {
    "gaussian": {
        ("power", -1): "a straight line in log L",
        ("exponential", -1): "a straight line in L",
        ("logarithmic", -1): "a multiple of 1/L",
        ("logarithmic", 1): "a straight line in log L",
    },
    "lognormal": {
        ("power", -1): "a constant",
        ("exponential", -1): "a constant",
        ("logarithmic", -1): "a multiple of 1/L",
        ("logarithmic", 1): "nearly a constant",
    },
}
"""What is left of a law whose rate is at an end of those sought, the low (-1) or the high (1)."""


@dataclass(frozen=True, slots=True)
class LawFit:
    """One candidate: its parameters on all the data, and how well it predicts new seeds.

    Attributes:
        family: Its name.
        parameters: ``a``, ``b`` and, for lengths, ``c``.
        rate: The rate b with its jackknife interval over the seeds left out; all rates, where
            a fit ended at an end of those sought and the jackknife says nothing.
        score: The log-likelihood of the seeds left out, summed.
        stderr: Its standard error over the seeds.
        lead: The winner's score minus this one.
        lead_stderr: The standard error of that difference, seed by seed.
        limit: What the law is at an end of the rates sought, where the rate of a fit, to all
            the data or to a part of it, ended there; else "".
    """

    family: str
    parameters: dict[str, float]
    rate: Estimate
    score: float
    stderr: float
    lead: float
    lead_stderr: float
    limit: str = ""

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
            + (f" (at an end of the rates sought: {self.limit})" if self.limit else "")
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
            "limit": self.limit,
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
        null = f"{NULL:<12} log-likelihood {self.constant:.2f}"
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
    $\max(2, t_{0.975, S-1})$ standard errors of the difference over the $S$ seeds, and if none
    of its rates ended at an end of those sought, where a family is another law (an exponential
    of rate 0 is a straight line in L); else the answer is ``"unresolved"``, as it is where a
    rival wanted a steeper rate than was sought.

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
    bounds = {name: rate_range(name, data.level, data.errors) for name in (*candidates, NULL)}
    parts = _parts(data.group, count, folds)
    scores = {name: np.zeros(count) for name in (*candidates, NULL)}
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for part in parts:
        away = np.isin(data.group, part)
        for name in scores:
            fitted = Profile(name, data.take(~away), bounds[name]).fit()
            if name != NULL:
                rates[name].append(fitted.b)
            for seed in part:
                scores[name][seed] = fitted.log_density(data.take(data.group == seed))
    order = sorted(candidates, key=lambda name: -float(scores[name].sum()))
    fits = tuple(_report(name, data, scores, rates[name], order[0]) for name in order)
    answer, reason = _decide(fits, scores, seeds is not None)
    constant = float(scores[NULL].sum())
    return LawChoice(answer, reason, fits, constant, errors, count, len(data.y))


def _checked(
    levels: ArrayLike,
    values: ArrayLike,
    seeds: Sequence[int | str] | NDArray[Any] | None,
    candidates: Sequence[str],
    errors: str,
) -> tuple[Data, int]:
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
    return Data(x, np.log(y) if errors == "lognormal" else y, group, errors), count  # type: ignore[arg-type]  # checked above


def _parts(group: NDArray[np.int64], count: int, folds: int | None) -> list[NDArray[np.int64]]:
    if folds is not None and not 2 <= folds <= count:
        raise ValueError(f"folds must lie between 2 and the {count} seeds, not {folds}")
    return [np.asarray(part) for part in np.array_split(np.arange(count), folds or count)]


def _report(
    name: str, data: Data, scores: dict[str, Array], rates: list[float], best: str
) -> LawFit:
    bounds = rate_range(name, data.level, data.errors)
    whole = Profile(name, data, bounds).fit()
    n = len(rates)
    spread = math.sqrt((n - 1) / n * float(np.square(np.array(rates) - np.mean(rates)).sum()))
    reach = float(stats.t.ppf(0.975, n - 1)) * spread
    edges = {at_edge(bounds, b) for b in (whole.b, *rates)} - {0}
    low, high = (0.0, math.inf) if edges else (max(0.0, whole.b - reach), whole.b + reach)
    limits = _LIMITS[data.errors]
    rate = Estimate(
        whole.b, spread, (low, high), n,
        method="maximum likelihood; jackknife over the parts left out",
    )  # fmt: skip
    own, gap = scores[name], scores[best] - scores[name]
    return LawFit(
        name, whole.parameters(data.errors), rate, float(own.sum()), _error(own),
        float(gap.sum()), _error(gap),
        " or ".join(limits.get((name, edge), _STEEP) for edge in sorted(edges)),
    )  # fmt: skip


def _error(terms: Array) -> float:
    """Return the standard error of a sum of terms."""
    return math.sqrt(len(terms)) * float(terms.std(ddof=1))


def _decide(fits: tuple[LawFit, ...], scores: dict[str, Array], grouped: bool) -> tuple[str, str]:
    best, count = fits[0], len(scores[NULL])
    wanted = max(2.0, float(stats.t.ppf(0.975, count - 1)))
    gain = scores[best.family] - scores[NULL]
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
    if best.limit:
        return "unresolved", (
            f"{best.family} predicts best, but at an end of the rates sought, where it is "
            f"{best.limit}"
        )
    if steep := [rival.family for rival in fits[1:] if _STEEP in rival.limit]:
        return "unresolved", (
            f"{best.family} predicts best, but {steep[0]} may be {_STEEP}, and better there"
        )
    against = (
        f"leads {fits[1].family} by {fits[1].lead:.2f} ± {fits[1].lead_stderr:.2f}"
        if len(fits) > 1
        else "was the only candidate"
    )
    return best.family, f"{against} in cross-validated log-likelihood over {count} " + (
        "seeds" if grouped else "values"
    )
