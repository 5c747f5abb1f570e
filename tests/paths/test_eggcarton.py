"""The egg carton: every two minima are joined at 2 - d, though lines cross its maxima."""

from __future__ import annotations

import pytest
import torch

from thalweg.paths import connect, line, refine
from thalweg.zoo import eggcarton

D = torch.float64


@pytest.mark.parametrize("method", ["auto", "band", "string"])
@pytest.mark.parametrize(
    ("dim", "end", "on_the_line"),
    [(2, (0.5, -0.5), 0.0), (2, (0.5, 0.5), 2.0), (3, (0.5, 0.5, 0.5), 3.0)],
    ids=["beside", "across", "in three"],
)
def test_the_pass_has_index_1(
    method: str, dim: int, end: tuple[float, ...], on_the_line: float
) -> None:
    land = eggcarton(dim)
    a, b = torch.full((dim,), -0.5, dtype=D), torch.tensor(end, dtype=D)
    straight = line(land, a, b)
    assert straight.maximum.lower == pytest.approx(on_the_line, abs=1e-9)
    path = connect(land, a, b, method=method, seed=0)
    assert path.height.lower == pytest.approx(2, rel=1e-6)
    assert path.height.upper == pytest.approx(2, rel=1e-2)
    saddle = refine(land, path)
    assert saddle.verdict.answer == "yes"
    assert saddle.certificate.loss == pytest.approx(2 - dim, abs=1e-9)
    assert saddle.certificate.index.lower == saddle.certificate.index.upper == 1


def test_a_maximum_is_no_pass() -> None:
    """What the straight line across finds is critical, of index 2."""
    land = eggcarton()
    a = torch.full((2,), -0.5, dtype=D)
    found = refine(land, line(land, a, -a))
    assert found.verdict.answer == "no"
    assert found.certificate.index.lower == found.certificate.index.upper == 2
    assert "nan" not in str(found)
