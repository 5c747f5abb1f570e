"""Simplexes between minima: volumes of low loss, not lines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Estimate
from thalweg.landscape.intervals import LEAST_SAMPLES, mean_interval
from thalweg.landscape.protocols import Landscape, check_theta, for_evaluation
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.objective import Descent, Task, orthogonalise, pull_back, substitute_back
from thalweg.paths.resume import Checkpoint, Progress, fingerprint, run

__all__ = ["Simplex", "log_volume", "simplex"]

_TRADE = 1e-2  # of the initial rise, for which every side may grow by a factor of e
_STEP = 0.1  # Adam's first step, in root mean squares of the coordinates of a side
_ROWS = 16  # vectors evaluated together


def log_volume(vertices: Float[Tensor, "vertices dim"]) -> float:
    r"""Return the logarithm of a simplex's volume.

    $$\log \mathrm{Vol} = \tfrac12 \log\det(E E^\top) - \log n!, \qquad E_i = v_i - v_0,$$

    which equals the Cayley-Menger determinant of the squared distances. The determinant is
    the product of the heights that Gram-Schmidt finds, in float64 whatever the dtype.

    Args:
        vertices: $n + 1$ vertices in $D \ge n$ dimensions, `(n + 1, dim)`.

    Returns:
        The logarithm; minus infinity if the simplex is flat.

    Raises:
        ValueError: If there are fewer than two vertices.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(math.exp(log_volume(corner)), 12)
        0.5
    """
    if vertices.ndim != 2 or len(vertices) < 2:
        raise ValueError(
            f"vertices has shape {tuple(vertices.shape)}; a simplex needs (at least 2, dim)"
        )
    edges = (vertices[1:] - vertices[:1]).double()
    heights = orthogonalise(edges)[0].diagonal()
    rounding = 8 * torch.finfo(torch.float64).eps * torch.linalg.vector_norm(edges, dim=1)
    if bool((heights <= rounding).any()):
        return -math.inf
    return float(heights.log().sum()) - math.lgamma(len(vertices))


def regular_side(log_vol: float, sides: int) -> float:
    r"""Return the side of the regular $n$-simplex of the same volume.

    $\mathrm{Vol} = \frac{s^n}{n!} \sqrt{(n+1)/2^n}$: a length, which may be compared between
    simplexes of different $n$ where volumes cannot.

    Example:
        >>> round(regular_side(math.log(3**0.5 / 4), 2), 12)
        1.0
    """
    unit = (math.log(sides + 1) - sides * math.log(2)) / 2 - math.lgamma(sides + 1)
    return math.exp((log_vol - unit) / sides)


@dataclass(frozen=True, eq=False)
class Simplex:
    """A complex of simplexes, one per mode, that share the other vertices.

    Attributes:
        modes: The given vertices, `(K, dim)`.
        connectors: The trained vertices, `(C, dim)`, which every simplex has.
        log_volumes: The logarithm of each simplex's C-dimensional volume.
        mean: The mean loss over the complex, by Monte Carlo over points drawn evenly from
            its volume.
        highest: The highest loss among those points and the vertices: the maximum over the
            complex is at least this, and may be larger.
        mode_losses: The loss at every mode.
        converged: Whether the objective settled under a decaying step.
        note: What that means here, in a sentence.
        strength: What the logarithm of the mean side was worth, in units of loss.
        seed: The seed that reproduces it.
        cost: What it took.
    """

    modes: Float[Tensor, "modes dim"]
    connectors: Float[Tensor, "connectors dim"]
    log_volumes: tuple[float, ...]
    mean: Estimate
    highest: float
    mode_losses: tuple[float, ...]
    converged: bool
    note: str
    strength: float
    seed: int
    cost: Cost

    @property
    def sides(self) -> tuple[float, ...]:
        """The side of the regular simplex of the same volume, for every simplex."""
        return tuple(regular_side(v, len(self.connectors)) for v in self.log_volumes)

    @property
    def base(self) -> float:
        """The highest mode's loss."""
        return float(np.max(self.mode_losses))

    def vertices(self, mode: int) -> Float[Tensor, "vertices dim"]:
        """Return the vertices of one mode's simplex: the mode, then the connectors."""
        return torch.cat([self.modes[mode : mode + 1], self.connectors])

    def sample(self, n: int, *, seed: Seed = None) -> Float[Tensor, "n dim"]:
        """Draw points evenly from the volume of the complex, for an ensemble.

        A simplex is drawn in proportion to its volume, then a point by weights that are
        Dirichlet(1, ..., 1).

        Args:
            n: How many.
            seed: An integer repeats them bit for bit.

        Returns:
            The points, `(n, dim)`.

        Raises:
            ValueError: If `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        generator, _ = make_generator(seed)
        weights = _even(n, torch.tensor(self.log_volumes), len(self.connectors), generator)
        return _combine(weights, torch.cat([self.modes, self.connectors]))

    def __str__(self) -> str:
        """Return a few lines: losses, sides, how it was found."""
        sides = ", ".join(f"{side:.4g}" for side in self.sides)
        state = "converged" if self.converged else "not converged"
        return (
            f"{len(self.modes)} simplexes of dimension {len(self.connectors)} that share "
            f"{len(self.connectors)} connectors\n"
            f"  mean loss    {str(self.mean).partition(', ')[0]}; the highest mode has "
            f"{self.base:.6g}\n"
            f"  highest seen {self.highest:.6g} in {self.mean.samples} points (the maximum may "
            f"be higher)\n"
            f"  sides        {sides} (of the regular simplex of the same volume)\n"
            f"  {state}: {self.note}\n"
            f"  {self.cost}"
        )

    def __rich__(self) -> str:
        """Return the lines with the state in colour."""
        colour = "green" if self.converged else "yellow"
        lines = str(self).replace("[", "\\[").split("\n")
        lines[0], lines[4] = f"[bold]{lines[0]}[/bold]", f"[{colour}]{lines[4]}[/{colour}]"
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the vertices themselves."""
        return {
            "type": "simplex",
            "modes": len(self.modes),
            "connectors": len(self.connectors),
            "log_volumes": [_word(x) for x in self.log_volumes],
            "sides": [_word(x) for x in self.sides],
            "mean": self.mean.to_json(),
            "highest": _word(self.highest),
            "mode_losses": [_word(x) for x in self.mode_losses],
            "converged": self.converged,
            "note": self.note,
            "strength": _word(self.strength),
            "seed": self.seed,
            "cost": self.cost.to_json(),
        }


