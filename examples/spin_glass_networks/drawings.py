"""Figures: losses side by side, variance against size, normalised index."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import laws
import numpy as np
import published
from accounts import Found, column, shares

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "spin_glass"))

from canvas import COLOURS, DASHES, GREY, SYMBOLS, faint, save

SHOWN = (25, 50, 100, 250, 500)


def figure(found: Found, file: Path) -> None:
    """Draw three figures; `name.png` becomes `name-losses.png`, `-variance.png`, `-index.png`."""
    for name, draw in (("losses", losses), ("variance", variances), ("index", indices)):
        save(draw(found), file.with_name(f"{file.stem}-{name}{file.suffix}"))


def losses(found: Found) -> Any:
    """Draw the distributions of final energies and of scaled test losses; bands hold 95 %."""
    from plotly.subplots import make_subplots

    drawn = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.09,
        subplot_titles=("spin glass, p = 3, one disorder per size",
                        f"networks on {found.label}, one hidden layer"),
    )  # fmt: skip
    shown = [n for n in SHOWN if n in found.glasses] or list(found.glasses)
    for i, n in enumerate(shown):
        _distribution(drawn, column(found.glasses[n], "energy"), f"n = {n}", i, 1, "spin glass")
    for x, name, place in (
        (published.THRESHOLD_ENERGY, "-E<sub>∞</sub>", "bottom left"),
        (published.GROUND_STATE, "-E<sub>0</sub>", "top left"),
    ):
        drawn.add_vline(
            x=x, line={"color": GREY, "dash": "dot"}, annotation_text=name,
            annotation_position=place, row=1, col=1,
        )  # fmt: skip
    shown = [n for n in SHOWN if n in found.networks] or list(found.networks)
    scale = found.scale
    for i, n in enumerate(shown):
        divisor = scale.of(n) if scale else 1.0
        values = np.array(column(found.networks[n], "test")) / divisor
        _distribution(drawn, values, f"{n} units", i, 2, "network")
    drawn.update_xaxes(title_text="energy per spin H/n", col=1)
    drawn.update_xaxes(
        title_text="test loss / exp(a n^b), nats" if scale else "test loss, nats", col=2
    )
    drawn.update_yaxes(title_text="share of starts at or below", col=1)
    drawn.update_yaxes(title_text="share of networks at or below", col=2)
    drawn.update_layout(legend={"x": 1.01, "y": 1.0}, margin={"t": 40, "b": 60})
    return drawn


def _distribution(drawn: Any, values: Any, name: str, i: int, place: int, title: str = "") -> None:
    """Draw a distribution function with its 95 % band (Dvoretzky, Kiefer and Wolfowitz)."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    share = np.arange(1, len(x) + 1) / len(x)
    reach = math.sqrt(math.log(40) / (2 * len(x)))
    group = {"legendgroup": str(place), "row": 1, "col": place}
    drawn.add_scatter(
        x=np.concatenate([x, x[::-1]]), mode="lines", fill="toself", fillcolor=faint(COLOURS[i]),
        y=np.concatenate([share + reach, (share - reach)[::-1]]).clip(0, 1),
        line={"width": 0}, showlegend=False, **group,
    )  # fmt: skip
    drawn.add_scatter(
        x=x, y=share, name=name, mode="lines", legendgrouptitle_text=title,
        line={"color": COLOURS[i], "dash": DASHES[i], "shape": "hv", "width": 2}, **group,
    )  # fmt: skip


