"""What a survey found, as plain frozen values: what `report` reads and the store writes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from thalweg.estimate import Bound, Cost, Estimate
from thalweg.topology import BasinStatement, BestKnownTree, CertifiedTree, MergeTree

__all__ = [
    "AlongRecord",
    "BalancedRecord",
    "BarrierRecord",
    "DensityRecord",
    "EigenRecord",
    "FailureRecord",
    "LawRecord",
    "LayerRecord",
    "LevelRecord",
    "LevelSetRecord",
    "MinimumRecord",
    "PathRecord",
    "RefinedTop",
    "SaddleRecord",
    "SpectrumRecord",
    "SurveyRecord",
]


@dataclass(frozen=True, slots=True)
class EigenRecord:
    """Some Hessian eigenvalues at a minimum, the outermost first, with intervals."""

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    converged: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class DensityRecord:
    """A smoothed spectral density, and the eigenvalues that were taken out of it one by one.

    Args:
        grid: Eigenvalues at which the density is given.
        values: Share of the eigenvalues per unit of eigenvalue there.
        lower: Lower end of the density's band.
        upper: Upper end of the same.
        level: Nominal coverage of the band.
        broadening: Standard deviation of the Gaussian that smooths the density.
        outliers: The eigenvalues that stand apart and are not part of `values`.
    """

    grid: tuple[float, ...]
    values: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    level: float
    broadening: float
    outliers: EigenRecord


@dataclass(frozen=True, slots=True)
class LawRecord:
    """A law of random-matrix theory beside a measured spectrum.

    Args:
        name: ``"semicircle"``, ``"marchenko-pastur"``, or ``"free"`` for the free sum of both.
        verdict: ``"accepted"``, ``"rejected"``, ``"unresolved"`` or ``"does not apply"``; with
            the last, nothing was fitted.
        reason: Why, in a sentence.
        parameters: What was fitted, by name; the errors are those of matrices of this law.
        support: The law's intervals, without the atom that it may have at zero.
        atom: Its share of eigenvalues that are exactly zero.
        grid: Eigenvalues at which the law's density is given.
        values: That density, smoothed like the measured one, and as high as its share.
        size: How many eigenvalues were fitted.
        fitted: Their share of all.
        outliers: How many lie beyond the edges.
        distance: Largest distance of the two distribution functions (Kolmogorov-Smirnov).
        wasserstein: The area between them, in the units of an eigenvalue.
        p_value: The share of matrices of this law that lie as far off; NaN where the law was
            ruled out without.
        replicates: How many matrices were drawn; the fit needs no evaluation of the loss.
        seed: Their seed.
        method: How it was computed.
    """

    name: str
    verdict: str
    reason: str
    parameters: dict[str, Estimate] = field(default_factory=dict)
    support: tuple[tuple[float, float], ...] = ()
    atom: float = 0.0
    grid: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    size: int = 0
    fitted: float = 0.0
    outliers: int = 0
    distance: float = math.nan
    wasserstein: float = math.nan
    p_value: float = math.nan
    replicates: int = 0
    seed: int | None = None
    method: str = ""


@dataclass(frozen=True, slots=True)
class SpectrumRecord:
    """The whole Hessian spectrum at a minimum: its density, and what is counted or summed.

    Args:
        density: The density.
        lowest: Bracket on the smallest eigenvalue.
        tau: What counts as zero.
        negative: The number of eigenvalues below -tau: the index, as far as tau.
        zero: The number of those within tau of zero.
        positive: The number of those above tau.
        certified: How many there certainly are below -tau, and above tau.
        shift: What is added to every eigenvalue before the logarithm, and the scale of the
            effective dimension.
        log_determinant: Logarithm of the determinant of the Hessian plus `shift`.
        effective_dimension: Sum of eigenvalue over eigenvalue plus `shift`.
        frobenius_norm: Root of the sum of all squared eigenvalues.
        laws: Laws of random-matrix theory beside it, the best first; empty where none was tried.
    """

    density: DensityRecord
    lowest: Bound
    tau: float
    negative: Estimate
    zero: Estimate
    positive: Estimate
    certified: tuple[int, int]
    shift: float
    log_determinant: Estimate
    effective_dimension: Estimate
    frobenius_norm: Estimate
    laws: tuple[LawRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """The diagonal block of the Hessian that belongs to one layer.

    Args:
        name: The layer's name.
        size: How many parameters it has.
        trace: The block's trace.
        top: Bracket on the block's largest eigenvalue.
    """

    name: str
    size: int
    trace: Estimate
    top: Bound

    @property
    def trace_per_parameter(self) -> Estimate:
        """The trace over the layer's size, by which layers of different size compare."""
        low, high = self.trace.interval
        return replace(
            self.trace,
            value=self.trace.value / self.size,
            stderr=self.trace.stderr / self.size,
            interval=(low / self.size, high / self.size),
        )


