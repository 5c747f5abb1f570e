"""Checkpoints from disk: safetensors, or torch files read without running any code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["read_checkpoint"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file, never unpickling an object.

    Args:
        path: A ``.safetensors`` file, or a file written by ``torch.save``.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds pickled objects, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        with warnings.catch_warnings():  # about the pickle's age, which is no concern here
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is not a plain state dict of tensors (it holds pickled Python "
            "objects, which could run any code, or is damaged). Save model.state_dict() with "
            "safetensors.torch.save_file or torch.save, and pass that"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a readable torch checkpoint: {reason}") from error
    return _state_dict(loaded, path)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        for key in _WRAPPERS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return dict(loaded)
    raise ValueError(
        f"{path} holds no state dict: expected a mapping of names to tensors (or one under "
        f"{', '.join(map(repr, _WRAPPERS))}), found {type(loaded).__name__}"
    )


def strip_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefix that DataParallel or ``torch.compile`` put before every name."""
    result = dict(state)
    for prefix in _PREFIXES:
        while result and all(name.startswith(prefix) for name in result):
            result = {name.removeprefix(prefix): value for name, value in result.items()}
    return result
