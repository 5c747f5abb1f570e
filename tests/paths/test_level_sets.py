"""Level sets: the ring's geodesics in closed form, levels below an end, resuming, training."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths.level_sets import level_set_geometry, level_sets_through_training
from thalweg.paths.level_table import LevelRun, LevelSetGeometry, row_of, run_from

A, B = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)


def ring() -> FunctionLandscape:
    return FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)


def geodesic(level: float) -> float:
    """The shortest way around the hole of radius ρ: two tangents and an arc."""
    hole = math.sqrt(1 - math.sqrt(level))
    return math.sqrt(1 - hole**2) + hole * (math.pi - 2 * math.acos(hole)) / 2


def rotated(angle: float) -> tuple[Tensor, Tensor]:
    turn = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    return turn, -turn


@pytest.fixture(scope="module")
def found() -> LevelSetGeometry:
    """Three levels of the ring, from two pairs of ends."""
    ends = [rotated(angle) for angle in (0.0, 0.7)]
    a, b = torch.stack([x for x, _ in ends]), torch.stack([x for _, x in ends])
    return level_set_geometry(ring(), a, b, [0.3, 1.2], seeds=1, seed=0)


def test_shortened_lengths_are_the_rings_geodesics(found: LevelSetGeometry) -> None:
    assert [row.level for row in found.rows] == [1.2, 0.3]
    assert all(row.yes == row.searches == 2 for row in found.rows)
    for row in found.rows:
        assert row.shortened is not None
        assert row.raw is not None
        exact = geodesic(row.level) if row.level < 1 else 1.0
        assert exact * (1 - 1e-3) < row.shortened.value < exact * 1.01
        assert row.raw.value >= row.shortened.value - 1e-9
        assert row.raw.samples == 2


def test_intervals_are_students_over_pairs(found: LevelSetGeometry) -> None:
    row = found.rows[-1]
    assert row.beads is not None
    values = [run.beads for run in found.runs if run.level == row.level]
    error = float(np.std(values, ddof=1)) / math.sqrt(2)
    assert row.beads.value == np.mean(values)
    assert row.beads.stderr == pytest.approx(error)
    assert row.beads.half_width == pytest.approx(stats.t.ppf(0.975, 1) * error)
    assert "means over pairs of ends" in found.method


def test_the_cost_is_what_was_spent() -> None:
    land = ring()
    before = land.cost
    found = level_set_geometry(land, A, B, [0.5], seeds=1, seed=3, shorten=False)
    assert found.cost == land.cost - before
    assert found.cost.gradients >= found.rows[0].cost.gradients > 0
    assert found.runs[0].cost.losses <= found.cost.losses


def test_a_level_below_an_end_is_answered_no() -> None:
    found = level_set_geometry(ring(), A, 1.2 * B, [1.2, 0.1, -1.0], seeds=2, seed=0)
    high, low, below = found.rows
    assert high.yes == 2
    assert (low.no, low.yes, low.raw, low.beads) == (2, 0, None, None)
    assert "2 no (end b lies at 0.1936, above the level 0.1)" in low.note
    assert below.no == 2
    assert "level 0.1: 2 no" in str(found)


def test_a_search_that_finds_nothing_is_counted_and_in_no_mean() -> None:
    wells = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, 2)
    found = level_set_geometry(
        wells, A, B, [0.5, 1.5], seeds=2, seed=0, max_steps=100, max_rounds=2
    )
    assert [(row.yes, row.unresolved) for row in found.rows] == [(2, 0), (0, 2)]
    assert found.rows[1].raw is None
    assert "2 unresolved (" in found.rows[1].note
    assert [run.answer for run in found.runs] == ["yes", "yes", "unresolved", "unresolved"]


def test_a_loss_that_is_nan_is_unresolved() -> None:
    broken = FunctionLandscape(lambda x: (x**2).sum() + torch.log(x[0] + 1.5), 2)
    found = level_set_geometry(broken, A, 2 * B, [3.0], seeds=1, seed=0)
    assert found.rows[0].unresolved == 1
    assert "end b lies at nan" in found.rows[0].note


def test_killed_and_run_again_ends_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"seeds": 2, "shorten": False}
    said: list[str] = []
    whole = level_set_geometry(
        ring(), A, B, [0.5], seed=5, progress=lambda _, message: said.append(message), **options
    )
    stops = (2, len(said) // 2)  # within the first search, and further on
    calls = 0

    def stop(part: float, message: str) -> None:
        nonlocal calls
        calls += 1
        if calls in stops:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            level_set_geometry(
                ring(), A, B, [0.5], seed=5, folder=tmp_path, progress=stop, **options
            )
        assert list(tmp_path.iterdir())
    land = ring()
    again = level_set_geometry(land, A, B, [0.5], folder=tmp_path, **options)  # the seed is kept
    assert again.rows == whole.rows
    told = [run.to_json() for run in whole.runs]  # a NaN is not equal to itself
    assert [run.to_json() for run in again.runs] == told
    assert again.seed == 5
    assert not list(tmp_path.glob("*.state*"))
    assert len(list(tmp_path.glob("*level*.json"))) == 2
    read = ring()
    third = level_set_geometry(read, A, B, [0.5], folder=tmp_path, **options)
    assert [run.to_json() for run in third.runs] == told
    assert read.cost.gradients == 0


def test_a_folder_of_other_options_is_refused(tmp_path: Path) -> None:
    level_set_geometry(ring(), A, B, [1.2], seeds=1, seed=0, folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to other ends or options; name another folder"):
        level_set_geometry(ring(), A, B, [1.2], seeds=1, seed=0, folder=tmp_path, alpha=0.8)
    with pytest.raises(ValueError, match="belongs to other ends or options"):
        level_set_geometry(ring(), A, 1.01 * B, [1.2], seeds=1, seed=0, folder=tmp_path)
    file = next(tmp_path.glob("*level*.json"))
    file.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        level_set_geometry(ring(), A, B, [1.2], seeds=1, seed=0, folder=tmp_path)


def test_through_training_the_level_follows_the_higher_end() -> None:
    way_a = torch.stack([1.4 * A, 1.2 * A, 1.05 * A])
    way_b = torch.stack([1.3 * B, 1.25 * B, 1.0 * B])
    found = level_sets_through_training(
        ring(), way_a, way_b, margin=0.1, seeds=1, seed=0, shorten=False
    )
    high = [(1.4**2 - 1) ** 2, (1.25**2 - 1) ** 2, (1.05**2 - 1) ** 2]
    assert [row.level for row in found.rows] == pytest.approx([x + 0.1 for x in high])
    assert [row.stage for row in found.rows] == [0, 1, 2]
    assert all(row.yes == 1 for row in found.rows)
    assert str(found).splitlines()[0].split()[:2] == ["stage", "level"]
    lengths = [row.raw.value for row in found.rows if row.raw is not None]
    assert lengths[0] < lengths[2]
    part = level_sets_through_training(
        ring(), way_a[:1], way_b[:1], share=0.2, seeds=1, seed=0, shorten=False
    )
    assert part.rows[0].level == pytest.approx(1.2 * high[0])


def test_the_law_is_found_from_the_searches() -> None:
    runs = []
    rng = np.random.default_rng(0)
    for level in (0.01, 0.03, 0.1, 0.3, 1.0):
        for pair in range(6):
            value = 1 + 0.2 * level**-0.4 * math.exp(0.02 * rng.normal())
            run = LevelRun(pair, 0, 0, level, "yes", "", value, math.nan, 3, 1, 0, ring().cost)
            runs.append(run)
    lost = LevelRun(0, 0, 0, 0.01, "unresolved", "", 50.0, math.nan, 9, 1, 0, ring().cost)
    geometry = LevelSetGeometry((), (*runs, lost), 6, 1, "made up", 0, ring().cost)
    law = geometry.law("raw")
    assert law.answer == "power"
    assert law.points == 30  # the search that found nothing is not among them
    with pytest.raises(ValueError, match="tell no law"):
        geometry.law("shortened")


def test_results_can_be_read_and_stored(found: LevelSetGeometry) -> None:
    text = str(found)
    assert text.splitlines()[0].split() == [
        "level", "joined", "length", "shortened", "beads", "gradients",
    ]  # fmt: skip
    assert "(seed 0)" in text
    assert "2/2" in text
    assert found.__rich__().startswith("[bold]")
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [run_from(run) for run in stored["runs"]] == list(found.runs)
    one = row_of(found.runs[:1], 2)
    assert one.raw is not None
    assert one.raw.samples == 1
    assert math.isinf(one.raw.half_width)
    assert one.to_json()["shortened"]["stderr"] == "nan"


def test_errors_name_what_is_wrong(unchecked: None) -> None:
    empty = LevelSetGeometry((), (), 1, 1, "made up", 0, ring().cost)
    with pytest.raises(ValueError, match="of must be 'shortened', 'raw' or 'beads'"):
        empty.law("height")  # type: ignore[arg-type] # the point of the test
    with pytest.raises(ValueError, match="each row of one is joined to the same row of the other"):
        level_set_geometry(ring(), A, torch.stack([B, B]), [1.0])
    with pytest.raises(ValueError, match="levels must be one or more finite numbers"):
        level_set_geometry(ring(), A, B, [])
    with pytest.raises(ValueError, match="end a holds 1 vectors with NaN or infinite values of 1;"):
        level_set_geometry(ring(), math.nan * A, B, [1.0])
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        level_set_geometry(ring(), A, B, [1.0], seeds=0)
    with pytest.raises(TypeError, match="checkpoint is set for every search by itself"):
        level_set_geometry(ring(), A, B, [1.0], checkpoint="x")
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        level_set_geometry(ring(), A, B, [1.5], speed=3)
    with pytest.raises(ValueError, match="margin or share must be > 0: -1"):
        level_sets_through_training(ring(), A[None], B[None], margin=-1.0)
    with pytest.raises(ValueError, match=r"give \(stages, 2\) or \(stages, pairs, 2\)"):
        level_sets_through_training(ring(), A, B)


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "level_sets"


@pytest.mark.parametrize("name", ["quadratic", "cubic"])
def test_the_regressions_gradient_is_that_of_autograd(name: str, scripts: Any) -> None:
    polynomials = scripts("examples/level_sets")("polynomials")
    task = polynomials.TASKS[name]
    land = polynomials.Regression(task)
    theta = torch.stack([land.start(torch.Generator().manual_seed(i)) for i in range(5)])
    values, gradients = land.value_and_gradient(theta)
    wanted, losses = torch.func.vmap(torch.func.grad_and_value(land.f))(theta)
    assert torch.allclose(values, losses, rtol=1e-12)
    assert torch.allclose(gradients, wanted, rtol=1e-10, atol=1e-14)
    assert torch.equal(land.loss(theta), values)
    fine = polynomials.Regression(task, 100_000)
    assert torch.allclose(fine.loss(theta), values, rtol=1e-3)


@pytest.mark.slow
def test_the_example_runs_goes_on_and_draws(tmp_path: Path) -> None:
    def call(*more: str) -> str:
        command = [sys.executable, str(EXAMPLE), "quadratic", "--quick", "--seeds", "2"]
        done = subprocess.run(
            [*command, "--out", str(tmp_path), *more], capture_output=True, text=True, check=True
        )
        return done.stdout

    first = call()
    assert "12 searches done" in first
    assert "| 0.125 | 1 of 1 |" in first  # so little training takes one of two pairs below
    assert "0 searches done" in call()
    assert "1.27 ± 0.049" in call("--table", "--figure", str(tmp_path / "drawn.html"))
    assert (tmp_path / "drawn.html").stat().st_size > 10_000
    rows = [json.loads(file.read_text()) for file in tmp_path.glob("quick/quadratic/*/*.json")]
    assert len(rows) == 12
    assert "gradients | / loose" not in call("--table")
    ours = call("--ours")
    assert "6 searches done" in ours
    table = ours[ours.index("| joined ours |") :].splitlines()
    cells = [cell.strip() for cell in table[-1].strip("|").split("|")]
    assert cells[:2] == ["0.125", "1 of 1"]
    assert 0 < float(cells[6].split()[0]) < 0.5  # of the gradients of the published way
    strict = [row for row in rows if row["acceptance"] == "strict" and row["answer"] == "yes"]
    assert len(strict) == 3
    for row in strict:
        assert row["maximum"]["upper"] <= row["level"]
        assert row["shortened"] <= row["raw"] + 1e-12
