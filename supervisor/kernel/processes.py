"""Everything that came from the worker, found by walking through /proc, stopped and killed.

Covers what no cgroup holds: descendants that forked twice and changed their session come back to the supervisor as orphans,
because it is their subreaper (`children.py`), and carry the mark that the fence's `launch_prefix` put into their
environment. Identity is a pidfd, never a number alone and never a name. A walk costs some 20 µs for each process of the
machine, so none of this is for the hot path. Few imports, since `deadman.py` runs it in a process that must stay small.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable

MARK = "_MEMSUP_FENCE"
"""The environment variable that names the fence a process was started for; the fence's `launch_prefix` sets it."""

_NAME_BYTES = 32

_started_here: set[int] = set()
"""The children that were started here; all others are orphans that came to the subreaper. There is one set for the whole
process, as the kernel's notion of "my children" belongs to the whole process."""


def started_here(pid: int) -> None:
    """Notes that this process started `pid`: it is never taken for an orphan of the worker's, and never reaped as one."""
    _started_here.add(pid)


def is_orphan(process: Process) -> bool:
    """Whether this is a child that this process did not start and that came from the worker. Such a child lives in another
    session than this process, so a helper that some library starts here is not taken for one.
    """
    return process.parent == os.getpid() and process.pid not in _started_here and process.session != os.getsid(0)


def no_longer_here(pid: int) -> None:
    """Notes that `pid` was reaped; its number may come again."""
    _started_here.discard(pid)


class Process:
    """One line of /proc/PID/stat (proc_pid_stat(5)). `started`, clock ticks after boot, makes of `pid` an identity."""

    __slots__ = ("parent", "pid", "session", "started", "state", "threads")

    def __init__(self, pid: int, parent: int, session: int, state: str, started: int, threads: int) -> None:
        self.pid, self.parent, self.session = pid, parent, session
        self.state, self.started, self.threads = state, started, threads

    @property
    def dead(self) -> bool:
        """Whether the process is a zombie. One whose other threads still run is not dead: it still holds its memory."""
        return self.state in "ZX" and self.threads <= 1


def parse_stat(text: bytes) -> Process | None:
    """The process that the line tells of. Returns None for anything that is not such a line.

    The name in it may hold spaces, brackets and line feeds.
    """
    head, bracket, rest = text.rpartition(b")")
    fields, pid = rest.split(), head.partition(b" ")[0]
    if not bracket or len(fields) < 20:
        return None
    numbers = (pid, fields[1], fields[3], fields[17], fields[19])
    if not all(number.isdigit() and len(number) < 20 for number in numbers):
        return None
    number, parent, session, threads, started = map(int, numbers)
    return Process(number, parent, session, fields[0].decode("ascii", "replace"), started, threads)


def look_at(pid: int) -> Process | None:
    """The process with this number. Returns None when there is none."""
    return parse_stat(_content(f"/proc/{pid}/stat"))


def scan() -> dict[int, Process]:
    """Every process there is, by pid."""
    found = {}
    for name in os.listdir("/proc"):
        process = look_at(int(name)) if name.isdigit() else None
        if process:
            found[process.pid] = process
    return found


def members(mark: str) -> dict[int, Process]:
    """Everything that came from the worker of fence `mark`, zombies included: what carries the mark in its environment, the
    orphans that this process inherited, and all that descends from these. Never this process itself, nor what it started
    besides.
    """
    processes, me = scan(), os.getpid()
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found = {pid for pid, process in processes.items() if pid != me and (is_orphan(process) or _marked(pid, mark))}
    unseen = list(found)
    while unseen:
        fresh = [pid for pid in children.get(unseen.pop(), ()) if pid not in found and pid != me]
        found.update(fresh)
        unseen += fresh
    return {pid: processes[pid] for pid in found}


def fence_name(run: str) -> str:
    """The name of a run's fence, `memsup-…`, which is also its processes' mark: the same for the same run, fit for a cgroup
    and a unit. A second dash would nest systemd's slices.
    """
    readable = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in run)
    if readable == run and 0 < len(run) <= _NAME_BYTES:
        return f"memsup-{run}"
    import hashlib  # here, since `deadman.py` has no use for it

    return f"memsup-{readable[:24]}_{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def with_variable(name: str) -> list[tuple[Process, str]]:
    """The processes of this user that were started with this environment variable, each with its value; the dead that nobody
    reaped left out.
    """
    start = f"{name}=".encode()
    return [
        (process, variable.removeprefix(start).decode(errors="replace"))
        for pid, process in scan().items()
        if not process.dead
        for variable in _environment(pid)
        if variable.startswith(start)
    ]


def marks() -> frozenset[str]:
    """The marks of all fences in which anything of this user's still runs."""
    return frozenset(mark for _, mark in with_variable(MARK))


