"""Everything that a few dozen passes over the data tell of the curvature at one point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature.blocks import block_traces
from thalweg.curvature.counts import Inertia
from thalweg.curvature.density import SpectralDensity, draw_density
from thalweg.curvature.eigenpairs import OVERLOOKED, Eigenpairs, eigenpairs
from thalweg.curvature.gauss_newton import GaussNewton
from thalweg.curvature.lanczos import Tridiagonal
from thalweg.curvature.layers import (
    Groups,
    LayerCurvature,
    costless,
    extreme,
    group_starts,
    make_groups,
    measured_groups,
    missed,
)
from thalweg.curvature.measure import chains_beside, measure, measure_exactly
from thalweg.curvature.operator import Hessian, LinearOperator
from thalweg.curvature.quadrature import Spectrum
from thalweg.estimate import Bound, BoundKind, Cost, Estimate
from thalweg.landscape.memory import parse_bytes
from thalweg.landscape.protocols import FiniteSum, Landscape, Structured
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["CurvatureProfile", "curvature_profile"]

Progress = Callable[[float, str], None]

_KINDS = ("hessian", "gauss-newton")
_SAMPLES = 32
_WHOLE = "\0whole"
_SHARE = 0.4
_TOLERANCE = 1e-4
_SHIFT = 1e-3
_DENSE_LIMIT = 4096


@dataclass(frozen=True, eq=False)
class CurvatureProfile:
    r"""The curvature at one point, from products that all measures share.

    Attributes:
        kind: ``"hessian"`` or ``"gauss-newton"``.
        dim: The number of parameters.
        loss: The loss there.
        gradient_norm: The length of the gradient there.
        eigenpairs: The largest eigenvalues, each with an interval.
        largest: A bracket on the largest eigenvalue, the sharpness.
        lowest: A bracket on the smallest eigenvalue.
        trace: The trace.
        frobenius_norm: $(\sum_i \lambda_i^2)^{1/2}$.
        density: The spectral density; it answers further questions at no cost.
        inertia: How many eigenvalues lie below $-\tau$, within $\pm\tau$ and above $\tau$.
        shift: The $s$ of the next two.
        log_determinant: $\log\det(A_+ + s I)$, negative eigenvalues put to zero.
        effective_dimension: $\sum_{\lambda_i > 0} \lambda_i / (\lambda_i + s)$.
        layers: Trace and largest eigenvalue of each layer's own block.
        memory: The cap on the bytes of the search and its chains.
        cost: What all of it took.
        level: Nominal coverage of the intervals.
        seed: The seed that reproduces it.
    """

    kind: str
    dim: int
    loss: float
    gradient_norm: float
    eigenpairs: Eigenpairs
    largest: Bound
    lowest: Bound
    trace: Estimate
    frobenius_norm: Estimate
    density: SpectralDensity
    inertia: Inertia
    shift: float
    log_determinant: Estimate
    effective_dimension: Estimate
    layers: tuple[LayerCurvature, ...]
    memory: int
    cost: Cost
    level: float
    seed: int

    def __str__(self) -> str:
        """Return the profile as a page of text."""
        pairs = self.eigenpairs
        top = ", ".join(
            f"{value:.6g}{'' if done else '?'}"
            for value, done in zip(pairs.values.tolist(), pairs.converged.tolist(), strict=True)
        )
        rows = [
            ("loss", f"{self.loss:.8g}, gradient norm {self.gradient_norm:.3g}"),
            ("largest eigenvalues", top),
            ("sharpness", str(self.largest)),
            ("smallest eigenvalue", str(self.lowest)),
            ("trace", costless(self.trace)),
            ("Frobenius norm", costless(self.frobenius_norm)),
            (f"log det (A+ + {self.shift:.3g} I)", costless(self.log_determinant)),
            (f"effective dim. at {self.shift:.3g}", costless(self.effective_dimension)),
            ("counts", str(self.inertia)),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"curvature ({self.kind}) in {self.dim} dimensions"]
        lines += [f"  {name:<{width}}  {text}" for name, text in rows]
        if self.layers:
            lines += ["layers, each with the others held fixed:"]
            lines += [f"  {layer}" for layer in self.layers]
        if not bool(pairs.converged.all()):
            lines.append("eigenvalues marked ? did not converge: raise passes, or ask for fewer")
        elif pairs.overlooked > OVERLOOKED:
            lines.append(
                "that none of the largest eigenvalues is missing (a tie, or a further copy) was "
                "not certified: raise probes or passes"
            )
        lines.append(f"{self.cost}; at most {self.memory / 2**20:.4g} MiB; seed {self.seed}")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the same for a terminal."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything but the eigenvectors."""
        return {
            "type": "curvature profile",
            "kind": self.kind,
            "dim": self.dim,
            "loss": self.loss if math.isfinite(self.loss) else repr(self.loss),
            "gradient_norm": (
                self.gradient_norm
                if math.isfinite(self.gradient_norm)
                else repr(self.gradient_norm)
            ),
            "eigenpairs": self.eigenpairs.to_json(),
            "largest": self.largest.to_json(),
            "lowest": self.lowest.to_json(),
            "trace": self.trace.to_json(),
            "frobenius_norm": self.frobenius_norm.to_json(),
            "density": self.density.to_json(),
            "inertia": self.inertia.to_json(),
            "shift": self.shift,
            "log_determinant": self.log_determinant.to_json(),
            "effective_dimension": self.effective_dimension.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
            "memory": self.memory,
            "cost": self.cost.to_json(),
            "level": self.level,
            "seed": self.seed,
        }


