"""What ``module:callable`` on the command line stands for."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from thalweg.landscape import Landscape
    from thalweg.paths import Gauge

__all__ = ["Refusal", "load", "load_gauge"]


class Refusal(Exception):
    """What the command line itself refuses: one sentence and a hint."""

    def __init__(self, problem: str, hint: str) -> None:
        self.problem, self.hint = problem, hint
        super().__init__(problem)


def load(target: str) -> tuple[Landscape, Landscape | None]:
    """Return the landscape, and the held-out one if there is one, of ``module:callable``."""
    from thalweg.landscape import Landscape

    made = _call(target)
    parts = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(parts[0], Landscape) or not isinstance(parts[1], Landscape | None):
        shown = ", ".join(type(part).__name__ for part in parts if part is not None) or "None"
        raise Refusal(
            f"{target} returned {shown}, which is no landscape",
            "return thalweg.ModelLandscape(model, loss, data), or a pair of that and a "
            "held-out one",
        )
    return parts


def load_gauge(target: str) -> Gauge:
    """Return the function of one vector that ``module:callable`` names; it is not called."""
    gauge: Any = _find(target, "def {}(theta): return an equivalent vector", "--gauge ")
    if not callable(gauge) or isinstance(gauge, type):
        raise Refusal(
            f"{target} is a {type(gauge).__name__}, which is no gauge",
            "name a function that maps one vector to the one chosen among its equals",
        )
    return gauge  # type: ignore[no-any-return]


def _call(target: str) -> Any:
    value = _find(target, "def {}(): return thalweg.ModelLandscape(...)")
    if not callable(value):
        return value
    try:
        return value()
    except Exception as error:
        raise Refusal(
            f"{target} raised {type(error).__name__}: {error} ({_where(error)})",
            "it is called without arguments; --debug shows the traceback",
        ) from error


def _find(target: str, definition: str, option: str = "") -> Any:
    """Return what ``module:name`` is; `definition` shows how its like is written."""
    module_name, colon, name = target.partition(":")
    if not (colon and module_name and name):
        raise typer.BadParameter(
            f"{option}{target!r} is not of the form module:callable, such as mymodel:landscape"
        )
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise typer.BadParameter(f"give the module's name, not its file: {dotted}:{name}")
    value: Any = _import(module_name)
    for part in name.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=1)
            raise Refusal(
                f"{module_name} has no {name}",
                f"did you mean {module_name}:{near[0]}?"
                if near
                else f"define it: {definition.format(name)}",
            )
        value = getattr(value, part)
    return value


def _import(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Refusal(
                f"there is no module {name!r} in {Path.cwd()} or on Python's path",
                f"go to the folder that holds {name.partition('.')[0]}.py, or install it",
            ) from error
        raise Refusal(
            f"{name} could not be imported: {error} ({_where(error)})",
            f"install {error.name}" if error.name else "--debug shows the traceback",
        ) from error
    except Exception as error:
        raise Refusal(
            f"{name} could not be imported: {type(error).__name__}: {error} ({_where(error)})",
            "--debug shows the traceback",
        ) from error


def _where(error: Exception) -> str:
    """Return file and line of the innermost frame that is not the import machinery."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen")
    ]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "unknown place"
