r"""All critical points of a small spherical spin glass, with a proof that none is missing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import chi2
from scipy.stats import f as f_law
from torch import Tensor

from thalweg.estimate import Bound
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.certify import signatures
from thalweg.theory.spin_glass.homotopy import (
    Classes,
    Glass,
    class_count,
    eigenvector_classes,
    energy_form,
)
from thalweg.theory.spin_glass.tracking import TensorBatch

__all__ = [
    "CountComparison",
    "Enumeration",
    "compare_counts",
    "enumerate_critical_points",
    "enumerate_samples",
    "joint_p_value",
]

Progress = Callable[[float, str], None]

_TOGETHER = 4000  # paths that are followed at once
_GAIN = 1 + 1e-9  # covers the rounding of the bounds themselves


@dataclass(frozen=True, eq=False)
class Enumeration:
    r"""The critical points of $H(\sigma) = \langle T, \sigma^p \rangle$ on $|\sigma|^2 = n$.

    Attributes:
        points: The critical points by rising energy, `(K, n)`, on the sphere of radius
            $\sqrt n$.
        energies: $H/n$ there, `(K,)`.
        indices: How many eigenvalues of the Riemannian Hessian are negative, `(K,)`.
        radii: An exact critical point lies within this of each point, and only one, `(K,)`.
        energy_errors: The energy of the exact one lies within this of `energies`, `(K,)`.
        certified: Whether the index is proven too, `(K,)`.
        n: The number of spins.
        p: The degree.
        found: How many classes of complex critical points, up to scale, are proven to exist and
            to differ.
        expected: How many there are if they are finitely many, $((p-1)^n - 1)/(p-2)$.
        undecided: How many of those found are neither proven real nor proven not to be.
        vanishing: How many of those found may have energy 0, which the proof excludes.
        attempts: How many times the homotopy was followed.
        paths: How many paths that took.
        lost: How many of them did not arrive.
        steps: How many steps were tried.
        seconds: What it took; of a batch, the share of one tensor.
        remark: What is known to be wrong with the tensor.
        seed: The seed that reproduces it.
    """

    points: Float[Tensor, "k n"]
    energies: Float[Tensor, " k"]
    indices: Int[Tensor, " k"]
    radii: Float[Tensor, " k"]
    energy_errors: Float[Tensor, " k"]
    certified: Bool[Tensor, " k"]
    n: int
    p: int
    found: int
    expected: int
    undecided: int
    vanishing: int
    attempts: int
    paths: int
    lost: int
    steps: int
    seconds: float
    remark: str
    seed: int

    def __len__(self) -> int:
        """Return the number of real critical points."""
        return len(self.energies)

    @property
    def complete(self) -> bool:
        """Whether these are proven to be all critical points, each with its index."""
        return not self.missing

    @property
    def missing(self) -> str:
        """What the proof lacks, in words; empty if nothing."""
        if self.remark:
            return self.remark
        if self.found < self.expected:
            return (
                f"{self.expected - self.found} of {self.expected} complex classes were not found: "
                "the tensor is not generic (critical points that are degenerate or not isolated), "
                "or paths jumped; try another seed, or more attempts"
            )
        if self.found > self.expected:
            return f"{self.found} classes were found where only {self.expected} can be: a fault"
        if self.undecided:
            return f"{self.undecided} classes are neither proven real nor proven not to be"
        if self.vanishing:
            return f"{self.vanishing} classes may have energy 0, where critical points may be lost"
        if not bool(self.certified.all()):
            return f"the index of {int((~self.certified).sum())} points is not proven"
        return ""

    def counts(self) -> tuple[int, ...]:
        """Return how many points have index 0, 1, ..., n - 1."""
        return tuple(torch.bincount(self.indices, minlength=self.n).tolist())

    @property
    def euler_sum(self) -> int:
        r"""The sum $\sum_k (-1)^k$ over the points found, $1 + (-1)^{n-1}$ for all of them."""
        return sum((-1) ** k * count for k, count in enumerate(self.counts()))

    @property
    def euler_holds(self) -> bool:
        """Whether `euler_sum` is the Euler characteristic of the sphere."""
        return self.euler_sum == _euler(self.n)

    @property
    def morse_holds(self) -> bool:
        r"""Whether the counts obey Morse's inequalities and Euler's identity.

        $\sum_{i \le k} (-1)^{k-i} (c_i - b_i) \ge 0$ with $b$ the Betti numbers of the sphere.
        """
        betti = [int(k in (0, self.n - 1)) for k in range(self.n)]
        excess, holds = 0, self.euler_holds
        for count, b in zip(self.counts(), betti, strict=True):
            excess = count - b - excess
            holds = holds and excess >= 0
        return holds

    def energy(self, k: int) -> Bound:
        """Return the energy per spin of point `k`, with its proven error."""
        value, error = float(self.energies[k]), float(self.energy_errors[k])
        return Bound(
            value - error, value + error, "certified", "certified", method="Newton-Kantorovich"
        )

    def __str__(self) -> str:
        """Return what was found, a line per index, and what the proof lacks."""
        state = "complete, with proof" if self.complete else f"NOT COMPLETE: {self.missing}"
        lines = [
            f"{len(self)} critical points on the sphere of {self.n} spins, p = {self.p}: {state}",
            f"  {self.found} of {self.expected} complex classes, {self.paths} paths, "
            f"{self.steps} steps, {self.seconds:.2g} s, seed {self.seed}",
        ]
        for k, count in enumerate(self.counts()):
            at = self.energies[self.indices == k]
            if count:
                low, high = float(at.min()), float(at.max())
                lines.append(f"  index {k}: {count}, energies {low:.6f} to {high:.6f}")
        if not self.morse_holds:
            lines.append("  Morse's inequalities DO NOT HOLD for these points")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the text with what is wrong in yellow."""
        text = str(self).replace("[", chr(92) + "[")
        for word in ("NOT COMPLETE", "DO NOT HOLD"):
            text = text.replace(word, f"[yellow]{word}[/yellow]")
        return text

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything."""
        arrays = ("points", "energies", "indices", "radii", "energy_errors", "certified")
        numbers = ("n", "p", "found", "expected", "undecided", "vanishing", "attempts", "paths")
        rest = ("lost", "steps", "seconds", "remark", "seed", "complete", "euler_sum")
        return {
            "type": "enumeration",
            **{name: getattr(self, name).tolist() for name in arrays},
            **{name: getattr(self, name) for name in numbers + rest},
        }


def _euler(n: int) -> int:
    """Return the Euler characteristic of the sphere in n dimensions."""
    return 2 * (n % 2)


def _result(tensor: Any, scale: float, classes: Classes, seconds: float, seed: int) -> Enumeration:
    """Turn the real classes into pairs of critical points."""
    n, p, real = tensor.shape[0], tensor.ndim, classes.real
    alone = np.zeros(len(real.value), dtype=int)
    signed = signatures(TensorBatch(tensor[None]), real, alone)
    per_spin = n ** (p / 2 - 1) / scale
    energy, index = signed.value * per_spin, signed.index
    error = (signed.value_radius + 1e-15 * np.abs(signed.value)) * per_spin * _GAIN
    root = math.sqrt(n)
    points = root * real.x / np.linalg.norm(real.x, axis=1, keepdims=True)
    flip = -1 if p % 2 else 1
    energies = np.concatenate([energy, flip * energy])
    order = np.argsort(energies, kind="stable")

    def twice(first: Any, second: Any = None) -> Tensor:
        both = np.concatenate([first, first if second is None else second])
        return torch.from_numpy(both[order])

    return Enumeration(
        points=twice(points, -points),
        energies=twice(energy, flip * energy),
        indices=twice(index, n - 1 - index if p % 2 else index),
        radii=twice((2 * real.radius + 1e-15) * root * _GAIN),
        energy_errors=twice(error),
        certified=twice(signed.margin > 0),
        n=n,
        p=p,
        found=classes.found,
        expected=classes.expected,
        undecided=classes.undecided,
        vanishing=classes.vanishing,
        attempts=classes.attempts,
        paths=classes.paths,
        lost=classes.lost,
        steps=classes.steps,
        seconds=seconds,
        remark="" if np.any(tensor) else "the energy is 0 everywhere: every point is critical",
        seed=seed,
    )


def _enumerate(forms: list[Any], seeds: list[int], attempts: int) -> list[Enumeration]:
    """Follow the paths of some tensors together."""
    started = time.perf_counter()
    norms = [float(np.linalg.norm(form)) for form in forms]
    aim = math.sqrt(len(forms[0]))  # the norm of the diagonal tensor
    # powers of 2, so that nothing is rounded
    scales = [2.0 ** round(math.log2(aim / norm)) if norm else 1.0 for norm in norms]
    scaled = np.array([form * scale for form, scale in zip(forms, scales, strict=True)])
    rngs = [np.random.default_rng(seed) for seed in seeds]
    classes = eigenvector_classes(scaled, rngs, attempts=attempts)
    seconds = (time.perf_counter() - started) / len(forms)
    rows = zip(scaled, scales, classes, seeds, strict=True)
    return [_result(form, scale, found, seconds, seed) for form, scale, found, seed in rows]


def enumerate_samples(
    glasses: Sequence[Glass],
    *,
    seed: Seed = None,
    attempts: int = 4,
    most_classes: int = 30_000,
    progress: Progress | None = None,
) -> list[Enumeration]:
    """Find all critical points of several spin glasses of one size and degree together.

    Each result is the same as if it were found alone with the seed that it records.

    Args:
        glasses: Spin glasses or symmetric tensors; see `enumerate_critical_points`.
        seed: What draws the phases of the homotopies.
        attempts: How many times to follow the homotopy at most.
        most_classes: Refuse a spin glass with more complex classes.
        progress: Called with the fraction done and a word.

    Raises:
        ValueError: If the sizes differ, a tensor is not symmetric or finite, degrees of both
            parities are mixed, or there are too many classes.

    Example:
        >>> from thalweg.theory.spin_glass.model import SphericalPSpin
        >>> found = enumerate_samples([SphericalPSpin(3, 3, seed=k) for k in range(5)], seed=0)
        >>> [one.complete for one in found]
        [True, True, True, True, True]
    """
    forms = [energy_form(glass) for glass in glasses]
    shapes = {form.shape for form in forms}
    if len(shapes) > 1:
        raise ValueError(f"all spin glasses must have one size and degree, got {sorted(shapes)}")
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    _, recorded = make_generator(seed)
    seeds = [recorded]
    if len(forms) > 1:
        seeds = np.random.default_rng(recorded).integers(2**62, size=len(forms)).tolist()
    out: list[Enumeration] = []
    group = 1
    if forms:
        classes = class_count(len(forms[0]), forms[0].ndim)
        group = max(1, _TOGETHER // classes)
        if classes > most_classes:
            raise ValueError(
                f"{len(forms[0])} spins at p = {forms[0].ndim} have {classes} classes of complex "
                f"critical points, more than most_classes={most_classes}; use "
                "find_critical_points, or raise it"
            )
    for first in range(0, len(forms), group):
        some = slice(first, first + group)
        out += _enumerate(forms[some], seeds[some], attempts)
        if progress is not None:
            progress(len(out) / len(forms), f"{len(out)} of {len(forms)} spin glasses")
    return out


def enumerate_critical_points(
    glass: Glass,
    *,
    seed: Seed = None,
    attempts: int = 4,
    most_classes: int = 30_000,
) -> Enumeration:
    r"""Find all critical points of a small spherical spin glass, with a proof that these are all.

    They are the real eigenvectors of the symmetric tensor, $T \sigma^{p-1} = \lambda \sigma$.
    All complex ones are followed by homotopy from a diagonal tensor; each is proven to exist, to
    differ from the others, and to be real or not (`certify`), and their number is Bézout's. At
    p = 2 they are the eigenvectors of a symmetric matrix.

    Args:
        glass: A spin glass; or a symmetric tensor `(n,) * p` with $H = \langle T, \sigma^p
            \rangle$; or such tensors by degree, all odd or all even.
        seed: What draws the phases of the homotopy; the result depends on it only in rounding.
        attempts: How many times to follow the homotopy at most, with fresh phases each.
        most_classes: Refuse a spin glass with more complex classes.

    Returns:
        The points with energy, index and radius; ask `complete`. A tensor that is not generic
        (zero, of rank one, with a continuous symmetry) is never complete.

    Raises:
        ValueError: If the tensor is not symmetric or finite, degrees of both parities are mixed,
            or there are too many classes.

    References:
        Cartwright and Sturmfels, Linear Algebra Appl. 438 (2013), theorem 1.2; Sommese and
        Wampler (2005), The Numerical Solution of Systems of Polynomials.

    Example:
        >>> from thalweg.theory.spin_glass.model import SphericalPSpin
        >>> found = enumerate_critical_points(SphericalPSpin(4, 3, seed=0), seed=0)
        >>> found.complete, found.found, found.euler_sum, found.morse_holds
        (True, 15, 0, True)
    """
    return enumerate_samples([glass], seed=seed, attempts=attempts, most_classes=most_classes)[0]


@dataclass(frozen=True, eq=False)
class CountComparison:
    r"""Counts of critical points by index over many spin glasses, against what is expected.

    Attributes:
        n: The number of spins.
        p: The degree.
        samples: How many spin glasses were enumerated.
        mean: The mean counts by index, `(n,)`.
        stderr: Their standard errors, `(n,)`.
        expected: What theory expects, `(n,)`.
        statistic: Hotelling's $T^2$ of the counts that are free.
        freedom: How many are free.
        p_value: The probability of a larger statistic, by $F$.
    """

    n: int
    p: int
    samples: int
    mean: tuple[float, ...]
    stderr: tuple[float, ...]
    expected: tuple[float, ...]
    statistic: float
    freedom: int
    p_value: float

    def __str__(self) -> str:
        """Return the table."""
        rows = zip(self.mean, self.stderr, self.expected, strict=True)
        table = ", ".join(f"{m:.3f} ± {s:.3f} ({e:.3f})" for m, s, e in rows)
        return (
            f"n = {self.n}, p = {self.p}, {self.samples} samples, by index (expected): {table}; "
            f"T² = {self.statistic:.3g} with {self.freedom} free, p-value {self.p_value:.3g}"
        )


def compare_counts(
    counts: Int[np.ndarray, "samples n"], expected: Sequence[float], p: int
) -> CountComparison:
    r"""Test whether mean counts by index equal their expectations, all in one test.

    The counts of one sample depend on each other: $c_k = c_{n-1-k}$ for odd p, and Euler's identity
    gives one more for odd n or even p. Hotelling's $T^2$ takes those that are free: indices below
    $n/2$ rounded down for odd p, below $n - 1$ for even p. The rest follow from them.

    Args:
        counts: Points by index, a row for each spin glass; all of them, whether large or small.
        expected: Expectations by index, n of them.
        p: The degree.

    Raises:
        ValueError: If there are too few samples, a row breaks Euler's identity or the symmetry of
            odd p, or the expectations do.

    Example:
        >>> counts = np.array([[2, 2, 2], [4, 6, 4], [3, 4, 3], [2, 2, 2], [4, 6, 4]])
        >>> print(compare_counts(counts, [3.0, 4.0, 3.0], 3).p_value)
        1.0
    """
    samples, n = counts.shape
    free = n // 2 if p % 2 else n - 1
    signs = (-1.0) ** np.arange(n)
    for rows, slack in ((counts, 0.0), (np.array([expected]), 1e-6)):
        bad = np.abs(rows @ signs - _euler(n)) > slack
        if p % 2:
            bad = bad | (np.abs(rows - rows[:, ::-1]).max(axis=1) > slack)
        if bad.any():
            raise ValueError(
                f"counts {rows[bad][0].tolist()} break Euler's identity or the symmetry of odd p: "
                "some critical points are missing"
            )
    if samples < free + 2:
        raise ValueError(f"{free} free counts need at least {free + 2} samples, got {samples}")
    mean = counts.mean(axis=0)
    difference = (mean - np.asarray(expected))[:free]
    covariance = np.atleast_2d(np.cov(counts[:, :free], rowvar=False)) / samples
    statistic = float(difference @ np.linalg.pinv(covariance) @ difference)
    scaled = statistic * (samples - free) / (free * (samples - 1))
    return CountComparison(
        n=n,
        p=p,
        samples=samples,
        mean=tuple(mean.tolist()),
        stderr=tuple((counts.std(axis=0, ddof=1) / math.sqrt(samples)).tolist()),
        expected=tuple(float(e) for e in expected),
        statistic=statistic,
        freedom=free,
        p_value=float(f_law.sf(scaled, free, samples - free)),
    )


def joint_p_value(comparisons: Sequence[CountComparison]) -> float:
    r"""Return one p-value for independent comparisons (Fisher: $-2 \sum \log p$ is $\chi^2$)."""
    logs = [math.log(max(one.p_value, 1e-300)) for one in comparisons]
    return float(chi2.sf(-2 * sum(logs), 2 * len(logs)))
