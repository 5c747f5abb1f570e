"""What a curve is trained on, the mean or the top of the loss along it, and how."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import FiniteSum, Landscape
from thalweg.paths.resume import cost_from, cost_state

__all__ = [
    "Bending",
    "Descent",
    "Kind",
    "Objective",
    "Quasi",
    "Task",
    "basis_functions",
    "even_times",
    "gauss_times",
    "orthogonalise",
    "pull_back",
    "stratified_times",
    "substitute_back",
    "weigh",
]

Kind = Literal["bezier", "chain"]
Objective = Literal["mean", "softmax", "max"]
_STAGES = 3  # of L-BFGS, each sharper than the last and on a grid shifted afresh
_SHARPNESS = 10.0  # of the soft-max at first, times one over the spread of the losses
_SHARPEST = {"softmax": 100.0, "max": 1000.0}  # and at last
_BINS = 20  # of the budget, the last two of which say whether the objective settled
_RETREATS = 10  # non-finite steps in a row after which a search gives up


def stratified_times(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    r"""Draw one time in each of `count` equal parts of [0, 1], mirrored about the middle.

    $t_j = (j + u_j)/T$ with $u_{T-1-j} = 1 - u_j$: each time is uniform in its part, so that a
    mean over them is unbiased, and an error linear in $t$ cancels. The variance of the mean of
    a smooth function falls as $T^{-3}$, against $T^{-1}$ of independent times.

    Args:
        count: How many.
        generator: What draws them.

    Returns:
        The times, increasing, in float64.

    Example:
        >>> t = stratified_times(4, torch.Generator().manual_seed(0))
        >>> (t * 4).floor().tolist(), round(float(t.mean()), 12)
        ([0.0, 1.0, 2.0, 3.0], 0.5)
    """
    half = torch.rand((count + 1) // 2, generator=generator, dtype=torch.float64)
    mirrored = (1 - half).flip(0)
    if count % 2:  # the middle part has no partner to mirror
        mirrored = mirrored[1:]
    return (torch.arange(count) + torch.cat([half, mirrored])) / count


def even_times(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Return an even grid of [0, 1] with spacing 1/`count`, shifted at random by less than that."""
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    return (torch.arange(count) + shift) / count


def gauss_times(count: int, pieces: int) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"]]:
    """Return Gauss-Legendre nodes and weights of [0, 1], the same number on every piece.

    Args:
        count: How many at least, in all.
        pieces: Equal parts of [0, 1] on each of which the function is smooth.

    Returns:
        Nodes, increasing, and weights that sum to 1.
    """
    each = math.ceil(count / pieces)
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(each))
    left = torch.arange(pieces, dtype=torch.float64)[:, None]
    return ((left + (nodes + 1) / 2) / pieces).flatten(), (weights / 2 / pieces).repeat(pieces)


def weigh(
    objective: Objective,
    losses: Float[Tensor, " times"],
    shares: Float[Tensor, " times"],
    sharpness: float,
) -> tuple[float, Float[Tensor, " times"]]:
    r"""Return the objective over times and its derivative in every loss.

    With $q_j$ the share of the curve that time $j$ stands for:

    - ``mean``: $\sum_j q_j \ell_j$, the average over the curve (Garipov et al. 2018);
    - ``softmax``: $\frac1\beta \log \sum_j q_j e^{\beta \ell_j}$, between the mean
      ($\beta \to 0$) and the maximum ($\beta \to \infty$), never above the maximum;
    - ``max``: $\max_j \ell_j$, with a subgradient at the highest time.

    Args:
        objective: Which.
        losses: The loss at each time, in float64.
        shares: The $q_j$, which sum to 1.
        sharpness: $\beta$, per unit of loss.

    Returns:
        The value and the weights, which sum to 1.

    Example:
        >>> losses = torch.tensor([0.0, 3.0], dtype=torch.float64)
        >>> even = torch.full((2,), 0.5, dtype=torch.float64)
        >>> [round(weigh(o, losses, even, 1.0)[0], 3) for o in ("mean", "softmax", "max")]
        [1.5, 2.355, 3.0]
    """
    if objective == "mean":
        return float(shares @ losses), shares
    if objective == "softmax":
        tilted = sharpness * losses + shares.log()
        return float(torch.logsumexp(tilted, 0)) / sharpness, torch.softmax(tilted, 0)
    top = int(losses.argmax())
    return float(losses[top]), torch.nn.functional.one_hot(torch.tensor(top), len(losses)).double()


