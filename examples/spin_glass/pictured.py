"""Five figures of the spherical 3-spin glass: what theory says, and what is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from canvas import COLOURS, DASHES, GREY, SYMBOLS, faint
from numpy.typing import NDArray

from thalweg.theory.spin_glass.complexity import complexity, energy_level
from thalweg.theory.spin_glass.critical_points import CriticalPoints
from thalweg.theory.spin_glass.descent import local_minima
from thalweg.theory.spin_glass.floor import energy_floor
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.search import find_critical_points
from thalweg.theory.spin_glass.spectra import hessian_law, index_fraction
from thalweg.theory.spin_glass.sphere import eigensystem
from thalweg.theory.spin_glass.thresholds import threshold_energy

P = 3
INDICES = range(6)
# Disorders, and starts on each, by the number of spins.
FLOORS = {
    10: (150, 8), 25: (60, 8), 50: (30, 8), 100: (15, 8), 150: (12, 8), 200: (12, 8),
    500: (6, 4), 1000: (4, 3),
}  # fmt: skip
QUICK_FLOORS = {10: (4, 8), 25: (4, 8), 50: (4, 8)}
# Mean energies of minima that descents found elsewhere, with their standard deviations.
SHEET = {
    10: (-1.331, 0.186), 25: (-1.465, 0.101), 50: (-1.515, 0.063), 100: (-1.557, 0.035),
    150: (-1.565, 0.029), 200: (-1.584, 0.016),
}  # fmt: skip


def blank(**axes: Any) -> Any:
    """Return an empty figure with titled axes."""
    from plotly.graph_objects import Figure

    drawn = Figure()
    drawn.update_xaxes(title_text=axes["x"])
    drawn.update_yaxes(title_text=axes["y"])
    drawn.update_layout(legend={"x": 1.01, "y": 1.0}, margin={"t": 30, "b": 60})
    return drawn


def complexities(quick: bool) -> Any:
    """Draw the complexity against energy: of all critical points, and of index 0 to 5."""
    u = np.linspace(-1.665, -1.615, 60 if quick else 600)
    drawn = blank(x="energy per spin u", y="complexity per spin, log of a mean count")
    drawn.add_scatter(
        x=u, y=complexity(u, P), name="all", line={"color": GREY, "width": 4}, opacity=0.6
    )
    for k in INDICES:
        drawn.add_scatter(
            x=u, y=complexity(u, P, k), name=f"index {k}",
            line={"color": COLOURS[k], "dash": DASHES[k]},
        )  # fmt: skip
    _levels(drawn, drawn.add_vline, {0: energy_level(P, 0), math.inf: threshold_energy(P)})
    drawn.add_hline(y=0, line={"color": GREY, "width": 1})
    drawn.update_yaxes(range=[-0.02, 0.03])
    return drawn


def _levels(drawn: Any, line: Callable[..., Any], levels: dict[float, float]) -> None:
    for k, level in levels.items():
        name = "-E<sub>∞</sub>" if math.isinf(k) else f"-E<sub>{k:.0f}</sub>"
        axis = "x" if line == drawn.add_vline else "y"
        line(
            **{axis: -level}, line={"color": GREY, "dash": "dot"}, annotation_text=name,
            annotation_position="top" if axis == "x" else "right",
        )  # fmt: skip


def found_points(quick: bool) -> CriticalPoints:
    """Return critical points of one disorder at 60 spins (12 where quick)."""
    land = SphericalPSpin(12 if quick else 60, P, seed=0)
    return find_critical_points(land, starts=40 if quick else 1500, seed=1)


def bands(points: CriticalPoints) -> Any:
    """Draw the energies of low index that theory allows at large n, and those found."""
    from plotly.subplots import make_subplots

    drawn = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.12,
        subplot_titles=("large n: where index k occurs", f"found at n = {points.n}, one disorder"),
    )  # fmt: skip
    floor = -threshold_energy(P)
    for k in INDICES:
        level = -energy_level(P, k)
        drawn.add_scatter(
            x=[k - 0.35, k + 0.35, k + 0.35, k - 0.35, k - 0.35], mode="lines", fill="toself",
            y=[level, level, floor, floor, level], fillcolor=faint(COLOURS[k], 0.35),
            line={"color": COLOURS[k]}, showlegend=False, row=1, col=1,
        )  # fmt: skip
        some = points.with_index(k)
        if len(some):
            spread = np.linspace(-0.25, 0.25, len(some)) if len(some) > 1 else np.zeros(1)
            drawn.add_scatter(
                x=k + spread, y=some.energies.numpy(), mode="markers", showlegend=False,
                marker={"color": COLOURS[k], "symbol": SYMBOLS[k], "size": 4, "opacity": 0.7},
                row=1, col=2,
            )  # fmt: skip
    for place in (1, 2):
        drawn.add_hline(
            y=floor, line={"color": GREY, "dash": "dot"}, annotation_text="-E<sub>∞</sub>",
            annotation_position="top right", row=1, col=place,
        )  # fmt: skip
    drawn.add_hline(
        y=-energy_level(P, 0), line={"color": GREY, "dash": "dash"}, row=1, col=2,
        annotation_text="-E<sub>0</sub>", annotation_position="bottom right",
    )  # fmt: skip
    drawn.update_xaxes(title_text="index k", dtick=1, range=[-0.6, 5.6])
    drawn.update_yaxes(title_text="energy per spin")
    drawn.update_layout(margin={"t": 40, "b": 60})
    return drawn


def index_against_energy(points: CriticalPoints) -> Any:
    """Draw the share of negative eigenvalues against energy beside the semicircle's curve."""
    drawn = blank(x="energy per spin u", y="share of negative eigenvalues")
    u = np.linspace(-1.75, 1.75, 400)
    drawn.add_scatter(
        x=points.energies.numpy(), y=points.fractions.numpy(), mode="markers",
        name=f"found, n = {points.n}",
        marker={"color": COLOURS[0], "size": 4, "opacity": 0.35},
    )  # fmt: skip
    drawn.add_scatter(
        x=u, y=index_fraction(u, P), name="semicircle: F(u √(p/(p-1)))",
        line={"color": COLOURS[1], "width": 2},
    )  # fmt: skip
    energies, shares = points.energies.numpy(), points.fractions.numpy()
    means = [_mean(energies, shares, a, a + 0.25) for a in np.arange(-1.75, 1.75, 0.25)]
    kept = [m for m in means if m is not None]
    drawn.add_scatter(
        x=[m[0] for m in kept], y=[m[1] for m in kept], mode="markers",
        error_y={"array": [m[2] for m in kept]}, name="mean of a bin, 95 %",
        marker={"color": "#000000", "symbol": "square", "size": 7},
    )  # fmt: skip
    _levels(drawn, drawn.add_vline, {math.inf: threshold_energy(P)})
    return drawn


