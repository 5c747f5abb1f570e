"""The spherical p-spin landscape, against closed forms, a naive einsum and autograd."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from thalweg.theory.spin_glass.mixture import Mixture
from thalweg.theory.spin_glass.model import SphericalPSpin

sys.path.insert(0, str(Path(__file__).parents[2] / "landscape"))
from conformance import CHECKS, Case, name_of  # which lies beside the landscapes' tests

F64 = torch.float64


def naive(glass):
    """H of one vector: each dense tensor, contracted index by index in float64."""
    tensors = [glass.tensor(degree).double() for degree in glass.degrees]

    def hamiltonian(sigma):
        total = torch.zeros((), dtype=F64)
        for tensor in tensors:
            letters = "abcdefgh"[: tensor.ndim]
            total = total + torch.einsum(
                ",".join([letters, *letters]), tensor, *tensor.ndim * [sigma]
            )
        return total

    return hamiltonian


def energy(glass):
    """The degree-zero extension, written with the naive H."""
    hamiltonian, n = naive(glass), glass.n
    return lambda theta: hamiltonian(math.sqrt(n) * theta / theta.norm()) / n


def points(glass, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([glass.start(generator) for _ in range(count)])


GLASSES = {
    "p=2": (5, 2, {}),
    "p=3": (6, 3, {}),
    "p=4": (5, 4, {}),
    "p=5": (3, 5, {}),
    "mixed": (5, {1: 2.0, 2: 0.5, 3: 1.0, 4: 0.7}, {}),
    "field": (4, {1: 1.0, 2: 1.0}, {}),
    "slabs": (70, 3, {}),
    "slabs p=4": (66, {2: 1.0, 3: 1.0}, {"dtype": torch.float32}),
    "float32": (6, {1: 1.0, 3: 1.0}, {"dtype": torch.float32}),
    "one replica at once": (70, 3, {"memory": SphericalPSpin.bytes_needed(70, 3)}),
}


def make(name):
    n, p, options = GLASSES[name]
    return SphericalPSpin(n, p, 3, **options)


LARGE = {"slabs", "slabs p=4", "one replica at once"}
EVERY = [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in GLASSES]


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize(
    "name",
    ["mixed", *(pytest.param(n, marks=pytest.mark.slow) for n in ("p=3", "slabs", "float32"))],
)
def test_it_keeps_every_promise_of_a_landscape(name, check):
    glass = make(name)
    tolerance = 1e-9 if glass.dtype == F64 else 2e-5
    check(Case(name, glass, energy(glass), 1.3 * points(glass, 1)[0], tolerance))


@pytest.mark.parametrize("name", EVERY)
def test_hamiltonian_gradient_and_hessian_are_those_of_a_naive_einsum(name):
    glass = make(name)
    truth, sigma = naive(glass), points(glass, 3)
    tight = {"rtol": 1e-9, "atol": 1e-10} if glass.dtype == F64 else {"rtol": 1e-4, "atol": 1e-4}
    for s, value, flat, curved in zip(
        sigma.double(),
        glass.hamiltonian(sigma).double(),
        glass.riemannian_gradient(sigma).double(),
        glass.riemannian_hessian(sigma).double(),
        strict=True,
    ):
        slope = torch.func.grad(truth)(s)
        plane = torch.eye(glass.n, dtype=F64) - torch.outer(s, s) / glass.n
        hessian = (
            plane @ torch.autograd.functional.hessian(truth, s) @ plane
            - (s @ slope / glass.n) * plane
        )
        torch.testing.assert_close(value, truth(s), **tight)
        torch.testing.assert_close(flat, plane @ slope, **tight)
        torch.testing.assert_close(curved, hessian, **tight)
        assert torch.equal(curved, curved.T)


@pytest.mark.parametrize("name", EVERY)
def test_each_replica_has_its_own_product_and_shares_the_pass(name):
    glass = make(name)
    theta = 0.4 * points(glass, 6).reshape(2, 3, -1)
    vectors = points(glass, 6, seed=1).reshape(2, 3, -1)
    before = glass.cost
    values, slopes, products = glass.value_gradient_and_hvp(theta, vectors)
    spent = glass.cost - before
    assert (spent.losses, spent.gradients, spent.hvps, spent.passes) == (6, 6, 6, 1)
    tight = {"rtol": 1e-10, "atol": 1e-11} if glass.dtype == F64 else {"rtol": 2e-4, "atol": 2e-4}
    torch.testing.assert_close(products, glass.hvps(theta, vectors), rtol=0, atol=0)
    for i in range(2):
        for j in range(3):
            with glass.at(theta[i, j]) as point:
                torch.testing.assert_close(values[i, j], point.loss, **tight)
                torch.testing.assert_close(slopes[i, j], point.gradient, **tight)
                torch.testing.assert_close(products[i, j], point.hvp(vectors[i, j]), **tight)


@pytest.mark.parametrize("name", GLASSES)
def test_the_norm_of_a_tensor_is_known_without_it(name):
    glass = make(name)
    assert glass.degrees == tuple(degree for degree, _ in glass.mixture.amplitudes)
    for degree in glass.degrees:
        exact = float(glass.tensor(degree).double().norm())
        assert glass.tensor_norm(degree) == pytest.approx(exact, rel=1e-12)
    with pytest.raises(ValueError, match=r"this spin glass has the degrees \[.*\], not 9"):
        glass.tensor_norm(9)


def test_small_n_and_a_large_degree_against_the_einsum():
    glass = SphericalPSpin(8, 6, 0)
    sigma = points(glass, 2)
    vectors = points(glass, 2, seed=1)
    for theta, v, value, flat, curved in zip(
        sigma, vectors, *glass.value_gradient_and_hvp(sigma, vectors), strict=True
    ):
        along = glass.tensor(6)
        for _ in range(4):
            along = along @ theta
        slope = 6 * along @ theta
        axis = theta / math.sqrt(8)
        torch.testing.assert_close(value, slope @ theta / 48)
        torch.testing.assert_close(flat, (slope - slope @ axis * axis) / 8)
        # by hand: P F P v - (w.g) P v - Pg (w.v) - w (Pg.v) at radius sqrt(8)
        g = slope / math.sqrt(8)
        plane = torch.eye(8, dtype=F64) - torch.outer(axis, axis)
        pv = plane @ v
        exact = plane @ (30 * along @ pv) - (axis @ g) * pv
        exact = exact - (plane @ g) * (axis @ v) - axis * (plane @ g @ v)
        torch.testing.assert_close(curved, exact / 8)


@pytest.mark.parametrize("p", [3, 4, 7])
def test_two_spins_are_a_trigonometric_polynomial(p):
    """At n = 2, H(phi) = 2^(p/2) sum_k C(p, k) T_k cos^(p-k) sin^k, of covariance 2 cos^p."""
    glass = SphericalPSpin(2, p, 5)
    phi = torch.linspace(0, 2 * math.pi, 40, dtype=F64)
    tensor, circle = glass.tensor(p), torch.stack([phi.cos(), phi.sin()], 1)
    wave = torch.zeros_like(phi)
    slope = torch.zeros_like(phi)
    for k in range(p + 1):
        entry = tensor[(0,) * (p - k) + (1,) * k] * math.comb(p, k) * 2 ** (p / 2)
        wave += entry * phi.cos() ** (p - k) * phi.sin() ** k
        slope -= entry * (p - k) * phi.cos() ** max(p - k - 1, 0) * phi.sin() ** (k + 1)
        slope += entry * k * phi.cos() ** (p - k + 1) * phi.sin() ** max(k - 1, 0)
    torch.testing.assert_close(glass.loss(3 * circle), wave / 2)
    around = torch.stack([-phi.sin(), phi.cos()], 1)
    torch.testing.assert_close((glass.gradient(circle) * around).sum(1), slope / 2)
    variances = [2.0**p * math.comb(p, k) * 2.0 ** (1 - p) for k in range(p + 1)]
    angle = 0.7  # what the entries' variances say of the process
    covariance = sum(v * math.cos(angle) ** (p - k) * 0.0**k for k, v in enumerate(variances))
    assert covariance == pytest.approx(2 * math.cos(angle) ** p)


@pytest.mark.parametrize("seed", range(3))
def test_p_2_is_the_quadratic_form_of_a_gaussian_orthogonal_matrix(seed):
    glass = SphericalPSpin(30, 2, seed)
    values, vectors = torch.linalg.eigh(glass.tensor(2))
    torch.testing.assert_close(glass.energy(vectors.T), values)  # the energies of 2n points
    assert float(glass.gradient(vectors.T).abs().max()) < 1e-13
    sigma = glass.project(vectors[:, 4])
    found = torch.linalg.eigvalsh(glass.riemannian_hessian(sigma))
    gaps = torch.cat([2 * (values - values[4])[:4], 2 * (values - values[4])[4:]])
    torch.testing.assert_close(found, gaps.sort().values, rtol=1e-10, atol=1e-12)


def test_the_matrix_of_p_2_has_the_variances_of_the_ensemble():
    """Off-diagonal 1/(2n), diagonal 1/n: support [-sqrt 2, sqrt 2]."""
    matrix = SphericalPSpin(200, 2, 0).tensor(2)
    above = matrix[*torch.triu_indices(200, 200, 1)]
    for entries, variance in ((above, 1 / 400), (matrix.diagonal(), 1 / 200)):
        total = float((entries**2).sum()) / variance
        assert chi2.ppf(1e-4, len(entries)) < total < chi2.ppf(1 - 1e-4, len(entries))
    assert torch.linalg.eigvalsh(matrix).abs().max() == pytest.approx(math.sqrt(2), abs=0.1)


@settings(max_examples=12)
@given(
    st.integers(1, 7),
    st.sampled_from([2, 3, 4, {1: 1.0, 2: 0.3, 3: 2.0}]),
    st.floats(-30, 30).map(lambda power: 10**power),
    st.integers(0, 10**6),
)
def test_the_extension_is_homogeneous_of_degree_zero(n, p, factor, seed):
    glass = SphericalPSpin(n, p, seed)
    theta, v = points(glass, 2, seed=seed)
    slope = glass.gradient(theta)
    torch.testing.assert_close(glass.loss(factor * theta), glass.loss(theta), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        factor * glass.gradient(factor * theta), slope, rtol=1e-7, atol=1e-11
    )
    torch.testing.assert_close(
        factor**2 * glass.hvps(factor * theta, v), glass.hvps(theta, v), rtol=1e-7, atol=1e-10
    )
    scale = 1 + float(slope.norm())
    assert abs(float(slope @ theta)) < 1e-10 * scale  # Euler, of degree 0
    # and differentiated once more: theta' d2u = - du
    torch.testing.assert_close(glass.hvps(theta, theta), -slope, rtol=1e-7, atol=1e-10)


@settings(max_examples=10)
@given(st.integers(2, 8), st.sampled_from([2, 3, 5, {1: 1.0, 3: 1.0}]), st.integers(0, 10**6))
def test_the_riemannian_hessian_has_the_point_in_its_kernel(n, p, seed):
    glass = SphericalPSpin(n, p, seed)
    sigma = points(glass, 2, seed=seed)
    hessians = glass.riemannian_hessian(sigma)
    assert float((hessians @ sigma[..., None]).abs().max()) < 1e-10 * (1 + hessians.abs().max())
    gradients = glass.riemannian_gradient(sigma)
    assert float((gradients * sigma).sum(-1).abs().max()) < 1e-10 * (1 + gradients.abs().max())


@pytest.mark.parametrize(
    "p", [{1: 1.5, 3: 1.0}, *(pytest.param(p, marks=pytest.mark.slow) for p in (3, 4))]
)
def test_every_tangent_component_of_the_gradient_has_variance_xi_prime(p):
    n, total, freedom = 12, 0.0, 0
    for seed in range(25):
        glass = SphericalPSpin(n, p, seed)
        total += float(glass.riemannian_gradient(points(glass, 1)[0]).norm()) ** 2
        freedom += n - 1
    low, high = chi2.ppf([1e-4, 1 - 1e-4], freedom)
    slope = Mixture.of(p).slope(1.0)
    assert low < total / slope < high
    assert not low < total / (slope / 2) < high


@pytest.mark.parametrize("p", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_hessian_given_the_energy_is_a_shifted_gaussian_orthogonal_matrix(p):
    """Facts B5: its tangent part + p u I is sqrt(p (p-1)) G, of off-diagonal variance 1/n."""
    n, traces, squares = 10, [], 0.0
    for seed in range(30):
        glass = SphericalPSpin(n, p, seed)
        sigma = torch.zeros(n, dtype=F64)
        sigma[0] = math.sqrt(n)
        part = glass.riemannian_hessian(sigma)[1:, 1:]
        part = part + p * glass.energy(sigma) * torch.eye(n - 1, dtype=F64)
        traces.append(float(part.trace()))
        squares += float((part[*torch.triu_indices(n - 1, n - 1, 1)] ** 2).sum())
    variance = p * (p - 1) / n
    count = 30 * (n - 1) * (n - 2) // 2
    low, high = chi2.ppf([1e-4, 1 - 1e-4], count)
    assert low < squares / variance < high
    total = sum(x * x for x in traces) / (2 * variance * (n - 1))
    low, high = chi2.ppf([1e-4, 1 - 1e-4], 30)
    assert low < total < high


def test_starts_are_uniform_on_the_sphere():
    glass = SphericalPSpin(6, 3, 0, dtype=torch.float32)
    starts = points(glass, 400)
    torch.testing.assert_close(starts.norm(dim=1), torch.full((400,), math.sqrt(6)))
    # each |sigma . e|^2 has mean 1 and variance 2 (n - 1) / (n + 2)
    assert float(((starts**2).mean(0) - 1).abs().max()) < 4.5 * math.sqrt(10 / 8 / 400)
    assert float(starts.mean(0).abs().max()) < 4.5 / 20


def test_zero_is_nan_in_a_batch_and_refused_alone():
    glass = SphericalPSpin(4, 3, 0)
    theta = points(glass, 3)
    theta[1] = 0
    values, slopes = glass.value_and_gradient(theta)
    assert values.isnan().tolist() == [False, True, False]
    assert slopes.isnan().all(1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"theta is zero.*no direction"), glass.at(theta[1]):
        pass


def test_given_tensors_are_taken_as_they_are():
    drawn = make("mixed")
    copied = SphericalPSpin.from_tensors({d: drawn.tensor(d) for d in drawn.degrees})
    theta = points(drawn, 3)
    torch.testing.assert_close(copied.gradient(theta), drawn.gradient(theta))
    assert copied.mixture is copied.seed is copied.p is None
    assert (drawn.p, make("p=3").p) == (None, 3)
    large = make("slabs")
    again = SphericalPSpin.from_tensors({3: large.tensor(3)})
    assert torch.equal(again.tensor(3), large.tensor(3))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"degree of at least 2, got \[\]"),
        ({1: torch.ones(3)}, r"degree of at least 2, got \[1\]"),
        ({2: torch.ones(3, 2)}, r"degree 2 must have shape \(3, 3\), not \(3, 2\)"),
        ({2: torch.eye(3), 1: torch.ones(2)}, r"degree 1 must have shape \(3,\)"),
        ({2: torch.eye(3), 1: torch.ones(3, dtype=F64)}, "one dtype and device"),
        ({2: torch.eye(2) * float("nan")}, "NaN or infinite"),
        ({2: torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, "exchanging the indices 0 and 1 .* 2;"),
    ],
)
def test_tensors_that_are_none_are_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        SphericalPSpin.from_tensors(tensors)


def test_what_does_not_fit_is_told_before_it_is_taken():
    least = SphericalPSpin.bytes_needed(100, 3)
    assert SphericalPSpin(100, 3, 0, memory=least).n == 100
    with pytest.raises(MemoryError, match=r"need .* MiB in torch\.float64, above the cap") as told:
        SphericalPSpin(100, 3, 0, memory=least - 1)
    assert "n = 99 would fit, and so would this n with dtype=torch.float32" in str(told.value)
    with pytest.raises(MemoryError, match=r"n = \d+ would fit \(\d+ with dtype=torch.float32\)"):
        SphericalPSpin(5000, 3, 0)
    with pytest.raises(MemoryError, match=r"degrees \[3, 4\].* n = \d+ would fit, or raise"):
        SphericalPSpin(1000, {3: 1.0, 4: 1.0}, 0, dtype=torch.float32)
    assert SphericalPSpin.bytes_needed(1000, 3, dtype=torch.float32) < 2.3 * 2**30


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="at least one spin, got n = 0"):
        SphericalPSpin(0, 3, 0)
    with pytest.raises(ValueError, match=r"float32 or torch\.float64, got torch\.float16"):
        SphericalPSpin(3, 3, 0, dtype=torch.float16)
    with pytest.raises(ValueError, match="degree of at least 2"):
        SphericalPSpin(3, 1, 0)
    with pytest.raises(ValueError, match=r"the degrees \[1, 3\], not 2"):
        SphericalPSpin(3, {1: 1.0, 3: 1.0}, 0).tensor(2)
    text = str(SphericalPSpin(20, {1: 2.0, 3: 1.0}, 9))
    assert text.startswith("spherical spin glass of 20 spins, xi(q) = 4 q + q^3, seed 9, 0.0")
    assert "given tensors" in str(SphericalPSpin.from_tensors({2: torch.eye(2)}))


MEASURED = """
import pathlib, sys, torch
from thalweg.theory.spin_glass.model import SphericalPSpin
torch.set_num_threads(1)
n, replicas, cap = map(int, sys.argv[1:])
def peak():  # ru_maxrss would begin at the parent's
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
def use(glass):
    theta = torch.randn(replicas, glass.n, dtype=torch.float64)
    assert all(x.isfinite().all() for x in glass.value_gradient_and_hvp(theta, theta.flip(0)))
    with glass.at(theta[0]) as point:
        point.hvp(theta)
use(SphericalPSpin(80, 3, 0))
before = peak()
use(SphericalPSpin(n, 3, 0, memory=cap))
print(peak() - before)
"""


@pytest.mark.slow
def test_the_memory_that_is_taken_is_the_memory_that_was_told():
    n, replicas = 320, 300
    told = SphericalPSpin.bytes_needed(n, 3)
    run = [sys.executable, "-c", MEASURED, str(n), str(replicas), str(told + 8 * 2**20)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    taken = int(done.stdout)
    vectors = 12 * replicas * n * 8  # arguments, results and sums of their size
    assert taken <= told + vectors + 24 * 2**20
    assert taken >= 0.5 * n**3 * 8  # it saw the tensor at all; a dense one would take 262 MB
    assert told < 0.75 * n**3 * 8
