"""Sums, multiples, shifts, projections and restrictions of symmetric operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature.operator import LinearOperator
from thalweg.estimate import Cost, Estimate
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["Combination", "Projected", "Restricted", "add", "exact_trace", "scale"]

Indices = slice | Tensor | Sequence[int]


class _Composite(LinearOperator):
    """An operator made of others; it lives where the first of them lives."""

    def __init__(self, parts: Sequence[LinearOperator], dim: int | None = None) -> None:
        first = parts[0]
        self.parts = tuple(parts)
        self.dim = first.dim if dim is None else dim
        self.dtype, self.device = first.dtype, first.device

    def leaves(self) -> tuple[LinearOperator, ...]:
        """Return the distinct operators that do the work."""
        found = {id(leaf): leaf for part in self.parts for leaf in part.leaves()}
        return tuple(found.values())

    @property
    def cost(self) -> Cost:
        """What the distinct operators behind this one have taken, each counted once."""
        total = Cost()
        for leaf in self.leaves():
            total = total + leaf.cost
        return total


class Combination(_Composite):
    r"""A linear combination $\sum_i c_i A_i + \alpha I$.

    Equal operators share one product: `A + A` takes as many as `A`. Written with the signs
    of arithmetic, ``A + B``, ``2 * A - B``, ``A.shifted(0.1)``.

    Args:
        terms: Pairs of a coefficient and an operator, at least one.
        shift: The multiple $\alpha$ of the identity.

    Raises:
        ValueError: If the operators differ in size or device.
        TypeError: If they differ in dtype.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([1.0, 2.0])))
        >>> (3 * A - A).shifted(10.0) @ torch.ones(2)
        tensor([12., 14.])
        >>> print(A.cost)
        1 HVP, 1 pass
    """

    def __init__(self, terms: Sequence[tuple[float, LinearOperator]], shift: float = 0.0) -> None:
        merged: dict[int, tuple[float, LinearOperator]] = {}
        for factor, operator in terms:
            _check_same(terms[0][1], operator)
            before = merged.get(id(operator), (0.0, operator))[0]
            merged[id(operator)] = (before + factor, operator)
        super().__init__([operator for _, operator in merged.values()])
        self.factors = tuple(factor for factor, _ in merged.values())
        self.shift = shift
        self.definite = shift >= 0 and all(
            factor == 0 or (factor > 0 and part.definite)
            for factor, part in zip(self.factors, self.parts, strict=True)
        )

    def _product(self, vectors: Tensor) -> Tensor:
        total = self.shift * vectors
        for factor, part in zip(self.factors, self.parts, strict=True):
            total = total + factor * part.matmat(vectors)
        return total

    def own_trace(self, *, level: float = 0.95, seed: Seed = None) -> Estimate | None:
        """Return the combination of the parts' traces, if they all know theirs.

        The interval is the combination of theirs, each at a level raised so that all hold
        together (Bonferroni), whatever the dependence between them.
        """
        number = make_generator(seed)[1]
        before, each = self.cost, 1 - (1 - level) / len(self.parts)
        found = []
        for part in self.parts:
            own = part.own_trace(level=each, seed=number)
            if own is None:
                return None
            found.append(own)
        pairs = list(zip(self.factors, found, strict=True))
        moved = self.shift * self.dim
        ends = [sorted(factor * end for end in own.interval) for factor, own in pairs]
        return Estimate(
            value=moved + math.fsum(factor * own.value for factor, own in pairs),
            stderr=math.fsum(abs(factor) * own.stderr for factor, own in pairs),
            interval=(
                moved + math.fsum(low for low, _ in ends),
                moved + math.fsum(high for _, high in ends),
            ),
            samples=min(own.samples for own in found),
            cost=self.cost - before,
            level=level,
            method="; ".join(dict.fromkeys(own.method for own in found)),
            seed=number,
        )

    def own_diagonal(self) -> Float[Tensor, " dim"] | None:
        """Return the combination of the parts' diagonals, if they all know theirs."""
        total = torch.full((self.dim,), self.shift, dtype=self.dtype, device=self.device)
        for factor, part in zip(self.factors, self.parts, strict=True):
            own = part.own_diagonal()
            if own is None:
                return None
            total = total + factor * own
        return total


