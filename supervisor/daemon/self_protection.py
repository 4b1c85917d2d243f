"""What the supervisor does for itself before the worker starts, so that it still runs when memory has run out.

Call it once everything is imported and the kill path was rehearsed (`fence/choice.py` does that): what is locked is what is
there. Where nothing may be locked, `keep_programs` keeps what it runs from being dropped, and `own_scope`, in front of its
command, keeps it out of the swap. Does not cover the worker, which is made the better victim by its fence's `launch_prefix`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memsup.supervisor.kernel.cgroups import find_hierarchy

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_MADV_POPULATE_WRITE = 23
_PRESENT, _OF_A_FILE = 1 << 63, 1 << 61
"""The flags of a page in /proc/self/pagemap."""
_SCORES = (-800, 0, 100)
"""The values of oom_score_adj that are tried, in this order. Only a privilege goes below what the service manager set: 100 and
more for users (systemd#38492)."""


@dataclass(frozen=True, slots=True)
class Protection:
    """A protection: whether it holds, and a sentence about it."""

    holds: bool
    text: str


def protect() -> list[Protection]:
    """Locks this process in memory, makes it a poor victim for the kernel, and keeps its objects out of garbage collection."""
    gc.collect()
    gc.freeze()
    return [_lock_in_memory(), _lower_oom_score()]


def _lock_in_memory() -> Protection:
    """Calls mlockall(2), with ONFAULT: without it each new thread locks a whole stack of 8 MiB.

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
    refused = f"The supervisor cannot be locked in memory ({why})"
    if keep_programs() and not _may_be_swapped():
        return Protection(True, f"{refused}, but nothing of it can be dropped or swapped: its programs are copies of its own.")
    return Protection(
        False,
        f"{refused}, so it may be slow to react when the machine thrashes; "
        "the fence holds all the same. An administrator can allow it with memlock in /etc/security/limits.conf.",
    )


def keep_programs() -> bool:
    """Turns the pages of programs and libraries that are in memory now into this process's own. False: the kernel refuses.

    When memory runs out, the kernel first drops what it can read again from files, and that is the code which runs; each such
    page then takes a tenth of a second or more to come back. Anonymous pages can go to swap only. A page becomes anonymous when
    it is written to, be it with what is in it: through /proc/self/mem also where the program itself may not write (kernel:
    `FOLL_FORCE`; since Linux 6.12 it can be switched off). Pages that the program may write to, and other threads do, are left
    to MADV_POPULATE_WRITE (Linux 5.14). Resident memory stays what it was, but is not shared with other processes any more.
    Takes 20 ms for 13 MiB.
    """
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    populate = ctypes.CDLL(None).madvise
    populate.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for begin, end, writable in _private_files():
            flags = memoryview(os.pread(pagemap, (end - begin) // page_bytes * 8, begin // page_bytes * 8)).cast("Q")
            for address, flag in zip(range(begin, end, page_bytes), flags, strict=False):
                if not (flag & _PRESENT and flag & _OF_A_FILE):
                    continue
                if writable:
                    populate(address, page_bytes, _MADV_POPULATE_WRITE)
                else:
                    os.pwrite(memory, os.pread(memory, page_bytes, address), address)
    except OSError:
        return False
    finally:
        os.close(memory)
        os.close(pagemap)
    return True


def settle() -> None:
    """Keeps in memory what the loop has brought there since; to be called once it has been through all that it does."""
    if "VmLck:\t       0 kB" in _text("/proc/self/status"):
        keep_programs()


def _private_files() -> Iterator[tuple[int, int, bool]]:
    """Where each private mapping of a file that may be read begins and ends, and whether it may be written to."""
    for line in _text("/proc/self/maps").splitlines():
        addresses, permissions, _, _, inode = line.split()[:5]
        if inode != "0" and permissions[0] == "r" and permissions[3] == "p":
            begin, end = addresses.split("-")
            yield int(begin, 16), int(end, 16), permissions[1] == "w"


def _may_be_swapped() -> bool:
    if len(_text("/proc/swaps").splitlines()) <= 1:
        return False
    memory = find_hierarchy("memory")
    return memory is None or memory.version != 2 or _text(str(memory.own / "memory.swap.max")).strip() != "0"


def own_scope(name: str) -> list[str]:
    """The words before the supervisor's command by which none of its memory is ever swapped, and nothing that happens to the
    terminal's scope happens to it (systemd-oomd ends whole scopes). Empty where there is no user's service manager, and for
    root, who may lock. It can fail at run time; the command is then to be tried without. The pid stays the same.
    """
    manager = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")) / "systemd/private"
    if os.geteuid() == 0 or not manager.is_socket() or shutil.which("systemd-run") is None:
        return []
    return [
        *("systemd-run", "--user", "--scope", "--quiet", "--collect", f"--unit={name}.scope"),
        *("--property=MemorySwapMax=0", "--property=OOMPolicy=continue", "--"),
    ]


def _may_lock_without_limit() -> bool:
    """Whether CAP_IPC_LOCK is in effect in the initial user namespace, which is where the kernel asks for it."""
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
