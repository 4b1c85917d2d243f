"""`pause`, `resume`, `stop`: one request to the supervisor, its answer, and what it changed.

The answer comes when the thing is done, not when it was heard. Ctrl-C while waiting leaves the order in force.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path

import click
import msgspec

from memsup.shared.commands import command
from memsup.shared.messages import Reply, RequestKind
from memsup.shared.paths import RunPaths, paths_of
from memsup.shared.record import RecordError
from memsup.shared.run_file import read_record, write_record
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.cli import INTERRUPTED
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.client.contact import (
    COMES_UP_WITHIN_S,
    LOOK_AGAIN_S,
    Contact,
    NoAnswerError,
    NobodyThereError,
    Presence,
    about_to_go,
    is_held,
    observe,
    still_there,
)
from memsup.supervisor.client.errors import RefusedError

DONE, NO_ANSWER, NOT_RUNNING = 0, 1, 3
WRITTEN_WITHIN_S = 5.0
"""A supervisor that has carried out an order has `run.json` written within this time, on a disk that takes it."""


class NotRunningError(RefusedError):
    """The run has no supervisor that could do what was asked. Its worker may be left."""

    def __init__(self, text: str, *, worker_is_left: bool = False, is_finished: bool = False) -> None:
        super().__init__(text, NOT_RUNNING)
        self.worker_is_left, self.is_finished = worker_is_left, is_finished


@click.command()
@run_option
@json_option
@click.option("--release", is_flag=True, help="Checkpoint, end the worker and give RAM and VRAM back.")
def pause(run_name: str, as_json: bool, release: bool) -> int:
    """Stop computing until `memsup resume`, also over restarts.

    Without --release memory is kept and going on takes no time. Exit code: 0 done, 1 no answer or refused, 3 not running.
    """
    paths = paths_of(run_name)
    reply = carried_out(paths, RequestKind.PAUSE_RELEASE if release else RequestKind.PAUSE_HOLD)
    freed = {"freed_ram_bytes": reply.freed_ram_bytes, "freed_vram_bytes": reply.freed_vram_bytes} if release else {}
    return answer(reply, as_json, **freed)


@click.command()
@run_option
@json_option
def resume(run_name: str, as_json: bool) -> int:
    """Continue after a pause, on the same curve.

    Exit code: 0 done, 1 no answer or refused, 3 not running.
    """
    return answer(carried_out(paths_of(run_name), RequestKind.RESUME), as_json)


@click.command()
@run_option
@json_option
@click.option("--now", is_flag=True, help="Without a checkpoint: what was learned since the last one is lost.")
def stop(run_name: str, as_json: bool, now: bool) -> int:
    """Write a checkpoint and stop; `memsup start` continues from it.

    A command of your own that is not attached gets SIGTERM, and `memsup start` begins it anew.
    Exit code: 0 done, 1 no answer or refused, 3 not running.
    """
    paths = paths_of(run_name)
    try:
        return answer(carried_out(paths, RequestKind.STOP_NOW if now else RequestKind.STOP), as_json)
    except RefusedError as error:
        if isinstance(error, NotRunningError):
            if not error.is_finished and (unwritten := _unwritten(paths, Wanted.STOPPED)) is not None:
                raise RefusedError(f"{error} {unwritten}", NO_ANSWER) from None
            if error.worker_is_left:
                raise RefusedError(f"{error} Then: {command('stop', run_name)}", NO_ANSWER) from None
        raise
    except KeyboardInterrupt:
        record = read_record(paths.record)
        if record is not None and record.wanted is Wanted.STOPPED:
            message(f"The run goes on stopping. Without its checkpoint: {command('stop', run_name)} --now")
        else:
            message(f"The supervisor has not taken that up, so the run may go on. Once more: {command('stop', run_name)}")
        return INTERRUPTED


_WANTED = {
    RequestKind.PAUSE_HOLD: Wanted.PAUSED,
    RequestKind.PAUSE_RELEASE: Wanted.PAUSED,
    RequestKind.RESUME: Wanted.RUNNING,
    RequestKind.STOP: Wanted.STOPPED,
    RequestKind.STOP_NOW: Wanted.STOPPED,
}


def carried_out(paths: RunPaths, what: RequestKind) -> Reply:
    """Orders something, and looks whether what the reply tells of is there. Raises `RefusedError` as `request` does."""
    reply = request(paths, what)
    if what is not RequestKind.RESUME:  # which goes on from what is in memory
        reply = seen_saved(paths, reply)
    return _seen_wanted(paths, _WANTED[what], reply) if what in _WANTED else reply


def request(paths: RunPaths, what: RequestKind) -> Reply:
    """Asks the supervisor for something, and gives back its reply. Raises `RefusedError` where nobody is there to be asked,
    or does not answer.
    """
    deadline_s = time.monotonic() + COMES_UP_WITHIN_S
    with Contact(paths) as contact:
        while True:
            try:
                return contact.ask(what)
            except NoAnswerError:
                log = f"its log: {paths.supervisor_log}"
                raise RefusedError(f"The supervisor of run {paths.name!r} does not answer; {log}", NO_ANSWER) from None
            except NobodyThereError:
                # It may just be coming up.
                if time.monotonic() > deadline_s or not contact.is_held() or about_to_go(paths) is not None:
                    break
            time.sleep(LOOK_AGAIN_S)
    observed, start = observe(paths), command("start", paths.name)
    status = observed.status
    if observed.why_silent is not None:
        raise RefusedError(observed.why_silent, NO_ANSWER)
    if observed.presence is Presence.ANSWERS:
        raise RefusedError(f"Run {paths.name!r} was not reached a moment ago, and answers now: order it once more.", NO_ANSWER)
    if status is None:
        raise NotRunningError(f"There is no run {paths.name!r}. Start it with: {start}")
    if status.state is RunState.FINISHED:
        raise NotRunningError(f"Run {paths.name!r} is finished. To begin anew: {start} --fresh", is_finished=True)
    if observed.worker_is_left:
        left = still_there(paths.name, status)
        raise NotRunningError(f"Run {paths.name!r} has no supervisor any more. {left}", worker_is_left=True)
    raise NotRunningError(f"Run {paths.name!r} is not running ({status.state}). Start it with: {start}")


def answer(reply: Reply, as_json: bool, **more: object) -> int:
    """Prints what came of a request; returns the exit code."""
    if as_json:
        status = msgspec.Raw(reply.status_json) if reply.status_json else None
        json_data(
            {"schema": 1, "ok": reply.ok, "text": reply.text, "checkpoint": reply.checkpoint_path, **more, "status": status}
        )
    elif reply.ok:
        data(reply.text)
    else:
        message(f"memsup: {reply.text}")
    return DONE if reply.ok else NO_ANSWER


def seen_saved(paths: RunPaths, reply: Reply, *, every_byte: bool = False) -> Reply:
    """The reply. Where the checkpoint that it tells of is gone or cut since it was written, the work is not saved.

    With `every_byte` all of it is read and compared, and not only looked at.
    """
    from memsup.checkpoint.errors import CheckpointError
    from memsup.checkpoint.reading import verify

    if not reply.ok or reply.checkpoint_path is None:
        return reply
    if _has_joined(paths):  # it lies on the first machine, whose supervisor looks
        return reply
    listed = f"{command('checkpoint', paths.name)} --list"
    try:
        verify(Path(reply.checkpoint_path), full=every_byte)
    except CheckpointError as error:
        unsaved = f"But {reply.checkpoint_path} cannot be gone on from any more: {error} What there is: {listed}"
        return msgspec.structs.replace(reply, ok=False, text=f"{reply.text} {unsaved}", checkpoint_path=None)
    return reply


def _has_joined(paths: RunPaths) -> bool:
    """Whether this machine is one of several, and not the first."""
    try:
        record = read_record(paths.record)
    except RecordError:
        return False
    return record is not None and record.settings.nodes.join is not None


def _seen_wanted(paths: RunPaths, wanted: Wanted, reply: Reply) -> Reply:
    """The reply. Where what a person wants is not on the disk, it is not all done: a boot would not know of it."""
    try:
        unwritten = _unwritten(paths, wanted) if reply.ok else None
        if reply.ok and not paths.record.exists():
            unwritten = f"But {paths.record} is gone: somebody removed it, and {command('start', paths.name)} finds no run."
    except RecordError as error:
        unwritten = f"But what you want of it cannot be kept: {error}"
    if unwritten is None:
        return reply
    return msgspec.structs.replace(reply, ok=False, text=f"{reply.text} {unwritten}")


def _unwritten(paths: RunPaths, wanted: Wanted) -> str | None:
    """Why `run.json` does not say what is wanted, for people. Returns None where it does, or there is no run.

    A supervisor that is there writes it in a moment. Where there is none any more, it is written here.
    """
    until_s = time.monotonic() + WRITTEN_WITHIN_S
    while (record := read_record(paths.record)) is None or record.wanted is not wanted:
        if not is_held(paths):
            if record is None:
                return None
            record.wanted = wanted
            try:
                write_record(paths.record, record)
            except OSError as error:
                again = command("stop" if wanted is Wanted.STOPPED else "start", paths.name)
                unknown = f"But {paths.record} cannot be written ({error.strerror}), so a boot would not know of it."
                first = "Make room" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "Make that possible"
                return f"{unknown} {first}, then: {again}"
            return None
        if time.monotonic() > until_s:
            return f"But {paths.record} cannot be written yet; the supervisor goes on trying."
        time.sleep(LOOK_AGAIN_S)
    return None
