"""Where this process stands in the kernel's cgroup hierarchies, version 1 and 2.

Covers finding the mounts and this process's own folder in each, also inside containers. Reads no limit (`sensors.py`) and
makes no cgroup (`fence/`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy: `mount` is its topmost visible folder, `own` this process's folder at or below it."""

    version: int
    mount: Path
    own: Path

    def upwards(self) -> list[Path]:
        """`own` and every folder above it, up to and including `mount`."""
        return lineage(self.own, self.mount)


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
