"""The one abstraction: a landscape is a real function of one flat vector.

An algorithm names the narrowest of these protocols that it needs, and so can be tested
against any function whose answer is known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost

if TYPE_CHECKING:
    from thalweg.landscape.spec import ParameterSpec

__all__ = [
    "Batch",
    "FiniteSum",
    "Landscape",
    "Ledger",
    "Normalised",
    "Point",
    "Structured",
    "check_theta",
    "for_evaluation",
]


@runtime_checkable
class Point(Protocol):
    r"""A landscape at one $\theta$, with whatever is worth keeping there.

    The graph of the gradient is built once and shared by every product.
    """

    theta: Float[Tensor, " dim"]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The loss here."""
        ...

    @property
    def gradient(self) -> Float[Tensor, " dim"]:
        """The gradient here."""
        ...

    def hvp(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        r"""Return $\nabla^2 L(\theta)\, v$ for every row $v$ of `vectors`."""
        ...


@runtime_checkable
class Landscape(Protocol):
    r"""A real function $L : \mathbb{R}^D \to \mathbb{R}$ of one flat vector.

    Attributes:
        dim: The number of coordinates, $D$.
        dtype: The floating-point type of $\theta$ and of every result.
        device: Where $\theta$ lives.
        cost: The running tally; a result reports the difference of two readings.
    """

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of vectors and results."""
        ...

    @property
    def device(self) -> torch.device:
        """Where vectors live."""
        ...

    @property
    def cost(self) -> Cost:
        """The running tally of everything asked of this landscape."""
        ...

    def loss(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        r"""Return $L(\theta)$ for every row of `theta`."""
        ...

    def gradient(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        r"""Return $\nabla L(\theta)$ for every row of `theta`."""
        ...

    def value_and_gradient(
        self, theta: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return the loss and the gradient for every row of `theta`, in one sweep."""
        ...

    def at(self, theta: Float[Tensor, " dim"]) -> AbstractContextManager[Point]:
        r"""Open the landscape at one $\theta$; closing frees what the point kept."""
        ...

    def start(self, generator: torch.Generator) -> Float[Tensor, " dim"]:
        """Draw a random starting point."""
        ...


class Batch(Protocol):
    r"""Some examples of a finite sum at a fixed $\theta$, linearised.

    Cotangents and tangents have the structure of the outputs, any nest of tensors; stacked
    ones have further axes in front.

    Attributes:
        outputs: What the model returned, without a graph.
        weight: The total weight of these examples in the mean.
        indices: The positions of the examples in the data set.
        keeps: Whether the graphs of all batches fit in memory together, so that the batches
            may be held between products.
        separable: Whether every example has outputs and products of its own, so that
            `per_example_vjp` works.
    """

    indices: range | Sequence[int]
    keeps: bool

    @property
    def outputs(self) -> Any:
        """What the model returned, without a graph."""
        ...

    @property
    def weight(self) -> float:
        """The total weight of these examples in the mean."""
        ...

    @property
    def weights(self) -> Float[Tensor, " examples"]:
        """Every example's own weight in the mean."""
        ...

    @property
    def separable(self) -> bool:
        """Whether every example has outputs and products of its own."""
        ...

    def linearise(self) -> None:
        """Build the graph that products share; what is asked for later comes from it."""
        ...

    def jvp(self, vectors: Float[Tensor, "*batch dim"]) -> Any:
        r"""Return $J v$, the change of the outputs, stacked over `vectors`."""
        ...

    def vjp(self, cotangents: Any) -> Float[Tensor, "*batch dim"]:
        r"""Return $J^\top u$ for cotangents, stacked in front or not."""
        ...

    def sandwich(
        self, vectors: Float[Tensor, "*batch dim"], middle: Callable[[Any], Any]
    ) -> Float[Tensor, "*batch dim"]:
        r"""Return $J^\top M (J v)$ for every row $v$; counted as Hessian products."""
        ...

    def loss_gradient(self) -> Any:
        """Return the gradient of these examples' mean loss in the outputs."""
        ...

    def loss_hvp(self, tangents: Any, *, outputs: Any = None) -> Any:
        """Return the Hessian of the mean loss in the outputs, here or at others, times tangents."""
        ...

    def per_example_gradients(self) -> Float[Tensor, "examples dim"]:
        """Return the gradient of every example's own loss; `weights` average them."""
        ...

    def per_example_vjp(self, cotangents: Any) -> Float[Tensor, "examples dim"]:
        r"""Return $J_i^\top u_i$ for every example $i$."""
        ...

    def per_example_vjp_blocks(self, cotangents: Any) -> Iterator[Float[Tensor, "some dim"]]:
        """Yield the rows of `per_example_vjp` in blocks that fit the memory."""
        ...


@runtime_checkable
class FiniteSum(Landscape, Protocol):
    r"""A landscape that is a weighted mean, $L = \sum_i w_i \ell_i / \sum_i w_i$.

    Attributes:
        size: The total weight, $\sum_i w_i$ (the number of examples, or of tokens).
        examples: The number of examples, which is what `minibatch` indexes.
    """

    @property
    def size(self) -> float:
        """The total weight."""
        ...

    @property
    def examples(self) -> int:
        """The number of examples."""
        ...

    def minibatch(self, indices: Sequence[int] | Tensor) -> Landscape:
        """Return the landscape of these examples alone; its cost is counted here."""
        ...

    def batches(self, theta: Float[Tensor, " dim"]) -> Iterator[Batch]:
        r"""Go through the data at $\theta$, with outputs and Jacobian products."""
        ...


@runtime_checkable
class Structured(Protocol):
    """A landscape whose coordinates are named tensors, layers and filters."""

    @property
    def spec(self) -> ParameterSpec:
        """Names, shapes, layers and filters of the coordinates."""
        ...


@runtime_checkable
class Normalised(Protocol):
    """A landscape of a network with BatchNorm, whose policy can be changed."""

    @property
    def batchnorm(self) -> str | None:
        """The policy, or None where the network has no BatchNorm."""
        ...

    def with_batchnorm(self, policy: str) -> Landscape:
        """Return the same landscape under another BatchNorm policy."""
        ...


class Ledger:
    """The running tally behind `Landscape.cost`; minibatches write into their parent's.

    Example:
        >>> ledger = Ledger()
        >>> ledger.add(gradients=1, passes=0.5)
        >>> print(ledger.total)
        1 gradient, 0.5 passes
    """

    __slots__ = ("total",)

    def __init__(self) -> None:
        """Start at nothing."""
        self.total = Cost()

    def add(
        self, *, losses: int = 0, gradients: int = 0, hvps: int = 0, passes: float = 0.0
    ) -> None:
        """Count some work."""
        self.total = self.total + Cost(losses, gradients, hvps, passes)


def check_theta(
    theta: Tensor, dim: int, dtype: torch.dtype, device: torch.device, *, single: bool = False
) -> Tensor:
    """Refuse a parameter vector that does not belong to this landscape.

    Args:
        theta: What the caller passed, `(..., dim)`, or `(dim,)` if `single`.
        dim: The landscape's dimension.
        dtype: The landscape's dtype.
        device: The landscape's device.
        single: Whether exactly one vector is wanted.

    Returns:
        `theta`, detached.

    Raises:
        TypeError: If it is not a tensor, or of another dtype.
        ValueError: If its shape or device is wrong.
    """
    if not isinstance(theta, Tensor):
        raise TypeError(f"theta must be a torch tensor of shape (..., {dim}), not {type(theta)}")
    if theta.ndim == 0 or theta.shape[-1] != dim or (single and theta.ndim != 1):
        want = f"({dim},)" if single else f"(..., {dim})"
        raise ValueError(
            f"theta has shape {tuple(theta.shape)}, but this landscape has {dim} coordinates "
            f"and takes shape {want}; landscape.vector(model) builds one from a model"
        )
    if theta.dtype != dtype:
        raise TypeError(
            f"theta is {theta.dtype}, but this landscape computes in {dtype}; "
            f"pass theta.to({dtype}), or build the landscape with dtype={theta.dtype}"
        )
    if theta.device != device:
        raise ValueError(
            f"theta is on {theta.device}, but this landscape is on {device}; "
            f"pass theta.to({str(device)!r})"
        )
    theta = theta.detach()
    if theta.is_inference():  # such a tensor cannot be differentiated at
        with torch.inference_mode(False):
            return theta.clone()
    return theta


def for_evaluation(land: Landscape) -> Landscape:
    """Return the view under which different networks may be compared.

    A network with BatchNorm is evaluated with its statistics re-estimated at each
    point (``recompute``); any other landscape is returned as it is.
    """
    if isinstance(land, Normalised) and land.batchnorm is not None:
        return land.with_batchnorm("recompute")
    return land
