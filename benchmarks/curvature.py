"""Eigenvalues, traces and whole profiles of trained networks, beside three other packages.

    python benchmarks/curvature.py [--full] [--sections top,trace,profile] [--out FILE.json]
    python benchmarks/curvature.py --table docs/benchmarks-curvature.json   # rewrites the docs

Counts products and passes over the data, which no busy machine disturbs, and processor time,
in turns. See docs/benchmarks-curvature.md for what each number means.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _profiles
import _top
import _traces
import torch
from _curvature_tables import SECTIONS, rewrite, show
from _measure import machine
from _trained import LARGE, STAGES, Stage
from _turns import version

DOCS = Path(__file__).resolve().parents[1] / "docs"
PACKAGES = ("thalweg", "PyHessian", "hessian-eigenthings", "curvlinops-for-pytorch")
PROFILED = ("tanh, 30 steps", "ReLU, 400 steps", "CNN, 200 steps")


def stages(options: argparse.Namespace) -> list[Stage]:
    """Return the networks that are asked for."""
    found = [s for s in (*STAGES, LARGE) if not options.nets or s.name in options.nets]
    return [s for s in found if options.full or not s.slow]


def top(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure section a, a network at a time."""
    for stage in stages(options):
        yield _top.measure(stage, options.examples, options.rounds)


def trace(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure section b."""
    wanted = {stage.name for stage in stages(options)}
    for stage, kind in _traces.cases():
        if stage.name in wanted:
            yield _traces.measure(stage, kind, options.examples, options.seeds)


def profile(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure section c."""
    for stage in stages(options):
        if stage.name in PROFILED or stage is LARGE:
            yield _profiles.measure(stage, options.examples, options.rounds)


MEASURES = {"top": top, "trace": trace, "profile": profile}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more examples, seeds and networks")
    parser.add_argument("--quick", action="store_true", help="quick sizes (the default)")
    parser.add_argument("--examples", type=int, help="examples a network (150; full: 400)")
    parser.add_argument("--rounds", type=int, help="rounds of turns (3; full: 7)")
    parser.add_argument("--seeds", type=int, help="seeds for an RMS error (30; full: 200)")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of top,trace,profile")
    parser.add_argument("--nets", help="some networks, by their names, separated by semicolons")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--table", type=Path, metavar="JSON", help="rewrite the docs from this")
    options = parser.parse_args(arguments)
    if options.full and options.quick:
        parser.error("--full and --quick contradict each other")
    known = [stage.name for stage in (*STAGES, LARGE)]
    options.nets = options.nets.split(";") if options.nets else []
    if unknown := [name for name in options.nets if name not in known]:
        parser.error(f"no network called {'; '.join(unknown)}; there are: {'; '.join(known)}")
    options.sections = options.sections.split(",")
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    for name, quick, full in (("examples", 150, 400), ("rounds", 3, 7), ("seeds", 30, 200)):
        value = getattr(options, name)
        setattr(options, name, (full if options.full else quick) if value is None else value)
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, or rewrite the docs."""
    options = parse(arguments)
    if options.table:
        rewrite(DOCS / "benchmarks-curvature.md", json.loads(options.table.read_text("utf-8")))
        print(f"rewrote the marked part of {DOCS.name}/benchmarks-curvature.md")
        return 0
    torch.set_num_threads(1)
    data: dict[str, Any] = {
        "machine": machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "full": options.full,
        "examples": options.examples,
        "rounds": options.rounds,
        "seeds": options.seeds,
        **{name: [] for name in SECTIONS},
    }
    for name in options.sections:
        for result in MEASURES[name](options):
            data[name].append(result)
            show(name, result)
            if options.out:  # after each, so that a run that is cut short leaves what it has
                options.out.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
