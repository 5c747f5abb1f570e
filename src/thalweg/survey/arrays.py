"""Arrays on disk: safetensors files that are either whole or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from thalweg.landscape.replacing import replacing
from thalweg.survey.errors import SurveyError

__all__ = ["checksum_of", "read_arrays", "write_arrays"]

_LOST = (
    "restore that file from a copy of the folder, or survey again into a new folder "
    "(the same seeds give the same survey)"
)


def write_arrays(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors to `path` so that a crash leaves the old file, the new one or none.

    Args:
        path: Where to; its folder is created.
        tensors: Name to tensor.

    Returns:
        The checksum of the file's bytes, to be kept beside its name.

    Raises:
        OSError: If it cannot be written; what was there before still is.
    """
    content = _content(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)
    return _checksum(content)


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the checksum that `write_arrays` would return, without writing."""
    return _checksum(_content(tensors))


def read_arrays(path: Path, checksum: str) -> dict[str, Tensor]:
    """Read the tensors of `path`, after checking that its bytes are those written.

    Raises:
        SurveyError: If the file is missing, or its bytes are not the ones that were written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SurveyError(f"the array file {path} is missing", _LOST) from None
    if _checksum(content) != checksum:
        raise SurveyError(
            f"the array file {path} is corrupt: its checksum is {_checksum(content)}, "
            f"the survey recorded {checksum}",
            _LOST,
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise SurveyError(f"the array file {path} is not readable: {error}", _LOST) from error


def _content(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
