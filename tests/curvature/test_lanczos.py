"""Lanczos chains against dense spectral measures: exactness, breakdown, brackets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.curvature import MatrixOperator, Tridiagonal, lockstep


def starts(dim, chains, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, chains, generator=generator, dtype=torch.float64).to(dtype)


def measures(matrix, vectors):
    """Eigenvalues, and for every column the mass it has in each eigenvector."""
    values, basis = torch.linalg.eigh(matrix)
    masses = (basis.T @ vectors).square()
    return values.numpy(), (masses / masses.sum(0)).numpy()


SPECTRA = {
    "uniform": np.linspace(-1, 2, 90),
    "low rank": np.r_[np.zeros(60), np.linspace(0.1, 5, 30)],
    "outliers": np.r_[100.0, 50.0, 20.0, np.linspace(-0.3, 0.3, 87)],
    "pairs": np.r_[np.linspace(1, 2, 45), -np.linspace(1, 2, 45)],
    "decades": np.logspace(-9, 2, 90),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_exact_for_polynomials_of_twice_the_degree(with_spectrum, name, steps):
    A = with_spectrum(SPECTRA[name] / np.abs(SPECTRA[name]).max())
    Z = starts(A.dim, 3)
    values, masses = measures(A.matrix, Z)
    for chain, mass, z in zip(lockstep(A, Z, steps), masses.T, Z.T, strict=True):
        assert chain.mass == pytest.approx(float(z @ z), rel=1e-12)
        for degree in range(2 * steps):
            exact = float(mass @ values**degree)
            rule = float(chain.weights @ chain.nodes**degree)
            assert rule == pytest.approx(exact, abs=1e-12)
        if not chain.exact:  # and no further: the error of the next power is known
            error = float(mass @ values ** (2 * steps)) - float(
                chain.weights @ chain.nodes ** (2 * steps)
            )
            assert error == pytest.approx(float(chain.off.square().prod()), abs=1e-12)
            nodes, weights = chain.rule_through([-3.0])
            assert np.abs(nodes + 3).min() < 1e-12
            assert weights[0] @ nodes[0] ** (2 * steps) == pytest.approx(
                float(mass @ values ** (2 * steps)), abs=1e-9
            )


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_brackets_hold_the_mass_of_the_start(with_spectrum, name, steps):
    """A theorem, so no seed may fail; at eigenvalues, at nodes and beside them too."""
    A = with_spectrum(SPECTRA[name])
    Z = starts(A.dim, 3, seed=steps)
    values, masses = measures(A.matrix, Z)
    spread = values.max() - values.min()
    for chain, mass in zip(lockstep(A, Z, steps), masses.T, strict=True):
        nodes = chain.nodes.numpy()
        at = np.concatenate(
            [
                np.linspace(values.min() - spread, values.max() + spread, 41),
                values[::5],
                nodes,
                nodes * (1 + 1e-12),
                nodes - 1e-9 * spread,
                nodes + 1e-5 * spread,
                [0.0],
            ]
        )
        truth = np.array([mass[values < x].sum() for x in at])
        lower, upper = chain.brackets(at)
        assert (lower <= truth + 1e-12).all()
        assert (truth <= upper + 1e-12).all()
        x = float(at[7])
        assert chain.mass_below(x) == (lower[7], upper[7])
        for value in values[::10].tolist():
            heaviest = mass[np.abs(values - value) <= 1e-12 * spread].sum()
            assert heaviest <= chain.largest_atom(value) + 1e-12


def test_brackets_narrow_and_a_narrower_one_would_fail(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 90))
    Z = starts(90, 8)
    values, masses = measures(A.matrix, Z)
    widths, misses = [], 0
    for steps in (5, 20, 60):
        chains = lockstep(A, Z, steps)
        both = [chain.mass_below(0.503) for chain in chains]
        widths.append(np.mean([high - low for low, high in both]))
        for (low, high), mass in zip(both, masses.T, strict=True):
            truth, quarter = mass[values < 0.503].sum(), (high - low) / 4
            misses += not low + quarter <= truth <= high - quarter
    assert widths[0] > widths[1] > widths[2]
    assert misses >= 3


@pytest.mark.parametrize("memory", ["2 GiB", 4400])
def test_no_phantoms_of_a_low_rank_matrix(with_spectrum, memory):
    """PyHessian finds -0.415 and 0.429 here, in nine steps."""
    A = with_spectrum([3.0, 2.0, 1.0] + [0.0] * 7)
    for chain in lockstep(A, starts(10, 6), 9, memory=memory):
        assert chain.exact
        assert chain.full == (memory != 4400)
        assert chain.steps == 4
        assert chain.nodes.tolist() == pytest.approx([0, 1, 2, 3], abs=1e-12)
        assert float(chain.weights.sum()) == pytest.approx(1, abs=1e-12)
    single = with_spectrum([3.0, 2.0, 1.0] + [0.0] * 7, torch.float32)
    values = torch.tensor([0.0, 1.0, 2.0, 3.0]).double()
    for chain in lockstep(single, starts(10, 6, dtype=torch.float32), 9, memory=memory):
        assert float((chain.nodes[:, None] - values).abs().min(1).values.max()) < 1e-5


def test_degenerate_matrices():
    zero = lockstep(MatrixOperator(torch.zeros(5, 5)), torch.ones(5, 2), 4)
    assert [(c.steps, c.exact, c.nodes.tolist()) for c in zero] == [(1, True, [0.0])] * 2
    (one,) = lockstep(MatrixOperator(torch.tensor([[-2.0]])), torch.ones(1, 1), 10)
    assert one.exact
    assert one.nodes.tolist() == [-2.0]
    assert one.mass_below(-1.0) == (1.0, 1.0)
    assert one.mass_below(-3.0) == (0.0, 0.0)
    assert one.largest_atom(-2.0) == 1
    assert one.largest_atom(0.0) == 0


def test_chains_end_apart_and_cost_nothing_after():
    A = MatrixOperator(torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)))
    Z = torch.ones(8, 3, dtype=torch.float64)
    Z[3:, 0] = 0
    Z[:, 1] = 0
    Z[4, 1] = 7
    chains = lockstep(A, Z, 6)
    assert [c.steps for c in chains] == [3, 1, 6]
    assert [c.exact for c in chains] == [True, True, False]
    assert A.cost.hvps == 10
    assert A.cost.passes == 6
    assert [c.mass for c in chains] == pytest.approx([3, 49, 8])


def test_lockstep_equals_each_chain_alone(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 40))
    Z = starts(40, 4)
    together = lockstep(A, Z, 12)
    for i, chain in enumerate(together):
        (alone,) = lockstep(A, Z[:, i : i + 1] * 3, 12)
        assert torch.allclose(alone.diagonal, chain.diagonal, atol=1e-12)
        assert torch.allclose(alone.off, chain.off, atol=1e-12)


def test_restriction_is_a_projector_of_each_chain(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 30))
    masks = torch.zeros(30, 2, dtype=torch.float64)
    masks[:12, 0] = 1
    masks[12:, 1] = 1
    chains = lockstep(A, starts(30, 2), 30, restrict=lambda columns: columns * masks)
    assert [c.steps for c in chains] == [12, 18]
    assert all(c.exact for c in chains)
    for chain, part in zip(chains, (slice(12), slice(12, 30)), strict=True):
        block = torch.linalg.eigvalsh(A.matrix[part, part])
        assert torch.allclose(chain.nodes, block, atol=1e-12)


def test_deflated_eigenvalues_do_not_come_back(with_spectrum):
    A = with_spectrum([1e6, 1e5, *np.linspace(0, 1, 60)])
    top = torch.linalg.eigh(A.matrix)[1][:, -2:]
    chains = lockstep(A, starts(62, 4), 50, restrict=lambda V: V - top @ (top.T @ V))
    assert max(float(c.nodes.max()) for c in chains) < 1 + 1e-6
    ghosts = lockstep(A, starts(62, 4), 50)  # without it the outliers are there
    assert min(float(c.nodes.max()) for c in ghosts) > 1e5


def test_nothing_but_rounding_left_after_deflation(with_spectrum):
    """The scale says that what is left is nothing; without it noise looks asymmetric."""
    A = with_spectrum([2.0] * 5 + [0.0] * 60)
    top = torch.linalg.eigh(A.matrix)[1][:, -5:]
    restrict = lambda V: V - top @ (top.T @ V)  # noqa: E731
    for chain in lockstep(A, starts(65, 3), 9, restrict=restrict, scale=2.0):
        assert chain.exact
        assert chain.nodes.tolist() == pytest.approx([0.0], abs=1e-14)


def test_little_memory_is_said_and_loses_copies_not_mass(with_spectrum):
    A = with_spectrum([50.0, 30.0, 20.0, *np.linspace(0, 1, 300)])
    Z = starts(303, 2)
    full, local = lockstep(A, Z, 100), lockstep(A, Z, 100, memory="50 kB")
    assert all(c.full for c in full)
    assert not any(c.full for c in local)
    assert int((full[0].nodes > 10).sum()) == 3
    for one, other in zip(full, local, strict=True):
        for least in (10, 25, 40):
            heavy = [float(c.weights[c.nodes > least].sum()) for c in (one, other)]
            assert heavy[0] == pytest.approx(heavy[1], rel=1e-6)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_properties_of_any_chain(dim, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    A = MatrixOperator(matrix + matrix.T)
    (chain,) = lockstep(A, torch.ones(dim, 1, dtype=torch.float64), steps)
    assert 1 <= chain.steps <= min(steps, dim)
    assert float(chain.weights.sum()) == pytest.approx(1)
    assert bool((chain.nodes.diff() > 0).all())
    values = torch.linalg.eigvalsh(A.matrix)
    for node, residual in zip(chain.nodes, chain.residuals, strict=True):
        assert float((values - node).abs().min()) <= float(residual) + 1e-10
    low, high = chain.mass_below(0.1)
    assert 0 <= low <= high <= 1


def test_no_overflow_far_away_or_in_tiny_units():
    A = MatrixOperator(torch.diag(torch.linspace(1, 2, 400, dtype=torch.float64)) * 1e-200)
    (chain,) = lockstep(A, torch.ones(400, 1, dtype=torch.float64), 60)
    assert chain.mass_below(1e150) == (1, 1)
    assert chain.largest_atom(1e10) == 0
    assert math.isfinite(chain.largest_atom(1.5e-200))


class Shifting(MatrixOperator):
    """A product that is not symmetric."""

    def _product(self, vectors):
        return super()._product(vectors) + 0.1 * vectors.roll(1, 0)


class Broken(MatrixOperator):
    """A product that overflows."""

    def _product(self, vectors):
        return super()._product(vectors) * math.nan


def test_what_cannot_be(with_spectrum, unchecked):
    A = with_spectrum(np.linspace(-1, 2, 20))
    with pytest.raises(ValueError, match="steps=0: a chain takes at least one step"):
        lockstep(A, starts(20, 1), 0)
    with pytest.raises(ValueError, match=r"shape \(19, 1\); one chain per column"):
        lockstep(A, starts(19, 1), 3)
    with pytest.raises(ValueError, match="start 1 of 2 is zero"):
        lockstep(A, torch.tensor([[1.0, 0.0]] * 20, dtype=torch.float64), 3)
    with pytest.raises(ValueError, match="is not symmetric"):
        lockstep(Shifting(A.matrix), starts(20, 2), 5)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        lockstep(Broken(A.matrix), starts(20, 2), 5)
    with pytest.raises(ValueError, match="memory must be a positive size"):
        lockstep(A, starts(20, 1), 3, memory="lots")
    (chain,) = lockstep(A, starts(20, 1), 3)
    with pytest.raises(ValueError, match="the chain has 3 steps and cannot be cut to 4"):
        chain.shortened(4)
    assert isinstance(chain.shortened(2), Tridiagonal)
