"""The worker as a process: started inside the fence with its lifeline, output and environment, and ended for certain.

Covers the built-in worker and a foreign command alike. What it prints goes through `output.py`. When to start and end it is
decided in `lifecycle.py`; how a tree is killed, in `kill.py`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Mapping

from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.supervisor.fence.base import Fence
from memsup.supervisor.fence.kill import KillState, TreeKill
from memsup.supervisor.fence.output import OutputPump
from memsup.supervisor.kernel.children import Child, spawn


class WorkerProcess:
    def __init__(self, paths: RunPaths, record: RunRecord, fence: Fence, cpus: int) -> None:
        """`cpus`: how many it may compute on."""
        self._paths, self._record, self._fence, self._cpus = paths, record, fence, cpus
        self._child: Child | None = None
        self._pumps: list[OutputPump] = []
        """Of this worker, and of those before it that still have something to write."""
        self._lifeline: int | None = None
        self._end: TreeKill | None = None
        self._kills_before = 0

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def pidfd(self) -> int | None:
        """Readable once the worker itself has exited; what it started may live on."""
        return self._child.pidfd if self._child else None

    @property
    def exit_status(self) -> int | None:
        """Of the worker itself, its code or minus the signal's number; None while it lives."""
        return self._child.exit_code() if self._child else None

    @property
    def ending(self) -> TreeKill | None:
        return self._end

    def start(self) -> None:
        """Raises OSError. What it prints goes to `worker.log`; the lifeline's other end dies with this process."""
        pump = OutputPump(self._paths.worker_log, self._paths.name)
        self._pumps.append(pump)
        read_end, write_end = os.pipe()
        self._kills_before = self._fence.oom_kills() or 0
        try:
            self._child = spawn(
                self._fence.launch_prefix() + self._command(read_end),
                environment=self._environment(),
                folder=self._record.command_folder or str(self._paths.state),
                keep_fds=[read_end],
                output=pump.write_end,
            )
        except OSError:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
            os.close(pump.write_end)
        self._lifeline = write_end

    def terminate(self) -> None:
        if self._child:
            self._child.send(signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Every thread's stack into `worker.log`: the built-in worker registers faulthandler for this signal."""
        if self._child:
            self._child.send(signal.SIGUSR1)

    def kill(self, now_s: float) -> None:
        """Begins the end of the whole tree; `step` sees it through."""
        if self._end is None:
            self._end = TreeKill(self._fence, self._child, now_s=now_s)

    def step(self, now_s: float) -> KillState | None:
        """One step of the end, if there is one. After its own exit, what the worker left behind is ended too."""
        self._pumps = [pump for pump in self._pumps if not pump.step(now_s)]
        if self._end is None:
            if self._child is None or self._child.exit_code() is None:
                return None
            self.kill(now_s)
        return self._end.step(now_s) if self._end else None

    def write_out(self, within_s: float) -> bool:
        """Waits until all that workers have printed is in their log; False when it is not in time."""
        until_s = time.monotonic() + within_s
        while self._pumps and (left_s := until_s - time.monotonic()) > 0:
            select.select([pump.pidfd for pump in self._pumps], [], [], left_s)
            self._pumps = [pump for pump in self._pumps if not pump.step(time.monotonic())]
        return not self._pumps

    def collect(self) -> tuple[int | None, int]:
        """After `KillState.GONE`: the exit status, and how many processes the kernel killed at the fence in this life."""
        status = self.exit_status
        if self._child:
            self._child.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
        self._child = self._lifeline = self._end = None
        return status, max(0, (self._fence.oom_kills() or 0) - self._kills_before)

    def _command(self, lifeline_fd: int) -> list[str]:
        if self._record.command is not None:
            return self._record.command
        # -P: a `random.py` in the user's folder must not shadow the standard library's.
        return [sys.executable, "-P", "-m", "memsup.worker", "--run", self._paths.name, "--lifeline-fd", str(lifeline_fd)]

    def _environment(self) -> Mapping[str, str]:
        environment = dict(os.environ)
        environment.pop("NOTIFY_SOCKET", None)  # systemd listens to the supervisor only
        environment["PYTHONUNBUFFERED"] = "1"
        if self._record.command is not None:
            return environment
        threads = str(self._record.settings.training.threads or self._cpus)
        return environment | {
            "MEMSUP_STATE_DIR": str(self._paths.state.parent),
            "MEMSUP_RUNTIME_DIR": str(self._paths.runtime.parent),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",  # forked pools beside torch's threads deadlock
            "PYTHONFAULTHANDLER": "1",
        }
