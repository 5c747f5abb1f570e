"""The work itself: find a minimum, measure it, connect two. Nothing here touches the disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature import Hessian, eigenpairs, trace
from thalweg.curvature.profile import curvature_profile
from thalweg.estimate import Cost, Estimate
from thalweg.landscape import (
    FiniteSum,
    Landscape,
    Normalised,
    Structured,
    for_evaluation,
    make_generator,
)
from thalweg.optim import minimise, train
from thalweg.paths import Gauge, connect, line
from thalweg.paths.connect import Method
from thalweg.survey.config import SurveyConfig
from thalweg.survey.curvature import eigen_record, floats, layer_records, spectrum_record
from thalweg.survey.errors import SurveyError
from thalweg.survey.heights import check_gauge, worth
from thalweg.survey.laws import law_records
from thalweg.survey.outcomes import Connected, Found, Measured
from thalweg.survey.plan import Job, job_seed
from thalweg.survey.records import EigenRecord, LawRecord, LayerRecord, SpectrumRecord

__all__ = ["adopt", "characterise", "check_policy", "join", "search", "threads"]

Report = Callable[[float, str], None]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch this many threads inside the block, and what it had after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_policy(land: Landscape) -> None:
    """Refuse a BatchNorm policy under which different minima are not one landscape.

    Raises:
        SurveyError: If the network has BatchNorm and its policy is not ``"batch"``.
    """
    policy = land.batchnorm if isinstance(land, Normalised) else None
    if policy in (None, "batch"):
        return
    why = {
        "frozen": "every minimum would be seen through the statistics of the one stored network",
        "recompute": "there are no gradients to search with",
    }.get(str(policy), "it is not a policy that a survey knows")
    raise SurveyError(
        f"the network has BatchNorm under batchnorm={policy!r}, so that {why}",
        'build the landscape with batchnorm="batch"',
    )


def search(land: Landscape, config: SurveyConfig, job: Job, seed: int, report: Report) -> Found:
    """Train from a random start, then descend on all the data.

    Raises:
        ValueError: If the search leaves the finite numbers.
    """
    before = land.cost
    generator, _ = make_generator(job_seed(seed, "start"))
    theta = land.start(generator)
    trained = config.epochs > 0 and isinstance(land, FiniteSum)
    if trained:
        theta = train(
            land,
            theta,
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            seed=job_seed(seed, "train"),
            progress=report,
        ).theta
    found = minimise(
        land, theta, tol=config.tolerance, max_gradients=config.max_gradients, progress=report
    )
    if not (math.isfinite(found.loss) and math.isfinite(found.gradient_norm)):
        raise ValueError(
            f"the search diverged (loss {found.loss}, gradient norm {found.gradient_norm}): "
            f"{found.reason}; lower lr={config.lr:g}"
        )
    return Found(
        id=job.minima[0],
        position=job.number or 0,
        origin="trained" if trained else "descent",
        seed=seed,
        loss=_evaluated(land, found.theta, found.loss),
        gradient_norm=found.gradient_norm,
        converged=found.converged,
        norm=float(torch.linalg.vector_norm(found.theta.double())),
        theta=found.theta,
        cost=land.cost - before,
    )


def adopt(
    land: Landscape,
    config: SurveyConfig,
    theta: Float[Tensor, " dim"],
    *,
    id: str,
    position: int,
    origin: str,
    shipped: Callable[[], Estimate | None],
) -> Found:
    """Take a given vector as a minimum, as it is; `shipped` is the loss it came with.

    Raises:
        ValueError: If its loss or gradient is not finite.
    """
    before = land.cost
    loss, gradient = land.value_and_gradient(theta)
    norm = float(torch.linalg.vector_norm(gradient.double()))
    if not (math.isfinite(float(loss)) and math.isfinite(norm)):
        raise ValueError(
            f"the loss of {origin} is {float(loss)} and its gradient norm {norm}; "
            "a survey takes finite ones"
        )
    return Found(
        id=id,
        position=position,
        origin=origin,
        seed=None,
        loss=_evaluated(land, theta, float(loss)),
        gradient_norm=norm,
        converged=norm <= config.tolerance,
        norm=float(torch.linalg.vector_norm(theta.double())),
        theta=theta,
        shipped=shipped(),
        cost=land.cost - before,
    )


def characterise(
    land: Landscape,
    held_out: Landscape | None,
    config: SurveyConfig,
    job: Job,
    theta: Float[Tensor, " dim"],
    seed: int,
    report: Report,
) -> Measured:
    """Measure a minimum: loss and metrics with their errors, and its curvature."""
    before = _spent(land, held_out)
    sampling, metrics = _performance(land, theta)
    outside: dict[str, Estimate] = {}
    if held_out is not None:
        loss, outside = _performance(held_out, theta)
        outside = {"loss": loss, **outside} if loss is not None else outside
    found = _curvature(land, config, theta, seed, report)
    return Measured(
        id=job.minima[0],
        sampling=sampling,
        metrics=metrics,
        held_out=outside,
        **vars(found),
        cost=_spent(land, held_out) - before,
    )


@dataclass(frozen=True)
class _Curvature:
    """What `characterise` hands on of the curvature, under the names that an outcome has."""

    eigenvalues: EigenRecord | None = None
    vectors: Tensor | None = None
    trace: Estimate | None = None
    spectrum: SpectrumRecord | None = None
    layers: tuple[LayerRecord, ...] = ()


def _curvature(
    land: Landscape, config: SurveyConfig, theta: Tensor, seed: int, report: Report
) -> _Curvature:
    """Measure the curvature: a whole profile, or eigenpairs and trace alone."""
    found = _Curvature()
    if config.curvature_probes and config.eigenvalues:
        profile = curvature_profile(
            land,
            theta,
            eigenvalues=min(config.eigenvalues, land.dim),
            probes=config.curvature_probes,
            passes=config.curvature_passes,
            layers=config.layers and isinstance(land, Structured),
            seed=job_seed(seed, "profile"),
            progress=report,
        )
        laws: tuple[LawRecord, ...] = ()
        if config.laws:
            report(0.9, "laws of random matrices")
            laws = law_records(profile.density, profile.inertia.tau, job_seed(seed, "laws"))
        found = _Curvature(
            eigen_record(profile.eigenpairs),
            profile.eigenpairs.vectors,
            profile.trace,
            spectrum_record(profile, laws),
            layer_records(profile.layers),
        )
    with Hessian(land, theta) as hessian:
        if config.eigenvalues and found.eigenvalues is None:
            report(0.1, "eigenvalues")
            count = min(config.eigenvalues, land.dim)
            pairs = eigenpairs(hessian, count, seed=job_seed(seed, "eigenpairs"))
            found = replace(found, eigenvalues=eigen_record(pairs), vectors=pairs.vectors)
        if not config.trace_samples:
            return replace(found, trace=None)
        if found.trace is None or found.trace.samples < min(config.trace_samples, land.dim):
            report(0.7, "trace")
            samples, number = config.trace_samples, job_seed(seed, "trace")
            found = replace(found, trace=trace(hessian, samples=samples, seed=number))
    return found


def join(
    land: Landscape,
    held_out: Landscape | None,
    gauge: Gauge | None,
    config: SurveyConfig,
    job: Job,
    a: Float[Tensor, " dim"],
    b: Float[Tensor, " dim"],
    seed: int,
    report: Report,
) -> Connected:
    """Connect two minima by a low path, searched for from the straight line on.

    The maximum is the largest loss along the path, an absolute value like that
    of the line; the barrier is measured above the higher end.

    Raises:
        ValueError: If the gauge changes the loss of an end.
    """
    before = _spent(land, held_out)
    check_gauge(land, gauge, (a, b))
    straight = line(land, a, b)
    report(0.1, f"straight line: {straight.maximum}")
    path = connect(
        land,
        a,
        b,
        method=cast("Method", config.path_method),
        start=straight,
        images=config.images,
        max_gradients=config.path_gradients,
        seed=job_seed(seed, "string"),
        progress=report,
    )
    report(0.95, "what the path is worth")
    found = worth(land, held_out, gauge, path, straight, config.places)
    return Connected(
        a=job.minima[0],
        b=job.minima[1],
        method=path.method,
        times=floats(path.profile.times),
        losses=floats(path.profile.losses),
        line_times=floats(straight.profile.times),
        line_losses=floats(straight.profile.losses),
        maximum=path.maximum,
        barrier=path.barrier,
        line_maximum=straight.maximum,
        normalised_length=path.normalised_length,
        converged=path.converged,
        points=path.points,
        cost=_spent(land, held_out) - before,
        repeat=job.repeat,
        **vars(found),
    )


def _performance(land: Landscape, theta: Tensor) -> tuple[Estimate | None, dict[str, Estimate]]:
    """Return the loss with its sampling error, and the metrics, of what has data."""
    view = for_evaluation(land)
    loss_estimate = getattr(view, "loss_estimate", None)
    metrics = getattr(view, "metrics", None)
    return (
        loss_estimate(theta) if callable(loss_estimate) else None,
        dict(metrics(theta)) if callable(metrics) else {},
    )


def _evaluated(land: Landscape, theta: Tensor, loss: float) -> float:
    """Return the loss under which minima and paths are compared."""
    view = for_evaluation(land)
    return loss if view is land else float(view.loss(theta))


def _spent(land: Landscape, held_out: Landscape | None) -> Cost:
    return land.cost if held_out is None else land.cost + held_out.cost
