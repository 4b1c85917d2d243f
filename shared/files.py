"""Small files that are always whole: written beside their place, flushed, renamed into it; and files of lines, whole as well.

For checkpoints, which are large and verified, see `checkpoint/store.py`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Makes `path` hold `content`; whoever reads it, at any moment, sees the old or the new, never a part. Raises OSError.

    Without `durable` nothing is flushed, so a power cut may leave an older content, or none: for what is written again soon.
    """
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(fd, left) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        flush_folder(path.parent)


def append_whole(path: Path, lines: bytes, *, durable: bool = False) -> None:
    """Adds all of `lines` or, as on a disk that is nearly full, nothing. `durable`: they are on the disk when this returns.
    Raises OSError.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size_bytes = os.fstat(fd).st_size
        try:
            if os.write(fd, lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if durable:
                os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size_bytes)
            raise
    finally:
        os.close(fd)


def flush_folder(folder: Path) -> None:
    """Makes the names in `folder` durable: a rename is only safe once its folder is on disk (fsync(2))."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
