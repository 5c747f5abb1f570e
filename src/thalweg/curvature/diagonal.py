"""The diagonal of a symmetric operator, entry by entry, each with its error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from thalweg.curvature.blocks import check_samples, coordinates
from thalweg.curvature.crossfit import HALVES, Guess, correct, cross_products, guesses
from thalweg.curvature.operator import LinearOperator
from thalweg.curvature.probes import Rounding, double, draw_signs, probe, read_diagonal
from thalweg.estimate import Cost, Estimate
from thalweg.landscape.memory import parse_bytes
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["Diagonal", "diagonal"]

_ROWS = 2**12


@dataclass(frozen=True, eq=False)
class Diagonal:
    """The diagonal of a matrix, with a standard error for every entry.

    Attributes:
        values: The entries, `(dim,)`, float64.
        stderr: Their standard errors, `(dim,)`; zero where they are exact.
        rounding: What rounding may add to each error, `(dim,)`.
        samples: How many independent samples each rests on.
        cost: What it took.
        method: How it was computed.
        seed: The seed that reproduces it.
    """

    values: Float[Tensor, " dim"]
    stderr: Float[Tensor, " dim"]
    rounding: Float[Tensor, " dim"]
    samples: int
    cost: Cost
    method: str
    seed: int | None = None

    def interval(self, level: float = 0.95) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
        """Return the lower and upper ends of every entry's own interval, `(dim,)` each.

        At 95 %, one entry in twenty lies outside its interval.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie strictly between 0 and 1, not {level!r}")
        half = self._quantile(level) * self.stderr + self.rounding
        return self.values - half, self.values + half

    def by(
        self,
        groups: Mapping[str, slice | Tensor],
        *,
        overlapping: bool = False,
        level: float = 0.95,
    ) -> dict[str, Estimate]:
        """Return the sum over each named group of coordinates.

        The entries' errors are not independent, and a sum's interval allows for the worst,
        that they all err together: `block_traces` gives much narrower ones.

        Args:
            groups: Name to a slice or a tensor of indices, such as ``land.spec.slices``.
            overlapping: Whether a coordinate may belong to several groups.
            level: Nominal coverage of each interval, at least.

        Raises:
            ValueError: If a group is empty, out of range or overlaps another.
        """
        device, found = self.values.device, {}
        parts = coordinates(groups, len(self.values), device, overlapping=overlapping)
        for name, i in parts.items():
            value, stderr = math.fsum(self.values[i].tolist()), float(self.stderr[i].sum())
            half = self._quantile(level) * stderr + float(self.rounding[i].sum())
            found[name] = Estimate(
                value,
                stderr,
                (value - half, value + half),
                self.samples,
                self.cost,
                level,
                f"sum of the {self.method}",
                self.seed,
            )
        return found

    def _quantile(self, level: float) -> float:
        return float(stats.t.ppf((1 + level) / 2, max(1, self.samples - 1)))

    def __str__(self) -> str:
        """Return the range of the entries and their typical error."""
        low, high = float(self.values.min()), float(self.values.max())
        error = float(self.stderr.square().mean().sqrt())
        how = f"standard error about {error:.2g} each" if error else "exact up to rounding"
        return (
            f"diagonal of {len(self.values)} entries from {low:.4g} to {high:.4g}, {how}, "
            f"{self.cost} ({self.method})"
        )

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary, entries included; what is not finite becomes a word."""
        lists = {
            name: [x if math.isfinite(x) else repr(x) for x in getattr(self, name).tolist()]
            for name in ("values", "stderr", "rounding")
        }
        return {
            "type": "diagonal",
            **lists,
            "samples": self.samples,
            "cost": self.cost.to_json(),
            "method": self.method,
            "seed": self.seed,
        }


def diagonal(
    operator: LinearOperator,
    *,
    samples: int = 96,
    memory: int | str = "2 GiB",
    seed: Seed = None,
) -> Diagonal:
    r"""Estimate the diagonal from products with random signs.

    $$a_{ii} = \mathbb{E}\, z_i (A z)_i, \qquad
    \operatorname{Var} z_i (A z)_i = \sum_{j \ne i} a_{ij}^2.$$

    The samples are symmetric about $a_{ii}$, so Student's interval holds for them. They are
    cross-fitted, as in `trace`, by the diagonal of a low-rank guess from the other half of
    the products, where that at least halves their variance over all entries. An operator
    that knows its diagonal is asked instead, and where `samples` reaches `dim` the diagonal
    is read off with `dim` products. Coverage, averaged over the entries, was measured over
    1000 seeds (``docs/calibration``).

    Args:
        operator: A symmetric operator on $\mathbb{R}^D$.
        samples: How many products; at least 32 (or `dim`).
        memory: How much the kept vectors may take; above it there is no cross-fitting.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The entries with their errors.

    Raises:
        ValueError: If `samples` is too small or the operator is not symmetric.
        FloatingPointError: If a product is not finite.

    References:
        C. Bekas, E. Kokiopoulou & Y. Saad (2007), An estimator for the diagonal of a matrix,
        Appl. Numer. Math. 57; see `trace` for the rest.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> found = diagonal(MatrixOperator(torch.diag(torch.arange(5.0))))
        >>> found.values.tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    check_samples(operator, samples, 0.5)
    before = operator.cost
    generator, number = make_generator(seed)
    entries, wide, taken, how = operator.own_diagonal(), None, 0, "operator's own diagonal"
    if entries is None and samples >= operator.dim:
        entries, wide = read_diagonal(operator)
        taken, how = operator.dim, "exact diagonal"
    if entries is not None:
        values = double(entries)
        stderr = torch.zeros_like(values)
        rounding = 16 * torch.finfo(operator.dtype).eps * values.abs() if wide is None else wide
    else:
        fits = 2 * operator.dim * samples * operator.dtype.itemsize <= parse_bytes(memory)
        found = _estimated if fits else _streamed
        values, stderr, rounding, how = found(operator, samples, generator)
        taken = samples
    cost = operator.cost - before
    return Diagonal(values, stderr, rounding, taken, cost, how, number)


