"""Processes that need no import of their own: one process imports what they need, and forks one of them each time.

For workers and programs with a Trainer, which import torch and transformers, in tests that start a dozen of them; and for the
command line, which is called a thousand times. Each is a real process that runs its program's entry point, and is killed like
any other; only the time of importing is saved. Who wants other `surroundings` than the nursery's starts a process. A nursery
itself never runs an operation of torch, so that no thread pool is lost in a fork.

Run as a program it is the nursery: it takes one request a datagram over the Unix socket that is its standard input.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from memsup.shared.descriptors import wait_ready

TAKEN_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "FAULT_CLOCK", "OMP_")
"""What begins so in the environment counts when Python or a library is loaded."""


class Nursery:
    """The test's side. `with Nursery("worker") as nursery: child = nursery.fork(…)`. The programs are `worker`, `cli` and
    `trainer`.
    """

    def __init__(self, program: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asks = threading.Lock()
        self._process = subprocess.Popen([sys.executable, "-P", __file__, program], stdin=theirs.fileno())
        theirs.close()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(timeout=60)

    def fork(
        self, argv: list[str], environment: dict[str, str], *, output_fd: int, second_fd: int, cwd: Path = Path()
    ) -> NurseryChild:
        """`argv` is without the program. A worker gets its lifeline as `second_fd`, the others their standard error."""
        request = json.dumps({"argv": argv, "environment": environment}).encode()
        here_fd = os.open(cwd, os.O_PATH)  # it may have no name any more
        try:
            answer = self._ask(request, output_fd, second_fd, here_fd)
        finally:
            os.close(here_fd)
        return NurseryChild(self, answer["pid"])

    def wait(self, pid: int) -> tuple[int, float]:
        """The exit status of a child that has ended or will, and what it took of the processors in seconds."""
        answer = self._ask(json.dumps({"wait": pid}).encode())
        return int(answer["status"]), float(answer["cpu_s"])

    def _ask(self, request: bytes, *fds: int) -> dict[str, Any]:
        with self._asks:
            socket.send_fds(self._socket, [request], fds)
            return json.loads(self._socket.recv(1 << 16))  # type: ignore[no-any-return]


def surroundings(environment: Mapping[str, str]) -> tuple[object, ...]:
    """What a process started by this thread in this environment would be born with; what a nursery forks has the nursery's."""
    here = Path("/proc/thread-self")
    taken = {name: value for name, value in environment.items() if name.startswith(TAKEN_AT_START)}
    return taken, os.readlink(here / "ns/mnt"), (here / "cgroup").read_text(), (here / "limits").read_text()


class NurseryChild:
    """What the tests use of `subprocess.Popen`, and what it took of the processors once it has been waited for."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.cpu_s = 0.0
        self._nursery = nursery
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self.wait(0) if self.returncode is None and wait_ready([self._pidfd], 0.0) else self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            if not wait_ready([self._pidfd], timeout):
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            self.returncode, self.cpu_s = self._nursery.wait(self.pid)
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)


# --------------------------------------------------------------------------------------------------------------------
# The nursery


def main(program: str) -> int:
    channel = socket.socket(fileno=os.dup(0))
    run = {"worker": _born_worker, "cli": _born_cli, "trainer": _born_trainer}[program]()
    gc.freeze()  # else each of its children would look for garbage among all that was imported
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            return 0
        request = json.loads(message)
        if "wait" in request:
            _, status, used = os.wait4(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status), "cpu_s": used.ru_utime + used.ru_stime}
            channel.send(json.dumps(answer).encode())
            continue
        pid = os.fork()
        if pid == 0:
            channel.close()
            output_fd, second_fd, here_fd = fds
            os.fchdir(here_fd)
            os.close(here_fd)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return run(request["argv"], output_fd, second_fd)
        for fd in fds:
            os.close(fd)
        channel.send(json.dumps({"pid": pid}).encode())


Run = Callable[[list[str], int, int], int]
"""Is given the arguments and two descriptors, in a process that has nothing else of the nursery's; returns the exit status."""


def _born_worker() -> Run:
    import memsup.worker.__main__ as worker

    os.environ.update(worker.LIBRARIES | os.environ)
    import torch  # noqa: F401
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig  # noqa: F401
    from transformers.models.bert import modeling_bert  # noqa: F401

    import memsup.worker.tasks.classification
    import memsup.worker.train  # noqa: F401

    def run(argv: list[str], output_fd: int, lifeline_fd: int) -> int:
        status = 1
        try:
            os.setsid()
            for target in (1, 2):
                os.dup2(output_fd, target)
            sys.argv = ["memsup.worker", *argv, "--lifeline-fd", str(lifeline_fd)]
            status = worker.main()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)

    return run


def _born_cli() -> Run:
    """Everything that is imported when it is needed has been needed here."""
    import rich.console
    import rich.table  # noqa: F401

    import memsup.supervisor.cli
    from memsup import checkpoint, shared, supervisor

    for room in (checkpoint, shared, supervisor):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            if not module.name.endswith(".__main__"):
                import_module(module.name)

    def run(argv: list[str], output_fd: int, error_fd: int) -> int:
        for fd, target in ((output_fd, 1), (error_fd, 2)):
            os.dup2(fd, target)
            os.close(fd)
        sys.argv = ["memsup", *argv]
        return memsup.supervisor.cli.main()

    return run


def _born_trainer() -> Run:
    """A script with Hugging Face's Trainer, as `memsup start` attaches it. With `WAITS` in its environment it stops itself
    before anything else, until it is told to go on. The link to a supervisor is not opened: what computes and saves is alike
    without.
    """
    import torch.profiler._cupti_monitor
    import torch.utils.serialization  # noqa: F401
    import transformers.trainer
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification  # noqa: F401

    import memsup.joined_step
    import memsup.trainer  # noqa: F401
    from memsup import attach
    from memsup.link import Link

    attach.join(transformers.trainer)
    Link.open = lambda _link: None  # type: ignore[method-assign]

    def run(argv: list[str], output_fd: int, error_fd: int) -> int:
        status = 1
        try:
            if "WAITS" in os.environ:
                os.kill(os.getpid(), signal.SIGSTOP)
            for fd, target in ((output_fd, 1), (error_fd, 2)):
                os.dup2(fd, target)
            sys.argv = argv
            exec(compile(Path(argv[0]).read_text(), argv[0], "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
