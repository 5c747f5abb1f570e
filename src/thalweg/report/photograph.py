"""Figures and pages as pictures, by a headless browser."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from thalweg.landscape.replacing import replacing

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 120.0
"""Seconds that a browser may take; drawing takes two or three."""


def photograph(page: str, file: str | Path, *, width: int = 1200, height: int = 800) -> None:
    r"""Write an HTML page as PNG.

    Args:
        page: The page itself, not its address: what `render` returns, or a figure's `to_html()`.
        file: Where the picture goes.
        width: Width of the window in CSS pixels.
        height: Its height; what lies below is cut off.

    Raises:
        ValueError: If `file` does not end in `.png`, or a side is below 1.
        RuntimeError: If there is no Chromium or Chrome on this machine, or it wrote no picture, or
            the page's scripts never end.

    Example:
        >>> from thalweg.report import photograph
        >>> photograph("<p>valley</p>", "valley.html")
        Traceback (most recent call last):
        ...
        ValueError: a photograph is a .png file, got 'valley.html'
    """
    target = Path(file)
    if target.suffix != ".png":
        raise ValueError(f"a photograph is a .png file, got {target.name!r}")
    if width < 1 or height < 1:
        raise ValueError(f"width and height must be at least 1, got {width} and {height}")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(
            "a picture needs Chromium or Chrome, and none was found; install one, or write .html"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(page, "utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=9000"]
        command += [f"--screenshot={shot}", f"--window-size={width},{height}", source.as_uri()]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(
                f"{browser} drew no picture in {PATIENCE:.0f} s; a script of the page may not end"
            ) from None
        if run.returncode != 0 or not shot.exists():
            said = run.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise RuntimeError(
                f"{browser} wrote no picture (status {run.returncode}); it said: {said[0]}"
            )
        with replacing(target) as out:
            out.write(shot.read_bytes())


def save(drawn: Any, file: str | Path, *, width: int = 1100, height: int = 440) -> None:
    r"""Write a plotly figure that does not move, as `.html` or, through `photograph`, as `.png`.

    Args:
        drawn: A `plotly.graph_objects.Figure`; its size is set, nothing else.
        file: Where to.
        width: In pixels.
        height: In pixels.

    Raises:
        ValueError: If `file` ends in neither `.html` nor `.png`.
        RuntimeError: As `photograph` does.

    Example:
        >>> import plotly.graph_objects as go
        >>> from thalweg.report import save
        >>> save(go.Figure(), "curve.jpeg")
        Traceback (most recent call last):
        ...
        ValueError: a figure is saved as .html or .png, got 'curve.jpeg'
    """
    target = Path(file)
    if target.suffix not in (".html", ".png"):
        raise ValueError(f"a figure is saved as .html or .png, got {target.name!r}")
    drawn.update_layout(width=width, height=height)
    page = drawn.to_html(include_plotlyjs=True, config={"staticPlot": True})
    page = page.replace("<head>", "<head><style>body { margin: 0; overflow: hidden }</style>", 1)
    if target.suffix == ".png":
        photograph(page, target, width=width, height=height)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, "utf-8")
