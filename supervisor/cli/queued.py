"""What a run that is started is to wait for: other runs, a time of the day, its hours. Who may wait for whom is in
`client/queueing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import click

from memsup.shared.clock import unix_s
from memsup.shared.commands import command as typed
from memsup.shared.paths import RunPaths
from memsup.shared.record import Awaited, NotBefore, RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted
from memsup.supervisor.cli.asked import Asked
from memsup.supervisor.cli.screen import message
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.daemon.hours import clock_of
from memsup.supervisor.decide.run.hours import WORTH_S, Rest, rest_of
from memsup.supervisor.decide.run.waiting import what_for


class Queued(NamedTuple):
    """What a run waits for before it begins. All is None where it begins at once."""

    awaited: list[Awaited] | None
    """The runs that come first; where none is left, it is queued for its time, its hours, or room."""
    not_before: NotBefore | None
    rest: Rest | None
    """How it rests, since it is outside of its hours."""

    @property
    def text(self) -> str:
        """The same in a clause, for people."""
        return what_for(self.awaited or (), self.not_before, self.rest)


def queue_of(paths: RunPaths, after: Sequence[str], after_ok: Sequence[str]) -> list[Awaited] | None:
    """The runs that are to be waited for, and None where none was named. Raises `RefusedError`."""
    if not (after or after_ok):
        return None
    from memsup.supervisor.client.queueing import to_wait_for

    awaited, said = to_wait_for(paths, after, after_ok)
    message(*said)
    return awaited


def next_time_of(not_before: str | None) -> NotBefore | None:
    if not_before is None:
        return None
    from memsup.supervisor.client.queueing import next_time

    return next_time(not_before, unix_s())


def hours_of(begin: str | None, end: str, assignments: Sequence[str]) -> tuple[str, ...]:
    """`--until`, with `--not-before` where that was given, as `--set` has them. Raises `click.UsageError` where both say it."""
    given = {"hours.end": end}
    if begin is not None or end == "off":
        given["hours.begin"] = begin or "off"
    if twice := sorted(given.keys() & {assignment.partition("=")[0].strip() for assignment in assignments}):
        raise click.UsageError(f"--until is {' and '.join(twice)}, which --set gives as well. Choose one.")
    return tuple(f"{name}={value}" for name, value in given.items())


def waits_for(asked: Asked, record: RunRecord | None, settings: Settings) -> Queued:
    """What the run waits for before it begins: what is given now, else what it waited for, unless it was stopped; and its
    hours, of these `settings`. `record` is that of a run that goes on; None: it is a new one.
    """
    awaited, not_before = _given(asked, record)
    rest = rest_now(settings, waiver(record, settings))
    return Queued(awaited if rest is None else awaited or [], not_before, rest)


def waiver(record: RunRecord | None, settings: Settings) -> float | None:
    """Since when the hours of a run that is started now are waived: those with an end alone are by the start, and others as
    they were, where they are the same.
    """
    if settings.hours.end != "off" and settings.hours.begin == "off":
        return unix_s()
    return record.waived_unix_s if record is not None and record.settings.hours == settings.hours else None


def rest_now(settings: Settings, waived_unix_s: float | None) -> Rest | None:
    """How a run that is started now rests by its hours. Returns None where it does not."""
    return rest_of(clock_of(settings.hours, unix_s()), waived_unix_s, WORTH_S)


def _given(asked: Asked, record: RunRecord | None) -> tuple[list[Awaited] | None, NotBefore | None]:
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
