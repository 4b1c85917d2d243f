"""The status document from what the supervisor knows. Pure: values in, a `Status` out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memsup.shared.commands import command
from memsup.shared.messages import Phase
from memsup.shared.printable import printable
from memsup.shared.readings import Evaluation, KnownBatch, KnownGpu, NodeReading, narrow
from memsup.shared.record import RunRecord
from memsup.shared.status import (
    ActionStatus,
    CheckpointStatus,
    CoolingStatus,
    HoursStatus,
    MemoryStatus,
    ProgramStatus,
    ProgressStatus,
    RunState,
    Status,
    TemperatureStatus,
    Trouble,
    TroubleKind,
    WaitingStatus,
)
from memsup.supervisor.decide.heat import HeatDecision
from memsup.supervisor.decide.readings import DiskReading, GpuReading, MemoryReading, TemperatureReading, limit_c
from memsup.supervisor.decide.run.attachment import Guarded, lacks, what_it_is
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.one_life import Attachment
from memsup.supervisor.decide.run.waiting import left_behind
from memsup.supervisor.words import duration, plural

SILENT_S = 30.0
"""A person is told of a machine that was not heard of for so long. Cables are pulled and put back."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Everything in the status that the lifecycle does not know. Monotonic and Unix times are in seconds."""

    now_unix_s: float
    since_unix_s: float
    pid: int
    worker_pid: int | None
    memory: MemoryReading
    disk: DiskReading
    limit_bytes: int
    fence_kind: str
    fence_bytes: int | None
    fence_reason: str
    gpus: tuple[GpuReading, ...]
    gpu_note: str | None
    temperatures: tuple[TemperatureReading, ...]
    heat: HeatDecision
    last_action: ActionStatus | None
    worst_stall_s: float
    recent_stall_s: float
    troubles: tuple[Trouble, ...]
    """What the parts of the supervisor have found by themselves: of the night before, of the devices."""
    own_errors: int
    """Errors of memsup's own, caught by the supervisor's loop."""
    supervisor_log: str
    """The log that has these errors."""
    records_lost: int
    why_lost: str | None
    """Why the last record was lost. It is None where the disk was too slow, or none was lost."""
    disk_floor_bytes: int
    """Training holds with less free disk than this."""
    undead: int
    """How many processes of the worker cannot be ended."""


def status_of(record: RunRecord, life: Lifecycle, around: Surroundings) -> Status:
    """The document; `around` is from the same moment as what `life` knows."""
    status = Status(
        run=record.run,
        run_id=record.run_id,
        state=life.state,
        wanted=life.wanted,
        is_command=life.is_command,
        waiting=_waiting(life),
        hours=_hours(life),
        program=_program(life),
        tier=record.tier,
        pid=around.pid,
        worker_pid=around.worker_pid,
        since=around.since_unix_s,
        progress=_progress(life),
        batch=_batch(record, life),
        memory=narrow(
            MemoryStatus,
            around.memory,
            limit_bytes=around.limit_bytes,
            fence=around.fence_kind,
            fence_bytes=around.fence_bytes,
            fence_reason=around.fence_reason or None,
            pressure=around.memory.pressure_fraction,
        ),
        nodes=_nodes(life),
        gpus=[narrow(KnownGpu, gpu) for gpu in around.gpus],
        gpu_probe=around.gpu_note,
        disk_free_bytes=around.disk.free_bytes,
        temperatures=[temperature_status(reading) for reading in around.temperatures],
        cooling=_cooling(around.heat),
        checkpoint=_checkpoint(life, around.now_unix_s),
        last_action=around.last_action,
        restarts=life.restarts,
        worst_stall_s=round(around.worst_stall_s, 4),
        recent_stall_s=round(around.recent_stall_s, 4),
        evaluation=_evaluation(life),
        stopped_early=life.outcome is not None and life.outcome.stopped_early,
        result=life.outcome.metrics if life.outcome else None,
        model_path=life.outcome.model_path if life.outcome else None,
        model_step=life.outcome.model_step if life.outcome else None,
        failure=life.failure,
        exit_code=life.exit_status if life.is_command and not life.worker.is_alive else None,
    )
    status.call_for(*_of_the_supervisor(around), *_of_the_worker(record.run, life))
    return status


