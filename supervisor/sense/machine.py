"""What this machine has, looked at once: memory, CPUs, disk, sensors, kernel, power supply, and who else uses the memory.

Covers what `start` and `check` print and what `tiers.py` decides by. Forks nothing and takes a fraction of a second. The
readings taken all the time while training are `memory.py`; GPUs are seen by their own probe (`gpu/`), which hands them in.
`root` is where `/proc` and `/sys` are found, so that recorded machines can be looked at as well.
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
from memsup.supervisor.kernel.cgroups import find_hierarchy
from memsup.supervisor.kernel.kernel_file import number_of, text_of
from memsup.supervisor.sense.power_supply import PowerSupply
from memsup.supervisor.sense.temperatures import TemperatureSensors

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class MemoryUser:
    """All processes of one name: how much would come back if they ended."""

    name: str
    size_bytes: int
    processes: int


def look(state_folder: Path, gpus: tuple[GpuReading, ...] = (), gpu_note: str | None = None, *, root: Path = ROOT) -> Machine:
    """Everything at once. `state_folder` need not exist yet. Raises OSError where `/proc/meminfo` cannot be read."""
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
        temperatures=TemperatureSensors(root).read(monotonic_s()),
        disk_free_bytes=disk_free_bytes(state_folder),
        kernel=kernel,
        is_wsl="microsoft" in (kernel or "").lower(),
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
    """What this user may still write where `folder` is or will be."""
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


def _enclosing(controller: str, root: Path) -> list[tuple[str, Path, int]]:
    """(name, folder, version) of our own cgroup and all around it, innermost first. A container's top is called `/`."""
    hierarchy = find_hierarchy(controller, root)
    if hierarchy is None:
        return []
    folders = hierarchy.upwards()
    return [("/" + str(f.relative_to(hierarchy.mount)).removeprefix("."), f, hierarchy.version) for f in folders]


def _memory(meminfo: dict[str, int], root: Path) -> tuple[int, int | None, str, tuple[tuple[str, int], ...]]:
    total, source = meminfo["MemTotal"], THIS_MACHINE
    available = meminfo.get("MemAvailable")
    limits = []
    for name, folder, version in _enclosing("memory", root):
        limit = _memory_limit_bytes(folder, version, is_top=name == "/")
        if limit is None or limit >= meminfo["MemTotal"]:
            continue
        limits.append((name, limit))
        if limit < total:
            total, source = limit, f"cgroup {name}"
        used = _memory_used_bytes(folder, version)
        if used is not None:
            left = max(0, limit - used)
            available = left if available is None else min(available, left)
    return total, available, source, tuple(limits)


def _memory_limit_bytes(folder: Path, version: int, *, is_top: bool) -> int | None:
    """Version 2's `memory.high` counts: above it the kernel throttles. Version 1 writes "none" as eight exbibytes."""
    if version == 1:
        limits = [number_of(folder / "memory.limit_in_bytes")]
        if is_top:  # what the groups above add up to, those that a container cannot see
            limits.append(_stat(folder).get("hierarchical_memory_limit"))
    else:
        limits = [number_of(folder / "memory.max"), number_of(folder / "memory.high")]
    return min((limit for limit in limits if limit is not None), default=None)


def _memory_used_bytes(folder: Path, version: int) -> int | None:
    """Without page cache, which the kernel takes back before it refuses anybody."""
    prefix, file = ("total_", "memory.usage_in_bytes") if version == 1 else ("", "memory.current")
    used, stat = number_of(folder / file), _stat(folder)
    cache = stat.get(prefix + "inactive_file", 0) + stat.get(prefix + "active_file", 0)
    return None if used is None else max(0, used - cache)


def _stat(folder: Path) -> dict[str, int]:
    pairs = (line.split(" ", 1) for line in (text_of(folder / "memory.stat") or "").splitlines() if " " in line)
    return {name: int(value) for name, value in pairs if value.isdigit()}


def _meminfo(root: Path) -> dict[str, int]:
    """Field → bytes. Raises OSError."""
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
    for name, folder, version in _enclosing("cpu", root):
        quota = _cpu_quota(folder, version)
        if quota is not None and max(1, int(quota)) < usable:
            usable, source = max(1, int(quota)), f"cgroup {name}, {quota:g} CPUs of time"
    return usable, source


def _cpu_quota(folder: Path, version: int) -> float | None:
    """CPUs' worth of time; None where it is not limited (`max`, or -1 in version 1)."""
    if version == 1:
        words = [text_of(folder / "cpu.cfs_quota_us") or "", text_of(folder / "cpu.cfs_period_us") or ""]
    else:
        words = (text_of(folder / "cpu.max") or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or words[1] == "0":
        return None
    return int(words[0]) / int(words[1])


def _allowed_cpus(root: Path) -> int:
    """The affinity as /proc tells it (cpuset cgroups are in it already): `0-3,8` is five CPUs."""
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
"""As x86 and ARM spell it. Without one of them torch computes bfloat16 by way of float32, which is slower than float32."""


def _cpu_model(root: Path) -> tuple[str | None, bool | None]:
    """The first CPU's name, and whether it has bfloat16."""
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
    """Who does not linger loses the service manager, and the scopes in it, with the last session (loginctl(1))."""
    if os.geteuid() == 0 or "SSH_CONNECTION" not in os.environ or not (root / "run/systemd/system").is_dir():
        return False
    try:
        return not (root / "var/lib/systemd/linger" / pwd.getpwuid(os.getuid()).pw_name).exists()
    except KeyError:  # nobody whom logind could know
        return False


def _can_sleep(root: Path) -> bool | None:
    states = text_of(root / "sys/power/state")
    return None if states is None else bool({"mem", "standby", "freeze"} & set(states.split()))
