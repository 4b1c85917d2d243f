"""What every fence can do, whatever the kernel offers here, and the words for it."""

from __future__ import annotations

import enum
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from memsup.supervisor.fence import launch
from memsup.supervisor.kernel.processes import MARK, fence_name, limit_growth

WORKER_OOM_SCORE_ADJ = 700
"""The worker's score is well above a user service's 200 (systemd#38492): the kernel takes the worker when it must choose."""


class Kind(enum.StrEnum):
    """The kinds of fence, the best first."""

    SCOPE = "scope"
    """A systemd scope (cgroup v2), in the user's or the system's manager."""
    CGROUP2 = "cgroup2"
    """A cgroup v2 made by memsup itself, where that is delegated or memsup is root."""
    CGROUP1 = "cgroup1"
    """A cgroup v1 of the memory and freezer controllers, as root."""
    RLIMIT = "rlimit"
    """RLIMIT_DATA, which bounds each process, not their sum; without CUDA only."""
    NONE = "none"


class FenceError(Exception):
    """This kind of fence cannot be had here; the text is one plain clause that says why."""


class Fence(ABC):
    """A limit around the worker's whole tree. It exists from its construction; the worker comes in by `launch_prefix`.

    Nothing here raises for what the kernel does at run time: a reading that cannot be had is None, and an order that the
    kernel refuses shows in what is read afterwards. Only the fence's own cgroups are ever written to.
    """

    kind: Kind

    def __init__(self, run: str, limit_bytes: int) -> None:
        self.name = fence_name(run)
        self.spared: int | None = None
        """The process inside that stands by for the next worker (`fence/warm.py`), and is none of this one's: it is frozen with
        it, but neither listed nor killed. It is None where there is none."""
        self.unmapped_bytes = 0
        """Memory that was written inside and that no process there has mapped: a state that is held for the next worker. A
        cgroup counts it by itself."""
        self.limit_bytes = limit_bytes
        self.why_no_better = ""
        """Why no better kind can be had here; empty where this is the best."""

    @property
    def folder(self) -> Path | None:
        """The cgroup whose ancestors bound the worker as well. It is None where there is none."""
        return None

    @abstractmethod
    def launch_prefix(self) -> list[str]:
        """What to put before a command so that it starts inside, `oom_score_adj` raised. Exit code 125: it could not."""

    def warm_prefix(self) -> list[str]:
        """What to put before the command of a process that stands by, so that it and its forks are inside."""
        return self.launch_prefix()

    @abstractmethod
    def renew(self) -> None:
        """Puts the limit back where somebody else changed it; to be called once a second."""

    @abstractmethod
    def used_bytes(self) -> int | None:
        """The memory that only the death of the worker's tree would give back: no page cache. Returns None where it cannot be
        read.
        """

    def oom_kills(self) -> int | None:
        """The kernel's count of its kills at the fence since it was made (v2 counts the first victim of a group twice).

        None where nobody counts.
        """
        return None

    def pressure_total_us(self) -> int | None:
        """The time in which somebody inside waited for memory: the cgroup's `some total=`. Returns None where it is not
        measured.
        """
        return None

    @abstractmethod
    def everyone(self) -> list[int]:
        """Every process inside."""

    def pids(self) -> list[int]:
        """Every process inside but the one that is spared."""
        return [pid for pid in self.everyone() if pid != self.spared]

    @abstractmethod
    def populated(self) -> bool | None:
        """Whether anything inside still runs but the one that is spared; the dead that nobody reaped do not count. Returns None
        where that is unknown.
        """

    @abstractmethod
    def freeze(self) -> None: ...

    def keep_small(self, most_growth_bytes: int) -> None:
        """Has each process inside that keeps a soft limit (`RLIMIT_DATA`) get at most so much more than it has now, until it
        sets that limit anew. Beyond, an allocation fails, which it can catch, instead of taking what is not there.
        """
        for pid in self.pids():
            limit_growth(pid, most_growth_bytes)

    @abstractmethod
    def thaw(self) -> None: ...

    @abstractmethod
    def frozen(self) -> bool | None:
        """Whether everything inside stands still. Returns None where it cannot be read."""

    @abstractmethod
    def kill(self) -> None:
        """Sends SIGKILL to all `pids` and returns at once; to be called again while `populated` (`kill.TreeKill`)."""

    @abstractmethod
    def remove(self) -> bool:
        """Takes the empty fence away. False when somebody is still inside. May take a tenth of a second."""


def launcher(name: str, *, writes: Sequence[tuple[Path, str]] = (), data_limit_bytes: int | None = None) -> list[str]:
    """The command line of `launch.py` with its options; the command to be launched follows."""
    command = [sys.executable, "-I", "-S", launch.__file__, "--environment", MARK, name]
    command += ["--oom-score-adj", str(WORKER_OOM_SCORE_ADJ)]
    if data_limit_bytes is not None:
        command += ["--data-limit", str(data_limit_bytes)]
    for file, text in writes:
        command += ["--write", str(file), text]
    return [*command, "--"]
