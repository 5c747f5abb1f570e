"""The sketches against what they are defined by: dense approximations, vector by vector."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from thalweg.curvature import MatrixOperator, trace
from thalweg.curvature.crossfit import correct, cross_products, guesses
from thalweg.curvature.sketch import nystrom_trace, orthonormal, range_trace

UNIT = torch.finfo(torch.float64).eps


def normals(dim, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, count, generator=generator, dtype=torch.float64)


def nystrom(matrix, vectors):
    y = matrix @ vectors
    return y @ torch.linalg.pinv(vectors.T @ y, hermitian=True, rtol=1e-13) @ y.T


def compressed(matrix, vectors):
    q = torch.linalg.qr(matrix @ vectors)[0]
    return q @ (q.T @ matrix @ q) @ q.T


def leave_one_out(matrix, vectors, approximate, known):
    """The definition: each vector measures what the others' approximation misses."""
    dim, k = vectors.shape
    found = []
    for i in range(k):
        rest = torch.cat([vectors[:, :i], vectors[:, i + 1 :]], dim=1)
        guess, one = approximate(matrix, rest), vectors[:, i]
        q = torch.linalg.qr(known(matrix, rest))[0]
        one = one - q @ (q.T @ one)
        form = one @ (matrix - guess) @ one if known is itself else one @ matrix @ one
        found.append(float(guess.trace() + (dim - k + 1) * form / (one @ one)))
    return np.array(found)


def itself(matrix, vectors):
    return vectors


def image(matrix, vectors):
    return matrix @ vectors


def sketched(matrix, vectors, kind):
    products = matrix @ vectors
    if kind == "nystrom":
        return nystrom_trace(vectors, products, UNIT)
    basis = orthonormal(products, UNIT)
    return range_trace(vectors, products, basis, matrix @ basis.vectors)


NAIVE = {"nystrom": (nystrom, itself), "range": (compressed, image)}
SPECTRA = {
    "algebraic": 1 / torch.arange(1, 41).double() ** 2,
    "flat": torch.linspace(1, 2, 40).double(),
    "both signs": (-1.0) ** torch.arange(40).double() / torch.arange(1, 41).double(),
}


@pytest.mark.parametrize(
    ("kind", "spectrum"),
    [
        ("nystrom", "algebraic"),
        ("nystrom", "flat"),
        ("range", "algebraic"),
        ("range", "flat"),
        ("range", "both signs"),
    ],
)
def test_every_leave_one_out_estimate_is_what_it_says(with_spectrum, kind, spectrum):
    matrix, vectors = with_spectrum(SPECTRA[spectrum]).matrix, normals(40, 9)
    found = sketched(matrix, vectors, kind)
    expected = leave_one_out(matrix, vectors, *NAIVE[kind])
    np.testing.assert_allclose(found.estimates.numpy(), expected, rtol=1e-10)
    assert found.value == pytest.approx(expected.mean(), rel=1e-12)
    for i in range(9):
        rest = torch.cat([vectors[:, :i], vectors[:, i + 1 :]], dim=1)
        fewer = leave_one_out(matrix, rest, *NAIVE[kind]).mean()
        assert float(found.without[i]) == pytest.approx(fewer, rel=1e-9)
    assert found.textbook == pytest.approx(expected.std(ddof=1) / 3)
    spread = found.without.numpy() - found.without.numpy().mean()
    assert found.jackknife == pytest.approx(math.sqrt(8 / 9 * (spread**2).sum()))


def test_slabs_of_rows_change_nothing(with_spectrum, monkeypatch):
    from thalweg.curvature import crossfit, sketch

    matrix, vectors = with_spectrum(SPECTRA["algebraic"]).matrix, normals(40, 9)
    whole = sketched(matrix, vectors, "nystrom")
    grams = cross_products(vectors, matrix @ vectors)
    monkeypatch.setattr(sketch, "_ROWS", 7)
    monkeypatch.setattr(crossfit, "_ROWS", 7)
    torch.testing.assert_close(sketched(matrix, vectors, "nystrom").without, whole.without)
    torch.testing.assert_close(cross_products(vectors, matrix @ vectors), grams)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["xnystrace", "xtrace"])