def _mean(
    x: NDArray[np.float64], y: NDArray[np.float64], low: float, high: float
) -> tuple[float, float, float] | None:
    inside = (x >= low) & (x < high)
    if inside.sum() < 4:
        return None
    error = 1.96 * y[inside].std(ddof=1) / math.sqrt(inside.sum())
    return float(x[inside].mean()), float(y[inside].mean()), float(error)


def spectra(quick: bool) -> Any:
    """Draw the Hessian's spectrum where descents end, and the semicircles of theory."""
    n, starts = (20, 4) if quick else (300, 32)
    land = SphericalPSpin(n, P, seed=2)
    ends = local_minima(land, starts=starts, seed=3)
    values, _ = eigensystem(land, ends.points)
    energy = float(ends.energies.mean())
    edges = np.linspace(-0.5, 11, 47)
    counts = np.stack([np.histogram(row, edges)[0] for row in values.numpy()])
    density = counts / (n - 1) / (edges[1] - edges[0])
    error = 1.96 * density.std(0, ddof=1) / math.sqrt(starts)
    drawn = blank(x="eigenvalue of the Riemannian Hessian of H", y="density")
    drawn.add_bar(
        x=(edges[1:] + edges[:-1]) / 2, y=density.mean(0), error_y={"array": error, "width": 0},
        name=f"{starts} ends of descents, n = {n}, 95 %",
        marker={"color": faint(COLOURS[0], 0.45)}, width=edges[1] - edges[0],
    )  # fmt: skip
    x = np.linspace(-0.5, 11, 500)
    for i, (u, name) in enumerate(
        ((energy, f"semicircle at their mean energy, {energy:.4f}"),
         (-threshold_energy(P), "semicircle at -E<sub>∞</sub>, a threshold state")), start=1,
    ):  # fmt: skip
        law = hessian_law(u, P)
        drawn.add_scatter(
            x=x, y=law.density(x), name=name, line={"color": COLOURS[i], "dash": DASHES[i - 1]}
        )
    drawn.update_layout(bargap=0)
    return drawn


