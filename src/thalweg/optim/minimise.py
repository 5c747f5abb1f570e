"""Down to a minimum: L-BFGS on all the data, or Adam on minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import Landscape, check_theta
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["Minimum", "Progress", "minimise", "train"]

Progress = Callable[[float, str], None]
_METHODS = ("lbfgs",)
_OPTIMISERS = ("adam", "sgd")
_SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True, eq=False)
class Minimum:
    r"""Where a descent ended, and whether that is a critical point.

    Attributes:
        theta: The last vector, `(dim,)`.
        loss: $L(\theta)$ over all the data; NaN or infinite if the descent diverged.
        gradient_norm: $|\nabla L(\theta)|_2$ over all the data.
        converged: Whether `gradient_norm` is at most `tol`.
        tol: The gradient norm that was asked for.
        steps: How many steps were taken.
        reason: Why the descent stopped, and what to try if it did not converge.
        cost: What it took.
        method: The optimiser.
        seed: The seed of the minibatches; None for a deterministic method.
    """

    theta: Float[Tensor, " dim"]
    loss: float
    gradient_norm: float
    converged: bool
    tol: float
    steps: int
    reason: str
    cost: Cost
    method: str
    seed: int | None = None

    def __str__(self) -> str:
        """Return one sentence: the loss, the gradient norm, why it stopped."""
        state = "converged" if self.converged else "not converged"
        return (
            f"loss {self.loss:.8g}, gradient norm {self.gradient_norm:.3g}, {state} after "
            f"{self.steps} {self.method} steps ({self.cost}): {self.reason}"
        )

    def __rich__(self) -> str:
        """Return the sentence, coloured by its outcome."""
        colour = "green" if self.converged else "yellow"
        return f"[{colour}]●[/{colour}] " + str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return everything but the vector."""
        return {
            "type": "minimum",
            "loss": self.loss if math.isfinite(self.loss) else repr(self.loss),
            "gradient_norm": self.gradient_norm
            if math.isfinite(self.gradient_norm)
            else repr(self.gradient_norm),
            "converged": self.converged,
            "tol": self.tol,
            "steps": self.steps,
            "reason": self.reason,
            "cost": self.cost.to_json(),
            "method": self.method,
            "seed": self.seed,
        }


class _Stop(Exception):
    """Leave SciPy's loop: the tally holds why."""


