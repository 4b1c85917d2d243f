"""Promise 2, in seconds: a worker that dies is replaced by a fork of the process that stands by, and the bits are the same; and
nothing of that is left when the run gives its memory back, ends, or loses its supervisor.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit.cli_process import end_supervisors, eventually, memsup
from kit.killed_runs import make_job
from kit.run_state import ledger, status, step_of, until

from memsup.shared.paths import run_paths
from memsup.worker.audit import LINE_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("unhurried")]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "job"
    end_supervisors()


def warm_pid(run: str) -> int | None:
    """The process that stands by for this run: a child of its supervisor. Returns None where there is none."""
    seen = status(run)
    try:
        children = psutil.Process(seen["pid"]).children()
        return next(
            (child.pid for child in children if "--warm-fd" in child.cmdline() and child.pid != seen["worker_pid"]), None
        )
    except psutil.Error:
        return None


def told(run: str) -> list[str]:
    return [line["outcome"] for line in ledger(run) if line["event"] == "standby"]


def stands_by(run: str, times: int = 1) -> int:
    eventually(lambda: told(run).count("done") >= times, 90)
    pid = warm_pid(run)
    assert pid is not None
    return pid


def killed_worker(run: str) -> Any:
    """Kills the worker while it trains, and returns what is so once the next one has got beyond that step: what it has done
    again came to the same bits.
    """
    audit = run_paths(run).state / "audit.txt"
    before = until(lambda seen: seen["progress"]["phase"] == "training" and seen["state"] == "running", run=run)
    os.kill(before["worker_pid"], signal.SIGKILL)
    lines = audit.read_bytes()
    after = until(
        lambda seen: seen["worker_pid"] not in (None, before["worker_pid"]) and step_of(seen) > len(lines) // LINE_BYTES,
        run=run,
    )
    assert audit.read_bytes().startswith(lines)
    assert not [sentence for sentence in after["attention"] if "did not come back" in sentence], "what stands by is no leftover"
    return after


def is_fork(seen: Any) -> bool:
    return "--warm-fd" in psutil.Process(seen["worker_pid"]).cmdline()


def test_a_worker_killed_at_any_instant_is_back_from_what_stands_by_which_leaves_with_the_run(job: Path) -> None:
    make_job(job, epochs=2000, every="2s", lanes=1)
    memsup("start", "--run", "killed", "--set", "recovery.standby=on", cwd=job)
    draw = random.Random(os.getpid())
    warm = stands_by("killed")
    for _ in range(2):
        time.sleep(draw.uniform(0, 2))
        after = killed_worker("killed")
        assert is_fork(after)
        assert warm_pid("killed") == warm
        process = psutil.Process(after["worker_pid"])
        assert os.getsid(process.pid) == process.pid
        assert process.ppid() == after["pid"]
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == Path(f"/proc/{warm}/oom_score_adj").read_text()
    deaths = [line for line in ledger("killed") if line["event"] == "death"]
    assert [line["cause"] for line in deaths] == ["killed"] * 2

    assert memsup("pause", "--release", "--run", "killed").returncode == 0
    assert not psutil.pid_exists(warm)
    assert not [child for child in psutil.Process(status("killed")["pid"]).children() if "memsup.worker" in child.cmdline()]


@pytest.mark.nightly
def test_nothing_stands_by_without_room_nor_without_a_supervisor_nor_after_a_stop(job: Path) -> None:
    """Two runs: one with little memory, and one whose every end is tried."""
    make_job(job, epochs=2000, every="1s", lanes=1)
    memsup("start", "--run", "small", "--set", "recovery.standby=on", "--set", "limits.ram=700MiB", cwd=job)
    memsup("start", "--run", "large", "--set", "recovery.standby=on", cwd=job)
    eventually(lambda: told("small") == ["failed"], 60)
    assert warm_pid("small") is None

    os.kill(stands_by("large"), signal.SIGKILL)
    eventually(lambda: told("large") == ["done", "failed"], 30)
    assert not is_fork(killed_worker("large"))
    assert memsup("stop", "--run", "large").returncode == 0

    memsup("start", "--run", "large", cwd=job)
    both = [stands_by("large", times=2), until(lambda seen: seen["worker_pid"], run="large")["worker_pid"]]
    for pid in both:
        os.kill(pid, signal.SIGKILL)
    again = until(lambda seen: seen["worker_pid"] not in (None, *both) and seen["state"] == "running", run="large")
    assert not is_fork(again)
    assert memsup("stop", "--run", "large").returncode == 0

    memsup("start", "--run", "large", cwd=job)
    warm = stands_by("large", times=3)
    seen = status("large")
    os.kill(seen["pid"], signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(warm), 30)
    eventually(lambda: not psutil.pid_exists(seen["worker_pid"]), 60)

    memsup("start", "--run", "large", cwd=job)
    warm, seen = stands_by("large", times=4), status("large")
    limit_bytes = seen["memory"]["worker_bytes"] - (60 << 20)  # which the worker alone has room in
    assert memsup("start", "--run", "large", "--set", f"limits.ram={limit_bytes}", cwd=job).returncode == 0
    eventually(lambda: not psutil.pid_exists(warm), 30)
    until(lambda now: step_of(now) > step_of(seen) + 5, run="large")
    assert status("large")["worker_pid"] == seen["worker_pid"], "what stands by has gone, and the worker paid nothing"
    assert memsup("stop", "--run", "large").returncode == 0
