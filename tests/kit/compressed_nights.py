"""A night in half a minute: the tiny job under the real supervisor, disturbed by a seeded schedule, and what is left of it.

Used by `benchmarks/nights.py`. Every disturbance is done from outside, or by the faults that `faults/` puts into a worker,
waits until the ledger explains it, and raises `UnexplainedError` where that does not come, or training does not go on. Between
two of them, and where nothing but a wait is due, the clock of all memsup's processes runs fast (`faults/night_clock.py`), so
that a minute covers ten or more of the run's own. What is computed, loaded and written takes its time.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import psutil
import zmq

from kit.cli_process import eventually, memsup
from kit.faults.night_clock import NightClock
from kit.killed_runs import End, end_of
from kit.lone_supervisor import tiny_job
from kit.one_life import without_dropout
from memsup.checkpoint.store import Store
from memsup.checkpoint.tensors import open_tensors
from memsup.shared.endpoints import CONTROL_SOCKET, WORKER_SOCKET, SocketFolder
from memsup.shared.messages import MAX_FRAME_BYTES
from memsup.shared.paths import RunPaths, run_paths
from memsup.shared.status import RunState, Status, Wanted
from memsup.supervisor.client.contact import is_held, observe
from memsup.supervisor.decide.events import By, Event, OrderKind
from memsup.supervisor.decide.ladder import HoldReason
from memsup.supervisor.decide.run.restarts import Cause
from memsup.supervisor.drill.scenes import COOL_C, HOT_C, WARM_C, is_done
from memsup.supervisor.record.ledger import Entry, read_entry

T = TypeVar("T")

MIB = 1 << 20
LIMIT_BYTES = 1024 * MIB
MORE = f"""\
learning_rate = 1e-3
threads = 1
[limits]
ram = "{LIMIT_BYTES // MIB}MiB"
[checkpoint]
every = "3s"
"""
FAST = 30.0
"""So many of the night's seconds pass in one while nothing happens."""
QUIET_S = (30.0, 90.0)
"""The night's seconds between two disturbances are at least and at most so many."""
AT_ONCE, SLOWLY, RUNAWAY = 4096 * MIB, 60 * MIB, 300 * MIB
"""The bytes that are taken in a second."""
LOADS_WITHIN_S = 120.0
TOLERANCE = 1e-3


class UnexplainedError(Exception):
    """The ledger does not have what it should, or training does not go on."""


class Sensor:
    """Keeps a simulated sensor's file moving, as a real one moves: one that stands still is not believed."""

    def __init__(self, file: Path) -> None:
        self.celsius = COOL_C
        self._file, self._over = file, threading.Event()
        self._thread = threading.Thread(target=self._flicker)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _flicker(self) -> None:
        tenths = 0
        while not self._over.wait(0.05):
            tenths = (tenths + 3) % 10
            self._file.write_text(f"{self.celsius}{tenths}00\n", encoding="ascii")


