"""What `start` waits for on a terminal: the run's first step, before which whatever is wrong with a model or the data shows.

Only then may the terminal be closed. Ctrl-C lets go, and the run goes on. A command of a person's own that is not attached
has no steps: it is looked at for as long as what ends at once takes to end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from memsup.shared.commands import command
from memsup.shared.paths import RunPaths
from memsup.shared.status import OVER, RunState, Status, Wanted
from memsup.supervisor.cli.picture import one_line, progress
from memsup.supervisor.cli.screen import data, message, moves, moving
from memsup.supervisor.client.contact import observe
from memsup.supervisor.words import count, duration, finished_lines, rest_by_hours, trains

LOOK_EVERY_S = 0.2
WITHIN_S = 900.0
"""Loading and the first step have this long; a model that is fetched from far away may take longer, and goes on unwatched."""
PROGRAM_WITHIN_S = 1.5
"""A program that cannot start at all has ended within this time."""
LAST_LINES = 5
_DOING = {
    "starting": "starting Python and its libraries",
    "loading": "loading the model and reading the data",
    "training": "computing the first step",
}


def look_on(paths: RunPaths, *, from_step: int, is_command: bool) -> Status:
    """Shows what the run does until its first step beyond `from_step` is done or it is over, says which, and returns its status
    then.
    """
    if not moves(sys.stderr):
        last = _until_it_works(paths, lambda _: None, from_step=from_step, is_command=is_command)
    else:
        with moving(sys.stderr, stays=False) as draw:
            last = _until_it_works(paths, lambda s: draw(*_drawn(s)), from_step=from_step, is_command=is_command)
    _tell(paths, last, from_step=from_step)
    return last


def works(status: Status, *, from_step: int) -> bool:
    """Whether a step has been done in this life."""
    return trains(status) and (status.progress.step or 0) > from_step


def _until_it_works(paths: RunPaths, show: Callable[[Status], None], *, from_step: int, is_command: bool) -> Status:
    """The status in which there is nothing more to wait for."""
    began_s, seen_running_s = time.monotonic(), None
    told: set[str] = set()
    while True:
        status = observe(paths).status
        if status is None:
            return Status(run=paths.name, state=RunState.STOPPED, wanted=Wanted.STOPPED)
        now_s = time.monotonic()
        for sentence in status.attention:
            if sentence not in told and status.state not in OVER:
                message(f"! {sentence}")
        told.update(status.attention)
        rests = status.wanted is not Wanted.RUNNING or rest_by_hours(status) is not None
        if status.state in OVER or works(status, from_step=from_step) or rests:
            return status
        if is_command and status.state is RunState.RUNNING and not (status.program and status.program.attached):
            seen_running_s = seen_running_s or now_s
            if now_s - seen_running_s > PROGRAM_WITHIN_S:
                return status
        if now_s - began_s > WITHIN_S:
            return status
        show(status)
        time.sleep(LOOK_EVERY_S)


def _drawn(status: Status) -> list[str]:
    if status.is_command:
        return ["Waiting until the command works. Ctrl-C lets go of it."]
    doing = _DOING.get(status.progress.phase or "starting")
    if status.state not in (RunState.STARTING, RunState.RUNNING) or doing is None:
        return [str(line) for line in progress(status)]
    since = "" if status.since is None else f", for {duration(max(0.0, time.time() - status.since))}"
    return [f"Waiting for the first step: {doing}{since}. Ctrl-C lets go of it."]


def _tell(paths: RunPaths, status: Status, *, from_step: int) -> None:
    match status.state:
        case RunState.FAILED:
            message(*(f"! {sentence}" for sentence in status.attention if sentence != status.failure))
            message(f"The run failed: {status.failure or 'see its log'}")
            _tell_last_words(paths, status)
            again = command("start", paths.name)
            message(
                f"Its log: {command('logs', paths.name)}   When that is mended: {again}   With other settings: {again} --fresh"
            )
        case RunState.FINISHED:
            data(*finished_lines(status))
        case RunState.STOPPED:
            message(*(f"! {sentence}" for sentence in status.attention))
            message(f"The run is stopped. Continue with: {command('start', paths.name)}")
        case _ if works(status, from_step=from_step):
            left = "" if status.progress.eta_s is None else f"; about {duration(status.progress.eta_s)} to go"
            of = "" if not status.progress.total_steps else f" of {count(status.progress.total_steps)}"
            data(f"Step {count(status.progress.step)}{of} is done{left}. This terminal may be closed.")
        case _ if status.is_command and status.state is RunState.RUNNING:
            data("It runs. This terminal may be closed.")
        case _:
            message(f"No step is done yet ({one_line(status)}), and nobody waits for it any more; it goes on.")


def _tell_last_words(paths: RunPaths, status: Status) -> None:
    """The end of what a program printed: why it ended is its own to say."""
    if not status.is_command:
        return
    from memsup.supervisor.record.output import worker_log

    message(*(f"  {line.text}" for line in worker_log(paths).last(LAST_LINES) if line.event is None))
