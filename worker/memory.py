"""Memory as the worker sees it: how much it holds, the soft limit in host RAM, giving memory back, recognising exhaustion.

Also the one seam for torch's CUDA calls that concern memory or wait for the device (`DeviceMemory`). What is done about
exhaustion is decided in `exhaustion.py`; the fence around the process is the supervisor's.

The soft limit (`RLIMIT_DATA`) lies below the worker's limit, so that an allocation fails, and can be caught, before the fence
kills. It is for CPU training only: the CUDA driver maps far more than it uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import resource
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memsup.shared.messages import LimitMemory, WorkerMemory

if TYPE_CHECKING:
    import torch

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20

SPARE_BYTES = 64 * _MIB
"""The room between the soft limit and the worker's limit: what a save may need beyond what training holds."""


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


class Peak:
    """Measures how much was held at most since `begin`: anonymous memory of this process, or what torch allocated on the
    device.
    """

    def __init__(self, device: DeviceMemory | None) -> None:
        self._device = device

    def begin(self) -> int:
        """Begins anew; returns what is held now. Raises OSError where the kernel has no such record (proc(5), clear_refs)."""
        if self._device is not None:
            self._device.reset_peak()
            return self._device.allocated_bytes()
        fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"5")
        finally:
            os.close(fd)
        return held().anonymous_bytes

    def end(self) -> int:
        """Returns the most bytes that were held since `begin`. Raises OSError."""
        if self._device is not None:
            return self._device.peak_bytes()
        now = held()
        return max(_resident_peak_bytes() - (now.resident_bytes - now.anonymous_bytes), now.anonymous_bytes)


def _resident_peak_bytes() -> int:
    fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    found = text.find(b"VmHWM:")
    if found < 0:
        raise OSError("/proc/self/status has no VmHWM")
    return int(text[found + 6 :].split(None, 1)[0]) << 10


def read_memory(device: DeviceMemory | None = None) -> WorkerMemory:
    """Reads what a heartbeat says of memory; quick, and from any thread. Raises OSError."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return WorkerMemory(
        resident_bytes=held().resident_bytes,
        cuda_allocated_bytes=device.allocated_bytes() if device else None,
        cuda_reserved_bytes=device.reserved_bytes() if device else None,
        data_limit_bytes=None if soft == resource.RLIM_INFINITY else soft,
    )


# --------------------------------------------------------------------------------------------------------------------
# The soft limit in host RAM


def soft_limit_bytes(worker_limit_bytes: int, now: Held) -> int:
    """What `RLIMIT_DATA` has to be for resident memory to stay `SPARE_BYTES` below the worker's limit. Pure.

    The kernel counts what was reserved and never touched as well (stacks of threads, pools of libraries: 100 MiB and more with
    torch), which takes nothing from anybody; so that comes on top.
    """
    untouched_bytes = max(0, now.data_bytes - now.anonymous_bytes)
    return max(worker_limit_bytes - SPARE_BYTES, 0) + untouched_bytes


class SoftLimit:
    """`RLIMIT_DATA`, kept where it has to be. None as limit means that there is none, and nothing is done."""

    def __init__(self, worker_limit_bytes: int | None) -> None:
        self._worker_limit_bytes = worker_limit_bytes

    def renew(self) -> None:
        """Measures anew what is reserved and untouched. Costs some ten microseconds.

        First to be called when torch's threads run: a library that cannot start a thread aborts.
        """
        if self._worker_limit_bytes is not None:
            self._set(soft_limit_bytes(self._worker_limit_bytes, held()))

    @contextlib.contextmanager
    def spare(self) -> Iterator[None]:
        """Lets the work inside use the spare room as well: neither saving nor recovering may fail for want of it."""
        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if self._worker_limit_bytes is None or soft == resource.RLIM_INFINITY:
            yield
            return
        self._set(soft + SPARE_BYTES)
        try:
            yield
        finally:
            self._set(soft)

    def _set(self, soft: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


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


def is_permanent(exhausted: str) -> bool:
    """Whether this process will not get over running out of memory, however much there is again; `exhausted` is the error's
    text.

    Once oneDNN had no memory for its generated code, it makes none in that thread any more, whatever the shape; in another
    thread it does. So it looks as if the generator kept its first error for each thread.
    """
    return _NO_MORE_CODE in exhausted.lower()


def hand_back(device: DeviceMemory | None = None) -> None:
    """Returns what nobody uses any more to the system. Call it outside the `except`: the exception keeps its frames alive."""
    gc.collect()
    if device is not None:
        device.release()
    trim()


def trim() -> None:
    """Returns the holes between what is used to the system, malloc_trim(3). It takes time, and filling them again as well."""
    with contextlib.suppress(AttributeError, OSError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


# --------------------------------------------------------------------------------------------------------------------
# The device


class DeviceMemory(Protocol):
    """An accelerator's memory, as far as memsup talks to it."""

    total_bytes: int
    limit_bytes: int
    """The most that torch may reserve now."""

    def allocated_bytes(self) -> int: ...

    def reserved_bytes(self) -> int:
        """Bytes that are allocated, or kept by torch for later."""
        ...

    def others_bytes(self) -> int:
        """Bytes of the device that torch does not hold in this process: other programs', and this process's context."""
        ...

    def peak_bytes(self) -> int:
        """The most bytes that were allocated since `reset_peak`."""
        ...

    def reset_peak(self) -> None:
        """Begins a new peak."""
        ...

    def release(self) -> None:
        """Gives what torch keeps for later back to the device."""
        ...

    def limit(self, size_bytes: int) -> None:
        """Has torch raise its own error rather than reserve more than this, before the device is full for everybody."""
        ...

    def page_locked(self, size_bytes: int) -> torch.Tensor:
        """Bytes of host memory that the device reads and writes by itself, without a copy of the driver's in between."""
        ...

    def finish_queued(self) -> None:
        """Waits until the device has done what it was given."""
        ...


