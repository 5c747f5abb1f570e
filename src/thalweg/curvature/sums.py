"""Inner products of long vectors, summed in float64 whatever the vectors are kept in.

Sums over millions of coordinates in float32 are off by more than the products of an operator
are, and would be taken for its asymmetry.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["inner_products", "lengths", "own_products"]

_LEAST = 256


def inner_products(
    vectors: Float[Tensor, "*k dim"], rows: Float[Tensor, "size dim"]
) -> Float[Tensor, "*k size"]:
    """Return the inner products of each vector with every row, float64 on the CPU.

    Args:
        vectors: One vector, or some as rows.
        rows: The rows.

    Returns:
        The products.
    """
    if _plain(rows):
        return (vectors @ rows.T).to("cpu", torch.float64)
    total = torch.zeros(*vectors.shape[:-1], len(rows), dtype=torch.float64, device=rows.device)
    for part in _parts(rows.shape[1], len(rows) + vectors[..., 0].numel()):
        total += vectors[..., part].double() @ rows[:, part].double().T
    return total.cpu()


def own_products(
    bases: Float[Tensor, "chains size dim"], vectors: Float[Tensor, "chains dim"]
) -> Float[Tensor, "chains size"]:
    """Return the inner products of each vector with the rows of its own basis.

    Args:
        bases: One basis for every vector.
        vectors: The vectors, as rows.

    Returns:
        The products, in float64 where the device has it, on the device.
    """
    if _plain(bases):
        return torch.bmm(bases, vectors[:, :, None])[:, :, 0]
    total = torch.zeros(bases.shape[:2], dtype=torch.float64, device=bases.device)
    for part in _parts(bases.shape[2], len(bases) * (bases.shape[1] + 1)):
        total += torch.bmm(bases[:, :, part].double(), vectors[:, part, None].double())[:, :, 0]
    return total


def lengths(vectors: Float[Tensor, "*k dim"]) -> Float[Tensor, "*k"]:
    """Return the Euclidean norms of vectors, float64 on the CPU."""
    wide = vectors.dtype if vectors.device.type == "mps" else torch.float64
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=wide)
    return norms.to("cpu", torch.float64)


def _plain(rows: Tensor) -> bool:
    return rows.dtype == torch.float64 or rows.device.type == "mps"


def _parts(dim: int, many: int) -> Iterator[slice]:
    """Cut the coordinates so that the copies take no more than one float32 vector."""
    chunk = max(_LEAST, dim // (2 * many))
    for first in range(0, dim, chunk):
        yield slice(first, first + chunk)
