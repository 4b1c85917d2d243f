"""The worker as a process: started inside the fence with its lifeline, output and environment, and ended for certain.

Covers the built-in worker and a foreign command alike, and the deadman that stands behind the supervisor where no cgroup does.
A worker takes the place of a dead one by a fork where a process stands by for that (`warm.py`), else it is started as the first
one was. What the worker prints goes through `output.py`. When to start and end it is decided in `decide/run/lifecycle.py`; how
a tree is killed, in `kill.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from memsup.shared.descriptors import wait_ready
from memsup.shared.messages import Kept
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.supervisor.decide.run.last_words import LastWords
from memsup.supervisor.decide.run.warm import Warmth
from memsup.supervisor.decide.variables import joined
from memsup.supervisor.fence.base import Fence
from memsup.supervisor.fence.card import CardMover
from memsup.supervisor.fence.in_memory import HeldState
from memsup.supervisor.fence.kill import Deadman, KillState, TreeKill
from memsup.supervisor.fence.output import OutputPump
from memsup.supervisor.fence.program import make_findable, told_to_program
from memsup.supervisor.fence.warm import WarmProcess
from memsup.supervisor.kernel.children import Child, reap_orphans, spawn
from memsup.supervisor.kernel.processes import MARK, private_bytes

DEADMAN_BEAT_S = 0.5
BORN_WITHIN_S = 5.0
"""A fork that is not there by then is given up."""
OWN_PROGRAM = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""What the environment of a program of the user's own has besides, unless it says otherwise. When torchrun begins its ranks
again by itself, the new ones share the store of those that are gone (torch 2.13), of which one may find the address of a dead
one: with gloo both then wait for each other for half an hour.
"""


