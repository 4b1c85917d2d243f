"""One file on its way to the disk: written in pieces, hashed on the way, and durable when it is finished.

The kernel is told to write each span out as soon as it is complete, and the writer waits for the span before. So no more than
two spans lie dirty in memory whatever the file's size, and the disk works while the writer copies and hashes. Spans on the disk
leave the page cache: the rest of the machine has better use for it, and pages used again cost less than fresh ones.
Knows nothing of what is in the file, and does not read it back (`reading.py`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Self

import xxhash

from memsup.checkpoint.manifest import File

SPAN_BYTES = 16 << 20
PIECE_BYTES = 4 << 20
"""Most bytes of one system call; a source need not hand out larger pieces."""


class DurableFile:
    """Use: `with DurableFile(…) as file: file.write(…); entry = file.finish()`. Everything in it raises OSError."""

    def __init__(self, folder_fd: int, name: str, *, exists: bool = False) -> None:
        """Creates `name` in the folder, or opens what a library wrote there (`exists`). Links are not followed."""
        self.name = name
        how = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if exists else os.O_CREAT | os.O_EXCL)
        self._fd = os.open(name, how, 0o600, dir_fd=folder_fd)
        self._hash = xxhash.xxh3_128()
        self._bytes = 0
        self._begun_bytes = 0  # up to here the kernel was told to write
        self._done_bytes = 0  # up to here it has

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def write(self, content: memoryview) -> None:
        """`content` must be contiguous; it is only read before this returns."""
        for piece in _pieces(content):
            left = piece
            while left:
                left = left[os.write(self._fd, left) :]
            self._advance(piece)

    def take_content(self) -> None:
        """Hashes what is in a file that existed, instead of writing it."""
        while piece := os.pread(self._fd, PIECE_BYTES, self._bytes):
            self._advance(memoryview(piece))

    def finish(self) -> File:
        """Flushes all of it to the disk and returns its entry in the manifest."""
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return File(name=self.name, bytes=self._bytes, xxh3_128=self._hash.hexdigest())

    def _advance(self, piece: memoryview) -> None:
        self._hash.update(piece)
        self._bytes += len(piece)
        if self._bytes - self._begun_bytes >= SPAN_BYTES:
            _write_out(self._fd, self._begun_bytes, self._bytes, _BEGIN)
            if self._done_bytes < self._begun_bytes:
                _write_out(self._fd, self._done_bytes, self._begun_bytes, _BEGIN_AND_WAIT)
                os.posix_fadvise(self._fd, self._done_bytes, self._begun_bytes - self._done_bytes, os.POSIX_FADV_DONTNEED)
            self._done_bytes, self._begun_bytes = self._begun_bytes, self._bytes


def _pieces(content: memoryview) -> Iterator[memoryview]:
    flat = content.cast("B")
    for start in range(0, len(flat), PIECE_BYTES):
        yield flat[start : start + PIECE_BYTES]


_libc = ctypes.CDLL(None, use_errno=True)
_BEGIN = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)
_BEGIN_AND_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER


def _write_out(fd: int, start: int, end: int, how: int) -> None:
    """Has the kernel write a range. Makes nothing durable (no metadata, no flush of the disk's own cache): `fsync` does."""
    if _libc.sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(end - start), ctypes.c_uint(how)) != 0:
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):  # a file system without it waits for the fsync
            raise OSError(number, os.strerror(number))
