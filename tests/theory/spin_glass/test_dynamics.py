"""Motion on the sphere: the exact Gibbs law, energies that fall, runs that go on bit for bit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.special import ive

from thalweg.landscape import FunctionLandscape
from thalweg.theory.spin_glass.descent import local_minima
from thalweg.theory.spin_glass.dynamics import descend, gradient_flow, langevin
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.noise import CouplingNoise, IsotropicNoise, coupling_gradient
from thalweg.theory.spin_glass.sphere import energy_and_gradient, tangent
from thalweg.theory.statistics import sample_mean


def form(*values):
    return SphericalPSpin.from_tensors({2: torch.diag(torch.tensor(values, dtype=torch.float64))})


def circle_energy(a, b, temperature):
    """H = a x^2 + b y^2 on x^2 + y^2 = 2 is a + b + (a - b) cos 2 phi."""
    x = (a - b) / temperature
    return ((a + b) - (a - b) * ive(1, x) / ive(0, x)) / 2


def ball_energy(a, b, temperature):
    """H = a (x^2 + y^2) + b z^2 on a sphere of radius sqrt 3, z uniform without energy."""

    def energy(z):
        return a * (3 - z * z) + b * z * z

    low = min(energy(0.0), energy(math.sqrt(3)))
    weights = [
        quad(lambda z, k=k: energy(z) ** k * math.exp(-(energy(z) - low) / temperature), 0, 3**0.5)
        for k in (0, 1)
    ]
    return weights[1][0] / weights[0][0] / 3


CASES = [
    (form(0.7, -0.5), circle_energy(0.7, -0.5, 0.6), 0.6),
    (form(0.4, 0.4, -0.8), ball_energy(0.4, -0.8, 0.5), 0.5),
]


@pytest.mark.parametrize(("land", "truth", "temperature"), CASES)
def test_corrected_langevin_draws_from_the_gibbs_law(land, truth, temperature):
    times = np.linspace(2, 12, 21)
    run = langevin(land, temperature, times, start=400, step=0.25, metropolis=True, seed=0)
    assert 0.3 < run.acceptance < 0.99
    mean = run.mean_energy(after=3)
    assert abs(mean.value - truth) < 4 * mean.stderr
    assert mean.stderr < 0.012


@pytest.mark.slow
@pytest.mark.parametrize(("land", "truth", "temperature"), CASES)
def test_plain_langevin_is_off_by_the_order_of_its_step(land, truth, temperature):
    times = np.linspace(2, 12, 21)
    run = langevin(land, temperature, times, start=400, step=0.02, seed=1)
    mean = run.mean_energy(after=3)
    assert abs(mean.value - truth) < 4 * mean.stderr + 0.02
    assert math.isnan(run.acceptance)
    far = np.arange(1.0, 13.0)  # the control takes steps of the whole interval
    coarse = langevin(land, temperature, far, start=400, step=1.0, seed=1)
    assert abs(coarse.mean_energy(after=3).value - truth) > 10 * mean.stderr


@pytest.mark.slow
def test_hot_glasses_have_energy_minus_beta():
    beta, means = 0.4, []
    for seed in range(6):
        glass = SphericalPSpin(40, 3, seed=seed)
        run = langevin(glass, 1 / beta, np.linspace(0.5, 2, 16), start=64, step=0.05, seed=seed,
                       metropolis=True)  # fmt: skip
        means.append(run.mean_energy(after=0.4).value)
    over = sample_mean(means)
    assert abs(over.value + beta) < 4 * over.stderr + 1 / 40
    assert over.stderr < 0.02


@pytest.mark.slow
def test_isotropic_noise_is_langevin():
    h, temperature = 0.05, 0.6
    run = descend(
        CASES[0][0], np.linspace(2, 12, 21), start=400, step=h, seed=3,
        noise=IsotropicNoise(math.sqrt(2 * temperature / h)),
    )  # fmt: skip
    mean = run.mean_energy(after=3)
    assert abs(mean.value - CASES[0][1]) < 4 * mean.stderr + 0.03


@pytest.mark.parametrize("p", [2, 4, {1: 1.0, 3: 0.5}])
def test_coupling_noise_is_unbiased(p, generator):
    """The mean over all subsets of 2 of 5 spins is the gradient; a biased one is not."""
    glass = SphericalPSpin(5, p, seed=1)
    points = torch.stack([glass.start(generator) for _ in range(3)])
    tensors = {degree: glass.tensor(degree) for degree, _ in glass.mixture.amplitudes}
    subsets = [torch.tensor(s) for s in itertools.combinations(range(5), 2)]
    drawn = torch.stack([coupling_gradient(tensors, points, s) for s in subsets])
    exact = energy_and_gradient(glass, points)[1]
    assert torch.allclose(drawn.mean(0), exact, atol=1e-12)
    assert torch.allclose(coupling_gradient(tensors, points, torch.arange(5)), exact, atol=1e-12)
    assert not torch.allclose(drawn[1:].mean(0), exact, atol=1e-3)
    radial = (drawn * points).sum(-1)
    assert radial.abs().max() < 1e-10


def test_the_flow_agrees_with_scipy_and_never_rises():
    glass = SphericalPSpin(6, 3, seed=0)
    times = [0.5, 1.0]
    run = gradient_flow(glass, times, start=2, tolerance=1e-6, keep_points=True, seed=4)
    begin = gradient_flow(glass, [0.0], start=2, seed=4).state.points

    def slope(_, x):
        return -energy_and_gradient(glass, torch.from_numpy(x)[None])[1][0].numpy()

    truth = solve_ivp(slope, (0, 1), begin[1].numpy(), t_eval=times, rtol=1e-6, atol=1e-6)
    assert np.allclose(run.points[:, 1].numpy(), truth.y.T, atol=1e-4)
    many = gradient_flow(glass, np.linspace(0, 4, 21), start=8, tolerance=1e-4, seed=5)
    assert (many.energies.diff(dim=0) <= 1e-13).all()
    assert torch.allclose(many.state.points.norm(dim=1), torch.tensor(6.0).double().sqrt())


@pytest.mark.parametrize(
    "go",
    [
        lambda land, times, **k: langevin(land, 0.5, times, step=0.1, metropolis=True, **k),
        lambda land, times, **k: descend(land, times, step=0.1, noise=CouplingNoise(0.5), **k),
        lambda land, times, **k: descend(land, times, step=0.1, **k),
        gradient_flow,
    ],
)
def test_a_resumed_run_is_the_unbroken_one(go):
    glass = SphericalPSpin(6, 3, seed=2)
    whole = go(glass, [0.5, 1.0, 1.5], start=4, seed=9)
    first = go(glass, [0.5, 1.0], start=4, seed=9)
    second = go(glass, [1.5], start=first.state)
    assert torch.equal(torch.cat([first.energies, second.energies]), whole.energies)
    assert torch.equal(second.state.points, whole.state.points)
    assert second.state.steps == whole.state.steps
    assert second.seed == whole.seed == 9
    other = go(glass, [0.5], start=4, seed=10)
    assert not torch.equal(other.energies[0], first.energies[0])


def test_descents_end_at_proven_minima(generator):
    glass = SphericalPSpin(20, 3, seed=0)
    ends = local_minima(glass, starts=8, seed=1)
    assert ends.certified.all()
    assert (ends.lowest > 0).all()
    step = tangent(ends.points, torch.randn(8, 20, generator=generator, dtype=torch.float64))
    for size in (1e-4, -1e-4, 1e-3):
        assert (glass.loss(ends.points + size * step) > ends.energies).all()
    same = local_minima(glass, starts=ends.points)
    assert torch.allclose(same.energies, ends.energies, atol=1e-12)
    assert "8 of 8 descents ended at a proven local minimum" in str(ends)
    hasty = local_minima(FunctionLandscape(lambda x: x[0] / x.norm(), 3), starts=2, seed=0)
    assert torch.allclose(hasty.energies, torch.tensor(-1.0).double())


def test_costs_and_words():
    glass = SphericalPSpin(10, 3, seed=0)
    seen = []
    run = descend(
        glass, [0.0, 1.0], start=3, step=0.1, noise=CouplingNoise(0.4), seed=0,
        progress=lambda share, text: seen.append(text),
    )  # fmt: skip
    assert run.cost.gradients == 30
    assert run.cost.passes == 2 + 10 * 0.4
    assert "stochastic gradient descent (0.4 of the couplings): 3 replicas to time 1" in str(run)
    assert seen[-1].startswith("time 1, energy per spin")
    wild = descend(glass, [5.0], start=2, step=1.0, noise=IsotropicNoise(math.inf), seed=0)
    assert "2 replicas are not finite: lower step=" in str(wild)
    assert torch.isnan(wild.energies).all()


def test_what_cannot_run_is_said(unchecked):
    glass = SphericalPSpin(10, 3, seed=0)
    with pytest.raises(ValueError, match=r"times must rise, from 0 or later, but are \[1.0, 1.0\]"):
        descend(glass, [1.0, 1.0])
    with pytest.raises(ValueError, match="temperature must be positive, got 0; for 0 use descend"):
        langevin(glass, 0, [1.0])
    with pytest.raises(ValueError, match="step must be positive, got 0"):
        descend(glass, [1.0], step=0)
    with pytest.raises(ValueError, match="start must be at least 1 replica, got 0"):
        descend(glass, [1.0], start=0)
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        gradient_flow(glass, [1.0], tolerance=0)
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got 0"):
        CouplingNoise(0)
    with pytest.raises(ValueError, match="sd must not be negative, got -1"):
        IsotropicNoise(-1)
    bowl = FunctionLandscape(lambda x: x[0] / x.norm(), dim=3)
    with pytest.raises(ValueError, match="has no couplings to draw from; use Isotropic"):
        descend(bowl, [1.0], noise=CouplingNoise(0.5))
    with pytest.raises(ValueError, match="an error needs at least 2 independent values, got 1"):
        descend(glass, [1.0], start=1, step=0.1).mean_energy()
    with pytest.raises(ValueError, match="no time is beyond 2; the last is 1"):
        descend(glass, [1.0], start=2, step=0.1).mean_energy(after=2)
    with pytest.raises(ValueError, match="must be at least 1"):
        local_minima(glass, starts=0)


@pytest.mark.calibration
def test_the_energy_of_langevin_is_covered(calibration):
    land, truth, temperature = CASES[0]
    hits, widths = 0, []
    for seed in calibration.seeds:
        run = langevin(
            land, temperature, np.linspace(3, 6, 7), start=64, step=0.2, metropolis=True, seed=seed
        )
        mean = run.mean_energy()
        hits += truth in mean
        widths.append(mean.half_width)
    calibration.check("energy of a Langevin run, 64 replicas", hits)
