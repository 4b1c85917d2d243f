"""The kernel's cgroup hierarchies, version 1 and 2: where this process stands in them, and what memory is used in one.

Covers finding the mounts and this process's own folder in each, also inside containers. What follows from a reading is for
`memory.py`, and cgroups are made in `fence/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from memsup.supervisor.kernel.kernel_file import KeptFile


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy: `mount` is its topmost visible folder, `own` this process's folder at or below it."""

    version: int
    mount: Path
    own: Path

    def upwards(self) -> list[Path]:
        """`own` and every folder above it, up to and including `mount`."""
        return lineage(self.own, self.mount)


class MemoryUse:
    """What one cgroup and all below it use; read from descriptors that stay open."""

    _NAMES: ClassVar = {
        1: ("memory.usage_in_bytes", (b"\ntotal_inactive_file ", b"\ntotal_active_file ")),
        2: ("memory.current", (b"\ninactive_file ", b"\nactive_file ", b"\nslab_reclaimable ")),
    }

    __slots__ = ("_charged", "_reclaimable", "_stat")

    def __init__(self, folder: Path, version: int) -> None:
        charged, self._reclaimable = self._NAMES[version]
        self._charged, self._stat = KeptFile(folder / charged, 64), KeptFile(folder / "memory.stat")

    def charged_bytes(self) -> int | None:
        """Everything, page cache included."""
        return self._charged.number() if self._charged.read() else None

    def held_bytes(self) -> int | None:
        """What the kernel cannot take back while the processes live: no page cache, no cache of names and inodes."""
        held = self.charged_bytes() if self._stat.read() else None
        for key in self._reclaimable:
            cache = self._stat.number_after(key)
            if held is None or cache is None or cache > held:  # counters are folded late and may disagree for a moment
                return None
            held -= cache
        return held


def lineage(folder: Path, mount: Path) -> list[Path]:
    """`folder` and every folder above it, up to and including `mount`."""
    if folder != mount and mount not in folder.parents:
        raise ValueError(f"{folder} does not lie below {mount}")
    return [folder, *(above for above in folder.parents if above == mount or mount in above.parents)]


def find_hierarchy(controller: str, root: Path = Path("/")) -> Hierarchy | None:
    """The hierarchy with `controller` (`memory`, `freezer`): version 1 if one is mounted with it, else version 2, else None.

    `root` is `/`, or a recorded tree. Sources: cgroups(7), proc_pid_mountinfo(5), cgroup_namespaces(7).
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
    """A container may see its own cgroup as the mount's root, and its path as the host's, or as outside (`/../x`)."""
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
