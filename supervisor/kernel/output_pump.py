"""The output pump: a tiny process that takes what a worker prints and keeps the beginning and the end of it in files.

A program that prints must never wait for a disk, nor fill it. So its standard output is a pipe, and the pump reads that at all
times: what a slow or full disk does not take waits in a small queue, and when the queue is full its middle is left out, counted
and said. It lives outside the fence, outlives the supervisor, and ends when the last process that could print has ended.

    python -I -S output_pump.py LOG RUN         the pipe is stdin

The files hold JSON lines, as `shared/log.py` writes them: a line that is one already is kept as it is, any other becomes the
`event` of one with the time at which it came. `LOG` has the beginning of a worker's output, and of those before it as long as
all are short; what comes after that goes into two files in turn, `LOG.end0` and `LOG.end1`, so that the end is always there.
`LOG.1` and its ends are those from before. Together they stay below 49 MiB.

Runs as a file of its own, with the standard library only, to stay small; `fence/output.py` is the supervisor's end of the pipe,
and `record/output.py` reads the files.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from _json import encode_basestring as quoted  # `json` itself costs 1 MiB more
from collections import deque

HEAD_BYTES = 12 << 20
"""The most of the beginning that is kept."""
END_BYTES = 6 << 20
"""The most that each of the two files of the end holds."""
BEGIN_ANEW_BYTES = 4 << 20
"""A longer log is set aside when the next worker starts, so that its beginning finds room."""
AFTER_HEAD = "after_head_bytes"
"""The field of the first line in a file of the end: how many bytes of the log were written after its beginning and before this
file. The file with the smaller figure is the older one; what the figure says is left out."""
LEFT_OUT = "left_out_bytes"
"""The field of a line that stands for output which is not there."""

_FIRST_BYTES, _LAST_BYTES = 4 << 20, 4 << 20
"""The most that waits for the disk: of what came first and of what came last; between them is the gap."""
_READ_BYTES = 256 << 10
_BLOCK_BYTES = 16 << 10
"""What is made into JSON at once: 2 MiB of it where every line is empty."""
_LINE_BYTES, _LINE_CHARACTERS = 64 << 10, 32 << 10
"""The longest line that waits for its end, and the most that one event has of what a program printed; longer ones are cut."""
_PAUSE_S = 0.5
"""After this time without anything new a line that has not ended is written as well."""
_REDRAWN_EVERY_S = 30.0
"""A line that is drawn over itself, as progress bars are, is written at most once in this time."""
_OURS = '{"time":"'


def end_file(log: str, number: int) -> str:
    """The name of one of the two files, 0 or 1, that hold the end of what `log` has the beginning of."""
    return f"{log}.end{number % 2}"


def earlier(log: str) -> str:
    """The name under which `log` is kept once it was set aside."""
    return f"{log}.1"


class Queue:
    """What was read and not yet written, in order: its beginning and its end, when it is too much."""

    def __init__(self, first_bytes: int = _FIRST_BYTES, last_bytes: int = _LAST_BYTES) -> None:
        self._room = threading.Condition()
        self._first: deque[tuple[float, bytes]] = deque()
        self._last: deque[tuple[float, bytes]] = deque()
        self._first_left, self._last_left = first_bytes, last_bytes
        self._gap_bytes = 0
        self._ended = False

    def put(self, at_unix_s: float, piece: bytes) -> None:
        """Takes a piece, and never waits for the disk. An empty piece says that nothing comes any more."""
        with self._room:
            if not piece:
                self._ended = True
            elif not self._last and not self._gap_bytes and len(piece) <= self._first_left:
                self._first_left -= len(piece)
                self._first.append((at_unix_s, piece))
            else:
                self._last_left -= len(piece)
                self._last.append((at_unix_s, piece))
                while self._last_left < 0:
                    oldest = len(self._last.popleft()[1])
                    self._last_left += oldest
                    self._gap_bytes += oldest
            self._room.notify()

    def take(self, within_s: float) -> tuple[float, bytes, int] | None:
        """The next piece, when it was read, and how many bytes before it were left out; an empty piece at the end. Returns None
        when nothing came within the time.
        """
        with self._room:
            if not (self._first or self._last or self._ended):
                self._room.wait(within_s)
            if self._first:
                at_unix_s, piece = self._first.popleft()
                self._first_left += len(piece)
                return at_unix_s, piece, 0
            if self._last:
                at_unix_s, piece = self._last.popleft()
                self._last_left += len(piece)
                gap_bytes, self._gap_bytes = self._gap_bytes, 0
                return at_unix_s, piece, gap_bytes
            return (time.time(), b"", 0) if self._ended else None


class Lines:
    """Cuts what came into lines, and makes them JSON lines."""

    def __init__(self, run: str) -> None:
        self._run = quoted(run)
        self._rest = b""
        self._told = False
        self._redrawn_s = -_REDRAWN_EVERY_S

    def take(self, at_unix_s: float, piece: bytes) -> bytes:
        """The lines that are complete with `piece`; what is left waits, unless it is longer than a line may be."""
        if self._told and piece:  # the line was written already; this is its end, or goes on with it
            self._told = False
            piece = piece[piece.startswith(b"\n") :]
        whole, newline, rest = piece.rpartition(b"\n")
        if newline:
            whole, self._rest = self._rest + whole, rest
            done = self._json(at_unix_s, whole)
        else:
            self._rest += rest
            done = b""
        while len(self._rest) > _LINE_BYTES:
            cut = _LINE_BYTES
            while cut > _LINE_BYTES - 4 and self._rest[cut] & 0xC0 == 0x80:  # not within a character
                cut -= 1
            done += self._json(at_unix_s, self._rest[:cut])
            self._rest = self._rest[cut:]
        return done

    def pause(self, at_unix_s: float, now_s: float) -> bytes:
        """The line that has not ended, as it stands after a pause. One that is drawn over itself is given now and then."""
        if b"\r" in self._rest:
            self._rest = self._rest.rstrip(b"\r").rpartition(b"\r")[2] + b"\r"
            if now_s - self._redrawn_s < _REDRAWN_EVERY_S:
                return b""
            self._redrawn_s = now_s
        done = self.end(at_unix_s)
        self._told = self._told or bool(done)
        return done

    def end(self, at_unix_s: float) -> bytes:
        """What is left, as a line."""
        rest, self._rest = self._rest, b""
        return self._json(at_unix_s, rest) if rest.rstrip(b"\r") else b""

    def note(self, at_unix_s: float, event: str, **fields: int) -> bytes:
        """A line of the pump's own."""
        more = "".join(f",{quoted(name)}:{value}" for name, value in fields.items())
        return f'{_OURS}{_time_text(at_unix_s)}","level":"warning","event":{quoted(event)},"run":{self._run}{more}}}\n'.encode()

    def _json(self, at_unix_s: float, lines: bytes) -> bytes:
        head, tail = f'{_OURS}{_time_text(at_unix_s)}","event":', f',"run":{self._run}}}'
        made = []
        for line in lines.decode(errors="replace").split("\n"):
            if line.startswith(_OURS) and line.endswith("}"):
                made.append(line)
            elif len(line) <= _LINE_CHARACTERS:
                made.append(f"{head}{quoted(line)}{tail}")
            else:
                starts = range(0, len(line), _LINE_CHARACTERS)
                made += [f"{head}{quoted(line[start : start + _LINE_CHARACTERS])}{tail}" for start in starts]
        made.append("")
        return "\n".join(made).encode(errors="replace")


