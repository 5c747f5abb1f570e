"""The density of a spectrum, its outliers apart, and what the same products tell besides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from thalweg.curvature.counts import Inertia, count
from thalweg.curvature.eigenpairs import Eigenpairs
from thalweg.curvature.lanczos import Tridiagonal
from thalweg.curvature.measure import measure, measure_exactly
from thalweg.curvature.operator import LinearOperator
from thalweg.curvature.quadrature import (
    Spectrum,
    dimension_interval,
    pooled,
    sum_interval,
)
from thalweg.estimate import Cost, Estimate
from thalweg.landscape.seeding import Seed

__all__ = ["SpectralDensity", "draw_density", "spectral_density"]

_METHODS = ("auto", "quadrature", "dense")
_DENSE_LIMIT = 4096
_LEAST_PROBES = 4
_REACH = 4.0
_ATOM_POINTS = 17

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    r"""The density of the eigenvalues, broadened by a Gaussian, and sums over the spectrum.

    $$\rho_\sigma(x) = \frac1D \sum_i \frac{1}{\sigma\sqrt{2\pi}}
    e^{-(x - \lambda_i)^2 / 2\sigma^2}$$

    The sums, `trace`, `frobenius_norm`, `log_determinant`, `effective_dimension` and
    `count`, cost no product more.

    Attributes:
        grid: Where the density is given, `(points,)`: evenly over the bulk, and around each
            eigenvalue known apart from it.
        density: The broadened density there, `(points,)`; it integrates to one.
        band: The pointwise confidence band, `(2, points)`, of the broadened density.
        quadrature: The part of the band's half-width that is no noise: what the density
            still moved by in the last Lanczos steps, `(points,)`.
        broadening: The standard deviation $\sigma$ of the Gaussian.
        outliers: The eigenpairs that were deflated, or None; each has a weight of exactly
            one in `dim`, and is no part of the bulk.
        spectrum: The numbers behind all this: eigenvalues known one by one, and the chains.
        cost: What it took.
        seed: The seed that reproduces it.
        level: Nominal coverage of the band and of all intervals.
        method: How it was computed.
    """

    grid: Float[Tensor, " points"]
    density: Float[Tensor, " points"]
    band: Float[Tensor, "2 points"]
    quadrature: Float[Tensor, " points"]
    broadening: float
    outliers: Eigenpairs | None
    spectrum: Spectrum
    cost: Cost
    seed: int
    level: float
    method: str

    @property
    def dim(self) -> int:
        """The number of eigenvalues."""
        return self.spectrum.dim

    @property
    def chains(self) -> tuple[Tridiagonal, ...]:
        """The Lanczos chains; empty where the spectrum is known exactly."""
        return self.spectrum.chains

    @property
    def atoms(self) -> Float[Tensor, " atoms"]:
        """The eigenvalues known one by one: the deflated ones, or all of them."""
        return torch.from_numpy(self.spectrum.atoms)

    @property
    def edges(self) -> tuple[float, float]:
        """The smallest and the largest Ritz value of the bulk; the bulk may reach farther."""
        return _edges(self.spectrum)

    def trace(self) -> Estimate:
        r"""Return $\operatorname{tr} A = \sum_i \lambda_i$; one step would be enough for it."""
        return self.spectrum.total(lambda x: x, name="trace", smooth="polynomial")

    def frobenius_norm(self) -> Estimate:
        r"""Return $\|A\|_F = (\sum_i \lambda_i^2)^{1/2}$, from the second moments."""
        square = self.spectrum.total(
            lambda x: x * x, name="Frobenius norm", smooth=self._exact_up_to(2)
        )
        low, high = (math.sqrt(max(0.0, end)) for end in square.interval)
        value = math.sqrt(square.value)
        return Estimate(
            value=value,
            stderr=square.stderr / (2 * value) if value else 0.0,
            interval=(low, high),
            samples=square.samples,
            cost=square.cost,
            level=square.level,
            method=square.method,
            seed=square.seed,
        )

    def _exact_up_to(self, degree: int) -> str:
        short = any(not c.exact and 2 * c.steps - 1 < degree for c in self.chains)
        return "no" if short else "polynomial"

    def log_determinant(self, shift: float, *, part: str = "all") -> Estimate:
        r"""Return $\log\det(A + s I) = \sum_i \log(\lambda_i + s)$.

        Where the operator is positive semidefinite by construction, the Gauss rule is
        certainly too high and the Gauss-Radau rule through zero certainly too low. Else the
        error of the quadrature is estimated, by what it still moved by in the last steps.

        Args:
            shift: $s$, positive (or above $-\lambda_{\min}$).
            part: ``"all"`` eigenvalues; or ``"positive"``, which puts negative ones to zero,
                $\log\det(A_+ + s I)$: another quantity, for indefinite matrices.

        Raises:
            ValueError: If `part` is unknown, `shift` is not usable, or with ``"all"`` some
                eigenvalue certainly lies at or below $-s$.
        """
        if part not in ("all", "positive"):
            raise ValueError(f"part must be 'all' or 'positive', not {part!r}")
        if not math.isfinite(shift) or (shift <= 0 and part == "positive"):
            raise ValueError(f"shift={shift} must be a positive number")
        if part == "positive":
            return self.spectrum.total(
                lambda x: np.log(np.maximum(x, 0) + shift),
                name=f"log det(A+ + {shift:.6g} I), negative eigenvalues put to zero",
                smooth="upper" if self.spectrum.definite else "no",
            )
        lowest = self.spectrum.ends[0]
        slack = self.spectrum.rounding + float(self.spectrum.radii.max(initial=0.0))
        if self.spectrum.definite and shift > slack:
            lowest = max(lowest, 0.0)
        if lowest + shift <= 0:
            sure = "certainly" if lowest + slack < -shift else "within rounding"
            raise ValueError(
                f"an eigenvalue lies {sure} at or below {lowest:.6g}, so A + {shift:.6g} I is "
                f"not positive definite and its log-determinant is not real; take a larger "
                f"shift than {-lowest:.3g}, a positive semidefinite operator such as "
                f"GaussNewton, or part='positive' for log det(A+ + shift I)"
            )
        least = shift + min(lowest, 0.0) if not self.spectrum.definite else shift
        return self.spectrum.total(
            lambda x: np.log(np.maximum(x + shift, 1e-3 * least)),
            name=f"log det(A + {shift:.6g} I)",
            smooth="upper",
        )

    def effective_dimension(self, alpha: float) -> Estimate:
        r"""Return $\sum_{\lambda_i > 0} \lambda_i / (\lambda_i + \alpha)$.

        Negative eigenvalues count as zero; for an operator that may have some, the sum has a
        kink at zero and the error of the quadrature is estimated instead of certified.

        Args:
            alpha: The scale $\alpha > 0$: directions much stiffer count one, much softer
                ones nothing.

        Raises:
            ValueError: If `alpha` is not positive.
        """
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha={alpha} must be a positive number")
        note = "" if self.spectrum.definite else ", negative eigenvalues counted as zero"
        return self.spectrum.total(
            lambda x: np.maximum(x, 0) / (np.maximum(x, 0) + alpha),
            name=f"effective dimension at alpha = {alpha:.6g}{note}",
            smooth="upper" if self.spectrum.definite else "no",
        )

    def count(self, tau: float | None = None) -> Inertia:
        r"""Count the eigenvalues below $-\tau$, within $\pm\tau$ and above $\tau$.

        Args:
            tau: The tolerance; by default a thousandth of the largest magnitude, or ten
                times the error of a product if that is more.

        Raises:
            ValueError: If `tau` is zero, negative, or at the level of rounding.
        """
        return count(self.spectrum, tau)

    def cumulative(
        self, points: Float[Tensor, " k"]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "2 k"]]:
        r"""Return the share of eigenvalues below each point, and a confidence band.

        No broadening: Chebyshev-Markov-Stieltjes brackets of every probe, averaged, and the
        Beta law of what a probe sees.

        Args:
            points: Where, `(k,)`.

        Returns:
            The middle of the bracket, `(k,)`, and the band's two edges, `(2, k)`.
        """
        at, s = points.detach().to("cpu", torch.float64).numpy(), self.spectrum
        low = ((s.atoms + s.radii) < at[:, None]).sum(1) / s.dim
        high = ((s.atoms - s.radii) < at[:, None]).sum(1) / s.dim
        middle = (low + high) / 2
        if s.free:
            both = np.mean([chain.brackets(at) for chain in s.chains], axis=0)
            ends = dimension_interval(both[0], both[1], s.free, len(s.chains), s.level)
            middle = middle + both.mean(0) * s.free / s.dim
            low, high = low + ends[0] / s.dim, high + ends[1] / s.dim
        return torch.from_numpy(middle), torch.from_numpy(np.stack([low, high]))

    @cached_property
    def _default_count(self) -> Inertia:
        return self.count()

    def __str__(self) -> str:
        """Return what a figure would show, in sentences."""
        s = self.spectrum
        low, high = self.edges
        if s.free:
            bulk = f"{s.free} between {low:.4g} and {high:.4g} (Ritz values)"
            apart = ", ".join(f"{x:.4g}" for x in s.atoms[:10])
            more = f", and {len(s.atoms) - 10} more" if len(s.atoms) > 10 else ""
            bulk += f"; {len(s.atoms)} apart" + (f": {apart}{more}" if len(s.atoms) else "")
        else:
            bulk = f"all known, between {low:.4g} and {high:.4g}"
        return "\n".join(
            [
                f"spectrum of {self.dim} eigenvalues: {bulk}",
                str(self._default_count),
                f"density broadened by {self.broadening:.3g}, {100 * self.level:.4g} % band; "
                f"{s.source}; {self.cost}",
            ]
        )

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", chr(92) + "[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything that a figure needs."""
        return {
            "type": "spectral density",
            "dim": self.dim,
            "grid": self.grid.tolist(),
            "density": self.density.tolist(),
            "band": self.band.tolist(),
            "quadrature": self.quadrature.tolist(),
            "broadening": self.broadening,
            "edges": list(self.edges),
            "atoms": self.spectrum.atoms.tolist(),
            "atom_intervals": np.stack(
                [
                    self.spectrum.atoms - self.spectrum.radii,
                    self.spectrum.atoms + self.spectrum.radii,
                ],
                axis=1,
            ).tolist(),
            "outliers": self.outliers.to_json() if self.outliers else None,
            "count": self._default_count.to_json(),
            "probes": len(self.chains),
            "steps": max((chain.steps for chain in self.chains), default=0),
            "level": self.level,
            "cost": self.cost.to_json(),
            "seed": self.seed,
            "method": self.method,
        }


