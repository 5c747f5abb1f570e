"""What every test stands on: one thread, checked shapes, fixed seeds, one calibration rule.

This file is imported before any test module, so the hook below sees every import of
thalweg: each annotated function of the library checks its shapes while the tests run.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import beartype.typing  # noqa: F401 (the text given to the hook names it)
import hypothesis
import jaxtyping
import pytest
import torch

if "thalweg" in sys.modules:
    raise RuntimeError("thalweg was imported before tests/conftest.py could check its shapes")
jaxtyping.install_import_hook(
    "thalweg",
    # an int is a float, as mypy has it; and beartype cannot check Self on a lone method
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, hint_overrides="
    "beartype.FrozenDict({beartype.typing.Self: beartype.typing.Any})))",
)

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "thalweg", derandomize=True, deadline=None, print_blob=True, database=None
)
hypothesis.settings.load_profile("thalweg")

ROOT = Path(__file__).resolve().parents[1]
ROWS = "calibration row"


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator with a fixed seed."""
    return torch.Generator().manual_seed(20240501)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the shape checks off, to meet the library's own message for a wrong argument."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


class CtrlC:
    """Progress that presses Ctrl-C at the n-th report, once; every report is a share and words."""

    def __init__(self, after: int, says: str = "") -> None:
        self.left, self.says = after, says

    def __call__(self, part: float, message: str) -> None:
        assert 0 <= part <= 1
        assert message
        assert self.says in message
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture
def ctrl_c() -> type[CtrlC]:
    """How a test interrupts long work: ``progress=ctrl_c(3)``."""
    return CtrlC


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Enter folders of scripts as ``python FOLDER/script.py`` does; return the import.

    Their modules have plain names (`laws`, `paths`): they are forgotten when the test ends.
    """
    names: set[str] = set()
    before = dict(sys.modules)

    def enter(*folders: str) -> Callable[[str], Any]:
        for folder in folders:
            monkeypatch.syspath_prepend(str(ROOT / folder))
            names.update(file.stem for file in (ROOT / folder).glob("[!_]*.py"))
            names.update(file.stem for file in (ROOT / folder).glob("_[!_]*.py"))
        for name in names:
            sys.modules.pop(name, None)
        return importlib.import_module

    yield enter
    for name in names:
        sys.modules.pop(name, None)
        sys.modules.update({name: before[name]} if name in before else {})


def missing(what: str) -> None:
    """Skip a test that needs something this machine lacks; in CI, which installs it, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; .ci/run should have installed it")
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a headless browser."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    missing("no Chromium on this machine (Debian: apt install chromium)")
    raise AssertionError("missing() always raises")


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """The folder of the four Fashion-MNIST files."""
    folder = Path(os.environ.get("THALWEG_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        missing(f"no Fashion-MNIST in {folder} (Debian: apt install dataset-fashion-mnist)")
    return folder


def least_hits(seeds: int, level: float) -> int:
    """Return the fewest covered seeds that are not significantly below `level`.

    Exact binomial test at 1e-4: 923 of 1000 for a 95 % interval.
    """
    from scipy.stats import binom

    return int(binom.ppf(1e-4, seeds, level))


@dataclass(frozen=True)
class Calibration:
    """The calibration rule, and the table that its rows go to."""

    seeds: range
    record: Callable[[str, object], None]

    def check(
        self, case: str, hits: int, *, level: float = 0.95, width_ratio: float | None = None
    ) -> None:
        """Record one row, then hold it to the rule.

        Args:
            case: What was estimated, in words; a row of the table.
            hits: How many of `seeds` gave an interval that holds the truth.
            level: The interval's nominal coverage.
            width_ratio: Its median width over that of an oracle's; at most 2.
        """
        least = least_hits(len(self.seeds), level)
        self.record(ROWS, [case, level, hits, len(self.seeds), least, width_ratio])
        assert 0 <= hits <= len(self.seeds), f"{hits} hits in {len(self.seeds)} seeds"
        assert hits >= least, (
            f"{case}: the {level:.0%} interval held the truth for {hits} of {len(self.seeds)} "
            f"seeds; an honest one does so for at least {least} (exact binomial, 1e-4)"
        )
        assert width_ratio is None or width_ratio <= 2, (
            f"{case}: the median interval is {width_ratio:.3g} times as wide as an oracle's, "
            "more than twice"
        )


@pytest.fixture
def calibration(record_property: Callable[[str, object], None]) -> Calibration:
    """The seeds of a calibration test, and the rule that judges its coverage."""
    count = int(os.environ.get("THALWEG_CALIBRATE", "100"))
    return Calibration(range(count), record_property)


def _table(rows: list[list[object]]) -> list[str]:
    lines = [
        "| case | nominal | covered | fewest allowed | median width / oracle's |",
        "|---|---|---|---|---|",
    ]
    for case, level, hits, seeds, least, ratio in sorted(rows, key=str):
        width = "" if ratio is None else f"{ratio:.3g}"
        lines.append(f"| {case} | {level:.4g} | {hits} of {seeds} | {least} | {width} |")
    return lines


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "an unknown commit"
    changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True)
    return head.stdout.strip() + (" with uncommitted changes" if changes.stdout else "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the calibration tables; write them where THALWEG_CALIBRATE_TABLES says."""
    rooms: dict[str, list[list[object]]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if getattr(report, "when", None) != "call":
                continue
            room = Path(report.nodeid.partition("::")[0]).parent.name
            rows = [value for name, value in report.user_properties if name == ROWS]
            rooms.setdefault(room, []).extend(rows)
    folder = os.environ.get("THALWEG_CALIBRATE_TABLES")
    for room, rows in sorted(rooms.items()):
        if not rows:
            continue
        lines = _table(rows)
        terminalreporter.section(f"calibration of {room}")
        for line in lines:
            terminalreporter.write_line(line)
        if folder:
            head = [
                f"# Calibration: {room}",
                "",
                f"Made by `make calibrate` at commit {_commit()}. A row passes when its coverage",
                "is not significantly below nominal (exact binomial at 1e-4).",
                "",
            ]
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{room}.md").write_text("\n".join([*head, *lines, ""]), "utf-8")
