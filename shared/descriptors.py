"""Waiting for descriptors, whatever their numbers. `select.select` knows none above 1023, and whoever starts memsup may have as
many files open.
"""

from __future__ import annotations

import math
import select
from collections.abc import Iterable
from typing import Protocol


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


Descriptor = int | _HasFileno


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
