"""All critical points: against polynomial roots, Newton from many starts, Kac and Rice."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from thalweg.theory.spin_glass.enumeration import (
    compare_counts,
    enumerate_critical_points,
    enumerate_samples,
    joint_p_value,
)
from thalweg.theory.spin_glass.kac_rice import expected_critical_points
from thalweg.theory.spin_glass.model import SphericalPSpin


def power(vector, p):
    letters = "abcdef"[:p]
    return torch.einsum(",".join(letters) + "->" + letters, *[vector.double()] * p)


def sum_of_powers(n, p):
    return sum(power(torch.eye(n)[k], p) for k in range(n))


def check_sample(found):
    assert found.complete, str(found)
    assert found.euler_holds
    assert found.morse_holds
    assert found.radii.max() < 1e-6


@pytest.mark.parametrize("p", [2, 3, *(pytest.param(p, marks=pytest.mark.slow) for p in (4, 5, 6))])
def test_two_spins_against_the_roots_of_a_polynomial(p):
    glasses = [SphericalPSpin(2, p, seed=seed) for seed in range(10)]
    for glass, found in zip(glasses, enumerate_samples(glasses, seed=0), strict=True):
        check_sample(found)
        tensor = glass.tensor(p).numpy()
        # H(1, s) = sum_k a_k s^k; dH/dangle = 0 is (1 + s^2) h' = p s h
        h = np.zeros(p + 1)
        for axes in itertools.product(range(2), repeat=p):
            h[sum(axes)] += tensor[axes]
        form = np.polynomial.Polynomial(h)
        s = np.polynomial.Polynomial([0, 1])
        slopes = ((1 + s * s) * form.deriv() - p * s * form).trim(1e-12).roots()
        slopes = np.sort(slopes[np.abs(slopes.imag) < 1e-9].real)
        mine = found.points[found.points[:, 0] > 0]
        assert np.sort((mine[:, 1] / mine[:, 0]).numpy()) == pytest.approx(slopes, rel=1e-6)
        assert len(found) == 2 * len(slopes)


@pytest.mark.parametrize(("n", "p"), [(3, 3), (4, 3), (3, 4), (6, 2), (3, {1: 0.5, 3: 1.0})])
def test_points_energies_and_indices_are_those_of_the_landscape(n, p):
    glass = SphericalPSpin(n, p, seed=4)
    found = enumerate_critical_points(glass, seed=1)
    check_sample(found)
    assert glass.riemannian_gradient(found.points).abs().max() < 1e-10
    assert found.points.norm(dim=1).numpy() == pytest.approx(np.sqrt(n), rel=1e-14)
    assert glass.energy(found.points).numpy() == pytest.approx(found.energies.numpy(), abs=1e-12)
    assert torch.all(found.energies.diff() >= 0)
    spectra = torch.linalg.eigvalsh(glass.riemannian_hessian(found.points))
    assert torch.equal((spectra < -1e-9).sum(dim=1), found.indices)
    assert float(glass.energy(found.points)[2]) in found.energy(2)
    assert found.energy(2).lower_kind == "certified"


def newton_everywhere(glass, starts, seed):
    """Newton's method on the sphere from many starts: the points where it converges."""
    n = glass.n
    sigma = glass.project(
        torch.randn(starts, n, generator=torch.Generator().manual_seed(seed)).double()
    )
    for _ in range(60):
        across = sigma / n**0.5
        bordered = torch.zeros(starts, n + 1, n + 1, dtype=torch.float64)
        bordered[:, :n, :n] = glass.riemannian_hessian(sigma)
        bordered[:, :n, n] = bordered[:, n, :n] = across
        right = torch.cat([-glass.riemannian_gradient(sigma), torch.zeros(starts, 1)], dim=1)
        step = torch.linalg.solve(bordered, right.double())[:, :n]
        length = step.norm(dim=1, keepdim=True)
        sigma = glass.project(sigma + step * torch.clamp(0.5 / length, max=1))
    return sigma[glass.riemannian_gradient(sigma).norm(dim=1) < 1e-9]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(3, 3), (4, 3), (3, 4)])
def test_newton_from_many_starts_finds_the_same_points(n, p):
    glasses = [SphericalPSpin(n, p, seed=seed) for seed in range(3)]
    for glass, found in zip(glasses, enumerate_samples(glasses, seed=0), strict=True):
        brute = newton_everywhere(glass, 300, seed=n)
        nearest = torch.cdist(brute, found.points).min(dim=1)
        assert nearest.values.max() < 1e-6  # none that was not enumerated
        assert len(nearest.indices.unique()) == len(found)  # and all that were


