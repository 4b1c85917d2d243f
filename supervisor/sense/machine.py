"""What this machine has, looked at once: memory, CPUs, disk, sensors, kernel, power supply, and who else uses the memory.

Covers what `start` and `check` print and what `tiers.py` decides by. Forks nothing and takes a fraction of a second. The
readings taken all the time while training are `sense/memory.py`; GPUs are seen by their own probe (`gpu/`), which hands them
in. `root` is where `/proc` and `/sys` are found, so that recorded machines can be looked at as well.
"""

from __future__ import annotations

import os
import pwd
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from memsup.shared.clock import monotonic_s
from memsup.supervisor.decide.readings import THIS_MACHINE, GpuReading, Machine
from memsup.supervisor.kernel.cgroups import MemoryAccount, find_hierarchy
from memsup.supervisor.kernel.kernel_file import text_of
from memsup.supervisor.sense.power_supply import PowerSupply
from memsup.supervisor.sense.temperatures import TemperatureSensors

ROOT = Path("/")
_FIRST_PIDS = f"pid:[{0xEFFFFFFC}]"
"""The kernel's own namespace of processes (pid_namespaces(7); its number is PROC_PID_INIT_INO)."""


@dataclass(frozen=True, slots=True)
class MemoryUser:
    """All processes of one name, and how much would come back if they ended."""

    name: str
    size_bytes: int
    processes: int


def look(state_folder: Path, gpus: tuple[GpuReading, ...] = (), gpu_note: str | None = None, *, root: Path = ROOT) -> Machine:
    """Looks at everything at once. `state_folder` need not exist yet. Raises OSError where `/proc/meminfo` cannot be read."""
    meminfo = _meminfo(root)
    total, available, source, limits = _memory(meminfo, root)
    cpus, cpu_source = _cpus(root)
    cpu_model, cpu_bf16 = _cpu_model(root)
    kernel = text_of(root / "proc/sys/kernel/osrelease")
    return Machine(
        ram_total_bytes=total,
        ram_available_bytes=available,
        machine_ram_bytes=meminfo["MemTotal"],
        ram_source=source,
        cgroup_limits=limits,
        swap_total_bytes=meminfo.get("SwapTotal"),
        cpus=cpus,
        cpu_source=cpu_source,
        cpu_model=cpu_model,
        cpu_bf16=cpu_bf16,
        gpus=gpus,
        gpu_note=gpu_note,
        visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        temperatures=TemperatureSensors(root).read(monotonic_s()),
        disk_free_bytes=disk_free_bytes(state_folder),
        kernel=kernel,
        is_wsl="microsoft" in (kernel or "").lower(),
        has_own_pids=_has_own_pids(root),
        on_battery=PowerSupply(root).on_battery(),
        can_sleep=_can_sleep(root),
        ends_with_ssh=_ends_with_ssh(root),
    )