def spectral_density(
    operator: LinearOperator,
    *,
    probes: int = 10,
    steps: int = 60,
    deflate: int | Eigenpairs = 10,
    points: int = 513,
    broadening: float | None = None,
    level: float = 0.95,
    method: str = "auto",
    memory: int | str = "2 GiB",
    seed: Seed = None,
) -> SpectralDensity:
    r"""Return the density of the spectrum, with its outliers deflated and a confidence band.

    Stochastic Lanczos quadrature. First some eigenpairs of largest magnitude are computed,
    and those that converged are taken out: each counts exactly once, with weight $1/D$. Then
    random starts, uniform on the sphere of what is left, run Lanczos chains in lockstep; the
    Ritz values and weights of each integrate polynomials of degree $2m - 1$ exactly against
    its start's spectral measure, whose expectation is the density.

    Where `probes * steps` products would do for all of the matrix (`dim` products), it is
    formed and its spectrum is exact.

    Args:
        operator: A symmetric operator on $\mathbb{R}^D$, such as ``Hessian(land, theta)``.
        probes: How many random starts, at least 4; one product of all of them per step.
        steps: How many Lanczos steps.
        deflate: How many eigenpairs of largest magnitude to take out, or `Eigenpairs` that
            are known already. Only converged ones are.
        points: How many points of the grid cover the bulk.
        broadening: The standard deviation of the Gaussian; by default the width of the bulk
            divided by `steps`, which is the least that the quadrature resolves well.
        level: Nominal coverage of the band and of every interval.
        method: ``"quadrature"``, ``"dense"``, or ``"auto"`` for the one with fewer products.
        memory: What the bases of the chains may take; where it is too little, chains are
            orthogonalised locally.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The density; its methods give the trace, the Frobenius norm, log-determinants, the
        effective dimension and counts from the same products.

    Raises:
        ValueError: If an argument is out of range, or the operator is not symmetric.
        FloatingPointError: If a product is not finite.

    References:
        S. Ubaru, J. Chen & Y. Saad (2017), Fast estimation of tr(f(A)) via stochastic
        Lanczos quadrature; T. Chen & E. Hallman (2023), arXiv:2205.01736 for deflation; V.
        Papyan (2018), arXiv:1811.07062 for the spectra of networks.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> values = torch.cat([torch.linspace(0, 1, 990), torch.arange(10.0, 20.0)]).double()
        >>> rho = spectral_density(MatrixOperator(torch.diag(values)), seed=0)
        >>> len(rho.atoms), rho.count(tau=0.1).rank.interval[0] >= 10
        (10, True)
        >>> float(values.sum()) in rho.trace()
        True
    """
    _check(operator, probes, steps, deflate, points, broadening, level, method)
    cheap = operator.dim <= min(probes * steps, _DENSE_LIMIT)
    if method == "dense" or (method == "auto" and cheap):
        spectrum, found = measure_exactly(operator, level, seed), None
    else:
        spectrum, found, _ = measure(operator, probes, steps, deflate, level, memory, seed)
    return draw_density(spectrum, found, steps=steps, points=points, broadening=broadening)


