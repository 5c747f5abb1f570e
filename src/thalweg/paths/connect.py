"""Connect two minima: the straight line where it is low enough, else a string."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Verdict
from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.landscape.seeding import Seed
from thalweg.paths.line import line
from thalweg.paths.path import Path, check_ends
from thalweg.paths.string import Progress, string

__all__ = ["connect", "is_connected"]

Align = Callable[[Tensor, Tensor], Tensor]
Method = Literal["auto", "line", "string"]
_METHODS = ("auto", "line", "string")


def connect(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    *,
    method: Method = "auto",
    align: Align | None = None,
    level: float | None = None,
    tolerance: float | None = None,
    images: int = 13,
    max_gradients: int = 2500,
    max_samples: int = 200,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Path:
    r"""Find a low path from `a` to `b` and say how high it climbs.

    ``"line"`` is the straight line, ``"string"`` relaxes it (see `string`). ``"auto"``
    tries the line, and goes on with a string unless the line's height is at most
    `tolerance`, or its maximum at most `level`; the lower path is returned.

    Paths are searched on `land` itself. Heights are those of ``for_evaluation(land)``: a
    network with BatchNorm is evaluated with statistics re-estimated at every point, the
    ends included.

    Args:
        land: The landscape.
        a: One end, `(dim,)`; a minimum, if the height is to be a pass between minima.
        b: The other end.
        method: ``"auto"``, ``"line"`` or ``"string"``.
        align: ``align(a, b) -> b'``: a vector that computes the same function as `b`, and
            that the path ends at instead. `b` itself by default.
        level: A loss that is low enough: no search goes on below it.
        tolerance: A difference in loss that does not matter; by default 1e-3 of the range
            of the losses along the line.
        images: Points of the string.
        max_gradients: Largest number of gradients and HVPs that a search may take.
        max_samples: Largest number of evaluations for the bracket.
        seed: For `string`; an integer repeats the path bit for bit.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The path. ``path.height`` is about this path, ``path.barrier`` about all of them;
        both are measured above $\max(L(a), L(b))$, ``path.maximum`` is absolute.

    Raises:
        TypeError: If an end is no tensor of the landscape's dtype.
        ValueError: If an end has the wrong shape or holds NaN, both coincide, or `method`
            is unknown.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> ring = FunctionLandscape(lambda x: ((x**2).sum() - 1)**2, dim=2)
        >>> a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> connect(ring, a, b, method="line").height.lower
        1.0
        >>> connect(ring, a, b, seed=0).height.upper < 0.01     # around the ring
        True
    """
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}; use one of {', '.join(_METHODS)}")
    a, b = check_ends(land, a, b)
    aligning = Cost()
    if align is not None:
        before = land.cost
        a, b = check_ends(land, a, align(a, b))
        aligning = land.cost - before
    straight = line(land, a, b, tolerance=tolerance, max_samples=max_samples)
    straight = replace(straight, cost=straight.cost + aligning)
    if progress is not None:
        progress(0.1 if method != "line" else 1.0, f"straight line: height {straight.height}")
    if method == "line" or (method == "auto" and _low_enough(straight, level, tolerance)):
        return straight
    return string(
        land,
        a,
        b,
        start=straight,
        images=images,
        max_gradients=max_gradients,
        tolerance=tolerance,
        max_samples=max_samples,
        seed=seed,
        progress=None
        if progress is None
        else lambda part, message: progress(0.1 + 0.9 * part, message),
    )


def _low_enough(path: Path, level: float | None, tolerance: float | None) -> bool:
    if level is not None:
        return path.maximum.upper <= level
    return path.height.upper <= path.worth(tolerance)


def is_connected(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    level: float,
    *,
    method: Method = "auto",
    align: Align | None = None,
    tolerance: float | None = None,
    images: int = 13,
    max_gradients: int = 2500,
    max_samples: int = 200,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Verdict:
    r"""Decide whether `a` and `b` are joined within $\{L \le \text{level}\}$.

    *Yes* shows a path whose bracketed maximum is at most `level`. *No* is said only where
    an end lies above the level itself: that no path found is low enough proves nothing.

    Args:
        land: The landscape.
        a: One end, `(dim,)`.
        b: The other end.
        level: The loss not to be exceeded.
        method: As in `connect`, like all that follow.
        align: See `connect`.
        tolerance: See `connect`.
        images: See `connect`.
        max_gradients: See `connect`.
        max_samples: See `connect`.
        seed: See `connect`.
        progress: See `connect`.

    Returns:
        The verdict, with the path as its evidence.

    Raises:
        ValueError: As `connect` does, or if `level` is NaN.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> well = FunctionLandscape(lambda x: (x[0]**2 - 1)**2, dim=1)
        >>> ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> is_connected(well, *ends, level=1.1).yes
        True
        >>> is_connected(well, *ends, level=0.5, seed=0).answer
        'unresolved'
        >>> is_connected(well, *ends, level=-0.5).answer
        'no'
    """
    if not level == level:
        raise ValueError("level is NaN; give a number")
    a, b = check_ends(land, a, b)
    view = for_evaluation(land)
    before = view.cost
    if align is not None:
        _, b = check_ends(land, a, align(a, b))
    ends = [float(x) for x in view.loss(torch.stack([a, b]))]
    asked = view.cost - before
    for name, loss in zip("ab", ends, strict=True):
        if loss > level:
            return Verdict(
                "no", f"end {name} lies at {loss:.8g}, above the level {level:.8g}", ends, asked
            )
    path = connect(
        land,
        a,
        b,
        method=method,
        level=level,
        tolerance=tolerance,
        images=images,
        max_gradients=max_gradients,
        max_samples=max_samples,
        seed=seed,
        progress=progress,
    )
    low, high = path.maximum.lower, path.maximum.upper
    cost = asked + path.cost
    if high <= level:
        return Verdict(
            "yes",
            f"a {path.method} joins them below {high:.8g} ({path.maximum.upper_kind} upper "
            f"end), at or under the level {level:.8g}",
            path,
            cost,
        )
    if low <= level:
        return Verdict(
            "unresolved",
            f"the best path found climbs to between {low:.8g} and {high:.8g}, which "
            f"straddles the level {level:.8g}; a smaller tolerance or more samples would decide "
            "it",
            path,
            cost,
        )
    return Verdict(
        "unresolved",
        f"the best path found climbs to {low:.8g}, above the level {level:.8g}, and "
        "another may stay below; more images and gradients may find it, a proven lower bound of "
        "the barrier would rule it out",
        path,
        cost,
    )
