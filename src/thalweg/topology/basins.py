"""What a sample of minima says about the minima that it does not hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from scipy.special import ndtri

from thalweg.estimate import Estimate, good_turing, success_rate

__all__ = [
    "BasinStatement",
    "Reference",
    "basin_statement",
    "distinct_minima",
    "outside_probability",
    "unseen_probability",
]

Reference: TypeAlias = Literal["named", "sampled"]
"""Whether the basin was named beforehand, or is that of a seed of the same sample."""


@dataclass(frozen=True, slots=True)
class BasinStatement:
    """What may be said about "the basins" after a number of independent seeds.

    Args:
        joined: How many of the sampled minima lie in the basin.
        total: How many were sampled.
        outside: The probability that a fresh seed leads outside the basin.
        unseen: The probability that a fresh seed leads to a minimum not sampled yet; None
            if nothing is known of which minima are distinct.
        distinct: A lower bound of the number of distinct minima, estimated; None likewise.
        below: The level below which the minima are joined, or None.
        reference: Whether the basin was named beforehand.
        tolerance: In words, when two minima count as one.
    """

    joined: int
    total: int
    outside: Estimate
    unseen: Estimate | None
    distinct: Estimate | None
    below: float | None = None
    reference: Reference = "named"
    tolerance: str = ""

    def __str__(self) -> str:
        """Return the statement in words, with what it assumes."""
        where = "" if self.below is None else f" below {self.below:.6g}"
        share = f"All {self.total}" if self.joined == self.total else f"{self.joined}"
        of = "" if self.joined == self.total else f" of {self.total}"
        low, high = self.outside.interval
        percent = f"({100 * self.outside.level:.4g} %, exact)"
        chance = f"below {high:.3g}" if low == 0 else f"between {low:.3g} and {high:.3g}"
        lines = [
            f"{share}{of} sampled minima are joined{where}: a fresh seed leads outside that basin "
            f"with probability {chance} {percent}."
        ]
        if self.unseen is not None and self.distinct is not None:
            low, high = self.unseen.interval
            lines.append(
                f"It leads to a minimum not seen yet with probability about "
                f"{self.unseen.value:.3g} (between {low:.3g} and {high:.3g}, "
                f"{100 * self.unseen.level:.4g} %); there are about {self.distinct.value:.3g} "
                f"distinct minima or more (Chao's lower bound, {self.distinct.interval[0]:.3g} to "
                f"{self.distinct.interval[1]:.3g})."
            )
        lines.append(f"This assumes {self._assumptions()}.")
        return " ".join(lines)

    def _assumptions(self) -> str:
        words = ["that the seeds are independent draws of one procedure"]
        if self.reference == "named":
            words.append("that the basin was named before these seeds were drawn")
        if self.unseen is not None:
            when = self.tolerance or "the labels given say so"
            words.append(f"that two minima are one exactly if {when}")
        return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]

    def __rich__(self) -> str:
        """Return the words for a terminal."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary with the counts and the estimates."""
        return {
            "type": "basin_statement",
            "joined": self.joined,
            "total": self.total,
            "outside": self.outside.to_json(),
            "unseen": None if self.unseen is None else self.unseen.to_json(),
            "distinct": None if self.distinct is None else self.distinct.to_json(),
            "below": self.below,
            "reference": self.reference,
            "tolerance": self.tolerance,
        }


def basin_statement(
    joined: int,
    total: int,
    *,
    labels: Sequence[Hashable] | None = None,
    below: float | None = None,
    reference: Reference = "named",
    tolerance: str = "",
    level: float = 0.95,
) -> BasinStatement:
    """Return what `total` sampled minima, `joined` of them in one basin, say about the rest.

    Args:
        joined: How many of the sampled minima lie in the basin.
        total: How many were sampled, each from a seed of its own.
        labels: For each seed, which minimum it led to; equal labels are one minimum. None
            leaves out what is said about unseen minima.
        below: The level below which the minima are joined, for the words.
        reference: ``"sampled"`` if the basin was chosen in view of the sample, such as the
            one that holds most of it; one seed then only names the basin and is not counted.
        tolerance: In words, when two minima have the same label, such as "their aligned
            distance is below 1e-3".
        level: Nominal coverage of each interval.

    Returns:
        The statement.

    Raises:
        ValueError: If the counts cannot be, `labels` has another length, or `level` is not
            in (0, 1).

    Example:
        >>> print(basin_statement(20, 20, below=0.31))
        All 20 sampled minima are joined below 0.31: ... probability below 0.139 (95 %, exact)...
    """
    if labels is not None and len(labels) != total:
        raise ValueError(f"{total} seeds need {total} labels, one each, not {len(labels)}")
    return BasinStatement(
        joined,
        total,
        outside_probability(joined, total, reference=reference, level=level),
        None if labels is None else unseen_probability(labels, level=level),
        None if labels is None else distinct_minima(labels, level=level),
        below,
        reference,
        tolerance,
    )


