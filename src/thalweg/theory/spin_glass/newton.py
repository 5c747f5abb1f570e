"""Newton's method on the sphere, for many points at once, towards any index.

Nothing here lowers a gradient norm: that also ends where the gradient only lies in the
Hessian's kernel. A step solves the quadratic model, within a region in which it holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thalweg.landscape.protocols import Landscape
from thalweg.theory.spin_glass.sphere import (
    check_points,
    eigensystem,
    energy_and_gradient,
    on_sphere,
    tangent,
)

__all__ = ["NewtonRuns", "newton"]

_FREE = -1
_CLOSE = 1e-5  # a step so short, over the radius, is in the quadratic regime
_MISS = 1.0  # the relative error of the model at which the trust radius stays
_FIRST = 0.1  # the first trust radius, over that of the sphere


@dataclass(frozen=True, eq=False)
class NewtonRuns:
    """Where Newton's method ended, one row for each start.

    Attributes:
        points: The last points, `(runs, n)`.
        energies: Energies per spin there, `(runs,)`.
        gradient_norms: Riemannian gradient norms of H there, `(runs,)`.
        settled: Whether the gradient fell until rounding stopped it, `(runs,)`.
        steps: How many steps each took, `(runs,)`.
    """

    points: Float[Tensor, "runs n"]
    energies: Float[Tensor, " runs"]
    gradient_norms: Float[Tensor, " runs"]
    settled: Bool[Tensor, " runs"]
    steps: Int[Tensor, " runs"]

    def __str__(self) -> str:
        """Say how many settled."""
        settled, runs = int(self.settled.sum()), len(self.settled)
        head = f"{settled} of {runs} Newton runs settled in {float(self.steps.float().mean()):.1f}"
        return f"{head} steps on average" + ("" if settled == runs else "; raise max_steps=")


def newton(
    land: Landscape,
    points: Float[Tensor, "*batch n"],
    *,
    index: int | Int[Tensor, " runs"] | None = None,
    max_steps: int = 100,
) -> NewtonRuns:
    r"""Run Newton's method from every point to a critical point.

    With eigenpairs $(\lambda_i, v_i)$ of the Riemannian Hessian and gradient $g$ the step is
    $-\sum_i s_i (v_i \cdot g) / (|\lambda_i| + \mu)\, v_i$, with $\mu \ge 0$ such that it stays
    within the trust radius. With $s_i = \operatorname{sign} \lambda_i$ (no index wished) it is
    Newton's step and stops at any index. Else $s_i = -1$ for the $k$ lowest and $+1$ for the
    rest: eigenvector following, which only index $k$ holds still; $k = 0$ is the saddle-free
    Newton method. The radius follows how well the model foretold the new gradient.

    Args:
        land: A landscape on the sphere.
        points: Starts, `(..., n)`.
        index: The index to end at, for all or for each; None for whichever is near.
        max_steps: The budget of each run.

    Returns:
        The ends, in the order of the starts. They are not certified: see `certify_points`.

    Raises:
        ValueError: If an index is not between 0 and n - 1, or a point is no direction.

    Source: Cerjan and Miller, J. Chem. Phys. 75 (1981) 2800; Dauphin et al.,
        arXiv:1406.2572.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> height = FunctionLandscape(lambda x: x[0] / x.norm(), dim=3)
        >>> runs = newton(height, torch.ones(3, dtype=torch.float64), index=0)
        >>> runs.points.round(decimals=6).tolist()[0][0]
        -1.732051
    """
    sigma = check_points(land, points)
    runs, n = sigma.shape
    wished = torch.full((runs,), _FREE, device=sigma.device)
    if index is not None:
        wished = torch.as_tensor(index, device=sigma.device).expand(runs).clone()
        if bool(((wished < 0) | (wished > n - 1)).any()):
            raise ValueError(
                f"an index on this sphere lies between 0 and {n - 1}, not {wished.tolist()}"
            )
    energy, gradient = energy_and_gradient(land, sigma)
    settled = torch.zeros(runs, dtype=torch.bool, device=sigma.device)
    steps = torch.zeros(runs, dtype=torch.int64, device=sigma.device)
    radius = torch.full((runs,), _FIRST * math.sqrt(n), dtype=sigma.dtype, device=sigma.device)
    for _ in range(max_steps):
        active = (~settled).nonzero()[:, 0]
        if len(active) == 0:
            break
        at, g = sigma[active], gradient[active]
        values, vectors = eigensystem(land, at)
        step, model = _step(values, vectors, g, wished[active], radius[active])
        new = on_sphere(at + step)
        u, new_g = energy_and_gradient(land, new)
        length = torch.linalg.vector_norm(step, dim=1)
        before, after = (torch.linalg.vector_norm(x, dim=1) for x in (g, new_g))
        steps[active] += 1
        close = length <= _CLOSE * math.sqrt(n)
        floor = close & ~(after < 0.5 * before)
        keep = floor & (before <= after)
        missed = torch.linalg.vector_norm(tangent(new, model) - new_g, dim=1)
        error = missed / torch.linalg.vector_norm(model - g, dim=1).clamp(min=1e-300)
        trust = (_MISS / error.clamp(min=1e-12)).clamp(0.25, 2.0) * length
        radius[active] = torch.where(close, radius[active], trust.clamp(max=0.5 * math.sqrt(n)))
        sigma[active] = torch.where(keep[:, None], at, new)
        gradient[active] = torch.where(keep[:, None], g, new_g)
        energy[active] = torch.where(keep, energy[active], u)
        settled[active] = floor
    norms = torch.linalg.vector_norm(gradient, dim=1)
    return NewtonRuns(sigma, energy, norms, settled, steps)


def _step(
    values: Tensor, vectors: Tensor, gradient: Tensor, wished: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Return steps within the radius, and the gradients that the quadratic model foretells."""
    along = (vectors * gradient[:, :, None]).sum(1)
    order = torch.arange(values.shape[1], device=values.device)
    followed = torch.where(order < wished[:, None], -1.0, 1.0).to(values.dtype)
    signs = torch.where(wished[:, None] == _FREE, torch.where(values < 0, -1.0, 1.0), followed)
    size = values.abs()
    tiny = torch.finfo(values.dtype).tiny
    # |step| falls with mu, and is below the radius at |g| / radius
    low = torch.zeros_like(radius)
    high = torch.linalg.vector_norm(along, dim=1) / radius
    free = torch.linalg.vector_norm(along / size.clamp(min=tiny), dim=1) <= radius
    for _ in range(40):
        middle = (low + high) / 2
        short = torch.linalg.vector_norm(along / (size + middle[:, None]), dim=1) <= radius
        low, high = torch.where(short, low, middle), torch.where(short, middle, high)
    shift = torch.where(free, 0.0, high)[:, None]
    parts = -signs * along / (size + shift).clamp(min=tiny)
    step = (vectors * parts[:, None, :]).sum(2)
    model = gradient + (vectors * (values * parts)[:, None, :]).sum(2)
    return step, model
