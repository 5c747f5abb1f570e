"""From the highest point of a path to the critical point there, if it is one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Verdict
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.critical import Certificate, critical_point
from thalweg.paths.path import Path
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
from thalweg.paths.saddle import Climb, Saddle

__all__ = ["Refined", "refine"]

_NEAR = 0.02
_KRYLOV = 12  # products of a climb's first steps; a climb that gets stuck doubles them
_AT_AN_END = 100  # products for the certificate of an end, where nothing is climbed


@dataclass(frozen=True, eq=False)
class Refined:
    """What the highest point of a path was refined to.

    Attributes:
        verdict: Yes: the path crosses a certified pass, of index 1, that lies near its top
            and no higher. No: the highest point is an end, or gradient-flat, of another
            index, not critical, or another pass. Unresolved: what is missing.
        saddle: Where the climb ended.
        certificate: What is known of that point.
        top: The loss at the path's highest point.
        moved: How far the climb went from there.
        reach: How far it might go.
        cost: What it took.
    """

    verdict: Verdict
    saddle: Saddle
    certificate: Certificate
    top: float
    moved: float
    reach: float
    cost: Cost

    @property
    def theta(self) -> Float[Tensor, " dim"]:
        """The point, `(dim,)`."""
        return self.saddle.theta

    def __str__(self) -> str:
        """Return the verdict, the climb and the certificate."""
        return (
            f"{self.verdict}\n  moved {self.moved:.3g} of at most {self.reach:.3g}, from loss "
            f"{self.top:.9g} to {self.saddle.loss:.9g}: {self.saddle.reason}\n{self.certificate}"
        )

    def __rich__(self) -> str:
        """Return the same with the verdict in colour."""
        rest = str(self).partition("\n")[2].replace("[", "\\[")
        return f"{self.verdict.__rich__()}\n{rest}"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything but the vectors."""
        return {
            "type": "refined",
            "verdict": self.verdict.to_json(),
            "certificate": self.certificate.to_json(),
            "steps": self.saddle.steps,
            "reason": self.saddle.reason,
            "top": self.top,
            "moved": self.moved,
            "reach": self.reach,
            "cost": self.cost.to_json(),
        }


def refine(
    land: Landscape,
    path: Path,
    *,
    tol: float = 1e-8,
    reach: float | None = None,
    max_gradients: int = 2000,
    accuracy: float | None = None,
    seed: Seed = None,
    checkpoint: str | File | None = None,
    progress: Progress | None = None,
) -> Refined:
    r"""Climb from the highest point of a path to a critical point, and certify it.

    The climb follows the path's tangent uphill. Where it stops short of `tol` and budget is
    left, it goes on from where it is with a Krylov space twice as large. That its end is a
    pass of this path takes three things: it is certified of index 1 (`critical_point`), it
    lies within `reach` of the path's top, and no higher than the top. A path that nowhere
    climbs above its ends crosses no pass: that is said without a climb.

    Args:
        land: The landscape; climbs run on it as it is.
        path: A path, such as `connect` returns.
        tol: The gradient norm to reach.
        reach: How far from the top a pass may lie to be this path's; by default a quarter
            of its length.
        max_gradients: The budget in gradients and HVPs (a climb in progress finishes a
            step; the certificate takes its own, at most 700 products, and at an end 100).
        accuracy: The largest error of the loss at the pass (`critical_point`'s `tol`).
        seed: Draws the starts of the eigensolver.
        checkpoint: A file that keeps the climb after each of its steps: killed and run again,
            the same call goes on from there (a certificate that was begun is made anew). With
            ``seed=None`` it keeps the seed too.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The point, its certificate, and the verdict.

    Raises:
        ValueError: If `max_gradients` is below 1, or `checkpoint` holds another search.

    Source: climbing: Henkelman and Jónsson, J. Chem. Phys. 113 (2000) 9901.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> from thalweg.paths import line
        >>> wells = FunctionLandscape(
        ...     lambda x: (x[0]**2 - 1)**2 + (x[1] - 0.2 + 0.2 * x[0]**2)**2, dim=2)
        >>> a, b = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        >>> found = refine(wells, line(wells, a, b), seed=0)
        >>> print(found.verdict.answer, round(found.saddle.loss, 9))
        yes 1.0
    """
    if max_gradients < 1:
        raise ValueError(f"max_gradients must be at least 1, got {max_gradients}")
    room = path.length / 4 if reach is None else reach
    _, number = make_generator(seed)
    search = _Refining(land, path, tol, room, max_gradients, accuracy, number)
    key = fingerprint(
        points=path.points,
        top=path.top_time,
        options=["refine", tol, room, max_gradients, accuracy],
        seed=None if seed is None else number,
    )
    run(search, None if checkpoint is None else Checkpoint(checkpoint, key), progress)
    return search.result()


