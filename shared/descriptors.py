"""Descriptors: waiting for them, whatever their numbers; one that comes over a socket; those of memory that is sealed.

`select.select` knows none above 1023, and whoever starts memsup may have as many files open.
"""

from __future__ import annotations

import array
import fcntl
import math
import select
import socket
from collections.abc import Iterable
from typing import Protocol


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


Descriptor = int | _HasFileno

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""With these seals of memfd_create(2) nobody can change what is in the memory, nor take a seal away."""


def receive_with_descriptor(channel: socket.socket, most_bytes: int) -> tuple[bytes, int | None]:
    """The next message of a Unix socket, without waiting for one, and the descriptor that came with it: the first one, or None.
    The message is empty at the socket's end. Raises OSError. (`socket.recv_fds` leaves its flags out, and would wait.)
    """
    descriptors = array.array("i")
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    content, ancillary, _, _ = channel.recvmsg(most_bytes, socket.CMSG_LEN(descriptors.itemsize), flags)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return content, descriptors[0] if descriptors else None


def is_sealed(fd: int) -> bool:
    """Whether this is memory with all of `SEALS`."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:  # no memory, or of a kind that has no seals
        return False


def wait_ready(reads: Iterable[Descriptor], within_s: float | None, *, writes: Iterable[Descriptor] = ()) -> set[int]:
    """The numbers of those of `reads` that have something to read or have ended, of a process its end, and of those of `writes`
    that take something. Returns as soon as there is one, or after `within_s`; with None for it only then.
    """
    poll = select.poll()
    for descriptor in reads:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writes:
        poll.register(descriptor, select.POLLOUT)
    return {fd for fd, _ in poll.poll(None if within_s is None else math.ceil(max(0.0, within_s) * 1000))}
