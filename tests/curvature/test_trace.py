"""The trace against dense truth, and the coverage of its interval."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from thalweg.curvature import Hessian, MatrixOperator, trace
from thalweg.curvature.operator import LinearOperator
from thalweg.estimate import Estimate, from_json
from thalweg.landscape import FunctionLandscape


def quadratic(diagonal):
    land = FunctionLandscape(lambda x: 0.5 * (diagonal * x**2).sum(), dim=len(diagonal))
    return Hessian(land, torch.zeros(len(diagonal), dtype=torch.float64))


def oracle_width(matrix, samples):
    """The width of the 95 % interval of one who knows the variance of a sample."""
    off = matrix - torch.diag(matrix.diagonal())
    return 2 * 1.96 * math.sqrt(2 * float(off.square().sum()) / samples)


def test_hessian_of_a_network(net):
    point = net()
    with Hessian(point.land, point.theta) as H:
        found = trace(H, seed=0)
    assert float(point.dense().trace()) in found
    assert found.samples == 96
    assert found.cost.hvps == 96
    assert found.cost.passes == 7  # six blocks of 16 and the gradient
    assert found.seed == 0
    assert from_json(found.to_json()) == found
    assert "cross-fitted" in found.method
    assert found.half_width < 0.5 * oracle_width(point.dense(), 96) / 2
    with Hessian(point.land, point.theta) as H:
        plain = trace(H, seed=0, method="hutchinson")
    assert 0.8 < 2 * plain.half_width / oracle_width(point.dense(), 96) < 1.4


def test_value_and_error_are_those_of_the_samples(with_spectrum):
    """Against the plain loop over the same signs."""
    A = with_spectrum(np.linspace(-1, 2, 150))
    found = trace(A, samples=40, seed=4)
    generator = torch.Generator().manual_seed(4)
    forms = []
    for _ in range(40):
        bits = torch.randint(0, 2, (150,), generator=generator, dtype=torch.int8)
        z = (2 * bits - 1).double()
        forms.append(float(z @ A.matrix @ z))
    assert found.value == pytest.approx(np.mean(forms), rel=1e-12)
    assert found.stderr == pytest.approx(np.std(forms, ddof=1) / math.sqrt(40), rel=1e-12)


def test_samples_are_unbiased_with_the_known_variance(with_spectrum):
    A = with_spectrum([5.0, -3.0, 1.0, *np.linspace(0, 1, 60)])
    found = [trace(A, samples=32, seed=seed) for seed in range(60)]
    values = np.array([f.value for f in found])
    error = oracle_width(A.matrix, 32 * 60) / 3.92
    assert abs(values.mean() - float(A.matrix.trace())) < 4 * error
    expected = oracle_width(A.matrix, 32) / 3.92
    assert np.median([f.stderr for f in found]) == pytest.approx(expected, rel=0.15)


def test_a_diagonal_matrix_leaves_only_rounding():
    diagonal = torch.logspace(-6, 3, 200, dtype=torch.float64) * (-1) ** torch.arange(200)
    for seed in range(20):
        found = trace(quadratic(diagonal), samples=32, seed=seed)
        assert math.fsum(diagonal.tolist()) in found
        assert 0 < found.half_width < 1e-9


def test_as_many_samples_as_coordinates_are_exact(net):
    point = net()
    with Hessian(point.land, point.theta) as H:
        found = trace(H, samples=H.dim + 50, seed=0)
    assert found.method == "exact diagonal"
    assert found.cost.hvps == found.samples == point.land.dim
    assert found.stderr == 0
    assert float(point.dense().trace()) in found
    assert found.half_width < 1e-10
    one = trace(MatrixOperator(torch.tensor([[3.0]])))
    assert one.value == 3
    zero = trace(MatrixOperator(torch.zeros(200, 200)), seed=0)
    assert (zero.value, zero.interval) == (0, (0, 0))


def test_low_rank_is_no_trouble(with_spectrum):
    """curvlinops' XTrace cannot invert a singular matrix here."""
    A = with_spectrum([1.0] * 5 + [0.0] * 145)
    assert sum(5.0 in trace(A, samples=32, seed=seed) for seed in range(20)) >= 17