def resident_bytes(pid: int) -> int | None:
    """The anonymous and shared memory of one process, read cheaply. Returns None when it is gone.

    What it shares with a process that it forked counts in both.
    """
    return _kib_sum(_content(f"/proc/{pid}/status"), b"\nRssAnon:", b"\nRssShmem:")


def proportional_bytes(pid: int) -> int | None:
    """The memory of one process with each shared page divided by the number of processes that map it. Returns None when it is
    gone, or the kernel does not say. The kernel walks the page table for this (milliseconds for gigabytes) and takes the
    process's mmap lock, so it is for the slow walk only.
    """
    return _kib_sum(_content(f"/proc/{pid}/smaps_rollup"), b"\nPss_Anon:", b"\nPss_Shmem:")


def private_bytes(pid: int) -> int | None:
    """The memory that comes back if this process alone ends: what it has written to and shares with none. Returns None as
    `proportional_bytes` does.
    """
    return _kib_sum(_content(f"/proc/{pid}/smaps_rollup"), b"\nPrivate_Dirty:")


def limit_growth(pid: int, most_growth_bytes: int) -> None:
    """Has a process that keeps a soft limit of its data (`RLIMIT_DATA`) get at most so much more than it has now. One that
    keeps none, or has less room already, is left alone, and so is one that is gone.
    """
    import resource  # here, since `deadman.py` has no use for it

    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        has_bytes = int(_content(f"/proc/{pid}/statm").split()[5]) * resource.getpagesize()
        if soft != resource.RLIM_INFINITY and has_bytes + most_growth_bytes < soft:
            resource.prlimit(pid, resource.RLIMIT_DATA, (has_bytes + most_growth_bytes, hard))
    except (OSError, ValueError, IndexError):
        return


# --------------------------------------------------------------------------------------------------------------------
# Signals


def send(pidfd: int, number: signal.Signals) -> bool:
    """Sends a signal through a pidfd. False when the process is gone or changed its user."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    return True


def send_to(process: Process, number: signal.Signals) -> bool:
    """Signals exactly this process, not another that got its number since. False when it is gone or not ours."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look_at(process.pid)
        return now is not None and now.started == process.started and send(pidfd, number)
    finally:
        os.close(pidfd)


def send_listed(list_pids: Callable[[], Iterable[int]], number: signal.Signals) -> None:
    """Signals everything in a list that the kernel keeps, such as a cgroup's processes.

    The list is read again once the pidfds are open, so a number that went to somebody else in between is left alone.
    """
    pidfds = {}
    for pid in list_pids():
        try:
            pidfds[pid] = os.pidfd_open(pid)
        except OSError:
            continue
    still_listed = set(list_pids())
    for pid, pidfd in pidfds.items():
        if pid in still_listed:
            send(pidfd, number)
        os.close(pidfd)


def stop_all(mark: str, spared: int | None = None) -> dict[int, Process]:
    """Stops all members but the one that is spared, again until a look finds nobody new, since they fork meanwhile. Returns the
    living that it met.
    """
    met: dict[int, Process] = {}
    for _ in range(5):
        known = {*met, spared}
        fresh = {pid: process for pid, process in members(mark).items() if pid not in known and not process.dead}
        if not fresh:
            break
        for process in fresh.values():
            send_to(process, signal.SIGSTOP)
        met |= fresh
    return met


def continue_all(mark: str) -> None:
    """Lets all members go on (SIGCONT)."""
    for process in members(mark).values():
        send_to(process, signal.SIGCONT)


def kill_all(mark: str, spared: int | None = None) -> int:
    """Sweeps once: stops all members but the one that is spared, so that none forks away, then kills them. Returns how many it
    met; to be called until it meets nobody.
    """
    met = stop_all(mark, spared)
    for process in met.values():
        send_to(process, signal.SIGKILL)  # ends a stopped process as well
    return len(met)


# --------------------------------------------------------------------------------------------------------------------
# Files in /proc


def _marked(pid: int, mark: str) -> bool:
    return f"{MARK}={mark}".encode() in _environment(pid)


def _environment(pid: int) -> list[bytes]:
    return _content(f"/proc/{pid}/environ", 1 << 20).split(b"\0")


def _kib_sum(content: bytes, *keys: bytes) -> int | None:
    total = None
    for key in keys:
        start = content.find(key)
        value = content[start + len(key) : content.find(b"kB", start)].strip() if start >= 0 else b""
        if value.isdigit():
            total = (total or 0) + int(value) * 1024
    return total


def _content(path: str, size_bytes: int = 8192) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, size_bytes)
    except OSError:
        return b""
    finally:
        os.close(fd)