def largest_users(count: int = 5, *, without: Iterable[int] = (), root: Path = ROOT) -> list[MemoryUser]:
    """The names that hold most memory of their own (anonymous, shared, swapped), without the processes in `without`.

    Other users' processes count as well: Linux shows their size to everybody unless /proc is mounted with `hidepid`.
    """
    skipped = set(without)
    size: Counter[str] = Counter()
    processes: Counter[str] = Counter()
    for folder in (root / "proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in skipped:
            continue
        fields = dict(line.split(":", 1) for line in (text_of(folder / "status") or "").splitlines() if ":" in line)
        own = sum(_kibibytes(fields.get(name, "")) or 0 for name in ("RssAnon", "RssShmem", "VmSwap"))
        if own:
            name = fields.get("Name", "?").strip()
            size[name] += own
            processes[name] += 1
    return [MemoryUser(name, size_bytes, processes[name]) for name, size_bytes in size.most_common(count)]


def disk_free_bytes(folder: Path) -> int | None:
    """The bytes that this user may still write where `folder` is or will be. Returns None where that cannot be asked."""
    for existing in (folder, *folder.parents):
        try:
            found = os.statvfs(existing)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return found.f_bavail * found.f_frsize
    return None


# --------------------------------------------------------------------------------------------------------------------
# Memory and CPUs, and the cgroups' say in both


def _cpu_cgroups(root: Path) -> list[tuple[str, Path, int]]:
    """The name, folder and version of our own cgroup and of all around it, innermost first. A container's top is called `/`."""
    hierarchy = find_hierarchy("cpu", root)
    if hierarchy is None:
        return []
    folders = hierarchy.upwards()
    return [("/" + str(f.relative_to(hierarchy.mount)).removeprefix("."), f, hierarchy.version) for f in folders]


def _memory(meminfo: dict[str, int], root: Path) -> tuple[int, int | None, str, tuple[tuple[str, int], ...]]:
    """Total and available bytes, whose limit the total is, and every cgroup's limit that is below the machine's memory."""
    account = MemoryAccount(root)
    limits = tuple(account.limits(meminfo["MemTotal"]))
    total, available = account.within(meminfo["MemTotal"], meminfo.get("MemAvailable"))
    source = next((f"cgroup {name}" for name, limit in limits if limit == total), THIS_MACHINE)
    return total or meminfo["MemTotal"], available, source, limits


def _meminfo(root: Path) -> dict[str, int]:
    """The fields of /proc/meminfo in bytes. Raises OSError."""
    fields = {}
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        size = _kibibytes(value)
        if size is not None:
            fields[name] = size
    return fields


def _kibibytes(text: str) -> int | None:
    words = text.split()
    return int(words[0]) * 1024 if len(words) == 2 and words[1] == "kB" and words[0].isdigit() else None


def _cpus(root: Path) -> tuple[int, str]:
    usable, source = _allowed_cpus(root), THIS_MACHINE
    for name, folder, version in _cpu_cgroups(root):
        quota = _cpu_quota(folder, version)
        if quota is not None and max(1, int(quota)) < usable:
            usable, source = max(1, int(quota)), f"cgroup {name}, {quota:g} CPUs of time"
    return usable, source


def _cpu_quota(folder: Path, version: int) -> float | None:
    """The time that a cgroup may use, in CPUs. Returns None where it is not limited (`max`, or -1 in version 1)."""
    if version == 1:
        words = [text_of(folder / "cpu.cfs_quota_us") or "", text_of(folder / "cpu.cfs_period_us") or ""]
    else:
        words = (text_of(folder / "cpu.max") or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or words[1] == "0":
        return None
    return int(words[0]) / int(words[1])


def _allowed_cpus(root: Path) -> int:
    """How many CPUs the affinity allows, as /proc tells it (cpuset cgroups are in it already): `0-3,8` is five CPUs."""
    for line in (text_of(root / "proc/self/status") or "").splitlines():
        name, _, ranges = line.partition(":")
        if name == "Cpus_allowed_list":
            count = 0
            for part in ranges.strip().split(","):
                first, _, last = part.partition("-")
                count += int(last or first) - int(first) + 1
            return count
    return len(os.sched_getaffinity(0))


_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""The flags of bfloat16 as x86 and ARM spell them. Without one of them torch computes bfloat16 by way of float32, which is
slower than float32."""


def _cpu_model(root: Path) -> tuple[str | None, bool | None]:
    """The first CPU's name, and whether it has bfloat16. Each is None where the kernel does not tell it."""
    model = has_bf16 = None
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:  # not the whole of it: 256 CPUs fill many pages
                name, _, value = line.partition(":")
                match name.strip():
                    case "model name" | "Model":
                        model = value.strip() or None
                    case "flags" | "Features":
                        has_bf16 = not _BF16_FLAGS.isdisjoint(value.split())
                if model is not None and has_bf16 is not None:
                    break
    except OSError:
        pass
    return model, has_bf16


def _ends_with_ssh(root: Path) -> bool:
    """Whether this login is by ssh, and its user does not linger: with the last session they lose the service manager, and the
    scopes in it (loginctl(1)).
    """
    if os.geteuid() == 0 or "SSH_CONNECTION" not in os.environ or not (root / "run/systemd/system").is_dir():
        return False
    try:
        return not (root / "var/lib/systemd/linger" / pwd.getpwuid(os.getuid()).pw_name).exists()
    except KeyError:  # nobody whom logind could know
        return False


def _has_own_pids(root: Path) -> bool:
    try:
        return os.readlink(root / "proc/self/ns/pid") != _FIRST_PIDS
    except OSError:
        return False


def _can_sleep(root: Path) -> bool | None:
    states = text_of(root / "sys/power/state")
    return None if states is None else bool({"mem", "standby", "freeze"} & set(states.split()))
