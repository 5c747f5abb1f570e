"""Laws of random-matrix theory over the bulk of measured densities: figure, words, table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from thalweg.report.frame import MAIN, RED, Figure, escaped, finite, frame, titled
from thalweg.report.names import NONE, count, listing, plain, span
from thalweg.report.tables import Cell, table
from thalweg.survey.records import LawRecord, SpectrumRecord

__all__ = ["CAPTION", "beside", "overlay", "words"]

CAPTION = (
    "Bulk of the spectral density with its band, and the best of the laws fitted to it, smoothed "
    "alike. Uprights: the law's edges. Solid: the law is accepted. Dotted: unresolved. Dashed: it "
    "is rejected, and drawn to show where it fails."
)
_NAMES = {
    "semicircle": "semicircle",
    "marchenko-pastur": "Marchenko-Pastur",
    "free": "free sum of Marchenko-Pastur and semicircle",
}
_DASHES = {"accepted": "solid", "unresolved": "dot", "rejected": "dash"}
_MARGIN = 0.25
_DECADES = 4

Known = Sequence[tuple[str, SpectrumRecord]]


def _best(spectrum: SpectrumRecord) -> LawRecord | None:
    """Return the first law that was fitted, which is the best one."""
    return next((law for law in spectrum.laws if law.grid), None)


def _named(law: LawRecord) -> str:
    return _NAMES.get(law.name, law.name)


def overlay(known: Known) -> Figure | None:
    """Return the bulk of each density under its best law, one at a time.

    The axis of densities is logarithmic where a law has an atom at zero.

    Args:
        known: Names and spectra.

    Returns:
        The figure, or None where no law was fitted.
    """
    drawn = [(name, each, law) for name, each in known if (law := _best(each)) is not None]
    if not drawn:
        return None
    sets = [_traces(name, each, law) for name, each, law in drawn]
    ends = [end for *_, law in drawn for end in (law.grid[0], law.grid[-1])]
    reach = _MARGIN * (max(ends) - min(ends))
    y = titled("share of eigenvalues per unit λ")
    if any(law.atom for *_, law in drawn):
        peak = math.log10(max(max(each.density.values) for _, each, _ in drawn))
        y |= {"type": "log", "exponentformat": "power", "dtick": 1}
        y["range"] = [peak - _DECADES, peak + 0.3]
    else:
        y["rangemode"] = "tozero"
    layout = frame(
        {
            **titled("eigenvalue λ"),
            "tickformat": "~g",
            "range": [min(ends) - reach, max(ends) + reach],
        },
        y,
    )
    if len(drawn) > 1:
        layout["meta"] = [
            {
                "name": name,
                "data": [{"visible": k == shown} for k, each in enumerate(sets) for _ in each],
                "shapes": [],
            }
            for shown, (name, *_) in enumerate(drawn)
        ]
    for trace in (trace for each in sets[1:] for trace in each):
        trace["visible"] = False
    return {"data": [trace for each in sets for trace in each], "layout": layout}


def _traces(name: str, spectrum: SpectrumRecord, law: LawRecord) -> list[dict[str, Any]]:
    found, title = spectrum.density, f"{_named(law)}, {law.verdict}"
    line = {"type": "scatter", "mode": "lines"}
    ends = [end for interval in law.support for end in interval]
    height = max(law.values)
    return [
        {
            **line,
            "x": [*found.grid, *reversed(found.grid)],
            "y": finite([*found.upper, *reversed(found.lower)]),
            "fill": "toself",
            "fillcolor": MAIN,
            "opacity": 0.25,
            "line": {"width": 0, "color": MAIN},
            "hoverinfo": "skip",
            "showlegend": False,
        },
        {
            **line,
            "name": f"measured at {escaped(name)}",
            "x": list(found.grid),
            "y": finite(found.values),
            "line": {"color": MAIN, "width": 2},
            "hovertemplate": "λ %{x:.4g}: density %{y:.3g}<extra>measured</extra>",
        },
        {
            **line,
            "name": title,
            "x": list(law.grid),
            "y": finite(law.values),
            "line": {"color": RED, "width": 2, "dash": _DASHES[law.verdict]},
            "hovertemplate": f"λ %{{x:.4g}}: density %{{y:.3g}}<extra>{title}</extra>",
        },
        {
            **line,
            "name": "its edges",
            "x": [x for end in ends for x in (end, end, None)],
            "y": [y for _ in ends for y in (height * 1e-6, height, None)],
            "line": {"color": RED, "width": 1, "dash": "dot"},
            "hovertemplate": "edge of the law at λ = %{x:.4g}<extra></extra>",
        },
    ]


def words(known: Known) -> str:
    """Say at which minima which law stands, and how well.

    Args:
        known: Names and spectra.

    Returns:
        A paragraph; empty where no law was tried.
    """
    tried = [(name, each) for name, each in known if each.laws]
    if not tried:
        return ""
    groups: dict[tuple[str, str], list[tuple[str, LawRecord]]] = {}
    for name, each in tried:
        law = _best(each) or each.laws[0]
        kind = law.name if law.verdict != "does not apply" else law.reason
        groups.setdefault((law.verdict, kind), []).append((name, law))
    text = [_sentence(verdict, members) for (verdict, _), members in groups.items()]
    if any(verdict == "accepted" for verdict, _ in groups):
        text.append(
            "A law that is accepted is no proof of its assumptions: the entries of a Hessian are "
            "not independent."
        )
    return " ".join(text)


def _sentence(verdict: str, members: Sequence[tuple[str, LawRecord]]) -> str:
    at = f"At {listing([name for name, _ in members])}"
    laws = [law for _, law in members]
    law = laws[0]
    if verdict == "does not apply":
        return f"{at} no law of random matrices applies to the bulk: {law.reason}."
    if verdict == "rejected":
        off = span(each.distance for each in laws)
        return (
            f"{at} no law of random matrices describes the bulk: {_the(law)} comes nearest and is "
            f"rejected (its distribution function is off by up to {off})."
        )
    drawn = count(law.replicates, "random matrix", "random matrices")
    p = f"p = {span(each.p_value for each in laws)} of {drawn}"
    most = max(each.outliers for each in laws)
    apart = f"{span(each.outliers for each in laws)} eigenvalues lie" if most else "none lies"
    beyond = f"; {apart} beyond its edges"
    if verdict == "accepted":
        return f"{at} the bulk agrees with {_the(law)} ({p}){beyond}."
    return f"{at} it is unresolved whether the bulk follows {_the(law)} ({p}){beyond}."


def _the(law: LawRecord) -> str:
    return f"the {_named(law)}" + ("" if law.name == "free" else " law")


def beside(known: Known) -> str:
    """Return the table of the laws, fitted or not.

    Args:
        known: Names and spectra.
    """
    columns = [
        "at",
        "law",
        "verdict",
        "parameters",
        "edges",
        "beyond",
        "share fitted",
        "distance (KS)",
        "distance (Wasserstein)",
        "p",
        "matrices",
        "why",
    ]
    rows = [_row(name, law) for name, each in known for law in each.laws]
    caption = (
        "Laws of random matrices, fitted to the bulk by its moments. ± is the 95 % interval that "
        "matrices of the law have, and means little where the law is rejected. p: the share of "
        "such matrices that lie as far from their own fit in the Wasserstein distance. No "
        "evaluation of the loss is spent on them."
    )
    return table(caption, columns, rows)


def _row(name: str, law: LawRecord) -> list[Cell]:
    head: list[Cell] = [(name, name), (_named(law), law.name), (law.verdict, law.verdict)]
    why: Cell = (law.reason, law.reason)
    if not law.grid:
        return [*head, *[(NONE, math.inf)] * 8, why]
    values = ", ".join(f"{k} {plain(v)}".replace(" (95 %)", "") for k, v in law.parameters.items())
    edges = ", ".join(f"{low:.3g} to {high:.3g}" for low, high in law.support)
    return [
        *head,
        (values, values),
        (edges + (f"; {law.atom:.1%} at zero" if law.atom else ""), law.support[0][0]),
        (str(law.outliers), law.outliers),
        (f"{law.fitted:.1%}", law.fitted),
        (f"{law.distance:.3g}", law.distance),
        (f"{law.wasserstein:.3g}", law.wasserstein),
        (NONE, -1.0) if math.isnan(law.p_value) else (f"{law.p_value:.2g}", law.p_value),
        (str(law.replicates), law.replicates),
        why,
    ]
