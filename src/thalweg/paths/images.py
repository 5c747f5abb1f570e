"""The images of a string or band: spacing, tangents, and one relaxing step."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape

__all__ = [
    "Images",
    "advance",
    "descend",
    "drift",
    "enter",
    "equal_arcs",
    "force",
    "insert",
    "nudge",
    "spacing",
    "tangents",
]

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
    shares: Tensor  # (K - 1,) what the gaps aim at, up to a factor between pinned images

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

    @property
    def finite(self) -> bool:
        """Whether losses and gradients are numbers at all images."""
        return bool(torch.isfinite(self.loss).all() & torch.isfinite(self.gradient).all())

    def state(self) -> dict[str, Any]:
        """Return what `Images.of` needs to make the same images again."""
        return {**vars(self), "pinned": list(self.pinned)}

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device) -> Images:
        """Return the images whose state this is."""
        kept = {name: value for name, value in state.items() if name != "pinned"}
        return cls(
            pinned=tuple(state["pinned"]), **{name: t.to(device) for name, t in kept.items()}
        )


def spacing(x: Float[Tensor, "images dim"]) -> Float[Tensor, " gaps"]:
    """Return the distances between neighbouring images."""
    gaps: Tensor = torch.linalg.vector_norm((x[1:] - x[:-1]).double(), dim=1)
    return gaps


def _wanted(total: Tensor, pinned: tuple[int, ...], shares: Tensor) -> Float[Tensor, " images"]:
    """Return the arc lengths at which the images belong, those of pinned ones as they are."""
    places = total.clone()
    for i, j in itertools.pairwise(pinned):
        part = shares[i:j].double().cumsum(0)
        places[i + 1 : j + 1] = total[i] + (total[j] - total[i]) * part / part[-1]
    places[list(pinned)] = total[list(pinned)]
    return places


def equal_arcs(
    x: Float[Tensor, "images dim"],
    pinned: tuple[int, ...],
    shares: Float[Tensor, " gaps"] | None = None,
) -> Float[Tensor, "images dim"]:
    """Redistribute the images along the polyline, between pinned ones.

    Args:
        x: The images.
        pinned: Those that stay, the ends among them, in order.
        shares: What the gaps aim at, up to a factor; equal ones by default.

    Returns:
        The images, at arc lengths in the proportions of `shares`.

    Example:
        >>> equal_arcs(torch.tensor([[0.0], [3.0], [4.0]]), (0, 2)).flatten().tolist()
        [0.0, 2.0, 4.0]
    """
    knots = torch.cat([x.new_zeros(1, dtype=torch.float64), spacing(x).cumsum(0)])
    wanted = _wanted(knots, pinned, torch.ones_like(knots[1:]) if shares is None else shares)
    i = torch.searchsorted(knots, wanted, right=True).clamp(1, len(x) - 1)
    gap = (knots[i] - knots[i - 1]).clamp_min(1e-300)
    moved: Tensor = torch.lerp(x[i - 1], x[i], ((wanted - knots[i - 1]) / gap).to(x.dtype)[:, None])
    moved[list(pinned)] = x[list(pinned)]
    return moved


def nudge(
    x: Float[Tensor, "images dim"], size: float, generator: torch.Generator
) -> Float[Tensor, "images dim"]:
    """Bend the images at random by `size` of their length, so that no symmetry holds them."""
    t = torch.linspace(0, math.pi, len(x), dtype=torch.float64)
    waves = torch.stack([torch.sin(k * t) for k in (1, 2, 3)], dim=1)
    noise = torch.randn(3, x.shape[1], generator=generator, dtype=torch.float64)
    noise /= math.sqrt(x.shape[1])
    length = float(spacing(x).sum())
    bent = x.double() + (size * length * waves @ noise).to(x.device)
    bent[0], bent[-1] = x[0].double(), x[-1].double()
    return bent.to(x.dtype)


def enter(
    land: Landscape,
    x: Float[Tensor, "images dim"],
    pinned: tuple[int, ...],
    shares: Float[Tensor, " gaps"] | None = None,
) -> Images:
    """Evaluate images for the first time; the step follows the change of their gradients."""
    loss, gradient = land.value_and_gradient(x)
    space = spacing(x).clamp_min(1e-300)
    change = torch.linalg.vector_norm((gradient[1:] - gradient[:-1]).double(), dim=1)
    largest = float((change / space).nan_to_num(0.0, 0.0, 0.0).max())
    curvature = torch.full_like(loss, largest or 1.0, dtype=torch.float64)
    shares = torch.ones_like(space) if shares is None else shares
    return Images(x, pinned, loss, gradient, curvature, torch.zeros_like(x).double(), shares)


def insert(land: Landscape, now: Images, gaps: list[int], fractions: list[float]) -> Images:
    """Put new images into gaps, at these fractions of them; the others keep what they know.

    The gaps then aim at the lengths they have.
    """
    at, part = torch.tensor(gaps), torch.tensor(fractions, dtype=now.x.dtype)
    at = at.to(now.x.device)
    new = torch.lerp(now.x[at], now.x[at + 1], part.to(now.x.device)[:, None])
    loss, gradient = land.value_and_gradient(new)
    order = torch.cat([torch.arange(len(now.x), device=at.device) + 0.0, at + 0.5]).argsort()

    def merge(old: Tensor, added: Tensor) -> Tensor:
        return torch.cat([old, added])[order]

    x = merge(now.x, new)
    return Images(
        x,
        tuple(i + sum(g < i for g in gaps) for i in now.pinned),
        merge(now.loss, loss),
        merge(now.gradient, gradient),
        merge(now.curvature, torch.maximum(now.curvature[at], now.curvature[at + 1])),
        merge(now.velocity, torch.zeros_like(new).double()),
        spacing(x),
    )


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


def force(
    now: Images, *, spring: float = math.inf, climber: int | None = None
) -> Float[Tensor, "images dim"]:
    r"""Return what an image moves against: $\nabla L$ across the string, springs along it.

    $$\nabla L - (\nabla L\cdot\tau)\tau - k_i\,(\delta_{i+1} - \delta_i)\,\tau,$$ with
    $\delta$ how much longer a gap is than it should be, and $k_i$ = `spring` times the
    curvature that the image has met. The climbing image feels no spring and goes up:
    $\nabla L - 2(\nabla L\cdot\tau)\tau$. An infinite spring adds nothing here: the images
    are put back in their places instead.

    Source: Henkelman and Jónsson, J. Chem. Phys. 113 (2000) 9978, eqs. 4 and 12;
    Henkelman, Uberuaga and Jónsson, J. Chem. Phys. 113 (2000) 9901, eq. 5.
    """
    across = now.gradient.double().clone()
    tangent = tangents(now.x, now.loss)
    along = (across[1:-1] * tangent).sum(1, keepdim=True)
    across[1:-1] -= along * tangent
    if math.isfinite(spring):
        gaps = spacing(now.x)
        knots = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
        over = gaps - _wanted(knots, now.pinned, now.shares).diff()
        pull = spring * now.curvature[1:-1] * (over[1:] - over[:-1])
        if climber is not None:
            pull[climber - 1] = 0
        across[1:-1] -= pull[:, None] * tangent
    if climber is not None:
        across[climber] -= along[climber - 1] * tangent[climber - 1]
    return across


def _shift(
    now: Images, *, spring: float, climber: int | None, scale: float, noisy: bool
) -> tuple[Tensor, Tensor]:
    """Return where the images go, and their velocity: momentum, within reach."""
    against = force(now, spring=spring, climber=climber)
    uphill = (now.velocity * against).sum(1, keepdim=True) > 0
    kept = _MOMENTUM * now.velocity
    if not noisy:
        kept = torch.where(uphill, 0.0, kept)
    velocity = kept - scale * (_SAFETY / now.curvature)[:, None] * against
    reach = 0.5 * float(spacing(now.x).mean())
    norm = torch.linalg.vector_norm(velocity, dim=1, keepdim=True).clamp_min(1e-300)
    velocity = velocity * (reach / norm).clamp_max(1.0)
    velocity[~now.movable] = 0
    x = (now.x.double() + velocity).to(now.x.dtype)
    if not math.isfinite(spring):
        held = now.pinned if climber is None else tuple(sorted({*now.pinned, climber}))
        x = equal_arcs(x, held, now.shares)
    return x, velocity


def _learn(now: Images, x: Tensor, gradient: Tensor) -> Tensor:
    """Return the largest curvature met, forgotten slowly, by an image or a neighbour of it."""
    moved = torch.linalg.vector_norm((x - now.x).double(), dim=1)
    change = torch.linalg.vector_norm((gradient - now.gradient).double(), dim=1)
    met = torch.where(moved > 0, change / moved.clamp_min(1e-300), 0.0)
    met[1:-1] = torch.maximum(met[1:-1], torch.maximum(met[2:], met[:-2]))
    return torch.maximum(0.95 * now.curvature, met)


def _look(land: Landscape, x: Tensor, now: Images) -> tuple[Tensor, Tensor]:
    """Evaluate the free images; the pinned ones keep their values."""
    free = now.movable
    loss, gradient = now.loss.clone(), now.gradient.clone()
    loss[free], gradient[free] = land.value_and_gradient(x[free])
    return loss, gradient


def advance(
    land: Landscape, now: Images, *, spring: float = math.inf, climber: int | None = None
) -> Images:
    r"""Move every free image downhill across the string, space them, evaluate.

    The step is $1/\lambda_i$ times a safety factor, with $\lambda_i$ the largest ratio of
    change of gradient to distance that the image and its neighbours have met, forgotten
    slowly; momentum restarts where it runs uphill. No image moves by more than half the
    mean spacing. With an infinite `spring` the images are redistributed, else pulled.
    """
    x, velocity = _shift(now, spring=spring, climber=climber, scale=1.0, noisy=False)
    loss, gradient = _look(land, x, now)
    curvature = _learn(now, x, gradient)
    return replace(now, x=x, loss=loss, gradient=gradient, curvature=curvature, velocity=velocity)


def drift(
    part: Landscape, now: Images, *, scale: float, spring: float = math.inf, probe: bool = False
) -> Images:
    r"""Move every free image by one minibatch's gradient, the same minibatch for all.

    The losses that the tangents compare are that minibatch's too, those of pinned images
    included. The step is `scale` times that of `advance`, without restarts. A probe looks
    at the same minibatch again after the step, to learn its curvature. The losses and
    gradients returned are the minibatch's, from before the step.
    """
    loss, gradient = _look(part, now.x, now)
    loss[list(now.pinned)] = part.loss(now.x[list(now.pinned)])
    seen = replace(now, loss=loss, gradient=gradient)
    x, velocity = _shift(seen, spring=spring, climber=None, scale=scale, noisy=True)
    curvature = now.curvature
    if probe:
        curvature = _learn(seen, x, _look(part, x, seen)[1])
    return replace(seen, x=x, velocity=velocity, curvature=curvature)


def descend(part: Landscape, now: Images, *, rate: float, momentum: float) -> Images:
    """Take one step of gradient descent with momentum across the band, and space the images.

    All images see the same minibatch, pinned ones for the tangents' sake.
    """
    loss, gradient = _look(part, now.x, now)
    loss[list(now.pinned)] = part.loss(now.x[list(now.pinned)])
    seen = replace(now, loss=loss, gradient=gradient)
    velocity = momentum * now.velocity + force(seen)
    velocity[~now.movable] = 0
    x = (now.x.double() - rate * velocity).to(now.x.dtype)
    return replace(seen, x=equal_arcs(x, now.pinned, now.shares), velocity=velocity)