class _Descent:
    """What the objective saw: the best vector, and when to stop."""

    def __init__(
        self,
        land: Landscape,
        theta: Tensor,
        *,
        tol: float,
        max_gradients: int,
        progress: Progress | None,
    ) -> None:
        self.land, self.tol, self.limit, self.progress = land, tol, max_gradients, progress
        self.calls = 0
        self.first_norm = math.nan
        self.theta, self.loss, self.gradient = theta, math.inf, torch.zeros_like(theta)
        self.loss, self.gradient = self.evaluate(theta)

    @property
    def norm(self) -> float:
        """The gradient norm at the best vector."""
        return float(torch.linalg.vector_norm(self.gradient.double()))

    def evaluate(self, theta: Tensor) -> tuple[float, Tensor]:
        """Count one gradient and keep it if it is the best yet."""
        if self.calls >= self.limit:
            raise _Stop
        value, gradient = self.land.value_and_gradient(theta)
        self.calls += 1
        loss = float(value)
        norm = float(torch.linalg.vector_norm(gradient.double()))
        better = loss < self.loss or (loss <= self.loss + self.rounding(loss) and norm < self.norm)
        if self.calls == 1 or better:
            self.theta, self.loss, self.gradient = theta, loss, gradient
        if self.calls == 1:
            self.first_norm = norm
        if self.progress is not None and self.calls % 10 == 0:
            self.progress(self.fraction(), f"loss {self.loss:.6g}, gradient norm {self.norm:.2g}")
        if self.calls > 1 and (self.norm <= self.tol or not math.isfinite(self.loss)):
            raise _Stop
        return loss, gradient

    def fraction(self) -> float:
        """How far along: by the gradient norm on a logarithmic scale, or by the budget."""
        spent = self.calls / self.limit
        if not (0 < self.norm < self.first_norm and 0 < self.tol < self.first_norm):
            return spent
        return max(
            spent, math.log(self.first_norm / self.norm) / math.log(self.first_norm / self.tol)
        )

    def rounding(self, loss: float) -> float:
        """A difference in loss that is nothing but rounding in the landscape's dtype."""
        return 4 * torch.finfo(self.land.dtype).eps * abs(loss)

    def scipy_objective(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Evaluate in the landscape's dtype and answer in float64."""
        theta = torch.from_numpy(x.copy()).to(self.land.dtype).to(self.land.device)
        loss, gradient = self.evaluate(theta)
        return loss, gradient.double().cpu().numpy()


def _lbfgs(run: _Descent, max_steps: int, memory: int) -> int:
    """Run SciPy's L-BFGS-B from the best vector; return its steps."""
    steps = 0

    def count(_: NDArray[np.float64]) -> None:
        nonlocal steps
        steps += 1

    try:
        scipy.optimize.minimize(
            run.scipy_objective,
            run.theta.double().cpu().numpy(),
            jac=True,
            method="L-BFGS-B",
            callback=count,
            options={
                "maxcor": memory,
                "ftol": 0.0,
                "gtol": 0.0,
                "maxls": 40,
                "maxiter": max_steps,
                "maxfun": 10**9,
            },
        )
    except _Stop:
        steps += 1
    return steps


def _polish(run: _Descent, max_steps: int) -> int:
    """Lower the gradient norm by Barzilai-Borwein steps where the loss cannot tell any more.

    Differences in loss drown in rounding long before the gradient does, which stops a
    line search; these steps (Barzilai and Borwein 1988, eq. 5) read gradients only.
    """
    theta, gradient, steps = run.theta, run.gradient, 0
    previous: tuple[Tensor, Tensor] | None = None
    since_best, best = 0, run.norm
    try:
        while steps < max_steps and since_best < 10:
            if previous is None:
                length = 1e-3 / max(1.0, run.norm)
            else:
                s, y = theta - previous[0], gradient - previous[1]
                curvature = float(s.double() @ y.double()) / max(
                    float(s.double() @ s.double()), 1e-300
                )
                if not curvature > 0:
                    break
                length = 1 / curvature
            previous = (theta, gradient)
            theta = theta - length * gradient
            _, gradient = run.evaluate(theta)
            steps += 1
            since_best = 0 if run.norm < best else since_best + 1
            best = min(best, run.norm)
    except _Stop:
        steps += 1
    return steps


def minimise(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    *,
    tol: float = 1e-6,
    max_gradients: int = 5000,
    method: Literal["lbfgs"] = "lbfgs",
    memory: int = 20,
    progress: Progress | None = None,
) -> Minimum:
    r"""Descend on all the data until $|\nabla L|_2 \le$ `tol`.

    L-BFGS-B in float64 arithmetic, the landscape evaluated in its own dtype. Where
    differences in loss drown in rounding, a few Barzilai-Borwein steps that read only
    gradients go on; when these stop improving too, the rounding floor is reached and the
    result says so.

    Args:
        land: The landscape.
        theta: Where to start, `(dim,)`.
        tol: The gradient norm to reach.
        max_gradients: The budget.
        method: ``"lbfgs"``.
        memory: How many pairs L-BFGS keeps.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The lowest vector seen, with its gradient norm and whether that is at most `tol`.
        A loss that is NaN or infinite at the start is returned as it is.

    Raises:
        ValueError: If `theta` has the wrong shape or holds NaN, or `method` is unknown.

    Source: Byrd, Lu, Nocedal and Zhu, SIAM J. Sci. Comput. 16 (1995) 1190.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> bowl = FunctionLandscape(lambda x: (x**2).sum() + (x**4).sum(), dim=3)
        >>> found = minimise(bowl, torch.ones(3, dtype=torch.float64))
        >>> found.converged, found.loss < 1e-12
        (True, True)
    """
    theta = _check(land, theta, tol)
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}; use one of {', '.join(_METHODS)}")
    if max_gradients < 1:
        raise ValueError(f"max_gradients must be at least 1, got {max_gradients}")
    before = land.cost
    run = _Descent(land, theta, tol=tol, max_gradients=max_gradients, progress=progress)
    steps = 0
    while run.norm > tol and run.calls < max_gradients and math.isfinite(run.loss):
        at = run.norm
        steps += _lbfgs(run, max_gradients, memory)
        if run.norm > tol:
            steps += _polish(run, 50)
        if not run.norm < 0.5 * at:
            break
    return Minimum(
        run.theta,
        run.loss,
        run.norm,
        run.norm <= tol,
        tol,
        steps,
        _reason(run),
        land.cost - before,
        method,
    )


def _reason(run: _Descent) -> str:
    if run.norm <= run.tol:
        return f"the gradient norm is at most {run.tol:g}"
    if not (math.isfinite(run.loss) and math.isfinite(run.norm)):
        return "the loss or its gradient is not finite here; start elsewhere"
    if run.calls >= run.limit:
        return (
            f"the budget of {run.limit} gradients is spent above tol={run.tol:g}; raise "
            "max_gradients or tol"
        )
    name = str(run.land.dtype).removeprefix("torch.")
    remedy = "accept a larger tol"
    if run.land.dtype != torch.float64:
        remedy += ", or build the landscape with dtype=torch.float64"
    return (
        f"no step lowers the loss beyond the rounding of {name} (or the loss has a kink here) "
        f"although tol={run.tol:g} is not reached; {remedy}"
    )


