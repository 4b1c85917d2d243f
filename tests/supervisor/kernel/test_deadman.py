"""The deadman kills when the supervisor falls silent, and only then. Real processes, real silence."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.fenced import MISBEHAVING, kill, misbehave, wait_for

from memsup.shared.paths import run_paths
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted
from memsup.supervisor.fence.kill import Deadman
from memsup.supervisor.fence.rlimit import NoFence
from memsup.supervisor.fence.worker import WorkerProcess
from memsup.supervisor.kernel import deadman
from memsup.supervisor.kernel.children import Child
from memsup.supervisor.kernel.processes import look_at

pytestmark = pytest.mark.slow
_numbers = itertools.count()


@pytest.fixture
def fence() -> Iterator[NoFence]:
    fence = NoFence(f"test_{os.getpid()}_d{next(_numbers)}", 1 << 30)
    yield fence
    kill(fence, None)


@pytest.fixture
def worker(fence: NoFence) -> Child:
    child = misbehave(fence, FORKS=2, IGNORES=1)
    wait_for("all are there", lambda: len(fence.pids()) == 3)
    return child


def a_record() -> RunRecord:
    return RunRecord(
        run="default",
        run_id="0123456789ab",
        created_unix_s=1.0,
        wanted=Wanted.RUNNING,
        tier="safe",
        tier_reason="a test",
        settings=Settings(),
    )


def dead(pid: int) -> bool:
    found = look_at(pid)
    return found is None or found.dead


def test_two_seconds_of_silence_end_the_whole_tree(fence: NoFence, worker: Child) -> None:
    guard = Deadman(fence.name)
    began_s = time.monotonic()
    assert guard.beat()
    wait_for("it killed the tree", lambda: not fence.pids())
    assert time.monotonic() - began_s > 1.9
    wait_for("its end can be collected", lambda: worker.exit_code() is not None)  # who dies has lost its mark before
    assert worker.exit_code() == -signal.SIGKILL
    wait_for("its work is done", lambda: not guard.beat())


def test_while_the_supervisor_lives_nothing_happens(fence: NoFence, worker: Child) -> None:
    guard = Deadman(fence.name)
    until_s = time.monotonic() + 3.5
    while time.monotonic() < until_s:
        assert guard.beat()
        time.sleep(0.1)
    assert worker.exit_code() is None
    guard.goodbye()
    wait_for("it left", lambda: dead(guard.pid))
    assert worker.exit_code() is None


def test_a_killed_supervisor_does_not_leave_a_runaway_behind(fence: NoFence) -> None:
    """The supervisor is another process here, and gets SIGKILL: the pipe ends without a goodbye."""
    code = (
        "import os, sys, time\n"
        "from memsup.supervisor.fence.rlimit import NoFence\n"
        "from memsup.supervisor.fence.kill import Deadman\n"
        "from memsup.supervisor.kernel.children import spawn\n"
        f"fence = NoFence({fence.name.removeprefix('memsup-')!r}, 1 << 30)\n"
        f"spawn([*fence.launch_prefix(), sys.executable, {str(MISBEHAVING)!r}], environment=dict(os.environ, ESCAPES='1'))\n"
        "guard = Deadman(fence.name)\n"
        "while guard.beat(): time.sleep(0.1)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code])
    wait_for("the worker is there", lambda: len(fence.pids()) == 2)
    time.sleep(2.5)  # longer than the silence it would not stand
    assert len(fence.pids()) == 2
    supervisor.kill()
    supervisor.wait()
    wait_for("the deadman killed the tree", lambda: not fence.pids())


def test_a_deadman_that_was_stopped_itself_gives_the_supervisor_its_time_again(fence: NoFence, worker: Child) -> None:
    guard = Deadman(fence.name)
    assert guard.beat()
    os.kill(guard.pid, signal.SIGSTOP)
    wait_for("it is stopped", lambda: look_at(guard.pid).state == "T")
    time.sleep(2.5)  # both were stopped, as when the machine's processes were frozen for a snapshot
    os.kill(guard.pid, signal.SIGCONT)
    time.sleep(0.5)
    assert guard.beat()
    guard.goodbye()
    wait_for("it left", lambda: dead(guard.pid))
    assert worker.exit_code() is None


def test_a_deadman_that_died_is_noticed_at_the_next_beat(fence: NoFence) -> None:
    guard = Deadman(fence.name)
    assert guard.beat()
    os.kill(guard.pid, signal.SIGKILL)
    wait_for("it is noticed", lambda: not guard.beat())


def test_a_deadman_that_died_is_replaced_when_there_is_time_for_it_and_nothing_of_the_old_one_stays_open(
    fence: NoFence,
) -> None:
    """It was started inside the look at memory, and each one left a pipe and a pidfd behind."""
    guard = Deadman(fence.name)
    for _ in range(3):
        first, open_before = guard.pid, len(os.listdir("/proc/self/fd"))
        guard.replace()
        assert guard.pid == first, "it lives"
        os.kill(first, signal.SIGKILL)
        wait_for("it is noticed", lambda: not guard.beat())
        assert not guard.beat()
        assert guard.pid == first, "a beat starts nothing"
        guard.replace()
        assert guard.pid != first
        assert guard.beat()
        assert len(os.listdir("/proc/self/fd")) == open_before
    guard.goodbye()
    wait_for("it left", lambda: dead(guard.pid))


def test_the_guard_starts_no_process_while_memory_is_short(
    fence: NoFence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at memory only beats; a new deadman waits for the slow look of a calm moment."""
    monkeypatch.setenv("MEMSUP_STATE_DIR", str(tmp_path))
    guard = Deadman(fence.name)
    worker = WorkerProcess(run_paths("default"), a_record(), fence, cpus=1, deadman=guard)
    first = guard.pid
    os.kill(first, signal.SIGKILL)
    wait_for("it is noticed", lambda: not guard.beat())
    for second in range(10):
        worker.beat(second * worker.beat_every_s)
        worker.renew(calm=False)
    assert guard.pid == first
    worker.renew(calm=True)
    assert guard.pid != first
    assert guard.beat()
    worker.close()
    wait_for("it left", lambda: dead(guard.pid))


def test_a_pipe_that_is_full_does_not_stop_the_supervisor(fence: NoFence) -> None:
    guard = Deadman(fence.name)
    os.kill(guard.pid, signal.SIGSTOP)
    wait_for("it is stopped", lambda: look_at(guard.pid).state == "T")
    for _ in range(70_000):  # more than a pipe holds
        assert guard.beat()
    os.kill(guard.pid, signal.SIGKILL)
    wait_for("it is gone", lambda: not guard.beat())


def test_it_is_tiny(fence: NoFence) -> None:
    """Less than 12 MiB resident, its share of the C library and the interpreter included."""
    guard = Deadman(fence.name)

    def resident_kib() -> int:
        status = Path(f"/proc/{guard.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    wait_for("it waits", lambda: guard.beat() and look_at(guard.pid).state == "S" and resident_kib() > 6000)
    assert resident_kib() < 12 * 1024
    guard.goodbye()


def test_the_words_on_the_pipe_are_the_same_on_both_ends() -> None:
    assert deadman.GOODBYE != b"."
