"""The time of energy, gradient and Hessian product of many replicas of a 3-spin glass.

    python benchmarks/spin_glass.py [--quick] [--repeats 5] [--out FILE.json]
    python benchmarks/spin_glass.py --table docs/benchmarks-spin-glass.json    # rewrites the docs

Everything runs in one process, in turn, after all ways agree with plain autograd in float64.
See docs/benchmarks-spin-glass.md for what each number means.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _docs import replace_marked
from _measure import Verdict, interleave, machine, ratio, spread
from _spin_glass import bare, draw, einsum, errors, memory, published

from thalweg.theory.spin_glass.model import SphericalPSpin

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN = "<!-- spin glass: begin; `python benchmarks/spin_glass.py --table` writes this section -->"
END = "<!-- spin glass: end -->"
LIMIT = 2.0
HALF, DENSE = "bare products, symmetric half", "bare products, dense"
OURS, VALUE = "ours: energy, gradient, product", "ours: energy, gradient"
EINSUM, PUBLISHED = "einsum of the dense tensor", "public 3-spin code, its algorithm"


def measure(n: int, replicas: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Check and time every way at one size."""
    checked = errors(70, dtype)
    clock = time.process_time()
    glass = SphericalPSpin(n, 3, 0, dtype=dtype)
    drawing = time.process_time() - clock
    sigma, vectors = draw(glass, replicas)
    tensor = glass.tensor(3)
    dense = tensor.reshape(n, n * n)
    calls = {
        HALF: bare(sigma, dense[:, : n * (n + 1) // 2]),
        DENSE: bare(sigma, dense),
        OURS: lambda: glass.value_gradient_and_hvp(sigma, vectors),
        VALUE: lambda: glass.value_and_gradient(sigma),
        EINSUM: lambda: einsum(tensor, sigma, vectors),
        PUBLISHED: lambda: published(tensor, sigma[:1], vectors[:1]),  # times the replicas below
    }
    readings = interleave(calls, rounds=repeats, seconds=1e-9)
    times = {name: [reading.cpu for reading in found] for name, found in readings.items()}
    times[PUBLISHED] = [replicas * seconds for seconds in times[PUBLISHED]]
    rows = [
        {
            "way": name,
            "seconds": spread(found),
            "over half": ratio(found, times[HALF]),
            "over dense": ratio(found, times[DENSE]),
        }
        for name, found in times.items()
    ]
    verdict = Verdict(f"n = {n}", f"{OURS} / {HALF}", LIMIT, ratio(times[OURS], times[HALF]))
    return {
        "n": n,
        "replicas": replicas,
        "dtype": str(dtype).removeprefix("torch."),
        "errors": checked,
        "seconds to draw": drawing,
        "rows": rows,
        "flops a second": replicas * n * n * (n + 1) / min(times[HALF]),
        "verdict": verdict.to_json(),
    }


def tables(data: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    at = data["machine"]
    lines = [
        f"{at['processor']} ({at['instructions']}), {at['cores']} cores, {at['system']}, load "
        f"{at['load at the start']} at the start; Python {at['python']}, torch {at['torch']}, "
        f"one thread. {data['rounds']} interleaved rounds, processor time"
        + (", **quick** sizes." if data["quick"] else "."),
    ]
    for result in data["sizes"]:
        lines += [
            "",
            f"### n = {result['n']}, {result['replicas']} replicas, {result['dtype']}",
            "",
            f"Drawn in {result['seconds to draw']:.2f} s; the bare products run at "
            f"{result['flops a second'] / 1e9:.0f} GFlop/s; largest relative error of ours "
            f"{result['errors']['ours']:.1g}.",
            "",
            "| way | seconds | / symmetric half | / dense |",
            "| --- | --- | --- | --- |",
        ]
        for row in result["rows"]:
            cells = [_spread(row[key]) for key in ("seconds", "over half", "over dense")]
            lines.append(f"| {row['way']} | " + " | ".join(cells) + " |")
        told = result["verdict"]
        word = "pass" if told["passed"] else "**miss**"
        lines += ["", f"Target: {told['target']} at most {told['limit']:g}: {word}."]
    lines += [
        "",
        "| n | dtype | replicas | dense | told | peak | s to draw | s of a pass |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in data["memory"]:
        sizes = " | ".join(f"{found[key] / 2**30:.3g} GiB" for key in ("dense", "told", "peak"))
        lines.append(
            f"| {found['n']} | {found['dtype']} | {found['replicas']} | {sizes} | "
            f"{found['seconds to draw']:.3g} | {found['seconds of a pass']:.3g} |"
        )
    return "\n".join(lines)


def _spread(found: dict[str, float]) -> str:
    return "{median:.3g} ({min:.3g}-{max:.3g})".format(**found)


def rewrite(document: Path, data: dict[str, Any]) -> None:
    """Put the tables into the marked part of a document."""
    replace_marked(document, BEGIN, END, tables(data))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="sizes that take a minute")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--sizes", default=None, help="numbers of spins, such as 300,500")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--table", type=Path, help="rewrite the docs from such a file")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    given = options.sizes or ("150" if options.quick else "500")
    if not all(size.isdigit() and int(size) > 1 for size in given.split(",")):
        parser.error(f"--sizes takes numbers such as 300,500, not {given}")
    options.sizes = [int(size) for size in given.split(",")]
    options.replicas = 200 if options.quick else 1000
    options.large = 200 if options.quick else 1000
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, or rewrite the docs."""
    options = parse(arguments)
    if options.table:
        rewrite(DOCS / "benchmarks-spin-glass.md", json.loads(options.table.read_text("utf-8")))
        print(f"rewrote the marked part of {DOCS.name}/benchmarks-spin-glass.md")
        return 0
    torch.set_num_threads(1)
    data: dict[str, Any] = {
        "machine": machine(),
        "quick": options.quick,
        "rounds": options.repeats,
        "sizes": [],
        "memory": [memory(options.large, 16, torch.float32)],
    }
    for n in options.sizes:
        for dtype in (torch.float32, torch.float64):
            data["sizes"].append(measure(n, options.replicas, dtype, options.repeats))
            if options.out:  # after each, so that a run that is cut short leaves what it has
                options.out.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(tables(data))
    return 0 if all(result["verdict"]["passed"] for result in data["sizes"]) else 1


if __name__ == "__main__":
    sys.exit(main())
