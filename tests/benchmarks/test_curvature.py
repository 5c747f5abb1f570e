"""The benchmark of curvature: its truths are dense, its rules are those of the peers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def curvature(scripts, monkeypatch):
    """The curvature benchmark's modules, with two networks that take milliseconds."""
    curvature = scripts("benchmarks")("curvature")
    import _top
    import _traces
    import _trained

    from thalweg.zoo import mlp

    stage = _trained.Stage("tiny", lambda seed: mlp((64, 2, 10), seed=seed), 20)
    monkeypatch.setattr(curvature, "STAGES", (stage,))
    monkeypatch.setattr(_traces, "cases", lambda: [(stage, "Gauss-Newton"), (stage, "Hessian")])
    ours = tuple(c for c in _top.CONTESTANTS if c.package == "thalweg")
    monkeypatch.setattr(_top, "CONTESTANTS", ours)
    mine = {name: e for name, e in _traces.ESTIMATORS.items() if e[0] == "thalweg"}
    monkeypatch.setattr(_traces, "ESTIMATORS", mine)
    return curvature


def test_the_dense_truths_agree_with_the_library(curvature):
    import _trained

    from thalweg.curvature import GaussNewton, Hessian

    problem = curvature.STAGES[0].problem(30)
    land, theta = _trained.landscape(problem)
    found = Hessian(land, theta).to_dense()
    torch.testing.assert_close(found, _trained.dense(problem), rtol=1e-9, atol=1e-12)
    found = GaussNewton(land, theta).to_dense()
    torch.testing.assert_close(found, _trained.gauss_newton(problem), rtol=1e-9, atol=1e-12)


def test_the_worst_error_pairs_values_with_the_truth_and_refuses_what_is_missing(curvature):
    from _top import worst_error

    truth = torch.tensor([5.0, -4.0, 3.0, 0.1], dtype=torch.float64)
    assert worst_error([-4.0, 5.0, 3.003], truth) == pytest.approx(1e-3)
    assert worst_error([5.0, 5.0, 3.0], truth) > 1  # the second is no other's copy
    assert worst_error([5.0, 4.0, 3.0], truth) == pytest.approx(2)
    assert worst_error([5.0, math.nan, 3.0], truth) == math.inf


def test_the_rule_of_pyhessian_counts_its_products(curvature):
    from _peers import pyhessian_rule

    matrix = torch.diag(torch.tensor([4.0, 1.0, 0.1], dtype=torch.float64))
    seen = []
    values, products = pyhessian_rule(lambda v: (seen.append(1), matrix @ v)[1], 3, 2, 0)
    assert products == len(seen) > 4
    assert values == pytest.approx([4.0, 1.0], rel=1e-2)
    assert pyhessian_rule(lambda v: matrix @ v, 3, 2, 0, most=3)[1] == 6


def test_products_for_a_goal_are_interpolated_and_never_invented(curvature):
    from _traces import products_for

    assert products_for([(100, 0.1), (10_000, 0.001)]) == pytest.approx(1000)
    assert products_for([(100, 0.01), (200, 0.005)]) == 100
    assert products_for([(100, 0.1), (200, 0.05)]) is None


def test_the_formula_of_hutchinsons_error(curvature):
    from _traces import hutchinson_error

    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    forms = ((signs @ matrix) * signs).sum(1)  # all there are, up to sign
    exact = float((forms / 5 - 1).square().mean().sqrt())
    assert hutchinson_error(matrix, 1) == pytest.approx(exact)


def test_a_judgement_misses_when_the_accuracy_was_not_reached(curvature):
    from _top import OURS, RULE, judge

    def row(name, products, error):
        spread = dict.fromkeys(("median", "min", "max"), error)
        return {"name": name, "products": {"median": products}, "error": spread}

    good = judge([row(OURS, 10, 1e-6), row(RULE, 100, 0.1)])
    assert good["within a quarter"]
    assert good["within a sixth"]
    assert not judge([row(OURS, 10, 1e-3), row(RULE, 100, 0.1)])["within a quarter"]
    assert not judge([row(OURS, 20, 1e-6), row(RULE, 100, 0.1)])["within a sixth"]


@pytest.mark.slow
def test_a_curvature_run_without_peers_writes_json_and_the_docs(curvature, tmp_path, capsys):
    import _curvature_tables

    out, document = tmp_path / "curvature.json", tmp_path / "benchmarks-curvature.md"
    arguments = ["--examples", "30", "--rounds", "1", "--seeds", "2", "--out", str(out)]
    assert curvature.main([*arguments, "--sections", "top,trace", "--nets", "tiny"]) == 0
    assert "blocks of 8" in capsys.readouterr().out
    data = json.loads(out.read_text("utf-8"))
    assert data["top"][0]["verdict"]["reached"]
    assert [result["matrix"] for result in data["trace"]] == ["Gauss-Newton", "Hessian"]
    assert data["trace"][0]["zero products"]["products"] == 0
    text = f"before\n{_curvature_tables.BEGIN}\nold\n{_curvature_tables.END}\nafter\n"
    document.write_text(text, "utf-8")
    _curvature_tables.rewrite(document, data)
    text = document.read_text("utf-8")
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| tiny |" in text
    _curvature_tables.rewrite(document, data)
    assert document.read_text("utf-8") == text
    document.write_text("no marks", "utf-8")
    with pytest.raises(ValueError, match=r"lacks the marks"):
        _curvature_tables.rewrite(document, data)


def test_the_curvature_document_has_the_marks(curvature):
    from _curvature_tables import BEGIN, END

    text = (DOCS / "benchmarks-curvature.md").read_text("utf-8")
    assert 0 < text.index(BEGIN) < text.index(END)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nets", "GAN"], "no network called GAN; there are: tiny"),
        (["--sections", "all"], "no section all; there are: top, trace, profile"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--full", "--quick"], "contradict"),
    ],
)
def test_bad_options_of_the_curvature_benchmark_are_explained(
    curvature, capsys, arguments, message
):
    with pytest.raises(SystemExit):
        curvature.main(arguments)
    assert message in capsys.readouterr().err
