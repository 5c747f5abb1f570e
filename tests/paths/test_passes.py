"""Passes out of a minimum: the camelback, Müller-Brown and seven Lennard-Jones atoms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape
from thalweg.paths.descent import descend
from thalweg.paths.passes import passes_from
from thalweg.topology import merge_tree
from thalweg.zoo import Cluster, Surface, lennard_jones, muller_brown, six_hump_camelback

D = torch.float64


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=D)


def nearest(land: Surface, theta: Tensor) -> int:
    """The position of the minimum that this is, which must be one of them."""
    apart = torch.stack([(land.vector(m) - theta).norm() for m in land.minima])
    assert float(apart.min()) < 1e-6
    return int(apart.argmin())


@pytest.mark.slow
@pytest.mark.parametrize("make", [muller_brown, six_hump_camelback])
def test_all_passes_of_a_surface_and_what_they_join(make: type[Surface]) -> None:
    land = make()
    found: dict[int, tuple[int, ...]] = {}
    for minimum in land.minima:
        for one in passes_from(land, land.vector(minimum), tries=8, seed=0):
            which = [
                k for k, s in enumerate(land.saddles) if (land.vector(s) - one.theta).norm() < 1e-6
            ]
            assert len(which) == 1
            assert one.loss == pytest.approx(land.saddles[which[0]].value, rel=1e-9, abs=1e-12)
            assert one.certificate.index.upper == 1
            found[which[0]] = tuple(sorted(nearest(land, end) for end in one.minima))
    assert found == {k: tuple(sorted(s.joins or ())) for k, s in enumerate(land.saddles)}


def test_a_basin_without_a_pass() -> None:
    bowl = FunctionLandscape(lambda x: (x**2).sum() + x[0] ** 4, 2)
    found = passes_from(bowl, vector(0.0, 0.0), tries=6, max_steps=20, seed=0)
    assert len(found) == 0
    assert sum(found.refused.values()) == found.tries == 6
    assert "raise tries" in str(found)


@pytest.mark.slow
def test_hits_seeds_cost_and_progress() -> None:
    land = muller_brown()
    start = land.vector(land.minima[2])
    told: list[float] = []
    before = land.cost
    found = passes_from(land, start, tries=3, seed=3, progress=lambda part, _: told.append(part))
    assert found.cost == land.cost - before
    assert [p.loss for p in found] == pytest.approx([s.value for s in land.saddles], rel=1e-9)
    assert sum(found.hits) + sum(found.refused.values()) == found.tries
    assert told == sorted(told)
    assert told[-1] == 1.0
    again = passes_from(land, start, tries=3, seed=3)
    assert [p.loss for p in found] == [p.loss for p in again]
    assert all(torch.equal(p.theta, q.theta) for p, q in zip(found, again, strict=True))
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["hits"] == list(found.hits)
    assert "between minima at" in str(found[0])
    small = passes_from(land, start, tries=20, max_gradients=60, seed=3)
    assert small.tries < 20
    one = passes_from(land, start, tries=3, seed=3, same=lambda a, b: True)
    assert len(one) == len(found)  # their losses tell them apart


def _bowls(dim: int) -> tuple[FunctionLandscape, Tensor]:
    """Two wells, joined along the softest mode, and one of them."""
    scales = torch.linspace(6.0, 9.0, dim - 1, dtype=D)
    land = FunctionLandscape(lambda x: (x[0] ** 2 - 1) ** 2 + (scales * x[1:] ** 2).sum(), dim)
    return land, -torch.eye(dim, dtype=D)[0]


@pytest.mark.parametrize(("dim", "seed"), [(2, None), pytest.param(70, 4, marks=pytest.mark.slow)])
def test_resumed_is_unbroken_bit_for_bit(
    dim: int, seed: int | None, ctrl_c: Any, tmp_path: Path
) -> None:
    """Stopped in the search for modes and between climbs; `dim` above 64 draws there too."""
    land, minimum = _bowls(dim)
    tries = 6 if dim == 2 else 2
    options: dict[str, Any] = {"tries": tries, "max_steps": 30, "step": 0.1, "tol": 1e-7}
    file, stops = tmp_path / "passes", 0
    while True:
        try:
            parts = passes_from(
                land,
                minimum,
                seed=seed,
                checkpoint=file,
                progress=ctrl_c(1),
                **options,
            )
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 2
    whole = passes_from(land, minimum, seed=parts.seed, **options)
    assert len(whole) >= 1
    assert (parts.tries, parts.hits, parts.refused) == (whole.tries, whole.hits, whole.refused)
    for one, other in zip(parts, whole, strict=True):
        assert torch.equal(one.theta, other.theta)
        assert all(map(torch.equal, one.minima, other.minima))
        assert one.to_json() == other.to_json()
    assert parts.cost == whole.cost
    again = passes_from(land, minimum, seed=seed, checkpoint=file, **options)
    assert again.to_json() == parts.to_json()  # nothing is left to do
    for other in ({"tries": tries + 1}, {"tol": 1e-6}, {"same": lambda p, q: True}):
        with pytest.raises(ValueError, match="other options"):
            passes_from(land, minimum, seed=seed, checkpoint=file, **{**options, **other})


def test_same_makes_symmetric_copies_one() -> None:
    """Two passes of one height, mirror images: two by place, one where `same` says so."""
    land = FunctionLandscape(lambda x: torch.cos(x[0]) + x[1] ** 2, 2)
    middle = vector(torch.pi, 0.0)
    assert len(passes_from(land, middle, tries=4, seed=0)) == 2
    merged = passes_from(land, middle, tries=4, same=lambda a, b: True, seed=0)
    assert len(merged) == 1
    assert sum(merged.hits) == 2


def test_descents_stay_in_their_valley() -> None:
    land = muller_brown()
    top = land.vector(land.saddles[1])
    feet = [top + s * vector(0.02, -0.016) for s in (1, -1)]
    ends = sorted(nearest(land, descend(land, foot, stride=0.05).theta) for foot in feet)
    assert ends == [0, 2]
    cut = descend(land, feet[0], stride=0.05, max_gradients=3)
    assert not cut.converged
    assert "raise max_gradients" in str(cut)
    wall = FunctionLandscape(lambda x: torch.log(x[0]) + x[1] ** 2, 2)
    lost = descend(wall, vector(1.0, 1.0), stride=5.0, max_gradients=50)
    assert not lost.converged
    assert lost.loss < 1.0


def test_refusals() -> None:
    land = muller_brown()
    with pytest.raises(ValueError, match="tries=0 must be at least 1"):
        passes_from(land, land.vector(land.minima[0]), tries=0)
    with pytest.raises(ValueError, match=r"step=-1\.0 positive"):
        passes_from(land, land.vector(land.minima[0]), step=-1.0)
    with pytest.raises(TypeError, match=r"theta is torch\.float32, but this landscape computes in"):
        passes_from(land, land.vector(land.minima[0]).float())


def isomers(land: Cluster, starts: int, seed: int) -> list[Tensor]:
    """The distinct minima that descents from random starts end at, lowest first."""
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[float, Tensor]] = []
    for _ in range(starts):
        end = descend(land, land.start(generator), stride=0.3)
        new = not any(land.same_isomer(end.theta, known) for _, known in found)
        if end.converged and new:
            found.append((end.loss, end.theta))
    return [theta for _, theta in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.slow
def test_the_merge_tree_of_seven_lennard_jones_atoms() -> None:
    """Four isomers and three merges, to every digit that the zoo keeps."""
    land = lennard_jones(7)
    minima = isomers(land, 25, seed=0)
    heights = [float(land.loss(theta)) for theta in minima]
    assert heights == pytest.approx(land.energies, abs=1e-6)
    edges: list[tuple[int, int, float]] = []
    saddles: list[Tensor] = []
    for theta in minima:
        for one in passes_from(land, theta, tries=60, same=land.same_isomer, seed=0):
            assert one.certificate.index.lower == one.certificate.index.upper == 1
            ends = [
                next(k for k, m in enumerate(minima) if land.same_isomer(m, end))
                for end in one.minima
            ]
            assert min(abs(one.loss - known) for known in land.passes) < 1e-4
            if not any(land.same_isomer(one.theta, known) for known in saddles):
                saddles.append(one.theta)
            if ends[0] != ends[1]:
                edges.append((ends[0], ends[1], one.loss))
    tree = merge_tree(heights, edges)
    assert [m.height.upper for m in tree.merges] == pytest.approx(land.merges, abs=5e-5)
    assert [(m.survivor, m.dying) for m in tree.merges] == [(0, 1), (0, 2), (0, 3)]
    assert len(tree.roots) == 1
    assert 7 <= len(saddles) <= 12  # more tries find the rest
