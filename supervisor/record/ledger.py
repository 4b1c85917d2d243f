"""The ledger's lines: every decision with its cause, its readings and its result, one JSON object a line (docs/ledger.md).

Only makes and reads the lines; `scribe.py` appends them to `ledger.jsonl`.
"""

from __future__ import annotations

import msgspec

from memsup.supervisor.decide.ladder import Moment
from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.run.actions import Record


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    at: float
    """Unix seconds, for people."""
    mono: float
    """Seconds on the supervisor's own clock, which never jumps: differences between lines of one `boot` are exact."""
    boot: str
    event: str
    reason: str
    state: str
    rung: str | None = None
    action: str | None = None
    result: str | None = None
    step: int | None = None
    memory: MemoryReading | None = None
    disk: DiskReading | None = None
    ladder: Moment | None = None
    """Of a decision of the ladder: with `memory` and `disk` all that it was decided on (`replay` in `ladder.py`)."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)


def read_entry(line: bytes) -> Entry:
    """Raises `msgspec.DecodeError` and `UnicodeDecodeError` for a torn line."""
    return _decoder.decode(line)


def line(
    record: Record,
    *,
    at: float,
    mono: float,
    boot: str,
    state: str,
    step: int | None,
    memory: MemoryReading | None,
    disk: DiskReading | None,
    ladder: Moment | None = None,
) -> bytes:
    entry = Entry(
        at=round(at, 3),
        mono=round(mono, 3),
        boot=boot,
        event=record.event,
        reason=record.reason,
        state=state,
        rung=record.rung,
        action=record.action,
        result=record.result,
        step=step,
        memory=memory,
        disk=disk,
        ladder=ladder,
    )
    return _encoder.encode(entry) + b"\n"
