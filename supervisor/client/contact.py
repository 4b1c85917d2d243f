"""What is true about a run right now, and how to ask its supervisor for something.

The supervisor itself is asked first. Where nobody answers, `status.json` tells what was so, and the lock on the run's folder,
which the kernel frees with its holder, whether anybody guards it still. Nothing here starts or ends anything.
"""

from __future__ import annotations

import enum
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from memsup import zmtp
from memsup.shared.commands import command
from memsup.shared.endpoints import CONTROL_SOCKET, SocketFolder
from memsup.shared.files import UnreadableError, read_document, read_small
from memsup.shared.messages import MAX_FRAME_BYTES, BadFrameError, Reply, Request, RequestKind, decode_reply, encode
from memsup.shared.paths import RunPaths, open_private
from memsup.shared.status import (
    OVER,
    CheckpointStatus,
    ProgressStatus,
    RunState,
    Status,
    Trouble,
    TroubleKind,
    Wanted,
    decode_status,
)
from memsup.supervisor.daemon.lock import is_taken
from memsup.supervisor.words import count, duration

if TYPE_CHECKING:
    from memsup.shared.record import RunRecord

SILENT_S = 15.0
"""A supervisor that for this long has not even answered a question for its status counts as silent."""
ASK_AGAIN_S = 3.0
COMES_UP_WITHIN_S = 3.0
"""The lock is taken a moment before the sockets are there, and freed a moment after they are gone; and where somebody removed
them, the supervisor makes them anew when it looks next, every second or two."""
LOOK_AGAIN_S = 0.02
_BLINK_S = 0.05
_MOST_LOCK_BYTES = 32
_TIME = struct.Struct("@ll")
"""A `timeval` of the kernel."""


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


class Observed(msgspec.Struct, frozen=True):
    """What was found of a run."""

    presence: Presence
    status: Status | None
    """What is so or, with the supervisor gone, what was so, corrected. It is None where the run does not exist."""
    record: RunRecord | None
    """What `run.json` holds. It is None where the run does not exist, or its supervisor answered and the file was not read."""
    worker_is_left: bool = False
    """Whether what the worker started still runs although the supervisor is gone."""
    why_silent: str | None = None
    """The sentence that says why a supervisor that holds the run is not heard. It is None where it is heard, is gone, or has
    said its last words and is about to go.
    """


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
                if (going := about_to_go(paths)) is not None:
                    return going
            if time.monotonic() > deadline_s:
                return _silent(paths, _why_unreachable(paths))
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

    def ask(self, what: RequestKind, within_s: float | None = None, *, settings_json: bytes = b"") -> Reply:
        """The answer to one request; `settings_json` belongs to `TAKE_OVER`. Without `within_s` it waits for as long as the
        supervisor answers at all: a checkpoint takes its time. Raises `NobodyThereError`, `NoAnswerError` and `PathError`.
        """
        began_s = heard_s = asked_s = time.monotonic()
        number, incoming = 0, zmtp.Incoming(2 * MAX_FRAME_BYTES)
        with self._connected(SILENT_S if within_s is None else within_s) as control:
            control.settimeout(_BLINK_S)
            control.sendall(zmtp.opening(b"DEALER"))
            while True:
                for reply in _received(control, incoming):
                    heard_s = time.monotonic()
                    if reply.request_id == 1:
                        return reply
                now_s = time.monotonic()
                if now_s - began_s > within_s if within_s is not None else now_s - heard_s > SILENT_S:
                    raise NoAnswerError
                if incoming.is_ready and (number == 0 or (within_s is None and now_s - asked_s > ASK_AGAIN_S)):
                    number, asked_s = number + 1, now_s
                    request = Request(request_id=number, what=RequestKind.STATUS)
                    if number == 1:
                        request = Request(request_id=1, what=what, settings_json=settings_json)
                    control.sendall(zmtp.message(encode(request)))

    @contextmanager
    def _connected(self, within_s: float) -> Iterator[socket.socket]:
        """A connection to the control socket; one that was left by the dead refuses. Raises `NobodyThereError`,
        `NoAnswerError` where somebody is there who lets nobody in, and `PathError`.
        """
        folder = self._socket_folder()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            # The kernel's own time limit: who is behind others in the queue of a socket keeps the place meanwhile.
            control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(int(within_s), int(within_s % 1 * 1e6)))
            try:
                control.connect(folder.path(CONTROL_SOCKET))
                yield control
            except (BlockingIOError, TimeoutError):
                raise NoAnswerError from None
            except OSError:
                raise NobodyThereError from None

    def _socket_folder(self) -> SocketFolder:
        """The runtime folder, opened anew where another one has its name now. Raises `NobodyThereError` and `PathError`."""
        try:
            found = self._paths.runtime.stat()
        except OSError:
            raise NobodyThereError from None
        if self._sockets is not None and not os.path.samestat(found, os.fstat(self._sockets.fd)):
            self._sockets.close()
            self._sockets = None
        if self._sockets is None:
            self._sockets = SocketFolder(self._paths)
        return self._sockets


