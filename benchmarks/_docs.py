"""The marked parts of the docs that benchmarks write themselves."""

from __future__ import annotations

from pathlib import Path


def replace_marked(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks of a document.

    Raises:
        ValueError: If the document lacks the marks.
    """
    head, first, rest = path.read_text("utf-8").partition(begin)
    _, last, tail = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{path.name} lacks the marks {begin} and {end}")
    path.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}", "utf-8")
