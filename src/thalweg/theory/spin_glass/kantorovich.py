r"""Prove that a critical point lies near a computed one, and count its ways down.

In the chart $x \mapsto \sigma + V x$ of the half sphere around $\sigma$, with $V$ an
orthonormal frame of the tangent space, $\varphi(x) = H(\sqrt n\, y/|y|)$ at $y = \sigma + V x$
has the critical points of $H$, with the same indices. Newton and Kantorovich: with
$\beta = |\varphi''(0)^{-1}|$, $\eta = |\varphi''(0)^{-1} \varphi'(0)|$ and $K$ a Lipschitz
constant of $\varphi''$, $h = \beta \eta K \le 1/2$ proves one critical point within
$2\eta / (1 + \sqrt{1 - 2h})$, and no other within $(1 + \sqrt{1 - 2h}) / (\beta K)$.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thalweg.estimate import BoundKind, Cost
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.sphere import (
    check_on_sphere,
    check_points,
    eigensystem,
    energy_and_gradient,
    hessian_lipschitz,
)

__all__ = ["PointCertificates", "certify_points"]

FLAT = 0.9  # Frye et al.: above it a Newton step hardly changes the gradient
_KERNEL = 1e-7  # of the largest eigenvalue: below it an eigenvalue counts as zero for a step


@dataclass(frozen=True, eq=False)
class PointCertificates:
    r"""What is known about points that may be critical, one row for each.

    Attributes:
        points: The points, on the sphere, `(k, n)`.
        energies: Energies per spin, `(k,)`.
        gradient_norms: Riemannian gradient norms of H, `(k,)`.
        rounding: The gradient norm that rounding may leave, `(k,)`: a bound for errors that
            are as good as independent (Higham and Mary 2019), not for the worst case.
        values: Tangential eigenvalues of the Hessian of H, rising, `(k, n - 1)`.
        eigenvalue_errors: How far those may lie from the critical point's own, `(k,)`.
        radii: A critical point lies within this, as a distance in the chart; infinite
            without proof, `(k,)`.
        unique: No other lies within this; 0 without proof, `(k,)`.
        critical: Whether it is proven that a critical point lies there, `(k,)`.
        flat: Whether $|Hp + g| / (|H|_F |p| + |g|) > 0.9$ for the least-squares Newton step
            $p$ and the gradient is above rounding: gradient-flat, not critical, `(k,)`.
        indices: How many of `values` are negative, `(k,)`.
        resolved: Whether the point is critical and no eigenvalue lies within its error of 0,
            so that `indices` is the critical point's index, `(k,)`.
        lipschitz: $K$.
        lipschitz_kind: ``"certified"`` by a formula, or ``"estimated"`` from differences.
        cost: What it took.
        seed: The seed of the differences.
    """

    points: Float[Tensor, "k n"]
    energies: Float[Tensor, " k"]
    gradient_norms: Float[Tensor, " k"]
    rounding: Float[Tensor, " k"]
    values: Float[Tensor, "k m"]
    eigenvalue_errors: Float[Tensor, " k"]
    radii: Float[Tensor, " k"]
    unique: Float[Tensor, " k"]
    critical: Bool[Tensor, " k"]
    flat: Bool[Tensor, " k"]
    indices: Int[Tensor, " k"]
    resolved: Bool[Tensor, " k"]
    lipschitz: float
    lipschitz_kind: BoundKind
    cost: Cost
    seed: int

    def __str__(self) -> str:
        """Say how many are critical, and what the others are."""
        k, critical, flat = len(self.critical), int(self.critical.sum()), int(self.flat.sum())
        text = (
            f"{critical} of {k} points are critical (Newton-Kantorovich, {self.lipschitz_kind} "
            f"Lipschitz constant {self.lipschitz:.3g})"
        )
        if critical:
            text += f", within {float(self.radii[self.critical].max()):.2g} of where they are given"
        if critical > int(self.resolved.sum()):
            text += f"; {critical - int(self.resolved.sum())} of them of unresolved index"
        if flat:
            text += f"; {flat} gradient-flat, not critical"
        if k - critical - flat:
            text += f"; {k - critical - flat} undecided: run newton() on them"
        return text


def certify_points(
    land: Landscape,
    points: Float[Tensor, "*batch n"],
    *,
    lipschitz: tuple[float, BoundKind] | None = None,
    seed: Seed = None,
    block: int = 16,
) -> PointCertificates:
    r"""Say which points lie at a critical point, how near, and of which index.

    Args:
        land: A landscape on the sphere.
        points: Candidates, `(..., n)`.
        lipschitz: What `hessian_lipschitz` returned, to spare asking again.
        seed: Draws the directions of difference quotients, where the landscape has no formula
            for the Lipschitz constant of its Hessian.
        block: How many Hessians are held at once.

    Returns:
        One row for each point.

    Raises:
        ValueError: If the landscape does not live on the sphere, or a point is no direction.

    Source: Kantorovich; Ortega, Amer. Math. Monthly 75 (1968) 658. Gradient-flat points:
        Frye et al., Neural Computation 33 (2021).

    Example:
        >>> from thalweg.theory.spin_glass.model import SphericalPSpin
        >>> form = SphericalPSpin.from_tensors({2: torch.diag(torch.tensor([1.0, 2, 3])).double()})
        >>> found = certify_points(form, torch.eye(3, dtype=torch.float64), seed=0)
        >>> found.indices.tolist(), found.critical.tolist()
        ([0, 1, 2], [True, True, True])
    """
    sigma = check_points(land, points)
    if len(sigma) == 0:
        raise ValueError("there are no points to certify")
    check_on_sphere(land, sigma[0])
    before = land.cost
    generator, recorded = make_generator(seed)
    constant, kind = lipschitz or hessian_lipschitz(land, sigma[0], generator)
    parts = [_certify(land, some, constant) for some in torch.split(sigma, block)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return PointCertificates(
        points=sigma,
        lipschitz=constant,
        lipschitz_kind=kind,
        cost=land.cost - before,
        seed=recorded,
        **joined,
    )


def _certify(land: Landscape, sigma: Tensor, lipschitz: float) -> dict[str, Tensor]:
    """Return the columns of the certificates of some points."""
    n, eps = land.dim, torch.finfo(land.dtype).eps
    energy, gradient = energy_and_gradient(land, sigma)
    values, vectors = eigensystem(land, sigma)
    norm = torch.linalg.vector_norm(gradient, dim=1)
    along = (vectors * gradient[:, :, None]).sum(1)
    largest, smallest = values.abs().amax(1), values.abs().amin(1)
    # n products summed, of numbers of the size of the curvature times a spin
    rounding = 4 * eps * n**0.5 * largest * n**0.5
    noise = 4 * eps * n * largest  # of an eigenvalue
    beta = 1 / (smallest - noise).clamp(min=0)
    newton = torch.linalg.vector_norm(along / values, dim=1)
    eta = newton / (1 - (beta * noise).clamp(max=0.5)) + beta * rounding
    h = beta * eta * lipschitz
    critical = h <= 0.5
    root = (1 - 2 * h).clamp(min=0).sqrt()
    radii = torch.where(critical, 2 * eta / (1 + root), torch.inf)
    unique = torch.where(critical, (1 + root) / (beta * lipschitz), 0.0)
    curvature = torch.maximum(largest, norm / n**0.5)  # a Hessian may vanish as a whole
    kept = values.abs() > _KERNEL * curvature[:, None]
    step = torch.where(kept, -along / values, 0.0)
    missed = torch.linalg.vector_norm(along + values * step, dim=1)
    frobenius = torch.linalg.vector_norm(values, dim=1)
    scale = frobenius * torch.linalg.vector_norm(step, dim=1) + norm
    flat = (missed > FLAT * scale) & (norm > rounding) & ~critical
    errors = torch.where(critical, noise + lipschitz * radii, torch.inf)
    return {
        "energies": energy,
        "gradient_norms": norm,
        "rounding": rounding,
        "values": values,
        "eigenvalue_errors": errors,
        "radii": radii,
        "unique": unique,
        "critical": critical,
        "flat": flat,
        "indices": (values < 0).sum(1),
        "resolved": critical & (smallest > errors),
    }
