r"""Sets that every path between two points must cross, and how high the loss is on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import BoundKind

__all__ = ["Separable", "Separator"]


@dataclass(frozen=True, slots=True)
class Separator:
    r"""A set $\{h = 0\}$ and a loss that is reached everywhere on it.

    For a continuous $h$, a path from $a$ to $b$ with $h(a)\,h(b) < 0$ meets the set, so that

    $$\min_{\gamma: a \to b}\ \max_t L(\gamma(t)) \;\ge\; \inf_{h(\theta) = 0} L(\theta).$$

    Args:
        name: What the set is called.
        side: The continuous function $h$ of one `(dim,)` vector; its sign says on which side
            the vector lies.
        floor: A lower bound of the loss on the set, an absolute value.
        kind: What `floor` is worth: ``"exact"`` (the infimum up to rounding), ``"certified"``
            (proven), ``"estimated"`` (no proof).
        reason: Why the loss is at least `floor` there, in a sentence.

    Raises:
        ValueError: If `floor` is NaN.

    Example:
        >>> print(Separator("first weight is 0", lambda x: x[0], 0.5, "exact", "the net is 0"))
        first weight is 0: the loss is at least 0.5 there (exact), because the net is 0
    """

    name: str
    side: Callable[[Tensor], Tensor]
    floor: float
    kind: BoundKind
    reason: str

    def __post_init__(self) -> None:
        """Refuse a floor that is no number."""
        if math.isnan(self.floor):
            raise ValueError(f"the floor of separator {self.name!r} is NaN; give a number")

    def __str__(self) -> str:
        """Return name, floor, kind and reason."""
        return (
            f"{self.name}: the loss is at least {self.floor:.8g} there ({self.kind}), "
            f"because {self.reason}"
        )


@runtime_checkable
class Separable(Protocol):
    """A landscape that knows sets which separate some of its points."""

    def separators(self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"]) -> Sequence[Separator]:
        """Return candidates for the pair, which may depend on it; not all need separate it."""
        ...
