"""What a night alone needs, joined: black box and post-mortem, history, hang watch, messages, sleep, the ledger's size.

Covers the hand-over of what the main loop knows to the modules that decide (`postmortem.py`, `hang.py`, `notify.py`) or keep
(`blackbox.py`, `history.py`, `rotation.py`, `messenger.py`, `keep_awake.py`). Decides nothing itself, and waits for nothing,
but for the logs of a bad death before the worker exists, and for the last message when it is gone.
"""

from __future__ import annotations

import select
import time
from pathlib import Path

import msgspec

from memsup.checkpoint.folders import Info
from memsup.shared.clock import asleep_s, monotonic_s, unix_s
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.shared.status import Status, Wanted
from memsup.supervisor.daemon.clock_watch import DateWatch
from memsup.supervisor.daemon.keep_awake import Inhibitor
from memsup.supervisor.decide.after_power_loss import waits
from memsup.supervisor.decide.events import Event
from memsup.supervisor.decide.ladder import Rung
from memsup.supervisor.decide.readings import GpuReading, MemoryReading, TemperatureReading
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.decide.run.hang import HangWatch
from memsup.supervisor.decide.run.lifecycle import Lifecycle, Stage
from memsup.supervisor.fence.worker import WorkerProcess
from memsup.supervisor.record.blackbox import BlackBox, Facts, Heat, Mark, heat_of, read_blackbox
from memsup.supervisor.record.history import Recorder, sample_of
from memsup.supervisor.record.output import worker_log
from memsup.supervisor.record.rotation import rotate
from memsup.supervisor.record.scribe import Scribe
from memsup.supervisor.tell.messenger import Messenger
from memsup.supervisor.tell.policy import Policy, Told
from memsup.supervisor.words import duration

ROTATE_EVERY_S = 60.0
STACKS_WITHIN_S = 5.0
"""From the signal until every thread's stack is in the worker's log; a thread stuck in the kernel writes none."""
MOST_STACK_BYTES, MOST_STACK_LINES = 4_000, 200
MOST_LOG_BYTES = 2 << 20
"""Of the supervisor's own log, which has what the ledger has not: errors, garbage, a probe that was given up."""
FAREWELL_S = 10.0
"""For the message that the run is over: below systemd, what is on its way dies with the supervisor."""


