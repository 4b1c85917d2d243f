"""The supervisor's end of the GPU probe: asks, waits for nothing, and replaces a probe that hangs or dies.

Covers the life of the child and what is known from it at any moment; what the answers mean is `devices.py`, what follows from
them is decided in `decide/`. For the one-threaded loop: poll `fileno()` (one descriptor for ever), call `on_readable` when
it is readable and `on_tick` when it is due. Nothing here blocks, and NVIDIA's library is never loaded here.

    RESTING ─wake→ WAITING ─spawn→ ASKED ⇄ READY       too late, garbage or dead: → LEAVING → WAITING, longer each time
       ↑             ↑──────── LEAVING ←──rest──┘       nothing to probe here: → ABSENT, for good
"""

from __future__ import annotations

import contextlib
import enum
import math
import select
import signal
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from memsup.shared.descriptors import wait_ready
from memsup.shared.log import log
from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.decide.stuck_sensor import StuckSensorWatch
from memsup.supervisor.kernel.children import Child, spawn
from memsup.supervisor.sense.gpu import frames
from memsup.supervisor.sense.gpu.devices import holders_of, reading_of, unknown
from memsup.supervisor.sense.gpu.library import LIBRARY, NO_DRIVER, may_be_found, unwatched
from memsup.supervisor.words import plural

MEMORY_EVERY_S = 0.25
"""The time between two questions about memory, and whose it is."""
STATE_EVERY_S = 1.0
"""The time between two questions about temperature, power and events."""
ANSWER_S = 2.0
FIRST_ANSWER_S, REOPENED_S = 30.0, 10.0
"""Opening the driver takes seconds for each GPU when nothing else keeps it awake; less when it has been open before."""
LEAVE_S = 5.0
"""The time a probe has to give power limits back before it is killed."""
STALE_S = 3.0
BACKOFF_S = (1.0, 2.0, 5.0, 15.0, 60.0)
FORGIVEN_AFTER_S = 300.0
"""After a probe that lived this long the backoff begins anew."""
_TICK_S = 0.05


class ProbeState(enum.Enum):
    RESTING = "resting"
    """There is no child, by request: nothing keeps the GPU awake."""
    WAITING = "waiting"
    """There is no child yet, or not again yet."""
    READY = "ready"
    ASKED = "asked"
    LEAVING = "leaving"
    """The child's link is closed or it was killed; there is no other child before it is gone."""
    ABSENT = "absent"
    """There is nothing to probe on this machine."""


