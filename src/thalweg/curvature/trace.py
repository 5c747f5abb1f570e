"""The trace of a symmetric operator, with an interval that keeps its promise."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import torch
from torch import Tensor

from thalweg.curvature.blocks import block_traces, check_samples, mean_of_forms, sign_forms
from thalweg.curvature.operator import LinearOperator, finite_matmat
from thalweg.curvature.probes import Rounding, double, draw_normals, probe, read_diagonal
from thalweg.curvature.sketch import LeaveOneOut, nystrom_trace, orthonormal, range_trace
from thalweg.estimate import Cost, Estimate
from thalweg.landscape.memory import parse_bytes
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["TraceMethod", "block_traces", "trace"]

_COLUMNS = 16

TraceMethod = Literal["auto", "crossfit", "exact", "hutchinson", "xnystrace", "xtrace"]


def trace(
    operator: LinearOperator,
    *,
    samples: int = 96,
    method: TraceMethod = "auto",
    level: float = 0.95,
    memory: int | str = "2 GiB",
    seed: Seed = None,
) -> Estimate:
    r"""Estimate the trace from products with random vectors, with a calibrated interval.

    $$\operatorname{tr} A = \mathbb{E}\, z^\top A z, \qquad z_i = \pm 1 \text{ with equal
    probability}, \qquad \operatorname{Var} z^\top A z = 2 \sum_{i \ne j} a_{ij}^2.$$

    ``"hutchinson"`` is the mean of such forms. ``"crossfit"`` corrects them by a low-rank
    guess that the other half of the same products makes. ``"xnystrace"`` (positive
    semidefinite matrices) and ``"xtrace"`` sketch the matrix and measure what the sketch
    misses. ``"exact"`` reads the diagonal off with `dim` products. ``"auto"`` takes

    - what the operator knows itself (Gauss-Newton and Fisher matrices: no product at all);
    - the exact diagonal where `samples` reaches `dim`;
    - XNysTrace where the operator is positive semidefinite by construction;
    - else Hutchinson, cross-fitted if that at least halves the variance of the samples.

    The number of samples is fixed beforehand: to stop when the running mean looks calm is
    to stop at a coincidence. The intervals: that of `mean_interval` for the forms, which can
    be skewed; $\sqrt 2$ times as wide where they are cross-fitted, since the halves may err
    together; for the sketches see `thalweg.curvature.sketch`. All of them plus the rounding
    of the products, estimated from how far $x^\top A y$ and $y^\top A x$ differ. Coverage was
    measured over 1000 seeds (``docs/calibration``).

    Args:
        operator: A symmetric operator on $\mathbb{R}^D$, such as ``Hessian(land, theta)``.
        samples: How many products; at least 32 (or `dim`).
        method: How; the result's `method` says what was done and why.
        level: Nominal coverage of the interval.
        memory: How much the kept vectors may take; above it ``"auto"`` keeps none
            (Hutchinson), and a method that was asked for by name is refused.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The estimate; its `interval` covers the trace with probability `level`.

    Raises:
        ValueError: If `samples`, `method` or `level` is out of range, or the operator is not
            symmetric, or not positive semidefinite where it should be.
        MemoryError: If a method asked for by name needs more than `memory`.
        FloatingPointError: If a product is not finite.

    References:
        D. Girard (1989); M. Hutchinson (1989), A stochastic estimator of the trace of the
        influence matrix; R. Meyer et al. (2021), Hutch++ (arXiv:2010.09649), non-adaptive
        variant; E. Epperly, J. Tropp & R. Webber (2024), XTrace (arXiv:2301.07825).

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.full((200, 200), 0.01, dtype=torch.float64))
        >>> estimate = trace(A, seed=0)
        >>> 2.0 in estimate, estimate.samples
        (True, 96)
        >>> print(trace(A, samples=200).method)
        exact diagonal
    """
    if method not in get_args(TraceMethod):
        known = ", ".join(map(repr, get_args(TraceMethod)))
        raise ValueError(f"method must be one of {known}, not {method!r}")
    check_samples(operator, operator.dim if method == "exact" else samples, level)
    if method == "auto" and (own := operator.own_trace(level=level, seed=seed)) is not None:
        return own
    before = operator.cost
    generator, number = make_generator(seed)
    if method == "exact" or samples >= operator.dim:
        found = _exact(operator, level)
    else:
        chosen, why = _choose(operator, method, samples, parse_bytes(memory))
        if chosen == "xnystrace":
            found = _xnystrace(operator, samples, level, generator)
        elif chosen == "xtrace":
            found = _xtrace(operator, samples, level, generator)
        else:
            found = _signs(operator, samples, level, generator, chosen)
        found = dataclasses.replace(found, method=found.method + why)
    return dataclasses.replace(found, cost=operator.cost - before, seed=number)


def _choose(operator: LinearOperator, method: str, samples: int, memory: int) -> tuple[str, str]:
    """Return the method to use, and the reason where the choice was ours."""
    needed = 2 * operator.dim * samples * operator.dtype.itemsize
    if method == "hutchinson":
        return method, ""
    if needed > memory and method != "auto":
        raise MemoryError(
            f"method={method!r} keeps {2 * samples} vectors of length {operator.dim}, "
            f"{needed / 2**30:.3g} GiB, above memory={memory / 2**30:.3g} GiB; raise memory, "
            f"lower samples={samples}, or use method='hutchinson', which keeps none"
        )
    if method != "auto":
        return method, ""
    if needed > memory:
        return "hutchinson", f"; no sketch, which needs memory='{needed / 2**30:.3g} GiB'"
    if operator.definite:
        return "xnystrace", "; chosen because the operator is positive semidefinite"
    return "auto", ""


def _estimate(
    value: float, stderr: float, interval: tuple[float, float], samples: int, level: float, how: str
) -> Estimate:
    """Return an estimate whose cost and seed are filled in later."""
    return Estimate(value, stderr, interval, samples, Cost(), level, how)


def _signs(
    operator: LinearOperator, samples: int, level: float, generator: torch.Generator, chosen: str
) -> Estimate:
    """Estimate by forms of random signs, corrected by each other where that pays or is asked."""
    seen = sign_forms(operator, None, samples, generator, crossfit=chosen != "hutchinson")
    (forms,) = seen.blocks
    value, stderr, ends, how = mean_of_forms(
        forms, seen.rounding, level, always=chosen == "crossfit"
    )
    return _estimate(value, stderr, ends, samples, level, how)


def _normals(
    operator: LinearOperator, count: int, generator: torch.Generator, rounding: Rounding
) -> tuple[Tensor, Tensor]:
    pairs = [(v, p) for v, p, _ in probe(operator, count, generator, draw_normals, rounding)]
    vectors, products = (torch.cat(part, dim=1) for part in zip(*pairs, strict=True))
    return vectors, products


def _xnystrace(
    operator: LinearOperator, samples: int, level: float, generator: torch.Generator
) -> Estimate:
    rounding = Rounding(operator)
    vectors, products = _normals(operator, samples, generator, rounding)
    found = nystrom_trace(vectors, products, torch.finfo(operator.dtype).eps)
    how = "XNysTrace, interval from textbook and jackknife"
    return _sketched(found, samples, level, rounding.bound(), how)


def _xtrace(
    operator: LinearOperator, samples: int, level: float, generator: torch.Generator
) -> Estimate:
    rounding, half = Rounding(operator), samples // 2
    unit = torch.finfo(operator.dtype).eps
    vectors, products = _normals(operator, half, generator, rounding)
    basis = orthonormal(products, unit)
    blocks = torch.split(basis.vectors, _COLUMNS, dim=1)
    images = torch.cat([finite_matmat(operator, block) for block in blocks], dim=1)
    if basis.full:
        found = range_trace(vectors, products, basis, images)
        how = "XTrace, interval from textbook and jackknife"
        return _sketched(found, 2 * half, level, rounding.bound(), how)
    kept, images = double(basis.vectors), double(images)
    value = float((kept * images).sum())
    size = float(torch.linalg.vector_norm(images, dim=0).sum())
    wide = rounding.bound() + 16 * unit * size
    how = f"XTrace, exact: the rank is {basis.vectors.shape[1]}"
    return _estimate(value, 0.0, (value - wide, value + wide), 2 * half, level, how)


def _sketched(
    found: LeaveOneOut, samples: int, level: float, rounding: float, how: str
) -> Estimate:
    ends = found.interval(level, rounding)
    return _estimate(found.value, found.stderr, ends, samples, level, how)


def _exact(operator: LinearOperator, level: float) -> Estimate:
    """Read the diagonal off, with as many products as there are coordinates."""
    entries, wide = read_diagonal(operator)
    value, rounding = math.fsum(entries.tolist()), float(wide.sum())
    ends = (value - rounding, value + rounding)
    return _estimate(value, 0.0, ends, operator.dim, level, "exact diagonal")
