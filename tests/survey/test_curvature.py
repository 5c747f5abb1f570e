"""The curvature that a survey records, against dense matrices."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

from thalweg.curvature import Hessian, MatrixOperator, spectral_density
from thalweg.survey import MinimumRecord, Survey, SurveyConfig
from thalweg.survey.curvature import density_record

sys.path.insert(0, str(Path(__file__).parent))
import surfaces

CONFIG = SurveyConfig(
    seed=2, minima=1, epochs=2, batch_size=8, max_gradients=40, eigenvalues=3, laws=False
)


def measured(folder: Path, **changes: object) -> tuple[MinimumRecord, torch.Tensor]:
    """Survey one minimum of a small network; return it and its Hessian."""
    land = surfaces.network()
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]  # a shorthand
    with Survey.open(folder, land, config) as survey:
        survey.run(progress=False)
        (minimum,) = survey.record().minima
        with Hessian(land, survey.theta(minimum.id)) as operator:
            return minimum, operator.to_dense()


def test_spectrum_and_layers_hold_the_dense_truth(tmp_path: Path) -> None:
    minimum, dense = measured(tmp_path / "a")
    exact = torch.linalg.eigvalsh(dense).flip(0)
    found = minimum.spectrum
    assert found is not None
    counts = (exact < -found.tau, exact.abs() <= found.tau, exact > found.tau)
    for count, number in zip(counts, (found.negative, found.zero, found.positive), strict=True):
        assert float(count.sum()) in number
    assert found.certified[0] <= int(counts[0].sum())
    assert found.certified[1] <= int(counts[2].sum())
    assert found.lowest.lower <= float(exact[-1]) + 1e-9
    assert float(exact[-1]) <= found.lowest.upper + 1e-9
    assert float(exact.square().sum().sqrt()) in found.frobenius_norm
    raised = exact.clamp(min=0)
    assert float((raised / (raised + found.shift)).sum()) in found.effective_dimension
    assert float((raised + found.shift).log().sum()) in found.log_determinant
    density = found.density
    area = torch.trapezoid(torch.tensor(density.values), torch.tensor(density.grid))
    assert float(area) == pytest.approx(1, rel=0.02)
    for low, value, high in zip(density.lower, density.values, density.upper, strict=True):
        assert low <= value <= high


def test_every_layer_has_its_own_block(tmp_path: Path) -> None:
    minimum, dense = measured(tmp_path / "a")
    spec = surfaces.network().spec
    assert [layer.name for layer in minimum.layers] == list(spec.layers)
    assert sum(layer.size for layer in minimum.layers) == spec.dim
    for number, layer in enumerate(minimum.layers):
        inside = spec.layer_ids == number
        block = dense[inside][:, inside]
        assert layer.size == len(block)
        assert float(block.trace()) in layer.trace
        assert float(torch.linalg.eigvalsh(block)[-1]) <= layer.top.upper + 1e-9
        assert float(torch.linalg.eigvalsh(block)[-1]) >= layer.top.lower - 1e-9
        each = layer.trace_per_parameter
        assert each.value == pytest.approx(layer.trace.value / layer.size)
        assert each.half_width == pytest.approx(layer.trace.half_width / layer.size)


def test_what_is_not_wanted_is_not_measured(tmp_path: Path) -> None:
    whole, _ = measured(tmp_path / "whole")
    assert whole.spectrum is not None
    plain, _ = measured(tmp_path / "plain", curvature_probes=0)
    assert (plain.spectrum, plain.layers) == (None, ())
    assert plain.eigenvalues is not None
    assert whole.eigenvalues is not None
    assert plain.eigenvalues.values == pytest.approx(whole.eigenvalues.values, rel=1e-3)
    assert plain.trace is not None
    flat, _ = measured(tmp_path / "flat", layers=False)
    assert flat.layers == ()
    assert flat.spectrum is not None
    few, _ = measured(tmp_path / "few", trace_samples=0)
    assert few.trace is None
    assert few.spectrum is not None
    none, _ = measured(tmp_path / "none", eigenvalues=0, trace_samples=0)
    assert (none.eigenvalues, none.trace, none.spectrum, none.layers) == (None, None, None, ())


def test_outliers_are_what_stands_apart() -> None:
    values = torch.cat([torch.linspace(-0.5, 1, 500), torch.tensor([9.0, 7.0, -6.0])]).double()
    operator = MatrixOperator(torch.diag(values))
    deflated = density_record(
        spectral_density(operator, probes=4, steps=30, deflate=4, method="quadrature", seed=0)
    )
    assert deflated.outliers.values == pytest.approx((9.0, 7.0, -6.0))
    exact = density_record(spectral_density(operator, method="dense", seed=0))
    assert exact.outliers.values == pytest.approx((9.0, 7.0, -6.0))
    assert all(
        low <= value <= high
        for low, value, high in zip(
            exact.outliers.lower, exact.outliers.values, exact.outliers.upper, strict=True
        )
    )
    bulk = density_record(spectral_density(MatrixOperator(torch.eye(50).double()), seed=0))
    assert bulk.outliers.values == ()
    assert math.isfinite(max(bulk.values))