class Files:
    """The log and the two files of its end. Nothing raises: what the disk refuses is counted."""

    def __init__(self, log: str, lines: Lines, head_bytes: int = HEAD_BYTES, end_bytes: int = END_BYTES) -> None:
        self._log, self._lines, self._head_bytes, self._end_bytes = log, lines, head_bytes, end_bytes
        self._head: int | None = None
        self._end: int | None = None
        self._in_end = 0
        self._ends = 0
        self._after_head_bytes = 0
        self._refused_bytes = 0
        if _is_to_be_set_aside(log):
            set_aside(log)

    def write(self, at_unix_s: float, text: bytes, gap_bytes: int = 0) -> None:
        """Appends whole lines, after a word about what was left out before them."""
        gap_bytes += self._refused_bytes
        if gap_bytes:
            text = self._lines.note(at_unix_s, "Output left out: the disk was full or too slow", **{LEFT_OUT: gap_bytes}) + text
        if not text:
            return
        try:
            _append_whole(self._open_for(at_unix_s, len(text)), text)
        except OSError:
            self._refused_bytes = gap_bytes + len(text)
            return
        self._refused_bytes = 0
        if self._ends:
            self._in_end += len(text)
            self._after_head_bytes += len(text)

    def _open_for(self, at_unix_s: float, size_bytes: int) -> int:
        """The file that takes so many bytes more. Raises OSError."""
        if self._head is None:
            self._head = _open(self._log)
        if not self._ends and os.fstat(self._head).st_size + size_bytes <= self._head_bytes:
            return self._head
        if self._end is None or self._in_end + size_bytes > self._end_bytes:
            if os.stat(self._log, follow_symlinks=False).st_ino != os.fstat(self._head).st_ino:
                raise FileNotFoundError(self._log)  # set aside for the next worker, whose files have these names now
            name = end_file(self._log, self._ends)
            _remove(name)
            if self._end is not None:
                os.close(self._end)
                self._end = None
            self._end = _open(name)
            self._in_end, self._ends = 0, self._ends + 1
            head = self._lines.note(at_unix_s, "The end of the output", **{AFTER_HEAD: self._after_head_bytes})
            _append_whole(self._end, head)
        return self._end


