"""Traces of diagonal blocks, such as a network's layers, all from the same products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.curvature.crossfit import HALVES, correct, cross_products, guesses
from thalweg.curvature.operator import LinearOperator
from thalweg.curvature.probes import Rounding, double, draw_signs, probe, read_diagonal
from thalweg.estimate import Cost, Estimate
from thalweg.landscape.intervals import LEAST_SAMPLES, mean_interval
from thalweg.landscape.memory import parse_bytes
from thalweg.landscape.seeding import Seed, make_generator

if TYPE_CHECKING:
    from thalweg.curvature.eigenpairs import Eigenpairs

__all__ = ["block_traces", "check_samples", "coordinates", "mean_of_forms", "sign_forms"]


def block_traces(
    operator: LinearOperator,
    groups: Mapping[str, slice | Tensor],
    *,
    samples: int = 64,
    eigenpairs: Eigenpairs | None = None,
    overlapping: bool = False,
    level: float = 0.95,
    memory: int | str = "2 GiB",
    seed: Seed = None,
) -> dict[str, Estimate]:
    r"""Estimate the trace of every named diagonal block, all from the same products.

    $$\operatorname{tr} A_{ll} = \mathbb{E}\, z_l^\top (A z)_l = \sum_i \theta_i |q_{il}|^2
    + \mathbb{E}\, z_l^\top \Big(\big(A - \sum_i \theta_i q_i q_i^\top\big) z\Big)_l$$

    for random signs $z$ and any given pairs $(\theta_i, q_i)$, whose part is exact. Each
    block is cross-fitted, as in `trace`, where that at least halves its variance. A block
    feels the noise of the entries that couple it to the others: where one small block
    matters, restrict the operator to it instead.

    Args:
        operator: The symmetric operator.
        groups: Name to coordinates: a slice of the vector or a tensor of indices, such as
            ``land.spec.slices``. They need not cover the vector.
        samples: How many products; at least 32 (or `dim`, which is exact).
        eigenpairs: Eigenpairs already known; they need not be exact.
        overlapping: Whether a coordinate may belong to several blocks.
        level: Nominal coverage of each interval.
        memory: How much the kept vectors may take; above it there is no cross-fitting.
        seed: An int, a generator, or None for fresh entropy; recorded in the results.

    Returns:
        Name to estimate. Each reports the cost of all of them together.

    Raises:
        ValueError: If a group is empty, out of range or overlaps another, or `samples` or
            `level` is out of range, or the operator is not symmetric.
        TypeError: If a group is neither a slice nor a tensor of integers.
        FloatingPointError: If a product is not finite.

    References:
        C. Bekas, E. Kokiopoulou & Y. Saad (2007), An estimator for the diagonal of a matrix,
        Appl. Numer. Math. 57; see `trace` for the rest.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.arange(100.0)))
        >>> found = block_traces(A, {"first": slice(0, 10), "last": slice(90, 100)}, seed=0)
        >>> round(found["first"].value, 3), round(found["last"].value, 3)
        (45.0, 945.0)
    """
    parts = coordinates(groups, operator.dim, operator.device, overlapping=overlapping)
    check_samples(operator, samples, level)
    before = operator.cost
    generator, number = make_generator(seed)
    known = operator.own_diagonal()
    if known is not None or samples >= operator.dim:
        answers = _exact_blocks(operator, parts, known)
        how, taken = "exact diagonal", 0 if known is not None else operator.dim
        found = [(v, 0.0, (v - r, v + r), how) for v, r in answers]
    else:
        taken = samples
        fits = 2 * operator.dim * samples * operator.dtype.itemsize <= parse_bytes(memory)
        seen = sign_forms(operator, parts, samples, generator, eigenpairs, crossfit=fits)
        found = [mean_of_forms(one, seen.rounding, level) for one in seen.blocks]
    cost: Cost = operator.cost - before
    return {
        name: Estimate(value, stderr, ends, taken, cost, level, how, number)
        for name, (value, stderr, ends, how) in zip(parts, found, strict=True)
    }


def check_samples(operator: LinearOperator, samples: int, level: float) -> None:
    """Refuse fewer samples than an honest interval needs, and a level that is none."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, not {level!r}")
    if samples < min(LEAST_SAMPLES, operator.dim):
        raise ValueError(
            f"samples={samples} is too few for an honest interval; take at least "
            f"{LEAST_SAMPLES}, or dim={operator.dim} for the exact trace"
        )