def limit_device(device: DeviceMemory | None, order: LimitMemory) -> str:
    """Carries the order out, between two micro-batches; returns what came of it, as a clause for its answer."""
    if device is None:
        return "it computes on the CPU, so there is nothing to limit"
    device.limit(order.device_bytes)
    if device.reserved_bytes() > order.device_bytes:
        device.release()  # or the cache goes on lying where others have no room
    return f"at most {order.device_bytes >> 20} MiB of the GPU, of which {device.reserved_bytes() >> 20} MiB are taken"


class CudaMemory:
    """`DeviceMemory` of one CUDA device. Its figures are the allocator's own, which counts when memory is asked for, before the
    device computes with it: so they are read without waiting.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._torch: Any = torch
        self._cuda: Any = torch.cuda
        self._device = device
        self.total_bytes = self.limit_bytes = int(torch.cuda.get_device_properties(device).total_memory)

    def allocated_bytes(self) -> int:
        return int(self._cuda.memory_allocated(self._device))

    def reserved_bytes(self) -> int:
        return int(self._cuda.memory_reserved(self._device))

    def others_bytes(self) -> int:
        free_bytes, total_bytes = self._cuda.mem_get_info(self._device)
        return max(0, int(total_bytes) - int(free_bytes) - self.reserved_bytes())

    def peak_bytes(self) -> int:
        return int(self._cuda.max_memory_allocated(self._device))

    def reset_peak(self) -> None:
        self._cuda.reset_peak_memory_stats(self._device)

    def release(self) -> None:
        self._cuda.empty_cache()

    def limit(self, size_bytes: int) -> None:
        self.limit_bytes = min(size_bytes, self.total_bytes)
        self._cuda.set_per_process_memory_fraction(fraction_of(self.limit_bytes, self.total_bytes), self._device)

    def page_locked(self, size_bytes: int) -> torch.Tensor:
        return self._torch.empty(size_bytes, dtype=self._torch.uint8, pin_memory=True)

    def finish_queued(self) -> None:
        self._cuda.synchronize(self._device)


def fraction_of(size_bytes: int, total_bytes: int) -> float:
    """The fraction of which torch makes exactly `size_bytes` again, as it multiplies and cuts off. Pure."""
    fraction = size_bytes / total_bytes
    while int(fraction * total_bytes) < size_bytes:
        fraction = math.nextafter(fraction, 1.0)
    return fraction