def _received(control: socket.socket, incoming: zmtp.Incoming) -> Iterator[Reply]:
    """The replies that come in whole within a moment. Raises `NobodyThereError` where the other end is gone, or is none."""
    try:
        received = control.recv(64 << 10)
    except TimeoutError:
        return
    if not received:
        raise NobodyThereError
    incoming.feed(received)
    try:
        while (parts := incoming.next_message()) is not None:
            with suppress(BadFrameError):
                yield decode_reply(parts)
    except zmtp.ZmtpError:
        raise NobodyThereError from None


# --------------------------------------------------------------------------------------------------------------------
# Where nobody answers: what was so, corrected by what is known


def about_to_go(paths: RunPaths) -> Observed | None:
    """What was found of a run whose supervisor has said its last words, hears nobody any more, and only has its last message to
    people delivered. Returns None where it is not so far.
    """
    record = _record(paths)
    status = _written(paths, record)
    is_its_own = status is not None and status.pid is not None and status.pid == _guardian(paths)
    if status is None or status.state not in OVER or not is_its_own or not os.path.exists(f"/proc/{status.pid}"):
        return None
    return Observed(Presence.SILENT, status, record)


def _silent(paths: RunPaths, why: str) -> Observed:
    if (going := about_to_go(paths)) is not None:
        return going
    record = _record(paths)
    status = _written(paths, record)
    if status is not None:
        if status.state in OVER:  # the status is of the last life; this one has just begun
            status.state = RunState.STARTING
        status.call_for(Trouble(TroubleKind.SUPERVISOR_GONE, why))
    return Observed(Presence.SILENT, status, record, why_silent=why)


def _guardian(paths: RunPaths) -> int | None:
    """The process that holds the run's lock, as it wrote there. Returns None where that cannot be read."""
    try:
        return int(read_small(paths.lock, _MOST_LOCK_BYTES))
    except (OSError, ValueError):
        return None


def _why_unreachable(paths: RunPaths) -> str:
    """Why there is no way to reach a supervisor that holds the run."""
    theirs = _runtime_root_of(_written(paths, _record(paths)))
    if theirs == paths.runtime.parent:
        return (
            f"A supervisor holds this run, but its sockets in {paths.runtime} are gone, and it has not made them anew. "
            f"Its log says why: {paths.supervisor_log}"
        )
    where = "another MEMSUP_RUNTIME_DIR or XDG_RUNTIME_DIR" if theirs is None else f"MEMSUP_RUNTIME_DIR={theirs}"
    return (
        f"A supervisor holds this run, but cannot be reached in {paths.runtime}: it was started with {where}. Set the same one."
    )


