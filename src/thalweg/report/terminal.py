"""What a terminal shows of a survey: the plan before it, the findings after it."""

from __future__ import annotations

import math

from rich import box
from rich.markup import escape
from rich.table import Table

from thalweg.estimate import Estimate
from thalweg.report.index import how_many
from thalweg.survey.config import SurveyConfig
from thalweg.survey.progress import in_words
from thalweg.survey.records import SurveyRecord
from thalweg.survey.survey import Survey

__all__ = ["findings", "plan", "summary"]


def plan(survey: Survey, minima: int | None) -> Table | str:
    """Return what is to be done and what it may cost at most.

    Args:
        survey: The survey, which is about to run.
        minima: The goal of that run; None for the survey's own.
    """
    status, config = survey.outlook(minima), survey.config
    if not any(status.todo.values()):
        return f"[bold]{escape(str(survey.folder))}[/bold]: nothing is left to do"
    table = Table(title=f"{escape(str(survey.folder))}: the plan", title_justify="left")
    for column in ("job", "done", "to do", "each takes at most"):
        table.add_column(column, justify="left" if column[0] in "je" else "right")
    trained = f"{config.epochs} epochs and " if config.epochs else ""
    costs = {
        "minimum": ("find a minimum", f"{trained}{config.max_gradients} gradients"),
        "characterise": (
            "measure it",
            _curvature(config),
        ),
        "connect": ("connect two", f"{config.path_gradients} gradients and HVPs for the search"),
    }
    for kind, (words, cost) in costs.items():
        table.add_row(words, str(status.done.get(kind, 0)), str(status.todo.get(kind, 0)), cost)
    if status.seconds_left is not None:
        table.caption = in_words(status.seconds_left)
    return table


def _curvature(config: SurveyConfig) -> str:
    if config.curvature_probes and config.eigenvalues:
        return f"{config.curvature_passes} passes over the data for its curvature"
    return f"{config.eigenvalues} eigenpairs, {config.trace_samples} HVPs for the trace"


def summary(record: SurveyRecord) -> Table:
    """Return one row per minimum; a metric on held-out data stands for that on the data.

    Args:
        record: What the survey found.
    """
    held = list(dict.fromkeys(name for m in record.minima for name in m.held_out))
    every = dict.fromkeys(name for m in record.minima for name in m.metrics)
    metrics = [name for name in every if name not in held]
    title = f"{escape(record.name)}: {len(record.minima)} minima"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("minimum")
    outside = [f"held-out\n{name}" for name in held]
    for name in ["loss", *metrics, *outside, "largest\neigenvalue", "trace", "index"]:
        table.add_column(name, justify="right")
    for minimum in record.minima:
        eigen = minimum.eigenvalues
        table.add_row(
            minimum.id,
            _short(minimum.sampling) if minimum.sampling else f"{minimum.loss:.5g}",
            *(_short(minimum.metrics.get(name)) for name in metrics),
            *(_short(minimum.held_out.get(name)) for name in held),
            f"{eigen.values[0]:.4g}" if eigen and eigen.values else "",
            _short(minimum.trace),
            how_many(minimum.spectrum.negative) if minimum.spectrum else "",
        )
    return table


def _short(estimate: Estimate | None) -> str:
    """Return an estimate without its level and cost: the report has those."""
    if estimate is None:
        return ""
    return escape(str(estimate).partition(" (")[0].replace(" in [", " ["))


def findings(record: SurveyRecord) -> list[str]:
    """Return a few lines on the paths and on what the survey took.

    Args:
        record: What the survey found.
    """
    lines = []
    if record.paths:
        rises = [path.barrier.upper for path in record.paths]
        count = "1 path" if len(rises) == 1 else f"{len(rises)} paths"
        lines.append(
            f"{count}; the highest barrier is at most {max(rises):.4g}, "
            f"the lowest at most {min(rises):.4g} above the higher end"
            + (" (NaN: a loss along a path is not finite)" if any(map(math.isnan, rises)) else "")
        )
    lines.append(f"[dim]intervals at 95 %; {record.cost}; {record.seconds:.0f} s of work[/dim]")
    if not record.complete:
        lines.append("[yellow]the survey is not complete[/yellow]")
    return lines
