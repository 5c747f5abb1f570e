"""Coverage of everything that a spectral density says, on Hessians, Gauss-Newton and others.

The oracle knows the variance of an estimate over the probes, from the dense spectrum, and
has no error of quadrature.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from thalweg.curvature import MatrixOperator, eigenpairs, spectral_density
from thalweg.curvature.quadrature import sum_interval

PROBES, STEPS = 8, 30
BULK = np.r_[np.zeros(120), np.linspace(0.1, 1, 25), -np.linspace(0.1, 0.5, 15)]
PAIRS = np.r_[np.linspace(1, 2, 60), -np.linspace(1, 2, 60)]
RARE = np.r_[np.zeros(139), np.linspace(1, 2, 10), -0.5]


def matrices(net, with_spectrum):
    """Name, matrix, whether it is positive semidefinite by construction."""
    for steps in (0, 10, 30, 100, 400):
        point = net(steps=steps)
        yield f"Hessian, step {steps}", point.dense(), False
        yield f"Gauss-Newton, step {steps}", point.gauss_newton(), True
    yield "bulk at zero", with_spectrum(BULK).matrix, False
    yield "pairs", with_spectrum(PAIRS).matrix, False
    yield "one negative", with_spectrum(RARE).matrix, False


class Case:
    """One matrix: the dense truths, and the widths of the oracle."""

    def __init__(self, matrix, definite):
        self.operator = MatrixOperator((matrix + matrix.T) / 2)
        self.operator.definite = definite
        self.values = torch.linalg.eigvalsh(self.operator.matrix).numpy()
        top = np.abs(self.values).max()
        self.outliers = eigenpairs(self.operator, 10, which="magnitude", seed=0)
        self.scale, self.tau = 1e-2 * top, 1e-3 * top
        positive = lambda x: np.maximum(x, 0)  # noqa: E731
        self.functions = {
            "trace": lambda x: x,
            "square of the norm": lambda x: x * x,
            "log det": lambda x: np.log(positive(x) + self.scale),
            "dimension": lambda x: positive(x) / (positive(x) + self.scale),
        }

    def answers(self, rho):
        norm = rho.frobenius_norm()
        return {
            "trace": rho.trace().interval,
            "square of the norm": tuple(end**2 for end in norm.interval),
            "log det": rho.log_determinant(self.scale, part="positive").interval,
            "dimension": rho.effective_dimension(self.scale).interval,
        }

    def oracle(self, function, atoms):
        """The width of the interval of one who knows the variance over the probes."""
        rest = self.values[np.argsort(-np.abs(self.values))][len(atoms) :]
        if not len(rest):
            return 0.0
        f = function(rest)
        variance = 2 * len(f) ** 2 / (len(f) + 2) * f.var()
        return 2 * 1.96 * math.sqrt(variance / PROBES)


def holds(interval, truth):
    slack = 1e-9 * max(1.0, abs(truth))
    return interval[0] - slack <= truth <= interval[1] + slack


@pytest.fixture(scope="module")
def cases(net, with_spectrum):
    return {name: Case(matrix, definite) for name, matrix, definite in matrices(net, with_spectrum)}


NAMES = [
    *(f"Hessian, step {steps}" for steps in (0, 30, 400)),
    *(f"Gauss-Newton, step {steps}" for steps in (10, 100)),
    "bulk at zero",
    "pairs",
    "one negative",
]


@pytest.mark.calibration
@pytest.mark.parametrize("name", NAMES)
def test_sums_counts_and_band_are_calibrated(cases, calibration, name):
    case = cases[name]
    hits = dict.fromkeys([*case.functions, "negative", "zero", "positive"], 0)
    widths = {key: [] for key in case.functions}
    counts = {
        "negative": int((case.values < -case.tau).sum()),
        "zero": int((np.abs(case.values) <= case.tau).sum()),
        "positive": int((case.values > case.tau).sum()),
    }
    shares = (0.1, 0.3, 0.5, 0.7, 0.9)
    places = np.quantile(case.values, shares)
    band, spans = np.zeros(len(places), dtype=int), []
    for seed in calibration.seeds:
        rho = spectral_density(
            case.operator,
            probes=PROBES,
            steps=STEPS,
            deflate=case.outliers,
            points=201,
            method="quadrature",
            seed=seed,
        )
        for key, interval in case.answers(rho).items():
            function = case.functions[key]
            hits[key] += holds(interval, float(function(case.values).sum()))
            oracle = case.oracle(function, rho.atoms)
            if oracle > 1e-6 * abs(float(function(case.values).sum())):
                widths[key].append((interval[1] - interval[0]) / oracle)
        found = rho.count(case.tau)
        for key, number in counts.items():
            hits[key] += holds(getattr(found, key).interval, number)
        held, ratio = on_band(case, rho, places)
        band += held
        spans += ratio
    for key, count in hits.items():
        ratio = float(np.median(widths[key])) if widths.get(key) else None
        calibration.check(f"density of {name}: {key}", count, width_ratio=ratio)
    for share, count in zip(shares, band.tolist(), strict=True):
        ratio = float(np.median(spans))
        calibration.check(
            f"density of {name}: band at the {share} quantile", count, width_ratio=ratio
        )


def on_band(case, rho, places):
    """Whether the band holds the broadened truth near each place, and its relative widths."""
    grid, sigma = rho.grid.numpy(), rho.broadening
    index = np.abs(grid[:, None] - places).argmin(0)

    def kernel(x):
        gaps = (grid[index][:, None] - x) / sigma
        return np.exp(-0.5 * gaps**2) / (sigma * math.sqrt(2 * math.pi))

    truth = kernel(case.values).mean(1)
    low, high = rho.band.numpy()[:, index]
    rest = case.values[np.argsort(-np.abs(case.values))][len(rho.atoms) :]
    free = len(rest)
    spread = np.sqrt(2 * free**2 / (free + 2) * kernel(rest).var(1) / PROBES) / len(case.values)
    ratios = (high - low)[spread > 0] / (2 * 1.96 * spread[spread > 0])
    slack = 1e-9 * truth.max()
    return (low - slack <= truth) & (truth <= high + slack), ratios.tolist()


@pytest.mark.calibration
def test_counts_are_no_wider_than_they_must_be(cases, calibration):
    """Where the steps resolve tau, against an oracle who knows the variance of the share."""
    for name in ("Gauss-Newton, step 0", "Gauss-Newton, step 400", "pairs"):
        case, hits, ratios = cases[name], 0, []
        truth = int((case.values > case.tau).sum())
        for seed in calibration.seeds:
            rho = spectral_density(
                case.operator,
                probes=PROBES,
                steps=60,
                deflate=case.outliers,
                points=2,
                method="quadrature",
                seed=seed,
            )
            found = rho.count(case.tau).positive
            hits += holds(found.interval, truth)
            oracle = case.oracle(lambda x: (x > case.tau) * 1.0, rho.atoms)  # noqa: B023
            ratios.append(2 * found.half_width / oracle)
        ratio = float(np.median(ratios))
        calibration.check(f"count of {name}, 60 steps", hits, width_ratio=ratio)


def test_a_band_made_too_narrow_is_found_out():
    """The checker's own check: the same intervals at 70 % of their width fail."""
    rng = np.random.default_rng(0)
    values = np.r_[np.zeros(150), np.linspace(1, 2, 40)]
    shares = rng.standard_normal((1000, PROBES, len(values))) ** 2
    shares /= shares.sum(2, keepdims=True)
    moments = [(shares.mean(1) @ values**k) for k in (1, 2, 3)]
    mean = moments[0]
    second = moments[1] - mean**2
    third = moments[2] - 3 * mean * moments[1] + 2 * mean**3
    low, high, error = sum_interval(mean, second, third, len(values), PROBES, 0.95)
    truth = values.mean()
    assert ((low <= truth) & (truth <= high)).sum() >= 923
    narrow = 0.7
    left, right = mean - narrow * (mean - low), mean + narrow * (high - mean)
    assert ((left <= truth) & (truth <= right)).sum() < 923
    assert np.median(error) == pytest.approx(mean.std(), rel=0.1)
