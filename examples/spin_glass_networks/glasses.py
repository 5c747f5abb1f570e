"""Descents on the spherical 3-spin glass from random points to local minima."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from campaign import THRESHOLD
from torch import Tensor

from thalweg.theory.spin_glass.descent import local_minima
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.sphere import eigensystem, energy_and_gradient

DEGREE = 3
HESSIANS = 2**23  # entries of Hessians held at once


def glass(n: int, disorder: int) -> SphericalPSpin:
    """Return the spin glass of a size and a number."""
    seed = np.random.SeedSequence([n, disorder]).generate_state(1, np.uint32)
    return SphericalPSpin(n, DEGREE, int(seed[0]))


def draw(land: SphericalPSpin, disorder: int, numbers: range) -> Tensor:
    """Draw uniform starts, each from its own number."""
    rows = []
    for number in numbers:
        key = np.random.SeedSequence([land.n, disorder, number + 1]).generate_state(1, np.uint32)
        rows.append(land.start(torch.Generator().manual_seed(int(key[0]))))
    return torch.stack(rows)


def measured(land: SphericalPSpin, disorder: int, numbers: range) -> list[dict[str, Any]]:
    """Descend from random points, and count the negative eigenvalues where each ends."""
    seed = np.random.SeedSequence([land.n, disorder, 0]).generate_state(1, np.uint32)
    ends = local_minima(land, starts=draw(land, disorder, numbers), seed=int(seed[0]))
    rows = []
    for part in torch.split(torch.arange(len(numbers)), max(1, HESSIANS // land.n**2)):
        points = ends.points[part]
        spectra, _ = eigensystem(land, points)
        norms = torch.linalg.vector_norm(energy_and_gradient(land, points)[1], dim=1)
        for i, values, norm in zip(part.tolist(), spectra, norms, strict=True):
            rows.append({
                "n": land.n, "disorder": disorder, "number": numbers[i],
                "energy": float(ends.energies[i]), "gradient": float(norm),
                "certified": bool(ends.certified[i]), "dim": land.n - 1,
                "negative": int((values < -THRESHOLD).sum()),
                "zero": int((values.abs() <= THRESHOLD).sum()), "lowest": float(values[0]),
            })  # fmt: skip
    return rows


def starts(n: int, disorder: int, numbers: range) -> dict[str, Any]:
    """Measure some starts on one disorder."""
    land = glass(n, disorder)
    return {"rows": measured(land, disorder, numbers), "seed": land.seed}


def disorders(n: int, which: range, each: int) -> dict[str, Any]:
    """Measure some starts on each of several disorders."""
    rows = []
    for disorder in which:
        rows += measured(glass(n, disorder), disorder, range(each))
    return {"rows": rows}