def temperature_status(reading: TemperatureReading) -> TemperatureStatus:
    """A sensor as the document and `check` show it."""
    return TemperatureStatus(name=reading.name, celsius=reading.celsius, limit_c=limit_c(reading))


def _waiting(life: Lifecycle) -> WaitingStatus | None:
    if life.queued is None or life.waits is None:
        return None
    runs = [awaited.run for awaited in life.queued]
    times = (life.not_before.at_unix_s if life.not_before else None, life.rest.until_unix_s if life.rest else None)
    not_before = max((one for one in times if one is not None), default=None)
    return WaitingStatus(runs=runs, not_before=not_before, what_for=life.waits, no_room=life.no_room)


def _hours(life: Lifecycle) -> HoursStatus | None:
    clock, rest = life.clock, life.rest
    if clock is None:
        return None
    if rest is not None:
        kept = "; its memory is kept, since memsup cannot have it saved" if life.worker.frozen else ""
        kept = "; what it had on the GPU is in RAM, and kept" if life.worker.card.is_off else kept
        return HoursStatus(rests=True, until=rest.until_unix_s, what=f"paused {rest.until}{kept}")
    again = "goes on when you resume it" if clock.begins is None else f"goes on at {clock.begins}"
    is_of_person = clock.began_unix_s is not None and clock.began_unix_s < clock.ended_unix_s
    asked = f", as you asked, outside of its hours ({clock.hours})" if is_of_person else ""
    return HoursStatus(rests=False, until=clock.ends_unix_s, what=f"trains until {clock.ends}{asked}; {again}")


def _program(life: Lifecycle) -> ProgramStatus | None:
    if not life.is_command or not life.worker.is_alive:
        return None
    worker = life.worker
    attached, about = worker.attachment is Attachment.ATTACHED, worker.about
    not_attached = worker.not_attached if not attached else None
    return ProgramStatus(
        attached=attached,
        what=what_it_is(about, not_attached, has_ended=worker.attachment is Attachment.LET_GO, came_before=life.came_before),
        seam=about.seam if about else None,
        training=about.training if about else None,
        saves=about.saves if about else None,
        cuts=about.cuts if about else None,
        not_cut=about.not_cut if about else None,
        not_attached=not_attached.why if not_attached else None,
        detail=about.detail if about else not_attached.detail if not_attached else "",
        lacks=lacks(Guarded.ATTACHED if attached else Guarded.FENCED, about),
    )


def _place(life: Lifecycle) -> dict[str, int]:
    """The step at which a run is whose last heartbeat does not say it: of one that has finished since, and of one that was
    stopped without having saved all of its work, which is no part of it any more; be it that of the life before, where the
    last one had not come to train.
    """
    if life.outcome is not None:
        return {"step": max(life.outcome.steps, life.progress.step or 0)}
    has_told = life.heartbeat is not None
    lost = life.terminal is RunState.STOPPED and has_told and (life.unsaved or not life.worker.trains)
    return {"step": life.checkpoint.step if life.checkpoint else 0} if lost else {}


def _evaluation(life: Lifecycle) -> Evaluation | None:
    if life.outcome is not None:
        return life.outcome.evaluation
    return life.heartbeat.evaluation if life.heartbeat is not None else None


_OF_A_WORKER = ("phase", "samples_per_s", "eta_s")


def _progress(life: Lifecycle) -> ProgressStatus:
    """How far the run is. What a worker does, and how fast, is said only where there is one."""
    digest = life.heartbeat.digest if life.heartbeat else None
    of_the_life_before: dict[str, Any] = {}
    if not life.worker.is_alive:
        of_the_life_before = dict.fromkeys(_OF_A_WORKER)
    elif not life.worker.trains and life.progress.phase not in (None, Phase.STARTING, Phase.LOADING):
        of_the_life_before = dict.fromkeys(_OF_A_WORKER) | {"phase": Phase.STARTING}  # which has not said anything yet
    return narrow(ProgressStatus, life.progress, digest=digest, **_place(life), **of_the_life_before)


