"""The status document (schema 1): what `memsup status --json` prints and `status.json` keeps. Absent readings are null.

Filled by `supervisor/record/status.py`, read by the command line; nothing is computed here.
"""

from __future__ import annotations

import enum

import msgspec

from memsup.shared.readings import KnownBatch, KnownGpu, KnownMemory, KnownProgress

SCHEMA = 1


class RunState(enum.StrEnum):
    """What a run does, as a person is told."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    COOLING = "cooling"
    RECOVERING = "recovering"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


OVER = (RunState.STOPPED, RunState.FINISHED, RunState.FAILED)
"""The states in which nothing more happens by itself."""


class Wanted(enum.StrEnum):
    """What the user asked for, kept apart from what is so."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class ProgressStatus(KnownProgress, frozen=True):
    """How far the run is, with the audit's rolling digest of the steps done so far."""

    digest: str | None = None


class MemoryStatus(KnownMemory, frozen=True):
    """Host memory with the limits that are kept and what keeps them."""

    limit_bytes: int | None = None
    """What the ladder lets the worker's tree use."""
    fence: str | None = None
    """The kind of fence: scope, cgroup2, cgroup1, rlimit or none."""
    fence_bytes: int | None = None
    fence_reason: str | None = None
    """Why no better fence is used. None where the best one is."""
    pressure: float | None = None
    """The share of the last second in which some process waited for memory (PSI `some`)."""


class TemperatureStatus(msgspec.Struct, kw_only=True):
    """A sensor of the CPU or the board."""

    name: str
    celsius: float | None = None
    limit_c: float | None = None
    """The temperature that the sensor calls critical, else the one that it calls high. None where it names neither."""


class CoolingStatus(msgspec.Struct, kw_only=True):
    """What is done to stay cool."""

    duty_fraction: float
    """The part of the time in which the worker computes."""
    power_fraction: float
    """The part of the GPU's default power limit that it may draw."""
    holding: bool
    reason: str
    forecast_s: float | None
    """Seconds until the worker may go on, while it is held; otherwise until it would have to be held. None while it does not
    get nearer to that."""


class CheckpointStatus(msgspec.Struct, kw_only=True):
    """The newest checkpoint. All fields are None while there is none."""

    path: str | None = None
    step: int | None = None
    age_s: float | None = None
    verified: bool | None = None


class ActionStatus(msgspec.Struct, kw_only=True):
    """The last decision that changed something, from the ledger."""

    at: float
    """The Unix time in seconds."""
    rung: str | None
    action: str
    reason: str
    result: str | None = None


class Status(msgspec.Struct, kw_only=True):
    """All that is so of one run at one moment."""

    schema: int = SCHEMA
    run: str
    run_id: str | None = None
    state: RunState
    wanted: Wanted
    tier: str | None = None
    pid: int | None = None
    worker_pid: int | None = None
    since: float | None = None
    """The Unix time in seconds at which the run came into `state`."""
    progress: ProgressStatus = msgspec.field(default_factory=ProgressStatus)
    batch: KnownBatch = msgspec.field(default_factory=KnownBatch)
    memory: MemoryStatus = msgspec.field(default_factory=MemoryStatus)
    gpus: list[KnownGpu] = msgspec.field(default_factory=list)
    gpu_probe: str | None = None
    """Why `gpus` is empty or stale, where it is."""
    disk_free_bytes: int | None = None
    """Free space where the run's state lies."""
    temperatures: list[TemperatureStatus] = msgspec.field(default_factory=list)
    cooling: CoolingStatus | None = None
    """What is done about heat. None while nothing has to be done."""
    checkpoint: CheckpointStatus = msgspec.field(default_factory=CheckpointStatus)
    last_action: ActionStatus | None = None
    restarts: int = 0
    worst_stall_s: float | None = None
    """The longest time by which the supervisor's own loop came too late."""
    recent_stall_s: float | None = None
    """The longest time by which it came too late in the last ten to twenty seconds."""
    attention: list[str] = msgspec.field(default_factory=list)
    """Sentences about what a person should look at; empty when all is well."""
    result: dict[str, float] | None = None
    """The metrics of a finished run, by name. None for any other run."""
    model_path: str | None = None
    failure: str | None = None
    """Why a failed run failed, in one sentence. None for any other run."""
    exit_code: int | None = None
    """The exit code of a supervised command. None for the built-in training, and while the command runs."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Status)


def encode_status(status: Status) -> bytes:
    """The document as JSON; what is not known is null."""
    return _encoder.encode(status)


def decode_status(document: bytes) -> Status:
    """Reads a document of this or an older version. Raises `msgspec.DecodeError`."""
    return _decoder.decode(document)
