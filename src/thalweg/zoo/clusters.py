"""Lennard-Jones clusters: many minima and passes, all of them known for a few atoms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.landscape.protocols import Ledger, Point, check_theta

__all__ = [
    "LENNARD_JONES_MERGES",
    "LENNARD_JONES_MINIMA",
    "LENNARD_JONES_PASSES",
    "Cluster",
    "lennard_jones",
]

LENNARD_JONES_MINIMA: dict[int, tuple[float, ...]] = {
    2: (-1.0,),
    3: (-3.0,),
    4: (-6.0,),
    5: (-9.103852,),
    6: (-12.712062, -12.302928),
    7: (-16.505384, -15.935043, -15.593211, -15.533060),
    13: (-44.326801,),
    38: (-173.928427, -173.252378),
}
"""Energies of the isomers, lowest first: all of them up to 7 atoms, the lowest for 13.

For 38 the bottoms of the two funnels, a truncated octahedron and a part of an icosahedron.
"""

LENNARD_JONES_MERGES: dict[int, tuple[float, ...]] = {7: (-15.4447, -15.3199, -15.2834)}
"""The energies at which the isomers of 7 atoms join, lowest first.

From our own searches, not from print, to the digits given.
"""

LENNARD_JONES_PASSES: dict[int, tuple[float, ...]] = {
    7: (
        *(-15.4447, -15.3199, -15.2834, -15.0978, -15.0334, -15.0264),
        *(-14.8164, -14.8111, -14.5969, -14.5681, -14.5486, -13.6338),
    )
}
"""The energies of the distinct saddles of index 1 that we know.

