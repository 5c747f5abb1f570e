"""Results of `curvature` as the plain values of a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.survey.records import (
    DensityRecord,
    EigenRecord,
    LawRecord,
    LayerRecord,
    SpectrumRecord,
)

if TYPE_CHECKING:
    from thalweg.curvature.density import SpectralDensity
    from thalweg.curvature.eigenpairs import Eigenpairs
    from thalweg.curvature.layers import LayerCurvature
    from thalweg.curvature.profile import CurvatureProfile

__all__ = [
    "certified_record",
    "density_record",
    "eigen_record",
    "floats",
    "layer_records",
    "spectrum_record",
]

_APART = 3.0


def floats(values: Tensor) -> tuple[float, ...]:
    """Return the entries of a vector."""
    return tuple(float(x) for x in values.tolist())


def eigen_record(pairs: Eigenpairs) -> EigenRecord:
    """Return eigenvalues with their certificates, in their order."""
    return EigenRecord(
        values=floats(pairs.values),
        residuals=floats(pairs.residuals),
        lower=floats(pairs.intervals[:, 0]),
        upper=floats(pairs.intervals[:, 1]),
        converged=tuple(bool(x) for x in pairs.converged.tolist()),
    )


def certified_record(
    values: Tensor, residuals: Tensor, lower: Tensor, upper: Tensor
) -> EigenRecord:
    """Return eigenvalues, each of which is certain to lie between its two ends."""
    return EigenRecord(
        floats(values), floats(residuals), floats(lower), floats(upper), (True,) * len(values)
    )


def density_record(density: SpectralDensity) -> DensityRecord:
    """Return a density, and which of the eigenvalues known one by one stand apart.

    They do so where they lie outside the bulk; in a spectrum that is known exactly, where
    no other eigenvalue lies within three widths of the smoothing.
    """
    atoms, order = density.atoms.sort(descending=True)
    radii = torch.from_numpy(density.spectrum.radii)[order]
    if density.chains:
        low, high = density.edges
        apart = (atoms < low) | (atoms > high)
    else:
        far = atoms.new_tensor([float("inf")])
        gaps = torch.cat([far, -atoms.diff(), far])
        apart = torch.minimum(gaps[:-1], gaps[1:]) > _APART * density.broadening
    atoms, radii = atoms[apart], radii[apart]
    return DensityRecord(
        grid=floats(density.grid),
        values=floats(density.density),
        lower=floats(density.band[0]),
        upper=floats(density.band[1]),
        level=density.level,
        broadening=density.broadening,
        outliers=certified_record(atoms, radii, atoms - radii, atoms + radii),
    )


def spectrum_record(profile: CurvatureProfile, laws: tuple[LawRecord, ...] = ()) -> SpectrumRecord:
    """Return what a profile says of the whole spectrum, and the laws fitted to it."""
    inertia = profile.inertia
    return SpectrumRecord(
        density=density_record(profile.density),
        lowest=profile.lowest,
        tau=inertia.tau,
        negative=inertia.negative,
        zero=inertia.zero,
        positive=inertia.positive,
        certified=inertia.certified,
        shift=profile.shift,
        log_determinant=profile.log_determinant,
        effective_dimension=profile.effective_dimension,
        frobenius_norm=profile.frobenius_norm,
        laws=laws,
    )


def layer_records(layers: Sequence[LayerCurvature]) -> tuple[LayerRecord, ...]:
    """Return the layers of a profile."""
    return tuple(LayerRecord(x.name, x.size, x.trace, x.top) for x in layers)
