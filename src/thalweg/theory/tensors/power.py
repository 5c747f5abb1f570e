"""Tensor power iteration, and the decomposition of a tensor by deflation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape.seeding import Seed, make_generator

__all__ = [
    "PowerIteration",
    "TensorDecomposition",
    "apply_tensor",
    "decompose",
    "power_iteration",
]


def _check(tensor: Tensor) -> int:
    n, p = len(tensor) if tensor.ndim else 0, tensor.ndim
    if p < 2 or tensor.shape != (n,) * p:
        raise ValueError(f"a symmetric tensor has shape (n, ..., n), not {tuple(tensor.shape)}")
    scale = float(tensor.abs().max())
    for axis in range(p - 1):
        gap = float((tensor - tensor.transpose(axis, axis + 1)).abs().max())
        if not gap <= 1e-8 * scale:
            raise ValueError(
                f"the tensor is not symmetric: exchanging the indices {axis} and {axis + 1} "
                f"changes it by up to {gap:.3g}; average it over all orders of its indices"
            )
    return p


def apply_tensor(
    tensor: Float[Tensor, ...], x: Float[Tensor, "batch n"]
) -> Float[Tensor, "batch n"]:
    """Return T(I, x, ..., x) of a symmetric tensor `(n,) * p` for rows x, `(batch, n)`."""
    n, p = len(tensor), tensor.ndim
    out = x @ tensor.reshape(n, -1)
    for _ in range(p - 2):
        out = torch.einsum("bi,bij->bj", x, out.reshape(len(x), n, -1))
    return out


@dataclass(frozen=True)
class PowerIteration:
    r"""Where power iteration ended, from each start.

    Attributes:
        vectors: Unit vectors, `(starts, n)`.
        values: $T(x, \dots, x)$ there, `(starts,)`.
        residuals: $|T(I, x, \dots, x) - T(x, \dots, x) x|$, `(starts,)`.
        converged: Whether the residual is below the tolerance, `(starts,)`.
        steps: How many steps were taken.
    """

    vectors: Float[Tensor, "starts n"]
    values: Float[Tensor, " starts"]
    residuals: Float[Tensor, " starts"]
    converged: Tensor
    steps: int

    def __str__(self) -> str:
        """Return how many converged, and the largest value."""
        done = int(self.converged.sum())
        text = (
            f"{done} of {len(self.values)} starts converged in {self.steps} steps, "
            f"largest value {float(self.values.max()):.8g}"
        )
        return text if done == len(self.values) else text + "; raise steps, or add a shift"


def power_iteration(
    tensor: Float[Tensor, ...],
    starts: Float[Tensor, "starts n"],
    *,
    steps: int = 200,
    shift: float = 0.0,
    tolerance: float = 1e-10,
) -> PowerIteration:
    r"""Iterate $x \to T(I, x, \dots, x) + \alpha x$, normalised.

    Fixed points are critical points of $T(x, \dots, x)$ on the unit sphere. From an orthogonally
    decomposable tensor's basin it converges to a component with order $p - 1$. On other tensors
    it may cycle; a shift $\alpha > (p-1) \max |T|$ makes it a monotone ascent (Kolda and Mayo).

    Args:
        tensor: Symmetric, `(n,) * p`.
        starts: Starting points, `(starts, n)`.
        steps: The most steps.
        shift: The shift $\alpha$.
        tolerance: Of the residual, beside the largest entry of the value or 1.

    Returns:
        The ends, with their residuals.

    Raises:
        ValueError: If the tensor is not symmetric.

    Source:
        Kolda and Mayo, SIAM J. Matrix Anal. Appl. 32 (2011).

    Example:
        >>> from thalweg.theory.tensors.odeco import OdecoTensor
        >>> found = power_iteration(OdecoTensor([2.0, 1.0], 3).tensor(), torch.eye(2).double())
        >>> found.values
        tensor([2., 1.], dtype=torch.float64)
    """
    _check(tensor)
    x = starts / torch.linalg.vector_norm(starts, dim=-1, keepdim=True)
    taken = 0
    while True:
        image = apply_tensor(tensor, x)
        values = (image * x).sum(-1)
        residuals = torch.linalg.vector_norm(image - values[:, None] * x, dim=-1)
        converged = residuals <= tolerance * values.abs().clamp_min(1e-300)
        if bool(converged.all()) or taken >= steps:
            return PowerIteration(x, values, residuals, converged, taken)
        ahead = image + shift * x
        norm = torch.linalg.vector_norm(ahead, dim=-1, keepdim=True)
        x = torch.where(norm > 0, ahead / norm, x)
        taken += 1


@dataclass(frozen=True)
class TensorDecomposition:
    r"""A sum of rank-one terms, found by power iteration and deflation.

    Attributes:
        values: The weights in the order found, `(r,)`.
        vectors: The unit components as columns, `(n, r)`.
        residual: $\|T - \sum_i \lambda_i v_i^{\otimes p}\|_F$.
        relative: The same over $\|T\|_F$.
        orthogonality: The largest $|v_i \cdot v_j|$, $i \ne j$: 0 for an orthogonal one.
        seed: What drew the starts.
    """

    values: Float[Tensor, " r"]
    vectors: Float[Tensor, "n r"]
    residual: float
    relative: float
    orthogonality: float
    seed: int

    def __str__(self) -> str:
        """Return the weights and the errors."""
        weights = ", ".join(f"{value:.6g}" for value in self.values.tolist())
        text = (
            f"weights {weights}; relative residual {self.relative:.3g}, "
            f"largest overlap of components {self.orthogonality:.3g}"
        )
        if self.relative > 0.5:
            text += "; most of the tensor is not explained: raise rank or starts"
        return text


def decompose(
    tensor: Float[Tensor, ...],
    rank: int,
    *,
    starts: int = 50,
    steps: int = 200,
    seed: Seed = None,
) -> TensorDecomposition:
    r"""Find the components of a nearly orthogonal tensor one by one.

    Power iteration from many starts; the end of largest $|T(x, \dots, x)|$ is taken out,
    $T \leftarrow T - \lambda v^{\otimes p}$. With noise of operator norm $\epsilon$ the errors are
    $O(\epsilon)$, and do not accumulate (Anandkumar et al. 2014, Theorem 5.1).

    Args:
        tensor: Symmetric, `(n,) * p`.
        rank: How many components.
        starts: How many random starts for each.
        steps: The most steps of each iteration.
        seed: What draws the starts.

    Returns:
        The decomposition, with what it leaves unexplained.

    Raises:
        ValueError: If the tensor is not symmetric, or `rank` or `starts` is not positive.

    Example:
        >>> from thalweg.theory.tensors.odeco import OdecoTensor
        >>> print(decompose(OdecoTensor([3.0, 2.0], 3, random_basis=True, seed=0).tensor(), 2, seed=1))
        weights 3, 2; relative residual ...e-..., largest overlap of components ...
    """  # noqa: E501
    p = _check(tensor)
    if rank < 1 or starts < 1:
        raise ValueError(f"rank and starts must be positive, got {rank} and {starts}")
    generator, number = make_generator(seed)
    left, values, vectors = tensor.clone(), [], []
    for _ in range(rank):
        begin = torch.randn(starts, len(tensor), generator=generator, dtype=tensor.dtype)
        found = power_iteration(left, begin, steps=steps)
        best = int(found.values.abs().argmax())
        vector = found.vectors[best]
        values.append(found.values[best])
        vectors.append(vector)
        power = vector
        for _ in range(p - 1):
            power = power[..., None] * vector
        left = left - values[-1] * power
    frame = torch.stack(vectors, 1)
    overlaps = (frame.T @ frame).fill_diagonal_(0)
    residual, size = float(torch.linalg.vector_norm(left)), float(torch.linalg.vector_norm(tensor))
    return TensorDecomposition(
        torch.stack(values),
        frame,
        residual,
        residual / size if size else math.nan,
        float(overlaps.abs().max()),
        number,
    )