def _check(
    operator: LinearOperator,
    probes: int,
    steps: int,
    deflate: int | Eigenpairs,
    points: int,
    broadening: float | None,
    level: float,
    method: str,
) -> None:
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, _METHODS))}, not {method!r}")
    if probes < _LEAST_PROBES:
        raise ValueError(
            f"probes={probes} is too few for an honest interval; take at least {_LEAST_PROBES}"
        )
    if steps < 1 or points < 2:
        raise ValueError(f"steps={steps} must be at least 1, and points={points} at least 2")
    if broadening is not None and not (broadening > 0 and math.isfinite(broadening)):
        raise ValueError(f"broadening={broadening} must be a positive number, or None")
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, not {level!r}")
    if isinstance(deflate, int):
        if deflate < 0:
            raise ValueError(f"deflate={deflate} must not be negative")
    elif deflate.vectors.shape[0] != operator.dim:
        raise ValueError(
            f"the eigenpairs to deflate have dimension {deflate.vectors.shape[0]}, the operator "
            f"{operator.dim}; they are another operator's"
        )


def _edges(spectrum: Spectrum) -> tuple[float, float]:
    """Return the ends of the bulk, or of all eigenvalues where none is apart."""
    nodes = spectrum.rule[0] if spectrum.free else spectrum.atoms
    return float(nodes.min()), float(nodes.max())


