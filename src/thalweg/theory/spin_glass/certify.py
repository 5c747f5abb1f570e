r"""Prove that an eigenvector of a tensor lies near a computed one, is real, and has its index.

All bounds hold in IEEE double precision with round-to-nearest and without overflow: rounding
errors are bounded a priori (Higham 2002, section 3), generously, and added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from thalweg.theory.spin_glass.tracking import TensorBatch

__all__ = ["Certificates", "Signatures", "certify", "distance_to_reals", "distinct", "signatures"]

UNIT = 2.0**-53
SAFE = 1 + 1e-9  # covers the rounding of the bounds themselves
LARGEST_RADIUS = 1e-3


def _gamma(n: int, p: int) -> float:
    """Bound the relative rounding error of any product here: complex sums of n^(p-2) terms."""
    return 8 * UNIT * (float(n) ** (p - 2) + n + 2 * p + 4)


@dataclass(frozen=True)
class Certificates:
    r"""Balls that hold one eigenvector each, in the chart through the computed one.

    Args:
        x: The computed vectors, of length 1 up to rounding, `(K, n)`.
        value: Their computed eigenvalues, `(K,)`.
        radius: An exact eigenpair $(x, \lambda)$ lies within this of the computed one;
            infinite without proof.
        unique: No other eigenpair of the chart lies within this; 0 without proof.
    """

    x: Num[np.ndarray, "k n"]
    value: Num[np.ndarray, " k"]
    radius: Float[np.ndarray, " k"]
    unique: Float[np.ndarray, " k"]

    @property
    def proven(self) -> Bool[np.ndarray, " k"]:
        """Whether each ball holds an eigenvector."""
        proven: Bool[np.ndarray, " k"] = np.isfinite(self.radius)
        return proven

    def take(self, rows: Any) -> Certificates:
        """Return some of them."""
        return Certificates(self.x[rows], self.value[rows], self.radius[rows], self.unique[rows])


def _norms(array: Any) -> Any:
    """Frobenius norms over all axes but the first."""
    return np.sqrt(np.sum(np.abs(array) ** 2, axis=tuple(range(1, array.ndim))))


def _system(tensors: TensorBatch, x: Any, value: Any, sample: Any) -> tuple[Any, Any, Any]:
    """Return T x^(p-2), the residual T x^(p-1) - value x, and the bordered Jacobian."""
    count, n = x.shape
    matrix = tensors.contract(x, sample)
    residual = np.zeros((count, n + 1), dtype=x.dtype)
    residual[:, :n] = (matrix @ x[:, :, None])[:, :, 0] - value[:, None] * x
    jacobian = np.zeros((count, n + 1, n + 1), dtype=x.dtype)
    jacobian[:, :n, :n] = (tensors.p - 1) * matrix
    on = np.arange(n)
    jacobian[:, on, on] -= value[:, None]
    jacobian[:, :n, n] = -x
    jacobian[:, n, :n] = x.conj()
    return matrix, residual, jacobian


def _inverse(jacobian: Any) -> Any:
    """Invert, with NaN where a matrix is singular."""
    try:
        return np.linalg.inv(jacobian)
    except np.linalg.LinAlgError:
        out = np.full_like(jacobian, np.nan)
        for k, one in enumerate(jacobian):
            if np.isfinite(one).all() and np.linalg.matrix_rank(one) == len(one):
                out[k] = np.linalg.inv(one)
        return out


def polish(tensors: TensorBatch, x: Any, value: Any, sample: Any, *, steps: int = 3) -> Any:
    """Improve eigenpairs by Newton's method, with vectors of length 1."""
    n = x.shape[1]
    for _ in range(steps):
        _, residual, jacobian = _system(tensors, x, value, sample)
        change = (_inverse(jacobian) @ residual[:, :, None])[:, :, 0]
        x, value = x - change[:, :n], value - change[:, n]
        length = np.linalg.norm(x, axis=1)
        x, value = x / length[:, None], value / length ** (tensors.p - 2)
    return x, value


