"""Two machines on this one: two network namespaces with a cable (veth) between them, each with memsup and folders of its own.

They share processors, memory and disk, so what is shown is what the network does: who is reached, how soon, and what a cable
does that is pulled. It takes root; `missing` says what else is not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.cli_process import MEMSUP, eventually
from memsup.shared.paths import RunPaths
from memsup.shared.status import encode_status
from memsup.supervisor.client.contact import is_held, observe

LOOK_EVERY_S = 0.1


def missing() -> str | None:
    """Why there are no two machines here. None means that there are."""
    if os.geteuid() != 0:
        return "NOT RUN: network namespaces are made by root"
    if not shutil.which("ip") or not shutil.which("nsenter"):
        return "NOT RUN: there are no ip and nsenter"
    name = f"memsup-{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode != 0:
        return "NOT RUN: network namespaces are not allowed here"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@dataclass(frozen=True)
class Machine:
    """One of the two."""

    namespace: str
    interface: str
    address: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"MEMSUP_STATE_DIR": str(self.folder / "state"), "MEMSUP_RUNTIME_DIR": str(self.folder / "run")}

    def memsup(self, *arguments: str, cwd: Path | None = None, within_s: float = 300, **more: str) -> str:
        """What a command prints that has to succeed."""
        done = self.tried(*arguments, cwd=cwd, within_s=within_s, **more)
        assert done.returncode == 0, f"memsup {arguments}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout + done.stderr

    def tried(
        self, *arguments: str, cwd: Path | None = None, within_s: float = 300, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.namespace}", *MEMSUP, *arguments],
            cwd=cwd or self.folder,
            env=os.environ | self.environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    def paths(self, run: str = "default") -> RunPaths:
        return RunPaths(name=run, state=self.folder / "state" / run, runtime=self.folder / "run" / run)

    def status(self, run: str = "default") -> Any:
        found = observe(self.paths(run)).status
        return None if found is None else json.loads(encode_status(found))

    def until(self, wanted: Callable[[Any], Any], within_s: float = 300, run: str = "default") -> Any:
        """The first status for which `wanted` holds."""

        def look() -> Any:
            seen = self.status(run)
            assert seen is None or seen["failure"] is None, f"{seen['failure']}\n{self.logs(run)}"
            return seen if seen is not None and wanted(seen) else None

        try:
            return eventually(look, within_s, every_s=LOOK_EVERY_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.status(run)}\n{self.logs(run)}") from None

    def trains_beyond(self, step: int, within_s: float = 300) -> Any:
        return self.until(lambda seen: seen["state"] == "running" and (seen["progress"]["step"] or 0) > step, within_s)

    def ledger(self, run: str = "default") -> list[dict[str, Any]]:
        file = self.paths(run).ledger
        return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []

    def logs(self, run: str = "default") -> str:
        log = self.paths(run).worker_log
        return log.read_text(encoding="utf-8", errors="replace")[-3000:] if log.exists() else ""

    def plug(self, *, is_in: bool) -> None:
        """Pulls the cable, or puts it back."""
        _ip("-n", self.namespace, "link", "set", self.interface, "up" if is_in else "down")

    def kill(self, *fields: str, run: str = "default") -> list[int]:
        """Kills the processes whose pids the status has in these fields: `pid` for the supervisor, `worker_pid`."""
        seen = self.status(run)
        pids = [seen[field] for field in fields if seen is not None and seen[field] is not None]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids

    def end(self) -> None:
        """Ends every run's supervisor, and with it the worker."""
        runtime = self.folder / "run"
        for folder in runtime.iterdir() if runtime.exists() else ():
            paths = self.paths(folder.name)
            if is_held(paths):
                self.tried("stop", "--now", "--run", folder.name)
            if is_held(paths):
                os.kill(int(paths.lock.read_text()), signal.SIGKILL)
            eventually(lambda paths=paths: not is_held(paths), 30)


@contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """The first machine and the other one, with a cable between them; afterwards nothing of them is left."""
    unique = f"{os.getpid() % 100_000}"
    machines = []
    for number in (1, 2):
        home = folder / f"machine{number}"
        home.mkdir(mode=0o700)
        machines.append(Machine(f"memsup-{unique}-{number}", f"ms{unique}{number}", f"10.217.83.{number}", home))
    first, other = machines
    try:
        for machine in machines:
            _ip("netns", "add", machine.namespace)
        peer = ("peer", "name", other.interface, "netns", other.namespace)
        _ip("link", "add", first.interface, "netns", first.namespace, "type", "veth", *peer)
        for machine in machines:
            _ip("-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", machine.interface)
            _ip("-n", machine.namespace, "link", "set", "lo", "up")
            machine.plug(is_in=True)
        yield first, other
    finally:
        for machine in machines:
            with contextlib.suppress(AssertionError, OSError):
                machine.end()
            subprocess.run(["ip", "netns", "del", machine.namespace], capture_output=True, check=False)


def joined(first: Machine, other: Machine, job: Path, *settings: str) -> None:
    """Has the job of a folder train on both. `settings` are those of the first machine, as `--set` has them."""
    given = [word for setting in settings for word in ("--set", setting)]
    said = first.memsup("start", "--nodes", "2", *given, cwd=job)
    line = next(line.strip() for line in said.splitlines() if "MEMSUP_NODES_KEY=" in line)
    assert line.endswith(f"memsup start --join {first.address}:29400")
    first.until(lambda seen: seen["nodes"] is not None)  # it has opened its door
    key = (first.paths().state / "nodes.key").read_text().strip()
    assert key not in said
    other.memsup("start", "--join", first.address, MEMSUP_NODES_KEY=key)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
