"""From near a pass to the pass: a critical point by following one eigenvector uphill."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape, Point
from thalweg.paths.resume import cost_from, cost_state, plain, rebuilt, run

__all__ = ["Climb", "Saddle", "climb"]


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
            negative beyond rounding.
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


@dataclass(frozen=True)
class Model:
    """The loss around a point to second order, as far as a Krylov space shows it.

    Attributes:
        gradient: The gradient, `(dim,)`, float64.
        frame: An orthonormal basis as rows, `(m, dim)`.
        images: The Hessian times each row, `(m, dim)`.
        values: The eigenvalues of the projected Hessian, `(m,)`, the lowest first.
        vectors: Its eigenvectors, as columns in the frame, `(m, m)`.
        flat: Curvatures below this in magnitude are those of rounding.
    """

    gradient: Float[Tensor, " dim"]
    frame: Float[Tensor, "m dim"]
    images: Float[Tensor, "m dim"]
    values: Float[Tensor, " m"]
    vectors: Float[Tensor, "m m"]
    flat: float

    def newton(self) -> Float[Tensor, " dim"]:
        r"""Return the shortest step in the space that minimises $|H p + g|$.

        Singular values below a tenth of `flat` count as zero. In a Krylov space this is the
        step of MINRES-QLP (Choi, Paige and Saunders 2011).
        """
        left, sizes, right = torch.linalg.svd(self.images, full_matrices=False)
        kept = sizes > max(self.flat / 10, 1e-300)
        inverse = torch.where(kept, 1 / sizes.clamp_min(1e-300), 0.0)
        step: Tensor = -((left * inverse) @ (right @ self.gradient)) @ self.frame
        return step


def expand(point: Point, starts: list[Tensor], size: int) -> Model:
    """Return the second-order model in a block Krylov space grown from `starts`.

    Orthogonalised twice; where `size` reaches the dimension the space is the whole space,
    and its products are taken in one sweep.
    """
    gradient = point.gradient.double()
    if size >= len(gradient):
        frame = torch.eye(len(gradient), dtype=torch.float64, device=gradient.device)
        images = point.hvp(frame.to(point.theta.dtype)).double()
    else:
        frame, images = _krylov(point, starts, size)
    projected = frame @ images.T
    values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    noise = max(1e-8, 10 * torch.finfo(point.theta.dtype).eps)
    return Model(gradient, frame, images, values, vectors, noise * float(values.abs().max()))


def _krylov(point: Point, starts: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
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
    if not basis:  # a critical point, and no direction to begin with
        basis = [torch.zeros_like(starts[0]).double().index_fill(0, torch.tensor([0]), 1.0)]
        products = [point.hvp(basis[0].to(point.theta.dtype)).double()]
    return torch.stack(basis), torch.stack(products)


@dataclass(frozen=True)
class Follow:
    """An eigenvector-following step."""

    step: Float[Tensor, " dim"]
    mode: Float[Tensor, " dim"]
    curvature: float
    negative: int
    flat: float


def follow(
    model: Model,
    mode: Float[Tensor, " dim"],
    trust: float,
    *,
    scale: float = math.inf,
    lowest: bool = True,
) -> Follow:
    r"""Return the step uphill along the mode that overlaps most with `mode`, downhill in others.

    No mode moves farther than `trust`, and curvatures below $|g|$ / `scale` count as that:
    a zero mode of a symmetry is curved, away from the critical point, in proportion to
    $|g|^2$, and Newton's step along it is as long as $\theta$ (where the loss does not
    depend on the length of $\theta$, it is $\theta$). Convergence stays quadratic.

    Args:
        model: The model.
        mode: The direction followed before.
        trust: The longest step.
        scale: A length over which the landscape changes, such as $|\theta|$.
        lowest: Whether to turn to the lowest mode where the one followed curves upwards and
            another downwards.
    """
    values, vectors = model.values, model.vectors
    slopes = vectors.T @ (model.frame @ model.gradient)
    overlap = (vectors.T @ (model.frame @ mode)).nan_to_num()
    followed = int(overlap.abs().argmax())
    if lowest and values[followed] >= -model.flat and values[0] < -model.flat:
        followed = 0
    softest = float(torch.linalg.vector_norm(model.gradient)) / scale
    moves = -slopes / values.abs().clamp_min(max(model.flat, softest, 1e-300))
    moves = moves.clamp(-trust, trust)
    moves[followed] = -moves[followed]
    sign = 1.0 if overlap[followed] >= 0 else -1.0
    step = (vectors @ moves) @ model.frame
    length = float(torch.linalg.vector_norm(step))
    return Follow(
        step * min(1.0, trust / max(length, 1e-300)),
        sign * (vectors[:, followed] @ model.frame),
        float(values[followed]),
        int((values < -model.flat).sum()),
        model.flat,
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
    max_gradients: int | None = None,
) -> Saddle:
    r"""Walk from `theta` to a critical point, uphill along one mode and downhill in all others.

    In a block Krylov space of the Hessian, grown from the mode followed and the gradient
    by `krylov` HVPs, each eigenpair $(\lambda_i, v_i)$ contributes the step
    $-(v_i \cdot g)/|\lambda_i|$, reversed for the mode that overlaps most with the one
    followed before. Near a pass this is Newton's step; where the space is the whole space
    convergence is quadratic. Steps that fail to shrink the gradient shorten the trust
    radius; where the end is near but convergence slow, the space grows, to 4 `krylov` at
    most. Zero modes of a symmetry take bounded steps (`follow`) and are not counted as
    negative once they are flat to rounding.

    Args:
        land: The landscape.
        theta: Where to start, `(dim,)`.
        direction: The direction to follow uphill: the path's tangent. Where it is zero, the
            lowest mode is followed.
        tol: The gradient norm to reach.
        radius: How far from `theta` it may go before it is called a runaway.
        max_steps: The budget of steps, one gradient and `krylov` HVPs each.
        krylov: The size of the Krylov space.
        max_gradients: The budget in gradients and HVPs together (a step in progress is
            finished); None for no limit but `max_steps`.

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
    climbing = Climb(land, theta, direction, tol, radius, max_steps, krylov, max_gradients)
    run(climbing)
    return climbing.found()


