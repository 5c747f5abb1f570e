"""How a quench relaxes: towards the threshold energy, and with a memory that ages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table
from scipy.optimize import curve_fit
from scipy.stats import t as student

from thalweg.estimate import Cost, Estimate, from_json
from thalweg.landscape.seeding import Seed
from thalweg.theory.spin_glass.dynamics import (
    Times,
    Trajectory,
    descend,
    gradient_flow,
    langevin,
)
from thalweg.theory.spin_glass.mixture import Mixture
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.saved import SavedParts
from thalweg.theory.spin_glass.sphere import Progress
from thalweg.theory.statistics import sample_mean, standard_error

__all__ = ["Aging", "PowerLaw", "Relaxation", "age", "relax"]

_TIMES = tuple(np.geomspace(0.1, 100, 25).tolist())
_Glass = int | Mapping[int, float] | Mixture


@dataclass(frozen=True)
class PowerLaw:
    r"""A fit of $E(t) = E_\infty + A\, t^{-a}$.

    Attributes:
        floor: $E_\infty$; with an interval of width 0 where it was given.
        amplitude: $A$.
        exponent: $a$.
        between: The first and the last time that were fitted.
    """

    floor: Estimate
    amplitude: Estimate
    exponent: Estimate
    between: tuple[float, float]

    def __str__(self) -> str:
        """Write the law with its errors."""
        low, high = self.between
        return (
            f"E(t) = E + A t^-a from t = {low:g} to {high:g}: E = {self.floor}, "
            f"A = {self.amplitude}, a = {self.exponent}"
        )


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Energies per spin after a quench, over several disorders.

    Attributes:
        n: The number of spins.
        mixture: The spin glass.
        times: When, `(times,)`.
        energies: `(disorders, times, replicas)`.
        method: The dynamics.
        cost: What it took.
        seed: The seed of disorders, starts and noise.
    """

    n: int
    mixture: Mixture
    times: Float[np.ndarray, " times"]
    energies: Float[np.ndarray, "disorders times replicas"]
    method: str
    cost: Cost
    seed: int

    @property
    def mean(self) -> Float[np.ndarray, " times"]:
        """The mean over everything, at each time."""
        return np.asarray(self.energies.mean(axis=(0, 2)))

    @property
    def stderr(self) -> Float[np.ndarray, " times"]:
        """Its standard error over the disorders."""
        return standard_error(self.energies.mean(axis=2))

    def time_to(self, energy: float) -> Estimate:
        """Return the mean first time, over replicas and disorders, at or below an energy.

        Between recorded times it is interpolated in their logarithms (linearly from time 0).

        Returns:
            The mean over disorders of the replicas' mean; its value is NaN, and its interval
            open above, where a replica does not get there: `samples` counts the disorders in
            which all do.
        """
        firsts = [
            [_first(self.times, replica, energy) for replica in disorder.T]
            for disorder in self.energies
        ]
        means = [float(np.mean(row)) for row in firsts]
        reached = [mean for mean in means if math.isfinite(mean)]
        method = f"first time at or below {energy:g}; Student's t over disorders"
        if len(reached) < len(means):
            least = float(np.mean([np.minimum(row, self.times[-1]) for row in firsts]))
            return Estimate(
                math.nan, math.nan, (least, math.inf), len(reached), self.cost, 0.95, method,
                self.seed,
            )  # fmt: skip
        return sample_mean(means, cost=self.cost, method=method, seed=self.seed)

    def fit(
        self, *, floor: float | None = None, between: tuple[float, float] = (1.0, math.inf)
    ) -> PowerLaw:
        r"""Fit $E(t) = E_\infty + A t^{-a}$, with errors from leaving out one disorder at a time.

        Args:
            floor: $E_\infty$, if it is known: minus `threshold_energy(p)`, for infinite n.
            between: The times to fit.

        Returns:
            The law. Its errors are those of the disorder; that the data follow a power law at
            all is not among them: compare fits over different times.

        Raises:
            ValueError: If fewer than 4 times or 3 disorders are there to fit.

        Source: Cugliandolo and Kurchan, Phys. Rev. Lett. 71 (1993) 173, whose law for infinite n
            has $a = 2/3$.
        """
        rows = (self.times >= max(between[0], 1e-12)) & (self.times <= between[1])
        count = len(self.energies)
        if int(rows.sum()) < 4 or count < 3:
            raise ValueError(
                f"a fit needs 4 times and 3 disorders, but has {int(rows.sum())} between "
                f"{between[0]:g} and {between[1]:g}, and {count}"
            )
        times, energies = self.times[rows], self.energies.mean(axis=2)[:, rows]
        whole = _power_law(times, energies.mean(axis=0), floor)
        left = np.array(
            [
                _power_law(times, np.delete(energies, one, axis=0).mean(axis=0), floor)
                for one in range(count)
            ]
        )
        errors = np.sqrt((count - 1) * left.var(axis=0))
        factor = float(student.ppf(0.975, count - 1))
        method = "least squares in time, jackknife over disorders"
        parts = [
            Estimate(
                float(v), float(e), (float(v - factor * e), float(v + factor * e)), count,
                self.cost, 0.95, method, self.seed,
            )
            for v, e in zip(whole, errors, strict=True)
        ]  # fmt: skip
        return PowerLaw(parts[0], parts[1], parts[2], (float(times[0]), float(times[-1])))

    def __str__(self) -> str:
        """Say where it began and where it ended."""
        last = sample_mean(self.energies[:, -1].mean(axis=1).tolist(), cost=self.cost)
        return (
            f"{self.method}, n = {self.n}, xi = {self.mixture}: energy per spin {last} at time "
            f"{self.times[-1]:g}, over {len(self.energies)} disorders of "
            f"{self.energies.shape[2]} replicas"
        )