def curvature_profile(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    *,
    kind: str = "hessian",
    eigenvalues: int = 10,
    probes: int = 10,
    passes: int = 60,
    layers: bool | Sequence[str] = True,
    tau: float | None = None,
    shift: float | None = None,
    memory: int | str = "2 GiB",
    level: float = 0.95,
    seed: Seed = None,
    progress: Progress | None = None,
) -> CurvatureProfile:
    r"""Measure eigenvalues, trace, density, counts and layers at one point, all together.

    In three stages, each of which sends many vectors through every pass over the data:
    block Lanczos for the largest eigenvalues; random signs for the trace, whole and per
    layer, with the eigenpairs' part exact; and Lanczos chains in lockstep, from random
    starts off the converged eigenvectors for everything that is a sum over the spectrum,
    and from one start within each layer for the layer's largest eigenvalue. The chains also
    check that no eigenvalue was missed.

    Args:
        land: The landscape.
        theta: The point, `(dim,)`.
        kind: ``"hessian"`` or ``"gauss-newton"`` (which leaves the penalty out).
        eigenvalues: How many of the largest, at least 1.
        probes: How many random starts travel together, at least 4.
        passes: The most passes over the data to spend, at least 20.
        layers: Whether to measure every layer, where the landscape has any; or name
            patterns such as ``["blocks.0.*", "head.*"]``, one group each.
        tau: The tolerance of the counts; by default a thousandth of the largest magnitude.
        shift: The $s$ of log-determinant and effective dimension; by default a thousandth
            of the largest eigenvalue.
        memory: The cap on the tensor bytes of the search and the chains, beside what the
            landscape's own products take under its own cap.
        level: Nominal coverage of the intervals.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.
        progress: Called with the fraction done and what is being done.

    Returns:
        The profile.

    Raises:
        ValueError: If an option is out of range, or the memory cap is too small.
        TypeError: If `kind` or `layers` need what the landscape has not.
        FloatingPointError: If a product is not finite.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> scales = torch.cat([torch.zeros(900), torch.arange(1.0, 101.0)]).double()
        >>> bowl = FunctionLandscape(lambda x: (scales * x**2).sum() / 2, dim=1000)
        >>> profile = curvature_profile(bowl, torch.ones(1000).double(), seed=0)
        >>> 5050.0 in profile.trace, 100.0 in profile.largest, 0.0 in profile.lowest
        (True, True, True)
        >>> profile.cost.passes <= 60
        True
    """
    _check(land, kind, eigenvalues, probes, passes, layers)
    generator, number = make_generator(seed)
    report: Progress = progress if progress is not None else lambda fraction, words: None
    cap, before = parse_bytes(memory), land.cost
    report(0.0, "loss and gradient")
    loss, gradient = land.value_and_gradient(theta)
    groups = _groups(land, layers)
    operator: Hessian | GaussNewton
    operator = Hessian(land, theta) if kind == "hessian" else _gauss_newton(land, theta)
    with operator:
        watched = _Watched(operator, report, passes - (land.cost - before).passes)
        report(0.02, "largest eigenvalues")
        pairs = _leading(watched, eigenvalues, probes, passes, cap, generator)
        report(watched.done, "trace")
        traces = _traces(watched, groups, pairs, level, generator)
        report(watched.done, "density")
        room = max(1, cap - pairs.vectors.numel() * pairs.vectors.itemsize)
        spectrum, chains = _spectrum(watched, groups, pairs, probes, room, level, generator)
    cost = land.cost - before
    density = draw_density(spectrum, pairs, steps=max([1, *(c.steps for c in spectrum.chains)]))
    pairs = _vouched(pairs, spectrum)
    largest, lowest = (_end(spectrum, side, cost) for side in (1, -1))
    shift = _SHIFT * max(largest.lower, 0.0) if shift is None else shift
    shift = shift or _SHIFT
    report(1.0, "done")
    whole = traces.pop(_WHOLE)
    return CurvatureProfile(
        kind=kind,
        dim=land.dim,
        loss=float(loss),
        gradient_norm=float(torch.linalg.vector_norm(gradient.double())),
        eigenpairs=pairs,
        largest=largest,
        lowest=lowest,
        trace=whole,
        frobenius_norm=density.frobenius_norm(),
        density=density,
        inertia=density.count(tau),
        shift=shift,
        log_determinant=density.log_determinant(shift, part="positive"),
        effective_dimension=density.effective_dimension(shift),
        layers=measured_groups(groups, traces, chains, cost),
        memory=cap,
        cost=cost,
        level=level,
        seed=number,
    )


