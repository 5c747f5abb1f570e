"""Symmetric matrices that are known by their products alone, the Hessian first of all."""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from thalweg.estimate import Cost, Estimate
from thalweg.landscape.protocols import Ledger, check_theta
from thalweg.landscape.seeding import Seed

if TYPE_CHECKING:
    from thalweg.landscape.protocols import Landscape, Point

__all__ = ["Hessian", "LinearOperator", "MatrixOperator", "PointOperator", "finite_matmat"]

_DENSE_LIMIT = 4096
_BLOCK = 64


class LinearOperator(ABC):
    r"""A real symmetric matrix $A \in \mathbb{R}^{D \times D}$, known by its products.

    A subclass sets `dim`, `dtype` and `device`, and implements `_product` and `cost`. Operators
    are added, subtracted and multiplied by numbers: ``A + B``, ``2 * A - B``, ``-A``.

    Attributes:
        dim: The number of rows, $D$.
        dtype: The floating-point type of the vectors.
        device: Where the vectors live.
        definite: Whether the matrix is known, by how it is made, to be positive semidefinite.
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    definite: bool = False
    __array_ufunc__ = None  # so that NumPy's numbers leave multiplication to this class

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """The running tally of this operator; a result reports the difference of two readings."""

    @abstractmethod
    def _product(self, vectors: Tensor) -> Tensor:
        """Return the product with the checked `(dim, k)` columns of `vectors`."""

    def _outside(self, vectors: Tensor) -> Tensor:
        """Return the product, also where the caller is in inference mode."""
        with torch.inference_mode(False):
            return self._product(vectors.clone() if vectors.is_inference() else vectors)

    def matmat(self, vectors: Float[Tensor, "dim k"]) -> Float[Tensor, "dim k"]:
        r"""Return $A V$, all columns in one sweep where the operator can.

        Args:
            vectors: The columns, `(dim, k)`.

        Returns:
            The products, `(dim, k)`, as they come: NaN stays NaN.

        Raises:
            TypeError: If `vectors` is not a tensor of the operator's dtype.
            ValueError: If its shape or device is wrong.
        """
        self._check(vectors)
        if vectors.ndim != 2:
            raise ValueError(
                f"matmat takes columns of shape ({self.dim}, k), got {tuple(vectors.shape)}; "
                f"for one vector write operator @ vector"
            )
        return self._outside(vectors.detach())

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return the product with one vector `(dim,)` or with the columns of `(dim, k)`."""
        self._check(vectors)
        columns = vectors.detach()
        if columns.ndim == 1:
            return self._outside(columns[:, None])[:, 0]
        return self._outside(columns)

    def to_dense(self, *, limit: int = _DENSE_LIMIT) -> Float[Tensor, "dim dim"]:
        """Return the matrix itself, which takes `dim` products.

        Args:
            limit: The largest `dim` for which this is not refused.

        Returns:
            The matrix `(dim, dim)`, exactly as its products give it (not symmetrised).

        Raises:
            ValueError: If `dim` is above `limit`.
        """
        if self.dim > limit:
            size = self.dim**2 * torch.finfo(self.dtype).bits / 8 / 2**30
            raise ValueError(
                f"a dense {self.dim} x {self.dim} matrix takes {self.dim} products and "
                f"{size:.3g} GiB, above limit={limit}; use eigenpairs or trace, or pass "
                f"limit={self.dim} if you mean it"
            )
        identity = torch.eye(self.dim, dtype=self.dtype, device=self.device)
        blocks = (identity[:, i : i + _BLOCK] for i in range(0, self.dim, _BLOCK))
        return torch.cat([self._outside(block) for block in blocks], dim=1)

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """Return this operator for SciPy, on NumPy vectors.

        Returns:
            A `scipy.sparse.linalg.LinearOperator` of float64 if this operator is, else of
            float32; vectors travel to the operator's device and back.
        """
        kind = np.float64 if self.dtype == torch.float64 else np.float32

        def product(array: Any) -> Any:
            columns = torch.as_tensor(np.ascontiguousarray(array, dtype=kind))
            columns = columns.reshape(self.dim, -1).to(self.device, self.dtype)
            answer = self._outside(columns).cpu().numpy().astype(kind, copy=False)
            return answer.reshape(np.shape(array))

        return scipy.sparse.linalg.LinearOperator(
            shape=(self.dim, self.dim),
            dtype=np.dtype(kind),
            matvec=product,
            rmatvec=product,
            matmat=product,
            rmatmat=product,
        )

    def own_trace(self, *, level: float = 0.95, seed: Seed = None) -> Estimate | None:
        """Return the trace if this operator knows it without products, else None.

        Args:
            level: Nominal coverage of the interval.
            seed: What is random about it, if anything.

        Returns:
            An estimate, exact up to rounding or with an honest interval; None where only
            products tell.
        """
        return None

    def own_diagonal(self) -> Float[Tensor, " dim"] | None:
        """Return the diagonal if this operator knows it without products, else None."""
        return None

    def leaves(self) -> tuple[LinearOperator, ...]:
        """Return the distinct operators that do the work: itself, or what it is made of."""
        return (self,)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """Return the sum."""
        return NotImplemented if not isinstance(other, LinearOperator) else _add(self, other, 1.0)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        """Return the difference."""
        return NotImplemented if not isinstance(other, LinearOperator) else _add(self, other, -1.0)

    def __mul__(self, factor: float) -> LinearOperator:
        """Return the multiple by a real number."""
        return _scale(self, factor, 0.0)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        """Return the negative."""
        return _scale(self, -1.0, 0.0)

    def shifted(self, shift: float) -> LinearOperator:
        r"""Return $A + \alpha I$.

        Args:
            shift: The number $\alpha$.

        Returns:
            An operator of the same size, known to be positive semidefinite if this one is and
            $\alpha \ge 0$.
        """
        return _scale(self, 1.0, shift)

    def projected(self, basis: Tensor) -> LinearOperator:
        r"""Return $P A P$, with $P$ the projection off some directions.

        Args:
            basis: The directions, `(dim,)` or the columns of `(dim, k)`; they need not be
                orthonormal, only independent.

        Returns:
            An operator of the same size that maps their span to zero.

        Raises:
            ValueError: If the directions are dependent, not finite, or of another size.
        """
        from thalweg.curvature.arithmetic import Projected

        return Projected(self, basis)

    def restricted(self, indices: slice | Tensor | Sequence[int]) -> LinearOperator:
        """Return the principal submatrix of some coordinates, of its own smaller size.

        Args:
            indices: The coordinates: a slice, a boolean mask `(dim,)`, or positions.

        Returns:
            An operator on those coordinates; a product costs what one of the whole does.

        Raises:
            ValueError: If none is named, one is out of range, or one is named twice.
        """
        from thalweg.curvature.arithmetic import Restricted

        return Restricted(self, indices)

    def _check(self, vectors: Tensor) -> None:
        if not isinstance(vectors, Tensor):
            raise TypeError(
                f"a product takes a torch tensor of shape ({self.dim},) or ({self.dim}, k), "
                f"not {type(vectors).__name__}; to_scipy() takes NumPy arrays"
            )
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.dim:
            hint = ""
            if vectors.ndim == 2 and vectors.shape[1] == self.dim:
                hint = "; these look like rows: pass vectors.T"
            raise ValueError(
                f"this operator is {self.dim} x {self.dim} and takes shape ({self.dim},) or "
                f"({self.dim}, k), got {tuple(vectors.shape)}{hint}"
            )
        if vectors.dtype != self.dtype:
            raise TypeError(
                f"the vectors are {vectors.dtype}, but this operator computes in {self.dtype}; "
                f"pass vectors.to({self.dtype})"
            )
        if vectors.device != self.device:
            raise ValueError(
                f"the vectors are on {vectors.device}, but this operator is on {self.device}; "
                f"pass vectors.to({str(self.device)!r})"
            )

    def __repr__(self) -> str:
        """Return the kind, the size, the dtype and the device."""
        kind = type(self).__name__
        return f"{kind}({self.dim} x {self.dim}, {self.dtype}, {self.device})"


