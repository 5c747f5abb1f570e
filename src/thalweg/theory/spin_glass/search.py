"""Find critical points of a landscape on the sphere, from many starts at once."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.critical_points import CriticalPoints, merge
from thalweg.theory.spin_glass.enumeration import enumerate_critical_points
from thalweg.theory.spin_glass.homotopy import class_count
from thalweg.theory.spin_glass.kantorovich import PointCertificates, certify_points
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.newton import newton
from thalweg.theory.spin_glass.sphere import (
    Progress,
    check_on_sphere,
    check_points,
    eigensystem,
    energy_and_gradient,
    hessian_lipschitz,
    on_sphere,
)

__all__ = ["find_critical_points"]

_NUMBERS = 2**23  # entries of the Hessians that are held at once
_CLASSES = 30_000  # of complex critical points, that are followed to be complete
_LONGEST = 60  # steps of a start's way down or up


def find_critical_points(
    landscape: Landscape,
    *,
    starts: int | Float[Tensor, "starts n"] = 200,
    index: int | None = None,
    seed: Seed = None,
    max_steps: int = 150,
    keep_spectra: bool = True,
    complete: bool = False,
    progress: Progress | None = None,
) -> CriticalPoints:
    r"""Find critical points by eigenvector following, prove each, and merge what is the same.

    A third of the starts are uniform on the sphere; the others went down or up from such a
    point, for a number of gradient steps between 1 and 60 that is uniform in its logarithm,
    so that all energies and indices are reached. Each is followed to the index that its own
    Hessian has, or to `index`. Gradient norms are never minimised.

    Args:
        landscape: A landscape on the sphere, such as a `SphericalPSpin`.
        starts: How many, or the points themselves, `(starts, n)`: an annealed sample, say.
        index: Look for this index only.
        seed: Draws the starts.
        max_steps: Newton steps for each start.
        keep_spectra: Whether to keep every point's eigenvalues.
        complete: Find all of them instead, without starts, and prove that none is missing: by
            homotopy, which few spins allow (`enumerate_critical_points`), or at p = 2 from the
            eigenvectors of a matrix. Ask the result's `complete`.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The distinct critical points with how often each was found. What the search did not
        find is not in there: `unseen` estimates how much that is, under the law of the search.
        To go on, search with another seed and `join`.

    Raises:
        ValueError: If the landscape does not live on the sphere, or a number is out of range; or
            `complete` is asked of one that has no couplings, too many spins or degrees of both
            parities.

    Source: Wales, J. Chem. Phys. 101 (1994) 3750, for eigenvector following; Frye et al.,
        Neural Computation 33 (2021), for why not to minimise the gradient norm.

    Example:
        >>> from thalweg.theory.spin_glass.model import SphericalPSpin
        >>> found = find_critical_points(SphericalPSpin(6, 2, seed=0), starts=200, seed=1)
        >>> len(found), found.counts
        (12, {0: 2, 1: 2, 2: 2, 3: 2, 4: 2, 5: 2})
        >>> find_critical_points(SphericalPSpin(3, 3, seed=0), complete=True, seed=0).complete
        True
    """
    if complete:
        return _all(landscape, starts, index, seed, keep_spectra, progress)
    n = landscape.dim
    generator, recorded = make_generator(seed)
    if n < 2:
        raise ValueError(f"a sphere needs at least 2 coordinates, not {n}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if isinstance(starts, Tensor):
        begin, law = check_points(landscape, starts), "given starts"
    else:
        if starts < 1:
            raise ValueError(f"starts must be at least 1, got {starts}")
        begin, law = (
            torch.stack([landscape.start(generator) for _ in range(starts)]),
            "all energies",
        )
        begin = check_points(landscape, begin)
    check_on_sphere(landscape, begin[0])
    before = landscape.cost
    if law == "all energies":
        begin = _spread(landscape, begin, generator)
    lipschitz = hessian_lipschitz(landscape, begin[0], generator)
    total, block = len(begin), max(1, _NUMBERS // n**2)
    method = f"eigenvector following from {law}, Newton-Kantorovich"
    parts: list[CriticalPoints] = []
    for some in torch.split(begin, block):
        wished = (eigensystem(landscape, some)[0] < 0).sum(1) if index is None else index
        runs = newton(landscape, some, index=wished, max_steps=max_steps)
        proofs = certify_points(landscape, runs.points, lipschitz=lipschitz, seed=generator)
        spent, before = landscape.cost - before, landscape.cost
        parts.append(_tally(proofs, index, keep_spectra, spent, recorded, method))
        if progress is not None:
            done = sum(part.starts for part in parts)
            progress(done / total, f"{done} of {total} starts followed")
    return merge(parts)


def _all(
    landscape: Landscape,
    starts: int | Tensor,
    index: int | None,
    seed: Seed,
    keep_spectra: bool,
    progress: Progress | None,
) -> CriticalPoints:
    """Enumerate the critical points of a spin glass, and certify each once more."""
    if not isinstance(landscape, SphericalPSpin):
        raise ValueError(
            f"complete=True follows the couplings' polynomial equations, which this "
            f"{type(landscape).__name__} does not know; pass a SphericalPSpin, or leave it out"
        )
    if isinstance(starts, Tensor):
        raise ValueError("complete=True needs no starts; leave out either")
    classes = class_count(landscape.dim, max(landscape.degrees))
    if classes > _CLASSES:
        raise ValueError(
            f"{landscape.dim} spins at degree {max(landscape.degrees)} have {classes} classes of "
            f"complex critical points, more than {_CLASSES}; leave out complete=True to search"
        )
    before = landscape.cost
    tensors = {degree: landscape.tensor(degree) for degree in landscape.degrees}
    truth = enumerate_critical_points(tensors, seed=seed, most_classes=_CLASSES)
    if progress is not None:
        progress(0.9, f"{len(truth)} critical points enumerated")
    points = truth.points.to(dtype=landscape.dtype, device=landscape.device)
    if len(points) == 0:
        raise ValueError(f"no critical point was found to be certain: {truth.missing}")
    proofs = certify_points(landscape, points, seed=truth.seed)
    lacks = truth.missing
    open_ones = int((~(proofs.resolved & (proofs.indices == truth.indices))).sum())
    if not lacks and open_ones:
        lacks = f"the second proof, by Newton and Kantorovich, fails at {open_ones} points"
    means = "eigenvectors of a matrix" if truth.p == 2 else "homotopy over the complex numbers"
    proven = f"{truth.found} of {truth.expected} complex classes"
    found = _tally(proofs, index, keep_spectra, landscape.cost - before, truth.seed, means)
    if progress is not None:
        progress(1.0, f"{len(truth)} critical points certified")
    found = merge([found])  # by rising energy
    return replace(
        found,
        found=torch.zeros_like(found.found),
        starts=0,
        flat=0,
        lost=0,
        complete=not lacks,
        proof=lacks or f"{proven} proven to exist and to differ, by {means}",
    )


def _spread(land: Landscape, points: Tensor, generator: torch.Generator) -> Tensor:
    """Move two thirds of the points down or up, each for its own number of gradient steps."""
    runs = len(points)
    draws = torch.rand(runs, 2, generator=generator, dtype=torch.float64).to(points.device)
    lengths = torch.exp(draws[:, 0] * math.log(_LONGEST)).ceil()
    ways = torch.where(draws[:, 1] < 0.5, -1.0, 1.0).to(points.dtype)
    lengths[::3] = 0
    step = 0.5 / float(eigensystem(land, points[:1])[0].abs().max())
    for taken in range(int(lengths.max())):
        rows = (lengths > taken).nonzero()[:, 0]
        _, gradient = energy_and_gradient(land, points[rows])
        points[rows] = on_sphere(points[rows] + step * ways[rows, None] * gradient)
    return points


def _tally(
    proofs: PointCertificates,
    index: int | None,
    keep_spectra: bool,
    cost: Cost,
    seed: int,
    method: str,
) -> CriticalPoints:
    """Return the proven points, each as found by one start, and how the others failed."""
    rows = proofs.critical
    if index is not None:
        rows = rows & (proofs.indices == index)
    flat = int(proofs.flat.sum())
    return CriticalPoints(
        points=proofs.points[rows],
        energies=proofs.energies[rows],
        indices=proofs.indices[rows],
        resolved=proofs.resolved[rows],
        values=proofs.values[rows] if keep_spectra else None,
        radii=proofs.radii[rows],
        unique=proofs.unique[rows],
        found=torch.ones(int(rows.sum()), dtype=torch.int64),
        starts=len(rows),
        flat=flat,
        lost=len(rows) - int(rows.sum()) - flat,
        certificate=proofs.lipschitz_kind,
        cost=cost,
        seed=seed,
        method=method,
    )
