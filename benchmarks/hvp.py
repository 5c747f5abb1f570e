"""The time of one Hessian-vector product, in gradients, beside three other packages.

    python benchmarks/hvp.py [--quick] [--repeats 15] [--nets CNN,LSTM] [--out FILE.json]
    python benchmarks/hvp.py --table docs/benchmarks-hvp.json     # rewrites docs/benchmarks.md

Everything runs in one process, in turn; a kernel is timed only after its product agrees with
plain autograd in float64. See docs/benchmarks.md for what each number means.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from _kernels import (
    BLOCK,
    KERNELS,
    REBUILT_BLOCK,
    RETAINED,
    RETAINED_BLOCK,
    Kernel,
    landscape,
    peak_bytes,
    reference,
    small_cap,
)
from _measure import (
    Verdict,
    agreement,
    interleave,
    machine,
    ratio,
    refuses,
    spread,
    wrong_products,
)
from _tables import rewrite, show
from nets import CASES, Case, WayRound

DOCS = Path(__file__).resolve().parents[1] / "docs"
GRADIENT, LAND_GRADIENT = "gradient", "Thalweg's gradient"
PEER_LIMIT, MEMORY_LIMIT = 1.05, 1.1


def reason(error: BaseException) -> str:
    """Return why something failed, in one short line."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0].split(". ")[0]
    return f"{type(error).__name__}: {text[:160]}"


def check(kernel: Kernel, case: Case, quick: bool, way_round: WayRound | None) -> dict[str, float]:
    """Return the relative errors of a kernel in float32 and float64.

    Raises:
        DisagreementError: If it is wrong.
        Exception: Whatever the package raises.
    """
    errors = {}
    exact = case.problem(torch.float64, quick)
    truth = reference(exact, exact.vectors(kernel.columns))
    for dtype in (torch.float64, torch.float32):
        problem = case.problem(dtype, quick)
        with ExitStack() as stack:
            ready = kernel.ready(problem, stack, way_round)
            errors[str(dtype).removeprefix("torch.")] = agreement(ready.flat(ready.call()), truth)
    return errors


def rows_of(case: Case, quick: bool) -> list[dict[str, Any]]:
    """Return a row for every kernel, and one more for the way round where it fails."""
    rows: list[dict[str, Any]] = []
    for kernel in KERNELS:
        for way_round in (None, *case.ways_round):
            row = row_of(kernel, case, quick, way_round)
            rows.append(row)
            if "error" in row or kernel.version() is None:
                break
    return rows


def row_of(kernel: Kernel, case: Case, quick: bool, way_round: WayRound | None) -> dict[str, Any]:
    """Return a kernel's row: its relative errors, or why it fails."""
    row: dict[str, Any] = {
        "kernel": kernel.name,
        "name": kernel.name + (f", {way_round.name}" if way_round else ""),
        "ours": kernel.ours,
        "columns": kernel.columns,
        "way round": way_round.name if way_round else None,
    }
    if kernel.version() is None:
        return row | {"fails": f"not installed (pip install {kernel.package})"}
    try:
        return row | {"error": check(kernel, case, quick, way_round)}
    except Exception as error:  # whatever a peer raises is a result
        if kernel.ours:
            raise
        return row | {"fails": reason(error)}


def controls(case: Case, quick: bool) -> int:
    """Return how many wrong products the check refused; every one must be."""
    exact = case.problem(torch.float64, quick)
    truth = reference(exact, exact.vectors(2))
    count = 0
    for dtype in (torch.float32, torch.float64):
        for name, product in wrong_products(truth, dtype).items():
            if not refuses(product, truth):
                raise AssertionError(f"the agreement check let a wrong product pass: {name}")
            count += 1
    return count


