"""Critical points by search: all of them where they are known, proven, and none that is flat."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from thalweg.estimate import good_turing
from thalweg.landscape import FunctionLandscape
from thalweg.theory.spin_glass.complexity import ground_state_energy
from thalweg.theory.spin_glass.enumeration import enumerate_critical_points
from thalweg.theory.spin_glass.kantorovich import certify_points
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.newton import newton
from thalweg.theory.spin_glass.search import find_critical_points
from thalweg.theory.spin_glass.spectra import index_fraction
from thalweg.theory.spin_glass.sphere import (
    eigensystem,
    energy_and_gradient,
    hessian_lipschitz,
    on_sphere,
    riemannian_hessian,
    tangent,
)
from thalweg.theory.spin_glass.thresholds import threshold_energy


def plain(glass):
    """The same spin glass as a function that only autograd knows."""
    tensors = {degree: glass.tensor(degree) for degree, _ in glass.mixture.amplitudes}

    def u(x):
        sigma = on_sphere(x)
        total = 0.0
        for degree, tensor in tensors.items():
            out = tensor
            for _ in range(degree):
                out = out @ sigma
            total = total + out
        return total / glass.n

    return FunctionLandscape(u, glass.n)


def flat_circle():
    """A function on the circle whose gradient is least, and not zero, a quarter turn away."""

    def u(x):
        c = x[0] / torch.linalg.vector_norm(x)
        return c + 0.1 * (4 * c**3 - 3 * c)

    return FunctionLandscape(u, 2)


def test_a_quadratic_form_gives_all_its_eigenvectors():
    glass = SphericalPSpin(6, 2, seed=3)
    values, vectors = torch.linalg.eigh(glass.tensor(2))
    found = find_critical_points(glass, starts=150, seed=1)
    assert len(found) == 12
    assert found.counts == dict.fromkeys(range(6), 2)
    assert found.certificate == "certified"
    assert torch.allclose(found.energies, values.repeat_interleave(2), atol=1e-12)
    along = (found.points @ vectors / math.sqrt(6)).abs()
    assert torch.allclose(along, torch.eye(6).double().repeat_interleave(2, dim=0), atol=1e-9)
    assert found.unseen.value == 0
    assert 0 < found.unseen.interval[1] < 0.05


@pytest.mark.slow
def test_small_cubic_forms_agree_with_a_complete_enumeration():
    glass = SphericalPSpin(5, 3, seed=1)
    found = find_critical_points(glass, starts=200, seed=0)
    truth = enumerate_critical_points(glass, seed=0)
    assert found.euler == 2
    assert np.allclose(found.energies, np.sort(truth.energies), atol=1e-9)
    assert sorted(found.indices.tolist()) == sorted(np.asarray(truth.indices).tolist())


def test_a_complete_list_says_so_and_proves_it():
    glass = SphericalPSpin(3, 3, seed=1)
    copy = SphericalPSpin.from_tensors({3: glass.tensor(3)})
    every = find_critical_points(copy, complete=True, seed=0)
    assert every.complete
    assert (every.certificate, every.euler) == ("certified", 2)
    assert "all there are: 7 of 7 complex classes proven to exist and to differ" in str(every)
    assert every.unseen.interval == (0.0, 0.0)
    assert torch.equal(every.energies, every.energies.sort().values)
    searched = find_critical_points(glass, starts=25, seed=0)
    assert not searched.complete
    both = every.join(searched)
    assert both.complete
    assert len(both) == len(every)
    assert int(both.found.sum()) == int(searched.found.sum())
    some = find_critical_points(glass, complete=True, index=0, seed=0, keep_spectra=False)
    assert some.complete
    assert some.counts == {0: every.counts[0]}
    assert json.loads(json.dumps(every.to_json()))["complete"] is True
    assert not searched.join(searched).complete


def test_at_p_2_a_complete_list_are_the_eigenvectors():
    glass = SphericalPSpin(20, 2, seed=3)
    every = find_critical_points(glass, complete=True, seed=0)
    assert every.complete
    assert every.counts == dict.fromkeys(range(20), 2)
    values = torch.linalg.eigvalsh(glass.tensor(2)).repeat_interleave(2)
    assert torch.allclose(every.energies, values, atol=1e-12)
    assert "by eigenvectors of a matrix" in str(every)
    double = SphericalPSpin.from_tensors({2: torch.diag(torch.tensor([1.0, 1.0, 3.0]).double())})
    some = find_critical_points(double, complete=True, seed=0)
    assert not some.complete
    assert "NOT PROVEN COMPLETE: 2 of 3 complex classes were not found" in str(some)


def test_a_gradient_flat_point_is_rejected():
    land = flat_circle()
    turn = torch.tensor([math.pi / 2 + d for d in (-0.05, 0.0, 0.05)], dtype=torch.float64)
    points = math.sqrt(2) * torch.stack([turn.cos(), turn.sin()], dim=1)
    norms = torch.linalg.vector_norm(energy_and_gradient(land, points)[1], dim=1)
    assert norms[1] < norms[0]  # a minimum of the gradient norm, where descent on it would stay
    assert norms[1] < norms[2]
    assert norms[1] > 0.5
    proofs = certify_points(land, points[1:2], seed=0)
    assert proofs.flat.all()
    assert not proofs.critical.any()
    assert "1 gradient-flat, not critical" in str(proofs)
    found = find_critical_points(land, starts=points, index=0, seed=0)
    assert found.points.round(decimals=9).tolist() == [[-1.414213562, 0.0]]
    assert int(found.found.sum()) == 3
    stuck = find_critical_points(land, starts=points[1:2], index=0, max_steps=1, seed=0)
    assert len(stuck) == 0
    assert "no critical point from 1 starts" in str(stuck)


def test_the_radius_holds_the_critical_point_and_far_points_are_refused(generator):
    glass = SphericalPSpin(8, 3, seed=0)
    starts = torch.stack([glass.start(generator) for _ in range(6)])
    exact = newton(glass, starts, index=2)
    assert exact.settled.all()
    aside = tangent(exact.points, torch.randn(6, 8, generator=generator, dtype=torch.float64))
    for size in (1e-4, 1e-6, 1e-8):
        near = on_sphere(exact.points + size * aside)
        proofs = certify_points(glass, near)
        away = torch.linalg.vector_norm(near - exact.points, dim=1)
        assert proofs.critical.any()
        assert (away[proofs.critical] <= proofs.radii[proofs.critical]).all()
        assert (proofs.radii[proofs.critical] < 3 * away[proofs.critical]).all()
        assert (proofs.unique[proofs.critical] > away[proofs.critical]).all()
        truth = eigensystem(glass, exact.points)[0]
        error = (proofs.values - truth).abs().amax(1)
        assert (error <= proofs.eigenvalue_errors).all()
    far = certify_points(glass, on_sphere(exact.points + 0.5 * aside))
    assert not far.critical.any()
    assert not far.resolved.any()
    assert torch.isinf(far.radii).all()


def test_an_eigenvalue_within_its_error_of_zero_leaves_the_index_open():
    form = SphericalPSpin.from_tensors(
        {2: torch.diag(torch.tensor([1.0, 1.0 + 1e-15, 3.0])).double()}
    )
    proofs = certify_points(form, torch.eye(3, dtype=torch.float64))
    assert proofs.resolved.tolist() == [False, False, True]


@pytest.mark.parametrize(
    "p", [{1: 0.5, 2: 0.7, 3: 1.0}, *(pytest.param(p, marks=pytest.mark.slow) for p in (3, 4))]
)
def test_the_lipschitz_constant_bounds_the_extended_hessian(p, generator):
    glass = SphericalPSpin(5, p, seed=2)
    constant, kind = hessian_lipschitz(glass, glass.start(generator), generator)
    assert kind == "certified"
    given = SphericalPSpin.from_tensors({d: glass.tensor(d) for d in glass.degrees})
    copied = hessian_lipschitz(given, glass.start(generator), generator)
    assert copied == (pytest.approx(constant, rel=1e-12), "certified")
    land = plain(glass)

    def hessian(y):
        with land.at(y) as here:
            return 5 * here.hvp(torch.eye(5, dtype=torch.float64))

    worst = 0.0
    for _ in range(40):
        a = (1 + torch.rand((), generator=generator)) * glass.start(generator)
        b = a + 0.05 * torch.randn(5, generator=generator, dtype=torch.float64)
        b = b * max(1.0, math.sqrt(5) / float(b.norm()))
        change = torch.linalg.matrix_norm(hessian(a) - hessian(b), ord=2)
        worst = max(worst, float(change / (a - b).norm()))
    assert 0.02 * constant < worst <= constant
    at = glass.start(generator)
    estimate, kind = hessian_lipschitz(land, at, generator)
    assert kind == "estimated"
    near = on_sphere(at + 1e-3 * tangent(at, torch.randn(5, generator=generator).double()))
    change = riemannian_hessian(glass, torch.stack([at, near])).diff(dim=0)[0]
    assert float(torch.linalg.matrix_norm(change, ord=2)) <= estimate * float((at - near).norm())


def test_any_function_on_the_sphere_will_do(generator):
    glass = SphericalPSpin(5, 3, seed=4)
    starts = torch.stack([glass.start(generator) for _ in range(4)])
    one = find_critical_points(glass, starts=starts, seed=0)
    two = find_critical_points(plain(glass), starts=starts, seed=0)
    assert (one.certificate, two.certificate) == ("certified", "estimated")
    assert torch.allclose(one.energies, two.energies, atol=1e-12)
    assert torch.equal(one.found, two.found)
    assert torch.equal(one.indices, two.indices)


@pytest.mark.parametrize("index", [0, 4])
def test_a_wished_index_is_found(index):
    found = find_critical_points(SphericalPSpin(10, 3, seed=0), starts=6, index=index, seed=2)
    assert len(found) >= 2
    assert set(found.counts) == {index}
    assert found.values is not None
    assert ((found.values < 0).sum(1) == index).all()


def test_searches_join_and_come_again():
    glass = SphericalPSpin(6, 3, seed=5)
    one, again = (find_critical_points(glass, starts=8, seed=7) for _ in range(2))
    assert torch.equal(one.points, again.points)
    both = one.join(again)
    assert len(both) == len(one)
    assert torch.equal(both.found, 2 * one.found)
    assert both.starts == 16
    more = one.join(find_critical_points(glass, starts=8, seed=8))
    assert len(one) <= len(more) <= 16
    assert int(more.found.sum()) + more.lost + more.flat == 16
    assert torch.equal(more.energies, more.energies.sort().values)
    with pytest.raises(ValueError, match="one search had 6 spins and the other 5"):
        one.join(find_critical_points(SphericalPSpin(5, 2, seed=0), starts=2, seed=0))


def test_what_a_result_says():
    glass = SphericalPSpin(6, 3, seed=5)
    seen = []
    found = find_critical_points(
        glass, starts=20, seed=7, progress=lambda share, text: seen.append((share, text))
    )
    assert seen[-1] == (1.0, "20 of 20 starts followed")
    assert f"{len(found)} distinct critical points (certified) from 20 starts" in str(found)
    assert found.__rich__().row_count == len(found.counts)
    data = json.loads(json.dumps(found.to_json()))
    assert data["distinct"] == len(found) == len(data["energies"])
    assert found.arrays()["points"].shape == (len(found), 6)
    low = found.between(-9, 0)
    assert (low.energies < 0).all()
    assert len(low) + len(found.between(0, 9)) == len(found)
    assert sum(len(found.with_index(k)) for k in range(6)) == len(found)
    assert found.cost.hvps > 0


def test_what_cannot_be_searched_is_said(unchecked):
    bowl = FunctionLandscape(lambda x: (x**2).sum(), dim=3)
    with pytest.raises(ValueError, match="does not live on the sphere: its loss is 3 at"):
        find_critical_points(bowl, starts=torch.ones(1, 3).double())
    glass = SphericalPSpin(6, 3, seed=5)
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        find_critical_points(glass, starts=0)
    with pytest.raises(ValueError, match="between 0 and 5, not"):
        find_critical_points(glass, starts=2, index=6)
    with pytest.raises(ValueError, match="this FunctionLandscape does not know; pass a Spherical"):
        find_critical_points(bowl, complete=True)
    with pytest.raises(ValueError, match="complete=True needs no starts"):
        find_critical_points(glass, starts=torch.eye(2, 6).double(), complete=True)
    with pytest.raises(ValueError, match=r"1048575 classes of .* more than 30000; leave out compl"):
        find_critical_points(SphericalPSpin(20, 3, seed=0), complete=True)
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        find_critical_points(glass, starts=2, max_steps=0)
    with pytest.raises(ValueError, match="1 of 2 points are zero, NaN or infinite"):
        find_critical_points(glass, starts=torch.eye(2, 6).double() * torch.tensor([[1.0], [0.0]]))


TABLE = {  # facts B5: energy and predicted fraction of negative eigenvalues, p = 3
    -1.32: 0.049, -1.13: 0.098, -0.93: 0.159, -0.70: 0.233,
    -0.48: 0.312, -0.23: 0.408, -0.01: 0.497, 0.18: 0.571,
}  # fmt: skip


@pytest.mark.slow
def test_index_follows_energy_at_60_spins():
    """Beside the curve for infinite n, the mean index of a bin may be off by 1/n or 4 errors."""
    for energy, fraction in TABLE.items():
        assert abs(index_fraction(energy, 3) - fraction) < 4e-3
    found = find_critical_points(SphericalPSpin(60, 3, seed=1), starts=150, seed=0)
    assert len(found) > 120
    assert found.resolved.all()
    assert min(found.counts) == 0
    assert max(found.counts) == 59
    off = found.fractions.numpy() - index_fraction(found.energies.numpy(), 3)
    edges = np.quantile(found.energies.numpy(), np.linspace(0, 1, 9))
    place = np.clip(np.searchsorted(edges, found.energies.numpy(), side="right") - 1, 0, 7)
    for one in range(8):
        some = off[place == one]
        assert abs(some.mean()) < 1 / 60 + 4 * some.std(ddof=1) / math.sqrt(len(some))
    assert abs(off).max() < 4 / 60
    wrong = found.fractions.numpy() - index_fraction(-found.energies.numpy(), 3)  # the control
    assert abs(wrong).max() > 0.5


@pytest.mark.slow
def test_the_bands_of_theory_at_100_spins():
    n = 100
    slack = n ** (-2 / 3)
    glass = SphericalPSpin(n, 3, seed=1)
    low = find_critical_points(glass, starts=10, index=0, seed=0)
    assert len(low) >= 8
    assert (low.energies > -ground_state_energy(3) - slack).all()
    assert (low.energies < -threshold_energy(3) + 5 * slack).all()
    wide = find_critical_points(glass, starts=16, seed=1)
    assert (wide.energies.abs() < ground_state_energy(3) + slack).all()
    off = wide.fractions.numpy() - index_fraction(wide.energies.numpy(), 3)
    assert abs(off).max() < 4 / n
    below = wide.between(-9, -threshold_energy(3))
    assert (below.indices <= 3).all()


@pytest.mark.calibration
def test_the_unseen_mass_is_covered(calibration):
    """Starts fall on 40 basins of known sizes."""
    hits = 0
    law = np.arange(1, 41.0) ** -1.0
    law /= law.sum()
    for seed in calibration.seeds:
        drawn = np.random.default_rng(seed).multinomial(100, law)
        once, twice = (int((drawn == times).sum()) for times in (1, 2))
        hits += float(law[drawn == 0].sum()) in good_turing(once, twice, 100)
    calibration.check("unseen critical points, 100 starts on 40 basins", hits)
