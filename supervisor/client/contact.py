"""What is true about a run right now, and how to ask its supervisor for something.

The supervisor itself is asked first. Where nobody answers, `status.json` tells what was so, and the lock on the run's folder,
which the kernel frees with its holder, whether anybody guards it still. Nothing here starts or ends anything.
"""

from __future__ import annotations

import enum
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec

from memsup.shared.commands import command
from memsup.shared.endpoints import CONTROL_SOCKET, SocketFolder
from memsup.shared.files import UnreadableError, read_document
from memsup.shared.messages import BadFrameError, Reply, Request, RequestKind, decode_reply, encode
from memsup.shared.paths import RunPaths, open_private
from memsup.shared.status import OVER, RunState, Status, Trouble, TroubleKind, Wanted, decode_status
from memsup.supervisor.daemon.lock import is_taken
from memsup.supervisor.words import count, duration

if TYPE_CHECKING:
    import zmq

    from memsup.shared.record import RunRecord

SILENT_S = 15.0
"""A supervisor that for this long has not even answered a question for its status counts as silent."""
ASK_AGAIN_S = 3.0
COMES_UP_WITHIN_S = 1.0
"""The lock is taken a moment before the sockets are there, and freed a moment after they are gone."""
LOOK_AGAIN_S = 0.02


class NobodyThereError(Exception):
    """No supervisor listens at the run's control socket."""


class NoAnswerError(Exception):
    """A supervisor listens, but has not answered in time."""


class Presence(enum.Enum):
    """Whether a supervisor is there, as seen from outside."""

    ANSWERS = enum.auto()
    SILENT = enum.auto()
    """A supervisor holds the run's lock but does not answer: it is just starting or ending, or stuck."""
    GONE = enum.auto()


@dataclass(frozen=True)
class Observed:
    """What was found of a run."""

    presence: Presence
    status: Status | None
    """What is so or, with the supervisor gone, what was so, corrected. It is None where the run does not exist."""
    record: RunRecord | None
    """What `run.json` holds. It is None where the run does not exist, or its supervisor answered and the file was not read."""


def observe(paths: RunPaths, within_s: float = 1.0) -> Observed:
    """Looks at a run. Raises `PathError` and `RecordError`."""
    deadline_s = time.monotonic() + COMES_UP_WITHIN_S
    with Contact(paths) as contact:
        while True:
            try:
                status = decode_status(contact.ask(RequestKind.STATUS, within_s).status_json)
                return Observed(Presence.ANSWERS, status, None)
            except NoAnswerError:
                return _silent(paths, "The supervisor does not answer; it may be stuck. Its log: " + str(paths.supervisor_log))
            except NobodyThereError:
                if not contact.is_held():
                    return _gone(paths)
            if time.monotonic() > deadline_s:
                return _silent(
                    paths,
                    f"A supervisor holds this run, but there is no way to reach it in {paths.runtime}: it was started with "
                    "another MEMSUP_RUNTIME_DIR or XDG_RUNTIME_DIR. Set the same one.",
                )
            time.sleep(LOOK_AGAIN_S)


def ask(paths: RunPaths, what: RequestKind, within_s: float | None = None) -> Reply:
    """The answer to one request; see `Contact.ask`. Raises `NobodyThereError`, `NoAnswerError` and `PathError`."""
    with Contact(paths) as contact:
        return contact.ask(what, within_s)


def is_held(paths: RunPaths) -> bool:
    """Whether a supervisor holds the run's lock. Raises `PathError`."""
    with Contact(paths) as contact:
        return contact.is_held()


class Contact:
    """A run's two folders, each opened and checked once, as soon as it is needed and there, and what can be found out there."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._state_fd: int | None = None
        self._sockets: SocketFolder | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._state_fd is not None:
            os.close(self._state_fd)
        if self._sockets is not None:
            self._sockets.close()

    def is_held(self) -> bool:
        """Whether a supervisor holds the run's lock. Raises `PathError`."""
        if self._state_fd is None and os.path.exists(self._paths.state):
            self._state_fd = open_private(self._paths.state)
        return self._state_fd is not None and is_taken(self._state_fd)

    def ask(self, what: RequestKind, within_s: float | None = None) -> Reply:
        """The answer to one request. Without `within_s` it waits for as long as the supervisor answers at all: a checkpoint
        takes its time. Raises `NobodyThereError`, `NoAnswerError` and `PathError`.
        """
        import zmq

        if not self._is_listening():
            raise NobodyThereError
        with self._control() as control:
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
                if not self._is_listening():
                    if control.poll(250, zmq.POLLIN):  # its last words may have crossed with our look
                        continue
                    raise NobodyThereError
                if within_s is None and now_s - asked_s > ASK_AGAIN_S:
                    number, asked_s = number + 1, now_s
                    control.send_multipart(encode(Request(request_id=number, what=RequestKind.STATUS)))

    def _is_listening(self) -> bool:
        """Whether somebody accepts connections at the control socket; a socket left by the dead refuses."""
        if self._sockets is None:
            if not os.path.exists(self._paths.runtime):
                return False
            self._sockets = SocketFolder(self._paths)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                probe.connect(self._sockets.endpoint(CONTROL_SOCKET).removeprefix("ipc://"))
        except BlockingIOError:  # its queue is full: somebody is there, and stuck
            return True
        except OSError:
            return False
        return True

    @contextmanager
    def _control(self) -> Iterator[zmq.Socket[bytes]]:
        import zmq

        assert self._sockets is not None, "whoever asks has looked first whether anybody listens"
        context = zmq.Context()
        control = context.socket(zmq.DEALER)
        try:
            control.linger = 0
            control.connect(self._sockets.endpoint(CONTROL_SOCKET))
            yield control
        finally:
            control.close()
            context.term()