def certify(
    tensors: TensorBatch,
    x: Num[np.ndarray, "k n"],
    value: Num[np.ndarray, " k"],
    sample: Int[np.ndarray, " k"],
) -> Certificates:
    r"""Improve eigenpairs by Newton's method, and prove that exact ones are near.

    With $f$ the system $(T x^{p-1} - \lambda x,\ \bar x_0 \cdot (x - x_0))$, $A$ any approximate
    inverse of $f'$, $\eta \ge |A f|$, $\delta \ge \lVert I - A f' \rVert$ and $L$ a Lipschitz
    constant of $f'$ near $x_0$: if $4 \lVert A \rVert L \eta \le (1 - \delta)^2$, the map
    $y - A f(y)$ contracts the balls of radius $2 \eta / (1 - \delta)$ and
    $(1 - \delta) / 2 \lVert A \rVert L$ into themselves, so that each holds exactly one zero,
    which is simple (Newton and Kantorovich; Smale's $\alpha$-theory without its constants). In
    real arithmetic the zero is real, and still the only complex one of the ball.

    Args:
        tensors: Symmetric tensors.
        x: Vectors near eigenvectors, real or complex; what is real stays real.
        value: Their eigenvalues.
        sample: The tensor of each, in rising order.

    Returns:
        The improved pairs with their radii.

    Example:
        >>> cube = np.zeros((1, 2, 2, 2)); cube[0, 0, 0, 0] = cube[0, 1, 1, 1] = 1.0
        >>> near = certify(TensorBatch(cube), np.array([[1.0, 1e-5]]), np.ones(1), np.array([0]))
        >>> bool(near.radius[0] < 1e-12)
        True
    """
    with np.errstate(all="ignore"):  # what is not finite is not proven
        x, value = polish(tensors, x, value, sample)
        n, order, norm = x.shape[1], tensors.p - 1, tensors.norms[sample]
        _, residual, jacobian = _system(tensors, x, value, sample)
        inverse = _inverse(jacobian)
        size, length = _norms(inverse) * SAFE, np.linalg.norm(x, axis=1) * SAFE
        gamma = _gamma(n, tensors.p)
        scale = norm * length**order + np.abs(value) * length
        eta = _norms((inverse @ residual[:, :, None])[:, :, 0])
        eta += size * gamma * (scale + _norms(residual))
        entries = order * norm * length ** (order - 1) + n * np.abs(value) + 2 * length
        delta = _norms(np.eye(n + 1) - inverse @ jacobian) + size * gamma * 2 * entries
        eta, delta = eta * SAFE, delta * SAFE
        bend = order * (order - 1) * norm * (length * (1 + LARGEST_RADIUS)) ** max(order - 2, 0)
        lipschitz = (bend + 1) * SAFE
        radius = 2 * eta / (1 - delta) * SAFE
        unique = np.minimum((1 - delta) / (2 * size * lipschitz) / SAFE, LARGEST_RADIUS)
        proven = (delta < 1) & (4 * size * lipschitz * eta * SAFE <= (1 - delta) ** 2)
        proven &= (radius <= unique) & (np.abs(length - 1) < 1e-6)
    return Certificates(x, value, np.where(proven, radius, np.inf), np.where(proven, unique, 0.0))


def distance_to_reals(
    x: Num[np.ndarray, "k n"],
) -> tuple[Float[np.ndarray, " k"], Num[np.ndarray, "k n"]]:
    r"""Return the sines of the angles from complex lines to the nearest real ones.

    Args:
        x: Vectors of length 1.

    Returns:
        $\min_\phi |\operatorname{Im} e^{i\phi} x|$, and the vectors turned to have it.
    """
    square = np.sum(x * x, axis=1)
    turned = x * np.exp(-0.5j * np.angle(square))[:, None]
    return np.linalg.norm(turned.imag, axis=1), turned


def distinct(found: Certificates) -> Int[np.ndarray, " m"]:
    """Return rows whose eigenvectors are proven to be pairwise different.

    Where two rows may be the same eigenvector, the first stays. Rows without proof are left out.

    Args:
        found: Eigenvectors of one tensor.
    """
    rows = np.flatnonzero(found.proven)
    x, radius = found.x[rows], found.radius[rows]
    dropped = np.zeros(len(rows), dtype=bool)
    for first in range(0, len(rows), 512):
        block = x[first : first + 512]
        overlap = block.conj() @ x.T
        near = np.argwhere(np.abs(overlap) ** 2 > 1 - 1e-4)  # else 0.01 apart, above all radii
        for i, j in near[near[:, 0] + first < near[:, 1]]:
            if dropped[first + i] or dropped[j]:
                continue
            apart = np.linalg.norm(x[j] - overlap[i, j] * block[i])  # the sine of their angle
            dropped[j] = not apart > 2 * (radius[first + i] + radius[j]) + 1e-13
    return rows[~dropped]


