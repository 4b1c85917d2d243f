"""`run.json` on disk: read, and written so that a kill at any instant leaves the old one or the new one.

It says what a person wants, which must not be forgotten because the disk is full: a boot would begin what was stopped. So room
for the next one is taken in advance, as a file beside it; and where a disk takes nothing at all, a supervisor that ends leaves
it in the runtime folder, for the next command to write (`settle`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path

from memsup.shared.commands import command
from memsup.shared.files import UnreadableError, flush_folder, read_document, replace_file
from memsup.shared.paths import RunPaths, check_private
from memsup.shared.record import RecordError, RunRecord, decode_record, encode_record

OWED = "run.json.owed"
ROOM_BYTES = 16 << 10
"""No `run.json` is as large, but for one with a very long command."""


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]


def write_record(path: Path, record: RunRecord) -> None:
    """Makes `path` hold `record`, durably. Raises OSError."""
    put_record(path, encode_record(record))


def put_record(path: Path, content: bytes) -> None:
    """Makes `path` hold the encoded record, durably; on a full disk in the room that was taken for it. Raises OSError."""
    try:
        replace_file(path, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(content) > ROOM_BYTES:
            raise
        try:
            _use_room(path, content)
        except FileNotFoundError:
            raise error from None  # no room was taken: it is the disk that is full
    with contextlib.suppress(OSError):  # without it the next one is written where there is space for it
        _take_room(path)


def leave_record(paths: RunPaths, content: bytes) -> None:
    """Leaves the encoded record, which the disk of the state folder has not taken, for `settle`. Raises OSError."""
    replace_file(paths.runtime / OWED, content)


def settle(paths: RunPaths) -> None:
    """Writes what the run's last supervisor has left, where it left something and nobody guards the run now. Does nothing while
    the disk still takes nothing. Raises `PathError` and `RecordError`.
    """
    owed = paths.runtime / OWED
    if not os.path.lexists(owed):  # also where the folder cannot be looked into, or its path is none
        return
    check_private(paths.runtime)
    with contextlib.suppress(OSError, UnreadableError):
        left = read_document(owed, decode_record)
        record = read_record(paths.record)
        if record is not None and record.run_id == left.run_id:  # else it was begun anew since
            put_record(paths.record, encode_record(left))
        owed.unlink()


def _room(path: Path) -> Path:
    return path.with_name(path.name + ".room")


def _take_room(path: Path) -> None:
    fd = os.open(_room(path), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, ROOM_BYTES)
    finally:
        os.close(fd)


def _use_room(path: Path, content: bytes) -> None:
    """Writes into blocks that the disk has given already. Raises OSError, also where no room was taken."""
    fd = os.open(_room(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.ftruncate(fd, len(content))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(_room(path), path)
    flush_folder(path.parent)


def read_record(path: Path) -> RunRecord | None:
    """The record at `path`. None means that there is no run yet. Raises `RecordError` for a damaged one.

    A run is called as its folder is, also one that was moved aside and has its former name in its file.
    """
    try:
        record = read_document(path, decode_record)
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        start = command("start", path.parent.name)  # a run's folder has its name
        raise RecordError(f"{path} cannot be read ({error}). Start anew with: {start} --fresh") from None
    record.run = path.parent.name
    return record
