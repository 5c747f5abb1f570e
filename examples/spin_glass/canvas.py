"""What the figures share: colours that the colour-blind can tell apart, and how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thalweg import report

# Okabe and Ito's palette without yellow, then grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
GREY = "#777777"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")


def faint(colour: str, opacity: float = 0.18) -> str:
    """Return a colour for the area of an interval."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def save(drawn: Any, file: Path, width: int = 1100, height: int = 440) -> None:
    """Write a plotly figure as `.html`, or as `.png` with chromium.

    Args:
        drawn: The figure.
        file: Where to.
        width: In pixels.
        height: In pixels.
    """
    drawn.update_layout(template="plotly_white", font={"size": 13})
    drawn.update_xaxes(showline=True, linecolor="#999999", ticks="outside", zeroline=False)
    drawn.update_yaxes(showline=True, linecolor="#999999", ticks="outside", zeroline=False)
    report.save(drawn, file, width=width, height=height)