class _Watched(LinearOperator):
    """An operator that reports how far its products have come in a number of passes."""

    def __init__(self, operator: LinearOperator, report: Progress, passes: float) -> None:
        self.operator, self.dim = operator, operator.dim
        self.dtype, self.device = operator.dtype, operator.device
        self.definite = operator.definite
        self._report, self._passes, self.stage = report, passes, "largest eigenvalues"
        self._begun = operator.cost

    @property
    def cost(self) -> Cost:
        """The cost of the operator that is watched."""
        return self.operator.cost

    @property
    def done(self) -> float:
        """The fraction of the passes that is spent."""
        return min(0.99, (self.cost - self._begun).passes / self._passes)

    @property
    def left(self) -> int:
        """How many passes are left to spend, at least one."""
        return max(1, math.floor(self._passes - (self.cost - self._begun).passes))

    def _product(self, vectors: Tensor) -> Tensor:
        products = self.operator.matmat(vectors)
        self._report(self.done, self.stage)
        return products

    def own_trace(self, *, level: float = 0.95, seed: Seed = None) -> Estimate | None:
        """Return what the operator knows of its trace."""
        return self.operator.own_trace(level=level, seed=seed)

    def own_diagonal(self) -> Tensor | None:
        """Return what the operator knows of its diagonal."""
        return self.operator.own_diagonal()

    def __repr__(self) -> str:
        """Return the operator's own text."""
        return repr(self.operator)


def _check(
    land: Landscape,
    kind: str,
    eigenvalues: int,
    probes: int,
    passes: int,
    layers: bool | Sequence[str],
) -> None:
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, not {kind!r}")
    for name, value, least in (
        ("eigenvalues", eigenvalues, 1),
        ("probes", probes, 4),
        ("passes", passes, 20),
    ):
        if value < least:
            raise ValueError(f"{name}={value} is too few; take at least {least}")
    if isinstance(layers, str):
        raise TypeError(f"layers takes a list of patterns; write [{layers!r}]")
    if not isinstance(layers, bool) and not isinstance(land, Structured):
        raise TypeError(
            f"layers={list(layers)!r} names parameters, but {type(land).__name__} has no spec; "
            f"leave layers out"
        )


