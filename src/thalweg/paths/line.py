"""The straight line."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.protocols import Landscape
from thalweg.paths.path import Path, check_ends, measure

__all__ = ["line"]


def line(
    land: Landscape,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    *,
    tolerance: float | None = None,
    max_samples: int = 200,
    curvature: float | None = None,
) -> Path:
    r"""Return the straight line $(1-t)a + tb$ with its maximum bracketed.

    The height of a line is no property of the two functions that its ends compute:
    rescaling one network's layers changes it and not the function.

    Args:
        land: The landscape.
        a: One end, `(dim,)`.
        b: The other end.
        tolerance: Width of the bracket; by default 1e-3 of the range of losses seen.
        max_samples: Largest number of evaluations.
        curvature: A known bound on the Hessian's eigenvalues in absolute value, which
            makes the bracket certified.

    Returns:
        The path, of two points.

    Raises:
        ValueError: If an end has the wrong shape or holds NaN, or both coincide.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> well = FunctionLandscape(lambda x: (x[0]**2 - 1)**2, dim=1)
        >>> ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> line(well, *ends).height.lower
        1.0
    """
    a, b = check_ends(land, a, b)
    return measure(
        land,
        torch.stack([a, b]),
        tolerance=tolerance,
        max_samples=max_samples,
        curvature=curvature,
        method="line",
        note="a straight line has nothing to converge",
    )
