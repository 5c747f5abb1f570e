"""Laws of random-matrix theory beside a measured spectrum: which apply, and which fit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from thalweg.curvature.density import SpectralDensity
from thalweg.survey.records import LawRecord
from thalweg.theory.random_matrix.fit import LAWS, LawFit, fit_law
from thalweg.theory.random_matrix.goodness import LEAST_SIZE, WeightedSpectrum, law_rule

__all__ = ["law_records"]

Array = NDArray[np.float64]
Name = Literal["semicircle", "marchenko-pastur", "free"]

_FEW, _MANY = 19, 99
"""Matrices drawn to see whether a law is far off; and to judge it where it is not."""
_FAR = math.sqrt(math.log(2 / 1e-3) / 2)
_NEGATIVE = 0.01
_REACH = 4.0
_NO_NOISE = "the moments of the bulk leave nothing for its semicircle part"
_ANSWERS = {"yes": "accepted", "no": "rejected", "unresolved": "unresolved"}
_ORDER = ("accepted", "unresolved", "rejected", "does not apply")


def law_records(density: SpectralDensity, tau: float, seed: int) -> tuple[LawRecord, ...]:
    """Fit semicircle, Marchenko-Pastur and their free sum to the bulk of a density.

    Each is first fitted with few matrices. One with a tail beyond its edges is rejected, and
    one whose distribution function lies farther off than that of as many independent numbers
    does once in a thousand times: the eigenvalues of a matrix stray less. The others are judged
    by more matrices. The free sum, which has both others in it, is left out where one of them
    is accepted.

    Args:
        density: What was measured.
        tau: What counts as zero, where the spectrum is exact.
        seed: The seed of the matrices.

    Returns:
        One record per law: those not rejected first, of these the ones with fewer parameters;
        then by distance; at the end those that do not apply.
    """
    bulk = WeightedSpectrum.measured(density, bulk=True)
    resolution = density.broadening if bulk.probes else tau
    found: list[LawRecord] = []
    for name in cast("tuple[Name, ...]", tuple(LAWS)):
        if name == "free" and any(law.verdict == "accepted" for law in found):
            continue
        why = _unfit(name, bulk, resolution)
        found.append(_absent(name, why) if why else _judged(name, density, bulk, seed))
    return tuple(sorted(found, key=_rank))


def _rank(law: LawRecord) -> tuple[int, int, float]:
    standing = law.verdict in ("accepted", "unresolved")
    return (
        _ORDER.index(law.verdict),
        len(law.parameters) if standing else 0,
        0.0 if math.isnan(law.wasserstein) else law.wasserstein,
    )


def _unfit(name: Name, bulk: WeightedSpectrum, resolution: float) -> str:
    """Say why a law cannot be that of this bulk, whatever its parameters; else nothing."""
    if bulk.size < LEAST_SIZE:
        return f"{bulk.size} eigenvalues are too few to tell laws apart; it takes {LEAST_SIZE}"
    below = float(bulk.weights[bulk.values < -resolution].sum())
    if name == "marchenko-pastur":
        if below > _NEGATIVE:
            return f"{below:.1%} of the bulk lies below zero, and a Wishart matrix has no such part"
        return "" if bulk.cumulants()[0] > 0 else "the bulk has no positive mean"
    share = np.cumsum(bulk.weights)
    low, high = (float(bulk.values[np.searchsorted(share, part)]) for part in (0.25, 0.75))
    if high - low <= 2 * resolution:
        return (
            f"half of the bulk lies within twice what the measurement resolves ({resolution:.2g}): "
            "a spike, which this law does not have"
        )
    if name == "free" and bulk.probes:
        mean, variance, third = bulk.cumulants()
        if mean <= 0 or third <= 0:
            return "its Wishart part needs a positive mean, and a bulk skewed to the right"
        if float(LAWS["free"].solve((mean, variance, third))[2]) <= 0:
            return _NO_NOISE
    return ""


def _judged(name: Name, density: SpectralDensity, bulk: WeightedSpectrum, seed: int) -> LawRecord:
    try:
        fit = fit_law(density, name, replicates=_FEW, seed=seed)
        why = _unfit_after(fit, density.broadening if bulk.probes else 0.0)
        if why:
            return _absent(name, why)
        far = _FAR * math.sqrt((1 + (2 / bulk.probes if bulk.probes else 0.0)) / fit.size)
        why = fit.verdict.reason if fit.verdict.no else ""
        if not why and fit.distance > far:
            why = (
                f"its distribution function lies {fit.distance:.2g} off, and that of {fit.size} "
                f"independent numbers more than {far:.2g} off once in a thousand times"
            )
        if why:
            ruled_out = _record(fit, density)
            return replace(ruled_out, verdict="rejected", reason=why, p_value=math.nan)
        return _record(fit_law(density, name, replicates=_MANY, seed=seed), density)
    except (ValueError, ArithmeticError) as error:
        return _absent(name, str(error).partition(". ")[0])


def _unfit_after(fit: LawFit, resolution: float) -> str:
    if "noise" in fit.parameters and fit.parameters["noise"].value <= 0:
        return _NO_NOISE
    width = min(high - low for low, high in fit.law.support)
    if width > 4 * resolution:
        return ""
    return f"it would be {width:.2g} wide, and the measurement resolves {resolution:.2g}"


def _absent(name: str, why: str) -> LawRecord:
    return LawRecord(name, "does not apply", why)


def _record(fit: LawFit, density: SpectralDensity) -> LawRecord:
    grid, values = _broadened(fit, density.broadening)
    return LawRecord(
        name=fit.name,
        verdict=_ANSWERS[fit.verdict.answer],
        reason=fit.verdict.reason,
        parameters=dict(fit.parameters),
        support=tuple((float(low), float(high)) for low, high in fit.law.support),
        atom=float(fit.law.atom),
        grid=tuple(grid.tolist()),
        values=tuple(values.tolist()),
        size=fit.size,
        fitted=fit.fitted,
        outliers=len(fit.outliers),
        distance=fit.distance,
        wasserstein=fit.wasserstein,
        p_value=fit.p_value,
        replicates=fit.replicates,
        seed=fit.seed,
        method=fit.method,
    )


def _broadened(fit: LawFit, width: float) -> tuple[Array, Array]:
    """Return the law as the measurement would see it: smoothed alike, with the share fitted."""
    low, high = fit.law.support[0][0], fit.law.support[-1][1]
    if fit.law.atom:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = low - _REACH * width, high + _REACH * width
    points = int(np.clip(2 * (high - low) / width, 60, 400))
    grid = np.linspace(low, high, points)
    nodes, weights = law_rule(fit.law)
    kernel = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2)
    return grid, fit.fitted * kernel @ weights / (width * math.sqrt(2 * math.pi))
