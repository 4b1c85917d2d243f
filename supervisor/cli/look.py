"""What `memsup status` shows: what is so, from the supervisor itself where there is one, and an exit code for scripts.

It is asked again and again, beside a training that wants the processor, so nothing of click is imported here.
"""

from __future__ import annotations

import sys
import time

from memsup.shared.commands import command
from memsup.shared.paths import paths_of
from memsup.shared.status import OVER, RunState, Status, encode_status
from memsup.supervisor.cli.picture import picture
from memsup.supervisor.cli.screen import data, json_data, message, moves
from memsup.supervisor.cli.streams import must_be_read
from memsup.supervisor.client.contact import observe

ALIVE, ATTENTION, STOPPED, UNKNOWN = 0, 1, 3, 4
WATCH_EVERY_S = 1.0
WATCH_LOG_EVERY_S = 10.0
"""Where nobody can watch a picture move, it is printed again after this time."""


def look(run_name: str, as_json: bool, *, verbose: bool = False, watch: bool = False) -> int:
    """Shows the run once, or with `watch` until it ends; returns the exit code."""
    paths = paths_of(run_name)
    found = observe(paths).status
    if found is None:
        message(f"There is no run {run_name!r} in {paths.state.parent}. Start it with: {command('start', run_name)}")
        return UNKNOWN
    if watch:
        found = _watch(run_name, found, as_json, verbose)
    else:
        _print(found, as_json, verbose)
    return exit_code(found)


def exit_code(found: Status) -> int:
    if found.state is RunState.FINISHED:
        return ALIVE
    if found.state is RunState.FAILED or found.attention:
        return ATTENTION
    return STOPPED if found.state is RunState.STOPPED else ALIVE


def _print(found: Status, as_json: bool, verbose: bool) -> None:
    if as_json:
        json_data(encode_status(found))
    else:
        data(*picture(found, time.time(), verbose=verbose))


def _watch(run_name: str, found: Status, as_json: bool, verbose: bool) -> Status:
    """Shows the run until it is over, and gives back what was seen last, which is left on the screen."""
    paths = paths_of(run_name)
    if as_json or not moves(sys.stdout):
        while True:
            _print(found, as_json, verbose)
            must_be_read()
            if found.state in OVER:
                return found
            time.sleep(WATCH_EVERY_S if as_json else WATCH_LOG_EVERY_S)
            found = observe(paths).status or found
    if found.state not in OVER:
        from memsup.supervisor.cli.watch import watch

        found = watch(paths, found)
    _print(found, as_json, verbose)
    return found
