r"""Fit a law of random matrix theory to a measured spectrum, and judge the fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats

from thalweg.curvature.density import SpectralDensity
from thalweg.curvature.profile import Progress
from thalweg.estimate import Estimate, Verdict
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.random_matrix.ensembles import goe_eigenvalues, wishart_eigenvalues
from thalweg.theory.random_matrix.free import FreeSum, wigner_transform, wishart_transform
from thalweg.theory.random_matrix.goodness import (
    LEAST_SIZE,
    WeightedSpectrum,
    ks_distance,
    law_quantiles,
    law_rule,
    peel_outliers,
    wasserstein_distance,
)
from thalweg.theory.random_matrix.marchenko_pastur import MarchenkoPastur
from thalweg.theory.random_matrix.semicircle import Law, Semicircle

__all__ = ["LAWS", "LawComparison", "LawFit", "compare_laws", "fit_law"]

Array = NDArray[np.float64]
LawName = Literal["semicircle", "marchenko-pastur", "free"]

_LEAST_REPLICATES = 19
_MOST_OUTLIERS = 20
_REJECT, _ACCEPT = 0.01, 0.05
_NODES = 300
_FLOOR = 1e-6


@dataclass(frozen=True)
class _Family:
    """A law's parameters: from free cumulants, to a law, to matrices of its ensemble."""

    names: tuple[str, ...]
    solve: Callable[[tuple[float, float, float]], Array]
    law: Callable[[Array], Law]
    draw: Callable[[Array, int, np.random.Generator], tuple[Array, Array]]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**62))


