"""How steps are cut, and since which step: the plan in force and its journal, `plan.jsonl`.

A change is written and flushed before it takes effect, with the step from which it holds, so that steps redone after a kill
are cut as they were: another cut gives other bits. A change that holds from a step replaces all that was written before for
that step and later ones. What an entry says is in `entry.py`. Who changes what and why is decided in
 `planner.py` (what was measured) and `train.py` (what happened).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from memsup.shared.clock import unix_s
from memsup.shared.log import log
from memsup.worker.plan.entry import Entry, appended, in_force


class Plan:
    """What the journal says, and the only writer of it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written = read_journal(file)
        self._entries: list[Entry] = []
        for entry in self._written:
            self._entries = appended(self._entries, entry)

    def begin(self, entry: Entry, *, saved: bool) -> None:
        """With what the run begins where the journal says nothing: from the settings, or as a checkpoint has it (`saved`).

        A saved entry that the journal does not have was lost from it, and holds. Otherwise the journal knows better.
        """
        if not self._entries or (saved and entry not in self._written):
            self._put(entry)

    def at(self, step: int) -> Entry:
        found = in_force(self._entries, step)
        assert found is not None, "the plan has not begun"
        return found

    def change(self, step: int, cause: str, **changes: Any) -> Entry:
        """From `step` on, what was last known with `changes`. Returns what holds then, when that is on disk."""
        concerned = [entry for entry in self._entries if entry.step > step] + [self.at(step)]
        if all(getattr(entry, name) == value for entry in concerned for name, value in changes.items()):
            return self.at(step)
        after = msgspec.structs.replace(self._entries[-1], step=step, cause=cause, at_unix_s=unix_s(), **changes)
        self._put(after)
        log.info("The plan changes", from_step=step, micro_tokens=after.micro_tokens, cause=cause)
        return after

    @property
    def threads(self) -> int | None:
        """With which the run began. None: it has not, or is older than the question."""
        return self._entries[-1].threads if self._entries else None

    @property
    def last_change(self) -> Entry:
        return self._entries[-1]

    def _put(self, entry: Entry) -> None:
        try:
            append_line(self._file, msgspec.json.encode(entry))
        except OSError as error:
            # A full disk must not keep the worker from shrinking. The run stays right; only its bits are not
            # reproducible if it is killed before the next checkpoint, which has the plan as well.
            log.error("The change of plan is not on disk", why=str(error))
        self._written.append(entry)
        self._entries = appended(self._entries, entry)


def read_journal(file: Path) -> list[Entry]:
    """All entries as they were written. A torn end, as after a power cut, is cut off; other damage is skipped, and said."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    *lines, torn = content.split(b"\n")
    if torn:
        log.warning("The journal ends in the middle of a line, which is dropped", path=str(file))
        os.truncate(file, len(content) - len(torn))
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(msgspec.json.decode(line, type=Entry))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("A line of the journal is unreadable and skipped", line=number, path=str(file), why=str(error))
    return entries


def append_line(file: Path, line: bytes) -> None:
    """Durably, or not at all. Raises OSError."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        try:
            if os.write(fd, line + b"\n") != len(line) + 1:
                raise OSError(f"{file} took a part of the line only")
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
