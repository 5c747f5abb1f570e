"""Curvature at a finite scale: a second difference, which is not the Hessian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape, check_theta

__all__ = ["CurvatureAtScale", "curvature_at_scale"]

_METHOD = "central second difference; noise of the loss by Moré & Wild's difference table"
_POINTS = 9
_ORDERS = range(3, 7)
_SPREAD = 6.0


@dataclass(frozen=True, eq=False)
class CurvatureAtScale:
    r"""Second differences of the loss along some directions. Not the Hessian.

    Attributes:
        values: $[L(\theta + \epsilon v) - 2 L(\theta) + L(\theta - \epsilon v)] / \epsilon^2$,
            `(k,)`, float64.
        rounding: By how much rounding in the loss may have moved each value, `(k,)`:
            estimated from measured noise, six standard deviations.
        scale: $\epsilon$.
        norms: $|v|$ of each direction, `(k,)`: the points lie $\epsilon |v|$ away.
        cost: What it took.
        method: How it was computed.
    """

    values: Float[Tensor, " k"]
    rounding: Float[Tensor, " k"]
    scale: float
    norms: Float[Tensor, " k"]
    cost: Cost
    method: str = _METHOD

    def __str__(self) -> str:
        """Return a table, and a warning where rounding drowns the value."""
        lines = [
            f"curvature at scale {self.scale:g} (a second difference, not the Hessian), {self.cost}"
        ]
        for i, (value, error) in enumerate(
            zip(self.values.tolist(), self.rounding.tolist(), strict=True)
        ):
            note = "  DROWNED in rounding: raise scale" if error >= abs(value) else ""
            lines.append(f"{i + 1:>4}  {value:>13.6g}  ± {error:.2g}{note}")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the table with what drowned in yellow."""
        return str(self).replace("[", chr(92) + "[").replace("DROWNED", "[yellow]DROWNED[/yellow]")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""

        def plain(numbers: Tensor) -> list[Any]:
            return [x if math.isfinite(x) else repr(x) for x in numbers.tolist()]

        return {
            "type": "curvature at scale",
            "values": plain(self.values),
            "rounding": plain(self.rounding),
            "scale": self.scale,
            "norms": self.norms.tolist(),
            "cost": self.cost.to_json(),
            "method": self.method,
        }


def curvature_at_scale(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    directions: Float[Tensor, "dim k"] | Float[Tensor, " dim"],
    scale: float,
) -> CurvatureAtScale:
    r"""Return the second difference of the loss over a distance, along given directions.

    $$ \frac{L(\theta + \epsilon v) - 2 L(\theta) + L(\theta - \epsilon v)}{\epsilon^2}
       = \int_{-1}^{1} (1 - |t|)\; v^\top \nabla^2 L(\theta + t \epsilon v)\, v\; dt
       \;+\; \text{kinks} $$

    That is the curvature averaged over the segment, *plus* every jump of the slope inside it.
    A network of ReLUs is full of such kinks and its Hessian does not know of them, so the two
    differ by far at any scale worth measuring, and their difference does not vanish with more
    precision. On a quadratic they are equal. What a finite step of an optimiser meets is this;
    what the local theory speaks of is ``Hessian``.

    Args:
        land: The landscape.
        theta: The centre, `(dim,)`.
        directions: The columns $v$, `(dim, k)`, or one `(dim,)`; not normalised here.
        scale: $\epsilon > 0$.

    Returns:
        The values, with the part that rounding may have in them.

    Raises:
        ValueError: If `scale` is not positive, or a shape is wrong, or a direction is zero.

    References:
        J. Moré & S. Wild (2011), Estimating computational noise, §3 (ECnoise), for the
        rounding.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> kink = FunctionLandscape(lambda x: x.abs().sum(), dim=1)  # its Hessian is zero
        >>> e = torch.ones(1, dtype=torch.float64)
        >>> curvature_at_scale(kink, 0.0 * e, e, 0.5).values
        tensor([4.], dtype=torch.float64)
    """
    theta = check_theta(theta, land.dim, land.dtype, land.device, single=True)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    if directions.ndim not in (1, 2) or len(directions) != land.dim:
        raise ValueError(
            f"directions are columns of shape ({land.dim}, k) or ({land.dim},), got "
            f"{tuple(directions.shape)}"
        )
    rows = directions.detach().to(theta.dtype).reshape(land.dim, -1).T
    norms = torch.linalg.vector_norm(rows.double(), dim=1)
    if not bool((norms > 0).all()):
        raise ValueError("a direction is zero (or NaN), so there is no curvature along it")
    before = land.cost
    points = torch.cat([theta[None], theta + scale * rows, theta - scale * rows])
    losses = land.loss(points).double().cpu()
    centre, ahead, behind = losses[0], *losses[1:].chunk(2)
    values = ((ahead - centre) + (behind - centre)) / scale**2
    unit = torch.finfo(land.dtype).eps
    floors = unit * torch.stack([ahead.abs(), behind.abs(), centre.abs().expand_as(ahead)]).amax(0)
    noise = torch.maximum(_noise(land, theta, points[1:], norms.cpu()), floors)
    return CurvatureAtScale(
        values=values,
        rounding=_SPREAD * math.sqrt(6) * noise / scale**2,
        scale=float(scale),
        norms=norms.cpu(),
        cost=land.cost - before,
    )


def _noise(land: Landscape, theta: Tensor, points: Tensor, norms: Tensor) -> Tensor:
    r"""Return the standard deviation of the rounding in the loss, along each direction.

    The loss at nine points a few hundred units of rounding apart: its smooth part vanishes
    from their high differences, and what is left is noise,
    $\sigma_j^2 = \frac{(j!)^2}{(2j)!} \operatorname{mean} (\Delta^j L)^2$.
    The table is taken at both far ends, where the loss is largest; the noise is the largest
    of its orders 3 to 6.
    """
    unit = torch.finfo(land.dtype).eps
    size = float(torch.linalg.vector_norm(theta.double())) / math.sqrt(len(theta)) or 1.0
    ends = points.repeat_interleave(_POINTS, dim=0)
    count = len(norms)
    rows = (points[:count] - points[count:]).double()
    rows = rows / rows.abs().amax(1, keepdim=True)
    steps = torch.arange(_POINTS, dtype=torch.float64, device=theta.device) * (200 * unit * size)
    shifts = (rows.repeat(2, 1)[:, None, :] * steps[None, :, None]).reshape(len(ends), -1)
    losses = land.loss((ends.double() + shifts).to(theta.dtype)).double().cpu()
    table = losses.reshape(2 * count, _POINTS)
    worst = torch.zeros(2 * count, dtype=torch.float64)
    for order in range(1, max(_ORDERS) + 1):
        table = table.diff(dim=1)
        if order in _ORDERS:
            factor = math.factorial(order) ** 2 / math.factorial(2 * order)
            worst = torch.maximum(worst, (factor * table.square().mean(1)).sqrt())
    return torch.maximum(worst[:count], worst[count:])