@dataclass(frozen=True, eq=False)
class Aging:
    r"""The two-time correlation $C(t_w + t, t_w) = \sigma(t_w + t) \cdot \sigma(t_w)/n$.

    Attributes:
        n: The number of spins.
        mixture: The spin glass.
        waiting: $t_w$, `(waiting,)`.
        delays: $t$, `(delays,)`.
        correlations: Means over replicas, `(disorders, waiting, delays)`.
        method: The dynamics.
        cost: What it took.
        seed: The seed of disorders, starts and noise.
    """

    n: int
    mixture: Mixture
    waiting: Float[np.ndarray, " waiting"]
    delays: Float[np.ndarray, " delays"]
    correlations: Float[np.ndarray, "disorders waiting delays"]
    method: str
    cost: Cost
    seed: int

    @property
    def mean(self) -> Float[np.ndarray, "waiting delays"]:
        """The mean over disorders."""
        return np.asarray(self.correlations.mean(axis=0))

    @property
    def stderr(self) -> Float[np.ndarray, "waiting delays"]:
        """Its standard error over disorders."""
        return standard_error(self.correlations)

    def at(self, waiting: int, delay: int) -> Estimate:
        """Return the correlation at one waiting time and one delay, by their positions."""
        values = self.correlations[:, waiting, delay].tolist()
        return sample_mean(values, cost=self.cost, method=self.method, seed=self.seed)

    def __str__(self) -> str:
        """Say how much slower the memory fades after the longest wait."""
        first, last = self.at(0, -1), self.at(-1, -1)
        return (
            f"{self.method}, n = {self.n}, xi = {self.mixture}: after a delay of "
            f"{self.delays[-1]:g} the correlation is {first.value:.3f} ± {first.half_width:.3f} "
            f"from t_w = {self.waiting[0]:g} and {last.value:.3f} ± {last.half_width:.3f} from "
            f"t_w = {self.waiting[-1]:g} (95 %, {len(self.correlations)} disorders; {self.cost})"
        )

    def __rich__(self) -> Table:
        """Return a table, one row for each waiting time."""
        table = Table("t_w", *(f"t = {delay:g}" for delay in self.delays), title="C(t_w + t, t_w)")
        for wait, values, errors in zip(self.waiting, self.mean, self.stderr, strict=True):
            cells = (f"{v:.3f} ± {e:.3f}" for v, e in zip(values, errors, strict=True))
            table.add_row(f"{wait:g}", *cells)
        table.caption = f"± one standard error over {len(self.correlations)} disorders"
        return table


