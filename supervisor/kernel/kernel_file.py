"""A small file of the kernel's, kept open and read again and again into the same buffer, and the numbers in it.

Covers absence: a file that is missing, vanishes or turns to garbage reads as None, never as an exception, and is looked for
again a little later. What the numbers mean is the business of `cgroups.py`, `sense/` and `fence/`.
"""

from __future__ import annotations

import os
from pathlib import Path

from memsup.shared.clock import monotonic_s

_LOOK_AGAIN_S = 0.25
_ABSURD = 1 << 62
"""No honest counter of bytes, microseconds or events comes near; cgroup v1 writes "no limit" as almost 2^63."""


def text_of(file: Path) -> str | None:
    """What a small file holds, without blanks around it, for what is read once. Returns None where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number_of(file: Path) -> int | None:
    """The whole number that is all that a file holds. Returns None where it holds anything else, or cannot be read."""
    text = text_of(file) or ""
    return int(text) if text.removeprefix("-").isdecimal() else None


class KernelFile:
    """One descriptor and one buffer: `read` fills the buffer, the other methods look into it."""

    __slots__ = ("_buffer", "_buffers", "_fd", "_length", "_look_at_s", "path")

    def __init__(self, path: Path, size_bytes: int = 8192) -> None:
        self.path = path
        self._fd = -1
        self._length = 0
        self._look_at_s = 0.0
        self._buffer = bytearray(size_bytes)
        self._buffers = [self._buffer]

    def read(self) -> bool:
        """Reads the file anew from its beginning. False when it is not there; then every number is None."""
        self._length = 0
        if self._fd < 0 and not self._open():
            return False
        try:
            self._length = os.preadv(self._fd, self._buffers, 0)
        except OSError:  # ENODEV: its cgroup was removed; another of the same name may come
            self.close()
            # A cgroup made anew under the same name is found at once, not a quarter of a second later.
            if not self._open():
                return False
            try:
                self._length = os.preadv(self._fd, self._buffers, 0)
            except OSError:
                self.close()
                return False
        return self._length > 0

    def number(self) -> int | None:
        """The number that the whole file is. Returns None where it is something else."""
        return _natural(self._buffer[: self._length])

    def number_after(self, key: bytes, end: bytes = b"\n") -> int | None:
        """The number between the first `key` and the next `end`, or the end of the file. Returns None where there is none."""
        start = self._buffer.find(key, 0, self._length)
        if start < 0:
            return None
        start += len(key)
        stop = self._buffer.find(end, start, self._length)
        return _natural(self._buffer[start : stop if stop >= 0 else self._length])

    def text(self) -> str:
        return self._buffer[: self._length].decode(errors="replace")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        """Closes the file: a cgroup that was removed lives on in the kernel while somebody has a file of it open."""
        self.close()

    def _open(self) -> bool:
        now_s = monotonic_s()
        if now_s < self._look_at_s:
            return False
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._look_at_s = now_s + _LOOK_AGAIN_S
            return False
        return True


def _natural(text: bytearray) -> int | None:
    text = text.strip()
    if not text.isdigit() or len(text) > 20:
        return None
    number = int(text)
    return number if number < _ABSURD else None
