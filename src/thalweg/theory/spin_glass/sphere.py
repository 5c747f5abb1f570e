r"""A landscape on the sphere $|\sigma|^2 = n$: points, gradients, Hessians, Lipschitz constants.

The loss of such a landscape is an energy per spin, $u(\theta) = H(\sqrt n\, \theta/|\theta|)/n$,
which no stretch of $\theta$ changes. The Riemannian gradient and Hessian of $H$ are then $n$
times the tangential parts of those of $u$ at a point of the sphere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import BoundKind
from thalweg.landscape.protocols import Landscape, check_theta

__all__ = [
    "Progress",
    "check_on_sphere",
    "check_points",
    "eigensystem",
    "energy_and_gradient",
    "extended_hessian",
    "hessian_lipschitz",
    "on_sphere",
    "riemannian_hessian",
    "tangent",
]

Progress = Callable[[float, str], None]
"""Called with a fraction in [0, 1] and a message."""


@runtime_checkable
class _DenseHessian(Protocol):
    """A landscape that knows its Riemannian Hessians in closed form."""

    def riemannian_hessian(self, sigma: Tensor) -> Tensor:
        """Return the dense Riemannian Hessian of H, zero along sigma."""
        ...


@runtime_checkable
class _Couplings(Protocol):
    """A landscape that is a sum of tensor forms."""

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degrees that there are."""
        ...

    def tensor_norm(self, degree: int) -> float:
        """Return the Frobenius norm of the symmetric tensor of a degree."""
        ...


