"""Files that are replaced in one move: the old one whole, or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when all of it is on the disk.

    The bytes go to a file beside it, named ``{name}.{random}.part``, which is flushed to the
    disk, given the permissions of the old one, and renamed; what a link points to is replaced.
    Whatever goes wrong before that, that file is removed and `path` is as it
    was; only a process that is killed leaves it lying there.

    Args:
        path: The file, whose folder must exist.

    Yields:
        The file to write to.

    Raises:
        OSError: If it cannot be written, of the kind and number that the system gave.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "notes.txt")) as file:
        ...         _ = file.write(b"whole")
        ...     [(found.name, found.read_bytes()) for found in Path(folder).iterdir()]
        [('notes.txt', b'whole')]
    """
    if not path.name:
        why = "not written (it is a folder); name a file in it"
        raise IsADirectoryError(errno.EISDIR, why, str(path))
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    before = sys.exc_info()[1]
    try:
        with temporary.open("xb") as file:
            with contextlib.suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save's
        ours = (None, str(temporary), str(path))
        if not isinstance(cause, OSError) or cause is before or cause.filename not in ours:
            raise
        hint = "free some space; " if cause.errno in _FULL else ""
        why = f"not written ({cause.strerror or cause}); {hint}what was saved before is kept"
        raise OSError(cause.errno, why, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
