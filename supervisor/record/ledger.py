"""The ledger's lines: every decision with its cause, its readings and its result, one JSON object a line (docs/ledger.md).

Only makes and reads the lines; `scribe.py` appends them to `ledger.jsonl`.
"""

from __future__ import annotations

import msgspec

from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.run.actions import Record


class Entry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A record with the circumstances under which it was written. With `memory` and `disk`, `ladder` is all that a decision of
    the ladder was made on (`replay` in `decide/ladder.py`).
    """

    at: float
    """Unix seconds, for people."""
    mono: float
    """Seconds on the supervisor's own clock, which never jumps: differences between lines of one `boot` are exact."""
    boot: str
    state: str
    step: int | None = None
    memory: MemoryReading | None = None
    disk: DiskReading | None = None


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
) -> bytes:
    """One line of the file, its line feed included."""
    entry = Entry(
        **msgspec.structs.asdict(record),
        at=round(at, 3),
        mono=round(mono, 3),
        boot=boot,
        state=state,
        step=step,
        memory=memory,
        disk=disk,
    )
    return _encoder.encode(entry) + b"\n"