All of them come from our own searches, none from print; no proof that there are no others.
"""


class Cluster(FunctionLandscape):
    r"""Atoms that attract and repel each other in pairs, without rigid motions.

    Attributes:
        atoms: How many atoms, $n$.
        energies: The known energies of the isomers, lowest first.
        merges: The known energies at which they join.
        passes: The known energies of the saddles of index 1.
    """

    def __init__(self, atoms: int) -> None:
        """Build the landscape and keep its facts."""
        self.atoms = atoms
        self.energies = LENNARD_JONES_MINIMA.get(atoms, ())
        self.merges = LENNARD_JONES_MERGES.get(atoms, ())
        self.passes = LENNARD_JONES_PASSES.get(atoms, ())
        # where each coordinate of theta goes among the 3n of the atoms
        free = [3] if atoms == 2 else [3, 6, 7, *range(9, 3 * atoms)]
        self._free = torch.tensor(free)
        self._pairs = torch.triu_indices(atoms, atoms, 1)
        super().__init__(self._energy, len(free), start=self._compact)

    def positions(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch atoms 3"]:
        """Return where the atoms are.

        Args:
            theta: Coordinates, `(..., dim)`.

        Returns:
            The positions, `(..., n, 3)`.
        """
        whole = theta.new_zeros(*theta.shape[:-1], 3 * self.atoms)
        whole = whole.index_copy(-1, self._free, theta)
        placed: Tensor = whole.reshape(*theta.shape[:-1], self.atoms, 3)
        return placed

    def coordinates(
        self, positions: Float[Tensor, "*batch atoms 3"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return the coordinates of atoms anywhere in space, turned into the fixed gauge.

        Args:
            positions: The positions, `(..., n, 3)`, the first three atoms not in a line.

        Returns:
            The coordinates, `(..., dim)`.
        """
        moved = positions - positions[..., :1, :]
        first = moved[..., 1:3, :].transpose(-1, -2)
        frame = torch.linalg.qr(first, mode="complete").Q
        turned = moved @ frame
        flip = torch.ones_like(turned[..., 0, :])
        flip[..., 0] = torch.where(turned[..., 1, 0] < 0, -1.0, 1.0)
        if self.atoms > 2:
            flip[..., 1] = torch.where(turned[..., 2, 1] < 0, -1.0, 1.0)
        flip[..., 2] = torch.linalg.det(frame).sign() * flip[..., 0] * flip[..., 1]
        flat = (turned * flip[..., None, :]).flatten(-2)
        kept: Tensor = flat.index_select(-1, self._free)
        return kept

    def distances_signature(
        self, theta: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch pairs"]:
        """Return the sorted distances between the atoms.

        They are the same for all permutations, rotations and reflections of an isomer.

        Args:
            theta: Coordinates, `(..., dim)`.

        Returns:
            The distances, `(..., n(n-1)/2)`, the shortest first.
        """
        ordered: Tensor = self._squares(self.positions(theta))[1].sqrt().sort(dim=-1).values
        return ordered

    def same_isomer(self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"]) -> bool:
        """Say whether two points are one isomer, by `distances_signature` to 1e-3."""
        gap = self.distances_signature(a) - self.distances_signature(b)
        return float(gap.abs().max()) < 1e-3

    def _squares(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the differences `(..., pairs, 3)` and the squared distances."""
        i, j = self._pairs
        apart = positions.index_select(-2, i) - positions.index_select(-2, j)
        return apart, (apart**2).sum(-1)

    def _energy(self, theta: Tensor) -> Tensor:
        inverse = self._squares(self.positions(theta))[1] ** -3
        return 4 * (inverse * inverse - inverse).sum(-1)

    def _gather(self, forces: Tensor) -> Tensor:
        """Sum what acts on pairs, `(..., pairs, 3)`, into the coordinates."""
        i, j = self._pairs
        total = forces.new_zeros(*forces.shape[:-2], self.atoms, 3)
        total = total.index_add(-2, i, forces).index_add(-2, j, -forces)
        return total.flatten(-2).index_select(-1, self._free)

    def _value_and_gradient(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            apart, squares = self._squares(self.positions(rows))
            inverse = squares**-3
            slopes = 24 * (inverse - 2 * inverse * inverse) / squares
            return (
                4 * (inverse * inverse - inverse).sum(-1),
                self._gather(slopes[..., None] * apart),
            )

    @contextmanager
    def at(self, theta: Float[Tensor, " dim"]) -> Iterator[Point]:
        """Open the cluster at one point."""
        theta = check_theta(theta, self.dim, self.dtype, self.device, single=True)
        if not torch.isfinite(theta).all():
            raise ValueError("theta holds NaN or infinite values, so there is no curvature there")
        yield _ClusterPoint(self, theta.clone(), self._ledger)

    def _compact(self, generator: torch.Generator) -> Tensor:
        """Draw atoms in a ball, none nearer than 0.8 to another, the first three apart."""
        radius = 0.7 * self.atoms ** (1 / 3)
        while True:
            placed = torch.empty(0, 3, dtype=torch.float64)
            for _ in range(200 * self.atoms):
                draw = radius * (2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1)
                clear = bool(((placed - draw).norm(dim=1) > 0.8).all())
                if clear and float(draw.norm()) <= radius:
                    placed = torch.cat([placed, draw[None]])
                if len(placed) == self.atoms:
                    return self.coordinates(placed)
            radius *= 1.1


class _ClusterPoint:
    """A cluster at one point: slopes and curvatures of all pairs."""

    def __init__(self, land: Cluster, theta: Tensor, ledger: Ledger) -> None:
        self.theta, self._land, self._ledger = theta, land, ledger
        self._apart, squares = land._squares(land.positions(theta))
        inverse = squares**-3
        self._slopes = 24 * (inverse - 2 * inverse * inverse) / squares
        self._bends = 96 * (7 * inverse * inverse - 2 * inverse) / squares**2
        self.loss: Tensor = 4 * (inverse * inverse - inverse).sum(-1)
        self.gradient: Tensor = land._gather(self._slopes[..., None] * self._apart)
        ledger.add(losses=1, gradients=1, passes=1)

    def hvp(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the Hessian times each row of `vectors`."""
        vectors = check_theta(vectors, self._land.dim, self.theta.dtype, self.theta.device)
        self._ledger.add(hvps=vectors.numel() // self._land.dim, passes=1)
        shifts = self._land._squares(self._land.positions(vectors))[0]
        along = (self._apart * shifts).sum(-1, keepdim=True)
        return self._land._gather(
            self._slopes[:, None] * shifts + self._bends[:, None] * along * self._apart
        )


def lennard_jones(atoms: int) -> Cluster:
    r"""Return the energy of a Lennard-Jones cluster in a fixed gauge.

    $$V = 4 \sum_{i < j} \left(r_{ij}^{-12} - r_{ij}^{-6}\right)$$

    The first atom lies at the origin, the second on the x axis, the third in the xy plane:
    $3n - 6$ coordinates are left (1 for two atoms), and no rigid motion. Critical points,
    their indices and the heights of passes are those of the cluster in space, unless its
    first three atoms lie in a line. Permuted copies of an isomer remain different points.

    Starts are atoms drawn at random in a ball, none nearer than 0.8 to another.

    Args:
        atoms: How many atoms, $n \ge 2$.

    Returns:
        The landscape, in float64, with its known `energies`, `merges` and `passes`.

    Raises:
        ValueError: If `atoms` is below 2.

    References:
        M. R. Hoare and P. Pal, Adv. Phys. 20 (1971) 161; D. J. Wales and J. P. K. Doye,
        J. Phys. Chem. A 101 (1997) 5111 (the lowest minima).

    Example:
        >>> pair = lennard_jones(2)
        >>> pair.loss(torch.tensor([2 ** (1 / 6)], dtype=torch.float64))
        tensor(-1., dtype=torch.float64)
        >>> lennard_jones(7).energies
        (-16.505384, -15.935043, -15.593211, -15.53306)
    """
    if atoms < 2:
        raise ValueError(f"a cluster has at least 2 atoms, got {atoms}")
    return Cluster(atoms)
