"""The examples in README.md and docs/: every fenced ``pycon`` block is run as a doctest."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```pycon[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(text: str, name: str) -> doctest.DocTest:
    """Return the page's examples as one session, at the line numbers that they have there."""
    keep = [False] * text.count("\n") + [False]
    for block in FENCE.finditer(text):
        first = text.count("\n", 0, block.start(1))
        for line in range(first, first + block[1].count("\n")):
            keep[line] = True
    code = [line if kept else "" for line, kept in zip(text.split("\n"), keep, strict=True)]
    return doctest.DocTestParser().get_doctest("\n".join(code), {}, name, name, 0)


def failures(page: doctest.DocTest) -> str:
    """Run a page and return what went wrong, in words; nothing if nothing did."""
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(page, out=said.append)
    return "".join(said)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=pytest.mark.slow if page.name in ("README.md", "curvature.md") else (),
        )
        for page in PAGES
    ],
)
def test_the_examples_of_a_page_do_what_it_says(path, tmp_path, monkeypatch):
    page = examples(path.read_text("utf-8"), path.name)
    monkeypatch.chdir(tmp_path)  # an example may write files
    problems = failures(page)
    assert not problems, problems


def test_only_fenced_pycon_blocks_are_run():
    text = "# Page\n\n>>> 1 / 0\n\n```python\n>>> 1 / 0\n```\n\n```pycon\n>>> 1 + 1\n2\n```\n"
    page = examples(text, "page.md")
    assert [(example.source, example.lineno) for example in page.examples] == [("1 + 1\n", 9)]
    assert failures(page) == ""


def test_blocks_of_a_page_share_their_names():
    assert failures(examples("```pycon\n>>> x = 3\n```\n\n```pycon\n>>> x\n3\n```\n", "p")) == ""


def test_a_wrong_example_fails():
    problems = failures(examples("text\n\n```pycon\n>>> 1 + 1\n3\n```\n", "page.md"))
    assert 'File "page.md", line 4' in problems
    assert "Expected:\n    3\nGot:\n    2" in problems
