"""What a run needs while nobody watches it, joined: each part has its turn once a second, and gives what it has for the ledger.

The parts: what the life before died of (`explain`), the black box, the history, the watch for hangs (`HangGuard`), messages
(`tell/notices.py`), the lock that keeps the machine awake, the watch on the clock, and the ledger's size. Nothing of what
follows is decided here. Nothing waits, but for the logs of a bad death before the worker exists, and for the last message when
it is gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memsup.checkpoint.info import Info
from memsup.shared.clock import monotonic_s, unix_s
from memsup.shared.paths import RunPaths
from memsup.shared.readings import hottest
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import Status, Trouble, TroubleKind, Wanted
from memsup.sleep import asleep_s
from memsup.supervisor.daemon.clock_watch import ClockWatch
from memsup.supervisor.daemon.keep_awake import KeepAwake
from memsup.supervisor.decide.after_power_loss import waits
from memsup.supervisor.decide.claims import taken
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.guard import Guard
from memsup.supervisor.decide.ladder import Rung
from memsup.supervisor.decide.readings import GpuReading, MemoryReading, TemperatureReading
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.decide.run.hang import HangControl
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.tiers import Limits
from memsup.supervisor.devices import Devices
from memsup.supervisor.fence.worker import WorkerProcess
from memsup.supervisor.record.blackbox import BlackBox, Facts, Mark, heat_of, heat_of_sensor, read_blackbox
from memsup.supervisor.record.history import Recorder, sample_of
from memsup.supervisor.record.output import worker_log
from memsup.supervisor.record.rotation import rotate
from memsup.supervisor.record.scribe import Scribe
from memsup.supervisor.tell.notices import Notices
from memsup.supervisor.words import size

ROTATE_EVERY_S = 60.0
MOST_STACK_BYTES, MOST_STACK_LINES = 4_000, 200
MOST_LOG_BYTES = 2 << 20
"""The supervisor's own log is cut at this length. It has what the ledger has not: errors, garbage, a lost probe."""


