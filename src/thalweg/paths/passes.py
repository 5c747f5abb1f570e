"""The passes out of a minimum, and the pass on top of a path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature.eigenpairs import eigenpairs
from thalweg.curvature.operator import Hessian
from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape, check_theta
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.critical import Certificate, critical_point
from thalweg.paths.descent import descend
from thalweg.paths.resume import (
    Checkpoint,
    Progress,
    cost_from,
    cost_state,
    fingerprint,
    plain,
    rebuilt,
    run,
)
from thalweg.paths.saddle import Saddle, climb, expand, follow

__all__ = ["Pass", "Passes", "passes_from"]

Same = Callable[[Tensor, Tensor], bool]
_DENSE = 64
_KRYLOV = 16
_WALL = 8.0


@dataclass(frozen=True, eq=False)
class Pass:
    r"""A critical point of index 1, and where its two sides lead.

    Attributes:
        certificate: The critical point.
        minima: Where descent ends from either side, `(dim,)` each.
        losses: The losses there.
        gradient_norms: The gradient norms there.
    """

    certificate: Certificate
    minima: tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]
    losses: tuple[float, float]
    gradient_norms: tuple[float, float]

    @property
    def theta(self) -> Float[Tensor, " dim"]:
        """Where the pass is."""
        return self.certificate.theta

    @property
    def loss(self) -> float:
        """How high it is."""
        return self.certificate.loss

    def __str__(self) -> str:
        """Return one sentence."""
        one, other = self.losses
        return (
            f"a pass at loss {self.loss:.9g}, between minima at {one:.9g} and {other:.9g} "
            f"(gradient norms {self.gradient_norms[0]:.1g} and {self.gradient_norms[1]:.1g})"
        )

    def __rich__(self) -> str:
        """Return the sentence."""
        return str(self)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything but the vectors."""
        return {
            "type": "pass",
            "certificate": self.certificate.to_json(),
            "losses": list(self.losses),
            "gradient_norms": list(self.gradient_norms),
        }


@dataclass(frozen=True, eq=False)
class Passes:
    """The distinct passes that a search out of a minimum found, lowest first.

    Attributes:
        found: The passes.
        tries: How many climbs were made.
        hits: How many of them ended at each pass. Passes hit once tell that there are more
            (Good-Turing).
        refused: Why the other climbs gave none, with how often.
        cost: What it took.
        seed: The seed that reproduces it.
    """

    found: tuple[Pass, ...]
    tries: int
    hits: tuple[int, ...]
    refused: dict[str, int]
    cost: Cost
    seed: int

    def __iter__(self) -> Iterator[Pass]:
        """Go through the passes, lowest first."""
        return iter(self.found)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.found)

    def __getitem__(self, index: int) -> Pass:
        """Return one pass."""
        return self.found[index]

    def __str__(self) -> str:
        """Return one line per pass, and what became of the other climbs."""
        lines = [f"{len(self.found)} distinct passes from {self.tries} climbs, {self.cost}"]
        lines += [
            f"  {one}, found {hits} times" for one, hits in zip(self.found, self.hits, strict=True)
        ]
        lines += [f"  {count} climbs: {why}" for why, count in self.refused.items()]
        if not self.found:
            lines.append("  raise tries, or pass a shorter step")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the lines."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything but the vectors."""
        return {
            "type": "passes",
            "found": [one.to_json() for one in self.found],
            "tries": self.tries,
            "hits": list(self.hits),
            "refused": self.refused,
            "cost": self.cost.to_json(),
            "seed": self.seed,
        }