_Found = tuple[Tensor, Tensor, Tensor, str]
_PLAIN = "diagonal by random signs"


def _streamed(operator: LinearOperator, samples: int, generator: torch.Generator) -> _Found:
    """Keep no vectors: means and squares, merged block by block (Chan et al. 1983)."""
    noise = Rounding(operator)
    count, mean, squares, size = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for vectors, products, _ in probe(operator, samples, generator, draw_signs, noise):
        drawn = double(vectors) * double(products)
        here, total = drawn.shape[1], count + drawn.shape[1]
        gap = drawn.mean(1) - mean
        squares = squares + (drawn - drawn.mean(1, keepdim=True)).square().sum(1)
        squares = squares + gap.square() * (count * here / total)
        mean, count = mean + gap * (here / total), total
        size = torch.maximum(size, drawn.abs().amax(1))
    stderr = (squares / (samples - 1) / samples).sqrt()
    how = f"{_PLAIN}; not cross-fitted, which needs more memory"
    return mean, stderr, _rounding(operator, size), how


def _estimated(operator: LinearOperator, samples: int, generator: torch.Generator) -> _Found:
    """Keep the vectors, and correct each half by the other's guess where that pays."""
    noise = Rounding(operator)
    pairs = [(v, p) for v, p, _ in probe(operator, samples, generator, draw_signs, noise)]
    z, y = (torch.cat(part, dim=1) for part in zip(*pairs, strict=True))
    crossed, gram = cross_products(z, y)
    pair = guesses(crossed, gram)
    plain, better, sizes = [], [], []
    for first in range(0, operator.dim, _ROWS):
        rows = slice(first, first + _ROWS)
        drawn = (double(z[rows]) * double(y[rows])).cpu()
        controls = _controls(double(z[rows]).cpu(), double(y[rows]).cpu(), crossed, pair)
        plain.append(_moments(drawn))
        better.append(_moments(correct(drawn.T, controls.T, always=True)[0].T))
        sizes.append(drawn.abs().amax(1))
    size = torch.cat(sizes)
    means, errors = (torch.cat(part) for part in zip(*plain, strict=True))
    fitted, left = (torch.cat(part) for part in zip(*better, strict=True))
    before, after = float(errors.square().sum()), float(left.square().sum())
    wide = _rounding(operator, size).to(operator.device)
    if after < 0.5 * before:
        how = f"{_PLAIN}, cross-fitted, which left {after / before:.2g} of the variance"
        return fitted.to(wide.device), HALVES * left.to(wide.device), wide, how
    return means.to(wide.device), errors.to(wide.device), wide, _PLAIN


def _controls(z: Tensor, y: Tensor, crossed: Tensor, pair: tuple[Guess, Guess]) -> Tensor:
    r"""Return $z_i (B z)_i - b_{ii}$ for some rows $i$, with the guess of the other half."""
    controls = torch.zeros_like(z)
    for guess in pair:
        image = y @ (guess.core @ crossed[:, guess.users])
        own = ((y @ guess.core) * y).sum(1, keepdim=True)
        controls[:, guess.users] = z[:, guess.users] * image - own
    return controls


def _moments(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's mean and standard error."""
    return drawn.mean(1), drawn.std(1) / math.sqrt(drawn.shape[1])


def _rounding(operator: LinearOperator, size: Tensor) -> Tensor:
    return 16 * torch.finfo(operator.dtype).eps * size
