"""Reading the logs of a run: ledger, worker and supervisor, each over all of its files, from the end or as they grow.

Follows files through truncation, replacement and late birth, in bounded pieces, however large they are. Knows how each log is
cut into files: the ledger and the supervisor's log into numbered parts (`rotation.py`), the worker's into a beginning and two
ends (`kernel/output_pump.py`). Logs from before there were JSON lines are read as well; most of their lines carry no time. How
lines look on a terminal is decided in `cli/logs.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from memsup.shared.files import open_regular
from memsup.shared.log import words
from memsup.shared.paths import RunPaths
from memsup.supervisor.kernel.output_pump import AFTER_HEAD, LEFT_OUT, earlier, end_file
from memsup.supervisor.record.rotation import parts_of
from memsup.supervisor.words import size

PIECE_BYTES = 64 * 1024
LONGEST_LINE_BYTES = 256 * 1024
"""A longer line is cut into pieces of this length: a program that never ends its line must not fill our memory."""
MOST_LAST_BYTES = 64 << 20
"""As large as a log becomes: of a file that somebody has made larger no more is looked at, however many lines are wanted."""
LAST_SECOND = 4_102_444_800.0
"""The year 2100 in Unix seconds. What claims to be later is garbage."""
_OLD_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[,.]\d{3}")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log."""

    at_unix_s: float | None
    """When it was written. It is None where the line does not say it."""
    text: str
    """What a program printed, or an event in plain words; may contain control characters. Empty in the ledger."""
    event: dict[str, Any] | None
    """The fields of an event. They are None for what a program printed, and for a torn line."""


def log_line(line: bytes) -> Line:
    """A line of the worker's or the supervisor's log."""
    fields = _fields(line)
    time, event = (fields or {}).get("time"), (fields or {}).get("event")
    if fields is None or not isinstance(time, str) or not isinstance(event, str):
        text = line.decode(errors="replace")
        return Line(_unix_s(found[0].replace(",", ".")) if (found := _OLD_TIME.match(text)) else None, text, None)
    if "level" in fields:
        return Line(_unix_s(time), words(fields), fields)
    return Line(_unix_s(time), event, None)


def ledger_line(line: bytes) -> Line:
    """A line of the ledger; a power cut may have left half of one at the end."""
    fields = _fields(line)
    at = (fields or {}).get("at")
    return Line(at if isinstance(at, int | float) and 0 <= at < LAST_SECOND else None, "", fields)


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _unix_s(time: str) -> float | None:
    """Unix time of an ISO date; one without a zone, as in old logs, is this machine's."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


@dataclass
class GrowingFile:
    """The lines of a file that grows, is cut short, is replaced, or is not there yet."""

    path: Path
    rest: bytes = b""
    """The last line as far as it has come, where it has not ended."""
    _inode: int | None = None
    _position: int = 0

    def last(self, lines: int) -> list[bytes]:
        """The last complete lines that there are now; `more` goes on from there."""
        found = self._open()
        if found is None:
            return []
        fd, size = found
        with os.fdopen(fd, "rb") as file:
            start, block = size, b""
            most_bytes = min(max(lines, 1) * LONGEST_LINE_BYTES, MOST_LAST_BYTES)
            while start > 0 and block.count(b"\n") <= lines and len(block) < most_bytes:
                start = max(0, size - max(PIECE_BYTES, 2 * len(block)))
                file.seek(start)
                block = file.read(size - start)
        complete, _, self.rest = block.rpartition(b"\n")
        self._position = size
        everything = complete.split(b"\n") if complete or block.startswith(b"\n") else []
        return everything[-lines:] if lines else []

    def more(self) -> Iterator[bytes]:
        """The lines that were completed since the last call."""
        found = self._open()
        if found is None:
            return
        fd, size = found
        with os.fdopen(fd, "rb") as file:
            file.seek(self._position)
            while piece := file.read(min(PIECE_BYTES, max(0, size - self._position))):
                self._position += len(piece)
                *whole, self.rest = (self.rest + piece).split(b"\n")
                yield from whole
                if len(self.rest) > LONGEST_LINE_BYTES:
                    yield self.rest
                    self.rest = b""

    def _open(self) -> tuple[int, int] | None:
        """The file and its size; begins anew where it is another one or has become shorter."""
        try:
            fd, _ = open_regular(self.path, follow_links=False)
        except OSError:
            return None
        found = os.fstat(fd)
        if found.st_ino != self._inode or found.st_size < self._position:
            self._inode, self._position, self.rest = found.st_ino, 0, b""
        return fd, found.st_size


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a log."""

    path: Path
    grows: bool = False
    left_out_bytes: int = 0
    """So much of the log is missing between the part before and this one."""