# --------------------------------------------------------------------------------------------------------------------
# Where nobody answers: what was so, corrected by what is known


def _silent(paths: RunPaths, why: str) -> Observed:
    record = _record(paths)
    status = _written(paths, record)
    if status is not None:
        if status.state in OVER and status.pid == _guardian(paths):  # it has said its last words, and is about to go
            return Observed(Presence.SILENT, status, record)
        if status.state in OVER:  # the status is of the last life; this one has just begun
            status.state = RunState.STARTING
        status.call_for(Trouble(TroubleKind.SUPERVISOR_GONE, why))
    return Observed(Presence.SILENT, status, record)


def _guardian(paths: RunPaths) -> int | None:
    """The process that holds the run's lock, as it wrote there. Returns None where that cannot be read."""
    try:
        return int(paths.lock.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _gone(paths: RunPaths) -> Observed:
    from memsup.shared.run_file import settle

    settle(paths)
    record = _record(paths)
    status = _written(paths, record)
    if status is None or record is None:
        return Observed(Presence.GONE, None, None)
    status.pid = status.worker_pid = None
    status.memory = msgspec.structs.replace(status.memory, worker_bytes=None)
    status.wanted = record.wanted
    if status.state not in (RunState.FINISHED, RunState.FAILED):
        was, status.state = status.state, RunState.STOPPED
        age_s = _age_s(paths)
        if was is not RunState.STOPPED and age_s is not None:
            status.since = time.time() - age_s
        if record.wanted is not Wanted.STOPPED:
            left = _what_is_left(paths, status, was, is_command=record.command is not None)
            status.call_for(Trouble(TroubleKind.SUPERVISOR_GONE, left))
    return Observed(Presence.GONE, status, record)


def _record(paths: RunPaths) -> RunRecord | None:
    from memsup.shared.run_file import read_record

    return read_record(paths.record)


def _what_is_left(paths: RunPaths, status: Status, was: RunState, *, is_command: bool) -> str:
    if was is RunState.STOPPED:
        what = "The supervisor was told to go, as at a shutdown."
    else:
        age_s = _age_s(paths)
        when = "" if age_s is None else f" Its last sign of life was {duration(age_s)} ago."
        what = f"The supervisor is gone although the run was {was}.{when}"
    if is_command:
        return f"{what} {command('start', paths.name)} begins the command anew."
    if status.checkpoint.step is None:
        return f"{what} {command('start', paths.name)} begins again, for there is no checkpoint yet."
    step = status.progress.step
    reached = f" (step {count(step)} was reached)" if step is not None and step > status.checkpoint.step else ""
    return (
        f"{what} {command('start', paths.name)} continues from the checkpoint of step {count(status.checkpoint.step)}{reached}."
    )


def _written(paths: RunPaths, record: RunRecord | None) -> Status | None:
    """The status in `status.json`, with ages as of now, or what little `run.json` says. Returns None where there is no run."""
    if record is None:
        return None
    try:
        status = read_document(paths.status, decode_status)
    except (FileNotFoundError, UnreadableError):
        status = None
    if status is None or status.run_id != record.run_id:
        return Status(
            run=record.run,
            run_id=record.run_id,
            state=RunState.STARTING,
            wanted=record.wanted,
            is_command=record.command is not None,
            tier=record.tier,
        )
    status.run = record.run
    age_s = _age_s(paths)
    if status.checkpoint.age_s is not None and age_s is not None:
        status.checkpoint.age_s += age_s
    return status


def _age_s(paths: RunPaths) -> float | None:
    """The seconds since the supervisor last wrote its status. Returns None where it has written none."""
    try:
        return max(0.0, time.time() - paths.status.stat().st_mtime)
    except OSError:
        return None