class GpuClient:
    """One probe, or none. Whose memory counts as the worker's, `worker_pids`, may be set at any time."""

    def __init__(self, power_record: Path | None = None) -> None:
        """`power_record` is the file, of all runs together, that remembers lowered power limits. None means that none is ever
        lowered.
        """
        self._command = [sys.executable, "-P", "-m", "memsup.supervisor.sense.gpu.probe"]
        if power_record is not None:
            self._command.append(str(power_record.absolute()))
        self.state = ProbeState.RESTING
        self.worker_pids: Collection[int] = ()
        self.failures = 0
        """How many probes were lost in a row, none of them long-lived."""
        self.why: str | None = None
        """The clause that says why the last probe was given up, or why there is none. It is None where there is no reason."""
        self.cap_notes: Mapping[str, str] = {}
        """The reason why a wanted power limit is not in force, by UUID."""
        self._may_cap = False
        self._cap_denied = False
        self._wanted_caps: dict[str, float] = {}
        self._sent_caps: dict[str, float] = {}
        self._known: dict[int, GpuReading] = {}
        self._devices: Sequence[frames.Device] | None = None
        self._watches: dict[int, StuckSensorWatch] = {}
        self._xids: list[tuple[int, int]] = []
        self._memory_errors = 0
        self._epoll = select.epoll()
        self._child: Child | None = None
        self._link: socket.socket | None = None
        self._asked: frames.Question | None = None
        self._next_id = 1
        self._awake = False
        self._spawn_at_s = self._spawned_s = self._asked_s = self._deadline_s = 0.0
        self._next_memory_s = self._next_state_s = 0.0
        self._seen_s = -math.inf

    # -- for the loop -------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor that is readable when `on_readable` has something to do: the same for the client's whole life."""
        return self._epoll.fileno()

    def wake(self) -> None:
        """Keeps readings fresh from now on."""
        self._awake = True
        if self.state is ProbeState.RESTING:
            self.state = ProbeState.WAITING
            if not may_be_found(LIBRARY):
                self.state, self.why = ProbeState.ABSENT, NO_DRIVER

    def rest(self, now_s: float) -> None:
        """Lets the devices go: the probe gives power limits back and exits; readings become unknown."""
        self._awake = False
        if self.state in (ProbeState.READY, ProbeState.ASKED):
            self._leave(now_s, ProbeState.LEAVING)
        elif self.state is ProbeState.WAITING:
            self.state = ProbeState.RESTING

    def ask(self, now_s: float) -> None:
        """Has everything looked at as soon as the probe is free, instead of when it is due: before something irreversible."""
        self._next_state_s = now_s

    def cap(self, watts: Mapping[str, float]) -> None:
        """Sets the power limits wanted from now on (UUID → watts). A device that is not named gets back what it had."""
        self._wanted_caps = dict(watts)

    def on_tick(self, now_s: float, *, calm: bool = True) -> None:
        """Asks what is due and sees to deadlines. Without `calm` memory is short, so nothing is started (exec is slow then)."""
        if self._child is not None and self._child.exit_code() is not None:
            self._bury(now_s)
        elif self._child is not None and self._link is None and now_s >= self._deadline_s:
            self._kill(now_s)
        elif self.state is ProbeState.ASKED and now_s >= self._deadline_s:
            self._fail(now_s, f"the NVIDIA driver has not answered for {now_s - self._asked_s:.0f} s")
        elif self.state is ProbeState.WAITING and now_s >= self._spawn_at_s and calm:
            self._spawn(now_s)
        elif self.state is ProbeState.READY:
            self._ask_what_is_due(now_s)

    def due_s(self, now_s: float) -> float:
        """The time at which `on_tick` is to be called next; infinite where nothing is due before `wake`, or before `fileno`
        becomes readable.
        """
        if self.state is ProbeState.READY:
            due_s = min(self._next_memory_s, self._next_state_s)
        elif self._child is not None:
            due_s = self._deadline_s
        else:
            due_s = self._spawn_at_s if self.state is ProbeState.WAITING else math.inf
        return max(due_s, now_s + _TICK_S)

    def on_readable(self, now_s: float) -> list[GpuReading] | None:
        """Takes in an answer, or the child's death. Returns the readings, or None where there are no new ones."""
        fresh: list[GpuReading] | None = None
        for fd, _ in self._epoll.poll(0):
            if self._link is not None and fd == self._link.fileno():
                fresh = self._receive(now_s) or fresh
            elif self._child is not None and self._child.exit_code() is not None:
                self._bury(now_s)
        return fresh

    def readings(self, now_s: float) -> tuple[GpuReading, ...]:
        """The reading of every GPU seen so far, by index; what cannot be asked now is unknown but for its name and size."""
        current = now_s - self._seen_s <= STALE_S
        return tuple(gpu if current else unknown(gpu) for _, gpu in sorted(self._known.items()))

    def holders(self, now_s: float) -> Mapping[int, int | None] | None:
        """What each of the worker's processes holds on all GPUs together, in bytes; None where the driver does not tell how
        much. Returns None where it is not known now which of the driver's processes are the worker's.
        """
        is_known = self._devices is not None and now_s - self._seen_s <= STALE_S
        return holders_of(self._devices or (), self.worker_pids) if is_known else None

    @property
    def note(self) -> str | None:
        """The sentence that says why there are no readings. It is None when there are."""
        if self.state is ProbeState.ABSENT:
            return unwatched(self.why)
        if not self._awake:
            return "The GPU is left alone while nothing is computed."
        if self._seen_s > -math.inf:
            return None
        if self.why is not None:
            return (
                f"GPU readings are unknown: {self.why}. The probe was lost {plural(self.failures, 'time')} and is tried again."
            )
        return "The GPU probe is starting."

    @property
    def may_cap(self) -> bool:
        """Whether the driver takes power limits from us, as far as is known."""
        return self._may_cap and not self._cap_denied

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def take_xids(self) -> list[tuple[int, int]]:
        """The driver's errors since the last call, as (device index, Xid)."""
        taken, self._xids = self._xids, []
        return taken

    def take_memory_errors(self) -> int:
        """How many errors of GPU memory that could not be corrected there were since the last call."""
        taken, self._memory_errors = self._memory_errors, 0
        return taken

    def close(self, within_s: float = 2.0) -> None:
        """Ends everything: power limits are given back and the child is gone. Waits up to `within_s`."""
        self._awake = False
        self._hang_up()
        if self._child is not None:
            if not wait_ready([self._child.pidfd], within_s):
                self._child.send(signal.SIGKILL)
                wait_ready([self._child.pidfd], 0.5)
            self._child.exit_code()
            self._child.close()
            self._child = None
        self.state = ProbeState.RESTING
        self._epoll.close()

    # -- the child's life ---------------------------------------------------------------------------------------------

    def _spawn(self, now_s: float) -> None:
        try:
            self._child, self._link = self._started()
        except OSError as error:
            self._count_failure(now_s, f"the probe cannot be started ({error.strerror})")
            self._wait(now_s)
            return
        self._epoll.register(self._link, select.EPOLLIN)
        self._epoll.register(self._child.pidfd, select.EPOLLIN)
        self._spawned_s = self._next_state_s = now_s
        self._sent_caps = {}
        self._ask_what_is_due(now_s, REOPENED_S if self._known else FIRST_ANSWER_S)

    def _started(self) -> tuple[Child, socket.socket]:
        ours, its_own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        try:
            return spawn(self._command, folder="/", stdin=its_own.fileno()), ours
        except OSError:
            ours.close()
            raise
        finally:
            its_own.close()

    def _leave(self, now_s: float, state: ProbeState) -> None:
        """Closes the link, which is how the child is told to go; it is killed when it has not gone after `LEAVE_S`."""
        self._hang_up()
        self.state = state
        self._deadline_s = now_s + LEAVE_S

    def _fail(self, now_s: float, why: str) -> None:
        self._count_failure(now_s, why)
        self._leave(now_s, ProbeState.LEAVING)
        self._kill(now_s)

    def _kill(self, now_s: float) -> None:
        if self._child is not None:
            self._child.send(signal.SIGKILL)
        self._deadline_s = now_s + LEAVE_S

    def _bury(self, now_s: float) -> None:
        """Takes in that the child is gone."""
        assert self._child is not None
        self._receive(now_s)  # its last words
        if self.state in (ProbeState.READY, ProbeState.ASKED):
            self._count_failure(now_s, f"the NVIDIA driver crashed its probe ({_ending(self._child.exit_code())})")
        self._hang_up()
        self._epoll.unregister(self._child.pidfd)
        self._child.close()
        self._child = None
        if self.state is not ProbeState.ABSENT:
            self._wait(now_s)

    def _wait(self, now_s: float) -> None:
        self.state = ProbeState.WAITING if self._awake else ProbeState.RESTING
        self._spawn_at_s = now_s + (BACKOFF_S[min(self.failures, len(BACKOFF_S)) - 1] if self.failures else 0.0)

    def _count_failure(self, now_s: float, why: str) -> None:
        log.warning("GPU probe given up", why=why)
        self.failures = 1 if now_s - self._spawned_s >= FORGIVEN_AFTER_S else self.failures + 1
        self.why = why

    def _hang_up(self) -> None:
        """Closes the link, and forgets what is known no longer."""
        self._asked, self._seen_s = None, -math.inf
        if self._link is not None:
            self._epoll.unregister(self._link)
            self._link.close()
            self._link = None

    # -- questions and answers ----------------------------------------------------------------------------------------

    def _ask_what_is_due(self, now_s: float, within_s: float = ANSWER_S) -> None:
        if self._wanted_caps != self._sent_caps and self._seen_s > -math.inf:
            self._sent_caps = dict(self._wanted_caps)
            self._send(now_s, frames.Cap(self._next_id, self._sent_caps), within_s)
        elif now_s >= self._next_state_s:
            self._next_state_s, self._next_memory_s = now_s + STATE_EVERY_S, now_s + MEMORY_EVERY_S
            self._send(now_s, frames.Look(self._next_id, fully=True), within_s)
        elif now_s >= self._next_memory_s:
            self._next_memory_s = now_s + MEMORY_EVERY_S
            self._send(now_s, frames.Look(self._next_id, fully=False), within_s)

    def _send(self, now_s: float, question: frames.Question, within_s: float) -> None:
        self._next_id += 1
        self._asked, self._asked_s, self._deadline_s = question, now_s, now_s + within_s
        self.state = ProbeState.ASKED
        if self._link is not None:
            with contextlib.suppress(OSError):  # a dead probe shows by its pidfd, a full link by the deadline
                self._link.send(frames.encode(question))

    def _receive(self, now_s: float) -> list[GpuReading] | None:
        if self._link is None:
            return None
        try:
            packet = self._link.recv(frames.MAX_FRAME_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        if not packet:  # its exit is on the way and tells why, or else the deadline ends it
            asked = self._asked
            self._hang_up()
            self._asked = asked
            return None
        try:
            answer = frames.decode_answer(packet)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._fail(now_s, "the probe answered garbage")
            return None
        if self._asked is None or answer.ask_id != self._asked.ask_id:
            return None
        self._asked = None
        return self._take(now_s, answer)

    def _take(self, now_s: float, answer: frames.Answer) -> list[GpuReading] | None:
        self.state = ProbeState.READY
        match answer:
            case frames.Seen():
                return self._see(now_s, answer)
            case frames.Capped(refused=refused, denied=denied):
                self.cap_notes = refused
                self._cap_denied = self._cap_denied or denied
            case frames.Absent(text=text):
                self.why = text
                self._leave(now_s, ProbeState.ABSENT)
            case frames.Broken(text=text):
                self._fail(now_s, text)
        return None

    def _see(self, now_s: float, seen: frames.Seen) -> list[GpuReading]:
        self._seen_s = now_s
        self._devices = seen.devices
        self._may_cap = seen.may_cap
        if now_s - self._spawned_s >= FORGIVEN_AFTER_S:
            self.failures, self.why = 0, None
        for device in seen.devices:
            before = self._known.get(device.index)
            reading = reading_of(device, now_s, fully=seen.fully, worker_pids=self.worker_pids, before=before)
            if seen.fully:
                reading = self._doubted(now_s, reading)
                self._xids += [(device.index, xid) for xid in device.xids]
                self._memory_errors += device.memory_errors
            self._known[device.index] = reading
        return [self._known[device.index] for device in seen.devices]

    def _doubted(self, now_s: float, reading: GpuReading) -> GpuReading:
        watch = self._watches.setdefault(reading.index, StuckSensorWatch())
        if watch.trusts(now_s, reading.temperature_c, reading.power_w):
            return reading
        return replace(reading, temperature_c=None)


def _ending(code: int | None) -> str:
    if code is None:
        return "it is not known how"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
