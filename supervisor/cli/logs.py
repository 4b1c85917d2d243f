"""`memsup logs`: the end of the ledger and of the worker's output, and with `-f` what is added to them.

Follows a file through truncation, replacement and late birth by looking at it a few times a second. Reads bounded pieces,
however large the file. Control characters are taken out: what a worker prints must not drive the reader's terminal.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec

from memsup.shared.run_file import read_record
from memsup.shared.settings import parse_duration_s
from memsup.supervisor.cli.options import data, json_data, json_option, message, paths_of, run_option
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.record.rotation import parts_of
from memsup.supervisor.words import command, printable

UNKNOWN = 4
LINES = 40
LOOK_EVERY_S = 0.25
PIECE_BYTES = 64 * 1024
LONGEST_LINE_BYTES = 256 * 1024
"""A longer line is cut into pieces of this length: a worker that never ends its line must not fill our memory."""


@click.command()
@run_option
@json_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), help=f"How many lines of the end; {LINES} unless --since says from where."
)
@click.option("--since", metavar="WHEN", help="The ledger from then on: 2h or 30m ago, 06:30, 2026-05-12, '2026-05-12 22:00'.")
@click.option("--events", "only", flag_value="events", help="Only the ledger: each decision with its cause and its result.")
@click.option("--worker", "only", flag_value="worker", help="Only what the worker printed.")
def logs(*, run_name: str, as_json: bool, follow: bool, lines: int | None, since: str | None, only: str | None) -> int:
    """Show the ledger of decisions and the worker's output; both unless one is asked for.

    The worker's lines carry no time, so --since shows the ledger alone.

    Exit code: 0, or 4 for an unknown run.
    """
    since_s = None if since is None else _unix_s(since, datetime.now())
    if since is not None and only == "worker":
        raise RefusedError("The lines that the worker printed carry no time; --since is for the ledger: --events.")
    paths = paths_of(run_name)
    if read_record(paths.record) is None:
        raise RefusedError(f"There is no run {run_name!r}. Start it with: {command('start', run_name)}", UNKNOWN)
    sources = [
        Source("events", paths.ledger, event_line),
        Source("worker", paths.worker_log, worker_line),
    ]
    only = "events" if since_s is not None else only
    sources = [source for source in sources if only in {None, source.name}]
    show = _shower(as_json, headed=len(sources) > 1)
    for source in sources:
        first = (
            source.tail.last(LINES if lines is None else lines) if since_s is None else _events_since(source, since_s, lines)
        )
        told = False
        for line in first:
            told = True
            show(source, line)
        if since_s is not None and not told and source.path.exists():
            message(f"No decision since {datetime.fromtimestamp(since_s):%Y-%m-%d %H:%M:%S}.")
        if not source.path.exists() and not follow:
            message(f"{source.path} does not exist yet.")
    while follow:
        time.sleep(LOOK_EVERY_S)
        for source in sources:
            for line in source.tail.more():
                show(source, line)
    return 0


def _unix_s(when: str, now: datetime) -> float:
    """A duration before `now`, or a local time: of the day (the last time it was that), a date, or both."""
    text = when.strip()
    then: datetime | None = None
    try:
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", text):
            then = datetime.fromisoformat(f"{now:%Y-%m-%d} {text.zfill(5 if text.count(':') == 1 else 8)}")
            then -= timedelta(days=then > now)
        elif re.match(r"\d{4}-", text):
            then = datetime.fromisoformat(text)
        elif (ago_s := parse_duration_s(text)) is not None:
            then = now - timedelta(seconds=ago_s)
        since_s = None if then is None else then.timestamp()
    except (ValueError, OverflowError, OSError):
        since_s = None
    if since_s is None:
        raise RefusedError(
            f"--since {printable(when)!r} is no time: write how long ago (2h, 30m), a time (06:30), a date (2026-05-12) or "
            "both ('2026-05-12 22:00')."
        )
    if since_s > now.timestamp():
        raise RefusedError(f"--since {printable(when)!r} is still to come.")
    return since_s


def _events_since(source: Source, since_s: float, lines: int | None) -> Iterator[bytes]:
    """From the older parts of the ledger and from the one in use, with which `source.tail.more` goes on; the last `lines`."""
    *older, _ = parts_of(source.path)
    tails = [*map(Tail, older), source.tail]
    found = (line for tail in tails for line in tail.more() if _is_since(line, since_s))
    return found if lines is None else iter(deque(found, lines))


def _is_since(line: bytes, since_s: float) -> bool:
    at = (_event(line) or {}).get("at")
    return isinstance(at, int | float) and at >= since_s


@dataclass
class Tail:
    """The lines of a file that grows, is cut short, is replaced, or is not there yet."""

    path: Path
    _inode: int | None = None
    _position: int = 0
    _rest: bytes = b""

    def last(self, lines: int) -> list[bytes]:
        """The last complete lines that there are now; `more` goes on from there."""
        found = self._open()
        if found is None:
            return []
        fd, size = found
        with os.fdopen(fd, "rb") as file:
            start, block = size, b""
            while start > 0 and block.count(b"\n") <= lines and len(block) < max(lines, 1) * LONGEST_LINE_BYTES:
                start = max(0, size - max(PIECE_BYTES, 2 * len(block)))
                file.seek(start)
                block = file.read(size - start)
        complete, _, self._rest = block.rpartition(b"\n")
        self._position = size
        everything = complete.split(b"\n") if complete or block.startswith(b"\n") else []
        return everything[-lines:] if lines else []

    def more(self) -> Iterator[bytes]:
        """The lines that were completed since."""
        found = self._open()
        if found is None:
            return
        fd, size = found
        with os.fdopen(fd, "rb") as file:
            file.seek(self._position)
            while piece := file.read(min(PIECE_BYTES, max(0, size - self._position))):
                self._position += len(piece)
                *whole, self._rest = (self._rest + piece).split(b"\n")
                yield from whole
                if len(self._rest) > LONGEST_LINE_BYTES:
                    yield self._rest
                    self._rest = b""

    def _open(self) -> tuple[int, int] | None:
        """The file and its size; begins anew where it is another one or has become shorter."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        found = os.fstat(fd)
        if found.st_ino != self._inode or found.st_size < self._position:
            self._inode, self._position, self._rest = found.st_ino, 0, b""
        return fd, found.st_size


