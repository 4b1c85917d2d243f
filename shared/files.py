"""Files that others may have made, opened without trusting them, and small files that are always whole when they are written.

Reading: only a regular file is opened, nothing waits for a writer, and no more is read than a real file of its kind has.
Writing: beside the file's place, flushed, renamed into it; and lines, of which all are added or none. For checkpoints, which
are large and verified, see `checkpoint/reading.py` and `checkpoint/store.py`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")

MOST_DOCUMENT_BYTES = 16 << 20
"""No document that is decoded as a whole (`run.json`, `status.json`, a model's `config.json`) has more."""
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class UnreadableError(Exception):
    """A file is there and cannot be used; the text is the reason as half a sentence, such as `it is a pipe and not a file`."""


class NotAFileError(OSError):
    """What lies there is a pipe, a socket, a device or a folder, as `strerror` says for people."""


# --------------------------------------------------------------------------------------------------------------------
# Reading


def open_regular(path: Path | str, *, follow_links: bool = True, folder_fd: int | None = None) -> tuple[int, int]:
    """A descriptor of the regular file `path`, for reading, and its size in bytes. Raises OSError, and
    `NotAFileError` for what is none: reading a pipe or a device might wait for ever, or never end.
    """
    _refuse_others(os.stat(path, dir_fd=folder_fd, follow_symlinks=follow_links), path)  # opening a device may do something
    # What was put there since is met here: O_NONBLOCK does not wait for a pipe's writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    fd = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW, dir_fd=folder_fd)
    found = os.fstat(fd)
    try:
        _refuse_others(found, path)
    except NotAFileError:
        os.close(fd)
        raise
    return fd, found.st_size


def _refuse_others(found: os.stat_result, path: Path | str) -> None:
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise NotAFileError(errno.EINVAL, f"it is {kind} and not a file", str(path))


def read_small(path: Path | str, most_bytes: int, *, follow_links: bool = True) -> bytes:
    """All of a regular file. Raises OSError as `open_regular` does, and where the file has more than `most_bytes`."""
    fd, size_bytes = open_regular(path, follow_links=follow_links)
    with os.fdopen(fd, "rb") as file:
        content = b"" if size_bytes > most_bytes else file.read(most_bytes + 1)
    if size_bytes > most_bytes or len(content) > most_bytes:
        has = max(size_bytes, len(content))
        raise OSError(errno.EFBIG, f"it has {has:,} bytes, and no real one has more than {most_bytes:,}", str(path))
    return content


def read_document(path: Path, decode: Callable[[bytes], T], *, most_bytes: int = MOST_DOCUMENT_BYTES) -> T:
    """What `decode` makes of the file, whoever wrote it. Raises `UnreadableError` for one that cannot be read or makes no
    sense, FileNotFoundError where there is none.
    """
    try:
        return decode(read_small(path, most_bytes))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None
    except RecursionError:
        raise UnreadableError("it is nested too deeply") from None
    except (msgspec.DecodeError, ValueError, OverflowError) as error:  # UnicodeDecodeError is a ValueError
        raise UnreadableError(str(error)) from None


# --------------------------------------------------------------------------------------------------------------------
# Writing

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A pipe in the file's place is refused (ENXIO), where it would make us wait for its reader."""


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Makes `path` hold `content`; whoever reads it, at any moment, sees the old or the new, never a part. Raises OSError.

    Without `durable` nothing is flushed, so a power cut may leave an older content, or none: for what is written again soon.
    """
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, _WRITE | os.O_TRUNC, 0o600)
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
    fd = os.open(path, _WRITE | os.O_APPEND, 0o600)
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
