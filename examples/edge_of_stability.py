"""The edge of stability: under full-batch gradient descent the sharpness hovers at 2/eta.

``python examples/edge_of_stability.py`` trains five small networks, prints the mean of
sharpness * eta / 2 over the last quarter of each run (predicted: 1), and writes the numbers and
the figure of docs/edge-of-stability.md (the figure needs chromium). Some minutes on one core.

The set-up is the 'chebyshev' task of Cohen et al. (2021): 20 points on [-1, 1], targets T_k(x),
a 1-100-1 tanh network whose output has no bias, loss 1/2 |f - y|^2 averaged over the points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.curvature.track import Track, track
from thalweg.landscape import ModelLandscape
from thalweg.landscape.seeding import preserve_rng
from thalweg.report import save

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # told apart by the colour-blind


@dataclass(frozen=True)
class Case:
    """One run: the degree of the target, the learning rate, and how many steps."""

    degree: int
    lr: float
    steps: int

    @property
    def name(self) -> str:
        """How the run is called."""
        return f"T{self.degree}, η = {self.lr:g}"


CASES = (
    Case(3, 0.4, 8000),
    Case(4, 0.4, 8000),
    Case(4, 0.2, 8000),
    Case(5, 0.2, 8000),
    Case(5, 0.1, 16000),
)
RECORDS = 100


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1/2 |f - y|^2, averaged over the examples."""
    return ((outputs - targets) ** 2).sum(1).mean() / 2


def chebyshev(degree: int, seed: int = 0) -> tuple[ModelLandscape, nn.Module]:
    """Return the landscape of the task, in float64, and the network as initialised."""
    with preserve_rng(seed):
        model = nn.Sequential(nn.Linear(1, 100), nn.Tanh(), nn.Linear(100, 1, bias=False))
        nn.init.xavier_normal_(model[0].weight, gain=1.9)
        nn.init.zeros_(model[0].bias)
        nn.init.xavier_normal_(model[2].weight, gain=1.0)
    inputs = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    targets = torch.special.chebyshev_polynomial_t(inputs, degree)
    land = ModelLandscape(model, half_square, (inputs, targets), dtype=torch.float64)
    return land, model


def train(case: Case, *, seed: int = 0, records: int = RECORDS) -> Track:
    """Descend, and record the curvature at steps an odd number apart.

    At the edge the iterates swing with period two, and the sharpness with them: records an even
    number of steps apart would see one side of the swing alone.
    """
    land, model = chebyshev(case.degree, seed)
    every = 2 * (case.steps // records // 2) + 1
    start = land.vector(model)
    return track(
        land, start, lr=case.lr, steps=case.steps, every=every, trace_samples=0, k=2, seed=seed
    )


def last_quarter(case: Case, run: Track) -> tuple[float, float]:
    """Return the mean of sharpness * eta / 2 over the last quarter of the steps, and its spread."""
    late = run.sharpness[run.steps > 3 * case.steps // 4] * case.lr / 2
    return float(late.mean()), float(late.std())


def summary(case: Case, run: Track) -> dict[str, Any]:
    """Return what the page reports of one run."""
    mean, spread = last_quarter(case, run)
    widths = run.sharpness_intervals[:, 1] - run.sharpness_intervals[:, 0]
    return {
        "degree": case.degree,
        "lr": case.lr,
        "steps": case.steps,
        "seed": run.seed,
        "initial_sharpness": float(run.sharpness[0]),
        "last_quarter": mean,
        "spread": spread,
        "widest_interval": float((widths / run.sharpness).max()),
        "final_loss": float(run.losses[-1]),
        "rises": int((run.training_losses.diff() > 0).sum()),
        "alignment": float(run.alignments[run.steps > 3 * case.steps // 4].mean()),
        "converged": all(record.converged for record in run.records),
        "cost": str(run.cost),
    }


def figure(cases: Sequence[Case], runs: Sequence[Track]) -> Any:
    """Draw sharpness and training loss of every run against the step."""
    from plotly.subplots import make_subplots

    drawn = make_subplots(
        rows=2,
        cols=len(cases),
        shared_xaxes=True,
        subplot_titles=[case.name for case in cases],
        vertical_spacing=0.06,
        horizontal_spacing=0.05,
        row_heights=[0.6, 0.4],
    )
    for column, (case, run) in enumerate(zip(cases, runs, strict=True), start=1):
        steps, edge = run.steps.tolist(), 2 / case.lr
        low, high = run.sharpness_intervals.T
        bars = {
            "type": "data",
            "symmetric": False,
            "array": (high - run.sharpness).tolist(),
            "arrayminus": (run.sharpness - low).tolist(),
            "width": 0,
        }
        sharp = {"x": steps, "y": run.sharpness.tolist(), "error_y": bars, "mode": "lines+markers"}
        sharp |= {"line": {"color": BLUE, "width": 1.2}, "marker": {"size": 3}}
        drawn.add_scatter(**sharp, row=1, col=column)
        line = {"color": ORANGE, "dash": "dash", "width": 2}
        drawn.add_scatter(
            x=[0, case.steps], y=[edge, edge], mode="lines", line=line, row=1, col=column
        )
        drawn.add_annotation(
            x=case.steps, y=edge, text="2/η", showarrow=False, xanchor="right", yanchor="bottom",
            font={"color": ORANGE, "size": 13}, row=1, col=column,
        )  # fmt: skip
        losses = run.training_losses[:: max(1, case.steps // 1000)].tolist()
        times = list(range(0, case.steps, max(1, case.steps // 1000)))[: len(losses)]
        drawn.add_scatter(
            x=times, y=losses, mode="lines", line={"color": GREY, "width": 1}, row=2, col=column
        )
        drawn.update_yaxes(range=[0, 1.45 * edge], row=1, col=column)
        drawn.update_yaxes(type="log", dtick=1, exponentformat="power", row=2, col=column)
        drawn.update_xaxes(title_text="gradient step", row=2, col=column)
    drawn.update_yaxes(title_text="sharpness λ<sub>max</sub>", row=1, col=1)
    drawn.update_yaxes(title_text="training loss", row=2, col=1)
    drawn.update_layout(
        template="plotly_white", showlegend=False,
        margin={"l": 65, "r": 15, "t": 35, "b": 50}, font={"size": 12},
    )  # fmt: skip
    return drawn


def main(cases: Sequence[Case] = CASES, docs: Path | None = DOCS, *, records: int = RECORDS) -> Any:
    """Train every case, print what came out, and write the numbers and the figure."""
    runs, rows = [], []
    for case in cases:
        run = train(case, records=records)
        row = summary(case, run)
        print(
            f"{case.name}: sharpness from {row['initial_sharpness']:.3f} to "
            f"{row['last_quarter']:.3f} ± {row['spread']:.3f} times 2/η over the last quarter "
            f"(predicted 1), {row['rises']} of {case.steps} steps went uphill",
            flush=True,
        )
        runs.append(run)
        rows.append(row)
    if docs is not None:
        (docs / "edge-of-stability.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
        drawn = figure(cases, runs)
        save(drawn, docs / "images" / "edge-of-stability.png", width=1300, height=520)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--no-files", action="store_true", help="print only")
    main(docs=None if parser.parse_args().no_files else DOCS)
