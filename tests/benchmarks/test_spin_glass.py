"""The benchmark of spin glasses: its ways agree, its products are the ones it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def bench(scripts):
    """The benchmark, imported as `python benchmarks/spin_glass.py` does."""
    return scripts("benchmarks")("spin_glass")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_ways_to_the_triple_agree(bench, dtype):
    found = bench.errors(9, dtype)
    assert set(found) == {"ours", "einsum", "published"}
    assert max(found.values()) < (1e-5 if dtype == torch.float32 else 1e-12)


def test_a_way_that_is_wrong_is_refused(bench, monkeypatch):
    import _spin_glass

    right = _spin_glass.einsum

    def wrong(*arguments):
        value, slope, product = right(*arguments)
        return value, slope, 1.01 * product

    monkeypatch.setattr(_spin_glass, "einsum", wrong)
    with pytest.raises(AssertionError, match=r"einsum is off by 0\.01, above 1e-10"):
        bench.errors(5, torch.float64)


def test_the_bare_products_cover_every_column(bench, monkeypatch):
    import _spin_glass

    monkeypatch.setattr(_spin_glass, "BLOCK", 8 * 4 * 3)  # three columns at once
    columns = []
    sigma, matrix = torch.ones(4, 5, dtype=torch.float64), torch.ones(5, 7, dtype=torch.float64)
    product = bench.bare(sigma, matrix)
    real = torch.mm

    def seen(a, b, out):
        columns.append(b.shape[1])
        return real(a, b, out=out)

    monkeypatch.setattr(torch, "mm", seen)
    product()
    assert columns == [3, 3, 1]


def test_a_run_writes_json_and_the_marked_part_of_the_document(bench, monkeypatch, tmp_path):
    told = {"seconds to draw": 1.0, "seconds of a pass": 0.5, "peak": 2.0**30, "told": 2.0**30}
    held = {"n": 9, "replicas": 16, "dtype": "float32", "dense": 2.0**31, **told}
    monkeypatch.setattr(bench, "memory", lambda *arguments: held)
    out, document = tmp_path / "spin.json", tmp_path / "benchmarks-spin-glass.md"
    arguments = ["--quick", "--sizes", "12", "--repeats", "2", "--out", str(out)]
    assert bench.main(arguments) in (0, 1)  # at n = 12 overheads decide
    data = json.loads(out.read_text("utf-8"))
    assert [size["dtype"] for size in data["sizes"]] == ["float32", "float64"]
    document.write_text(f"before\n{bench.BEGIN}\nstale\n{bench.END}\nafter\n", "utf-8")
    bench.rewrite(document, data)
    text = document.read_text("utf-8")
    assert "stale" not in text
    assert "| ours: energy, gradient, product |" in text
    assert "| 9 | float32 | 16 | 2 GiB | 1 GiB | 1 GiB | 1 | 0.5 |" in text


def test_the_document_has_the_marks(bench):
    text = (DOCS / "benchmarks-spin-glass.md").read_text("utf-8")
    assert 0 < text.index(bench.BEGIN) < text.index(bench.END)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--sizes", "many"], "numbers such as 300,500"), (["--repeats", "0"], "at least 1")],
)
def test_bad_options_are_explained(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err