@dataclass
class Source:
    name: str
    path: Path
    readable: Callable[[bytes], str | None]
    tail: Tail = field(init=False)

    def __post_init__(self) -> None:
        self.tail = Tail(self.path)


def _shower(as_json: bool, *, headed: bool) -> Callable[[Source, bytes], None]:
    """Prints a line; where there are two sources, with a heading whenever the other one speaks."""
    spoke: list[str] = []

    def show(source: Source, line: bytes) -> None:
        if as_json:
            json_data(json_line(source.name, line))
            return
        text = source.readable(line)
        if text is None:
            return
        if headed and spoke[-1:] != [source.name]:
            data(("\n" if spoke else "") + f"==> {source.path} <==")
            spoke[:] = [source.name]
        data(text)

    return show


def worker_line(line: bytes) -> str:
    """As a terminal would have left it: of a progress bar that redraws itself, the last state."""
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")
    return printable(text.expandtabs())


def event_line(line: bytes) -> str | None:
    """`04:31:22  rung  shrink: halve the micro-batch (host memory 91 %) → done`; None for a torn line."""
    event = _event(line)
    if event is None:
        return None
    at = event.get("at")
    when = time.strftime("%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else "?"
    action, reason, result = event.get("action"), event.get("reason"), event.get("result")
    result = " / ".join(result.splitlines()) if isinstance(result, str) else result  # a post-mortem has several sentences
    text = f"{action} ({reason})" if action and reason else action or reason or ""
    step = event.get("step")
    at_step = f"step {step:,}: " if isinstance(step, int) else ""
    return printable(f"{when}  {event.get('event', '?'):12}  {at_step}{text}" + (f" → {result}" if result else ""))


def json_line(source: str, line: bytes) -> dict[str, Any]:
    if source == "events":
        return {"log": source, "event": _event(line)}
    return {"log": source, "line": line.decode("utf-8", errors="replace")}


def _event(line: bytes) -> dict[str, Any] | None:
    """A power cut may leave half a line at the end."""
    try:
        event = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return event if isinstance(event, dict) else None
