"""Where no cgroup can be had: limits that each process carries itself, and the tree found by walking through /proc.

RLIMIT_DATA bounds each process, not their sum, so the ladder bounds the sum; `deadman.py` stands behind the ladder.
"""

from __future__ import annotations

import resource

from memsup.shared.clock import monotonic_s
from memsup.supervisor.fence.base import Fence, Kind, launcher
from memsup.supervisor.kernel import processes

_WALK_SHARE = 0.05
"""The share of the time that walks through /proc may take."""


class NoFence(Fence):
    """A tree that is only watched: nothing is enforced by the kernel."""

    kind = Kind.NONE

    def __init__(self, run: str, limit_bytes: int) -> None:
        super().__init__(run, limit_bytes)
        self._at_walk: dict[int, tuple[int, int]] = {}
        """The proportional and the resident bytes of each process at the last walk."""
        self._walk_at_s = 0.0

    def launch_prefix(self) -> list[str]:
        return launcher(self.name)

    def renew(self) -> None:
        """Does nothing: there is no limit to put back."""

    def used_bytes(self) -> int | None:
        """The sum over all processes. Shared pages are divided at each walk; in between each process's growth is added, so a
        leak shows at once.
        """
        now_s = monotonic_s()
        if now_s >= self._walk_at_s:
            self._walk()
            self._walk_at_s = now_s + max(0.5, (monotonic_s() - now_s) / _WALK_SHARE)
        total = self.unmapped_bytes
        for pid, (proportional, resident_then) in self._at_walk.items():
            resident = processes.resident_bytes(pid)
            total += 0 if resident is None else max(0, proportional + resident - resident_then)
        return total

    def everyone(self) -> list[int]:
        return sorted(pid for pid, process in processes.members(self.name).items() if not process.dead)

    def populated(self) -> bool:
        return bool(self.pids())

    def freeze(self) -> None:
        processes.stop_all(self.name)

    def thaw(self) -> None:
        processes.continue_all(self.name)

    def frozen(self) -> bool:
        return all(process.state in "TtZX" for process in processes.members(self.name).values())

    def kill(self) -> None:
        processes.kill_all(self.name, spared=self.spared)
        if self.spared is not None:  # it was stopped with the others, if they were
            self.thaw()

    def remove(self) -> bool:
        return not self.populated()

    def _walk(self) -> None:
        self._at_walk = {}
        for pid in self.everyone():
            resident = processes.resident_bytes(pid)
            if resident is not None:
                proportional = processes.proportional_bytes(pid)
                self._at_walk[pid] = (resident if proportional is None else proportional, resident)


class RlimitFence(NoFence):
    """A limit that each process of the worker's tree carries on its own."""

    kind = Kind.RLIMIT

    def launch_prefix(self) -> list[str]:
        return launcher(self.name, data_limit_bytes=self.limit_bytes)

    def renew(self) -> None:
        for pid in self.everyone():
            try:
                _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
                resource.prlimit(pid, resource.RLIMIT_DATA, (min(self.limit_bytes, hard), hard))
            except (OSError, ValueError):
                continue
