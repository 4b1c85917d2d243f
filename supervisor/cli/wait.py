"""`memsup wait` and `start --wait`: looks on until the run ends, with a moving line on a terminal and plain lines elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import time

import click

from memsup.shared.commands import command
from memsup.shared.paths import RunPaths, paths_of
from memsup.shared.status import OVER, RunState, Status, Trouble, TroubleKind, Wanted, encode_status
from memsup.supervisor.cli import INTERRUPTED, LEAST_DESCRIPTORS
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.picture import one_line, progress
from memsup.supervisor.cli.screen import data, json_data, message, moves, moving
from memsup.supervisor.client.contact import is_held, observe
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.words import finished_lines

FINISHED, NOT_FINISHED = 0, 1
LOOK_EVERY_S = 1.0
TELL_EVERY_S = 10.0
LOOK_SOON_S = 0.1
KILLED = 128
"""Added to a signal's number it is the exit code of what that signal ended, as shells have it."""
COMES_UP_WITHIN_S = 60.0
"""A supervisor takes the run's lock within this time, or none comes."""


@click.command()
@run_option
@json_option
def wait(run_name: str, as_json: bool) -> int:
    """Wait until the run ends. Progress is shown on stderr, the result on stdout.

    Ctrl-C ends the waiting only. Exit code: 0 finished, else 1.
    """
    paths = paths_of(run_name)
    if observe(paths).status is None:
        raise RefusedError(f"There is no run {run_name!r}. Start it with: {command('start', run_name)}", NOT_FINISHED)
    return follow(paths, as_json)


def follow(paths: RunPaths, as_json: bool) -> int:
    """Shows progress until the run is over or its supervisor is gone; returns the exit code."""
    try:
        last = _on_a_terminal(paths) if moves(sys.stderr) and not as_json else _in_lines(paths)
    except KeyboardInterrupt:
        return goes_on(paths)
    if as_json:
        json_data(encode_status(last))
    else:
        _tell_end(last, paths)
    return FINISHED if last.state is RunState.FINISHED else NOT_FINISHED


def goes_on(paths: RunPaths) -> int:
    """Says after Ctrl-C that only the looking on has ended; returns the exit code."""
    message(
        "", f"The run goes on. Look at it with: {command('status', paths.name)}   End it with: {command('stop', paths.name)}"
    )
    return INTERRUPTED


def _tell_end(last: Status, paths: RunPaths) -> None:
    for sentence in last.attention:
        message(f"! {sentence}")
    match last.state:
        case RunState.FINISHED:
            data(*finished_lines(last))
        case RunState.FAILED:
            message(f"The run failed: {last.failure or 'see the log'}", f"Its log: {command('logs', paths.name)}")
        case _:
            message(f"The run is stopped. Continue with: {command('start', paths.name)}")


def follow_from_beside(paths: RunPaths) -> None:
    """Leaves a process that writes, where there is no terminal, how the run does whose supervisor this process is about to
    become. It is no child of it, and goes when the run is over.
    """
    if os.fork():
        os.wait()
        return
    if os.fork():
        os._exit(0)
    os.closerange(3, LEAST_DESCRIPTORS)  # the turn of this start is among them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which is in this terminal as well
    try:
        until_s = time.monotonic() + COMES_UP_WITHIN_S
        while not is_held(paths) and time.monotonic() < until_s:
            time.sleep(LOOK_SOON_S)
        if is_held(paths):
            _tell_end(_in_lines(paths), paths)
    finally:
        os._exit(0)


def stay_beside(paths: RunPaths, supervisor: int) -> int:
    """Follows the run until its supervisor has gone, which is a child in this terminal, and says what came of it. Returns the
    supervisor's exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which is in this terminal as well
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(supervisor, number))
    last = None
    while last is None and os.waitid(os.P_PID, supervisor, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if is_held(paths):
            last = _in_lines(paths)
        else:
            time.sleep(LOOK_SOON_S)
    _, status = os.waitpid(supervisor, 0)
    code = os.waitstatus_to_exitcode(status)
    if last is None and code == FINISHED:  # too quick to be seen
        last = observe(paths).status
    if last is not None:
        _tell_end(last, paths)
    return code if code >= 0 else KILLED - code


def _in_lines(paths: RunPaths) -> Status:
    """Prints a line when the state changes, and every ten seconds while something moves; gives back the last status."""
    told, told_at_s = "", -TELL_EVERY_S
    told_state: RunState | None = None
    while True:
        status, over = _look(paths)
        line = one_line(status)
        due = time.monotonic() - told_at_s >= TELL_EVERY_S
        if status.state is not told_state or (due and line != told):
            message(line)
            told, told_at_s, told_state = line, time.monotonic(), status.state
        if over:
            return status
        time.sleep(LOOK_SOON_S if status.state is RunState.STOPPING else LOOK_EVERY_S)


def _on_a_terminal(paths: RunPaths) -> Status:
    told: set[str] = set()
    with moving(sys.stderr) as draw:
        while True:
            status, over = _look(paths)
            draw(*progress(status))
            for sentence in status.attention:
                if sentence not in told:
                    message(f"! {sentence}")
            told = set(status.attention)
            if over:
                return status
            time.sleep(LOOK_EVERY_S)


def _look(paths: RunPaths) -> tuple[Status, bool]:
    """The status now, and whether nothing more will come."""
    observed = observe(paths)
    if observed.status is None:  # somebody deleted it
        gone = Status(run=paths.name, state=RunState.STOPPED, wanted=Wanted.STOPPED)
        gone.call_for(Trouble(TroubleKind.SUPERVISOR_GONE, "The run's folder is gone."))
        return gone, True
    return observed.status, observed.status.state in OVER
