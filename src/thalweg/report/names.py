"""How a report names minima and writes numbers that carry no type of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from thalweg.estimate import Bound, Cost, Estimate
from thalweg.survey.records import MinimumRecord, SurveyRecord

__all__ = [
    "BELOW",
    "NONE",
    "bracket",
    "count",
    "labels",
    "listing",
    "number",
    "pair",
    "plain",
    "span",
    "top_eigenvalue",
]

BELOW = "below\N{NO-BREAK SPACE}\N{MINUS SIGN}τ"
"""Where an eigenvalue counts as negative."""

NONE = "\N{EN DASH}"
"""What stands for a value that was not measured."""

_LONGEST = 14


def labels(record: SurveyRecord) -> dict[str, str]:
    """Return a short name for every minimum: its id, or the shortest unique start of it.

    Example:
        >>> from thalweg.estimate import Cost
        >>> empty = SurveyRecord("s", "", {}, {}, 2, (), (), (), None, Cost(), 0.0, True)
        >>> labels(empty)
        {}
    """
    ids = [minimum.id for minimum in record.minima]
    ids += [end for path in record.paths for end in (path.a, path.b)]
    ids += map(str, record.tree.leaves) if record.tree else []
    ids = list(dict.fromkeys(ids))
    longest = max((len(name) for name in ids), default=0)
    if longest <= _LONGEST:
        return {name: name for name in ids}
    for length in range(8, longest):
        if len({name[:length] for name in ids}) == len(ids):
            return {n: n if len(n) <= length + 1 else n[:length] + "…" for n in ids}
    return {name: name for name in ids}


def pair(names: dict[str, str], a: str, b: str) -> str:
    """Return the labels of two minima, joined by a dash."""
    return f"{names[a]} {NONE} {names[b]}"


def plain(value: Estimate) -> str:
    """Return an estimate as a string without its cost."""
    return str(replace(value, cost=Cost()))


def bracket(lower: float, upper: float) -> str:
    """Return an interval as `Bound` writes it, without the kinds of its ends.

    Example:
        >>> bracket(1.25, 1.375)
        'between 1.25 and 1.375'
        >>> bracket(2.0, 2.0)
        '2'
    """
    if math.isnan(lower) or math.isnan(upper):
        return "not a number"
    return str(Bound(lower, upper, "estimated", "estimated")).replace(" (estimated)", "")


def number(value: float) -> str:
    """Return a number that has no uncertainty of its own, to six digits."""
    return f"{value:.6g}"


def count(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun.

    Example:
        >>> count(1, "path"), count(3, "path"), count(2, "minimum", "minima")
        ('1 path', '3 paths', '2 minima')
    """
    return f"{n} {one if n == 1 else many or one + 's'}"


def listing(names: Sequence[str], limit: int = 5) -> str:
    """Return names joined in words.

    Example:
        >>> listing(["a", "b", "c"]), listing(list("abcdefgh"), 3)
        ('a, b and c', 'a, b, c and 5 more')
    """
    if len(names) > limit + 1:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def span(values: Iterable[float]) -> str:
    """Return the range of some numbers in words, to three digits.

    Example:
        >>> span([0.5, 0.25]), span([2.0])
        ('0.25 to 0.5', '2')
    """
    known = sorted(values)
    low, high = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return low if low == high else f"{low} to {high}"


def top_eigenvalue(minimum: MinimumRecord) -> tuple[float, float, float, bool] | None:
    """Return the largest eigenvalue with its interval's ends and whether it converged."""
    eigen = minimum.eigenvalues
    if eigen is None or not eigen.values or any(math.isnan(v) for v in eigen.values):
        return None
    top = max(range(len(eigen.values)), key=lambda i: eigen.values[i])
    return eigen.values[top], eigen.lower[top], eigen.upper[top], eigen.converged[top]