class Projected(_Composite):
    r"""The operator off some directions, $P A P$ with $P = I - Q Q^\top$.

    Args:
        operator: The operator $A$.
        basis: The directions, `(dim,)` or the columns of `(dim, k)`; orthonormalised here.

    Attributes:
        basis: Their orthonormal basis $Q$, `(dim, k)`.

    Raises:
        ValueError: If the directions are not finite, not independent, or of another size or
            device.
        TypeError: If they are of another dtype.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([5.0, 2.0])))
        >>> A.projected(torch.tensor([1.0, 0.0])).to_dense()
        tensor([[0., 0.],
                [0., 2.]])
    """

    def __init__(self, operator: LinearOperator, basis: Tensor) -> None:
        super().__init__([operator])
        operator._check(basis)
        self.basis = _orthonormal(basis.detach().reshape(self.dim, -1))
        self.definite = operator.definite

    def _project(self, vectors: Tensor) -> Tensor:
        return vectors - self.basis @ (self.basis.T @ vectors)

    def _product(self, vectors: Tensor) -> Tensor:
        return self._project(self.parts[0].matmat(self._project(vectors)))

    def own_trace(self, *, level: float = 0.95, seed: Seed = None) -> Estimate | None:
        r"""Return $\operatorname{tr} A - \operatorname{tr} Q^\top A Q$ if $A$ knows its trace."""
        before = self.cost
        whole = self.parts[0].own_trace(level=level, seed=seed)
        if whole is None:
            return None
        forms = (self.basis * self.parts[0].matmat(self.basis)).sum(0).double()
        taken = math.fsum(forms.tolist())
        rounding = 16 * torch.finfo(self.dtype).eps * float(forms.abs().sum())
        low, high = whole.interval
        return Estimate(
            value=whole.value - taken,
            stderr=whole.stderr,
            interval=(low - taken - rounding, high - taken + rounding),
            samples=whole.samples,
            cost=self.cost - before,
            level=level,
            method=whole.method,
            seed=whole.seed,
        )

    def own_diagonal(self) -> Float[Tensor, " dim"] | None:
        """Return the diagonal if the operator knows its own, at one product per direction."""
        own = self.parts[0].own_diagonal()
        if own is None:
            return None
        products = self.parts[0].matmat(self.basis)
        inner = self.basis.T @ products
        mixed = 2 * (self.basis * products).sum(1)
        return own - mixed + ((self.basis @ inner) * self.basis).sum(1)


class Restricted(_Composite):
    r"""The principal submatrix of some coordinates, $A_{S S}$, of its own smaller size.

    Args:
        operator: The operator $A$.
        indices: The coordinates $S$: a slice, a boolean mask `(dim,)`, or positions without
            repetition.

    Attributes:
        indices: The positions, `(dim of the submatrix,)`.

    Raises:
        ValueError: If there is none, one is out of range, or one is named twice.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([5.0, 2.0, 3.0])))
        >>> A.restricted([2, 0]) @ torch.ones(2)
        tensor([3., 5.])
    """

    def __init__(self, operator: LinearOperator, indices: Indices) -> None:
        self.indices = _positions(indices, operator.dim).to(operator.device)
        super().__init__([operator], len(self.indices))
        self.definite = operator.definite

    def _product(self, vectors: Tensor) -> Tensor:
        whole = vectors.new_zeros(self.parts[0].dim, vectors.shape[1])
        whole[self.indices] = vectors
        return self.parts[0].matmat(whole)[self.indices]

    def own_trace(self, *, level: float = 0.95, seed: Seed = None) -> Estimate | None:
        """Return the sum of these entries of the diagonal, if the operator knows its own."""
        before = self.cost
        own = self.own_diagonal()
        if own is None:
            return None
        value = math.fsum(own.tolist())
        size = float(own.double().abs().sum())
        return exact_trace(self, value, size, self.cost - before, level, make_generator(seed)[1])

    def own_diagonal(self) -> Float[Tensor, " dim"] | None:
        """Return these entries of the diagonal, if the operator knows its own."""
        own = self.parts[0].own_diagonal()
        return None if own is None else own[self.indices]


def add(first: LinearOperator, second: LinearOperator, sign: float = 1.0) -> Combination:
    """Return ``first + sign * second``."""
    _check_same(first, second)
    terms, shift = _terms(first)
    more, other = _terms(second)
    return Combination([*terms, *((sign * c, part) for c, part in more)], shift + sign * other)