class Log:
    """The lines of one log over all of its files, in the order in which they were written."""

    def __init__(self, path: Path, read: Callable[[bytes], Line], parts: Callable[[Path], list[Part]]) -> None:
        """`path` is the file by which people know the log."""
        self.path, self._read_line, self._parts = path, read, parts
        self._growing_files: dict[Path, GrowingFile] = {}
        """Those that grow."""

    def last(self, lines: int) -> list[Line]:
        """The last lines that there are now; `more` goes on from there."""
        found: list[Line] = []
        for part in reversed(self._parts(self.path)):
            if part.grows or len(found) < lines:
                found = [*self._read(self._growing(part).last(lines + 1), part.left_out_bytes), *found]
        return found[-lines:] if lines else []

    def all(self) -> Iterator[Line]:
        """Every line that there is now; `more` goes on from there."""
        for part in self._parts(self.path):
            yield from self._read(self._growing(part).more(), part.left_out_bytes)

    def more(self) -> Iterator[Line]:
        """The lines that were completed since the last call."""
        for part in self._parts(self.path):
            if part.grows:
                yield from self._read(self._growing(part).more(), 0)

    def rest(self) -> Line | None:
        """The last line as far as it has come. Returns None where every line has ended."""
        rests = [file.rest for file in self._growing_files.values() if file.rest]
        return self._read_line(rests[-1]) if rests else None

    def written_s(self) -> float | None:
        """Unix time of the last write. Returns None where there is no such file."""
        try:
            return os.stat(self.path).st_mtime
        except OSError:
            return None

    def _growing(self, part: Part) -> GrowingFile:
        return self._growing_files.setdefault(part.path, GrowingFile(part.path)) if part.grows else GrowingFile(part.path)

    def _read(self, lines: Iterable[bytes], left_out_bytes: int) -> Iterator[Line]:
        for line in lines:
            read = self._read_line(line)
            if read.event is not None and LEFT_OUT in read.event:
                yield Line(
                    read.at_unix_s, f"[{size(read.event[LEFT_OUT])} that did not get onto the disk are left out here]", None
                )
            elif read.event is None or AFTER_HEAD not in read.event:
                yield read
            elif left_out_bytes:
                yield Line(read.at_unix_s, f"[{size(left_out_bytes)} of the log are left out here, which is kept small]", None)


def ledger(paths: RunPaths) -> Log:
    """The ledger of decisions."""
    return Log(paths.ledger, ledger_line, _numbered)


def worker_log(paths: RunPaths) -> Log:
    """What the worker printed, and its events."""
    return Log(paths.worker_log, log_line, _beginnings_and_ends)


def supervisor_log(paths: RunPaths) -> Log:
    """The supervisor's events, and what it printed if it broke."""
    return Log(paths.supervisor_log, log_line, _numbered)


def _numbered(file: Path) -> list[Part]:
    *older, newest = parts_of(file)
    return [*map(Part, older), Part(newest, grows=True)]


def _beginnings_and_ends(log: Path) -> list[Part]:
    found = []
    for name, grows in ((earlier(str(log)), False), (str(log), True)):
        found.append(Part(Path(name), grows))
        ends = [
            (after, file) for number in (0, 1) if (after := _after_head_bytes(file := Path(end_file(name, number)))) is not None
        ]
        for order, (after, file) in enumerate(sorted(ends)):
            found.append(Part(file, grows, 0 if order else after))
    return found


def _after_head_bytes(end: Path) -> int | None:
    """How much of the log came after its beginning and before the file `end`, as the first line of that says. Returns None
    where there is no such file, or it is just being begun.
    """
    first = next(GrowingFile(end).more(), b"")
    after = (_fields(first) or {}).get(AFTER_HEAD)
    return after if isinstance(after, int) else None