@dataclass
class Night:
    """A night is one run. `small_disk` is a file system of its own that the run's state lies on, `sensor` a simulated one.

    None means that nothing may be mounted here.
    """

    name: str
    job: Path
    faults: Path
    clock: NightClock
    draw: random.Random
    small_disk: Path | None
    sensor: Sensor | None
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def paths(self) -> RunPaths:
        return run_paths(self.name)

    # -- looking ------------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        status = observe(self.paths).status
        if status is None:
            raise UnexplainedError("There is no status.")
        return status

    def ledger(self) -> list[Entry]:
        """The whole ledger. Raises `msgspec.DecodeError` where a line is torn: none may be, whatever happens to the disk."""
        lines = self.paths.ledger.read_bytes().split(b"\n")[:-1] if self.paths.ledger.exists() else []
        return [read_entry(line) for line in lines]

    def until(self, what: str, found: Callable[[], T | None], within_s: float = 30.0) -> T:
        deadline_s = time.monotonic() + within_s
        while (thing := found()) is None:
            if time.monotonic() > deadline_s:
                told = "\n".join(f"  {e.mono:.1f} {e.event}: {e.reason} | {e.action} | {e.result}" for e in self.ledger()[-12:])
                raise UnexplainedError(f"not within {within_s:.0f} s: {what}; {self.status().state} now; the ledger:\n{told}")
            time.sleep(0.02)
        return thing

    def until_state(self, state: RunState, within_s: float = 30.0) -> Status:
        return self.until(f"{state}", lambda: seen if (seen := self.status()).state is state else None, within_s)

    def told(self, after: int, what: str, fits: Callable[[Entry], bool], within_s: float = 30.0) -> Entry:
        """The first line of the ledger from number `after` on that fits."""
        return self.until(what, lambda: next((entry for entry in self.ledger()[after:] if fits(entry)), None), within_s)

    def trains(self) -> Status:
        """Waits until it trains, or has finished."""

        def look() -> Status | None:
            seen = self.status()
            over = seen.state in (RunState.FINISHED, RunState.FAILED)
            return seen if over or (seen.state is RunState.RUNNING and seen.progress.phase == "training") else None

        seen = self.until("training", look, LOADS_WITHIN_S)
        if seen.state is RunState.FAILED:
            raise UnexplainedError(f"The run failed: {seen.failure}")
        return seen

    def ends(self) -> None:
        """Waits for its end, however slow the machine is, as long as steps get done."""
        step = -1
        while self.status().state is not RunState.FINISHED:
            step = self.until("a further step or the end", partial(self._step_beyond, step), 60)

    def _step_beyond(self, done: int) -> int | None:
        seen = self.status()
        step = seen.progress.step or 0
        return step if step > done or seen.state is RunState.FINISHED else None

    # -- doing --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        done = memsup("start", "--run", self.name, cwd=self.job)
        if done.returncode != 0:
            raise UnexplainedError(f"It does not start: {done.stdout}{done.stderr}")

    def pass_fast(self, seconds: float) -> None:
        """Lets so much of the night go by."""
        with self.clock.fast(FAST):
            time.sleep(seconds / FAST)

    def kill(self, pid: int | None, number: int = signal.SIGKILL) -> None:
        if pid is None:
            raise UnexplainedError("There is no process to send a signal to.")
        os.kill(pid, number)

    def until_no_supervisor(self) -> None:
        eventually(lambda: not is_held(self.paths), 60)

    def fault(self, name: str) -> None:
        (self.faults / name).touch()

    def hold_bytes(self, held_bytes: float, bytes_per_s: int) -> None:
        beside = self.faults / "balloon.new"
        beside.write_text(f"{held_bytes:.0f} {bytes_per_s}", encoding="ascii")
        beside.rename(self.faults / "balloon")

    def heat(self, celsius: int) -> None:
        assert self.sensor is not None
        self.sensor.celsius = celsius


# --------------------------------------------------------------------------------------------------------------------
# The disturbances. Each is given the ledger's length before it.


def leak(night: Night, before: int) -> None:
    """Something beside the training fills its memory slowly, and gives it back when it has been answered."""
    at_rest = night.trains().memory.worker_bytes or 0
    night.hold_bytes(0.86 * LIMIT_BYTES - at_rest, AT_ONCE)
    night.until("memory is short", lambda: (night.status().memory.worker_bytes or 0) > 0.84 * LIMIT_BYTES or None)
    night.hold_bytes(0.92 * LIMIT_BYTES - at_rest, SLOWLY)
    night.told(before, "an order to halve the micro-batch", lambda entry: is_done(entry, OrderKind.HALVE))
    night.hold_bytes(0, AT_ONCE)
    with night.clock.fast(FAST):
        night.told(before, "the order that it may grow", lambda entry: is_done(entry, OrderKind.GROW))


