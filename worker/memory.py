"""Memory as the worker sees it beside what every training process does (`program/memory.py`): peaks, and the device.

The one seam for torch's CUDA calls that concern memory or wait for the device is `DeviceMemory`. What is done about exhaustion
is decided in `exhaustion.py`; the fence around the process is the supervisor's.
"""

from __future__ import annotations

import gc
import math
import resource
from typing import TYPE_CHECKING, Any, Protocol

from memsup.memory import begin_peak, end_peak, held, trim
from memsup.shared.messages import LimitMemory, WorkerMemory

if TYPE_CHECKING:
    import torch


# --------------------------------------------------------------------------------------------------------------------
# What is held


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
        return begin_peak()

    def end(self) -> int:
        """Returns the most bytes that were held since `begin`. Raises OSError."""
        if self._device is not None:
            return self._device.peak_bytes()
        return end_peak()


def read_memory(device: DeviceMemory | None = None) -> WorkerMemory:
    """Reads what a heartbeat says of memory; quick, and from any thread. Raises OSError."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return WorkerMemory(
        resident_bytes=held().resident_bytes,
        cuda_allocated_bytes=device.allocated_bytes() if device else None,
        cuda_reserved_bytes=device.reserved_bytes() if device else None,
        data_limit_bytes=None if soft == resource.RLIM_INFINITY else soft,
    )


def hand_back(device: DeviceMemory | None = None) -> None:
    """Returns what nobody uses any more to the system. Call it outside the `except`: the exception keeps its frames alive."""
    gc.collect()
    if device is not None:
        device.release()
    trim()


# --------------------------------------------------------------------------------------------------------------------
# The device


class DeviceMemory(Protocol):
    """An accelerator's memory, as far as memsup talks to it."""

    total_bytes: int
    limit_bytes: int
    """The most that torch may reserve now."""
    uuid: str | None
    """The device's own number, as its driver has it. It is None where torch does not tell it."""

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


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sends a tensor on its way, from page-locked memory: from any other the host would wait until the copy has been made.
    torch uses that memory again when the device has read it.
    """
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class CudaMemory:
    """`DeviceMemory` of one CUDA device. Its figures are the allocator's own, which counts when memory is asked for, before the
    device computes with it: so they are read without waiting.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._torch: Any = torch
        self._cuda: Any = torch.cuda
        self._device = device
        properties: Any = torch.cuda.get_device_properties(device)
        self.total_bytes = self.limit_bytes = int(properties.total_memory)
        found = str(getattr(properties, "uuid", "")) or None  # torch leaves out what stands before it
        self.uuid = f"GPU-{found}" if found is not None and not found.startswith(("GPU-", "MIG-")) else found

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
