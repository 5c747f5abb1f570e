"""The results of benchmarks/curvature.py as tables: in the terminal and in the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _docs import replace_marked
from rich.console import Console
from rich.markdown import Markdown

BEGIN = "<!-- curvature: begin; `python benchmarks/curvature.py --table` writes this section -->"
END = "<!-- curvature: end -->"
WORDS = {True: "pass", False: "**miss**", None: "not measured"}


def header(data: dict[str, Any]) -> str:
    """Return in words where and how the numbers were measured."""
    machine = data["machine"]
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in data["versions"].items())
    count = machine["threads"]
    return (
        f"{machine['processor']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['system']}, load {machine['load at the start']} at the start; Python "
        f"{machine['python']}, torch {machine['torch']}, {count} thread{'s' * (count != 1)}; "
        f"{versions}. Processor time" + ("." if data["full"] else "; **quick** sizes.")
    )


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _count(found: dict[str, float]) -> str:
    """Return a median, with its range where there is one."""
    median, least, most = (found[key] for key in ("median", "min", "max"))
    return f"{median:.0f}" if least == most else f"{median:.0f} ({least:.0f}-{most:.0f})"


def _said(share: float | None) -> str:
    return "says nothing" if share is None else {0.0: "no", 1.0: "yes"}.get(share, f"{share:.0%}")


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """Name each failure once."""
    found = {f"{row['name']}: {row['fails']}" for row in rows if "fails" in row}
    return [*(f"- fails: {note}" for note in sorted(found)), ""] if found else []


def top_section(results: list[dict[str, Any]]) -> list[str]:
    """Return section a."""
    lines = ["## The twenty eigenvalues of largest magnitude", ""]
    verdicts = [result["verdict"] for result in results]
    small = [result for result in results if result["truth"] == "dense float64"]
    quarter = sum(v["within a quarter"] for v in verdicts)
    sixth = sum(v["within a sixth"] for v in verdicts)
    grid = []
    for result in results:
        v = result["verdict"]
        grid.append(
            [
                result["net"],
                f"{result['parameters']:,}",
                f"{result['loss']:.1e}",
                f"{v['error']:.0e}",
                f"{v['rule error']:.0e}" if v["rule error"] is not None else "-",
                f"{v['share']:.3f}",
                WORDS[v["within a quarter"]],
                WORDS[v["within a sixth"]],
            ]
        )
    head = ["net", "parameters", "loss", "our worst error", "the rule's error"]
    lines += _grid([*head, "our products / the rule's", "<= 1/4", "<= 1/6"], grid)
    lines += [
        f"Within a quarter on {quarter} of {len(results)} networks (target: all); within a sixth "
        f"on {sixth} (target: half). {len(small)} of them against a dense float64 Hessian.",
        "",
    ]
    for result in results:
        lines += [f"### {result['net']}", "", f"Truth: {result['truth']}.", ""]
        rows = [
            [
                row["name"],
                _count(row["products"]),
                _count(row["passes"]),
                f"{row['error']['median']:.0e} ({row['error']['max']:.0e})",
                _said(row["says converged"]),
                f"{row['seconds']['median'] * 1e3:.0f} ms" if "seconds" in row else "",
            ]
            for row in result["rows"]
            if "fails" not in row
        ]
        head = ["", "products", "passes", "worst relative error, median (max)", "says converged"]
        lines += _grid([*head, "time"], rows)
        lines += _notes(result["rows"])
    return lines


def trace_section(results: list[dict[str, Any]]) -> list[str]:
    """Return section b."""
    lines = ["## Traces", ""]
    for result in results:
        lines += [
            f"### {result['matrix']} of {result['net']}",
            "",
            f"{result['parameters']:,} parameters, $\\|A\\|_F / |\\mathrm{{tr}} A|$ = "
            f"{result['over']:.3g}, {result['seeds']} seeds.",
            "",
        ]
        good = [row for row in result["rows"] if "fails" not in row]
        budgets = [f"{products:.0f}" for products, _ in good[0]["points"]]
        rows = [
            [
                row["name"],
                *(f"{100 * error:.2f}" for _, error in row["points"]),
                "beyond" if row["for the goal"] is None else f"{row['for the goal']:.0f}",
            ]
            for row in good
        ]
        lines += _grid(["RMS error in %, at products", *budgets, "products for 1 %"], rows)
        if "zero products" in result:
            own = result["zero products"]
            lines += [
                f"The operator itself knows it: error {own['error']:.0e} with "
                f"{own['products']} products, in {own['passes']:g} passes.",
                "",
            ]
        lines += _notes(result["rows"])
        lines += [
            f"- {v['target']}: {v['measured']:.3g}, target <= {v['limit']:.3g}: "
            f"{WORDS[v['passed']]}"
            for v in result["verdicts"]
        ]
        lines.append("")
    return lines


def profile_section(results: list[dict[str, Any]]) -> list[str]:
    """Return section c."""
    lines = ["## Everything at one point", ""]
    for result in results:
        lines += [
            f"### {result['net']}: {result['parameters']:,} parameters, "
            f"{result['examples']} examples, float32",
            "",
        ]
        rows = []
        for row in result["rows"]:
            if "fails" in row:
                continue
            errors = [
                f"{row[key]['median']:.0e}" if key in row else ""
                for key in ("top error", "trace error")
            ]
            seconds = f"{row['seconds']['median']:.2f} s"
            rows.append(
                [row["name"], _count(row["products"]), _count(row["passes"]), seconds, *errors]
            )
        head = ["", "products", "passes", "time", "top 10: worst error", "trace: error"]
        lines += _grid(head, rows)
        lines += _notes(result["rows"])
        verdict = result["verdict"]
        if verdict["passed"] is not None:
            lines += [
                f"- {verdict['target']}: {verdict['measured']:.3g} times the passes, "
                f"{verdict['seconds']:.3g} times the seconds: {WORDS[verdict['passed']]}"
            ]
        lines.append("")
    return lines


SECTIONS = {"top": top_section, "trace": trace_section, "profile": profile_section}


def markdown(data: dict[str, Any]) -> str:
    """Return the part of the docs that the results make."""
    lines = [header(data), ""]
    for name, section in SECTIONS.items():
        if data[name]:
            lines += section(data[name])
    return "\n".join(lines).rstrip() + "\n"


def show(section: str, result: dict[str, Any]) -> None:
    """Print one network's results of one section."""
    console = Console(width=None if Console().is_terminal else 150)
    console.print(Markdown("\n".join(SECTIONS[section]([result])[2:])))


def rewrite(path: Path, data: dict[str, Any]) -> None:
    """Replace the marked part of a document, which must have the marks."""
    replace_marked(path, BEGIN, END, markdown(data))
