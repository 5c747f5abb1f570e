"""Randomness is an argument, and what was drawn is recorded."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from truth import global_rng, same

from thalweg.landscape import make_generator
from thalweg.landscape.seeding import preserve_rng


def draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def test_none_is_not_a_fixed_seed() -> None:
    """hessian-eigenthings' seed=None is a fresh torch.Generator(), whose seed is a constant:
    repeating a run to judge the spread shows none."""
    assert draw(torch.Generator()) == draw(torch.Generator()), "the trap is not set"
    before = global_rng()
    drawn = [make_generator(None) for _ in range(3)]
    values = [draw(generator) for generator, _ in drawn]
    assert len(set(values)) == len({seed for _, seed in drawn}) == 3
    for value, (_, seed) in zip(values, drawn, strict=True):
        again, recorded = make_generator(seed)
        assert recorded == seed
        assert draw(again) == value
    assert same(global_rng(), before)


@pytest.mark.usefixtures("unchecked")
def test_a_seed_is_a_seed() -> None:
    for seed in (0, 7, 2**63 - 1, np.int64(7), np.uint8(3)):
        generator, recorded = make_generator(seed)
        assert recorded == int(seed)
        assert type(recorded) is int
        assert draw(generator) == draw(torch.Generator().manual_seed(int(seed)))


def test_a_generator_gives_one_integer() -> None:
    """Two results from one generator differ, and each can be repeated from its record."""
    parent = torch.Generator().manual_seed(5)
    (one, first), (_, second) = make_generator(parent), make_generator(parent)
    assert first != second
    assert draw(one) == draw(make_generator(first)[0])
    again = torch.Generator().manual_seed(5)
    assert make_generator(again)[1] == first
    assert one is not parent


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_seed() -> None:
    for wrong in (1.5, "7", True, [1]):
        with pytest.raises(TypeError, match=r"seed must be an int, a torch\.Generator or None"):
            make_generator(wrong)
    for wrong in (-1, 2**63):
        with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\*\*63\), got"):
            make_generator(wrong)


@pytest.mark.parametrize("seed", [None, 3, 2**62 + 1])
def test_global_rngs_are_put_back(seed: int | None) -> None:
    def everything() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    before = global_rng()
    with preserve_rng(seed):
        inside = everything()
    assert same(global_rng(), before)
    with pytest.raises(ZeroDivisionError), preserve_rng(seed):
        sum(everything()) / 0
    assert same(global_rng(), before)
    with preserve_rng(seed):
        assert everything() == inside
    with preserve_rng(4):
        assert everything() != inside
