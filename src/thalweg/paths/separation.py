r"""Lower bounds of the barrier from separating sets: what every path must cross."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.landscape.separators import Separable, Separator
from thalweg.paths.path import Floor, Path, check_ends, measure

__all__ = [
    "ContradictionError",
    "Separable",
    "Separator",
    "check_consistent",
    "crossing",
    "floor_between",
    "reconciled",
    "separates",
]

_FINER = 8  # times as many samples, before a path that stays below a floor is refused
_TRIALS = 8  # perturbed copies of an end, to see how far rounding moves its side
_ROUNDINGS = 64.0  # how many units of rounding each coordinate is moved by


class ContradictionError(RuntimeError):
    """A path lies below a loss that every path is said to reach: one of the two is wrong."""


def separates(separator: Separator, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"]) -> bool:
    r"""Say whether $h$ has opposite signs at the two ends, beyond rounding.

    Every coordinate of an end is moved by 64 units of rounding, up or down, eight times (the
    same way in every call); a sign counts only if $|h|$ exceeds eight times the largest change.

    Args:
        separator: The set.
        a: One end, `(dim,)`.
        b: The other.

    Returns:
        True if every path between them crosses the set.

    Raises:
        ValueError: If `side` does not return one number.

    Example:
        >>> import torch
        >>> half = Separator("first is 0", lambda x: x[0], 0.5, "certified", "it is said so")
        >>> a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> separates(half, a, b), separates(half, a, a), separates(half, a, 0 * b)
        (True, False, False)
    """
    return _sign(separator, a) * _sign(separator, b) < 0


def _sign(separator: Separator, theta: Tensor) -> int:
    """Return the sign of the side, 0 within rounding or where it is NaN."""
    middle = _side(separator, theta)
    if not math.isfinite(middle):
        return 0
    generator = torch.Generator().manual_seed(0)
    step = _ROUNDINGS * torch.finfo(theta.dtype).eps
    change = 0.0
    for _ in range(_TRIALS):
        signs = 2.0 * torch.randint(0, 2, theta.shape, generator=generator) - 1.0
        moved = theta * (1 + step * signs.to(theta.dtype).to(theta.device))
        change = max(change, abs(_side(separator, moved) - middle))
    return 0 if not abs(middle) > 8 * change else (1 if middle > 0 else -1)


def _side(separator: Separator, theta: Tensor) -> float:
    with torch.no_grad():
        value = separator.side(theta)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"side of separator {separator.name!r} must return one number as a tensor, but it "
            f"returned {shown}"
        )
    return float(value)


def crossing(
    separator: Separator, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"]
) -> Float[Tensor, " dim"]:
    """Return the point nearest to the set that bisection finds on the straight line.

    Args:
        separator: A set that separates the ends.
        a: One end, `(dim,)`.
        b: The other.

    Returns:
        A point at which the side changes sign, to rounding.

    Raises:
        ValueError: If the set does not separate the ends.
    """
    if not separates(separator, a, b):
        raise ValueError(
            f"separator {separator.name!r} does not separate a and b: its side is "
            f"{_side(separator, a):.3g} and {_side(separator, b):.3g} there"
        )
    low, high = 0.0, 1.0
    positive = _side(separator, a) > 0
    for _ in range(60):
        middle = (low + high) / 2
        if (_side(separator, torch.lerp(a, b, middle)) > 0) == positive:
            low = middle
        else:
            high = middle
    return torch.lerp(a, b, high)


def floor_between(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    separators: Sequence[Separator] = (),
) -> Floor | None:
    r"""Return the highest loss that a separating set forces every path to reach.

    The sets asked are `separators` and those that the landscape knows itself (`Separable`).
    One that does not separate the ends beyond rounding is left out. One that does is put to
    a test: the straight line crosses it too, and the loss there must not be lower than the
    floor claimed. A proven floor is preferred to an estimated one, however high.

    Args:
        land: The landscape; floors are losses of ``for_evaluation(land)``.
        a: One end, `(dim,)`.
        b: The other end.
        separators: More sets to ask.

    Returns:
        The floor, or None if no set separates the ends.

    Raises:
        ValueError: If an end is wrong (see `connect`), or a set is crossed below its floor.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> well = FunctionLandscape(lambda x: (x[0]**2 - 1)**2 + x[1]**2, dim=2)
        >>> wall = Separator("x0 = 0", lambda x: x[0], 1.0, "exact", "L = 1 + x1^2 there")
        >>> a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
        >>> print(floor_between(well, a, b, [wall]))
        every path reaches 1 (exact): it crosses x0 = 0, where L = 1 + x1^2 there
    """
    a, b = check_ends(land, a, b)
    known = list(separators)
    if isinstance(land, Separable):
        known += land.separators(a, b)
    found = [separator for separator in known if separates(separator, a, b)]
    for separator in found:
        _challenge(land, separator, a, b)
    if not found:
        return None
    best = max(found, key=lambda one: (one.kind != "estimated", one.floor))
    return Floor(best.floor, best.kind, f"it crosses {best.name}, where {best.reason}")


def _challenge(land: Landscape, separator: Separator, a: Tensor, b: Tensor) -> None:
    """Hold a floor against the loss where the straight line crosses its set."""
    point = crossing(separator, a, b)
    loss = float(for_evaluation(land).loss(point))
    allowed = 1e3 * torch.finfo(land.dtype).eps * max(abs(loss), abs(separator.floor), 1e-300)
    if loss < separator.floor - max(allowed, _step_across(land, point, a, b)):
        raise ValueError(
            f"separator {separator.name!r} claims a loss of at least {separator.floor:.8g}, but "
            f"the straight line from a to b crosses it at {loss:.8g}; the floor is wrong, or its "
            "side is not continuous"
        )


def _step_across(land: Landscape, point: Tensor, a: Tensor, b: Tensor) -> float:
    """How much the loss may change within the rounding of the crossing's place."""
    step = 16 * torch.finfo(land.dtype).eps * (b - a)
    ends = for_evaluation(land).loss(torch.stack([point - step, point + step]))
    return 4 * abs(float(ends[1] - ends[0]))


