"""Starting, killing and reaping, with real processes: nobody escapes, nobody else is hit, nothing waits."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.fenced import kill, misbehave, subreaper, wait_for

from memsup.shared.descriptors import wait_ready
from memsup.supervisor.fence.kill import KillState, TreeKill
from memsup.supervisor.fence.rlimit import NoFence
from memsup.supervisor.kernel import processes
from memsup.supervisor.kernel.cgroups import find_hierarchy
from memsup.supervisor.kernel.children import Child, reap_orphans, spawn
from memsup.supervisor.kernel.processes import Process, look_at, parse_stat, scan, send_to

_numbers = itertools.count()
_freezer = find_hierarchy("freezer")


def fresh_fence() -> NoFence:
    return NoFence(f"test_{os.getpid()}_t{next(_numbers)}", 1 << 30)


def ended(child: Child) -> int:
    wait_for("it has exited", lambda: child.exit_code() is not None)
    child.close()
    code = child.exit_code()
    assert code is not None
    return code


def test_the_pidfd_tells_of_the_exit_and_the_code_is_kept() -> None:
    child = spawn(["sh", "-c", "exit 3"])
    assert wait_ready([child.pidfd], 30) == {child.pidfd}
    assert ended(child) == 3
    child.send(signal.SIGKILL)
    assert child.exit_code() == 3


def test_a_signal_is_the_exit_code() -> None:
    child = spawn(["sleep", "600"])
    assert child.exit_code() is None
    child.send(signal.SIGTERM)
    assert ended(child) == -signal.SIGTERM


def test_only_the_descriptors_meant_for_the_child_reach_it(tmp_path: Path) -> None:
    kept, lost = os.pipe()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.set_inheritable(lost, True)
    child = spawn(["ls", "/proc/self/fd"], keep_fds=[kept], output=log)
    assert ended(child) == 0
    numbers = {int(number) for number in (tmp_path / "log").read_text().split()}
    assert kept in numbers
    assert lost not in numbers
    assert os.getsid(0) != child.pid
    for fd in (kept, lost, log):
        os.close(fd)


def test_a_command_that_cannot_start_is_an_error_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        spawn(["memsup-no-such-command"])


def test_orphans_are_reaped_and_children_started_here_keep_their_exit_code() -> None:
    with subreaper():
        fence = fresh_fence()
        child = spawn(["sh", "-c", "exit 4"])
        other = subprocess.Popen(["sh", "-c", "exit 5"])
        misbehaving = misbehave(fence, ESCAPES=1, FORGETS=1)

        def orphans() -> list[int]:
            return [pid for pid, process in scan().items() if processes.is_orphan(process)]

        wait_for("the grandchild is an orphan here", orphans)
        assert set(orphans()) < set(fence.pids())
        orphan = orphans()[0]
        kill(fence, misbehaving)
        wait_for("both have exited", lambda: all(look_at(pid).dead for pid in (child.pid, other.pid)))
        reap_orphans()
        assert look_at(orphan) is None
        assert (child.exit_code(), other.wait()) == (4, 5)


def test_reaping_with_nobody_there_does_nothing() -> None:
    assert reap_orphans() == []


@pytest.mark.skipif(os.geteuid() != 0 or _freezer is None or _freezer.version != 1, reason="needs root and a cgroup v1 freezer")
def test_what_cannot_die_is_reported_and_not_waited_for() -> None:
    """A process in another freezer takes no SIGKILL, like one that waits in the kernel for a dead disk."""
    folder = _freezer.mount / f"memsup-test-{os.getpid()}"
    folder.mkdir()
    fence = fresh_fence()
    child = misbehave(fence, FORKS=1)
    try:
        wait_for("both are there", lambda: len(fence.pids()) == 2)
        (folder / "cgroup.procs").write_text(str(child.pid))
        (folder / "freezer.state").write_text("FROZEN")
        wait_for("it is frozen", lambda: (folder / "freezer.state").read_text() == "FROZEN\n")
        end = TreeKill(fence, child, now_s=100.0, give_up_s=10.0)
        assert end.step(100.0) is KillState.KILLING
        assert end.step(109.9) is KillState.KILLING
        assert end.step(110.1) is KillState.UNDEAD
        wait_for("the other one died", lambda: len(fence.pids()) == 1)
        assert [process.pid for process in end.left()] == [child.pid]
        assert end.left()[0].state == "D"
    finally:
        (folder / "freezer.state").write_text("THAWED")
    wait_for("it died after all", lambda: end.step(111.0) is KillState.GONE)
    assert end.took_s == pytest.approx(11.0)
    child.close()
    folder.rmdir()


def test_a_kill_before_the_child_entered_its_fence_kills_it_too() -> None:
    """`systemd-run` and the launcher take a moment; an order to kill may come meanwhile."""
    child = spawn(["sleep", "600"])  # never enters
    end = kill(fresh_fence(), child)
    assert child.exit_code() == -signal.SIGKILL
    assert end.took_s < 5


def test_an_unknown_population_is_not_taken_for_empty() -> None:
    class Unknown(NoFence):
        def populated(self) -> bool | None:  # type: ignore[override]
            return None

    end = TreeKill(Unknown("x", 1), None, now_s=0.0, give_up_s=10.0)
    assert end.step(1.0) is KillState.KILLING
    assert end.step(11.0) is KillState.UNDEAD


def test_a_number_that_went_to_somebody_else_is_left_alone() -> None:
    child = spawn(["sleep", "600"])
    found = look_at(child.pid)
    former = Process(found.pid, found.parent, found.session, found.state, found.started - 1, found.threads)
    assert send_to(former, signal.SIGKILL) is False
    assert child.exit_code() is None
    assert send_to(found, signal.SIGKILL) is True
    assert ended(child) == -signal.SIGKILL


def test_a_leader_that_ended_before_its_threads_is_not_dead() -> None:
    """Its state is Z, but the threads still hold all the memory."""
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(0)"
    )
    child = spawn([sys.executable, "-c", code])
    wait_for("its leader has ended", lambda: (found := look_at(child.pid)) and found.state == "Z")
    assert look_at(child.pid).dead is False
    child.send(signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL


def test_a_walk_finds_ourselves() -> None:
    me = scan()[os.getpid()]
    assert me.parent == os.getppid()
    assert me.started == look_at(os.getpid()).started


@pytest.mark.parametrize("name", [b"sh", b"a b", b"a) S 1 (b", b"\n) R 7", b""])
def test_names_that_look_like_the_rest_of_the_line_do_not_confuse(name: bytes) -> None:
    line = b"42 (" + name + b") S 7 42 41 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 9001 1 2\n"
    found = parse_stat(line)
    assert (found.pid, found.parent, found.session) == (42, 7, 41)
    assert (found.state, found.started, found.threads) == ("S", 9001, 3)


@given(st.binary(max_size=300))
def test_garbage_is_no_process(text: bytes) -> None:
    found = parse_stat(text)
    assert found is None or found.pid >= 0


def test_a_kill_takes_far_less_than_the_limit_of_patience() -> None:
    fence = fresh_fence()
    child = misbehave(fence, FORKS=5, IGNORES=1)
    wait_for("all are there", lambda: len(fence.pids()) == 6)
    began_s = time.monotonic()
    kill(fence, child)
    assert time.monotonic() - began_s < 5
