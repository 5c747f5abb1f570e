"""Section b: traces of Gauss-Newton matrices and Hessians, RMS error against products."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from _trained import STAGES, Stage, dense, gauss_newton, landscape
from _turns import quiet, reason, version
from torch import Tensor

import thalweg
from thalweg.curvature import GaussNewton, MatrixOperator

BUDGETS = (36, 48, 96, 192)  # ours takes 32 at least; Hutch++ needs a multiple of three
GOAL = 0.01
HUTCHINSON_LIMIT, XTRACE_LIMIT, INDEFINITE_LIMIT = 1 / 3, 1 / 2, 1.1
FORMULA = "Hutchinson (its exact variance)"
AUTO, XTRACE = "Thalweg, method='auto'", "curvlinops xtrace"
GAUSS_NEWTON = ("softmax regression", "tanh, 30 steps", "tanh, 400 steps", "ReLU, 400 steps")
HESSIANS = ("tanh, untrained", "tanh, 30 steps", "tanh, 400 steps", "CNN, 200 steps")

Estimator = Callable[[Tensor, bool, int, int], tuple[float, int]]


def _ours(method: str) -> Estimator:
    def estimate(matrix: Tensor, definite: bool, samples: int, seed: int) -> tuple[float, int]:
        operator = MatrixOperator(matrix, definite=definite)
        found = thalweg.trace(operator, samples=samples, method=method, seed=seed)
        return found.value, found.cost.hvps

    return estimate


def _curvlinops(name: str) -> Estimator:
    def estimate(matrix: Tensor, definite: bool, samples: int, seed: int) -> tuple[float, int]:
        import curvlinops

        with quiet(seed=seed):
            return float(getattr(curvlinops, name)(matrix, samples)), samples

    return estimate


ESTIMATORS: dict[str, tuple[str, Estimator]] = {
    AUTO: ("thalweg", _ours("auto")),
    XTRACE: ("curvlinops-for-pytorch", _curvlinops("xtrace")),
    "curvlinops hutchpp": ("curvlinops-for-pytorch", _curvlinops("hutchpp_trace")),
    "curvlinops hutchinson": ("curvlinops-for-pytorch", _curvlinops("hutchinson_trace")),
}


def hutchinson_error(matrix: Tensor, products: int) -> float:
    """Return the exact RMS relative error of the mean of so many forms with random signs."""
    off = matrix - torch.diag(matrix.diagonal())
    return math.sqrt(2 / products) * float(off.norm()) / abs(float(matrix.trace()))


def products_for(points: list[tuple[float, float]], goal: float = GOAL) -> float | None:
    """Return how many products an RMS error of `goal` takes, between measured budgets.

    Args:
        points: Products and RMS errors, by products.
        goal: The error wanted.

    Returns:
        The number by interpolation in logarithms; the least budget if that does already;
        None if the greatest does not.
    """
    if points[0][1] <= goal:
        return points[0][0]
    for (few, above), (many, below) in pairwise(points):
        if below <= goal:
            share = math.log(above / goal) / math.log(above / below)
            return few * (many / few) ** share
    return None


def measure(stage: Stage, kind: str, examples: int, seeds: int) -> dict[str, Any]:
    """Return RMS errors at every budget, for one matrix of one network."""
    problem = stage.problem(examples)
    definite = kind == "Gauss-Newton"
    matrix = (gauss_newton if definite else dense)(problem)
    truth = float(matrix.trace())
    budgets = [budget for budget in BUDGETS if budget < len(matrix)]
    exact = [(float(m), hutchinson_error(matrix, m)) for m in budgets]
    base = (hutchinson_error(matrix, 1) / GOAL) ** 2
    rows = [{"name": FORMULA, "points": exact, "for the goal": base}]
    for name, (package, estimate) in ESTIMATORS.items():
        rows.append({"name": name} | _row(package, estimate, matrix, definite, budgets, seeds))
    result = {
        "net": stage.name,
        "matrix": kind,
        "parameters": len(matrix),
        "trace": truth,
        "over": float(matrix.norm()) / abs(truth),
        "seeds": seeds,
        "rows": rows,
    }
    if definite:
        result["zero products"] = _own(problem, truth)
    return result | {"verdicts": judge(result)}


def _row(
    package: str,
    estimate: Estimator,
    matrix: Tensor,
    definite: bool,
    budgets: list[int],
    seeds: int,
) -> dict[str, Any]:
    if version(package) is None:
        return {"fails": f"not installed (pip install {package})"}
    truth, points = float(matrix.trace()), []
    try:
        for budget in budgets:
            found = [estimate(matrix, definite, budget, seed) for seed in range(seeds)]
            squares = [(value / truth - 1) ** 2 for value, _ in found]
            products = sum(count for _, count in found) / seeds
            points.append((products, math.sqrt(sum(squares) / seeds)))
    except Exception as error:  # whatever a peer raises is a result
        if package == "thalweg":
            raise
        return {"fails": reason(error)}
    return {"points": points, "for the goal": products_for(points)}


def _own(problem: Any, truth: float) -> dict[str, float]:
    """Return the error and cost of the trace that a Gauss-Newton matrix knows by itself."""
    land, theta = landscape(problem)
    with GaussNewton(land, theta) as operator:
        found = thalweg.trace(operator, seed=0)
    return {
        "error": abs(found.value / truth - 1),
        "products": found.cost.hvps,
        "passes": found.cost.passes,
    }


def judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold ours to the targets of its kind of matrix."""
    rows = {row["name"]: row for row in result["rows"] if "fails" not in row}
    ours = rows[AUTO]
    if result["matrix"] != "Gauss-Newton":
        by = {
            products: error / (rows[FORMULA]["points"][i][1])
            for i, (products, error) in enumerate(ours["points"])
        }
        worst = max(by.values())
        return [_verdict("worst RMS error over Hutchinson's", INDEFINITE_LIMIT, worst)]
    limits = {FORMULA: HUTCHINSON_LIMIT, XTRACE: XTRACE_LIMIT}
    verdicts = []
    for name, limit in limits.items():
        if name in rows:
            above, below = ours["for the goal"], rows[name]["for the goal"]
            share = above / below if above and below else math.nan
            verdicts.append(_verdict(f"products for 1 % RMS, over {name}'s", limit, share))
    return verdicts


def _verdict(target: str, limit: float, found: float) -> dict[str, Any]:
    return {"target": target, "limit": limit, "measured": found, "passed": found <= limit}


def cases() -> list[tuple[Stage, str]]:
    """Return the networks with the matrix to take of each."""
    by_name = {stage.name: stage for stage in STAGES}
    return [(by_name[name], "Gauss-Newton") for name in GAUSS_NEWTON] + [
        (by_name[name], "Hessian") for name in HESSIANS
    ]