@dataclass(frozen=True)
class Birth:
    """What a worker that is not there yet will have: descriptors, which are kept until it has its own of them."""

    lifeline_fd: int
    output_fd: int
    until_s: float
    """It is given up at this time."""


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
        self._warm: WarmProcess | None = None
        """The process that stands by, until it is dead and collected. It is None where there is none."""
        self._leaving_bytes = 0
        """What the last one had when it was ended."""
        self._birth: Birth | None = None
        """What a worker that is just being forked gets. It is None where none is."""
        self._child: Child | None = None
        self._pumps: list[OutputPump] = []
        """The pumps of this worker, and of those before it that still have something to write."""
        self._held = HeldState(fence)
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

    def start(self, now_s: float) -> None:
        """Starts the worker. What it prints goes to `worker.log`; the lifeline's other end dies with this process. Where a
        process stands by, the worker is there, and has a `pid`, after some steps.

        Raises OSError.
        """
        pump = OutputPump(self._paths.worker_log, self._paths.name)
        self._pumps.append(pump)
        self._kills_before = self.fence.oom_kills() or 0
        self._birth = Birth(self._held.begin_life(), pump.write_end, now_s + BORN_WITHIN_S)
        if self._warm is not None and self._warm.warmth is Warmth.READY:
            with contextlib.suppress(OSError):
                self._warm.bear(self._birth.lifeline_fd, pump.write_end)
                return
        self._launch(self._birth)

    def _launch(self, birth: Birth) -> None:
        """Starts the worker as a new process. Raises OSError, after which there is none."""
        try:
            self._child = spawn(
                self.fence.launch_prefix() + self._command("--lifeline-fd", birth.lifeline_fd),
                environment=self._environment(),
                folder=self._record.command_folder or str(self._paths.state),
                keep_fds=[birth.lifeline_fd],
                output=birth.output_fd,
                umask=self._record.command_umask,
            )
        except OSError:
            self._held.end_life()
            raise
        finally:
            self._end_birth()

    def _end_birth(self) -> None:
        if self._birth is not None:
            os.close(self._birth.lifeline_fd)
            os.close(self._birth.output_fd)
            self._birth = None

    # -- the process that stands by -----------------------------------------------------------------------------------

    @property
    def warmth(self) -> Warmth:
        """What the process that stands by is."""
        return self._warm.warmth if self._warm is not None else Warmth.NONE

    @property
    def why_cold(self) -> str | None:
        """Why the last process that was to stand by does not, as it said itself. It is None where it said nothing."""
        return self._warm.why_refused if self._warm is not None else None

    @property
    def why_dismissed(self) -> str | None:
        """What the last process that stood by was ended for, a clause. It is None where that was for nothing that it did."""
        return self._warm.why_dismissed if self._warm is not None else None

    @property
    def is_being_born(self) -> bool:
        """Whether a fork was asked for that is not there yet."""
        return self._birth is not None

    def warm_up(self) -> None:
        """Has a process stand by, unless the last one is not gone yet. Raises OSError."""
        if self._warm is None or self._warm.is_gone:
            command, folder = partial(self._command, "--warm-fd"), str(self._paths.state)
            self._warm = WarmProcess(self.fence, command, self._environment(), folder)

    def cool_down(self) -> None:
        """Ends the process that stands by."""
        if self._warm is not None:
            self._leaving_bytes = self.standby_bytes or self.leaving_bytes
            self._warm.dismiss()

    def without_prepared(self, used_bytes: int | None) -> int | None:
        """Of what the fence says is used, what would be without what is prepared for the next worker, since that goes first.
        Returns None where that is not known.
        """
        return None if used_bytes is None else max(0, used_bytes - self.prepared_bytes)

    @property
    def prepared_bytes(self) -> int:
        """What would come back if what is prepared for the next worker were given up alone: the process that stands by, and the
        state in memory.
        """
        return self.state_bytes + self.standby_bytes

    @property
    def standby_bytes(self) -> int:
        """What would come back if the process that stands by alone ended; 0 where there is none, or nobody knows."""
        if self._warm is None or self.warmth is Warmth.NONE:
            return 0
        return private_bytes(self._warm.pid) or 0

    # -- the state in memory ------------------------------------------------------------------------------------------

    def take_state(self) -> Kept | None:
        """Takes what the built-in training has handed over in memory. Returns its note, or None where it has handed over
        nothing since.
        """
        return self._held.take() if self._record.command is None else None

    @property
    def state_bytes(self) -> int:
        """What the state takes that is held in memory; 0 where there is none."""
        return self._held.size_bytes

    def give_up_state(self) -> None:
        """Lets go of the state that is held in memory."""
        self._held.give_up()

    @property
    def leaving_bytes(self) -> int:
        """What comes back as soon as the process that stood by is dead, which it was told to be; 0 where it is, or was not."""
        is_leaving = self._warm is not None and self.warmth is Warmth.NONE and not self._warm.is_gone
        return self._leaving_bytes if is_leaving else 0

    def _take_born(self) -> None:
        """Takes what the process that stands by has said, and the worker that it has forked."""
        born = self._warm.step() if self._warm is not None and not self._warm.is_gone else None
        if born is not None and self._birth is not None:
            self._child = born
            self._end_birth()

    def _see_birth(self, now_s: float) -> None:
        """Sees a birth through: where no worker came in time, what there is of it is ended, and one is started anew."""
        self._take_born()
        if self._birth is None or self._end is not None:
            return
        if self.warmth is not Warmth.BEARING or now_s > self._birth.until_s:
            if self._warm is not None and self.warmth is Warmth.BEARING:
                self._warm.why_dismissed = f"it brought no worker within {BORN_WITHIN_S:.0f} s"
            self.cool_down()
            self.fence.kill()
            if self.fence.populated() is False:
                try:
                    self._launch(self._birth)
                except OSError:
                    self.kill(now_s)

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
        if self._birth is not None:  # it may say Hello before it was seen that it is there
            self._take_born()
        return pid in self.fence.pids() if self._record.command is not None else pid == self.pid

    def dump_stacks(self) -> None:
        """Has every thread's stack written to `worker.log`: the built-in worker registers faulthandler for this signal."""
        if self._child:
            self._child.send(signal.SIGUSR1)

    def kill(self, now_s: float) -> None:
        """Begins the end of the whole tree and of what stands by; `step` sees it through."""
        self.cool_down()
        self._end_all(now_s)

    def _end_all(self, now_s: float) -> None:
        """Begins the end of the worker's own tree."""
        if self._end is None:
            self._end = TreeKill(self.fence, self._child, now_s=now_s)

    def step(self, now_s: float, *, owes_words: bool = False) -> KillState | None:
        """Takes one step of the end. Returns None while there is none to take.

        After its own exit, what the worker left behind is ended too. What a command leaves that has ended well goes on until it
        ends by itself, or `kill` comes; of one that was told to end, what is left is told so first. The worker is gone once
        that is done and its last words, where it `owes_words`, have come or had their time.
        """
        self._see_birth(now_s)
        orphans = reap_orphans() if self._birth is None else []  # a worker that dies at once is to be collected as one
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
            self._end_all(now_s)
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
        self._held.end_life()
        self._end_birth()
        self._child = self._end = None
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
        self._held.give_up()
        self.fence.remove()
        if self._deadman is not None:
            self._deadman.goodbye()

    def _command(self, option: str, fd: int) -> list[str]:
        """The command line of the worker, or of what stands by for it; `option` says what its descriptor `fd` is."""
        if self._record.command is not None:
            return self._record.command
        # -P: a `random.py` in the user's folder must not shadow the standard library's.
        return [sys.executable, "-P", "-m", "memsup.worker", "--run", self._paths.name, option, str(fd)]

    def _environment(self) -> Mapping[str, str]:
        environment = joined(self._record.command_environment, os.environ)
        environment.pop("NOTIFY_SOCKET", None)  # systemd listens to the supervisor only
        environment["PYTHONUNBUFFERED"] = "1"
        # What launches it gives it the mark as well, and is to be found by it meanwhile.
        environment[MARK] = self.fence.name
        if self._record.command is not None:
            return OWN_PROGRAM | environment | told_to_program(self._paths, self._record, environment)
        threads = str(self._record.settings.training.threads or self._cpus)
        return environment | {
            "MEMSUP_STATE_DIR": str(self._paths.state.parent),
            "MEMSUP_RUNTIME_DIR": str(self._paths.runtime.parent),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",  # forked pools beside torch's threads deadlock
            "PYTHONFAULTHANDLER": "1",
        }