class _Refining:
    """A climb from a path's top, with ever larger Krylov spaces, and then its certificate."""

    def __init__(
        self,
        land: Landscape,
        path: Path,
        tol: float,
        reach: float,
        max_gradients: int,
        accuracy: float | None,
        seed: int,
    ) -> None:
        self.land, self.path, self.tol, self.reach = land, path, tol, reach
        self.max_gradients, self.accuracy, self.seed = max_gradients, accuracy, seed
        self.end = _the_end(path) if _highest_at_an_end(path) else None
        self.found: Saddle | None = self.end
        self.height, self.krylov = math.nan, _KRYLOV
        self.certificate: Certificate | None = None
        self.climbed, self.spent = Cost(), Cost()
        time = path.top_time
        tangent = path.at(min(1.0, time + _NEAR)) - path.at(max(0.0, time - _NEAR))
        self.climb: Climb | None = None
        if self.end is None:
            self.climb = self._climb(path.top, tangent, max_gradients)

    @property
    def finished(self) -> bool:
        """Whether the end of the climb is certified, or known not to be critical."""
        return self.certificate is not None

    def step(self) -> None:
        """Take a step of the climb, or certify its end."""
        before = self.land.cost
        if self.climb is None:
            self._certify()
        else:
            if math.isnan(self.height):
                self.height = float(self.land.loss(self.path.top))
            self.climb.step()
            if self.climb.finished:
                self._climbed(self.climb.found())
        self.spent = self.spent + (self.land.cost - before)

    def _climb(self, theta: Tensor, direction: Tensor, budget: int) -> Climb:
        return Climb(
            self.land,
            theta,
            direction,
            tol=self.tol,
            radius=self.reach,
            krylov=self.krylov,
            max_gradients=budget,
        )

    def _climbed(self, last: Saddle) -> None:
        """Keep what a climb found, and go on from there while that helps."""
        self.climbed, self.climb = self.climbed + last.cost, None
        better = self.found is None or last.gradient_norm < 0.9 * self.found.gradient_norm
        if better:
            self.found = last
        assert self.found is not None
        near = _apart(self.found.theta, self.path.top) < self.reach
        if self.found.converged or not better or not near or self.krylov >= self.land.dim:
            return
        left = self.max_gradients - self.climbed.gradients - self.climbed.hvps
        self.krylov *= 2
        if left > self.krylov:
            self.climb = self._climb(self.found.theta, self.found.direction, left)

    def _certify(self) -> None:
        """Say what the end of the climb is."""
        assert self.found is not None
        options: dict[str, Any] = {} if self.end is None else {"max_products": _AT_AN_END}
        self.certificate = critical_point(
            self.land, self.found.theta, tol=self.accuracy, seed=self.seed, **options
        )

    def result(self) -> Refined:
        """Put together what was found."""
        assert self.found is not None
        assert self.certificate is not None
        found, certificate = self.found, self.certificate
        if self.end is None:
            height, moved = self.height, _apart(found.theta, self.path.top)
            judged = _judge(found, certificate, height, moved, self.reach, self.path)
        else:
            height, moved = certificate.loss, 0.0
            found = replace(found, loss=certificate.loss, gradient_norm=certificate.gradient_norm)
            judged = _no_pass(self.path, height)
        return Refined(
            Verdict(judged.answer, judged.reason, cost=self.spent),
            found,
            certificate,
            height,
            moved,
            self.reach,
            self.spent,
        )

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from here."""
        return {
            "seed": self.seed,
            "height": self.height,
            "krylov": self.krylov,
            "found": None if self.found is None else plain(self.found),
            "certificate": None if self.certificate is None else plain(self.certificate),
            "climb": None if self.climb is None else self._kept(self.climb),
            "climbed": cost_state(self.climbed),
            "spent": cost_state(self.spent),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        device = self.path.points.device
        self.seed, self.height, self.krylov = state["seed"], state["height"], state["krylov"]
        found, certificate, climb = state["found"], state["certificate"], state["climb"]
        self.found = None if found is None else rebuilt(Saddle, found, device)
        self.certificate = certificate and rebuilt(Certificate, certificate, device)
        self.climbed, self.spent = cost_from(state["climbed"]), cost_from(state["spent"])
        self.climb = None
        if climb is not None:
            foot, direction = climb["foot"].to(device), climb["direction"].to(device)
            self.climb = self._climb(foot, direction, climb["budget"])
            self.climb.load(climb["state"])

    def _kept(self, climb: Climb) -> dict[str, Any]:
        """Return a climb as a state can hold it: where it began, and where it is."""
        return {
            "foot": climb.foot,
            "direction": climb.mode,
            "budget": climb.max_gradients,
            "state": climb.state(),
        }

    def describe(self) -> tuple[float, str]:
        """Say how far it is."""
        if self.certificate is not None:
            return 1.0, f"certified: {self.certificate.verdict.answer}"
        if self.climb is None:
            return 0.5, "the climb has ended; certifying"
        used = (self.spent.gradients + self.spent.hvps) / self.max_gradients
        return 0.5 * min(1.0, used), self.climb.describe()[1]


def _highest_at_an_end(path: Path) -> bool:
    """Whether no point seen is higher than the higher end, beyond rounding."""
    high = path.maximum.lower
    return high <= path.base + 64 * torch.finfo(path.points.dtype).eps * abs(high)


def _the_end(path: Path) -> Saddle:
    """Return the higher end as what was found without a climb."""
    last = bool(path.losses[-1] > path.losses[0])
    end = path.points[-1 if last else 0]
    way = (path.points[-2] if last else path.points[1]) - end
    return Saddle(
        end,
        math.nan,
        math.nan,
        way / torch.linalg.vector_norm(way),
        math.nan,
        0,
        0,
        False,
        "nothing was climbed, because the highest point is an end",
        Cost(),
    )


def _no_pass(path: Path, loss: float) -> Verdict:
    """Say that a path which never climbs above its ends crosses no pass."""
    name = "b" if bool(path.losses[-1] > path.losses[0]) else "a"
    return Verdict(
        "no",
        f"the highest point is an end, {name}, at loss {loss:.9g}: the path never climbs above "
        "its ends, so there is no pass on it",
    )


def _apart(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm((a - b).double()))


def _judge(
    found: Saddle, certificate: Certificate, height: float, moved: float, reach: float, path: Path
) -> Verdict:
    """Say whether the point is the pass on top of the path."""
    if not certificate.verdict.yes:
        return certificate.verdict
    index = round(certificate.index.lower)
    if index == 0:
        return Verdict("no", "the climb ended at a minimum, which is no pass")
    if index > 1:
        return Verdict(
            "no",
            f"a critical point of index {index}: the path can be lowered around it; relax the "
            "path (string, or band) and refine again",
        )
    slack = path.worth() + certificate.rounding * moved
    if moved > reach or found.loss > height + slack:
        return Verdict(
            "no",
            f"the climb ran to another pass, at loss {found.loss:.9g}, {moved:.3g} away from the "
            f"path's top at {height:.9g}; relax the path first",
        )
    zeros = round(certificate.zero.lower)
    more = f" with {zeros} zero modes" if zeros else ""
    return Verdict(
        "yes",
        f"a pass of index 1{more} at loss {found.loss:.9g}, {moved:.3g} from the path's top and "
        f"{max(0.0, height - found.loss):.3g} below it",
    )
