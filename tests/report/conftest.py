"""Fabricated surveys to report on."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest

from thalweg.estimate import Bound, Cost, Estimate
from thalweg.survey.records import (
    DensityRecord,
    EigenRecord,
    FailureRecord,
    LawRecord,
    LayerRecord,
    LevelRecord,
    LevelSetRecord,
    MinimumRecord,
    PathRecord,
    SaddleRecord,
    SpectrumRecord,
    SurveyRecord,
)
from thalweg.survey.trees import basins, trees
from thalweg.topology import merge_tree


def estimate(value, half, **rest):
    return Estimate(value, half / 1.96, (value - half, value + half), 64, **rest)


def minimum(id="m0", loss=0.1, *, noise=0.01, trace=(50.0, 1.0), top=(10.0, 0.1), **rest):
    values = {
        "origin": "trained",
        "seed": 0,
        "gradient_norm": 3.2e-5,
        "converged": True,
        "metrics": {},
        "held_out": {},
        "norm": 14.2,
        "cost": Cost(120, 4000, 900, 5020.0),
        "seconds": 6.2,
    }
    sampling = None if noise is None else estimate(loss, noise, cost=Cost(1, 0, 0, 1.0))
    eigenvalues = None
    if top is not None:
        eigenvalues = EigenRecord(
            (top[0], top[0] / 2),
            (top[1], top[1]),
            (top[0] - top[1], top[0] / 2 - top[1]),
            (top[0] + top[1], top[0] / 2 + top[1]),
            (True, False),
        )
    traced = None if trace is None else estimate(*trace)
    values |= {"sampling": sampling, "eigenvalues": eigenvalues, "trace": traced}
    return MinimumRecord(id=id, loss=loss, **{**values, **rest})


def eigenvalues(values, half=0.01):
    """Eigenvalues with equal intervals, the last one not converged."""
    return EigenRecord(
        tuple(values),
        (half,) * len(values),
        tuple(v - half for v in values),
        tuple(v + half for v in values),
        tuple(k + 1 < len(values) for k in range(len(values))),
    )


def density(bulk=0.2, outliers=(9.0, 7.5, 7.4), wide=0.15, **rest):
    """Two bumps at zero with a band of a fifth, and some eigenvalues apart."""
    grid = [-1.5 + 12 * k / 400 for k in range(401)]
    values = [
        0.8 * math.exp(-((x / wide) ** 2) / 2) / wide / 2.5066
        + 0.2 * math.exp(-(((x - 2 * bulk) / (wide + bulk)) ** 2) / 2) / (wide + bulk) / 2.5066
        for x in grid
    ]
    fields = {
        "grid": tuple(grid),
        "values": tuple(values),
        "lower": tuple(0.8 * y for y in values),
        "upper": tuple(1.2 * y for y in values),
        "level": 0.95,
        "broadening": wide,
        "outliers": eigenvalues(outliers),
    }
    return DensityRecord(**{**fields, **rest})


def counted(lower, upper):
    middle = (lower + upper) / 2
    return Estimate(middle, (upper - lower) / 4, (float(lower), float(upper)), 8)


def spectrum(negative=(0, 0), zero=(900, 1400), **rest):
    fields = {
        "density": density(),
        "lowest": Bound(-0.0043, -0.0041, "estimated", "certified"),
        "tau": 0.005,
        "negative": counted(*negative),
        "zero": counted(*zero),
        "positive": counted(1010, 1510),
        "certified": (0, 12),
        "shift": 0.01,
        "log_determinant": estimate(-8203.0, 31.0),
        "effective_dimension": estimate(412.0, 9.0),
        "frobenius_norm": estimate(23.7, 0.6),
    }
    return SpectrumRecord(**{**fields, **rest})


def law(name="semicircle", verdict="accepted", **rest):
    """A triangle instead of a law: its verdict and its numbers are what matters."""
    if verdict == "does not apply":
        return LawRecord(name, verdict, "half of the bulk is a spike")
    grid = tuple(-0.6 + 1.4 * k / 60 for k in range(61))
    fields = {
        "reason": "0.4 of 99 matrices lie as far off",
        "parameters": {"centre": estimate(0.1, 0.02), "radius": estimate(0.5, 0.03)},
        "support": ((-0.4, 0.6),),
        "grid": grid,
        "values": tuple(max(0.0, 2 - 4 * abs(x - 0.1)) for x in grid),
        "size": 2405,
        "fitted": 0.998,
        "outliers": 5,
        "distance": 0.0123,
        "wasserstein": 0.0045,
        "p_value": {"accepted": 0.4, "unresolved": 0.03, "rejected": 0.01}[verdict],
        "replicates": 99,
        "seed": 5,
        "method": "free cumulants",
    }
    return LawRecord(name, verdict, **{**fields, **rest})


def layers(scale=1.0):
    sizes = {"0": 1950, "2": 310, "head": 150}
    return tuple(
        LayerRecord(
            name,
            size,
            estimate(scale * (20.0 + 11 * k), 1.5),
            Bound(scale * (1.5 + 3 * k), scale * (1.7 + 3 * k), "certified", "estimated"),
        )
        for k, (name, size) in enumerate(sizes.items())
    )


def path(
    a, b, height, *, ends=(0.1, 0.1), line=None, lower=None, width=0.002, bracket=None, **rest
):
    top = max(*ends, height)
    times = [k / 20 for k in range(21)]
    base = [ends[0] + t * (ends[1] - ends[0]) for t in times]
    line = top * 2 if line is None else line
    hump = [math.sin(math.pi * t) ** 2 for t in times]
    losses = [y + (top - max(ends)) * h for y, h in zip(base, hump, strict=True)]
    lines = [y + (line - max(ends)) * h for y, h in zip(base, hump, strict=True)]
    barrier = Bound(
        0.0 if lower is None else lower,
        top - max(ends),
        "estimated" if lower is None else "certified",
        "estimated",
    )
    bracket = bracket or Bound(top - width, top, "estimated", "estimated")
    values = {
        "method": "string",
        "times": tuple(times),
        "losses": tuple(losses),
        "line_times": tuple(times),
        "line_losses": tuple(lines),
        "maximum": bracket,
        "barrier": barrier,
        "normalised_length": 1.21,
        "converged": True,
        "line_maximum": Bound(line - 0.001, line, "estimated", "estimated"),
        "cost": Cost(300, 2500, 0, 2800.0),
        "seconds": 9.1,
    }
    return PathRecord(a=a, b=b, **{**values, **rest})


def saddle(a, b, loss, *, index=(1, 1), answer="yes", flatness=1e-9, **rest):
    fields = {
        "reason": "a pass of index 1 at its top",
        "top": Bound(loss - 0.001, loss, "certified", "estimated"),
        "gradient_norm": 2.4e-8,
        "value": Bound(loss - 1e-9, loss, "estimated", "estimated"),
        "index": Bound(*index, "certified", "estimated"),
        "zero": Bound(0, 3, "estimated", "estimated"),
        "flat": 1e-5,
        "lowest": eigenvalues([-0.41, 0.02], 0.001),
        "distance": 3e-7,
        "cost": Cost(40, 60, 420, 160.0),
        "seconds": 1.7,
    }
    values = {"answer": answer, "loss": loss, "flatness": flatness}
    return SaddleRecord(a=a, b=b, **{**fields, **values, **rest})


def level(at, length, *, beads=5.0, half=0.02, yes=2, unresolved=0):
    means = (None, None, None)
    if yes:
        means = (estimate(1.05 * length, half), estimate(length, half), estimate(beads, 1.0))
    return LevelRecord(at, yes, 0, unresolved, *means, "" if yes else "no string was found")


def level_set(a="m0", b="m1", rows=None):
    rows = rows or (level(0.4, 1.0), level(0.2, 1.2), level(0.1, 1.0, yes=0, unresolved=2))
    return LevelSetRecord(a, b, tuple(rows), "beads", Cost(900, 1400, 0, 200.0), 12.0)


def survey(minima=(), paths=(), **rest):
    values = {
        "name": "digits",
        "created": "2026-03-01T12:00:00Z",
        "config": {},
        "provenance": {},
        "dim": 2410,
        "failures": (),
        "cost": Cost(2000, 40000, 5400, 47000.0),
        "seconds": 97.3,
        "complete": True,
    }
    heights = {m.id: m.loss for m in minima if math.isfinite(m.loss)}
    known = [(p.a, p.b, p.maximum) for p in paths if {p.a, p.b} <= set(heights)]
    tree = merge_tree(heights, known)
    return SurveyRecord(
        minima=tuple(minima), paths=tuple(paths), **{**values, "tree": tree, **rest}
    )


def failure(job="path m0 m5", error="the loss is not finite at step 41"):
    return FailureRecord(job, error, "2026-03-01T12:01:30Z")


_LAWS = (
    (law(), law("marchenko-pastur", "does not apply")),
    (law("free", "unresolved"), law("semicircle", "rejected")),
    (law("marchenko-pastur", "rejected", atom=0.6), law("free", "rejected")),
    (law(p_value=0.7), law("marchenko-pastur", "rejected")),
    (law("semicircle", "does not apply"), law("marchenko-pastur", "does not apply")),
    (),
)


def realistic():
    """Six networks on digits: two groups, small and large passes, one failure."""
    rng = random.Random(7)
    minima = []
    for k in range(6):
        loss = 0.0412 + 0.012 * rng.random()
        top = 9 + 6 * rng.random()
        values = [top / (1 + 0.35 * i) for i in range(10)]
        wide = [10 ** rng.uniform(-4, -0.6) for _ in values]
        arms = list(zip(values, wide, strict=True))
        eigenvalues = EigenRecord(
            tuple(values),
            tuple(wide),
            tuple(v - w for v, w in arms),
            tuple(v + w for v, w in arms),
            tuple(w < 0.15 for w in wide),
        )
        minima.append(
            minimum(
                f"m{k}",
                loss,
                noise=0.0061,
                seed=k,
                trace=(70 + 30 * rng.random(), 2.5),
                eigenvalues=eigenvalues,
                gradient_norm=10 ** rng.uniform(-6, -4),
                norm=14 + rng.random(),
                converged=k != 4,
                spectrum=spectrum(
                    [(0, 0), (0, 0), (2, 7), (0, 0), (0, 12), (0, 0)][k],
                    density=density(0.1 + 0.1 * rng.random(), values[:5]),
                    tau=0.004 + 0.002 * rng.random(),
                    laws=_LAWS[k],
                ),
                layers=layers(0.7 + 0.6 * rng.random()),
                seconds=5 + 3 * rng.random(),
                metrics={"accuracy": estimate(0.991 - 0.004 * rng.random(), 0.004)},
                held_out={
                    "loss": estimate(0.11 + 0.03 * rng.random(), 0.031),
                    "accuracy": estimate(0.96 + 0.01 * rng.random(), 0.017),
                },
            )
        )
    loss = {m.id: m.loss for m in minima}
    heights = {
        ("m0", "m1"): 0.0481,
        ("m1", "m2"): 0.0503,
        ("m2", "m3"): 0.3107,
        ("m3", "m4"): 0.0989,
        ("m4", "m5"): 0.0995,
        ("m0", "m5"): 0.4411,
        ("m0", "m3"): 0.3921,
    }
    paths = [
        path(
            a,
            b,
            h,
            ends=(loss[a], loss[b]),
            line=2.1 + rng.random(),
            width=0.003 * (1 + i % 3),
            converged=i != 5,
        )
        for i, ((a, b), h) in enumerate(heights.items())
    ]
    further = [
        path("m2", "m3", 0.3107 + 0.02 * k, ends=(loss["m2"], loss["m3"]), repeat=k) for k in (1, 2)
    ]
    _, best_known, certified = trees(minima, [*paths, *further], 0)
    return survey(
        minima,
        paths,
        further=tuple(further),
        best_known=best_known,
        certified=certified,
        basins=basins(minima, best_known),
        saddles=(
            saddle("m0", "m1", 0.0481),
            saddle("m1", "m2", 0.0503, index=(1, 4), answer="unresolved"),
            saddle("m2", "m3", 0.3107, index=(0, 5), answer="no", flatness=0.97, value=None),
        ),
        level_sets=(
            level_set(
                "m2",
                "m3",
                [level(2.0, 1.0), level(1.2, 1.08), level(0.7, 1.31), level(0.4, 1.74, beads=11.0)],
            ),
        ),
        failures=(failure(),),
        name="digits, MLP 64-30-10",
        config={"minima": 6, "seed": 0, "path": {"method": "string", "images": 21, "tol": 1e-4}},
        provenance={
            "thalweg": "0.1.0",
            "torch": "2.13.0",
            "threads": 1,
            "data": {
                "name": "digits (scikit-learn)",
                "examples": 1437,
                "digest": "5e9c0f0b61a2e7d94f2f54a1f0b5c4f7" * 2,
            },
            "landscape": "ModelLandscape(Sequential(Linear(64, 30), Tanh(), ...), "
            "cross_entropy, penalty=0.001, batchnorm=None)",
        },
    )


@pytest.fixture
def make():
    """The factories above."""
    return SimpleNamespace(
        minimum=minimum,
        path=path,
        survey=survey,
        failure=failure,
        estimate=estimate,
        eigenvalues=eigenvalues,
        density=density,
        spectrum=spectrum,
        layers=layers,
        law=law,
        saddle=saddle,
        level=level,
        level_set=level_set,
        counted=counted,
        realistic=realistic,
    )