def _gauss_newton(land: Landscape, theta: Tensor) -> GaussNewton:
    if not isinstance(land, FiniteSum):
        raise TypeError(
            f"kind='gauss-newton' needs a landscape with outputs and data, which "
            f"{type(land).__name__} has not; take kind='hessian'"
        )
    return GaussNewton(land, theta)


def _groups(land: Landscape, layers: bool | Sequence[str]) -> Groups:
    if layers is False or not isinstance(land, Structured):
        return {}
    return make_groups(land.spec, None if layers is True else layers)


def _leading(
    operator: LinearOperator,
    k: int,
    block: int,
    passes: int,
    memory: int,
    generator: torch.Generator,
) -> Eigenpairs:
    """Return the largest eigenpairs, unchecked, for a share of the passes."""
    k, block = min(k, operator.dim), min(block, operator.dim)
    budget = max(int(_SHARE * passes) * block, 2 * k + block)
    return eigenpairs(
        operator,
        k,
        tol=_TOLERANCE,
        block=block,
        max_products=budget,
        check=False,
        memory=memory,
        seed=generator,
    )


def _traces(
    operator: _Watched,
    groups: Groups,
    pairs: Eigenpairs,
    level: float,
    generator: torch.Generator,
) -> dict[str, Estimate]:
    """Return the traces of the whole and of every group, from the same products."""
    operator.stage = "trace"
    known = None if groups else operator.own_trace(level=level, seed=generator)
    found = {_WHOLE: known} if known is not None else {}
    if known is None:
        found = block_traces(
            operator,
            {_WHOLE: slice(None), **groups},
            samples=min(_SAMPLES, operator.dim),
            eigenpairs=pairs,
            overlapping=True,
            level=level,
            seed=generator,
        )
    operator.stage = "density"
    return found


def _spectrum(
    operator: _Watched,
    groups: Groups,
    pairs: Eigenpairs,
    probes: int,
    memory: int,
    level: float,
    generator: torch.Generator,
) -> tuple[Spectrum, tuple[Tridiagonal, ...]]:
    """Measure the spectrum with the passes that are left, and one chain for every group."""
    beside = group_starts(operator, groups, generator) if groups else None
    if operator.dim > min(probes * operator.left, _DENSE_LIMIT):
        spectrum, _, chains = measure(
            operator, probes, operator.left, pairs, level, memory, generator, beside
        )
        return spectrum, chains
    spectrum = measure_exactly(operator, level, generator)
    if beside is None:
        return spectrum, ()
    return spectrum, chains_beside(operator, beside, operator.left, memory)


def _vouched(pairs: Eigenpairs, spectrum: Spectrum) -> Eigenpairs:
    """Say how likely it is that the chains, too, missed an eigenvalue above the last one."""
    if not bool(pairs.converged.all()):
        return pairs
    if spectrum.chains:
        chance = missed(spectrum.chains, spectrum.free, float(pairs.values[-1]))
    else:
        rank = np.sort(spectrum.atoms - spectrum.radii)[-len(pairs.values)]
        chance = 0.0 if rank <= float(pairs.intervals[-1, 1]) else 1.0
    return replace(pairs, overlooked=min(pairs.overlooked, chance))


def _end(spectrum: Spectrum, side: int, cost: Cost) -> Bound:
    """Return a bracket on the largest (side 1) or the smallest (-1) eigenvalue."""
    known = [spectrum.atoms - spectrum.radii, spectrum.atoms + spectrum.radii]
    lows, highs = (part.tolist() for part in known)
    if spectrum.chains:
        rest = extreme(spectrum.chains, spectrum.free, largest=side > 0)
        lows, highs = [*lows, rest.lower], [*highs, rest.upper]
    if spectrum.definite:
        lows = [max(low, -spectrum.rounding) for low in lows]
    choose = max if side > 0 else min
    far: BoundKind = "estimated" if spectrum.chains else "certified"
    kinds: tuple[BoundKind, BoundKind] = ("certified", far) if side > 0 else (far, "certified")
    return Bound(choose(lows), choose(highs), *kinds, cost, spectrum.source)
