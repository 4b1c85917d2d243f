"""The logging of both processes: structlog, events with fields, written wherever the process says.

A module takes `log` from here and names what happened and its figures: `log.info("Checkpoint written", step=12, path=…)`. In
files an event is one JSON line with `time`, `level`, `event` and `run` first; on a terminal it is plain words. Each process
says once, by `log_to`, where its events go; before that, warnings go to standard error. Does not cover the ledger, which is
the record of decisions, nor how the files are read (`supervisor/record/output.py`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from types import ModuleType
from typing import Any

from memsup.shared.clock import unix_s
from memsup.shared.printable import printable, printable_lines

# structlog imports what no process of ours has a use for: rich where it is installed, to colour tracebacks (3.5 MiB), and
# asyncio for methods that wait (7 MiB). It finds no rich, and an asyncio that is loaded when something is asked of it.
_hidden: dict[str, ModuleType | None] = {"rich": None, "better_exceptions": None, "asyncio": ModuleType("asyncio")}
_hidden = {name: instead for name, instead in _hidden.items() if name not in sys.modules}
if (_asyncio := _hidden.get("asyncio")) is not None:
    vars(_asyncio)["__getattr__"] = lambda name: getattr(import_module("asyncio"), name)
sys.modules.update(_hidden)  # type: ignore[arg-type]  # None makes an import fail (import system, sys.modules)
import structlog  # noqa: E402 - after what it is not to find
from structlog.processors import JSONRenderer, add_log_level, format_exc_info  # noqa: E402
from structlog.typing import EventDict, FilteringBoundLogger  # noqa: E402

for _name in _hidden:
    del sys.modules[_name]

IN_LEDGER = "in_ledger"
"""The field of an event that the ledger has already: it is shown on a terminal and not written to the log's file again."""

Output = Callable[[Mapping[str, Any]], object]
"""Takes one event with all its fields; must neither wait nor raise."""


def time_text(at_unix_s: float) -> str:
    """`2026-05-12T04:31:22.123Z`: the time of an event in the files, in UTC."""
    return datetime.fromtimestamp(at_unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def words(event: Mapping[str, Any]) -> str:
    """`Checkpoint written: step 12, path /…`: an event as people read it, without its time and run; a traceback follows in
    lines of its own.
    """
    about = ("time", "level", "event", "run", "exception")
    fields = ", ".join(_figure(name, value) for name, value in event.items() if name not in about and value is not None)
    level = str(event.get("level", "info"))
    text = f"{event.get('event', '?')}: {fields}" if fields else str(event.get("event", "?"))
    traceback = f"\n{event['exception']}" if event.get("exception") else ""
    return ("" if level == "info" else f"{level}: ") + text + traceback


def _figure(name: str, value: Any) -> str:
    """`step 12`, `took 0.1 s`: a field in words, with its unit behind the figure."""
    name, unit = (name[:-2], " s") if name.endswith("_s") else (name, "")
    return f"{name.replace('_', ' ')} {f'{value:.6g}' if isinstance(value, float) else printable(str(value))}{unit}"


def json_lines(write: Callable[[bytes], object]) -> Output:
    """An output that gives `write` one line for each event, but for those that are in the ledger."""
    render = JSONRenderer(serializer=json.dumps, default=str, ensure_ascii=False, separators=(",", ":"))

    def out(event: Mapping[str, Any]) -> None:
        if IN_LEDGER not in event:
            # What is no Unicode, as in a file's name, becomes an escape that JSON knows too.
            write(str(render(None, "", dict(event))).encode(errors="backslashreplace") + b"\n")

    return out


def plain_words(write: Callable[[bytes], object]) -> Output:
    """An output that gives `write` each event in plain words, after the time of day here; they may be for a terminal."""

    def out(event: Mapping[str, Any]) -> None:
        text = words({name: value for name, value in event.items() if name != IN_LEDGER})
        write(printable_lines(f"{time.strftime('%H:%M:%S')}  {text}\n").encode())

    return out


def to_standard_error(line: bytes) -> None:
    """Writes `line` at once, so that it is out before a kill; what cannot be written is lost, for there is nobody to tell."""
    try:
        os.write(2, line)
    except OSError:
        pass


class _Outputs:
    """What structlog wraps: hands each event to all outputs of the process."""

    def __init__(self) -> None:
        self.run: str | None = None
        self.outputs: tuple[Output, ...] = (self._warn,)
        self._out = plain_words(to_standard_error)

    def msg(self, **event: Any) -> None:
        for output in self.outputs:
            output(event)

    debug = info = warning = error = critical = exception = msg

    def _warn(self, event: Mapping[str, Any]) -> None:
        if event["level"] != "info":
            self._out(event)


_outputs = _Outputs()


def _time_level_event_run(_: object, __: str, event: EventDict) -> EventDict:
    head: dict[str, Any] = {"time": time_text(unix_s()), "level": event.pop("level"), "event": event.pop("event")}
    if _outputs.run is not None:
        head["run"] = _outputs.run
    return {**head, **event}


log: FilteringBoundLogger = structlog.wrap_logger(
    _outputs,
    processors=[add_log_level, format_exc_info, _time_level_event_run],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
)
"""The logger of the process. Other users of structlog in the same process keep their own settings: nothing is set for all."""


def log_to(run: str | None, *outputs: Output) -> None:
    """From now on events go to `outputs` and carry the name of `run`, which is None for a process of no single run."""
    _outputs.run, _outputs.outputs = run, outputs


class FromLibraries(logging.Handler):
    """What libraries log by way of the standard library, as events of ours with the logger's name."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the library's arguments do not fit its own format
            text = str(record.msg)
        level = min(max(record.levelno, logging.INFO), logging.CRITICAL) // 10 * 10
        log.log(level, text, logger=record.name, **({"exc_info": record.exc_info} if record.exc_info else {}))
