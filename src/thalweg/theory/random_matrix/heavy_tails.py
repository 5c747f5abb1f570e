r"""Heavy-tailed weight spectra: is the tail of a layer's spectrum a power law?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from thalweg.curvature.profile import Progress
from thalweg.estimate import Estimate, Verdict
from thalweg.landscape.protocols import Structured
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.random_matrix.fit import LawFit, fit_law

__all__ = ["TailFit", "WeightSpectra", "WeightSpectrum", "fit_tail", "weight_spectra"]

Array = NDArray[np.float64]

_ALTERNATIVES = ("lognormal", "exponential")
_CANDIDATES = 200
_LEAST_TAIL = 10
_HONEST_TAIL = 50
_LEAST_VALUES = 20
_REJECT = 0.1
_WORSE = 0.05
_ZERO = 1e-12


@dataclass(frozen=True)
class TailFit:
    r"""A power law, density $\propto x^{-\alpha}$ for $x \ge x_{\min}$, and whether to believe it.

    Attributes:
        alpha: The exponent, with the standard error $(\alpha - 1)/\sqrt{k}$ at fixed $x_{\min}$
            and the interval of the bootstrap, which lets $x_{\min}$ vary.
        xmin: Where the tail starts, by the least Kolmogorov-Smirnov distance.
        tail: How many values lie in the tail, $k$.
        size: How many positive values there are.
        distance: The Kolmogorov-Smirnov distance of the tail.
        p_value: The share of synthetic data sets that lie farther from their own fit.
        ratios: Alternative to (log-likelihood ratio over its standard deviation, p): positive
            where the power law is the likelier; NaN where the alternative could not be fitted.
        verdict: Accepted, rejected, or unresolved where the tail is too short.
        notes: What the library `powerlaw` warned of.
        replicates: Synthetic data sets drawn.
        seed: The seed that reproduces them.
    """

    alpha: Estimate
    xmin: float
    tail: int
    size: int
    distance: float
    p_value: float
    ratios: Mapping[str, tuple[float, float]]
    verdict: Verdict
    notes: tuple[str, ...]
    replicates: int
    seed: int

    def __str__(self) -> str:
        """Return the exponent, the tests and the verdict."""
        against = "; ".join(
            f"against {name}: ratio {ratio:+.2f} (p = {p:.2g})"
            for name, (ratio, p) in self.ratios.items()
        )
        lines = [
            f"alpha = {self.alpha} above {self.xmin:.4g}: {self.tail} of {self.size} values",
            f"distance {self.distance:.3g}, p = {self.p_value:.3g} of {self.replicates}; {against}",
            str(self.verdict),
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of the numbers."""
        return {
            "type": "tail fit",
            "alpha": self.alpha.to_json(),
            "xmin": self.xmin,
            "tail": self.tail,
            "size": self.size,
            "distance": self.distance,
            "p_value": self.p_value,
            "ratios": {k: list(v) for k, v in self.ratios.items()},
            "verdict": self.verdict.to_json(),
            "notes": list(self.notes),
            "replicates": self.replicates,
            "seed": self.seed,
        }


