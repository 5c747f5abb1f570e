"""Curves between minima with trained control points: Bezier curves and polygonal chains."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as File
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.line import line
from thalweg.paths.objective import (
    Descent,
    Kind,
    Objective,
    Quasi,
    Task,
    basis_functions,
    gauss_times,
    orthogonalise,
    substitute_back,
)
from thalweg.paths.path import Path, check_ends, measure
from thalweg.paths.resume import Checkpoint, Progress, fingerprint, run

__all__ = ["Curve", "curve"]

Optimizer = Literal["auto", "lbfgs", "adam"]
_STEP = 0.1  # Adam's first step, in root mean squares of the coordinates of b - a


@dataclass(frozen=True, eq=False)
class Curve:
    r"""A curve through parameter space, $\varphi(t) = \sum_i B_i(t)\, w_i$, $t \in [0, 1]$.

    ``bezier``: $B_i(t) = \binom{n}{i} t^i (1-t)^{n-i}$, of degree $n$ = number of control
    points less one. ``chain``: $B_i(t) = \max(0, 1 - |nt - i|)$, straight from one control
    point to the next. Either starts at the first control point and ends at the last.

    Attributes:
        controls: The control points, `(n + 1, dim)`.
        kind: ``"bezier"`` or ``"chain"``.

    Raises:
        ValueError: If there are fewer than two control points, or `kind` is unknown.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        >>> Curve(corner).at(0.5).tolist(), Curve(corner, "chain").at(0.5).tolist()
        ([0.75, 0.25], [1.0, 0.0])
        >>> round(Curve(corner).length, 6), Curve(corner, "chain").length
        (1.623225, 2.0)
    """

    controls: Float[Tensor, "controls dim"]
    kind: Kind = "bezier"

    def __post_init__(self) -> None:
        """Refuse what is no curve."""
        if self.controls.ndim != 2 or len(self.controls) < 2:
            raise ValueError(
                f"controls has shape {tuple(self.controls.shape)}; a curve needs (at least 2, dim)"
            )
        if self.kind not in ("bezier", "chain"):
            raise ValueError(f"unknown kind {self.kind!r}; use 'bezier' or 'chain'")

    @property
    def degree(self) -> int:
        """The degree of a Bezier curve, or the number of a chain's segments."""
        return len(self.controls) - 1

    def basis(self, t: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch controls"]:
        r"""Return what every control point weighs at `t`: all $\ge 0$, with sum 1.

        Raises:
            ValueError: If a time lies outside [0, 1].
        """
        return basis_functions(self.kind, self.degree, self._times(t))

    def at(self, t: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the point at `t`, which is no arc length.

        Args:
            t: A number or a tensor of numbers in [0, 1].

        Returns:
            One vector per number.

        Raises:
            ValueError: If a time lies outside [0, 1].
        """
        return (self.basis(t) @ self.controls.double()).to(self.controls.dtype)

    def derivative(self, t: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the derivative in `t`; at a chain's corner, that of the segment after it.

        Raises:
            ValueError: If a time lies outside [0, 1].
        """
        steps = self.degree * (self.controls[1:] - self.controls[:-1]).double()
        return (self._slopes(self._times(t)) @ steps).to(self.controls.dtype)

    def _slopes(self, t: Tensor) -> Tensor:
        """Return what the steps between control points, times the degree, weigh at `t`."""
        if self.kind == "bezier":
            return basis_functions("bezier", self.degree - 1, t)
        i = (t * self.degree).floor().clamp(max=self.degree - 1).long()
        return torch.nn.functional.one_hot(i, self.degree).double()

    @cached_property
    def length(self) -> float:
        """Euclidean length: exact for a chain, to 1e-9 relative for a smooth Bezier curve."""
        steps = (self.controls[1:] - self.controls[:-1]).double()
        if self.kind == "chain":
            return float(torch.linalg.vector_norm(steps, dim=1).sum())
        gram = self.degree**2 * steps @ steps.T
        former = math.nan
        for pieces in (1, 4, 16, 64, 256, 1024):
            t, shares = gauss_times(16 * pieces, pieces)
            slopes = self._slopes(t.to(steps.device))
            speed = ((slopes @ gram) * slopes).sum(1).clamp_min(0).sqrt()
            now = float(shares.to(speed.device) @ speed)
            if abs(now - former) <= 1e-9 * now:
                break
            former = now
        return now

    def elevated(self) -> Curve:
        r"""Return the same curve with more control points.

        A Bezier curve gets one more,
        $w'_i = \frac{i}{n+1} w_{i-1} + \left(1 - \frac{i}{n+1}\right) w_i$. A chain gets
        the middles of its segments.
        """
        w, n = self.controls, self.degree
        if self.kind == "chain":
            middles = torch.lerp(w[:-1], w[1:], 0.5)
            mixed = torch.stack([w[:-1], middles], dim=1).flatten(0, 1)
            return Curve(torch.cat([mixed, w[-1:]]), "chain")
        part = (torch.arange(1, n + 1, device=w.device) / (n + 1)).to(w.dtype)[:, None]
        return Curve(torch.cat([w[:1], part * w[:-1] + (1 - part) * w[1:], w[-1:]]))

    def polyline(self, chords: int) -> Float[Tensor, "corners dim"]:
        """Return corners on the curve: a chain's own, or a Bezier curve's at equal steps of t."""
        if self.kind == "chain":
            return self.controls
        points = self.at(torch.linspace(0, 1, chords + 1, dtype=torch.float64))
        points[0], points[-1] = self.controls[0], self.controls[-1]
        return points

    def _times(self, t: float | Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=torch.float64, device=self.controls.device)
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise ValueError(f"t must lie in [0, 1], got {t!r}")
        return times


def _fit(path: Path, kind: Kind, bends: int) -> Tensor:
    """Return control points, in float64, of the curve nearest to a path by least squares."""
    ends = path.points[[0, -1]].double()
    count = max(65, 8 * (bends + 1) + 1)
    times = torch.linspace(0, 1, count, dtype=torch.float64, device=ends.device)
    basis = basis_functions(kind, bends + 1, times)
    rest = path.at(times).double() - basis[:, [0, -1]] @ ends
    corner, across = orthogonalise(basis[:, 1:-1].T)
    inner = substitute_back(corner, across @ rest)
    return torch.cat([ends[:1], inner, ends[1:]])


def curve(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    *,
    kind: Kind = "bezier",
    bends: int = 3,
    objective: Objective = "softmax",
    optimizer: Optimizer = "auto",
    max_gradients: int = 2500,
    batch_size: int | None = None,
    samples: int | None = None,
    lr: float | None = None,
    start: Path | None = None,
    chords: int = 32,
    tolerance: float | None = None,
    max_samples: int = 200,
    seed: Seed = None,
    checkpoint: str | File | None = None,
    progress: Progress | None = None,
) -> Path:
    r"""Train the control points of a curve from `a` to `b` for a low loss along it.

    With $\varphi_w(t) = \sum_i B_i(t) w_i$ (`Curve`), ends fixed, minimise over the inner
    control points either the mean $\int_0^1 L(\varphi_w(t))\,dt$ or something nearer to the
    maximum over $t$ (`objective`). A mean trades a high pass against a long low stretch; the
    soft-max does not, and is what the height of the path asks for.

    ``"softmax"`` and ``"max"`` sharpen as they go: $\beta$ = sharpness / (spread of the
    losses along the curve), with the sharpness growing from 10 to 100, or to 1000, in equal
    ratios.

    Two ways to train, between which ``"auto"`` chooses:

    - ``"lbfgs"``, without minibatches: L-BFGS in 3 stages, each with its share of what is left
      of the budget, on a fixed grid of times that is shifted at random from stage to stage
      (for the mean: one stage on Gauss-Legendre nodes). No learning rate.
    - ``"adam"``, with minibatches: every step draws stratified times, mirrored about 1/2, and
      one minibatch for all of them; the step decays from `lr` to 0 as a cosine of the budget
      spent. ``"max"`` follows the subgradient at the highest of the times drawn.

    The result is a polyline, and every number in it is about that polyline: a chain itself,
    or `chords` chords per bend of a Bezier curve. It is never higher than `start` (by default
    the straight line): the lower of the two is returned. ``converged`` says whether the
    objective had settled; a curve of so few parameters has no reason to run through a pass.

    Args:
        land: The landscape; weight decay belongs to it already.
        a: One end, `(dim,)`.
        b: The other end.
        kind: ``"bezier"`` or ``"chain"``.
        bends: Free control points. Garipov et al. count the ends too: their 3 are 1 here.
        objective: ``"mean"``, ``"softmax"`` or ``"max"``.
        optimizer: ``"lbfgs"``, ``"adam"`` or ``"auto"``.
        max_gradients: Largest number of gradients that training may take, each over all the
            data; one over a minibatch counts as the share of the examples that it holds.
        batch_size: Examples in a minibatch; all of them by default.
        samples: Times per step; by default 3 for each control point but one, at least 12
            (L-BFGS) or 8 (Adam).
        lr: Adam's first step, per coordinate; by default 0.1 of the root mean square of the
            coordinates of $b - a$.
        start: A path between the same ends, whose nearest curve training starts from.
        chords: Chords per bend of the polyline that is returned.
        tolerance: A difference in loss that does not matter; by default 1e-3 of the range of
            the losses along `start`.
        max_samples: Largest number of evaluations for the bracket.
        seed: For times, minibatches, and the bend by 1e-3 of the distance that breaks symmetry.
        checkpoint: A file that keeps the search; the same call goes on from it (after a whole
            step of Adam or stage of L-BFGS). With ``seed=None`` it keeps the seed too.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The path.

    Raises:
        ValueError: If an end or an option is wrong, or `start` joins other ends.

    Source: Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, NeurIPS 2018 (arXiv 1802.10026),
    eqs. 2-5, who minimise the mean.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> ring = FunctionLandscape(lambda x: ((x**2).sum() - 1)**2, dim=2)
        >>> a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> path = curve(ring, a, b, seed=0)
        >>> path.method, path.height.upper < 0.01        # the line's is 1
        ('bezier', True)
    """
    a, b = check_ends(land, a, b)
    way = _check(
        kind,
        objective,
        optimizer,
        batch_size,
        bends=bends,
        samples=samples,
        max_gradients=max_gradients,
        chords=chords,
    )
    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive number, got {lr}")
    start = start or line(land, a, b, tolerance=tolerance, max_samples=max_samples)
    if not (torch.equal(start.points[0], a) and torch.equal(start.points[-1], b)):
        raise ValueError("start joins other ends than a and b")
    generator, recorded = make_generator(seed)
    scale = float(torch.linalg.vector_norm((b - a).double())) / math.sqrt(land.dim)
    noise = torch.randn(bends, land.dim, generator=generator, dtype=torch.float64)
    controls = _fit(start, kind, bends)
    controls[1:-1] += 1e-3 * scale * noise.to(controls.device)
    each = samples or max(12 if way == "lbfgs" else 8, 3 * (bends + 1))
    rate = lr or _STEP * scale
    task = Task(
        land,
        controls,
        slice(1, -1),
        kind,
        objective,
        max_gradients,
        each,
        generator,
        recorded,
    )
    search = Quasi(task) if way == "lbfgs" else Descent(task, batch_size, rate)
    key = fingerprint(
        a=a,
        b=b,
        start=start.points,
        options=["curve", kind, bends, objective, way, max_gradients, batch_size, each, rate],
        seed=None if seed is None else recorded,
    )
    run(search, None if checkpoint is None else Checkpoint(checkpoint, key), progress)
    return _lower(search, kind, start, chords * bends, tolerance, max_samples)


def _check(
    kind: str,
    objective: str,
    optimizer: str,
    batch_size: int | None,
    **counts: int | None,
) -> Literal["lbfgs", "adam"]:
    """Refuse options that make no sense; return the way to train."""
    for name, given, known in (
        ("kind", kind, ("bezier", "chain")),
        ("objective", objective, ("mean", "softmax", "max")),
        ("optimizer", optimizer, ("auto", "lbfgs", "adam")),
    ):
        if given not in known:
            raise ValueError(f"unknown {name} {given!r}; use one of {', '.join(known)}")
    for name, count in (*counts.items(), ("batch_size", batch_size)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if optimizer == "lbfgs" and batch_size is not None:
        raise ValueError(
            "L-BFGS needs the same loss at every step; leave batch_size out, or use "
            "optimizer='adam'"
        )
    return "adam" if optimizer == "adam" or batch_size is not None else "lbfgs"


def _upper(path: Path) -> float:
    return math.inf if math.isnan(path.maximum.upper) else path.maximum.upper


def _lower(
    search: Quasi | Descent,
    kind: Kind,
    start: Path,
    chords: int,
    tolerance: float | None,
    most: int,
) -> Path:
    """Return the trained curve, measured, or `start` where that is lower."""
    trained = Curve(search.controls.to(start.points.dtype), kind)
    points = trained.polyline(chords)
    points[0], points[-1] = start.points[0], start.points[-1]
    worth = start.worth(tolerance)
    found = measure(
        search.land,
        points,
        tolerance=worth,
        max_samples=max(most, 4 * trained.degree, 2 * chords),
        initial=1 if kind == "bezier" else None,
        method=kind,
    )
    cost = start.cost + search.spent + found.cost
    settled, note = _judge(search, worth)
    if _upper(found) > _upper(start):
        found = start
        note = f"no curve came below the path that it started from; {note}"
    return replace(
        found,
        method=kind,
        converged=settled,
        note=note,
        seed=search.seed,
        cost=cost,
    )


def _judge(search: Quasi | Descent, worth: float) -> tuple[bool, str]:
    """Say whether the objective settled, or what to try."""
    what = "mean" if search.objective == "mean" else "highest"
    if search.lost:
        return False, (
            f"after {search.steps} steps the loss was NaN or infinite wherever training turned; "
            "start from a path on which it is finite"
        )
    change = search.settled
    if change <= worth:
        return True, (
            f"the {what} loss along the curve settled, to {change:.2g} at last, after "
            f"{search.steps} steps; more bends may go lower"
        )
    if math.isnan(change):
        return False, (
            f"the budget ended after {search.steps} steps, before the {what} loss along the curve "
            "could settle; raise max_gradients"
        )
    return False, (
        f"the {what} loss along the curve was still changing by {change:.2g} after "
        f"{search.steps} steps; raise max_gradients to go lower"
    )
