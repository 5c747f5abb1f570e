r"""A symmetric tensor, contracted with many replicas at once by matrix products.

The tensor $T$ of degree $p \ge 2$ is kept as a matrix: a row for every sorted tuple of $p - 2$
indices, a column for every pair $(j, k)$ of the last two, in slabs of neighbouring $j$ with
only those $k$ that are not before the slab. The monomials of degree $p - 2$ of all replicas
times that matrix are all the matrices

$$X_r = T(\sigma_r^{p-2}, \cdot, \cdot),$$

from which everything follows: $\langle T, \sigma^p \rangle = \sigma \cdot X \sigma$, gradient
$p X \sigma$, Hessian $p (p-1) X$. One pass over the tensor gives all of them for about
$n^p / (2 (p-2)!)$ multiplications a replica: half of what the dense tensor needs at $p = 3$, a
quarter at $p = 4$. A slab of $X$ is used and dropped, so that no $X_r$ is ever whole.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.theory.spin_glass.couplings import (
    coupling_streams,
    joins,
    rank,
    repetitions,
    sorted_count,
    sorted_tuples,
)

__all__ = ["CACHE", "SymmetricForm", "bytes_of", "check_symmetric", "refusal"]

BLOCK = 32
_TOGETHER = 8  # streams whose columns are written as one; divides BLOCK
_ROWS = 16  # of a slab that are squared at once
CACHE = 32 * 2**20


def _blocks(n: int, degree: int) -> list[tuple[int, int]]:
    """Return where the slabs, by the first of the last two indices, begin and end."""
    if degree == 2 or n <= 2 * BLOCK:
        return [(0, n)]
    return [(first, min(first + BLOCK, n)) for first in range(0, n, BLOCK)]


class SymmetricForm:
    r"""The homogeneous polynomial $\langle T, \sigma^p \rangle$ of a symmetric tensor.

    Args:
        n: The number of spins.
        degree: The degree $p$, at least 2.
        dtype: The dtype of the entries.
        device: Where they live.
        transient: How many bytes a product may hold besides the tensor.

    Example:
        >>> form = SymmetricForm(3, 2, torch.float64, torch.device("cpu"), 2**20)
        >>> form.fill(torch.eye(3, dtype=torch.float64))
        >>> form.products(torch.ones(1, 3, dtype=torch.float64), torch.eye(3).double()[None, 1:])
        tensor([[[0., 1., 0.],
                 [0., 0., 1.]]], dtype=torch.float64)
    """

    def __init__(
        self, n: int, degree: int, dtype: torch.dtype, device: torch.device, transient: int
    ) -> None:
        """Allocate the entries, all zero."""
        self.n, self.degree = n, degree
        self._transient = min(transient, CACHE)
        self._blocks = _blocks(n, degree)
        self._rows = sorted_tuples(n, degree - 2)
        self._slabs = [
            torch.zeros(len(self._rows), last - first, n - first, dtype=dtype, device=device)
            for first, last in self._blocks
        ]
        product, _ = repetitions(self._rows)
        orders = torch.from_numpy(math.factorial(degree - 2) / product)
        self._orders = orders.to(dtype=dtype, device=device)
        self._steps = []
        for length in range(2, degree - 1):
            tuples = sorted_tuples(n, length)
            parents = torch.from_numpy(rank(tuples[:, :-1])).to(device)
            self._steps.append((parents, torch.from_numpy(tuples[:, -1].copy()).to(device)))

    @staticmethod
    def entries(n: int, degree: int) -> int:
        """Return how many numbers are kept for good."""
        kept = sum((last - first) * (n - first) for first, last in _blocks(n, degree))
        return sorted_count(n, degree - 2) * kept

    @staticmethod
    def transient_entries(n: int, degree: int) -> int:
        """Return how many numbers a product holds for a moment, for each replica."""
        widest = max((last - first) * (n - first) for first, last in _blocks(n, degree))
        return widest + 3 * sorted_count(n, degree - 2) + 6 * n

    @staticmethod
    def table_bytes(n: int, degree: int) -> int:
        """Return a bound on the bytes of all tables of indices, those of `draw` included."""
        heads = sorted_count(n, degree - 1) * (2 * degree + 4)
        joined = sorted_count(n, degree - 2) * n * (degree + 4)
        kept = sum(sorted_count(n, length) * (2 * length + 3) for length in range(degree - 1))
        places = _TOGETHER * sorted_count(n, degree - 2) * n
        if degree > 2:
            width = max(last - first for first, last in _blocks(n, degree))
            heads_of_rows = sorted_count(n, degree - 3)
            places += heads_of_rows * n * (degree + 4 + 3 * width)
        return 8 * (heads + joined + kept + places)

    def draw(self, amplitude: float, seed: int) -> None:
        """Fill in the random couplings that belong to a seed; see `couplings`."""
        joined = torch.from_numpy(joins(self.n, self.degree - 2))
        heads = torch.from_numpy(joins(self.n, self.degree - 3)) if self.degree > 2 else None
        streams = enumerate(coupling_streams(self.n, self.degree, amplitude, seed))
        # of several c, the entries at (tuple of p - 2, index, c), all up to c
        spread = self._orders.new_empty(_TOGETHER, len(self._rows), self.n)
        for first in range(0, self.n, _TOGETHER):
            some = range(first, min(first + _TOGETHER, self.n))
            for c, stream in itertools.islice(streams, _TOGETHER):
                places = joined[: sorted_count(c + 1, self.degree - 2), : c + 1]
                spread[c - first, : len(places), : c + 1] = torch.from_numpy(stream)[places]
            self._put_columns(first, spread[: len(some)])
            for c in some:
                entries = spread[c - first, : sorted_count(c + 1, self.degree - 2), : c + 1]
                self._put_corner(c, first, entries)
                if heads is not None:
                    self._put_rows(c, entries, heads)

    def _put_columns(self, least: int, spread: Tensor) -> None:
        """Write the entries of largest indices from `least`, in the last place, the rest before.

        Whole lines of memory at a time: one column alone would touch as much of it.
        """
        rows = sorted_count(least + 1, self.degree - 2)
        for (first, last), slab in zip(self._blocks, self._slabs, strict=True):
            if first > least:
                break
            until = min(last, least + 1)
            columns = slab[:rows, : until - first, least - first : least - first + len(spread)]
            columns.copy_(spread[:, :rows, first:until].permute(1, 2, 0))

    def _put_corner(self, c: int, least: int, entries: Tensor) -> None:
        """Write the entries of largest index `c`, in the last two places, that columns left."""
        some, rows = (sorted_count(k + 1, self.degree - 2) for k in (least, c))
        for (first, last), slab in zip(self._blocks, self._slabs, strict=True):
            if first > c:
                break
            until, inner = min(last, c + 1), max(first, min(last, least + 1))
            slab[some:rows, : until - first, c - first] = entries[some:, first:until]
            slab[:some, inner - first : until - first, c - first] = entries[:some, inner:until]
            if c < last:
                slab[:rows, c - first, : until - first] = entries[:, first:until]

    def _put_rows(self, c: int, entries: Tensor, heads: Tensor) -> None:
        """Write the entries of largest index `c` that have it among the others."""
        length = self.degree - 2
        rows = slice(sorted_count(c, length), sorted_count(c + 1, length))
        for (first, last), slab in zip(self._blocks, self._slabs, strict=True):
            if first > c:
                break
            until = min(last, c + 1)
            others = heads[: rows.stop - rows.start, first:until]
            slab[rows, : until - first, : c + 1 - first] = entries[:, first:][others]

    def fill(self, tensor: Float[Tensor, "*indices"]) -> None:
        """Copy the entries of a symmetric tensor, `(n,) * degree`."""
        rows = torch.from_numpy(self._rows).to(tensor.device)
        for (first, last), slab in zip(self._blocks, self._slabs, strict=True):
            slab.copy_(tensor[rows.unbind(1)][..., first:last, first:] if rows.shape[1] else tensor)

    def norm(self) -> float:
        """Return the Frobenius norm of the whole tensor, without writing it out."""
        product, _ = repetitions(self._rows)
        orders = torch.from_numpy(math.factorial(self.degree - 2) / product)
        total = 0.0
        for (first, last), slab in zip(self._blocks, self._slabs, strict=True):
            for some in torch.split(torch.arange(len(slab)), _ROWS):
                squares = slab[some[0] : some[-1] + 1].double() ** 2
                inside = squares[:, :, : last - first].sum((1, 2))
                beyond = squares[:, :, last - first :].sum((1, 2))  # stands for two places
                total += float(orders[some] @ (inside + 2 * beyond).cpu())
        return math.sqrt(total)

    def dense(self) -> Float[Tensor, "*indices"]:
        """Return the whole tensor, `(n,) * degree`."""
        n, length = self.n, self.degree - 2
        whole = self._slabs[0].new_empty(len(self._rows), n, n)
        for (first, last), slab in zip(self._blocks, self._slabs, strict=True):
            whole[:, first:last, first:] = slab
            whole[:, first:, first:last] = slab.transpose(1, 2)
        place = torch.zeros((), dtype=torch.long)
        for shorter in range(length):
            place = torch.from_numpy(joins(n, shorter))[place]
        return whole[place.to(whole.device)]

    def products(
        self, sigma: Float[Tensor, "replicas n"], vectors: Float[Tensor, "replicas some n"]
    ) -> Float[Tensor, "replicas some n"]:
        r"""Return $T(\sigma^{p-2}, v, \cdot)$ for every replica's own vectors."""
        if self.degree == 2:
            return vectors @ self._slabs[0][0]
        out = torch.zeros_like(vectors)
        for some in self._chunks(len(sigma), vectors.shape[1]):
            weights = self._monomials(sigma[some])
            given, sums = vectors[some], out[some]
            for (first, last), slab in zip(self._blocks, self._slabs, strict=True):
                x = (weights @ slab.flatten(1)).view(len(weights), *slab.shape[1:])
                sums[:, :, first:last] += given[:, :, first:] @ x.mT
                if last < self.n:
                    sums[:, :, last:] += given[:, :, first:last] @ x[:, :, last - first :]
        return out

    def matrices(self, sigma: Float[Tensor, "replicas n"]) -> Float[Tensor, "replicas n n"]:
        r"""Return $T(\sigma^{p-2}, \cdot, \cdot)$ for every replica."""
        out = sigma.new_empty(len(sigma), self.n, self.n)
        for some in self._chunks(len(sigma), 0):
            weights = self._monomials(sigma[some])
            for (first, last), slab in zip(self._blocks, self._slabs, strict=True):
                x = (weights @ slab.flatten(1)).view(len(weights), *slab.shape[1:])
                out[some, first:last, first:] = x
                out[some, first:, first:last] = x.transpose(1, 2)
        return out

    def _chunks(self, replicas: int, vectors: int) -> Iterator[slice]:
        """Go through the replicas, as many at once as the transient memory allows."""
        each = self.transient_entries(self.n, self.degree) + 3 * vectors * self.n
        size = max(1, self._transient // (each * self._orders.element_size()))
        for first in range(0, replicas, size):
            yield slice(first, first + size)

    def _monomials(self, sigma: Tensor) -> Tensor:
        """Return every replica's monomials of degree p - 2, times the number of their orders."""
        if self.degree == 2:
            return torch.ones_like(sigma[:, :1])
        monomials = sigma
        for parents, last in self._steps:
            monomials = monomials[:, parents] * sigma[:, last]
        return monomials * self._orders


def bytes_of(n: int, degrees: Sequence[int], dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes that a spin glass takes at most, and those that the couplings keep."""
    above = [degree for degree in degrees if degree > 1]
    kept = dtype.itemsize * sum(SymmetricForm.entries(n, degree) for degree in above)
    tables = max(SymmetricForm.table_bytes(n, degree) for degree in above)
    product = max(SymmetricForm.transient_entries(n, degree) for degree in above) + 4 * n * n
    return kept + len(above) * tables + dtype.itemsize * product, kept


def refusal(n: int, degrees: Sequence[int], dtype: torch.dtype, needed: int, cap: int) -> str:
    """Say what would fit instead."""

    def largest(kind: torch.dtype) -> int:
        return bisect.bisect_right(range(1, n), cap, key=lambda m: bytes_of(m, degrees, kind)[0])

    least = f"n = {largest(dtype)} would fit"
    if dtype == torch.float64:
        single = bytes_of(n, degrees, torch.float32)[0]
        least += (
            ", and so would this n with dtype=torch.float32"
            if single <= cap
            else f" ({largest(torch.float32)} with dtype=torch.float32)"
        )
    of = f"degree {degrees[0]}" if len(degrees) == 1 else f"degrees {list(degrees)}"
    return (
        f"{n} spins with couplings of {of} need {needed / 2**20:.4g} MiB in {dtype}, above the "
        f"cap of {cap / 2**20:.4g} MiB: {least}, or raise memory="
    )


def check_symmetric(degree: int, tensor: Tensor, model: Tensor) -> None:
    """Refuse a tensor that is no symmetric tensor of this degree, beside another of the glass."""
    n = len(model)
    if degree < 1 or tensor.shape != (n,) * degree:
        raise ValueError(
            f"the tensor of degree {degree} must have shape {(n,) * degree}, "
            f"not {tuple(tensor.shape)}"
        )
    if tensor.dtype != model.dtype or tensor.device != model.device:
        raise ValueError(
            f"all tensors must have one dtype and device, but there are {model.dtype} on "
            f"{model.device} and {tensor.dtype} on {tensor.device}"
        )
    if not torch.isfinite(tensor).all():
        raise ValueError(f"the tensor of degree {degree} holds NaN or infinite values")
    tolerance = 1e3 * torch.finfo(tensor.dtype).eps * float(tensor.abs().max())
    for axis in range(degree - 1):
        gap = float((tensor - tensor.transpose(axis, axis + 1)).abs().max())
        if gap > tolerance:
            raise ValueError(
                f"the tensor of degree {degree} is not symmetric: exchanging the indices "
                f"{axis} and {axis + 1} changes it by up to {gap:.3g}; average it over all "
                "orders of its indices first"
            )
