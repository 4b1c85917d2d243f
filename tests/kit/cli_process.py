"""The command line as people use it: real processes in folders of their own, and a control socket that answers as told."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import pty
import resource
import selectors
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zmq

from kit import FAULTS
from kit.nursery import Nursery, surroundings
from memsup.shared import messages as m
from memsup.shared.endpoints import CONTROL_SOCKET, SocketFolder
from memsup.shared.paths import RunPaths, prepare, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.run_file import write_record
from memsup.shared.settings import Settings
from memsup.shared.status import Status, Wanted, encode_status
from memsup.supervisor.cli import main
from memsup.supervisor.client.contact import is_held

RUN_ID = f"test{uuid.uuid4().hex[:8]}"
"""Of the runs of this test process: fences are named after it, and tests of others may run beside us."""
MEMSUP = [sys.executable, "-c", "import sys; from memsup.supervisor.cli import main; sys.exit(main())"]


class Done(subprocess.CompletedProcess[str]):
    """With `document`: stdout as JSON; and what it and those it waited for took of the processors, in seconds."""

    cpu_s = 0.0

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


def memsup(*arguments: str, cwd: Path | None = None, within_s: float = 120, **environment: str) -> Done:
    """Runs `memsup ARGUMENTS` to its end, away from any terminal, in a process of its own."""
    whole = os.environ | environment
    if surroundings({name: value for name, value in whole.items() if (name, value) != OF_WORKERS}) == _BORN_IN:
        return _forked(arguments, whole, cwd, within_s)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [*MEMSUP, *arguments],
        cwd=cwd,
        env=whole,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = Done(ran.args, ran.returncode, ran.stdout, ran.stderr)
    done.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done


_BORN_IN = surroundings(os.environ)
OF_WORKERS = ("PYTHONPATH", str(FAULTS))
"""What lies there changes nothing of the command line, unless it has another clock."""


@cache
def _nursery() -> Nursery:
    """The one of this test process: more than half of a command's time is importing."""
    nursery = Nursery("cli")
    atexit.register(nursery.__exit__)
    return nursery


def _forked(arguments: Sequence[str], environment: dict[str, str], cwd: Path | None, within_s: float) -> Done:
    ours, theirs = zip(os.pipe(), os.pipe(), strict=True)
    try:
        child = _nursery().fork([*arguments], environment, output_fd=theirs[0], second_fd=theirs[1], cwd=cwd or Path())
    finally:
        for fd in theirs:
            os.close(fd)
    said = {fd: bytearray() for fd in ours}
    deadline_s = time.monotonic() + within_s
    try:
        with selectors.DefaultSelector() as selector:
            for fd in ours:
                selector.register(fd, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(deadline_s - time.monotonic())
                if not ready:
                    raise subprocess.TimeoutExpired(["memsup", *arguments], within_s, *map(bytes, said.values()))
                for key, _ in ready:
                    said[key.fd] += (piece := os.read(key.fd, 1 << 16))
                    if not piece:
                        selector.unregister(key.fd)
        code = child.wait(deadline_s - time.monotonic())
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        for fd in ours:
            os.close(fd)
    done = Done(["memsup", *arguments], code, *(text.decode() for text in said.values()))
    done.cpu_s = child.cpu_s
    return done


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a terminal gets from `memsup ARGUMENTS`."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(environment, TERM="xterm")
        os.execv(MEMSUP[0], [*MEMSUP, *arguments])
    text = b""
    try:
        while piece := os.read(fd, 4096):
            text += piece
    except OSError:  # a terminal's way to say the end
        pass
    os.close(fd)
    os.waitpid(pid, 0)
    return text.decode()


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of `memsup ARGUMENTS` and what it prints on both streams, in the test's own process."""
    before = sys.stdout, sys.stderr
    capfd.readouterr()
    try:
        code = main(arguments)
    finally:
        sys.stdout, sys.stderr = before
    came = capfd.readouterr()
    return code, came.out + came.err


def said_on_a_terminal(cells: int, *arguments: str, lines: int = 40) -> tuple[int, str]:
    """The exit code of `memsup ARGUMENTS` and what a terminal of that size gets from it, in the test's own process."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, cells, 0, 0))
    before, fds = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    text = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # a terminal's way to say the end
            while piece := os.read(ours, 65536):
                text.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for fd in (1, 2):
            os.dup2(theirs, fd)
        os.close(theirs)
        code = main(arguments)
    finally:
        sys.stdout, sys.stderr = before
        for fd, kept in zip((1, 2), fds, strict=True):
            os.dup2(kept, fd)
            os.close(kept)
        reader.join()
        os.close(ours)
    return code, text.decode().replace("\r\n", "\n")


def eventually(true: Callable[[], Any], within_s: float = 120, *, every_s: float = 0.02) -> Any:
    """What `true` returns as soon as it is true; fails after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < deadline_s, f"not within {within_s} s"
        time.sleep(every_s)
    return found


def end_supervisors() -> None:
    """Ends what a test started, by the pids in the locks of its own folders."""
    runtime = Path(os.environ["MEMSUP_RUNTIME_DIR"])
    for folder in runtime.iterdir() if runtime.exists() else ():
        paths = run_paths(folder.name)
        if is_held(paths):
            memsup("stop", "--now", "--run", folder.name)
        until_s = time.monotonic() + 3.0  # it answers before it goes
        while is_held(paths) and time.monotonic() < until_s:
            time.sleep(0.02)
        if is_held(paths):
            os.kill(int(paths.lock.read_text()), signal.SIGKILL)
            eventually(lambda paths=paths: not is_held(paths))


def a_run(name: str = "default", **fields: Any) -> RunPaths:
    """A run's folders with a `run.json`, as `start` leaves them."""
    paths = run_paths(name)
    prepare(paths)
    record: dict[str, Any] = {
        "run": name,
        "run_id": RUN_ID,
        "created_unix_s": time.time(),
        "wanted": Wanted.RUNNING,
        "tier": "full",
        "tier_reason": "there is plenty",
        "settings": Settings(),
    }
    write_record(paths.record, RunRecord(**(record | fields)))
    return paths


@contextmanager
def control_server(
    paths: RunPaths, answer: Callable[[m.RequestKind], Status | m.Reply | None]
) -> Iterator[list[m.RequestKind]]:
    """A real control socket. `answer` gives a status or a reply to each request, or None for silence. Yields what was asked."""
    folder = SocketFolder(paths)
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger = 500
    socket.bind(folder.endpoint(CONTROL_SOCKET))
    over = threading.Event()
    asked: list[m.RequestKind] = []

    def serve() -> None:
        while not over.is_set():
            if not socket.poll(20):
                continue
            identity, *frames = socket.recv_multipart()
            request = m.decode_request(frames)
            asked.append(request.what)
            found = answer(request.what)
            if isinstance(found, Status):
                found = m.Reply(request_id=request.request_id, ok=True, text="", status_json=encode_status(found))
            if found is not None:
                found = m.Reply(
                    request_id=request.request_id,
                    ok=found.ok,
                    text=found.text,
                    status_json=found.status_json,
                    checkpoint_path=found.checkpoint_path,
                    freed_ram_bytes=found.freed_ram_bytes,
                    freed_vram_bytes=found.freed_vram_bytes,
                )
                socket.send_multipart([identity, *m.encode(found)])
        socket.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()
        context.term()
        folder.close()
        (paths.runtime / CONTROL_SOCKET).unlink(missing_ok=True)
