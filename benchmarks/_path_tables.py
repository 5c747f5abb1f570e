"""The results of benchmarks/paths.py as tables: in the terminal and in the docs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from _docs import replace_marked
from rich.console import Console
from rich.markdown import Markdown

BEGIN = "<!-- paths: begin; `python benchmarks/paths.py --table` writes this section -->"
END = "<!-- paths: end -->"


def header(data: dict[str, Any]) -> str:
    """Return in words where and how the numbers were measured."""
    machine, count = data["machine"], data["machine"]["threads"]
    return (
        f"{machine['processor']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['system']}, load {machine['load at the start']} at the start; Python "
        f"{machine['python']}, torch {machine['torch']}, {count} thread{'s' * (count != 1)}; "
        f"thalweg {data['versions']['thalweg']}. {data['pairs']} pairs of minima a network"
        + ("." if data["full"] else "; **quick** sizes.")
    )


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _spread(values: list[float], digits: str = ".3g") -> str:
    """Return a median, with its range where there is one."""
    middle, least, most = statistics.median(values), min(values), max(values)
    if least == most:
        return f"{middle:{digits}}"
    return f"{middle:{digits}} ({least:{digits}}-{most:{digits}})"


def _said(verdict: dict[str, Any] | str | None) -> list[str]:
    if isinstance(verdict, str):
        return ["", ""]
    if verdict is None:
        return ["", "no path of theirs"]
    return [_spread(verdict["ratios"], ".2f"), "pass" if verdict["passed"] else "**miss**"]


def _row(name: str, found: list[dict[str, Any]], verdict: dict[str, Any] | str | None) -> list[str]:
    good = [run for run in found if "fails" not in run]
    if not good:
        return [name, "fails", "", "", "", *_said(verdict)]
    cells = [
        _spread([run[key] for run in good], digits)
        for key, digits in (("height", ".3g"), ("length", ".2f"), ("passes", ".0f"))
    ]
    return [
        name,
        *cells,
        f"{statistics.median(run['seconds'] for run in good):.1f} s",
        *_said(verdict),
    ]


def net_section(result: dict[str, Any]) -> list[str]:
    """Return one network's tables."""
    lines = [
        f"### {result['net']}: {result['parameters']:,} parameters, {result['examples']:,} "
        f"examples, {result['dtype']}",
        "",
        f"Losses of the ends {_spread(result['bases'])}; the straight line climbs "
        f"{_spread(result['lines'])} above them; differences below "
        f"{_spread(result['worth'], '.1g')} do not count.",
        "",
    ]
    for part in result["budgets"]:
        rows = [
            _row(name, found, part["verdicts"].get(name, "ours"))
            for name, found in part["runs"].items()
        ]
        head = [f"budget {part['budget']}", "height", "length / straight", "passes", "time"]
        lines += _grid([*head, "ours / theirs", "no higher"], rows)
        failed = {
            f"- {name} fails: {run['fails']}"
            for name, found in part["runs"].items()
            for run in found
            if "fails" in run
        }
        lines += [*sorted(failed), ""] if failed else []
    return lines


def summary(nets: list[dict[str, Any]]) -> list[str]:
    """Return whose code was run, and how many comparisons were won."""
    lines = [f"- {name}: {how}." for name, how in nets[0]["how"].items()] + [""]
    rows = []
    for name in list(nets[0]["how"])[1:]:
        said = [
            (result["net"], part["budget"], part["verdicts"][name])
            for result in nets
            for part in result["budgets"]
            if part["verdicts"][name] is not None
        ]
        ratios = [ratio for *_, verdict in said for ratio in verdict["ratios"]]
        missed = [f"{net} at {budget}" for net, budget, verdict in said if not verdict["passed"]]
        count = f"{len(said) - len(missed)} of {len(said)}"
        rows.append([name, count, _spread(ratios, ".2f"), "; ".join(missed) or "none"])
    head = ["peer", "no higher, networks and budgets", "ours / theirs, all pairs", "**misses**"]
    return [*lines, *_grid(head, rows)]


def markdown(data: dict[str, Any]) -> str:
    """Return the part of the docs that the results make."""
    lines = [header(data), "", *summary(data["nets"])]
    for result in data["nets"]:
        lines += net_section(result)
    return "\n".join(lines).rstrip() + "\n"


def show(result: dict[str, Any]) -> None:
    """Print one network's results."""
    console = Console(width=None if Console().is_terminal else 150)
    console.print(Markdown("\n".join(net_section(result))))


def rewrite(path: Path, data: dict[str, Any]) -> None:
    """Replace the marked part of a document, which must have the marks."""
    replace_marked(path, BEGIN, END, markdown(data))
