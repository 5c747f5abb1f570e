r"""Motion on the sphere: gradient flow, descent with and without noise, Langevin dynamics.

Time is that of $\dot\sigma = -\nabla H(\sigma)$, for all methods: a step of length $h$ moves a
point by $-h \nabla H$, with the Riemannian gradient of the extensive energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Estimate
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.noise import GradientNoise
from thalweg.theory.spin_glass.sphere import (
    Progress,
    check_on_sphere,
    check_points,
    eigensystem,
    energy_and_gradient,
    on_sphere,
    tangent,
)
from thalweg.theory.statistics import sample_mean

__all__ = [
    "SphereState",
    "Times",
    "Trajectory",
    "descend",
    "gradient_flow",
    "langevin",
]

_SAFETY = 0.1  # a default step, over the inverse of the largest curvature at the start
Times = Sequence[float] | Float[np.ndarray, " times"]
_Advance = Callable[["SphereState", float], "SphereState"]


@dataclass(frozen=True, eq=False)
class SphereState:
    """Where a motion is, and all that it needs to go on bit for bit.

    Attributes:
        points: One replica a row, `(replicas, n)`.
        time: How much time has passed.
        steps: How many steps were taken.
        step: The step, which adaptive methods change.
        accepted: How many Metropolis proposals were accepted, of all replicas.
        proposed: How many there were.
        random: The state of the generator.
        seed: The seed it started from.
    """

    points: Float[Tensor, "replicas n"]
    time: float
    steps: int
    step: float
    accepted: int
    proposed: int
    random: Tensor
    seed: int


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Energies along a motion of several replicas.

    Attributes:
        times: When they were recorded, `(times,)`.
        energies: Energies per spin, `(times, replicas)`.
        points: The points then, `(times, replicas, n)`; None unless kept.
        state: Where the motion ended; pass it as `start` to go on.
        cost: What it took.
        method: The dynamics, with its options.
    """

    times: Float[Tensor, " times"]
    energies: Float[Tensor, "times replicas"]
    points: Float[Tensor, "times replicas n"] | None
    state: SphereState
    cost: Cost
    method: str

    @property
    def seed(self) -> int:
        """The seed of starts and noise."""
        return self.state.seed

    @property
    def acceptance(self) -> float:
        """The share of Metropolis proposals accepted; NaN without any."""
        state = self.state
        return state.accepted / state.proposed if state.proposed else math.nan

    def mean_energy(self, *, after: float = 0.0) -> Estimate:
        """Return the mean over times beyond `after`, with an error over the replicas.

        The replicas are independent, so however long the energy remembers itself, the
        spread of their own means is an honest error. What it does not hold is the disorder
        of the landscape, which all share.

        Raises:
            ValueError: If no time is beyond `after`, or there is one replica only.
        """
        rows = self.times > after
        if not bool(rows.any()):
            raise ValueError(f"no time is beyond {after}; the last is {float(self.times[-1])}")
        means = self.energies[rows].mean(0)
        method = f"{self.method}; Student's t over replicas"
        return sample_mean(means.tolist(), cost=self.cost, method=method, seed=self.seed)

    def __str__(self) -> str:
        """Say how far it went, and how low."""
        last = self.energies[-1]
        text = (
            f"{self.method}: {last.numel()} replicas to time {self.state.time:g} in "
            f"{self.state.steps} steps; energy per spin {float(last.mean()):.5f} (mean), "
            f"{float(last.min()):.5f} to {float(last.max()):.5f}"
        )
        if self.state.proposed:
            text += f"; {self.acceptance:.0%} of proposals accepted"
        bad = int((~torch.isfinite(last)).sum())
        if bad:
            text += f"; {bad} replicas are not finite: lower step="
        return f"{text} ({self.cost})"