def coordinates(
    groups: Mapping[str, slice | Tensor], dim: int, device: torch.device, *, overlapping: bool
) -> dict[str, Tensor]:
    """Return each group's indices, checked.

    Raises:
        ValueError: If there is no group, or one is empty, out of range, or overlaps another.
        TypeError: If one is neither a slice nor a tensor of integers.
    """
    if not groups:
        raise ValueError("there are no groups; pass a mapping from names to coordinates")
    count = torch.zeros(dim, dtype=torch.int32)
    parts: dict[str, Tensor] = {}
    for name, group in groups.items():
        if isinstance(group, slice):
            indices = torch.arange(dim)[group]
        elif isinstance(group, Tensor) and not (group.is_floating_point() or group.is_complex()):
            indices = group.nonzero()[:, 0] if group.dtype == torch.bool else group
            indices = indices.to("cpu", torch.long)
        else:
            raise TypeError(
                f"group {name!r} must be a slice or a tensor of integers, not {group!r}"
            )
        if indices.ndim != 1 or not len(indices):
            raise ValueError(f"group {name!r} has shape {tuple(indices.shape)}: no coordinates")
        if int(indices.min()) < 0 or int(indices.max()) >= dim:
            raise ValueError(
                f"group {name!r} has coordinates from {int(indices.min())} to "
                f"{int(indices.max())}, but the operator has 0 to {dim - 1}"
            )
        count.index_add_(0, indices, torch.ones(len(indices), dtype=torch.int32))
        if len(torch.unique(indices)) < len(indices):
            raise ValueError(f"group {name!r} holds a coordinate twice")
        if not overlapping and int(count[indices].max()) > 1:
            raise ValueError(
                f"group {name!r} shares coordinates with one before it; pass "
                f"overlapping=True if that is what you mean"
            )
        parts[name] = indices.to(device)
    return parts


def _exact_blocks(
    operator: LinearOperator, parts: dict[str, Tensor], known: Tensor | None
) -> list[tuple[float, float]]:
    """Return each block's trace and a bound on its rounding."""
    if known is None:
        known, wide = read_diagonal(operator)
    else:
        wide = 16 * torch.finfo(operator.dtype).eps * double(known).abs()
    return [(math.fsum(known[i].tolist()), float(wide[i].sum())) for i in parts.values()]


@dataclass(frozen=True, eq=False)
class Forms:
    """The forms of one block, with controls of mean zero where there are any.

    Attributes:
        values: $z_l^T (A z)_l$, `(m,)`.
        controls: As many controls, or None.
    """

    values: Tensor
    controls: Tensor | None


@dataclass(frozen=True, eq=False)
class BlockForms:
    """The forms of all blocks, and what rounding may do to a mean of the whole matrix's."""

    blocks: list[Forms]
    rounding: float


def sign_forms(
    operator: LinearOperator,
    parts: dict[str, Tensor] | None,
    samples: int,
    generator: torch.Generator,
    eigenpairs: Eigenpairs | None = None,
    *,
    crossfit: bool,
) -> BlockForms:
    """Return every block's forms of random signs.

    Args:
        operator: The operator.
        parts: Name to indices; None for the whole vector as one block.
        samples: How many.
        generator: Where the signs come from.
        eigenpairs: What is taken off the products and added exactly.
        crossfit: Whether to keep the vectors and make controls from them.
    """
    rounding = Rounding(operator)
    chosen: list[Tensor | slice] = [slice(None)]
    if parts is not None:
        chosen = list(parts.values())
    exact = torch.zeros(len(chosen)).double()
    basis = weighted = None
    if eigenpairs is not None and len(eigenpairs.values):
        basis = eigenpairs.vectors
        weighted = basis * eigenpairs.values.to(basis.device, basis.dtype)
        exact = torch.stack([(double(basis[i]) * double(weighted[i])).sum().cpu() for i in chosen])
    seen: list[list[Tensor]] = [[] for _ in chosen]
    kept: list[tuple[Tensor, Tensor]] = []
    for vectors, products, _ in probe(operator, samples, generator, draw_signs, rounding):
        if basis is not None and weighted is not None:
            products = products - weighted @ (basis.T @ vectors)
        for one, i in zip(seen, chosen, strict=True):
            one.append((double(vectors[i]) * double(products[i])).sum(0).cpu())
        if crossfit:
            kept.append((vectors, products))
    values = [torch.cat(one) + e for one, e in zip(seen, exact, strict=True)]
    if not kept:
        return BlockForms([Forms(one, None) for one in values], rounding.bound())
    z, y = (torch.cat(part, dim=1) for part in zip(*kept, strict=True))
    crossed, gram = cross_products(z, y)
    pair = guesses(crossed, gram)
    blocks = []
    for one, i in zip(values, chosen, strict=True):
        local, own = (crossed, gram) if parts is None else cross_products(z[i], y[i])
        controls = torch.zeros_like(one)
        for guess in pair:
            controls[guess.users] = guess.forms(local, crossed) - (guess.core * own).sum()
        blocks.append(Forms(one, controls))
    return BlockForms(blocks, rounding.bound())


def mean_of_forms(
    forms: Forms, rounding: float, level: float, *, always: bool = False
) -> tuple[float, float, tuple[float, float], str]:
    """Return the mean of the forms, corrected where that pays, its error, interval and method.

    The plain interval is that of `mean_interval`. Corrected halves may err together, which
    in the worst case makes the interval sqrt(2) times as wide.
    """
    values, factor = forms.values, 1.0
    how = "Hutchinson with random signs, Student and Hall interval"
    if forms.controls is not None:
        plain = float(values.var())
        values, corrected = correct(values, forms.controls, always=always)
        if corrected:
            factor, left = HALVES, float(values.var()) / plain if plain else 1.0
            how = (
                f"Hutchinson with random signs, cross-fitted: a low-rank guess from each half "
                f"of them left {left:.2g} of the other's variance"
            )
        else:
            how += "; cross-fitting did not pay"
    low, high = mean_interval(values.numpy(), level)
    value = float(values.mean())
    stderr = factor * float(values.std()) / math.sqrt(len(values))
    ends = (value - factor * (value - low) - rounding, value + factor * (high - value) + rounding)
    return value, stderr, ends, how
