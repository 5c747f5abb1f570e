"""A survey as its user meets it: found, resumed, refused."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import thalweg
from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.survey import Interrupted, Survey, SurveyConfig, SurveyError, jobs
from thalweg.survey.survey import Survey as Implementation

sys.path.insert(0, str(Path(__file__).parent))
import surfaces
from surfaces import CONFIG, timeless


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The record of a survey of the four wells that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken") / "wells.survey"
    with Survey.open(folder, surfaces.function(), CONFIG, label="wells") as survey:
        assert survey.run(progress=False).complete
        return timeless(survey.record())


def test_what_is_found_is_what_is_there(tmp_path: Path) -> None:
    """Losses, eigenvalues and trace against the closed form of the four wells."""
    land = surfaces.function()
    with Survey.open(tmp_path / "w.survey", land, CONFIG, label="wells") as survey:
        status = survey.run(progress=False)
        record = survey.record()
        assert status.complete
        assert record.complete
        assert not record.failures
        assert len(record.minima) == 4
        assert 3 <= len(record.paths) <= 6
        for minimum in record.minima:
            theta = survey.theta(minimum.id)
            assert minimum.converged
            assert minimum.gradient_norm <= 1e-9
            assert minimum.loss == float(surfaces.wells(theta))
            assert minimum.norm == pytest.approx(float(theta.norm()), rel=1e-12)
            exact = sorted((12 * theta**2 - 4).tolist(), reverse=True)
            eigen = minimum.eigenvalues
            assert eigen is not None
            assert minimum.trace is not None
            for value, low, high in zip(exact, eigen.lower, eigen.upper, strict=True):
                assert low - 1e-12 <= value <= high + 1e-12
            assert minimum.trace.value == pytest.approx(sum(exact), rel=1e-9)
            assert survey.eigenvectors(minimum.id).shape == (2, 2)
            spectrum = minimum.spectrum
            assert spectrum is not None
            assert 0.0 in spectrum.negative
            assert 2.0 in spectrum.positive
            assert spectrum.certified == (0, 2)
            assert min(exact) in spectrum.lowest
            assert math.hypot(*exact) in spectrum.frobenius_norm
            assert sum(math.log(x + spectrum.shift) for x in exact) in spectrum.log_determinant
            assert minimum.layers == ()  # a function has none
        for path in record.paths:
            points = survey.points(path.a, path.b)
            assert torch.equal(points[0], survey.theta(path.a))
            assert torch.equal(points[-1], survey.theta(path.b))
            ends = [m.loss for m in record.minima if m.id in (path.a, path.b)]
            assert path.maximum.upper >= max(ends)
            assert path.barrier.upper == pytest.approx(path.maximum.upper - max(ends), abs=1e-12)
        assert record.cost == land.cost - thalweg.Cost(losses=1, passes=1) - PROBES
        assert record.tree is not None
        assert len(record.tree.roots) == 1


# What FunctionLandscape's own construction spent before the survey's one probe.
PROBES = surfaces.function().cost


def test_the_random_state_and_threads_are_left_alone(tmp_path: Path) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    config = dataclasses.replace(CONFIG, threads=2, minima=2)
    with Survey.open(tmp_path / "a", surfaces.function(), config) as survey:
        survey.run(progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_every_job_runs_with_the_threads_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    search = jobs.search
    monkeypatch.setattr(
        jobs, "search", lambda *a: (seen.append(torch.get_num_threads()), search(*a))[1]
    )
    with Survey.open(
        tmp_path / "a", surfaces.function(), dataclasses.replace(CONFIG, threads=2, minima=1)
    ) as survey:
        survey.run(progress=False)
    assert seen == [2]


def test_equal_seeds_give_equal_surveys_and_others_do_not(tmp_path: Path, unbroken: str) -> None:
    with Survey.open(tmp_path / "a", surfaces.function(), CONFIG, label="wells") as survey:
        survey.run(progress=False)
        assert timeless(survey.record()) == unbroken
    other = dataclasses.replace(CONFIG, seed=12)
    with Survey.open(tmp_path / "b", surfaces.function(), other, label="wells") as survey:
        survey.run(progress=False)
        thetas = [survey.theta(f"m{i:02d}") for i in range(4)]
    with Survey.read(tmp_path / "a") as survey:
        assert not any(torch.equal(t, survey.theta(f"m{i:02d}")) for i, t in enumerate(thetas))


@pytest.mark.parametrize("stop", [0, 1, 5, 9, 11])
def test_ctrl_c_keeps_what_ended_and_the_rest_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: str, stop: int
) -> None:
    folder, work, count = tmp_path / "a", Implementation._work, 0

    def interrupted(*arguments: object) -> object:
        nonlocal count
        if count == stop:
            raise KeyboardInterrupt
        count += 1
        return work(*arguments)  # type: ignore[arg-type]  # passed on

    with Survey.open(folder, surfaces.function(), CONFIG, label="wells") as survey:
        with monkeypatch.context() as patch:
            patch.setattr(Implementation, "_work", interrupted)
            with pytest.raises(Interrupted, match=rf"stopped at .*; {stop} jobs are kept in .*a\."):
                survey.run(progress=False)
        assert sum(survey.status().done.values()) == stop
    with Survey.open(folder, surfaces.function(), label="wells") as survey:
        assert survey.run(progress=False).complete
        assert timeless(survey.record()) == unbroken


@pytest.mark.slow
def test_the_goal_may_grow_in_steps(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, minima=1)
    with Survey.open(tmp_path / "a", surfaces.function(), config, label="wells") as survey:
        for goal in (None, 2, 4):
            assert survey.run(minima=goal, progress=False).complete
        record = survey.record()
        survey.run(progress=False)
        assert survey.record().cost == record.cost
    whole = dataclasses.replace(CONFIG, minima=4)
    with Survey.open(tmp_path / "b", surfaces.function(), whole, label="wells") as survey:
        survey.run(progress=False)
        at_once = survey.record()
    plain = [[dataclasses.replace(m, seconds=0.0) for m in r.minima] for r in (record, at_once)]
    assert repr(plain[0]) == repr(plain[1])
    # what is searched for depends on which minima are known: more, but never other, paths
    heights = [{(p.a, p.b): p.maximum.upper for p in r.paths} for r in (record, at_once)]
    assert heights[1].items() <= heights[0].items()


_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import surfaces
from thalweg.survey import Survey
with Survey.open(sys.argv[1], surfaces.function(), surfaces.CONFIG, label="wells") as survey:
    print("open", flush=True)
    survey.run(progress=False)
"""


