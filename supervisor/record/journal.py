"""What the run leaves in its folder as it goes: lines of the ledger, `status.json`, what is wanted, what is left of restarts.

Covers what the lines say of their circumstances, and what the last action and the shown state were. All of it is written by the
scribe, so nothing here waits for the disk. Black box and history are `night.py`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from memsup.shared.clock import unix_s
from memsup.shared.files import replace_file
from memsup.shared.log import log
from memsup.shared.paths import PathError, RunPaths, make_private
from memsup.shared.record import RunRecord, encode_record
from memsup.shared.run_file import leave_record, put_record
from memsup.shared.status import ActionStatus, Status, encode_status
from memsup.supervisor.decide.events import Event
from memsup.supervisor.decide.guard import Guard
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.restarts import Budget
from memsup.supervisor.record import ledger
from memsup.supervisor.record.scribe import Scribe


class Journal:
    def __init__(
        self,
        paths: RunPaths,
        record: RunRecord,
        boot: str,
        scribe: Scribe,
        life: Lifecycle,
        guard: Guard,
        lock_again: Callable[[], None],
    ) -> None:
        """`boot` is the kernel's name for the time since the machine was started. `lock_again` takes the lock of a state folder
        that was made anew; it may raise OSError and `PathError`.
        """
        self._paths, self._boot, self._scribe, self._life, self._guard = paths, boot, scribe, life, guard
        self._lock_again = lock_again
        self._record_content = encode_record(record)
        self._was_remade = False
        """Whether `run.json` was written anew since that was told last."""
        self.last_action: ActionStatus | None = None
        self.since_unix_s = unix_s()
        """When the run came into the state that is shown."""
        self.own_errors = 0
        """How many errors of memsup's own the loop has caught."""
        self._shown_state = life.state

    def record(self, now_s: float, *records: Record) -> None:
        """Appends a line to the ledger for each."""
        for record in records:
            self._record(now_s, record)

    def _record(self, now_s: float, record: Record) -> None:
        at = unix_s()
        if record.event is Event.RECOVERED and self.last_action is not None:
            self.last_action.result = record.reason
        elif record.action is not None:
            # Of a death the ledger has how the process ended, which is not what came of starting it again.
            told = record.result if record.event is not Event.DEATH else None
            result = told.partition("\n")[0] if told else None  # the rest, a traceback, is for the ledger
            self.last_action = ActionStatus(at=at, rung=record.rung, action=record.action, reason=record.reason, result=result)
        line = ledger.line(
            record,
            at=at,
            mono=now_s,
            boot=self._boot,
            state=str(self._life.state),
            step=self._life.progress.step,
            memory=self._guard.memory,
            disk=self._guard.disk,
        )
        self._scribe.append(self._paths.ledger, line)
        log.info(f"{record.event}: {' - '.join(filter(None, (record.reason, record.action, record.result)))}", in_ledger=True)

    def own_error(self) -> None:
        """Notes the exception that is being handled: a fault of ours must not cost the guard."""
        self.own_errors += 1
        if self.own_errors.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: a flood must not fill the log
            log.exception("Error in the supervisor itself", number=self.own_errors)

    def state_changed(self) -> bool:
        """Whether the run is in another state than when this was last asked."""
        if self._life.state is self._shown_state:
            return False
        self._shown_state, self.since_unix_s = self._life.state, unix_s()
        return True

    def show(self, status: Status, *, durable: bool) -> None:
        """Writes `status.json`, flushed only where it says something new."""
        self._scribe.carry_out(str(self._paths.status), partial(self._show, encode_status(status), durable))

    def _show(self, content: bytes, durable: bool) -> None:
        put = partial(replace_file, self._paths.status, content, durable=durable)
        try:
            if not os.path.lexists(self._paths.record):
                self._put_run()
            put()
        except FileNotFoundError:  # it was removed at this moment
            self._put_run()
            put()

    def save_run(self, record: RunRecord) -> None:
        """Has what is wanted of the run written, which is tried until it is."""
        self._record_content = encode_record(record)
        self._scribe.keep(self._paths.record, self._put_run)

    def _put_run(self) -> None:
        """Writes `run.json`, in a new folder where somebody removed the run's. Raises OSError."""
        is_missing = not os.path.lexists(self._paths.record)
        try:
            for folder in (self._paths.state.parent, self._paths.state):
                make_private(folder)
            self._lock_again()
        except PathError as error:
            raise OSError(errno.ENOTDIR, str(error)) from None
        put_record(self._paths.record, self._record_content)
        self._was_remade = self._was_remade or is_missing

    def news(self) -> str | None:
        """A sentence where `run.json` had to be written anew since the last call. Returns None where it had not."""
        if not self._was_remade:
            return None
        self._was_remade = False
        return (
            f"run.json was missing in {self._paths.state}, as when something cleans up there. It was written anew; what was "
            "removed with it is gone."
        )

    def leave_run(self, record: RunRecord) -> None:
        """Leaves what is wanted of the run for the next command, where the disk has not taken it; to be called when the scribe
        has ended.
        """
        if self._scribe.owes(self._paths.record):
            with contextlib.suppress(OSError):  # then it has been said that it could not be written
                leave_record(self._paths, encode_record(record))

    def save_budget(self, budget: Budget) -> None:
        """Has what is left of the restarts written, which is tried until it is."""
        file = budget_file(self._paths)
        self._scribe.keep(file, partial(replace_file, file, msgspec.json.encode(budget)))


def budget_file(paths: RunPaths) -> Path:
    """The file that says how many restarts are left."""
    return paths.state / "restarts.json"
