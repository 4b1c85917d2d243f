"""The kernel's cgroup hierarchies, version 1 and 2: where this process stands in them, and what memory they leave to it.

Covers finding the mounts and this process's own folder in each, also inside containers, and the one account of memory by which
a run is sized, the ladder watches and `status` tells (`MemoryAccount`). Cgroups are made in `fence/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from memsup.supervisor.kernel.kernel_file import KernelFile


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy: `mount` is its topmost visible folder, `own` this process's folder at or below it."""

    version: int
    mount: Path
    own: Path

    def upwards(self) -> list[Path]:
        """This process's own folder and every folder above it, up to and including the mount."""
        return lineage(self.own, self.mount)


class MemoryUse:
    """What one cgroup and all below it hold, read from descriptors that stay open.

    Version 1 does not tell which part of the kernel's own caches can be taken back, so there all of it counts as held.
    """

    _NAMES: ClassVar = {
        1: ("memory.usage_in_bytes", (b"\ntotal_inactive_file ", b"\ntotal_active_file ")),
        2: ("memory.current", (b"\ninactive_file ", b"\nactive_file ", b"\nslab_reclaimable ")),
    }

    __slots__ = ("_charged", "_reclaimable", "_stat")

    def __init__(self, folder: Path, version: int) -> None:
        charged, self._reclaimable = self._NAMES[version]
        self._charged, self._stat = KernelFile(folder / charged, 64), KernelFile(folder / "memory.stat")

    def held_bytes(self) -> int | None:
        """The bytes that the kernel cannot take back while the processes live: no page cache, no cache of names and inodes.

        None where the kernel does not tell, or its counters contradict each other.
        """
        held = self._charged.number() if self._stat.read() and self._charged.read() else None
        for key in self._reclaimable:
            cache = self._stat.number_after(key)
            if held is None or cache is None or cache > held:  # counters are folded late and may disagree for a moment
                return None
            held -= cache
        return held

    def hierarchical_limit_bytes(self) -> int | None:
        """The smallest limit of this cgroup and of all above it, those that a container cannot see included.

        None where there is no limit, and in version 2, which does not tell.
        """
        return self._stat.number_after(b"\nhierarchical_memory_limit ") if self._stat.read() else None


class _Enclosing:
    """One cgroup that bounds this process or the worker. Its limit may come and go."""

    __slots__ = ("_is_top", "_limits", "_use", "limit_bytes", "name")

    _NAMES: ClassVar = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}

    def __init__(self, folder: Path, hierarchy: Hierarchy) -> None:
        self.name = "/" + str(folder.relative_to(hierarchy.mount)).removeprefix(".")
        self._is_top = folder == hierarchy.mount
        self._limits = [KernelFile(folder / name, 64) for name in self._NAMES[hierarchy.version]]
        self._use = MemoryUse(folder, hierarchy.version)
        self.limit_bytes: int | None = None

    def read_limit(self) -> None:
        """Reads anew what the cgroup allows. `limit_bytes` is None where it sets no limit, or does not tell."""
        limits = [file.number() if file.read() else None for file in self._limits]
        if self._is_top:
            limits.append(self._use.hierarchical_limit_bytes())
        self.limit_bytes = min((limit for limit in limits if limit is not None), default=None)

    def left_bytes(self, limit_bytes: int) -> int | None:
        """What is left below `limit_bytes`. Returns None where it is not known what is held."""
        held = self._use.held_bytes()
        return None if held is None else max(0, limit_bytes - held)


