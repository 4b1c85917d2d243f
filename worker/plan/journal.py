"""How steps are cut, and since which step: the plan in force and its journal, `plan.jsonl`.

A change is written and flushed before it takes effect, with the step from which it holds, so that steps redone after a kill
are cut as they were: another cut gives other bits. A change that holds from a step replaces all that was written before for
that step and later ones. What an entry says is in `entry.py`. Who changes what and why is decided in `planner.py` (what was
measured), `exhaustion.py` (memory ran out) and `micro_batch_limit.py` (the supervisor ordered it).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from memsup.shared.clock import unix_s
from memsup.shared.files import append_whole, read_small
from memsup.shared.log import log
from memsup.worker.plan.entry import Entry, appended, in_force

_MOST_BYTES = 256 << 20
"""A million changes of plan."""
ABOUT_FRACTION = 1 / 16
"""Room that is less by this part is about as much: of less the supervisor does not tell."""


class Plan:
    """The entries of a run's journal; nothing else writes to it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.damage: list[str]
        """A sentence for each line of the journal that could not be read."""
        self._written, self.damage = read_journal(file)
        self._entries: list[Entry] = []
        for entry in self._written:
            self._entries = appended(self._entries, entry)

    def begin(self, entry: Entry, *, saved: bool) -> None:
        """Takes `entry`, from the settings or as a checkpoint has it (`saved`), where the journal says nothing.

        A saved entry that the journal does not have was lost from it, and holds. Otherwise the journal knows better.
        """
        if not self._entries or (saved and entry not in self._written):
            self._put(entry)

    def at(self, step: int) -> Entry:
        """The entry that holds for `step`."""
        found = in_force(self._entries, step)
        assert found is not None, "the plan has not begun"
        return found

    def change(self, step: int, cause: str, *, is_news: bool = True, **changes: Any) -> Entry:
        """Has what was last known hold from `step` on with `changes`, which are fields of `Entry`. Returns the entry that then
        holds, when it is on disk. The worker's log has what is news to a person, the journal all.
        """
        concerned = [entry for entry in self._entries if entry.step > step] + [self.at(step)]
        if all(getattr(entry, name) == value for entry in concerned for name, value in changes.items()):
            return self.at(step)
        after = msgspec.structs.replace(self._entries[-1], step=step, cause=cause, at_unix_s=unix_s(), **changes)
        self._put(after)
        if is_news:
            log.info("The plan changes", from_step=step, micro_tokens=after.micro_tokens, cause=cause)
        return after

    def when_there_was(self, more_than_bytes: int, at_most_bytes: int) -> Entry | None:
        """The newest entry by which a step was computed, in any life of the run, while micro-batches were planned for about the
        most that they were between the one and the other. None means that there is none.
        """
        replaced_from = self.last_change.step  # what is in force now is not what is looked for
        found: list[tuple[int, Entry]] = []
        for entry in reversed(self._written):
            bytes_ = entry.planned_bytes
            if bytes_ is not None and more_than_bytes < bytes_ <= at_most_bytes and entry.step < replaced_from:
                found.append((bytes_, entry))
            replaced_from = min(replaced_from, entry.step)
        most_bytes = max((bytes_ for bytes_, _ in found), default=0)
        return next((entry for bytes_, entry in found if bytes_ >= most_bytes * (1 - ABOUT_FRACTION)), None)

    @property
    def last(self) -> Entry | None:
        """The entry that was written last. None means that the run has not begun."""
        return self._entries[-1] if self._entries else None

    @property
    def last_change(self) -> Entry:
        """The entry that was written last."""
        return self._entries[-1]

    def _put(self, entry: Entry) -> None:
        try:
            append_whole(self._file, msgspec.json.encode(entry) + b"\n", durable=True)
        except OSError as error:
            # A full disk must not keep the worker from shrinking. The run stays right; only its bits are not
            # reproducible if it is killed before the next checkpoint, which has the plan as well.
            log.error("The change of plan is not on disk", why=str(error))
        self._written.append(entry)
        self._entries = appended(self._entries, entry)


class ToldPlan(Plan):
    """The plan of a rank that cuts as rank 0 says. It keeps nothing."""

    told: Entry

    def __init__(self) -> None:  # no file is read
        pass

    def at(self, step: int) -> Entry:  # noqa: ARG002
        return self.told

    def change(self, step: int, cause: str, *, is_news: bool = True, **changes: Any) -> Entry:  # noqa: ARG002
        """What rank 0 would make of it, which is told by other words."""
        return msgspec.structs.replace(self.told, step=step, cause=cause, at_unix_s=unix_s(), **changes)


def read_journal(file: Path) -> tuple[list[Entry], list[str]]:
    """All entries of a journal as they were written, and a sentence for each line that cannot be read and is skipped. A torn
    end, as after a power cut, is cut off.
    """
    try:
        content = read_small(file, _MOST_BYTES)
    except FileNotFoundError:
        return [], []
    *lines, torn = content.split(b"\n")
    damage = []
    if torn:  # by a power cut, before that change took effect
        log.warning("The journal ends in the middle of a line, which is dropped", path=str(file))
        os.truncate(file, len(content) - len(torn))
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(msgspec.json.decode(line, type=Entry))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            damage.append(f"{file}, line {number} is unreadable and skipped: {error}.")
    return entries, damage
