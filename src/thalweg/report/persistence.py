"""How long each minimum stays on its own as the level rises, and what is proven of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from thalweg.estimate import Bound
from thalweg.report.barriers import between, proven
from thalweg.report.frame import (
    GREEN,
    MAIN,
    ORANGE,
    Figure,
    arms,
    escaped,
    frame,
    loss_axis,
    titled,
)
from thalweg.report.names import NONE, count, labels
from thalweg.report.tables import Cell, table
from thalweg.report.words import sampling_error
from thalweg.survey.records import SurveyRecord
from thalweg.topology import Leaf, Pair, barcode_band

__all__ = ["bars", "caption", "certain", "table_of_bars"]

_MOST = 40
"""Bars that fit in the figure; the table has all."""


def bars(record: SurveyRecord) -> Figure | None:
    """Return the persistence barcode, or None below two minima.

    A bar reaches from the loss at a minimum to the lowest pass known to a lower one.
    """
    pairs = _pairs(record)
    if record.tree is None or len(pairs) < 2:
        return None
    drawn, names = pairs[:_MOST], labels(record)
    known = [x for p in drawn for x in (p.birth, p.death.upper) if math.isfinite(x)]
    end = _beyond(min(known), max(known))
    shown = [*known, *(p.death.lower for p in drawn)]
    shown += [low for low, _ in _births(record, drawn)]
    data = [
        _lines(drawn, end, dies=True),
        _lines(drawn, end, dies=False),
        _marks(record, drawn),
        _deaths(record, drawn),
        _floors(record, drawn),
    ]
    ticks = [escaped(names.get(str(p.minimum), str(p.minimum))) for p in drawn]
    layout = frame(
        {**loss_axis(shown), "showgrid": True},
        {
            **titled("minimum"),
            "tickvals": list(range(len(drawn))),
            "ticktext": ticks,
            "range": [len(drawn) - 0.4, -0.6],
            "showgrid": False,
        },
    )
    return {"data": [trace for trace in data if trace is not None], "layout": layout}


def caption(record: SurveyRecord) -> str:
    """Return what stands below the barcode."""
    pairs = _pairs(record)
    text = (
        "Persistence barcode of the minima, of the best-known tree: each bar runs from the loss "
        "at a minimum to the lowest pass known to a lower one, where the elder rule lets it end; "
        "dotted where no such pass is known. Bars across the ends: the 95 % sampling error at a "
        "minimum, the bracket on the height at a pass."
    )
    if _floors(record, pairs[:_MOST]) is not None:
        text += " Triangles: proofs that no path joins the minimum to a lower one further down."
    if record.tree is not None:
        far = barcode_band(record.tree).distance
        if math.isfinite(far):
            text += f" Within these brackets the barcode moves by at most {far:.2g} (bottleneck)."
    if len(pairs) > _MOST:
        text += f" Drawn are the {_MOST} longest of {len(pairs)}; the table has all."
    return text


def certain(record: SurveyRecord) -> str:
    """Return in words what is proven of the deaths; nothing without a certified tree."""
    births = {pair.minimum: pair.birth for pair in _pairs(record)}
    known = _proven(record)
    if not known:
        return ""
    above = sum(death.lower > births[leaf] for leaf, death in known.items())
    below = sum(death.upper < math.inf for death in known.values())
    minima = count(len(known), "minimum", "minima")
    return (
        f"Of {minima} that may join a lower one, {above or 'none'} "
        f"{'is' if above == 1 else 'are'} proven to do so only above the minimum itself, and "
        f"{below or 'none'} {'has' if below == 1 else 'have'} a certified upper end. A lower end "
        "that no proof raises is the minimum itself, which every path holds; a death with no "
        "certified upper end is known from an estimate alone."
    )


def table_of_bars(record: SurveyRecord) -> str:
    """Return the table of births, deaths and what is proven of the deaths."""
    pairs = _pairs(record)
    if record.tree is None or len(pairs) < 2:
        return ""
    names = labels(record)
    joins = {merge.dying: merge.survivor for merge in record.tree.merges}
    reasons, deaths = _reasons(record), _proven(record)
    columns = ["minimum", "born at", "joins", "dies at", "persistence"]
    columns += ["proven to die at", "proof of the lower end"] if record.certified else []
    rows = []
    for pair in pairs:
        leaf = str(pair.minimum)
        row = [_word(names.get(leaf, leaf)), (f"{pair.birth:.6g}", pair.birth)]
        if pair.minimum in joins:
            other = str(joins[pair.minimum])
            row += [_word(names.get(other, other)), _bound(pair.death), _bound(pair.persistence)]
        else:
            row += [(NONE, ""), ("never, as far as known", math.inf), (NONE, math.inf)]
        if record.certified:
            row += _proof(pair, deaths.get(pair.minimum), reasons)
        rows.append(row)
    text = (
        "Births and deaths of the minima, the most persistent first. What dies is the component of "
        "the higher minimum; its death is the bracket on the lowest path found, and the search may "
        "have missed a lower one. Certified ends are rounded outward."
    )
    return table(text, columns, rows, stacked=True)


def _proof(pair: Pair, death: Bound | None, reasons: dict[float, str]) -> list[Cell]:
    if death is None:
        return [(NONE, math.inf), _word(NONE)]
    why = reasons.get(death.lower) or "not recorded"
    return [(proven(death), death.lower), _word(why if death.lower > pair.birth else NONE)]


def _pairs(record: SurveyRecord) -> tuple[Pair, ...]:
    return () if record.tree is None else record.tree.persistence()


def _proven(record: SurveyRecord) -> dict[Leaf, Bound]:
    """Return what is proven of the death of each minimum but the lowest.

    A minimum dies at the lowest of the passes to all that are lower, known or not, so both ends
    are the smallest of theirs.
    """
    certified = record.certified
    if certified is None:
        return {}
    tree = certified.tree
    ages = sorted(range(len(tree.leaves)), key=lambda i: (tree.heights[i], i))
    deaths = {}
    for k, i in enumerate(ages[1:], start=1):
        leaf = tree.leaves[i]
        heights = [certified.height_of_merge(tree.leaves[j], leaf) for j in ages[:k]]
        low, high = min(heights, key=lambda h: h.lower), min(heights, key=lambda h: h.upper)
        deaths[leaf] = Bound(low.lower, high.upper, low.lower_kind, high.upper_kind)
    return deaths


def _reasons(record: SurveyRecord) -> dict[float, str]:
    """Return the proof that stands behind each height."""
    known = record.certified.divides if record.certified is not None else ()
    return {each.height: each.reason for each in known}


def _word(text: str) -> Cell:
    return text, text


def _bound(value: Bound) -> Cell:
    return between(value), value.upper


def _beyond(low: float, high: float) -> float:
    """Return where a bar that never ends leaves the figure."""
    if low > 0 and high > 5 * low:
        return float(high * (high / low) ** 0.06)
    return high + 0.06 * ((high - low) or abs(high) or 1.0)


def _births(record: SurveyRecord, drawn: Sequence[Pair]) -> list[tuple[float, float]]:
    minima = {minimum.id: minimum for minimum in record.minima}
    halves = [sampling_error(minima.get(str(p.minimum))) or 0.0 for p in drawn]
    return [(p.birth - half, p.birth + half) for p, half in zip(drawn, halves, strict=True)]


def _lines(drawn: Sequence[Pair], end: float, *, dies: bool) -> dict[str, Any] | None:
    """Draw the bars that end at a pass, or those that nothing known ends."""
    xs: list[float | None] = []
    ys: list[int | None] = []
    for k, pair in enumerate(drawn):
        if (pair.death.upper < math.inf) == dies:
            xs += [pair.birth, pair.death.upper if dies else end, None]
            ys += [k, k, None]
    if not xs:
        return None
    line = {"color": MAIN, "width": 8} if dies else {"color": "@muted", "width": 3, "dash": "dot"}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "y": ys,
        "name": "to the lowest pass known" if dies else "no pass to a lower minimum known",
        "hoverinfo": "skip",
        "opacity": 0.4 if dies else 1,
        "line": line,
    }


def _marks(record: SurveyRecord, drawn: Sequence[Pair]) -> dict[str, Any]:
    """Mark the births, with their sampling errors."""
    names = labels(record)
    births = [pair.birth for pair in drawn]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": births,
        "y": list(range(len(drawn))),
        "name": "minimum ± sampling error",
        "text": [
            f"{escaped(names.get(str(p.minimum), p.minimum))}: born at {p.birth:.6g}, "
            + (f"persistence {p.persistence}" if p.death.upper < math.inf else "never dies")
            for p in drawn
        ],
        "hoverinfo": "text",
        "marker": {"color": MAIN, "size": 9},
        "error_x": arms(_births(record, drawn), births, MAIN),
    }


def _deaths(record: SurveyRecord, drawn: Sequence[Pair]) -> dict[str, Any] | None:
    """Mark the deaths, with their brackets."""
    dead = [(k, pair) for k, pair in enumerate(drawn) if pair.death.upper < math.inf]
    if not dead:
        return None
    tops = [pair.death.upper for _, pair in dead]
    names = labels(record)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": tops,
        "y": [k for k, _ in dead],
        "name": "pass, with its bracket",
        "text": [
            f"{escaped(names.get(str(p.minimum), p.minimum))} dies at {p.death}" for _, p in dead
        ],
        "hoverinfo": "text",
        "marker": {"color": GREEN, "size": 9, "symbol": "square"},
        "error_x": arms([(p.death.lower, p.death.upper) for _, p in dead], tops, GREEN),
    }


def _floors(record: SurveyRecord, drawn: Sequence[Pair]) -> dict[str, Any] | None:
    """Mark the lower ends that a proof raises above the minimum."""
    deaths = _proven(record)
    found = [(k, pair, deaths.get(pair.minimum)) for k, pair in enumerate(drawn)]
    raised = [(k, p, h) for k, p, h in found if h is not None and h.lower > p.birth]
    if not raised:
        return None
    names = labels(record)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [height.lower for _, _, height in raised],
        "y": [k for k, _, _ in raised],
        "name": "no death below, proven",
        "text": [
            f"{escaped(names.get(str(p.minimum), p.minimum))}: proven to die at {proven(h)}"
            for _, p, h in raised
        ],
        "hoverinfo": "text",
        "marker": {"color": ORANGE, "size": 11, "symbol": "triangle-right"},
    }