def on_sphere(theta: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    r"""Return $\sqrt n\, \theta / |\theta|$."""
    norm = torch.linalg.vector_norm(theta, dim=-1, keepdim=True)
    moved: Tensor = theta * (math.sqrt(theta.shape[-1]) / norm)
    return moved


def tangent(
    sigma: Float[Tensor, "*batch n"], vectors: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch n"]:
    r"""Return $v - \sigma (\sigma \cdot v)/|\sigma|^2$."""
    along = (sigma * vectors).sum(-1, keepdim=True) / (sigma * sigma).sum(-1, keepdim=True)
    return vectors - along * sigma


def extended_hessian(
    curved: Float[Tensor, "*rows n"],
    flat: Float[Tensor, "*rows n"],
    radial: Float[Tensor, "*rows"],
    axis: Float[Tensor, "*#rows n"],
    slope: Float[Tensor, "*#rows n"],
    gradient: Float[Tensor, "*#rows n"],
) -> Float[Tensor, "*rows n"]:
    r"""Return products with the Hessian at radius 1 of a function's degree-zero extension.

    With the unit vector $w$, $P = I - w w^\top$, and a function $f$ of gradient $g$ and
    Hessian $F$ it is $P F P - (w \cdot g) P - (P g) w^\top - w (P g)^\top$.

    Args:
        curved: $F P v$ for every vector $v$.
        flat: $P v$.
        radial: $w \cdot v$.
        axis: $w$.
        slope: $g$.
        gradient: $P g$.
    """
    pull = (slope * axis).sum(-1, keepdim=True)
    projected = curved - (curved * axis).sum(-1, keepdim=True) * axis
    across = (flat * gradient).sum(-1, keepdim=True)
    return projected - pull * flat - radial[..., None] * gradient - across * axis


def check_on_sphere(land: Landscape, sigma: Tensor) -> None:
    """Refuse a landscape whose loss changes when a point is stretched.

    Raises:
        ValueError: If doubling a vector changes its loss beyond rounding.
    """
    one, two = land.loss(torch.stack([sigma, 2 * sigma])).tolist()
    if not abs(one - two) <= 1e4 * torch.finfo(land.dtype).eps * max(1.0, abs(one)):
        raise ValueError(
            f"this landscape does not live on the sphere: its loss is {one:.6g} at a point of "
            f"radius sqrt({land.dim}) and {two:.6g} at twice that point; pass one whose loss "
            "depends on the direction alone, such as SphericalPSpin, or "
            "FunctionLandscape(lambda x: f(x / x.norm()), dim)"
        )


def energy_and_gradient(
    land: Landscape, sigma: Float[Tensor, "batch n"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch n"]]:
    """Return energies per spin, and the Riemannian gradients of H."""
    energy, gradient = land.value_and_gradient(sigma)
    return energy, tangent(sigma, land.dim * gradient)


def riemannian_hessian(
    land: Landscape, sigma: Float[Tensor, "batch n"]
) -> Float[Tensor, "batch n n"]:
    """Return the dense Riemannian Hessians of H: symmetric, zero along the point itself.

    From the landscape's own formula where it has one, else from n Hessian products.
    """
    if isinstance(land, _DenseHessian):
        dense: Tensor = land.riemannian_hessian(sigma)
        return dense
    n = land.dim
    frame = torch.eye(n, dtype=sigma.dtype, device=sigma.device)
    matrices = []
    for point in sigma:
        with land.at(point) as here:
            plain = n * here.hvp(frame)
        flat = frame - torch.outer(point, point) / n
        matrices.append(flat @ ((plain + plain.T) / 2) @ flat)
    return torch.stack(matrices)


def eigensystem(
    land: Landscape, sigma: Float[Tensor, "batch n"]
) -> tuple[Float[Tensor, "batch m"], Float[Tensor, "batch n m"]]:
    """Return the n - 1 tangential eigenvalues of the Riemannian Hessian, rising, and vectors."""
    matrix = riemannian_hessian(land, sigma)
    top = torch.linalg.matrix_norm(matrix)[:, None, None] + 1  # moves the radial zero to the end
    radial = sigma[:, :, None] * sigma[:, None, :] / sigma.shape[-1]
    values, vectors = torch.linalg.eigh(matrix + 2 * top * radial)
    return values[:, :-1], vectors[:, :, :-1]


def hessian_lipschitz(
    land: Landscape, sigma: Float[Tensor, " n"], generator: torch.Generator
) -> tuple[float, BoundKind]:
    r"""Return a Lipschitz constant of the Hessian of $H(\sqrt n\, y/|y|)$ for $|y|^2 \ge n$.

    For $H = \sum_p \langle T_p, \sigma^{\otimes p} \rangle$ it is

    $$K = \sum_p |T_p|_F\, n^{(p-3)/2} [p(p-1)(p-2) + 2\sqrt3\, p(p-1) + 3p],$$

    because $|D^2 (y/|y|)| \le 2/\sqrt3$ and $|D^3 (y/|y|)| \le 3$ where $|y| = 1$, and no form
    exceeds the Frobenius norm of its tensor. Elsewhere it is measured: the Hessian's change
    along 8 random directions at `sigma`, whose root mean square times $\sqrt n$ estimates the
    Frobenius norm of the third derivative.

    Args:
        land: A landscape on the sphere.
        sigma: Where to measure if there is no formula, `(n,)`.
        generator: Draws the directions.

    Returns:
        The constant, and ``"certified"`` or ``"estimated"``.
    """
    n = land.dim
    if isinstance(land, _Couplings):
        parts = (
            land.tensor_norm(p)
            * n ** ((p - 3) / 2)
            * (p * (p - 1) * (p - 2) + 2 * math.sqrt(3) * p * (p - 1) + 3 * p)
            for p in land.degrees
        )
        return sum(parts), "certified"
    step, count = 1e-4 * math.sqrt(n), 8
    drawn = torch.randn(count, n, generator=generator, dtype=sigma.dtype, device=generator.device)
    aside = tangent(sigma.expand(count, n), drawn.to(sigma.device))
    aside = aside / torch.linalg.vector_norm(aside, dim=1, keepdim=True)
    here = riemannian_hessian(land, sigma[None])
    there = riemannian_hessian(land, on_sphere(sigma + step * aside))
    changes = torch.linalg.matrix_norm(there - here) / step
    return math.sqrt(n) * float((changes**2).mean().sqrt()), "estimated"


def check_points(land: Landscape, points: Tensor) -> Float[Tensor, "batch n"]:
    """Return finite points, moved onto the sphere, as rows.

    Raises:
        ValueError: If the shape is wrong, or a point is zero or not finite.
    """
    points = check_theta(points, land.dim, land.dtype, land.device).reshape(-1, land.dim)
    norms = torch.linalg.vector_norm(points, dim=1)
    bad = int((~(torch.isfinite(norms) & (norms > 0))).sum())
    if bad:
        raise ValueError(f"{bad} of {len(points)} points are zero, NaN or infinite: not directions")
    return on_sphere(points)
