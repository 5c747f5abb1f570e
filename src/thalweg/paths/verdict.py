"""Connected at a level? Yes with a path, no with a proof, or unresolved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path as File
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Verdict
from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.landscape.separators import Separator
from thalweg.paths.boxes import BoxFloor, Region, box_floor
from thalweg.paths.connect import Align, Method, connect
from thalweg.paths.intervals import NotEnclosableError
from thalweg.paths.path import Floor, Path, check_ends, measure
from thalweg.paths.resume import Progress
from thalweg.paths.separation import ContradictionError, check_consistent, floor_between, reconciled
from thalweg.paths.string import string

__all__ = ["ContradictionError", "check_consistent", "is_connected"]

_UNASKED = 2  # dimensions in which boxes are tried without a region


def _rounding(dtype: torch.dtype, *losses: float) -> float:
    return 1e3 * torch.finfo(dtype).eps * max(map(abs, losses))


def is_connected(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    level: float,
    *,
    method: Method = "auto",
    align: Align | None = None,
    separators: Sequence[Separator] = (),
    region: Region | None = None,
    lipschitz: float | None = None,
    gradient_lipschitz: float | None = None,
    max_boxes: int = 4000,
    searches: int = 1,
    tolerance: float | None = None,
    images: int = 13,
    max_gradients: int = 2500,
    max_samples: int = 200,
    batch_size: int | Literal["auto"] | None = "auto",
    seed: Seed = None,
    checkpoint: str | File | None = None,
    progress: Progress | None = None,
) -> Verdict:
    r"""Decide whether `a` and `b` are joined within $\{L \le \text{level}\}$.

    *Yes* shows a path whose bracketed maximum is at most `level`. *No* is said only with a
    proof: an end above the level; a separating set on which the loss is proven to exceed the
    level, `separators` or one that the landscape knows (`floor_between`); or, in up to three
    dimensions, boxes that wall one end off (`box_floor`), tried after the paths have failed.
    That no path found is low enough proves nothing: the answer then is *unresolved*.

    Args:
        land: The landscape.
        a: One end, `(dim,)`.
        b: The other end.
        level: The loss not to be exceeded.
        method: As in `connect`.
        align: See `connect`.
        separators: Sets that may separate the ends, with a lower bound of the loss on each.
        region: Where boxes look (`box_floor`); by default a box around the ends, if the
            landscape has at most two dimensions and its function can be enclosed.
        lipschitz: A Lipschitz constant of the loss, for the boxes.
        gradient_lipschitz: One of its gradient, for the boxes.
        max_boxes: Largest number of boxes; 0 for none.
        searches: How many searches may be made before the paths have failed; those after the
            first are strings that start from random detours.
        tolerance: See `connect`.
        images: See `connect`.
        max_gradients: See `connect`; for each search.
        max_samples: See `connect`.
        batch_size: See `connect`.
        seed: See `connect`.
        checkpoint: See `connect`; later searches keep theirs in ``FILE.2`` and so on. Boxes
            are not kept, and made again.
        progress: See `connect`.

    Returns:
        The verdict. Its evidence: the path for *yes*; the losses of the ends, the `Floor` or
        the `BoxFloor` for *no*; the best path for *unresolved*.

    Raises:
        ValueError: As `connect` does; if `level` is NaN; or if a set is crossed below the
            floor that it claims.
        ContradictionError: If a path is found below a proven floor.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> well = FunctionLandscape(lambda x: (x[0]**2 - 1)**2, dim=1)
        >>> ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> is_connected(well, *ends, level=1.1).yes
        True
        >>> print(is_connected(well, *ends, level=0.5, seed=0).evidence.floor.kind)
        certified
        >>> is_connected(well, *ends, level=0.5, max_boxes=0, seed=0).answer
        'unresolved'
    """
    if level != level:
        raise ValueError("level is NaN; give a number")
    if searches < 1:
        raise ValueError(f"searches must be at least 1, got {searches}")
    a, b = check_ends(land, a, b)
    view = for_evaluation(land)
    before = view.cost
    if align is not None:
        _, b = check_ends(land, a, align(a, b))
    ends = [float(x) for x in view.loss(torch.stack([a, b]))]
    for name, loss in zip("ab", ends, strict=True):
        if math.isnan(loss):
            reason = f"the loss at end {name} is NaN, so that nothing is at or under the level"
            return Verdict("unresolved", f"{reason}; give an end with a loss", ends,
                           view.cost - before)  # fmt: skip
        if loss > level:
            reason = f"end {name} lies at {loss:.8g}, above the level {level:.8g}"
            return Verdict("no", reason, ends, view.cost - before)
    floor = floor_between(land, a, b, separators)
    asked = view.cost - before
    if floor is not None and floor.kind != "estimated" and _above(floor.loss, level, land.dtype):
        return Verdict("no", f"{floor}, above the level {level:.8g}", floor, asked)
    path, spent = _search(
        land,
        a,
        b,
        level,
        floor,
        searches,
        seed,
        method=method,
        tolerance=tolerance,
        images=images,
        max_gradients=max_gradients,
        max_samples=max_samples,
        separators=separators,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
    walled = None
    if path.maximum.upper > level and max_boxes and _boxable(land, region, method):
        constants = {"lipschitz": lipschitz, "gradient_lipschitz": gradient_lipschitz}
        walled = _walled(land, a, b, level, region, max_boxes, constants)
    if walled is not None:
        spent += walled.cost
        check_consistent(path, walled.floor)
        if _above(walled.floor.loss, level, land.dtype):
            reason = f"{walled.floor}, above the level {level:.8g}"
            return Verdict("no", reason, walled, asked + spent)
    return _judge(path, level, floor, asked + spent)


def _above(loss: float, level: float, dtype: torch.dtype) -> bool:
    return loss > level + _rounding(dtype, loss, level)


def _boxable(land: Landscape, region: Region | None, method: str) -> bool:
    """Whether boxes are asked for, or may be tried unasked."""
    return region is not None or (land.dim <= _UNASKED and method == "auto")


def _walled(
    land: Landscape,
    a: Tensor,
    b: Tensor,
    level: float,
    region: Region | None,
    max_boxes: int,
    constants: dict[str, float | None],
) -> BoxFloor | None:
    """Ask boxes; None if nobody asked for them and the loss cannot be enclosed."""
    try:
        return box_floor(land, a, b, region=region, level=level, max_boxes=max_boxes, **constants)
    except NotEnclosableError:
        if region is not None:
            raise
        return None


def _search(
    land: Landscape,
    a: Tensor,
    b: Tensor,
    level: float,
    floor: Floor | None,
    searches: int,
    seed: Seed,
    *,
    checkpoint: str | File | None,
    **options: Any,
) -> tuple[Path, Cost]:
    """Return the lowest path of a few searches, the first at or under the level at once."""
    generator, number = make_generator(seed)
    best, spent = None, Cost()
    for trial in range(searches):
        drawn = number if not trial else int(torch.randint(2**62, (), generator=generator))
        file = checkpoint if checkpoint is None or not trial else f"{checkpoint}.{trial + 1}"
        if trial and options["method"] != "line":
            found = _detour(land, a, b, level, drawn, file, options)
            path = reconciled(land, found, floor)
        else:
            path = connect(land, a, b, level=level, seed=drawn, checkpoint=file, **options)
        spent += path.cost
        if best is None or not path.maximum.upper >= best.maximum.upper:
            best = path
        if best.maximum.upper <= level:
            break
    assert best is not None
    return best, spent


def _detour(
    land: Landscape,
    a: Tensor,
    b: Tensor,
    level: float,
    seed: int,
    checkpoint: str | File | None,
    options: dict[str, Any],
) -> Path:
    """Return a string that starts over a random point half as far from the middle as an end."""
    generator, _ = make_generator(seed)
    aside = torch.randn(land.dim, generator=generator, dtype=torch.float64).to(a.device)
    size = torch.linalg.vector_norm((b - a).double()) / 2
    middle = (a + b).double() / 2 + size * aside / torch.linalg.vector_norm(aside)
    corners = torch.stack([a, middle.to(a.dtype), b])
    measured = {key: options[key] for key in ("tolerance", "max_samples")}
    start = measure(land, corners, **measured)
    rest = {key: options[key] for key in ("images", "max_gradients", "progress")}
    return string(
        land, a, b, start=start, level=level, seed=seed, checkpoint=checkpoint, **measured, **rest
    )


def _judge(path: Path, level: float, floor: Floor | None, cost: Cost) -> Verdict:
    """Say what the best path shows, and what would decide the rest."""
    low, high = path.maximum.lower, path.maximum.upper
    if high <= level:
        return Verdict(
            "yes",
            f"a {path.method} joins them below {high:.8g} ({path.maximum.upper_kind} upper "
            f"end), at or under the level {level:.8g}",
            path,
            cost,
        )
    known = "" if floor is None else f" ({floor})"
    if math.isnan(low):
        return Verdict(
            "unresolved",
            f"the loss is NaN somewhere on the best path found, which shows nothing{known}; start "
            "from ends between which the loss is finite, or give the landscape another dtype",
            path,
            cost,
        )
    if low <= level:
        return Verdict(
            "unresolved",
            f"the best path found climbs to between {low:.8g} and {high:.8g}, which "
            f"straddles the level {level:.8g}{known}; a smaller tolerance or more samples would "
            "decide it",
            path,
            cost,
        )
    return Verdict(
        "unresolved",
        f"the best path found climbs to {low:.8g}, above the level {level:.8g}, and "
        f"another may stay below{known}; more images, gradients or searches may find it, a "
        "separating set on which the loss is proven to exceed the level would rule it out",
        path,
        cost,
    )
