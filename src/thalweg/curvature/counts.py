"""How many eigenvalues are negative, near zero and positive, with a stated tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.curvature.lanczos import Tridiagonal
from thalweg.curvature.quadrature import Spectrum, dimension_interval
from thalweg.estimate import Cost, Estimate

__all__ = ["Inertia", "count"]

_RELATIVE = 1e-3
_WEIGHT_ROUNDING = 1e-13


@dataclass(frozen=True)
class Inertia:
    r"""The numbers of eigenvalues below $-\tau$, within $\pm\tau$ and above $\tau$.

    Attributes:
        negative: How many lie below $-\tau$.
        zero: How many lie between.
        positive: How many lie above $\tau$.
        tau: The tolerance, without which the numbers mean nothing where a bulk sits at zero.
        certified: At least so many negative and positive ones are certain: deflated
            eigenvalues and Ritz values (Cauchy's interlacing).
        dim: The number of all eigenvalues.
        cost: What it took.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator, inertia
        >>> A = MatrixOperator(torch.diag(torch.tensor([5.0, 2.0, 0.0, 0.0, -1.0]).double()))
        >>> found = inertia(A, tau=0.1)
        >>> int(found.index.value), int(found.rank.value)
        (1, 3)
    """

    negative: Estimate
    zero: Estimate
    positive: Estimate
    tau: float
    certified: tuple[int, int]
    dim: int
    cost: Cost

    @property
    def index(self) -> Estimate:
        r"""The index: how many eigenvalues lie below $-\tau$."""
        return self.negative

    @property
    def rank(self) -> Estimate:
        r"""The numerical rank: how many eigenvalues lie beyond $\pm\tau$."""
        zero = self.zero
        return Estimate(
            value=self.dim - zero.value,
            stderr=zero.stderr,
            interval=(self.dim - zero.interval[1], self.dim - zero.interval[0]),
            samples=zero.samples,
            cost=zero.cost,
            level=zero.level,
            method=f"{self.dim} less {zero.method}",
            seed=zero.seed,
        )

    def __str__(self) -> str:
        """Return the three counts, each with its range, and what is certain."""
        parts = [
            f"{_range(self.negative)} below -tau",
            f"{_range(self.zero)} within ±tau",
            f"{_range(self.positive)} above tau",
        ]
        low, high = self.certified
        return (
            f"of {self.dim} eigenvalues {', '.join(parts)} "
            f"({100 * self.negative.level:.4g} %),\n"
            f"tau = {self.tau:.3g}; certainly at least {low} negative and {high} positive"
        )

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", chr(92) + "[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything."""
        return {
            "type": "inertia",
            "negative": self.negative.to_json(),
            "zero": self.zero.to_json(),
            "positive": self.positive.to_json(),
            "tau": self.tau,
            "certified": list(self.certified),
            "dim": self.dim,
            "cost": self.cost.to_json(),
        }


def _range(number: Estimate) -> str:
    low, high = number.interval
    if low == high:
        return f"exactly {low:.0f}"
    return f"{number.value:.4g} (from {low:.0f} to {high:.0f})"


def count(spectrum: Spectrum, tau: float | None) -> Inertia:
    r"""Count the eigenvalues on either side of $\pm\tau$.

    A chain brackets its start's mass on every side (Chebyshev, Markov, Stieltjes), and the
    mass of a uniform start in $k$ of $N$ dimensions is Beta distributed: the interval holds
    all numbers that the brackets, averaged over the probes, allow. Nothing milder is honest:
    a count jumps, and where the steps do not resolve $\pm\tau$ the quadrature was seen to
    stand still at a wrong number. More steps or a larger `tau` narrow it.

    Args:
        spectrum: What is known of the spectrum.
        tau: The tolerance; None for a thousandth of the largest magnitude.

    Raises:
        ValueError: If `tau` is zero, negative, NaN, or at the level of rounding.
    """
    tau = _tolerance(spectrum, tau)
    left, right = spectrum.atoms - spectrum.radii, spectrum.atoms + spectrum.radii
    sure = (right < -tau, (left >= -tau) & (right <= tau), left > tau)
    maybe = (left < -tau, (right >= -tau) & (left <= tau), right > tau)
    certified = (_ritz(spectrum, -1, tau), _ritz(spectrum, 1, tau))
    floors = (certified[0], 0, certified[1])
    ceilings = (certified[1], sum(certified), certified[0])
    known = [
        _Known(int(sure[i].sum()), int(maybe[i].sum()), floors[i], spectrum.dim - ceilings[i])
        for i in range(3)
    ]
    shares = _shares(spectrum.chains, tau) if spectrum.free else np.zeros((3, 2))
    negative, zero, positive = (_estimate(spectrum, shares[i], known[i]) for i in range(3))
    return Inertia(
        negative=negative,
        zero=zero,
        positive=positive,
        tau=tau,
        certified=certified,
        dim=spectrum.dim,
        cost=spectrum.cost,
    )


@dataclass(frozen=True)
class _Known:
    """What is known without sampling: eigenvalues surely and possibly there, and limits."""

    sure: int
    maybe: int
    floor: int
    ceiling: int

    def whole(self, least: float, most: float) -> tuple[float, float]:
        """Return the whole numbers that an interval of what is unknown leaves."""
        low = self.sure + math.ceil(least - 1e-6)
        high = self.maybe + math.floor(most + 1e-6)
        low, high = min(low, high), max(low, high)  # where no whole number fits, the nearest two
        low, high = max(low, self.floor), min(high, self.ceiling)
        return float(min(low, self.ceiling)), float(max(high, self.floor))


def _shares(chains: tuple[Tridiagonal, ...], tau: float) -> NDArray[np.float64]:
    """Return lower and upper bounds, `(3, 2)`, of the mean mass on each side of the two."""
    both = np.mean(
        [chain.brackets([-tau, math.nextafter(tau, math.inf)]) for chain in chains], axis=0
    )
    below, above = both[:, 0], both[:, 1]
    shares = np.stack([below, above - below[::-1], 1 - above[::-1]])
    return np.clip(shares + np.array([-1, 1]) * _WEIGHT_ROUNDING, 0, 1)


def _tolerance(spectrum: Spectrum, tau: float | None) -> float:
    if tau is None:
        least = float(np.finfo(np.float64).tiny)
        return max(_RELATIVE * spectrum.top, 10 * spectrum.rounding, least)
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(
            f"tau={tau}: an index needs a positive tolerance, because where a bulk of "
            f"eigenvalues sits at zero their signs are those of rounding; leave it out for a "
            f"thousandth of the largest magnitude, {_RELATIVE * spectrum.top:.3g} here"
        )
    if tau <= spectrum.rounding:
        raise ValueError(
            f"tau={tau:.3g} is not above the error of a product, {spectrum.rounding:.3g}, so "
            f"the signs of such eigenvalues are not known; raise tau or compute in float64"
        )
    return tau


def _ritz(spectrum: Spectrum, side: int, tau: float) -> int:
    """Count what is certain: eigenvalues deflated, and the most Ritz values of one chain."""
    slack = tau + float(np.linalg.norm(spectrum.radii)) + spectrum.rounding
    known = int((side * spectrum.atoms > slack).sum())
    found = [0]
    for chain in spectrum.chains:
        beyond = int((side * chain.nodes.numpy() > slack).sum())
        found.append(beyond if chain.full else min(beyond, 1))  # the rest may be copies
    return min(known + max(found), spectrum.dim)


def _estimate(spectrum: Spectrum, shares: NDArray[np.float64], known: _Known) -> Estimate:
    """Turn bounds of the mean share of the starts into a number of eigenvalues."""
    low, high = known.whole(0, 0)
    value, error, note = (known.sure + known.maybe) / 2, 0.0, ""
    if spectrum.free:
        free, probes, share = spectrum.free, len(spectrum.chains), float(shares.mean())
        least, most = dimension_interval(shares[:1], shares[1:], free, probes, spectrum.level)
        low, high = known.whole(float(least[0]), float(most[0]))
        value += free * share
        error = free * math.sqrt(2 * max(0.0, share * (1 - share)) / ((free + 2) * probes))
        note = f"; quadrature within {free * float(shares[1] - shares[0]) / 2:.3g} (certified)"
    return Estimate(
        value=min(max(value, low), high),
        stderr=error,
        interval=(low, high),
        samples=len(spectrum.chains) or spectrum.dim,
        cost=spectrum.cost,
        level=spectrum.level,
        method=f"count: {spectrum.source}{note}",
        seed=spectrum.seed,
    )