def train(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimizer: Literal["adam", "sgd"] = "adam",
    schedule: Literal["cosine", "constant"] = "cosine",
    tol: float = 1e-6,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Minimum:
    r"""Descend on minibatches; every epoch visits each example once, in a fresh order.

    Args:
        land: The landscape; one that is no `FiniteSum` has no minibatches, and is
            descended on as a whole.
        theta: Where to start, `(dim,)`.
        steps: How many steps to take.
        epochs: How many times to visit the data; give this or `steps`. For a landscape
            without examples an epoch is one step.
        batch_size: Examples in a minibatch; the last of an epoch may hold fewer.
        lr: The learning rate at the first step.
        optimizer: ``"adam"``, or ``"sgd"`` with Nesterov momentum 0.9.
        schedule: ``"cosine"`` (down to 0) or ``"constant"``.
        tol: The gradient norm that counts as converged.
        seed: Orders the minibatches.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The last vector, with loss and gradient norm over *all* the data. A loss that
        becomes NaN or infinite stops the run and is reported, never repaired.

    Raises:
        ValueError: If `theta` is wrong, both or neither of `steps` and `epochs` are
            given, or a name is unknown.

    Source: Kingma and Ba, arXiv:1412.6980; Loshchilov and Hutter, arXiv:1608.03983.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> bowl = FunctionLandscape(lambda x: (x**2).sum(), dim=2)
        >>> found = train(bowl, torch.ones(2, dtype=torch.float64), steps=300, lr=0.05, seed=0)
        >>> found.loss < 1e-3
        True
    """
    theta = _check(land, theta, tol)
    generator, recorded = make_generator(seed)
    batches = Minibatches(land, batch_size, generator)
    total = _count_steps(steps, epochs, batches.per_epoch)
    if optimizer not in _OPTIMISERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; use one of {', '.join(_OPTIMISERS)}")
    if schedule not in _SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; use one of {', '.join(_SCHEDULES)}")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive, got {lr!r}")
    before = land.cost
    leaf = theta.clone().requires_grad_()
    rule: torch.optim.Optimizer = (
        torch.optim.Adam([leaf], lr=lr)
        if optimizer == "adam"
        else torch.optim.SGD([leaf], lr=lr, momentum=0.9, nesterov=True)
    )
    done, lost = 0, False
    for step in range(total):
        value, gradient = batches.draw().value_and_gradient(leaf.detach())
        if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
            lost = True
            break
        if schedule == "cosine":
            rule.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / total))
        leaf.grad = gradient
        rule.step()
        done = step + 1
        if progress is not None and (done % 20 == 0 or done == total):
            progress(done / total, f"step {done} of {total}, minibatch loss {float(value):.6g}")
    value, gradient = land.value_and_gradient(leaf.detach())
    loss = float(value)
    norm = float(torch.linalg.vector_norm(gradient.double()))
    finite = math.isfinite(loss) and math.isfinite(norm)
    return Minimum(
        leaf.detach(),
        loss,
        norm,
        finite and norm <= tol,
        tol,
        done,
        _training_reason(norm, tol, lost or not finite, done, lr),
        land.cost - before,
        optimizer,
        recorded,
    )


def _training_reason(norm: float, tol: float, diverged: bool, done: int, lr: float) -> str:
    if diverged:
        return f"the loss stopped being finite after step {done}; lower lr={lr:g}"
    if norm <= tol:
        return f"the gradient norm is at most {tol:g}"
    return (
        "all steps are taken and the gradient is not zero yet; train longer, or go on with minimise"
    )


def _count_steps(steps: int | None, epochs: float | None, per_epoch: int) -> int:
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps= or epochs=, and not both")
    total = steps if steps is not None else math.ceil((epochs or 0) * per_epoch)
    if total < 1:
        raise ValueError(f"steps={steps}, epochs={epochs} amounts to no step at all")
    return total


def _check(land: Landscape, theta: Tensor, tol: float) -> Tensor:
    theta = check_theta(theta, land.dim, land.dtype, land.device, single=True)
    if not bool(torch.isfinite(theta).all()):
        bad = int((~torch.isfinite(theta)).sum())
        raise ValueError(f"theta holds {bad} NaN or infinite values of {theta.numel()}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol!r}")
    return theta
