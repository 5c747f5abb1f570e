"""Paths seen in a gauge: what heights and lengths are once rescalings are taken out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape, for_evaluation
from thalweg.paths.path import Path, measure

__all__ = ["Gauge", "chosen", "in_gauge"]

Gauge = Callable[[Tensor], Tensor]
"""``gauge(theta) -> theta'``: one vector to the chosen one of those that compute the same."""


def chosen(land: Landscape, gauge: Gauge, theta: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
    """Return the vector that a gauge chooses in the place of `theta`.

    Raises:
        ValueError: If the gauge returns another shape, NaN, or a vector with another loss.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> net = FunctionLandscape(lambda x: (x[0] * x[1] - 1)**2, dim=2)
        >>> theta = torch.tensor([4.0, 0.25], dtype=torch.float64)
        >>> chosen(net, lambda x: x.prod().abs().sqrt() * torch.sign(x), theta)
        tensor([1., 1.], dtype=torch.float64)
    """
    moved = _moved(gauge, theta)
    _check_losses(for_evaluation(land), theta[None], moved[None])
    return moved


def in_gauge(
    land: Landscape,
    path: Path,
    gauge: Gauge,
    *,
    per_segment: int = 4,
    tolerance: float | None = None,
    max_samples: int = 200,
) -> Path:
    r"""Move a path into a gauge, point by point, and measure it there.

    Networks have symmetries: $\theta$ and $g(\theta)$ compute the same function though they
    lie apart, such as a ReLU network and the same with one layer scaled up and the next
    one down. A gauge picks one vector of each family. Moving a path keeps the loss at every
    point and changes its length. The *straight line* between two ends, and every search
    that begins with it, depends on the gauge in its height too: ``connect(..., gauge=)``
    searches again between the moved ends.

    The points at `per_segment` places in each segment are moved, and the polyline through
    them is measured, which may climb a little higher between them.

    Args:
        land: The landscape.
        path: A path.
        gauge: Maps one vector `(dim,)` to the chosen equivalent one, continuously.
        per_segment: Places in each segment that are moved, its start among them.
        tolerance: See `measure`.
        max_samples: See `measure`.

    Returns:
        The path in the gauge, with its own height, length and cost.

    Raises:
        ValueError: If the gauge returns another shape, NaN, or a vector with another loss,
            or if it makes both ends one.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> from thalweg.paths import line
        >>> net = FunctionLandscape(lambda x: (x[0] * x[1] - 1)**2, dim=2)
        >>> a, b = torch.tensor([[4.0, 0.25], [0.6, 2.0]], dtype=torch.float64)
        >>> raw = line(net, a, b)
        >>> moved = in_gauge(net, raw, lambda x: x.prod().abs().sqrt() * torch.sign(x))
        >>> round(raw.maximum.lower, 2), round(moved.maximum.lower, 2)
        (2.53, 2.53)
        >>> round(raw.length, 2), round(moved.length, 2)
        (3.82, 1.59)
    """
    if per_segment < 1:
        raise ValueError(f"per_segment must be at least 1, got {per_segment}")
    view = for_evaluation(land)
    before = view.cost
    raw = _places(path.points, per_segment)
    moved = torch.stack([_moved(gauge, theta) for theta in raw])
    _check_losses(view, raw[[0, len(raw) // 2, -1]], moved[[0, len(raw) // 2, -1]])
    if _close(moved[0], moved[-1]):
        raise ValueError(
            "the gauge makes both ends the same vector: they differ by a symmetry alone"
        )
    checking = view.cost - before
    keep = torch.ones(len(moved), dtype=torch.bool, device=moved.device)
    keep[1:] = torch.linalg.vector_norm((moved[1:] - moved[:-1]).double(), dim=1) > 0
    found = measure(
        land,
        moved[keep],
        tolerance=tolerance,
        max_samples=max(max_samples, 4 * len(moved)),
        method=f"{path.method}, in a gauge",
        converged=path.converged,
        note=path.note,
        seed=path.seed,
        spent=checking,
    )
    return replace(found, floor=path.floor)


def _places(points: Float[Tensor, "points dim"], count: int) -> Tensor:
    shares = torch.arange(count, dtype=points.dtype, device=points.device) / count
    steps = points[1:] - points[:-1]
    between = points[:-1, None] + shares[None, :, None] * steps[:, None]
    return torch.cat([between.flatten(0, 1), points[-1:]])


def _moved(gauge: Gauge, theta: Tensor) -> Tensor:
    moved = gauge(theta.clone())
    if not isinstance(moved, Tensor) or moved.shape != theta.shape:
        shown = tuple(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
        raise ValueError(
            f"the gauge must return a vector of shape {tuple(theta.shape)}, not {shown}"
        )
    if not bool(torch.isfinite(moved).all()):
        raise ValueError("the gauge returned NaN or infinite values")
    return moved.detach().to(theta)


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(torch.linalg.vector_norm(a.double()))
    gap = float(torch.linalg.vector_norm((a - b).double()))
    return gap <= 1e3 * torch.finfo(a.dtype).eps * scale


def _check_losses(view: Landscape, raw: Tensor, moved: Tensor) -> None:
    """Hold the gauge to its promise."""
    before, after = view.loss(torch.cat([raw, moved])).double().chunk(2)
    gap = (after - before).abs()
    allowed = 1e4 * torch.finfo(raw.dtype).eps * torch.clamp(before.abs(), min=1.0)
    if bool((gap > allowed).any()):
        worst = int(gap.argmax())
        raise ValueError(
            f"the gauge changes the loss (from {float(before[worst]):.8g} to "
            f"{float(after[worst]):.8g}): it must map a vector to one that computes the same"
        )
