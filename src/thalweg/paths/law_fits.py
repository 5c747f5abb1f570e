"""Fits of the laws that `laws` compares: maximum likelihood with errors that seeds share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

__all__ = [
    "FAMILIES",
    "NULL",
    "Array",
    "Data",
    "Errors",
    "Fitted",
    "Profile",
    "at_edge",
    "rate_range",
]

Array = NDArray[np.float64]
Errors = Literal["gaussian", "lognormal"]
FAMILIES = ("power", "exponential", "logarithmic")
NULL = "constant"  # what a law must beat to be one
_GRID = 17
_RATIOS = (0.0, 1e3)  # between-seed over within-seed variance


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


def rate_range(family: str, level: Array, errors: Errors) -> tuple[float, float]:
    """Return the rates between which $b$ is sought.

    A count has no additive constant, so that a large b takes its place in the logarithm.
    """
    low, high = float(level.min()), float(level.max())
    if family == "power":
        return 1e-2, 10.0
    if family == "exponential":
        return 1e-2 / high, 10 / low
    return 1e-3 * low, (1e3 if errors == "gaussian" else 1e8) * high


def at_edge(bounds: tuple[float, float], b: float) -> int:
    """Return -1 for a rate at the low end of those sought, 1 for the high end, else 0."""
    low, high = bounds
    margin = (high / low) ** 1e-3  # Brent's method stops a little before an end
    return int(b >= high / margin) - int(b <= low * margin)


@dataclass(frozen=True)
class Data:
    """Levels, responses (logarithms for counts) and the seed that each point belongs to."""

    level: Array
    y: Array
    group: NDArray[np.int64]
    errors: Errors

    def take(self, keep: NDArray[np.bool_]) -> Data:
        """Return some of the points."""
        return Data(self.level[keep], self.y[keep], self.group[keep], self.errors)


@dataclass(frozen=True)
class Fitted:
    """One family on some data: a mean, and the two variances."""

    family: str
    low: float
    b: float
    coefficients: Array  # of the constant and of the shape
    within: float  # variance of a point about its seed
    ratio: float  # variance between seeds over `within`
    freedom: int  # degrees of freedom of the variance between seeds

    def mean(self, level: Array, errors: Errors) -> Array:
        """Return the law at levels (its logarithm for counts)."""
        if self.family == NULL:
            return np.full(len(level), self.coefficients[0])
        shape = _log_shape(self.family, level, self.b, self.low)
        if errors == "lognormal":
            return np.asarray(self.coefficients[0] + shape)
        with np.errstate(over="ignore"):  # a steep law may well blow up below the data
            return np.asarray(self.coefficients[0] + self.coefficients[1] * np.exp(shape))

    def parameters(self, errors: Errors) -> dict[str, float]:
        """Return a, b and, for lengths, c."""
        scale = _scale(self.family, self.low, self.b)
        if errors == "lognormal":
            return {"a": float(np.exp(self.coefficients[0])) * scale, "b": self.b}
        c, a = self.coefficients
        return {"c": float(c), "a": float(a) * scale, "b": self.b}

    def log_density(self, data: Data) -> float:
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


class Profile:
    """The likelihood of one family as a function of the rate and of the variance ratio."""

    def __init__(self, family: str, data: Data, bounds: tuple[float, float]) -> None:
        order = np.argsort(data.group, kind="stable")
        self.family, self.errors, self.bounds = family, data.errors, bounds
        self.level, self.y = data.level[order], data.y[order]
        self.low = float(data.level.min())
        _, self.starts, self.sizes = np.unique(
            data.group[order], return_index=True, return_counts=True
        )
        self.free = 1 if family == NULL else 2 if data.errors == "lognormal" else 3
        self.spare = max(1, len(data.y) - self.free)

    def solve(self, b: float, ratio: float) -> tuple[Array, float]:
        """Return the coefficients and the sum of squares for one rate and ratio.

        Products are taken with the inverse covariance of the errors, in which the share that a
        seed's values have in common is a term of rank one.
        """
        y, columns = self.y, [np.ones_like(self.y)]
        if self.family != NULL:
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

    def fit(self) -> Fitted:
        """Maximise over the rate and the ratio in turn."""
        b, ratio = 1.0, 0.0
        grouped = bool((self.sizes > 1).any()) and len(self.sizes) > 1
        for _ in range(2 if grouped else 1):
            if self.family != NULL:
                b = math.exp(_least(lambda x: self.loss(math.exp(x), ratio), *self.bounds))  # noqa: B023
            if grouped:
                ratio = _least_ratio(lambda x: self.loss(b, x))  # noqa: B023
        solved, squares = self.solve(b, ratio)
        tiny = np.finfo(float).eps * (1e-12 + float(np.square(self.y).mean()))
        return Fitted(
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
