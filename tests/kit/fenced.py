"""What the tests of the fences share: a misbehaving child inside a fence, waiting with a deadline, a kill to its end."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memsup.supervisor.fence import Fence
from memsup.supervisor.fence.kill import KillState, TreeKill
from memsup.supervisor.kernel.children import Child, become_subreaper, spawn

MISBEHAVING = Path(__file__).with_name("misbehaving.py")
MIB = 1 << 20


def misbehave(fence: Fence, *, output: int | None = None, **faults: object) -> Child:
    """A child inside `fence` with these faults; see `misbehaving.py`."""
    environment = dict(os.environ) | {name: str(value) for name, value in faults.items()}
    command = [*fence.launch_prefix(), sys.executable, "-I", "-S", str(MISBEHAVING)]
    return spawn(command, environment=environment, output=output)


def wait_for(what: str, condition: Callable[[], object], within_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        time.sleep(0.005)


def kill(fence: Fence, child: Child | None, within_s: float = 20.0) -> TreeKill:
    """Kills all that is in `fence` and waits until it is gone."""
    kill = TreeKill(fence, child, now_s=time.monotonic(), give_up_s=within_s)
    wait_for("the tree is gone", lambda: kill.step(time.monotonic()) is not KillState.KILLING, within_s + 5)
    assert kill.state is KillState.GONE, [(process.pid, process.state) for process in kill.left()]
    if child is not None:
        child.close()
    return kill


@contextmanager
def subreaper() -> Iterator[None]:
    """Orphans come to this process only meanwhile, so that other tests' daemons are never taken for a worker's."""
    assert become_subreaper()
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


def held_bytes(file: Path) -> int:
    text = file.read_text() if file.exists() else ""
    return int(text) if text else 0
