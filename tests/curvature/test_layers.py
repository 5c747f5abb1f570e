"""Curvature layer by layer, against dense diagonal blocks."""

from __future__ import annotations

import pytest
import torch

from thalweg.curvature import MatrixOperator
from thalweg.curvature.lanczos import lockstep
from thalweg.curvature.layers import (
    LayerCurvature,
    extreme,
    layer_curvature,
    make_groups,
    missed,
)
from thalweg.landscape import ParameterSpec

SPEC = ParameterSpec(
    {"first.weight": (5, 16), "first.bias": (16,), "second.weight": (16, 3), "second.bias": (3,)}
)


def blocks(matrix, groups):
    return {name: matrix[where][:, where] for name, where in groups.items()}


@pytest.mark.parametrize("steps", [0, 30])
def test_every_layer_agrees_with_its_dense_block(net, steps):
    network = net(steps=steps)
    matrix = network.dense()
    groups = make_groups(SPEC)
    layers = layer_curvature(MatrixOperator((matrix + matrix.T) / 2), SPEC, seed=1, steps=40)
    for layer, (name, block) in zip(layers, blocks(matrix, groups).items(), strict=True):
        assert (layer.name, layer.size) == (name, len(block))
        top = float(torch.linalg.eigvalsh(block)[-1])
        assert top in layer.top
        assert layer.top.width < 1e-3 * top
        assert layer.top.lower_kind == "certified"


def test_the_products_are_shared_by_all_layers(net):
    network = net()
    matrix = network.dense()
    operator = MatrixOperator((matrix + matrix.T) / 2)
    layers = layer_curvature(operator, SPEC, seed=1, samples=32, steps=10)
    assert operator.cost.passes <= 10 + 2
    assert layers[0].top.cost == operator.cost


def test_groups_by_pattern_may_cut_across_layers():
    groups = make_groups(SPEC, ["*.bias", "first.*"])
    assert {name: len(where) for name, where in groups.items()} == {"*.bias": 19, "first.*": 96}
    with pytest.raises(ValueError, match=r"pattern 'third.*' matches no parameter"):
        make_groups(SPEC, ["third.*"])


def test_a_parameter_of_the_root_module_has_a_name():
    assert list(make_groups(ParameterSpec({"scale": (1,), "fc.bias": (2,)}))) == ["(root)", "fc"]


def test_a_tensor_without_entries_is_no_group():
    assert list(make_groups(ParameterSpec({"a.bias": (0,), "b.bias": (2,)}))) == ["b"]


def test_wrong_groups_are_refused():
    operator = MatrixOperator(torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"group 'x' has coordinates from 3 to 4"):
        layer_curvature(operator, {"x": torch.tensor([3, 4])}, seed=0)
    with pytest.raises(ValueError, match=r"group 'x' has shape \(0,\): no coordinates"):
        layer_curvature(operator, {"x": torch.tensor([], dtype=torch.int64)}, seed=0)


def test_a_layer_says_what_it_is(net):
    matrix = net().gauss_newton()
    layer = layer_curvature(MatrixOperator((matrix + matrix.T) / 2), SPEC, seed=3)[0]
    assert str(layer).startswith("first: 96 parameters, trace ")
    assert layer.__rich__() == str(layer).replace("[", "\\[")
    assert layer.to_json()["size"] == 96
    assert isinstance(layer, LayerCurvature)


def starts(dim: int, chains: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, chains, generator=generator, dtype=torch.float64)


def test_the_bracket_is_wide_where_the_chains_are_short(with_spectrum):
    operator = with_spectrum([*torch.linspace(-1, 1, 200).tolist(), 1.05])
    short, long = (extreme(lockstep(operator, starts(201, 2, 0), steps), 201) for steps in (5, 60))
    assert 1.05 in short
    assert 1.05 in long
    assert long.width < short.width / 10
    one = extreme(lockstep(operator, starts(201, 1, 0), 1), 201)
    assert one.upper == float("inf")


def test_many_unfinished_chains_do_not_vouch_for_each_other(with_spectrum):
    """The product of ten probabilities is small by itself: 2 in 5 of these were missed."""
    operator = with_spectrum((1 - torch.linspace(0, 1, 200) ** (2 / 3)).tolist())
    for seed in range(8):
        chains = lockstep(operator, starts(200, 10, seed), 20)
        assert 1.0 in extreme(chains, 200)
        assert 0.0 in extreme(chains, 200, largest=False)


def test_what_lies_above_is_missed_wherever_all_nodes_are_above(with_spectrum):
    chains = lockstep(with_spectrum([1.0, 2.0, 3.0]), starts(3, 4, 0), 3)
    assert missed(chains, 3, 0.5) == 1.0
    assert missed(chains, 3, 2.5) == 1.0
    assert missed(chains, 3, 3.5) == 0.0


def test_the_seed_that_was_given_is_recorded():
    operator = MatrixOperator(torch.diag(torch.arange(1.0, 51.0, dtype=torch.float64)))
    groups = {"first": torch.arange(20)}
    (given,) = layer_curvature(operator, groups, seed=7)
    assert given.trace.seed == 7
    (fresh,) = layer_curvature(operator, groups)
    (again,) = layer_curvature(operator, groups, seed=fresh.trace.seed)
    assert again.trace.value == fresh.trace.value
    assert again.top.upper == fresh.top.upper


@pytest.mark.calibration
@pytest.mark.parametrize("count", [2, 10])
def test_the_extreme_eigenvalues_are_never_missed(with_spectrum, net, calibration, count):
    """The far end is missed with probability 1e-4, so not once in a thousand seeds."""
    hessian = net(steps=30).dense()
    cases = {
        "an outlier": with_spectrum([0.0] * 150 + [1.0]),
        "an even spectrum": with_spectrum(torch.linspace(-1, 1, 151).tolist()),
        "a trained Hessian": MatrixOperator((hessian + hessian.T) / 2),
    }
    for case, operator in cases.items():
        values = torch.linalg.eigvalsh(operator.matrix)
        hits = 0
        for seed in calibration.seeds:
            chains = lockstep(operator, starts(operator.dim, count, seed), 12)
            top = extreme(chains, operator.dim)
            low = extreme(chains, operator.dim, largest=False)
            hits += float(values[-1]) in top and float(values[0]) in low
        calibration.check(f"extreme eigenvalues, {count} chains, {case}", hits, level=0.999)