def memory(case: Case, quick: bool) -> dict[str, Any]:
    """Return peak bytes and data passes of one rebuilt block, under its cap."""
    problem = case.problem(torch.float32, quick)
    cap, seen = small_cap(problem), 0

    def counted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(targets)
        value: torch.Tensor = problem.loss(outputs, targets)
        return value

    land, theta = landscape(problem, memory=cap, loss=counted)
    rows = problem.vectors(BLOCK)
    with land.at(theta) as point:  # the plan is made here, from probes
        point.hvp(rows[:1])
        before, seen = land.cost, 0
        point.hvp(rows)
        spent, sweeps = land.cost - before, seen / len(problem.targets)
    peak = peak_bytes(land, theta, rows, problem)
    whole, at = landscape(problem, memory="8 GiB")
    return {
        "cap": cap,
        "peak": peak,
        "share": peak / cap,
        "peak retained": peak_bytes(whole, at, rows, problem),
        "examples at once": land.plan["examples at once"]["product"],
        "examples": len(problem.targets),
        "vectors": BLOCK,
        "products counted": spent.hvps,
        "passes counted": spent.passes,
        "rebuilds seen": sweeps,
    }


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Check and time every kernel on one net."""
    problem = case.problem(torch.float32, options.quick)
    result: dict[str, Any] = {
        "net": case.name,
        "what": case.what,
        "parameters": problem.dim,
        "examples": len(problem.targets),
        "limit": case.limit,
        "refused": controls(case, options.quick),
        "rows": rows_of(case, options.quick),
    }
    kernels = {kernel.name: kernel for kernel in KERNELS}
    ways = {way_round.name: way_round for way_round in case.ways_round}
    columns = {GRADIENT: 1, LAND_GRADIENT: 1}
    with ExitStack() as stack:
        land, theta = landscape(problem, memory="8 GiB")
        calls: dict[str, Callable[[], Any]] = {
            GRADIENT: problem.gradient,
            LAND_GRADIENT: lambda: land.gradient(theta),
        }
        for row in result["rows"]:
            if "fails" not in row:
                way_round = ways.get(row["way round"])
                ready = kernels[row["kernel"]].ready(problem, stack, way_round)
                calls[row["name"]], columns[row["name"]] = ready.call, row["columns"]
        readings = interleave(calls, rounds=options.repeats, seconds=options.seconds)
    times = {
        name: [getattr(reading, options.clock) / columns[name] for reading in found]
        for name, found in readings.items()
    }
    wall = {name: [r.wall / columns[name] for r in found] for name, found in readings.items()}
    result["gradient seconds"] = spread(times[GRADIENT])
    result["our gradient"] = ratio(times[LAND_GRADIENT], times[GRADIENT])
    for row in result["rows"]:
        if row["name"] in times:
            row["seconds"] = spread(times[row["name"]])
            row["gradients"] = ratio(times[row["name"]], times[GRADIENT])
            row["gradients by the wall clock"] = ratio(wall[row["name"]], wall[GRADIENT])
    compare(result, times)
    result["memory"] = memory(case, options.quick)
    result["verdicts"] = [verdict.to_json() for verdict in judge(result, times)]
    return result


def compare(result: dict[str, Any], times: dict[str, list[float]]) -> None:
    """Write into each peer's row how many times its time ours takes."""
    for row in result["rows"]:
        if not row["ours"] and row["name"] in times:
            row["ours over it"] = {
                kernel.name: ratio(times[kernel.name], times[row["name"]])
                for kernel in KERNELS
                if kernel.ours
            }


def best_peer(rows: list[dict[str, Any]], columns: int) -> dict[str, Any] | None:
    """Return the row of the fastest peer that takes at most so many vectors at once."""
    peers = [r for r in rows if not r["ours"] and "seconds" in r and r["columns"] <= columns]
    return min(peers, key=lambda row: row["seconds"]["median"]) if peers else None


def judge(result: dict[str, Any], times: dict[str, list[float]]) -> list[Verdict]:
    """Hold the measurements to the targets."""
    net, verdicts = result["net"], []
    for kernel in (RETAINED, RETAINED_BLOCK):
        peer = best_peer(result["rows"], kernel.columns)
        if peer:
            target = f"{kernel.name}, over {peer['name']}"
            found = ratio(times[kernel.name], times[peer["name"]])
            verdicts.append(Verdict(net, target, PEER_LIMIT, found))
    for kernel in (RETAINED, RETAINED_BLOCK):
        found = ratio(times[kernel.name], times[GRADIENT])
        target = f"{kernel.name}, in gradients"
        verdicts.append(Verdict(net, target, result["limit"], found))
    held = result["memory"]
    share = dict.fromkeys(("median", "min", "max"), held["share"])
    verdicts.append(Verdict(net, "rebuilt: peak memory over its cap", MEMORY_LIMIT, share))
    rebuilds = dict.fromkeys(("median", "min", "max"), held["rebuilds seen"])
    verdicts.append(Verdict(net, f"{REBUILT_BLOCK.name}: rebuilds", 1.0, rebuilds))
    return verdicts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller batches, shorter turns")
    parser.add_argument("--repeats", type=int, default=15, help="rounds, at least 5 (default 15)")
    parser.add_argument("--seconds", type=float, help="length of one turn (0.2; quick: 0.05)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument(
        "--clock",
        choices=("cpu", "wall"),
        help="processor time, which a busy machine disturbs less (default with one thread), "
        "or the clock on the wall (default with several)",
    )
    parser.add_argument("--nets", help="some of: " + ", ".join(case.name for case in CASES))
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--table", type=Path, metavar="JSON", help="rewrite the docs from this")
    options = parser.parse_args(arguments)
    if options.repeats < 5:
        parser.error(f"--repeats must be at least 5 for a median, got {options.repeats}")
    known = {case.name: case for case in CASES}
    names = options.nets.split(",") if options.nets else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no net called {', '.join(unknown)}; there are: {', '.join(known)}")
    options.cases = [known[name] for name in names]
    options.clock = options.clock or ("cpu" if options.threads == 1 else "wall")
    options.seconds = options.seconds or (0.05 if options.quick else 0.2)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, or rewrite the table in the docs."""
    options = parse(arguments)
    if options.table:
        rewrite(DOCS / "benchmarks.md", json.loads(options.table.read_text("utf-8")))
        print(f"rewrote the section between the hvp marks of {DOCS.name}/benchmarks.md")
        return 0
    torch.set_num_threads(options.threads)
    data: dict[str, Any] = {
        "machine": machine(),
        "versions": {kernel.package: kernel.version() for kernel in KERNELS},
        "quick": options.quick,
        "rounds": options.repeats,
        "seconds a turn": options.seconds,
        "clock": options.clock,
        "nets": [],
    }
    show(data)
    for case in options.cases:
        data["nets"].append(measure(case, options))
        show(data, len(data["nets"]) - 1)
        if options.out:  # after each net, so that a run that is cut short leaves what it has
            options.out.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