@dataclass(frozen=True)
class _Quench:
    """One kind of motion, over several disorders."""

    n: int
    p: _Glass
    temperature: float
    step: float | None
    replicas: int
    disorders: int

    def __post_init__(self) -> None:
        """Refuse what leaves no error over disorders."""
        if self.disorders < 2 or self.replicas < 1:
            raise ValueError(
                f"an error over disorders needs at least 2 of them, and a replica in each; got "
                f"disorders={self.disorders}, replicas={self.replicas}"
            )
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")

    def call(self, what: str, **more: Times) -> dict[str, Any]:
        """Return all that the results depend on but the seed."""
        lists = {name: [float(x) for x in values] for name, values in more.items()}
        numbers = ("n", "temperature", "step", "replicas", "disorders")
        own = {name: getattr(self, name) for name in numbers}
        return {"what": what, "p": [list(pair) for pair in Mixture.of(self.p).amplitudes]} | (
            own | lists
        )

    def run(self, child: np.random.SeedSequence, times: Times, keep: bool) -> Trajectory:
        """Run one disorder from uniform starts."""
        disorder, start = (int(word) for word in child.generate_state(2, np.uint32))
        land = SphericalPSpin(self.n, self.p, disorder)
        many: dict[str, Any] = {"start": self.replicas, "keep_points": keep, "seed": start}
        if self.temperature > 0:
            return langevin(land, self.temperature, times, step=self.step, **many)
        if self.step is None:
            return gradient_flow(land, times, tolerance=1e-4, **many)
        return descend(land, times, step=self.step, **many)

    def runs(
        self,
        times: Times,
        keep: bool,
        saved: SavedParts,
        measure: Callable[[Trajectory], np.ndarray],
        progress: Progress | None,
    ) -> tuple[np.ndarray, str, Cost]:
        """Return what was measured in each disorder, the method and the cost."""
        children = np.random.SeedSequence(saved.seed).spawn(self.disorders)
        for one in range(len(saved.parts), self.disorders):
            run = self.run(children[one], times, keep)
            cost = run.cost.to_json()
            saved.add({"measured": measure(run).tolist(), "method": run.method, "cost": cost})
            if progress is not None:
                done = one + 1
                progress(done / self.disorders, f"{done} of {self.disorders} disorders")
        costs = (from_json(part["cost"]) for part in saved.parts)
        total = sum((cost for cost in costs if isinstance(cost, Cost)), Cost())
        measured = np.array([part["measured"] for part in saved.parts], dtype=np.float64)
        return measured, str(saved.parts[0]["method"]), total