class MemoryAccount:
    """What the cgroups around this process, and around the worker, leave of the machine's memory.

    A cgroup's limit is what its processes can use without being stopped or throttled: version 2's `memory.max` and
    `memory.high`, version 1's `memory.limit_in_bytes`. What it has left does not count caches that the kernel takes back before
    it refuses anybody. Sources: the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
    """

    def __init__(self, root: Path = Path("/"), worker: Path | None = None) -> None:
        """`worker` is the cgroup that holds the worker: those above it bound the worker, it itself is the fence. It is None
        where the worker has no cgroup of its own. `root` is `/`, or a recorded tree.
        """
        hierarchy = find_hierarchy("memory", root)
        folders = [] if hierarchy is None else hierarchy.upwards()
        if hierarchy is not None and worker is not None and hierarchy.mount in worker.parents:
            folders += lineage(worker.parent, hierarchy.mount)
        self._enclosing = [_Enclosing(folder, hierarchy) for folder in dict.fromkeys(folders) if hierarchy is not None]
        self.read_limits()

    def read_limits(self) -> None:
        """Reads every limit anew. They change seldom, so this may be done less often than `within`."""
        for cgroup in self._enclosing:
            cgroup.read_limit()

    def limits(self, below_bytes: int) -> list[tuple[str, int]]:
        """Every cgroup that allows less than `below_bytes`: its name and its bytes, innermost first. A container's topmost
        cgroup is called `/`.
        """
        found = [(cgroup.name, cgroup.limit_bytes) for cgroup in self._enclosing]
        return [(name, limit) for name, limit in found if limit is not None and limit < below_bytes]

    def within(self, total_bytes: int | None, available_bytes: int | None) -> tuple[int | None, int | None]:
        """The machine's total and available bytes, as far as every cgroup allows them.

        Unknown stays unknown (None): a limit whose use cannot be read makes what is available unknown, not plenty.
        """
        machine_bytes = total_bytes
        for cgroup in self._enclosing:
            limit = cgroup.limit_bytes
            if limit is None or (machine_bytes is not None and limit >= machine_bytes):
                continue
            total_bytes = None if total_bytes is None else min(total_bytes, limit)
            left = cgroup.left_bytes(limit)
            available_bytes = None if available_bytes is None or left is None else min(available_bytes, left)
        return total_bytes, available_bytes


def lineage(folder: Path, mount: Path) -> list[Path]:
    """The folder itself and every folder above it, up to and including `mount`. Raises ValueError where it lies elsewhere."""
    if folder != mount and mount not in folder.parents:
        raise ValueError(f"{folder} does not lie below {mount}")
    return [folder, *(above for above in folder.parents if above == mount or mount in above.parents)]


def find_hierarchy(controller: str, root: Path = Path("/")) -> Hierarchy | None:
    """The hierarchy with `controller` (`memory`, `freezer`): version 1 if one is mounted with it, else version 2.

    None where neither is. `root` is `/`, or a recorded tree. Sources: cgroups(7), proc_pid_mountinfo(5), cgroup_namespaces(7).
    """
    own_by_controllers: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "?", "")
        for name in controllers.split(","):
            own_by_controllers[name] = path
    unified = None
    for line in _lines(root / "proc/self/mountinfo"):
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5 or len(kind) < 3:
            continue
        mounted, mount = _unescaped(fields[3]), root / _unescaped(fields[4]).lstrip("/")
        if kind[0] == "cgroup" and controller in kind[2].split(",") and controller in own_by_controllers:
            return Hierarchy(1, mount, _own_folder(mount, mounted, own_by_controllers[controller]))
        if kind[0] == "cgroup2" and "" in own_by_controllers:
            unified = Hierarchy(2, mount, _own_folder(mount, mounted, own_by_controllers[""]))
    # The freezer of version 2 is no controller: every cgroup has it.
    if unified and (controller == "freezer" or controller in " ".join(_lines(unified.mount / "cgroup.controllers")).split()):
        return unified
    return None


def _own_folder(mount: Path, mounted: str, path: str) -> Path:
    """This process's folder below `mount`, which is the part `mounted` of the hierarchy, when its own path in that is `path`.

    A container may see its own cgroup as the mount's root, and its path as the host's, or as outside (`/../x`).
    """
    mounted, path = mounted.rstrip("/"), path.rstrip("/")
    if "/.." in path or not (path + "/").startswith(mounted + "/"):
        return mount
    folder = mount / path[len(mounted) :].lstrip("/")
    return folder if folder.is_dir() else mount


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
