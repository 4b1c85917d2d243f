"""A file of lines that another process appends to, read on from where it was read to before, across its rotation."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from memsup.shared.files import open_regular

_PIECE_BYTES = 256 << 10


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a line ends: in which file, whatever it is called by now, and after how many bytes."""

    inode: int
    offset: int


class Tail:
    """Not more than `most_line_bytes` of a line are held: what is longer is passed over."""

    def __init__(self, file: Path, *, most_line_bytes: int, after: Place | None = None) -> None:
        """Begins `after` this place, or where that is in another file than `file` is now, at its beginning."""
        self._file = file
        self._most_line_bytes = most_line_bytes
        self._after = after
        self._fd: int | None = None
        self._inode = self._offset = 0
        """What has been read of which file; `_rest` is the end of it."""
        self._rest = b""
        self._skips = False
        """Whether it is in the middle of a line that is too long."""

    def lines(self) -> Iterator[tuple[bytes, Place]]:
        """The whole lines that have come since, each without its line feed and with the place at which it ends. A file that
        cannot be read has none.
        """
        while self._fd is not None or self._open():
            assert self._fd is not None
            piece = os.read(self._fd, _PIECE_BYTES)
            if not piece:
                if not self._is_replaced():
                    return
                self.close()
                continue
            yield from self._cut(piece)

    def let_go(self) -> None:
        """Keeps no file open until it is read on, which it is from where it was, if it is the same file by then."""
        if self._fd is not None and not self._skips:
            self._after = Place(self._inode, self._offset - len(self._rest))
            self.close()

    def close(self) -> None:
        if self._fd is not None:
            self._closes()
        self._fd, self._rest, self._skips = None, b"", False

    def _open(self) -> bool:
        try:
            self._fd, size_bytes = open_regular(self._file, follow_links=False)
        except OSError:
            return False
        self._closes = weakref.finalize(self, os.close, self._fd)
        self._inode, self._offset = os.fstat(self._fd).st_ino, 0
        after, self._after = self._after, None
        if after is not None and after.inode == self._inode and after.offset <= size_bytes:
            self._offset = os.lseek(self._fd, after.offset, os.SEEK_SET)
        return True

    def _is_replaced(self) -> bool:
        """Whether there is another file now, or a shorter one, all that was in this one being read."""
        assert self._fd is not None
        with suppress(OSError):
            found = os.stat(self._file, follow_symlinks=False)
            return found.st_ino != self._inode or found.st_size < self._offset
        return False

    def _cut(self, piece: bytes) -> Iterator[tuple[bytes, Place]]:
        end = self._offset - len(self._rest)
        self._offset += len(piece)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            end += len(line) + 1
            if not self._skips and len(line) <= self._most_line_bytes:
                yield line, Place(self._inode, end)
            self._skips = False
        if len(self._rest) > self._most_line_bytes:
            self._rest, self._skips = b"", True