def _runtime_root_of(status: Status | None) -> Path | None:
    """The folder in which the supervisor has its sockets. It is None where that is not known."""
    if status is None or status.pid is None:
        return None
    try:
        variables = Path(f"/proc/{status.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    name = b"MEMSUP_RUNTIME_DIR="
    return next((Path(os.fsdecode(one.removeprefix(name))) for one in variables if one.startswith(name)), None)


def _gone(paths: RunPaths) -> Observed:
    from memsup.shared.run_file import settle
    from memsup.supervisor.kernel.processes import fence_name, marks

    settle(paths)
    record = _record(paths)
    status = _written(paths, record)
    if status is None or record is None:
        return Observed(Presence.GONE, None, None)
    status.pid = status.worker_pid = None
    status.memory = msgspec.structs.replace(status.memory, worker_bytes=None)
    status.wanted = record.wanted
    status.drop_what_has_passed()
    is_left = False
    if status.state not in (RunState.FINISHED, RunState.FAILED):
        was, status.state = status.state, RunState.STOPPED
        is_left = was is not RunState.STOPPED and fence_name(record.run_id) in marks()
        _look_at_checkpoints(paths, record, status)
        age_s = _age_s(paths)
        if was is not RunState.STOPPED and age_s is not None:
            status.since = time.time() - age_s
        if record.wanted is not Wanted.STOPPED or is_left:
            text = _what_is_left(paths, status, was, is_command=record.command is not None, worker_is_left=is_left)
            status.program = None
            status.call_for(Trouble(TroubleKind.SUPERVISOR_GONE, text))
    return Observed(Presence.GONE, status, record, is_left)


def _record(paths: RunPaths) -> RunRecord | None:
    from memsup.shared.run_file import read_record

    return read_record(paths.record)


def _look_at_checkpoints(paths: RunPaths, record: RunRecord, status: Status) -> None:
    """Has the status say what lies there now: a worker whose supervisor died has saved since, or somebody took a checkpoint
    away.
    """
    from memsup.checkpoint.errors import CheckpointError
    from memsup.supervisor.record.earlier_life import newest_checkpoint, note_of

    try:
        newest = note_of(newest_checkpoint(paths, record))
    except (CheckpointError, OSError):
        return
    if newest is None:
        status.checkpoint = CheckpointStatus()
    elif newest.path != status.checkpoint.path:
        age_s = max(0.0, time.time() - newest.at_unix_s)
        status.checkpoint = CheckpointStatus(path=newest.path, step=newest.step, age_s=age_s, verified=newest.verified)
        if newest.step > (status.progress.step or 0):
            status.progress = ProgressStatus(step=newest.step, total_steps=status.progress.total_steps)


def _what_is_left(paths: RunPaths, status: Status, was: RunState, *, is_command: bool, worker_is_left: bool) -> str:
    if was is RunState.STOPPED:
        what = "The supervisor was told to go, as at a shutdown."
    else:
        age_s = _age_s(paths)
        when = "" if age_s is None else f" Its last sign of life was {duration(age_s)} ago."
        what = f"The supervisor is gone although the run was {was}.{when}"
    if worker_is_left:
        what += " " + still_there(paths.name, status)
        if is_command:
            return what
    goes_on_when_started = status.hours is not None and status.hours.rests and status.hours.until is None
    if status.waiting is not None and not goes_on_when_started:
        return f"{what} {command('start', paths.name)} has it wait on {status.waiting.what_for}."
    if is_command and status.checkpoint.step is None:
        return f"{what} {command('start', paths.name)} begins the command anew."
    if status.checkpoint.step is None:
        return f"{what} {command('start', paths.name)} begins again, for there is no checkpoint yet."
    step = status.progress.step
    reached = f" (step {count(step)} was reached)" if step is not None and step > status.checkpoint.step else ""
    return (
        f"{what} {command('start', paths.name)} continues from the checkpoint of step {count(status.checkpoint.step)}{reached}."
    )


def still_there(run: str, status: Status) -> str:
    """What is so of a worker whose supervisor is gone, and what to do about it. `status` is what that one last said."""
    if status.is_command and not (status.program is not None and status.program.attached):
        if status.wanted is Wanted.PAUSED:
            return f"Its command stands still, and nobody guards it: {command('start', run)} has it guarded again."
        return f"Its command still runs, and nobody guards it: {command('start', run)} ends it and begins it anew."
    return "Its worker is still there; it saves what it has learned, and leaves."


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
    if status.run != record.run:
        _has_moved(status, paths.state.with_name(status.run), paths.state)
        status.run = record.run
    age_s = _age_s(paths)
    if status.checkpoint.age_s is not None and age_s is not None:
        status.checkpoint.age_s += age_s
    return status


def _has_moved(status: Status, old: Path, new: Path) -> None:
    """Has the paths in the status of a run that was moved aside name its folder as it is called now."""
    if status.model_path is not None and Path(status.model_path).is_relative_to(old):
        status.model_path = str(new / Path(status.model_path).relative_to(old))
    path = status.checkpoint.path
    if path is not None and Path(path).is_relative_to(old):
        status.checkpoint.path = str(new / Path(path).relative_to(old))


def _age_s(paths: RunPaths) -> float | None:
    """The seconds since the supervisor last wrote its status. Returns None where it has written none."""
    try:
        return max(0.0, time.time() - paths.status.stat().st_mtime)
    except OSError:
        return None
