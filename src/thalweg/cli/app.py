"""The command line: ``thalweg demo``, ``thalweg survey ...``, ``thalweg curvature ...``.

Nothing heavy is imported before a command runs, so that ``thalweg --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import thalweg
from thalweg.cli.targets import Refusal, load, load_gauge

if TYPE_CHECKING:
    from torch import Tensor

    from thalweg.curvature.profile import CurvatureProfile
    from thalweg.landscape import Landscape
    from thalweg.paths import Gauge
    from thalweg.survey import SurveyConfig

__all__ = ["app", "main"]

app = typer.Typer(
    name="thalweg",
    help="Survey the loss landscape of a neural network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
survey_app = typer.Typer(
    help="Find the minima of a landscape, measure them and connect them.", no_args_is_help=True
)
app.add_typer(survey_app, name="survey")

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:CALLABLE",
        help="A callable that returns a Landscape, or (landscape, held_out).",
        show_default=False,
    ),
]
GaugeTarget = Annotated[
    str | None,
    typer.Option(
        "--gauge",
        metavar="MODULE:FUNCTION",
        help="A function that maps a vector to the one chosen among those that compute the same; "
        "paths are measured there too.",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Argument(help="The survey's folder.", show_default=False)]
Checkpoint = Annotated[
    Path | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A safetensors file, or a torch file of tensors. Without one, the curvature is that "
        "at a random start.",
        show_default=False,
    ),
]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write all numbers there; - is the output."),
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page of figures there.")
]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; errors become a sentence and a hint, and the exit status.

    Status 0 is success, 1 a failure, 2 a wrong use of the command line, 130 Ctrl-C.

    Args:
        arguments: What follows the program's name; by default those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        app(args=[argument for argument in given if argument != "--debug"], prog_name="thalweg")
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            _explain(error)
        sys.exit(1)
    sys.exit(0)


def _explain(error: Exception) -> None:
    """Print one sentence on what is wrong, and a hint."""
    problem = getattr(error, "problem", None)
    hint = getattr(error, "hint", "--debug shows where it happened")
    if problem is None and isinstance(error, KeyError) and error.args:
        problem = str(error.args[0])
    elif problem is None:
        problem = str(error) or type(error).__name__
    _say(f"[bold red]error:[/bold red] {_plain(problem)}", error=True)
    _say(f"[dim]hint:[/dim] {_plain(hint)}", error=True)


def _say(what: Any, *, error: bool = False) -> None:
    from rich.console import Console

    Console(stderr=error, soft_wrap=True, highlight=False).print(what)


def _plain(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"thalweg {thalweg.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Survey the loss landscape of a neural network."""
    del version, debug  # `main` reads --debug, wherever it stands


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the survey and its report.")] = Path(
        "thalweg-demo"
    ),
    minima: Annotated[int, typer.Option(min=1, help="How many networks to train.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the whole survey.")] = 0,
) -> None:
    """Train small networks on handwritten digits, survey them, write a report."""
    from thalweg.survey import SurveyConfig
    from thalweg.zoo.landscapes import digits_mlp_pair

    land, held_out = digits_mlp_pair()
    config = SurveyConfig(
        seed=seed, minima=minima, tolerance=1e-3, max_gradients=500, path_gradients=100
    )
    folder = out / "digits.survey" if seed == 0 else out / f"digits-seed{seed}.survey"
    _say(f"[bold]{_plain(land)}[/bold]")
    _do(folder, land, held_out, config, minima, report=folder.with_suffix(".html"))


