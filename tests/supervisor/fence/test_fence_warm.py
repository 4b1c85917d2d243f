"""The process that stands by: who its forks are, what spares it, and that it leaves with whoever keeps it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.fenced import MIB, kill, misbehave, subreaper, wait_for

from memsup.supervisor.decide.run.warm import Warmth
from memsup.supervisor.fence import Fence, FenceError
from memsup.supervisor.fence.cgroup1 import Cgroup1Fence
from memsup.supervisor.fence.cgroup2 import DelegatedFence
from memsup.supervisor.fence.rlimit import NoFence
from memsup.supervisor.fence.scope import ScopeFence
from memsup.supervisor.fence.warm import WarmProcess
from memsup.supervisor.kernel.children import Child
from memsup.supervisor.kernel.processes import look_at, private_bytes

STANDS_BY = """\
import os, sys, threading, time
from memsup.worker.warm import stand_by
def load():
    {load}
lifeline = stand_by(int(sys.argv[1]), load)
print(os.getpid(), os.getppid(), os.getsid(0), len(os.listdir("/proc/self/fd")), flush=True)
os.read(lifeline, 1)
os._exit(7)
"""


@pytest.fixture(params=[NoFence, Cgroup1Fence, DelegatedFence, ScopeFence])
def fence(request: pytest.FixtureRequest) -> Iterator[Fence]:
    with subreaper():
        try:
            fence: Fence = request.param(f"test_{os.getpid()}_warm", 400 * MIB)
        except FenceError as error:
            pytest.skip(str(error))
        yield fence
        fence.spared = None
        kill(fence, None)
        assert fence.remove()


def begun(fence: Fence, load: str = "pass") -> WarmProcess:
    code = STANDS_BY.format(load=load)
    return WarmProcess(fence, lambda fd: [sys.executable, "-P", "-c", code, str(fd)], os.environ, "/")


def ready(warm: WarmProcess) -> WarmProcess:
    wait_for("it stands by", lambda: warm.step() is None and warm.warmth is Warmth.READY)
    return warm


def born(warm: WarmProcess, output: int) -> tuple[Child, int]:
    """The worker, and the end of its lifeline that keeps it."""
    lifeline, kept = os.pipe()
    warm.bear(lifeline, output)
    os.close(lifeline)
    found: list[Child] = []
    wait_for("it is born", lambda: found or found.extend(filter(None, [warm.step()])) or found)
    return found[0], kept


def test_a_fork_is_a_worker_like_any_other(fence: Fence, tmp_path: Path) -> None:
    warm = ready(begun(fence))
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    first, kept = born(warm, log)
    wait_for("it has printed", lambda: (tmp_path / "log").read_text().count(" ") == 3)
    pid, _, session, descriptors = map(int, (tmp_path / "log").read_text().split())
    assert pid == first.pid == session != warm.pid
    assert descriptors == 5, "0, 1, 2, its lifeline, and the folder that was listed"
    wait_for("it is this process's child", lambda: (found := look_at(pid)) and found.parent == os.getpid())
    assert fence.pids() == [pid]
    assert set(fence.everyone()) == {pid, warm.pid}
    assert 0 < (private_bytes(warm.pid) or 0) < 100 * MIB
    os.close(kept)
    wait_for("its exit is collected", lambda: first.exit_code() == 7)
    first.close()
    assert fence.populated() is False
    second, kept = born(warm, log)  # another one, of the same process
    second.send(signal.SIGKILL)
    wait_for("a kill is seen", lambda: second.exit_code() == -9)
    os.close(kept)
    os.close(log)
    second.close()


def test_the_end_of_a_tree_spares_it_and_dismissed_it_is_gone(fence: Fence, tmp_path: Path) -> None:
    warm = ready(begun(fence))
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    worker, kept = born(warm, log)
    child = misbehave(fence, FORKS=3)
    wait_for("all are there", lambda: len(fence.pids()) >= 2)
    fence.freeze()
    wait_for("it stands still with the worker", fence.frozen)
    kill(fence, worker)
    wait_for("the other one is dead", lambda: child.exit_code() is not None)
    assert fence.everyone() == [warm.pid]
    third, kept_too = born(warm, log)  # it goes on
    warm.dismiss()
    assert warm.pid in fence.pids() or warm.is_gone, "until it is dead it is one of the fence's"
    wait_for("it is gone", lambda: warm.is_gone)
    assert fence.pids() == [third.pid], "its forks live on"
    kill(fence, third)
    for fd in (kept, kept_too, log):
        os.close(fd)
    child.close()


def test_it_leaves_with_whoever_keeps_it_also_while_it_loads(tmp_path: Path) -> None:
    """The other end is closed without a word, as by a kill."""
    for load, is_loading in (("pass", False), (f"open({str(tmp_path / 'loads')!r}, 'w'); time.sleep(1000)", True)):
        with subreaper():
            fence = NoFence(f"test_{os.getpid()}_left", 400 * MIB)
            warm = begun(fence, load)
            wait_for("it loads or is ready", (tmp_path / "loads").exists if is_loading else _is_ready(warm))
            process = look_at(warm.pid)
            warm._channel.close()
            wait_for("it has left", lambda: (found := look_at(process.pid)) is None or found.dead)  # noqa: B023
            assert warm._child.exit_code() is not None
            warm._child.close()


def _is_ready(warm: WarmProcess) -> Callable[[], bool]:
    return lambda: warm.step() is None and warm.warmth is Warmth.READY


@pytest.mark.parametrize(
    ("load", "why"),
    [
        ("threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()", "runs threads of its own"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)
def test_it_refuses_where_a_fork_would_be_broken(load: str, why: str) -> None:
    with subreaper():
        warm = begun(NoFence(f"test_{os.getpid()}_refuses", 400 * MIB), load)
        wait_for("it has refused", lambda: warm.step() is None and warm.warmth is Warmth.NONE)
        assert why in (warm.why_refused or "")
        wait_for("it is collected", lambda: warm.is_gone)


def test_time_is_only_lost_where_it_dies() -> None:
    with subreaper():
        warm = ready(begun(NoFence(f"test_{os.getpid()}_dies", 400 * MIB)))
        os.kill(warm.pid, signal.SIGKILL)
        wait_for("that is seen", lambda: warm.step() is None and warm.warmth is Warmth.NONE)
        wait_for("it is collected", lambda: warm.is_gone)