@pytest.mark.parametrize("n", [2, 3, 4])
def test_minus_the_sum_of_fourth_powers(n):
    found = enumerate_critical_points(-sum_of_powers(n, 4), seed=3)
    check_sample(found)
    assert len(found) == 3**n - 1
    support = (found.points.abs() > 1e-6).sum(dim=1)
    assert torch.equal(found.indices, support - 1)
    assert found.energies.numpy() == pytest.approx(-n / support.numpy(), rel=1e-12)
    assert len(enumerate_critical_points(sum_of_powers(n, 3), seed=3)) == 2 * (2**n - 1)


@pytest.mark.slow
@pytest.mark.parametrize("gap", [s * 10.0**-k for k in (1, 3, 5, 6, 8) for s in (-1, 1)])
def test_a_pair_that_leaves_the_reals_is_decided_or_told(gap):
    """Of x^3 + 3 c x y^2 with c = 1/2 - gap: (1, 0), and slopes of square -2 gap / c.

    With |A| some 1 / gap and rounding gamma some 1e-14, Kantorovich's 4 |A| L eta is some
    16 gamma / gap^2: no proof is to be had below a gap of 1e-6.
    """
    tensor = torch.zeros(2, 2, 2, dtype=torch.float64)
    tensor[0, 0, 0] = 1.0
    tensor[0, 1, 1] = tensor[1, 0, 1] = tensor[1, 1, 0] = 0.5 - gap
    found = enumerate_critical_points(tensor, seed=0, attempts=1)
    if abs(gap) > 2e-6:
        assert found.complete
    if found.complete:
        assert len(found) == (2 if gap > 0 else 6)


@pytest.mark.parametrize("p", [3, 4])
def test_near_the_diagonal_tensor_too(p):
    glass = SphericalPSpin(3, p, seed=1)
    found = enumerate_critical_points(sum_of_powers(3, p) + 1e-3 * glass.tensor(p), seed=0)
    check_sample(found)
    assert len(found) == (14 if p == 3 else 26)


def test_signs_of_odd_and_even_degrees():
    odd = enumerate_critical_points(SphericalPSpin(4, 3, seed=2), seed=0)
    assert odd.energies.numpy() == pytest.approx(-odd.energies.numpy()[::-1], abs=1e-12)
    assert torch.equal(odd.indices, 3 - odd.indices.flip(0))
    even = enumerate_critical_points(SphericalPSpin(3, 4, seed=2), seed=0)
    pairs = torch.cdist(even.points, -even.points).argmin(dim=1)
    assert torch.equal(even.indices[pairs], even.indices)


def test_a_matrix_is_exact():
    glass = SphericalPSpin(8, 2, seed=0)
    found = enumerate_critical_points(glass)
    check_sample(found)
    values = torch.linalg.eigvalsh(glass.tensor(2))
    assert found.energies.numpy() == pytest.approx(values.repeat_interleave(2).numpy(), abs=1e-12)
    assert found.counts() == (2,) * 8


DEGENERATE = {
    "of rank one": power(torch.tensor([1.0, 2, -1]), 3),
    "of rank one, even": power(torch.tensor([1.0, 2]), 4),
    "zero": torch.zeros(3, 3, 3),
    "a multiple of the unit matrix": 2 * torch.eye(4),
    "with a circle of points": torch.diag(torch.tensor([1.0, 1.0, 2.0])),
    "of rank two in three dimensions": sum_of_powers(3, 3) - power(torch.eye(3)[2], 3),
    "with a double point": None,
    "round": None,
}
_eye = torch.eye(2).double()
DEGENERATE["round"] = sum(
    torch.einsum(f"{s}->abcd", _eye, _eye) for s in ("ab,cd", "ac,bd", "ad,bc")
)
_cubic = torch.zeros(2, 2, 2).double()
_cubic[0, 0, 0], _cubic[0, 1, 1], _cubic[1, 0, 1], _cubic[1, 1, 0] = 1.0, 0.5, 0.5, 0.5
DEGENERATE["with a double point"] = _cubic


CHEAP = ("zero", "a multiple of the unit matrix", "with a circle of points")


@pytest.mark.parametrize(
    "case",
    [one if one in CHEAP else pytest.param(one, marks=pytest.mark.slow) for one in DEGENERATE],
)
def test_a_degenerate_tensor_is_never_complete(case):
    found = enumerate_critical_points(DEGENERATE[case], seed=0, attempts=1)
    assert not found.complete
    assert "NOT COMPLETE" in str(found)
    assert "[yellow]NOT COMPLETE" in found.__rich__()
    wanted = "every point is critical" if case == "zero" else "not found: the tensor is not generic"
    assert wanted in found.missing


