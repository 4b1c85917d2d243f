"""`memsup logs`: ledger, worker and supervisor as one stream in time order, and with `-f` what is added until the run ends.

Where the lines come from is known in `record/output.py`. Here they are put in order and made readable. Control characters are
taken out: what a worker prints must not drive the reader's terminal.
"""

from __future__ import annotations

import heapq
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click

from memsup.shared.commands import command
from memsup.shared.paths import paths_of
from memsup.shared.printable import printable
from memsup.shared.run_file import read_record
from memsup.shared.settings import parse_duration_s
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.screen import as_printed, data, json_data, message, paint
from memsup.supervisor.cli.streams import must_be_read
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.decide.events import Event
from memsup.supervisor.record.output import Line, Log, ledger, supervisor_log, worker_log

UNKNOWN = 4
LINES = 40
LOOK_EVERY_S = 0.25
NO_TIME = " " * len("05-12 04:31:22")
HANG = len(NO_TIME) + 2
"""What goes on below a line begins where its source stands."""

_COLOURS: dict[str, tuple[str, ...]] = dict.fromkeys((Event.KILL, Event.DEATH, Event.HANG), ("red",))
_COLOURS |= dict.fromkeys((Event.FREEZE, Event.OUT_OF_MEMORY, Event.CHECKPOINT_DAMAGED, Event.POSTMORTEM), ("yellow",))


@click.command()
@run_option
@json_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until the run ends or Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), help=f"How many lines of the end; {LINES} unless --since says from where."
)
@click.option("--since", metavar="WHEN", help="What came from then on: 2h or 30m ago, 06:30, 2026-05-12, '2026-05-12 22:00'.")
@click.option("--events", "only", flag_value="events", help="Only the ledger: each decision with its cause and its result.")
@click.option("--worker", "only", flag_value="worker", help="Only what the worker printed.")
@click.option("--supervisor", "only", flag_value="supervisor", help="Only what the supervisor logged beside the ledger.")
def logs(*, run_name: str, as_json: bool, follow: bool, lines: int | None, since: str | None, only: str | None) -> int:
    """Show the ledger of decisions, the worker's output and the supervisor's log, in the order in which it was written.

    Exit code: 0, or 4 for an unknown run.
    """
    since_s = None if since is None else _unix_s(since, datetime.now())
    paths = paths_of(run_name)
    if read_record(paths.record) is None:
        raise RefusedError(f"There is no run {run_name!r}. Start it with: {command('start', run_name)}", UNKNOWN)
    every = (Source("events", ledger(paths)), Source("worker", worker_log(paths)), Source("supervisor", supervisor_log(paths)))
    sources = [source for source in every if only in {None, source.name}]
    told = False
    for shown in _first(sources, since_s, lines):
        told = True
        _show(shown, as_json, alone=only is not None)
    if since_s is not None and not told:
        what = "decision" if only == "events" else "line"
        message(f"No {what} since {datetime.fromtimestamp(since_s):%Y-%m-%d %H:%M:%S}.")
    for source in sources:
        if not follow and not source.log.path.exists() and (source.name != "supervisor" or only == "supervisor"):
            message(f"{source.log.path} does not exist yet.")
    if follow:
        from memsup.supervisor.client.contact import is_held
    runs = follow
    while runs:
        runs = is_held(paths)
        for shown in sorted((shown for source in sources for shown in source.more()), key=_when):
            _show(shown, as_json, alone=only is not None)
        if runs:
            time.sleep(LOOK_EVERY_S)
    if lines != 0 or follow:
        for source in sources:
            if (rest := source.log.rest()) is not None and source.name != "events":
                _show(Shown(0.0, source.name, rest), as_json, alone=only is not None)
    must_be_read()
    if follow:
        message(f"Run {run_name!r} has no supervisor any more, so nothing is added.")
    return 0


@dataclass(frozen=True, slots=True)
class Shown:
    """A line and its place in the stream."""

    at_unix_s: float
    source: str
    line: Line

    @property
    def is_torn(self) -> bool:
        """Whether the line is half a line of the ledger, which does not say when it was written."""
        return self.source == "events" and self.line.event is None


