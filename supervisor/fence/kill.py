"""The kill of a worker's tree as steps of a loop, and the supervisor's end of the pipe to `kernel/deadman.py`.

Nothing here waits: the loop calls `step` and polls pidfds. What came from the worker is found by its fence.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import sys
from typing import Protocol

from memsup.supervisor.kernel import deadman
from memsup.supervisor.kernel.children import Child, reap_orphans, spawn
from memsup.supervisor.kernel.processes import Process, look_at


class Deadman:
    """The supervisor's end of the pipe to `kernel/deadman.py`, for a fence without a cgroup."""

    def __init__(self, fence_name: str) -> None:
        """Starts the deadman. Raises OSError."""
        self._fence_name = fence_name
        self._child, self._pipe = self._start()

    def beat(self) -> bool:
        """Gives the sign of life that the deadman needs at least twice a second. False when it is not there any more."""
        try:
            os.write(self._pipe, b".")
        except BlockingIOError:  # it reads slowly, but it has enough to read
            return True
        except BrokenPipeError:
            return False
        return self._child.exit_code() is None

    def replace(self) -> None:
        """Starts another deadman where this one is gone. A program has to be read for that, so it is not to be called while
        memory is short. Raises OSError.
        """
        if self._child.exit_code() is not None:
            child, pipe = self._start()
            self._close()
            self._child, self._pipe = child, pipe

    def goodbye(self) -> None:
        """Ends the deadman's duty: it exits and kills nobody."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, deadman.GOODBYE)
        self._close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _start(self) -> tuple[Child, int]:
        its_end, our_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return spawn([sys.executable, "-I", "-S", deadman.__file__, self._fence_name], stdin=its_end), our_end
        except OSError:
            os.close(our_end)
            raise
        finally:
            os.close(its_end)

    def _close(self) -> None:
        os.close(self._pipe)
        self._child.close()


class Killable(Protocol):
    """The part of a fence that a kill needs."""

    def kill(self) -> None: ...

    def populated(self) -> bool | None: ...

    def pids(self) -> list[int]: ...


class KillState(enum.Enum):
    KILLING = "killing"
    GONE = "gone"
    """Every process has exited, so its memory was handed back."""
    UNDEAD = "undead"
    """Some processes will not die (state D: waiting in the kernel), so no second worker may start. A later step may still find
    them gone.
    """


_AGAIN_S = 0.2


class TreeKill:
    """Kills everything in the fence and the child that was put there, from the first `step` until nothing is left."""

    def __init__(self, fence: Killable, child: Child | None, *, now_s: float, give_up_s: float = 10.0) -> None:
        self._fence, self._child = fence, child
        self._began_s, self._give_up_s = now_s, give_up_s
        self._kill_at_s = now_s
        self.state = KillState.KILLING
        self.took_s: float | None = None
        """The time from the beginning to GONE. It is None before that."""

    def step(self, now_s: float) -> KillState:
        """Takes one step and never waits; to be called at once, then every 10 ms or so and when the child's pidfd fires."""
        if self.state is KillState.GONE:
            return self.state
        if now_s >= self._kill_at_s:  # again and again: somebody may have been born during the last sweep
            self._kill_at_s = now_s + _AGAIN_S
            self._fence.kill()
            if self._child is not None:  # it may not have entered the fence yet
                self._child.send(signal.SIGKILL)
        child_gone = self._child is None or self._child.exit_code() is not None
        if child_gone and self._fence.populated() is False:
            reap_orphans()
            self.state, self.took_s = KillState.GONE, now_s - self._began_s
        elif now_s - self._began_s > self._give_up_s:
            self.state = KillState.UNDEAD
        return self.state

    def left(self) -> list[Process]:
        """The processes that are not dead yet, for the alarm: their `state` says why (D: waiting in the kernel)."""
        pids = set(self._fence.pids())
        if self._child is not None and self._child.exit_code() is None:
            pids.add(self._child.pid)
        return [process for process in map(look_at, sorted(pids)) if process and not process.dead]
