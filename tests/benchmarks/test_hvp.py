"""The benchmark of products: its ways agree, its clock is fair, wrong ways are named."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def bench(scripts):
    """The benchmark, imported as `python benchmarks/hvp.py` does."""
    return scripts("benchmarks")("hvp")


@pytest.fixture
def small(bench):
    """A net that takes milliseconds, and its two products in float64."""
    from nets import Case

    from thalweg.zoo import mlp

    case = Case("tiny", "tiny", lambda seed: mlp((6, 5, 10), seed=seed), (6,), 40, 32, 1.5)
    exact = case.problem(torch.float64, quick=True)
    return case, bench.reference(exact, exact.vectors(2))


def test_the_reference_is_the_dense_hessian_times_the_vectors(bench, small):
    case, truth = small
    problem = case.problem(torch.float64, quick=True)
    theta = torch.nn.utils.parameters_to_vector(problem.parameters).detach()
    names = [name for name, _ in problem.model.named_parameters()]
    shapes = [p.shape for p in problem.parameters]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        state = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        outputs = torch.func.functional_call(problem.model, state, (problem.inputs,))
        return problem.loss(outputs, problem.targets)

    dense = torch.autograd.functional.hessian(loss, theta)
    torch.testing.assert_close(problem.vectors(2) @ dense, truth, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_agreement_check_passes_the_truth_and_refuses_wrong_products(bench, small, dtype):
    from _measure import TOLERANCE, refuses, wrong_products

    _, truth = small
    assert bench.agreement(truth.to(dtype), truth) <= TOLERANCE[dtype] / 100
    wrong = wrong_products(truth, dtype)
    assert len(wrong) == 4
    assert all(refuses(product, truth) for product in wrong.values())
    assert not refuses(truth.to(dtype), truth)


def test_a_wrong_product_is_named_with_its_error(bench, small):
    from _measure import DisagreementError

    _, truth = small
    with pytest.raises(DisagreementError, match=r"relative error 0\.01\d*, above 1e-09"):
        bench.agreement(1.01 * truth, truth)
    with pytest.raises(DisagreementError, match=r"shape \(1, \d+\) instead of \(2, "):
        bench.agreement(truth[:1], truth)


def test_every_kernel_of_ours_agrees_and_the_rebuilt_one_rebuilds(bench, small):
    from _kernels import KERNELS

    case, _ = small
    ours = [kernel for kernel in KERNELS if kernel.ours]
    assert [kernel.columns for kernel in ours] == [1, 16, 16]
    for kernel in ours:
        errors = bench.check(kernel, case, True, None)
        assert errors["float64"] < 1e-12
        assert errors["float32"] < 1e-5


def test_a_peer_that_is_wrong_fails_or_is_missing_gets_a_row_that_says_so(bench, small):
    from _kernels import Kernel, Ready
    from nets import WayRound

    case, _ = small

    def wrong(problem, rows, stack):
        return Ready(lambda: torch.zeros_like(rows), lambda out: out)

    def broken(problem, rows, stack):
        raise NotImplementedError("no derivative of this. Ask again")

    here = bench.row_of(Kernel("wrong", "torch", 1, wrong), case, True, None)
    assert here["fails"] == "DisagreementError: relative error 1, above 1e-09"
    way_round = WayRound("another way", lambda: torch.no_grad())
    row = bench.row_of(Kernel("broken", "torch", 1, broken), case, True, way_round)
    assert row["fails"] == "NotImplementedError: no derivative of this"
    assert row["name"] == "broken, another way"
    row = bench.row_of(Kernel("missing", "no-such-peer-of-thalweg", 1, wrong), case, True, None)
    assert row["fails"] == "not installed (pip install no-such-peer-of-thalweg)"
    with pytest.raises(AssertionError, match="relative error 1"):
        bench.row_of(Kernel("ours", "thalweg", 1, wrong), case, True, None)


def test_calls_take_turns_and_each_round_starts_with_another(bench):
    from _measure import interleave

    turns = []
    calls = {name: lambda name=name: (turns.append(name), time.sleep(1e-3)) for name in "ABC"}
    readings = interleave(calls, rounds=3, seconds=1e-9)
    assert "".join(turns) == "AABBCC" + "ABC" + "BCA" + "CAB"
    assert {name: len(found) for name, found in readings.items()} == dict.fromkeys("ABC", 3)
    assert all(reading.wall >= 1e-3 for found in readings.values() for reading in found)


def test_ratios_are_taken_round_by_round(bench):
    from _measure import ratio

    # a machine that slows down tenfold from round to round does not show in the ratio
    assert ratio([2.0, 20.0, 300.0], [1.0, 10.0, 100.0]) == {"median": 2.0, "min": 2.0, "max": 3.0}
    with pytest.raises(ValueError, match="argument 2 is longer"):
        ratio([1.0], [1.0, 2.0])


def test_a_verdict_misses_when_the_median_is_above_the_limit_or_nan(bench):
    from _measure import Verdict, spread

    assert Verdict("net", "target", 1.05, spread([1.0, 1.04, 9.0])).passed
    assert not Verdict("net", "target", 1.05, spread([1.0, 1.06, 1.07])).passed
    assert not Verdict("net", "target", 1.05, dict.fromkeys(("median",), math.nan)).passed


def test_a_run_without_peers_writes_json_and_the_docs_section(
    bench, small, monkeypatch, tmp_path, capsys
):
    import _kernels
    import _tables

    case, _ = small
    kernels = tuple(kernel for kernel in _kernels.KERNELS if kernel.ours)
    monkeypatch.setattr(bench, "KERNELS", kernels)
    monkeypatch.setattr(bench, "CASES", (case,))
    out, document = tmp_path / "hvp.json", tmp_path / "benchmarks.md"
    arguments = ["--quick", "--repeats", "5", "--seconds", "1e-6", "--out", str(out)]
    assert bench.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Thalweg retained, 1 vector" in printed
    assert "refused 8 of 8 wrong products" in printed
    data = json.loads(out.read_text("utf-8"))
    held = data["nets"][0]["memory"]
    assert held["products counted"] == 16
    assert held["passes counted"] == held["rebuilds seen"] == 1
    document.write_text(f"before\n{_tables.BEGIN}\nold\n{_tables.END}\nafter\n", "utf-8")
    _tables.rewrite(document, data)
    text = document.read_text("utf-8")
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith(f"{_tables.END}\nafter\n")
    assert "| Thalweg rebuilt under a cap, 16 vectors |" in text
    _tables.rewrite(document, data)
    assert document.read_text("utf-8") == text
    document.write_text("no marks", "utf-8")
    with pytest.raises(ValueError, match=r"benchmarks\.md lacks the marks"):
        _tables.rewrite(document, data)


def test_the_document_has_the_marks(bench):
    from _tables import BEGIN, END

    text = (DOCS / "benchmarks.md").read_text("utf-8")
    assert 0 < text.index(BEGIN) < text.index(END)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--repeats", "4"], "at least 5"), (["--nets", "GAN"], "no net called GAN; there are: MLP")],
)
def test_bad_options_are_explained(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err