def _scan(values: Array) -> tuple[float, float, float, int]:
    r"""Return $x_{\min}$, $\alpha$, the distance and the tail's length, for sorted values.

    What `powerlaw.Fit` does value by value, for all candidates at once: a bootstrap needs
    hundreds of these.
    """
    n = len(values)
    last = n - _LEAST_TAIL
    first = np.unique(np.linspace(0, last, min(_CANDIDATES, last + 1)).astype(int))
    logs = np.log(values)
    counts = n - first
    suffix = np.cumsum(logs[::-1])[::-1]
    with np.errstate(divide="ignore"):
        slopes = counts / (suffix[first] - counts * logs[first])
    rank = np.arange(n) - first[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        model = -np.expm1(-slopes[:, None] * (logs - logs[first][:, None]))
    gaps = np.maximum(
        np.abs(model - rank / counts[:, None]), np.abs(model - (rank + 1) / counts[:, None])
    )
    distances = np.where(rank >= 0, gaps, 0.0).max(1)
    best = int(np.nanargmin(distances))
    return (
        float(values[first[best]]),
        1 + float(slopes[best]),
        float(distances[best]),
        int(counts[best]),
    )


def _library(tail: Array, xmin: float) -> tuple[float, dict[str, tuple[float, float]], list[str]]:
    """Return the exponent, the likelihood ratios and the warnings of `powerlaw`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import powerlaw  # type: ignore[import-untyped]  # it has no types; imports matplotlib: half a second, so only here

        # its own range ends at 3, below what layers have
        fit = powerlaw.Fit(tail, xmin=xmin, verbose=0, parameter_ranges={"alpha": (1.0, None)})
        alpha = float(fit.power_law.alpha)
        ratios = {}
        for name in _ALTERNATIVES:
            ratio, p = fit.distribution_compare("power_law", name, normalized_ratio=True)
            lost = getattr(fit, name).noise_flag  # the library found no valid parameters
            ratios[name] = (math.nan, math.nan) if lost else (float(ratio), float(p))
    notes = sorted({str(w.message) for w in caught if "powerlaw" in str(w.filename)})
    return alpha, ratios, notes


def _judge(p: float, tail: int, ratios: Mapping[str, tuple[float, float]]) -> Verdict:
    better = [name for name, (ratio, q) in ratios.items() if ratio < 0 and q < _WORSE]
    if p < _REJECT:
        return Verdict(
            "no",
            f"the power law is rejected: only {p:.3g} of synthetic tails are farther off (Clauset "
            "et al. reject below 0.1)",
        )
    if better:
        return Verdict("no", f"{' and '.join(better)} fits this tail significantly better")
    if tail < _HONEST_TAIL:
        return Verdict(
            "unresolved",
            f"{tail} values in the tail cannot tell a power law from others; it takes "
            f"{_HONEST_TAIL}, a wider layer",
        )
    return Verdict("yes", f"a power law is not rejected (p = {p:.3g}), nor beaten by another")


def fit_tail(
    values: Float[np.ndarray, " n"],
    *,
    replicates: int = 199,
    level: float = 0.95,
    seed: Seed = None,
    progress: Progress | None = None,
) -> TailFit:
    r"""Fit a power law to the tail of positive values and test it (Clauset, Shalizi & Newman).

    The exponent and the likelihood ratios are those of the library `powerlaw`, at the
    $x_{\min}$ of least distance (of 200 candidates, evenly by rank, that leave 10 values). Each
    synthetic set draws a value from the fitted tail with the tail's share as chance, else one
    from the data below $x_{\min}$, and is fitted alike. Values are taken as independent, which
    eigenvalues are not: their repulsion makes distances smaller and the p-value larger.

    Args:
        values: Positive values, `(n,)`, at least 20.
        replicates: How many synthetic sets.
        level: Nominal coverage of the interval of the exponent.
        seed: An int, a generator, or None; recorded in the result.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The fit, with its verdict.

    Raises:
        ValueError: If there are fewer than 20 values, or one is not positive and finite.

    References:
        A. Clauset, C. R. Shalizi & M. E. J. Newman (2009), SIAM Rev. 51; J. Alstott, E.
        Bullmore & D. Plenz (2014), powerlaw; C. H. Martin & M. W. Mahoney (2021), JMLR 22.

    Example:
        >>> draws = np.random.default_rng(0).random(400) ** (-1 / 1.5)  # alpha = 2.5
        >>> tail = fit_tail(draws, replicates=49, seed=0)
        >>> tail.verdict.answer, 2.5 in tail.alpha
        ('yes', True)
    """
    x = np.sort(np.asarray(values, np.float64))
    if x.ndim != 1 or len(x) < _LEAST_VALUES or not np.all(np.isfinite(x)) or x[0] <= 0:
        smallest = f", the smallest {x.min():.4g}" if x.size else ""
        raise ValueError(
            f"a tail needs at least {_LEAST_VALUES} positive finite values, got shape "
            f"{x.shape}{smallest}; leave out zero eigenvalues"
        )
    if x[-1] <= x[0]:
        raise ValueError(f"all {len(x)} values equal {x[0]:.6g}: there is no tail")
    xmin, _, distance, tail = _scan(x)
    alpha, ratios, notes = _library(x[x >= xmin], xmin)
    number = make_generator(seed)[1]
    rng = np.random.default_rng(number)
    body = x[x < xmin]
    draws = np.empty((replicates, 2))
    for k in range(replicates):
        above = int(rng.binomial(len(x), tail / len(x)))
        high = xmin * rng.random(above) ** (-1 / (alpha - 1))
        low = rng.choice(body, len(x) - above) if len(body) else xmin * np.ones(len(x) - above)
        draws[k] = _scan(np.sort(np.concatenate([low, high])))[1:3]
        if progress is not None:
            progress((k + 1) / replicates, f"{k + 1} of {replicates} synthetic tails")
    p = float((1 + (draws[:, 1] >= distance).sum()) / (1 + replicates))
    error = (alpha - 1) / math.sqrt(tail)
    away = np.quantile(draws[:, 0] - alpha, [(1 + level) / 2, (1 - level) / 2])
    estimate = Estimate(
        alpha,
        error,
        (min(alpha, alpha - float(away[0])), max(alpha, alpha - float(away[1]))),
        tail,
        level=level,
        method="maximum likelihood (powerlaw), xmin by Kolmogorov-Smirnov, bootstrap interval",
        seed=number,
    )
    verdict = _judge(p, tail, ratios)
    return TailFit(
        estimate, xmin, tail, len(x), distance, p, ratios, verdict, tuple(notes), replicates, number
    )


@dataclass(frozen=True)
class WeightSpectrum:
    r"""The spectrum of one weight matrix, $W^\top W / n$, with its tail and its bulk.

    Attributes:
        name: The tensor's name.
        shape: Its shape as it was.
        rows: $n$, the larger side of the matrix.
        eigenvalues: The spectrum, `(k,)`, ascending, with $k$ the smaller side.
        zeros: How many are zero to rounding, and no part of the tail's fit.
        tail: The power law, or None where there are too few eigenvalues.
        bulk: Marchenko-Pastur beside it, or None.
        verdict: That of the tail.
    """

    name: str
    shape: tuple[int, ...]
    rows: int
    eigenvalues: Float[np.ndarray, " k"]
    zeros: int
    tail: TailFit | None
    bulk: LawFit | None
    verdict: Verdict

    def __str__(self) -> str:
        """Return the tail's fit and the bulk's."""
        head = f"{self.name} {self.shape}: {len(self.eigenvalues)} eigenvalues"
        parts = [head, str(self.tail or self.verdict)]
        return "\n".join(parts + ([str(self.bulk)] if self.bulk else []))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything that a figure needs."""
        return {
            "type": "weight spectrum",
            "name": self.name,
            "shape": list(self.shape),
            "rows": self.rows,
            "eigenvalues": self.eigenvalues.tolist(),
            "zeros": self.zeros,
            "tail": self.tail.to_json() if self.tail else None,
            "bulk": self.bulk.to_json() if self.bulk else None,
            "verdict": self.verdict.to_json(),
        }


@dataclass(frozen=True)
class WeightSpectra:
    """The spectra of all weight matrices of a network.

    Attributes:
        layers: One per matrix, in the order of the parameters.
        skipped: Tensors that are no matrices.
    """

    layers: tuple[WeightSpectrum, ...]
    skipped: tuple[str, ...]

    def __getitem__(self, name: str) -> WeightSpectrum:
        """Return the spectrum of one tensor."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no matrix {name!r}; there are: {', '.join(x.name for x in self.layers)}")

    def __str__(self) -> str:
        """Return all layers' fits."""
        return "\n\n".join(map(str, self.layers))

    def __rich__(self) -> Table:
        """Return a table, a row per layer."""
        table = Table("layer", "shape", "alpha", "tail", "p", "power law", "Marchenko-Pastur")
        for x in self.layers:
            fit = x.tail
            table.add_row(
                x.name,
                "x".join(map(str, x.shape)),
                str(fit.alpha) if fit else "",
                f"{fit.tail} of {fit.size}" if fit else "",
                f"{fit.p_value:.3g}" if fit else "",
                x.verdict.answer,
                x.bulk.verdict.answer if x.bulk else "",
            )
        return table


def _matrices(name: str, weight: Tensor, kernels: str) -> list[tuple[str, Array]]:
    matrix = weight.detach().to("cpu", torch.float64)
    if matrix.ndim == 2 or kernels == "flatten":
        return [(name, matrix.flatten(1).numpy())]
    flat = matrix.flatten(2)
    return [(f"{name}[{k}]", flat[:, :, k].numpy()) for k in range(flat.shape[2])]


def _spectrum(
    name: str, shape: tuple[int, ...], matrix: Array, replicates: int, bulk: bool, seed: int
) -> WeightSpectrum:
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"{name} holds weights that are not finite")
    rows = max(matrix.shape)
    values = np.sort(np.linalg.svd(matrix, compute_uv=False) ** 2 / rows)
    zeros = int((values <= _ZERO * values[-1]).sum())
    positive = values[zeros:]
    if len(positive) < _LEAST_VALUES:
        verdict = Verdict(
            "unresolved",
            f"{len(positive)} eigenvalues above zero are too few; a tail needs {_LEAST_VALUES}",
        )
        return WeightSpectrum(name, shape, rows, values, zeros, None, None, verdict)
    tail = fit_tail(positive, replicates=replicates, seed=seed)
    law = fit_law(values, "marchenko-pastur", replicates=replicates, seed=seed) if bulk else None
    return WeightSpectrum(name, shape, rows, values, zeros, tail, law, tail.verdict)


