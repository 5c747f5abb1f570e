"""The gauge: what a rescaling of one end changes, and what it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths import line
from thalweg.paths.gauge import chosen, in_gauge

UNITS, INPUTS = 6, 4


def _network() -> FunctionLandscape:
    """A ReLU network without biases of 4-6-1 units, square loss on fixed data."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(40, INPUTS, generator=g, dtype=torch.float64)
    y = torch.sin(x.sum(1))

    def loss(theta: Tensor) -> Tensor:
        w, v = theta[: UNITS * INPUTS].view(UNITS, INPUTS), theta[UNITS * INPUTS :]
        return ((torch.relu(x @ w.T) @ v - y) ** 2).mean()

    return FunctionLandscape(loss, UNITS * INPUTS + UNITS)


def rescaled(theta: Tensor, scale: float) -> Tensor:
    """One layer times `scale`, the next over it: the same function."""
    cut = UNITS * INPUTS
    return torch.cat([theta[:cut] * scale, theta[cut:] / scale])


def balanced(theta: Tensor) -> Tensor:
    """Every unit's incoming and outgoing norms made equal."""
    w, v = theta[: UNITS * INPUTS].view(UNITS, INPUTS), theta[UNITS * INPUTS :]
    scale = (v.abs() / torch.linalg.vector_norm(w, dim=1)).sqrt()
    return torch.cat([(w * scale[:, None]).flatten(), v / scale])


def _ends() -> tuple[FunctionLandscape, Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    land = _network()
    a, b = 0.5 * torch.randn(2, land.dim, generator=g, dtype=torch.float64)
    return land, a, b


def test_a_rescaled_end_moves_the_raw_line_and_not_the_balanced_one() -> None:
    land, a, b = _ends()
    heights, lengths = [], []
    raw_lengths = []
    for scale in (1.0, 2.0, 10.0):
        end = rescaled(b, scale)
        assert float(land.loss(end)) == pytest.approx(float(land.loss(b)), rel=1e-12)
        raw = line(land, a, end)
        raw_lengths.append(raw.length)
        flat = line(land, chosen(land, balanced, a), chosen(land, balanced, end))
        heights.append(flat.maximum.lower)
        lengths.append(flat.length)
    assert raw_lengths[2] > 3 * raw_lengths[0]
    assert heights == pytest.approx([heights[0]] * 3, rel=1e-9)
    assert lengths == pytest.approx([lengths[0]] * 3, rel=1e-9)


def test_moving_a_path_keeps_its_losses_and_changes_its_length() -> None:
    land, a, b = _ends()
    raw = line(land, a, rescaled(b, 10.0))
    moved = in_gauge(land, raw, balanced, per_segment=32)
    assert moved.maximum.lower == pytest.approx(raw.maximum.lower, rel=1e-2)
    assert moved.length < 0.8 * raw.length
    assert moved.losses[0] == pytest.approx(float(raw.losses[0]), rel=1e-12)
    assert moved.method == "line, in a gauge"
    assert moved.cost.losses > 0


def test_what_is_no_gauge_is_refused() -> None:
    land, a, b = _ends()
    raw = line(land, a, b)
    with pytest.raises(ValueError, match="the gauge changes the loss"):
        in_gauge(land, raw, lambda x: 1.1 * x)
    with pytest.raises(ValueError, match="the gauge changes the loss"):
        chosen(land, lambda x: 1.1 * x, a)
    with pytest.raises(ValueError, match="the gauge returned NaN"):
        in_gauge(land, raw, lambda x: x * float("nan"))
    with pytest.raises(ValueError, match=r"must return a vector of shape \(30,\), not \(29,\)"):
        in_gauge(land, raw, lambda x: x[:-1])
    with pytest.raises(ValueError, match="both ends the same vector"):
        in_gauge(land, line(land, a, rescaled(a, 3.0)), balanced)
    with pytest.raises(ValueError, match="per_segment must be at least 1"):
        in_gauge(land, raw, balanced, per_segment=0)
