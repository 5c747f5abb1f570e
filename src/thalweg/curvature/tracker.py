"""What is measured at chosen steps of a training run: a callback, and its records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.curvature.advice import Preconditioned, sharpness_bound
from thalweg.curvature.eigenpairs import Eigenpairs, eigenpairs
from thalweg.curvature.operator import Hessian
from thalweg.curvature.step_rule import StepRule
from thalweg.curvature.trace import trace
from thalweg.estimate import Bound, Cost, Estimate
from thalweg.landscape.intervals import LEAST_SAMPLES
from thalweg.landscape.model import ModelLandscape
from thalweg.landscape.protocols import Landscape, check_theta
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["Record", "Tracker"]

_EVERY = 10


@dataclass(frozen=True, eq=False)
class Record:
    r"""What was measured at one step, before that step was taken.

    Attributes:
        step: Its number.
        loss: $L(\theta)$ over all the data.
        gradient_norm: $|g|$ over all the data.
        eigenvalues: The `k` largest of the Hessian, `(k,)`.
        intervals: `(k, 2)`; each row certainly holds an eigenvalue.
        sharpness: The largest eigenvalue as a bracket.
        converged: Whether all of them converged.
        alignment: $|V^\top g|^2 / |g|^2$ for the eigenvectors $V$: how much of the gradient,
            squared, lies in the top space. NaN where the gradient is zero.
        trace: The Hessian's trace; None if it was not asked for.
        preconditioned: The sharpness that an adaptive optimiser feels; None for any other.
        lr: The learning rate; NaN if there was no optimiser.
        threshold: The largest stable product of learning rate and felt sharpness; NaN if the
            optimiser is not known.
        cost: What the record took.
    """

    step: int
    loss: float
    gradient_norm: float
    eigenvalues: Float[Tensor, " k"]
    intervals: Float[Tensor, "k 2"]
    sharpness: Bound
    converged: bool
    alignment: float
    trace: Estimate | None
    preconditioned: Bound | None
    lr: float
    threshold: float
    cost: Cost

    @property
    def felt(self) -> Bound:
        """The sharpness that the optimiser feels: preconditioned where it is adaptive."""
        return self.preconditioned or self.sharpness

    def __str__(self) -> str:
        """Return one line."""
        text = f"step {self.step}: loss {self.loss:.6g}, sharpness {self.sharpness}"
        if math.isfinite(self.threshold):
            text += f", times lr {self.lr * self.felt.upper:.4g} of {self.threshold:.4g}"
        return text + ("" if self.converged else " (NOT converged)")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""

        def plain(x: float) -> float | str:
            return x if math.isfinite(x) else repr(x)

        return {
            "step": self.step,
            "loss": plain(self.loss),
            "gradient_norm": plain(self.gradient_norm),
            "eigenvalues": [plain(x) for x in self.eigenvalues.tolist()],
            "intervals": [[plain(x) for x in pair] for pair in self.intervals.tolist()],
            "sharpness": self.sharpness.to_json(),
            "converged": self.converged,
            "alignment": plain(self.alignment),
            "trace": None if self.trace is None else self.trace.to_json(),
            "preconditioned": None
            if self.preconditioned is None
            else self.preconditioned.to_json(),
            "lr": plain(self.lr),
            "threshold": plain(self.threshold),
            "cost": self.cost.to_json(),
        }


class Tracker:
    r"""Measures sharpness, trace and alignment during any torch training loop.

    Call it once a step, before the step is taken; it measures where it is due and otherwise
    returns at once. It reads the model and the optimiser and changes neither, nor any global
    RNG. What was recorded stays in `records` whatever happens to the loop.

    Args:
        land: The landscape over which to measure: the loss on all the data, or on a fixed
            part of it.
        every: Measure at multiples of this; 10 if `at` is not given either.
        at: Measure at these steps, besides.
        k: How many top eigenvectors span the space whose `alignment` is recorded.
        trace_samples: Random vectors for the trace, at least 32; 0 leaves it out.
        tol: The residual of the eigenpairs aimed at, as a fraction of the Hessian's norm.
        max_products: How many products one record may spend on eigenvalues.
        seed: An int, a generator, or None for fresh entropy. Each record draws from (seed,
            step) alone, so it does not depend on what was recorded before it; only the
            starting vectors of Lanczos are the last eigenvectors, which saves products.

    Attributes:
        records: What was measured, in order.
        seed: The seed that reproduces it.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> h = torch.tensor([1.0, 4.0], dtype=torch.float64)
        >>> bowl = FunctionLandscape(lambda x: (h * x**2).sum() / 2, dim=2)
        >>> x = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> descent = torch.optim.SGD([x], lr=0.4)
        >>> tracker = Tracker(bowl, every=5, trace_samples=0, seed=0)
        >>> for step in range(11):
        ...     x.grad = bowl.gradient(x.detach())
        ...     record = tracker(step, x, descent)
        ...     descent.step()
        >>> [record.step for record in tracker.records]
        [0, 5, 10]
        >>> round(record.lr * record.sharpness.upper, 6), record.threshold
        (1.6, 2.0)
    """

    def __init__(
        self,
        land: Landscape,
        *,
        every: int | None = None,
        at: Sequence[int] | None = None,
        k: int = 1,
        trace_samples: int = 32,
        tol: float = 1e-4,
        max_products: int | None = None,
        seed: Seed = None,
    ) -> None:
        """Check the plan; nothing is measured yet."""
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not 1 <= k <= land.dim:
            raise ValueError(f"k must lie between 1 and {land.dim}, got {k}")
        if trace_samples and trace_samples < min(LEAST_SAMPLES, land.dim):
            raise ValueError(
                f"trace_samples={trace_samples} is too few for an honest interval; take at least "
                f"{LEAST_SAMPLES}, or 0 to leave the trace out"
            )
        self.land, self.k, self.trace_samples = land, k, trace_samples
        self.every = _EVERY if every is None and at is None else every
        self.at = frozenset(at or ())
        self.tol, self.max_products = tol, max_products
        self.seed = make_generator(seed)[1]
        self.records: list[Record] = []
        self.warm: dict[str, Tensor] = {}

    def due(self, step: int) -> bool:
        """Say whether this step is to be measured."""
        return step in self.at or (self.every is not None and step % self.every == 0)

    def __call__(
        self,
        step: int,
        where: nn.Module | Float[Tensor, " dim"],
        optimizer: torch.optim.Optimizer | StepRule | None = None,
    ) -> Record | None:
        """Measure, if this step is due.

        Args:
            step: The number of the step that is about to be taken.
            where: The model, or its vector `(dim,)`.
            optimizer: What takes the steps; only read. One of an unknown kind is recorded
                without a threshold.

        Returns:
            The record, which is also appended to `records`; None if the step is not due.

        Raises:
            TypeError: If a module is given but the landscape is no `ModelLandscape`.
            ValueError: If the vector is wrong, or the optimiser's parameters cannot be matched
                with its coordinates.
        """
        if not self.due(step):
            return None
        model = where if isinstance(where, nn.Module) else None
        if isinstance(where, nn.Module):
            if not isinstance(self.land, ModelLandscape):
                raise TypeError(
                    f"a {type(self.land).__name__} does not read modules; pass the vector"
                )
            where = self.land.vector(where)
        return self.measure(step, where, self.rule(optimizer, model))

    def rule(
        self,
        optimizer: torch.optim.Optimizer | StepRule | None,
        model: nn.Module | None = None,
    ) -> StepRule | None:
        """Return the optimiser's step rule; None if there is none or its kind is unknown."""
        if optimizer is None or isinstance(optimizer, StepRule):
            return optimizer
        try:
            return StepRule.read(optimizer, self.land, model)
        except TypeError:  # there is no threshold to hold it to
            return None

    def measure(
        self,
        step: int,
        theta: Float[Tensor, " dim"],
        rule: StepRule | None = None,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Record:
        """Measure now, due or not; `known` is the loss and the gradient, if at hand."""
        land = self.land
        theta = check_theta(theta, land.dim, land.dtype, land.device, single=True)
        before = land.cost
        loss, gradient = known if known is not None else land.value_and_gradient(theta)
        finite = bool(torch.isfinite(theta).all() & torch.isfinite(gradient).all())
        finite = finite and bool(torch.isfinite(loss))
        words = np.random.SeedSequence((self.seed, step)).generate_state(2, np.uint64) >> 2
        pairs, felt, mass = None, None, None
        if finite:
            try:
                pairs, felt, mass = self._curvature(theta, rule, [int(word) for word in words])
            except FloatingPointError:  # a product overflowed: NaN is recorded below
                self.warm = {}
        record = self._record(step, loss, gradient, pairs, felt, mass, rule, before)
        self.records.append(record)
        return record

    def _curvature(
        self, theta: Tensor, rule: StepRule | None, seeds: list[int]
    ) -> tuple[Eigenpairs, Eigenpairs | None, Estimate | None]:
        """Return the top eigenpairs, those that the optimiser feels, and the trace."""
        mass = None
        with Hessian(self.land, theta) as hessian:
            pairs = self._top("hessian", hessian, self.k, seeds[0])
            felt = None
            if rule is not None and not rule.pending and not _identity(rule):
                operator = Preconditioned(hessian, rule.diagonal, decay=rule.decay)
                felt = self._top("felt", operator, 1, seeds[0])
            if self.trace_samples:
                mass = trace(hessian, samples=self.trace_samples, seed=seeds[1])
        return pairs, felt, mass

    def _top(self, name: str, operator: Hessian | Preconditioned, k: int, seed: int) -> Eigenpairs:
        pairs = eigenpairs(
            operator,
            k,
            tol=self.tol,
            max_products=self.max_products,
            start=self.warm.get(name),
            seed=seed,
        )
        self.warm = {**self.warm, name: pairs.vectors}
        return pairs

    def _record(
        self,
        step: int,
        loss: Tensor,
        gradient: Tensor,
        pairs: Eigenpairs | None,
        felt: Eigenpairs | None,
        mass: Estimate | None,
        rule: StepRule | None,
        before: Cost,
    ) -> Record:
        slope = gradient.double()
        norm = float(torch.linalg.vector_norm(slope))
        nothing = torch.full((self.k,), math.nan, dtype=torch.float64)
        alignment, unknown = math.nan, Bound(math.nan, math.nan, "estimated", "estimated")
        if pairs is not None and norm > 0:
            parts = pairs.vectors.double().T @ (slope / norm)
            alignment = float(parts @ parts)
        cost = self.land.cost - before
        known = rule is not None and not rule.pending
        return Record(
            step=step,
            loss=float(loss),
            gradient_norm=norm,
            eigenvalues=nothing if pairs is None else pairs.values,
            intervals=nothing[:, None].expand(-1, 2) if pairs is None else pairs.intervals,
            sharpness=unknown if pairs is None else sharpness_bound(pairs),
            converged=pairs is not None and bool(pairs.converged.all()),
            alignment=alignment,
            trace=mass,
            preconditioned=None if felt is None else sharpness_bound(felt),
            lr=math.nan if rule is None else rule.lr,
            threshold=rule.threshold if rule is not None and known else math.nan,
            cost=cost,
        )


def _identity(rule: StepRule) -> bool:
    """Say whether the rule feels the Hessian itself."""
    decay = rule.decay
    plain = not bool(decay.any()) if isinstance(decay, Tensor) else decay == 0
    return rule.diagonal is None and plain
