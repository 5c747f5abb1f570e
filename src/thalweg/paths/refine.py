"""From the highest point of a path to the critical point there, if it is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Verdict
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed
from thalweg.paths.critical import Certificate, critical_point
from thalweg.paths.path import Path
from thalweg.paths.saddle import Saddle, climb

__all__ = ["Refined", "refine"]

_NEAR = 0.02
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

    Returns:
        The point, its certificate, and the verdict.

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
    before, top = land.cost, path.top
    room = path.length / 4 if reach is None else reach
    if _highest_at_an_end(path):
        return _at_an_end(land, path, room, accuracy, seed)
    height = float(land.loss(top))
    found = _climbed(land, path, tol, room, max_gradients)
    certificate = critical_point(land, found.theta, tol=accuracy, seed=seed)
    moved = _apart(found.theta, top)
    verdict = _judge(found, certificate, height, moved, room, path)
    cost = land.cost - before
    return Refined(
        Verdict(verdict.answer, verdict.reason, cost=cost),
        found,
        certificate,
        height,
        moved,
        room,
        cost,
    )


def _highest_at_an_end(path: Path) -> bool:
    """Whether no point seen is higher than the higher end, beyond rounding."""
    high = path.maximum.lower
    return high <= path.base + 64 * torch.finfo(path.points.dtype).eps * abs(high)


def _at_an_end(
    land: Landscape, path: Path, reach: float, accuracy: float | None, seed: Seed
) -> Refined:
    """Say what the higher end is, and that nothing was climbed from there."""
    before, last = land.cost, bool(path.losses[-1] > path.losses[0])
    end = path.points[-1 if last else 0]
    way = (path.points[-2] if last else path.points[1]) - end
    certificate = critical_point(land, end, tol=accuracy, max_products=_AT_AN_END, seed=seed)
    reason = (
        f"the highest point is an end, {'b' if last else 'a'}, at loss {certificate.loss:.9g}: the "
        "path never climbs above its ends, so there is no pass on it"
    )
    saddle = Saddle(
        end,
        certificate.loss,
        certificate.gradient_norm,
        way / torch.linalg.vector_norm(way),
        math.nan,
        0,
        0,
        False,
        "nothing was climbed, because the highest point is an end",
        Cost(),
    )
    cost = land.cost - before
    verdict = Verdict("no", reason, cost=cost)
    return Refined(verdict, saddle, certificate, certificate.loss, 0.0, reach, cost)


def _climbed(land: Landscape, path: Path, tol: float, reach: float, max_gradients: int) -> Saddle:
    """Climb from the top, with ever larger Krylov spaces while that helps."""
    before, top, time = land.cost, path.top, path.top_time
    tangent = path.at(min(1.0, time + _NEAR)) - path.at(max(0.0, time - _NEAR))
    found = climb(land, top, tangent, tol=tol, radius=reach, max_gradients=max_gradients)
    krylov = 12
    while not found.converged and _apart(found.theta, top) < reach and krylov < land.dim:
        spent = land.cost - before
        left = max_gradients - spent.gradients - spent.hvps
        krylov *= 2
        if left <= krylov:
            break
        more = climb(
            land,
            found.theta,
            found.direction,
            tol=tol,
            radius=reach,
            krylov=krylov,
            max_gradients=left,
        )
        if not more.gradient_norm < 0.9 * found.gradient_norm:
            break
        found = more
    return found


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