def weight_spectra(
    weights: Structured | Mapping[str, Tensor],
    theta: Float[Tensor, " dim"] | None = None,
    *,
    kernels: Literal["flatten", "slices"] = "flatten",
    bulk: bool = True,
    replicates: int = 199,
    seed: Seed = None,
    progress: Progress | None = None,
) -> WeightSpectra:
    r"""Return the spectrum of every weight matrix, with a power-law tail and its test.

    A matrix $W$ with larger side $n$ has the spectrum of $W^\top W / n$ (of $W W^\top / n$
    where it is wider than tall): without training, Marchenko-Pastur.

    Args:
        weights: A landscape with named tensors, or tensors by name.
        theta: Where, `(dim,)`; with a landscape only.
        kernels: A convolution's kernel `(out, in, height, width)` as one matrix `(out, in *
            height * width)`, or a matrix `(out, in)` for each position, as Martin and Mahoney
            do.
        bulk: Whether to fit Marchenko-Pastur beside it.
        replicates: Synthetic sets for each p-value.
        seed: An int, a generator, or None; recorded in the results.
        progress: Called with a fraction in [0, 1] and a message, after each matrix.

    Returns:
        One result per matrix; a layer with too few eigenvalues says so.

    Raises:
        TypeError: If a landscape comes without `theta`, or tensors with one.
        ValueError: If an option is unknown, a weight is not finite, or there is no matrix.

    References:
        C. H. Martin & M. W. Mahoney (2021), Implicit self-regularization in deep neural
        networks, JMLR 22.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> w = torch.randn(60, 120, generator=g)
        >>> found = weight_spectra({"fc.weight": w}, replicates=49, seed=0)
        >>> found["fc.weight"].bulk.verdict.answer
        'yes'
    """
    if kernels not in ("flatten", "slices"):
        raise ValueError(f"kernels must be 'flatten' or 'slices', not {kernels!r}")
    if isinstance(weights, Structured):
        if theta is None:
            raise TypeError("a landscape needs theta, the point whose weights are meant")
        tensors: Mapping[str, Tensor] = weights.spec.views(theta)
    elif theta is not None:
        raise TypeError("theta is for landscapes; these are tensors already")
    else:
        tensors = weights
    number = make_generator(seed)[1]
    matrices = {n: w for n, w in tensors.items() if w.ndim >= 2 and min(w.shape) > 0}
    if not matrices:
        raise ValueError(f"no tensor has two axes; there are: {', '.join(tensors)}")
    parts = [
        (part, tuple(weight.shape), matrix)
        for name, weight in matrices.items()
        for part, matrix in _matrices(name, weight, kernels)
    ]
    layers = []
    for part, shape, matrix in parts:
        layers.append(_spectrum(part, shape, matrix, replicates, bulk, number))
        if progress is not None:
            progress(len(layers) / len(parts), part)
    return WeightSpectra(tuple(layers), tuple(n for n in tensors if n not in matrices))