def pull_back(
    land: Landscape, controls: Float[Tensor, "controls dim"], basis: Float[Tensor, "times controls"]
) -> tuple[Float[Tensor, " times"], Callable[[Tensor], Tensor]]:
    r"""Evaluate the loss at points of a curve, and its gradient in the control points.

    At $\varphi_j = \sum_i B_{ji} w_i$ the chain rule gives

    $$\frac{\partial}{\partial w_i} \sum_j \lambda_j L(\varphi_j)
    = \sum_j \lambda_j B_{ji} \nabla L(\varphi_j).$$

    All points are evaluated in one sweep on the same data.

    Args:
        land: The landscape, or one minibatch of it.
        controls: The control points in float64.
        basis: What each weighs at each time, in float64.

    Returns:
        The losses in float64, and a function from weights $\lambda$ to the gradient
        `(controls, dim)` in float64.
    """
    on = basis.to(controls.device)
    losses, gradients = land.value_and_gradient((on @ controls).to(land.dtype))

    def gradient(weights: Tensor) -> Tensor:
        return (weights.to(controls.device)[:, None] * on).T @ gradients.double()

    return losses.double().cpu(), gradient


def basis_functions(kind: str, degree: int, t: Tensor) -> Tensor:
    """Return the basis functions at times in float64, `(..., degree + 1)`."""
    i = torch.arange(degree + 1, dtype=torch.float64, device=t.device)
    if kind == "chain":
        return (1 - (t[..., None] * degree - i).abs()).clamp_min(0)
    ways = torch.tensor([math.comb(degree, k) for k in range(degree + 1)], dtype=torch.float64)
    powers: Tensor = t[..., None] ** i * (1 - t[..., None]) ** (degree - i)
    return ways.to(t.device) * powers


def orthogonalise(
    rows: Float[Tensor, "rows width"],
) -> tuple[Float[Tensor, "rows rows"], Float[Tensor, "rows width"]]:
    r"""Return lower triangular $R$ and orthonormal $Q$ with $RQ$ = `rows`, by Gram-Schmidt twice.

    LAPACK's last bit depends on where in memory its arrays lie; this does not.
    """
    corner, basis = rows.new_zeros(len(rows), len(rows)), rows.clone()
    for i in range(len(rows)):
        for _ in range(2):
            along = (basis[:i] * basis[i]).sum(1)
            corner[i, :i] += along
            basis[i] -= (along[:, None] * basis[:i]).sum(0)
        corner[i, i] = torch.linalg.vector_norm(basis[i])
        basis[i] /= corner[i, i]
    return corner, basis


def substitute_back(
    corner: Float[Tensor, "rows rows"], right: Float[Tensor, "rows width"]
) -> Float[Tensor, "rows width"]:
    r"""Return $X$ with $R^\top X$ = `right`, for lower triangular $R$."""
    found = right.clone()
    for i in reversed(range(len(right))):
        found[i] -= (corner[i + 1 :, i, None] * found[i + 1 :]).sum(0)
        found[i] /= corner[i, i]
    return found


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be trained.

    Attributes:
        land: The landscape.
        controls: The control points to start from, in float64, `(controls, dim)`.
        free: Which of them move.
        kind: ``"bezier"``, ``"chain"``, or what else has control points.
        objective: What is minimised.
        max_gradients: The budget, in gradients over all the data.
        samples: Points per step.
        generator: What every random number comes from.
        seed: The integer that it started from.
    """

    land: Landscape
    controls: Float[Tensor, "controls dim"]
    free: slice
    kind: str
    objective: Objective
    max_gradients: int
    samples: int
    generator: torch.Generator
    seed: int


class Bending:
    """What both ways of training share: the control points and the budget."""

    def __init__(self, task: Task) -> None:
        self.task, self.land, self.objective = task, task.land, task.objective
        self.controls, self.samples, self.seed = task.controls, task.samples, task.seed
        self.generator, self.max_gradients = task.generator, task.max_gradients
        self.spent, self.used = Cost(), 0.0
        self.retreats, self.steps, self.shown = 0, 0, math.nan

    def moved(self, inner: Tensor) -> Tensor:
        """Return all control points, with `inner` in place of the free ones."""
        full = self.controls.clone()
        full[self.task.free] = inner
        return full

    @property
    def lost(self) -> bool:
        """Whether training gave up because the loss was not finite wherever it turned."""
        return self.retreats > _RETREATS

    def basis(self, times: Tensor) -> Tensor:
        """Return what every control point weighs at `times`."""
        return basis_functions(self.task.kind, len(self.controls) - 1, times)

    def seen(self, losses: Tensor) -> float:
        """Return what is shown and judged: the losses' mean, or else their maximum."""
        return float(losses.mean() if self.objective == "mean" else losses.max())

    def shared_state(self) -> dict[str, Any]:
        """Return what both ways keep."""
        return {
            "controls": self.controls,
            "spent": cost_state(self.spent),
            "used": self.used,
            "retreats": self.retreats,
            "steps": self.steps,
            "shown": self.shown,
            "seed": self.seed,
        }

    def load_shared(self, state: dict[str, Any]) -> None:
        """Go on from what `shared_state` returned."""
        self.controls = state["controls"].to(self.controls.device)
        self.spent, self.used = cost_from(state["spent"]), state["used"]
        self.retreats, self.steps, self.shown = state["retreats"], state["steps"], state["shown"]
        self.seed = state["seed"]

    def describe(self) -> tuple[float, str]:
        """Return the share of the budget that is spent, and the objective."""
        part = min(1.0, self.used / self.max_gradients)
        what = "mean" if self.objective == "mean" else "highest"
        return part, f"{self.task.kind} step {self.steps}, {what} loss along it {self.shown:.6g}"


