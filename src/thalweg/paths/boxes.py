r"""Branch and bound: a proven lower bound of the barrier in up to three dimensions."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.function import FunctionLandscape
from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.paths.intervals import Enclosure, NotEnclosableError
from thalweg.paths.path import Floor, check_ends

__all__ = ["MOST_DIMENSIONS", "BoxFloor", "Region", "box_floor"]

MOST_DIMENSIONS = 3
_FINEST = 2**40  # parts into which a side of the region can be cut
_MARGINS = (2.0, 6.0)  # of regions tried unasked, until the lowest route stays inside
_ROUTES = 32  # routes examined in one round
_FIRST = {1: 16, 2: 64, 3: 64}  # boxes to begin with

Lower = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Key = tuple[tuple[int, ...], tuple[int, ...]]  # corner and size, in finest parts


@dataclass(frozen=True, slots=True)
class Region:
    """A box in which to look, and what is known of the loss outside it.

    Args:
        low: Its lower corner.
        high: Its upper corner.
        outside: A loss that is known to be exceeded, or met, everywhere outside. The default
            claims nothing: a path that leaves the region may then do what it likes outside,
            but it still has to climb out and in again.

    Raises:
        ValueError: If the corners are not two finite points, the one below the other.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    outside: float = -math.inf

    def __post_init__(self) -> None:
        """Refuse an empty box."""
        pairs = list(zip(self.low, self.high, strict=False))
        sound = all(math.isfinite(p) and math.isfinite(q) and p < q for p, q in pairs)
        if len(self.low) != len(self.high) or not pairs or not sound:
            raise ValueError(
                f"a region needs two finite corners, low below high, got {self.low} and {self.high}"
            )

    @classmethod
    def around(
        cls, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"], margin: float = 1.0
    ) -> Region:
        """Return the box around two points, wider by `margin` times their distance all round."""
        low, high = torch.minimum(a, b).double(), torch.maximum(a, b).double()
        more = margin * torch.maximum(high - low, 0.5 * (high - low).max())
        return cls(tuple((low - more).tolist()), tuple((high + more).tolist()))


@dataclass(frozen=True, slots=True)
class BoxFloor:
    """A loss that every path reaches, proven by boxes, and how far the proof went.

    Attributes:
        floor: The proven loss.
        reached: The highest loss met at the centres and faces of the boxes along the lowest
            route; no proof, but the best floor lies below it if the route is one.
        boxes: How many boxes the region was cut into.
        enclosures: How many boxes were bounded on the way.
        converged: Whether the floor is within the tolerance of `reached`, or above the level.
        note: Why the search ended, in a sentence.
        region: Where it looked.
        cost: The losses evaluated; enclosures are not among them.
    """

    floor: Floor
    reached: float
    boxes: int
    enclosures: int
    converged: bool
    note: str
    region: Region
    cost: Cost

    def __str__(self) -> str:
        """Return the floor, what it could be at most, and why the search ended."""
        return (
            f"{self.floor}\n  lowest route seen {self.reached:.8g}, {self.boxes} boxes "
            f"({self.enclosures} enclosures): {self.note}\n  {self.cost}"
        )

    def __rich__(self) -> str:
        """Return the lines, the first in bold."""
        first, _, rest = str(self).replace("[", "\\[").partition("\n")
        return f"[bold]{first}[/bold]\n{rest}"

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""

        def word(x: float) -> float | str:
            return x if math.isfinite(x) else repr(x)

        return {
            "type": "box_floor",
            "floor": word(self.floor.loss),
            "kind": self.floor.kind,
            "reason": self.floor.reason,
            "reached": word(self.reached),
            "boxes": self.boxes,
            "enclosures": self.enclosures,
            "converged": self.converged,
            "note": self.note,
            "region": [list(self.region.low), list(self.region.high), word(self.region.outside)],
            "cost": self.cost.to_json(),
        }


