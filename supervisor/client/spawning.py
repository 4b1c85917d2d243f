"""Making a run's folder and leaving a supervisor behind that outlives the terminal.

Covers the order in which things come to be on disk, so that a refused start leaves nothing and two starts at once make one
run. What is started is decided in `preparing.py`; the process itself is `supervisor/__main__.py`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from memsup.shared.descriptors import wait_ready
from memsup.shared.files import open_regular
from memsup.shared.loading import variable_of
from memsup.shared.paths import PathError, RunPaths, check_private, open_private, prepare
from memsup.shared.printable import printable
from memsup.shared.record import RunRecord
from memsup.shared.run_file import write_record
from memsup.shared.settings import keys
from memsup.supervisor.client.errors import NOT_STARTED, RefusedError
from memsup.supervisor.daemon.self_protection import own_scope
from memsup.supervisor.decide.claims import Claim
from memsup.supervisor.kernel.children import why_not_started
from memsup.supervisor.kernel.processes import fence_name

READY_WITHIN_S = 60.0
"""Importing and trying out the fence takes half a second; a machine under pressure is slower."""


class NotStartedError(RefusedError):
    """There is no supervisor, and none will come of this start."""

    def __init__(self, text: str, *, more: tuple[str, ...] = ()) -> None:
        super().__init__(text, NOT_STARTED, more=more)


@contextlib.contextmanager
def only_start(paths: RunPaths) -> Iterator[None]:
    """Makes the run's folders and lets one start at a time go on. Raises `PathError`, and leaves nothing then."""
    folders = (paths.state.parent, paths.state, paths.runtime.parent, paths.runtime)
    for folder in folders:
        if os.path.lexists(folder):
            check_private(folder)
    missing = [folder for folder in folders if not os.path.exists(folder)]
    try:
        prepare(paths)
        fd = open_private(paths.runtime)
    except PathError:
        remove_empty(missing)
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    except RefusedError:
        remove_empty(missing)
        raise
    finally:
        os.close(fd)


def remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def set_aside(paths: RunPaths) -> Path | None:
    """Moves what lies in the state folder out of the way of a new run, and tells where to. Returns None where nothing lies
    there. Raises OSError.
    """
    if not any(paths.state.iterdir()):
        return None
    number = 1
    while os.path.lexists(aside := paths.state.with_name(f"{paths.state.name}.old-{number}")):
        number += 1
    paths.state.rename(aside)
    paths.state.mkdir(mode=0o700)
    return aside


def write_run(paths: RunPaths, record: RunRecord) -> None:
    """Writes `run.json`. Raises `RefusedError`, and leaves no half-written run. What the run may take beside others is reckoned
    anew, since a person is there.
    """
    try:
        paths.claim.unlink(missing_ok=True)
    except OSError as error:
        raise RefusedError(
            f"{paths.claim} cannot be removed: {error.strerror}. Move it away, or set MEMSUP_STATE_DIR."
        ) from None
    try:
        write_record(paths.record, record)
    except OSError as error:
        raise RefusedError(
            f"{error.filename or paths.record} cannot be written: {error.strerror}. Free some space, or set MEMSUP_STATE_DIR."
        ) from None


def take_back(paths: RunPaths, before: RunRecord | None, aside: Path | None) -> None:
    """Leaves the run as it was before a start that came to nothing: with the record it had, and with what lay in its place. Of
    a new run nothing is left, since all that lies in its folder was made by this start; `before` is None then. What cannot be
    undone stays.
    """
    with contextlib.suppress(OSError):
        if before is not None:
            write_record(paths.record, before)
            return
        shutil.rmtree(paths.state)
        if aside is not None:
            aside.rename(paths.state)


def spawn(paths: RunPaths) -> Answer:
    """Starts the supervisor, detached from this terminal, and waits until it guards. Raises `RefusedError`."""
    scope = own_scope(f"{fence_name(paths.name)}_supervisor_{os.getpid()}")
    process, answer = _spawn(paths, scope)
    if scope and answer == b"":  # without a word: it was systemd that failed
        process, answer = _spawn(paths, [])
    if answer is None:
        raise RefusedError(
            f"The supervisor did not come up within {READY_WITHIN_S:.0f} s; it may still. Its log: {paths.supervisor_log}",
            NOT_STARTED,
        )
    verdict = _verdict(answer)
    if verdict is None:
        process.wait()
        raise NotStartedError(f"The supervisor did not come up. {_last_words(paths)}")
    if not verdict.ok:
        process.wait()
        raise NotStartedError(f"The supervisor did not start: {verdict.text}", more=tuple(verdict.more))
    return verdict