def outside_probability(
    joined: int, total: int, *, reference: Reference = "named", level: float = 0.95
) -> Estimate:
    r"""Return the probability that a fresh seed leads outside a basin, by Clopper and Pearson.

    If all $K$ seeds lie in the basin, it is below $1 - (1 - \mathrm{level})^{1/K}$
    (one-sided); otherwise the interval is that of `thalweg.estimate.success_rate`. A basin that
    is named by the sample itself takes one seed to name it: the rest are then independent of
    the choice.

    Args:
        joined: How many of the seeds lie in the basin.
        total: How many seeds there are.
        reference: Whether the basin was ``"named"`` beforehand or ``"sampled"``.
        level: Nominal coverage.

    Returns:
        The estimate; its interval covers at least at `level`, whatever the truth.

    Raises:
        ValueError: If the counts cannot be or `level` is not in (0, 1).

    Source:
        Clopper & Pearson, Biometrika 26, 404 (1934).

    Example:
        >>> outside_probability(20, 20).interval == (0.0, 1 - 0.05 ** (1 / 20))
        True
        >>> print(outside_probability(18, 20))
        0.10 in [0.01, 0.32] (95 %)
    """
    least = 0 if reference == "named" else 1
    if not least <= joined <= total or total < 1:
        raise ValueError(
            f"{joined} of {total} seeds cannot lie in a {reference} basin; at least {least} and "
            "at most all of them do"
        )
    _check_level(level)
    size = total - least
    out = total - joined
    if out == 0:
        value, top = (0.0, 1 - (1 - level) ** (1 / size)) if size else (math.nan, 1.0)
        method = "Clopper-Pearson, one-sided"
        return Estimate(value, math.nan, (0.0, top), size, level=level, method=method)
    return success_rate(out, size, level=level, method="Clopper-Pearson, two-sided")


def unseen_probability(labels: Sequence[Hashable], *, level: float = 0.95) -> Estimate:
    r"""Return the probability that a fresh seed leads to a minimum not seen, by Good and Turing.

    `thalweg.estimate.good_turing` of the minima seen once and twice, with formula and interval.

    Args:
        labels: For each seed, which minimum it led to.
        level: Nominal coverage.

    Returns:
        The estimate.

    Raises:
        ValueError: If there are no labels or `level` is not in (0, 1).

    Example:
        >>> print(unseen_probability(["a"] * 12 + ["b"] * 5 + ["c", "d", "e"]))
        0.15 in [0.03, 0.39] (95 %)
    """
    once, twice, total = _tally(labels)
    return good_turing(once, twice, total, level=level)


def distinct_minima(labels: Sequence[Hashable], *, level: float = 0.95) -> Estimate:
    r"""Return Chao's estimate of a lower bound of the number of distinct minima.

    $\hat S = S + \frac{K-1}{K} \frac{n_1 (n_1 - 1)}{2 (n_2 + 1)}$ with $S$ minima seen,
    $n_1$ of them once and $n_2$ twice. In expectation it is no more than the truth where
    minima differ in how often they are found, so the interval is one of the bound, not of
    the number.

    Args:
        labels: For each seed, which minimum it led to.
        level: Nominal coverage, of the bound.

    Returns:
        The estimate; the interval is log-normal and never below what was seen.

    Raises:
        ValueError: If there are no labels or `level` is not in (0, 1).

    Source:
        Chao, Scand. J. Statist. 11, 265 (1984); Biometrics 43, 783 (1987), for the interval.

    Example:
        >>> distinct_minima(["a"] * 12 + ["b"] * 5 + ["c", "d", "e"]).value
        7.85
    """
    once, twice, total = _tally(labels)
    _check_level(level)
    seen = len(set(labels))
    share = (total - 1) / total
    more = share * once * (once - 1) / (2 * (twice + 1))
    variance = (
        more
        + share**2 * once * (2 * once - 1) ** 2 / (4 * (twice + 1) ** 2)
        + share**2 * once**2 * twice * (once - 1) ** 2 / (4 * (twice + 1) ** 4)
    )
    interval = (float(seen), float(seen))
    if more > 0:
        z = float(ndtri((1 + level) / 2))
        factor = math.exp(z * math.sqrt(math.log1p(variance / more**2)))
        interval = (seen + more / factor, seen + more * factor)
    return Estimate(
        seen + more,
        math.sqrt(variance) if variance > 0 else math.nan,
        interval,
        total,
        level=level,
        method="Chao1, bias-corrected: a lower bound",
    )


def _tally(labels: Sequence[Hashable]) -> tuple[int, int, int]:
    """Return how many minima were seen once and twice, and how many seeds there are."""
    if len(labels) == 0:
        raise ValueError("no seeds: give one label for each minimum that was sampled")
    times = Counter(Counter(labels).values())
    return times[1], times[2], len(labels)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, not {level!r}")
