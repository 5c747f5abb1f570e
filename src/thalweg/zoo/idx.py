"""The IDX files of MNIST and its relatives, read with every length checked."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["read_idx", "write_idx"]

_UNSIGNED_BYTE = 0x08
_TYPES = {0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_ROLES = {1: "labels", 3: "images"}
_CHUNK = 1 << 20


@runtime_checkable
class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_idx(path: str | Path, *, ndim: int | None = None) -> UInt8[Tensor, " ..."]:
    """Read one IDX file of unsigned bytes, plain or gzipped.

    The layout: two zero bytes, a byte for the type, a byte for the number of axes, one
    big-endian 32-bit length per axis, then the data.

    Args:
        path: The file; gzip is recognised by its content, not by its name.
        ndim: How many axes it must have: 3 for images, 1 for labels.

    Returns:
        The array, as a tensor of uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not IDX, holds another type, is truncated, corrupt or too
            long, or has another number of axes; the message names the file.

    References:
        Y. LeCun, C. Cortes and C. Burges, "The MNIST database", section "File formats".
    """
    path = Path(path)
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            if not zipped:
                return _parse(raw, path, ndim)
            with gzip.open(raw, "rb") as unzipped:
                return _parse(unzipped, path, ndim)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is a truncated or corrupt gzip file ({error}); fetch it again"
            ) from error


def _parse(stream: _Stream, path: Path, ndim: int | None) -> Tensor:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in {_UNSIGNED_BYTE, *_TYPES}:
        raise ValueError(
            f"{path} is not an IDX file: it starts with {head.hex(' ') or 'nothing'}, "
            "not with 00 00, a type and a number of axes"
        )
    if head[2] != _UNSIGNED_BYTE:
        raise ValueError(f"{path} holds {_TYPES[head[2]]}; only unsigned bytes are read")
    if head[3] == 0 or (ndim is not None and head[3] != ndim):
        wanted = "at least 1" if ndim is None else f"{ndim} ({_ROLES.get(ndim, 'data')})"
        raise ValueError(f"{path} has {head[3]} axes, expected {wanted}")
    lengths = stream.read(4 * head[3])
    if len(lengths) < 4 * head[3]:
        raise ValueError(f"{path} is truncated: it ends within its header")
    shape = [int.from_bytes(lengths[i : i + 4], "big") for i in range(0, len(lengths), 4)]
    size = math.prod(shape)
    data = _read_at_most(stream, size + 1)
    if len(data) != size:
        found = f"more than {size}" if len(data) > size else f"only {len(data)}"
        fault = "too long" if len(data) > size else "truncated"
        raise ValueError(
            f"{path} is {fault}: its header says {' x '.join(map(str, shape))} = {size} bytes, "
            f"but {found} follow"
        )
    flat = torch.frombuffer(data, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
    return flat.reshape(shape)


def _read_at_most(stream: _Stream, limit: int) -> bytearray:
    """Read up to `limit` bytes, never asking for more memory than there is data."""
    data = bytearray()
    while len(data) < limit:
        chunk = stream.read(min(_CHUNK, limit - len(data)))
        if not chunk:
            break
        data += chunk
    return data


def write_idx(path: str | Path, array: UInt8[Tensor, " ..."]) -> None:
    """Write a tensor of unsigned bytes as an IDX file, gzipped if the name ends in .gz.

    Args:
        path: The file to write.
        array: A tensor of uint8 with 1 to 255 axes.

    Raises:
        ValueError: If the tensor is not of uint8 or has no axes.

    Example:
        >>> import tempfile
        >>> images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_idx(f"{folder}/train-images-idx3-ubyte.gz", images)
        ...     back = read_idx(f"{folder}/train-images-idx3-ubyte.gz", ndim=3)
        >>> torch.equal(images, back)
        True
    """
    if array.dtype != torch.uint8 or not array.ndim:
        raise ValueError(
            f"an IDX file takes uint8 with at least 1 axis, not {array.dtype} of shape "
            f"{tuple(array.shape)}"
        )
    head = bytes([0, 0, _UNSIGNED_BYTE, array.ndim])
    head += b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = head + array.cpu().contiguous().numpy().tobytes()
    path = Path(path)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
