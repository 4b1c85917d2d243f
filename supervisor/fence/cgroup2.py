"""Cgroup v2: what the fence does with one cgroup, and the fence that memsup makes itself, where it may.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst. `memory.high` is not set: measured, it turns a runaway into a
worker that neither dies nor moves and drives the whole machine's PSI up, while the ladder and `memory.max` end it at once.
The scope made by systemd is in `fence/scope.py`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from memsup.supervisor.fence.base import Fence, FenceError, Kind, launcher
from memsup.supervisor.kernel.cgroup_files import hold, make_folder, page_floor, pids_below, put, remove_folders, take
from memsup.supervisor.kernel.cgroups import MemoryUse, find_hierarchy
from memsup.supervisor.kernel.kernel_file import KernelFile
from memsup.supervisor.kernel.processes import fence_name, send_listed


class Cgroup2(Fence):
    """The fence that is the cgroup at `folder`, wherever that comes from."""

    def __init__(self, run: str, limit_bytes: int, folder: Path) -> None:
        super().__init__(run, limit_bytes)
        self._folder = folder
        self._use = MemoryUse(folder, 2)
        self._limit, self._swap_limit = KernelFile(folder / "memory.max", 64), KernelFile(folder / "memory.swap.max", 64)
        self._oom_group = KernelFile(folder / "memory.oom.group", 64)
        self._pressure = KernelFile(folder / "memory.pressure")
        self._memory_events = KernelFile(folder / "memory.events")
        self._kills_before = self._kill_count() or 0

    @property
    def folder(self) -> Path:
        return self._folder

    def renew(self) -> None:
        hold(self._limit, str(page_floor(self.limit_bytes)))
        hold(self._swap_limit, "0")
        hold(self._oom_group, "1")

    def used_bytes(self) -> int | None:
        return self._use.held_bytes()

    def oom_kills(self) -> int | None:
        count = self._kill_count()
        return None if count is None else max(0, count - self._kills_before)

    def pressure_total_us(self) -> int | None:
        return self._pressure.number_after(b"total=") if self._pressure.read() else None

    def everyone(self) -> list[int]:
        return pids_below(self._folder)

    def populated(self) -> bool | None:
        if self.spared is not None:
            return bool(self.pids())
        answer = self._event("populated")
        return False if answer is None and not self._folder.exists() else answer

    def freeze(self) -> None:
        put(self._folder / "cgroup.freeze", "1")

    def thaw(self) -> None:
        put(self._folder / "cgroup.freeze", "0")

    def frozen(self) -> bool | None:
        return self._event("frozen")

    def kill(self) -> None:
        if self.spared is not None or not put(self._folder / "cgroup.kill", "1"):  # the latter: Linux before 5.14
            self.freeze()
            send_listed(self.pids, signal.SIGKILL)
        self.thaw()

    def remove(self) -> bool:
        return remove_folders(self._folder)

    def _event(self, name: str) -> bool | None:
        lines = (take(self._folder / "cgroup.events") or "").split("\n")
        return True if f"{name} 1" in lines else False if f"{name} 0" in lines else None

    def _kill_count(self) -> int | None:
        return self._memory_events.number_after(b"\noom_kill ") if self._memory_events.read() else None


class DelegatedFence(Cgroup2):
    """A cgroup of memsup's own below the nearest cgroup that lets it make one."""

    kind = Kind.CGROUP2

    def __init__(self, run: str, limit_bytes: int) -> None:
        """Makes the cgroup, or takes over the one that an earlier supervisor of the same run left. Raises `FenceError`."""
        folder = _delegated() / fence_name(run)
        try:
            make_folder(folder)
        except OSError as error:
            raise FenceError(f"{folder} cannot be made ({error.strerror})") from None
        super().__init__(run, limit_bytes, folder)
        if not put(folder / "memory.max", str(limit_bytes)):
            raise FenceError(f"{folder / 'memory.max'} cannot be written")
        self.renew()

    def launch_prefix(self) -> list[str]:
        return launcher(self.name, writes=[(self._folder / "cgroup.procs", "0")])


def _delegated() -> Path:
    """The nearest cgroup above our own in which a sibling with a memory limit can be made and entered.

    Our own holds processes, and v2 allows no limits below such a one (the real root excepted). The enclosing limits still
    count, since the fence's size was chosen from them. Raises `FenceError`.
    """
    hierarchy = find_hierarchy("memory")
    if hierarchy is None or hierarchy.version != 2:
        raise FenceError("no cgroup v2 with a memory controller is mounted here")
    is_real_root = not (hierarchy.own / "cgroup.type").exists()
    candidates = hierarchy.upwards() if is_real_root else hierarchy.upwards()[1:]
    writable = [
        folder for folder in candidates if os.access(folder, os.W_OK | os.X_OK) and os.access(folder / "cgroup.procs", os.W_OK)
    ]
    for folder in writable:
        if "memory" in (take(folder / "cgroup.subtree_control") or "").split():
            return folder
    if writable:
        raise FenceError(f"the memory controller is not enabled for the cgroups below {writable[0]}")
    raise FenceError("no cgroup above this process lets this user make another")
