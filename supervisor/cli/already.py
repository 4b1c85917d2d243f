"""What `start` does with a run of that name that is there already: it waits until one that stops has gone, has one that is up
take over what may change, and refuses what would be another training.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import NoReturn

from memsup.shared.commands import command as typed
from memsup.shared.messages import RequestKind
from memsup.shared.paths import RunPaths
from memsup.shared.record import RecordError, RunRecord, encode_settings
from memsup.shared.run_file import read_record
from memsup.shared.settings import Settings, keys
from memsup.shared.status import OVER, RunState, Status, TroubleKind, Wanted, encode_status
from memsup.supervisor.cli.announcement import documents
from memsup.supervisor.cli.asked import Asked
from memsup.supervisor.cli.findings import Row
from memsup.supervisor.cli.picture import one_line
from memsup.supervisor.cli.queued import refuse_queueing
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.client.contact import (
    LOOK_AGAIN_S,
    Contact,
    NoAnswerError,
    NobodyThereError,
    Presence,
    is_held,
    observe,
    still_there,
)
from memsup.supervisor.client.errors import NOT_STARTED, RefusedError
from memsup.supervisor.client.preparing import Difference, check_curves, job_file, merge, shown
from memsup.supervisor.client.trust import refuse_strangers
from memsup.supervisor.decide.run import hours
from memsup.supervisor.words import finished_lines, rest_by_hours

GOES_WITHIN_S = 60.0
"""A supervisor that is about to go and does not answer any more has this long: its last messages take their time."""
TAKES_OVER_WITHIN_S = 10.0
"""A supervisor answers at once what it takes over; one of an earlier version never does."""


def already(paths: RunPaths, asked: Asked) -> int:
    """Has a run that has a living supervisor take over what may change, and says how it does; returns the exit code.

    Raises `RefusedError` for what would be another training, and where the supervisor refuses.
    """
    if asked.fresh:
        raise RefusedError(f"Run {paths.name!r} is running. Stop it before it can begin anew: {typed('stop', paths.name)}")
    taken: list[Difference] = []
    text = ""
    if (record := read_record(paths.record)) is not None:
        if kept := kept_from(record, asked):
            refuse_other_training(record, kept, asked, is_up=True)
        refuse_queueing(record, asked)
        settings, taken, _ = merge(record.settings, asked.loaded, is_command=record.command is not None)
        hours.check(settings.hours)
        if any(difference.key == "training.report_to" for difference in taken):
            check_curves(settings)
        if taken and not asked.trust:
            refuse_strangers(asked.loaded, record.settings, typed("start", paths.name))
        if taken and not asked.dry_run:
            text = _take_over(paths, settings)
    status = observe(paths).status
    if asked.as_json:
        json_data({"schema": 1, "run": paths.name, "already_running": True, "taken": documents(taken), "text": text})
    elif status is not None:
        is_queued = status.state is RunState.WAITING
        data(f"Run {paths.name!r} {'is queued' if is_queued else 'is up already'}: {one_line(status)}.")
        _tell_taken(taken, text, asked)
        paused = status.wanted is Wanted.PAUSED or rest_by_hours(status) is not None
        message(f"Look at it: {typed('status', paths.name)}" + (f"   Go on: {typed('resume', paths.name)}" if paused else ""))
    if asked.wait:
        from memsup.supervisor.cli.wait import follow

        return follow(paths, asked.as_json)
    return 0


def ends(paths: RunPaths, *, waits: bool) -> bool:
    """Whether the supervisor that is there is about to go. With `waits` it has gone when this returns, since what is asked for
    now is to come after that. Raises `RefusedError` where it does not get to its end.
    """
    told = False
    until_s = time.monotonic() + GOES_WITHIN_S
    while is_held(paths):
        observed = observe(paths)
        status = observed.status
        if status is None or status.state not in (RunState.STOPPING, *OVER):
            return False
        if not waits:
            return True
        sentences = dict(zip(status.attention_kinds, status.attention, strict=False))
        if (cannot := sentences.get(TroubleKind.CANNOT_LEAVE)) is not None:
            raise RefusedError(f"Run {paths.name!r} is to stop first, and does not get there. {cannot}", NOT_STARTED)
        if observed.presence is Presence.ANSWERS:
            until_s = time.monotonic() + GOES_WITHIN_S
        elif time.monotonic() > until_s:
            raise RefusedError(
                f"Run {paths.name!r} is {status.state}, but its supervisor does not end. Its log: {paths.supervisor_log}",
                NOT_STARTED,
            )
        if not told:
            message(f"Run {paths.name!r} is stopping; it is started as soon as that is done.")
            told = True
        time.sleep(LOOK_AGAIN_S)
    return told


def refuse_left_worker(paths: RunPaths) -> None:
    """Raises `RefusedError` where what the earlier run's worker started still runs: nobody would ever end it."""
    try:
        observed = observe(paths)
    except RecordError:
        return
    if observed.worker_is_left and observed.record is not None:
        left = still_there(paths.name, observed.status) if observed.status is not None else ""
        stop = f"To begin anew, stop it first: {typed('start', paths.name)}, then {typed('stop', paths.name)}"
        raise RefusedError(f"Run {paths.name!r} has no supervisor any more. {left} {stop}", NOT_STARTED)