def variances(found: Found) -> Any:
    """Draw variance against size with 95 % intervals, and the fitted powers."""
    from plotly.subplots import make_subplots

    drawn = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.1,
        subplot_titles=("energy per spin of the spin glass", f"test loss, {found.label}"),
    )  # fmt: skip
    one = {n: laws.apart(column(rows, "energy")) for n, rows in found.glasses.items()}
    many = {n: found.clusters(n) for n in found.many}
    nets = {n: laws.apart(column(rows, "test")) for n, rows in found.networks.items()}
    for i, (name, clusters, place) in enumerate(
        (("one disorder", one, 1), ("many disorders", many, 1), ("here", nets, 2))
    ):
        _powers(drawn, name, clusters, i, place)
    known = published.TEST_VARIANCE
    drawn.add_scatter(
        x=list(known), y=list(known.values()), name="published, MNIST (read off Fig. 10)",
        mode="markers", marker={"color": GREY, "symbol": SYMBOLS[4], "size": 8}, row=1, col=2,
    )  # fmt: skip
    drawn.update_xaxes(
        type="log", title_text="spins n", tickvals=[10, 25, 50, 100, 250, 500], col=1
    )
    drawn.update_xaxes(
        type="log", title_text="hidden units", tickvals=[10, 25, 50, 100, 250, 500], col=2
    )
    drawn.update_yaxes(type="log", exponentformat="power", dtick=1)
    drawn.update_yaxes(title_text="variance of H/n", col=1)
    drawn.update_yaxes(title_text="variance of the test loss, nats²", col=2)
    drawn.update_layout(legend={"x": 1.01, "y": 1.0}, margin={"t": 40, "b": 60})
    return drawn


def _powers(drawn: Any, name: str, clusters: Any, i: int, place: int) -> None:
    found = {n: laws.variance(of, n)[0] for n, of in clusters.items()}
    sizes = [n for n, e in found.items() if math.isfinite(e.interval[0])]
    values = [found[n].value for n in sizes]
    drawn.add_scatter(
        x=sizes, y=values, name=name, mode="markers",
        marker={"color": COLOURS[i], "symbol": SYMBOLS[i], "size": 8},
        error_y={
            "array": [found[n].interval[1] - found[n].value for n in sizes],
            "arrayminus": [found[n].value - found[n].interval[0] for n in sizes],
        },
        row=1, col=place,
    )  # fmt: skip
    if (law := laws.power(clusters)) is not None:
        low, high = law.exponent.interval
        x = np.geomspace(min(law.sizes), max(law.sizes), 50)
        drawn.add_scatter(
            x=x, y=law.amplitude * x**law.exponent.value, mode="lines",
            name=f"n^{law.exponent.value:.2f} [{low:.2f}, {high:.2f}]",
            line={"color": COLOURS[i], "dash": DASHES[i]}, row=1, col=place,
        )  # fmt: skip


def indices(found: Found) -> Any:
    """Draw the distribution of the normalised index, and its mean with 95 % intervals."""
    from plotly.subplots import make_subplots

    drawn = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.1, subplot_titles=("networks", "mean, by size"),
    )  # fmt: skip
    for i, (n, rows) in enumerate(found.index.items()):
        _distribution(drawn, shares(rows), f"{n} units ({len(rows)})", i, 1)
    means = {n: laws.mean(list(shares(rows))) for n, rows in found.index.items()}
    glasses = {n: laws.mean(list(shares(rows))) for n, rows in found.glasses.items()}
    for i, (name, of) in enumerate((("networks", means), ("spin glass", glasses))):
        reach = [e.half_width if math.isfinite(e.half_width) else 0.0 for e in of.values()]
        drawn.add_scatter(
            x=list(of), y=[e.value for e in of.values()], name=f"{name}, mean",
            mode="lines+markers", error_y={"array": reach},
            line={"color": COLOURS[i], "dash": DASHES[i]}, marker={"symbol": SYMBOLS[i], "size": 8},
            row=1, col=2,
        )  # fmt: skip
    for place, line in ((1, drawn.add_vline), (2, drawn.add_hline)):
        key = "x" if place == 1 else "y"
        line(
            **{key: published.INDEX_LIMIT}, line={"color": GREY, "dash": "dot"},
            annotation_text="published: at most 0.015",
            annotation_position="bottom right", row=1, col=place,
        )  # fmt: skip
    drawn.update_xaxes(title_text="share of eigenvalues below -0.001", rangemode="tozero", col=1)
    drawn.update_yaxes(title_text="share of networks at or below", col=1)
    drawn.update_xaxes(
        type="log", title_text="hidden units, or spins", tickvals=[10, 25, 50, 100, 250, 500], col=2
    )
    drawn.update_yaxes(title_text="share of eigenvalues below -0.001", rangemode="tozero", col=2)
    drawn.update_layout(legend={"x": 1.01, "y": 1.0}, margin={"t": 40, "b": 60})
    return drawn
