"""Gradients with noise: what minibatches are to a spin glass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Landscape
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.sphere import energy_and_gradient, tangent

__all__ = ["CouplingNoise", "GradientNoise", "IsotropicNoise"]


Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Returns a noisy gradient for every row of points."""


@runtime_checkable
class GradientNoise(Protocol):
    """An unbiased random stand-in for the Riemannian gradient of H."""

    def on(self, land: Landscape) -> Draw:
        """Return what draws such gradients of a landscape."""
        ...

    def uncounted(self, steps: int, replicas: int) -> Cost:
        """Return the cost of so many steps that the landscape's own tally does not hold."""
        ...


@dataclass(frozen=True)
class IsotropicNoise:
    r"""The gradient plus $s\,\xi$, with a standard normal $\xi$ in the tangent space.

    Descent with step $h$ is then Langevin dynamics at $T = h s^2 / 2$.

    Args:
        sd: $s$, the standard deviation of each component; the gradient of a pure p-spin has
            components of standard deviation $\sqrt p$ at a random point.

    Raises:
        ValueError: If it is negative.
    """

    sd: float

    def __post_init__(self) -> None:
        """Refuse a negative deviation."""
        if not self.sd >= 0:
            raise ValueError(f"sd must not be negative, got {self.sd}")

    def on(self, land: Landscape) -> Draw:
        """Return what draws noisy gradients of a landscape."""

        def draw(points: Tensor, generator: torch.Generator) -> Tensor:
            _, exact = energy_and_gradient(land, points)
            drawn = torch.randn(points.shape, generator=generator, dtype=points.dtype)
            return exact + self.sd * tangent(points, drawn.to(points.device))

        return draw

    def uncounted(self, steps: int, replicas: int) -> Cost:
        """Return nothing: the landscape counts its gradients."""
        return Cost()

    def __str__(self) -> str:
        """Name the law."""
        return f"isotropic Gaussian noise of sd {self.sd:g}"


@dataclass(frozen=True)
class CouplingNoise:
    r"""The gradient of a random part of the couplings, scaled up to be unbiased.

    With $S$ a uniformly random set of $m = f n$ spins it is the gradient of
    $H_S = \frac nm \sum_{i \in S} \sigma_i T_i[\sigma^{p-1}]$: of the entries of the symmetric
    tensors whose first place is in $S$, at the share $f$ of the work. Every step draws one $S$,
    which all replicas share, as networks trained on one order of the data do. The noise has
    the covariance of drawing $m$ of the $n$ summands without replacement.

    Args:
        fraction: $f$, in (0, 1].

    Raises:
        ValueError: If `fraction` is outside.
    """

    fraction: float

    def __post_init__(self) -> None:
        """Refuse a fraction that is none."""
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {self.fraction}")

    def on(self, land: Landscape) -> Draw:
        """Return what draws sets of couplings of a spin glass, and their gradients.

        Raises:
            ValueError: If the landscape is no `SphericalPSpin`.
        """
        if not isinstance(land, SphericalPSpin):
            raise ValueError(
                f"this {type(land).__name__} has no couplings to draw from; use IsotropicNoise, or "
                "a SphericalPSpin"
            )
        tensors = {degree: land.tensor(degree) for degree in land.degrees}
        size = max(1, round(self.fraction * land.n))

        def draw(points: Tensor, generator: torch.Generator) -> Tensor:
            chosen = torch.randperm(land.n, generator=generator)[:size].to(points.device)
            return coupling_gradient(tensors, points, chosen)

        return draw

    def uncounted(self, steps: int, replicas: int) -> Cost:
        """Return the gradients, at the share of a pass that each takes."""
        return Cost(gradients=steps * replicas, passes=steps * self.fraction)

    def __str__(self) -> str:
        """Name the law."""
        return f"{self.fraction:.3g} of the couplings"


def coupling_gradient(
    tensors: Mapping[int, Tensor],
    points: Float[Tensor, "replicas n"],
    chosen: Int[Tensor, " m"],
) -> Float[Tensor, "replicas n"]:
    r"""Return the Riemannian gradients of $\frac nm \sum_{i \in S} \sigma_i T_i[\sigma^{p-1}]$.

    Args:
        tensors: The symmetric tensors by degree, `(n,) * degree` each.
        points: On the sphere, `(replicas, n)`.
        chosen: The spins of $S$.

    Returns:
        Tangent vectors, summed over the degrees.
    """
    n, size = points.shape[1], len(chosen)
    slope = torch.zeros_like(points)
    for degree, tensor in tensors.items():
        part = tensor[chosen]
        if degree == 1:
            slope[:, chosen] += part
            continue
        rows = part.reshape(-1, n).expand(len(points), -1, n)
        for _ in range(degree - 2):
            rows = (rows @ points[:, :, None]).reshape(len(points), -1, n)
        fields = (rows @ points[:, :, None])[:, :, 0]
        slope[:, chosen] += fields
        slope += (degree - 1) * (points[:, None, chosen] @ rows)[:, 0]
    return tangent(points, slope) * (n / size)
