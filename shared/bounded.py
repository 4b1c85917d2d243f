"""A bound on the memory that one piece of work in this process may take, for what others wrote and a library unpacks.

A file of some hundred bytes may unpack to more than the machine has, and `start` reads it outside of any fence.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()


@contextlib.contextmanager
def bounded_memory(most_bytes: int) -> Iterator[None]:
    """What is allocated inside, beyond `most_bytes`, is refused by the kernel: a MemoryError, in whatever way a library says
    so. Counts what the process holds of its own, not files that it has mapped (RLIMIT_DATA, getrlimit(2)). Does nothing where
    such a limit is in force already, as in a worker that is fenced by it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (_held_bytes() + most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _held_bytes() -> int:
    """The sixth number of statm(5) is data and stack, in pages."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * _PAGE_BYTES
