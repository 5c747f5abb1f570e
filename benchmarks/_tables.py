"""The results of benchmarks/hvp.py as tables: in the terminal and in docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _docs import replace_marked
from rich.console import Console
from rich.table import Table
from rich.text import Text

BEGIN = "<!-- hvp: begin; `python benchmarks/hvp.py --table` writes this section -->"
END = "<!-- hvp: end -->"
WORDS = {True: "pass", False: "**miss**"}


def number(found: dict[str, float], places: int = 2) -> str:
    """Return a median with its spread."""
    median, least, most = (f"{found[key]:.{places}f}" for key in ("median", "min", "max"))
    return f"{median} ({least}-{most})"


def header(data: dict[str, Any]) -> str:
    """Return in words where and how the numbers were measured."""
    machine = data["machine"]
    versions = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in data["versions"].items()
    )
    clock = {"cpu": "processor time", "wall": "wall-clock time"}[data["clock"]]
    count = machine["threads"]
    return (
        f"{machine['processor']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['system']}, load {machine['load at the start']} at the start; Python "
        f"{machine['python']}, torch {machine['torch']}, {count} thread{'s' * (count != 1)}; "
        f"{versions}. {data['rounds']} interleaved rounds of about {data['seconds a turn']:g} s "
        f"a turn, {clock}, float32" + (", **quick** sizes." if data["quick"] else ".")
    )


def show(data: dict[str, Any], net: int | None = None) -> None:
    """Print where it runs, or the results of one net."""
    console = Console(width=None if Console().is_terminal else 150)
    if net is None:
        console.print(header(data).replace("**", ""), highlight=False)
        return
    result = data["nets"][net]
    gradient = result["gradient seconds"]["median"] * 1e3
    table = Table(
        title=f"{result['what']}: {result['parameters']} parameters, {result['examples']} examples",
        caption=f"one gradient: {gradient:.2f} ms; land.gradient: "
        f"{number(result['our gradient'])} gradients",
    )
    for name in ("kernel", "gradients per product", "ours retained / it", "error f32", "f64"):
        table.add_column(name, justify="left" if name == "kernel" else "right")
    for row in result["rows"]:
        if "fails" in row:
            table.add_row(row["name"], Text("fails", style="red"))
            continue
        over = row.get("ours over it")
        kernel = "Thalweg retained, " + ("1 vector" if row["columns"] == 1 else "16 vectors")
        errors = (f"{row['error'][name]:.0e}" for name in ("float32", "float64"))
        table.add_row(
            row["name"], number(row["gradients"]), number(over[kernel]) if over else "", *errors
        )
    console.print(table)
    for row in result["rows"]:
        if "fails" in row:
            console.print(f"  {row['name']} fails: {row['fails']}", style="red", highlight=False)
    for verdict in result["verdicts"]:
        word = "[green]pass[/]" if verdict["passed"] else "[red]MISS[/]"
        console.print(
            f"  {word}  {verdict['target']}: {number(verdict, 3)}, target <= {verdict['limit']:g}",
            highlight=False,
        )
    console.print(
        f"  the check refused {result['refused']} of {result['refused']} wrong products; "
        f"{memory_line(result['memory'])}\n",
        highlight=False,
    )


def memory_line(held: dict[str, Any]) -> str:
    """Return the memory of a rebuilt block in words."""
    return (
        f"rebuilt: peak {held['peak'] / 2**20:.2f} MiB under a cap of {held['cap'] / 2**20:.2f} "
        f"(retained: {held['peak retained'] / 2**20:.2f}), {held['examples at once']} of "
        f"{held['examples']} examples at once, {held['products counted']} products in "
        f"{held['passes counted']:g} pass counted, {held['rebuilds seen']:g} seen by the loss"
    )


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows), ""]


def markdown(data: dict[str, Any]) -> str:
    """Return the section of the docs that the results make."""
    nets = data["nets"]
    names: dict[str, None] = {}
    for result in nets:
        names |= {row["name"]: None for row in result["rows"]}
    kernels = sorted(names, key=lambda name: _rank(name, nets))
    notes: list[str] = []
    grid = []
    for name in kernels:
        cells = [_cell(name, result, notes) for result in nets]
        grid.append([name, *cells])
    grid.append(["`land.gradient`", *(number(result["our gradient"]) for result in nets)])
    units = [f"{r['gradient seconds']['median'] * 1e3:.2f} ms" for r in nets]
    grid.append(["one gradient", *units])
    lines = [header(data), "", "Gradients per product: median (least-greatest).", ""]
    lines += _grid(["", *(result["net"] for result in nets)], grid)
    lines += [f"[{i}] {note}\n" for i, note in enumerate(notes, 1)]
    lines += ["The nets:", ""]
    lines += [f"- {_describe(result)}" for result in nets]
    lines += ["", "The targets:", ""]
    lines += _grid(
        ["net", "target", "limit", "measured", ""],
        [
            [v["net"], v["target"], f"{v['limit']:g}", number(v, 3), WORDS[v["passed"]]]
            for result in nets
            for v in result["verdicts"]
        ],
    )
    lines += ["Memory of a rebuilt block:", ""]
    lines += [f"- {result['net']}: {memory_line(result['memory'])}" for result in nets]
    return "\n".join(lines)


def _rank(name: str, nets: list[dict[str, Any]]) -> int:
    """Keep the order of the benchmark, each way round after its kernel."""
    found = []
    for result in nets:
        order = list(dict.fromkeys(row["kernel"] for row in result["rows"]))
        found += [
            100 * order.index(row["kernel"]) + len(row["way round"] or "")
            for row in result["rows"]
            if row["name"] == name
        ]
    return max(found)


def _cell(name: str, result: dict[str, Any], notes: list[str]) -> str:
    for row in result["rows"]:
        if row["name"] != name:
            continue
        if "fails" not in row:
            return number(row["gradients"])
        if row["fails"] not in notes:
            notes.append(row["fails"])
        return f"fails [{notes.index(row['fails']) + 1}]"
    return "not needed"


def _describe(result: dict[str, Any]) -> str:
    worst = {
        dtype: max(row["error"][dtype] for row in result["rows"] if "error" in row)
        for dtype in ("float32", "float64")
    }
    return (
        f"**{result['net']}**: {result['what']}; {result['parameters']:,} parameters, "
        f"{result['examples']} examples. All that is timed agrees with plain float64 autograd to "
        f"{worst['float32']:.0e} in float32 and {worst['float64']:.0e} in float64; the check "
        f"refused {result['refused']} of {result['refused']} wrong products."
    )


def rewrite(path: Path, data: dict[str, Any]) -> None:
    """Replace the marked section of a document, which must have the marks."""
    replace_marked(path, BEGIN, END, markdown(data))
