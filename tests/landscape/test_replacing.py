"""A file that is replaced in one move is whole, or as it was; nothing else is left beside it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thalweg.landscape.replacing import replacing


def written(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def test_a_file_is_made_and_replaced_with_the_permissions_of_any_other(tmp_path: Path) -> None:
    target, plain = tmp_path / "kept", tmp_path / "plain"
    plain.touch()
    for content in (b"one", b"two" * 10_000):
        written(target, content)
        assert target.read_bytes() == content
    assert target.stat().st_mode == plain.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["kept", "plain"]


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    written(target, b"old")
    with replacing(target) as file:
        file.write(b"ne")
        file.flush()
        assert target.read_bytes() == b"old"
        assert len(os.listdir(tmp_path)) == 2
        file.write(b"w")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no file's fault")])
def test_what_goes_wrong_on_the_way_passes_through(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "kept"
    written(target, b"old")

    def broken() -> None:
        with replacing(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        broken()
    assert caught.value is error
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    target = tmp_path / "kept"
    written(target, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    said = r"\(No space left on device\); free some space; what was saved before is kept"
    with pytest.raises(OSError, match=said) as caught:
        written(target, b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(target))
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "kept", tmp_path / "link"
    target.touch(mode=0o600)
    link.symlink_to(target)
    written(link, b"new")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")
    assert target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(IsADirectoryError, match=r"\(it is a folder\); name a file in it"):
        written(Path(), b"")


def test_errors_of_other_files_are_left_as_they_are(tmp_path: Path) -> None:
    target = tmp_path / "kept"

    def reads() -> None:
        with replacing(target):
            (tmp_path / "weights.bin").read_bytes()

    def breaks() -> None:
        try:
            (tmp_path / "missing").read_bytes()
        except FileNotFoundError:
            with replacing(target):
                raise RuntimeError("a bug") from None

    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        reads()
    with pytest.raises(RuntimeError, match="a bug"):
        breaks()
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_or_none_at_all_is_the_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match="not written"):
        written(tmp_path / "folder", b"")
    with pytest.raises(FileNotFoundError, match="not written"):
        written(tmp_path / "none" / "kept", b"")
    with pytest.raises(NotADirectoryError, match="not written"):
        written(tmp_path / "file" / "kept", b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_disk_that_fills_while_torch_writes_is_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files, for a moment, stands in for a disk that is full.

    torch raises a RuntimeError about its position in the file, and no word of the disk.
    """
    target = tmp_path / "kept"
    written(target, b"old")

    def large() -> None:
        with replacing(target) as file:
            torch.save({"x": torch.zeros(100_000)}, file)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"not written \(File too large\)") as caught:
            large()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    written(target, b"old")
    code = f"""
import os, pathlib
from thalweg.landscape.replacing import replacing
with replacing(pathlib.Path({str(target)!r})) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert done.returncode == -9
    assert target.read_bytes() == b"old"
