"""What a survey says of its paths: every definition, held-out data, a gauge; by closed forms."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thalweg.landscape import FunctionLandscape, Landscape, ModelLandscape
from thalweg.paths import connect, line
from thalweg.survey import PathRecord, Survey, SurveyConfig, SurveyError, SurveyRecord
from thalweg.survey.heights import Worth, worth

CONFIG = SurveyConfig(
    minima=0,
    eigenvalues=0,
    trace_samples=0,
    curvature_probes=0,
    path_method="line",
    searches_per_minimum=1,
    repeats=1,
    saddles=False,
    levels=0,
)


class Product(torch.nn.Module):
    """Two classes with the logits u v x and 0: the loss depends on the product d = u v alone."""

    def __init__(self) -> None:
        super().__init__()
        self.u = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.v = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.u * self.v * x
        return torch.stack([first, torch.zeros_like(first)], -1)


def product(wrong: int, *, metrics: Any = "accuracy", **options: Any) -> ModelLandscape:
    """50 examples at 1 and 50 at -1, class 0 where positive; `wrong` of each 50 are mislabelled."""
    x = torch.cat([torch.ones(50), -torch.ones(50)]).double()
    flipped = torch.arange(100) % 50 < wrong
    return ModelLandscape(
        Product(),
        torch.nn.functional.cross_entropy,
        (x, ((x < 0) ^ flipped).long()),
        metrics=metrics,
        **options,
    )


def loss(d: float, share: float) -> float:
    """The loss of `product` where this share is mislabelled."""
    return (1 - share) * math.log1p(math.exp(-d)) + share * math.log1p(math.exp(d))


def balance(theta: torch.Tensor) -> torch.Tensor:
    """Make u and v equally long."""
    return theta.prod().abs().sqrt() * torch.sign(theta)


def direct(a: list[float], b: list[float], *, places: int = 11, **options: Any) -> Worth:
    """What the straight line between two points of `product` is worth, without a survey."""
    land = product(5)
    ends = (torch.tensor(end, dtype=torch.float64) for end in (a, b))
    given = {"held_out": None, "gauge": None, **options}
    straight = line(land, *ends)
    return worth(land, given["held_out"], given["gauge"], straight, straight, places)


def surveyed(
    folder: Path, land: Landscape, ends: list[list[float]], **options: Any
) -> tuple[SurveyRecord, PathRecord]:
    """Survey the straight line between two points."""
    with Survey.open(folder, land, CONFIG, **options) as survey:
        for end in ends:
            survey.add(torch.tensor(end, dtype=torch.float64))
        assert survey.run(progress=False).complete
        record = survey.record()
    with Survey.read(folder) as survey:
        assert repr(survey.record()) == repr(record)
    (path,) = record.paths
    return record, path


def test_each_definition_of_a_tilted_double_well(tmp_path: Path) -> None:
    """(x² - 1)² + c x from -1 to 1: the chord is c x, the ends are at ±c."""
    c = 0.25
    land = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + c * x[0] + x[1] ** 2, dim=2)
    _, path = surveyed(tmp_path / "a", land, [[-1.0, 0.0], [1.0, 0.0]])
    roots = np.roots([4, 0, -4, c])
    top = max((x**2 - 1) ** 2 + c * x for x in roots.real if abs(x) < 0.9)
    found = {each.name: each for each in path.definitions}
    assert list(found) == ["above_ends", "above_mean", "above_chord"]
    for name, truth in {"above_ends": top - c, "above_mean": top, "above_chord": 1.0}.items():
        bound = found[name].bound
        assert bound.lower <= truth + 1e-12
        assert bound.upper >= truth - 1e-12
        assert bound.width < 1e-2
        assert (bound.lower_kind, bound.upper_kind) == ("certified", "estimated")
        assert found[name].sampling is None
    assert found["above_chord"].source == "Entezari et al. 2022"
    assert path.length == pytest.approx(2.0, rel=1e-12)
    assert (path.held_out, path.balanced, path.note) == ((), None, "")


def test_the_straight_line_has_definitions_of_its_own(tmp_path: Path) -> None:
    """Half a circle of (|x|² - 1)² is flat, its diameter climbs to 1."""
    ring = FunctionLandscape(lambda x: ((x**2).sum() - 1) ** 2, 2)
    config = dataclasses.replace(CONFIG, path_method="string")
    with Survey.open(tmp_path / "a", ring, config) as survey:
        for end in (1.0, -1.0):
            survey.add(survey_end(end))
        assert survey.run(progress=False).complete
        (path,) = survey.record().paths
    assert path.definitions[0].bound.upper < 0.1
    assert [each.name for each in path.line_definitions] == [
        "above_ends",
        "above_mean",
        "above_chord",
    ]
    for each in path.line_definitions:
        assert each.bound.lower == pytest.approx(1, rel=1e-9)
        assert 1 - 1e-12 <= each.bound.upper < 1.02
    with Survey.read(tmp_path / "a") as survey:
        assert survey.record().paths == (path,)
        page = survey.report(tmp_path / "a.html").read_text()
    assert "a00 – a01, straight line" in page.replace("\N{NO-BREAK SPACE}", " ")
    straight = line(ring, survey_end(1.0), survey_end(-1.0))
    alone = worth(ring, None, None, straight, straight, 11)
    assert alone.line_definitions == alone.definitions


def survey_end(x: float) -> torch.Tensor:
    """The end of the diameter at x."""
    return torch.tensor([x, 0.0], dtype=torch.float64)


def test_loss_and_error_on_held_out_data(tmp_path: Path) -> None:
    """From d = 4 through 0 to 4: the loss climbs to log 2 and the error rate to a half."""
    land, held_out = product(5), product(6)
    ends = [[2.0, 2.0], [-2.0, -2.0]]
    _, path = surveyed(tmp_path / "a", land, ends, held_out=held_out)
    found = {each.name: each for each in path.definitions}
    height = math.log(2) - loss(4, 0.1)
    for name in ("above_ends", "above_mean", "above_chord"):
        assert found[name].bound.lower == pytest.approx(height, rel=1e-9)
    assert found["above_ends"].sampling is not None
    assert height in found["above_ends"].sampling
    assert found["error"].bound.lower == pytest.approx(0.5 - 0.1, rel=1e-12)
    assert found["error"].sampling is not None
    assert 0.4 in found["error"].sampling
    outside = {each.name: each for each in path.held_out}
    assert list(outside) == ["loss", "error"]
    for name, end, top in (("loss", loss(4, 0.12), math.log(2)), ("error", 0.12, 0.5)):
        each = outside[name]
        assert (len(each.times), each.worst_time) == (11, 0.5)
        assert each.values == pytest.approx(each.values[::-1], rel=1e-12)
        assert (each.first.value, each.last.value) == pytest.approx((end, end), rel=1e-12)
        assert each.worst.value == pytest.approx(top, rel=1e-12) == max(each.values)
        assert end in each.first
    # an example's loss is log(1 + e^-4), or 4 more with probability 0.12
    assert outside["loss"].first.stderr == pytest.approx(4 * math.sqrt(0.1056 / 99), rel=1e-9)
    assert outside["error"].first.stderr == pytest.approx(math.sqrt(0.1056 / 100), rel=1e-12)
    assert outside["loss"].worst.stderr == pytest.approx(0.0, abs=1e-15)


@pytest.mark.slow
def test_what_it_took_is_counted_on_both_data_sets(tmp_path: Path) -> None:
    land, held_out = product(5), product(6)
    with Survey.open(tmp_path / "a", land, CONFIG, held_out=held_out, gauge=balance) as survey:
        for end in ([4.0, 1.0], [0.5, 2.0]):
            survey.add(torch.tensor(end, dtype=torch.float64))
        before, ours = survey.record().cost, land.cost
        spent, outside = land.cost + held_out.cost, held_out.cost
        survey.run(progress=False)
        record = survey.record()
        assert record.cost - before == land.cost + held_out.cost - spent
        (path,) = record.paths
    places = len(path.held_out[0].times)
    measured = 4  # loss and accuracy at two minima
    assert (held_out.cost - outside).losses == 2 * places + measured
    assert path.cost.losses > 2 * places + (land.cost - ours).losses - 2 * measured


@pytest.mark.parametrize(
    ("held_out", "places", "definitions", "outside"),
    [
        (None, 11, ["above_ends", "above_mean", "above_chord", "error"], []),
        (product(6), 0, ["above_ends", "above_mean", "above_chord"], []),
        (
            product(6, metrics=None),
            2,
            ["above_ends", "above_mean", "above_chord", "error"],
            ["loss"],
        ),
    ],
    ids=["no held-out data", "no places", "no held-out metric"],
)
def test_what_is_not_there_is_not_invented(
    held_out: ModelLandscape | None,
    places: int,
    definitions: list[str],
    outside: list[str],
) -> None:
    found = direct([2.0, 2.0], [-2.0, -2.0], held_out=held_out, places=places)
    assert [each.name for each in found.definitions] == definitions
    assert [each.name for each in found.held_out] == outside
    assert (found.definitions[0].sampling is None) == (places == 0)
    assert found.balanced is None


def test_lengths_in_a_gauge(tmp_path: Path) -> None:
    """Balanced, (4, 1) and (1/2, 2) are (2, 2) and (1, 1), and the way is the diagonal."""
    record, path = surveyed(tmp_path / "a", product(5), [[4.0, 1.0], [0.5, 2.0]], gauge=balance)
    assert record.provenance["gauge"] == f"{__name__}.balance"
    assert path.length == pytest.approx(math.hypot(3.5, 1.0), rel=1e-12)
    balanced = path.balanced
    assert balanced is not None
    assert balanced.length == pytest.approx(math.sqrt(2), rel=1e-9)
    assert balanced.normalised_length == pytest.approx(1.0, rel=1e-9)
    for bound in (balanced.maximum, balanced.line_maximum):
        assert bound.lower <= loss(4, 0.1) + 1e-12
        assert bound.upper >= loss(4, 0.1) - 1e-12
        assert bound.width < 1e-3


def test_ends_that_are_one_in_the_gauge_are_said_to_be() -> None:
    found = direct([4.0, 1.0], [1.0, 4.0], gauge=balance)
    assert found.balanced is None
    assert found.note.startswith("in the gauge: the gauge makes both ends the same vector")
    assert len(found.definitions) == 4


@pytest.mark.slow
def test_a_gauge_that_changes_the_loss_is_refused_before_the_search(tmp_path: Path) -> None:
    land = product(5)
    with Survey.open(tmp_path / "a", land, CONFIG, gauge=lambda theta: 2 * theta) as survey:
        for end in ([4.0, 1.0], [0.5, 2.0]):
            survey.add(torch.tensor(end, dtype=torch.float64))
        assert survey.run(progress=False).failed == ("connect/a00-a01",)
        (failure,) = survey.record().failures
    assert failure.error.startswith("ValueError: the gauge changes the loss (from ")


def test_the_gauge_belongs_to_the_survey(tmp_path: Path) -> None:
    Survey.open(tmp_path / "a", product(5), CONFIG, gauge=balance).close()
    with pytest.raises(SurveyError, match=r"another landscape \(gauge: '.*\.balance' there, None"):
        Survey.open(tmp_path / "a", product(5), CONFIG)


def test_a_measure_that_fails_costs_no_path() -> None:
    """Whatever it raises, the path that was paid for is kept, and the note says why."""
    land = product(5)
    path = line(land, *torch.tensor([[2.0, 0.5], [0.5, 2.5]], dtype=torch.float64))

    def halfway(theta: torch.Tensor) -> torch.Tensor:
        if abs(float(theta[0]) - 1.25) < 0.3:
            raise RuntimeError("eigh did not converge")
        return theta

    single = product(8, dtype=torch.float32)
    found = worth(land, single, halfway, path, path, 5)
    assert found.balanced is None
    assert found.held_out == ()
    assert "on held-out data: TypeError" in found.note
    assert "in the gauge: RuntimeError: eigh did not converge" in found.note
    assert {each.name for each in found.definitions} >= {"above_ends", "error"}


def test_a_measure_that_fails_is_named_once_for_each_way() -> None:
    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the metric is broken")

    land = product(5, metrics={"accuracy": broken})
    ends = torch.tensor([[2.0, 0.5], [0.5, 2.5]], dtype=torch.float64)
    straight = line(land, *ends)
    bent = connect(land, *ends, method="string", max_gradients=40, seed=0)
    found = worth(land, None, None, bent, straight, 5)
    assert found.note.count("the metric is broken") == 2
    assert "metrics on the straight line: RuntimeError" in found.note
    assert len(found.definitions) == len(found.line_definitions) == 3


def test_an_accuracy_in_per_cent_is_no_error_rate() -> None:
    def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 100 * (outputs.argmax(-1) == targets).double()

    land = product(5, metrics={"accuracy": accuracy})
    path = line(land, *torch.tensor([[2.0, 0.5], [0.5, 2.5]], dtype=torch.float64))
    found = worth(land, product(8, metrics={"accuracy": accuracy}), None, path, path, 5)
    assert "error" not in {each.name for each in found.definitions}
    assert [each.name for each in found.held_out] == ["loss"]


def scaled(theta: torch.Tensor, by: float) -> torch.Tensor:
    """Another vector of the same product."""
    return theta * theta.new_tensor([by, 1 / by])


def test_gauges_of_one_name_are_told_apart(tmp_path: Path) -> None:
    land = product(5)
    with Survey.open(tmp_path / "s", land, CONFIG, gauge=functools.partial(scaled, by=2.0)) as s:
        assert s.record().provenance["gauge"].endswith("scaled)")
    with Survey.open(tmp_path / "s", land, CONFIG, gauge=functools.partial(scaled, by=2.0)):
        pass
    with pytest.raises(SurveyError, match=r"gauge at the probe point: \S+ there, \S+ here"):
        Survey.open(tmp_path / "s", land, CONFIG, gauge=functools.partial(scaled, by=3.0))
