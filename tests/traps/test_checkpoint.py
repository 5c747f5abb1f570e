"""Traps in checkpoints: pickles that run code, damaged files, other networks."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from truth import photograph, same

from thalweg.landscape import ModelLandscape
from thalweg.landscape.checkpoint import read_checkpoint

Data = tuple[Tensor, Tensor]


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_malicious_pickle_does_not_run(model: nn.Module, data: Data, tmp_path: Path) -> None:
    """torch.load(weights_only=False), which most research code calls, runs what it reads."""
    mark, path = tmp_path / "ran", tmp_path / "evil.pt"
    land = ModelLandscape(model, F.cross_entropy, data)
    torch.save({"state_dict": model.state_dict(), "note": Payload(mark)}, path)
    with pytest.raises(ValueError, match=r"evil.pt is refused: .*pickled Python objects"):
        land.vector(path)
    assert not mark.exists()
    raw = tmp_path / "raw.pt"
    raw.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ValueError, match=r"refused|not a readable"):
        land.vector(raw)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the trap is not set"
    whole = tmp_path / "model.pt"
    torch.save(model, whole)
    with pytest.raises(ValueError, match=r"refused.*model.state_dict\(\)"):
        land.vector(whole)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "model", "prefix"])
def test_round_trip(model: nn.Module, data: Data, tmp_path: Path, kind: str) -> None:
    """A checkpoint comes back bit for bit, by string or by path."""
    land = ModelLandscape(model, F.cross_entropy, data)
    state = model.state_dict()
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "prefix":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        key = {"wrapped": "state_dict", "model": "model_state_dict"}.get(kind)
        torch.save({key: state, "epoch": 3} if key else state, path)
    for given_path in (path, str(path)):
        assert torch.equal(land.vector(given_path), land.vector(model))


@pytest.mark.usefixtures("unchecked")
def test_files_that_are_no_checkpoints(model: nn.Module, data: Data, tmp_path: Path) -> None:
    """One clear sentence each, whatever the reader below raises."""
    land = ModelLandscape(model, F.cross_entropy, data)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        land.vector(tmp_path / "missing.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        land.vector(tmp_path)
    for name in ("empty.pt", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=name):
            land.vector(tmp_path / name)
    for content in ([1, 2], {"lr": 0.1}, {}, torch.zeros(3), {"state_dict": {"a": 1}}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other.pt holds no state dict: expected a mapping"):
            land.vector(tmp_path / "other.pt")
    with pytest.raises(TypeError, match="expected a module, a state dict or a path"):
        land.vector(3)  # type: ignore[arg-type]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    junk=st.binary(max_size=64),
    cut=st.integers(0, 2000),
    where=st.integers(0, 2000),
    suffix=st.sampled_from([".pt", ".safetensors"]),
)
def test_damaged_files(tmp_path: Path, junk: bytes, cut: int, where: int, suffix: str) -> None:
    """Whatever happened to the file, the answer is a ValueError or the tensors."""
    path = tmp_path / f"damaged{suffix}"
    state = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:where] + junk + whole[where : len(whole) - cut])
    found: dict[str, Tensor] = {}
    with contextlib.suppress(ValueError):
        found = read_checkpoint(path)
    assert all(isinstance(value, Tensor) for value in found.values())


def test_another_network(model: nn.Module, data: Data) -> None:
    """Extra, missing and misshapen tensors are named."""
    land = ModelLandscape(model, F.cross_entropy, data)
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"missing: 2.bias; unknown: fc.bias\); it has 0.weight"):
        land.vector({("fc.bias" if n == "2.bias" else n): v for n, v in state.items()})
    with pytest.raises(ValueError, match=r"0.weight has shape \(4, 5\), expected \(5, 4\)"):
        land.vector({**state, "0.weight": state["0.weight"].T})
    with pytest.raises(ValueError, match=r"0\.bias holds 5 NaN or infinite values of 5"):
        land.vector({**state, "0.bias": state["0.bias"] * float("nan")})
    with pytest.raises(ValueError, match=r"missing: 0\.weight"):
        land.vector({})


def test_load_into_writes_all_or_nothing(bn_model: nn.Module, data: Data) -> None:
    """A half-written network is worse than an error."""
    land = ModelLandscape(bn_model, F.cross_entropy, data)
    theta = land.vector(bn_model) + 0.5
    for wrong in (
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).double(),
        nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.Tanh(), nn.Linear(5, 3)).double(),
        nn.Sequential(
            nn.Linear(4, 5),
            nn.BatchNorm1d(5, track_running_stats=False),
            nn.Tanh(),
            nn.Linear(5, 3),
        ).double(),
    ):
        before = photograph(wrong)
        with pytest.raises(ValueError, match=r"does not match.*nothing was written"):
            land.load_into(wrong, theta)
        assert same(photograph(wrong), before)
    right = copy.deepcopy(bn_model)
    right[1].running_mean.zero_()
    land.load_into(right, theta)
    assert torch.equal(land.vector(right), theta)
    assert right.training == bn_model.training
