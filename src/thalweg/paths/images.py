"""The images of a string or band: spacing, tangents, and one relaxing step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape

__all__ = ["Images", "advance", "equal_arcs", "spacing", "tangents"]

_SAFETY = 0.7  # of the step 1/curvature
_MOMENTUM = 0.9


@dataclass(frozen=True, eq=False)
class Images:
    """The images, their losses and gradients, and what the steps so far taught."""

    x: Tensor  # (K, dim)
    pinned: tuple[int, ...]  # images that stay, the ends among them
    loss: Tensor  # (K,)
    gradient: Tensor  # (K, dim)
    curvature: Tensor  # (K,) largest curvature met, for the step size
    velocity: Tensor  # (K, dim)

    @property
    def movable(self) -> Tensor:
        """Which images are free to move, `(K,)`."""
        free = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        free[list(self.pinned)] = False
        return free

    @property
    def top(self) -> int:
        """The highest image."""
        return int(self.loss.argmax())


def spacing(x: Float[Tensor, "images dim"]) -> Float[Tensor, " gaps"]:
    """Return the distances between neighbouring images."""
    gaps: Tensor = torch.linalg.vector_norm((x[1:] - x[:-1]).double(), dim=1)
    return gaps


def equal_arcs(
    x: Float[Tensor, "images dim"], pinned: tuple[int, ...]
) -> Float[Tensor, "images dim"]:
    """Redistribute the images at equal arc lengths between pinned ones.

    Example:
        >>> equal_arcs(torch.tensor([[0.0], [3.0], [4.0]]), (0, 2)).flatten().tolist()
        [0.0, 2.0, 4.0]
    """
    knots = torch.cat([x.new_zeros(1, dtype=torch.float64), spacing(x).cumsum(0)])
    wanted = torch.cat(
        [
            torch.linspace(
                float(knots[i]), float(knots[j]), j - i + 1, dtype=torch.float64, device=x.device
            )[:-1]
            for i, j in itertools.pairwise(pinned)
        ]
        + [knots[-1:]]
    )
    i = torch.searchsorted(knots, wanted, right=True).clamp(1, len(x) - 1)
    gap = (knots[i] - knots[i - 1]).clamp_min(1e-300)
    moved: Tensor = torch.lerp(x[i - 1], x[i], ((wanted - knots[i - 1]) / gap).to(x.dtype)[:, None])
    moved[list(pinned)] = x[list(pinned)]
    return moved


def tangents(
    x: Float[Tensor, "images dim"], loss: Float[Tensor, " images"]
) -> Float[Tensor, "inner dim"]:
    """Unit tangents of the inner images that look uphill.

    Source: Henkelman and Jónsson, J. Chem. Phys. 113 (2000) 9978, eqs. 8-11.
    """
    ahead, behind = (x[2:] - x[1:-1]).double(), (x[1:-1] - x[:-2]).double()
    rise, fall = (loss[2:] - loss[1:-1]).double(), (loss[1:-1] - loss[:-2]).double()
    high = torch.maximum(rise.abs(), fall.abs())
    low = torch.minimum(rise.abs(), fall.abs())
    up = (loss[2:] > loss[:-2])[:, None]
    mixed = torch.where(
        up,
        ahead * high[:, None] + behind * low[:, None],
        ahead * low[:, None] + behind * high[:, None],
    )
    climbing, falling = ((rise > 0) & (fall > 0))[:, None], ((rise < 0) & (fall < 0))[:, None]
    tangent = torch.where(climbing, ahead, torch.where(falling, behind, mixed))
    norm = torch.linalg.vector_norm(tangent, dim=1, keepdim=True)
    plain = ahead + behind
    tangent = torch.where(norm > 0, tangent, plain)
    norm = torch.linalg.vector_norm(tangent, dim=1, keepdim=True).clamp_min(1e-300)
    unit: Tensor = tangent / norm
    return unit


def _velocity(now: Images, across: Tensor) -> Tensor:
    """Add the step across the string to the momentum, within reach."""
    uphill = (now.velocity * across).sum(1, keepdim=True) > 0
    kept = torch.where(uphill, 0.0, _MOMENTUM * now.velocity)
    velocity = kept - (_SAFETY / now.curvature)[:, None] * across
    reach = 0.5 * float(spacing(now.x).mean())
    norm = torch.linalg.vector_norm(velocity, dim=1, keepdim=True).clamp_min(1e-300)
    within: Tensor = velocity * (reach / norm).clamp_max(1.0)
    return within


def advance(land: Landscape, now: Images) -> Images:
    r"""Move every free image across the string downhill, space them equally, evaluate.

    The step is $1/\lambda_i$ times a safety factor, with $\lambda_i$ the largest ratio of
    change of gradient to distance that the image and its neighbours have met, forgotten
    slowly; momentum restarts where it runs uphill. No image moves by more than half the
    mean spacing.
    """
    free = now.movable
    across = now.gradient.double().clone()
    tangent = tangents(now.x, now.loss)
    across[1:-1] -= (across[1:-1] * tangent).sum(1, keepdim=True) * tangent
    velocity = _velocity(now, across)
    velocity[~free] = 0
    x = equal_arcs((now.x.double() + velocity).to(now.x.dtype), now.pinned)
    loss, gradient = now.loss.clone(), now.gradient.clone()
    loss[free], gradient[free] = land.value_and_gradient(x[free])
    moved = torch.linalg.vector_norm((x - now.x).double(), dim=1)
    change = torch.linalg.vector_norm((gradient - now.gradient).double(), dim=1)
    met = torch.where(moved > 0, change / moved.clamp_min(1e-300), 0.0)
    met[1:-1] = torch.maximum(met[1:-1], torch.maximum(met[2:], met[:-2]))
    curvature = torch.maximum(0.95 * now.curvature, met)
    return Images(x, now.pinned, loss, gradient, curvature, velocity)