def runaway(night: Night, before: int) -> None:
    night.hold_bytes(4 * LIMIT_BYTES, RUNAWAY)
    night.told(before, "a death for memory", lambda entry: is_death(entry, Cause.MEMORY))
    night.told(before, "that it begins smaller", lambda entry: entry.event is Event.SMALLER)


def hang(night: Night, before: int) -> None:
    night.pass_fast(30.0)  # how long a step takes has to be known first
    night.fault("hang")
    with night.clock.fast(FAST):
        told = night.told(before, "a hang", lambda entry: entry.event is Event.HANG)
    night.told(before, "a death by hanging", lambda entry: is_death(entry, Cause.HANG))
    if not told.result:
        raise UnexplainedError("The stacks of a hang are not in the ledger.")


def worker_stopped(night: Night, before: int) -> None:
    """The worker stands still, and not even its link answers any more."""
    night.kill(night.trains().worker_pid, signal.SIGSTOP)
    with night.clock.fast(FAST):
        killed = night.told(before, "the end of a worker that says nothing", lambda e: is_kill(e, *SILENCE))
    night.told(before, "its death", lambda entry: entry.cause is killed.cause and is_death(entry, *SILENCE))


def worker_killed(night: Night, before: int) -> None:
    night.kill(night.trains().worker_pid)
    night.told(before, "a death by SIGKILL", lambda e: is_death(e, Cause.KILLED) and e.exit_status == -signal.SIGKILL)


def supervisor_killed(night: Night, before: int) -> None:
    night.kill(night.trains().pid)
    night.until_no_supervisor()
    night.start()
    night.told(before, "a post-mortem", is_postmortem)


def both_killed(night: Night, before: int) -> None:
    seen = night.trains()
    for pid in night.draw.sample([seen.pid, seen.worker_pid], 2):
        night.kill(pid)
    night.until_no_supervisor()
    night.start()
    night.told(before, "a post-mortem", is_postmortem)


def supervisor_stopped(night: Night, before: int) -> None:
    """The supervisor stands still for longer than the worker's lease, then goes on."""
    seen = night.trains()
    night.kill(seen.pid, signal.SIGSTOP)
    with night.clock.fast(FAST):
        night.until("the worker leaving", lambda: None if _lives(seen.worker_pid) else True)
    night.kill(seen.pid, signal.SIGCONT)
    night.told(before, "why the worker left", lambda e: e.event is Event.LEFT or is_death(e, Cause.KILLED))


def told_to_go(night: Night, before: int) -> None:
    """The supervisor is told to go as at a shutdown of the machine."""
    night.kill(night.trains().pid, signal.SIGTERM)
    night.until_no_supervisor()
    night.told(before, "an order to stop", lambda entry: is_done(entry, OrderKind.STOP) and entry.by is By.SYSTEM)
    night.told(before, "the end", lambda entry: entry.event is Event.END)
    night.start()


def paused(night: Night, before: int) -> None:
    for arguments in (night.draw.choice([["pause"], ["pause", "--release"]]), ["resume"]):
        done = memsup(*arguments, "--run", night.name)
        if done.returncode != 0:
            raise UnexplainedError(f"{arguments}: {done.stdout}{done.stderr}")
        wish = Wanted.RUNNING if arguments == ["resume"] else Wanted.PAUSED
        night.told(before, f"that it was to be {wish}", partial(is_wish, wanted=wish))
        if wish is Wanted.PAUSED:
            night.pass_fast(60.0)


def crash(night: Night, before: int) -> None:
    night.fault("crash")
    died = night.told(before, "a crash", lambda entry: is_death(entry, Cause.CRASH))
    if died.exit_status != 1 or not died.result:
        raise UnexplainedError(f"A crash in a step is told so: {died.reason} / {died.result}")


