"""The command line: what it prints, what it refuses, and how it exits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import thalweg
from thalweg.cli import main
from thalweg.survey import Interrupted, Survey

MODULE = """
import torch
from thalweg import FunctionLandscape, ModelLandscape

def wells():
    return FunctionLandscape(lambda x: ((x**2 - 1)**2).sum() + 0.1 * x[0], dim=2)

ready = wells()

def network():
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)
    y = torch.arange(8) % 2
    model = torch.nn.Linear(3, 2).double()
    land = ModelLandscape(model, torch.nn.functional.cross_entropy, (x, y), penalty=0.1)
    return land, land.with_data((x + 0.1, y))

def breaks():
    raise RuntimeError("the data set is not here")

def mirrored(x):
    return torch.stack([x[0], x[1].abs()])

def made():
    return mirrored

def lazy(land=None):
    return mirrored

def short(x):
    return x[:1]

def module():
    return torch.nn.Linear(2, 2)

def diverges():
    return FunctionLandscape(lambda x: (x[0] - 100).sqrt() + (x**2).sum(), dim=2)
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a module of landscapes in it, which the command runs in."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import a_module_that_nobody_has\n")
    (tmp_path / "wrong.py").write_text("def landscape(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def mine(workplace: Path) -> str:
    """The name of that module, unlike that of any other test."""
    return f"mine_{workplace.name.replace('-', '_')}"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line; return its status, output and errors without colours."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed = capsys.readouterr()
    code = stop.value.code
    assert isinstance(code, int)
    return code, _words(printed.out), _words(printed.err)


def _words(text: str) -> str:
    """Take off colours, frames and line breaks, which depend on the terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"thalweg {thalweg.__version__}", "")


def test_python_minus_m_is_the_command() -> None:
    command = [sys.executable, "-m", "thalweg"]
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"thalweg {thalweg.__version__}\n"
    wrong = subprocess.run([*command, "demo", "--sed", "1"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "Usage: thalweg demo" in wrong.stderr


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, thalweg.cli\n"
        "try: thalweg.cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sqlalchemy', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert "survey" in done.stdout
    assert "demo" in done.stdout
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    assert spent < 1.0  # processor time on a busy machine; about 0.35 s on an idle one


def test_a_survey_runs_resumes_reports_and_says_where_it_stands(
    capsys: pytest.CaptureFixture[str], mine: str, workplace: Path
) -> None:
    target = f"{mine}:wells"
    code, out, err = call(
        capsys, "survey", "run", target, "--minima", "2", "--seed", "3", "--out", "w.survey"
    )
    assert (code, err) == (0, "")
    assert "w.survey: the plan" in out
    assert "find a minimum ┃ 0 ┃ 2" in out.replace("|", "┃") or "find a minimum 0 2" in out
    assert "w: 2 minima" in out
    assert "1 paths" not in out
    assert "3 paths" in out or "1 path" in out
    code, out, _ = call(capsys, "survey", "run", target, "--out", "w.survey")
    assert code == 0
    assert "w.survey: nothing is left to do" in out
    code, out, _ = call(
        capsys, "survey", "run", target, "--minima", "3", "--out", "w.survey", "--report", "r.html"
    )
    assert code == 0
    assert "w: 3 minima" in out
    assert f"report: {workplace / 'r.html'}" in out
    code, out, _ = call(capsys, "survey", "report", "w.survey", "-o", "again.html")
    assert code == 0
    assert f"report: {workplace / 'again.html'}" in out
    assert (workplace / "again.html").read_bytes()[:15].lower() == b"<!doctype html>"
    code, out, _ = call(capsys, "survey", "status", "w.survey")
    assert code == 0
    assert "minima: 3 done, 0 to do measures of a minimum: 3 done, 0 to do paths: " in out
    assert "complete" in out
    with Survey.read("w.survey") as survey:
        assert survey.config.seed == 3


def test_a_configuration_comes_from_a_file(
    capsys: pytest.CaptureFixture[str], mine: str, workplace: Path
) -> None:
    (workplace / "c.json").write_text('{"minima": 1, "eigenvalues": 1, "seed": 4}')
    arguments = ["survey", "run", f"{mine}:ready", "--out", "w.survey"]
    assert call(capsys, *arguments, "--config", "c.json")[0] == 0
    with Survey.read("w.survey") as survey:
        assert (survey.config.eigenvalues, survey.config.seed) == (1, 4)
    code, _, err = call(capsys, *arguments, "--seed", "5")
    assert code == 1
    assert "holds a survey under another configuration (seed: 4 there, 5 here)" in err
    assert "hint: leave the configuration out to go on with that one" in err
    (workplace / "c.json").write_text('{"minimas": 1}')
    code, _, err = call(capsys, *arguments, "--config", "c.json")
    assert code == 1
    assert "error: unknown survey option 'minimas'; did you mean 'minima'?" in err


def test_checkpoints_are_added_and_a_malicious_one_is_not_run(
    capsys: pytest.CaptureFixture[str], mine: str, workplace: Path
) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.mkdir, (str(workplace / "owned"),)

    target = f"{mine}:network"
    code, _, err = call(capsys, "survey", "add", "n.survey", target, "x.pt")
    assert code == 1
    assert f"hint: create one: thalweg survey run {target} --minima 0 --out n.survey" in err
    assert call(capsys, "survey", "run", target, "--minima", "0", "--out", "n.survey")[0] == 0
    save_file(torch.nn.Linear(3, 2).double().state_dict(), "a.safetensors")
    torch.save(torch.nn.Linear(3, 2).double().state_dict(), "b.pt")
    code, out, _ = call(capsys, "survey", "add", "n.survey", target, "a.safetensors", "b.pt")
    assert code == 0
    assert "a.safetensors is minimum a00 b.pt is minimum a01" in out
    torch.save({"weight": Malicious()}, "evil.pt")
    code, _, err = call(capsys, "survey", "add", "n.survey", target, "evil.pt")
    assert code == 1
    assert "error: evil.pt is refused" in err
    assert "could run any code" in err
    assert not (workplace / "owned").exists()
    code, _, err = call(capsys, "survey", "add", "n.survey", target, "none.pt")
    assert (code, "error: no checkpoint at none.pt" in err) == (1, True)
    code, out, _ = call(capsys, "survey", "run", target, "--out", "n.survey")
    assert code == 0
    assert "n: 2 minima" in out


@pytest.mark.slow
def test_a_survey_with_a_gauge_goes_on_with_it_alone(
    capsys: pytest.CaptureFixture[str], mine: str
) -> None:
    asked = ["survey", "run", f"{mine}:wells", "--out", "w.survey"]
    gauge = ["--gauge", f"{mine}:mirrored"]
    assert call(capsys, *asked, "--minima", "3", *gauge)[0] == 0
    with Survey.read("w.survey") as survey:
        minima = {m.id: survey.theta(m.id)[1] for m in survey.record().minima}
        paths = survey.record().paths
    for path in paths:  # paths that cross the mirror are shorter on one side of it
        if minima[path.a].sign() == minima[path.b].sign():
            assert path.balanced is not None
            assert path.length is not None
            assert path.balanced.length <= path.length * (1 + 1e-9)
        else:
            assert path.balanced is not None or "gauge" in path.note
    assert any(path.balanced is not None for path in paths)
    code, _, err = call(capsys, *asked)
    assert code == 1
    assert ".mirrored' there, None here" in err
    assert "--gauge" in err
    for named, problem in (
        (f"{mine}:made", "cannot be called with one vector"),
        (f"{mine}:lazy", "returned a function, not a vector of shape (2,)"),
        (f"{mine}:short", "returned a Tensor of shape (1,), not a vector of shape (2,)"),
    ):
        code, _, err = call(capsys, *asked[:-1], "x.survey", "--gauge", named)
        assert code == 1
        assert problem in err
        assert not Path("x.survey").exists()
    code, _, err = call(capsys, *asked, "--gauge", "")
    assert code == 2
    assert "--gauge '' is not of the form" in err
    code, _, err = call(capsys, "survey", "add", "none", f"{mine}:wells", "x", *gauge)
    assert " ".join(["--out none", *gauge]) in err
    save_file({"theta": torch.zeros(2, dtype=torch.float64)}, "a.safetensors")
    adding = ["survey", "add", "w.survey", f"{mine}:wells", "a.safetensors"]
    assert "and the gauge=, --gauge" in call(capsys, *adding)[2]
    assert "FunctionLandscape cannot read" in call(capsys, *adding, *gauge)[2]
    for named, problem in (
        (f"{mine}:ready", "is a FunctionLandscape, which is no gauge"),
        (f"{mine}:mirorred", f"did you mean {mine}:mirrored?"),
        (f"{mine}:zzz", "define it: def zzz(theta): return"),
    ):
        code, _, err = call(capsys, *asked, "--gauge", named)
        assert code == 1
        assert problem in err


@pytest.mark.parametrize(
    ("target", "error", "hint"),
    [
        ("nowhere:landscape", "there is no module 'nowhere' in ", "the folder that holds nowhere"),
        ("broken:landscape", "broken could not be imported: No module named 'a_", "install a_"),
        ("wrong:landscape", "wrong could not be imported: SyntaxError", "--debug"),
        ("MINE:well", "MINE has no well", "did you mean MINE:wells?"),
        ("MINE:zzz", "MINE has no zzz", "define it: def zzz()"),
        ("MINE:breaks", "MINE:breaks raised RuntimeError: the data set is not here (", "--debug"),
        ("MINE:module", "MINE:module returned Linear, which is no landscape", "ModelLandscape("),
    ],
)
def test_what_is_wrong_with_a_target_is_one_sentence_and_a_hint(
    capsys: pytest.CaptureFixture[str], mine: str, target: str, error: str, hint: str
) -> None:
    target, error, hint = (text.replace("MINE", mine) for text in (target, error, hint))
    code, out, err = call(capsys, "survey", "run", target, "--out", "w.survey")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {error}")
    assert hint in err.partition("hint: ")[2]
    assert "Traceback" not in err
    assert not Path("w.survey").exists()


def test_the_place_of_an_error_in_the_users_module_is_named(
    capsys: pytest.CaptureFixture[str], mine: str, workplace: Path
) -> None:
    line = 1 + MODULE.splitlines().index('    raise RuntimeError("the data set is not here")')
    _, _, err = call(capsys, "survey", "run", f"{mine}:breaks", "--out", "w.survey")
    assert f"({workplace / mine}.py, line {line})" in err


@pytest.mark.parametrize(
    "arguments", [["--debug", "survey", "run"], ["survey", "run", "--debug"]], ids=["front", "back"]
)
def test_the_traceback_is_shown_on_request(
    capsys: pytest.CaptureFixture[str], mine: str, arguments: list[str]
) -> None:
    code, _, err = call(capsys, *arguments, f"{mine}:breaks", "--out", "w.survey")
    assert code == 1
    assert "Traceback" in err
    assert "RuntimeError: the data set is not here" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["survey", "run", "mymodel", "--out", "w"], "is not of the form module:callable"),
        (["survey", "run", "a/b.py:f", "--out", "w"], "the module's name, not its file: a.b:f"),
        (["survey", "run", "m:f"], "Missing option '--out'"),
        (["survey", "run", "m:f", "--out", "w", "--minima", "-1"], "Invalid value for '--minima'"),
        (["survey", "fly"], "No such command 'fly'"),
        (["demo", "--minima", "0"], "Invalid value for '--minima'"),
    ],
)
def test_wrong_use_exits_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err


def test_the_curvature_at_a_checkpoint_is_printed_and_written(
    capsys: pytest.CaptureFixture[str], mine: str, workplace: Path
) -> None:
    save_file(torch.nn.Linear(3, 2).double().state_dict(), "a.safetensors")
    arguments = ["curvature", f"{mine}:network", "a.safetensors", "--seed", "3"]
    code, out, err = call(
        capsys, *arguments, "--eigenvalues", "2", "--json", "c.json", "--html", "c.html"
    )
    assert (code, err) == (0, "")
    assert f"{mine}:network at a.safetensors, 8 parameters" in out
    assert "2 eigenvalues and 10 random starts, in at most 60 passes over the data, seed 3" in out
    assert out.index("at most 60 passes") < out.index("largest eigenvalues")
    assert f"numbers: {workplace / 'c.json'}" in out
    assert f"page: {workplace / 'c.html'}" in out
    written = json.loads((workplace / "c.json").read_text())
    assert written["thalweg"] == thalweg.__version__
    assert (written["at"], written["seed"], written["kind"]) == ("at a.safetensors", 3, "hessian")
    assert len(written["eigenpairs"]["values"]) == 2
    page = (workplace / "c.html").read_text()
    assert f"{mine}:network at a.safetensors" in page
    assert "Spectrum of the Hessian" in page
    assert 'data-figure="layers"' in page
    code, out, err = call(capsys, *arguments, "--gauss-newton", "--eigenvalues", "2", "--json", "-")
    assert code == 0
    assert "at most 60 passes" in err
    assert json.loads(out)["kind"] == "gauss-newton"


def test_the_curvature_of_a_survey_s_minimum_and_of_a_random_start(
    capsys: pytest.CaptureFixture[str], mine: str
) -> None:
    target = f"{mine}:wells"
    assert call(capsys, "survey", "run", target, "--minima", "1", "--out", "w.survey")[0] == 0
    found = "w.survey/arrays/m00.theta.safetensors"
    code, out, _ = call(capsys, "curvature", target, found, "--json", "-", "--seed", "0")
    assert code == 0
    with Survey.read("w.survey") as survey:
        (minimum,) = survey.record().minima
    assert minimum.eigenvalues is not None
    at_minimum = json.loads(out)
    assert at_minimum["eigenpairs"]["values"] == pytest.approx(minimum.eigenvalues.values, rel=1e-6)
    code, out, _ = call(capsys, "curvature", target, "--seed", "5")
    assert code == 0
    assert f"{target} at a random start (seed 5), 2 parameters" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["MINE:wells", "none.pt"], 1, "error: no checkpoint at none.pt"),
        (["MINE:wells", "a.safetensors"], 1, "FunctionLandscape cannot read a.safetensors as a"),
        (["MINE:network", "b.safetensors"], 1, "error: "),
        (["MINE:wells", "--gauss-newton"], 1, "error: "),
        (["MINE:wells", "--probes", "3"], 2, "Invalid value for '--probes'"),
        (["MINE:wells", "--json", "no/folder/c.json"], 1, "no/folder"),
        (["MINE:wells", "--html", "no/folder/c.html"], 1, "the folder no/folder does not exist"),
    ],
)
def test_what_is_wrong_with_a_request_for_curvature_is_said(
    capsys: pytest.CaptureFixture[str], mine: str, arguments: list[str], code: int, message: str
) -> None:
    save_file({"weight": torch.zeros(2, 2)}, "a.safetensors")
    save_file({"theta": torch.zeros(3)}, "b.safetensors")
    given = [argument.replace("MINE", mine) for argument in arguments]
    status, _, err = call(capsys, "curvature", *given)
    assert status == code
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["status", "report"])
def test_no_survey_is_said(capsys: pytest.CaptureFixture[str], command: str) -> None:
    more = ["-o", "x.html"] if command == "report" else []
    code, _, err = call(capsys, "survey", command, "none.survey", *more)
    assert code == 1
    assert err.startswith("error: there is no survey in none.survey hint: check the path")


def test_failed_jobs_are_told_kept_and_tried_again(
    capsys: pytest.CaptureFixture[str], mine: str
) -> None:
    arguments = ["survey", "run", f"{mine}:diverges", "--minima", "1", "--out", "w.survey"]
    code, out, err = call(capsys, *arguments)
    assert code == 1
    assert "the survey is not complete" in out
    assert "error: 1 of the jobs failed, the last for this reason: minimum/seed=0: " in err
    assert "--retry tries them again" in err
    assert call(capsys, *arguments, "--retry")[0] == 1
    code, out, _ = call(capsys, "survey", "status", "w.survey")
    assert code == 0
    assert out.count("minimum/seed=0 failed on ") == 2


def test_ctrl_c_says_what_is_kept_and_exits_with_130(
    capsys: pytest.CaptureFixture[str], mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted("stopped at minimum/seed=0; 0 jobs are kept")

    monkeypatch.setattr(Survey, "run", stop)
    code, _, err = call(capsys, "survey", "run", f"{mine}:wells", "--out", "w.survey")
    assert (code, err) == (130, "stopped at minimum/seed=0; 0 jobs are kept")


def test_ctrl_c_while_the_curvature_is_measured_exits_with_130(
    capsys: pytest.CaptureFixture[str], mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("thalweg.curvature.profile.curvature_profile", stop)
    code, _, err = call(capsys, "curvature", f"{mine}:wells")
    assert (code, err) == (130, "stopped; nothing is kept")


def test_a_real_interrupt_ends_the_process_with_130_and_what_ended_is_kept(
    mine: str, workplace: Path
) -> None:
    heeding = (  # what runs in the background of a shell inherits a SIGINT that is ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from thalweg.cli import main; main()"
    )
    command = [
        sys.executable, "-c", heeding,
        "survey", "run", f"{mine}:wells", "--minima", "500", "--out", "w.survey",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=workplace) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(workplace.glob("w.survey/arrays/m02*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    said = re.search(r"stopped at minimum/seed=\d+, which will be done anew; (\d+) jobs are", err)
    assert said is not None
    assert "Traceback" not in err
    with Survey.read(workplace / "w.survey") as survey:
        kept = len(survey.record().minima)
    assert kept == int(said.group(1))
    assert kept >= 2  # the third's array is there before its row


@pytest.mark.slow
def test_the_demo_makes_a_report_and_resumes(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    code, out, _ = call(capsys, "demo", "--minima", "2", "--out", "d")
    assert code == 0
    assert "digits: 2 minima" in out
    assert f"report: {workplace / 'd' / 'digits.html'}" in out
    began = time.process_time()
    code, out, _ = call(capsys, "demo", "--minima", "2", "--out", "d")
    assert code == 0
    assert "nothing is left to do" in out
    assert time.process_time() - began < 15