@pytest.mark.slow
def test_a_survey_killed_at_random_moments_comes_out_the_same(
    tmp_path: Path, unbroken: str
) -> None:
    folder, dice = tmp_path / "a", random.Random(5)
    killed = 0
    for _ in range(8):
        command = [sys.executable, "-c", _SCRIPT, str(folder), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            time.sleep(dice.uniform(0.0, 0.5))
            ended = process.poll() is not None
            process.send_signal(signal.SIGKILL)
        killed += not ended
        if ended:
            break
    assert killed >= 3
    with Survey.open(folder, surfaces.function(), label="wells") as survey:
        survey.run(progress=False)
        assert timeless(survey.record()) == unbroken
    assert not [name for name in os.listdir(folder) if name.endswith("-journal")]


def test_a_kill_in_the_middle_of_a_run_is_resumed(tmp_path: Path, unbroken: str) -> None:
    folder = tmp_path / "a"
    command = [sys.executable, "-c", _SCRIPT, str(folder), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list((folder / "arrays").glob("m*"))) < 3:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    with Survey.open(folder, surfaces.function(), label="wells") as survey:
        assert sum(survey.status().todo.values()) > 0
        survey.run(progress=False)
        assert timeless(survey.record()) == unbroken


def test_a_failed_job_is_kept_and_tried_again_on_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ArithmeticError("no eigenvalues today")

    with Survey.open(tmp_path / "a", surfaces.function(), CONFIG, label="wells") as survey:
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "characterise", fail)
            status = survey.run(minima=2, progress=False)
        assert status.failed == ("characterise/m00", "characterise/m01")
        assert not status.complete
        assert "retry=True" in str(status)
        assert survey.run(progress=False).failed == status.failed
        assert [f.error for f in survey.record().failures] == [
            "ArithmeticError: no eigenvalues today"
        ] * 2
        assert survey.record().minima[0].eigenvalues is None
        assert survey.run(retry=True, progress=False).complete
        record = survey.record()
        assert record.complete
        assert len(record.failures) == 2
        assert all(minimum.eigenvalues is not None for minimum in record.minima)


