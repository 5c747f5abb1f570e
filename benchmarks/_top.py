"""Section a: the twenty eigenvalues of largest magnitude, in products and relative error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from _measure import spread
from _peers import curvlinops, eigenthings, pyhessian, pyhessian_rule
from _trained import LARGE, Stage, dense, landscape
from _turns import Answer, Contestant, Turn, quiet, take_turns
from nets import Problem
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import thalweg

K = 20
TOL = 3e-5  # one for all networks: the loosest of 1e-4, 3e-5, 1e-5 that reaches REACH on them
REACH, RULE_LIMIT, RULE_HALF = 1e-4, 1 / 4, 1 / 6
OURS, RULE = "Thalweg", "PyHessian's rule on the dense matrix"


@dataclass(frozen=True)
class Question:
    """A network, and its Hessian where it is small enough to write down."""

    problem: Problem
    matrix: Tensor | None


def worst_error(values: list[float], truth: Tensor) -> float:
    """Return the worst relative error of some eigenvalues under the best pairing with truth.

    Args:
        values: What was found, in any order; NaN is an infinite error.
        truth: All eigenvalues; those of largest magnitude are what was asked for. Where
            several tie for the last place, any of them is right.
    """
    count = len(values)
    if not np.isfinite(values).all():
        return float("inf")
    ordered = truth[truth.abs().argsort(descending=True)]
    last = ordered[count - 1].abs() * (1 - REACH)
    allowed = max(count, int((ordered.abs() >= last).sum()))
    wanted = ordered[:allowed].numpy()
    errors = np.abs(np.asarray(values)[:, None] - wanted) / np.abs(wanted)
    return float(errors[linear_sum_assignment(errors)].max())


def _ours(tol: float, block: int, question: Question, seed: int) -> Answer:
    land, theta = landscape(question.problem)
    with thalweg.Hessian(land, theta) as operator:
        found = thalweg.eigenpairs(operator, K, which="magnitude", tol=tol, block=block, seed=seed)
        cost = operator.cost
    return Answer(found.values.tolist(), cost.hvps, cost.passes, bool(found.converged.all()))


def _pyhessian(question: Question, seed: int) -> Answer:
    with quiet(question.problem.inputs.dtype, seed), pyhessian(question.problem) as (held, tally):
        values, _ = held.eigenvalues(top_n=K)
    return Answer(values, tally.products, tally.passes)


def _rule(question: Question, seed: int) -> Answer:
    matrix = question.matrix
    if matrix is None:
        raise ValueError("no dense matrix of this network")
    values, products = pyhessian_rule(lambda v: matrix @ v, len(matrix), K, seed)
    return Answer(values, products, products)


def _eigenthings(until: bool, question: Question, seed: int) -> Answer:
    from hessian_eigenthings.algorithms.lanczos import lanczos

    with quiet():
        operator, tally = eigenthings(question.problem)
        steps = 2 * K  # its default
        while True:
            found = lanczos(operator, k=K, max_iter=steps, seed=seed, reorthogonalize=True)
            done = bool(found.converged.all())
            if done or not until or steps >= 16 * K:
                break
            steps = min(2 * steps, operator.size)
    return Answer(found.eigenvalues.tolist(), tally.products, tally.passes, done)


def _arpack(tol: float, question: Question, seed: int) -> Answer:
    with quiet(seed=seed):
        operator, tally = curvlinops(question.problem)
        start = np.random.default_rng(seed).standard_normal(operator.shape[0])
        values = scipy.sparse.linalg.eigsh(
            operator.to_scipy(), K, tol=tol, v0=start, return_eigenvectors=False
        )
    return Answer(values.tolist(), tally.products, tally.passes, True)


CONTESTANTS = (
    Contestant(OURS, "thalweg", partial(_ours, TOL, 1)),
    Contestant("Thalweg, its default tol=1e-6", "thalweg", partial(_ours, 1e-6, 1)),
    Contestant("Thalweg, blocks of 8", "thalweg", partial(_ours, TOL, 8)),
    Contestant("PyHessian", "PyHessian", _pyhessian),
    Contestant(RULE, "thalweg", _rule, reference=True),
    Contestant("hessian-eigenthings", "hessian-eigenthings", partial(_eigenthings, False)),
    Contestant(
        "hessian-eigenthings, steps doubled until it says converged",
        "hessian-eigenthings",
        partial(_eigenthings, True),
    ),
    Contestant("curvlinops + eigsh", "curvlinops-for-pytorch", partial(_arpack, 0.0)),
    Contestant("curvlinops + eigsh, tol=1e-4", "curvlinops-for-pytorch", partial(_arpack, 1e-4)),
)


def truth_of(question: Question) -> tuple[Tensor, str]:
    """Return the eigenvalues to compare with, and what they are."""
    if question.matrix is not None:
        return torch.linalg.eigvalsh(question.matrix), "dense float64"
    land, theta = landscape(question.problem)
    with thalweg.Hessian(land, theta) as operator:
        tight = thalweg.eigenpairs(
            operator, K + 1, which="magnitude", tol=1e-11, max_products=3000, seed=0
        )
        arpack = scipy.sparse.linalg.eigsh(operator.to_scipy(), K + 1, return_eigenvectors=False)
    other = torch.as_tensor(np.sort(arpack))
    gap = float(((tight.values.sort().values - other) / other).abs().max())
    if not (bool(tight.converged.all()) and gap < 1e-8):
        raise AssertionError(f"two tight solvers disagree by {gap:.2g}: there is no truth")
    return tight.values, f"ARPACK to machine precision, and ours at tol=1e-11: {gap:.0e} apart"


def measure(stage: Stage, examples: int, rounds: int) -> dict[str, Any]:
    """Run every contestant on one network."""
    problem = stage.problem(examples)
    question = Question(problem, dense(problem) if stage is not LARGE else None)
    truth, how = truth_of(question)
    field = {c.name: c for c in CONTESTANTS if not (c.reference and question.matrix is None)}
    turns = take_turns(field, question, rounds)
    rows = [_row(contestant, turns[name], truth) for name, contestant in field.items()]
    return {
        "net": stage.name,
        "parameters": problem.dim,
        "examples": examples,
        "loss": problem.mean_loss().item(),
        "truth": how,
        "rows": rows,
        "verdict": judge(rows),
    }


def _row(contestant: Contestant, turns: list[Turn] | str, truth: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {"name": contestant.name, "ours": contestant.ours}
    if isinstance(turns, str):
        return row | {"fails": turns}
    errors = [worst_error(turn.answer.values, truth) for turn in turns]
    said = [turn.answer.converged for turn in turns]
    row |= {
        "products": spread([float(turn.answer.products) for turn in turns]),
        "passes": spread([turn.answer.passes for turn in turns]),
        "error": spread(errors),
        "says converged": None if None in said else sum(map(bool, said)) / len(said),
    }
    if not contestant.reference:
        row["seconds"] = spread([turn.seconds for turn in turns])
    return row


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Hold ours to PyHessian's rule: the products of the dense rule, else of the package."""
    named = {row["name"]: row for row in rows if "fails" not in row}
    rule = named.get(RULE) or named.get("PyHessian")
    ours = named[OURS]
    share = ours["products"]["median"] / rule["products"]["median"] if rule else float("nan")
    reached = ours["error"]["max"] <= REACH
    return {
        "share": share,
        "error": ours["error"]["max"],
        "rule error": rule["error"]["median"] if rule else None,
        "reached": reached,
        "within a quarter": reached and share <= RULE_LIMIT,
        "within a sixth": reached and share <= RULE_HALF,
    }