def test_low_rank_is_exact(with_spectrum, method, dtype):
    """curvlinops' XTrace divides by a singular matrix here."""
    A = with_spectrum([3.0, 2.0, 2.0, 1.0, *[0.0] * 146], dtype)
    for seed in range(10):
        found = trace(A, samples=40, method=method, seed=seed)
        assert float(A.matrix.double().trace()) in found
        assert found.half_width < 1e6 * torch.finfo(dtype).eps
    zero = MatrixOperator(torch.zeros(150, 150, dtype=dtype))
    found = trace(zero, samples=40, method=method, seed=0)
    assert (found.value, found.interval) == (0, (0, 0))


def test_the_identity_is_exact():
    """A remainder without a direction: only the lengths of the vectors are random."""
    found = trace(MatrixOperator(torch.eye(150).double(), definite=True), seed=0)
    assert found.value == pytest.approx(150, rel=1e-12)
    assert 150.0 in found


def test_a_rank_that_is_a_little_above_the_number_of_vectors(with_spectrum):
    A = MatrixOperator(with_spectrum([1.0] * 33 + [0.0] * 117).matrix, definite=True)
    truth = float(A.matrix.trace())
    assert sum(truth in trace(A, samples=32, seed=s) for s in range(40)) >= 34


def test_float32_covers_the_float64_trace(net):
    A = MatrixOperator(net().gauss_newton().float(), definite=True)
    truth = float(A.matrix.double().trace())
    for method in ("xnystrace", "xtrace", "crossfit"):
        found = [trace(A, samples=96, method=method, seed=s) for s in range(20)]
        assert sum(truth in f for f in found) >= 17
        assert np.median([f.half_width for f in found]) < 0.02 * truth


@pytest.mark.slow
def test_unbiased(net):
    A = MatrixOperator(net().gauss_newton())
    truth = float(A.matrix.trace())
    for method in ("xnystrace", "xtrace", "crossfit"):
        found = np.array([trace(A, samples=32, method=method, seed=s).value for s in range(100)])
        assert abs(found.mean() - truth) < 4 * found.std() / 10


def test_what_is_not_positive_semidefinite_is_refused():
    matrix = torch.diag(torch.linspace(-0.1, 1, 60)).double()
    with pytest.raises(ValueError, match=r"but is not: a direction.*method='hutchinson'"):
        nystrom_trace(normals(60, 50), matrix @ normals(60, 50), UNIT)


def test_a_guess_of_full_rank_is_the_matrix(with_spectrum):
    """Where half the vectors see all of the matrix, the control equals the form's error."""
    matrix = with_spectrum([4.0, -3.0, 2.0] + [0.0] * 57).matrix
    vectors = (normals(60, 40) > 0).double() * 2 - 1
    products = matrix @ vectors
    crossed, gram = cross_products(vectors, products)
    for guess in guesses(crossed, gram):
        full = products @ guess.core @ products.T
        torch.testing.assert_close(full, matrix, atol=1e-9, rtol=0)
        forms = guess.forms(crossed, crossed)
        torch.testing.assert_close(forms, (vectors * products).sum(0)[guess.users])
        assert not set(guess.users.tolist()) & set(guess.core.any(0).nonzero()[:, 0].tolist())


def test_controls_that_say_nothing_are_left_alone():
    samples, noise = normals(50, 1)[:, 0], normals(50, 1, seed=1)[:, 0]
    same, corrected = correct(samples, noise)
    assert not corrected
    assert same is samples
    better, corrected = correct(samples + 3 * noise, noise)
    assert corrected
    assert float(better.std()) < 1.1 * float(samples.std())
    constant = torch.ones(50).double()
    assert correct(constant, 0 * constant)[1] is False
