"""Memory as a training process sees it: how much it holds, the soft limit in host RAM, exhaustion recognised, memory given
back. For the built-in training (`worker/memory.py` adds the device) and for programs of a person's own.

The soft limit (`RLIMIT_DATA`) lies below the limit of the process's tree, so that an allocation fails, and can be caught,
before the fence kills. It is for training on a CPU only: the CUDA driver maps far more than it uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20

SPARE_BYTES = 64 * _MIB
"""The least room between the soft limit and the worker's limit: what a save may need beyond what training holds."""
SOFT_FRACTION = 0.89
"""The soft limit lies at this part of the worker's limit, or lower: below `FREEZE_FROM_USE` of the supervisor's ladder. A step
that is too large is to be told that memory ran out, and done again, before it is frozen for how fast it grows.
"""
LOWERED_FOR_S = 3.0
"""A soft limit that somebody else has lowered stays so for this long, or until it is said what the worker may hold: the
supervisor does so to a worker that it has frozen for want of memory, before it lets it go on to obey."""
_MEASURED_EVERY_S = 0.1
"""What is reserved and untouched changes seldom, and looking takes as long as some thousandths of a quick step."""


# --------------------------------------------------------------------------------------------------------------------
# What is held


class Held(NamedTuple):
    """What this process holds; see proc_pid_statm(5)."""

    resident_bytes: int
    anonymous_bytes: int
    """Resident and not the page cache's: what only the end of the process gives back for certain."""
    data_bytes: int
    """Private writable memory, touched or not: what `RLIMIT_DATA` is compared with."""


def held() -> Held:
    """Reads what this process holds now. Raises OSError."""
    fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pages = [int(word) for word in os.read(fd, 256).split()]
    finally:
        os.close(fd)
    return Held(pages[1] * _PAGE_BYTES, (pages[1] - pages[2]) * _PAGE_BYTES, pages[5] * _PAGE_BYTES)


def read_memory() -> dict[str, Any]:
    """Reads what a heartbeat says of memory: `WorkerMemory`, as a dictionary. It is quick, and for any thread. What cannot be
    read is None.
    """
    cuda = _cuda()
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resident_bytes = held().resident_bytes
    except (OSError, ValueError):
        resident_bytes = None
    return {
        "resident_bytes": resident_bytes,
        "cuda_allocated_bytes": int(cuda.memory_allocated()) if cuda is not None else None,
        "cuda_reserved_bytes": int(cuda.memory_reserved()) if cuda is not None else None,
        "data_limit_bytes": None if soft == resource.RLIM_INFINITY else soft,
    }


def begin_peak() -> int:
    """Has the kernel measure anew how much is resident at most; returns the anonymous bytes now. Raises OSError where it has no
    such record (proc(5), clear_refs).
    """
    fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"5")
    finally:
        os.close(fd)
    return held().anonymous_bytes


def end_peak() -> int:
    """Returns the most anonymous bytes that were held since `begin_peak`. Raises OSError."""
    fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    found = text.find(b"VmHWM:")
    if found < 0:
        raise OSError("/proc/self/status has no VmHWM")
    now = held()
    peak_bytes = int(text[found + 6 :].split(None, 1)[0]) << 10
    return max(peak_bytes - (now.resident_bytes - now.anonymous_bytes), now.anonymous_bytes)


def others_bytes() -> int:
    """What the processes that this one has started, and theirs, hold for themselves alone: loader processes, say."""
    total_bytes, parents = 0, [os.getpid()]
    while parents:
        children = children_of(parents.pop())
        parents += children
        total_bytes += sum(map(_private_bytes, children))
    return total_bytes


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that live. It is empty where they cannot be seen."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += [int(word) for word in file.read().split()]
    return found


def _private_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("Private_")]
        return sum(int(line[1]) << 10 for line in lines)
    return 0


# --------------------------------------------------------------------------------------------------------------------
# The soft limit in host RAM


def soft_limit_bytes(worker_limit_bytes: int, now: Held) -> int:
    """What `RLIMIT_DATA` has to be for resident memory to stay below the ladder's freeze line, and `SPARE_BYTES` below the
    worker's limit. Pure.

    The kernel counts what was reserved and never touched as well (stacks of threads, pools of libraries: 100 MiB and more with
    torch), which takes nothing from anybody; so that comes on top.
    """
    untouched_bytes = max(0, now.data_bytes - now.anonymous_bytes)
    most_bytes = min(worker_limit_bytes - SPARE_BYTES, int(worker_limit_bytes * SOFT_FRACTION))
    return max(most_bytes, 0) + untouched_bytes


