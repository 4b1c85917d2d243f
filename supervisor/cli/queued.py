"""What a run that is started is to wait for: other runs, and a time of the day. Who may wait for whom is in
`client/queueing.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from memsup.shared.commands import command as typed
from memsup.shared.paths import RunPaths
from memsup.shared.record import Awaited, NotBefore, RunRecord
from memsup.shared.status import Wanted
from memsup.supervisor.cli.asked import Asked
from memsup.supervisor.cli.screen import message
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.decide.run.waiting import what_for


def queue_of(paths: RunPaths, after: Sequence[str], after_ok: Sequence[str]) -> list[Awaited] | None:
    """The runs that are to be waited for, and None where none was named. Raises `RefusedError`."""
    if not (after or after_ok):
        return None
    from memsup.supervisor.client.queueing import to_wait_for

    awaited, said = to_wait_for(paths, after, after_ok)
    if said:
        message(said)
    return awaited


def next_time_of(not_before: str | None) -> NotBefore | None:
    if not_before is None:
        return None
    from memsup.supervisor.client.queueing import next_time

    return next_time(not_before, time.time())


def waits_for(asked: Asked, record: RunRecord | None) -> tuple[list[Awaited] | None, NotBefore | None]:
    """What the run waits for before it begins, and until when: what is given now, else what it waited for, unless it was
    stopped. Both are None where it begins now.
    """
    if asked.queued is not None or asked.not_before is not None:
        return (asked.queued or []) if asked.queued or asked.not_before else None, asked.not_before
    if record is None or record.wanted is Wanted.STOPPED:
        return None, None
    return record.queued, record.not_before


def refuse_queueing(record: RunRecord, asked: Asked) -> None:
    """Raises `RefusedError` where a run that is up is to wait for something else than it does."""
    runs = {(one.run, one.must_finish) for one in asked.queued or ()}
    waits_for = {(one.run, one.must_finish) for one in record.queued or ()}
    if runs <= waits_for and asked.not_before in (None, record.not_before):
        return
    does = "has begun" if record.queued is None else f"waits {what_for(record.queued, record.not_before)}"
    stop, start = typed("stop", record.run), typed("start", record.run)
    raise RefusedError(f"Run {record.run!r} {does}. To queue it otherwise: {stop}, then {start} with the same.")
