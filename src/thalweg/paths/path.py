"""A path between two parameter vectors, and how high it climbs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Bound, BoundKind, Cost
from thalweg.landscape.protocols import Landscape, check_theta, for_evaluation
from thalweg.paths.height import Bounds, Profile, bracket_maximum

__all__ = ["Floor", "Path", "check_ends", "join", "measure", "places"]


@dataclass(frozen=True, slots=True)
class Floor:
    """A loss that every path between two ends reaches, and why.

    Args:
        loss: The loss, an absolute value.
        kind: What it is worth: ``"exact"``, ``"certified"`` or ``"estimated"``.
        reason: The proof, in a sentence.
    """

    loss: float
    kind: BoundKind
    reason: str

    def __str__(self) -> str:
        """Return the loss, its kind and the reason."""
        return f"every path reaches {self.loss:.8g} ({self.kind}): {self.reason}"


@dataclass(frozen=True, eq=False)
class Path:
    r"""A polyline from $a$ to $b$, with the loss along it.

    Three heights, not to be confused: `maximum` is the largest loss along this path, an
    absolute value; `height` is the same above ``base``, $\max(L(a), L(b))$; `barrier` is
    the smallest height of *any* path between the ends. Every path holds its ends, so that
    the barrier is at least 0 (certified), and this path shows that it is at most
    ``height.upper``.

    Attributes:
        points: The corners, `(K, dim)`; the first is $a$, the last $b$.
        losses: The loss at each, `(K,)`.
        profile: The loss as sampled between the corners, for a figure; its `top` is the
            highest point seen.
        method: How the path was found.
        converged: Whether the method reached what it aims at (for a string: the highest
            point is an end or a critical point).
        note: What `converged` means here, in a sentence.
        seed: The seed that reproduces it; None if nothing was random.
        cost: What the search and the measurement took.
        floor: What every path between the ends is known to reach, as an absolute loss; None
            where nothing better is known than the ends themselves.
        balanced: The path that the same search finds between the ends as a gauge chooses
            them, because a mere rescaling of one end changes heights and lengths; None where
            no gauge was given. (`in_gauge` moves the corners of this path instead.)
    """

    points: Float[Tensor, "points dim"]
    losses: Float[Tensor, " points"]
    profile: Profile
    method: str
    converged: bool
    note: str
    cost: Cost
    seed: int | None = None
    floor: Floor | None = None
    balanced: Path | None = None

    @cached_property
    def _knots(self) -> Tensor:
        return _arc_lengths(self.points)

    @property
    def times(self) -> Float[Tensor, " points"]:
        """The corners' normalised arc lengths, from 0 to 1."""
        return self._knots / self._knots[-1]

    @property
    def length(self) -> float:
        """Euclidean length."""
        return float(self._knots[-1])

    @property
    def normalised_length(self) -> float:
        r"""Length over $|a - b|$: 1 for a straight line (Freeman and Bruna 2017)."""
        span = (self.points[-1] - self.points[0]).double()
        return self.length / float(torch.linalg.vector_norm(span))

    @property
    def base(self) -> float:
        r"""The higher end's loss, $\max(L(a), L(b))$."""
        return float(torch.maximum(self.losses[0], self.losses[-1]))

    @property
    def maximum(self) -> Bound:
        """Bracket of the largest loss along this path: an absolute value."""
        return self.profile.maximum

    @property
    def height(self) -> Bound:
        """Bracket of the largest loss along this path, above `base`."""
        return self.maximum.above(self.base)

    @property
    def barrier(self) -> Bound:
        """Bracket of the smallest height of all paths between the ends, above `base`."""
        height = self.height
        known = Floor(self.base, "certified", "every path holds its ends")
        if self.floor is not None and self.floor.loss > self.base:
            known = self.floor
        return Bound(
            min(known.loss - self.base, height.upper),
            height.upper,
            known.kind,
            height.upper_kind,
            self.cost,
            f"lower end: {known.reason}; upper end: {self.method}",
        )

    def worth(self, tolerance: float | None = None) -> float:
        """Return the difference in loss that does not matter: `tolerance` if given.

        By default 1e-3 of the range of the finite losses seen along this path.
        """
        if tolerance is not None:
            return tolerance
        seen = self.profile.losses[torch.isfinite(self.profile.losses)]
        return 1e-3 * float(seen.max() - seen.min()) if len(seen) else 0.0

    @property
    def top(self) -> Float[Tensor, " dim"]:
        """The highest point seen."""
        return self.profile.top

    @property
    def top_time(self) -> float:
        """The normalised arc length of the highest point seen."""
        return self.profile.top_time

    def at(self, t: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the point at normalised arc length `t`.

        Args:
            t: A number or a tensor of numbers in [0, 1].

        Returns:
            One vector per number.

        Raises:
            ValueError: If a time lies outside [0, 1].
        """
        return places(self.points, t)

    def reversed(self) -> Path:
        """Return the same path from $b$ to $a$."""
        profile = replace(
            self.profile,
            times=1 - self.profile.times.flip(0),
            losses=self.profile.losses.flip(0),
            top_time=1 - self.profile.top_time,
        )
        return replace(
            self, points=self.points.flip(0), losses=self.losses.flip(0), profile=profile
        )

    def __str__(self) -> str:
        """Return a few lines: heights, where the top is, how it was found."""
        if not math.isfinite(self.maximum.lower):
            return (
                f"{self.method} of {len(self.points)} points: the loss is {self.maximum.lower} "
                f"at t = {self.top_time:.4g}, so that the path has no height ({self.cost})"
            )
        state = "converged" if self.converged else "not converged"
        return (
            f"{self.method} of {len(self.points)} points, {self.normalised_length:.4g} times the "
            f"straight distance\n"
            f"  height  {self.height} above {self.base:.8g}\n"
            f"  maximum {self.maximum}, highest at t = {self.top_time:.4g}\n"
            f"  barrier {self.barrier}\n"
            f"  {state}: {self.note}\n"
            f"  {self.cost}{self._in_gauge}"
        )

    @property
    def _in_gauge(self) -> str:
        if self.balanced is None:
            return ""
        other = self.balanced
        return (
            f"\n  between the ends in a gauge: height {other.height} above {other.base:.8g}, "
            f"{other.normalised_length:.4g} times the straight distance"
        )

    def __rich__(self) -> str:
        """Return the lines with the method in bold and the state in colour."""
        colour = "green" if self.converged else "yellow"
        lines = str(self).replace("[", "\\[").split("\n")
        lines[0] = f"[bold]{lines[0]}[/bold]"
        if len(lines) > 4:
            lines[4] = f"[{colour}]{lines[4]}[/{colour}]"
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the points themselves."""
        return {
            "type": "path",
            "method": self.method,
            "converged": self.converged,
            "note": self.note,
            "seed": self.seed,
            "times": self.times.tolist(),
            "losses": [_word(x) for x in self.losses.tolist()],
            "profile_times": self.profile.times.tolist(),
            "profile_losses": [_word(x) for x in self.profile.losses.tolist()],
            "top_time": self.top_time,
            "length": self.length,
            "normalised_length": self.normalised_length,
            "base": _word(self.base),
            "maximum": self.maximum.to_json(),
            "height": self.height.to_json(),
            "barrier": self.barrier.to_json(),
            "balanced": None if self.balanced is None else self.balanced.to_json(),
            "cost": self.cost.to_json(),
        }


def _word(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _arc_lengths(points: Tensor) -> Tensor:
    steps = torch.linalg.vector_norm((points[1:] - points[:-1]).double(), dim=1)
    return torch.cat([steps.new_zeros(1), steps.cumsum(0)])


def places(
    points: Float[Tensor, "points dim"], t: float | Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch dim"]:
    """Return the points of a polyline at normalised arc lengths `t`.

    Args:
        points: The corners, `(K, dim)`.
        t: A number or a tensor of numbers in [0, 1].

    Returns:
        One vector per number.

    Raises:
        ValueError: If a time lies outside [0, 1].
    """
    asked = torch.as_tensor(t, dtype=torch.float64, device=points.device)
    if not bool(((asked >= 0) & (asked <= 1)).all()):
        raise ValueError(f"t must lie in [0, 1], got {t!r}")
    knots = _arc_lengths(points)
    times = knots / knots[-1]
    i = torch.searchsorted(times, asked, right=True).clamp(1, len(times) - 1)
    gap = times[i] - times[i - 1]
    part = torch.where(gap > 0, (asked - times[i - 1]) / gap.clamp_min(1e-300), 0.0)
    return torch.lerp(points[i - 1], points[i], part.to(points.dtype)[..., None])


def _check_end(land: Landscape, end: Tensor, name: str) -> Tensor:
    try:
        return check_theta(end, land.dim, land.dtype, land.device, single=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"end {name}: {error}") from None


def check_ends(
    land: Landscape, a: Tensor, b: Tensor
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Refuse two ends between which there is no path.

    Returns:
        Both, detached.

    Raises:
        TypeError: If one is no tensor of the landscape's dtype.
        ValueError: If a shape or device is wrong, a value is NaN, or the ends coincide.
    """
    a, b = _check_end(land, a, "a"), _check_end(land, b, "b")
    for name, end in (("a", a), ("b", b)):
        bad = int((~torch.isfinite(end)).sum())
        if bad:
            raise ValueError(f"end {name} holds {bad} NaN or infinite values of {land.dim}")
    if torch.equal(a, b):
        raise ValueError("both ends are the same vector, so there is nothing to connect")
    return a, b


def measure(
    land: Landscape,
    points: Float[Tensor, "points dim"],
    *,
    tolerance: float | None = None,
    max_samples: int = 200,
    initial: int | None = None,
    curvature: float | None = None,
    bounds: Bounds = "auto",
    level: float | None = None,
    method: str = "given path",
    converged: bool = True,
    note: str = "the path was given, not searched for",
    seed: int | None = None,
    spent: Cost | None = None,
) -> Path:
    """Measure how high a polyline climbs, and return it as a `Path`.

    The loss is that of `for_evaluation(land)`: networks with BatchNorm are compared with
    statistics re-estimated at every point.

    Args:
        land: The landscape.
        points: The corners, `(K, dim)`.
        tolerance: See `bracket_maximum`.
        max_samples: See `bracket_maximum`.
        initial: See `bracket_maximum`.
        curvature: See `bracket_maximum`.
        bounds: See `bracket_maximum`.
        level: See `bracket_maximum`.
        method: What the result calls the path.
        converged: What the result says of the search.
        note: The same in words.
        seed: The seed of the search.
        spent: What the search took, added to the cost.

    Returns:
        The path.

    Raises:
        ValueError: If there are fewer than two points, or one is of the wrong size.
        NoEnclosure: If `bounds` is ``"certified"`` and there is no proof.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> bowl = FunctionLandscape(lambda x: (x**2).sum(), dim=2)
        >>> corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> path = measure(bowl, corners)
        >>> round(path.length, 6), round(path.normalised_length, 6), path.base
        (2.828427, 1.414214, 1.0)
    """
    view = for_evaluation(land)
    before = view.cost
    points = check_theta(points, land.dim, land.dtype, land.device)
    profile = bracket_maximum(
        view,
        points,
        tolerance=tolerance,
        max_samples=max_samples,
        initial=initial,
        curvature=curvature,
        bounds=bounds,
        level=level,
    )
    kept = _corner_losses(view, points, profile)
    cost = view.cost - before
    return Path(points, kept, profile, method, converged, note, cost + (spent or Cost()), seed)


def _corner_losses(view: Landscape, points: Tensor, profile: Profile) -> Tensor:
    """Read the corners' losses off the samples, which hold every corner."""
    steps = torch.linalg.vector_norm((points[1:] - points[:-1]).double(), dim=1).cpu()
    knots = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    times = knots / knots[-1]
    nearest = (profile.times[None, :] - times[:, None]).abs().argmin(1)
    return profile.losses[nearest].to(points.device)


def _weaker(one: BoundKind, two: BoundKind) -> BoundKind:
    kinds: tuple[BoundKind, ...] = ("estimated", "certified", "exact")
    return min(one, two, key=kinds.index)


def join(first: Path, second: Path) -> Path:
    """Return the path that goes along `first` and then along `second`.

    Its maximum is the higher of the two, end for end: nothing is evaluated anew. Where the two
    maxima differ in kind, the joined end is worth what the weaker of them is.

    Raises:
        ValueError: If `second` does not start where `first` ends.
    """
    if not torch.equal(first.points[-1], second.points[0]):
        gap = float(torch.linalg.vector_norm(first.points[-1] - second.points[0]))
        raise ValueError(f"the second path starts {gap:.3g} away from where the first one ends")
    total = first.length + second.length
    share = first.length / total
    high = max(first, second, key=lambda path: path.maximum.lower)
    upper = max(first.maximum, second.maximum, key=lambda bound: bound.upper)
    cost = first.cost + second.cost
    maximum = Bound(
        high.maximum.lower,
        upper.upper,
        _weaker(first.maximum.lower_kind, second.maximum.lower_kind),
        _weaker(first.maximum.upper_kind, second.maximum.upper_kind),
        cost,
        "the higher of two paths",
    )
    lost = [path for path in (first, second) if math.isnan(path.maximum.lower)]
    if lost:
        high, maximum = lost[0], lost[0].maximum
    top_time = high.top_time * share if high is first else share + high.top_time * (1 - share)
    profile = Profile(
        torch.cat([first.profile.times * share, share + second.profile.times[1:] * (1 - share)]),
        torch.cat([first.profile.losses, second.profile.losses[1:]]),
        maximum,
        high.top,
        top_time,
    )
    notes = first.note if first.note == second.note else f"{first.note}; then {second.note}"
    return Path(
        torch.cat([first.points, second.points[1:]]),
        torch.cat([first.losses, second.losses[1:]]),
        profile,
        first.method if first.method == second.method else f"{first.method} + {second.method}",
        first.converged and second.converged,
        notes,
        cost,
        first.seed if first.seed is not None else second.seed,
    )
