"""The worker as a process: started inside the fence with its lifeline, output and environment, and ended for certain.

Covers the built-in worker and a foreign command alike, and the deadman that stands behind the supervisor where no cgroup does.
What the worker prints goes through `output.py`. When to start and end it is decided in `decide/run/lifecycle.py`; how a tree is
killed, in `kill.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Mapping

from memsup.shared.descriptors import wait_ready
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.supervisor.decide.run.last_words import LastWords
from memsup.supervisor.decide.variables import joined
from memsup.supervisor.fence.base import Fence
from memsup.supervisor.fence.card import CardMover
from memsup.supervisor.fence.kill import Deadman, KillState, TreeKill
from memsup.supervisor.fence.output import OutputPump
from memsup.supervisor.fence.program import make_findable, told_to_program
from memsup.supervisor.kernel.children import Child, reap_orphans, spawn
from memsup.supervisor.kernel.processes import MARK

DEADMAN_BEAT_S = 0.5


class WorkerProcess:
    def __init__(self, paths: RunPaths, record: RunRecord, fence: Fence, cpus: int, *, deadman: Deadman | None = None) -> None:
        """`cpus` is how many the worker may compute on. `deadman` stands behind a fence without a cgroup. It is None where the
        fence has one.
        """
        self._paths, self._record, self._cpus = paths, record, cpus
        self.fence, self._deadman = fence, deadman
        self.card = CardMover()
        """Has the driver move what a command has on the GPU."""
        self._next_beat_s = -math.inf
        self._last_words = LastWords()
        self._child: Child | None = None
        self._pumps: list[OutputPump] = []
        """The pumps of this worker, and of those before it that still have something to write."""
        self._lifeline: int | None = None
        self._end: TreeKill | None = None
        self._kills_before = 0
        self._is_told = self._rest_is_told = False
        """Whether a command was told to end, and whether what it has left was told so as well."""
        self._rest_status = 0
        """How what a command has left running ended: the first exit status that is not 0, if there was one."""

    @property
    def pid(self) -> int | None:
        """The worker's own number. It is None while there is no worker."""
        return self._child.pid if self._child else None

    @property
    def pidfd(self) -> int | None:
        """The descriptor that is readable once the worker itself has exited; what it started may live on. It is None without a
        worker.
        """
        return self._child.pidfd if self._child else None

    @property
    def exit_status(self) -> int | None:
        """The worker's own exit code, or minus the signal's number. It is None while the worker lives."""
        return self._child.exit_code() if self._child else None

    @property
    def is_outlived(self) -> bool:
        """Whether a command has ended well and has left something that still runs, which is the run's work as well."""
        is_over = self._record.command is not None and self._end is None and self.exit_status == 0
        return is_over and self.fence.populated() is True

    @property
    def undead(self) -> int:
        """How many processes of the worker could not be ended."""
        return len(self._end.left()) if self._end is not None and self._end.state is KillState.UNDEAD else 0

    def start(self) -> None:
        """Starts the worker. What it prints goes to `worker.log`; the lifeline's other end dies with this process.

        Raises OSError.
        """
        pump = OutputPump(self._paths.worker_log, self._paths.name)
        self._pumps.append(pump)
        read_end, write_end = os.pipe()
        self._kills_before = self.fence.oom_kills() or 0
        try:
            self._child = spawn(
                self.fence.launch_prefix() + self._command(read_end),
                environment=self._environment(),
                folder=self._record.command_folder or str(self._paths.state),
                keep_fds=[read_end],
                output=pump.write_end,
                umask=self._record.command_umask,
            )
        except OSError:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
            os.close(pump.write_end)
        self._lifeline = write_end

    def keep_findable(self) -> None:
        """Makes anew what a command's programs find memsup by, where somebody removed it."""
        if self._record.command is not None:
            make_findable(self._paths, self._record)

    def terminate(self) -> None:
        """Tells the command to end. What it has started is its own to end, and is told only when the command itself is gone: a
        program whose loader processes die under its hands could not save what it has.
        """
        self._is_told = True
        if self._child:
            self._child.send(signal.SIGTERM)
        else:  # an earlier supervisor has started it
            self._tell_the_rest()

    def _tell_the_rest(self) -> None:
        """Tells what a command that obeyed has left to end as well: of a shell's script it is what has something to save."""
        if not self._rest_is_told:
            self._rest_is_told = True
            for pid in self.fence.pids():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM)

    def may_speak(self, pid: int, said_pid: int) -> bool:
        """Whether the process `pid` may speak for the worker: the worker's own, which also says that it is, and of a command
        any process in the fence, since a shell's script is not what trains.
        """
        if said_pid != pid:
            return False
        return pid in self.fence.pids() if self._record.command is not None else pid == self.pid

    def dump_stacks(self) -> None:
        """Has every thread's stack written to `worker.log`: the built-in worker registers faulthandler for this signal."""
        if self._child:
            self._child.send(signal.SIGUSR1)

    def kill(self, now_s: float) -> None:
        """Begins the end of the whole tree; `step` sees it through."""
        if self._end is None:
            self._end = TreeKill(self.fence, self._child, now_s=now_s)

    def step(self, now_s: float, *, owes_words: bool = False) -> KillState | None:
        """Takes one step of the end. Returns None while there is none to take.

        After its own exit, what the worker left behind is ended too. What a command leaves that has ended well goes on until it
        ends by itself, or `kill` comes; of one that was told to end, what is left is told so first. The worker is gone once
        that is done and its last words, where it `owes_words`, have come or had their time.
        """
        orphans = reap_orphans()
        self.card.reap()
        self._pumps = [pump for pump in self._pumps if not pump.step(now_s)]
        if self._end is None:
            if self._child is None or self._child.exit_code() is None:
                return None
            if self._is_told and self.fence.populated() is True:
                self._tell_the_rest()
                return None
            if self._record.command is not None and self._child.exit_code() == 0:
                is_outlived = self.fence.populated() is True
                orphans += reap_orphans()  # those that have ended since
                self._rest_status = next(filter(None, [self._rest_status, *orphans]), 0)
                if is_outlived:
                    return None
            self.kill(now_s)
        state = self._end.step(now_s) if self._end else None
        if state is KillState.GONE and self._last_words.may_come(now_s, self.exit_status, owed=owes_words):
            return KillState.KILLING
        return state

    def write_out(self, within_s: float) -> bool:
        """Waits until all that workers have printed is in their log; False when it is not in time."""
        until_s = time.monotonic() + within_s
        while self._pumps and (left_s := until_s - time.monotonic()) > 0:
            wait_ready([pump.pidfd for pump in self._pumps], left_s)
            self._pumps = [pump for pump in self._pumps if not pump.step(time.monotonic())]
        return not self._pumps

    def collect(self) -> tuple[int | None, int, int]:
        """The exit status, how many processes the kernel killed at the fence in this life, and the exit status of what a
        command has left running; to be called after `KillState.GONE`.

        The first is None for a worker that this supervisor has not started.
        """
        status, rest_status = self.exit_status, self._rest_status
        self.card.abandon()
        if self._child:
            self._child.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
        self._child = self._lifeline = self._end = None
        self._is_told = self._rest_is_told = False
        self._rest_status = 0
        self._last_words = LastWords()
        return status, max(0, (self.fence.oom_kills() or 0) - self._kills_before), rest_status

    # -- the deadman --------------------------------------------------------------------------------------------------

    @property
    def beat_every_s(self) -> float:
        """How often `beat` has to be called; infinite where there is no deadman."""
        return DEADMAN_BEAT_S if self._deadman is not None else math.inf

    def beat(self, now_s: float) -> None:
        """Tells the deadman that the supervisor is well. Starts nothing, however short memory is."""
        if self._deadman is not None and now_s >= self._next_beat_s:
            self._next_beat_s = now_s + DEADMAN_BEAT_S
            self._deadman.beat()

    def renew(self, *, calm: bool) -> None:
        """Puts back what somebody else changed of the fence, and in a calm moment replaces a deadman that is gone."""
        self.fence.renew()
        if calm and self._deadman is not None:
            with contextlib.suppress(OSError):  # no process can be started now; it is tried again a second later
                self._deadman.replace()

    def close(self) -> None:
        """Takes the fence away and ends the deadman's duty; to be called after the worker's end."""
        self.card.close()
        self.fence.remove()
        if self._deadman is not None:
            self._deadman.goodbye()

    def _command(self, lifeline_fd: int) -> list[str]:
        if self._record.command is not None:
            return self._record.command
        # -P: a `random.py` in the user's folder must not shadow the standard library's.
        return [sys.executable, "-P", "-m", "memsup.worker", "--run", self._paths.name, "--lifeline-fd", str(lifeline_fd)]

    def _environment(self) -> Mapping[str, str]:
        environment = joined(self._record.command_environment, os.environ)
        environment.pop("NOTIFY_SOCKET", None)  # systemd listens to the supervisor only
        environment["PYTHONUNBUFFERED"] = "1"
        # What launches it gives it the mark as well, and is to be found by it meanwhile.
        environment[MARK] = self.fence.name
        if self._record.command is not None:
            return environment | told_to_program(self._paths, self._record, environment)
        threads = str(self._record.settings.training.threads or self._cpus)
        return environment | {
            "MEMSUP_STATE_DIR": str(self._paths.state.parent),
            "MEMSUP_RUNTIME_DIR": str(self._paths.runtime.parent),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",  # forked pools beside torch's threads deadlock
            "PYTHONFAULTHANDLER": "1",
        }