class Source:
    """The lines of one log with the times by which they are put in order."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log
        self._at_unix_s: float | None = None

    def last(self, lines: int) -> list[Shown]:
        """The last lines that there are now."""
        found = self.log.last(lines)
        self._at_unix_s = next((line.at_unix_s for line in found if line.at_unix_s is not None), None)
        return list(self._placed(found))

    def all(self) -> Iterator[Shown]:
        """Every line that there is now."""
        return self._placed(self.log.all())

    def more(self) -> Iterator[Shown]:
        """The lines that were completed since."""
        return self._placed(self.log.more())

    def _placed(self, lines: Iterable[Line]) -> Iterator[Shown]:
        """A line that does not say when it was written goes with the one before it; the first ones were written at the latest
        when the file was.
        """
        for line in lines:
            if line.at_unix_s is not None:
                self._at_unix_s = line.at_unix_s
            elif self._at_unix_s is None:
                self._at_unix_s = self.log.written_s() or 0.0
            yield Shown(self._at_unix_s, self.name, line)


def _when(shown: Shown) -> float:
    return shown.at_unix_s


def _first(sources: list[Source], since_s: float | None, lines: int | None) -> Iterable[Shown]:
    """What is shown before anything is added: the last `lines` of all, or all since then."""
    if since_s is None:
        wanted = LINES if lines is None else lines
        stream: Iterable[Shown] = heapq.merge(*(source.last(wanted) for source in sources), key=_when)
        return deque(stream, wanted)
    merged = heapq.merge(*(source.all() for source in sources), key=_when)
    stream = (shown for shown in merged if shown.at_unix_s >= since_s and not shown.is_torn)
    return stream if lines is None else deque(stream, lines)


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
            f"--since {when!r} is no time: write how long ago (2h, 30m), a time (06:30), a date (2026-05-12) or "
            "both ('2026-05-12 22:00')."
        )
    if since_s > now.timestamp():
        raise RefusedError(f"--since {when!r} is still to come.")
    return since_s


def _show(shown: Shown, as_json: bool, *, alone: bool) -> None:
    must_be_read()
    if as_json:
        json_data(json_line(shown.source, shown.line))
    elif shown.source == "events":
        if (text := event_line(shown.line)) is not None:
            kind = (shown.line.event or {}).get("event")
            data(paint(text, *_COLOURS.get(kind, ())) if isinstance(kind, str) else text, hang=HANG)
    elif shown.line.event is None and alone:
        as_printed(*readable(shown.source, shown.line, alone=alone))
    else:
        data(*readable(shown.source, shown.line, alone=alone), hang=HANG)


def readable(source: str, line: Line, *, alone: bool) -> list[str]:
    """A line of the worker's or the supervisor's, in as many lines as an event has. `alone`: nothing else is shown, so that
    what a program printed stands there as it would have without memsup.
    """
    if line.event is None and alone:
        return [terminal_line(line.text)]
    name = "" if alone else f"{source:12}  "
    when = NO_TIME if line.at_unix_s is None else _local(line.at_unix_s)
    first, *others = line.text.split("\n")
    return [f"{when}  {name}{terminal_line(first)}", *(f"{NO_TIME}  {terminal_line(other)}" for other in others)]


def terminal_line(text: str) -> str:
    """The line as a terminal would have left it: of a progress bar that redraws itself, the last state."""
    return printable(text.rstrip("\r").rpartition("\r")[2].expandtabs())


def event_line(line: Line) -> str | None:
    """`05-12 04:31:22  rung  shrink: halve the micro-batch (host memory 91 %) → done`. Returns None for a torn line."""
    event = line.event
    if event is None:
        return None
    when = "?" if line.at_unix_s is None else _local(line.at_unix_s)
    action, reason, result = event.get("action"), event.get("reason"), event.get("result")
    result = " / ".join(result.splitlines()) if isinstance(result, str) else result  # a post-mortem has several sentences
    text = f"{action} ({reason})" if action and reason else action or reason or ""
    step = event.get("step")
    at_step = f"step {step:,}: " if isinstance(step, int) else ""
    return printable(f"{when}  {event.get('event', '?')!s:12}  {at_step}{text}" + (f" → {result}" if result else ""))


def json_line(source: str, line: Line) -> dict[str, Any]:
    """The document of one line."""
    if source == "events":
        return {"log": source, "event": line.event}
    return {"log": source, "line": line.text, "at": line.at_unix_s, "event": line.event}


def _local(at_unix_s: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(at_unix_s))