def _spawn(paths: RunPaths, prefix: list[str]) -> tuple[subprocess.Popen[bytes], bytes | None]:
    """The process and its line, which is empty where it ended without one. The line is None where neither happened in time."""
    log = _open_log(paths)
    try:
        ready, told = os.pipe()
    except OSError as error:
        os.close(log)
        raise NotStartedError(f"The supervisor cannot be started: {why_not_started(error)[0]}.") from None
    try:
        process = subprocess.Popen(
            [*prefix, *command(paths), "--ready-fd", str(told)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment(paths),
            pass_fds=(told,),
            start_new_session=True,
        )
    except OSError as error:
        os.close(ready)
        raise NotStartedError(f"The supervisor cannot be started: {why_not_started(error)[0]}.") from None
    finally:
        os.close(log)
        os.close(told)
    try:
        return process, _first_line(ready, time.monotonic() + READY_WITHIN_S)
    finally:
        os.close(ready)


def become(paths: RunPaths) -> NoReturn:
    """Turns this process into the supervisor, in this terminal. It does not return."""
    os.chdir("/")
    os.execve(sys.executable, command(paths), environment(paths))  # noqa: S606 - a list of arguments, no shell


def command(paths: RunPaths) -> list[str]:
    """The supervisor's command line. With `-P` nothing that lies in the current folder is imported."""
    return [sys.executable, "-P", "-m", "memsup.supervisor", "--run", paths.name]


def environment(paths: RunPaths) -> dict[str, str]:
    """The environment with the two folders' full names, which may be relative to this folder, and differ between logins. Secret
    settings are not in it: `run.json` has them, and the worker inherits the rest.
    """
    secret = {variable_of(name) for name, key in keys().items() if key.is_secret}
    passed_on = {name: value for name, value in os.environ.items() if name.upper() not in secret}
    return passed_on | {"MEMSUP_STATE_DIR": str(paths.state.parent), "MEMSUP_RUNTIME_DIR": str(paths.runtime.parent)}


def _open_log(paths: RunPaths) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileNotFoundError):
            os.close(open_regular(paths.supervisor_log, follow_links=False)[0])
        return os.open(paths.supervisor_log, flags, 0o600)
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise NotStartedError(f"{paths.supervisor_log} cannot be written: {why}. Move it away, then start again.") from None


def _first_line(fd: int, deadline_s: float) -> bytes | None:
    """What comes before the line or the writer ends. Returns None when neither happens in time."""
    text = b""
    while not text.endswith(b"\n"):
        if not wait_ready([fd], deadline_s - time.monotonic()):
            return None
        more = os.read(fd, 64 * 1024)
        if not more:
            break
        text += more
    return text


class Answer(msgspec.Struct):
    """The supervisor's line on `--ready-fd`."""

    ok: bool
    text: str = ""
    """Why the supervisor did not come up; empty where it did."""
    more: list[str] = []
    """What follows that in lines of their own."""
    postmortem: list[str] = []
    """What the life before died of, in lines for a person. It is empty where it ended well."""
    fence: str = ""
    """The kind of fence that the worker is in, and why it is no better one."""
    fence_reason: str = ""
    waits: bool = False
    """Whether the supervisor came up and started nothing, since a person is to say first whether the run goes on."""
    others: tuple[Claim, ...] = ()
    """What other runs may take, as the supervisor found it when its own turn came."""


def _verdict(line: bytes) -> Answer | None:
    try:
        return msgspec.json.decode(line, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _last_words(paths: RunPaths) -> str:
    from memsup.supervisor.record.output import supervisor_log

    log = supervisor_log(paths)
    last = log.rest() or next(iter(log.last(1)), None)
    return f"Its last words: {printable(last.text)}" if last else f"It left no word in {paths.supervisor_log}."
