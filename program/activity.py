"""The processor time of this process and of all that it has started: it tells a program that computes from one that hangs.

Its ticks alone do not tell that: an evaluation within a step may take an hour in which memsup is not called.
"""

from __future__ import annotations

import contextlib
import os

from memsup.memory import children_of

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s() -> float:
    """The seconds so far. They may fall by those of a child that was ended by somebody else."""
    times = os.times()
    total_s, parents = times.user + times.system + times.children_user + times.children_system, [os.getpid()]
    while parents:
        children = children_of(parents.pop())
        parents += children
        total_s += sum(map(_of, children))
    return total_s


def _of(pid: int) -> float:
    """What a process and those that it has waited for have used; see proc_pid_stat(5)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        return sum(int(field) for field in fields[11:15]) * _TICK_S
    return 0.0
