"""Standard output and error as the command line needs them, whatever its caller has made of them.

They may be closed, full, or a pipe that nobody reads any more. What is printed there is lost then, and the command goes on: a
run that was started is started, and the exit code says so. Only a command whose output is all that it does ends where nobody
can read it (`must_be_read`).
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING, TextIO

from memsup.shared.descriptors import wait_ready
from memsup.supervisor.cli.screen import message, unguarded

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PIPE_CLOSED = 141
NOT_WRITTEN = 1


class _Stream(io.FileIO):
    """A descriptor to write to, which remembers the first error in place of raising it."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self.error: OSError | None = None
        self.is_silent = True
        """Whether nothing was written."""

    def write(self, content: ReadableBuffer, /) -> int:
        self.is_silent = False
        while self.error is None:
            try:
                written = super().write(content)
            except OSError as error:
                self.error = error
                break
            if written is not None:
                return written
            wait_ready([], None, writes=[self])  # whoever called us made the pipe non-blocking, and it is full
        return len(memoryview(content).cast("B"))


class OutputLostError(Exception):
    """Nothing gets out any more, and there is nothing else to do. `code` becomes the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def has_input() -> bool:
    """Whether somebody has put something on standard input that is not read yet: a file, or what a pipe holds at the moment."""
    import termios

    try:
        kind = os.fstat(0)
        if stat.S_ISREG(kind.st_mode):
            return os.lseek(0, 0, os.SEEK_CUR) < kind.st_size
        if stat.S_ISFIFO(kind.st_mode):
            waiting: int = struct.unpack("i", fcntl.ioctl(0, termios.FIONREAD, bytes(4)))[0]
            return waiting > 0
    except OSError:  # it is closed
        pass
    return False


def take_over() -> None:
    """Puts streams that never raise in the place of `sys.stdout` and `sys.stderr`. A closed descriptor leads to /dev/null from
    now on, so that no file that is opened later gets its number, and with it what is printed.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            os.set_inheritable(null, True)
    sys.stdout, sys.stderr = _text(1, sys.stdout), _text(2, sys.stderr)


def _text(fd: int, before: TextIO | None) -> TextIO:
    # A terminal that knows no "°" or "→" shows "?" and no traceback.
    encoding = before.encoding if before is not None else None
    return io.TextIOWrapper(io.BufferedWriter(_Stream(fd)), encoding=encoding, errors="replace", line_buffering=True)


def must_be_read() -> None:
    """For a command whose output is all that it does: raises `OutputLostError` where it does not get out any more."""
    if (error := _lost()) is not None:
        raise OutputLostError(PIPE_CLOSED if error.errno == errno.EPIPE else NOT_WRITTEN)


def say_what_is_lost() -> None:
    """Says on stderr that the output did not get out, unless its reader has just gone, as `head` does."""
    error = _lost()
    if error is not None and error.errno != errno.EPIPE:
        message(f"memsup: the output could not be written: {error.strerror}.")


def is_silent() -> bool:
    """Whether nothing was printed on stdout so far."""
    sys.stdout.flush()
    raw = getattr(getattr(unguarded(sys.stdout), "buffer", None), "raw", None)
    return isinstance(raw, _Stream) and raw.is_silent


def _lost() -> OSError | None:
    """Why what was printed on stdout did not get out. Returns None where all of it did."""
    sys.stdout.flush()
    raw = getattr(getattr(unguarded(sys.stdout), "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Stream) else None
