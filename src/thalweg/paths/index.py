"""The index of a critical point: its lowest eigenvalues, and what is certain of their signs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.curvature.eigenpairs import OVERLOOKED, eigenpairs
from thalweg.curvature.functions import frobenius_norm
from thalweg.curvature.operator import Hessian
from thalweg.estimate import Bound, BoundKind
from thalweg.landscape.protocols import Landscape
from thalweg.paths.saddle import Model

__all__ = ["Spectrum", "dense_spectrum", "lowest_spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """The lowest eigenvalues, and whether any that matters may be missing."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    rounding: float
    flat: float
    complete: bool
    proven: bool
    frobenius: float
    method: str

    def _sure(self, side: int) -> int:
        """Count the eigenvalues that certainly lie beyond `flat` on one side (Kahan)."""
        chosen = side * self.values > self.flat
        radius = float(torch.linalg.vector_norm(self.residuals[chosen])) + self.rounding
        return int((side * self.values[chosen] - radius > self.flat).sum())

    def counts(self) -> tuple[Bound, Bound]:
        """Return how many eigenvalues are negative, and how many zero."""
        dim, known = self.vectors.shape[1], len(self.values)
        low, high = self._sure(-1), self._sure(1)
        radius = self.residuals + self.rounding
        most = dim - high
        least_zero, most_zero = 0, dim - low - high
        if self.complete:
            most = int((self.values - radius < -self.flat).sum())
            most_zero = int((self.values - radius <= self.flat).sum()) - low
            least_zero = known - high - most
        far: BoundKind = "certified" if self.proven or not self.complete else "estimated"
        index = Bound(low, max(low, most), "certified", far, method=self.method)
        zero = Bound(max(0, least_zero), max(0, least_zero, most_zero), far, far)
        return index, zero


def dense_spectrum(model: Model, flat: float | None, eps: float) -> Spectrum:
    """Return all eigenvalues."""
    dim = len(model.gradient)
    lopsided = float(torch.linalg.matrix_norm(model.images - model.images.T)) / 2
    norm = float(model.values.abs().max())
    rounding = lopsided + dim * torch.finfo(torch.float64).eps * norm
    return Spectrum(
        model.values,
        torch.zeros_like(model.values),
        model.vectors.T,
        rounding,
        max(1e-6, 100 * eps) * norm if flat is None else flat,
        True,
        True,
        float(torch.linalg.matrix_norm(model.images)),
        "all eigenvalues, dense",
    )


def lowest_spectrum(
    land: Landscape,
    theta: Tensor,
    flat: float | None,
    budget: int,
    generator: torch.Generator,
) -> Spectrum:
    """Return the lowest eigenvalues, as many as it takes to meet the first positive one."""
    eps = torch.finfo(land.dtype).eps
    with Hessian(land, theta) as operator:
        top = eigenpairs(operator, 3, which="magnitude", tol=1e-2, max_products=60, seed=generator)
        norm = float(top.values.abs().max())
        frobenius = frobenius_norm(operator, probes=6, deflate=top, seed=generator).value
        flat = max(1e-6, 100 * eps) * norm if flat is None else flat
        count, start, left = 4, None, budget
        while True:
            count = min(count, land.dim)
            found = eigenpairs(
                operator,
                count,
                which="smallest",
                tol=flat / (4 * norm) if norm else 1e-6,
                max_products=max(left, count + 2),
                start=start,
                block=2,
                seed=generator,
            )
            left -= found.products
            met = float(found.intervals[-1, 0]) > flat
            if met or count == land.dim or left <= 2 * count + 2:
                break
            count, start = 2 * count, found.vectors
    solid = bool(found.converged.all()) and found.overlooked <= OVERLOOKED
    return Spectrum(
        found.values,
        found.residuals,
        found.vectors.T,
        found.rounding,
        flat,
        solid and (met or count == land.dim),
        False,
        frobenius,
        f"{len(found.values)} lowest by {found.method}",
    )
