"""The Path itself: geometry, the three heights, joining, and errors at the door."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths import Path, join, line, measure

BOWL = FunctionLandscape(lambda x: (x**2).sum(), 3)
WELL = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2 + 0.1 * x[0], 2)


def random_path(seed: int, corners: int) -> Path:
    g = torch.Generator().manual_seed(seed)
    return measure(BOWL, torch.randn(corners, 3, generator=g, dtype=torch.float64))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_geometry(seed: int, corners: int) -> None:
    path = random_path(seed, corners)
    gaps = (path.points[1:] - path.points[:-1]).norm(dim=1)
    assert path.length == pytest.approx(float(gaps.sum()))
    assert path.normalised_length >= 1 - 1e-12
    assert path.times[0] == 0
    assert path.times[-1] == 1
    assert torch.allclose(path.at(path.times), path.points, atol=1e-10)
    assert path.at(0.5).shape == (3,)
    assert torch.allclose(path.losses, BOWL.loss(path.points))
    assert torch.allclose(path.profile.losses, BOWL.loss(path.at(path.profile.times)), atol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_three_heights(seed: int, corners: int) -> None:
    """On a convex bowl no path is higher than its highest corner."""
    path = random_path(seed, corners)
    top = float(path.losses.max())
    assert path.maximum.lower == pytest.approx(top)
    assert path.height.lower == pytest.approx(top - path.base)
    assert path.base == pytest.approx(float(path.losses[[0, -1]].max()))
    assert (path.barrier.lower, path.barrier.lower_kind) == (0.0, "certified")
    assert path.barrier.upper == path.height.upper
    assert path.barrier.upper_kind == path.height.upper_kind == "estimated"
    assert float(BOWL.loss(path.top)) == pytest.approx(path.maximum.lower)
    assert torch.allclose(path.at(path.top_time), path.top, atol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(2, 4))
def test_joining_takes_the_higher_maximum_end_for_end(seed: int, m: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(m + n - 1, 2, generator=g, dtype=torch.float64)
    first, second = measure(WELL, points[:m]), measure(WELL, points[m - 1 :])
    both = join(first, second)
    assert both.maximum.lower == max(first.maximum.lower, second.maximum.lower)
    assert both.maximum.upper == max(first.maximum.upper, second.maximum.upper)
    assert both.length == pytest.approx(first.length + second.length)
    assert torch.equal(both.points, points)
    assert both.cost == first.cost + second.cost
    assert float(WELL.loss(both.at(both.top_time))) == pytest.approx(both.maximum.lower)
    assert bool((both.profile.times[1:] >= both.profile.times[:-1]).all())
    back = both.reversed()
    assert back.maximum == both.maximum
    assert torch.equal(back.points, points.flip(0))
    assert float(WELL.loss(back.at(back.top_time))) == pytest.approx(both.maximum.lower)
    assert torch.allclose(back.profile.losses, WELL.loss(back.at(back.profile.times)), atol=1e-9)


def test_joining_needs_a_common_point() -> None:
    with pytest.raises(ValueError, match=r"starts .* away from where the first one ends"):
        join(random_path(0, 2), random_path(1, 2))


def test_words_and_json() -> None:
    path = line(WELL, torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double())
    text = str(path)
    assert "line of 2 points" in text
    assert "(certified)" in text
    assert "(estimated)" in text
    assert "gradients" in text
    assert "\\[" not in text
    assert "line" in path.__rich__()
    stored = path.to_json()
    assert stored["maximum"]["lower"] == path.maximum.lower
    assert len(stored["profile_times"]) == len(path.profile.times)
    assert path.cost.gradients == len(path.profile.times)


def test_a_hole_on_the_line_is_reported() -> None:
    land = FunctionLandscape(lambda x: torch.sqrt((x**2).sum() - 0.25), 2)
    path = line(land, torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double())
    assert math.isnan(path.maximum.lower)
    assert math.isnan(path.barrier.upper)
    assert path.barrier.lower == 0.0
    assert "the loss is nan at t =" in str(path)
    assert path.to_json()["height"]["upper"] == "nan"


def wrong_ends() -> list[tuple[Tensor, Tensor, str]]:
    good = torch.ones(3, dtype=torch.float64)
    return [
        (good, torch.zeros(4, dtype=torch.float64), r"has shape \(4,\), but this landscape has 3"),
        (good, good.clone(), "both ends are the same vector"),
        (good * math.nan, good, "end a holds 3 NaN or infinite values of 3"),
        (good, torch.tensor([0.0, 0.0, math.inf]).double(), "end b holds 1 NaN"),
    ]


@pytest.mark.parametrize(("a", "b", "message"), wrong_ends())
def test_wrong_ends(unchecked: None, a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line(BOWL, a, b)


def test_wrong_dtype_and_time() -> None:
    good = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"this landscape computes in torch\.float64"):
        line(BOWL, good, torch.zeros(3))
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        line(BOWL, good, -good).at(1.5)