def _batch(record: RunRecord, life: Lifecycle) -> KnownBatch:
    if life.heartbeat is not None and life.heartbeat.batch is not None:
        return narrow(KnownBatch, life.heartbeat.batch)
    return KnownBatch(effective=None if life.is_command else record.settings.training.effective_batch)


def _nodes(life: Lifecycle) -> list[NodeReading] | None:
    """The other machines, which only a worker that lives knows of."""
    told = life.heartbeat.nodes if life.heartbeat is not None and life.worker.is_alive else None
    return None if told is None else list(told)


def _cooling(heat: HeatDecision) -> CoolingStatus | None:
    if not heat.reason:
        return None
    return CoolingStatus(
        duty_fraction=heat.duty_fraction,
        power_fraction=heat.power_fraction,
        holding=heat.hold,
        reason=heat.reason,
        forecast_s=None if heat.forecast_s is None else round(heat.forecast_s, 1),
    )


def _checkpoint(life: Lifecycle, now_unix_s: float) -> CheckpointStatus:
    status, note, newer = CheckpointStatus(), life.checkpoint, life.newer
    if note is not None:
        status.path, status.step, status.verified = note.path, note.step, note.verified
        status.age_s = max(0.0, round(now_unix_s - note.at_unix_s, 1))
    if newer is not None:
        status.memory_step, status.memory_bytes = newer.step, newer.size_bytes
    return status


def _of_the_supervisor(around: Surroundings) -> Iterator[Trouble]:
    if around.own_errors:
        text = f"memsup itself had {plural(around.own_errors, 'error')}; it goes on. Its log has them: {around.supervisor_log}"
        yield Trouble(TroubleKind.OWN_ERRORS, text)
    yield from around.troubles
    if around.records_lost:
        text = f"{plural(around.records_lost, 'record')} could not be written ({around.why_lost or 'the disk is too slow'})."
        yield Trouble(TroubleKind.RECORDS_LOST, text)
    free_bytes = around.disk.free_bytes
    if free_bytes is not None and free_bytes < around.disk_floor_bytes:
        yield Trouble(TroubleKind.DISK, f"The disk has only {free_bytes / 2**20:.0f} MiB left; make room and training goes on.")
    if around.undead:
        processes = plural(around.undead, "process", "processes")
        text = f"{processes} of the worker cannot be ended; nothing is started meanwhile."
        yield Trouble(TroubleKind.UNDEAD, text)


def _of_the_worker(run: str, life: Lifecycle) -> Iterator[Trouble]:
    if life.failure:
        yield Trouble(TroubleKind.FAILED, life.failure)
    if (why := life.leaving.sentence(life.checkpoint, run)) is not None:
        yield Trouble(TroubleKind.CANNOT_LEAVE, why)
    if (why := life.worker.card.sentence(run)) is not None:
        yield Trouble(TroubleKind.CARD_STUCK, why)
    if life.given_back is not None:
        for number, missing in enumerate(life.given_back.missing):
            yield Trouble(TroubleKind.NOT_GIVEN_BACK, missing, str(number))
    for node in _nodes(life) or ():
        if node.silent_s >= SILENT_S:
            text = f"Machine {printable(node.name)} was not heard of for {duration(node.silent_s)}, and is waited for."
            yield Trouble(TroubleKind.NODE, text, node.name)
    for number, sentence in enumerate(life.attention):
        yield Trouble(TroubleKind.CHECKPOINT, sentence, str(number))
    for awaited, fate in life.left_behind:
        yield Trouble(TroubleKind.AWAITED, left_behind(run, awaited, fate), awaited.run)
    if life.recovery.why_not_begun is not None:
        yield Trouble(TroubleKind.RESTARTS, f"{life.recovery.why_not_begun} It is tried again.", "start")
    if life.unresponsive:
        text = "The worker does not answer; it is killed and started again if that goes on."
        yield Trouble(TroubleKind.UNRESPONSIVE, text)
    if life.state is RunState.RECOVERING and (life.restarts or life.recovery.due):
        again = f"was started again {plural(life.restarts, 'time')}"
        text = f"The worker {'has died, and is to be started again' if life.recovery.due else again}"
        text += f"; see: {command('logs', run)} --events"
        yield Trouble(TroubleKind.RESTARTS, text)
