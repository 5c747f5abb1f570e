"""Log-determinants, effective dimensions and norms against dense truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thalweg.curvature import (
    Hessian,
    MatrixOperator,
    effective_dimension,
    frobenius_norm,
    log_determinant,
    spectral_density,
)
from thalweg.estimate import from_json


def definite(matrix):
    A = MatrixOperator(matrix)
    A.definite = True
    return A


def truth(matrix, function):
    return float(function(torch.linalg.eigvalsh(matrix.double())).sum())


def test_small_matrices_are_exact(net):
    point = net()
    dense = point.dense()
    with Hessian(point.land, point.theta) as H:
        norm = frobenius_norm(H, probes=80, seed=0)
        dimension = effective_dimension(H, alpha=0.01, seed=0)
        volume = log_determinant(H, shift=0.01, part="positive", seed=0)
        assert norm.cost.hvps == dimension.cost.hvps == H.dim
        assert norm.cost.passes <= 4  # three blocks and the opening of the point
    assert norm.value == pytest.approx(float(torch.linalg.matrix_norm(dense)), rel=1e-12)
    exact = truth(dense, lambda x: x.clamp_min(0) / (x.clamp_min(0) + 0.01))
    assert dimension.value == pytest.approx(exact, rel=1e-12)
    assert exact in dimension
    exact = truth(dense, lambda x: (x.clamp_min(0) + 0.01).log())
    assert volume.value == pytest.approx(exact, rel=1e-10)
    assert volume.stderr == 0
    assert volume.half_width < 1e-6
    assert from_json(volume.to_json()) == volume
    assert "exact" in volume.method


def test_certified_bracket_of_the_quadrature(net):
    """Few steps on a positive semidefinite matrix: the bracket must carry the error."""
    matrix = net().gauss_newton()
    matrix = (matrix + matrix.T) / 2
    values = torch.linalg.eigvalsh(matrix).clamp_min(0)
    for shift in (1e-2, 1e-1):
        wide = []
        for steps in (3, 6, 12):
            rho = spectral_density(
                definite(matrix), steps=steps, probes=16, method="quadrature", seed=1
            )
            found = rho.log_determinant(shift)
            assert "certified, Gauss-Radau" in found.method
            assert float((values + shift).log().sum()) in found
            soft = rho.effective_dimension(shift)
            assert float((values / (values + shift)).sum()) in soft
            wide.append(found.half_width)
        assert wide[0] > wide[1] > wide[2]
    blind = spectral_density(MatrixOperator(matrix), steps=16, method="quadrature", seed=1)
    assert "estimated, from fewer steps" in blind.log_determinant(0.1).method


def test_one_set_of_products_serves_all(with_spectrum):
    A = with_spectrum(np.linspace(0.1, 3, 800))
    rho = spectral_density(A, steps=20, seed=3)
    spent = A.cost
    answers = [
        rho.trace(),
        rho.frobenius_norm(),
        rho.log_determinant(0.5),
        rho.effective_dimension(0.5),
    ]
    assert A.cost == spent
    values = np.linspace(0.1, 3, 800)
    exact = [
        values.sum(),
        np.linalg.norm(values),
        np.log(values + 0.5).sum(),
        (values / (values + 0.5)).sum(),
    ]
    for answer, number in zip(answers, exact, strict=True):
        assert float(number) in answer
        assert answer.seed == 3
        assert answer.samples == 10
        assert answer.half_width < 0.05 * abs(number)


def test_first_and_second_moments_are_exact_after_one_and_two_steps(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 200))
    short, long = (
        spectral_density(A, steps=s, deflate=0, method="quadrature", seed=5) for s in (2, 40)
    )
    assert short.trace().value == pytest.approx(long.trace().value, rel=1e-9)
    assert short.frobenius_norm().value == pytest.approx(long.frobenius_norm().value, rel=1e-9)
    one = spectral_density(A, steps=1, deflate=0, method="quadrature", seed=5)
    assert one.trace().value == pytest.approx(long.trace().value, rel=1e-9)
    assert "estimated" in one.frobenius_norm().method


def test_indefinite_matrices_have_no_log_determinant(with_spectrum):
    A = with_spectrum([*np.linspace(0, 1, 199), -0.5])
    with pytest.raises(ValueError, match=r"an eigenvalue lies certainly at or below -0\.5"):
        log_determinant(A, shift=0.1, seed=0)
    rho = spectral_density(A, steps=30, method="quadrature", deflate=0, seed=0)
    with pytest.raises(ValueError, match="part='positive'"):
        rho.log_determinant(0.1)
    assert truth(A.matrix, lambda x: (x + 0.6).log()) in rho.log_determinant(0.6)
    positive = rho.log_determinant(0.1, part="positive")
    assert truth(A.matrix, lambda x: (x.clamp_min(0) + 0.1).log()) in positive
    assert "negative eigenvalues put to zero" in positive.method
    singular = MatrixOperator(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="within rounding at or below 0"):
        log_determinant(singular, shift=0.0)
    assert log_determinant(singular, shift=2.0).value == pytest.approx(3 * np.log(2))


def test_repeated_eigenvalues_and_low_rank(with_spectrum):
    """A constant is integrated without noise, however few the probes."""
    A = with_spectrum([2.0] * 5 + [0.0] * 300)
    rho = spectral_density(A, steps=10, probes=4, method="quadrature", seed=0)
    assert len(rho.atoms) == 10 or len(rho.atoms) == 5
    found = rho.log_determinant(0.1)
    exact = 5 * np.log(2.1) + 300 * np.log(0.1)
    assert found.value == pytest.approx(exact, rel=1e-9)
    assert found.half_width < 1e-3


def test_float32(net):
    point = net(torch.float32)
    exact = float(torch.linalg.matrix_norm(point.dense()))
    H = Hessian(point.land, point.theta)
    assert exact in frobenius_norm(H, seed=0)
    assert exact in frobenius_norm(H, probes=80, seed=0)


def test_what_cannot_be(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 20))
    with pytest.raises(ValueError, match=r"alpha=0\.0 must be a positive number"):
        effective_dimension(A, alpha=0.0)
    with pytest.raises(ValueError, match="part must be 'all' or 'positive', not 'some'"):
        log_determinant(A, shift=1.0, part="some")
    with pytest.raises(ValueError, match=r"shift=-1\.0 must be a positive number"):
        log_determinant(A, shift=-1.0, part="positive")
    with pytest.raises(ValueError, match="probes=2 is too few"):
        frobenius_norm(A, probes=2)