class Overnight:
    """Reads what the life before left, which may take seconds. `checkpoint` is the newest, unless known to be damaged."""

    def __init__(self, paths: RunPaths, record: RunRecord, scribe: Scribe, boot: str, checkpoint: Info | None) -> None:
        self._paths, self._scribe, self._boot = paths, scribe, boot
        self.attention: tuple[str, ...] = ()
        """What `memsup status` says of the death of the machine."""
        self.postmortem: list[str] = []
        """What the life before died of, in lines for a person; empty where it ended well."""
        self.machine_died = False
        """Before this start, and with it the life before."""
        self.waits: str | None = None
        """Why nothing is started before a person says so, and what to type."""
        self._records: list[Record] = []
        self._policy = Policy(_read_told(paths.state / "told.json"))
        self._told = b""
        self._explain(record, checkpoint)
        self._box = self._open_box()
        self._recorder = Recorder(record.created_unix_s)
        self._hang = HangWatch()
        self._dates = DateWatch()
        self._stacks: str | None = None
        self._asked_unix_s = 0.0
        self._stacks_until_s: float | None = None
        notify = record.settings.notify
        self._tells = bool(notify.urls)
        self._messenger = Messenger(notify.urls, notify.ping_url)
        self._ping_arrives: bool | None = None
        self._inhibitor = Inhibitor(record.run)
        self._why_asleep: str | None = None
        self._next_rotation_s = 0.0

    def take_records(self) -> list[Record]:
        """For the ledger, since the last call."""
        records, self._records = self._records, []
        return records

    def begin(self, now_s: float) -> None:
        """Once the scribe works, before there is a worker."""
        self._messenger.start(now_s)
        self._flush_box(now_s, Mark.START)

    def on_look(self, memory: MemoryReading) -> None:
        if self._box is not None:
            self._box.note(memory)

    def on_slow_look(
        self,
        now_s: float,
        status: Status,
        life: Lifecycle,
        rung: Rung,
        reserve_bytes: int,
        gpus: tuple[GpuReading, ...],
        temperatures: tuple[TemperatureReading, ...],
    ) -> None:
        """About once a second."""
        self._note_history(now_s, status, life.stance.duty_fraction, reserve_bytes)
        # Both clocks at this instant: `now_s` is from before what was done since, which takes seconds on a starved machine.
        if (why := self._dates.step(monotonic_s(), unix_s(), asleep_s())) is not None:
            self._records.append(Record(event=Event.CLOCK, reason=why))
        if self._box is not None:
            self._box.facts = _facts(status, life, rung, gpus, temperatures)
            self._flush_box(now_s)
        calm = rung < Rung.HOLD  # starting a process is for a calm moment
        self._keep_awake(now_s, life.wanted is Wanted.RUNNING and life.terminal is None, calm)
        if calm:
            self._messenger.start(now_s)
        self._tell(now_s, status)
        if now_s >= self._next_rotation_s:
            self._next_rotation_s = now_s + ROTATE_EVERY_S
            self._scribe.carry_out(str(self._paths.ledger), lambda: rotate(self._paths.ledger))
            log = self._paths.supervisor_log
            self._scribe.carry_out(str(log), lambda: rotate(log, MOST_LOG_BYTES, parts=1))

    def hung(self, now_s: float, life: Lifecycle, worker: WorkerProcess) -> tuple[str, str | None] | None:
        """About once a second. Why the worker is to be killed, and the stacks of its threads; None: it gets on."""
        reports = life.heartbeat if life.stage is Stage.READY and not life.is_command else None
        phase, ticks = (reports.progress.phase, reports.progress.ticks) if reports else (None, None)
        rests = life.held or life.frozen or bool(life.stance.holds) or life.wanted is Wanted.PAUSED
        overdue_s = self._hang.step(now_s, phase, ticks, rests or (phase is not None and _is_traced(worker.pid)))
        if overdue_s is None or phase is None:
            self._stacks_until_s = None
            return None
        if self._stacks_until_s is None:
            self._stacks, self._stacks_until_s = None, now_s + STACKS_WITHIN_S
            self._asked_unix_s = time.time() - 0.001  # the machine's own clock, as in the log, which has milliseconds
            worker.dump_stacks()
            return None
        if self._stacks is None and now_s < self._stacks_until_s:
            self._scribe.carry_out(str(self._paths.worker_log), self._read_stacks)
            return None
        self._stacks_until_s = None
        limit_s = self._hang.limit_s(phase)
        silent, limit = duration(overdue_s + limit_s), duration(limit_s)
        what = "not a word came from it" if life.unresponsive else "its main thread got nothing done"
        return f"{what} for {silent} ({phase}; at most {limit} was to be expected)", self._stacks

    def say_goodbye(self, now_s: float, status: Status, duty_fraction: float, reserve_bytes: int) -> None:
        """The worker is gone and the scribe still writes."""
        self._note_history(now_s, status, duty_fraction, reserve_bytes)
        if (line := self._recorder.rest()) is not None:
            self._scribe.append(self._paths.history, line)
        self._inhibitor.close()
        self._tell(now_s, status)
        until_s = now_s + FAREWELL_S
        while self._messenger.on_its_way and self._messenger.fd is not None and (left_s := until_s - monotonic_s()) > 0:
            select.select([self._messenger.fd], [], [], min(1.0, left_s))
            self._take_answers()
        self._messenger.close()

    def close(self, now_s: float, reason: str | None) -> None:
        """After the scribe has ended. `reason`: why this is a good end; None: it is none."""
        if self._box is not None and reason is not None:
            try:
                self._box.close_cleanly(now_s, unix_s(), reason)
            except OSError:  # the disk is full or gone; the next start will call it a death, which is true of the disk
                pass

    # -- black box ----------------------------------------------------------------------------------------------------

    def _explain(self, record: RunRecord, checkpoint: Info | None) -> None:
        """What the black box of the life before says, and the logs, where it did not end well."""
        history = read_blackbox(self._paths.blackbox)
        if not (history.frames or history.broken):
            return
        if history.last is not None and history.last.mark == Mark.CLEAN:
            return
        from memsup.supervisor.record.evidence import collect
        from memsup.supervisor.record.postmortem import judge, told

        evidence = collect(history, boot=self._boot, now_unix_s=unix_s(), checkpoint=checkpoint)
        verdict = judge(evidence)
        if verdict is None:
            return
        self.machine_died = verdict.machine
        self.waits = waits(record) if verdict.machine else None
        self.postmortem = told(evidence, verdict, waits=self.waits is not None)
        self._records.append(Record(event=Event.POSTMORTEM, reason=verdict.sentence, result="\n".join(self.postmortem[1:])))
        if verdict.machine:
            self.attention = (verdict.sentence, *filter(None, [self.waits]))
            self.postmortem += filter(None, [self.waits])
            self._policy.machine_died(self.postmortem, waits=self.waits is not None)

    def _open_box(self) -> BlackBox | None:
        try:
            return BlackBox(self._paths.blackbox, self._boot)
        except OSError as error:
            why = f"There is no black box ({error.strerror}), so a death of the machine could not be explained afterwards."
            self._records.append(Record(event=Event.NO_PROTECTION, reason=why))
            return None

    def _flush_box(self, now_s: float, mark: str | None = None) -> None:
        box = self._box
        if box is not None:
            at = unix_s()
            self._scribe.carry_out(str(self._paths.blackbox), lambda: box.flush(now_s, at, mark))

    # -- history, sleep, messages, stacks -----------------------------------------------------------------------------

    def _note_history(self, now_s: float, status: Status, duty_fraction: float, reserve_bytes: int) -> None:
        sample = sample_of(
            status, at=unix_s(), mono=now_s, boot=self._boot, duty_fraction=duty_fraction, reserve_bytes=reserve_bytes
        )
        if (line := self._recorder.note(sample)) is not None:
            self._scribe.append(self._paths.history, line)

    def _keep_awake(self, now_s: float, wanted: bool, calm: bool) -> None:
        if calm or not wanted or self._inhibitor.held(now_s):
            self._inhibitor.step(now_s, wanted)
        why = self._inhibitor.why_not
        if why is not None and why != self._why_asleep:  # it is tried again and again, and told once
            self._records.append(Record(event=Event.NO_PROTECTION, reason=why))
        if why is not None or self._inhibitor.held(now_s):
            self._why_asleep = why

    def _tell(self, now_s: float, status: Status) -> None:
        if self._tells:
            here = time.localtime()
            for notice in self._policy.step(unix_s(), here.tm_hour, time.strftime("%Y-%m-%d", here), status):
                self._messenger.send(notice)
            told = msgspec.json.encode(self._policy.told)
            if told != self._told:
                self._told = told
                self._scribe.replace(self._paths.state / "told.json", told)
        if self._policy.ping_due(now_s):
            self._messenger.ping()
        self._take_answers()

    def _take_answers(self) -> None:
        """Every message is a line; of pings only whether they have begun to arrive or ceased to."""
        for sent in self._messenger.answers():
            if not sent.ping:
                result = "delivered" if sent.ok else "not delivered"
            elif sent.ok is not self._ping_arrives:
                self._ping_arrives = sent.ok
                result = "pings arrive" if sent.ok else "pings do not arrive"
            else:
                continue
            self._records.append(Record(event=Event.MESSAGE, reason=sent.text, result=result))

    def _read_stacks(self) -> None:
        """The scribe's: the log's disk may be what the worker waits for. Raises OSError."""
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
    hottest = max((t for t in temperatures if t.celsius is not None), key=lambda t: t.celsius or 0.0, default=None)
    heats = [heat_of(gpu) for gpu in gpus]
    if hottest is not None:
        heats.append(Heat(index=-1, celsius=hottest.celsius, slowdown_c=hottest.high_c, shutdown_c=hottest.critical_c))
    limit_bytes = status.memory.limit_bytes
    return Facts(
        state=str(status.state),
        phase=status.progress.phase,
        worker_pid=status.worker_pid,
        step=status.progress.step,
        ticks=life.heartbeat.progress.ticks if life.heartbeat else None,
        rung=int(rung),
        limit_mib=None if limit_bytes is None else limit_bytes >> 20,
        checkpoint_step=life.checkpoint.step if life.checkpoint else None,
        checkpoint_unix_s=life.checkpoint.at_unix_s if life.checkpoint else None,
        loop_stall_s=status.worst_stall_s,
        heats=tuple(heats),
    )


def _read_told(file: Path) -> Told:
    """Nothing where it is missing or damaged: at worst something is told a second time."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Told)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Told()


def _is_traced(pid: int | None) -> bool:
    """A debugger holds it (proc_pid_status(5))."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in text.splitlines())
