"""How many basis vectors a search may hold under a memory cap, and of what dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from thalweg.curvature.operator import LinearOperator
from thalweg.landscape.memory import parse_bytes

__all__ = ["WORK", "Room", "room"]

_MOST_VECTORS = 600
WORK = 5
"""Vectors that one direction takes while it advances: input, product, its copies and checks."""
_SMALL = 64
"""Bytes for each entry of the projected matrix: itself, its eigenvectors, their copies."""


@dataclass(frozen=True)
class Room:
    """How much a search may hold, and as what.

    Attributes:
        vectors: How many basis vectors and pending directions there are at most.
        dtype: Their dtype.
        bytes: What the search then holds at most: these vectors, the workspace of a
            product and the projected matrix.
        memory: The cap that was asked for.
    """

    vectors: int
    dtype: torch.dtype
    bytes: int
    memory: int


def room(
    operator: LinearOperator,
    wanted: int,
    *,
    block: int = 1,
    memory: int | str = "1 GiB",
    enough: int = _MOST_VECTORS,
) -> Room:
    """Plan how many vectors a basis may hold, and of what dtype.

    Args:
        operator: The operator.
        wanted: How many eigenvectors it is for.
        block: How many directions advance together.
        memory: The cap on all tensor bytes of the search; what the operator's products
            take inside is not counted.
        enough: More vectors than this are not of use.

    Returns:
        The plan: float64 if `2 * wanted + 20` vectors of it fit, else the operator's dtype.

    Raises:
        ValueError: If not even the least that can restart, `wanted + 3 * block + 2`, fits.
    """
    cap, dim = parse_bytes(memory), operator.dim
    beside = max(WORK * block, wanted)

    def needs(vectors: int, dtype: torch.dtype) -> int:
        return (vectors + beside) * dim * dtype.itemsize + _SMALL * vectors**2

    all_of_it = 2 * dim + 2 * block
    most = min(all_of_it, max(enough, 2 * wanted + 20) + 2 * block)
    least, comfortable = min(most, wanted + 3 * block + 2), min(most, 2 * wanted + 20)
    wide = operator.device.type != "mps" and needs(comfortable, torch.float64) <= cap
    dtype = torch.float64 if wide else operator.dtype
    if needs(least, dtype) > cap:
        raise ValueError(
            f"memory={memory!r} cannot hold a search for {wanted} eigenvectors of {operator!r}: "
            f"the least is {least + beside} vectors of {dim * dtype.itemsize / 2**20:.3g} MiB; "
            f"pass memory='{math.ceil(needs(least, dtype) / 2**20)} MiB' or more, or ask for "
            f"fewer or a smaller block"
        )
    line = (beside * dim * dtype.itemsize - cap) / _SMALL
    half = dim * dtype.itemsize / (2 * _SMALL)
    vectors = min(most, int(math.sqrt(half * half - line) - half) + 1)
    while needs(vectors, dtype) > cap:
        vectors -= 1
    return Room(vectors, dtype, needs(vectors, dtype), cap)
