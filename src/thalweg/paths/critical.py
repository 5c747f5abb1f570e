"""Whether a point is critical, of which index, or only one where the gradient is flat."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Bound, Cost, Verdict
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.paths.index import Spectrum, dense_spectrum, lowest_spectrum
from thalweg.paths.saddle import Model, expand

__all__ = ["Certificate", "critical_point"]

_DENSE = 64
_KRYLOV = 60
_CONTRACTION = 0.2  # Newton-Kantorovich allows 1/4: h = beta eta K = 2 |g(x + p)| / |g| <= 1/2
_SHIFT = 1e-2


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""What is known about a point that may be critical.

    With gradient $g$, Hessian $H$ and the Newton step $p$ (shortest least-squares solution
    of $H p = -g$):

    Attributes:
        theta: The point, `(dim,)`.
        loss: The loss there.
        gradient_norm: $|g|$.
        rounding: The gradient norm that rounding alone may leave at a critical point.
        verdict: Yes: a critical point of the index. No: gradient-flat, or too far from a
            critical point for `tol`. Unresolved: degenerate, or too little is known.
        index: How many eigenvalues lie below -`flat`.
        zero: How many lie within ±`flat`.
        flat: The tolerance for zero modes.
        values: The lowest eigenvalues of $H$, `(k,)`; all of them where `dim` <= 64.
        intervals: `(k, 2)`; each row holds an eigenvalue.
        residuals: The residuals of the eigenpairs, `(k,)`.
        directions: Their vectors as rows, `(k, dim)`: the first are the ways down.
        flatness: $r = |H p + g| / (|H|_F |p| + |g|)$: 0 where the Newton step would end at
            a critical point, 1 where it cannot change the gradient. NaN where the gradient
            is zero up to rounding.
        distance: $|p|$, an estimate of the distance to the critical point; infinite where
            no step solves $H p = -g$ to a tenth.
        contraction: $|\nabla L(\theta + p)| / |g|$. NaN where the gradient is zero.
        frobenius: $|H|_F$ (exact where `dim` <= 64, else estimated).
        value: The loss of the critical point, with $\tfrac12 g \cdot p$ (half the Newton
            decrement, which no change of coordinates alters) and what is left of the
            gradient after the step in its width; None where there is none.
        cost: What it took.
        seed: The seed that reproduces it.
        method: How the eigenvalues were found.
    """

    theta: Float[Tensor, " dim"]
    loss: float
    gradient_norm: float
    rounding: float
    verdict: Verdict
    index: Bound
    zero: Bound
    flat: float
    values: Float[Tensor, " k"]
    intervals: Float[Tensor, "k 2"]
    residuals: Float[Tensor, " k"]
    directions: Float[Tensor, "k dim"]
    flatness: float
    distance: float
    contraction: float
    frobenius: float
    value: Bound | None
    cost: Cost
    seed: int
    method: str

    def __str__(self) -> str:
        """Return the verdict, and the numbers it stands on."""
        lowest = ", ".join(f"{x:.4g}" for x in self.values[:5].tolist())
        lines = [
            str(self.verdict),
            f"  loss {self.loss:.9g}, gradient norm {self.gradient_norm:.2g} (rounding "
            f"{self.rounding:.1g}), a critical point {_far(self.distance)}",
            f"  index {_words(self.index)}, zero modes {_words(self.zero)} (within "
            f"±{self.flat:.2g}), lowest eigenvalues {lowest} ({self.method})",
        ]
        if not math.isnan(self.flatness):  # rounding alone leaves no gradient to judge by
            lines.append(
                f"  gradient-flatness r = {self.flatness:.2g}; a Newton step leaves "
                f"{self.contraction:.2g} of the gradient"
            )
        if self.value is not None:
            lines.append(f"  loss of the critical point {self.value}")
        return "\n".join([*lines, f"  {self.cost}"])

    def __rich__(self) -> str:
        """Return the same with the verdict in colour."""
        rest = str(self).replace("[", "\\[").partition("\n")[2]
        return f"{self.verdict.__rich__()}\n{rest}"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of everything but the vectors."""
        return {
            "type": "certificate",
            "loss": _plain(self.loss),
            "gradient_norm": _plain(self.gradient_norm),
            "rounding": _plain(self.rounding),
            "verdict": self.verdict.to_json(),
            "index": self.index.to_json(),
            "zero": self.zero.to_json(),
            "flat": _plain(self.flat),
            "values": self.values.tolist(),
            "intervals": self.intervals.tolist(),
            "residuals": self.residuals.tolist(),
            "flatness": _plain(self.flatness),
            "distance": _plain(self.distance),
            "contraction": _plain(self.contraction),
            "frobenius": _plain(self.frobenius),
            "value": None if self.value is None else self.value.to_json(),
            "cost": self.cost.to_json(),
            "seed": self.seed,
            "method": self.method,
        }


def _plain(number: float) -> float | str:
    return number if math.isfinite(number) else repr(number)


def _far(distance: float) -> str:
    if distance == 0:
        return "here"
    return f"about {distance:.2g} away" if math.isfinite(distance) else "not in sight"


def _words(count: Bound) -> str:
    low, high = round(count.lower), round(count.upper)
    return f"{low}" if low == high else f"between {low} and {high}"


def critical_point(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    *,
    tol: float | None = None,
    flat_tolerance: float | None = None,
    flatness_limit: float = 0.9,
    max_products: int = 600,
    seed: Seed = None,
) -> Certificate:
    r"""Say whether `theta` is a critical point, of which index, or merely gradient-flat.

    A search that minimises $|\nabla L|$ also ends where $g \ne 0$ lies in the kernel of
    $H$, where no step changes the gradient: such points are not critical (Frye et al.).
    The Newton step $p$ tells: $r = |Hp + g| / (|H|_F |p| + |g|)$ is near 1 there. The answer
    is yes where three things hold:

    1. the gradient is zero up to rounding, or a Newton step shrinks it to a fifth or less
       (Kantorovich's condition, along the step, for a critical point within $2|p|$) and
       changes the loss by no more than `tol`;
    2. the index is resolved: the lowest eigenvalues are found with their residuals until
       the first positive one (all of them where `dim` <= 64);
    3. zero modes, if any, lead along further critical points, as a symmetry's do. A
       critical point with a zero mode that does not is degenerate, as the monkey saddle is.

    Args:
        land: The landscape.
        theta: The point, `(dim,)`.
        tol: The largest error of the loss, in the loss's units; by default
            1e-6 max(1, |loss|).
        flat_tolerance: Eigenvalues below this in magnitude are zero modes; by default 1e-6
            of the largest (1e-5 in float32).
        flatness_limit: The $r$ above which a point is called gradient-flat.
        max_products: The budget of HVPs for the lowest eigenvalues where `dim` > 64.
        seed: Draws the starts of the eigensolver and the zero modes that are tested.

    Returns:
        The certificate.

    Raises:
        ValueError: If `theta` is not finite or not of this landscape, or a tolerance is
            negative.

    Source: C. G. Frye et al., Neural Computation 33 (2021) 1469 (gradient-flat points);
    L. V. Kantorovich, Uspekhi Mat. Nauk 3 (1948) 89.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> saddle = FunctionLandscape(lambda x: 1 + x[0]**2 - 2 * x[1]**2, dim=2)
        >>> origin = torch.zeros(2, dtype=torch.float64)
        >>> print(critical_point(saddle, origin, seed=0).verdict)
        yes: a critical point of index 1
        >>> flat = FunctionLandscape(lambda x: x[0] + x[1]**2, dim=2)
        >>> critical_point(flat, origin, seed=0).verdict.answer
        'no'
    """
    if min(tol or 0, flat_tolerance or 0) < 0 or not 0 < flatness_limit <= 1:
        raise ValueError(
            f"tol={tol} and flat_tolerance={flat_tolerance} must not be negative, and "
            f"flatness_limit={flatness_limit} must lie in (0, 1]"
        )
    before, (generator, number) = land.cost, make_generator(seed)
    with land.at(theta) as point:
        loss, gradient = float(point.loss), point.gradient.double()
        norm = float(torch.linalg.vector_norm(gradient))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return _blind(theta, loss, norm, land.cost - before, number)
        model = expand(point, [gradient], land.dim if land.dim <= _DENSE else _KRYLOV)
    eps = torch.finfo(land.dtype).eps
    if land.dim <= _DENSE:
        spectrum = dense_spectrum(model, flat_tolerance, eps)
    else:
        spectrum = lowest_spectrum(land, theta, flat_tolerance, max_products, generator)
    length = float(torch.linalg.vector_norm(theta.double()))
    floor = 10 * eps * spectrum.frobenius * max(length, math.sqrt(eps))
    test = _newton(land, theta, loss, replace(model, flat=10 * spectrum.flat), spectrum, floor)
    allowed = 1e-6 * max(1.0, abs(loss)) if tol is None else tol
    verdict = _judge_gradient(test, allowed, flatness_limit)
    if verdict is None:
        verdict = _judge_index(land, theta, spectrum, floor, generator)
    cost = land.cost - before
    return _certificate(theta, loss, test, spectrum, replace(verdict, cost=cost), number)


def _certificate(
    theta: Tensor, loss: float, test: _Test, spectrum: Spectrum, verdict: Verdict, seed: int
) -> Certificate:
    index, zero = spectrum.counts()
    radius = (spectrum.residuals + spectrum.rounding)[:, None]
    critical = verdict.yes or test.exact or test.contraction <= _CONTRACTION
    return Certificate(
        theta=theta,
        loss=loss,
        gradient_norm=test.gradient_norm,
        rounding=test.floor,
        verdict=verdict,
        index=index,
        zero=zero,
        flat=spectrum.flat,
        values=spectrum.values,
        intervals=spectrum.values[:, None] + torch.cat([-radius, radius], dim=1),
        residuals=spectrum.residuals,
        directions=spectrum.vectors,
        flatness=test.flatness,
        distance=test.distance,
        contraction=test.contraction,
        frobenius=spectrum.frobenius,
        value=test.value if critical else None,
        cost=verdict.cost,
        seed=seed,
        method=spectrum.method,
    )


def _blind(theta: Tensor, loss: float, norm: float, cost: Cost, seed: int) -> Certificate:
    """Return the certificate of a point where the loss or the gradient is not finite."""
    nothing = Bound(0, len(theta), "certified", "certified")
    reason = (
        f"the loss is {loss:g} and its gradient norm {norm:g} here, so nothing can be said of "
        "its curvature; look at the point, or at what the loss does with it"
    )
    none = torch.empty(0, dtype=torch.float64)
    nan = math.nan
    return Certificate(
        theta=theta,
        loss=loss,
        gradient_norm=norm,
        rounding=nan,
        verdict=Verdict("unresolved", reason, cost=cost),
        index=nothing,
        zero=nothing,
        flat=nan,
        values=none,
        intervals=none.reshape(0, 2),
        residuals=none,
        directions=none.reshape(0, len(theta)),
        flatness=nan,
        distance=nan,
        contraction=nan,
        frobenius=nan,
        value=None,
        cost=cost,
        seed=seed,
        method="none",
    )


@dataclass(frozen=True)
class _Test:
    """What one Newton step shows."""

    gradient_norm: float
    floor: float
    flatness: float
    distance: float
    contraction: float
    shift: float
    value: Bound

    @property
    def exact(self) -> bool:
        """Whether the gradient is zero up to rounding."""
        return self.gradient_norm <= self.floor


def _newton(
    land: Landscape, theta: Tensor, loss: float, model: Model, spectrum: Spectrum, floor: float
) -> _Test:
    """Take one Newton step and look at the gradient there."""
    gradient = model.gradient
    norm = float(torch.linalg.vector_norm(gradient))
    grain = 4 * torch.finfo(land.dtype).eps * abs(loss)
    if norm <= floor:
        value = Bound(loss - grain, loss + grain, "estimated", "estimated")
        return _Test(norm, floor, math.nan, 0.0, math.nan, 0.0, value)
    step = model.newton()
    length, left = float(torch.linalg.vector_norm(step)), _left(model, step)
    distance = length
    if left > 0.1 * norm:  # what was cut off as flat may still lead there, far away
        far = replace(model, flat=1e-12 * spectrum.frobenius).newton()
        solved = _left(model, far) <= 0.1 * norm
        distance = float(torch.linalg.vector_norm(far)) if solved else math.inf
    after = land.gradient((theta.double() + step).to(land.dtype)).double()
    remains = float(torch.linalg.vector_norm(after))
    shift = float(gradient @ step) / 2
    slack = remains * length + grain
    value = Bound(math.nan, math.nan, "estimated", "estimated")
    if math.isfinite(slack):
        value = replace(
            value, lower=loss + min(0.0, shift) - slack, upper=loss + max(0.0, shift) + slack
        )
    return _Test(
        norm,
        floor,
        left / (spectrum.frobenius * length + norm),
        distance,
        max(0.0, remains - floor) / norm,
        abs(shift) + slack,
        value,
    )


def _left(model: Model, step: Tensor) -> float:
    """Return $|H p + g|$ for a step in the model's frame."""
    change = (model.frame @ step) @ model.images
    return float(torch.linalg.vector_norm(change + model.gradient))


def _judge_gradient(test: _Test, tol: float, limit: float) -> Verdict | None:
    """Say why the point is not known to be critical; None where it is."""
    if test.exact:
        return None
    if test.flatness > limit:
        return Verdict(
            "no",
            f"merely gradient-flat (r = {test.flatness:.2g}): the gradient, of norm "
            f"{test.gradient_norm:.2g}, lies where the curvature is zero, so no Newton step "
            f"shrinks it; a critical point is {_far(test.distance)}; start the search elsewhere",
        )
    if not test.shift <= tol:
        near = test.contraction <= _CONTRACTION
        return Verdict(
            "no",
            f"not critical to {tol:.2g}: a Newton step of length {test.distance:.2g} would change "
            f"the loss by {test.shift:.2g} and leaves {test.contraction:.2g} of the gradient; "
            + ("climb, or refine, to the critical point nearby" if near else "none is near"),
        )
    if not test.contraction <= _CONTRACTION:
        return Verdict(
            "unresolved",
            f"the gradient norm is {test.gradient_norm:.2g}, but a Newton step leaves "
            f"{test.contraction:.2g} of it: a degenerate critical point nearby, or none; "
            "compute in float64, or look along the lowest directions",
        )
    return None


def _judge_index(
    land: Landscape, theta: Tensor, spectrum: Spectrum, floor: float, generator: torch.Generator
) -> Verdict:
    """Say of which index a critical point is, or that it has none."""
    index, zero = spectrum.counts()
    if index.lower != index.upper or zero.lower != zero.upper:
        return Verdict(
            "unresolved",
            f"critical, but of index {_words(index)} with {_words(zero)} zero modes, as far as "
            "the products reach; raise max_products, or flat_tolerance",
        )
    number, flats = round(index.lower), round(zero.lower)
    if not flats:
        return Verdict("yes", f"a critical point of index {number}")
    bent = _bent(land, theta, spectrum, floor, generator)
    if not bent <= spectrum.flat:
        return Verdict(
            "unresolved",
            f"a degenerate critical point: {number} negative eigenvalues, but {flats} zero modes "
            f"along which the gradient does not stay zero (curvature {bent:.2g} at a distance, "
            f"above {spectrum.flat:.2g}), so its index is not that of its Hessian",
        )
    return Verdict(
        "yes",
        f"a critical point of index {number} with {flats} zero modes, along which further "
        "critical points lie, as a symmetry has them",
    )


def _bent(
    land: Landscape,
    theta: Tensor,
    spectrum: Spectrum,
    floor: float,
    generator: torch.Generator,
) -> float:
    r"""Return how much the zero modes curve away from a set of critical points.

    A step $s$ along a random zero mode, then corrections in all other directions: the
    gradient that is left, over $s$, at worst over three modes.
    """
    flat = spectrum.vectors[spectrum.values.abs() <= spectrum.flat + spectrum.rounding]
    size = _SHIFT * max(1.0, float(torch.linalg.vector_norm(theta.double())))
    worst = 0.0
    for _ in range(3):
        weights = torch.randn(len(flat), generator=generator, dtype=torch.float64)
        mode = weights.to(theta.device) @ flat.double()
        moved = theta.double() + size * mode / torch.linalg.vector_norm(mode)
        left = math.inf
        for _ in range(6):
            with land.at(moved.to(land.dtype)) as point:
                norm = float(torch.linalg.vector_norm(point.gradient.double()))
                if not norm < left:  # NaN too
                    break
                left = norm
                if left <= floor:
                    break
                wide = land.dim if land.dim <= _DENSE else _KRYLOV
                model = expand(point, [point.gradient], wide)
            cut = max(spectrum.flat, 100 * left / size)
            moved = moved + replace(model, flat=10 * cut).newton()
        worst = max(worst, max(0.0, left - floor) / size)
    return worst