def test_a_search_that_diverges_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    land = FunctionLandscape(lambda x: (x**2).sum() + (x[0] - 100).sqrt(), dim=2)
    with Survey.open(tmp_path / "a", land, CONFIG) as survey:
        status = survey.run(minima=1, progress=False)
        assert status.failed == ("minimum/seed=0",)
        assert "the search diverged (loss nan" in survey.record().failures[0].error


def test_a_full_disk_stops_the_run_and_freeing_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: str
) -> None:
    replace, left = os.replace, 3

    def full(*arguments: object) -> None:
        nonlocal left
        if left == 0:
            raise OSError(28, "No space left on device")
        left -= 1
        replace(*arguments)  # type: ignore[arg-type]  # passed on

    with Survey.open(tmp_path / "a", surfaces.function(), CONFIG, label="wells") as survey:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(SurveyError, match="full; every job that had ended is kept; free"):
                survey.run(progress=False)
        assert survey.status().failed == ()
        assert survey.run(progress=False).complete
        assert timeless(survey.record()) == unbroken


def test_another_landscape_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    Survey.open(folder, surfaces.function(), CONFIG, label="wells").close()
    with pytest.raises(SurveyError, match=r"another landscape .*dim: 2 there, 3 here"):
        Survey.open(folder, FunctionLandscape(surfaces.wells, dim=3), label="wells")
    with pytest.raises(SurveyError, match="label: 'wells' there, 'hills' here"):
        Survey.open(folder, surfaces.function(), label="hills")
    other = FunctionLandscape(lambda x: surfaces.wells(x) + 1e-3, dim=2)
    with pytest.raises(SurveyError, match=r"loss at the probe point: .*or give a new folder"):
        Survey.open(folder, other, label="wells")
    single = FunctionLandscape(surfaces.wells, dim=2, dtype=torch.float32)
    with pytest.raises(SurveyError, match="dtype: 'float64' there, 'float32' here"):
        Survey.open(folder, single, label="wells")
    Survey.open(folder, surfaces.function(), label="wells").close()


def test_other_data_and_held_out_data_are_refused(tmp_path: Path) -> None:
    folder, land = tmp_path / "a", surfaces.network()
    held_out = land.with_data((torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4).long()))
    Survey.open(folder, land, held_out=held_out).close()
    with pytest.raises(SurveyError, match=r"describe\.digest"):
        Survey.open(folder, surfaces.network(seed=1), held_out=held_out)
    with pytest.raises(SurveyError, match=r"another landscape .*held_out"):
        Survey.open(folder, land)
    with pytest.raises(SurveyError, match="held-out landscape has 2 coordinates"):
        Survey.open(folder, land, held_out=surfaces.function())


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    Survey.open(folder, surfaces.function(), CONFIG).close()
    with pytest.raises(SurveyError, match=r"another configuration \(seed: 11 there, 0 here; "):
        Survey.open(folder, surfaces.function(), SurveyConfig())
    Survey.open(folder, surfaces.function(), dataclasses.replace(CONFIG, minima=9)).close()


def test_a_survey_is_read_without_its_landscape_but_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with Survey.open(folder, surfaces.function(), CONFIG) as writer:
        writer.run(minima=2, progress=False)
        with Survey.read(folder) as reader:
            assert timeless(reader.record()) == timeless(writer.record())
            assert reader.status().complete
            with pytest.raises(SurveyError, match="was opened for reading; open it with"):
                reader.run(progress=False)
            with pytest.raises(SurveyError, match="was opened for reading"):
                reader.add(torch.zeros(2))


