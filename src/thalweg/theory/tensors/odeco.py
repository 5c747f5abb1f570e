r"""Orthogonally decomposable tensors: every critical point in closed form.

$$T = \sum_i \lambda_i v_i^{\otimes p}, \qquad v_i \cdot v_j = \delta_{ij}$$

On the unit sphere the critical points are as many as there are non-empty subsets of the
components, with signs; the minima of $-T$ are the components alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.landscape.function import FunctionLandscape
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["OdecoPoints", "OdecoTensor"]

_MOST_POINTS = 1_000_000


@dataclass(frozen=True)
class OdecoPoints:
    """The critical points of an orthogonally decomposable tensor, by rising loss.

    Attributes:
        points: On the unit sphere, `(m, n)`.
        losses: Their losses, `(m,)`.
        indices: Numbers of negative directions on the sphere, `(m,)`.
        subsets: Which components each is made of, `(m, r)`.
    """

    points: Float[Tensor, "m n"]
    losses: Float[Tensor, " m"]
    indices: Int[Tensor, " m"]
    subsets: Tensor

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.losses)

    def __str__(self) -> str:
        """Return a line per index."""
        lines = [f"{len(self)} critical points"]
        for index in sorted(set(self.indices.tolist())):
            losses = self.losses[self.indices == index]
            lines.append(
                f"  index {index}: {len(losses)}, losses {float(losses.min()):.6g} "
                f"to {float(losses.max()):.6g}"
            )
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self)


class OdecoTensor(FunctionLandscape):
    r"""The landscape of an orthogonally decomposable tensor on the sphere.

    $$L(\theta) = -\sum_i \lambda_i (v_i \cdot \theta / |\theta|)^p$$

    A critical point is made of a subset $S$ of the components, $x_i \propto \pm |\lambda_i|^{-1/
    (p-2)}$ for $i \in S$. With $E = (\sum_S |\lambda_i|^{-2/(p-2)})^{-(p-2)/2}$ its loss is $\mp
    E$. At $L = -E$ the Hessian on the sphere is $-p(p-2)E$ on $S$ and $+pE$ across, so the index
    is $|S| - 1$; at $L = +E$ it is $n - |S|$. For $p$ odd each subset has the two points
    $\pm x$, one of either loss; for $p$ even the weights in $S$ have one sign, which is that of
    $-L$, and the signs of the coordinates are free. For $p = 4$ and positive weights that makes
    $3^n - 1$ points, of which only $\pm v_i$ are minima.

    Args:
        values: The weights $\lambda_i$, `(r,)`, none zero.
        p: The order of the tensor, at least 3.
        basis: The components as columns, `(n, r)`, orthonormal; by default the axes of
            $\mathbb{R}^r$. With r < n the points at loss 0, orthogonal to all components, are
            degenerate, and not among `critical_points`.
        random_basis: Draw an orthogonal basis instead.
        seed: What draws it.

    Attributes:
        values: The weights.
        basis: The components.
        p: The order.
        seed: What drew the basis; None where it was not drawn.

    Raises:
        ValueError: If a weight is zero, `p` is below 3 or the basis is not orthonormal.

    References:
        Anandkumar, Ge, Hsu, Kakade and Telgarsky, JMLR 15 (2014); Robeva, SIAM J. Matrix Anal.
        Appl. 37 (2016), Theorem 2.3.

    Example:
        >>> tensor = OdecoTensor([1.0, 1.0, 1.0], p=4)
        >>> tensor.counts()
        {0: 6, 1: 12, 2: 8}
        >>> print(tensor.critical_points())
        26 critical points
          index 0: 6, losses -1 to -1
          index 1: 12, losses -0.5 to -0.5
          index 2: 8, losses -0.333333 to -0.333333
    """

    def __init__(
        self,
        values: Sequence[float] | Float[Tensor, " r"],
        p: int,
        *,
        basis: Float[Tensor, "n r"] | None = None,
        random_basis: bool = False,
        seed: Seed = None,
    ) -> None:
        weights = torch.as_tensor(values, dtype=torch.float64)
        if (
            weights.ndim != 1
            or not len(weights)
            or not bool((weights.isfinite() & (weights != 0)).all())
        ):
            raise ValueError(f"values must be a vector of finite numbers, none zero, got {values}")
        if p < 3:
            raise ValueError(f"p must be at least 3, got {p}; at 2 the points are eigenvectors")
        r = len(weights)
        self.seed: int | None = None
        if basis is not None and random_basis:
            raise ValueError("give a basis or random_basis=True, not both")
        if random_basis:
            generator, self.seed = make_generator(seed)
            gaussian = torch.randn(r, r, generator=generator, dtype=torch.float64)
            q, upper = torch.linalg.qr(gaussian)
            basis = q * upper.diagonal().sign()
        frame = torch.eye(r, dtype=torch.float64) if basis is None else basis.to(torch.float64)
        if frame.ndim != 2 or frame.shape[1] != r or frame.shape[0] < r:
            raise ValueError(f"basis must be (n, {r}) with n >= {r}, got {tuple(frame.shape)}")
        defect = float((frame.T @ frame - torch.eye(r, dtype=torch.float64)).abs().max())
        if defect > 1e-8:
            raise ValueError(f"the columns of basis must be orthonormal; they fail by {defect:.3g}")
        self.values, self.basis, self.p = weights, frame, p
        super().__init__(self._loss, len(frame), start=self._draw)

    def _loss(self, theta: Tensor) -> Tensor:
        along = self.basis.T @ (theta / torch.linalg.vector_norm(theta))
        loss: Tensor = -(self.values * along**self.p).sum()
        return loss

    def _draw(self, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(len(self.basis), generator=generator, dtype=torch.float64)
        unit: Tensor = drawn / torch.linalg.vector_norm(drawn)
        return unit

    def tensor(self) -> Float[Tensor, ...]:
        """Return the tensor T itself, `(n,) * p`."""
        dense = torch.zeros((len(self.basis),) * self.p, dtype=torch.float64)
        for value, vector in zip(self.values, self.basis.T, strict=True):
            power = vector
            for _ in range(self.p - 1):
                power = power[..., None] * vector
            dense += value * power
        return dense

    def _groups(self) -> list[tuple[list[int], int]]:
        """Return components that may join in a subset, with the index of a subset's points."""
        if self.p % 2:
            return [(list(range(len(self.values))), 0)]
        positive = [i for i, value in enumerate(self.values.tolist()) if value > 0]
        negative = [i for i, value in enumerate(self.values.tolist()) if value < 0]
        return [(positive, 1), (negative, -1)]

    def counts(self) -> dict[int, int]:
        """Return the numbers of critical points by index, by counting subsets.

        At any size: nothing is enumerated.
        """
        n, counts = len(self.basis), dict[int, int]()

        def add(index: int, number: int) -> None:
            counts[index] = counts.get(index, 0) + number

        for group, sign in self._groups():
            for size in range(1, len(group) + 1):
                subsets = math.comb(len(group), size)
                if sign == 0:
                    add(size - 1, subsets)
                    add(n - size, subsets)
                else:
                    add(size - 1 if sign > 0 else n - size, subsets * 2**size)
        return dict(sorted(counts.items()))

    def critical_points(self) -> OdecoPoints:
        """Return every non-degenerate critical point on the unit sphere.

        Raises:
            ValueError: If there are more than a million; `counts` needs none of them.
        """
        total = sum(self.counts().values())
        if total > _MOST_POINTS:
            raise ValueError(f"there are {total} critical points; counts() tells them by index")
        n, r = self.basis.shape
        rows, losses, indices, subsets = [], [], [], []
        for group, sign in self._groups():
            for size in range(1, len(group) + 1):
                for subset in itertools.combinations(group, size):
                    chosen = list(subset)
                    energy, sizes = self._point(chosen)
                    for signs, side in self._signs(chosen, sign):
                        x = torch.zeros(r, dtype=torch.float64)
                        x[chosen] = sizes * signs
                        rows.append(self.basis @ x)
                        losses.append(-side * energy)
                        indices.append(size - 1 if side > 0 else n - size)
                        subsets.append(x != 0)
        order = torch.tensor(losses, dtype=torch.float64).argsort(stable=True)
        return OdecoPoints(
            torch.stack(rows)[order],
            torch.tensor(losses, dtype=torch.float64)[order],
            torch.tensor(indices)[order],
            torch.stack(subsets)[order],
        )

    def _point(self, subset: list[int]) -> tuple[float, Tensor]:
        """Return the absolute loss of a subset's points and their absolute coordinates."""
        sizes = self.values[subset].abs() ** (-1 / (self.p - 2))
        norm = float(torch.linalg.vector_norm(sizes))
        return norm ** -(self.p - 2), sizes / norm

    def _signs(self, subset: list[int], sign: int) -> list[tuple[Tensor, int]]:
        """Return the signs that a subset's coordinates can have, and that of minus the loss."""
        if sign == 0:
            own = self.values[subset].sign()
            return [(own, 1), (-own, -1)]
        choices = itertools.product((1.0, -1.0), repeat=len(subset))
        return [(torch.tensor(choice, dtype=torch.float64), sign) for choice in choices]

    def component(self, theta: Float[Tensor, "*batch n"]) -> Int[Tensor, "*batch"]:
        r"""Return the component to which power iteration leads from `theta`.

        The map $x_i \to \lambda_i x_i^{p-1}$ keeps the order of $|\lambda_i|^{1/(p-2)} |x_i|$,
        and squares its ratios or more: the largest wins.
        """
        along = (theta @ self.basis).abs()
        return (along * self.values.abs() ** (1 / (self.p - 2))).argmax(-1)
