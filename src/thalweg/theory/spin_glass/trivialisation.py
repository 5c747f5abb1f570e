r"""How a random field empties a spin glass of critical points, counted in samples.

The mean number of critical points is known at every size (`kac_rice`); here they are counted
disorder by disorder: on the circle by the roots of a polynomial, for few spins completely by
homotopy, and otherwise from many starts, which gives a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from thalweg.estimate import Estimate, success_rate
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.enumeration import enumerate_samples
from thalweg.theory.spin_glass.homotopy import class_count
from thalweg.theory.spin_glass.kac_rice import expected_critical_points
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.search import find_critical_points
from thalweg.theory.spin_glass.thresholds import trivialising_field
from thalweg.theory.statistics import sample_mean

__all__ = ["Trivialisation", "circle_critical_points", "trivialisation"]

Method = Literal["circle", "complete", "search"]
Progress = Callable[[float, str], None]
_MOST_CLASSES = 400  # of a homotopy that is worth following for every disorder


def circle_critical_points(glass: SphericalPSpin, *, degree: int) -> Float[np.ndarray, " points"]:
    r"""Return all critical angles of a spin glass of two spins.

    On the circle the energy is a trigonometric polynomial; the critical angles are the roots of
    unit modulus of its derivative, a polynomial of twice the degree in $e^{i\varphi}$.

    Args:
        glass: A landscape on the circle.
        degree: The largest degree in it.

    Returns:
        The angles in $[0, 2\pi)$, rising.

    Raises:
        ValueError: If the landscape does not have two coordinates.

    Example:
        >>> len(circle_critical_points(SphericalPSpin(2, 2, seed=0), degree=2))
        4
    """
    if glass.n != 2:
        raise ValueError(f"two spins live on a circle, {glass.n} do not")
    count = 2 * degree + 2
    angles = 2 * np.pi * np.arange(count) / count
    circle = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1), dtype=glass.dtype)
    coefficients = np.fft.fft(glass.loss(circle).double().numpy()) / count
    orders = np.arange(-degree, degree + 1)
    slope = 1j * orders * coefficients[orders % count]
    roots = np.roots(slope[::-1])
    # a root off the circle has a mirror image 1 / conj(z); one on it is its own
    own = [np.argmin(np.abs(1 / np.conj(z) - roots)) == k for k, z in enumerate(roots) if z != 0]
    found = np.sort(np.angle(roots[roots != 0][own]) % (2 * np.pi))
    return np.asarray(found, dtype=np.float64)


@dataclass(frozen=True)
class Trivialisation:
    r"""Critical points counted in samples, against the strength of a random field.

    Attributes:
        n: Number of spins.
        p: Degree of the spin glass.
        fields: Standard deviations of the field on one spin, `(fields,)`.
        counts: Critical points found, `(fields, disorders)`.
        minima: Minima among them, `(fields, disorders)`.
        expected: The exact mean of `counts` over all disorder, `(fields,)`.
        complete: Whether `counts` are all critical points, or what a search found.
        level: Nominal coverage of the intervals.
        seed: What drew the disorder.
        method: How they were counted.
    """

    n: int
    p: int
    fields: Float[np.ndarray, " fields"]
    counts: Int[np.ndarray, "fields disorders"]
    minima: Int[np.ndarray, "fields disorders"]
    expected: Float[np.ndarray, " fields"]
    complete: bool
    level: float
    seed: int
    method: str

    @property
    def means(self) -> tuple[Estimate, ...]:
        """The mean number of critical points, one estimate per field."""
        return tuple(
            sample_mean(
                row.astype(np.float64), level=self.level, method=self.method, seed=self.seed
            )
            for row in self.counts
        )

    @property
    def trivial(self) -> tuple[Estimate, ...]:
        """The share of disorders with one minimum and one maximum alone, per field."""
        return tuple(
            success_rate(
                int((row == 2).sum()),
                len(row),
                level=self.level,
                method=self.method,
                seed=self.seed,
            )
            for row in self.counts
        )

    def __str__(self) -> str:
        """Return a table over the fields."""
        enough = math.sqrt(trivialising_field(self.p))
        lines = [
            f"{self.p}-spin in a field, n = {self.n}, {self.counts.shape[1]} disorders "
            f"({self.method}); trivial above s = {enough:.4g} as n grows",
            f"  {'field':>7} {'exact mean':>11}   {'counted':24} {'minima':>7}  trivial",
        ]
        for k, (mean, share) in enumerate(zip(self.means, self.trivial, strict=True)):
            counted = str(mean).partition(" (")[0]
            lines.append(
                f"  {self.fields[k]:7.4g} {self.expected[k]:11.4f}   {counted:24} "
                f"{self.minima[k].mean():7.3f}  {share}"
            )
        if not self.complete:
            lines.append("  the search may miss points: its counts are lower bounds; raise starts")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", r"\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain numbers."""
        return {
            "type": "trivialisation",
            "n": self.n,
            "p": self.p,
            "fields": self.fields.tolist(),
            "counts": self.counts.tolist(),
            "minima": self.minima.tolist(),
            "expected": self.expected.tolist(),
            "complete": self.complete,
            "level": self.level,
            "seed": self.seed,
            "method": self.method,
        }


