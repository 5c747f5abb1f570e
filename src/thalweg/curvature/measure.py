"""Measuring a spectrum: some eigenvalues one by one, and random starts off them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from thalweg.curvature.eigenpairs import Eigenpairs, eigenpairs
from thalweg.curvature.lanczos import Tridiagonal, lockstep, most_chains
from thalweg.curvature.operator import LinearOperator
from thalweg.curvature.quadrature import Spectrum
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["Companions", "chains_beside", "measure", "measure_exactly"]

Array = NDArray[np.float64]

_BLOCK = 8
_LARGE = 2**24
"""Entries of the deflated vectors above which they are not copied to be made orthonormal."""


@dataclass(frozen=True, eq=False)
class Companions:
    """Random starts within parts of the space, whose chains travel with a measurement's own.

    Attributes:
        where: The coordinates of each part.
        values: The start's values there.
    """

    where: tuple[Int[Tensor, " _"], ...]
    values: tuple[Float[Tensor, " _"], ...]

    def starts(self, operator: LinearOperator, chosen: range) -> Float[Tensor, "dim k"]:
        """Return some of the starts as columns."""
        columns = torch.zeros(
            operator.dim, len(chosen), dtype=operator.dtype, device=operator.device
        )
        for column, part in enumerate(chosen):
            columns[self.where[part], column] = self.values[part].to(columns)
        return columns

    def restrict(self, columns: Float[Tensor, "dim k"], chosen: range) -> Float[Tensor, "dim k"]:
        """Put each column to zero outside its part."""
        kept = torch.zeros_like(columns)
        for column, part in enumerate(chosen):
            where = self.where[part]
            kept[where, column] = columns[where, column]
        return kept


def measure_exactly(operator: LinearOperator, level: float, seed: Seed) -> Spectrum:
    """Return the spectrum of the whole matrix, for `dim` products.

    Raises:
        ValueError: If the operator is not symmetric.
        FloatingPointError: If a product is not finite.
    """
    before = operator.cost
    _, number = make_generator(seed)
    values, rounding = _dense(operator)
    return Spectrum(
        atoms=values,
        radii=np.full(len(values), rounding),
        free=0,
        chains=(),
        dim=operator.dim,
        rounding=rounding,
        definite=operator.definite,
        level=level,
        cost=operator.cost - before,
        seed=number,
        source="exact, by all its products",
    )


def measure(
    operator: LinearOperator,
    probes: int,
    steps: int,
    deflate: int | Eigenpairs,
    level: float,
    memory: int | str,
    seed: Seed,
    beside: Companions | None = None,
) -> tuple[Spectrum, Eigenpairs | None, tuple[Tridiagonal, ...]]:
    """Deflate what converges, and run chains from random starts in what is left.

    Returns:
        The spectrum, the eigenpairs of which the converged ones are its atoms, and the
        chains that travelled beside.

    Raises:
        ValueError: If the operator is not symmetric.
        FloatingPointError: If a product is not finite.
    """
    before = operator.cost
    generator, number = make_generator(seed)
    found = _outliers(operator, deflate, min(probes, _BLOCK), steps, generator)
    atoms, radii, basis = _converged(operator, found)
    free, top = operator.dim - len(atoms), float(np.abs(atoms).max(initial=0.0))
    if not free:
        probes = 0
    travelling = _chains(operator, basis, top, probes, steps, memory, generator, beside)
    chains, others = travelling[:probes], travelling[probes:]
    local = "" if all(c.full for c in chains) else ", locally orthogonalised"
    spectrum = Spectrum(
        atoms=atoms,
        radii=radii,
        free=free,
        chains=chains,
        dim=operator.dim,
        rounding=max([c.rounding for c in chains], default=float(radii.max(initial=0.0))),
        definite=operator.definite,
        level=level,
        cost=operator.cost - before,
        seed=number,
        source=(
            f"stochastic Lanczos quadrature, {len(chains)} probes of "
            f"{max((c.steps for c in chains), default=0)} steps{local}, {len(atoms)} deflated"
        ),
    )
    return spectrum, found, others


def chains_beside(
    operator: LinearOperator, beside: Companions, steps: int, memory: int | str
) -> tuple[Tridiagonal, ...]:
    """Run the chains of some parts alone."""
    return _chains(operator, None, 0.0, 0, steps, memory, torch.Generator(), beside)


def _dense(operator: LinearOperator) -> tuple[Array, float]:
    """Return all eigenvalues, and how far rounding may have moved them."""
    matrix = operator.to_dense(limit=operator.dim).to("cpu").double()
    bad = int((~torch.isfinite(matrix)).sum())
    if bad:
        raise FloatingPointError(
            f"{bad} of {matrix.numel()} entries of {operator!r} are NaN or infinite: look at "
            f"the loss and gradient at this point, or compute in float64"
        )
    gaps, unit = matrix - matrix.T, torch.finfo(operator.dtype).eps
    scale = float(torch.linalg.vector_norm(matrix, dim=0).max())
    if float(gaps.abs().max()) > 30 * math.sqrt(unit) * scale:
        raise ValueError(
            f"{operator!r} is not symmetric, or gives different products at different times: "
            f"entries differ from their mirror image by up to {float(gaps.abs().max()):.3g}, "
            f"where columns have norms up to {scale:.3g}; look for dropout, shuffled data or a "
            f"wrong product"
        )
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2).numpy()
    noise = 2 * math.sqrt(operator.dim) * float(gaps.square().mean().sqrt())
    return values, noise + 16 * unit * float(np.abs(values).max())


def _outliers(
    operator: LinearOperator,
    deflate: int | Eigenpairs,
    block: int,
    steps: int,
    generator: torch.Generator,
) -> Eigenpairs | None:
    """Compute what is to be deflated, for about as many products as two chains take."""
    if isinstance(deflate, Eigenpairs):
        return deflate
    wanted = min(deflate, operator.dim)
    if not wanted:
        return None
    budget = max(4 * wanted + 20, 2 * steps + 2 * wanted)
    return eigenpairs(
        operator,
        wanted,
        which="magnitude",
        block=min(block, operator.dim),
        max_products=budget,
        seed=generator,
    )


def _converged(
    operator: LinearOperator, found: Eigenpairs | None
) -> tuple[Array, Array, Tensor | None]:
    """Return the converged eigenvalues, their radii, and orthonormal vectors as columns."""
    if found is None or not bool(found.converged.any()):
        return np.zeros(0), np.zeros(0), None
    kept = found.converged
    values = found.values[kept].to("cpu", torch.float64).numpy()
    intervals = found.intervals[kept].to("cpu", torch.float64)
    radii = ((intervals[:, 1] - intervals[:, 0]) / 2).numpy()
    vectors = found.vectors[:, kept.to(found.vectors.device)].to(operator.device)
    if operator.device.type == "mps" or vectors.numel() > _LARGE:
        return values, radii, vectors  # orthonormal up to rounding, and projected off twice
    return values, radii, torch.linalg.qr(vectors.double())[0]


def _chains(
    operator: LinearOperator,
    basis: Tensor | None,
    top: float,
    probes: int,
    steps: int,
    memory: int | str,
    generator: torch.Generator,
    beside: Companions | None,
) -> tuple[Tridiagonal, ...]:
    """Run chains from uniform starts in the complement of the deflated vectors.

    Those that travel beside come last. Where not all fit into the memory at once, they go
    in turns, of fewer steps each.
    """
    total = probes + (len(beside.where) if beside else 0)
    if not total:
        return ()
    width = min(total, most_chains(operator, memory))
    turns = math.ceil(total / width)
    found: list[Tridiagonal] = []
    for first in range(0, total, width):
        own = range(min(first, probes), min(first + width, probes))
        others = range(max(first - probes, 0), max(min(first + width, total) - probes, 0))
        drawn = [
            torch.randn(operator.dim, generator=generator, dtype=torch.float64).to(operator.dtype)
            for _ in own
        ]
        columns = [start[:, None].to(operator.device) for start in drawn]
        if beside is not None:
            columns.append(beside.starts(operator, others))

        def restrict(vectors: Tensor, mine: int = len(own), others: range = others) -> Tensor:
            left = vectors[:, :mine]
            if basis is not None and mine:
                for _ in range(2):
                    left = left - basis.to(left.dtype) @ (basis.to(left.dtype).T @ left)
            if beside is None:
                return left
            return torch.cat([left, beside.restrict(vectors[:, mine:], others)], dim=1)

        starts = torch.cat(columns, dim=1)
        found += lockstep(
            operator,
            starts,
            max(1, steps // turns),
            restrict=restrict,
            memory=memory,
            scale=top,
        )
    return tuple(found)
