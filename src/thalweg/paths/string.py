"""The string method: images relax downhill, stay equally spaced, and the highest one climbs."""

from __future__ import annotations

import pathlib
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths import resume
from thalweg.paths.path import Path
from thalweg.paths.relaxation import PATIENCE, Options, Relaxation, begin, keep, lowest
from thalweg.paths.resume import Progress

__all__ = ["Progress", "string"]


class _String(Relaxation):
    """A string on its way."""

    name = "string"

    def step(self) -> None:
        """Take one step; now and then, look whether the string is low enough."""
        super().step()
        if self.taken % PATIENCE == 0 and self.low_enough():
            self.done = True

    def decide(self) -> None:
        """Climb when a round hardly lowered the highest image; stop at an end or a pass."""
        change = abs(self.level - float(self.now.loss.max()))
        settled = change <= self.options.worth
        if self.now.top in self.now.pinned:
            if not settled:
                return
            if self.at_a_pass():
                self.done = True
                return
        if not self.options.climbing:
            self.done = settled and self.wait > PATIENCE
            self.wait = 2 * PATIENCE
            return
        if change > 0.2 * self.rise or self.try_to_climb():
            return
        self.done = settled and self.failures > 3
        self.wait *= 2


def string(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    *,
    start: Path | None = None,
    level: float | None = None,
    images: int = 13,
    max_gradients: int = 2500,
    climbing: bool = True,
    tol: float = 1e-6,
    tolerance: float | None = None,
    max_samples: int = 200,
    batch_size: int | None = None,
    seed: Seed = None,
    checkpoint: str | pathlib.Path | None = None,
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
    critical point of index 1 as far as products show, or the path is under `level`; a
    string that is not converged is still a path, and its height an upper bound of the
    barrier.

    Args:
        land: The landscape.
        a: One end, `(dim,)`.
        b: The other end.
        start: A path between the same ends to relax.
        level: A loss that is low enough: the search ends as soon as the string, measured,
            stays at or under it (every eighth step is followed by a look).
        images: Points of the string, the ends among them.
        max_gradients: Largest number of gradients and HVPs that the search may take (a
            climb in progress is finished); a gradient on a share of the data counts as
            that share. The bracket comes on top (`max_samples`).
        climbing: Whether to climb; else the string is relaxed until it settles.
        tol: The gradient norm at the pass.
        tolerance: A difference in loss that does not matter: width of the bracket; by
            default 1e-3 of the range of the losses along `start`.
        max_samples: Largest number of evaluations for the bracket.
        batch_size: Examples per step, one minibatch for all images; the steps shrink to
            nothing over four fifths of the budget, and the rest of it, climbs among it,
            uses all the data. By default all the data from the start.
        seed: Draws the minibatches, and bends the first string by 1e-3 of its length, so
            that no symmetry holds it.
        checkpoint: A file that keeps the search's state: run again after an interrupt, it
            goes on and ends at the same result bit for bit.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The path; `points` holds the pass where one was found.

    Raises:
        ValueError: If an end is wrong, `start` joins other ends, `images` < 3, or
            `checkpoint` holds another search.

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
    start = begin(
        land,
        a,
        b,
        start=start,
        tolerance=tolerance,
        max_samples=max_samples,
        max_gradients=max_gradients,
        images=images,
    )
    options = Options(
        images,
        max_gradients,
        climbing,
        tol,
        start.worth(tolerance),
        max_samples,
        batch_size,
        level=level,
    )
    generator, recorded = make_generator(seed)
    if level is not None and start.maximum.upper <= level:
        said = f"the path that it starts from stays at or under the level {level:.8g} asked for"
        return replace(start, method="string", converged=True, note=said, seed=recorded)
    kept = keep(checkpoint, "string", start, options, seed, recorded, "")
    search = _String(land, start, options, generator, recorded)
    resume.run(search, kept, progress)
    return lowest(search, start)