class Climb:
    """A climb on its way (`climb`); a step is one gradient and a Krylov space.

    Args:
        land: The landscape.
        theta: Where to start, `(dim,)`.
        direction: The direction to follow uphill.
        tol: The gradient norm to reach.
        radius: How far from `theta` it may go.
        max_steps: The budget of steps.
        krylov: The size of the Krylov space.
        max_gradients: The budget in gradients and HVPs; None for no limit but `max_steps`.

    Attributes:
        spent: What the steps took, those before an interrupt included.
    """

    def __init__(
        self,
        land: Landscape,
        theta: Float[Tensor, " dim"],
        direction: Float[Tensor, " dim"],
        tol: float = 1e-6,
        radius: float = math.inf,
        max_steps: int = 30,
        krylov: int = 12,
        max_gradients: int | None = None,
    ) -> None:
        self.land, self.foot, self.tol, self.radius = land, theta, tol, radius
        self.max_steps, self.max_gradients = max_steps, max_gradients
        mode = direction.double()
        self.mode = mode / torch.linalg.vector_norm(mode).clamp_min(1e-300)
        trust = radius / 2 if math.isfinite(radius) else 1.0
        self.gait = _Gait(trust, min(krylov, land.dim), land.dim)
        self.scale = max(trust, float(torch.linalg.vector_norm(theta.double())))
        self.best = Saddle(
            theta, math.nan, math.nan, self.mode, math.nan, 0, 0, False, "", Cost()
        )  # fmt: skip
        self.proposal, self.steps, self.reason = theta, 0, ""
        self.spent = Cost()

    @property
    def finished(self) -> bool:
        """Whether it came to an end, whatever that is."""
        return bool(self.reason)

    def step(self) -> None:
        """Look at the proposal, and make the next one or say why there is none."""
        before = self.land.cost
        taken, done = self._look()
        self.spent = self.spent + (self.land.cost - before)
        if taken is None:
            self.reason = "the loss or its gradient stopped being finite"
        elif done:
            self.reason = f"the gradient norm is at most {self.tol:g}"
        elif self.gait.stuck:
            self.reason = self.gait.stuck
        elif self.max_gradients and self.spent.gradients + self.spent.hvps >= self.max_gradients:
            self.reason = f"max_gradients={self.max_gradients} is spent"
        else:
            self.proposal = (self.proposal.double() + taken.step).to(self.land.dtype)
            away = float(torch.linalg.vector_norm((self.proposal - self.foot).double()))
            if away > self.radius:
                self.reason = f"it left the ball of radius {self.radius:.3g} around its start"
            elif self.steps == self.max_steps:
                self.reason = "the budget of steps is spent"
            else:
                self.steps += 1

    def _look(self) -> tuple[Follow | None, bool]:
        """Return the step from the proposal, None where it is not finite, and if it is a pass."""
        with self.land.at(self.proposal) as point:
            norm = float(torch.linalg.vector_norm(point.gradient.double()))
            if not (math.isfinite(norm) and math.isfinite(float(point.loss))):
                return None, False
            self.gait.meet(norm)
            model = expand(point, [self.mode, point.gradient], self.gait.size)
            taken = follow(model, self.mode, self.gait.trust, scale=self.scale)
            self.mode, loss = taken.mode, float(point.loss)
        done = norm <= self.tol and taken.curvature < -taken.flat
        if norm == self.gait.best:
            self.best = replace(
                self.best,
                theta=self.proposal,
                loss=loss,
                gradient_norm=norm,
                direction=taken.mode,
                curvature=taken.curvature,
                negative=taken.negative,
                converged=done,
            )
        return taken, done

    def found(self) -> Saddle:
        """Return the best point met, and why the climb stopped."""
        return replace(
            self.best,
            direction=self.best.direction.to(self.land.dtype),
            steps=self.steps,
            reason=self.reason,
            cost=self.spent,
        )

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from here."""
        return {
            "mode": self.mode,
            "gait": self.gait.state(),
            "best": plain(self.best),
            "proposal": self.proposal,
            "steps": self.steps,
            "reason": self.reason,
            "spent": cost_state(self.spent),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        device = self.foot.device
        self.mode, self.proposal = state["mode"].to(device), state["proposal"].to(device)
        self.gait.load(state["gait"])
        self.best = rebuilt(Saddle, state["best"], device)
        self.steps, self.reason = state["steps"], state["reason"]
        self.spent = cost_from(state["spent"])

    def describe(self) -> tuple[float, str]:
        """Say how far it is."""
        return self.steps / max(1, self.max_steps), (
            f"climbing, step {self.steps}, gradient norm {self.best.gradient_norm:.2g}"
        )


class _Gait:
    """How boldly a climb goes: its trust radius and the size of its Krylov space."""

    def __init__(self, trust: float, size: int, dim: int) -> None:
        self.trust, self.size = trust, size
        self._most = min(4 * size, dim)
        self._norms: list[float] = []
        self._stalled = 0
        self.best = math.inf

    def state(self) -> dict[str, Any]:
        """Return how boldly it goes."""
        return {**vars(self), "_norms": list(self._norms)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on as boldly."""
        vars(self).update({**state, "_norms": list(state["_norms"])})

    def meet(self, norm: float) -> None:
        """Take note of the gradient norm at a new point."""
        self.best = min(self.best, norm)
        self._norms.append(norm)
        self._stalled = self._stalled + 1 if norm > 0.9 * self.best and norm != self.best else 0
        if self._stalled:
            self.trust /= 2
        elif len(self._norms) > 1 and 0.2 * self._norms[-2] < norm < 0.1 * self._norms[0]:
            self.size = min(2 * self.size, self._most)

    @property
    def stuck(self) -> str:
        """Why there is no point in going on; empty where there is."""
        first = self._norms[0]
        if self._stalled >= 5 or (len(self._norms) == 6 and self.best > 0.3 * first):
            return (
                f"the gradient norm hardly shrinks (from {first:.2g} to {self.best:.2g}): there "
                "may be no pass nearby, or its curvatures spread too wide for so few products"
            )
        return ""
