"""Worker processes that need no import of their own: one process imports torch and transformers, and forks a worker each time.

For tests that start a worker a dozen times and more. Each is a real process with its own session, lifeline and log, runs the
worker's real entry point, and is killed like any other; only the seconds of importing are saved. The nursery itself never runs
an operation of torch, so that no thread pool is lost in a fork.

Run as a program it is the nursery: it takes one request a datagram over the Unix socket that is its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Any

from memsup.worker.__main__ import LIBRARIES


class Nursery:
    """The test's side. `with Nursery() as nursery: child = nursery.fork(…)`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen([sys.executable, "-P", __file__], stdin=theirs.fileno(), env=LIBRARIES | os.environ)
        theirs.close()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(timeout=60)

    def fork(self, argv: list[str], environment: dict[str, str], *, output_fd: int, lifeline_fd: int) -> NurseryChild:
        """`argv` without the program; `--lifeline-fd` is added."""
        request = json.dumps({"argv": argv, "environment": environment}).encode()
        socket.send_fds(self._socket, [request], [output_fd, lifeline_fd])
        return NurseryChild(self, self._answer()["pid"])

    def wait(self, pid: int) -> int:
        self._socket.send(json.dumps({"wait": pid}).encode())
        return int(self._answer()["status"])

    def _answer(self) -> dict[str, Any]:
        return json.loads(self._socket.recv(1 << 16))  # type: ignore[no-any-return]


class NurseryChild:
    """What the tests use of `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self.wait(0) if self.returncode is None and select.select([self._pidfd], [], [], 0)[0] else self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise TimeoutError(f"worker {self.pid} still runs after {timeout} s")
            self.returncode = self._nursery.wait(self.pid)
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)


def main() -> None:
    channel = socket.socket(fileno=os.dup(0))
    import torch  # noqa: F401
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig  # noqa: F401
    from transformers.models.bert import modeling_bert  # noqa: F401

    import memsup.worker.__main__ as worker
    import memsup.worker.tasks.classification
    import memsup.worker.train  # noqa: F401

    while True:
        message, fds, _, _ = socket.recv_fds(channel, 1 << 16, 2)
        if not message:
            return
        request = json.loads(message)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            channel.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
            continue
        pid = os.fork()
        if pid == 0:
            channel.close()
            _become_worker(worker.main, request, *fds)
        for fd in fds:
            os.close(fd)
        channel.send(json.dumps({"pid": pid}).encode())


def _become_worker(run: Any, request: dict[str, Any], output_fd: int, lifeline_fd: int) -> None:
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, target in [(null, 0), (output_fd, 1), (output_fd, 2)]:
            os.dup2(fd, target)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["memsup.worker", *request["argv"], "--lifeline-fd", str(lifeline_fd)]
        status = run()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
