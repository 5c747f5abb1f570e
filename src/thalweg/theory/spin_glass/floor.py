"""The energy at which descents end, against the number of spins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from rich.table import Table
from scipy.stats import t as student
from torch import Tensor

from thalweg.estimate import Cost, Estimate, from_json
from thalweg.landscape.seeding import Seed
from thalweg.theory.spin_glass.descent import LocalMinima, local_minima
from thalweg.theory.spin_glass.dynamics import descend
from thalweg.theory.spin_glass.mixture import Mixture
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.noise import CouplingNoise
from thalweg.theory.spin_glass.saved import SavedParts
from thalweg.theory.spin_glass.sphere import Progress
from thalweg.theory.spin_glass.thresholds import threshold_energy
from thalweg.theory.statistics import sample_mean

__all__ = ["EnergyFloor", "FloorAtSize", "energy_floor"]

_Method = Literal["lbfgs", "gd", "sgd"]
_METHODS = ("lbfgs", "gd", "sgd")
_EXPONENTS = {"n^-1/2": 0.5, "n^-2/3": 2 / 3}


@dataclass(frozen=True, eq=False)
class FloorAtSize:
    """Where descents of one size ended.

    Attributes:
        n: The number of spins.
        energies: Energies per spin, `(disorders, starts)`.
        lowest: The Hessian's lowest eigenvalues, `(disorders, starts)`.
        certified: How many ends are proven local minima.
        mean: The mean energy, with its error over disorders.
    """

    n: int
    energies: Float[np.ndarray, "disorders starts"]
    lowest: Float[np.ndarray, "disorders starts"]
    certified: int
    mean: Estimate

    @property
    def spread(self) -> float:
        """The standard deviation over starts and disorders."""
        return float(self.energies.std(ddof=1))


@dataclass(frozen=True, eq=False)
class EnergyFloor:
    r"""Final energies against size, and where they tend.

    Attributes:
        sizes: One entry for each number of spins.
        fits: $e$ of $u(n) = e + c\, n^{-x}$ for each exponent, with Student's interval where
            three sizes or more leave something to measure the misfit by; empty for one size.
        threshold: $-E_\infty$, to which theory says descents tend; NaN for a mixture.
        method: How the descents went.
        cost: What it took.
        seed: The seed of disorders and starts.
    """

    sizes: tuple[FloorAtSize, ...]
    fits: dict[str, Estimate]
    threshold: float
    method: str
    cost: Cost
    seed: int

    def __str__(self) -> str:
        """Return a line for each size and each fit."""
        lines = [f"energy per spin where {self.method} ends ({self.cost})"]
        for at in self.sizes:
            runs = at.energies.size
            lines.append(
                f"n = {at.n}: {at.mean.value:.4f} ± {at.mean.stderr:.4f} (standard error), "
                f"standard deviation {at.spread:.4f}, lowest eigenvalue {at.lowest.mean():.3g}, "
                f"{at.certified} of {runs} proven minima"
            )
        lines += [f"n to infinity by {name}: {fit}" for name, fit in self.fits.items()]
        lines.append(f"threshold: {self.threshold:.6f}")
        return "\n".join(lines)

    def __rich__(self) -> Table:
        """Return a table, one row for each size."""
        table = Table("n", "mean", "sd", "lowest eigenvalue", "proven", title="Energy floor")
        for at in self.sizes:
            table.add_row(
                str(at.n),
                f"{at.mean.value:.4f} ± {at.mean.stderr:.4f}",
                f"{at.spread:.4f}",
                f"{at.lowest.mean():.3g}",
                f"{at.certified}/{at.energies.size}",
            )
        fits = [f"{name}: {fit}" for name, fit in self.fits.items()]
        table.caption = "; ".join([*fits, f"threshold {self.threshold:.6f}"]).replace("[", "\\[")
        return table


def energy_floor(
    sizes: Sequence[int] = (25, 50, 100),
    p: int | Mapping[int, float] | Mixture = 3,
    *,
    disorders: int = 8,
    starts: int = 16,
    method: _Method = "lbfgs",
    time: float = 20.0,
    fraction: float = 0.5,
    memory: int | str = "4 GiB",
    seed: Seed = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> EnergyFloor:
    r"""Descend from uniform starts to local minima, for several sizes.

    Args:
        sizes: Numbers of spins.
        p: The spin glass: a degree, amplitudes by degree, or a `Mixture`.
        disorders: Independent sets of couplings for each size, at least 2.
        starts: Starts in each.
        method: What goes down first: ``"lbfgs"`` from the start; ``"gd"``, gradient descent of a
            fixed step; ``"sgd"``, the same with the gradient of a random part of the couplings.
            All end at a proven local minimum, by L-BFGS and Newton.
        time: How long gd and sgd go.
        fraction: The part of the couplings that a step of sgd reads.
        memory: The most that one spin glass may take; p = 3 needs 4120 MiB at n = 1000.
        seed: Draws disorders, starts and noise.
        checkpoint: A file in which every finished disorder is kept; the same call with the same
            file goes on from there, and ends with the numbers of an unbroken run.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        Mean, standard deviation and error for each size, and fits for large sizes.

    Raises:
        ValueError: If a number is out of range, the method unknown, or the checkpoint of another
            call.
        MemoryError: If the couplings of a size do not fit `memory`.

    Source: Sagun, Guney, Ben Arous and LeCun, arXiv:1412.6615, whose floor GD and SGD share.

    Example:
        >>> floor = energy_floor([10, 20], disorders=3, starts=4, seed=0)
        >>> [at.certified for at in floor.sizes]
        [12, 12]
    """
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}; use one of {', '.join(_METHODS)}")
    if disorders < 2 or starts < 1 or not sizes or not time > 0:
        raise ValueError(
            f"needs a size, at least 2 disorders, a start and a positive time; got sizes="
            f"{list(sizes)}, disorders={disorders}, starts={starts}, time={time}"
        )
    mixture = Mixture.of(p)
    call = {"what": "energy_floor", "sizes": list(sizes), "disorders": disorders}
    call |= {"p": [list(pair) for pair in mixture.amplitudes], "starts": starts}
    call |= {"method": method, "time": time, "fraction": fraction}
    saved = SavedParts(checkpoint, call, seed)
    children = np.random.SeedSequence(saved.seed).spawn(len(sizes) * disorders)
    for place in range(len(saved.parts), len(children)):
        n, one = sizes[place // disorders], place % disorders
        words = children[place].generate_state(2, np.uint32)
        land = SphericalPSpin(n, mixture, int(words[0]), memory=memory)
        begin, extra = _approach(land, method, starts, time, fraction, int(words[1]))
        ends = local_minima(land, starts=begin, seed=int(words[1]))
        saved.add(_part(ends, extra))
        if progress is not None:
            share = (place + 1) / len(children)
            progress(share, f"n = {n}: {one + 1} of {disorders} disorders")
    results = [
        _at_size(n, saved.parts[place * disorders : (place + 1) * disorders], saved.seed)
        for place, n in enumerate(sizes)
    ]
    costs = (from_json(part["cost"]) for part in saved.parts)
    cost = sum((one for one in costs if isinstance(one, Cost)), Cost())
    fits = {name: _extrapolate(results, x) for name, x in _EXPONENTS.items()}
    degree = mixture.degree
    threshold = -threshold_energy(degree) if degree is not None and degree > 2 else math.nan
    return EnergyFloor(
        tuple(results),
        {name: fit for name, fit in fits.items() if fit is not None},
        threshold,
        {"lbfgs": "L-BFGS", "gd": "gradient descent", "sgd": f"SGD on {fraction:g}"}[method],
        cost,
        saved.seed,
    )


def _part(ends: LocalMinima, extra: Cost) -> dict[str, Any]:
    """Return what is kept of the descents in one disorder."""
    return {
        "energies": ends.energies.tolist(),
        "lowest": ends.lowest.tolist(),
        "certified": int(ends.certified.sum()),
        "cost": (ends.cost + extra).to_json(),
    }


def _at_size(n: int, parts: Sequence[Mapping[str, Any]], seed: int) -> FloorAtSize:
    """Put the disorders of one size together."""
    energies, lowest = (
        np.array([part[name] for part in parts], dtype=np.float64)
        for name in ("energies", "lowest")
    )
    mean = sample_mean(energies.mean(axis=1).tolist(), seed=seed)
    proven = sum(int(part["certified"]) for part in parts)
    return FloorAtSize(n, energies, lowest, proven, mean)


def _approach(
    land: SphericalPSpin, method: _Method, starts: int, time: float, fraction: float, seed: int
) -> tuple[int | Tensor, Cost]:
    """Return where L-BFGS is to begin, and what going there took."""
    if method == "lbfgs":
        return starts, Cost()
    noise = CouplingNoise(fraction) if method == "sgd" else None
    run = descend(land, [time], start=starts, noise=noise, seed=seed)
    return run.state.points, run.cost


def _extrapolate(results: Sequence[FloorAtSize], exponent: float) -> Estimate | None:
    r"""Return $e$ of $u = e + c\, n^{-x}$ by weighted least squares.

    With two sizes its error is that of the means; with more it also grows with their misfit.
    """
    if len({at.n for at in results}) < 2:
        return None
    y = np.array([at.mean.value for at in results])
    errors = np.array([at.mean.stderr for at in results])
    if not bool((errors > 0).all()):
        return None
    columns = np.stack([np.ones(len(y)), [at.n**-exponent for at in results]], axis=1)
    weighted = columns / errors[:, None]
    covariance = np.linalg.inv(weighted.T @ weighted)
    answer = covariance @ weighted.T @ (y / errors)
    left, method = len(y) - 2, "weighted least squares over sizes"
    misfit = float((((y - columns @ answer) / errors) ** 2).sum()) / left if left else 1.0
    stderr = math.sqrt(covariance[0, 0] * max(1.0, misfit))
    fewest = min(len(at.energies) for at in results) - 1  # the errors themselves are estimates
    half = float(student.ppf(0.975, min(left, fewest) if left else fewest)) * stderr
    value = float(answer[0])
    return Estimate(value, stderr, (value - half, value + half), len(y), method=method)