@pytest.mark.parametrize("steps", [0, 30])
def test_float32_covers_the_float64_trace(net, steps):
    point = net(torch.float32, steps=steps)
    truth = float(point.dense().trace())
    H = Hessian(point.land, point.theta)
    assert sum(truth in trace(H, samples=32, seed=seed) for seed in range(20)) >= 17
    exact = trace(H, samples=H.dim)
    assert truth in exact
    assert exact.half_width < 1e-3 * abs(truth)


def test_small_float32_entries_do_not_underflow_into_asymmetry():
    """The squares of 1e-30 are no float32 numbers, and the norm of a product was zero."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(60, 60, generator=generator)
    matrix = 1e-30 * (root + root.T)
    estimate = trace(MatrixOperator(matrix), samples=34, seed=0)
    assert float(matrix.double().trace()) in estimate
    assert estimate.half_width > 0


def test_little_memory_means_smaller_blocks_and_the_same_number(with_spectrum, monkeypatch):
    import sys

    A = with_spectrum(np.linspace(-1, 2, 150))
    whole = trace(A, samples=40, seed=4)
    monkeypatch.setattr(sys.modules["thalweg.curvature.probes"], "_BLOCK_BYTES", 0)
    single = trace(A, samples=40, seed=4)
    assert single.cost.passes == 40
    assert whole.cost.passes == 3
    assert single.value == pytest.approx(whole.value, rel=1e-12)


def test_seeds(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 150))
    first, other = trace(A, samples=32), trace(A, samples=32)
    assert first.seed != other.seed
    assert first.value != other.value
    assert trace(A, samples=32, seed=first.seed).value == first.value
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    once, again = (trace(A, samples=32, seed=g) for g in generators)
    assert once.value == again.value
    before = torch.get_rng_state()
    trace(A, samples=32)
    assert torch.equal(before, torch.get_rng_state())


class Knowing(MatrixOperator):
    """An operator that knows its trace."""

    def own_trace(self, *, level=0.95, seed=None):
        return Estimate(7.0, 0.0, (7.0, 7.0), 0, level=level, method="by heart")


def test_what_is_known_takes_no_product():
    A = Knowing(torch.eye(100))
    found = trace(A, level=0.9, samples=200)
    assert (found.value, found.level, found.method) == (7, 0.9, "by heart")
    assert A.cost.hvps == 0
    assert trace(A, method="exact").value == 100
    assert trace(A, method="hutchinson").value == pytest.approx(100)


def test_the_choice_and_its_reason(with_spectrum):
    decaying = 1 / torch.arange(1.0, 151) ** 2
    A = with_spectrum(decaying)
    definite = MatrixOperator(A.matrix, definite=True)
    assert "chosen because the operator is positive semidefinite" in trace(definite).method
    assert "cross-fitted: a low-rank guess" in trace(A).method
    flat = with_spectrum(np.linspace(-1, 2, 150))
    assert "cross-fitting did not pay" in trace(flat, seed=0).method
    plain = trace(flat, seed=0, method="hutchinson")
    assert trace(flat, seed=0).interval == plain.interval
    assert "cross-fitted" in trace(flat, method="crossfit").method
    assert (
        "exact: the rank is 5"
        in trace(
            with_spectrum([1.0, -2.0, 3.0, 4.0, 5.0] + [0.0] * 145), method="xtrace", samples=32
        ).method
    )
    assert trace(flat, method="xtrace", samples=97).cost.hvps == 96


def test_memory_that_does_not_hold_a_sketch(with_spectrum):
    A = MatrixOperator(with_spectrum(1 / torch.arange(1.0, 151)).matrix, definite=True)
    found = trace(A, memory="100 kB", seed=3)
    assert "no sketch, which needs memory='0.000215 GiB'" in found.method
    assert found.interval == trace(A, method="hutchinson", seed=3).interval
    with pytest.raises(MemoryError, match=r"keeps 192 vectors of length 150.*method='hutchinson'"):
        trace(A, memory="100 kB", method="xnystrace")


def error(operator, samples, method, seeds=60):
    truth = float(operator.matrix.trace())
    found = [trace(operator, samples=samples, method=method, seed=s).value for s in range(seeds)]
    return float(np.sqrt(np.mean((np.array(found) - truth) ** 2)))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [32, 60, 96])
def test_never_more_than_a_tenth_worse_than_hutchinson(net, with_spectrum, samples):
    flat = with_spectrum(np.linspace(-1, 2, 150))
    pairs = with_spectrum([s / k for k in range(1, 76) for s in (1, -1)])
    hessians = [MatrixOperator(net(steps=steps).dense()) for steps in (0, 30, 300)]
    for A in (flat, pairs, *hessians):
        hutchinsons = oracle_width(A.matrix, samples) / 3.92
        noise = 1 + 2.5 / math.sqrt(2 * 60)  # of an error measured on 60 seeds
        assert error(A, samples, "auto") < 1.1 * noise * hutchinsons
    assert error(hessians[-1], 96, "auto") < 0.25 * oracle_width(hessians[-1].matrix, 96) / 3.92


@pytest.mark.slow
def test_a_definite_matrix_takes_a_fraction_of_hutchinsons_products(net):
    """Nine times as many products would bring Hutchinson's error down by three."""
    for steps in (0, 30, 300):
        A = MatrixOperator(net(steps=steps).gauss_newton(), definite=True)
        assert error(A, 60, "auto") < oracle_width(A.matrix, 9 * 60) / 3.92


