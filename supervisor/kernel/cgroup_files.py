"""Writing to and listing the files of a cgroup folder."""

from __future__ import annotations

import os
from pathlib import Path

from memsup.supervisor.kernel.kernel_file import KernelFile

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def put(file: Path, text: str) -> bool:
    """Writes `text` to `file`. False when the kernel refuses.

    O_NONBLOCK: a lowered `memory.max` then takes effect without this process reclaiming for it (older kernels ignore it).
    """
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def hold(file: KernelFile, text: str) -> bool:
    """Sees to it that the file says `text`; False when the kernel refuses. Costs one read where it says so already."""
    return (file.read() and file.text().strip() == text) or put(file.path, text)


def take(file: Path) -> str | None:
    """The file's text without the line feed at its end. Returns None when it cannot be read."""
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def take_number(file: Path) -> int | None:
    """The number that the file holds. Returns None when it holds something else, or cannot be read."""
    text = take(file)
    return int(text) if text and text.isdigit() else None


def pids_below(folder: Path) -> list[int]:
    """The processes in the cgroup and in those that the worker may have made below it."""
    found: list[int] = []
    for below, _, _ in os.walk(folder):
        found += [int(line) for line in (take(Path(below) / "cgroup.procs") or "").split() if line.isdigit()]
    return found


def make_folder(folder: Path) -> None:
    """Makes the cgroup, or takes the one that is there. Raises OSError."""
    folder.mkdir(exist_ok=True)


def remove_folders(folder: Path) -> bool:
    """Removes the cgroup and those below it; False when one is not empty."""
    for below, _, _ in os.walk(folder, topdown=False):
        try:
            Path(below).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def page_floor(size_bytes: int) -> int:
    """What the kernel makes of a limit of `size_bytes`: a whole number of pages."""
    return size_bytes // _PAGE_BYTES * _PAGE_BYTES
