"""The diagonal and the traces of blocks against dense truth, and their coverage."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from thalweg.curvature import (
    Hessian,
    MatrixOperator,
    block_traces,
    diagonal,
    eigenpairs,
    trace,
)

LAYERS = {"first": slice(0, 80), "bias": slice(80, 96), "last": slice(96, 147)}


def decaying(with_spectrum):
    return with_spectrum([s * 10 / k**1.5 for k in range(1, 76) for s in (1, -0.3)])


def inside(found, truth, level=0.95):
    low, high = found.interval(level)
    return float(((low <= truth) & (truth <= high)).double().mean())


def test_diagonal_of_a_networks_hessian(net):
    point = net()
    with Hessian(point.land, point.theta) as H:
        found = diagonal(H, seed=0)
    truth = point.dense().diagonal()
    assert found.cost.hvps == found.samples == 96
    assert found.cost.passes == 7
    assert "cross-fitted" in found.method
    assert inside(found, truth) > 0.9
    error = (found.values - truth).square().mean().sqrt()
    assert float(error) < 1.2 * float(found.stderr.square().mean().sqrt())
    naive = (point.dense() - torch.diag(truth)).square().sum(1).div(96).mean().sqrt()
    assert float(error) < 0.5 * float(naive)


def test_it_is_the_plain_mean_where_cross_fitting_does_not_pay(with_spectrum):
    """Against the loop over the same signs."""
    A = with_spectrum(np.linspace(-1, 2, 150))
    found = diagonal(A, samples=40, seed=4)
    generator = torch.Generator().manual_seed(4)
    drawn = []
    for _ in range(40):
        bits = torch.randint(0, 2, (150,), generator=generator, dtype=torch.int8)
        z = (2 * bits - 1).double()
        drawn.append(z * (A.matrix @ z))
    drawn = torch.stack(drawn)
    torch.testing.assert_close(found.values, drawn.mean(0))
    torch.testing.assert_close(found.stderr, drawn.std(0) / math.sqrt(40))
    streamed = diagonal(A, samples=40, seed=4, memory="10 kB")
    assert "needs more memory" in streamed.method
    torch.testing.assert_close(streamed.values, found.values)
    torch.testing.assert_close(streamed.stderr, found.stderr)
    assert float(found.values.sum()) == pytest.approx(trace(A, samples=40, seed=4).value)


def test_its_sum_agrees_with_the_trace(with_spectrum):
    A = decaying(with_spectrum)
    found, whole = diagonal(A, seed=1), trace(A, seed=1)
    assert abs(float(found.values.sum()) - whole.value) < whole.half_width


def test_exact_where_it_can_be(net):
    A = MatrixOperator(net().dense())
    truth = A.matrix.diagonal()
    found = diagonal(A, samples=150, seed=0)
    torch.testing.assert_close(found.values, truth)
    assert inside(found, truth) == 1
    assert (found.method, found.samples, found.cost.hvps) == ("exact diagonal", 147, 147)
    assert "exact up to rounding" in str(found)
    sums = found.by(LAYERS)
    for name, part in LAYERS.items():
        assert math.fsum(truth[part].tolist()) in sums[name]
        assert sums[name].half_width < 1e-10
    blocks = block_traces(A, LAYERS, samples=150)
    assert blocks["bias"].interval == sums["bias"].interval


class Knowing(MatrixOperator):
    """An operator that knows its diagonal."""

    def own_diagonal(self):
        return self.matrix.diagonal()


def test_what_is_known_takes_no_product(net):
    A = Knowing(net().dense())
    found, blocks = diagonal(A), block_traces(A, LAYERS)
    assert A.cost.hvps == 0
    torch.testing.assert_close(found.values, A.matrix.diagonal())
    for name, part in LAYERS.items():
        assert blocks[name].value == pytest.approx(float(found.values[part].sum()))
        assert blocks[name].stderr == 0


def test_blocks_add_up_to_the_trace(net):
    A = MatrixOperator(net().dense())
    parts = {**LAYERS, "all": slice(None), "odd": torch.arange(1, 147, 2)}
    found = block_traces(A, parts, overlapping=True, samples=96, seed=3)
    assert found["all"].cost.hvps == A.cost.hvps == 96
    assert found["all"].value == pytest.approx(trace(A, samples=96, seed=3).value, rel=1e-10)
    for name, part in parts.items():
        assert float(A.matrix.diagonal()[part].sum()) in found[name]
        assert found[name].seed == 3
    mask = torch.zeros(147, dtype=torch.bool)
    mask[80:96] = True
    again = block_traces(A, {"bias": mask}, samples=96, seed=3)
    assert again["bias"].interval == found["bias"].interval


def test_known_eigenpairs_are_taken_off_and_added_exactly(net):
    A = MatrixOperator(net(steps=0).dense())
    pairs = eigenpairs(A, k=12, which="magnitude", seed=0)
    plain = block_traces(A, LAYERS, seed=0, memory="1 kB")
    deflated = block_traces(A, LAYERS, seed=0, memory="1 kB", eigenpairs=pairs)
    for name, part in LAYERS.items():
        assert float(A.matrix.diagonal()[part].sum()) in deflated[name]
        assert deflated[name].half_width < 0.7 * plain[name].half_width
    rough = eigenpairs(A, k=3, which="magnitude", seed=0, tol=0.3)
    found = [block_traces(A, LAYERS, seed=s, eigenpairs=rough) for s in range(20)]
    truth = float(A.matrix.diagonal()[LAYERS["last"]].sum())
    assert sum(truth in f["last"] for f in found) >= 17


def test_by_is_wide_enough_for_errors_that_agree(with_spectrum):
    A = decaying(with_spectrum)
    halves = {"low": slice(0, 75), "high": slice(75, 150)}
    narrow = block_traces(A, halves, samples=96, seed=2)
    for name, wide in diagonal(A, seed=2).by(halves).items():
        assert float(A.matrix.diagonal()[halves[name]].sum()) in wide
        assert wide.half_width > narrow[name].half_width


def test_the_record(with_spectrum):
    A = with_spectrum(np.linspace(-1, 2, 150))
    found = diagonal(A, seed=5)
    assert str(found).startswith("diagonal of 150 entries from ")
    assert "96 HVPs" in str(found)
    assert found.__rich__()
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["values"] == found.values.tolist()
    assert stored["seed"] == 5
    assert diagonal(A).seed != diagonal(A).seed
    single = diagonal(MatrixOperator(A.matrix.float()), seed=5)
    assert inside(single, A.matrix.diagonal()) > 0.85


def test_what_cannot_be(unchecked):
    A = MatrixOperator(torch.eye(100))
    with pytest.raises(ValueError, match=r"samples=31 is too few.*32, or dim=100 for the exact"):
        diagonal(A, samples=31)
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, not 2"):
        diagonal(A, samples=100).interval(2)
    for groups, words in [
        ({}, "there are no groups"),
        ({"a": slice(5, 5)}, r"group 'a' has shape \(0,\): no coordinates"),
        ({"a": torch.tensor([100])}, "coordinates from 100 to 100, but the operator has 0 to 99"),
        ({"a": torch.tensor([1, 1])}, "group 'a' holds a coordinate twice"),
        ({"a": slice(0, 5), "b": slice(4, 6)}, "group 'b' shares coordinates with one before it"),
    ]:
        with pytest.raises(ValueError, match=words):
            block_traces(A, groups)
    with pytest.raises(TypeError, match="group 'a' must be a slice or a tensor of integers"):
        block_traces(A, {"a": torch.ones(3)})
    assert A.cost.hvps == 100


@pytest.mark.calibration
@pytest.mark.parametrize("samples", [32, 96])
@pytest.mark.parametrize("case", ["untrained", "trained", "decaying", "one coupled pair"])
def test_intervals_of_the_entries_cover(net, with_spectrum, calibration, case, samples):
    """Averaged over the entries, which is what the interval promises."""
    pair = torch.eye(150).double()
    pair[0, 1] = pair[1, 0] = 2
    A = {
        "untrained": lambda: MatrixOperator(net(steps=0).dense()),
        "trained": lambda: MatrixOperator(net(steps=300).dense()),
        "decaying": lambda: decaying(with_spectrum),
        "one coupled pair": lambda: MatrixOperator(pair),
    }[case]()
    truth = A.matrix.diagonal()
    found = [diagonal(A, samples=samples, seed=seed) for seed in calibration.seeds]
    share = np.mean([inside(f, truth) for f in found])
    error = torch.stack([f.values - truth for f in found]).square().mean(0).sqrt()
    half = torch.stack([f.interval()[1] - f.values for f in found]).median(0).values
    felt = error > 1e-9
    ratio = float((half[felt] / error[felt] / 1.96).median())
    name = f"diagonal's entries on average, {case}, {samples} samples"
    calibration.check(name, int(share * len(found)), width_ratio=ratio)


@pytest.mark.calibration
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("steps", [0, 300])
def test_intervals_of_the_blocks_cover(net, calibration, steps, deflated):
    A = MatrixOperator(net(steps=steps).dense())
    pairs = eigenpairs(A, k=5, which="magnitude", seed=0) if deflated else None
    found = [block_traces(A, LAYERS, eigenpairs=pairs, seed=seed) for seed in calibration.seeds]
    for name, part in LAYERS.items():
        truth = float(A.matrix.diagonal()[part].sum())
        error = np.sqrt(np.mean([(f[name].value - truth) ** 2 for f in found]))
        ratio = float(np.median([f[name].half_width for f in found]) / error / 1.96)
        hits = sum(truth in f[name] for f in found)
        case = f"block trace, {name}, {steps} steps of training{', deflated' * deflated}"
        calibration.check(case, hits, width_ratio=ratio)
