"""Named tensors in a flat vector, and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thalweg.landscape import ParameterSpec

shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
names = st.lists(
    st.tuples(st.sampled_from(["", "a.", "b.", "a.c."]), st.sampled_from("wxyz")).map("".join),
    min_size=1,
    max_size=8,
    unique=True,
)
batches = st.lists(st.integers(0, 3), max_size=2).map(tuple)


tables = names.flatmap(lambda chosen: st.fixed_dictionaries(dict.fromkeys(chosen, shapes)))


def numbered(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@given(tables, batches)
def test_round_trip(table: dict[str, tuple[int, ...]], batch: tuple[int, ...]) -> None:
    spec = ParameterSpec(table)
    theta = numbered(*batch, spec.dim)
    views = spec.views(theta)
    assert tuple(views) == spec.names
    for name, view in views.items():
        assert view.shape == (*batch, *spec.shapes[name])
        assert torch.equal(
            view.reshape(*batch, math.prod(spec.shapes[name])), theta[..., spec.slices[name]]
        )
        if view.numel():
            assert view.untyped_storage().data_ptr() == theta.untyped_storage().data_ptr()
    assert torch.equal(spec.flatten(views), theta)
    assert torch.equal(spec.flatten(dict(reversed(views.items()))), theta)
    assert sum(spec.sizes) == spec.dim == theta.shape[-1]


@given(tables)
def test_norms_against_loops(table: dict[str, tuple[int, ...]]) -> None:
    spec = ParameterSpec(table)
    theta = numbered(2, spec.dim) - 3
    views = spec.views(theta)
    layers, filters = [], []
    for parts in spec.layers.values():
        layers.append(
            sum(
                (views[n] ** 2).reshape(2, -1 if views[n].numel() else 0).sum(1) for n in parts
            ).sqrt()
        )
    for name, shape in spec.shapes.items():
        if not math.prod(shape):
            continue
        rows = [views[name]] if len(shape) < 2 else views[name].unbind(1)
        filters += [(row**2).reshape(2, -1).sum(1).sqrt() for row in rows]
    torch.testing.assert_close(spec.layer_norms(theta), torch.stack(layers, 1))
    empty = theta.new_zeros(2, 0)
    torch.testing.assert_close(
        spec.filter_norms(theta), torch.stack(filters, 1) if filters else empty
    )
    assert set(spec.layers) == {name.rpartition(".")[0] for name in spec.names}
    assert [name for parts in spec.layers.values() for name in parts] == sorted(
        spec.names, key=lambda n: list(spec.layers).index(n.rpartition(".")[0])
    )


@given(tables, st.sampled_from(["*", "a.*", "*.w", "w", "[wx]"]))
def test_selection(table: dict[str, tuple[int, ...]], pattern: str) -> None:
    spec = ParameterSpec(table)
    wanted = {
        "*": lambda n: True,
        "a.*": lambda n: n.startswith("a."),
        "*.w": lambda n: n.endswith(".w"),
        "w": lambda n: n == "w",
        "[wx]": lambda n: n in ("w", "x"),
    }[pattern]
    expected = tuple(name for name in spec.names if wanted(name))
    if not expected:
        with pytest.raises(ValueError, match="matches no parameter; there are: "):
            spec.select(pattern)
        return
    assert spec.select(pattern) == spec.select([pattern, spec.names[0]][:1]) == expected
    mask = spec.mask(pattern)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == sum(math.prod(spec.shapes[name]) for name in expected)
    for name in expected:
        assert bool(mask[spec.slices[name]].all())


def test_layers_that_return() -> None:
    """A layer whose tensors do not lie together is still one layer."""
    spec = ParameterSpec({"a.w": (2,), "b.w": (2,), "a.b": (1,)})
    assert spec.layers == {"a": ("a.w", "a.b"), "b": ("b.w",)}
    assert spec.layer_ids.tolist() == [0, 0, 1, 1, 0]
    assert spec.layer_norms(torch.ones(5)).tolist() == pytest.approx([3**0.5, 2**0.5])


def test_filters() -> None:
    """A filter is what one output unit reads; a bias is one filter."""
    spec = ParameterSpec({"conv.weight": (2, 3, 2), "conv.bias": (2,), "scale": ()})
    assert spec.filter_ids.tolist() == [0] * 6 + [1] * 6 + [2, 2] + [3]
    assert spec.slices == {
        "conv.weight": slice(0, 12),
        "conv.bias": slice(12, 14),
        "scale": slice(14, 15),
    }
    assert spec.views(torch.arange(15.0))["scale"].item() == 14


def test_refusals() -> None:
    spec = ParameterSpec({"w": (2, 3), "b": (2,)})
    with pytest.raises(ValueError, match=r"theta has shape \(7,\), expected \(\.\.\., 8\)"):
        spec.views(torch.zeros(7))
    with pytest.raises(ValueError, match="missing tensors: b"):
        spec.flatten({"w": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"w has shape \(3, 2\), expected \(\.\.\., 2, 3\)"):
        spec.flatten({"w": torch.zeros(3, 2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="tied names without a tensor"):
        ParameterSpec({"w": (2,)}, {"other": "gone"})
    tied = ParameterSpec({"w": (2,)}, {"other": "w"})
    assert str(tied) == "2 coordinates\nw  (2,)\nother  = w"
    with pytest.raises(ValueError, match="theta has shape"):
        spec.layer_norms(torch.zeros(9))
