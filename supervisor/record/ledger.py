"""The ledger's lines: every decision with its cause, its readings and its result, one JSON object a line (docs/ledger.md).

Only makes and reads the lines; `scribe.py` appends them to `ledger.jsonl`. Lines of the former format get their typed fields
here, by `old_ledger.py`, so that nobody else has to know that there was one.
"""

from __future__ import annotations

import msgspec

from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.record import old_ledger

VERSION = 2
"""The format of the lines that are written now."""


class Entry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A record with the circumstances under which it was written. With `memory` and `disk`, `ladder` is all that a decision of
    the ladder was made on (`replay` in `decide/ladder.py`).
    """

    v: int = 1
    """The format that the line was written in. The first one did not say so."""
    at: float
    """The date in Unix seconds, for people."""
    mono: float
    """The seconds on the supervisor's own clock, which never jumps: differences between lines of one `boot` are exact."""
    boot: str
    """The kernel's id of the boot in which the line was written."""
    state: str
    """The run's state as `memsup status` showed it."""
    step: int | None = None
    """The optimizer step that the worker had reported last."""
    memory: MemoryReading | None = None
    """The newest reading of memory."""
    disk: DiskReading | None = None
    """The newest reading of the disk."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)


def read_entry(line: bytes) -> Entry:
    """A line of this format or of the former one. Raises `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError` for
    what is none: a torn line, or an event that this state of memsup does not know.
    """
    entry = _decoder.decode(line)
    return entry if entry.v >= VERSION else msgspec.structs.replace(entry, **old_ledger.typed_fields(entry))


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
) -> bytes:
    """One line of the file, its line feed included."""
    entry = Entry(
        **msgspec.structs.asdict(record),
        v=VERSION,
        at=round(at, 3),
        mono=round(mono, 3),
        boot=boot,
        state=state,
        step=step,
        memory=memory,
        disk=disk,
    )
    return _encoder.encode(entry) + b"\n"
