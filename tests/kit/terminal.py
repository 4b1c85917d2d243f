"""A terminal that somebody sits at, what a terminal would obey by Unicode's own tables, and texts that try it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import termios
import time
import unicodedata
from collections.abc import Callable, Iterator

from memsup.shared.descriptors import wait_ready

EVIL = "\x1b]0;PWN\x07\x1b[2J\x9b31mred\x7f\u202eevil\u2066\u2028\u200b\rgone"
"""A title, an empty screen, a colour by way of C1, DEL, text turned round, a line of its own, nothing, and a new beginning."""
FORGED = "\nReady: all is well"
"""A line that looks like one of memsup's."""


JOINERS = "\u200c\u200d"
SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Signs of Arabic, Syriac and Kaithi that Unicode counts as format characters, though they are seen."""


def obeyed(text: str) -> set[str]:
    """The characters of `text`, lines apart, that a terminal would not show but do."""
    return {character for character in text if character != "\n" and _drives(character)}


def _drives(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or (
        unicodedata.category(character) == "Cf" and character not in JOINERS + SIGNS
    )


class Terminal:
    """A process with a terminal of its own, of any size: what it shows, and what is typed into it."""

    def __init__(self, argv: list[str], cells: int, lines: int, **environment: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm-256color"} | environment)
            _resize(1, cells, lines)
            os.execv(argv[0], argv)
        self.text = ""
        self.code: int | None = None
        """The exit code. It is None while the process lives."""

    def screen(self) -> list[str]:
        """The lines of the last whole screen that was drawn, without their colours."""
        frames = self.text.split("\x1b[H")
        return [_SEQUENCE.sub("", line).rstrip("\r") for line in frames[-1].split("\n")]

    def cpu_s(self) -> float:
        """What the process has used of the processors until now."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def resize(self, cells: int, lines: int) -> None:
        _resize(self._fd, cells, lines)

    def is_raw(self) -> bool:
        """Whether the terminal gives each key at once, and shows none."""
        return not termios.tcgetattr(self._fd)[3] & (termios.ICANON | termios.ECHO)

    def until(self, true: Callable[[list[str]], object], within_s: float = 30) -> list[str]:
        """The screen as soon as that is true of it."""
        deadline_s = time.monotonic() + within_s
        while not true(screen := self.screen()):
            assert time.monotonic() < deadline_s, "\n".join(screen)
            assert self._read(), "it has ended:\n" + self.text
        return screen

    def end(self, within_s: float = 60) -> int:
        """Its exit code, when it has ended by itself."""
        deadline_s = time.monotonic() + within_s
        while self.code is None:
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline_s, "it does not end:\n" + self.text
        while self._read():
            pass
        return self.code

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def _read(self) -> bool:
        """Reads what has come, and waits a moment for it. False: nothing will come any more."""
        readable = wait_ready([self._fd], 0.1)
        if not readable:
            return self.code is None
        try:
            piece = os.read(self._fd, 65536)
        except OSError:  # a terminal's way to say the end
            return False
        self.text += piece.decode(errors="replace")
        return bool(piece)


_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _resize(fd: int, cells: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, cells, 0, 0))


@contextlib.contextmanager
def terminal(argv: list[str], cells: int, lines: int, **environment: str) -> Iterator[Terminal]:
    """A process on a terminal, which is ended when this ends."""
    found = Terminal(argv, cells, lines, **environment)
    try:
        yield found
    finally:
        found.close()
