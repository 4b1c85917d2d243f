"""Cgroup v1, as root: one cgroup of the memory controller and one of the freezer, with the same name.

The kernel's own killer stays enabled (`memory.oom_control`); it takes single processes, v1 knows no group. Sources: the
kernel's Documentation/admin-guide/cgroup-v1/memory.rst and freezer-subsystem.rst.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from memsup.supervisor.fence.base import Fence, FenceError, Kind, launcher
from memsup.supervisor.kernel.cgroup_files import (
    hold,
    make_folder,
    page_floor,
    pids_below,
    put,
    remove_folders,
    take,
    take_number,
)
from memsup.supervisor.kernel.cgroups import Hierarchy, MemoryUse, find_hierarchy
from memsup.supervisor.kernel.kernel_file import KernelFile
from memsup.supervisor.kernel.processes import send_listed

_UNLIMITED_BYTES = 1 << 62


class Cgroup1Fence(Fence):
    kind = Kind.CGROUP1

    def __init__(self, run: str, limit_bytes: int) -> None:
        """Makes the two cgroups, or takes over those that an earlier supervisor of the same run left. Raises `FenceError`."""
        super().__init__(run, limit_bytes)
        memory, freezer = find_hierarchy("memory"), find_hierarchy("freezer")
        if memory is None or memory.version != 1:
            raise FenceError("no cgroup v1 with a memory controller is mounted here")
        if freezer is None or freezer.version != 1:
            raise FenceError("no cgroup v1 freezer is mounted here")
        if os.geteuid() != 0:
            raise FenceError("only root may make a cgroup v1")
        self._folder = _limiting_folder(memory) / self.name
        self._freezer = freezer.mount / self.name
        try:
            make_folder(self._folder)
            make_folder(self._freezer)
        except OSError as error:
            raise FenceError(f"{error.filename} cannot be made ({error.strerror})") from None
        self._use = MemoryUse(self._folder, 1)
        self._limit = KernelFile(self._folder / "memory.limit_in_bytes", 64)
        self._with_swap_limit = KernelFile(self._folder / "memory.memsw.limit_in_bytes", 64)
        self._oom_control = KernelFile(self._folder / "memory.oom_control")
        self._kills_before = self._kill_count() or 0
        put(self._folder / "memory.use_hierarchy", "1")  # kernels before 5.11 leave it to us
        put(self._folder / "memory.swappiness", "0")
        self.renew()
        if take_number(self._folder / "memory.limit_in_bytes") != page_floor(limit_bytes):
            raise FenceError(f"the kernel did not take the limit of {self._folder}")

    @property
    def folder(self) -> Path:
        return self._folder

    def launch_prefix(self) -> list[str]:
        return launcher(self.name, writes=[(folder / "cgroup.procs", "0") for folder in (self._folder, self._freezer)])

    def renew(self) -> None:
        text = str(page_floor(self.limit_bytes))
        # Memory may never be above memory with swap, so the order depends on the direction.
        # What the kernel refuses (EBUSY) is tried again later.
        swap_as_well = hold(self._with_swap_limit, text)
        hold(self._limit, text)
        if not swap_as_well:
            hold(self._with_swap_limit, text)

    def used_bytes(self) -> int | None:
        return self._use.held_bytes()

    def oom_kills(self) -> int | None:
        count = self._kill_count()
        return None if count is None else max(0, count - self._kills_before)

    def everyone(self) -> list[int]:
        return sorted({*pids_below(self._folder), *pids_below(self._freezer)})

    def populated(self) -> bool | None:
        if self.pids():
            return True
        unreadable = [
            folder for folder in (self._folder, self._freezer) if take(folder / "cgroup.procs") is None and folder.exists()
        ]
        return None if unreadable else False

    def freeze(self) -> None:
        put(self._freezer / "freezer.state", "FROZEN")

    def thaw(self) -> None:
        put(self._freezer / "freezer.state", "THAWED")

    def frozen(self) -> bool | None:
        state = take(self._freezer / "freezer.state")
        return None if state is None else state == "FROZEN"

    def kill(self) -> None:
        self.freeze()  # so that nobody forks meanwhile; v1 delivers the signal at the thaw
        send_listed(self.pids, signal.SIGKILL)
        self.thaw()

    def remove(self) -> bool:
        return remove_folders(self._folder) and remove_folders(self._freezer)

    def _kill_count(self) -> int | None:
        return self._oom_control.number_after(b"\noom_kill ") if self._oom_control.read() else None


def _limiting_folder(memory: Hierarchy) -> Path:
    """The folder where a new cgroup escapes no limit that holds for this process, and yet outlives its login session."""
    for folder in memory.upwards():
        limit = take_number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _UNLIMITED_BYTES:
            return folder
    return memory.mount
