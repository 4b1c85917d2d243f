"""Promise 1 with two runs at once: two programs that want all there is, and a small machine that keeps its reserve.

The small machine is this one where it has little RAM (in a virtual machine of 3 GiB, by `tests/kit/vm/run`), else a cgroup of
2 GiB, which memsup takes for the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kit.cli_process import MEMSUP, end_supervisors, eventually
from kit.fenced import MISBEHAVING
from kit.run_state import LOOK_EVERY_S, ledger, status

from memsup.shared.paths import run_paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MIB, GIB = 1 << 20, 1 << 30
SMALL_BYTES = 4 * GIB


@pytest.fixture
def small_machine() -> Iterator[list[str]]:
    """The beginning of a command line that runs the rest of it on the small machine."""
    if psutil.virtual_memory().total <= SMALL_BYTES:
        yield []
        end_supervisors()
        return
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), None)
    if own is None or os.geteuid() != 0:
        pytest.skip("NOT RUN: this machine is large, and without root and cgroup version 1 no small one can be made in it")
    folder = Path("/sys/fs/cgroup/memory") / own.split(":", 2)[2].lstrip("/") / f"memsup-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(2 * GIB))
    except OSError as error:
        pytest.skip(f"NOT RUN: no cgroup can be made here ({error.strerror})")
    yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs; exec "$@"', "sh"]
    end_supervisors()
    for below in [*folder.glob("*/"), folder]:
        with contextlib.suppress(OSError):
            eventually(lambda below=below: not (below / "cgroup.procs").read_text(), 10)
            below.rmdir()


def test_two_hogs_in_two_runs_leave_the_machine_its_reserve(small_machine: list[str]) -> None:
    """One sits at four fifths of its limit, the other runs into its own again and again: what is left is the reserve."""

    def start(run: str, most_bytes: int, *flags: str) -> None:
        command = [*MEMSUP, "start", "--run", run, *flags, "--", sys.executable, "-I", "-S", str(MISBEHAVING)]
        faults = {"LEAK_MB_PER_S": "full", "LEAK_MB": str(most_bytes // 10**6)}
        subprocess.run([*small_machine, *command], env=os.environ | faults, check=True, capture_output=True, timeout=300)

    total = 2 * GIB if small_machine else psutil.virtual_memory().total
    sits_at = int(0.8 * 0.45 * total)
    start("sits", sits_at, "--set=limits.ram=45%")
    eventually(lambda: (status("sits")["memory"]["worker_bytes"] or 0) > 0.95 * sits_at)
    start("leaks", 1 << 50)
    free: list[int] = []

    def was_ended_twice() -> bool:
        for run in ("sits", "leaks"):
            memory = status(run)["memory"]
            free.append(memory["ram_available_bytes"])
            assert (memory["worker_bytes"] or 0) <= memory["limit_bytes"]
        return bool(status("leaks")["restarts"] >= 2)

    eventually(was_ended_twice, 300, every_s=LOOK_EVERY_S)
    claims = [json.loads(run_paths(run).claim.read_bytes()) for run in ("sits", "leaks")]
    reserve = claims[0]["reserve_bytes"]
    assert sum(claim["ram_bytes"] for claim in claims) + reserve <= total
    free += [line["memory"]["ram_available_bytes"] for line in ledger("leaks") if line.get("memory")]
    print(f"limits {[c['ram_bytes'] >> 20 for c in claims]} MiB, reserve {reserve >> 20}, free at least {min(free) >> 20}")
    assert min(free) >= reserve - 2 * 64 * MIB  # the two supervisors live in it, too
    assert {line["cause"] for line in ledger("leaks") if line["event"] == "death"} == {"memory"}
    assert status("sits")["state"] == "running"
    assert not [line for line in ledger("sits") if line["event"] == "death"]  # the other one's greed is not its own