class Shifting(MatrixOperator):
    """A product that is not symmetric."""

    def _product(self, vectors):
        return super()._product(vectors) + 0.1 * vectors.roll(1, 0)


class Boasting(MatrixOperator):
    """A claim to be positive semidefinite that nobody checked."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.definite = True


def test_what_cannot_be(unchecked):
    A = MatrixOperator(torch.eye(100))
    with pytest.raises(ValueError, match=r"samples=31 is too few.*32, or dim=100 for the exact"):
        trace(A, samples=31)
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, not 1"):
        trace(A, level=1.0)
    with pytest.raises(ValueError, match=r"method must be one of 'auto'.*not 'magic'"):
        trace(A, method="magic")
    assert A.cost.hvps == 0
    with pytest.raises(ValueError, match="said to be positive semidefinite, but is not"):
        trace(Boasting(-torch.eye(100)))
    with pytest.raises(ValueError, match="is not symmetric, or gives different products"):
        trace(Shifting(torch.eye(100)), seed=0)
    kink = FunctionLandscape(lambda x: (x.abs() ** 1.5).sum(), dim=50)
    H = Hessian(kink, torch.zeros(50, dtype=torch.float64))
    for samples in (32, 50):
        with pytest.raises(FloatingPointError, match=r"product with Hessian.*NaN or infinite"):
            trace(H, samples=samples, seed=0)


def dominated(dim):
    """A rank-one matrix on four of the coordinates: 1 sample in 8 is large, 3 in 8 are 0."""
    vector = torch.zeros(dim, dtype=torch.float64)
    vector[:4] = 1
    return torch.outer(vector, vector)


def nearly_rank_one(dim):
    generator = torch.Generator().manual_seed(11)
    vector = torch.randn(dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.outer(vector, vector) + 0.05 * (noise + noise.T)


def operators(net) -> dict[str, LinearOperator]:
    fresh, trained = net(steps=0), net(steps=300)
    vector = torch.randn(150, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return {
        "network's Hessian, untrained (indefinite)": MatrixOperator(fresh.dense()),
        "network's Hessian, trained": MatrixOperator(trained.dense()),
        "network's Gauss-Newton matrix": MatrixOperator(fresh.gauss_newton()),
        "rank one": MatrixOperator(torch.outer(vector, vector)),
        "minus rank one": MatrixOperator(-torch.outer(vector, vector)),
        "rank one on 4 coordinates": MatrixOperator(dominated(150)),
        "nearly rank one": MatrixOperator(nearly_rank_one(150)),
        "quadratic with a known diagonal": quadratic(torch.linspace(-1, 3, 150).double()),
    }


CASES = [
    "network's Hessian, untrained (indefinite)",
    "network's Hessian, trained",
    "network's Gauss-Newton matrix",
    "rank one",
    "minus rank one",
    "rank one on 4 coordinates",
    "nearly rank one",
    "quadratic with a known diagonal",
]


def coverage(operator, seeds, estimate):
    """Return how many intervals hold the trace, and their median width over an oracle's."""
    dense = operator.to_dense()
    truth = math.fsum(dense.diagonal().tolist())
    found = [estimate(operator, seed) for seed in seeds]
    hits = sum(truth in f for f in found)
    oracle = oracle_width(dense, found[0].samples)
    widths = np.median([f.interval[1] - f.interval[0] for f in found])
    return hits, float(widths / oracle) if oracle else None


