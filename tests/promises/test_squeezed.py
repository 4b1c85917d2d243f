"""The memory around a run falls to 60 % in mid-run and comes back: it is told, plans for that, and nothing dies.

The machine is a cgroup (version 1, as root), which memsup takes for the machine. Its limit is lowered as far as the kernel lets
it at once, and the rest as the run gives way.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import MEMSUP, end_supervisors, eventually, memsup
from kit.lone_supervisor import tiny_settings
from kit.run_state import ledger, status, until

from memsup.shared.paths import run_paths
from memsup.worker.audit import LINE_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MIB = 1 << 20
LIMIT_BYTES, FALLS_TO = 1280 * MIB, 0.6
AT_A_TIME_BYTES = 16 * MIB
WITHIN_S = 600.0
"""For each thing that is waited for; a busy machine may need it."""


@dataclass
class Box:
    """A cgroup without swap, and below it whatever is started by its command line."""

    folder: Path

    @property
    def enter(self) -> list[str]:
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs; exec "$@"', "sh"]

    def limit(self, limit_bytes: int) -> bool:
        """False where the kernel cannot take so much back now."""
        try:
            (self.folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        except OSError:
            return False
        return True

    def falls_to(self, limit_bytes: int) -> bool:
        """One go at it; the wall is moved to where the run stands, and a little beyond."""
        if self.limit(limit_bytes):
            return True
        used = int((self.folder / "memory.usage_in_bytes").read_text())
        self.limit(max(limit_bytes, used + AT_A_TIME_BYTES))
        return False

    def oom_kills(self) -> int:
        lines = (line.split() for file in self.folder.rglob("memory.oom_control") for line in file.read_text().splitlines())
        return sum(int(count) for name, count in lines if name == "oom_kill")


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    yield
    end_supervisors()


@pytest.fixture
def box() -> Iterator[Box]:
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), None)
    if own is None or os.geteuid() != 0:
        pytest.skip("NOT RUN: without root and cgroup version 1 no small machine can be made in this one")
    folder = Path("/sys/fs/cgroup/memory") / own.split(":", 2)[2].lstrip("/") / f"memsup-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"NOT RUN: no cgroup can be made here ({error.strerror})")
    made = Box(folder)
    made.limit(LIMIT_BYTES)
    yield made
    end_supervisors()
    for below in [*folder.glob("*/"), folder]:
        with contextlib.suppress(OSError):
            eventually(lambda below=below: not (below / "cgroup.procs").read_text(), 10)
            below.rmdir()


def _job(folder: Path) -> list[str]:
    """A job that takes what there is: long rows, and a planner that grows."""
    settings = tiny_settings(folder, rows=800, words=80, hidden=256)
    asked = {
        "task.model": settings.task.model,
        "task.train": settings.task.train,
        "training.epochs": 200,
        "training.effective_batch": 64,
        "training.max_length": 256,
        "training.device": "cpu",
        "training.evaluate_every": 1_000_000,
        "checkpoint.every": "1h",
    }
    return ["start", "--accept", *(f"--set={name}={value}" for name, value in asked.items())]


def _told(before: int) -> list[dict[str, Any]]:
    """What the worker has been told since of the memory that there is, and has taken in."""
    return [line for line in ledger()[before:] if line.get("order") == "limit_ram" and line.get("outcome") == "done"]


def _first_steps(run: str, steps: int) -> bytes:
    """Rows, weights and learning rates of the first steps, as a digest."""
    line = (run_paths(run).state / "audit.txt").read_bytes()[(steps - 1) * LINE_BYTES : steps * LINE_BYTES]
    return line.split()[-1].split(b".")[0]


@pytest.mark.nightly
def test_a_run_whose_memory_falls_to_three_fifths_lives_and_learns_the_same(box: Box, tmp_path: Path) -> None:
    job = _job(tmp_path)
    subprocess.run([*box.enter, *MEMSUP, *job], check=True, capture_output=True, timeout=300)
    until(lambda seen: (seen["progress"]["step"] or 0) >= 24, WITHIN_S)
    eventually(lambda: box.falls_to(int(FALLS_TO * LIMIT_BYTES)), WITHIN_S, every_s=0.02)
    eventually(lambda: _told(0), WITHIN_S)
    low = ledger()
    squeezed_at = status()["progress"]["step"]
    until(lambda seen: (seen["progress"]["step"] or 0) >= squeezed_at + 12, WITHIN_S)
    box.limit(LIMIT_BYTES)
    eventually(lambda: _told(len(low)), WITHIN_S)
    back_at = status()["progress"]["step"]
    seen = until(lambda seen: (seen["progress"]["step"] or 0) >= back_at + 12, WITHIN_S)
    assert (seen["restarts"], box.oom_kills()) == (0, 0)
    assert not [line for line in ledger() if line["event"] in {"death", "kill"}]
    assert memsup("stop").returncode == 0
    steps = status()["progress"]["step"]
    subprocess.run([*MEMSUP, *job, "--run=alone"], check=True, capture_output=True, timeout=300)
    until(lambda seen: (seen["progress"]["step"] or 0) >= steps, WITHIN_S, run="alone")
    assert _first_steps("default", steps) == _first_steps("alone", steps)


def test_a_limit_that_a_person_gives_reaches_the_running_worker(tmp_path: Path) -> None:
    job = _job(tmp_path)
    assert memsup(*job, "--set=limits.ram=3GiB").returncode == 0
    until(lambda seen: (seen["progress"]["step"] or 0) >= 10, WITHIN_S)
    pid = status()["worker_pid"]
    given = memsup(*job, "--set=limits.ram=1500MiB")
    assert given.returncode == 0
    assert "1.46 GiB" in given.stdout
    eventually(lambda: _told(0), WITHIN_S)
    assert "plan for 1.46 GiB" in _told(0)[0]["action"]
    low = len(ledger())
    given = memsup(*job, "--set=limits.ram=3GiB")
    assert "begins again" not in given.stdout
    eventually(lambda: _told(low), WITHIN_S)
    assert status()["worker_pid"] == pid
    assert json.loads(memsup("status", "--json").stdout)["restarts"] == 0