def check_consistent(path: Path, floor: Floor | None) -> None:
    """Refuse a path that stays below a proven floor.

    Args:
        path: A path between the two ends.
        floor: What every path between them is said to reach.

    Raises:
        ContradictionError: If the path's upper end lies below the floor by more than rounding.
    """
    if _contradicts(path, floor):
        assert floor is not None
        raise ContradictionError(
            f"a {path.method} climbs to {path.maximum.upper:.9g} only "
            f"({path.maximum.upper_kind} upper end), but every path is said to reach "
            f"{floor.loss:.9g} ({floor.kind}): {floor.reason}. Either this proof is wrong, or the "
            "path hides a wall between its samples: measure it with more samples to see"
        )


def reconciled(land: Landscape, path: Path, floor: Floor | None) -> Path:
    """Return a path that does not stay below a proven floor.

    One that seems to is measured again with eight times as many samples: a wall that is
    narrower than their spacing then shows, and the height is the one found there.

    Args:
        land: The landscape on which the path was measured.
        path: A path between the two ends.
        floor: What every path between them is said to reach.

    Returns:
        The path, or the same with its new measurement.

    Raises:
        ContradictionError: If the path stays below the floor all the same.
    """
    if not _contradicts(path, floor):
        return path
    samples = _FINER * max(len(path.profile.times), len(path.points))
    again = measure(
        land,
        path.points,
        tolerance=0.0,
        max_samples=samples,
        initial=max(2, samples // (2 * (len(path.points) - 1))),
        method=path.method,
        converged=False,
        note="its samples hid a wall, which showed when it was measured again; search anew",
        seed=path.seed,
        spent=path.cost,
    )
    check_consistent(again, floor)
    return again


def _contradicts(path: Path, floor: Floor | None) -> bool:
    if floor is None or floor.kind == "estimated":
        return False
    high = path.maximum.upper
    rounding = 1e3 * torch.finfo(path.points.dtype).eps * max(abs(high), abs(floor.loss))
    return high < floor.loss - rounding
