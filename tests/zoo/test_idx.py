"""The IDX reader: round trips, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.zoo import read_idx, write_idx

IMAGES = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["plain", "packed.gz"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 3, 4), (1, 1, 1)])
def test_round_trip(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    array = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()
    write_idx(tmp_path / name, array)
    back = read_idx(tmp_path / name, ndim=len(shape))
    assert back.dtype == torch.uint8
    assert torch.equal(back, array)


def test_layout_is_the_published_one(tmp_path: Path) -> None:
    """The header of MNIST's own images: 0x00000803, 60000, 28, 28, big-endian."""
    write_idx(tmp_path / "a", IMAGES)
    raw = (tmp_path / "a").read_bytes()
    assert raw[:16].hex() == "00000803000000020000000300000004"
    assert raw[16:] == bytes(range(24))


def test_gzip_is_known_by_content(tmp_path: Path) -> None:
    write_idx(tmp_path / "a.gz", IMAGES)
    (tmp_path / "a.gz").rename(tmp_path / "a")
    assert torch.equal(read_idx(tmp_path / "a"), IMAGES)


def _file(images: torch.Tensor = IMAGES, head: bytes | None = None) -> bytes:
    start = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    return (start if head is None else head) + images.numpy().tobytes()


def _gz_flipped() -> bytes:
    packed = bytearray(gzip.compress(_file(), mtime=0))
    packed[-6] ^= 0xFF  # in the checksum
    return bytes(packed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is not an IDX file: it starts with nothing"),
        (lambda: b"\0\0\x08", "is not an IDX file: it starts with 00 00 08"),
        (lambda: b"<!DOCTYPE html>", "is not an IDX file: it starts with 3c 21 44 4f"),
        (lambda: _file(head=bytes([0, 0, 0x07, 3])), "is not an IDX file"),
        (lambda: _file(head=bytes([0, 0, 0x0D, 3])), "holds float32; only unsigned bytes"),
        (lambda: bytes([0, 0, 8, 0]), r"has 0 axes, expected 3 \(images\)"),
        (lambda: bytes([0, 0, 8, 1]) + _file()[4:], r"has 1 axes, expected 3 \(images\)"),
        (lambda: _file()[:10], "is truncated: it ends within its header"),
        (lambda: _file()[:-1], r"is truncated: its header says 2 x 3 x 4 = 24 bytes, but only 23"),
        (lambda: _file() + b"x", r"is too long: .* but more than 24 follow"),
        (lambda: bytes([0, 0, 8, 3]) + b"\x7f\xff\xff\xff" * 3, r"is truncated: .* but only 0"),
        (lambda: gzip.compress(_file())[:-12], "truncated or corrupt gzip file"),
        (lambda: gzip.compress(_file())[:20], "truncated or corrupt gzip file"),
        (lambda: b"\x1f\x8bnonsense", "truncated or corrupt gzip file"),
        (_gz_flipped, r"truncated or corrupt gzip file \(CRC check failed"),
        (lambda: gzip.compress(_file()[:-1]), r"is truncated: .* but only 23"),
    ],
)
def test_bad_files(tmp_path: Path, content: Callable[[], bytes], message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, ndim=3)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")


@pytest.mark.usefixtures("unchecked")
def test_only_bytes_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 .* not torch.float32 of shape \(2,\)"):
        write_idx(tmp_path / "a", torch.zeros(2))
    with pytest.raises(ValueError, match="at least 1 axis"):
        write_idx(tmp_path / "a", torch.zeros((), dtype=torch.uint8))


HEADS = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(
    lambda shape: bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
)


@given(st.builds(bytes.__add__, HEADS | st.just(b""), st.binary(max_size=30)), st.booleans())
def test_no_content_reads_as_something_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, packed: bool
) -> None:
    """Whatever the bytes, the file is read as they say or refused by name."""
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(content) if packed else content)
    axes = content[3] if len(content) > 3 else 0
    lengths = content[4 : 4 + 4 * axes]
    shape = [int.from_bytes(lengths[i : i + 4], "big") for i in range(0, len(lengths), 4)]
    data = content[4 + 4 * axes :]
    if (
        content[:3] == b"\0\0\x08"
        and axes
        and len(lengths) == 4 * axes
        and math.prod(shape) == len(data)
    ):
        array = read_idx(path)
        assert list(array.shape) == shape
        assert array.numpy().tobytes() == data
    else:
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_idx(path)