def test_what_spoils_completeness():
    whole = enumerate_critical_points(SphericalPSpin(3, 4, seed=0), seed=0)
    assert whole.complete
    fields = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
    arrays = ("points", "energies", "indices", "radii", "energy_errors", "certified")
    kept = torch.arange(2, len(whole))  # the two deepest are one class
    less = {name: fields[name][kept] for name in arrays}
    short = dataclasses.replace(whole, **less, found=whole.found - 1)
    assert "1 of 13 complex classes were not found" in short.missing
    assert not short.euler_holds
    assert not short.morse_holds
    assert "Morse's inequalities DO NOT HOLD" in str(short)
    doubt = dataclasses.replace(whole, certified=torch.zeros(len(whole), dtype=torch.bool))
    assert "is not proven" in doubt.missing
    assert "can be: a fault" in dataclasses.replace(whole, found=14).missing
    assert "neither proven real" in dataclasses.replace(whole, undecided=1).missing
    assert "may have energy 0" in dataclasses.replace(whole, vanishing=1).missing
    assert not dataclasses.replace(whole, vanishing=1).complete


def test_morse_inequalities_can_fail_where_euler_holds():
    whole = enumerate_critical_points(SphericalPSpin(4, 3, seed=0), seed=0)
    fields = ("points", "energies", "indices", "radii", "energy_errors", "certified")
    middle = (whole.indices == 1) | (whole.indices == 2)
    less = {name: getattr(whole, name)[middle] for name in fields}
    saddles = dataclasses.replace(whole, **less)
    assert saddles.euler_holds
    assert not saddles.morse_holds


def test_the_result_reads_and_stores_well():
    progress = []
    glasses = [SphericalPSpin(3, 3, seed=k) for k in range(3)]
    found = enumerate_samples(glasses, seed=5, progress=lambda f, w: progress.append((f, w)))
    assert progress[-1] == (1.0, "3 of 3 spin glasses")
    again = enumerate_critical_points(glasses[1], seed=found[1].seed)
    assert torch.equal(again.points, found[1].points)
    text = str(again)
    assert "critical points on the sphere of 3 spins, p = 3: complete, with proof" in text
    assert "7 of 7 complex classes, 7 paths" in text
    assert "index 0: " in text
    stored = json.loads(json.dumps(again.to_json()))
    assert stored["complete"] is True
    assert stored["energies"] == again.energies.tolist()
    assert enumerate_samples([]) == []


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"12 spins at p = 4 have 265720 classes .* find_critical"):
        enumerate_critical_points(torch.zeros((12,) * 4), seed=0)
    with pytest.raises(ValueError, match="attempts must be at least 1, not 0"):
        enumerate_critical_points(SphericalPSpin(3, 3, seed=0), attempts=0)
    with pytest.raises(ValueError, match="one size and degree, got"):
        enumerate_samples([SphericalPSpin(3, 3, seed=0), SphericalPSpin(4, 3, seed=0)])
    made = SphericalPSpin.from_tensors({3: SphericalPSpin(3, 3, seed=0).tensor(3)})
    with pytest.raises(ValueError, match="made from tensors; pass them as"):
        enumerate_critical_points(made)


def test_the_joint_test_rejects_what_it_must():
    rng = np.random.default_rng(0)
    low = rng.poisson(2.0, 400) + 1
    counts = np.stack([low, 2 * low - 2, low], axis=1)
    assert compare_counts(counts, [3.0, 4.0, 3.0], 3).p_value > 0.01
    off = compare_counts(counts, [3.4, 4.8, 3.4], 3)
    assert off.p_value < 1e-4
    assert "T²" in str(off)
    assert joint_p_value([off, compare_counts(counts, [3.0, 4.0, 3.0], 3)]) < 1e-3
    with pytest.raises(ValueError, match="break Euler's identity"):
        compare_counts(counts, [3.0, 4.5, 3.0], 3)
    with pytest.raises(ValueError, match="some critical points are missing"):
        compare_counts(counts - np.eye(3, dtype=int)[1], [3.0, 4.0, 3.0], 3)
    with pytest.raises(ValueError, match="1 free counts need at least 3 samples, got 2"):
        compare_counts(counts[:2], [3.0, 4.0, 3.0], 3)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(5, 3), (4, 4)])