@dataclass(frozen=True)
class Signatures:
    r"""Energies and indices of real eigenvectors $x$ of length 1, with their errors.

    Args:
        value: $\langle T, x^p \rangle$, `(K,)`.
        value_radius: Bounds on the errors of `value`.
        index: The number of negative eigenvalues of the Hessian on the sphere, `(K,)`.
        margin: The distance of its eigenvalues from 0 beyond all errors; negative where the index
            is not proven.
    """

    value: Float[np.ndarray, " k"]
    value_radius: Float[np.ndarray, " k"]
    index: Int[np.ndarray, " k"]
    margin: Float[np.ndarray, " k"]


def signatures(
    tensors: TensorBatch, found: Certificates, sample: Int[np.ndarray, " k"]
) -> Signatures:
    r"""Return energy and index of real eigenvectors, with proofs.

    The Hessian of $\langle T, x^p \rangle / p$ on the unit sphere is $P ((p-1) T x^{p-2} -
    \lambda) P$. With computed eigenvectors $V$, Sylvester's law gives it the signs of
    $V^T P \dots P V$, which is nearly diagonal; Weyl's inequality bounds what its other entries,
    the distance of the computed point from the exact one, and all rounding errors can do.

    Args:
        tensors: Symmetric tensors.
        found: Their real eigenvectors.
        sample: The tensor of each, in rising order.
    """
    x, value, radius = found.x, found.value, found.radius
    n, order, norm = x.shape[1], tensors.p - 1, tensors.norms[sample]
    length = np.linalg.norm(x, axis=1)
    x = x / length[:, None]
    matrix = tensors.contract(x, sample)
    hessian = order * matrix - value[:, None, None] * np.eye(n)
    along = hessian @ x[:, :, None]
    twice = np.sum(along[:, :, 0] * x, axis=1)[:, None, None] * (x[:, :, None] * x[:, None, :])
    cross = along * x[:, None, :]
    tangent = hessian - cross - cross.transpose(0, 2, 1) + twice
    scale = (order * norm + np.abs(value)) * SAFE
    shift = 2 * scale  # puts the radial direction above all others
    tangent = tangent + shift[:, None, None] * (x[:, :, None] * x[:, None, :])
    _, vectors = np.linalg.eigh((tangent + tangent.transpose(0, 2, 1)) / 2)
    congruent = vectors.transpose(0, 2, 1) @ tangent @ vectors
    eigenvalues = np.diagonal(congruent, axis1=1, axis2=2)
    others = _norms(congruent * (1 - np.eye(n)))
    skew = _norms(vectors.transpose(0, 2, 1) @ vectors - np.eye(n))
    with np.errstate(invalid="ignore", over="ignore"):
        # |x - exact| on the unit sphere is at most 2 radius + rounding
        moved = 2 * radius + 16 * UNIT * n
        matrix_error = (
            order * max(order - 1, 0) * norm * moved * (1 + LARGEST_RADIUS) ** max(order - 2, 0)
            + radius
            + order * (np.abs(value) + 1) * moved
        )
        error = matrix_error + 8 * scale * moved + 32 * n * _gamma(n, tensors.p) * scale
        margin = np.min(np.abs(eigenvalues), axis=1) - others - 1.1 * error * SAFE
        margin = np.where(skew < 0.01, margin, -np.inf)
        bent = np.abs(value) * order * (radius**2 + 2 * np.abs(length - 1) + 16 * n * UNIT)
        value_radius = (radius + bent) * SAFE
    index = np.sum(eigenvalues < 0, axis=1)
    margin = np.where(np.isfinite(margin), margin, -np.inf)
    return Signatures(value, value_radius, index, margin)