def draw_density(
    spectrum: Spectrum,
    found: Eigenpairs | None,
    *,
    steps: int,
    points: int = 513,
    broadening: float | None = None,
) -> SpectralDensity:
    """Evaluate the broadened density of a measured spectrum, and its band, on a grid.

    Args:
        spectrum: What was measured.
        found: The eigenpairs that were deflated, or None.
        steps: The Lanczos steps, which set the default broadening.
        points: How many points of the grid cover the bulk.
        broadening: The standard deviation of the Gaussian; see `spectral_density`.

    Returns:
        The density.
    """
    low, high = _edges(spectrum)
    if broadening is None:
        width = high - low
        broadening = width / steps if width > 1e-9 * spectrum.top else 1e-3 * spectrum.top
        broadening = broadening or 1.0
    sigma = broadening
    reach = _REACH * sigma
    around = np.linspace(-reach, reach, _ATOM_POINTS)
    apart = spectrum.atoms if spectrum.free else np.zeros(0)
    grid = np.unique(
        np.concatenate(
            [np.linspace(low - reach, high + reach, points), (apart[:, None] + around).ravel()]
        )
    )

    def kernel(at: Array) -> Array:
        gaps = (grid[:, None] - at) / sigma
        return np.asarray(np.exp(-0.5 * gaps**2) / (sigma * math.sqrt(2 * math.pi)))

    density = kernel(spectrum.atoms).sum(1) / spectrum.dim
    blur = kernel(spectrum.atoms) @ (spectrum.radii / sigma) / spectrum.dim
    band = np.stack([density - blur, density + blur])
    bias = np.zeros_like(grid)
    if spectrum.free:
        share, (nodes, weights) = spectrum.free / spectrum.dim, spectrum.rule
        values = kernel(nodes)
        mean = values @ weights
        second, third = (((values - mean[:, None]) ** k) @ weights for k in (2, 3))
        left, right, _ = sum_interval(
            mean, second, third, spectrum.free, len(spectrum.chains), spectrum.level
        )
        bias = share * _moved(spectrum, kernel, mean)
        density = density + share * mean
        band = band + share * np.stack([left, right]) + np.stack([-bias, bias])
    return SpectralDensity(
        grid=torch.from_numpy(grid),
        density=torch.from_numpy(density),
        band=torch.from_numpy(np.maximum(band, 0.0)),
        quadrature=torch.from_numpy(bias),
        broadening=sigma,
        outliers=found,
        spectrum=spectrum,
        cost=spectrum.cost,
        seed=spectrum.seed,
        level=spectrum.level,
        method=spectrum.source,
    )


def _moved(spectrum: Spectrum, kernel: Callable[[Array], Array], mean: Array) -> Array:
    """Return how far the mean of the broadened chains moved in their last two steps."""
    gaps = np.zeros_like(mean)
    for chains in spectrum.earlier[:2]:
        nodes, weights = pooled(chains)
        gaps = np.maximum(gaps, np.abs(kernel(nodes) @ weights - mean))
    return gaps
