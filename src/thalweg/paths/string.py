"""The string method: images relax downhill, stay equally spaced, and the highest one climbs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.images import Images, advance, equal_arcs, spacing
from thalweg.paths.line import line
from thalweg.paths.path import Path, check_ends, measure
from thalweg.paths.saddle import Saddle, climb

__all__ = ["Progress", "string"]

Progress = Callable[[float, str], None]
_PATIENCE = 8  # steps between climbs at first; doubled after each that fails


class _Search:
    """A string on its way: relax, climb, pin the pass, relax on."""

    def __init__(
        self,
        land: Landscape,
        start: Path,
        *,
        images: int,
        max_gradients: int,
        tol: float,
        worth: float,
        max_samples: int,
        generator: torch.Generator,
        progress: Progress | None,
    ) -> None:
        self.land, self.tol, self.worth, self.progress = land, tol, worth, progress
        self.max_gradients, self.taken = max_gradients, 0
        self.max_samples, self.spent, self.bracketing = max_samples, Cost(), Cost()
        self._measured: tuple[Tensor, Path] | None = None
        self._place = (0, 0)
        self.saddles: list[Saddle] = []
        self.generator = generator
        times = torch.linspace(0, 1, images, dtype=torch.float64, device=start.points.device)
        x = start.at(times)
        x[0], x[-1] = start.points[0], start.points[-1]
        self.now = self._enter(self._nudge(x, 1e-3), (0, images - 1))
        self.best, self.best_loss = self.now.x, math.inf
        self._remember()

    def _nudge(self, x: Tensor, size: float) -> Tensor:
        """Bend the string at random by `size` of its length, so that no symmetry holds it."""
        t = torch.linspace(0, math.pi, len(x), dtype=torch.float64)
        waves = torch.stack([torch.sin(k * t) for k in (1, 2, 3)], dim=1)
        noise = torch.randn(3, x.shape[1], generator=self.generator, dtype=torch.float64)
        noise /= math.sqrt(x.shape[1])
        length = float(spacing(x).sum())
        bent = x.double() + (size * length * waves @ noise).to(x.device)
        bent[0], bent[-1] = x[0].double(), x[-1].double()
        return bent.to(x.dtype)

    def _enter(self, x: Tensor, pinned: tuple[int, ...]) -> Images:
        before = self.land.cost
        loss, gradient = self.land.value_and_gradient(x)
        self.spent += self.land.cost - before
        space = spacing(x).clamp_min(1e-300)
        change = torch.linalg.vector_norm((gradient[1:] - gradient[:-1]).double(), dim=1)
        largest = float((change / space).nan_to_num(0.0, 0.0, 0.0).max())
        curvature = torch.full_like(loss, largest or 1.0, dtype=torch.float64)
        return Images(x, pinned, loss, gradient, curvature, torch.zeros_like(x).double())

    def _remember(self) -> None:
        top = float(self.now.loss.max())
        if top < self.best_loss or len(self.now.x) != len(self.best):
            self.best, self.best_loss = self.now.x, top

    @property
    def room(self) -> bool:
        """Whether steps and gradients are left."""
        per_step = len(self.now.x) - len(self.now.pinned)
        spent = self.spent.gradients + self.spent.hvps
        return per_step > 0 and spent + per_step <= self.max_gradients

    @property
    def finite(self) -> bool:
        """Whether losses and gradients are numbers at all images."""
        return bool(torch.isfinite(self.now.loss).all() & torch.isfinite(self.now.gradient).all())

    @property
    def rise(self) -> float:
        """How far the highest image stands above the lower end."""
        return float(self.now.loss.max() - torch.minimum(self.now.loss[0], self.now.loss[-1]))

    def relax(self, count: int) -> None:
        """Take up to `count` steps; one that meets a non-finite loss is taken back, shortened."""
        before = self.land.cost
        for _ in range(count):
            spent = self.spent
            if not self.room:
                break
            now = advance(self.land, self.now)
            self.taken += 1
            self.spent = spent + (self.land.cost - before)
            before = self.land.cost
            if bool(torch.isfinite(now.loss).all() & torch.isfinite(now.gradient).all()):
                self.now = now
                self._remember()
            else:
                self.now = replace(
                    self.now,
                    curvature=4 * self.now.curvature,
                    velocity=torch.zeros_like(self.now.velocity),
                )
            if self.progress is not None:
                part = (self.spent.gradients + self.spent.hvps) / self.max_gradients
                high = float(self.now.loss.max())
                self.progress(min(1.0, part), f"string step {self.taken}, highest image {high:.6g}")

    def measure(self) -> Path:
        """Bracket the height of the string as it stands; nothing is measured twice."""
        if self._measured is None or self._measured[0] is not self.now.x:
            self._measured = (self.now.x, self._bracket(self.now.x))
        return self._measured[1]

    def _bracket(self, x: Tensor) -> Path:
        path = measure(
            self.land,
            x,
            tolerance=self.worth,
            max_samples=max(self.max_samples, 4 * len(x)),
            method="string",
        )
        self.bracketing += path.cost
        return path

    def paths(self) -> list[Path]:
        """The strings that may be the lowest found, measured."""
        found = [self.measure()]
        if self.best_loss < float(self.now.loss.max()) - self.worth:
            found.append(self._bracket(self.best))
        return found

    def finished(self) -> bool:
        """Whether the highest point of the string is a pinned image: an end or a pass."""
        top = self.now.top
        high = self.measure().maximum.lower
        return top in self.now.pinned and high <= float(self.now.loss[top]) + self.worth

    def climb(self) -> Saddle:
        """Climb along the string's tangent from the highest image, or between two pinned."""
        x, top = self.now.x, self.now.top
        if top not in self.now.pinned:
            self._place = (top, top + 1)
            theta, tangent = x[top], x[top + 1] - x[top - 1]
        else:
            path = self.measure()
            i = int(torch.searchsorted(path.times, path.top_time).clamp(1, len(x) - 1)) - 1
            theta, tangent = path.top, x[i + 1] - x[i]
            near = [k for k in (i, i + 1) if k not in self.now.pinned]
            near.sort(key=lambda k: float(torch.linalg.vector_norm(x[k] - theta)))
            self._place = (near[0], near[0] + 1) if near else (i + 1, i + 1)
        reach = 2 * float(spacing(x).max())
        found = climb(self.land, theta, tangent, tol=self.tol, radius=reach)
        self.spent += found.cost
        return found

    def pin(self, found: Saddle) -> None:
        """Make a pass a corner of the string, with a foothold on either side.

        It takes the place of the image nearest to where the climb began.
        """
        first, last = self._place
        before = self.land.cost
        step = 0.1 * float(spacing(self.now.x).mean())
        for _ in range(8):
            feet = found.theta + step * torch.stack([-found.direction, found.direction])
            if bool((self.land.loss(feet) < found.loss).all()):
                break
            step /= 2
        self.spent += self.land.cost - before
        x = self.now.x
        new = torch.cat([x[:first], feet[:1], found.theta[None], feet[1:], x[last:]])
        grown = len(new) - len(x)
        pinned = tuple(
            sorted(
                {
                    *(i if i < first else i + grown for i in self.now.pinned),
                    first,
                    first + 1,
                    first + 2,
                }
            )
        )
        self.saddles.append(found)
        self.now = self._enter(equal_arcs(new, pinned), pinned)
        self.best_loss = math.inf
        self._remember()

    def shake(self) -> None:
        """Bend the string at random, away from a critical point of higher index."""
        x, pinned = self._nudge(self.now.x, 1e-2), list(self.now.pinned)
        x[pinned] = self.now.x[pinned]
        self.now = self._enter(x, self.now.pinned)

    def known(self, found: Saddle) -> bool:
        """Whether this pass is pinned already."""
        near = 1e-4 * float(spacing(self.now.x).max())
        return any(
            float(torch.linalg.vector_norm(s.theta - found.theta)) < near for s in self.saddles
        )


