"""The package as others meet it: its public names, its walls, its pins."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import thalweg

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

# --- public names


def run(code: str, **options) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_thalweg_imports_no_torch_and_no_room():
    loaded = run(
        "import sys, thalweg; thalweg.__version__; dir(thalweg);"
        "print([m for m in sys.modules if m in ('torch', 'numpy') or m.startswith('thalweg.')])"
    )
    assert loaded == "[]"


@pytest.mark.parametrize("room", ["estimate", "topology"])
def test_a_room_without_torch_loads_none(room):
    assert run(f"import sys, thalweg.{room}; print('torch' in sys.modules)") == "False"


def test_a_room_with_torch_loads_it():
    assert run("import sys, thalweg.landscape; print('torch' in sys.modules)") == "True"


@pytest.mark.parametrize("name", thalweg.__all__)
def test_every_public_name_resolves(name):
    value = getattr(thalweg, name)
    room = thalweg._HOME.get(name)
    if room is not None:
        assert value is getattr(sys.modules[f"thalweg.{room}"], name)
    assert name in dir(thalweg)


def test_type_checkers_see_the_names_that_exist_at_run_time():
    tree = ast.parse(Path(thalweg.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module.partition(".")[2] for node in block.body for alias in node.names
    }
    assert seen.pop("zoo") == seen.pop("theory") == ""
    assert seen == thalweg._HOME


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'conect'; did you mean connect"):
        thalweg.conect  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'xyzzy'$"):
        thalweg.xyzzy  # noqa: B018


def test_the_version_is_written_once_and_has_its_changes():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert ROOT / PROJECT["tool"]["hatch"]["version"]["path"] == Path(thalweg.__file__)
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\n## {thalweg.__version__}" in changes


# --- pins


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    for line in kept:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line), f"not a plain pin: {line}"
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in kept}


def closure(requirements: list[str]) -> dict[str, list[Requirement]]:
    """Every distribution that the requirements bring in here, with who asked for what."""
    found: dict[str, list[Requirement]] = {}
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        known = name in found
        found.setdefault(name, []).append(requirement)
        if known and not requirement.extras:
            continue
        for text in importlib.metadata.requires(name) or []:
            child = Requirement(text)
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                todo.append(child)
    return found


def test_everything_that_gets_installed_is_pinned():
    project = PROJECT["project"]
    versions = pins()
    wanted = closure(project["dependencies"] + project["optional-dependencies"]["dev"])
    # what a CUDA build of torch brings is pinned by torch itself
    missing = {name for name in wanted if not re.match(r"nvidia|cuda|triton", name)} - set(versions)
    assert not missing, f"constraints.txt has no pin for {sorted(missing)}"
    assert versions["torch"] == "2.13.0"
    for name, requirements in wanted.items():
        for requirement in requirements:
            if name in versions:
                assert requirement.specifier.contains(versions[name], prereleases=True), requirement


def test_the_peers_of_the_benchmarks_are_pinned_and_never_imported():
    versions = pins()
    peers = {"curvlinops", "pyhessian", "hessian_eigenthings"}
    for text in PROJECT["project"]["optional-dependencies"]["bench"]:
        requirement = Requirement(text)
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True)
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not peers & {name.partition(".")[0] for name in names}, path


# --- walls: DESIGN's arrows, written down a second time and held against import-linter's verdicts

MAY_IMPORT = {
    "estimate": "",
    "landscape": "estimate",
    "curvature": "estimate landscape",
    "entropy": "estimate landscape curvature",
    "flatness": "estimate landscape curvature entropy",
    "optim": "estimate landscape curvature entropy",
    "symmetry": "estimate landscape",
    "zoo": "estimate landscape",
    "paths": "estimate landscape curvature",
    "views": "estimate landscape curvature",
    "theory": "estimate landscape curvature",
    "topology": "estimate",
}
BELOW = " ".join(MAY_IMPORT)
MAY_IMPORT |= {
    "survey": BELOW,
    "lab": f"{BELOW} survey",
    "report": f"{BELOW} survey lab",
    "cli": f"{BELOW} survey lab report",
}
NO_TORCH = {"estimate", "topology"}
DATABASE = {"survey", "report", "cli"}

LINT_EACH_IMPORT = """
import contextlib, io, json, pathlib, sys
from importlinter.cli import lint_imports
verdicts = {}
for importer, imported in json.load(sys.stdin):
    path = pathlib.Path("thalweg", importer, "inner.py")
    path.write_text("import " + imported + "\\n")
    with contextlib.redirect_stdout(io.StringIO()):
        verdicts[importer + " " + imported] = lint_imports("pyproject.toml", no_cache=True) == 0
    path.write_text("")
print(json.dumps(verdicts))
"""


def lint_each(tmp_path: Path, imports: list[tuple[str, str]]) -> dict[tuple[str, str], bool]:
    """Say for each single import, in a copy of the rooms that is otherwise empty, if it may be."""
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for room in ["", *MAY_IMPORT]:
        (tmp_path / "thalweg" / room).mkdir()
        (tmp_path / "thalweg" / room / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", LINT_EACH_IMPORT],
        input=json.dumps(imports),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {tuple(pair.split()): kept for pair, kept in json.loads(done.stdout).items()}


def test_the_linter_allows_the_arrows_and_rejects_every_other_import(tmp_path):
    pairs = list(itertools.permutations(MAY_IMPORT, 2))
    wanted = {(a, f"thalweg.{b}"): b in MAY_IMPORT[a].split() for a, b in pairs}
    wanted |= {(room, "torch"): room not in NO_TORCH for room in MAY_IMPORT}
    wanted |= {(room, "sqlalchemy.orm"): room in DATABASE for room in MAY_IMPORT}
    verdicts = lint_each(tmp_path, list(wanted))
    wrong = {pair: kept for pair, kept in verdicts.items() if kept != wanted[pair]}
    assert not wrong
    assert set(verdicts) == set(wanted)


def test_a_new_room_must_say_where_it_stands(tmp_path):
    verdicts = lint_each(tmp_path, [("estimate", "math")])
    assert verdicts == {("estimate", "math"): True}
    (tmp_path / "thalweg" / "helpers.py").touch()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import *; import sys; sys.exit(lint_imports())",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "helpers" in done.stdout