@dataclass(frozen=True, slots=True)
class MinimumRecord:
    """One minimum: where it came from, its loss, its measures and what they took.

    Args:
        id: Its name in the survey.
        origin: How it was found, such as ``"trained"`` or a checkpoint's path.
        seed: The seed of the run that found it, or None.
        loss: The loss over the survey's data.
        sampling: The same loss with its sampling error, the data seen as a sample.
        gradient_norm: Length of the gradient there.
        converged: Whether the search met its stopping rule.
        metrics: Other measures on the survey's data, by name.
        held_out: Loss and metrics on data that the search never saw, by name.
        eigenvalues: Leading Hessian eigenvalues, or None.
        trace: The Hessian's trace, or None.
        spectrum: The Hessian's spectral density and what comes with it, or None.
        layers: The Hessian's diagonal blocks, layer by layer; empty where none was measured.
        norm: Length of the parameter vector.
        cost: What finding and measuring it took.
        seconds: Wall-clock time of the same.
        shipped: The loss of an added network with the BatchNorm statistics that came with it,
            where `loss` is under the survey's policy; None for others.
    """

    id: str
    origin: str
    seed: int | None
    loss: float
    sampling: Estimate | None
    gradient_norm: float
    converged: bool
    metrics: dict[str, Estimate]
    held_out: dict[str, Estimate]
    eigenvalues: EigenRecord | None
    trace: Estimate | None
    norm: float
    cost: Cost
    seconds: float
    spectrum: SpectrumRecord | None = None
    layers: tuple[LayerRecord, ...] = ()
    shipped: Estimate | None = None


@dataclass(frozen=True, slots=True)
class BarrierRecord:
    """The height of a path by one published definition (`thalweg.paths.barrier_definitions`).

    Args:
        name: ``"above_ends"``, ``"above_mean"``, ``"above_chord"`` or ``"error"``.
        formula: What it is, in LaTeX.
        source: Who defined it so.
        bound: Its value on the path, bracketed.
        sampling: Its value with the data's sampling error, where that is known.
    """

    name: str
    formula: str
    source: str
    bound: Bound
    sampling: Estimate | None = None


@dataclass(frozen=True, slots=True)
class AlongRecord:
    """One quantity along a path, on data that the search never saw.

    Args:
        name: ``"loss"``, or ``"error"`` for one less the accuracy.
        times: Normalised arc lengths of the places where it was asked, the ends included.
        values: What it is there.
        first: The value at `a`, with its sampling error.
        last: The same at `b`.
        worst: The same at the highest of the places; what lies between them was not asked, and
            the choice of the place on the same data has no part in the interval.
        worst_time: Where that is.
    """

    name: str
    times: tuple[float, ...]
    values: tuple[float, ...]
    first: Estimate
    last: Estimate
    worst: Estimate
    worst_time: float


@dataclass(frozen=True, slots=True)
class BalancedRecord:
    """A path in the survey's gauge: each point moved to the one chosen among its equals.

    Args:
        length: Its Euclidean length there.
        normalised_length: The same over the distance of its ends there.
        maximum: Bracket on the largest loss along it.
        line_maximum: The same along the straight line between the ends there.
    """

    length: float
    normalised_length: float
    maximum: Bound
    line_maximum: Bound