@survey_app.command("run")
def survey_run(
    target: Target,
    out: Annotated[Path, typer.Option(help="The survey's folder, new or to go on with.")],
    minima: Annotated[
        int | None,
        typer.Option(min=0, help="How many minima to look for, those already found included."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the whole survey.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A JSON file of survey options.", show_default=False)
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed jobs again.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the report there at the end.", show_default=False)
    ] = None,
    gauge: GaugeTarget = None,
) -> None:
    """Survey a landscape, or go on where an earlier run stopped."""
    land, held_out = load(target)
    _do(
        out,
        land,
        held_out,
        _configuration(out, config, seed, minima),
        minima,
        retry=retry,
        report=report,
        label=target,
        gauge=None if gauge is None else load_gauge(gauge),
    )


@survey_app.command("add")
def survey_add(
    folder: Folder,
    target: Target,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="safetensors files, or torch files of tensors.", show_default=False),
    ],
    gauge: GaugeTarget = None,
) -> None:
    """Add checkpoints as minima; run the survey again to measure and connect them."""
    from thalweg.survey import Survey, SurveyError

    tail = "" if gauge is None else f" --gauge {gauge}"
    if not folder.is_dir():
        raise SurveyError(
            f"there is no survey in {folder}",
            f"create one: thalweg survey run {target} --minima 0 --out {folder}{tail}",
        )
    land, held_out = load(target)
    chosen = None if gauge is None else load_gauge(gauge)
    with Survey.open(folder, land, held_out=held_out, gauge=chosen, label=target) as survey:
        for path in checkpoints:
            _say(f"{_plain(path)} is minimum [bold]{_plain(survey.add(path))}[/bold]")
    again = f"{target} --out {folder}{tail}"
    _say(f"[dim]next: thalweg survey run {_plain(again)}[/dim]")


@survey_app.command("report")
def survey_report(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")],
) -> None:
    """Write the report of a survey as one self-contained HTML file."""
    from thalweg.survey import Survey

    with Survey.read(folder) as survey:
        _say(f"report: [bold]{_plain(survey.report(output).resolve())}[/bold]")


@survey_app.command("status")
def survey_status(folder: Folder) -> None:
    """Say what a survey has done, what failed and what is left."""
    from thalweg.survey import Survey

    with Survey.read(folder) as survey:
        status, failures = survey.status(), survey.record().failures
    _say(status)
    for failure in failures:
        _say(f"[red]{_plain(failure.job)}[/red] failed on {failure.when}: {_plain(failure.error)}")


