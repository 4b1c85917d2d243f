"""What has become of the runs that another one waits for: their locks and files say so, without asking any supervisor.

A run that is up costs a look at its lock, its `run.json` and its last status. What follows is decided in
`decide/run/waiting.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from memsup.shared.files import UnreadableError, read_document
from memsup.shared.paths import PathError, RunPaths, open_private, run_paths
from memsup.shared.record import Awaited, RecordError
from memsup.shared.run_file import read_record
from memsup.shared.status import RunState, Status, Wanted, decode_status
from memsup.supervisor.daemon.lock import is_taken
from memsup.supervisor.decide.run.waiting import Fate


def look(awaited: Iterable[Awaited]) -> dict[str, Fate]:
    """What has become of each, by its name."""
    return {one.run: fate_of(one) for one in awaited}


def fate_of(awaited: Awaited) -> Fate:
    """What has become of one. One whose files cannot be read has not ended, as far as anybody knows."""
    try:
        paths = run_paths(awaited.run)
        if not os.path.lexists(paths.state):
            return Fate.GONE
        is_up = _is_held(paths.state)
        record = read_record(paths.record)
    except (PathError, RecordError, OSError):
        return Fate.LEFT
    if record is None:
        return Fate.UP if is_up else Fate.GONE
    if record.run_id != awaited.run_id:
        return Fate.GONE
    status = _status(paths)
    if is_up:
        hours = status.hours if status is not None and status.run_id == record.run_id else None
        return Fate.RESTS if hours is not None and hours.rests and hours.until is None else Fate.UP
    if status is not None and status.run_id == record.run_id:
        if status.state is RunState.FINISHED:
            return Fate.FINISHED
        if status.state is RunState.FAILED:
            return Fate.FAILED
    return Fate.STOPPED if record.wanted is Wanted.STOPPED else Fate.LEFT


def _is_held(folder: Path) -> bool:
    """Whether a supervisor holds the run of this folder. Raises `PathError`."""
    fd = open_private(folder)
    try:
        return is_taken(fd)
    finally:
        os.close(fd)


def _status(paths: RunPaths) -> Status | None:
    try:
        return read_document(paths.status, decode_status)
    except (FileNotFoundError, UnreadableError):
        return None
