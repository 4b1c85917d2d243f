"""The supervisor's processes: starting them, watching each by its pidfd, and the subreaper's duty. Nothing here waits.

A worker's whole tree is killed in `fence/kill.py`. What came from the worker is found by its fence, and where no cgroup holds
it, by `processes.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence

from memsup.supervisor.kernel.processes import is_orphan, no_longer_here, scan, send, started_here

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Makes orphans among the descendants this process's children (prctl(2)). False where the kernel refuses."""
    refused: int = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return refused == 0


def reap_orphans() -> list[int]:
    """Collects the exits of orphans that this process inherited, each as `Child.exit_code` says it. Children started here keep
    theirs.

    Costs one system call when nobody is waiting to be collected.
    """
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return []
    except ChildProcessError:
        return []
    reaped = []
    for process in scan().values():
        if process.dead and is_orphan(process):
            try:
                pid, status = os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                continue
            if pid:
                reaped.append(os.waitstatus_to_exitcode(status))
    return reaped


def why_not_started(error: OSError) -> tuple[str, bool]:
    """Why a process could not be started, as half a sentence, and whether that may pass."""
    why = error.strerror or str(error)
    if error.errno == errno.EAGAIN:
        why = "no more processes may run here (ulimit -u, or pids.max of a cgroup)"
    elif error.filename is not None:
        why += f": {error.filename}"
    return why, error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class Child:
    """A process started here or adopted, in a session of its own. `pidfd` becomes readable when it has exited
    (pidfd_open(2)).
    """

    def __init__(self, pid: int, poll: Callable[[], int | None]) -> None:
        """`poll` collects the exit and returns it as `exit_code` does. Raises OSError."""
        self._poll = poll
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)  # safe: the number cannot come again before we reap it
        started_here(pid)

    def exit_code(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it. Returns None while it runs. Reaps it."""
        code = self._poll()
        if code is not None:
            no_longer_here(self.pid)
        return code

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing when the process has exited."""
        if self.exit_code() is None:
            send(self.pidfd, number)

    def close(self) -> None:
        """Gives the descriptor back; to be called after the exit code was taken."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
    keep_fds: Iterable[int] = (),
    stdin: int = subprocess.DEVNULL,
    output: int | None = None,
    umask: int | None = None,
) -> Child:
    """Starts `command`; `output` is a descriptor for its stdout and stderr. Without a `umask` it has that of this process.
    Raises OSError.

    All other descriptors except `keep_fds` are closed in it. It does not count as the worker's by itself: what is started with
    a fence's `launch_prefix` does, and every orphan that comes to this process.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        pass_fds=tuple(keep_fds),
        stdin=stdin,
        stdout=output,
        stderr=output,
        start_new_session=True,
        umask=-1 if umask is None else umask,
    )
    try:
        return Child(process.pid, process.poll)
    except OSError:  # no descriptor left: a process that cannot be watched must not run
        process.kill()
        process.wait()
        raise


def adopt(pid: int) -> Child:
    """Watches an orphan that has come to this process as its subreaper, or is about to. Raises OSError."""
    exited: list[int] = []

    def poll() -> int | None:
        if not exited:
            with contextlib.suppress(ChildProcessError):  # who has forked it is just about to end
                its, status = os.waitpid(pid, os.WNOHANG)
                exited.extend([os.waitstatus_to_exitcode(status)] if its else [])
        return exited[0] if exited else None

    return Child(pid, poll)