@app.command()
def curvature(
    target: Target,
    checkpoint: Checkpoint = None,
    eigenvalues: Annotated[int, typer.Option(min=1, help="How many of the largest.")] = 10,
    probes: Annotated[int, typer.Option(min=4, help="How many random starts.")] = 10,
    passes: Annotated[
        int, typer.Option(min=20, help="The most passes over the data to spend.")
    ] = 60,
    gauss_newton: Annotated[
        bool, typer.Option("--gauss-newton", help="The Gauss-Newton matrix, not the Hessian.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all that is random.")] = None,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Measure eigenvalues, trace, spectral density and layers at one point."""
    from thalweg.landscape.seeding import make_generator

    land, _ = load(target)
    number = make_generator(seed)[1]
    theta, place = _point(land, checkpoint, number)
    name, quiet, count = f"{target} {place}", json_file == "-", min(eigenvalues, land.dim)
    _say(f"[bold]{_plain(name)}[/bold], {land.dim:,} parameters", error=quiet)
    _say(
        f"{count} eigenvalues and {probes} random starts, in at most {passes} passes over the "
        f"data, seed {number}",
        error=quiet,
    )
    kind = "gauss-newton" if gauss_newton else "hessian"
    profile = _measure(
        land, theta, kind=kind, eigenvalues=count, probes=probes, passes=passes, seed=number
    )
    if json_file is not None:
        _write_json({"target": target, "at": place, **profile.to_json()}, json_file)
    if not quiet:
        _say(profile)
    if html_file is not None:
        from thalweg.report.profile import write_profile

        written = write_profile(profile, html_file, name).resolve()
        _say(f"page: [bold]{_plain(written)}[/bold]", error=quiet)


def _measure(land: Landscape, theta: Tensor, **options: Any) -> CurvatureProfile:
    """Return the curvature profile, behind a bar."""
    from thalweg.curvature.profile import curvature_profile
    from thalweg.survey.progress import Progress

    with Progress(True) as shown:
        shown.begin("curvature", 0, ["curvature"])
        try:
            return curvature_profile(land, theta, progress=shown.within, **options)
        except KeyboardInterrupt:
            _say("\n[yellow]stopped; nothing is kept[/yellow]", error=True)
            raise typer.Exit(130) from None


def _point(land: Landscape, checkpoint: Path | None, seed: int) -> tuple[Tensor, str]:
    """Return the vector that the command line asks for, and where it is from, in words."""
    from thalweg.landscape.checkpoint import read_checkpoint
    from thalweg.landscape.seeding import make_generator
    from thalweg.survey.plan import job_seed

    if checkpoint is None and (own := getattr(land, "initial", None)) is not None:
        return own, "with the model's own parameters"
    if checkpoint is None:
        generator, _ = make_generator(job_seed(seed, "start"))
        return land.start(generator), f"at a random start (seed {seed})"
    state = read_checkpoint(checkpoint)
    if set(state) == {"theta"} and state["theta"].shape == (land.dim,):
        theta = state["theta"].to(land.device)
    elif callable(reader := getattr(land, "vector", None)):
        theta = reader(state)
    else:
        raise Refusal(
            f"a {type(land).__name__} cannot read {checkpoint} as a point",
            f"store one tensor named theta, of shape ({land.dim},), in it",
        )
    return theta, f"at {checkpoint}"


def _write_json(value: dict[str, Any], where: str) -> None:
    """Write strict JSON, in which a number that is not finite is a word."""

    def strict(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return repr(item)
        if isinstance(item, dict):
            return {key: strict(inner) for key, inner in item.items()}
        return [strict(inner) for inner in item] if isinstance(item, list | tuple) else item

    text = json.dumps({"thalweg": thalweg.__version__, **strict(value)}, allow_nan=False)
    if where == "-":
        typer.echo(text)
    else:
        Path(where).write_text(text + "\n", encoding="utf-8")
        _say(f"numbers: [bold]{_plain(Path(where).resolve())}[/bold]")


def _do(
    folder: Path,
    land: Landscape,
    held_out: Landscape | None,
    config: SurveyConfig | None,
    minima: int | None,
    *,
    retry: bool = False,
    report: Path | None = None,
    label: str | None = None,
    gauge: Gauge | None = None,
) -> None:
    """Run a survey with its plan before it and its summary after it."""
    from thalweg.report.terminal import findings, plan, summary
    from thalweg.survey import Interrupted, Survey

    with Survey.open(folder, land, config, held_out=held_out, gauge=gauge, label=label) as survey:
        _say(plan(survey, minima))
        try:
            status = survey.run(minima=minima, retry=retry)
        except Interrupted as stop:
            _say(f"\n[yellow]{_plain(stop)}[/yellow]", error=True)
            raise typer.Exit(130) from None
        record = survey.record()
        _say(summary(record))
        for line in findings(record):
            _say(line)
        if report is not None:
            _say(f"report: [bold]{_plain(survey.report(report).resolve())}[/bold]")
        else:
            _say(f"[dim]next: thalweg survey report {_plain(folder)} -o report.html[/dim]")
    if status.failed:
        last = [f for f in record.failures if f.job in status.failed][-1]
        raise Refusal(
            f"{len(status.failed)} of the jobs failed, the last for this reason: "
            f"{last.job}: {last.error}",
            "see them with thalweg survey status; --retry tries them again",
        )


def _configuration(
    folder: Path, path: Path | None, seed: int | None, minima: int | None
) -> SurveyConfig | None:
    """Return what the options ask for; None where they leave it to the folder."""
    from thalweg.survey import Survey, SurveyConfig

    if path is not None:
        config = SurveyConfig.load(path)
    elif not folder.exists():
        config = SurveyConfig()
    elif seed is None:
        return None
    else:
        with Survey.read(folder) as survey:
            config = survey.config
    changes = {"seed": seed, "minima": minima}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(config, **given)