def hutchinson(operator, seed, samples=96):
    return trace(operator, method="hutchinson", samples=samples, seed=seed)


def quiet(calibration, seeds):
    return dataclasses.replace(calibration, seeds=seeds, record=lambda name, row: None)


@pytest.mark.parametrize("case", [CASES[0], "rank one"])
def test_a_little_coverage(net, calibration, case):
    """The calibration below, in small, for every run of the suite."""
    rule = quiet(calibration, range(60))
    hits, ratio = coverage(operators(net)[case], rule.seeds, hutchinson)
    rule.check(case, hits, width_ratio=ratio)


@pytest.mark.calibration
@pytest.mark.parametrize("samples", [32, 96])
@pytest.mark.parametrize("case", CASES)
def test_interval_covers_the_trace(net, calibration, case, samples):
    hits, ratio = coverage(
        operators(net)[case], calibration.seeds, lambda A, s: hutchinson(A, s, samples)
    )
    calibration.check(f"Hutchinson's trace, {case}, {samples} samples", hits, width_ratio=ratio)


@dataclasses.dataclass
class Naive:
    """A value and an interval, made without care."""

    interval: tuple[float, float]
    samples: int

    def __contains__(self, value):
        return self.interval[0] <= value <= self.interval[1]


def until_calm(operator, seed):
    """PyHessian's rule: stop when the running mean moves by less than 0.1 %."""
    generator = torch.Generator().manual_seed(seed)
    forms, mean = [], 0.0
    for _ in range(100):
        bits = torch.randint(0, 2, (operator.dim,), generator=generator)
        z = (2 * bits - 1).to(operator.dtype)
        forms.append(float(z @ (operator @ z)))
        moved = abs(np.mean(forms) - mean) / (abs(mean) + 1e-6)
        mean = np.mean(forms)
        if len(forms) > 1 and moved < 1e-3:
            break
    half = 1.96 * np.std(forms, ddof=1) / math.sqrt(len(forms))
    return Naive((mean - half, mean + half), len(forms))


def few_and_normal(operator, seed):
    """A textbook interval from eight samples."""
    generator = torch.Generator().manual_seed(seed)
    z = (2 * torch.randint(0, 2, (operator.dim, 8), generator=generator) - 1).to(operator.dtype)
    forms = (z * (operator @ z)).sum(0).numpy()
    half = 1.96 * forms.std(ddof=1) / math.sqrt(8)
    return Naive((forms.mean() - half, forms.mean() + half), 8)


@pytest.mark.parametrize("naive", [until_calm, few_and_normal])
def test_the_rule_rejects_naive_intervals(net, calibration, naive):
    """The control of the two tests above."""
    rule = quiet(calibration, range(200))
    hits, ratio = coverage(operators(net)["rank one on 4 coordinates"], rule.seeds, naive)
    with pytest.raises(AssertionError, match="held the truth for"):
        rule.check(naive.__name__, hits, width_ratio=ratio)


def test_the_rule_rejects_intervals_that_are_too_wide(net, calibration):
    def wide(operator, seed):
        found = trace(operator, method="hutchinson", seed=seed)
        low, high = found.interval
        return Naive((low - 2 * (high - low), high + 2 * (high - low)), found.samples)

    rule = quiet(calibration, range(20))
    hits, ratio = coverage(operators(net)["rank one"], rule.seeds, wide)
    with pytest.raises(AssertionError, match="more than twice"):
        rule.check("wide", hits, width_ratio=ratio)
