"""Tables and figures from the finished searches, beside what was published."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import searches

from thalweg.paths.laws import curviness_law
from thalweg.report import save

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"
SHIFTS = {BLUE: -0.004, ORANGE: 0.004, GREEN: 0.008}  # of the range of levels
NAMES = {"raw": "as found", "shortened": "shortened", "beads": "beads"}
QUADRATIC_LEVELS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125)
# Figure 1 of Freeman and Bruna, ICLR 2017, read off the vector figures of their repository.
QUADRATIC_LENGTHS = (1.863, 1.753, 1.661, 1.650, 1.476, 1.329, 1.366, 1.291, 1.346, 1.270)
QUADRATIC_ERRORS = (0.154, 0.141, 0.127, 0.115, 0.104, 0.073, 0.089, 0.066, 0.069, 0.049)
QUADRATIC_BEADS = (62.4, 38.3, 23.5, 18.8, 13.8, 8.17, 6.81, 5.40, 5.04, 3.98)
CUBIC_LENGTHS = {
    0.01: 1.872, 0.02: 1.688, 0.03: 1.508, 0.04: 1.447, 0.05: 1.428, 0.06: 1.435, 0.07: 1.418,
    0.08: 1.394, 0.1: 1.382, 0.12: 1.375, 0.14: 1.422, 0.15: 1.657, 0.152: 1.783, 0.154: 1.989,
    0.156: 2.415, 0.158: 2.538, 0.16: 2.278, 0.162: 1.870, 0.164: 1.523, 0.168: 1.006,
    0.17: 1.004, 0.2: 1.004, 0.24: 1.004, 0.28: 1.004, 0.32: 1.004,
}  # fmt: skip
CUBIC_BEADS = {
    0.01: 46.3, 0.02: 27.3, 0.03: 18.7, 0.04: 15.9, 0.05: 14.1, 0.06: 12.4, 0.07: 10.9,
    0.08: 9.50, 0.1: 7.61, 0.12: 5.96, 0.14: 4.52, 0.15: 3.74, 0.158: 3.43, 0.164: 3.08,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, dict[float, tuple[float, float | None]]]] = {
    "quadratic": {
        "length": {
            x: (y, e)
            for x, y, e in zip(QUADRATIC_LEVELS, QUADRATIC_LENGTHS, QUADRATIC_ERRORS, strict=True)
        },
        "beads": {x: (y, None) for x, y in zip(QUADRATIC_LEVELS, QUADRATIC_BEADS, strict=True)},
    },
    "cubic": {
        "length": {x: (y, None) for x, y in CUBIC_LENGTHS.items()},
        "beads": {x: (y, None) for x, y in CUBIC_BEADS.items()},
    },
}


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return (values[0] if values else math.nan), math.nan
    middle = sum(values) / n
    spread = math.sqrt(sum((x - middle) ** 2 for x in values) / (n - 1))
    return middle, spread / math.sqrt(n)


def column(rows: Sequence[dict[str, Any]], level: float, key: str) -> list[float]:
    """Return one quantity of the strings found at one level."""
    at = [row for row in rows if row["level"] == level and row["answer"] == "yes"]
    return [float(row[key]) for row in at if row[key] is not None]


def _cell(values: Sequence[float]) -> str:
    middle, error = mean(values)
    if math.isnan(middle):
        return "-"
    return f"{middle:.3g}" if math.isnan(error) else f"{middle:.3f} ± {error:.3f}"


def agreement(values: Sequence[float], published: tuple[float, float | None] | None) -> str:
    """Say whether a mean agrees with a published one within two combined standard errors."""
    middle, error = mean(values)
    if published is None or math.isnan(error):
        return ""
    known, theirs = published
    gap = (middle - known) / math.hypot(error, theirs or 0.0) if error or theirs else math.inf
    return f"{'agrees' if abs(gap) <= 2 else '**disagrees**'} ({gap:+.1f})"


def table(out: Path, name: str) -> str:
    """Return the table of an experiment in Markdown, and its laws."""
    loose, strict = (searches.read(out, name, kind) for kind in ("loose", "strict"))
    known = PUBLISHED.get(name, {"length": {}, "beads": {}})
    levels = sorted({row["level"] for row in (*loose, *strict)})
    head = "level|joined loose|length|published||beads|published||joined strict|length|shortened|"
    head = f"| {head.replace('|', ' | ')}beads |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for level in levels:
        cells = [f"{level:g}", _joined(loose, level)]
        for key, field in (("length", "raw"), ("beads", "beads")):
            given, values = known[key].get(level), column(loose, level, field)
            shown = "-" if given is None else f"{given[0]:g}"
            shown += f" ± {given[1]:g}" if given is not None and given[1] is not None else ""
            cells += [_cell(values), shown, agreement(values, given)]
        cells.append(_joined(strict, level))
        cells += [_cell(column(strict, level, key)) for key in ("raw", "shortened", "beads")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_laws({"loose": loose, "strict": strict}), *steps(out, name)])


def steps(out: Path, name: str) -> list[str]:
    """Return a table of what `dynamic_string` as it comes takes, pair by pair, beside the others.

    Gradients of a loose search leave out the losses of its checks; those of the others hold the
    gradients of their brackets.
    """
    ours = {(r["level"], r["seed"]): r for r in searches.read(out, name, "ours")}
    theirs = {
        kind: {(r["level"], r["seed"]): r for r in searches.read(out, name, kind)}
        for kind in ("loose", "strict")
    }
    if not ours:
        return []
    head = "| level | joined ours | length | shortened | beads | gradients | / loose | / strict |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for level in sorted({level for level, _ in ours}):
        rows = [row for (x, _), row in ours.items() if x == level]
        cells = [f"{level:g}", _joined(rows, level)]
        cells += [_cell(column(rows, level, key)) for key in ("raw", "shortened", "beads")]
        spent = [_gradients(row) for row in rows if row["answer"] == "yes"]
        cells.append(f"{statistics.median(spent):.0f}" if spent else "-")
        for others in theirs.values():
            both = [(row, others.get((level, row["seed"]))) for row in rows]
            ratios = [
                _gradients(one) / _gradients(other)
                for one, other in both
                if other is not None and one["answer"] == other["answer"] == "yes"
            ]
            cells.append(_range(ratios))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _gradients(row: dict[str, Any]) -> float:
    return float(row["cost"]["gradients"])


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _joined(rows: Sequence[dict[str, Any]], level: float) -> str:
    at = [row for row in rows if row["level"] == level and row["answer"] != "no ends"]
    return f"{sum(row['answer'] == 'yes' for row in at)} of {len(at)}" if at else "-"


def _laws(kinds: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    for kind, rows in kinds.items():
        for key in ("raw", "shortened", "beads"):
            used = [r for r in rows if r["answer"] == "yes" and r[key] is not None]
            levels, seeds = [r["level"] for r in used], [r["seed"] for r in used]
            if len(set(levels)) < 4 or len(set(seeds)) < 3:
                continue
            law = curviness_law(
                levels, [r[key] for r in used], seeds,
                errors="lognormal" if key == "beads" else "gaussian",
            )  # fmt: skip
            lines.append(f"{kind}, {key}: {law}\n")
    return lines


def figure(out: Path, name: str, file: Path) -> None:
    """Draw lengths and beads against the level, as `.html`, or as `.png` with chromium.

    Bars are standard errors, as published; ours are moved aside a little to be told apart.
    """
    from plotly.subplots import make_subplots

    drawn = make_subplots(rows=1, cols=2)
    known = PUBLISHED.get(name, {"length": {}, "beads": {}})
    for key, place in (("length", 1), ("beads", 2)):
        given = known[key]
        drawn.add_scatter(
            x=list(given), y=[y for y, _ in given.values()], name="published", mode="lines+markers",
            error_y={"array": [e or 0.0 for _, e in given.values()]},
            line={"color": GREY}, showlegend=place == 1, row=1, col=place,
        )  # fmt: skip
    curves = (
        ("loose", "raw", BLUE, 1), ("strict", "raw", ORANGE, 1), ("strict", "shortened", GREEN, 1),
        ("loose", "beads", BLUE, 2), ("strict", "beads", ORANGE, 2),
    )  # fmt: skip
    for kind, key, colour, place in curves:
        rows = searches.read(out, name, kind)
        levels = [x for x in sorted({r["level"] for r in rows}) if column(rows, x, key)]
        values = [column(rows, x, key) for x in levels]
        reach = [mean(v)[1] for v in values]
        drawn.add_scatter(
            x=_aside(levels, SHIFTS[colour]), y=[mean(v)[0] for v in values],
            name=f"{kind}, {NAMES[key]}", mode="lines+markers",
            error_y={"array": [0.0 if math.isnan(r) else r for r in reach]},
            line={"color": colour}, showlegend=place == 1, row=1, col=place,
        )  # fmt: skip
    drawn.update_xaxes(type="log", title_text="level")
    lengths = {
        "title_text": "length / straight distance",
        "tickvals": [1, 1.1, 1.2, 1.3, 1.5, 2, 2.5, 3],
    }
    drawn.update_yaxes(type="log", **lengths, col=1)
    drawn.update_yaxes(
        type="log", title_text="beads", tickvals=[3, 4, 5, 7, 10, 20, 50, 100], col=2
    )
    drawn.update_layout(template="plotly_white", legend={"orientation": "h", "y": 1.12})
    save(drawn, file, width=1100, height=420)


def _aside(levels: Sequence[float], shift: float) -> list[float]:
    wide = max(levels, default=1.0) / min(levels, default=1.0)
    return [x * wide**shift for x in levels]
