"""The page as a browser sees it: no console errors, figures drawn, no sideways scroll."""

from __future__ import annotations

import re
import subprocess

import pytest

from thalweg.report import render

PROBE = """<script>
  const done = () => {
    const box = document.documentElement;
    box.dataset.overflow = box.scrollWidth - box.clientWidth;
    box.dataset.width = box.clientWidth;
    const heads = [...document.querySelectorAll("table.sortable")].map((t) => t.tHead.rows[0]);
    const header = heads.find((row) => row.textContent.startsWith("minimum")).cells[1];
    header.firstElementChild.click();
    const body = header.closest("table").tBodies[0];
    box.dataset.order = [...body.rows].map((row) => row.cells[1].dataset.value).join(" ");
    const plot = document.querySelector("[data-figure=density]");
    const seen = () => plot.querySelectorAll(".trace.scatter").length;
    box.dataset.all = seen();
    const menu = document.querySelector("select[data-for=density]");
    menu.value = "3";
    menu.dispatchEvent(new Event("change"));
    box.dataset.one = seen();
    box.dataset.ink = getComputedStyle(document.querySelector(".xtick text")).fill;
  };
  setTimeout(done, 1500);
</script>"""


@pytest.fixture
def browse(chromium, tmp_path):
    """Open a page; return its document and what it wrote to the console."""

    def look(page, *, width=1280, scheme=1):
        file = tmp_path / "page.html"
        file.write_text(page, "utf-8")
        run = subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--dump-dom",
                "--enable-logging=stderr",
                "--virtual-time-budget=6000",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={width},900",
                f"--blink-settings=preferredColorScheme={scheme}",
                file.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]

    return look


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, 1), pytest.param(390, 0, marks=pytest.mark.slow)]
)
def test_the_page_draws_and_fits(browse, make, width, scheme):
    record = make.realistic()
    page = render(record).replace("</body>", PROBE + "</body>")
    document, console = browse(page, width=width, scheme=scheme)
    assert console == []
    assert document.count('class="main-svg"') >= 10
    assert document.count('class="trace scatter') >= 20
    assert re.search(r'data-overflow="(-?\d+)"', document)[1] == "0"
    assert int(re.search(r'data-width="(\d+)"', document)[1]) <= max(width, 500)
    order = re.search(r'data-order="([^"]*)"', document)[1].split()
    assert list(map(float, order)) == sorted(m.loss for m in record.minima)
    assert int(re.search(r'data-all="(\d+)"', document)[1]) == 12  # a line and its atoms each
    assert int(re.search(r'data-one="(\d+)"', document)[1]) == 3  # and its band
    ink = tuple(map(int, re.search(r'data-ink="rgb\((.*?)\)"', document)[1].split(",")))
    assert min(ink) > 150 if scheme == 0 else max(ink) < 100


@pytest.mark.slow
def test_markup_in_names_stays_text(browse, make):
    evil = "<img src=x onerror=\"console.error('pwned')\"><script>console.error('pwned')</script>"
    minima = [make.minimum(evil), make.minimum("m1", 0.12)]
    record = make.survey(minima, [make.path(evil, "m1", 0.5, method=evil)], name=evil)
    document, console = browse(render(record))
    assert console == []
    assert "<img src" not in document


@pytest.mark.slow
def test_the_checks_reject_a_broken_page(browse, make):
    page = render(make.realistic())
    broken = page.replace("Plotly.react(", "Plotly.missing(")
    document, console = browse(broken)
    assert any("missing" in line for line in console)
    assert 'class="main-svg"' not in document
    fetching = page.replace("<main>", '<main><img src="https://example.org/x.png">')
    _, console = browse(fetching)
    assert any("Content Security Policy" in line for line in console)
