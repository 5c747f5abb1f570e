"""Power-law tails: planted exponents, rejected laws, layers, and the library `powerlaw`."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from thalweg.landscape.spec import ParameterSpec
from thalweg.theory.random_matrix.heavy_tails import _scan, fit_tail, weight_spectra


def pareto(n: int, alpha: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) ** (-1 / (alpha - 1))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [2.2, 4.5])
def test_a_planted_exponent(alpha: float) -> None:
    """4.5 lies beyond the library's own range, which ends at 3."""
    fit = fit_tail(pareto(400, alpha, 1), replicates=49, seed=2)
    assert fit.verdict.yes
    assert alpha in fit.alpha
    assert fit.alpha.stderr == pytest.approx((fit.alpha.value - 1) / np.sqrt(fit.tail))
    assert fit.ratios["exponential"][0] > 0
    assert "a power law is not rejected" in str(fit)
    assert json.loads(json.dumps(fit.to_json()))["tail"] == fit.tail
    assert fit_tail(pareto(400, alpha, 1), replicates=49, seed=2).p_value == fit.p_value


@pytest.mark.slow
def test_the_tail_alone_is_fitted() -> None:
    """At 3 the tail has 300 * 2 / 3 = 200 values a unit, what is below it 1800 / 2.9 = 620."""
    body = np.random.default_rng(4).uniform(0.1, 3, 1800)
    fit = fit_tail(np.concatenate([3 * pareto(300, 3.0, 3), body]), replicates=49, seed=2)
    assert 2.9 < fit.xmin < 6
    assert fit.tail < 350
    assert 3.0 in fit.alpha


def test_uniform_values_are_no_power_law() -> None:
    assert fit_tail(np.random.default_rng(0).uniform(1, 2, 500), replicates=49, seed=2).verdict.no


@pytest.mark.slow
def test_exponential_values_are_no_power_law() -> None:
    """Of 1000 values the last 70 or so pass for one: it takes 10 000 to tell the two apart."""
    fit = fit_tail(np.random.default_rng(0).exponential(size=10_000), replicates=19, seed=2)
    assert fit.tail >= 200
    assert fit.verdict.no


def test_a_short_tail_is_unresolved() -> None:
    fit = fit_tail(pareto(30, 2.5, 5), replicates=19, seed=2)
    assert fit.verdict.unresolved
    assert "cannot tell a power law from others" in str(fit)