def _run(search: _Search, climbing: bool) -> None:
    """Relax and climb by turns until the highest point is an end or a pass."""
    wait, failures = _PATIENCE, 0
    if not search.finite:
        return
    while search.room:
        level = float(search.now.loss.max())
        search.relax(wait)
        change = abs(level - float(search.now.loss.max()))
        settled = change <= search.worth
        if search.now.top in search.now.pinned:
            if not settled:
                continue
            if search.finished():
                return
        if not climbing:
            if settled and wait > _PATIENCE:
                return
            wait = 2 * _PATIENCE
            continue
        if change > 0.2 * search.rise:
            continue
        found = search.climb()
        if found.converged and found.negative == 1 and not search.known(found):
            search.pin(found)
            wait = _PATIENCE
            continue
        failures += 1
        if found.converged and found.negative > 1:
            search.shake()
        if settled and failures > 3:
            return
        wait *= 2


def string(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    *,
    start: Path | None = None,
    images: int = 13,
    max_gradients: int = 2500,
    climbing: bool = True,
    tol: float = 1e-6,
    tolerance: float | None = None,
    max_samples: int = 200,
    seed: Seed = None,
    progress: Progress | None = None,
) -> Path:
    r"""Relax a string of images between `a` and `b`, and climb to the pass between them.

    Each step moves every image by $-\eta_i\,(\nabla L)_\perp$, across the string, with
    momentum that restarts where it runs uphill, then puts the images back at equal arc
    lengths. The step $\eta_i$ follows the curvature that the image has met. By turns the
    highest image climbs to a critical point (`climb`); a pass found is pinned as a corner
    of the path, with a foothold on either side, and the string relaxes on. Images relax on
    `land` itself, heights are those of ``for_evaluation(land)``.

    The result is never higher than `start` (by default the straight line): the lower of
    the two is returned. ``converged`` says whether the highest point is an end or a
    critical point of index 1 as far as products show; a string that is not converged is
    still a path, and its height an upper bound of the barrier.

    Args:
        land: The landscape.
        a: One end, `(dim,)`.
        b: The other end.
        start: A path between the same ends to relax.
        images: Points of the string, the ends among them.
        max_gradients: Largest number of gradients and HVPs that the search may take (a
            climb in progress is finished).
        climbing: Whether to climb; else the string is relaxed until it settles.
        tol: The gradient norm at the pass.
        tolerance: A difference in loss that does not matter: width of the bracket; by
            default 1e-3 of the range of the losses along `start`.
        max_samples: Largest number of evaluations for the bracket.
        seed: Bends the first string by 1e-3 of its length, so that no symmetry holds it.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The path; `points` holds the pass where one was found.

    Raises:
        ValueError: If an end is wrong, `start` joins other ends, or `images` < 3.

    Source: E, Ren and Vanden-Eijnden, J. Chem. Phys. 126 (2007) 164103; tangents:
    Henkelman and Jónsson, J. Chem. Phys. 113 (2000) 9978; climbing: Ren and
    Vanden-Eijnden, J. Chem. Phys. 138 (2013) 134105.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> net = FunctionLandscape(
        ...     lambda x: 0.5 * (x[0] * x[1] - 1)**2 + 0.1 * (x**2).sum(), dim=2)
        >>> end = torch.full((2,), 0.8**0.5, dtype=torch.float64)
        >>> path = string(net, end, -end, seed=0)
        >>> path.converged, round(path.height.lower, 6)     # (1 - 0.2)^2 / 2
        (True, 0.32)
    """
    a, b = check_ends(land, a, b)
    if images < 3:
        raise ValueError(f"images must be at least 3 (two ends and one between), got {images}")
    generator, recorded = make_generator(seed)
    start = start or line(land, a, b, tolerance=tolerance, max_samples=max_samples)
    if not (torch.equal(start.points[0], a) and torch.equal(start.points[-1], b)):
        raise ValueError("start joins other ends than a and b")
    search = _Search(
        land,
        start,
        images=images,
        max_gradients=max_gradients,
        tol=tol,
        worth=start.worth(tolerance),
        max_samples=max_samples,
        generator=generator,
        progress=progress,
    )
    _run(search, climbing)
    return _lowest(search, start, recorded)