def _semicircle_draw(at: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    values = goe_eigenvalues(n, radius=float(at[1]), seed=_seed(rng))[0]
    return np.asarray(values + at[0], np.float64), at


def _pastur_draw(at: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    m = max(1, round(n / float(at[0])))
    values = wishart_eigenvalues(n, m, variance=float(at[1]), seed=_seed(rng))[0]
    return np.asarray(values, np.float64), np.array([n / m, at[1]])


def _free_draw(at: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    wishart, planted = _pastur_draw(at[:2], n, rng)
    noise = rng.standard_normal((n, n)) * math.sqrt(float(at[2]) / (2 * n))
    values = np.linalg.eigvalsh(noise + noise.T + np.diag(wishart))
    return np.asarray(values, np.float64), np.append(planted, at[2])


def _free_solve(cumulants: tuple[float, float, float]) -> Array:
    mean, variance, third = cumulants
    ratio = math.copysign(math.sqrt(abs(third / mean**3)), third * mean)
    return np.array([ratio, mean, variance - mean**2 * ratio])


def _free_law(at: Array) -> Law:
    ratio, sigma2, noise = (max(float(x), _FLOOR) for x in at)
    noise = max(noise, _FLOOR * sigma2**2)
    return FreeSum((wishart_transform(ratio, sigma2), wigner_transform(noise)))


LAWS: Mapping[str, _Family] = {
    "semicircle": _Family(
        ("centre", "radius"),
        lambda c: np.array([c[0], 2 * math.sqrt(c[1])]),
        lambda at: Semicircle(radius=float(at[1]), centre=float(at[0])),
        _semicircle_draw,
    ),
    "marchenko-pastur": _Family(
        ("ratio", "sigma2"),
        lambda c: np.array([c[1] / c[0] ** 2, c[0]]),
        lambda at: MarchenkoPastur(max(float(at[0]), _FLOOR), max(float(at[1]), _FLOOR)),
        _pastur_draw,
    ),
    "free": _Family(("ratio", "sigma2", "noise"), _free_solve, _free_law, _free_draw),
}


@dataclass(frozen=True)
class LawFit:
    """A law fitted to a spectrum, and whether the spectrum could be its ensemble's.

    Attributes:
        name: Which law.
        law: The law at the fitted parameters.
        parameters: Their estimates, corrected for the bias at this size.
        size: How many eigenvalues were fitted.
        fitted: Their share of all.
        outliers: Eigenvalues beyond the edges, `(k,)`, left out of the fit.
        outlier_p: The Tracy-Widom p-value of each, `(k,)`.
        distance: The Kolmogorov-Smirnov distance of spectrum and fit.
        wasserstein: Their Wasserstein distance, in the units of an eigenvalue.
        p_value: The share of matrices of the ensemble, of this size and fitted alike, that
            lie at least that far off (the distance named in `method`).
        within_band: For a measured density, the share of its grid where the broadened law
            lies within the band; else NaN.
        verdict: Whether the law is accepted.
        replicates: How many matrices were drawn.
        seed: The seed that reproduces it.
        method: How it was computed.
    """

    name: str
    law: Law
    parameters: Mapping[str, Estimate]
    size: int
    fitted: float
    outliers: Float[np.ndarray, " k"]
    outlier_p: Float[np.ndarray, " k"]
    distance: float
    wasserstein: float
    p_value: float
    within_band: float
    verdict: Verdict
    replicates: int
    seed: int
    method: str

    def __str__(self) -> str:
        """Return the law, its parameters, the verdict and the outliers."""
        values = ", ".join(f"{name} {value}" for name, value in self.parameters.items())
        lines = [
            f"{self.name}: {values}",
            f"{self.fitted:.1%} of the mass ({self.size} eigenvalues); distance "
            f"{self.distance:.4g} (KS), {self.wasserstein:.4g} (Wasserstein), "
            f"p = {self.p_value:.3g} of {self.replicates} matrices",
            f"{self.verdict}",
        ]
        if len(self.outliers):
            apart = ", ".join(f"{x:.4g}" for x in self.outliers[:10])
            more = f" and {len(self.outliers) - 10} more" if len(self.outliers) > 10 else ""
            lines.append(f"{len(self.outliers)} beyond the edges: {apart}{more}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything that a figure needs."""
        x, weights = law_rule(self.law)
        return {
            "type": "law fit",
            "name": self.name,
            "parameters": {k: v.to_json() for k, v in self.parameters.items()},
            "support": [list(ends) for ends in self.law.support],
            "grid": x[1:].tolist(),
            "density": self.law.density(x[1:]).tolist(),
            "atom": float(weights[0]),
            "size": self.size,
            "fitted": self.fitted,
            "outliers": self.outliers.tolist(),
            "outlier_p": self.outlier_p.tolist(),
            "distance": self.distance,
            "wasserstein": self.wasserstein,
            "p_value": self.p_value,
            "within_band": None if math.isnan(self.within_band) else self.within_band,
            "verdict": self.verdict.to_json(),
            "replicates": self.replicates,
            "seed": self.seed,
            "method": self.method,
        }


def _measured(measured: Array | SpectralDensity) -> WeightedSpectrum:
    if not isinstance(measured, SpectralDensity):
        values = np.asarray(measured, np.float64)
        bad = int((~np.isfinite(values)).sum())
        if values.ndim != 1 or bad or len(values) < 2:
            raise ValueError(
                f"measured must be eigenvalues of shape (n,) or a spectral density, got shape "
                f"{values.shape} with {bad} values that are not finite"
            )
        return WeightedSpectrum.of(values)
    return WeightedSpectrum.measured(measured)


def _replicate(
    spectrum: WeightedSpectrum, family: _Family, at: Array, law: Law, rng: np.random.Generator
) -> tuple[WeightedSpectrum, Array]:
    """Return a spectrum of the ensemble, seen as the measured one was, and what was planted."""
    if not spectrum.probes:
        values, planted = family.draw(at, spectrum.size, rng)
        return WeightedSpectrum.of(values), planted
    if spectrum.size <= _NODES:
        values, planted = family.draw(at, spectrum.size, rng)
    else:  # rigid: the chains' noise is all that shows
        values, planted = law_quantiles(law, _NODES), at
    order = np.argsort(values)
    shape = spectrum.size / (2 * len(values))
    shares = rng.gamma(shape, size=(spectrum.probes, len(values)))
    weights = (shares / shares.sum(1, keepdims=True)).mean(0)
    drawn = WeightedSpectrum(
        values[order],
        weights[order],
        np.zeros(len(values), bool),
        spectrum.size,
        spectrum.broadening,
        spectrum.probes,
    )
    return drawn, planted


def _admissible(name: str, at: Array) -> None:
    if name != "semicircle" and not (at[1] > 0 and at[0] > 0):
        raise ValueError(
            f"{name} needs a positive mean and, for the ratio, a spectrum skewed to the right; "
            f"the moments give ratio {at[0]:.4g} and sigma2 {at[1]:.4g}. Fit a semicircle, or "
            "leave out what does not belong to the bulk"
        )


def _within_band(measured: Array | SpectralDensity, law: Law, share: float) -> float:
    if not isinstance(measured, SpectralDensity):
        return math.nan
    x, sigma = measured.grid.numpy(), measured.broadening
    nodes, weights = law_rule(law)
    low, high = law.support[0][0] - 3 * sigma, law.support[-1][1] + 3 * sigma
    x, band = x[(x >= low) & (x <= high)], measured.band.numpy()[:, (x >= low) & (x <= high)]
    drawn = share * stats.norm.pdf(x[:, None], nodes, sigma) @ weights
    return float(((drawn >= band[0]) & (drawn <= band[1])).mean())


def _decide(
    name: str, p: float, size: int, replicates: int, fitted: float, apart: int, more: bool
) -> Verdict:
    if size < LEAST_SIZE:
        return Verdict(
            "unresolved", f"{size} eigenvalues are too few to tell laws apart; take {LEAST_SIZE}"
        )
    if more:
        return Verdict(
            "no",
            f"{name} is rejected: more eigenvalues lie beyond its edges than the {apart} that were "
            "let off, so they are a tail and no outliers",
        )
    farther = round(p * (replicates + 1)) - 1
    what = f"{farther} of {replicates} matrices of the ensemble lie as far from their own fit"
    left = f" apart from {apart} eigenvalues beyond its edges" if apart else ""
    if p <= _REJECT:
        return Verdict("no", f"{name} is rejected{left}: {what}")
    if not farther:
        return Verdict(
            "unresolved",
            f"{what}, but so few cannot reject {name} at {_REJECT}; take "
            f"replicates={round(1 / _REJECT) - 1} or more",
        )
    if p < _ACCEPT or fitted < 0.8:
        return Verdict("unresolved", f"{what}, with {fitted:.1%} of the mass fitted")
    return Verdict("yes", f"{name} is accepted{left}: {what}")


def _redrawn(
    bulk: WeightedSpectrum,
    name: LawName,
    raw: Array,
    gap: Callable[[WeightedSpectrum, Law], float],
    replicates: int,
    rng: np.random.Generator,
    progress: Progress | None,
) -> tuple[Array, Array]:
    """Return the errors `(replicates, k)` and distances of matrices fitted like the bulk."""
    family = LAWS[name]
    start, law = raw if name != "free" else np.maximum(raw, _FLOOR), family.law(raw)
    errors, gaps = np.empty((replicates, len(raw))), np.empty(replicates)
    for k in range(replicates):
        drawn, planted = _replicate(bulk, family, start, law, rng)
        found = family.solve(drawn.cumulants())
        errors[k] = found - planted
        gaps[k] = gap(drawn, family.law(found))
        if progress is not None:
            progress((k + 1) / replicates, f"{name}: {k + 1} of {replicates} matrices")
    return errors, gaps


def fit_law(
    measured: Float[np.ndarray, " n"] | SpectralDensity,
    law: LawName = "semicircle",
    *,
    outliers: int | None = None,
    distance: Literal["ks", "wasserstein"] = "wasserstein",
    replicates: int = 199,
    level: float = 0.95,
    seed: Seed = None,
    progress: Progress | None = None,
) -> LawFit:
    r"""Fit a law to a spectrum by its free cumulants, and test it against its ensemble.

    The parameters are solved from the mean, the variance and, for ``"free"``, the third
    cumulant. Eigenvalues beyond the edges by Tracy-Widom (p < 0.001) are left out first. Then
    `replicates` matrices of the ensemble, of the same size, are fitted alike: they give the
    bias, the standard errors and the p-value of the distance. For a Lanczos density, the
    replicates are seen through as many random starts and the same broadening.

    Args:
        measured: Eigenvalues, `(n,)`, or a density from `thalweg.curvature`.
        law: ``"semicircle"`` (centre, radius), ``"marchenko-pastur"`` (ratio, sigma2) or
            ``"free"``, the free sum of Marchenko-Pastur and a semicircle of variance `noise`.
        outliers: The most eigenvalues that may lie off the bulk, part of what is tested: the law
            is rejected where more lie beyond its edges. By default a tenth of all, at most 20. For
            a density only those known one by one.
        distance: Which distance the p-value is of.
        replicates: How many matrices; the p-value is no smaller than 1/(replicates + 1), so
            fewer than 99 reject nothing.
        level: Nominal coverage of the intervals.
        seed: An int, a generator, or None; recorded in the result.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The fit, with its verdict: accepted where p >= 0.05, rejected where p <= 0.01.

    Raises:
        ValueError: If an argument is out of range, or the moments are none of the law's.

    Example:
        >>> fit = fit_law(goe_eigenvalues(100, seed=0)[0], replicates=99, seed=1)
        >>> fit.verdict.answer, 2.0 in fit.parameters["radius"]
        ('yes', True)
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(map(repr, LAWS))}, not {law!r}")
    if replicates < _LEAST_REPLICATES or not 0 < level < 1:
        raise ValueError(
            f"replicates={replicates} must be at least {_LEAST_REPLICATES} and level={level} "
            "strictly between 0 and 1"
        )
    family, whole = LAWS[law], _measured(measured)
    most = min(_MOST_OUTLIERS, whole.size // 10) if outliers is None else outliers
    peeled = peel_outliers(whole, lambda rest: family.law(family.solve(rest.cumulants())), most)
    bulk, apart = peeled.bulk, peeled.outliers
    raw = family.solve(bulk.cumulants())
    _admissible(law, raw)
    gap = ks_distance if distance == "ks" else wasserstein_distance
    fitted, number = family.law(raw), make_generator(seed)[1]
    rng = np.random.default_rng(number)
    errors, gaps = _redrawn(bulk, law, raw, gap, replicates, rng, progress)
    p = float((1 + (gaps >= gap(bulk, fitted)).sum()) / (1 + replicates))
    value, spread = raw - errors.mean(0), errors.std(0, ddof=1)
    reach = float(stats.t.ppf((1 + level) / 2, replicates - 1)) * math.sqrt(1 + 1 / replicates)
    method = f"free cumulants, bias and error from {replicates} matrices; p of the {distance}"
    share = bulk.size / whole.size
    best = family.law(value)
    return LawFit(
        name=law,
        law=best,
        parameters={
            name: Estimate(
                float(v),
                float(s),
                (float(v - reach * s), float(v + reach * s)),
                bulk.size,
                level=level,
                method=method,
                seed=number,
            )
            for name, v, s in zip(family.names, value, spread, strict=True)
        },
        size=bulk.size,
        fitted=share,
        outliers=apart,
        outlier_p=peeled.p_values,
        distance=ks_distance(bulk, fitted),
        wasserstein=wasserstein_distance(bulk, fitted),
        p_value=p,
        within_band=_within_band(measured, best, share),
        verdict=_decide(law, p, bulk.size, replicates, share, len(apart), peeled.more),
        replicates=replicates,
        seed=number,
        method=method,
    )


@dataclass(frozen=True)
class LawComparison:
    """Several laws fitted to one spectrum, the nearest of those not rejected first.

    Attributes:
        fits: The fits, best first.
        failed: The laws that the moments rule out, and why.
    """

    fits: tuple[LawFit, ...]
    failed: Mapping[str, str]

    @property
    def best(self) -> LawFit | None:
        """The first fit that is not rejected, or None."""
        return next((fit for fit in self.fits if not fit.verdict.no), None)

    def __str__(self) -> str:
        """Return one line per law."""
        lines = [
            f"{fit.name:<17} distance {fit.wasserstein:.4g}  p = {fit.p_value:.3g}  {fit.verdict}"
            for fit in self.fits
        ]
        return "\n".join(lines + [f"{name:<17} no fit: {why}" for name, why in self.failed.items()])

    def __rich__(self) -> Table:
        """Return the table."""
        table = Table("law", "distance", "p", "verdict")
        for fit in self.fits:
            table.add_row(
                fit.name, f"{fit.wasserstein:.4g}", f"{fit.p_value:.3g}", fit.verdict.answer
            )
        for name, why in self.failed.items():
            table.add_row(name, "", "", why)
        return table


def compare_laws(
    measured: Float[np.ndarray, " n"] | SpectralDensity,
    laws: Sequence[LawName] = ("semicircle", "marchenko-pastur", "free"),
    *,
    outliers: int | None = None,
    replicates: int = 199,
    seed: Seed = None,
    progress: Progress | None = None,
) -> LawComparison:
    """Fit several laws to one spectrum and rank them: not rejected, fewer parameters, nearer.

    Args:
        measured: Eigenvalues, `(n,)`, or a density.
        laws: Which.
        outliers: See `fit_law`.
        replicates: See `fit_law`.
        seed: The same matrices' seed for every law; recorded in the fits.
        progress: Called with a fraction in [0, 1], of each law in turn, and a message.

    Returns:
        The fits, best first, and the laws without one.
    """
    number = make_generator(seed)[1]
    fits: list[LawFit] = []
    failed: dict[str, str] = {}
    for name in laws:
        try:
            fits.append(
                fit_law(
                    measured,
                    name,
                    outliers=outliers,
                    replicates=replicates,
                    seed=number,
                    progress=progress,
                )
            )
        except ValueError as error:
            failed[name] = str(error)
    fits.sort(
        key=lambda f: (f.verdict.no, len(f.parameters) if not f.verdict.no else 0, f.wasserstein)
    )
    return LawComparison(tuple(fits), failed)
