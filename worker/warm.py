"""The process that stands by with everything imported: when a worker dies, its place is taken by a fork of this one.

    python -m memsup.worker --run NAME --warm-fd N

Importing torch and transformers takes most of the time from a death to the next step. The supervisor keeps this process inside
the fence while memory is plentiful (`supervisor/decide/run/warm.py`), and its end of the socket is `supervisor/fence/warm.py`.
Each request brings two descriptors, the new worker's lifeline and what it prints into. The fork is forked once more, so that
the worker becomes the child of the supervisor, which is the subreaper, and is watched and collected as any other.

Here nothing is computed and no device is touched: of a process with threads, or with CUDA in use, a fork is broken, so such a
one refuses to stand by. It lives no longer than the supervisor, whose end of the socket closes with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

READY, REFUSED, BORN = b"ready", b"refused ", b"born"
"""What is said to the supervisor: that it stands by, or why it does not; and by each worker that it is there."""
_MOST_BYTES = 300


def stand_by(channel_fd: int, load: Callable[[], None]) -> int:
    """Loads what a worker needs, then waits until one is wanted. Returns in each worker, with the descriptor of its lifeline;
    in the process that stands by it never returns.
    """
    channel = socket.socket(fileno=channel_fd)
    _end_with(channel)
    try:
        load()
    except Exception as error:
        _refuse(channel, f"it could not be loaded: {type(error).__name__}: {error}")
    _end_with(channel, by_signal=False)
    if (why := _why_not()) is not None:
        _refuse(channel, why)
    channel.send(READY)
    while True:
        request, fds, _, _ = socket.recv_fds(channel, 64, 2)
        if not request:
            os._exit(0)
        between = os.fork()
        if between == 0:
            if os.fork() != 0:
                os._exit(0)
            return _born(channel, *fds)
        for fd in fds:
            os.close(fd)
        os.waitpid(between, 0)


def _born(channel: socket.socket, lifeline_fd: int, output_fd: int) -> int:
    os.setsid()
    for target in (1, 2):
        os.dup2(output_fd, target)
    os.close(output_fd)
    channel.send(BORN)
    channel.close()
    return lifeline_fd


def _end_with(channel: socket.socket, *, by_signal: bool = True) -> None:
    """Ends this process once the other end is closed: with `by_signal` at once, by SIGIO, also in the middle of an import;
    without it from now on only where it is read.
    """
    flags = fcntl.fcntl(channel, fcntl.F_GETFL)
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, flags | os.O_ASYNC if by_signal else flags & ~os.O_ASYNC)
    with contextlib.suppress(BlockingIOError):  # it may have been closed before
        if not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os._exit(0)


def _why_not() -> str | None:
    """Why forks of this process would be broken, a clause. Returns None where they would not."""
    if len(os.listdir("/proc/self/task")) != 1:
        return "what it has imported runs threads of its own"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "what it has imported uses CUDA"
    return None


def _refuse(channel: socket.socket, why: str) -> NoReturn:
    channel.send((REFUSED + why.encode())[:_MOST_BYTES])
    os._exit(1)
