"""Three-way verdicts on families whose truth is known: one unit too few, one to spare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from thalweg.paths.verdict import is_connected
from thalweg.zoo import Factored, deep_linear, matrix_factor, two_relu_swap

FAMILIES: dict[str, tuple[Callable[[int], Factored], Callable[[int], Factored]]] = {
    "deep linear": (
        lambda seed: deep_linear([2.0, 1.0], seed=seed),
        lambda seed: deep_linear([2.0, 1.0], width=3, seed=seed),
    ),
    "matrix factor": (
        lambda seed: matrix_factor([3.0, 2.0], seed=seed),
        lambda seed: matrix_factor([3.0, 2.0], width=3, seed=seed),
    ),
    "ReLU swap": (
        lambda seed: two_relu_swap(seed=seed),
        lambda seed: two_relu_swap(units=3, seed=seed),
    ),
}


def _cases(count: int) -> list[tuple[str, bool, float, int]]:
    """Go through the families, tight and wide, at levels below and above the tight barrier."""
    kinds = [(name, tight, part) for name in FAMILIES for tight in (True, False)
             for part in ((0.9, 1.2) if tight else (0.5, 0.9))]  # fmt: skip
    return [(*kinds[i % len(kinds)], i) for i in range(count)]


@pytest.mark.calibration
def test_no_verdict_is_wrong_and_nearly_all_are_resolved(calibration: Any) -> None:
    """400 verdicts in full, 40 in CI: none wrong, at least 95 % resolved."""
    count = 2 * len(calibration.seeds) // 5
    wrong, resolved = [], 0
    for name, tight, part, seed in _cases(count):
        land, narrow = FAMILIES[name][0 if tight else 1](seed), FAMILIES[name][0](seed)
        assert narrow.barrier is not None
        level = part * narrow.barrier
        joined = not tight or part > 1
        verdict = is_connected(
            land, *land.ends(seed), level, seed=seed, searches=4, max_gradients=1200
        )
        resolved += not verdict.unresolved
        if verdict.no if joined else verdict.yes:
            wrong.append((name, tight, part, seed))
    assert not wrong
    assert resolved >= 0.95 * count, f"{resolved} of {count} resolved"
