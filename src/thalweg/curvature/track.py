"""A training run with its curvature: gradient descent, or any torch optimiser, on record."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.curvature.step_rule import StepRule
from thalweg.curvature.tracker import Record, Tracker
from thalweg.estimate import Cost
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.protocols import FiniteSum, Landscape, check_theta
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["Track", "track"]

Progress = Callable[[float, str], None]
Factory = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that a run needs to go on, bit for bit."""

    step: int
    theta: Tensor
    optimizer: dict[str, Any]
    order: dict[str, Any]
    warm: dict[str, Tensor]
    settings: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Track:
    r"""A training run: its losses, and its curvature at chosen steps.

    The arrays have one row per record; NaN stands for what was not measured.

    Attributes:
        records: What was measured, in order of steps.
        training_losses: The loss that each step descended on, `(step,)`: over all the data, or
            over a minibatch.
        step: How many steps were taken.
        steps_wanted: How many were asked for.
        reason: Why the run ended.
        training_cost: What the steps took.
        cost: What the records took.
        seed: The seed that reproduces it.
        method: The optimiser.
        checkpoint: Where ``track(..., resume=)`` goes on; None for a `Track` of a `Tracker`.
    """

    records: tuple[Record, ...]
    training_losses: Float[Tensor, " step"]
    step: int
    steps_wanted: int
    reason: str
    training_cost: Cost
    cost: Cost
    seed: int
    method: str
    checkpoint: Checkpoint | None = None

    @classmethod
    def of(cls, tracker: Tracker, *, method: str = "the caller's loop") -> Track:
        """Return what a `Tracker` recorded so far."""
        records = tuple(tracker.records)
        last = records[-1].step if records else 0
        return cls(
            records=records,
            training_losses=torch.zeros(0, dtype=torch.float64),
            step=last,
            steps_wanted=last,
            reason="recorded in the caller's loop",
            training_cost=Cost(),
            cost=sum((record.cost for record in records), Cost()),
            seed=tracker.seed,
            method=method,
        )

    @property
    def theta(self) -> Float[Tensor, " dim"]:
        """The vector where the run stands.

        Raises:
            ValueError: If this is the track of a caller's own loop.
        """
        if self.checkpoint is None:
            raise ValueError("a track of your own loop does not hold its vector")
        return self.checkpoint.theta

    def _column(self, read: Callable[[Record], float]) -> Tensor:
        return torch.tensor([read(record) for record in self.records], dtype=torch.float64)

    @cached_property
    def steps(self) -> Int[Tensor, " records"]:
        """The recorded steps."""
        return torch.tensor([record.step for record in self.records], dtype=torch.int64)

    @cached_property
    def losses(self) -> Float[Tensor, " records"]:
        """The loss over all the data."""
        return self._column(lambda record: record.loss)

    @cached_property
    def gradient_norms(self) -> Float[Tensor, " records"]:
        """The gradient norm over all the data."""
        return self._column(lambda record: record.gradient_norm)

    @cached_property
    def sharpness(self) -> Float[Tensor, " records"]:
        """The largest Hessian eigenvalue."""
        return self._column(lambda record: float(record.eigenvalues[0]))

    @cached_property
    def sharpness_intervals(self) -> Float[Tensor, "records 2"]:
        """Its interval."""
        ends = [
            self._column(lambda r: r.sharpness.lower),
            self._column(lambda r: r.sharpness.upper),
        ]
        return torch.stack(ends, dim=1)

    @cached_property
    def eigenvalues(self) -> Float[Tensor, "records k"]:
        """The `k` largest Hessian eigenvalues."""
        rows = [record.eigenvalues for record in self.records]
        return torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.float64)

    @cached_property
    def traces(self) -> Float[Tensor, " records"]:
        """The Hessian's trace."""
        return self._column(lambda r: math.nan if r.trace is None else r.trace.value)

    @cached_property
    def trace_intervals(self) -> Float[Tensor, "records 2"]:
        """Its interval."""
        return torch.stack(
            [
                self._column(lambda r: math.nan if r.trace is None else r.trace.interval[0]),
                self._column(lambda r: math.nan if r.trace is None else r.trace.interval[1]),
            ],
            dim=1,
        )

    @cached_property
    def alignments(self) -> Float[Tensor, " records"]:
        """The share of the gradient in the top eigenspace."""
        return self._column(lambda record: record.alignment)

    @cached_property
    def products(self) -> Float[Tensor, " records"]:
        """Learning rate times the sharpness that the optimiser feels."""
        return self._column(lambda r: r.lr * (r.felt.lower + r.felt.upper) / 2)

    @cached_property
    def thresholds(self) -> Float[Tensor, " records"]:
        """The largest stable product."""
        return self._column(lambda record: record.threshold)

    def __str__(self) -> str:
        """Return a table of at most 21 records, evenly spaced, and why the run ended."""
        lines = [
            f"{self.step} of {self.steps_wanted} steps of {self.method}, "
            f"{len(self.records)} records ({self.cost}; training {self.training_cost})",
            "    step        loss   |gradient|   sharpness   lr x felt / threshold   aligned "
            "  trace",
        ]
        stride = max(1, -(-len(self.records) // 21))
        shown = list(self.records[::stride])
        if self.records and shown[-1] is not self.records[-1]:
            shown.append(self.records[-1])
        lines += [_row(record) for record in shown]
        missing = sum(not record.converged for record in self.records)
        if missing:
            lines.append(
                f"{missing} of {len(self.records)} records did NOT converge: raise max_products "
                "or tol, or look for a loss that is not finite"
            )
        return "\n".join([*lines, self.reason])

    def __rich__(self) -> str:
        """Return the table with what is wrong in yellow."""
        text = str(self).replace("[", chr(92) + "[")
        return text.replace("NOT converge", "[yellow]NOT converge[/yellow]")

    def to_json(self) -> dict[str, Any]:
        """Return everything but the vectors."""
        return {
            "type": "track",
            "records": [record.to_json() for record in self.records],
            "training_losses": [
                x if math.isfinite(x) else repr(x) for x in self.training_losses.tolist()
            ],
            "step": self.step,
            "steps_wanted": self.steps_wanted,
            "reason": self.reason,
            "training_cost": self.training_cost.to_json(),
            "cost": self.cost.to_json(),
            "seed": self.seed,
            "method": self.method,
        }


def _row(record: Record) -> str:
    product = record.lr * (record.felt.lower + record.felt.upper) / 2
    felt = f"{product:.4g} / {record.threshold:.4g}" if math.isfinite(record.threshold) else "-"
    mass = "-" if record.trace is None else f"{record.trace.value:.4g}"
    return (
        f"{record.step:>8} {record.loss:>11.5g} {record.gradient_norm:>12.4g} "
        f"{float(record.eigenvalues[0]):>11.5g} {felt:>23} {record.alignment:>9.3f} {mass:>7}"
    )


def track(
    land: Landscape,
    theta: Float[Tensor, " dim"] | None = None,
    *,
    steps: int,
    lr: float | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    optimizer: Factory | None = None,
    batch_size: int | None = None,
    every: int | None = None,
    at: Sequence[int] | None = None,
    k: int = 1,
    trace_samples: int = 32,
    tol: float = 1e-4,
    max_products: int | None = None,
    seed: Seed = None,
    resume: Track | None = None,
    progress: Progress | None = None,
) -> Track:
    r"""Train by gradient descent and record the curvature at chosen steps.

    Full-batch gradient descent by default,

    $$\theta_{t+1} = \theta_t - \eta \nabla L(\theta_t),$$

    under which the sharpness of a network rises until it hovers at $2/\eta$, the edge of
    stability. A record at step $t$ is of $\theta_t$, before the step.

    Args:
        land: The landscape.
        theta: Where to start, `(dim,)`; None with `resume`.
        steps: How many steps in all, those of `resume` included.
        lr: The learning rate $\eta$; give this or `optimizer`.
        momentum: Momentum of the descent.
        nesterov: Whether it is Nesterov's.
        optimizer: Another torch optimiser, as a function of its parameters:
            ``lambda p: torch.optim.Adam(p, lr=1e-3)``.
        batch_size: Descend on minibatches of this size, each example once an epoch; None
            descends on all the data.
        every: Record at multiples of this; 10 if `at` is not given either.
        at: Record at these steps, besides.
        k: How many top eigenvectors span the space whose alignment is recorded.
        trace_samples: Random vectors for the trace, at least 32; 0 leaves it out.
        tol: The residual of the eigenpairs aimed at, as a fraction of the Hessian's norm.
        max_products: How many products one record may spend on eigenvalues.
        seed: Orders the minibatches and starts Lanczos; recorded in the result.
        resume: A `Track` to go on from; a resumed run equals an unbroken one, bit for bit.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The track. A loss that is no longer finite ends it, and so does Ctrl-C: the track then
        stands at its last record, and can be resumed.

    Raises:
        ValueError: If `theta` is wrong, both or neither of two alternatives are given, or
            `resume` is of another run.

    References:
        J. Cohen, S. Kaur, Y. Li, J. Kolter & A. Talwalkar (2021), Gradient descent on neural
        networks typically occurs at the edge of stability.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> h = torch.tensor([1.0, 4.0], dtype=torch.float64)
        >>> bowl = FunctionLandscape(lambda x: (h * x**2).sum() / 2, dim=2)
        >>> x = torch.ones(2, dtype=torch.float64)
        >>> run = track(bowl, x, lr=0.25, steps=20, every=10, seed=0)
        >>> run.steps.tolist(), run.products.tolist()
        ([0, 10, 20], [1.0, 1.0, 1.0])
        >>> on = track(bowl, lr=0.25, steps=40, every=10, resume=run)
        >>> on.steps.tolist()
        [0, 10, 20, 30, 40]
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    factory = _factory(lr, momentum, nesterov, optimizer)
    if (theta is None) == (resume is None):
        raise ValueError("give either theta= (where to start) or resume= (a Track), and not both")
    if resume is not None and resume.checkpoint is None:
        raise ValueError("this track was recorded in a loop of your own, so it cannot be resumed")
    if resume is not None and isinstance(seed, int) and seed != resume.seed:
        raise ValueError(f"resume= goes on with its own seed {resume.seed}, not {seed}")
    tracker = Tracker(
        land,
        every=every,
        at=at,
        k=k,
        trace_samples=trace_samples,
        tol=tol,
        max_products=max_products,
        seed=seed if resume is None else resume.seed,
    )
    settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "batch_size": batch_size}
    settings |= {"k": k, "trace_samples": trace_samples, "dim": land.dim}
    run = _Run(land, theta, factory, batch_size, tracker, settings, resume)
    return run.go(steps, progress)


def _factory(
    lr: float | None, momentum: float, nesterov: bool, optimizer: Factory | None
) -> Factory:
    if (lr is None) == (optimizer is None):
        raise ValueError("give either lr= (gradient descent) or optimizer= (a function that makes "
                         "one), and not both")  # fmt: skip
    if optimizer is not None:
        if momentum or nesterov:
            raise ValueError("momentum= and nesterov= belong to lr=; set them in optimizer=")
        return optimizer
    if lr is None or not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive, got {lr!r}")
    StepRule(lr=lr, momentum=momentum)
    return lambda parameters: torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov
    )


def _order(land: Landscape, batch_size: int | None, seed: int) -> Minibatches:
    """Return what draws the minibatches; all the data is one where no size is given.

    Raises:
        ValueError: If the landscape has no examples to draw from.
    """
    if batch_size is not None and not isinstance(land, FiniteSum):
        raise ValueError("this landscape is no mean over examples, so it has no minibatches")
    if batch_size is None:
        batch_size = land.examples if isinstance(land, FiniteSum) else 1
    return Minibatches(land, batch_size, make_generator(seed)[0])


class _Run:
    """One run: the vector, its optimiser, its records, and the last state worth keeping."""

    def __init__(
        self,
        land: Landscape,
        theta: Tensor | None,
        factory: Factory,
        batch_size: int | None,
        tracker: Tracker,
        settings: dict[str, Any],
        resume: Track | None,
    ) -> None:
        kept = None if resume is None else resume.checkpoint
        start = theta if kept is None else kept.theta
        start = check_theta(start, land.dim, land.dtype, land.device, single=True)  # type: ignore[arg-type]  # one of the two is given
        if not bool(torch.isfinite(start).all()):
            raise ValueError("theta holds NaN or infinite values; look at the checkpoint")
        self.land, self.tracker, self.settings = land, tracker, settings
        self.leaf = start.clone().requires_grad_()
        self.optimizer = factory([self.leaf])
        self.batch_size = batch_size
        self.order = _order(land, batch_size, tracker.seed)
        self.losses: list[float] = []
        self.step, self.training = 0, Cost()
        if resume is not None and kept is not None:
            self._restore(resume, kept)
        self.saved = self._save("not begun" if resume is None else resume.reason, self.step)

    def _restore(self, resume: Track, kept: Checkpoint) -> None:
        differing = [name for name, x in kept.settings.items() if self.settings[name] != x]
        if differing:
            shown = ", ".join(
                f"{name}={kept.settings[name]!r} (now {self.settings[name]!r})"
                for name in differing
            )
            raise ValueError(f"resume= is of a run with {shown}; go on with the same settings")
        self.optimizer.load_state_dict(copy.deepcopy(kept.optimizer))
        self.order.load(kept.order)
        self.tracker.records, self.tracker.warm = list(resume.records), dict(kept.warm)
        self.losses = resume.training_losses.tolist()
        self.step, self.training = kept.step, resume.training_cost

    def _save(self, reason: str, wanted: int) -> Track:
        """Return the run as it stands, with all that it needs to go on."""
        records = tuple(self.tracker.records)
        checkpoint = Checkpoint(
            step=self.step,
            theta=self.leaf.detach().clone(),
            optimizer=copy.deepcopy(self.optimizer.state_dict()),
            order=self.order.state(),
            warm=dict(self.tracker.warm),
            settings=self.settings,
        )
        return Track(
            records=records,
            training_losses=torch.tensor(self.losses, dtype=torch.float64),
            step=self.step,
            steps_wanted=wanted,
            reason=reason,
            training_cost=self.training,
            cost=sum((record.cost for record in records), Cost()),
            seed=self.tracker.seed,
            method=self._name(),
            checkpoint=checkpoint,
        )

    def _name(self) -> str:
        kind = type(self.optimizer).__name__
        if kind == "SGD" and self.batch_size is None:
            kind = "gradient descent"
        size = self.batch_size
        return kind if size is None else f"{kind} on minibatches of {size}"

    def go(self, steps: int, progress: Progress | None) -> Track:
        """Take the steps that are missing."""
        try:
            reason = self._go(steps, progress)
        except KeyboardInterrupt:  # a step may be half taken: go back to the last record
            return replace(
                self.saved, reason="interrupted; resume= goes on here", steps_wanted=steps
            )
        return self._save(reason, steps)

    def _go(self, steps: int, progress: Progress | None) -> str:
        while True:
            whole = self.batch_size is None
            last = self.tracker.records[-1].step if self.tracker.records else -1
            due, more = self.tracker.due(self.step) and last < self.step, self.step < steps
            if due and not (whole and more):
                self._record(None, steps)
            if not more:
                return "all steps are taken"
            before = self.land.cost
            value, gradient = self.order.draw().value_and_gradient(self.leaf.detach())
            spent = self.land.cost - before
            if due and whole:
                self._record((value, gradient), steps)
            if not bool(torch.isfinite(value) & torch.isfinite(gradient).all()):
                return f"the loss stopped being finite at step {self.step}; lower the learning rate"
            self.leaf.grad = gradient
            self.optimizer.step()
            self.training += spent
            self.losses.append(float(value))
            self.step += 1
            if progress is not None and (self.step % 20 == 0 or self.step == steps):
                progress(self.step / steps, f"step {self.step} of {steps}, loss {float(value):.6g}")

    def _record(self, known: tuple[Tensor, Tensor] | None, steps: int) -> None:
        rule = self.tracker.rule(self.optimizer)
        self.tracker.measure(self.step, self.leaf.detach(), rule, known)
        self.saved = self._save("stands at a record", steps)
