"""What the supervisor does for itself before the worker starts, so that it still runs when memory has run out.

Call it once everything is imported and the kill path was rehearsed (`fence.choose_fence` does that): what is locked is what is
there. Does not cover the worker, which is made the better victim by its fence's `launch_prefix`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from dataclasses import dataclass
from pathlib import Path

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_SCORES = (-800, 0, 100)
"""Tried in this order. Only a privilege goes below what the service manager set: 100 and more for users (systemd#38492)."""


@dataclass(frozen=True, slots=True)
class Protection:
    """One protection, whether it holds, and a sentence about it."""

    holds: bool
    text: str


def protect() -> list[Protection]:
    """Locks this process in memory, makes it a poor victim for the kernel, and keeps its objects out of garbage collection."""
    gc.collect()
    gc.freeze()
    return [_lock_in_memory(), _lower_oom_score()]


def _lock_in_memory() -> Protection:
    """mlockall(2), with ONFAULT: without it each new thread locks a whole stack of 8 MiB.

    FUTURE only where no limit on locked memory can be met: at the limit it makes the next allocation fail. CURRENT fails
    harmlessly where the limit is below what is mapped.
    """
    limit_bytes = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    unlimited = limit_bytes == resource.RLIM_INFINITY or _may_lock_without_limit()
    flags = _MCL_CURRENT | _MCL_ONFAULT | (_MCL_FUTURE if unlimited else 0)
    if ctypes.CDLL(None, use_errno=True).mlockall(flags) == 0:
        return Protection(True, "The supervisor is locked in memory: it waits for no page of its own when memory is short.")
    why = os.strerror(ctypes.get_errno())
    if not unlimited:
        why = f"this user may lock {limit_bytes >> 20} MiB"
    return Protection(
        False,
        f"The supervisor cannot be locked in memory ({why}), so it may be slow to react when the machine thrashes; "
        "the fence holds all the same. An administrator can allow it with memlock in /etc/security/limits.conf.",
    )


def _may_lock_without_limit() -> bool:
    """CAP_IPC_LOCK is in effect, in the initial user namespace or not: the kernel asks for it in the initial one."""
    cap_ipc_lock = 14
    for line in _text("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            in_initial_namespace = _text("/proc/self/uid_map").split() == ["0", "0", "4294967295"]
            return in_initial_namespace and bool(int(line.split()[1], 16) >> cap_ipc_lock & 1)
    return False


def _lower_oom_score() -> Protection:
    file = Path("/proc/self/oom_score_adj")
    text = _text(str(file)).strip()
    if not text:
        return Protection(False, "The kernel does not say how likely a victim of its out-of-memory killer the supervisor is.")
    score = int(text)
    for lower in _SCORES:
        if lower >= score:
            break
        try:
            file.write_text(str(lower), encoding="ascii")
        except OSError:
            continue
        score = lower
        break
    return Protection(
        score <= 200,
        f"The supervisor's oom_score_adj is {score}; the worker's is raised above it, so the kernel takes the worker first.",
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