def scale(operator: LinearOperator, factor: Real | float, shift: float = 0.0) -> Combination:
    r"""Return ``factor * operator`` plus `shift` times the identity.

    Raises:
        TypeError: If a number is not a real one.
        ValueError: If it is not finite.
    """
    for number in (factor, shift):
        if not isinstance(number, Real):
            raise TypeError(
                f"an operator is multiplied or shifted by a real number, not "
                f"{type(number).__name__}; write operator @ vectors for a product"
            )
        if not math.isfinite(number):
            raise ValueError(f"an operator cannot be multiplied or shifted by {number}")
    terms, before = _terms(operator)
    times = float(factor)
    return Combination([(times * c, part) for c, part in terms], times * before + float(shift))


def exact_trace(
    operator: LinearOperator, value: float, size: float, cost: Cost, level: float, seed: int
) -> Estimate:
    """Return a trace that is known up to the rounding of a sum of absolute size `size`."""
    rounding = 16 * torch.finfo(operator.dtype).eps * size
    return Estimate(
        value=value,
        stderr=0.0,
        interval=(value - rounding, value + rounding),
        samples=operator.dim,
        cost=cost,
        level=level,
        method="exact trace without products",
        seed=seed,
    )


def _terms(operator: LinearOperator) -> tuple[list[tuple[float, LinearOperator]], float]:
    if isinstance(operator, Combination):
        return list(zip(operator.factors, operator.parts, strict=True)), operator.shift
    return [(1.0, operator)], 0.0


def _check_same(first: LinearOperator, second: LinearOperator) -> None:
    if first.dim != second.dim:
        raise ValueError(
            f"operators of different sizes cannot be combined: {first!r} and {second!r}; take "
            f"restricted() of the larger one if its coordinates contain the other's"
        )
    if first.dtype != second.dtype:
        raise TypeError(
            f"operators of different dtypes cannot be combined: {first!r} and {second!r}; build "
            f"both from landscapes of one dtype"
        )
    if first.device != second.device:
        raise ValueError(
            f"operators on different devices cannot be combined: {first!r} and {second!r}"
        )


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns' span; refuse dependent ones."""
    if not torch.isfinite(columns).all():
        raise ValueError("the directions to project off hold NaN or infinite values")
    count, lengths = columns.shape[1], torch.linalg.vector_norm(columns.double(), dim=0)
    if count == 0:
        return columns
    first, coefficients = torch.linalg.qr(columns.double() / lengths.clamp_min(1e-300))
    left = coefficients.diagonal().abs() if count <= len(columns) else lengths.new_zeros(1)
    if bool((lengths == 0).any()) or float(left.min()) < 1e3 * torch.finfo(columns.dtype).eps:
        raise ValueError(
            f"the {count} directions to project off are not independent (one has no more than "
            f"{float(left.min()):.1e} of its length outside the span of those before it); leave "
            f"out the ones that the others span"
        )
    basis: Tensor = torch.linalg.qr(first)[0].to(columns.dtype)
    return basis


def _positions(indices: Indices, dim: int) -> Tensor:
    """Return the named coordinates as positions; refuse what names none, or one twice."""
    if isinstance(indices, slice):
        chosen = torch.arange(dim)[indices] if (indices.step or 1) > 0 else torch.zeros(0)
    else:
        chosen = torch.as_tensor(indices).cpu()
        if chosen.dtype == torch.bool:
            if chosen.shape != (dim,):
                raise ValueError(
                    f"a mask of coordinates must have shape ({dim},), got {tuple(chosen.shape)}"
                )
            chosen = chosen.nonzero().flatten()
    if chosen.ndim != 1 or not len(chosen) or chosen.is_floating_point():
        raise ValueError(
            f"name at least one coordinate by a slice, a mask or integer positions; got "
            f"{indices!r}, which names none of {dim}"
        )
    chosen = chosen.long()
    if int(chosen.min()) < 0 or int(chosen.max()) >= dim:
        wrong = chosen[(chosen < 0) | (chosen >= dim)][:5].tolist()
        raise ValueError(f"coordinates must lie in [0, {dim}), got {wrong}")
    if len(set(chosen.tolist())) != len(chosen):
        raise ValueError("a coordinate is named twice; a principal submatrix takes each once")
    return chosen