def set_aside(log: str) -> None:
    """Keeps `log` and its ends under their earlier names; files that had these names are removed. Where names cannot be
    changed, they stay.
    """
    for name, kept in ((log, earlier(log)), *((end_file(log, i), end_file(earlier(log), i)) for i in (0, 1))):
        try:
            os.rename(name, kept)
        except FileNotFoundError:
            _remove(kept)
        except OSError:
            return


def _is_to_be_set_aside(log: str) -> bool:
    """Whether the next worker's output begins a new log: this one is long, or from before there were JSON lines."""
    if any(os.path.lexists(end_file(log, number)) for number in (0, 1)):
        return True
    try:
        fd = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.fstat(fd).st_size > BEGIN_ANEW_BYTES or os.read(fd, 1) not in {b"", b"{"}
    finally:
        os.close(fd)


def _open(file: str) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


def _remove(file: str) -> None:
    try:
        os.unlink(file)
    except FileNotFoundError:
        pass


def _append_whole(fd: int, text: bytes) -> None:
    """Appends all of `text` or, as on a disk that is nearly full, nothing. Raises OSError."""
    size_bytes = os.fstat(fd).st_size
    if os.write(fd, text) != len(text):
        os.ftruncate(fd, size_bytes)
        raise OSError(28, "No space left on device")


def _time_text(at_unix_s: float) -> str:
    """The time as `time_text` in `shared/log.py` writes it."""
    milliseconds = int(at_unix_s * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(milliseconds // 1000))}.{milliseconds % 1000:03}Z"


def write_all(queue: Queue, log: str, run: str) -> None:
    """Writes until the queue says that nothing comes any more."""
    lines = Lines(run)
    files = Files(log, lines)
    while True:
        taken = queue.take(_PAUSE_S)
        if taken is None:
            files.write(time.time(), lines.pause(time.time(), time.monotonic()))
            continue
        at_unix_s, piece, gap_bytes = taken
        if gap_bytes:
            files.write(at_unix_s, lines.end(at_unix_s))
        if not piece:
            files.write(at_unix_s, lines.end(at_unix_s), gap_bytes)
            return
        for start in range(0, len(piece), _BLOCK_BYTES):
            files.write(at_unix_s, lines.take(at_unix_s, piece[start : start + _BLOCK_BYTES]), gap_bytes if start == 0 else 0)


def main(log: str, run: str) -> int:
    os.umask(0o077)
    sys.setswitchinterval(0.0005)  # the reading is never to wait long for what is being written
    queue = Queue()
    writer = threading.Thread(target=write_all, args=(queue, log, run))
    writer.start()
    while piece := os.read(0, _READ_BYTES):
        queue.put(time.time(), piece)
    queue.put(time.time(), b"")
    writer.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
