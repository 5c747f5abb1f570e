"""What the figures share: colours that the colour-blind can tell apart, and how they are saved."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

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
    drawn.update_layout(template="plotly_white", width=width, height=height, font={"size": 13})
    drawn.update_xaxes(showline=True, linecolor="#999999", ticks="outside", zeroline=False)
    drawn.update_yaxes(showline=True, linecolor="#999999", ticks="outside", zeroline=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    page = drawn.to_html(include_plotlyjs=True, config={"staticPlot": True})
    page = page.replace("<head>", "<head><style>body { margin: 0; overflow: hidden }</style>", 1)
    if file.suffix == ".html":
        file.write_text(page, "utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.html"
        source.write_text(page, "utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={folder}/chromium", "--virtual-time-budget=9000"]
        command += [f"--screenshot={file.resolve()}", f"--window-size={width},{height}"]
        subprocess.run([*command, source.as_uri()], check=True, capture_output=True)