class Descent(Bending):
    """Adam on random times and minibatches, its step decaying as a cosine of the budget."""

    def __init__(self, task: Task, batch_size: int | None, lr: float) -> None:
        super().__init__(task)
        self.lr, self.damping, self.spread = lr, 1.0, math.nan
        examples = self.land.examples if isinstance(self.land, FiniteSum) else 1
        size = examples if batch_size is None else batch_size
        self.batches = Minibatches(self.land, size, self.generator)
        self.share = min(1.0, size / examples)  # of the data in a minibatch
        self.history = torch.zeros(_BINS, 2, dtype=torch.float64)
        self._begin()

    def _begin(self) -> None:
        """Start Adam at the control points as they stand, without momentum."""
        self.inner = torch.nn.Parameter(self.controls[self.task.free].clone())
        self.adam = torch.optim.Adam([self.inner], lr=self.lr)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or the loss not finite wherever a step leads."""
        room = self.used + self.samples * self.share <= self.max_gradients
        return self.lost or not room

    def step(self) -> None:
        """Take one step, or take the last one back where it led to a non-finite loss."""
        part = self.used / self.max_gradients
        before = self.land.cost
        full = self.moved(self.inner.detach())
        value, slope = self.evaluate(self.batches.draw(), full, part)
        self.spent += self.land.cost - before
        self.used += self.samples * self.share
        self.steps += 1
        if not (math.isfinite(value) and bool(torch.isfinite(slope).all())):
            self.retreats, self.damping = self.retreats + 1, self.damping / 4
            self._begin()
            return
        self.retreats, self.controls, self.shown = 0, full, value
        self.history[min(_BINS - 1, int(_BINS * part))] += torch.tensor([value, 1.0])
        self.adam.param_groups[0]["lr"] = (
            self.lr * self.damping * (1 + math.cos(math.pi * min(1.0, part))) / 2
        )
        self.inner.grad = slope
        self.adam.step()

    def evaluate(self, batch: Landscape, full: Tensor, part: float) -> tuple[float, Tensor]:
        """Return what is shown, and the gradient in the free control points."""
        times = stratified_times(self.samples, self.generator)
        losses, gradient = pull_back(batch, full, self.basis(times))
        return self.seen(losses), gradient(self._weights(losses, part))[self.task.free]

    def _weights(self, losses: Tensor, part: float) -> Tensor:
        """Weigh the times; the sharpness grows over the budget, in equal ratios."""
        spread = float(losses.max() - losses.min())
        old = spread if math.isnan(self.spread) else self.spread
        if math.isfinite(spread):
            self.spread = 0.9 * old + 0.1 * spread
        ratio = _SHARPEST["softmax"] / _SHARPNESS
        sharpness = _SHARPNESS * ratio**part / max(self.spread, 1e-300)
        shares = torch.full_like(losses, 1 / len(losses))
        return weigh(self.objective, losses, shares, sharpness)[1]

    @property
    def settled(self) -> float:
        """How much the last two twentieths of the budget differ; NaN if one is empty."""
        sums, counts = self.history[-2:].T
        if not bool((counts > 0).all()):
            return math.nan
        before, after = sums / counts
        return float((before - after).abs())

    def state(self) -> dict[str, Any]:
        """Return what `load` needs."""
        return {
            **self.shared_state(),
            "inner": self.inner.detach().clone(),
            "adam": copy.deepcopy(self.adam.state_dict()),
            "batches": self.batches.state(),
            "history": self.history.clone(),
            "damping": self.damping,
            "spread": self.spread,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.load_shared(state)
        self._begin()
        with torch.no_grad():
            self.inner.copy_(state["inner"])
        self.adam.load_state_dict(state["adam"])
        self.batches.load(state["batches"])
        self.history = state["history"].clone()
        self.damping, self.spread = state["damping"], state["spread"]


class _Halt(Exception):
    """Leaves L-BFGS where the budget is spent or a loss is not finite."""


class Quasi(Bending):
    """L-BFGS in stages, each on a fixed grid of times."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.stage, self.fall, self.done = 0, math.nan, False
        pieces = 1 if task.kind == "bezier" else len(self.controls) - 1
        if self.objective == "mean":
            self.samples = len(gauss_times(self.samples, pieces)[0])
        self.pieces = pieces

    @property
    def finished(self) -> bool:
        """Whether the stages or the budget are spent, or the loss is not finite."""
        room = self.used + self.samples <= self.max_gradients
        return self.done or self.lost or self.stage >= _STAGES or not room

    def step(self) -> None:
        """Minimise one stage's objective from where the last one ended."""
        if self.objective == "mean":
            times, shares = gauss_times(self.samples, self.pieces)
        else:
            times = even_times(self.samples, self.generator)
            shares = torch.full_like(times, 1 / len(times))
        stage = _Stage(self, self.basis(times), shares, self._sharpness())
        done = stage.minimise()
        if stage.best is None:
            self.retreats = _RETREATS + 1
            return
        self.controls, self.fall = stage.best, 0.0 if done else stage.first - stage.value
        self.retreats = self.retreats + 1 if stage.lost else 0
        self.stage += 1
        self.done = done and self.objective == "mean"

    def _sharpness(self) -> float:
        """Return this stage's sharpness, which grows in equal ratios."""
        if self.objective == "mean":
            return 1.0
        ratio = _SHARPEST[self.objective] / _SHARPNESS
        return float(_SHARPNESS * ratio ** (self.stage / (_STAGES - 1)))

    @property
    def settled(self) -> float:
        """How far the objective fell in the last stage, 0 if L-BFGS ended by itself; else NaN."""
        return self.fall if self.stage >= _STAGES or self.done else math.nan

    def state(self) -> dict[str, Any]:
        """Return what `load` needs."""
        return {
            **self.shared_state(),
            "stage": self.stage,
            "fall": self.fall,
            "done": self.done,
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.load_shared(state)
        self.stage, self.fall, self.done = state["stage"], state["fall"], state["done"]
        self.generator.set_state(state["generator"])


class _Stage:
    """One stage of L-BFGS: a fixed grid, a fixed sharpness, and its share of the budget."""

    def __init__(self, search: Quasi, basis: Tensor, shares: Tensor, sharpness: float) -> None:
        self.search, self.on, self.shares = search, basis, shares
        self.sharpness, self.scale = sharpness, math.nan
        stages = _STAGES - search.stage if search.objective != "mean" else 1
        left = (search.max_gradients - search.used) / stages
        self.limit = search.used + max(left, search.samples)
        self.first, self.value = math.nan, math.inf
        self.best: Tensor | None = None
        self.lost = False

    def minimise(self) -> bool:
        """Run L-BFGS; say whether it ended by itself."""
        x = self.search.controls[self.search.task.free].cpu().numpy().ravel()
        options = {"maxcor": 20, "maxiter": 10**6, "maxfun": 10**9, "ftol": 1e-12, "gtol": 1e-9}
        try:
            result = minimize(self._ask, x, jac=True, method="L-BFGS-B", options=options)
        except _Halt:
            return False
        return bool(result.success)

    def _ask(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        search = self.search
        if search.used + search.samples > self.limit:
            raise _Halt
        full = search.moved(torch.from_numpy(x.copy()).view(-1, search.land.dim))
        before = search.land.cost
        losses, gradient = pull_back(search.land, full, self.on)
        search.spent += search.land.cost - before
        search.used += search.samples
        search.steps += 1
        if math.isnan(self.scale):
            self.scale = self.sharpness / max(float(losses.max() - losses.min()), 1e-300)
        objective: Objective = "mean" if search.objective == "mean" else "softmax"
        value, weights = weigh(objective, losses, self.shares, self.scale)
        slope = gradient(weights)[search.task.free].cpu().numpy().ravel()
        if not (math.isfinite(value) and bool(np.isfinite(slope).all())):
            self.lost = True
            raise _Halt
        if self.best is None:
            self.first = value
        if value < self.value:
            self.value, self.best, search.shown = value, full, search.seen(losses)
        return value, slope