def floors(quick: bool, folder: Path) -> Any:
    """Draw where descents end against n, over disorders, and two ways to extrapolate.

    Every finished disorder is kept in `folder`.
    """
    found, plan = [], QUICK_FLOORS if quick else FLOORS
    sizes = list(plan)
    for n, (disorders, starts) in plan.items():
        kept = folder / f"floor-{n}.json"
        floor = energy_floor(
            [n], P, disorders=disorders, starts=starts, seed=0, checkpoint=kept, memory="8 GiB"
        )
        found.append(floor.sizes[0].mean)
    means, errors = [at.value for at in found], [at.stderr for at in found]
    drawn = blank(x="spins n", y="energy per spin where descents end")
    drawn.add_scatter(
        x=sizes, y=means, mode="markers", name="some starts on each of many disorders, 95 %",
        error_y={"array": [at.interval[1] - at.value for at in found]},
        marker={"color": COLOURS[0], "size": 8},
    )  # fmt: skip
    drawn.add_scatter(
        x=[1.06 * n for n in SHEET], y=[m for m, _ in SHEET.values()], mode="markers",
        name="earlier descents, ± standard deviation",
        error_y={"array": [s for _, s in SHEET.values()], "color": GREY},
        marker={"color": GREY, "symbol": "square", "size": 6},
    )  # fmt: skip
    x = np.geomspace(sizes[0], 1000, 100)
    for i, (power, name) in enumerate(((1 / 2, "n^(-1/2)"), (2 / 3, "n^(-2/3)")), start=1):
        (limit, slope), error = _line(np.array(sizes), means, errors, power)
        drawn.add_scatter(
            x=x, y=limit + slope * x**-power, mode="lines",
            name=f"{name}: limit {limit:.4f} ± {1.96 * error:.4f}",
            line={"color": COLOURS[i], "dash": DASHES[i]},
        )  # fmt: skip
    levels = {0: energy_level(P, 0), math.inf: threshold_energy(P)}
    _levels(drawn, drawn.add_hline, levels)
    drawn.update_xaxes(type="log", tickvals=[10, 25, 50, 100, 200, 500, 1000])
    return drawn


def _line(
    n: NDArray[np.int_], means: list[float], errors: list[float], power: float
) -> tuple[tuple[float, float], float]:
    """Fit limit + slope n^-power to sizes from 25 up; return both, and the limit's error."""
    use = n >= min(25, sorted(n)[-2])
    y, w = np.array(means)[use], np.array(errors)[use] ** -2
    design = np.stack([np.ones(int(use.sum())), n[use] ** -power], 1)
    inverse = np.linalg.inv(design.T * w @ design)
    limit, slope = inverse @ (design.T @ (w * y))
    return (float(limit), float(slope)), float(math.sqrt(inverse[0, 0]))
