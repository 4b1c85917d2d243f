"""A view of the file system of one's own, in which a drill mounts what nobody else sees and which is gone with its processes.

Covers the calls of unshare(2) and mount(2) that this takes. As root they simply work; others first need a user namespace, which
some systems refuse. Everything here raises OSError where the system does not allow it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x4_0000


def enter_user_namespace() -> None:
    """Lets this process mount without being root; it stays the same user. Works only before it has a second thread."""
    user, group = os.geteuid(), os.getegid()
    _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")  # else no group may be mapped (user_namespaces(7))
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")


def leave_the_common_view() -> None:
    """From now on what this *thread* and the processes that it starts mount is seen by them alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_CLONE_NEWNS))
    _check(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))


def mount_small_disk(folder: Path, size_bytes: int) -> None:
    """Puts an empty file system in memory of this size over `folder`; nobody but this user may enter it."""
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    options = f"size={size_bytes},mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    _check(ctypes.CDLL(None, use_errno=True).mount(b"memsup-drill", os.fsencode(folder), b"tmpfs", flags, options.encode()))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
