"""tasks.py: what it finds, what it installs when, and what it says when it cannot."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = (ROOT / "tasks.py").read_text("utf-8")


@pytest.fixture
def clone(tmp_path):
    """A folder that holds what tasks.py looks at."""
    for name in ("tasks.py", "Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def tasks(clone):
    """The module tasks.py, loaded from a clone of its own."""
    spec = importlib.util.spec_from_file_location("tasks_of_a_clone", clone / "tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pip(tasks, monkeypatch):
    """A .venv that is made at once and a pip that only writes down what it is asked for."""
    asked = []

    def create_venv():
        Path(tasks.BIN).mkdir(parents=True, exist_ok=True)
        Path(tasks.PYTHON).symlink_to(sys.executable)
        Path(tasks.VENV, "pyvenv.cfg").write_text("include-system-site-packages = false\n")
        asked.append("venv")

    monkeypatch.delenv("REUSE_TORCH", raising=False)
    monkeypatch.setattr(tasks, "create_venv", create_venv)
    monkeypatch.setattr(tasks, "pip_install", lambda arguments: asked.append(arguments[-1]))
    monkeypatch.setattr(tasks, "ask", lambda command, code: "")
    return asked


def run(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tasks.py", *arguments],
        cwd=clone,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- any Python can read it


def modern(source: str) -> list[str]:
    """Name the syntax in `source` that a Python 3.4 (and 2.7) could not parse."""
    kinds = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            found.append(type(node).__name__)
        if any(isinstance(item, ast.Starred) for item in getattr(node, "elts", [])):
            found.append("unpacking")
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.args.posonlyargs or node.args.kwonlyargs:
                found.append("marked arguments")
            if node.returns or any(argument.annotation for argument in arguments):
                found.append("annotation")
    return found


def test_an_old_python_can_parse_it():
    ast.parse(SOURCE, feature_version=(3, 4))
    assert modern(SOURCE) == []
    assert SOURCE.isascii()


@pytest.mark.parametrize(
    "line", ["f'{x}'", "(x := 1)", "x: int = 1", "def f(x: int): pass", "def f(*, x): pass", "[*x]"]
)
def test_that_check_rejects_new_syntax(line):
    assert modern(line)


def test_it_needs_the_standard_library_alone():
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(SOURCE))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


# --- commands


def test_make_offers_the_same_commands(tasks):
    listed = re.search(r"^COMMANDS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(listed[1].split()) == set(tasks.COMMANDS)
    assert all(re.search(rf"^  {name} ", tasks.__doc__, re.MULTILINE) for name in tasks.COMMANDS)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_passes_arguments_on(clone):
    done = subprocess.run(
        ["make", "-n", "test", "ARGS=-k spec", "PYTHON=python9"],
        cwd=clone,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "python9 tasks.py test -k spec"


def test_help_and_an_unknown_command(clone):
    assert "python3 tasks.py COMMAND" in run(clone, "--help").stdout
    assert run(clone).returncode == 2
    done = run(clone, "tset")
    assert done.returncode == 1
    assert done.stderr == "error: there is no command 'tset'.\nhint: did you mean test?\n"


def test_lint_runs_all_four_even_if_one_fails(tasks, pip, monkeypatch, capsys):
    ran = []

    def call(command, **options):
        ran.append(Path(command[0]).name)
        return int(ran[-1] == "mypy")

    monkeypatch.setattr(tasks, "call", call)
    assert tasks.main(["lint"]) == 1
    assert ran == ["ruff", "ruff", "mypy", "lint-imports"]
    assert capsys.readouterr().out.endswith("lint: failed: mypy\n")


def test_demo_and_test_pass_their_arguments_on(tasks, pip, monkeypatch):
    ran = []
    monkeypatch.setattr(tasks, "call", lambda command, **options: ran.append(command) or 3)
    assert tasks.main(["demo", "--seed", "1"]) == 3
    assert tasks.main(["test", "-k", "spec"]) == 3
    assert ran[0] == [os.path.join(tasks.BIN, "thalweg"), "demo", "--seed", "1"]
    assert ran[1][:3] == [tasks.PYTHON, "-m", "pytest"]
    assert ran[1][-2:] == ["-k", "spec"]


@pytest.mark.parametrize(("arguments", "writes"), [([], True), (["-k", "trace"], False)])
def test_calibrate_takes_1000_seeds_and_writes_whole_tables_only(
    tasks, pip, monkeypatch, arguments, writes
):
    monkeypatch.delenv("THALWEG_CALIBRATE", raising=False)
    seen = {}
    monkeypatch.setattr(tasks, "call", lambda command, env: seen.update(env, command=command))
    tasks.main(["calibrate", *arguments])
    assert seen["THALWEG_CALIBRATE"] == "1000"
    assert ("THALWEG_CALIBRATE_TABLES" in seen) is writes
    assert seen["command"][-len(arguments) - 2 :] == ["-m", "calibration", *arguments]


# --- the stamp


def test_nothing_is_installed_twice(tasks, pip):
    tasks.install("")
    assert pip == ["venv", "hatchling", "."]
    tasks.install("")
    assert pip == ["venv", "hatchling", "."]


def test_dev_covers_demo_and_extras_add_up(tasks, pip):
    tasks.install("dev")
    tasks.install("")
    assert pip == ["venv", "hatchling", ".[dev]"]
    tasks.install("bench")
    assert pip[3:] == ["hatchling", ".[bench,dev]"]
    tasks.install("dev")
    assert len(pip) == 5


@pytest.mark.parametrize("path", ["pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg"])
def test_a_change_of_what_is_wanted_installs_again(tasks, pip, clone, path):
    tasks.install("dev")
    with (clone / path).open("a") as stream:
        stream.write("# changed\n")
    tasks.install("")
    assert pip[3:] == ["hatchling", ".[dev]"]


def test_touching_a_file_does_not(tasks, pip, clone):
    tasks.install("")
    os.utime(clone / "pyproject.toml", (0, 0))
    tasks.install("")
    assert len(pip) == 3


@pytest.mark.parametrize("last", ["hatchling", ".[dev]"])
def test_an_interrupted_install_leaves_no_stamp(tasks, pip, monkeypatch, last, capsys):
    tasks.install("")

    def interrupted(arguments):
        if arguments[-1] == last:
            raise KeyboardInterrupt
        pip.append(arguments[-1])

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "pip_install", interrupted)
        assert tasks.main(["install"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"
    assert not os.path.exists(tasks.STAMP)
    pip.clear()
    assert tasks.main(["install"]) == 0
    assert pip == ["hatchling", ".[dev]"]


def test_a_broken_environment_is_made_again(tasks, pip):
    tasks.install("")
    os.remove(tasks.PYTHON)  # its Python was upgraded away
    pip.clear()
    tasks.install("")
    assert pip == ["venv", "hatchling", "."]


def test_a_damaged_stamp_counts_for_nothing(tasks, pip):
    tasks.install("")
    Path(tasks.STAMP).write_text('{"key": ')
    pip.clear()
    tasks.install("")
    assert pip == ["hatchling", "."]


# --- torch that is there already


def test_reuse_torch_makes_a_layer_once(tasks, pip, monkeypatch):
    tasks.install("")
    pip.clear()
    monkeypatch.setenv("REUSE_TORCH", "1")

    def layer():
        Path(tasks.VENV, "pyvenv.cfg").write_text("include-system-site-packages = true\n")
        pip.append("venv")

    monkeypatch.setattr(tasks, "create_venv", layer)
    tasks.install("")
    tasks.install("")
    monkeypatch.delenv("REUSE_TORCH")
    tasks.install("")
    assert pip == ["venv", "hatchling", "."]


def test_what_is_there_keeps_its_version(tasks, monkeypatch):
    pins = Path(tasks.ROOT, "constraints.txt")
    assert tasks.constraints() == str(pins)
    Path(tasks.VENV).mkdir()
    Path(tasks.VENV, "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    monkeypatch.setattr(
        tasks, "ask", lambda command, code: '["torch", "SymPy", "typing_extensions"]'
    )
    reduced = Path(tasks.constraints()).read_text().splitlines()
    before = pins.read_text().splitlines()
    gone = [line.partition("==")[0] for line in before if line not in reduced]
    assert [name.lower() for name in gone] == ["sympy", "torch", "typing_extensions"]


def test_reuse_torch_without_a_torch(tasks, monkeypatch):
    monkeypatch.setenv("REUSE_TORCH", "1")
    monkeypatch.setattr(tasks, "ask", lambda command, code: None if "torch" in code else "3.11")
    with pytest.raises(tasks.Stop, match="has no torch to reuse"):
        tasks.create_venv()


# --- what it says when it cannot


def test_a_python_that_is_too_old(tasks, monkeypatch, capsys):
    monkeypatch.setattr(
        tasks, "ask", lambda command, code: "3.6" if command != ["python"] else None
    )
    assert tasks.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert "thalweg needs Python 3.11 or newer, and there is none here" in said
    assert "python3.12 is 3.6" in said
    assert "hint: install one (Debian, Ubuntu: apt install python3 python3-venv" in said


def test_a_newer_python_beside_an_old_one_is_found(tasks, monkeypatch):
    versions = {"python3.12": "3.12", "python3": "3.9", sys.executable: "3.8"}
    monkeypatch.setattr(tasks, "ask", lambda command, code: versions.get(command[0]))
    assert tasks.find_python() == ["python3.12"]


@pytest.mark.parametrize("absent", ["venv", "ensurepip"])
def test_a_python_without_venv(clone, tmp_path, absent):
    folder = tmp_path / "shadow"
    folder.mkdir()
    (folder / f"{absent}.py").write_text("raise ImportError('as Debian splits it off')\n")
    done = run(clone, "demo", PYTHONPATH=str(folder))
    assert done.returncode == 1
    assert "cannot make environments: its venv module is missing" in done.stderr
    assert "hint: Debian, Ubuntu: apt install python3-venv (or python3." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("said", "sentence", "hint"),
    [
        (
            "WARNING: Retrying after NewConnectionError: [Errno 111] Connection refused",
            "pip could not reach the package index, so .venv is not complete.",
            "check the network",
        ),
        ("ERROR: [Errno 28] No space left on device", "the disk is full", "CPU build"),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            "no torch for this Python and machine",
            "REUSE_TORCH=1",
        ),
        ("ERROR: something else", "pip could not install thalweg", "tasks.py clean"),
    ],
)
def test_pip_fails(tasks, monkeypatch, capfd, said, sentence, hint):
    Path(tasks.BIN).mkdir(parents=True)
    Path(tasks.PYTHON).write_text(f"#!{sys.executable}\nimport sys\nsys.exit({said!r})\n")
    os.chmod(tasks.PYTHON, 0o755)
    with pytest.raises(tasks.Stop) as problem:
        tasks.pip_install(["--editable", "."])
    assert sentence in str(problem.value)
    assert hint in problem.value.hint
    assert said in capfd.readouterr().err  # pip's own words are shown too


def test_pip_succeeds(tasks):
    Path(tasks.BIN).mkdir(parents=True)
    Path(tasks.PYTHON).write_text("#!/bin/sh\nexit 0\n")
    os.chmod(tasks.PYTHON, 0o755)
    assert tasks.pip_install(["."]) is None