def not_finite(night: Night, before: int) -> None:
    """The loss is no number. The run is not tried again by itself; somebody starts it."""
    night.fault("nan")
    night.until_state(RunState.FAILED)
    died = night.told(before, "the loss that is not a number", lambda entry: is_death(entry, Cause.NOT_FINITE))
    if died.again is not False:
        raise UnexplainedError(f"A loss that is not a number is given up: {died.reason} / {died.action}")
    night.until_no_supervisor()
    night.start()


def disk_full(night: Night, before: int) -> None:
    """The disk is filled to the last byte, so that records have to wait as well."""
    assert night.small_disk is not None
    ballast = night.small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass
    night.until_state(RunState.RECOVERING)
    time.sleep(night.draw.uniform(0.2, 2.0))
    ballast.unlink()
    with night.clock.fast(FAST):
        night.told(before, "what the disk had done", lambda entry: HoldReason.DISK in entry.pressures)
        night.until("training", lambda: night.status().state is RunState.RUNNING or None, 60)


def garbage(night: Night, before: int) -> None:
    folder, context = SocketFolder(night.paths), zmq.Context()
    try:
        for name in (WORKER_SOCKET, CONTROL_SOCKET):
            socket = context.socket(zmq.DEALER)
            socket.linger = 1000
            socket.connect(folder.endpoint(name))
            for _ in range(night.draw.randint(5, 200)):
                frames = [night.draw.randbytes(night.draw.choice([0, 1, 2, 40, 4000])) for _ in range(night.draw.randint(1, 4))]
                socket.send_multipart(frames)
            socket.send_multipart([b"", bytes(MAX_FRAME_BYTES + 1)])  # ends the connection
            socket.close()
        night.told(before, "garbage on the sockets", lambda entry: entry.event is Event.GARBAGE)
    finally:
        context.term()
        folder.close()


def heat(night: Night, before: int) -> None:
    night.heat(WARM_C)
    with night.clock.fast(FAST / 3):
        night.told(before, "gaps between micro-batches", lambda entry: is_done(entry, OrderKind.PACE))
        night.heat(HOT_C)
        night.until_state(RunState.COOLING)
        night.told(before, "holding", lambda entry: is_done(entry, OrderKind.HOLD))
        night.heat(COOL_C)
    with night.clock.fast(FAST):
        night.told(before, "going on", lambda entry: is_done(entry, OrderKind.RESUME))
        night.until("running", lambda: night.status().state is RunState.RUNNING or None)


def clock_set(night: Night, before: int) -> None:
    """The date is set far ahead or back, as by a wrong battery or a first contact with a time server."""
    night.clock.jump(night.draw.choice([-1, 1]) * night.draw.uniform(600, 86400))
    night.told(before, "that the clock was set", lambda entry: entry.event is Event.CLOCK)