class _Boxes:
    """A region cut into boxes, each with a lower bound of the loss and its neighbours."""

    def __init__(self, view: Landscape, lower: Lower, region: Region, ends: Tensor) -> None:
        self.view, self.lower_of, self.region, self.dim = view, lower, region, len(region.low)
        self.ends, self.dtype = ends, ends.dtype
        whole = ((0,) * self.dim, (_FINEST,) * self.dim)
        self.bound: dict[Key, float] = {}
        self.centre: dict[Key, float] = {}
        self.axis: dict[Key, int] = {}
        self.near: dict[Key, set[Key]] = {whole: set()}
        self.edge: set[Key] = {whole}
        self.holding: tuple[set[Key], set[Key]] = ({whole}, {whole})
        self.enclosures = 0
        self._enclose([whole], [-math.inf])
        while len(self.near) < _FIRST[self.dim]:
            self.axis = {key: _longest(key) for key in self.near}
            self.split(list(self.near))

    def corners(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Return the boxes' corners; neighbours share theirs bit for bit."""
        ends = torch.tensor(
            [[[c + s * k for c, s in zip(*key, strict=True)] for k in (0, 1)] for key in keys],
            dtype=torch.float64,
        )
        low = torch.tensor(self.region.low, dtype=torch.float64)
        high = torch.tensor(self.region.high, dtype=torch.float64)
        part = ends / _FINEST
        places = (low * (1 - part) + high * part).to(self.dtype)
        return places[:, 0], places[:, 1]

    def _enclose(self, keys: list[Key], inherited: list[float]) -> None:
        low, high = self.corners(keys)
        found, reach = self.lower_of(low, high)
        self.enclosures += len(keys)
        sized = torch.isfinite(reach).all(1)
        middles = self.losses((low + high) / 2)
        for i, key in enumerate(keys):
            bound = float(found[i])
            self.bound[key] = max(inherited[i], -math.inf if math.isnan(bound) else bound)
            self.centre[key] = middles[i]
            self.axis[key] = int(reach[i].argmax()) if bool(sized[i]) else _longest(key)

    def losses(self, points: Tensor) -> list[float]:
        """Return the loss at points; NaN counts as infinite."""
        found = self.view.loss(points)
        return torch.where(torch.isnan(found), math.inf, found).tolist()

    def split(self, keys: list[Key]) -> None:
        """Halve boxes along the axis that changes the loss most there."""
        made: list[Key] = []
        inherited: list[float] = []
        for key in keys:
            corner, size = key
            axis = self.axis[key]
            if 4 * size[axis] < size[_longest(key)] or size[axis] < 2:
                axis = _longest(key)
            half = tuple(s // 2 if i == axis else s for i, s in enumerate(size))
            other = tuple(c + half[i] if i == axis else c for i, c in enumerate(corner))
            children: tuple[Key, Key] = ((corner, half), (other, half))
            neighbours = self.near.pop(key)
            for child in children:
                self.near[child] = {one for one in neighbours if _touch(child, one)}
                for one in self.near[child]:
                    self.near[one].add(child)
            for one in neighbours:
                self.near[one].discard(key)
            self.near[children[0]].add(children[1])
            self.near[children[1]].add(children[0])
            made += children
            inherited += [self.bound.pop(key)] * 2
            del self.axis[key], self.centre[key]
            self._inherit(key, children)
        self._enclose(made, inherited)

    def _inherit(self, key: Key, children: tuple[Key, Key]) -> None:
        """Find which halves touch the boundary, and which hold the ends (both, on a face)."""
        if key in self.edge:
            self.edge.discard(key)
            self.edge |= {
                child
                for child in children
                if any(c == 0 or c + s == _FINEST for c, s in zip(*child, strict=True))
            }
        for held, end in zip(self.holding, self.ends, strict=True):
            if key in held:
                held.discard(key)
                low, high = self.corners(list(children))
                inside = ((low <= end) & (end <= high)).all(1).tolist()
                held |= {child for child, within in zip(children, inside, strict=True) if within}

    def route(self, shut: set[Key]) -> tuple[list[Key | None], float]:
        """Return the boxes from one end to the other whose highest bound is lowest.

        None stands for the outside, which every box at the boundary touches. Without a route
        the list is empty and the bound infinite.
        """
        starts, goals = self.holding
        heap = [(self.bound[key], i, key) for i, key in enumerate(sorted(starts - shut))]
        queue: list[tuple[float, int, Key | None]] = list(heap)
        heapq.heapify(queue)
        before: dict[Key | None, Key | str | None] = {key: "start" for _, _, key in heap}
        count = len(queue)
        while queue:
            height, _, key = heapq.heappop(queue)
            if key in goals:
                return _unwind(before, key), height
            for one in self.edge if key is None else self.near[key]:
                if one not in before and one not in shut:
                    before[one] = key
                    count += 1
                    heapq.heappush(queue, (max(height, self.bound[one]), count, one))
            if key is not None and None not in before and key in self.edge:
                before[None] = key
                count += 1
                heapq.heappush(queue, (max(height, self.region.outside), count, None))
        return [], math.inf

    def heights(self, route: list[Key | None], faces: bool) -> list[tuple[float, set[Key]]]:
        """Return losses along a route, each with the boxes that it was met in.

        At the centres of the boxes, and with `faces` at the middles of those between them.
        """
        keys = [key for key in route if key is not None]
        found = [(self.centre[key], {key}) for key in keys]
        pairs = [(p, q) for p, q in pairwise(route) if p is not None and q is not None]
        if faces and pairs:
            low, high = self.corners([key for pair in pairs for key in pair])
            shared = (low.view(-1, 2, self.dim).amax(1) + high.view(-1, 2, self.dim).amin(1)) / 2
            found += [(x, {*pair}) for x, pair in zip(self.losses(shared), pairs, strict=True)]
        return found


def _unwind(before: dict[Key | None, Key | str | None], key: Key | None) -> list[Key | None]:
    route: list[Key | None] = [key]
    while (last := before[route[-1]]) != "start":
        assert not isinstance(last, str)
        route.append(last)
    return route[::-1]


def _longest(key: Key) -> int:
    return max(range(len(key[1])), key=lambda i: key[1][i])


def _touch(one: Key, two: Key) -> bool:
    """Whether two boxes share a face, or part of one."""
    meets = 0
    for c, s, d, t in zip(one[0], one[1], two[0], two[1], strict=True):
        if c + s < d or d + t < c:
            return False
        meets += c + s == d or d + t == c
    return meets == 1


def _lower(land: Landscape, lipschitz: float | None, bend: float | None) -> Lower:
    """Return the lower bound of the loss over boxes that is to be used."""
    for name, constant in (("lipschitz", lipschitz), ("gradient_lipschitz", bend)):
        if constant is not None and not (constant >= 0 and math.isfinite(constant)):
            raise ValueError(f"{name} must be a finite number that is not negative: {constant!r}")
    if lipschitz is None and bend is None:
        if not isinstance(land, FunctionLandscape):
            raise NotEnclosableError(
                f"a {type(land).__name__} has no function to enclose; give lipschitz or "
                "gradient_lipschitz"
            )
        return Enclosure(land.f, land.dim, land.dtype).lower
    eps = torch.finfo(land.dtype).eps

    def lower(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        centre, half = (low + high) / 2, (high - low) / 2 * (1 + 8 * eps)
        radius = torch.linalg.vector_norm(half, dim=1)
        found = []
        if bend is not None:
            loss, gradient = land.value_and_gradient(centre)
            found.append(loss - (gradient.abs() * half).sum(1) - bend * radius**2 / 2)
        else:
            loss = land.loss(centre)
        if lipschitz is not None:
            found.append(loss - lipschitz * radius)
        best = torch.stack(found).amax(0)
        return best - 64 * eps * (loss.abs() + (loss - best).abs()), high - low

    return lower


class _Search:
    """Refine the lowest route until it is blocked, or seen to be passable."""

    def __init__(self, boxes: _Boxes) -> None:
        self.boxes = boxes
        self.base = max(boxes.losses(boxes.ends))
        self.floor, self.reached, self.leaves = -math.inf, math.inf, False

    def round(self, tolerance: float | None, level: float | None) -> tuple[str, bool]:
        """Examine the lowest routes and split what may block them.

        Returns:
            Why to stop, empty to go on; and whether that is an answer.
        """
        boxes, shut, chosen, worth = self.boxes, set[Key](), set[Key](), 0.0
        for turn in range(_ROUTES):
            route, low = boxes.route(shut)
            if not route:
                break
            heights = boxes.heights(route, faces=not turn)
            high = max(self.base, *(loss for loss, _ in heights))
            if not turn:
                worth = 1e-3 * max(0.0, high - self.base) if tolerance is None else tolerance
                self.floor = max(self.floor, low)
                self.reached, self.leaves = high, None in route
                stop, answer = self._done(high, worth, level)
                if stop:
                    return stop, answer
            doubtful = {
                key
                for loss, met in heights
                if loss > low + worth
                for key in met
                if min(key[1]) >= 2
            }
            doubtful -= chosen
            if not doubtful:
                break
            chosen |= doubtful
            shut |= doubtful
        if not chosen:
            return "no box can be cut further", False
        boxes.split(list(chosen))
        return "", False

    def run(self, tolerance: float | None, level: float | None, most: int) -> tuple[str, bool]:
        """Refine until something is decided or there are `most` boxes."""
        while True:
            stop, answer = self.round(tolerance, level)
            if stop:
                return stop, answer
            if (made := len(self.boxes.near)) >= most:
                return f"{made} boxes are made, more would raise the floor", False

    def result(self, cost: Cost, stop: str, answer: bool, given: bool) -> BoxFloor:
        """Put together what is proven."""
        made, how = len(self.boxes.near), "the constant given" if given else "intervals"
        reason = f"{made} boxes with lower bounds by {how} block every way below it"
        if self.floor <= self.base:
            reason = "every path holds its ends"
        floor = Floor(max(self.floor, self.base), "certified", reason)
        work, place = self.boxes.enclosures, self.boxes.region
        return BoxFloor(floor, self.reached, made, work, answer, stop, place, cost)

    def _done(self, high: float, worth: float, level: float | None) -> tuple[str, bool]:
        if level is not None and self.floor > level:
            return f"every way at or under the level {level:.8g} is blocked", True
        if level is not None and high <= level and not self.leaves:
            return f"a route was seen at {high:.8g}, not above the level {level:.8g}", False
        if high <= self.floor + worth or self.floor >= high:
            if self.leaves and self.boxes.region.outside <= self.floor:
                return (
                    "the lowest route leaves the region, beyond which nothing is known; a larger "
                    "region, or a loss known to be exceeded outside, may prove more"
                ), False
            return f"the floor is within {worth:.3g} of the lowest route seen", True
        return "", False


def box_floor(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    *,
    region: Region | None = None,
    level: float | None = None,
    lipschitz: float | None = None,
    gradient_lipschitz: float | None = None,
    tolerance: float | None = None,
    max_boxes: int = 20_000,
) -> BoxFloor:
    r"""Prove a loss that every path between `a` and `b` reaches, by branch and bound.

    The region is cut into boxes with a rigorous lower bound of the loss over each. A path
    from $a$ to $b$ visits boxes that share faces, hence

    $$\min_{\gamma} \max_t L(\gamma(t)) \ \ge\ \min_{\text{routes}}\ \max_{\text{boxes } X}\
    \underline{L}(X),$$

    and the right-hand side is a shortest route in the sense of its highest box. The boxes on
    the lowest route over which the loss is seen to be higher are halved until the route's own
    points are no higher than the bound. A route may leave the region: it then passes through
    the outside, at the loss known there.

    The bounds come from interval arithmetic through the function itself (`Enclosure`); or,
    on any landscape, from a constant that you vouch for: `lipschitz`, with
    $L(x) \ge L(c) - \ell\,|x-c|$, or `gradient_lipschitz`, with
    $L(x) \ge L(c) + \nabla L(c)^\top (x-c) - \tfrac{m}{2}\,|x-c|^2$. The floor is
    ``certified`` if the constant is right.

    In three dimensions a hundredth of the height took 1,200 to 1,700 boxes and 1 to 2 seconds
    of one core for double wells, bent or turned, and for the camelback with a third coordinate;
    a thousandth took 2,200 boxes and 3 seconds for the latter.

    Args:
        land: A landscape of at most three dimensions.
        a: One end, `(dim,)`.
        b: The other.
        region: Where to look; by default a box around both ends, five times as wide, and
            a wider one if the lowest route leaves it.
        level: Stop as soon as the floor is above this level, or a route is seen at or under it.
        lipschitz: A Lipschitz constant of the loss.
        gradient_lipschitz: One of its gradient: the largest Hessian eigenvalue in absolute
            value, anywhere in the region.
        tolerance: How near the floor is to come to the lowest route seen; by default 1e-3 of
            that route's height above the higher end.
        max_boxes: Stop when the region is cut into this many boxes.

    Returns:
        The floor, and how far the proof went; never lower than the higher end.

    Raises:
        NotEnclosableError: If the function uses an operation without interval form.
        TypeError: If the region is no `Region`.
        ValueError: If an end is wrong or lies outside the region, the dimension is above
            three, or an option is out of range.

    References:
        R. E. Moore, R. B. Kearfott and M. J. Cloud, Introduction to Interval Analysis (2009).

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> well = FunctionLandscape(lambda x: (x[0]**2 - 1)**2 + x[1]**2, dim=2)
        >>> a, b = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        >>> proof = box_floor(well, a, b)
        >>> proof.converged, 0.999 <= proof.floor.loss <= 1.0, proof.floor.kind
        (True, True, 'certified')
    """
    a, b = check_ends(land, a, b)
    if land.dim > MOST_DIMENSIONS:
        raise ValueError(
            f"boxes work in at most {MOST_DIMENSIONS} dimensions, this landscape has {land.dim}; "
            "in more, a floor needs a separating set (Separator)"
        )
    if max_boxes < 1:
        raise ValueError(f"max_boxes must be at least 1, got {max_boxes}")
    view = for_evaluation(land)
    before = view.cost
    lower = _lower(view, lipschitz, gradient_lipschitz)
    ends = torch.stack([a, b])
    sizes = (1.0,) if region is not None else _MARGINS
    for size in sizes:
        place = region or Region.around(a, b, size)
        _check_inside(place, a, b)
        search = _Search(_Boxes(view, lower, place, ends))
        stop, answer = search.run(tolerance, level, max_boxes)
        if answer or not search.leaves:
            break
    given = lipschitz is not None or gradient_lipschitz is not None
    return search.result(view.cost - before, stop, answer, given)


def _check_inside(region: Region, a: Tensor, b: Tensor) -> None:
    if not isinstance(region, Region):
        raise TypeError(f"region must be a Region(low, high), got {region!r}")
    if len(region.low) != len(a):
        raise ValueError(f"the region has {len(region.low)} dimensions, the ends have {len(a)}")
    low = torch.tensor(region.low, dtype=a.dtype, device=a.device)
    high = torch.tensor(region.high, dtype=a.dtype, device=a.device)
    for name, end in (("a", a), ("b", b)):
        if not bool(((low <= end) & (end <= high)).all()):
            raise ValueError(f"end {name} at {end.tolist()} lies outside the region {region}")
