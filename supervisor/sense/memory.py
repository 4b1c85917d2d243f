"""Host memory and disk, read: one call, one reading, nothing decided.

On the hot path there are only descriptors that stay open, buffers that stay allocated, and counters; no walk through /proc, no
import, no fork. What is absent, vanishes or makes no sense is None. Jumps are passed on as they are.

When to read again is decided in `decide/guard.py`. GPUs are read by `gpu/`, temperatures by `temperatures.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.kernel.cgroups import MemoryAccount
from memsup.supervisor.kernel.kernel_file import KernelFile

_LIMITS_AGAIN_S = 0.25


class WorkerUse(Protocol):
    """What the sensor asks of the fence around the worker."""

    @property
    def folder(self) -> Path | None: ...

    def used_bytes(self) -> int | None: ...

    def pressure_total_us(self) -> int | None: ...

    def oom_kills(self) -> int | None: ...


class MemorySensor:
    """Reads everything about host memory. `fence` holds the worker; `root` is `/`, or a recorded tree in tests."""

    def __init__(self, fence: WorkerUse | None, root: Path = Path("/")) -> None:
        self._fence = fence
        self._meminfo = KernelFile(root / "proc/meminfo")
        self._pressure = KernelFile(root / "proc/pressure/memory")
        self._machine_stall, self._fence_stall = _StallClock(), _StallClock()
        self._account = MemoryAccount(root, fence.folder if fence else None)
        self._limits_at_s = float("-inf")

    def read(self, now_s: float) -> MemoryReading:
        """Takes one reading at `now_s`, which is monotonic. Never raises; takes some 50 µs."""
        known = self._meminfo.read()
        total = _bytes(self._meminfo.number_after(b"MemTotal:", b"kB")) if known else None
        available = _bytes(self._meminfo.number_after(b"\nMemAvailable:", b"kB")) if known else None
        swap_free = _bytes(self._meminfo.number_after(b"\nSwapFree:", b"kB")) if known else None
        if total is not None and available is not None and available > total:
            available = None
        if now_s - self._limits_at_s >= _LIMITS_AGAIN_S:
            self._limits_at_s = now_s
            self._account.read_limits()
        total, available = self._account.within(total, available)
        stall_us = self._pressure.number_after(b"total=") if self._pressure.read() else None
        fence = self._fence
        return MemoryReading(
            at_s=now_s,
            ram_total_bytes=total,
            ram_available_bytes=available,
            swap_free_bytes=swap_free,
            worker_bytes=fence.used_bytes() if fence else None,
            pressure_fraction=self._machine_stall.fraction(now_s, stall_us),
            worker_pressure_fraction=self._fence_stall.fraction(now_s, fence.pressure_total_us() if fence else None),
            fence_oom_kills=fence.oom_kills() if fence else None,
        )


def read_disk(now_s: float, folder: Path) -> DiskReading:
    """Reads the free space for this user on the file system where `folder` lies."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return DiskReading(at_s=now_s)
    return DiskReading(at_s=now_s, free_bytes=found.f_bavail * found.f_frsize)


class _StallClock:
    """Turns a PSI `total=` counter into the share of time since the reading before."""

    __slots__ = ("_at_s", "_total_us")

    def __init__(self) -> None:
        self._at_s = 0.0
        self._total_us: int | None = None

    def fraction(self, now_s: float, total_us: int | None) -> float | None:
        before_us, before_s = self._total_us, self._at_s
        self._total_us, self._at_s = total_us, now_s
        if total_us is None or before_us is None or total_us < before_us or now_s <= before_s:
            return None
        return min(1.0, (total_us - before_us) / 1e6 / (now_s - before_s))


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib * 1024
