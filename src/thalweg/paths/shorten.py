"""Shortening under a level: the shortest path near a given one that stays below it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import scipy.optimize
import torch
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.path import Path, check_ends
from thalweg.paths.resume import Checkpoint, Progress, cost_from, cost_state, fingerprint, run
from thalweg.paths.segments import check_segment, joined, segment_from, segment_state, share_of

__all__ = ["shorten"]

_PARTS = 4  # places of a segment at which the level is held while the path moves
_MARGIN = 0.01  # of the range of losses: how far below the level the places are held at first
_SOFT = 1e-6  # how far the constraints may give, relative to their own scale
_LOSS = 1 / 3  # of a gradient: what a loss alone counts in the budget
_PENALTY = 4.0  # a rise by the whole range of losses weighs as much as this many lengths
_TURN = 0.05  # radians: a corner that turns less needs no more corners beside it
_CORNERS = 257  # most corners of a path on its way
_STALLED = 3  # sweeps without a gain that end a stage
_SWEEPS = 100  # most sweeps of a stage
_NUMBERS = (  # of a search on its way
    *("length", "former", "margin", "tau", "phase", "place", "removed", "refined", "last"),
    *("sweeps", "stalled", "failures", "gradients", "whole"),
)


@dataclass(frozen=True, eq=False)
class _Chain:
    """A polyline, with losses and gradients at places along it."""

    points: Tensor  # (K, D) float64
    weights: Tensor  # (places, K - 2) of the inner corners at each place
    inner: Tensor  # (places,) 0 at an end of the path, 1 from the first corner on
    losses: Tensor  # (places,)
    gradients: Tensor  # (places, D)

    @property
    def length(self) -> float:
        return float(torch.linalg.vector_norm(self.points[1:] - self.points[:-1], dim=1).sum())


def _places(count: int) -> Tensor:
    """Return the weights of the corners at each place where the level is held."""
    number = torch.arange(1, _PARTS * (count - 1))
    segment, part = number // _PARTS, (number % _PARTS).double() / _PARTS
    weights = torch.zeros(len(number), count, dtype=torch.float64)
    weights[torch.arange(len(number)), segment] = 1 - part
    weights[torch.arange(len(number)), segment + 1] += part
    return weights


def _linearise(view: Landscape, batch: Landscape, points: Tensor) -> _Chain:
    """Evaluate losses, and gradients perhaps on a minibatch, at the places of a polyline."""
    weights = _places(len(points)).to(points.device)
    theta = (weights @ points).to(view.dtype)
    if batch is view:
        losses, gradients = batch.value_and_gradient(theta)
    else:
        losses, gradients = view.loss(theta), batch.gradient(theta)
    inner = (1 - weights[:, 0] - weights[:, -1]).clamp(0, 1)
    return _Chain(points, weights[:, 1:-1], inner, losses.double(), gradients.double())


def _move(chain: _Chain, limit: Tensor, tau: float) -> Tensor:
    r"""Return the step of the corners that shortens most within the linearised level.

    Minimises $\frac12 \sum_k |y_{k+1} - y_k|^2 + \frac1{2\tau} \sum_k |y_k - x_k|^2$, whose
    first part is least for a short path with equal spacing, subject to
    $L(z_i) + \nabla L(z_i) \cdot \delta z_i \le$ `limit` at every place $z_i$. The dual has
    one unknown per place: a non-negative least-squares problem.
    """
    x, count = chain.points, len(chain.points) - 2
    laplace = 2 * torch.eye(count, dtype=x.dtype, device=x.device)
    laplace -= torch.diag(x.new_ones(count - 1), 1) + torch.diag(x.new_ones(count - 1), -1)
    inverse = torch.linalg.inv(laplace + torch.eye(count, dtype=x.dtype, device=x.device) / tau)
    free = inverse @ (x[2:] + x[:-2] - 2 * x[1:-1])
    w, g = chain.weights, chain.gradients
    excess = chain.losses + ((w @ free) * g).sum(1) - limit
    pushed = inverse @ w.T
    gram = (w @ pushed) * (g @ g.T)
    scale = gram.diagonal().clamp_min(1e-300).sqrt()
    gram = gram / scale[:, None] / scale
    gram = gram + _SOFT * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    root = torch.linalg.cholesky(gram)
    wanted = torch.linalg.solve_triangular(root, (excess / scale)[:, None], upper=False)
    mu, _ = scipy.optimize.nnls(root.T.cpu().numpy(), wanted[:, 0].cpu().numpy())
    push = torch.as_tensor(mu, device=x.device) / scale
    delta: Tensor = free - pushed @ (push[:, None] * g)
    return delta


class _Search:
    """Relax, check, put in corners; before and after, leave out those that are not needed."""

    def __init__(
        self,
        land: Landscape,
        path: Path,
        level: float,
        *,
        batches: Minibatches,
        max_gradients: int,
        tolerance: float,
        rate: float,
        max_samples: int,
    ) -> None:
        self.land, self.level, self.batches = land, level, batches
        self.view = for_evaluation(land)
        self.max_gradients, self.tolerance, self.rate = max_gradients, tolerance, rate
        self.max_samples, self.dtype = max_samples, path.points.dtype
        self.points = path.points  # (K, D) on its way
        self.best: list[Path] = []  # the shortest path shown to stay below the level
        self.length = math.inf  # its length
        self.former = path.length  # what it was a stage ago
        self.span = path.length / path.normalised_length
        self.floor = float(path.losses.min())
        self.margin = _MARGIN * (level - self.floor)
        self.tau = rate
        self.chain: _Chain | None = None
        self.phase, self.place, self.removed, self.refined = "check", 0, False, False
        self.checked: list[Path] = []
        self.sweeps = self.stalled = self.failures = 0
        self.gradients, self.spent = 0.0, Cost()
        self.last = False  # whether the corners are being left out for the last time
        self.whole = False  # whether minibatches have done what they can

    @property
    def finished(self) -> bool:
        """Whether the path is as short as it gets, or the budget is spent."""
        return self.phase == "done"

    @property
    def spare(self) -> bool:
        """Whether gradients are left."""
        return self.gradients < self.max_gradients

    def step(self) -> None:
        """Move the path once, or check one segment, or try to leave out one corner."""
        before = self.land.cost
        {"check": self._check, "prune": self._prune, "relax": self._relax}[self.phase]()
        self.spent += self.land.cost - before
        if not self.spare:
            self.phase = "done"

    def _segment(self, left: Tensor, right: Tensor) -> Path:
        path = check_segment(
            self.land, left, right, self.level, span=self.span, max_samples=self.max_samples
        )
        self.gradients += path.cost.gradients + _LOSS * (path.cost.losses - path.cost.gradients)
        return path

    def _check(self) -> None:
        """Check the next segment of the path on its way; at the last one, take it or not."""
        i = len(self.checked)
        path = self._segment(self.points[i], self.points[i + 1])
        if not path.maximum.upper <= self.level:
            self._refused(path)
            return
        self.checked = [*self.checked, path]
        if len(self.checked) < len(self.points) - 1:
            return
        length, first = sum(p.length for p in self.checked), not self.best
        if length < self.length:
            self.best, self.length = self.checked, length
        self.checked, self.failures = [], 0
        if first:
            self._to_prune()
        elif self.length <= self.former * (1 - self.tolerance):
            self.former, self.refined = self.length, False
            self._to_relax(self.points)
        elif self.refined:
            self._to_finish()
        else:
            self._refine()

    def _refused(self, path: Path) -> None:
        """A segment rises above the level: hold the path further below it, or give up."""
        self.checked, self.failures = [], self.failures + 1
        if self.failures > 6 or not math.isfinite(path.maximum.upper):
            if self.best and not self.last:
                self._to_finish()
            else:
                self.phase = "done"
            return
        self.margin = 1.2 * self.margin + 1.2 * (path.maximum.upper - self.level)
        self._to_relax(self.points)

    def _to_relax(self, points: Tensor) -> None:
        if len(points) < 3:
            self.phase = "done"
            return
        self.points, self.chain, self.phase = points, None, "relax"
        self.sweeps = self.stalled = 0
        self.tau = max(self.tau, self.rate)

    def _to_finish(self) -> None:
        """Leave corners out for the last time; after minibatches, go on with all the data first."""
        if self.whole or self.batches.per_epoch == 1:
            self._to_prune(last=True)
            return
        self.whole, self.refined, self.failures = True, False, 0
        self.margin = _MARGIN * (self.level - self.floor)
        self._to_prune()

    def _to_prune(self, *, last: bool = False) -> None:
        self.phase, self.place, self.removed, self.last = "prune", 1, False, last
        self.points = torch.stack([*(p.points[0] for p in self.best), self.best[-1].points[-1]])

    def _prune(self) -> None:
        """Leave out one corner if the segment that takes its place stays below the level."""
        if self.place >= len(self.points) - 1:
            if self.removed:
                self.place, self.removed = 1, False
            elif self.last:
                self.phase = "done"
            else:
                self.former = self.length
                self._to_relax(self.points)
            if len(self.points) < 3:
                self.phase = "done"
            return
        i = self.place
        left, right = self.points[i - 1], self.points[i + 1]
        path = self._across(left, right)
        if path is None or not path.maximum.upper <= self.level:
            self.place += 1
            return
        self.best = [*self.best[: i - 1], path, *self.best[i + 1 :]]
        self.length = sum(p.length for p in self.best)
        self.points = torch.cat([self.points[:i], self.points[i + 1 :]])
        self.removed = True

    def _across(self, left: Tensor, right: Tensor) -> Path | None:
        """Check a shortcut; three losses that show it to be too high are enough."""
        parts = torch.tensor([0.5, 0.25, 0.75], device=left.device, dtype=left.dtype)
        self.gradients += 3 * _LOSS
        inside = torch.lerp(left, right, parts[:, None])
        if not bool((self.view.loss(inside) <= self.level).all()):
            return None
        return self._segment(left, right)

    def _refine(self) -> None:
        """Put a corner into every segment beside a corner that turns; if none does, finish."""
        self.former, self.refined = self.length, True
        self.margin = _MARGIN * (self.level - self.floor)  # shorter segments hide less
        steps = (self.points[1:] - self.points[:-1]).double()
        unit = steps / torch.linalg.vector_norm(steps, dim=1, keepdim=True).clamp_min(1e-300)
        turns = torch.linalg.vector_norm(unit[1:] - unit[:-1], dim=1) > _TURN
        beside = torch.zeros(len(steps), dtype=torch.bool, device=steps.device)
        beside[1:] |= turns
        beside[:-1] |= turns
        if not bool(beside.any()) or len(self.points) + int(beside.sum()) > _CORNERS:
            self._to_finish()
            return
        rows = [self.points[0]]
        for i, split in enumerate(beside.tolist()):
            if split:
                rows.append(torch.lerp(self.points[i], self.points[i + 1], 0.5))
            rows.append(self.points[i + 1])
        self._to_relax(torch.stack(rows))

    def _linearised(self, points: Tensor) -> _Chain:
        batch = self.land if self.whole else self.batches.draw()
        chain = _linearise(self.view, batch, points)
        each = share_of(batch, self.land) + (0 if batch is self.view else _LOSS)
        self.gradients += len(chain.losses) * each
        return chain

    def _merit(self, chain: _Chain, limit: Tensor) -> float:
        """Length in units of the straight distance, and a penalty for rising above the limit."""
        span = float(torch.linalg.vector_norm(chain.points[-1] - chain.points[0]))
        rise = float((chain.losses - limit).amax().clamp_min(0))
        merit = chain.length / span + _PENALTY * rise / max(self.level - self.floor, 1e-300)
        finite = bool(torch.isfinite(chain.losses).all() & torch.isfinite(chain.gradients).all())
        return merit if finite else math.inf

    def _relax(self) -> None:
        """Take one step of the whole path; one that does not pay is taken back, shortened."""
        now = self.chain or self._linearised(self.points.double())
        limit = self.level - self.margin * now.inner
        if not math.isfinite(self._merit(now, limit)):
            self._refused_numbers()
            return
        reach = 0.5 * now.length / (len(now.points) - 1)
        delta = _move(now, limit, self.tau)
        far = float(torch.linalg.vector_norm(delta, dim=1).max())
        delta = delta * min(1.0, reach / max(far, 1e-300))
        trial = now.points.clone()
        trial[1:-1] += delta
        then = self._linearised(trial)
        old, new = self._merit(now, limit), self._merit(then, limit)
        paid = new <= old
        self.tau = min(2 * self.tau, 1e4) if paid else self.tau / 4
        gain = old - new if paid else 0.0
        self.stalled = 0 if gain > 0.2 * self.tolerance * old else self.stalled + 1
        self.chain = then if paid else now
        self.sweeps += 1
        if self.sweeps >= _SWEEPS or self.stalled >= _STALLED:
            self._settle(self.chain)

    def _refused_numbers(self) -> None:
        """The loss is not finite at a place of the path: go back to the best one."""
        if self.best and not self.last:
            self._to_prune(last=True)
        else:
            self.phase = "done"

    def _settle(self, chain: _Chain) -> None:
        points = chain.points.to(self.dtype)
        points[0], points[-1] = self.points[0], self.points[-1]
        self.points, self.chain, self.phase, self.checked = points, None, "check", []

    def describe(self) -> tuple[float, str]:
        """Say how much of the budget is spent, and how long the path is."""
        length = self.length if self.best else self.former
        part = 1.0 if self.finished else min(1.0, self.gradients / self.max_gradients)
        return part, f"shortening: length {length:.6g}, {len(self.points)} corners"

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
            "points": self.points,
            "best": [segment_state(p) for p in self.best],
            "checked": [segment_state(p) for p in self.checked],
            "chain": None if self.chain is None else dict(vars(self.chain)),
            "spent": cost_state(self.spent),
            "batches": self.batches.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for name, value in state["numbers"].items():
            setattr(self, name, value)
        device, chain = self.points.device, state["chain"]
        self.points = state["points"].to(device)
        self.best = [segment_from(s) for s in state["best"]]
        self.checked = [segment_from(s) for s in state["checked"]]
        self.chain = None
        if chain is not None:
            self.chain = _Chain(**{name: value.to(device) for name, value in chain.items()})
        self.spent = cost_from(state["spent"])
        self.batches.load(state["batches"])


def shorten(
    land: Landscape,
    path: Path,
    level: float,
    *,
    max_gradients: int = 20_000,
    tolerance: float | None = None,
    rate: float = 1.0,
    batch_size: int | None = None,
    max_samples: int = 100,
    seed: Seed = None,
    checkpoint: str | FilePath | None = None,
    progress: Progress | None = None,
) -> Path:
    r"""Shorten a path while all of it stays at or below a level.

    Minimises the length of the polyline subject to $L \le \lambda$ on all of it. Corners
    that are not needed are left out; then all corners move at once: each step minimises
    $\sum_k |x_{k+1} - x_k|^2$ (whose minimum has equal spacing) and a proximal term within
    the level, linearised at four places of every segment, slightly below $\lambda$. Where
    the path still turns, corners are put in, and in the end those that are not needed are
    left out again. A path is taken only once the bracket of *each* of its segments ends at
    or below $\lambda$ and it is shorter than the best so far: the result is never longer
    than `path`, and never above the level by its own bracket. What it tends to is a local
    geodesic of the sublevel set; another valley may hold a shorter path.

    Args:
        land: The landscape.
        path: A path at or below the level.
        level: $\lambda$.
        max_gradients: Budget in gradients over all the data, brackets included: on a
            minibatch a gradient counts as the share of the examples, a loss as a third.
        tolerance: Relative gain of a stage below which it is not repeated; 1e-3 by default.
        rate: Weight of the shortening against the proximal term in the first step; it
            adapts.
        batch_size: Examples for the gradients of one step of the corners, until that gains
            nothing more; the rest of the budget uses all the data, as losses always do. None
            takes all from the start.
        max_samples: Evaluations for the bracket of one segment.
        seed: Of the minibatches.
        checkpoint: A file to go on from.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The shortened path; `path` itself, with the cost added, where none shorter was found.
        `converged` says whether it stopped gaining before the budget was spent.

    Raises:
        ValueError: If the path's own bracket does not end at or below the level, or an option is
            out of range.

    Source: the step is Gauss-Newton with active constraints, as in sequential quadratic
    programming (Nocedal and Wright, Numerical Optimization, 2nd ed., ch. 18).

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> from thalweg.paths import measure
        >>> bowl = FunctionLandscape(lambda x: (x**2).sum(), dim=2)
        >>> corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> shorten(bowl, measure(bowl, corners), level=1.1).normalised_length
        1.0
    """
    check_ends(land, path.points[0], path.points[-1])
    _check_request(path, level, tolerance, rate, max_gradients)
    generator, recorded = make_generator(seed)
    search = _Search(
        land,
        path,
        level,
        batches=Minibatches(land, sys.maxsize if batch_size is None else batch_size, generator),
        max_gradients=max_gradients,
        tolerance=1e-3 if tolerance is None else tolerance,
        rate=rate,
        max_samples=max_samples,
    )
    key = fingerprint(
        points=path.points,
        level=level,
        options=[max_gradients, tolerance, rate, batch_size, max_samples, recorded],
    )
    run(search, None if checkpoint is None else Checkpoint(checkpoint, key), progress)
    return _result(search, path, recorded)


def _check_request(
    path: Path, level: float, tolerance: float | None, rate: float, max_gradients: int
) -> None:
    if not math.isfinite(level):
        raise ValueError(f"level must be a finite number, got {level!r}")
    if not path.maximum.upper <= level:
        raise ValueError(
            f"the path climbs to {path.maximum}, not at or below the level {level:.8g}; only a "
            "path below the level can be shortened under it"
        )
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance!r}")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate must be a positive number, got {rate!r}")
    if max_gradients < 0:
        raise ValueError(f"max_gradients must not be negative, got {max_gradients}")


def _result(search: _Search, path: Path, seed: int) -> Path:
    converged = search.spare
    found = joined(search.best) if search.best else path
    shorter = found.length < path.length and found.maximum.upper <= search.level
    best = found if shorter else path
    note = f"length {best.length:.6g} after {path.length:.6g}, at or below {search.level:.8g}; " + (
        f"another stage gained less than {search.tolerance:g} of it"
        if converged
        else f"the budget of {search.max_gradients} gradients is spent: raise max_gradients"
    )
    return replace(
        best,
        method=f"{path.method}, shortened",
        converged=converged,
        note=note,
        seed=seed,
        cost=search.spent,
    )