def _on_circle(glass: SphericalPSpin, p: int) -> tuple[int, int]:
    """Return the numbers of critical points and minima, which alternate with maxima."""
    count = len(circle_critical_points(glass, degree=p))
    return count, count // 2


def _count(
    glasses: Sequence[SphericalPSpin],
    p: int,
    how: Method,
    starts: int,
    generator: torch.Generator,
    progress: Progress,
) -> list[tuple[int, int]]:
    """Return the numbers of critical points and minima of every spin glass."""
    if how == "circle":
        return [_on_circle(glass, p) for glass in glasses]
    if how == "complete":
        every = enumerate_samples(list(glasses), seed=generator, progress=progress)
        lost = [one.missing for one in every if not one.complete]
        if lost:
            raise RuntimeError(
                f"{len(lost)} of {len(every)} enumerations are not complete ({lost[0]}); "
                "try another seed, or method='search'"
            )
        return [(len(one), one.counts()[0]) for one in every]
    rows = []
    for k, glass in enumerate(glasses):
        found = find_critical_points(glass, starts=starts, seed=generator)
        rows.append((len(found), found.counts.get(0, 0)))
        progress((k + 1) / len(glasses), f"{k + 1} of {len(glasses)} spin glasses")
    return rows


def _choose(n: int, p: int) -> Method:
    if n == 2:
        return "circle"
    # a field is of odd degree, and the homotopy takes one parity
    return "complete" if p % 2 and class_count(n, p) <= _MOST_CLASSES else "search"


def trivialisation(
    n: int,
    p: int,
    fields: Sequence[float],
    *,
    disorders: int = 30,
    method: Method | None = None,
    starts: int = 100,
    level: float = 0.95,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Trivialisation:
    r"""Count the critical points of a spin glass in random fields of rising strength.

    $$H(\sigma) = H_p(\sigma) + s \sum_i h_i \sigma_i, \qquad h_i \sim N(0, 1)$$

    By homotopy at p = 3 a disorder takes some 0.01 s at n = 4 and 0.5 s at n = 8.

    Args:
        n: Number of spins, at least 2.
        p: Degree, at least 2.
        fields: Strengths $s$ of the field, 0 for none.
        disorders: How many independent couplings and fields at each strength.
        method: ``"circle"`` (n = 2, all points), ``"complete"`` (few spins and p odd: all
            points, by homotopy) or ``"search"`` (from many starts: a lower bound); None takes
            the first that can be.
        starts: How many starts for each search.
        level: Nominal coverage of the intervals.
        seed: What draws everything.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The counts beside the exact means.

    Raises:
        ValueError: If a size or field cannot be, or `method` does not apply.
        RuntimeError: If a homotopy lost a path.

    Source:
        Fyodorov, Markov Processes Relat. Fields 21, 483 (2015); Kac-Rice as in `kac_rice`.

    Example:
        >>> found = trivialisation(2, 3, [0.0, 30.0], disorders=10, seed=0)
        >>> found.expected.tolist(), float(found.counts[1].mean())
        ([5.2915, 2.0198], 2.0)
    """
    if n < 2 or p < 2:
        raise ValueError(f"n and p must be at least 2, got {n} and {p}")
    if disorders < 2:
        raise ValueError(f"an error needs two disorders or more, got {disorders}")
    if not len(fields) or not all(s >= 0 and math.isfinite(s) for s in fields):
        raise ValueError(f"fields must be finite numbers, none negative, got {list(fields)}")
    how = method or _choose(n, p)
    if (how == "circle") != (n == 2) and how != "search":
        raise ValueError(f"method {how!r} does not apply to {n} spins; leave method=None")
    generator, number = make_generator(seed)
    rows = []
    expected = []
    for k, s in enumerate(fields):
        mixture = {1: float(s), p: 1.0} if s else {p: 1.0}
        glasses = [SphericalPSpin(n, mixture, seed=generator) for _ in range(disorders)]

        def told(part: float, word: str, k: int = k, s: float = s) -> None:
            if progress is not None:
                progress((k + part) / len(fields), f"field {s:g}: {word}")

        rows.append(_count(glasses, p, how, starts, generator, told))
        expected.append(expected_critical_points(n, mixture).value)
        told(1.0, "done")
    found = np.array(rows)
    words = {
        "circle": "roots of a polynomial",
        "complete": "homotopy",
        "search": f"search from {starts} starts",
    }
    return Trivialisation(
        n,
        p,
        np.asarray(fields, dtype=np.float64),
        found[..., 0],
        found[..., 1],
        np.array(expected),
        how != "search",
        level,
        number,
        words[how],
    )
