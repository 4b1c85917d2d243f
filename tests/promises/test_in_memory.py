"""Promise 2, in seconds of work: between checkpoints the newest state is kept in memory, and a worker that is killed goes on
from it with the same bits; when memory is to be given back, it is given back first.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import end_supervisors, eventually, memsup
from kit.faults.night_clock import NightClock
from kit.killed_runs import make_job
from kit.run_state import ledger, status, until

from memsup.shared.paths import run_paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("unhurried")]
FAST = 10.0
"""Twenty seconds of work are done in two."""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    make_job(tmp_path / "job", epochs=2000, every="1h", lanes=1)
    yield tmp_path / "job"
    end_supervisors()


def told(run: str, event: str) -> list[Any]:
    return [line for line in ledger(run) if line["event"] == event]


def test_a_killed_worker_goes_on_from_memory_with_the_same_bits_and_a_release_gives_that_back(
    job: Path, night_clock: NightClock
) -> None:
    memsup("start", "--run", "kept", "--set", "recovery.in_memory=on", "--set", "recovery.standby=off", cwd=job)
    until(lambda seen: seen["state"] == "running", run="kept")
    assert memsup("checkpoint", "--run", "kept").returncode == 0
    audit, seen_kept = run_paths("kept").state / "audit.txt", [status("kept")["checkpoint"]["step"]]
    for _ in range(2):
        before = next_kept(night_clock, seen_kept)
        os.kill(before["worker_pid"], signal.SIGKILL)
        lines = audit.read_bytes()
        eventually(lambda: len(audit.read_bytes()) > len(lines), 120)  # noqa: B023 - called in this turn
        assert audit.read_bytes().startswith(lines), "what was done again came to the same bits"
    used = [line["checkpoint_step"] for line in told("kept", "memory_used")]
    assert [step >= kept for step, kept in zip(used, seen_kept[1:], strict=True)] == [True] * 2
    assert not told("kept", "memory_damaged")

    next_kept(night_clock, seen_kept)
    assert memsup("pause", "--release", "--run", "kept").returncode == 0
    seen = status("kept")
    assert seen["checkpoint"]["memory_step"] is None
    assert not [sentence for sentence in seen["attention"] if "did not come back" in sentence]
    assert not [name for name in os.listdir(f"/proc/{seen['pid']}/fd") if "memfd" in link(seen["pid"], name)]


def next_kept(night_clock: NightClock, before: list[int]) -> Any:
    """What is so once a newer state is kept in memory; its step joins those `before`."""
    with night_clock.fast(FAST):
        seen = until(lambda seen: (seen["checkpoint"]["memory_step"] or 0) > before[-1], run="kept")
    before.append(seen["checkpoint"]["memory_step"])
    return seen


def link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{name}")
    except FileNotFoundError:
        return ""