@dataclass(frozen=True, kw_only=True)
class EarlierDeath:
    """How the life of the supervisor before this one ended, where it did not end well."""

    sentence: str
    """The most likely cause."""
    lines: tuple[str, ...]
    """The whole post-mortem for a person; its first line is `sentence`."""
    machine_died: bool
    waits: str | None
    """The sentence that says why nothing is started before a person says so, and what to type. It is None where the run goes
    on."""

    @property
    def record(self) -> Record:
        told = self.lines[1:] if self.waits is None else self.lines[1:-1]
        return Record(
            event=Event.POSTMORTEM,
            reason=self.sentence,
            result="\n".join(told),
            by=By.SUPERVISOR,
            machine_died=self.machine_died,
        )

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What `status` says of this death. Where the supervisor alone died, nobody is needed."""
        if not self.machine_died:
            return ()
        waits = [] if self.waits is None else [Trouble(TroubleKind.WAITS, self.waits)]
        return (Trouble(TroubleKind.MACHINE_DIED, self.sentence), *waits)


def explain(paths: RunPaths, record: RunRecord, boot: str, checkpoint: Info | None) -> EarlierDeath | None:
    """What the black box of the life before says, and the logs. Returns None where it ended well, or there was none.

    Reading the logs may take seconds. `checkpoint` is the newest one, unless it is known to be damaged.
    """
    recording = read_blackbox(paths.blackbox)
    if not (recording.frames or recording.broken):
        return None
    if recording.last is not None and recording.last.mark == Mark.CLEAN:
        return None
    from memsup.supervisor.record.evidence import collect
    from memsup.supervisor.record.postmortem import judge, told

    evidence = collect(recording, boot=boot, now_unix_s=unix_s(), checkpoint=checkpoint)
    verdict = judge(evidence)
    if verdict is None:
        return None
    why = waits(record) if verdict.machine else None
    is_paused = record.wanted is Wanted.PAUSED
    lines = told(evidence, verdict, waits=why is not None, is_command=record.command is not None, is_paused=is_paused)
    return EarlierDeath(
        sentence=verdict.sentence,
        lines=(*lines, *filter(None, [why])),
        machine_died=verdict.machine,
        waits=why,
    )


class Night:
    def __init__(
        self, paths: RunPaths, record: RunRecord, scribe: Scribe, boot: str, death: EarlierDeath | None, limits: Limits
    ) -> None:
        """`death` is that of the life before. It is None where that ended well, or there was none."""
        self._paths, self._scribe, self._boot, self.limits = paths, scribe, boot, limits
        self.death = death
        self.hangs = HangGuard(paths, scribe)
        self._box: BlackBox | None = None
        self._history = Recorder(record.created_unix_s)
        self._notices = Notices(paths.state / "told.json", record.settings.notify, scribe)
        self._awake = KeepAwake(record.run)
        self._clock = ClockWatch()
        self._rotate_s = 0.0
        if death is not None and death.machine_died:
            self._notices.policy.machine_died(death.lines, waits=death.waits is not None)

    def begin(self, now_s: float) -> Iterator[Record]:
        """Begins the parts that write or send; to be called once the scribe works, and before there is a worker."""
        self._notices.start(now_s)
        if self.death is not None:
            yield self.death.record
        yield from self.shared()
        try:
            self._box = BlackBox(self._paths.blackbox, self._boot)
        except OSError as error:
            why = f"There is no black box ({error.strerror}), so a death of the machine could not be explained afterwards."
            yield Record(event=Event.NO_PROTECTION, reason=why, by=By.SUPERVISOR)
        self._flush_box(now_s, Mark.START)

    def shared(self) -> Iterator[Record]:
        """What is to be recorded where other runs live: what they may take, and what this one may beside them."""
        if others := self.limits.beside.others:
            may = f"this one may take {size(self.limits.worker_limit_bytes)} ({self.limits.worker_limit_origin})"
            yield Record(event=Event.SHARED, reason=f"{taken(others)}; {may}", by=By.SUPERVISOR)

    def take_over(self, now_s: float, settings: Settings, limits: Limits) -> Iterator[Record]:
        """Other addresses and limits count from now on. Returns what is to be recorded of messages that were on their way."""
        self.limits = limits
        yield from self._notices.take_over(now_s, settings.notify)

    def on_look(self, memory: MemoryReading) -> None:
        if self._box is not None:
            self._box.note(memory)

    def on_slow_look(self, now_s: float, status: Status, life: Lifecycle, guard: Guard, devices: Devices) -> Iterator[Record]:
        """Gives each part its turn; to be called about once a second."""
        self._note_history(now_s, status, life.stance.duty_fraction)
        # Both clocks at this instant: `now_s` is from before what was done since, which takes seconds on a starved machine.
        if (why := self._clock.step(monotonic_s(), unix_s(), asleep_s())) is not None:
            yield Record(event=Event.CLOCK, reason=why, by=By.SUPERVISOR)
        if self._box is not None:
            self._box.facts = _facts(status, life, guard.ladder.rung, devices.gpus, devices.temperatures)
            self._flush_box(now_s)
        wants_to_run = life.wanted is Wanted.RUNNING and life.rest is None and life.terminal is None
        yield from self._stay_awake(now_s, wants_to_run, calm=guard.is_calm)
        if guard.is_calm:  # starting a process is for a calm moment
            self._notices.start(now_s)
        yield from self._notices.step(now_s, status)
        if now_s >= self._rotate_s:
            self._rotate_s = now_s + ROTATE_EVERY_S
            self._scribe.carry_out(str(self._paths.ledger), lambda: rotate(self._paths.ledger))
            log = self._paths.supervisor_log
            self._scribe.carry_out(str(log), lambda: rotate(log, MOST_LOG_BYTES, parts=1))

    def say_goodbye(self, now_s: float, status: Status, duty_fraction: float) -> Iterator[Record]:
        """Waits for the last message; to be called when the worker is gone, and while the scribe still writes."""
        self._note_history(now_s, status, duty_fraction)
        if (line := self._history.rest()) is not None:
            self._scribe.append(self._paths.history, line)
        self._awake.close()
        yield from self._notices.say_goodbye(now_s, status)

    def close(self, now_s: float, reason: str | None) -> None:
        """Closes the black box; to be called when the scribe has ended. `reason` says why this is a good end. It is None where
        the end is not a good one.
        """
        if self._box is not None and reason is not None:
            try:
                self._box.close_cleanly(now_s, unix_s(), reason)
            except OSError:  # the disk is full or gone; the next start will call it a death, which is true of the disk
                pass

    def _flush_box(self, now_s: float, mark: str | None = None) -> None:
        box = self._box
        if box is not None:
            at = unix_s()
            self._scribe.carry_out(str(self._paths.blackbox), lambda: box.flush(now_s, at, mark))

    def _note_history(self, now_s: float, status: Status, duty_fraction: float) -> None:
        sample = sample_of(
            status,
            at=unix_s(),
            mono=now_s,
            boot=self._boot,
            duty_fraction=duty_fraction,
            reserve_bytes=self.limits.reserve_bytes,
        )
        if (line := self._history.note(sample)) is not None:
            self._scribe.append(self._paths.history, line)

    def _stay_awake(self, now_s: float, wanted: bool, *, calm: bool) -> Iterator[Record]:
        if calm or not wanted or self._awake.held(now_s):
            self._awake.step(now_s, wanted)
        if (why := self._awake.news(now_s)) is not None:
            yield Record(event=Event.NO_PROTECTION, reason=why, by=By.SUPERVISOR)


class HangGuard:
    """Fetches the stacks of a worker that hangs, when the control says so (`decide/run/hang.py`)."""

    def __init__(self, paths: RunPaths, scribe: Scribe) -> None:
        self._paths, self._scribe = paths, scribe
        self._control = HangControl()
        self._stacks: str | None = None
        self._asked_unix_s = 0.0

    def step(self, now_s: float, life: Lifecycle, worker: WorkerProcess) -> tuple[str, str | None] | None:
        """Why the worker is to be killed, and the stacks of its threads, where they could be had. Returns None while it is not
        to be killed.

        To be called about once a second.
        """
        decision = self._control.step(now_s, life, traced=_is_traced(worker.pid), has_stacks=self._stacks is not None)
        if decision.ask_for_stacks:
            self._stacks = None
            self._asked_unix_s = time.time() - 0.001  # the machine's own clock, as in the log, which has milliseconds
            worker.dump_stacks()
        if decision.look_for_stacks:
            self._scribe.carry_out(str(self._paths.worker_log), self._read_stacks)
        return None if decision.kill_because is None else (decision.kill_because, self._stacks)

    def _read_stacks(self) -> None:
        """Looks for the stacks in the worker's log. It is the scribe that does so, since the worker may be waiting for the
        log's disk. Raises OSError.
        """
        lines = worker_log(self._paths).last(MOST_STACK_LINES)
        text = "\n".join(line.text for line in lines if line.at_unix_s is not None and line.at_unix_s >= self._asked_unix_s)
        if "(most recent call first)" in text:
            self._stacks = text[-MOST_STACK_BYTES:].strip()


def _facts(
    status: Status,
    life: Lifecycle,
    rung: Rung,
    gpus: tuple[GpuReading, ...],
    temperatures: tuple[TemperatureReading, ...],
) -> Facts:
    heats = [heat_of(gpu) for gpu in gpus]
    if (sensor := hottest(temperatures)) is not None:
        heats.append(heat_of_sensor(sensor))
    limit_bytes = status.memory.limit_bytes
    return Facts(
        state=str(status.state),
        phase=status.progress.phase,
        worker_pid=status.worker_pid,
        step=status.progress.step,
        ticks=life.heartbeat.progress.ticks if life.heartbeat else None,
        rung=int(rung),
        limit_mib=None if limit_bytes is None else limit_bytes >> 20,
        disk_free_mib=None if status.disk_free_bytes is None else status.disk_free_bytes >> 20,
        checkpoint_step=life.checkpoint.step if life.checkpoint else None,
        checkpoint_unix_s=life.checkpoint.at_unix_s if life.checkpoint else None,
        loop_stall_s=status.worst_stall_s,
        heats=tuple(heats),
    )


def _is_traced(pid: int | None) -> bool:
    """Whether a debugger holds the process (proc_pid_status(5))."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in text.splitlines())