def gradient_flow(
    land: Landscape,
    times: Times,
    *,
    start: int | Float[Tensor, "replicas n"] | SphereState = 16,
    tolerance: float = 1e-5,
    keep_points: bool = False,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Trajectory:
    r"""Follow $\dot\sigma = -\nabla H(\sigma)$ with adaptive steps; no energy ever rises.

    Bogacki and Shampine's pair of orders 3 and 2, with one step for all replicas: the largest
    error, over the radius, stays below `tolerance`, and a step that raises an energy beyond
    rounding is taken again, shorter.

    Args:
        land: A landscape on the sphere.
        times: When to record, rising.
        start: How many uniform starts, the points themselves, or a state to go on from.
        tolerance: The error of a step.
        keep_points: Whether to keep the points at all times.
        seed: Draws the starts.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The energies, and the state that a further call goes on from.

    Raises:
        ValueError: If the times do not rise, or the landscape does not live on the sphere.

    Source: Bogacki and Shampine, Appl. Math. Lett. 2 (1989) 321.

    Example:
        >>> from thalweg.theory.spin_glass.model import SphericalPSpin
        >>> run = gradient_flow(SphericalPSpin(20, 3, seed=0), [0.0, 1.0, 5.0], start=4, seed=1)
        >>> bool((run.energies.diff(dim=0) < 0).all())
        True
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    begin = _begin(land, start, None, seed)

    def advance(state: SphereState, until: float) -> SphereState:
        return _flow(land, state, until, tolerance)

    method = f"gradient flow (tolerance {tolerance:g})"
    return _record(land, begin, times, advance, keep_points, method, progress)


def descend(
    land: Landscape,
    times: Times,
    *,
    start: int | Float[Tensor, "replicas n"] | SphereState = 16,
    step: float | None = None,
    noise: GradientNoise | None = None,
    keep_points: bool = False,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Trajectory:
    r"""Descend with a fixed step, $\sigma \leftarrow \Pi(\sigma - h\, \hat g)$, back to the sphere.

    Args:
        land: A landscape on the sphere.
        times: When to record, rising; an interval is divided into equal steps of at most `step`.
        start: How many uniform starts, the points themselves, or a state to go on from.
        step: $h$; by default a tenth of the inverse of the largest curvature at the first start.
        noise: What makes $\hat g$ of the gradient: None, `IsotropicNoise` or `CouplingNoise`.
        keep_points: Whether to keep the points at all times.
        seed: Draws starts and noise.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The energies (of the landscape itself, without noise), and the state to go on from.

    Raises:
        ValueError: If the times do not rise, or the landscape does not live on the sphere.

    Example:
        >>> from thalweg.theory.spin_glass.model import SphericalPSpin
        >>> run = descend(SphericalPSpin(20, 3, seed=0), [0.0, 5.0], start=4, seed=1)
        >>> bool((run.energies[1] < -1.0).all())
        True
    """
    begin = _begin(land, start, step, seed)

    draw = None if noise is None else noise.on(land)

    def move(points: Tensor, length: float, generator: torch.Generator) -> tuple[Tensor, int]:
        if draw is None:
            _, gradient = energy_and_gradient(land, points)
        else:
            gradient = draw(points, generator)
        return on_sphere(points - length * gradient), 0

    method = "gradient descent" if noise is None else f"stochastic gradient descent ({noise})"
    run = _record(land, begin, times, _fixed(move, False), keep_points, method, progress)
    if noise is None:
        return run
    more = noise.uncounted(run.state.steps - begin.steps, len(begin.points))
    return replace(run, cost=run.cost + more)


def langevin(
    land: Landscape,
    temperature: float,
    times: Times,
    *,
    start: int | Float[Tensor, "replicas n"] | SphereState = 16,
    step: float | None = None,
    metropolis: bool = False,
    keep_points: bool = False,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Trajectory:
    r"""Follow Langevin dynamics on the sphere, whose stationary law is $e^{-H/T}$.

    $$\sigma \leftarrow \Pi(\sigma + v), \qquad v = -h \nabla H + \sqrt{2hT}\, P_\sigma \xi$$

    with a standard normal $\xi$ in the tangent space. Going back to the sphere by the length
    alone is a retraction of second order, so that Ito's drift $-T(n-1)\sigma/n$ needs no term
    of its own; the stationary law is off by $O(h)$. With `metropolis` each step is a proposal,
    accepted with the ratio that makes the law exact: in the gnomonic chart $v$ and the step
    back $w$ have one length and one Jacobian, and

    $$\log a = -\frac{H' - H}{T} - \frac{|w + h \nabla H'|^2 - |v + h \nabla H|^2}{4hT}.$$

    Args:
        land: A landscape on the sphere.
        temperature: $T$, positive, for the extensive energy H.
        times: When to record, rising; an interval is divided into equal steps of at most `step`.
        start: How many uniform starts, the points themselves, or a state to go on from.
        step: $h$; by default a tenth of the inverse of the largest curvature at the first
            start, or of $T$ where that is larger.
        metropolis: Whether to correct the law; then time is that of the proposals.
        keep_points: Whether to keep the points at all times.
        seed: Draws starts and noise.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The energies, and the state that a further call goes on from.

    Raises:
        ValueError: If the temperature is not positive, the times do not rise, or the landscape
            does not live on the sphere.

    Source: Roberts and Tweedie, Bernoulli 2 (1996) 341, for the correction.

    Example:
        >>> from thalweg.theory.spin_glass.model import SphericalPSpin
        >>> hot = langevin(SphericalPSpin(20, 3, seed=0), 2.0, [1.0, 2.0, 3.0], start=8, seed=1)
        >>> -1.0 < hot.mean_energy().value < 0.0
        True
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive, got {temperature}; for 0 use descend()")
    begin = _begin(land, start, step, seed, temperature)

    def move(points: Tensor, length: float, generator: torch.Generator) -> tuple[Tensor, int]:
        energy, gradient = energy_and_gradient(land, points)
        kick = _normal(points, generator) * math.sqrt(2 * length * temperature)
        forward = tangent(points, kick) - length * gradient
        new = on_sphere(points + forward)
        if not metropolis:
            return new, 0
        stretch = torch.linalg.vector_norm(points + forward, dim=1, keepdim=True) / math.sqrt(
            land.dim
        )
        backward = points * stretch - new
        u, slope = energy_and_gradient(land, new)
        there = ((forward + length * gradient) ** 2).sum(1)
        back = ((backward + length * slope) ** 2).sum(1)
        ratio = -land.dim * (u - energy) / temperature
        ratio = ratio - (back - there) / (4 * length * temperature)
        draws = torch.rand(len(points), generator=generator, dtype=points.dtype)
        taken = draws.to(points.device).log() < ratio
        return torch.where(taken[:, None], new, points), int(taken.sum())

    method = f"Langevin at T = {temperature:g}" + (", Metropolis-adjusted" if metropolis else "")
    return _record(land, begin, times, _fixed(move, metropolis), keep_points, method, progress)


def _normal(points: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(points.shape, generator=generator, dtype=points.dtype)
    return drawn.to(points.device)


def _begin(
    land: Landscape,
    start: int | Tensor | SphereState,
    step: float | None,
    seed: Seed,
    temperature: float = 0.0,
) -> SphereState:
    """Return the first state, with a step."""
    if step is not None and not (step > 0 and math.isfinite(step)):
        raise ValueError(f"step must be positive, got {step}")
    if isinstance(start, SphereState):
        return start if step is None else replace(start, step=step)
    generator, recorded = make_generator(seed)
    if isinstance(start, Tensor):
        points = check_points(land, start)
    elif start < 1:
        raise ValueError(f"start must be at least 1 replica, got {start}")
    else:
        drawn = torch.stack([land.start(generator) for _ in range(start)])
        points = check_points(land, drawn)
    check_on_sphere(land, points[0])
    if step is None:
        curvature = float(eigensystem(land, points[:1])[0].abs().max())
        step = _SAFETY / max(curvature, temperature, torch.finfo(land.dtype).eps)
    return SphereState(points, 0.0, 0, step, 0, 0, generator.get_state(), recorded)


def _record(
    land: Landscape,
    state: SphereState,
    times: Times,
    advance: _Advance,
    keep_points: bool,
    method: str,
    progress: Progress | None,
) -> Trajectory:
    """Advance from time to time, and keep what there is to see."""
    wanted = [float(time) for time in times]
    if not wanted or wanted[0] < state.time or any(np.diff(wanted) <= 0):
        raise ValueError(f"times must rise, from {state.time:g} or later, but are {wanted}")
    before = land.cost
    energies, points = [], []
    for done, time in enumerate(wanted, 1):
        if time > state.time:
            state = replace(advance(state, time), time=time)
        energies.append(land.loss(state.points))
        if keep_points:
            points.append(state.points)
        if progress is not None:
            mean = float(energies[-1].mean())
            progress(done / len(wanted), f"time {time:g}, energy per spin {mean:.5f}")
    kept = torch.stack(points) if keep_points else None
    at = torch.tensor(wanted, dtype=torch.float64)
    return Trajectory(at, torch.stack(energies), kept, state, land.cost - before, method)


def _fixed(
    move: Callable[[Tensor, float, torch.Generator], tuple[Tensor, int]], proposes: bool
) -> _Advance:
    """Return what advances a state by equal steps."""

    def advance(state: SphereState, until: float) -> SphereState:
        generator = torch.Generator()
        generator.set_state(state.random)
        span = until - state.time
        count = max(1, math.ceil(span / state.step * (1 - 1e-12)))
        points, accepted = state.points, 0
        for _ in range(count):
            points, taken = move(points, span / count, generator)
            accepted += taken
        return replace(
            state,
            points=points,
            steps=state.steps + count,
            accepted=state.accepted + accepted,
            proposed=state.proposed + (count * len(points) if proposes else 0),
            random=generator.get_state(),
        )

    return advance


def _flow(land: Landscape, state: SphereState, until: float, tolerance: float) -> SphereState:
    """Integrate the gradient flow up to a time."""
    points, now, h, steps = state.points, state.time, state.step, state.steps
    radius, eps = math.sqrt(land.dim), torch.finfo(land.dtype).eps
    energy, k1 = energy_and_gradient(land, points)
    while until - now > 1e-12 * until:
        length = min(h, until - now)
        k2 = land.dim * land.gradient(points - length / 2 * k1)
        k3 = land.dim * land.gradient(points - 3 * length / 4 * k2)
        new = points - length * (2 * k1 + 3 * k2 + 4 * k3) / 9
        u, k4 = energy_and_gradient(land, on_sphere(new))
        off = length * (-5 * k1 / 72 + k2 / 12 + k3 / 9 - k4 / 8)
        error = float(torch.linalg.vector_norm(off, dim=1).max()) / radius / tolerance
        rises = bool((u > energy + 16 * eps * land.dim**0.5 * (1 + energy.abs())).any())
        if not math.isfinite(error) and length < 1e-12:
            break  # not finite: reported as it is
        if error <= 1 and not rises:
            points, energy, k1, now, steps = on_sphere(new), u, k4, now + length, steps + 1
        wanted = length * min(3.0, max(0.2, 0.9 * max(error, 1e-9) ** (-1 / 3)))
        if not math.isfinite(error) or rises:
            wanted = length / 4
        h = wanted if length == h or wanted < h else h
    return replace(state, points=points, steps=steps, step=h)