def _word(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _dirichlet(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw rows of weights from Dirichlet(1, ..., 1), in float64."""
    waits = -torch.log1p(-torch.rand(shape, generator=generator, dtype=torch.float64))
    return waits / waits.sum(1, keepdim=True)


def _spread_out(which: Tensor, modes: int, connectors: int, generator: torch.Generator) -> Tensor:
    """Return weights of all vertices for one point in each of the simplexes `which`."""
    inside = _dirichlet((len(which), connectors + 1), generator)
    weights = torch.zeros(len(which), modes + connectors, dtype=torch.float64)
    weights[torch.arange(len(which)), which] = inside[:, 0]
    weights[:, modes:] = inside[:, 1:]
    return weights


def _even(n: int, log_volumes: Tensor, connectors: int, generator: torch.Generator) -> Tensor:
    """Return weights of points drawn evenly from the volume of the complex."""
    shares = torch.softmax(log_volumes.double(), 0)
    which = torch.multinomial(shares, n, replacement=True, generator=generator)
    return _spread_out(which, len(log_volumes), connectors, generator)


def _combine(weights: Tensor, vertices: Tensor) -> Tensor:
    points: Tensor = weights.to(vertices.device) @ vertices.double()
    return points.to(vertices.dtype)


class _Growth(Descent):
    """Lowers the mean loss over the complex and raises its volume."""

    def __init__(
        self, task: Task, batch_size: int | None, lr: float, modes: int, strength: float | None
    ) -> None:
        super().__init__(task, batch_size, lr)
        self.modes, self.connectors = modes, len(task.controls) - modes
        self.strength = math.nan if strength is None else strength

    def evaluate(self, batch: Landscape, full: Tensor, part: float) -> tuple[float, Tensor]:
        """Return mean loss less the volume's worth, and its gradient in the connectors."""
        which = torch.arange(self.samples) % self.modes
        weights = _spread_out(which, self.modes, self.connectors, self.generator)
        losses, gradient = pull_back(batch, full, weights)
        if math.isnan(self.strength):
            rows = full[: self.modes].to(batch.dtype)
            self.strength = _strength(losses, batch.loss(rows).double().cpu())
        slope = gradient(torch.full_like(losses, 1 / len(losses)))[self.task.free]
        volume, growth = volume_gradient(full[: self.modes], full[self.modes :])
        value = float(losses.mean()) - self.strength * volume
        return value, slope - self.strength * growth

    def describe(self) -> tuple[float, str]:
        """Return the share of the budget that is spent, and the objective."""
        part = min(1.0, self.used / self.max_gradients)
        return part, f"simplex step {self.steps}, loss less volume {self.shown:.6g}"

    def state(self) -> dict[str, Any]:
        """Return what `load` needs."""
        return {**super().state(), "strength": self.strength}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load(state)
        self.strength = state["strength"]


def _strength(inside: Tensor, modes: Tensor) -> float:
    """Return the default worth of the volume: 1 % of what the loss rises between the modes."""
    rise = float(inside.mean() - modes.mean())
    floor = 1e-3 * float(modes.abs().mean())
    return _TRADE * (max(rise, floor) or 1.0)


def volume_gradient(
    modes: Float[Tensor, "modes dim"], connectors: Float[Tensor, "connectors dim"]
) -> tuple[float, Float[Tensor, "connectors dim"]]:
    r"""Return the mean over the simplexes of $\frac1n \log \mathrm{Vol}$, and its gradient.

    With edges $E$ from a mode to the connectors, $\frac{\partial}{\partial E} \frac12
    \log\det E E^\top = (E E^\top)^{-1} E$.

    Args:
        modes: The fixed vertices.
        connectors: The $n$ vertices that all simplexes share.

    Returns:
        The value, and the gradient in the connectors, in float64.
    """
    n = len(connectors)
    value, total = 0.0, torch.zeros_like(connectors, dtype=torch.float64)
    for mode in modes:
        edges = (connectors - mode).double()
        corner, across = orthogonalise(edges)
        value += (float(corner.diagonal().log().sum()) - math.lgamma(n + 1)) / n / len(modes)
        total += substitute_back(corner, across) / n / len(modes)
    return value, total


def simplex(
    land: Landscape,
    vertices: Float[Tensor, "modes dim"],
    *,
    connectors: int = 1,
    strength: float | None = None,
    max_gradients: int = 2500,
    batch_size: int | None = None,
    samples: int | None = None,
    lr: float | None = None,
    max_samples: int = 200,
    tolerance: float | None = None,
    seed: Seed = None,
    checkpoint: str | File | None = None,
    progress: Progress | None = None,
) -> Simplex:
    r"""Train vertices that join modes by simplexes of low loss and large volume.

    With modes $w_k$ and connectors $\theta = (\theta_1, \dots, \theta_n)$, minimise over
    $\theta$

    $$\frac1K \sum_k \Bigl( \mathbb{E}_{\alpha \sim \mathrm{Dir}(1)}
    L\bigl(\alpha_0 w_k + \sum_j \alpha_j \theta_j\bigr)
    - \frac{\lambda}{n} \log \mathrm{Vol}(w_k, \theta_1, \dots, \theta_n) \Bigr)$$

    by Adam, whose step decays as a cosine of the budget spent. All points of a step see the
    same minibatch. $\lambda$ is what one factor of $e$ in every side is worth: by default
    1 % of what the mean loss rises between the modes before training, so that neither the
    scale of the loss nor the number of weights matters. (Where it does not rise, 1 % of
    1e-3 of the modes' loss.)

    Args:
        land: The landscape.
        vertices: The modes, `(K, dim)`, one or more.
        connectors: How many vertices to train, $n$: the simplexes' dimension.
        strength: $\lambda$.
        max_gradients: Largest number of gradients that training may take, each over all the
            data; one over a minibatch counts as the share of the examples that it holds.
        batch_size: Examples in a minibatch; all of them by default.
        samples: Points per step, shared out among the simplexes; by default 8, or one each.
        lr: Adam's first step, per coordinate; by default 0.1 of the root mean square of the
            coordinates of the modes' distances from their mean (of the mode, if it is one).
        max_samples: Points that the mean loss is measured at, at least 32.
        tolerance: A change of the objective that does not matter; by default `strength`.
        seed: For starts, weights, minibatches and the measurement.
        checkpoint: A file that keeps the search; the same call goes on from it.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The complex, measured on ``for_evaluation(land)``.

    Raises:
        ValueError: If a vertex is wrong, two coincide, or an option makes no sense.

    Source: Benton, Maddox, Lotfi and Wilson, ICML 2021 (arXiv 2102.13042), eq. 3, who add one
    connector at a time and fix $\lambda = 10^{-6}$ or so.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> valley = FunctionLandscape(lambda x: (x[0]**2 - 1)**2 + 0 * x[1], dim=2)
        >>> modes = torch.tensor([[1.0, 0.0], [1.0, 4.0]], dtype=torch.float64)
        >>> found = simplex(valley, modes, seed=0, max_gradients=400)
        >>> found.highest < 1e-2, len(found.log_volumes)
        (True, 2)
    """
    modes = _check(
        land,
        vertices,
        connectors=connectors,
        max_gradients=max_gradients,
        batch_size=batch_size,
        samples=samples,
    )
    for name, number in (("strength", strength), ("lr", lr)):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} must be a positive number, got {number}")
    if max_samples < LEAST_SAMPLES:
        raise ValueError(f"max_samples must be at least {LEAST_SAMPLES}, got {max_samples}")
    generator, recorded = make_generator(seed)
    scale = _scale(modes)
    noise = torch.randn(connectors, land.dim, generator=generator, dtype=torch.float64)
    first = modes.double().mean(0) + 0.1 * scale * noise.to(modes.device)
    each = samples or max(8, len(modes))
    rate = lr or _STEP * scale
    task = Task(
        land,
        torch.cat([modes.double(), first]),
        slice(len(modes), None),
        "simplex",
        "mean",
        max_gradients,
        each,
        generator,
        recorded,
    )
    search = _Growth(task, batch_size, rate, len(modes), strength)
    key = fingerprint(
        vertices=modes,
        options=["simplex", connectors, strength, max_gradients, batch_size, each, rate],
        seed=None if seed is None else recorded,
    )
    run(search, None if checkpoint is None else Checkpoint(checkpoint, key), progress)
    return _measure(search, modes, max_samples, tolerance)


def _check(land: Landscape, vertices: Tensor, **counts: int | None) -> Tensor:
    modes = check_theta(vertices, land.dim, land.dtype, land.device)
    if modes.ndim != 2 or len(modes) < 1:
        raise ValueError(
            f"vertices has shape {tuple(modes.shape)}; it needs (at least 1, {land.dim})"
        )
    bad = int((~torch.isfinite(modes)).sum())
    if bad:
        raise ValueError(f"vertices holds {bad} NaN or infinite values")
    if len(torch.unique(modes, dim=0)) < len(modes):
        raise ValueError("two of the vertices are the same vector; give each mode once")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if (counts["connectors"] or 0) > land.dim:
        raise ValueError(
            f"{counts['connectors']} connectors span no volume in {land.dim} dimensions"
        )
    return modes


def _scale(modes: Tensor) -> float:
    """Return the root mean square of a coordinate of a mode's distance from their mean."""
    centred = modes.double() - (modes.double().mean(0) if len(modes) > 1 else 0)
    return float(centred.square().mean().sqrt()) or 1.0


def _measure(search: _Growth, modes: Tensor, max_samples: int, tolerance: float | None) -> Simplex:
    """Measure the trained complex at points drawn evenly from its volume."""
    view = for_evaluation(search.land)
    before = view.cost
    connectors = search.controls[len(modes) :].to(modes.dtype)
    volumes = tuple(log_volume(torch.cat([mode[None], connectors])) for mode in modes)
    generator, _ = make_generator(search.seed)
    if all(math.isfinite(v) for v in volumes):
        shares = torch.tensor(volumes)
    else:
        shares = torch.zeros(len(modes))
    weights = _even(max_samples, shares, len(connectors), generator)
    corners = torch.cat([modes, connectors])
    points = torch.cat([corners, _combine(weights, corners)])
    losses = torch.cat([view.loss(rows) for rows in torch.split(points, _ROWS)]).double().cpu()
    cost = search.spent + (view.cost - before)
    settled, note = _judge(search, tolerance)
    return Simplex(
        modes,
        connectors,
        volumes,
        _estimate(losses[len(corners) :], search.seed, view.cost - before),
        float(losses.max()),
        tuple(losses[: len(modes)].tolist()),
        settled,
        note,
        search.strength,
        search.seed,
        cost,
    )


def _estimate(losses: Tensor, seed: int, cost: Cost) -> Estimate:
    mean, count = float(losses.mean()), len(losses)
    finite = bool(torch.isfinite(losses).all())
    ends = mean_interval(losses.numpy()) if finite else (mean, mean)
    error = float(losses.std()) / math.sqrt(count) if finite else math.nan
    method = "Monte Carlo over points even in the volume"
    return Estimate(mean, error, ends, count, cost, method=method, seed=seed)


def _judge(search: _Growth, tolerance: float | None) -> tuple[bool, str]:
    if search.lost:
        return False, (
            f"after {search.steps} steps the loss was NaN or infinite wherever training turned; "
            "try a smaller lr, or modes between which the loss is finite"
        )
    change = search.settled
    worth = search.strength if tolerance is None else tolerance
    if change <= worth:
        return True, f"loss less volume settled, to {change:.2g} at last, in {search.steps} steps"
    return False, (
        f"loss less volume had not settled to {worth:.2g} in {search.steps} steps; raise "
        "max_gradients"
    )