class PointOperator(LinearOperator):
    r"""An operator of a landscape at one point, which holds what it computed until `close`.

    Args:
        land: The landscape.
        theta: The point, `(dim,)`.

    Raises:
        TypeError: If `theta` is not a tensor of the landscape's dtype.
        ValueError: If `theta` has another shape or device, or is not finite.
    """

    def __init__(self, land: Landscape, theta: Float[Tensor, " dim"]) -> None:
        """Check the point; nothing is computed yet."""
        theta = check_theta(theta, land.dim, land.dtype, land.device, single=True)
        bad = int((~torch.isfinite(theta)).sum())
        if bad:
            raise ValueError(
                f"theta holds {bad} NaN or infinite values among {land.dim}, so there is no "
                f"curvature there; look at the training run or the checkpoint"
            )
        self.dim, self.dtype, self.device = land.dim, land.dtype, land.device
        self.landscape = land
        with torch.inference_mode(False):
            self.theta = theta.clone()
        self._ledger = Ledger()
        self._stack = ExitStack()
        self._release = weakref.finalize(self, self._stack.close)

    @property
    def cost(self) -> Cost:
        """What this operator has taken so far, the opening of the point included."""
        return self._ledger.total

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._release.alive

    def close(self) -> None:
        """Free what the point kept; a later product is refused."""
        self._release()

    def _check_open(self) -> None:
        if self.closed:
            name = type(self).__name__
            raise RuntimeError(
                f"this {name} is closed and its graph is freed; build a new one with "
                f"{name}(land, theta)"
            )

    def __enter__(self) -> Self:
        """Return the operator itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


class Hessian(PointOperator):
    r"""The Hessian $H = \nabla^2 L(\theta)$ of a landscape at one point.

    The landscape is opened at $\theta$ by the first product and stays open, its graph
    shared by all later ones, until `close`, the end of a ``with`` block, or garbage
    collection.

    Args:
        land: The landscape.
        theta: The point, `(dim,)`.

    Raises:
        TypeError: If `theta` is not a tensor of the landscape's dtype.
        ValueError: If `theta` has another shape or device, or is not finite.

    Example:
        >>> import torch
        >>> from thalweg.landscape import FunctionLandscape
        >>> bowl = FunctionLandscape(lambda x: (x**4).sum(), dim=2)
        >>> with Hessian(bowl, torch.tensor([1.0, 2.0], dtype=torch.float64)) as H:
        ...     H @ torch.ones(2, dtype=torch.float64)
        tensor([12., 48.], dtype=torch.float64)
        >>> print(H.cost)
        1 loss, 1 gradient, 1 HVP, 2 passes
    """

    _point: Point | None = None

    def close(self) -> None:
        """Free what the point kept; a later product is refused."""
        self._point = None
        super().close()

    def _product(self, vectors: Tensor) -> Tensor:
        self._check_open()
        before = self.landscape.cost
        if self._point is None:
            self._point = self._stack.enter_context(self.landscape.at(self.theta))
        products = self._point.hvp(vectors.T.contiguous()).T
        self._ledger.total += self.landscape.cost - before
        return products


class MatrixOperator(LinearOperator):
    """An explicit symmetric matrix as an operator.

    Args:
        matrix: A symmetric `(dim, dim)` tensor or NumPy array of a floating-point type.
        definite: Whether it is known to be positive semidefinite; checked.

    Raises:
        TypeError: If it is not of a real floating-point type.
        ValueError: If it is not square, not finite, not symmetric, or not semidefinite though
            said to be.

    Example:
        >>> A = MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> A @ torch.tensor([1.0, 1.0])
        tensor([3., 3.])
        >>> A
        MatrixOperator(2 x 2, torch.float32, cpu)
    """

    def __init__(self, matrix: Tensor | NDArray[Any], *, definite: bool = False) -> None:
        """Check that the matrix is one that this room can work with."""
        matrix = torch.as_tensor(matrix).detach().clone()
        if not matrix.is_floating_point():
            raise TypeError(f"the matrix must be of a real floating type, not {matrix.dtype}")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
            raise ValueError(f"the matrix must be square, got shape {tuple(matrix.shape)}")
        if not torch.isfinite(matrix).all():
            bad = int((~torch.isfinite(matrix)).sum())
            raise ValueError(f"the matrix holds {bad} NaN or infinite entries")
        gap = float((matrix - matrix.T).abs().max())
        if gap > 100 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max()):
            raise ValueError(
                f"the matrix is not symmetric: entries differ from their mirror image by up to "
                f"{gap:.3g}; pass (A + A.T) / 2 if that is what you mean"
            )
        if definite:
            _check_definite(matrix)
        self.dim, self.dtype, self.device = matrix.shape[0], matrix.dtype, matrix.device
        self.matrix, self.definite = matrix, definite
        self._ledger = Ledger()

    @property
    def cost(self) -> Cost:
        """One HVP per column, one pass per product."""
        return self._ledger.total

    def _product(self, vectors: Tensor) -> Tensor:
        self._ledger.add(hvps=vectors.shape[1], passes=1)
        return self.matrix @ vectors


def _check_definite(matrix: Tensor) -> None:
    """Refuse a matrix whose Cholesky factorisation fails after a shift of rounding size."""
    double = matrix.double()
    scale = float(torch.linalg.matrix_norm(double))
    shift = 100 * len(matrix) * torch.finfo(matrix.dtype).eps * scale
    lifted = double + shift * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    if scale and int(torch.linalg.cholesky_ex(lifted).info):
        least = float(torch.linalg.eigvalsh(double)[0])
        raise ValueError(
            f"the matrix is not positive semidefinite: its least eigenvalue is {least:.6g}; leave "
            f"definite=False"
        )


def _add(first: LinearOperator, second: LinearOperator, sign: float) -> LinearOperator:
    from thalweg.curvature.arithmetic import add  # which is made of this module's operators

    return add(first, second, sign)


def _scale(operator: LinearOperator, factor: float, shift: float) -> LinearOperator:
    from thalweg.curvature.arithmetic import scale

    return scale(operator, factor, shift)


def finite_matmat(operator: LinearOperator, vectors: Tensor) -> Tensor:
    """Return the products in the dtype of `vectors`, and refuse any that is not finite.

    Args:
        operator: The operator.
        vectors: Finite columns `(dim, k)` of any floating type.

    Returns:
        The products `(dim, k)`.

    Raises:
        FloatingPointError: If a product holds NaN or an infinity: an algorithm that went
            on would loop or report noise.
    """
    products = operator.matmat(vectors.to(operator.dtype)).to(vectors.dtype)
    bad = int((~torch.isfinite(products)).sum())
    if bad:
        raise FloatingPointError(
            f"{bad} of {math.prod(products.shape)} entries of a product with {operator!r} are "
            f"NaN or infinite: the function overflows or has no second derivative there; look "
            f"at its loss and gradient at this point, or compute in float64"
        )
    return products
