"""Searches that are interrupted: what is kept, what is refused, and that nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from thalweg.estimate import Cost
from thalweg.paths.resume import Checkpoint, cost_from, cost_state, fingerprint, run


class Walk:
    """A random walk of ten steps: a search whose end depends on every step."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.x, self.taken = torch.zeros(3, dtype=torch.float64), 0

    @property
    def finished(self) -> bool:
        return self.taken >= 10

    def step(self) -> None:
        self.x = self.x + torch.randn(3, generator=self.generator, dtype=torch.float64)
        self.taken += 1

    def state(self) -> dict[str, Any]:
        return {"x": self.x, "taken": self.taken, "generator": self.generator.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        self.x, self.taken = state["x"], state["taken"]
        self.generator.set_state(state["generator"])

    def describe(self) -> tuple[float, str]:
        return self.taken / 10, f"step {self.taken}"


def interrupt_at(step: int) -> Any:
    def progress(part: float, message: str) -> None:
        if part >= step / 10:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("step", [1, 4, 9])
def test_a_resumed_walk_ends_where_an_unbroken_one_does(tmp_path: Path, step: int) -> None:
    whole = Walk()
    run(whole)
    kept = Checkpoint(tmp_path / "walk", "key", every=1e9)
    with pytest.raises(KeyboardInterrupt):
        run(Walk(), kept, interrupt_at(step))
    again = Walk()
    run(again, kept)
    assert torch.equal(again.x, whole.x)
    done = Walk()
    run(done, kept)
    assert done.taken == 10
    assert torch.equal(done.x, whole.x)


def test_an_interrupt_inside_a_step_keeps_the_last_whole_one(tmp_path: Path) -> None:
    class Torn(Walk):
        def step(self) -> None:
            if self.taken == 5:
                self.x = self.x + 100
                raise KeyboardInterrupt
            super().step()

    kept = Checkpoint(tmp_path / "walk", "key", every=1e9)
    with pytest.raises(KeyboardInterrupt):
        run(Torn(), kept)
    again, whole = Walk(), Walk()
    run(again, kept)
    run(whole)
    assert torch.equal(again.x, whole.x)


def test_a_file_of_another_search_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "walk", "one").save({"x": 1})
    with pytest.raises(ValueError, match="belongs to a search between other ends"):
        Checkpoint(tmp_path / "walk", "another").load()


def test_a_damaged_or_dangerous_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "walk"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is not a readable checkpoint of a search"):
        Checkpoint(path, "key").load()
    torch.save({"key": "key", "state": Walk}, path)
    with pytest.raises(ValueError, match="is not a readable checkpoint of a search"):
        Checkpoint(path, "key").load()
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no search"):
        Checkpoint(path, "key").load()
    assert Checkpoint(tmp_path / "none", "key").load() is None


def test_a_failed_save_keeps_the_former_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoint(tmp_path / "walk", "key")
    kept.save({"x": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*what was saved before is kept"):
        kept.save({"x": 2})
    assert kept.load() == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["walk"]


def test_fingerprints_tell_values_shapes_and_types_apart() -> None:
    one = fingerprint(a=torch.zeros(2, 3), lr=0.1)
    assert one == fingerprint(lr=0.1, a=torch.zeros(2, 3))
    others = [
        fingerprint(a=torch.zeros(3, 2), lr=0.1),
        fingerprint(a=torch.zeros(2, 3).double(), lr=0.1),
        fingerprint(a=torch.zeros(2, 3), lr=0.2),
        fingerprint(a=torch.zeros(2, 3), lr=None),
        fingerprint(b=torch.zeros(2, 3), lr=0.1),
    ]
    assert one not in others
    assert len(set(others)) == len(others)


def test_a_cost_survives_as_numbers() -> None:
    cost = Cost(1, 2, 3, 0.25)
    assert cost_from(cost_state(cost)) == cost