def kept_from(record: RunRecord, asked: Asked) -> list[Difference]:
    """What was given now and would be another training than that of `record`."""
    _, _, kept = merge(record.settings, asked.loaded, is_command=record.command is not None)
    if asked.command is not None and asked.command != record.command:
        had = "the built-in training" if record.command is None else " ".join(record.command)
        kept.append(Difference("the command", had, " ".join(asked.command), "given now"))
    return kept


def refuse_other_training(record: RunRecord, kept: Sequence[Difference], asked: Asked, *, is_up: bool) -> NoReturn:
    """Raises `RefusedError`, which names what would be another training, and what to type."""
    stop, start = typed("stop", record.run), typed("start", record.run)
    does = "runs" if is_up else "is not finished"
    lines: list[str | Row] = [f"Run {record.run!r} {does}, and not with what was given now; nothing was changed."]
    lines += [f"  {d.key}: {shown(d.key, d.asked)} ({d.origin}), but it has {shown(d.key, d.has)}" for d in kept]
    other = "another training" if record.command is None else "another run"
    lines.append(f"That would be {other}. To have it, give the same once more with one of these:")
    fresh = f"{stop}; {start} --fresh" if is_up else f"{start} --fresh"
    ways = [
        (fresh, "begins anew in its place; the earlier one is kept"),
        ("memsup start --run NAME", "begins another one beside it"),
    ]
    lines += ways
    if (goes_on := _without(start, kept, asked)) is not None:
        lines.append(f"To go on as it was: {goes_on}")
    raise RefusedError(str(lines[0]), more=tuple(lines[1:]))


def _without(start: str, kept: Sequence[Difference], asked: Asked) -> str | None:
    """What goes on with a run that was not given what differs: `start`, from a folder where no file says it, with the limits
    that were typed, but for what a secret is. Returns None where it would be given that anywhere.
    """
    origins, here = {d.origin for d in kept}, str(job_file())
    if not origins <= {"flag", "given now", here}:
        return None
    names = {assignment: assignment.partition("=")[0].strip() for assignment in asked.assignments}
    given = {name: f"{name}=…" if keys()[name].is_secret else shlex.quote(one) for one, name in names.items()}
    may = [f"--set {words}" for name, words in given.items() if keys()[name].may_change]
    start = " ".join([start, *may])
    return f"(cd / && {start})" if here in origins else start


def _take_over(paths: RunPaths, settings: Settings) -> str:
    """Has the run's supervisor go on with these settings; returns what came of it. Raises `RefusedError`."""
    stop, start = typed("stop", paths.name), typed("start", paths.name)
    try:
        with Contact(paths) as contact:
            reply = contact.ask(RequestKind.TAKE_OVER, TAKES_OVER_WITHIN_S, settings_json=encode_settings(settings))
    except (NoAnswerError, NobodyThereError):
        raise RefusedError(
            f"The supervisor of run {paths.name!r} has not taken that over; nothing is known to have changed. "
            f"Once more, or with a stop between: {stop}, then {start} with the same.",
            NOT_STARTED,
        ) from None
    if not reply.ok:
        first, *more = reply.text.split("\n")
        raise RefusedError(f"{first} Nothing was changed.", more=tuple(more))
    return reply.text


def _tell_taken(taken: Sequence[Difference], text: str, asked: Asked) -> None:
    if not taken:
        return
    data("Dry run: it would go on with:" if asked.dry_run else "From now on it goes on with:")
    rows = [(d.key, _change(d), f"({d.origin})") for d in taken]
    data(*rows, *([text] if text else []))


def _change(d: Difference) -> str:
    secret = keys()[d.key].is_secret
    return "given anew, and not shown" if secret else f"{shown(d.key, d.has)} → {shown(d.key, d.asked)}"


def finished_status(paths: RunPaths) -> Status | None:
    status = observe(paths).status
    return status if status is not None and status.state is RunState.FINISHED else None


def tell_finished(paths: RunPaths, status: Status, asked: Asked) -> int:
    if asked.as_json:
        json_data(encode_status(status))
        return 0
    data(*finished_lines(status, f"Run {paths.name!r} is finished"))
    message(f"To begin anew: {typed('start', paths.name)} --fresh")
    return 0