def _lowest(search: _Search, start: Path, seed: int) -> Path:
    """Return the lowest path found, or `start` if no string came lower.

    Between paths that differ by rounding, one through a pass is preferred.
    """
    found = min(search.paths(), key=_upper)
    rounding = (
        64
        * torch.finfo(start.points.dtype).eps
        * max(abs(start.maximum.upper), abs(start.maximum.lower))
    )
    passes, note = _judge(search, found)
    if _upper(found) > _upper(start) and not (
        passes and found.maximum.lower <= start.maximum.lower + rounding
    ):
        found = start
        passes, note = _judge(search, start)
        note = f"no string came below the path that it started from; {note}"
    return replace(
        found,
        method="string",
        converged=passes,
        note=note,
        seed=seed,
        cost=start.cost + search.spent + search.bracketing,
    )


def _upper(path: Path) -> float:
    return math.inf if math.isnan(path.maximum.upper) else path.maximum.upper


def _judge(search: _Search, path: Path) -> tuple[bool, str]:
    """Say whether the highest point is an end or a pass, or what to try."""
    worth = search.worth
    if path.maximum.lower <= path.base + worth:
        return True, f"no point of it is more than {worth:.3g} higher than its ends"
    for found in search.saddles:
        on_path = bool((path.points == found.theta).all(1).any())
        if on_path and path.maximum.lower <= found.loss + worth:
            return True, (
                f"its highest point is a critical point at loss {found.loss:.9g} with gradient "
                f"norm {found.gradient_norm:.2g} and {found.negative} negative curvature"
            )
    if not search.finite:
        return False, "the loss is not finite at an image of the string, which could not relax"
    spent = "" if search.room else f" and the budget is spent after {search.taken} steps"
    return False, (
        f"its highest point is no critical point yet{spent}; it is a path all the same, and its "
        "height an upper bound of the barrier. Raise max_gradients to go lower"
    )