@dataclass(frozen=True, slots=True)
class PathRecord:
    """One path between two minima, beside the straight line between the same two.

    Args:
        a: Id of the minimum at time 0.
        b: Id of the minimum at time 1.
        method: How the path was found.
        times: Normalised arc length of the points of the path.
        losses: Loss at these points.
        line_times: Position on the straight line of its points.
        line_losses: Loss at these points.
        maximum: Bracket on the largest loss along the path, an absolute value.
        barrier: Bracket on the minimax over all paths, above the higher end.
        line_maximum: The same along the straight line.
        normalised_length: Length of the path over the distance of its ends.
        converged: Whether the search met its stopping rule.
        cost: What it took.
        seconds: Wall-clock time of the same.
        repeat: 0 for the first search of this pair, and counted on for further ones.
        length: Its Euclidean length, as the coordinates are; None in surveys of layouts
            before 5, as all that follows is empty there.
        definitions: Its height by each published definition that applies.
        held_out: Loss and error rate along it on held-out data; empty where there are none.
        balanced: What it is in the survey's gauge; None where the survey has none.
        note: What of this could not be measured, and why.
        line_definitions: The height of the straight line by each of the definitions.
    """

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
    cost: Cost
    seconds: float
    repeat: int = 0
    length: float | None = None
    definitions: tuple[BarrierRecord, ...] = ()
    held_out: tuple[AlongRecord, ...] = ()
    balanced: BalancedRecord | None = None
    note: str = ""
    line_definitions: tuple[BarrierRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class RefinedTop:
    """What the highest point of the lowest path between two minima refined to.

    Args:
        a: Id of one minimum.
        b: Id of the other.
        answer: Whether it is a critical point: ``"yes"``, ``"no"`` or ``"unresolved"``.
        reason: Why, in a sentence.
        top: Bracket on the largest loss along the path.
        loss: The loss at the point.
        gradient_norm: Length of the gradient there.
        value: The loss of the critical point near it, or None where there is none.
        index: How many eigenvalues lie below -`flat`.
        zero: How many lie within ±`flat`.
        flat: What counts as zero.
        lowest: The lowest eigenvalues.
        flatness: How flat the gradient is: 0 where a Newton step would end at a critical
            point, 1 where it changes nothing (Frye et al. 2021).
        distance: Estimated distance to the critical point.
    """

    a: str
    b: str
    answer: str
    reason: str
    top: Bound
    loss: float
    gradient_norm: float
    value: Bound | None
    index: Bound
    zero: Bound
    flat: float
    lowest: EigenRecord
    flatness: float
    distance: float


@dataclass(frozen=True, slots=True)
class SaddleRecord(RefinedTop):
    """A refined top, what it took, and the wall-clock time of the same."""

    cost: Cost
    seconds: float


@dataclass(frozen=True, slots=True)
class LevelRecord:
    """The searches for a path below one level.

    Args:
        level: The level.
        yes: How many found a path below it.
        no: How many were refused, because an end lies above it.
        unresolved: How many found none.
        raw: Mean length over the straight distance of the paths as found.
        shortened: The same after shortening below the level.
        beads: Mean number of beads, ends included.
        note: What the reader must know of these numbers.
    """

    level: float
    yes: int
    no: int
    unresolved: int
    raw: Estimate | None
    shortened: Estimate | None
    beads: Estimate | None
    note: str


@dataclass(frozen=True, slots=True)
class LevelSetRecord:
    """How curved the way between two minima is below several levels, the highest first."""

    a: str
    b: str
    rows: tuple[LevelRecord, ...]
    method: str
    cost: Cost
    seconds: float


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A job that failed: which, why and when (ISO 8601)."""

    job: str
    error: str
    when: str


@dataclass(frozen=True, slots=True)
class SurveyRecord:
    """Everything a survey found, and all that its report needs.

    Args:
        name: What the survey is called.
        created: When it was begun (ISO 8601).
        config: How it was done.
        provenance: With what, on what.
        dim: The number of parameters.
        minima: The minima.
        paths: The lowest path found between each pair that was searched.
        failures: The jobs that failed.
        tree: The merge tree, in the brackets of the lowest paths.
        cost: What everything took.
        seconds: Wall-clock time of the same.
        complete: Whether every job is done.
        further: The other paths of pairs that were searched more than once.
        best_known: The same tree with what stands behind each merge; None without paths.
        certified: The tree as far as it is proven; None without paths.
        basins: What the minima found say of those not found; None below two minima.
        saddles: What the highest points of the paths that carry a merge are.
        level_sets: How curved the way between two minima is below several levels.
    """

    name: str
    created: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    dim: int
    minima: tuple[MinimumRecord, ...]
    paths: tuple[PathRecord, ...]
    failures: tuple[FailureRecord, ...]
    tree: MergeTree | None
    cost: Cost
    seconds: float
    complete: bool
    further: tuple[PathRecord, ...] = ()
    best_known: BestKnownTree | None = None
    certified: CertifiedTree | None = None
    basins: BasinStatement | None = None
    saddles: tuple[SaddleRecord, ...] = ()
    level_sets: tuple[LevelSetRecord, ...] = ()