def relax(
    n: int,
    p: _Glass = 3,
    *,
    times: Times = _TIMES,
    temperature: float = 0.0,
    step: float | None = None,
    disorders: int = 8,
    replicas: int = 8,
    seed: Seed = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Relaxation:
    r"""Quench uniform starts, and record the energy per spin.

    Args:
        n: The number of spins.
        p: The spin glass: a degree, amplitudes by degree, or a `Mixture`.
        times: When to record, rising; time is that of $\dot\sigma = -\nabla H$.
        temperature: 0 for gradient flow, else Langevin dynamics.
        step: A fixed step: that of plain gradient descent where the temperature is 0.
        disorders: How many independent sets of couplings, at least 2.
        replicas: Starts in each.
        seed: Draws disorders, starts and noise.
        checkpoint: A file in which every finished disorder is kept; the same call with the same
            file goes on from there, and ends with the numbers of an unbroken run.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The energies. `time_to` gives the time to the threshold, `fit` the law of relaxation.

    Raises:
        ValueError: If a number is out of range, or the checkpoint is of another call.

    Example:
        >>> quench = relax(20, times=[0.5, 2.0, 8.0], disorders=3, replicas=4, seed=0)
        >>> bool((quench.mean[1:] < quench.mean[:-1]).all())
        True
    """
    quench = _Quench(n, p, temperature, step, replicas, disorders)
    saved = SavedParts(checkpoint, quench.call("relax", times=times), seed)
    energies, method, cost = quench.runs(
        times, False, saved, lambda run: run.energies.cpu().numpy().astype(np.float64), progress
    )
    at = np.array([float(time) for time in times])
    return Relaxation(n, Mixture.of(p), at, energies, method, cost, saved.seed)


def age(
    n: int,
    p: _Glass = 3,
    *,
    waiting: Sequence[float] = (1.0, 4.0, 16.0),
    delays: Sequence[float] = (1.0, 4.0, 16.0),
    temperature: float = 0.2,
    step: float | None = None,
    disorders: int = 8,
    replicas: int = 8,
    seed: Seed = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Aging:
    r"""Quench uniform starts, wait, and measure how the overlap with the point then decays.

    In equilibrium the correlation depends on the delay alone; below the dynamical transition a
    quench ages: the longer the wait, the slower the decay.

    Args:
        n: The number of spins.
        p: The spin glass: a degree, amplitudes by degree, or a `Mixture`.
        waiting: Waiting times $t_w$, rising.
        delays: Delays $t$, rising.
        temperature: 0 for gradient flow, else Langevin dynamics.
        step: A fixed step: that of plain gradient descent where the temperature is 0.
        disorders: How many independent sets of couplings, at least 2.
        replicas: Starts in each.
        seed: Draws disorders, starts and noise.
        checkpoint: A file in which every finished disorder is kept; the same call with the same
            file goes on from there, and ends with the numbers of an unbroken run.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The correlations, with the points of every needed time kept meanwhile.

    Raises:
        ValueError: If times are not positive and rising, a number is out of range, or the
            checkpoint is of another call.

    Source: Cugliandolo and Kurchan, Phys. Rev. Lett. 71 (1993) 173.

    Example:
        >>> slow = age(20, waiting=[0.5, 4.0], delays=[1.0], disorders=3, replicas=4, seed=0)
        >>> bool(slow.mean[1, 0] > slow.mean[0, 0])
        True
    """
    for name, given in (("waiting", waiting), ("delays", delays)):
        if not given or given[0] <= 0 or any(np.diff(given) <= 0):
            raise ValueError(f"{name} must be positive and rise, but is {list(given)}")
    times = sorted({wait + delay for wait in waiting for delay in (0.0, *delays)})
    place = {time: at for at, time in enumerate(times)}
    quench = _Quench(n, p, temperature, step, replicas, disorders)

    def measure(run: Trajectory) -> np.ndarray:
        assert run.points is not None
        points = run.points.cpu().numpy().astype(np.float64)
        rows = [
            [(points[place[w]] * points[place[w + t]]).sum(1).mean() / n for t in delays]
            for w in waiting
        ]
        return np.array(rows)

    call = quench.call("age", waiting=waiting, delays=delays)
    saved = SavedParts(checkpoint, call, seed)
    correlations, method, cost = quench.runs(times, True, saved, measure, progress)
    at = [np.asarray(given, dtype=np.float64) for given in (waiting, delays)]
    return Aging(n, Mixture.of(p), at[0], at[1], correlations, method, cost, saved.seed)


def _first(times: np.ndarray, energies: np.ndarray, level: float) -> float:
    """Return when a falling energy first meets a level; infinity if it does not."""
    below = np.flatnonzero(energies <= level)
    if len(below) == 0:
        return math.inf
    at = int(below[0])
    if at == 0:
        return float(times[0])
    (t0, t1), (e0, e1) = times[at - 1 : at + 1], energies[at - 1 : at + 1]
    share = (e0 - level) / (e0 - e1)
    if t0 <= 0:
        return float(t0 + share * (t1 - t0))
    return float(t0 * (t1 / t0) ** share)


def _power_law(times: np.ndarray, energies: np.ndarray, floor: float | None) -> np.ndarray:
    """Return floor, amplitude and exponent of the least-squares fit."""

    def law(t: np.ndarray, low: float, amplitude: float, exponent: float) -> np.ndarray:
        return np.asarray(low + amplitude * t**-exponent)

    guess = [float(energies[-1]) - 0.05, float(energies[0] - energies[-1]), 0.6]
    if floor is None:
        found, _ = curve_fit(law, times, energies, p0=guess, maxfev=20_000)
        return np.asarray(found)
    found, _ = curve_fit(
        lambda t, a, b: law(t, floor, a, b), times, energies, p0=guess[1:], maxfev=20_000
    )
    return np.array([floor, *found])
