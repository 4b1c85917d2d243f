"""The status document from what the supervisor knows. Pure: values in, a `Status` out."""

from __future__ import annotations

from dataclasses import dataclass

from memsup.shared.readings import KnownBatch, KnownGpu, narrow
from memsup.shared.record import RunRecord
from memsup.shared.status import (
    ActionStatus,
    CheckpointStatus,
    CoolingStatus,
    MemoryStatus,
    ProgressStatus,
    RunState,
    Status,
    TemperatureStatus,
)
from memsup.supervisor.decide.heat import HeatDecision
from memsup.supervisor.decide.readings import DiskReading, GpuReading, MemoryReading, TemperatureReading, limit_c
from memsup.supervisor.decide.run.lifecycle import Lifecycle


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
    attention: tuple[str, ...]


def status_of(record: RunRecord, life: Lifecycle, around: Surroundings) -> Status:
    """The document; `around` is from the same moment as what `life` knows."""
    beat = life.heartbeat
    return Status(
        run=record.run,
        run_id=record.run_id,
        state=life.state,
        wanted=life.wanted,
        tier=record.tier,
        pid=around.pid,
        worker_pid=around.worker_pid,
        since=around.since_unix_s,
        progress=narrow(ProgressStatus, beat.progress, digest=beat.digest) if beat else ProgressStatus(),
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
        attention=_attention(life, around),
        result=life.outcome.metrics if life.outcome else None,
        model_path=life.outcome.model_path if life.outcome else None,
        failure=life.failure,
        exit_code=life.exit_status if life.is_command else None,
    )


def temperature_status(reading: TemperatureReading) -> TemperatureStatus:
    """A sensor as the document and `check` show it."""
    return TemperatureStatus(name=reading.name, celsius=reading.celsius, limit_c=limit_c(reading))


def _batch(record: RunRecord, life: Lifecycle) -> KnownBatch:
    if life.heartbeat is not None and life.heartbeat.batch is not None:
        return narrow(KnownBatch, life.heartbeat.batch)
    return KnownBatch(effective=None if life.is_command else record.settings.training.effective_batch)


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
    if life.checkpoint is None:
        return CheckpointStatus()
    note = life.checkpoint
    age_s = max(0.0, round(now_unix_s - note.at_unix_s, 1))
    return CheckpointStatus(path=note.path, step=note.step, age_s=age_s, verified=note.verified)


def _attention(life: Lifecycle, around: Surroundings) -> list[str]:
    sentences = list(around.attention)
    if life.failure:
        sentences.append(life.failure)
    if (why := life.leaving.sentence(life.checkpoint)) is not None:
        sentences.append(why)
    if life.given_back is not None:
        sentences += life.given_back.missing
    if life.unresponsive:
        sentences.append("The worker does not answer; it is killed and started again if that goes on.")
    if life.state is RunState.RECOVERING and life.restarts:
        sentences.append(f"The worker was started again {life.restarts} times; see: memsup logs --events")
    return sentences
