"""What one job hands to the store, before it becomes part of a record."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Bound, Cost, Estimate
from thalweg.survey.records import (
    AlongRecord,
    BalancedRecord,
    BarrierRecord,
    EigenRecord,
    LayerRecord,
    LevelRecord,
    RefinedTop,
    SpectrumRecord,
)

__all__ = ["Connected", "Found", "Levelled", "Measured", "Outcome", "Refined"]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A minimum: its coordinates and what the search says of it."""

    id: str
    position: int
    origin: str
    seed: int | None
    loss: float
    gradient_norm: float
    converged: bool
    norm: float
    theta: Float[Tensor, " dim"]
    cost: Cost
    shipped: Estimate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The measures of one minimum; `vectors` are its leading Hessian eigenvectors."""

    id: str
    sampling: Estimate | None
    metrics: dict[str, Estimate]
    held_out: dict[str, Estimate]
    eigenvalues: EigenRecord | None
    trace: Estimate | None
    vectors: Float[Tensor, "dim k"] | None
    cost: Cost
    spectrum: SpectrumRecord | None = None
    layers: tuple[LayerRecord, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Connected:
    """A path between two minima, its points, and the straight line beside it."""

    a: str
    b: str
    method: str
    times: tuple[float, ...]
    losses: tuple[float, ...]
    line_times: tuple[float, ...]
    line_losses: tuple[float, ...]
    maximum: Bound
    barrier: Bound
    line_maximum: Bound
    normalised_length: float
    converged: bool
    points: Float[Tensor, "k dim"]
    cost: Cost
    repeat: int = 0
    length: float | None = None
    definitions: tuple[BarrierRecord, ...] = ()
    held_out: tuple[AlongRecord, ...] = ()
    balanced: BalancedRecord | None = None
    note: str = ""
    line_definitions: tuple[BarrierRecord, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Refined(RefinedTop):
    """What the highest point of a path is, and where; `theta` is the point."""

    theta: Float[Tensor, " dim"]
    cost: Cost


@dataclass(frozen=True, slots=True, eq=False)
class Levelled:
    """Lengths and beads of paths below several levels."""

    a: str
    b: str
    rows: tuple[LevelRecord, ...]
    method: str
    cost: Cost


Outcome = Found | Measured | Connected | Refined | Levelled
