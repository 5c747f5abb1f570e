"""The report as one self-contained HTML page, and writing it to disk whole or not at all."""

from __future__ import annotations

import errno
import html
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from thalweg.landscape.replacing import replacing
from thalweg.report import barriers, curvature, figures, laws, passes, persistence, tables
from thalweg.report.density import Curve, density
from thalweg.report.frame import Figure
from thalweg.report.names import count, labels, pair
from thalweg.report.words import answers
from thalweg.survey.records import LayerRecord, PathRecord, SpectrumRecord, SurveyRecord

__all__ = [
    "document",
    "figure",
    "header",
    "layers",
    "render",
    "save",
    "section",
    "spectra",
    "write",
]

_MOST_DRAWN = 24
_MOST_ROWS = 40
_KEY = (
    '<ul class="key"><li class="line">straight line</li><li class="path">path found</li>'
    '{}<li class="band">bracket on the height of the path</li>'
    '<li class="noise">sampling error (95 %) above the higher end</li></ul>'
)
_OUTSIDE = '<li class="outside">path found, on held-out data</li>'
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def render(record: SurveyRecord) -> str:
    """Return the report of a survey as one HTML page that needs no network.

    The page forbids itself any request by a Content-Security-Policy; scripts, styles and
    data are inline. Text from the record is escaped.

    Args:
        record: What the survey found.

    Returns:
        The page.

    Example:
        >>> from thalweg.estimate import Cost
        >>> empty = SurveyRecord("empty", "", {}, {}, 2, (), (), (), None, Cost(), 0.0, True)
        >>> page = render(empty)
        >>> "No minimum has been found" in page
        True
    """
    specs: dict[str, Figure] = {}
    body = "\n".join(
        [
            _head(record),
            _answers(record),
            _tree(record, specs),
            _persistence(record, specs),
            _paths(record, specs),
            _saddles(record),
            _level_sets(record, specs),
            _curvature(record, specs),
            _spectra(record, specs),
            _laws(record, specs),
            _layers(record, specs),
            _minima(record),
            _failures(record),
            _account(record),
        ]
    )
    return document(f"{record.name} · Thalweg survey", body, specs)


def document(title: str, body: str, specs: dict[str, Figure]) -> str:
    """Return a self-contained page.

    Args:
        title: Its title, as text.
        body: What stands in it, as HTML.
        specs: Its figures, by the keys that the body refers to.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n"
        f"<style>\n{_asset('style.css')}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="figures">{_embedded(specs)}</script>\n'
        f"<script>{_plotly()}</script>\n<script>\n{_asset('page.js')}</script>\n"
        "</body>\n</html>\n"
    )


def write(record: SurveyRecord, path: str | os.PathLike[str]) -> Path:
    """Write the report to a file, which is replaced whole or left as it was.

    Args:
        record: What the survey found.
        path: The file, such as ``digits.html``; its folder must exist.

    Returns:
        The file's path.

    Raises:
        OSError: If it cannot be written; the message says why, and the kind is kept.
    """
    return save(render(record), path)


def save(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page to a file, which is replaced whole or left as it was.

    Args:
        text: The page.
        path: The file; its folder must exist.

    Returns:
        The file's path.

    Raises:
        OSError: If it cannot be written; the message says why, and the kind is kept.
    """
    target = Path(path)
    page = text.encode("utf-8")
    try:
        with replacing(target) as file:
            file.write(page)
    except OSError as error:
        raise OSError(error.errno, _why(error, target, len(page)), str(target)) from error
    return target


def _why(error: OSError, target: Path, size: int) -> str:
    hints = {
        errno.ENOSPC: f"the disk is full; the report needs {size / 1e6:.1f} MB, so free some space",
        errno.EDQUOT: f"your quota is used up; the report needs {size / 1e6:.1f} MB",
        errno.ENOENT: f"the folder {target.parent} does not exist; create it first",
        errno.EACCES: f"no permission to write in {target.parent}; choose another place with -o",
        errno.EROFS: f"{target.parent} is read-only; choose another place with -o",
        errno.EISDIR: "that is a folder; give the name of a file",
    }
    number = error.errno or 0
    reason = hints.get(number) or (os.strerror(number) if number else str(error))
    return f"cannot write the report: {reason}. Nothing was changed"


def _asset(name: str) -> str:
    return resources.files("thalweg.report").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script")


