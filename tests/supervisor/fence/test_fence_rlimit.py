"""Without a cgroup: limits that each process carries, and a tree that is found again wherever it hides."""

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
from kit import KIT
from kit.fenced import MIB, held_bytes, kill, misbehave, subreaper, wait_for

from memsup.supervisor.fence.rlimit import NoFence, RlimitFence
from memsup.supervisor.kernel.children import spawn

pytestmark = pytest.mark.slow
_numbers = itertools.count()


@pytest.fixture
def fence() -> Iterator[RlimitFence]:
    with subreaper():
        fence = RlimitFence(f"test_{os.getpid()}_p{next(_numbers)}", 200 * MIB)
        yield fence
        kill(fence, None)


def test_memory_beyond_the_limit_is_an_error_that_the_worker_can_catch(fence: RlimitFence, tmp_path: Path) -> None:
    held = tmp_path / "held"
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    child = misbehave(fence, LEAK_MB_PER_S="full", HELD=held, CATCH=1, output=log)
    os.close(log)
    wait_for("it caught the error", lambda: "out of memory" in (tmp_path / "log").read_text())
    assert child.exit_code() is None
    assert 150 * MIB < held_bytes(held) < 200 * MIB
    kill(fence, child)


def test_memory_shared_after_a_fork_counts_once(fence: RlimitFence) -> None:
    """Loaders forked from a worker that holds a gigabyte must not look like a gigabyte each."""
    code = (
        "import os, time\n"
        "x = bytearray(b'x' * (96 << 20))\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0: time.sleep(600)\n"
        "time.sleep(600)"
    )
    child = spawn([*fence.launch_prefix(), sys.executable, "-I", "-S", "-c", code])
    wait_for("all five are there", lambda: len(fence.pids()) == 5)
    wait_for("a walk saw them", lambda: (fence.used_bytes() or 0) > 90 * MIB)
    time.sleep(0.6)  # the next walk is due
    assert 90 * MIB < fence.used_bytes() < 190 * MIB
    kill(fence, child)


def test_a_leak_shows_between_two_walks(fence: RlimitFence, tmp_path: Path) -> None:
    held = tmp_path / "held"
    child = misbehave(fence, LEAK_MB_PER_S=100, LEAK_MB=150, HELD=held)
    wait_for("it was seen", lambda: (fence.used_bytes() or 0) > 20 * MIB)
    wait_for("it holds all", lambda: held_bytes(held) >= 150_000_000)
    assert fence.used_bytes() >= 150_000_000
    kill(fence, child)


@pytest.mark.parametrize(
    "faults",
    [
        {"IGNORES": 1},
        {"STOPS": 1},
        {"FORKS": 3},
        {"ESCAPES": 1},
        {"ESCAPES": 1, "FORGETS": 1},
        {"FORK_BOMB": 50, "LEAK_MB_PER_S": ""},  # no memory: nothing would bound the sum of so many
        {"NATIVE": 1},
    ],
    ids=str,
)
def test_the_whole_tree_dies(fence: RlimitFence, tmp_path: Path, faults: dict[str, object]) -> None:
    """Also who forked twice, changed the session and emptied the environment: it came back to the subreaper."""
    held = tmp_path / "held"
    child = misbehave(fence, **{"LEAK_MB_PER_S": "full", "LEAK_MB": 24, "HELD": held, **faults})
    if "FORK_BOMB" in faults:
        wait_for("they are many", lambda: len(fence.pids()) > 10)
    elif "NATIVE" in faults:
        wait_for("it holds memory", lambda: (fence.used_bytes() or 0) > 24_000_000)
    else:
        wait_for("it holds memory", lambda: held_bytes(held) >= 24_000_000)
    if "ESCAPES" in faults:
        wait_for("the grandchild is found", lambda: len(fence.pids()) >= 2)
    kill(fence, child)
    assert fence.pids() == []


def test_freezing_stops_everybody_and_thawing_lets_them_go_on(fence: RlimitFence, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    child = misbehave(fence, FORKS=3, PROGRESS=progress)
    wait_for("it works", lambda: progress.exists() and progress.stat().st_size > 10)
    fence.freeze()
    wait_for("it is frozen", fence.frozen)
    size = progress.stat().st_size
    time.sleep(0.2)  # time in which it would have written
    assert progress.stat().st_size == size
    fence.thaw()
    wait_for("it works again", lambda: progress.stat().st_size > size + 10)
    kill(fence, child)


def test_a_supervisor_that_starts_again_finds_what_a_dead_one_left(fence: RlimitFence, tmp_path: Path) -> None:
    """The first supervisor is another process here and dies; nothing but the mark leads to what it left."""
    prefix = [*fence.launch_prefix(), sys.executable, "-I", "-S", str(KIT / "misbehaving.py")]
    code = f"import subprocess, os; subprocess.Popen({prefix!r}, env=dict(os.environ, FORKS='2'), start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], check=True)
    again = NoFence(fence.name.removeprefix("memsup-"), 200 * MIB)
    wait_for("all three are found", lambda: len(again.pids()) == 3)
    kill(again, None)


def test_a_neighbouring_run_and_a_bystander_are_left_alone(fence: RlimitFence) -> None:
    other = NoFence(f"test_{os.getpid()}_neighbour", 200 * MIB)
    neighbour, child = misbehave(other), misbehave(fence, FORKS=2)
    bystander = spawn(["sleep", "600"])
    by_other_means = subprocess.Popen(["sleep", "600"])
    wait_for("all are there", lambda: len(fence.pids()) == 3 and len(other.pids()) == 1)
    kill(fence, child)
    assert neighbour.exit_code() is None
    assert bystander.exit_code() is None
    assert by_other_means.poll() is None
    by_other_means.kill()
    by_other_means.wait()
    bystander.send(signal.SIGKILL)
    kill(other, neighbour)