@pytest.mark.slow
def test_the_scan_agrees_with_the_library() -> None:
    import powerlaw

    values = np.concatenate([pareto(120, 4.0, 6), np.random.default_rng(7).random(40)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own search asks for a name that it deprecates
        fit = powerlaw.Fit(values, verbose=0, parameter_ranges={"alpha": (1.0, None)})
        xmin, alpha, distance, tail = _scan(np.sort(values))
        same = powerlaw.Fit(values, xmin=xmin, verbose=0, parameter_ranges={"alpha": (1.0, None)})
        assert alpha == pytest.approx(same.power_law.alpha, rel=1e-5)
    assert xmin == pytest.approx(fit.xmin, rel=0.05)
    # the library measures its distance from one side of each step, the scan from both
    assert distance + 1e-9 >= same.power_law.D
    assert distance <= same.power_law.D + 1.01 / tail


@pytest.mark.slow
def test_random_weights_are_marchenko_pastur_and_heavy_ones_a_power_law() -> None:
    generator = torch.Generator().manual_seed(0)
    spec = ParameterSpec({"fc.weight": (80, 200), "fc.bias": (80,), "head.weight": (5, 80)})

    class Layers:
        def __init__(self) -> None:
            self.spec = spec

    theta = torch.randn(spec.dim, generator=generator, dtype=torch.float64)
    found = weight_spectra(Layers(), theta, replicates=49, seed=1)
    assert [layer.name for layer in found.layers] == ["fc.weight", "head.weight"]
    assert found.skipped == ("fc.bias",)
    first = found["fc.weight"]
    matrix = spec.views(theta)["fc.weight"]
    exact = torch.linalg.eigvalsh(matrix @ matrix.T / 200).numpy()
    assert np.allclose(first.eigenvalues, exact, atol=1e-10)
    assert first.bulk.verdict.yes
    assert 0.4 in first.bulk.parameters["ratio"]
    assert not first.verdict.yes
    assert found["head.weight"].tail is None
    assert "5 eigenvalues above zero are too few" in str(found)
    assert found.__rich__().row_count == 2
    left, _, right = torch.linalg.svd(torch.randn(150, 150, generator=generator).double())
    heavy = left @ torch.diag(torch.from_numpy(pareto(150, 2.5, 1)).sqrt()) @ right
    told: list[float] = []
    layer = weight_spectra(
        {"w": heavy}, replicates=99, seed=1, progress=lambda done, _: told.append(done)
    )["w"]
    assert told == [1.0]
    assert layer.verdict.yes
    assert 2.5 in layer.tail.alpha
    assert layer.bulk.verdict.no
    assert json.loads(json.dumps(layer.to_json()))["rows"] == 150


def test_kernels_of_convolutions() -> None:
    weight = torch.randn(24, 8, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    one = weight_spectra({"c": weight}, bulk=False, replicates=19, seed=1)["c"]
    flat = weight.reshape(24, 72)
    assert np.allclose(one.eigenvalues, torch.linalg.eigvalsh(flat @ flat.T / 72), atol=1e-10)
    nine = weight_spectra({"c": weight}, kernels="slices", bulk=False, replicates=19, seed=1)
    assert len(nine.layers) == 9
    part = weight[:, :, 1, 2]
    exact = torch.linalg.eigvalsh(part.T @ part / 24)
    assert np.allclose(nine["c[5]"].eigenvalues, exact, atol=1e-10)


def test_zero_eigenvalues_are_counted_and_left_out() -> None:
    g = torch.Generator().manual_seed(2)
    low = torch.randn(60, 30, generator=g).double() @ torch.randn(30, 60, generator=g).double()
    layer = weight_spectra({"w": low}, bulk=False, replicates=19, seed=1)["w"]
    assert layer.zeros == 30
    assert layer.tail.size == 30


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"at least 20 positive .* smallest -1; leave out zero"):
        fit_tail(np.linspace(-1, 1, 50))
    with pytest.raises(ValueError, match="all 30 values equal 2: there is no tail"):
        fit_tail(np.full(30, 2.0))
    with pytest.raises(TypeError, match="theta is for landscapes"):
        weight_spectra({"w": torch.eye(3)}, torch.zeros(3))
    with pytest.raises(ValueError, match="no tensor has two axes; there are: b"):
        weight_spectra({"b": torch.zeros(3)})
    with pytest.raises(ValueError, match="w holds weights that are not finite"):
        weight_spectra({"w": torch.full((3, 3), torch.nan)})
    with pytest.raises(KeyError, match="no matrix 'x'; there are: w"):
        weight_spectra({"w": torch.eye(3)})["x"]


@pytest.mark.usefixtures("unchecked")
def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="kernels must be 'flatten' or 'slices', not 'rows'"):
        weight_spectra({"w": torch.eye(3)}, kernels="rows")


@pytest.mark.slow
def test_the_library_is_imported_only_when_a_tail_is_fitted() -> None:
    code = (
        "import sys, thalweg.theory.random_matrix.heavy_tails; "
        "print([name for name in ('powerlaw', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.calibration
def test_the_interval_of_the_exponent(calibration) -> None:
    hits = kept = 0
    for seed in calibration.seeds:
        fit = fit_tail(pareto(200, 3.0, seed), replicates=39, seed=seed)
        hits += 3.0 in fit.alpha
        kept += fit.p_value > 0.05
    calibration.check("power-law exponent, n = 200", hits)
    calibration.check("power-law p > 0.05, n = 200", kept)
