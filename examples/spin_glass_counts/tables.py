"""The counts of a folder against Kac and Rice, as tables in Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import runs

from thalweg.theory.spin_glass.enumeration import CountComparison, compare_counts, joint_p_value
from thalweg.theory.spin_glass.kac_rice import expected_critical_points


def compare(n: int, p: int, rows: list[dict[str, Any]]) -> CountComparison:
    """Compare the samples of one size with theory."""
    expected = [float(expected_critical_points(n, p, index=k).value) for k in range(n)]
    return compare_counts(np.array([row["counts"] for row in rows]), expected, p)


def totals(found: list[tuple[CountComparison, list[dict[str, Any]]]]) -> list[str]:
    """Return a line per size."""
    lines = [
        "| p | n | samples | mean total | Kac-Rice | T² (free) | p-value | s / sample |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one, rows in found:
        counts = np.array([row["counts"] for row in rows]).sum(axis=1)
        error = counts.std(ddof=1) / len(rows) ** 0.5
        seconds = np.median([row["seconds"] for row in rows])
        lines.append(
            f"| {one.p} | {one.n} | {one.samples} | {counts.mean():.3f} ± {error:.3f} "
            f"| {sum(one.expected):.4f} | {one.statistic:.2f} ({one.freedom}) "
            f"| {one.p_value:.3f} | {seconds:.3g} |"
        )
    return lines


def by_index(found: list[tuple[CountComparison, list[dict[str, Any]]]]) -> list[str]:
    """Return a line per size and index."""
    lines = ["| p | n | index | mean | Kac-Rice | deviations |", "|---|---|---|---|---|---|"]
    for one, _ in found:
        for k, (m, s, e) in enumerate(zip(one.mean, one.stderr, one.expected, strict=True)):
            away = f"{(m - e) / s:+.2f}" if s else "none"
            lines.append(f"| {one.p} | {one.n} | {k} | {m:.4f} ± {s:.4f} | {e:.4f} | {away} |")
    return lines


def table(sizes: list[tuple[int, int]], samples: int | None, out: Path) -> str:
    """Return both tables and the joint p-value of the sizes that are in the folder."""
    found, notes = [], []
    for n, p in sizes:
        rows = runs.read(n, p, samples or runs.samples_of(n), out)
        bad = [row for row in rows if not (row["complete"] and row["morse"])]
        if bad:
            notes.append(
                f"p = {p}, n = {n}: {len(bad)} of {len(rows)} samples are not complete (sample "
                f"{bad[0]['sample']}: {bad[0]['missing']}), so that nothing is compared."
            )
        elif len(rows) > n:
            found.append((compare(n, p, rows), rows))
    if not found:
        return "\n".join([f"no complete enumerations in {out} yet", *notes])
    rows = [row for _, some in found for row in some]
    last = (
        f"{len(rows)} enumerations, all complete, with Euler's identity and Morse's inequalities; "
        f"{sum(row['attempts'] > 1 for row in rows)} took more than one attempt. "
        f"Joint p-value of all sizes: {joint_p_value([one for one, _ in found]):.3g}."
    )
    return "\n".join([*totals(found), "", *by_index(found), "", last, *notes])