class SoftLimit:
    """`RLIMIT_DATA`, kept where it has to be. None as limit means that there is none, and nothing is done."""

    def __init__(self, worker_limit_bytes: int | None) -> None:
        self._worker_limit_bytes = worker_limit_bytes
        self._most_bytes = worker_limit_bytes or 0
        self._left_bytes = 0
        self._soft_bytes, self._measured_s = 0, -math.inf
        self._set_bytes: int | None = None
        """What this process has set last. None means that it has set nothing, or knows that somebody has lowered it."""
        self._lowered_until_s = -math.inf

    def limit_to(self, worker_limit_bytes: int | None) -> None:
        """Takes in that the worker may hold more or less, from the next `renew` or `keep` on."""
        if worker_limit_bytes != self._worker_limit_bytes:
            self._worker_limit_bytes, self._measured_s = worker_limit_bytes, -math.inf
            self._most_bytes = max(worker_limit_bytes or 0, self._most_bytes)
        self._set_bytes, self._lowered_until_s = None, -math.inf

    def lift_again(self) -> bool:
        """Lifts a limit that is lower than it once was to what it was then. Returns False where it is not."""
        if self._worker_limit_bytes is None or self._worker_limit_bytes >= self._most_bytes:
            return False
        self.limit_to(self._most_bytes)
        self.renew()
        return True

    def leave(self, size_bytes: int) -> None:
        """Takes in that so much of the limit is taken by what this process does not map, from the next `renew` or `keep` on."""
        if size_bytes != self._left_bytes:
            self._left_bytes, self._measured_s = size_bytes, -math.inf

    def renew(self) -> None:
        """Measures anew what is reserved and untouched. Costs some ten microseconds.

        First to be called when torch's threads run: a library that cannot start a thread aborts.
        """
        if self._worker_limit_bytes is not None:
            self._measured_s = time.monotonic()
            self._soft_bytes = soft_limit_bytes(self._worker_limit_bytes - self._left_bytes, held())
            self._keep_set()

    def keep(self) -> None:
        """As `renew`, with what was measured a moment ago; for each micro-batch."""
        if time.monotonic() - self._measured_s >= _MEASURED_EVERY_S:
            self.renew()
        elif self._worker_limit_bytes is not None:
            self._keep_set()

    @contextlib.contextmanager
    def spare(self) -> Iterator[None]:
        """Lets the work inside use the spare room as well: neither saving nor recovering may fail for want of it."""
        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if self._worker_limit_bytes is None or soft == resource.RLIM_INFINITY:
            yield
            return
        before_bytes = self._set_bytes
        self._set(soft + SPARE_BYTES)
        try:
            yield
        finally:
            if self._set_bytes == before_bytes:  # else it was set anew inside
                self._set(soft)

    def _keep_set(self) -> None:
        """Sets the soft limit, unless somebody has lowered it just now."""
        soft, now_s = resource.getrlimit(resource.RLIMIT_DATA)[0], time.monotonic()
        if self._set_bytes is not None and 0 <= soft < self._set_bytes:
            self._set_bytes, self._lowered_until_s = None, now_s + LOWERED_FOR_S
        if now_s >= self._lowered_until_s:
            self._set(self._soft_bytes)
            self._set_bytes = resource.getrlimit(resource.RLIMIT_DATA)[0]

    def _set(self, soft: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def lift() -> None:
    """Lifts the soft limit of this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


# --------------------------------------------------------------------------------------------------------------------
# Exhaustion

_NO_MORE_CODE = "could not create a primitive"
_WORDS_OF_EXHAUSTION = (
    "defaultcpuallocator: can't allocate memory",  # torch on the host
    "out of memory",  # CUDA, HIP
    "cublas_status_alloc_failed",
    _NO_MORE_CODE,  # oneDNN, which had no memory for its generated code
    "std::bad_alloc",
    "bad allocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, of the host or of a device, did not suffice. torch's own class is a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS_OF_EXHAUSTION)


OURS = "memsup: "
"""What memsup adds to such an error begins so."""


def explained(error: BaseException, sentence: str) -> None:
    """Adds a sentence to what is printed of an error, on a Python that can do so."""
    if hasattr(error, "add_note"):
        error.add_note(OURS + sentence)


def is_permanent(exhausted: str) -> bool:
    """Whether this process will not get over running out of memory, however much there is again; `exhausted` is the error's
    text.

    Once oneDNN had no memory for its generated code, it makes none in that thread any more, whatever the shape; in another
    thread it does. So it looks as if the generator kept its first error for each thread.
    """
    return _NO_MORE_CODE in exhausted.lower()


def was_in_backward(error: BaseException) -> bool:
    """Whether an error was raised while torch computed gradients, and not in the forward pass before."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == "backward" and code.co_filename.endswith(("torch/_tensor.py", "torch/autograd/__init__.py")):
            return True
        trace = trace.tb_next
    return False


def give_back() -> None:
    """Returns what nobody uses any more to the system, of a device's memory as well. Call it outside the `except`: the
    exception keeps its frames alive.
    """
    gc.collect()
    cuda = _cuda()
    if cuda is not None:
        cuda.empty_cache()
    trim()


def finish_queued() -> None:
    """Waits until all is computed that a device was told to compute."""
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()


def _cuda() -> Any:
    """`torch.cuda`. It is None where the program has not begun to use it, or torch is being imported."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    return cuda if is_initialized is not None and is_initialized() else None


def trim() -> None:
    """Returns the holes between what is used to the system, malloc_trim(3). It takes time, and filling them again as well."""
    with contextlib.suppress(AttributeError, OSError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