def test_p_values_of_the_joint_test_are_uniform(n, p):
    """Counts of Gaussian spread with the dependences of real ones: 1000 tests of 60 samples."""
    from scipy.stats import kstest

    rng = np.random.default_rng(n)
    values = []
    for _ in range(1000):
        counts = np.zeros((60, n), dtype=int)
        if p % 2:
            counts[:, :2] = rng.normal(100, 20, (60, 2)).round() @ [[1, 1], [0, 2]]
            counts[:, 3:] = counts[:, 1::-1]
            counts[:, 2] = 2 - 2 * counts[:, 0] + 2 * counts[:, 1]
            expected = [100.0, 300.0, 402.0, 300.0, 100.0]
        else:
            counts[:, :3] = rng.normal(100, 20, (60, 3)).round() @ [[1, 1, 0], [0, 2, 1], [0, 0, 3]]
            counts[:, 3] = counts[:, 0] - counts[:, 1] + counts[:, 2]
            expected = [100.0, 300.0, 400.0, 200.0]
        values.append(compare_counts(counts, expected, p).p_value)
    assert kstest(values, "uniform").pvalue > 1e-3


@pytest.mark.slow
def test_the_example_resumes_and_refuses_to_compare_a_part(scripts, tmp_path, monkeypatch):
    runs, tables = map(scripts("examples/spin_glass_counts"), ("runs", "tables"))
    monkeypatch.setattr(runs, "CLASSES", 7 * 5)  # five samples of n = 3, p = 3 in a batch
    assert "no complete enumerations" in tables.table([(3, 3)], 20, tmp_path)
    assert runs.run(3, 3, 20, tmp_path) == 4
    before = runs.read(3, 3, 20, tmp_path)
    (tmp_path / "p3-n3" / "00005.json").unlink()
    assert len(runs.read(3, 3, 20, tmp_path)) == 15
    assert runs.run(3, 3, 20, tmp_path) == 1  # only what is missing
    after = runs.read(3, 3, 20, tmp_path)
    assert runs.run(3, 3, 20, tmp_path) == 0
    assert [row | {"seconds": 0} for row in before] == [row | {"seconds": 0} for row in after]
    table = tables.table([(3, 3)], 20, tmp_path)
    assert "| 3 | 3 | 20 | " in table
    assert "20 enumerations, all complete" in table
    after[0] |= {"complete": False, "missing": "a class"}
    runs.write(tmp_path / "p3-n3" / "00000.json", after[:5])
    table = tables.table([(3, 3)], 20, tmp_path)
    assert "1 of 20 samples are not complete (sample 0: a class)" in table
    assert "Joint p-value" not in table


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(8, 3), (6, 4)])
def test_larger_sizes_are_complete(n, p):
    check_sample(enumerate_critical_points(SphericalPSpin(n, p, seed=1), seed=0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "amplitudes"), [(2, {1: 1.0, 3: 1.0}), (4, {1: 1.5, 3: 1.0}), (3, {2: 1.0, 4: 0.7})]
)
def test_mixtures_equal_kac_and_rice_too(n, amplitudes):
    glasses = [SphericalPSpin(n, amplitudes, seed=k) for k in range(200)]
    found = enumerate_samples(glasses, seed=0)
    for one in found:
        check_sample(one)
    counts = np.array([one.counts() for one in found])
    expected = [expected_critical_points(n, amplitudes, index=k).value for k in range(n)]
    assert compare_counts(counts, expected, max(amplitudes)).p_value > 1e-3


@pytest.mark.calibration
def test_counts_equal_kac_and_rice(calibration):
    """Totals and indices at p = 3, 4 in one test; every sample a complete enumeration.

    At 1000 seeds: 2000 spin glasses of each size to n = 5 and 200 of n = 6, 7, 8; below, as many
    fewer as there are fewer seeds, half of that at n = 5, and none of n = 8 at p = 3 and of n = 6,
    7, 8 at p = 4.
    """
    seeds, compared = len(calibration.seeds), []
    for p, n in itertools.product((3, 4), range(2, 9)):
        samples = 2 * seeds if n <= 5 else seeds // 5
        if seeds < 1000 and n + p > (10 if p == 3 else 9):
            continue
        samples //= 2 if seeds < 1000 and n == 5 else 1
        glasses = [SphericalPSpin(n, p, seed=10**6 * (10 * p + n) + k) for k in range(samples)]
        found = enumerate_samples(glasses, seed=n)
        for one in found:
            check_sample(one)
        counts = np.array([one.counts() for one in found])
        expected = [expected_critical_points(n, p, index=k).value for k in range(n)]
        compared.append(compare_counts(counts, expected, p))
    assert joint_p_value(compared) > 1e-3, "\n".join(map(str, compared))
