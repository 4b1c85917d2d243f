"""`run.json` on disk: read, and written so that a kill at any instant leaves the old one or the new one."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec

from memsup.shared.commands import command
from memsup.shared.files import replace_file
from memsup.shared.record import RecordError, RunRecord, decode_record, encode_record


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]


def write_record(path: Path, record: RunRecord) -> None:
    """Makes `path` hold `record`, durably. Raises OSError."""
    replace_file(path, encode_record(record))


def read_record(path: Path) -> RunRecord | None:
    """The record at `path`. None means that there is no run yet. Raises `RecordError` for a damaged one."""
    try:
        return decode_record(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        start = command("start", path.parent.name)  # a run's folder has its name
        raise RecordError(f"{path} cannot be read ({error}). Start anew with: {start} --fresh") from None
