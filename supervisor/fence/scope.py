"""A systemd scope around the worker: in the user's own manager, or, for root, in the system's.

The scope goes into a slice that only this run has, and everything is done on the slice's cgroup, because it stays: systemd
removes a scope together with its last process, and with it the count of what the kernel killed. The limit stands in both:
in the scope as a property that systemd knows and keeps, in the slice as what memsup writes there. (systemd writes its own value
into the slice when a scope in it comes or goes; `renew` puts ours back.) `systemd-run` replaces itself by
the command, so the pid of the child is the worker's. Sources: systemd-run(1), systemd.scope(5), systemd.resource-control(5).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from memsup.supervisor.fence.base import FenceError, Kind, launcher
from memsup.supervisor.fence.cgroup2 import Cgroup2
from memsup.supervisor.kernel.cgroup_files import put
from memsup.supervisor.kernel.cgroups import find_hierarchy
from memsup.supervisor.kernel.processes import fence_name

_PATIENCE_S = 20.0


class ScopeFence(Cgroup2):
    kind = Kind.SCOPE

    def __init__(self, run: str, limit_bytes: int) -> None:
        """Makes the slice, or takes over the one that an earlier supervisor of the same run left. Raises `FenceError`."""
        super().__init__(run, limit_bytes, _make_slice(fence_name(run)))
        self._warm = 0
        self.renew()
        if not put(self._folder / "memory.max", str(limit_bytes)):
            raise FenceError(f"{self._folder / 'memory.max'} cannot be written")

    def launch_prefix(self) -> list[str]:
        return self._prefix(self.name)

    def warm_prefix(self) -> list[str]:
        """A scope beside the worker's, with a name of its own each time: forks of an earlier one may still be in theirs."""
        self._warm += 1
        return self._prefix(f"{self.name}_warm{self._warm}")

    def _prefix(self, unit: str) -> list[str]:
        limits = {"MemoryMax": str(self.limit_bytes), "MemorySwapMax": "0", "OOMPolicy": "continue"}
        scope = self._folder / f"{unit}.scope"
        return [
            *_scope_command(self.name, unit, limits),
            # What happens at the scope's own limit, which is met first, is the scope's to say.
            *launcher(
                self.name, writes=[(scope / "memory.oom.group", "1"), (self._folder / "memory.max", str(self.limit_bytes))]
            ),
        ]

    def remove(self) -> bool:
        if self.populated() is not False:
            return False
        _run(["systemctl", *_which_manager(), "stop", f"{self.name}.slice"])
        return not self._folder.exists()


def _make_slice(name: str) -> Path:
    """The slice's cgroup, made by running a tiny scope in it. Raises `FenceError`."""
    if not Path("/run/systemd/system").is_dir():
        raise FenceError("systemd does not run this machine")
    for program in ("systemd-run", "systemctl"):
        if shutil.which(program) is None:
            raise FenceError(f"{program} is not installed")
    hierarchy = find_hierarchy("memory")
    if hierarchy is None or hierarchy.version != 2:
        raise FenceError("systemd has no cgroup v2 with a memory controller here")
    look = "print(open('/proc/self/cgroup').read())"
    prefix = _scope_command(name, f"{name}_start_{os.getpid()}", {"MemoryMax": "infinity"})
    done = _run([*prefix, sys.executable, "-I", "-S", "-c", look])
    slice_name = f"/{name}.slice"
    path = next((line.removeprefix("0::") for line in done.stdout.splitlines() if line.startswith("0::")), "")
    if done.returncode != 0 or slice_name not in path:
        why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        whose = "the system's" if os.geteuid() == 0 else "this user's"
        raise FenceError(f"{whose} systemd manager makes no scope ({why[0].rstrip('.')})")
    folder = hierarchy.mount / path[: path.index(slice_name) + len(slice_name)].lstrip("/")
    if not (folder / "memory.max").exists():
        raise FenceError(f"{folder} has no memory controller")
    return folder


def _scope_command(name: str, unit: str, properties: dict[str, str]) -> list[str]:
    """The command that starts what follows in a scope, in a slice of its own and so never in the terminal's scope.

    With `--collect` a scope that failed does not block its name.
    """
    options = [f"--property={key}={value}" for key, value in properties.items()]
    return [
        *("systemd-run", *_which_manager(), "--scope", "--quiet", "--collect", "--no-ask-password"),
        *(f"--unit={unit}.scope", f"--slice={name}.slice", *options, "--"),
    ]


def _which_manager() -> list[str]:
    return ["--system"] if os.geteuid() == 0 else ["--user"]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command and waits for it: only while a fence is chosen or removed, never while the guard watches.

    Raises `FenceError` when it takes too long.
    """
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FenceError(f"{command[0]} does not answer ({error})") from None