def _embedded(specs: dict[str, Any]) -> str:
    """Return JSON that can stand inside a script element whatever its strings hold."""
    text = json.dumps(specs, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def figure(
    key: str,
    spec: Figure | None,
    specs: dict[str, Figure],
    caption: str,
    kind: str = "tall",
) -> str:
    """Return a figure's place on the page, and put its specification among `specs`."""
    if spec is None:
        return ""
    specs[key] = spec
    name = html.escape(key)
    return (
        f'<figure>{_choice(key, spec)}<div class="plot {kind}" data-figure="{name}" role="img" '
        f'aria-label="{html.escape(caption)}"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _choice(key: str, spec: Figure) -> str:
    """Return the menu of what a figure can show, where its layout offers a choice."""
    options = [html.escape(choice["name"]) for choice in spec["layout"].get("meta", ())]
    if not options:
        return ""
    items = "".join(f'<option value="{k}">{name}</option>' for k, name in enumerate(options))
    return (
        f'<label class="choice">show <select data-for="{html.escape(key)}">{items}</select></label>'
    )


def section(title: str, *parts: str) -> str:
    """Return a section of the page; empty parts are left out."""
    inside = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>"


def _head(record: SurveyRecord) -> str:
    facts = [
        count(len(record.minima), "minimum", "minima"),
        count(len(record.paths), "path"),
        f"{record.dim:,} parameters",
        str(record.cost),
        tables.duration(record.seconds),
        *([record.created] if record.created else []),
    ]
    return header(record.name, facts)


def header(title: str, facts: Sequence[str]) -> str:
    """Return the head of a page: its title, and some facts below it."""
    items = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    return (
        f"<header>\n<h1>{html.escape(title)}</h1>\n"
        f'<ul class="facts">{items}</ul>\n'
        "<noscript><p>The figures need JavaScript; the tables hold all numbers.</p></noscript>\n"
        "</header>"
    )


def _answers(record: SurveyRecord) -> str:
    said = answers(record)
    questions = (
        ("One basin or several?", said.basins),
        ("How high are the passes?", said.passes),
        ("Which minimum is the flattest?", said.flattest),
        ("Are they minima?", said.index),
        ("Is the bulk that of a random matrix?", laws.words(_known(record))),
        ("What are the tops of the paths?", passes.critical(record)),
        ("How curved are the level sets?", passes.curved(record)),
        ("What of the minima not found?", passes.unseen(record)),
    )
    parts = [
        f"<div><h3>{question}</h3><p>{html.escape(answer)}</p></div>"
        for question, answer in questions
        if answer
    ]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in said.caveats)
    warned = f'<ul class="caveats">{notes}</ul>' if notes else ""
    return f'<section class="answers">\n{"".join(parts)}\n{warned}\n</section>'


def _tree(record: SurveyRecord, specs: dict[str, Figure]) -> str:
    drawn = figures.disconnectivity(record)
    if drawn is None or record.tree is None:
        return ""
    caption = (
        "Disconnectivity graph: each line rises from a minimum, and two lines join at the height "
        "of the lowest pass known between them. Bars: the 95 % sampling error of the loss at a "
        "minimum, the bracket on the height at a pass."
    )
    text = html.escape(str(record.tree))
    return section(
        "Disconnectivity graph",
        figure("tree", drawn, specs, caption),
        f'<details><summary>The same tree as text</summary><pre class="scroll" tabindex="0">'
        f"{text}</pre></details>",
        passes.merges(record),
    )


def _persistence(record: SurveyRecord, specs: dict[str, Figure]) -> str:
    drawn = persistence.bars(record)
    if drawn is None:
        return ""
    said = persistence.certain(record)
    return section(
        "Persistence of the minima",
        figure("persistence", drawn, specs, persistence.caption(record), "medium"),
        f"<p>{html.escape(said)}</p>" if said else "",
        persistence.table_of_bars(record),
    )


def _paths(record: SurveyRecord, specs: dict[str, Figure]) -> str:
    if not record.paths:
        return ""
    names = labels(record)
    cards = []
    for k, found in enumerate(_drawn(record)):
        title = pair(names, found.a, found.b)
        caption = f"{title}. Largest loss {found.maximum}."
        spec = figures.path(record, found)
        cards.append(figure(f"path-{k}", spec, specs, caption, "small"))
    left = len(record.paths) - len(cards)
    note = (
        f"<p>Drawn are the {len(cards)} paths that carry a merge or are lowest; the table has the "
        f"other {left} too.</p>"
        if left
        else ""
    )
    return section(
        "Loss along the paths",
        _KEY.format(_OUTSIDE if any(found.held_out for found in _drawn(record)) else ""),
        f'<div class="grid">{"".join(cards)}</div>',
        note,
        tables.paths(record),
        barriers.definitions(record),
        barriers.outside(record),
        barriers.lengths(record),
    )


def _drawn(record: SurveyRecord) -> list[PathRecord]:
    """Choose the paths to draw: those that carry a merge first, then the lowest."""
    carriers = {frozenset(m.edge) for m in record.tree.merges} if record.tree else set()
    ranked = sorted(
        record.paths,
        key=lambda p: (frozenset((p.a, p.b)) not in carriers, p.maximum.upper, p.a, p.b),
    )
    return ranked[:_MOST_DRAWN]


def _saddles(record: SurveyRecord) -> str:
    return section("Saddles", passes.saddles(record)) if record.saddles else ""


def _level_sets(record: SurveyRecord, specs: dict[str, Figure]) -> str:
    if not record.level_sets:
        return ""
    names = labels(record)
    drawn = []
    for k, found in enumerate(record.level_sets):
        caption = (
            f"{pair(names, found.a, found.b)}: paths found below each level. Above: length over "
            "the straight distance, with the 95 % interval over searches. Below: beads of the "
            "string, ends included."
        )
        spec = passes.level_set_figure(found)
        drawn.append(figure(f"levels-{k}", spec, specs, caption, "medium"))
    return section("Level sets", *drawn, passes.level_sets(record))


def _curvature(record: SurveyRecord, specs: dict[str, Figure]) -> str:
    spectrum, marks = curvature.spectra(record), curvature.curvature(record)
    if spectrum is None and marks is None:
        return ""
    return section(
        "Curvature at the minima",
        '<div class="pair">',
        figure(
            "spectra",
            spectrum,
            specs,
            "Leading eigenvalues of the Hessian, with intervals from the residuals; open marks "
            "are not converged.",
            "medium",
        ),
        figure(
            "curvature",
            marks,
            specs,
            "Trace of the Hessian with its 95 % interval, and its largest eigenvalue with its "
            "interval: the smaller, the flatter.",
            "medium",
        ),
        "</div>",
    )


def _known(record: SurveyRecord) -> list[tuple[str, SpectrumRecord]]:
    names = labels(record)
    return [(names[m.id], m.spectrum) for m in record.minima if m.spectrum is not None]


def _spectra(record: SurveyRecord, specs: dict[str, Figure]) -> str:
    known = _known(record)
    return spectra(known, record.dim, specs) if known else ""


def _laws(record: SurveyRecord, specs: dict[str, Figure]) -> str:
    known = [(name, each) for name, each in _known(record) if each.laws]
    if not known:
        return ""
    drawn = figure("laws", laws.overlay(known), specs, laws.CAPTION)
    return section("The bulk and random matrices", drawn, laws.beside(known))


def _layers(record: SurveyRecord, specs: dict[str, Figure]) -> str:
    names = labels(record)
    known = [(names[m.id], m.layers) for m in record.minima if m.layers]
    return layers(known, specs) if known else ""


def spectra(
    known: Sequence[tuple[str, SpectrumRecord]],
    dim: int,
    specs: dict[str, Figure],
    *,
    matrix: str = "Hessian",
) -> str:
    """Return the section on whole spectra: their densities, and what was counted in them.

    Args:
        known: Names and spectra, one at least.
        dim: The number of eigenvalues.
        specs: Where the figure goes.
        matrix: Of what they are the spectra.
    """
    curves = [Curve(name, dim, each.density, each.tau) for name, each in known]
    band = "" if len(known) > 1 else " with its 95 % band"
    hint = " Choose one to see its band, and the values of its outliers." if not band else ""
    caption = (
        f"Spectral density of the {matrix}, smoothed{band}. Pins: eigenvalues apart from the bulk, "
        "each as high as one eigenvalue alone would be. "
        f"Dotted: zero. Grey: within τ of it.{hint}"
    )
    return section(
        f"Spectrum of the {matrix}",
        figure("density", density(curves), specs, caption),
        tables.spectra(known),
    )


def layers(
    known: Sequence[tuple[str, Sequence[LayerRecord]]],
    specs: dict[str, Figure],
    *,
    matrix: str = "Hessian",
) -> str:
    """Return the section on the layers.

    Args:
        known: Names, and the layers measured there; one at least.
        specs: Where the figure goes.
        matrix: Whose blocks they are.
    """
    table = tables.layers(known)
    if sum(len(found) for _, found in known) > _MOST_ROWS:
        table = f"<details><summary>All layers as a table</summary>{table}</details>"
    caption = (
        f"Each layer's own block of the {matrix}. Above: its trace over its number of parameters, "
        "with the 95 % interval, by which layers of different size compare. Below: its largest "
        "eigenvalue; the bar reaches up to where it may still lie."
    )
    return section(
        "Curvature of the layers",
        figure("layers", curvature.layers(known), specs, caption),
        table,
    )


def _minima(record: SurveyRecord) -> str:
    return section("Minima", tables.minima(record)) if record.minima else ""


def _failures(record: SurveyRecord) -> str:
    return section("Failures", tables.failures(record)) if record.failures else ""


def _account(record: SurveyRecord) -> str:
    parts = [tables.costs(record)]
    if record.provenance:
        parts.append(tables.settings("Provenance.", record.provenance))
    if record.config:
        parts.append(tables.settings("Configuration.", record.config))
    return section("Cost and provenance", *parts)
