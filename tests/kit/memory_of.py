"""The memory of a process that a test looks at: how much it has held, and how it runs out of it."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_bytes(pid: int) -> int:
    """The most that a process has had resident so far."""
    return _status_kib(pid, "VmHWM") << 10


def starve(pid: int) -> None:
    """Has a process run out of memory with what it allocates next."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
    resource.prlimit(pid, resource.RLIMIT_DATA, ((_status_kib(pid, "VmData") << 10) - (8 << 20), hard))


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