def _lives(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_wish(entry: Entry, wanted: Wanted) -> bool:
    """Whether the entry says that a person wants this of the run."""
    return entry.event is Event.WANTED and entry.wanted is wanted and entry.by is By.USER


SILENCE = (Cause.UNRESPONSIVE, Cause.HANG)
"""What ends a worker that says nothing: its silence, or the hang watch, which waits less where the phase was always short."""


def is_kill(entry: Entry, *causes: Cause) -> bool:
    return entry.event is Event.KILL and entry.cause in causes


def is_death(entry: Entry, *causes: Cause) -> bool:
    return entry.event is Event.DEATH and entry.cause in causes


def is_postmortem(entry: Entry) -> bool:
    """Whether the entry says that the supervisor died, and the machine did not."""
    return entry.event is Event.POSTMORTEM and entry.machine_died is False


Disturbance = Callable[[Night, int], None]
DISTURBANCES: tuple[Disturbance, ...] = (
    leak,
    runaway,
    hang,
    worker_stopped,
    worker_killed,
    supervisor_killed,
    both_killed,
    supervisor_stopped,
    told_to_go,
    paused,
    crash,
    not_finite,
    disk_full,
    garbage,
    heat,
    clock_set,
)
NEED_A_MOUNT = (disk_full, heat)
EACH_NIGHT = 6


def schedule(seed: int) -> list[Disturbance]:
    """What happens in the night of this seed: cards dealt from decks that are shuffled, so that all come equally often."""
    deck, offset = divmod(seed * EACH_NIGHT, len(DISTURBANCES))
    cards = [card for number in (deck, deck + 1) for card in random.Random(number).sample(DISTURBANCES, len(DISTURBANCES))]
    return cards[offset : offset + EACH_NIGHT]


# --------------------------------------------------------------------------------------------------------------------
# A night, and its end


class Outcome(msgspec.Struct, kw_only=True):
    """An outcome is one line of the results."""

    seed: int
    disturbances: list[str]
    """The disturbances that happened: a run that ends early has fewer."""
    took_s: float = 0.0
    covered_s: float = 0.0
    """The seconds that passed on the run's own clock."""
    cuts_changed: int = 0
    """How often steps were cut otherwise than before, because of memory."""
    difference: float = 0.0
    """The largest difference of a weight from the undisturbed run's; 0.0 means that every bit is the same."""
    problem: str | None = None


EPOCHS_EACH = 25
"""The epochs that a run needs for each disturbance, so that a fast machine is not done before the last one."""
EPOCHS_AFTER = 5


def make_job(folder: Path, disturbances: int) -> None:
    """Writes a job for a run with so many disturbances: without dropout and in full precision, where other cuts change results
    by rounding alone.
    """
    without_dropout(tiny_job(folder, epochs=EPOCHS_EACH * disturbances + EPOCHS_AFTER, more=MORE))


def spend(night: Night, seed: int, left_alone: tuple[RunPaths, End], disturbances: list[Disturbance]) -> Outcome:
    """Spends the whole night. Raises `UnexplainedError`, and whatever else should not be."""
    outcome = Outcome(seed=seed, disturbances=[])
    night.start()
    for disturb in disturbances:
        night.trains()
        night.pass_fast(night.draw.uniform(*QUIET_S))
        if night.trains().state is RunState.FINISHED:
            break
        disturb(night, len(night.ledger()))
        outcome.disturbances.append(disturb.__name__)
    night.trains()
    with night.clock.fast(FAST):
        night.ends()
    night.until_no_supervisor()
    entries = night.ledger()
    outcome.took_s, outcome.covered_s = time.monotonic() - night.begun_s, entries[-1].mono - entries[0].mono
    compare(night.paths, outcome, *left_alone)
    return outcome


def compare(paths: RunPaths, outcome: Outcome, left_alone_paths: RunPaths, left_alone: End) -> None:
    """Compares the ends of the two runs. Raises `UnexplainedError` where this one's is not as it should be."""
    end = end_of(paths)
    outcome.cuts_changed = len(paths.plan.read_text().splitlines()) - 1
    if (end.step, end.digest.split(".")[0]) != (left_alone.step, left_alone.digest.split(".")[0]):
        raise UnexplainedError(f"Other samples, loss weights or rates: {end}; left alone: {left_alone}.")
    if end == left_alone:
        return
    ours, theirs = weights_of(paths), weights_of(left_alone_paths)
    outcome.difference = max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours.keys() | theirs.keys())
    if not outcome.cuts_changed:
        raise UnexplainedError(f"No cut was changed, and the bits are others (by up to {outcome.difference:.1e}).")
    if not outcome.difference <= TOLERANCE:
        raise UnexplainedError(f"The cuts were changed, and weights differ by up to {outcome.difference:.1e}.")


def weights_of(paths: RunPaths) -> dict[str, np.ndarray]:
    info, _ = Store(paths.checkpoints).newest_valid()
    assert info is not None
    return {t.name: np.frombuffer(b"".join(map(bytes, t.chunks())), np.float32) for t in open_tensors(info.path, "model")}
