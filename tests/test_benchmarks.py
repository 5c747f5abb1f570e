from __future__ import annotations

import json
import math
import sys
import time
import types
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
MODULES = ("hvp", "nets", "_kernels", "_measure", "_tables")
PATHS = ("paths", "_path_nets", "_path_peers", "_path_tables", "_measure", "_turns")


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's modules, imported as `python benchmarks/hvp.py` does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import hvp

    yield hvp
    for name in MODULES:
        sys.modules.pop(name, None)


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

    text = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text("utf-8")
    assert 0 < text.index(BEGIN) < text.index(END)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--repeats", "4"], "at least 5"), (["--nets", "GAN"], "no net called GAN; there are: MLP")],
)
def test_bad_options_are_explained(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err


CURVATURE = (
    *("curvature", "_curvature_tables", "_peers", "_profiles", "_top", "_traces", "_trained"),
    *("_turns", *MODULES),
)


@pytest.fixture
def curvature(monkeypatch):
    """The curvature benchmark's modules, with two networks that take milliseconds."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in CURVATURE:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import _top
    import _traces
    import _trained

    import curvature
    from thalweg.zoo import mlp

    stage = _trained.Stage("tiny", lambda seed: mlp((64, 2, 10), seed=seed), 20)
    monkeypatch.setattr(curvature, "STAGES", (stage,))
    monkeypatch.setattr(_traces, "cases", lambda: [(stage, "Gauss-Newton"), (stage, "Hessian")])
    ours = tuple(c for c in _top.CONTESTANTS if c.package == "thalweg")
    monkeypatch.setattr(_top, "CONTESTANTS", ours)
    mine = {name: e for name, e in _traces.ESTIMATORS.items() if e[0] == "thalweg"}
    monkeypatch.setattr(_traces, "ESTIMATORS", mine)
    yield curvature
    for name in CURVATURE:
        sys.modules.pop(name, None)


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

    text = (BENCHMARKS.parent / "docs" / "benchmarks-curvature.md").read_text("utf-8")
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


@pytest.fixture
def paths(monkeypatch):
    """The benchmark of paths, with one network that takes milliseconds."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in PATHS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import _path_nets

    import paths
    from thalweg.landscape import ModelLandscape
    from thalweg.zoo import digits, mlp

    def land():
        pixels, labels = digits("train", image=False).tensors
        model, entropy = mlp((64, 3, 10), seed=0), torch.nn.functional.cross_entropy
        return ModelLandscape(model, entropy, (pixels[:256], labels[:256]), penalty=1e-2)

    monkeypatch.setattr(_path_nets.Net, "ends", lambda self, land, pair: _two(land, pair))
    monkeypatch.setattr(paths, "NETS", (_path_nets.Net("tiny", land, 256, (60,)),))
    yield paths
    for name in PATHS:
        sys.modules.pop(name, None)


def _two(land, pair):
    """Two random points, one of which is no minimum: ends all the same."""
    return tuple(land.start(torch.Generator().manual_seed(2 * pair + i)) for i in (0, 1))


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_garipovs_schedule_spends_its_budget_of_full_data_gradients(paths, kind):
    from _path_peers import GARIPOV_BATCH, run_garipov

    land = paths.NETS[0].landscape(True)
    a, b = _two(land, 0)
    before = land.cost
    points = run_garipov(land, a, b, 7, 0, kind)
    share = GARIPOV_BATCH / land.examples
    assert (land.cost - before).gradients * share == 7
    assert torch.equal(points[0], a)
    assert torch.equal(points[-1], b)
    middle = (points[30] - (a + b) / 2).norm()
    assert middle > 0
    if kind == "chain":  # straight up to the bend
        torch.testing.assert_close(points[15], (a + points[30]) / 2, rtol=1e-5, atol=1e-6)


class _Neb:
    """A stand-in for torch_autoneb: asks for gradients as its band does, pivot by pivot."""

    class config:
        class NEBConfig:
            @staticmethod
            def from_dict(given):
                return given

    def __init__(self, land):
        self.land, self.steps = land, []

    def neb(self, data, model, config):
        pivots = data["path_coords"]
        first = config["insert"]["name"] == "equal"
        pivots = pivots[[0, 0, 0, 0, 1]] if first else pivots
        model.adapt_to_config(types.SimpleNamespace(**config["optim"]["eval"]))
        self.steps.append(config["optim"]["nsteps"])
        for _ in range(config["optim"]["nsteps"]):
            for pivot in pivots[1:-1]:
                model.set_coords_no_grad(pivot)
                model.apply(gradient=True)
                slope = torch.empty_like(pivot)
                model.get_grad(slope)
                assert torch.equal(slope, self.land.gradient(pivot))
        return {**data, "path_coords": pivots}


def test_autoneb_is_given_steps_for_its_budget_and_the_true_gradients(paths):
    from _path_peers import run_autoneb

    land = paths.NETS[0].landscape(True)
    peer, before = _Neb(land), land.cost
    run_autoneb(peer, land, *_two(land, 0), 240, 0)
    used = (land.cost - before).gradients / 2  # the stand-in checks each against its own
    assert used == 3 * sum(peer.steps)
    assert 0.85 * 240 <= used <= 240
    assert len(peer.steps) == 14
    assert peer.steps[4] == pytest.approx(2 * peer.steps[0], abs=1)


def test_a_path_that_leaves_the_numbers_fails_and_a_wrong_one_is_measured_higher(paths):
    from _path_peers import Diverged, run_garipov

    land = paths.NETS[0].landscape(True)
    a, b = _two(land, 0)

    def broken(land, a, b, budget, seed):
        raise Diverged("the curve's loss is not finite after 3 steps")

    def right(land, a, b, budget, seed):
        return run_garipov(land, a, b, budget, seed, "bezier")

    def wrong(land, a, b, budget, seed):
        points = right(land, a, b, budget, seed)
        points[30] += 3.0
        return points

    found = {}
    for name, search in {"right": right, "wrong": wrong, "broken": broken}.items():
        one = paths.Contestant(name, search, "a test")
        found[name] = paths.attempt(one, land, (a, b), 20, 0, 1e-3)
    assert found["broken"] == {"fails": "Diverged: the curve's loss is not finite after 3 steps"}
    assert found["wrong"]["height"] > found["right"]["height"] + 1
    judged = paths.judge([found["right"]], [found["wrong"]], [1e-3])
    assert judged["passed"]
    assert judged["ratios"][0] < 1
    assert not paths.judge([found["wrong"]], [found["right"]], [1e-3])["passed"]
    assert paths.judge([found["wrong"]], [found["right"]], [1e3])["passed"]  # both too low
    assert paths.judge([found["right"]], [found["broken"]], [1e-3]) is None


def test_a_run_of_paths_without_a_checkout_says_so_and_writes_json_and_the_docs(
    paths, tmp_path, capsys
):
    import _path_tables

    out, document = tmp_path / "paths.json", tmp_path / "benchmarks-paths.md"
    assert paths.main(["--pairs", "1", "--out", str(out)]) == 0
    assert "AutoNEB" in capsys.readouterr().out
    data = json.loads(out.read_text("utf-8"))
    runs = data["nets"][0]["budgets"][0]["runs"]
    assert set(runs) == {"connect", "AutoNEB", "Garipov, Bezier", "Garipov, chain"}
    assert all(run[0]["lower"] <= run[0]["height"] for run in runs.values())
    document.write_text(f"before\n{_path_tables.BEGIN}\nold\n{_path_tables.END}\n", "utf-8")
    _path_tables.rewrite(document, data)
    text = document.read_text("utf-8")
    assert "published schedule, on our band" in text
    assert "| connect |" in text
    assert "old" not in text
    document.write_text("no marks", "utf-8")
    with pytest.raises(ValueError, match=r"lacks the marks"):
        _path_tables.rewrite(document, data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nets", "GAN"], "no network called GAN; there are: tiny"),
        (["--budgets", "many"], "numbers such as 200,600"),
        (["--budgets", "4"], "at least 50 gradients"),
        (["--autoneb", "nowhere"], "no checkout"),
    ],
)
def test_bad_options_of_the_benchmark_of_paths_are_explained(paths, capsys, arguments, message):
    with pytest.raises(SystemExit):
        paths.main(arguments)
    assert message in capsys.readouterr().err
