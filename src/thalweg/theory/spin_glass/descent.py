"""Down to a local minimum on the sphere, from many starts at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.kantorovich import certify_points
from thalweg.theory.spin_glass.newton import newton
from thalweg.theory.spin_glass.sphere import (
    check_on_sphere,
    check_points,
    energy_and_gradient,
    on_sphere,
    tangent,
)

__all__ = ["LocalMinima", "local_minima"]

_ARMIJO = 1e-4
_HALVINGS = 25
_HANDOVER = 1e-4  # gradient norm over the radius at which Newton takes over


@dataclass(frozen=True, eq=False)
class LocalMinima:
    r"""Where descents ended, one row for each start, duplicates and all.

    Attributes:
        points: The last points, `(starts, n)`.
        energies: Energies per spin, `(starts,)`.
        lowest: The lowest tangential eigenvalue of the Hessian of H, `(starts,)`.
        certified: Whether a local minimum is proven to lie there, `(starts,)`.
        radii: Within what distance, `(starts,)`.
        steps: L-BFGS steps of the longest descent.
        cost: What it took.
        seed: The seed of the starts.
    """

    points: Float[Tensor, "starts n"]
    energies: Float[Tensor, " starts"]
    lowest: Float[Tensor, " starts"]
    certified: Bool[Tensor, " starts"]
    radii: Float[Tensor, " starts"]
    steps: int
    cost: Cost
    seed: int

    def __str__(self) -> str:
        """Say how many are minima, and their energies."""
        good, total = int(self.certified.sum()), len(self.certified)
        spread = float(self.energies.std()) if total > 1 else 0.0
        text = (
            f"{good} of {total} descents ended at a proven local minimum; energy per spin "
            f"{float(self.energies.mean()):.4f} ± {spread:.4f} (standard deviation), "
            f"lowest eigenvalue {float(self.lowest.mean()):.3g} on average ({self.cost})"
        )
        return text + ("" if good == total else "; raise max_steps=")


def local_minima(
    land: Landscape,
    *,
    starts: int | Float[Tensor, "starts n"] = 32,
    memory: int = 10,
    max_steps: int = 2000,
    seed: Seed = None,
) -> LocalMinima:
    r"""Descend by L-BFGS from every start, and finish by the saddle-free Newton method.

    Each replica keeps its own curvature pairs and backtracks on its own; those that are done
    leave the batch.

    Args:
        land: A landscape on the sphere.
        starts: How many uniform starts, or the points themselves, `(starts, n)`.
        memory: How many curvature pairs each replica keeps.
        max_steps: L-BFGS steps of each.
        seed: Draws the starts.

    Returns:
        The ends, in the order of the starts.

    Raises:
        ValueError: If the landscape does not live on the sphere, or a number is not positive.

    Source: Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 3.1.

    Example:
        >>> from thalweg.theory.spin_glass.model import SphericalPSpin
        >>> ends = local_minima(SphericalPSpin(20, 3, seed=0), starts=8, seed=1)
        >>> bool(ends.certified.all()), bool((ends.lowest > 0).all())
        (True, True)
    """
    if min(memory, max_steps) < 1 or (isinstance(starts, int) and starts < 1):
        raise ValueError(
            f"starts={starts}, memory={memory} and max_steps={max_steps} must be at least 1"
        )
    generator, recorded = make_generator(seed)
    if isinstance(starts, Tensor):
        points = check_points(land, starts)
    else:
        drawn = torch.stack([land.start(generator) for _ in range(starts)])
        points = check_points(land, drawn)
    check_on_sphere(land, points[0])
    before = land.cost
    ends, steps = _lbfgs(land, points, memory, max_steps)
    proofs = None
    block = max(1, 2**23 // land.dim**2)
    for some in torch.split(ends, block):
        runs = newton(land, some, index=0)
        part = certify_points(land, runs.points, seed=generator)
        proofs = [*(proofs or []), part]
    assert proofs is not None
    return LocalMinima(
        points=torch.cat([part.points for part in proofs]),
        energies=torch.cat([part.energies for part in proofs]),
        lowest=torch.cat([part.values[:, 0] for part in proofs]),
        certified=torch.cat([part.resolved & (part.indices == 0) for part in proofs]),
        radii=torch.cat([part.radii for part in proofs]),
        steps=steps,
        cost=land.cost - before,
        seed=recorded,
    )


def _lbfgs(land: Landscape, points: Tensor, memory: int, max_steps: int) -> tuple[Tensor, int]:
    """Return where L-BFGS takes every row, and the steps of the longest run."""
    n, ends = land.dim, points.clone()
    radius = math.sqrt(n)
    rows = torch.arange(len(points), device=points.device)
    energy, gradient = energy_and_gradient(land, points)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    steps = 0
    for _ in range(max_steps):
        steps += 1
        direction = tangent(points, -_two_loop(gradient, pairs))
        slope = (direction * gradient).sum(1)
        size = torch.linalg.vector_norm(gradient, dim=1)
        length = torch.linalg.vector_norm(direction, dim=1)
        bad = ~(slope < -1e-8 * length * size)
        direction = torch.where(bad[:, None], -gradient, direction)
        length = torch.where(bad, size, length)
        slope = torch.where(bad, -(size**2), slope)
        reach = 0.1 if not pairs else 0.5
        first = (reach * radius / length.clamp(min=1e-300)).clamp(max=1.0)
        new, u, g, moved = _backtrack(land, points, energy, direction, slope, first)
        step, change = new - points, g - gradient
        product = (step * change).sum(1)
        rho = torch.where(product > 1e-12 * (change**2).sum(1), 1 / product, 0.0)
        pairs = [*pairs, (step, change, rho)][-memory:]
        points, energy, gradient = new, u, g
        ends[rows] = points
        norms = torch.linalg.vector_norm(gradient, dim=1)
        going = moved & (norms > _HANDOVER * radius)
        if not bool(going.any()):
            break
        if not bool(going.all()):
            rows, points, energy, gradient = (x[going] for x in (rows, points, energy, gradient))
            pairs = [(s[going], y[going], r[going]) for s, y, r in pairs]
    return ends, steps


def _two_loop(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the inverse Hessian's estimate times the gradient, row by row."""
    out, factors = gradient.clone(), []
    for step, change, rho in reversed(pairs):
        factor = rho * (step * out).sum(1)
        out = out - factor[:, None] * change
        factors.append(factor)
    if pairs:
        step, change, rho = pairs[-1]
        scale = (step * change).sum(1) / (change**2).sum(1).clamp(min=1e-300)
        out = out * torch.where(rho > 0, scale, scale.abs())[:, None]
    for (step, change, rho), factor in zip(pairs, reversed(factors), strict=True):
        out = out + (factor - rho * (change * out).sum(1))[:, None] * step
    return out


def _backtrack(
    land: Landscape, points: Tensor, energy: Tensor, direction: Tensor, slope: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each row's step until its energy falls enough; say which rows moved."""
    length = first.clone()
    new, u, g = points.clone(), energy.clone(), torch.zeros_like(points)
    moved = torch.zeros_like(energy, dtype=torch.bool)
    for _ in range(_HALVINGS):
        rows = (~moved).nonzero()[:, 0]
        if len(rows) == 0:
            break
        trial = on_sphere(points[rows] + length[rows, None] * direction[rows])
        value, gradient = energy_and_gradient(land, trial)
        fine = value <= energy[rows] + _ARMIJO * length[rows] * slope[rows] / land.dim
        taken = rows[fine]
        new[taken], u[taken], g[taken] = trial[fine], value[fine], gradient[fine]
        moved[taken] = True
        length[rows[~fine]] /= 2
    still = (~moved).nonzero()[:, 0]
    if len(still):
        g[still] = energy_and_gradient(land, points[still])[1]
    return new, u, g, moved
