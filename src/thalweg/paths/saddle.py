"""From near a pass to the pass: a critical point by following one eigenvector uphill."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape, Point

__all__ = ["Saddle", "climb"]


@dataclass(frozen=True, eq=False)
class Saddle:
    """Where a climb ended.

    Attributes:
        theta: The point, `(dim,)`.
        loss: The loss there.
        gradient_norm: The Euclidean norm of the gradient there.
        direction: The unit direction followed uphill, `(dim,)`.
        curvature: The curvature along it: negative at a pass.
        negative: How many negative curvatures the Krylov space shows: a lower bound of
            the index, and the index itself where the space is the whole space.
        steps: How many steps were taken.
        converged: Whether `gradient_norm` is at most the tolerance and `curvature` is
            negative.
        reason: Why the climb stopped.
        cost: What it took.
    """

    theta: Float[Tensor, " dim"]
    loss: float
    gradient_norm: float
    direction: Float[Tensor, " dim"]
    curvature: float
    negative: int
    steps: int
    converged: bool
    reason: str
    cost: Cost

    def __str__(self) -> str:
        """Return one sentence."""
        state = "converged" if self.converged else "not converged"
        return (
            f"critical point at loss {self.loss:.9g}, gradient norm {self.gradient_norm:.2g}, "
            f"at least {self.negative} negative curvatures, {state} after {self.steps} steps "
            f"({self.cost}): {self.reason}"
        )

    def __rich__(self) -> str:
        """Return the sentence."""
        return str(self).replace("[", "\\[")


def _krylov(point: Point, starts: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis `(m, dim)` and the Hessian projected onto it, `(m, m)`.

    A block Krylov space grown from `starts`, orthogonalised twice.
    """
    basis: list[Tensor] = []
    products: list[Tensor] = []
    queue = list(starts)
    while queue and len(basis) < size:
        vector = queue.pop(0).double()
        norm = float(torch.linalg.vector_norm(vector))
        if not (norm > 0 and math.isfinite(norm)):
            continue
        vector = vector / norm
        for _ in range(2):
            for other in basis:
                vector = vector - (other @ vector) * other
        left = float(torch.linalg.vector_norm(vector))
        if left < 1e-8:
            continue
        basis.append(vector / left)
        products.append(point.hvp(basis[-1].to(point.theta.dtype)).double())
        queue.append(products[-1])
    frame = torch.stack(basis)
    projected = frame @ torch.stack(products).T
    return frame, (projected + projected.T) / 2


def _step(point: Point, mode: Tensor, size: int) -> tuple[Tensor, Tensor, float, int]:
    """Return the eigenvector-following step, the new mode, its curvature, the index seen."""
    gradient = point.gradient.double()
    frame, hessian = _krylov(point, [mode, gradient], size)
    values, vectors = torch.linalg.eigh(hessian)
    slopes = vectors.T @ (frame @ gradient)
    overlap = vectors.T @ (frame @ mode)
    followed = int(overlap.abs().argmax())
    if values[followed] >= 0 and values[0] < 0:
        followed = 0
    floor = 1e-10 * float(values.abs().max().clamp_min(1e-300))
    moves = -slopes / values.abs().clamp_min(floor)
    moves[followed] = -moves[followed]
    new_mode = (vectors[:, followed] @ frame) * (1.0 if overlap[followed] >= 0 else -1.0)
    noise = 1e-9 * float(values.abs().max())
    return (
        (vectors @ moves) @ frame,
        new_mode,
        float(values[followed]),
        int((values < -noise).sum()),
    )


def climb(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    direction: Float[Tensor, " dim"],
    *,
    tol: float = 1e-6,
    radius: float = math.inf,
    max_steps: int = 30,
    krylov: int = 12,
) -> Saddle:
    r"""Walk from `theta` to a critical point, uphill along one mode and downhill in all others.

    In a block Krylov space of the Hessian, grown from the mode followed and the gradient
    by at most `krylov` HVPs, each eigenpair $(\lambda_i, v_i)$ contributes the step
    $-(v_i \cdot g)/|\lambda_i|$, reversed for the mode that overlaps most with the one
    followed before. Near a pass this is Newton's step; where the space is the whole space
    convergence is quadratic. Steps that fail to shrink the gradient shorten the trust
    radius.

    Args:
        land: The landscape.
        theta: Where to start, `(dim,)`.
        direction: The direction to follow uphill: the path's tangent.
        tol: The gradient norm to reach.
        radius: How far from `theta` it may go before it is called a runaway.
        max_steps: The budget of steps, one gradient and `krylov` HVPs each.
        krylov: The size of the Krylov space.

    Returns:
        The last accepted point. It is no pass unless `converged`.

    Source: Cerjan and Miller, J. Chem. Phys. 75 (1981) 2800; Henkelman and Jónsson,
    J. Chem. Phys. 111 (1999) 7010 (one mode at a time, products only).

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> well = FunctionLandscape(lambda x: (x[0]**2 - 1)**2 + x[1]**2, dim=2)
        >>> near = torch.tensor([0.1, 0.1], dtype=torch.float64)
        >>> found = climb(well, near, torch.tensor([1.0, 0.0], dtype=torch.float64))
        >>> found.converged, round(found.loss, 9), found.negative
        (True, 1.0, 1)
    """
    before = land.cost
    origin, mode = theta, direction.double() / torch.linalg.vector_norm(direction.double())
    trust = radius / 2 if math.isfinite(radius) else 1.0
    best: tuple[float, float, Tensor, Tensor, float, int] | None = None
    proposal, stalled, first, reason = theta, 0, math.inf, "the budget of steps is spent"
    steps = -1
    while steps < max_steps:
        steps += 1
        with land.at(proposal) as point:
            norm = float(torch.linalg.vector_norm(point.gradient.double()))
            if not (math.isfinite(norm) and math.isfinite(float(point.loss))):
                reason = "the loss or its gradient stopped being finite"
                break
            step, mode, curvature, negative = _step(point, mode, min(krylov, land.dim))
            if best is None or norm < best[0]:
                best = (norm, float(point.loss), proposal, mode, curvature, negative)
        if norm <= tol and curvature < 0:
            reason = f"the gradient norm is at most {tol:g}"
            break
        first = norm if steps == 0 else first
        stalled = stalled + 1 if norm > 0.9 * best[0] and norm != best[0] else 0
        if stalled >= 5 or (steps == 5 and best[0] > 0.3 * first):
            reason = (
                f"the gradient norm hardly shrinks (from {first:.2g} to {best[0]:.2g}): there may "
                "be no pass nearby, or its curvatures spread too wide for so few products"
            )
            break
        length = float(torch.linalg.vector_norm(step))
        if stalled:
            trust /= 2
        if length > trust:
            step = step * (trust / length)
        proposal = (proposal.double() + step).to(land.dtype)
        if float(torch.linalg.vector_norm((proposal - origin).double())) > radius:
            reason = f"it left the ball of radius {radius:.3g} around its start"
            break
    if best is None:
        best = (math.nan, math.nan, theta, mode, math.nan, 0)
    norm, loss, at, mode, curvature, negative = best
    return Saddle(
        at,
        loss,
        norm,
        mode.to(land.dtype),
        curvature,
        negative,
        steps,
        norm <= tol and curvature < 0,
        reason,
        land.cost - before,
    )
