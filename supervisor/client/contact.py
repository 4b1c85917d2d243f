"""What is true about a run right now, and how to ask its supervisor for something.

The supervisor itself is asked first. Where nobody answers, `status.json` tells what was so, and the lock on the run's folder,
which the kernel frees with its holder, whether anybody guards it still. Nothing here starts or ends anything.
"""

from __future__ import annotations

import enum
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from memsup.shared.endpoints import CONTROL_SOCKET, SocketFolder
from memsup.shared.messages import BadFrameError, Reply, Request, RequestKind, decode_reply, encode
from memsup.shared.paths import RunPaths, open_private
from memsup.shared.status import OVER, RunState, Status, Wanted, decode_status
from memsup.supervisor.words import command, count, duration

if TYPE_CHECKING:
    import zmq

    from memsup.shared.record import RunRecord

SILENT_S = 15.0
"""A supervisor that has not answered even a question for its status for this long does not answer."""
ASK_AGAIN_S = 3.0
COMES_UP_WITHIN_S = 1.0
"""The lock is taken a moment before the sockets are there, and freed a moment after they are gone."""


class NobodyThereError(Exception):
    """No supervisor listens at the run's control socket."""


class NoAnswerError(Exception):
    """It listens, but has not answered in time."""


class Guard(enum.Enum):
    """The supervisor, as seen from outside."""

    ANSWERS = enum.auto()
    SILENT = enum.auto()
    """It holds the run's lock but does not answer: just starting or ending, or stuck."""
    GONE = enum.auto()


@dataclass(frozen=True)
class Seen:
    """`status` is None only for a run that does not exist; with a supervisor gone it is what was so, corrected."""

    guard: Guard
    status: Status | None
    record: RunRecord | None


def see(paths: RunPaths, within_s: float = 1.0) -> Seen:
    """Raises `PathError` and `RecordError`."""
    deadline_s = time.monotonic() + COMES_UP_WITHIN_S
    while True:
        try:
            status = decode_status(ask(paths, RequestKind.STATUS, within_s=within_s).status_json)
            return Seen(Guard.ANSWERS, status, None)
        except NoAnswerError:
            return _silent(paths, "The supervisor does not answer; it may be stuck. Its log: " + str(paths.supervisor_log))
        except NobodyThereError:
            if not is_held(paths):
                return _gone(paths)
        if time.monotonic() > deadline_s:
            return _silent(
                paths,
                f"A supervisor holds this run, but there is no way to reach it in {paths.runtime}: it was started with another "
                "MEMSUP_RUNTIME_DIR or XDG_RUNTIME_DIR. Set the same one.",
            )
        time.sleep(0.02)


def ask(paths: RunPaths, what: RequestKind, within_s: float | None = None) -> Reply:
    """The answer to one request. Without `within_s` for as long as it takes, as long as the supervisor answers at all: a
    checkpoint takes its time. Raises `NobodyThereError` and `NoAnswerError`.
    """
    import zmq

    if not is_listening(paths):
        raise NobodyThereError
    with _control(paths) as control:
        number = 1
        control.send_multipart(encode(Request(request_id=number, what=what)))
        began_s = heard_s = asked_s = time.monotonic()
        while True:
            if control.poll(50 if within_s is not None else 250, zmq.POLLIN):
                heard_s = time.monotonic()
                try:
                    reply = decode_reply(control.recv_multipart())
                except BadFrameError:
                    continue
                if reply.request_id == 1:
                    return reply
                continue
            now_s = time.monotonic()
            if within_s is not None and now_s - began_s > within_s:
                raise NoAnswerError
            if now_s - heard_s > SILENT_S:
                raise NoAnswerError
            if not is_listening(paths):
                if control.poll(250, zmq.POLLIN):  # its last words may have crossed with our look
                    continue
                raise NobodyThereError
            if within_s is None and now_s - asked_s > ASK_AGAIN_S:
                number, asked_s = number + 1, now_s
                control.send_multipart(encode(Request(request_id=number, what=RequestKind.STATUS)))