class _Search:
    """Climbs out of one minimum, one try a step."""

    def __init__(
        self,
        land: Landscape,
        minimum: Tensor,
        tries: int,
        max_gradients: int | None,
        step: float | None,
        tol: float,
        max_steps: int,
        same: Same | None,
        generator: torch.Generator,
        seed: int,
    ) -> None:
        self.land, self.minimum, self.tol, self.generator = land, minimum, tol, generator
        self.tries, self.max_gradients, self.max_steps = tries, max_gradients, max_steps
        self.same, self.seed = same, seed
        self.size = land.dim if land.dim <= _DENSE else _KRYLOV
        self.stride = step or 0.05 * (float(torch.linalg.vector_norm(minimum.double())) or 1.0)
        self.modes = torch.empty(0, land.dim, dtype=torch.float64, device=minimum.device)
        self.weights = self.modes[:, 0]
        self.found: list[Pass] = []
        self.hits: list[int] = []
        self.refused: dict[str, int] = {}
        self.ready, self.made, self.spent = False, 0, Cost()

    @property
    def finished(self) -> bool:
        """Whether the tries or the budget are used up."""
        used = self.spent.gradients + self.spent.hvps
        over = self.max_gradients is not None and used >= self.max_gradients
        return self.made == self.tries or over

    def step(self) -> None:
        """Climb once; the first time, find the modes of the minimum instead."""
        before = self.land.cost
        if self.ready:
            self._take(self.attempt(self.made))
            self.made += 1
        else:
            self._find_modes()
            self.ready = True
        self.spent = self.spent + (self.land.cost - before)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from here."""
        return {
            "generator": self.generator.get_state(),
            "seed": self.seed,
            "ready": self.ready,
            "modes": self.modes,
            "weights": self.weights,
            "found": [_plain(one) for one in self.found],
            "hits": list(self.hits),
            "refused": dict(self.refused),
            "made": self.made,
            "spent": cost_state(self.spent),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        device = self.minimum.device
        self.generator.set_state(state["generator"])
        self.modes, self.weights = state["modes"].to(device), state["weights"].to(device)
        self.found = [_rebuilt(one, device) for one in state["found"]]
        self.hits, self.refused = list(state["hits"]), dict(state["refused"])
        self.seed, self.ready, self.made = state["seed"], state["ready"], state["made"]
        self.spent = cost_from(state["spent"])

    def describe(self) -> tuple[float, str]:
        """Say how many climbs were made, and what they found."""
        return self.made / self.tries, f"climb {self.made}, {len(self.found)} passes"

    def _find_modes(self) -> None:
        """Find the modes of the minimum, and how far each would swing."""
        land, minimum = self.land, self.minimum
        if land.dim <= _DENSE:
            with land.at(minimum) as point:
                model = expand(point, [], land.dim)
            self.modes, values = model.vectors.T, model.values
        else:
            with Hessian(land, minimum) as operator:
                soft = eigenpairs(
                    operator, min(8, land.dim), which="smallest", tol=1e-3, seed=self.generator
                )
            self.modes, values = soft.vectors.T.double(), soft.values
        # what a thermal kick would excite: every mode by one over the root of its stiffness
        stiff = values.clamp_min(1e-3 * float(values.abs().max()))
        self.weights = stiff**-0.5

    def _take(self, result: Saddle | str) -> None:
        """Count a climb that ended at a pass known already; certify one that is new."""
        if isinstance(result, Saddle):
            for i, one in enumerate(self.found):
                if _alike(one, result, self):
                    self.hits[i] += 1
                    return
        new = result if isinstance(result, str) else _certified(self, result)
        if isinstance(new, str):
            self.refused[new] = self.refused.get(new, 0) + 1
        else:
            self.found.append(new)
            self.hits.append(1)

    def result(self) -> Passes:
        """Return the passes, lowest first."""
        order = sorted(range(len(self.found)), key=lambda i: self.found[i].loss)
        return Passes(
            tuple(self.found[i] for i in order),
            self.made,
            tuple(self.hits[i] for i in order),
            self.refused,
            self.spent,
            self.seed,
        )

    def direction(self, attempt: int) -> Tensor:
        """Return the way of a try: both ways along the modes first, twice, then at random."""
        count = len(self.modes)
        if attempt < 4 * count:
            return self.modes[attempt // 2 % count] * (1.0 if attempt % 2 == 0 else -1.0)
        draw = torch.randn(len(self.modes), generator=self.generator, dtype=torch.float64)
        way = (draw.to(self.weights.device) * self.weights) @ self.modes
        unit: Tensor = way / torch.linalg.vector_norm(way)
        return unit

    def ascend(self, way: Tensor, hold: bool) -> tuple[Tensor, Tensor] | str:
        """Walk up the valley and over its shoulder, until Newton's step is shorter than ours.

        The mode followed is the one that overlaps most with the last, or, to `hold` the
        course where modes cross, with the first.
        """
        theta = self.minimum.double() + self.stride * way
        mode, over, first = way, False, math.inf
        for _ in range(self.max_steps):
            with self.land.at(theta.to(self.land.dtype)) as point:
                if not (torch.isfinite(point.loss) and torch.isfinite(point.gradient).all()):
                    return "the loss stopped being finite"
                model = expand(point, [mode, point.gradient], self.size)
            aim = way if hold and not over else mode
            taken = follow(model, aim, self.stride, lowest=False)
            mode = taken.mode
            first = min(first, max(taken.curvature, taken.flat))
            if taken.curvature > _WALL * first:
                return "it ran up a wall"
            if taken.curvature < -taken.flat:
                over = True
                if float(torch.linalg.vector_norm(taken.step)) < 0.99 * self.stride:
                    return theta.to(self.land.dtype), mode
                theta = theta + taken.step
            else:
                across = taken.step - (taken.step @ mode) * mode
                along = float(mode @ model.gradient)
                theta = theta + across + math.copysign(self.stride, along) * mode
        return "it climbed on and on"

    def attempt(self, number: int) -> Saddle | str:
        """Climb once."""
        hold = number // (2 * len(self.modes)) % 2 == 1
        shoulder = self.ascend(self.direction(number), hold)
        if isinstance(shoulder, str):
            return shoulder
        theta, mode = shoulder
        found = climb(
            self.land, theta, mode, tol=self.tol, radius=10 * self.stride, krylov=self.size
        )
        if not found.converged:
            return "no critical point near where it came to"
        if found.negative != 1:
            return "a critical point of higher index"
        return found


def _sides(land: Landscape, found: Certificate, step: float, tol: float) -> Pass | str:
    """Descend from both sides of a pass."""
    ends = []
    for sign in (-1.0, 1.0):
        shift = 0.1 * step
        for _ in range(12):
            foot = (found.theta.double() + sign * shift * found.directions[0].double()).to(
                land.dtype
            )
            if float(land.loss(foot)) < found.loss:
                break
            shift /= 2
        else:
            return "the loss does not fall on both sides of it"
        ends.append(descend(land, foot, stride=step, tol=tol))
    a, b = ends
    return Pass(found, (a.theta, b.theta), (a.loss, b.loss), (a.gradient_norm, b.gradient_norm))


def passes_from(
    land: Landscape,
    minimum: Float[Tensor, " dim"],
    *,
    tries: int = 40,
    tol: float = 1e-8,
    step: float | None = None,
    max_steps: int = 60,
    max_gradients: int | None = None,
    same: Same | None = None,
    seed: Seed = None,
    checkpoint: str | File | None = None,
    progress: Progress | None = None,
) -> Passes:
    r"""Look for the passes around a minimum, each with the two minima that it joins.

    From the minimum along a mode of its Hessian (both ways along each, then random mixtures)
    up the valley, following the eigenvector that overlaps most with the last (the first time)
    or with the first (the second time), and downhill in all others. From where it curves
    downwards a `climb` leads to the critical point, which is certified (`critical_point`);
    descent from its two sides shows what it joins. Nothing says
    that all passes were found: see `Passes.hits`.

    Args:
        land: The landscape.
        minimum: The minimum, `(dim,)`.
        tries: How many climbs to make.
        tol: The gradient norm at passes and minima.
        step: The length of a step uphill; by default a twentieth of $|\theta|$.
        max_steps: The longest way up the valley, in steps.
        max_gradients: The budget in gradients and HVPs (a climb in progress is finished);
            None for no limit but `tries`.
        same: Says whether two points are one, such as permuted copies of a cluster; by
            default, where they are nearer than a hundredth of a step.
        seed: Draws the random directions.
        checkpoint: A file that keeps the climbs made: killed and run again, the same call
            goes on after the last whole one. With ``seed=None`` it keeps the seed too. Give
            the same `same`, which it cannot compare.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The distinct certified passes, lowest first.

    Raises:
        ValueError: If `tries` is below 1, `step` is not positive, `minimum` is not of this
            landscape, or `checkpoint` holds another search.

    Source: C. J. Cerjan and W. H. Miller, J. Chem. Phys. 75 (1981) 2800; J. P. K. Doye and
    D. J. Wales, J. Chem. Phys. 116 (2002) 3777 (all passes around the minima of a cluster).

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> wells = FunctionLandscape(lambda x: (x[0]**2 - 1)**2 + x[1]**2, dim=2)
        >>> left = torch.tensor([-1.0, 0.0], dtype=torch.float64)
        >>> found = passes_from(wells, left, tries=4, seed=0)
        >>> [round(x, 6) for x in (found[0].loss, *found[0].losses)]
        [1.0, 0.0, 0.0]
    """
    if tries < 1 or (step is not None and not step > 0):
        raise ValueError(f"tries={tries} must be at least 1 and step={step} positive")
    minimum = check_theta(minimum, land.dim, land.dtype, land.device, single=True)
    generator, number = make_generator(seed)
    search = _Search(
        land, minimum, tries, max_gradients, step, tol, max_steps, same, generator, number
    )
    key = fingerprint(
        minimum=minimum,
        options=["passes", tries, max_gradients, step, tol, max_steps, same is not None],
        seed=None if seed is None else number,
    )
    run(search, None if checkpoint is None else Checkpoint(checkpoint, key), progress)
    return search.result()


def _certified(search: _Search, saddle: Saddle) -> Pass | str:
    """Certify a climb's end and see what it joins, or say why it is no pass."""
    found = critical_point(search.land, saddle.theta, seed=search.generator)
    if not found.verdict.yes:
        return f"not certified ({found.verdict.answer})"
    if (found.index.lower, found.index.upper) != (1, 1):
        return "a critical point of higher index"
    return _sides(search.land, found, search.stride, search.tol)


def _alike(known: Pass, saddle: Saddle, search: _Search) -> bool:
    """Say whether a climb ended at a pass known already: by its loss, and by `same`."""
    if abs(known.loss - saddle.loss) > 1e-6 * max(1.0, abs(known.loss)):
        return False
    if search.same is not None:
        return search.same(known.theta, saddle.theta)
    apart = torch.linalg.vector_norm((known.theta - saddle.theta).double())
    return float(apart) < 1e-2 * search.stride


def _plain(one: Pass) -> dict[str, Any]:
    """Return a pass as a state can hold it."""
    return {
        "certificate": plain(one.certificate),
        "minima": list(one.minima),
        "losses": list(one.losses),
        "gradient_norms": list(one.gradient_norms),
    }


def _rebuilt(state: dict[str, Any], device: torch.device) -> Pass:
    """Return the pass that `_plain` wrote down."""
    a, b = (theta.to(device) for theta in state["minima"])
    (low, high), (flat, flatter) = state["losses"], state["gradient_norms"]
    certificate = rebuilt(Certificate, state["certificate"], device)
    return Pass(certificate, (a, b), (low, high), (flat, flatter))