def test_added_minima_are_measured_and_connected_like_the_others(tmp_path: Path) -> None:
    theta = torch.tensor([1.0, -1.0], dtype=torch.float64)
    with Survey.open(tmp_path / "a", surfaces.function(), CONFIG) as survey:
        survey.run(minima=1, progress=False)
        assert survey.add(theta, name="mine") == "mine"
        assert survey.add(theta) == "mine"
        assert survey.add(theta + 0.5) == "a01"
        assert survey.status().todo == {"characterise": 2, "connect": 6}
        assert survey.run(progress=False).complete
        assert [m.id for m in survey.record().minima] == ["m00", "mine", "a01"]
        assert survey.record().minima[1].origin == "added"
        with pytest.raises(SurveyError, match="another minimum named 'mine'"):
            survey.add(theta + 1, name="mine")
        for name in ("m07", "a-b", "", "../x"):
            with pytest.raises(SurveyError, match="cannot name a minimum; use letters"):
                survey.add(theta + 1, name=name)
        with pytest.raises(ValueError, match="holds 1 NaN or infinite values of 2"):
            survey.add(torch.tensor([1.0, float("nan")], dtype=torch.float64))
        with pytest.raises(SurveyError, match="FunctionLandscape cannot read a str as a point"):
            survey.add("x.safetensors")
        with pytest.raises(ValueError, match=r"theta has shape \(3,\)"):
            survey.add(torch.zeros(3, dtype=torch.float64))


def test_an_added_network_keeps_the_loss_it_came_with(tmp_path: Path) -> None:
    """BatchNorm's own statistics give another loss than the survey's policy; both are kept."""
    make = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=make)
    data = x, (x.sum(1) > 0).long()
    nets = [nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)) for _ in "abc"]
    for net in nets:
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=make)
        net.train()(x[:32])
        net.eval()
    nets[1].state_dict()["1.running_var"].mul_(4.0)
    land = ModelLandscape(nets[0], nn.functional.cross_entropy, data, batchnorm="batch")
    bare = {k: v for k, v in nets[2].state_dict().items() if "running" not in k}
    config = SurveyConfig(minima=0, eigenvalues=0, trace_samples=0, curvature_probes=0)
    with Survey.open(tmp_path / "a", land, config) as survey:
        for given in (nets[0], nets[1].state_dict(), bare, land.vector(nets[2]) + 0.1):
            survey.add(given)
        one, two, *without = survey.record().minima
        assert survey.status().todo["characterise"] == 4
    for minimum, net in ((one, nets[0]), (two, nets[1])):
        assert minimum.shipped is not None
        alone = float(nn.functional.cross_entropy(net(x), data[1]).detach())
        assert minimum.shipped.value == pytest.approx(alone, rel=1e-6)
        assert minimum.shipped.half_width > 0
        assert abs(minimum.loss - alone) > 1e-3
    assert [m.shipped for m in without] == [None, None]
    other = copy.deepcopy(nets[1])
    other.state_dict()["1.running_var"].mul_(3.0)
    with Survey.open(tmp_path / "a", land) as survey:
        assert survey.add(nets[1]) == two.id  # the same again
        with pytest.raises(SurveyError, match=f"{two.id} is this vector with other BatchNorm"):
            survey.add(other)
        assert survey.add(nets[2]) == without[0].id  # its statistics come later
        late = survey.record().minima[2]
        assert late.shipped == land.as_shipped(nets[2])
        assert late.cost == without[0].cost + late.shipped.cost
        assert survey.record().minima[1] == two
    with Survey.read(tmp_path / "a") as survey:
        assert survey.record().minima[1].shipped == two.shipped
        shown = re.sub(r"<[^>]*>", " ", survey.report(tmp_path / "a.html").read_text())
        assert "loss as shipped" in shown
        assert f"{two.shipped.value:.2f}" in shown


