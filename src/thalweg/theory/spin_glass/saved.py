"""Results of independent parts of a long run, kept in a file as they come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thalweg.landscape.replacing import replacing
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["SavedParts"]


class SavedParts:
    """The finished parts of a run, in a JSON file that is replaced in one move.

    A run that is killed, even while it writes, finds all parts again that were finished. Their
    numbers are written in full, so that the rest goes on as if nothing had happened.

    Args:
        path: The file, made with the first part; None keeps nothing.
        call: What the results depend on, all but the seed.
        seed: The seed; None goes on with that of the file, if there is one.

    Attributes:
        seed: The integer that reproduces the run.
        parts: What was added so far.

    Raises:
        ValueError: If the file is damaged, or of another call.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = SavedParts(Path(folder, "run.json"), {"n": 10}, 7)
        ...     first.add({"energy": -1.5})
        ...     SavedParts(Path(folder, "run.json"), {"n": 10}, None).parts
        [{'energy': -1.5}]
    """

    def __init__(self, path: str | Path | None, call: Mapping[str, Any], seed: Seed) -> None:
        """Read what there is."""
        self.path = None if path is None else Path(path)
        self.parts: list[dict[str, Any]] = []
        self._call: dict[str, Any] = json.loads(json.dumps(dict(call)))
        stored = None if self.path is None or not self.path.exists() else self._read(self.path)
        if stored is not None and seed is None:
            seed = int(stored["seed"])
        _, self.seed = make_generator(seed)
        if stored is not None:
            self._check(stored)
            self.parts = stored["parts"]

    def add(self, part: Mapping[str, Any]) -> None:
        """Keep one more part, of numbers, words and lists and dictionaries of these.

        Raises:
            OSError: If it cannot be written; the former file is as it was.
        """
        self.parts.append(dict(part))
        if self.path is None:
            return
        text = json.dumps({"call": self._call, "seed": self.seed, "parts": self.parts})
        with replacing(self.path) as file:
            file.write(text.encode())

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            ours = set(stored) == {"call", "seed", "parts"}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to begin anew") from error
        if not ours:
            raise ValueError(f"{path} is no file of saved parts: name another checkpoint")
        return dict(stored)

    def _check(self, stored: Mapping[str, Any]) -> None:
        """Refuse the parts of another call."""
        theirs = {**stored["call"], "seed": stored["seed"]}
        ours = {**self._call, "seed": self.seed}
        differ = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if differ:
            said = ", ".join(f"{k} = {theirs.get(k)}, not {ours.get(k)}" for k in differ)
            raise ValueError(
                f"{self.path} belongs to another call ({said}): name another checkpoint, or "
                "delete it"
            )