def is_listening(paths: RunPaths) -> bool:
    """Whether somebody accepts connections at the control socket; a socket left by the dead refuses."""
    try:
        folder_fd = open_private(paths.runtime) if paths.runtime.exists() else None
    except OSError:
        folder_fd = None
    if folder_fd is None:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(f"/proc/self/fd/{folder_fd}/{CONTROL_SOCKET}")
    except BlockingIOError:  # its queue is full: somebody is there, and stuck
        return True
    except OSError:
        return False
    finally:
        os.close(folder_fd)
    return True


def is_held(paths: RunPaths) -> bool:
    """Whether a supervisor holds the run's lock."""
    try:
        fd = open_private(paths.state) if paths.state.exists() else None
    except OSError:
        fd = None
    if fd is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)  # which gives the lock back
    return False


@contextmanager
def _control(paths: RunPaths) -> Iterator[zmq.Socket[bytes]]:
    import zmq

    folder = SocketFolder(paths)
    context = zmq.Context()
    control = context.socket(zmq.DEALER)
    try:
        control.linger = 0
        control.connect(folder.endpoint(CONTROL_SOCKET))
        yield control
    finally:
        control.close()
        context.term()
        folder.close()


# --------------------------------------------------------------------------------------------------------------------
# Where nobody answers: what was so, corrected by what is known


def _silent(paths: RunPaths, why: str) -> Seen:
    record = _record(paths)
    status = _written(paths, record)
    if status is not None:
        if status.state in OVER:  # of its last life; this one has just begun
            status.state = RunState.STARTING
        status.attention.append(why)
    return Seen(Guard.SILENT, status, record)


def _gone(paths: RunPaths) -> Seen:
    record = _record(paths)
    status = _written(paths, record)
    if status is None or record is None:
        return Seen(Guard.GONE, None, None)
    status.pid = status.worker_pid = None
    status.memory = msgspec.structs.replace(status.memory, worker_bytes=None)
    status.wanted = record.wanted
    if status.state not in (RunState.FINISHED, RunState.FAILED):
        was, status.state = status.state, RunState.STOPPED
        age_s = _age_s(paths)
        if was is not RunState.STOPPED and age_s is not None:
            status.since = time.time() - age_s
        if record.wanted is not Wanted.STOPPED:
            status.attention.append(_what_is_left(paths, status, was))
    return Seen(Guard.GONE, status, record)


def _record(paths: RunPaths) -> RunRecord | None:
    from memsup.shared.run_file import read_record

    return read_record(paths.record)


def _what_is_left(paths: RunPaths, status: Status, was: RunState) -> str:
    if was is RunState.STOPPED:
        what = "The supervisor was told to go, as at a shutdown."
    else:
        age_s = _age_s(paths)
        when = "" if age_s is None else f" Its last sign of life was {duration(age_s)} ago."
        what = f"The supervisor is gone although the run was {was}.{when}"
    if status.checkpoint.step is None:
        return f"{what} {command('start', paths.name)} begins again, for there is no checkpoint yet."
    step = status.progress.step
    reached = f" (step {count(step)} was reached)" if step is not None and step > status.checkpoint.step else ""
    return (
        f"{what} {command('start', paths.name)} continues from the checkpoint of step {count(status.checkpoint.step)}{reached}."
    )


def _written(paths: RunPaths, record: RunRecord | None) -> Status | None:
    """`status.json`, with ages as of now; or what little `run.json` says."""
    if record is None:
        return None
    try:
        status = decode_status(paths.status.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        status = None
    if status is None or status.run_id != record.run_id:
        return Status(run=record.run, run_id=record.run_id, state=RunState.STARTING, wanted=record.wanted, tier=record.tier)
    age_s = _age_s(paths)
    if status.checkpoint.age_s is not None and age_s is not None:
        status.checkpoint.age_s += age_s
    return status


def _age_s(paths: RunPaths) -> float | None:
    """Since the supervisor last wrote its status."""
    try:
        return max(0.0, time.time() - paths.status.stat().st_mtime)
    except OSError:
        return None
