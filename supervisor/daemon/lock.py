"""One supervisor a run: the lock, and the look from outside at whether it is held."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from memsup.shared.clock import monotonic_s
from memsup.shared.paths import RunPaths, open_private

LOCK_PATIENCE_S = 0.3
"""A supervisor waits this long for the lock: `memsup status` holds it for an instant to see whether anybody else does."""


class AlreadyRunningError(Exception):
    """Another supervisor holds this run."""


class Lock:
    """The lock that one supervisor of a run holds: on the state folder itself, whatever the runtime folder is called in this
    login session, and on `supervisor.lock`, where people look for it. The kernel frees it when this process ends, however it
    ends.
    """

    def __init__(self, paths: RunPaths) -> None:
        """Takes the lock. Raises `AlreadyRunningError` and `PathError`."""
        self._paths = paths
        self._folder_fd = open_private(paths.state)
        self._file_fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        give_up_s = monotonic_s() + LOCK_PATIENCE_S
        for fd in (self._folder_fd, self._file_fd):
            while not _try_lock(fd):
                if monotonic_s() > give_up_s:
                    raise AlreadyRunningError(f"Run {paths.name!r} has a supervisor already.")
                time.sleep(0.01)
        os.ftruncate(self._file_fd, 0)
        os.write(self._file_fd, f"{os.getpid()}\n".encode())

    def take_again(self) -> None:
        """Takes the lock of the state folder that is there now, where somebody removed the one before. Raises OSError and
        `PathError`.
        """
        fd = open_private(self._paths.state)
        if os.path.sameopenfile(fd, self._folder_fd):
            os.close(fd)
        elif _try_lock(fd):
            os.close(self._folder_fd)
            self._folder_fd = fd
        else:
            os.close(fd)
            raise BlockingIOError(errno.EEXIST, "another run was begun in its place")

    def release(self) -> None:
        os.close(self._folder_fd)
        os.close(self._file_fd)


def is_taken(fd: int) -> bool:
    """Whether another process holds the lock on what `fd` has open. Nothing is kept."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