@pytest.mark.slow
def test_a_network_is_surveyed_with_its_metrics_and_checkpoints(tmp_path: Path) -> None:
    land = surfaces.network()
    held_out = land.with_data(
        (
            torch.ones(4, 3, dtype=torch.float64).diff(dim=0, append=torch.zeros(1, 3)).double(),
            torch.zeros(4).long(),
        )
    )
    config = SurveyConfig(minima=2, epochs=2, batch_size=8, path_gradients=100, repeats=1, levels=0)
    with Survey.open(tmp_path / "a", land, config, held_out=held_out) as survey:
        survey.run(progress=False)
        theta = survey.theta("m00")
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ).double()
        land.load_into(model, theta)
        save_file(model.state_dict(), tmp_path / "same.safetensors")
        assert survey.add(tmp_path / "same.safetensors") == "m00"
        land.load_into(model, theta + 0.1)
        assert survey.add(model, name="moved") == "moved"
        survey.run(progress=False)
        minimum = survey.record().minima[0]
        assert minimum.origin == "trained"
        assert minimum.sampling is not None
        assert minimum.sampling.value == pytest.approx(minimum.loss, abs=0.2)
        assert minimum.metrics["accuracy"] == land.metrics(theta)["accuracy"]
        assert set(minimum.held_out) == {"loss", "accuracy"}
        assert minimum.held_out["accuracy"].value == held_out.metrics(theta)["accuracy"].value


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"0.weight": _Malicious(tmp_path / "owned")}, tmp_path / "evil.pt")
    with Survey.open(tmp_path / "a", surfaces.network(), CONFIG) as survey:
        with pytest.raises(ValueError, match=r"is refused: .* could run any code"):
            survey.add(tmp_path / "evil.pt")
        assert survey.record().minima == ()
    assert not (tmp_path / "owned").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "owned").exists()  # the file is what it is said to be


@pytest.mark.parametrize("policy", ["frozen", "recompute"])
def test_batchnorm_policies_without_one_landscape_are_refused(tmp_path: Path, policy: str) -> None:
    land = surfaces.network(batchnorm="batch").with_batchnorm(policy)
    with pytest.raises(SurveyError, match=f"under batchnorm='{policy}', so that .*=\"batch\""):
        Survey.open(tmp_path / "a", land, CONFIG)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_batchnorm_network_is_surveyed_under_batch_statistics(tmp_path: Path) -> None:
    land = surfaces.network(batchnorm="batch")
    config = SurveyConfig(
        minima=2, epochs=1, batch_size=8, path_gradients=60, max_gradients=50, repeats=1, levels=0
    )
    with Survey.open(tmp_path / "a", land, config) as survey:
        assert survey.run(progress=False).failed == ()
        record = survey.record()
        view = land.with_batchnorm("recompute")
        assert record.minima[0].loss == float(view.loss(survey.theta("m00")))
        assert record.tree is not None


def test_an_empty_survey_has_an_empty_record(tmp_path: Path) -> None:
    with Survey.open(tmp_path / "a", surfaces.function(), CONFIG) as survey:
        assert survey.run(minima=0, progress=False).complete
        record = survey.record()
        assert record.minima == ()
        assert record.tree is None
        assert record.complete


def test_many_minima_are_connected_in_rounds(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, minima=5, round_size=2)
    with Survey.open(tmp_path / "a", surfaces.function(), config) as survey:
        assert survey.outlook().todo["connect"] == 10
        status = survey.run(progress=False)
        assert status.complete
        assert 4 <= status.done["connect"] <= 10
        assert len(survey.record().tree.roots) == 1  # type: ignore[union-attr]  # there is one


def test_the_report_is_written_by_the_room_above(tmp_path: Path) -> None:
    with Survey.open(tmp_path / "a", surfaces.function(), CONFIG) as survey:
        survey.run(minima=2, progress=False)
    with Survey.read(tmp_path / "a") as survey:
        path = survey.report(tmp_path / "x.html")
    assert path == tmp_path / "x.html"
    assert "m00" in path.read_text(encoding="utf-8")


def test_the_survey_does_not_import_the_report() -> None:
    code = "import sys, thalweg.survey; sys.exit('thalweg.report' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_negative_goals_are_refused(tmp_path: Path) -> None:
    with (
        Survey.open(tmp_path / "a", surfaces.function(), CONFIG) as survey,
        pytest.raises(ValueError, match="minima must not be negative, got -1"),
    ):
        survey.run(minima=-1, progress=False)
