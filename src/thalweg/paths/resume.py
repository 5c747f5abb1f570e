"""Searches that can be interrupted: a state on disk, and the loop that keeps it."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from thalweg.estimate import Bound, Cost, Estimate, Verdict, from_json
from thalweg.landscape.replacing import replacing

__all__ = [
    "Checkpoint",
    "Progress",
    "Search",
    "cost_from",
    "cost_state",
    "fingerprint",
    "plain",
    "rebuilt",
    "run",
]

Kind = TypeVar("Kind")
Progress = Callable[[float, str], None]
"""Called with a fraction in [0, 1] and a message."""


@runtime_checkable
class Search(Protocol):
    """A search that goes step by step, and whose state can be put away.

    A state is a dictionary of tensors, numbers, strings, None and lists or dictionaries of
    these. Its tensors are never changed in place afterwards, so that a state stays what it
    was when it was taken.
    """

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        ...

    def step(self) -> None:
        """Do one step, which an interrupt may lose."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from here, bit for bit."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...

    def describe(self) -> tuple[float, str]:
        """Say how far it is, as a fraction of its budget, and what it is doing."""
        ...


def fingerprint(**what: Tensor | str | float | bool | list[Any] | None) -> str:
    """Return a digest of what a search depends on: its ends, its options, its seed.

    Example:
        >>> fingerprint(a=torch.zeros(2), lr=0.1) == fingerprint(a=torch.zeros(2), lr=0.1)
        True
        >>> fingerprint(a=torch.zeros(2), lr=0.1) == fingerprint(a=torch.ones(2), lr=0.1)
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(what.items()):
        digest.update(name.encode() + b"\0")
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous()
            digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
            digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(json.dumps(value).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class Checkpoint:
    """The file in which a search keeps its state.

    A new state replaces the old one in one move: a run that is killed while it writes, or a
    full disk, leaves the old state as it was.

    Args:
        path: The file; made when the first state is saved.
        key: What the search depends on (`fingerprint`); a file of another search is refused.
        every: Least seconds between two saves; what is computed does not depend on it.
    """

    def __init__(self, path: str | Path, key: str, *, every: float = 30.0) -> None:
        self.path, self.key, self.every = Path(path), key, every
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the state on disk, or None if there is no file yet.

        Raises:
            ValueError: If the file is damaged, holds anything but plain data, or belongs to
                another search.
        """
        if not self.path.exists():
            return None
        try:
            stored = torch.load(self.path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{self.path} is not a readable checkpoint of a search ({reason}); move it away "
                "to start anew"
            ) from error
        if not (isinstance(stored, dict) and {"key", "state"} <= set(stored)):
            raise ValueError(f"{self.path} holds no search; name another file")
        if stored["key"] != self.key:
            raise ValueError(
                f"{self.path} belongs to a search between other ends, or with other options; "
                "name another file, or move it away to start anew"
            )
        state: dict[str, Any] = stored["state"]
        return state

    def due(self) -> bool:
        """Say whether the last save is long enough ago."""
        return time.monotonic() - self._saved >= self.every

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state.

        Raises:
            OSError: If it cannot be written; the former file is as it was.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            torch.save({"key": self.key, "state": dict(state)}, file)
        self._saved = time.monotonic()


def run(
    search: Search, checkpoint: Checkpoint | None = None, progress: Progress | None = None
) -> None:
    """Take a search's steps to the end, from where its checkpoint stands.

    Ctrl-C saves the state after the last whole step and is passed on; the same call with the
    same file goes on from there, and ends at the same result bit for bit.
    """
    if checkpoint is not None and (kept := checkpoint.load()) is not None:
        search.load(kept)
    state = search.state() if checkpoint is not None else {}
    try:
        while not search.finished:
            search.step()
            if checkpoint is not None:
                state = search.state()
                if checkpoint.due():
                    checkpoint.save(state)
            if progress is not None:
                progress(*search.describe())
    except KeyboardInterrupt:
        if checkpoint is not None:
            checkpoint.save(state)
        raise
    if checkpoint is not None:
        checkpoint.save(state)


def cost_state(cost: Cost) -> list[float]:
    """Return a cost as numbers that a state can hold; `cost_from` reads them."""
    return [cost.losses, cost.gradients, cost.hvps, cost.passes]


def cost_from(numbers: list[float]) -> Cost:
    """Return the cost that `cost_state` wrote down."""
    losses, gradients, hvps, passes = numbers
    return Cost(int(losses), int(gradients), int(hvps), passes)


def plain(result: Any) -> dict[str, Any]:
    """Return a frozen result as a state can hold it; `rebuilt` reads it.

    Its fields are tensors, numbers, strings, None, or values of `thalweg.estimate`. The
    evidence of a verdict stays behind.

    Example:
        >>> plain(Cost(gradients=2))["gradients"]
        2
    """
    values = {f.name: getattr(result, f.name) for f in fields(result)}
    return {
        name: value.to_json() if isinstance(value, Cost | Bound | Estimate | Verdict) else value
        for name, value in values.items()
    }


def rebuilt(kind: type[Kind], state: Mapping[str, Any], device: torch.device) -> Kind:
    """Return the result that `plain` wrote down, its tensors on a device.

    Example:
        >>> rebuilt(Cost, plain(Cost(gradients=2)), torch.device("cpu"))
        Cost(losses=0, gradients=2, hvps=0, passes=0.0)
    """

    def value(kept: Any) -> Any:
        if isinstance(kept, Tensor):
            return kept.to(device)
        return from_json(kept) if isinstance(kept, dict) else kept

    return kind(**{name: value(kept) for name, kept in state.items()})
