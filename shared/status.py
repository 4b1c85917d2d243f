"""The status document (schema 1): what `memsup status --json` prints and `status.json` keeps. Absent readings are null.

Filled by `supervisor/record/status.py`, read by the command line; nothing is computed here.
"""

from __future__ import annotations

import enum

import msgspec

SCHEMA = 1


class RunState(enum.StrEnum):
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
"""In these states nothing more happens by itself."""

_UNDER_WAY = frozenset(RunState) - {RunState.STOPPING, *OVER}
STATE_MOVES = {
    **{state: frozenset(RunState) - {state} for state in _UNDER_WAY},
    RunState.STOPPING: frozenset(OVER),
    **{state: frozenset[RunState]() for state in OVER},
}
"""The states that may follow each state: whatever is under way may become anything, but a stop is not taken back."""


class Wanted(enum.StrEnum):
    """What the user asked for; kept apart from what is."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class TroubleKind(enum.StrEnum):
    """What a sentence of `attention` is about, for programs."""

    OWN_ERRORS = "own_errors"
    """Errors of memsup's own, caught by the supervisor's loop."""
    MACHINE_DIED = "machine_died"
    WAITS = "waits"
    """After the death of the machine nothing is started before a person says so."""
    GENTLE = "gentle"
    """After the death of the machine the run goes on gently."""
    GPU_LOST = "gpu_lost"
    GPU_ERROR = "gpu_error"
    """The driver reported an Xid, or memory that could not be corrected."""
    POWER_LIMIT = "power_limit"
    """A power limit is not in force."""
    SENSOR = "sensor"
    """A sensor is not watched any more."""
    HEAT = "heat"
    """It stays too hot, too slow because of heat, or blind."""
    BATTERY = "battery"
    RECORDS_LOST = "records_lost"
    DISK = "disk"
    """The disk is nearly full, so training holds."""
    UNDEAD = "undead"
    """Processes of the worker cannot be ended."""
    FAILED = "failed"
    CANNOT_LEAVE = "cannot_leave"
    """What the worker has computed cannot be saved, so it does not leave."""
    NOT_GIVEN_BACK = "not_given_back"
    """Memory of a worker that is gone did not come back."""
    CHECKPOINT = "checkpoint"
    """A checkpoint was found damaged."""
    UNRESPONSIVE = "unresponsive"
    RESTARTS = "restarts"
    SUPERVISOR_GONE = "supervisor_gone"
    """Nobody guards the run, or whoever does gives no answer."""


class Trouble(msgspec.Struct, frozen=True):
    """One thing that a person should look at."""

    kind: TroubleKind
    text: str
    """The sentence for a person."""
    subject: str = ""
    """Which of several it is about, such as a GPU's index; empty where there is only one."""

    @property
    def key(self) -> str:
        """The same for the same trouble, whatever numbers its sentence has."""
        return f"{self.kind}:{self.subject}" if self.subject else str(self.kind)


class ProgressStatus(msgspec.Struct, kw_only=True):
    phase: str | None = None
    epoch: float | None = None
    step: int | None = None
    total_steps: int | None = None
    samples: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    eta_s: float | None = None
    digest: str | None = None


class BatchStatus(msgspec.Struct, kw_only=True):
    effective: int | None = None
    micro_tokens: int | None = None
    micro_rows: int | None = None
    peak_bytes: int | None = None
    """Held at most in the last step, by the training process alone or on its device."""
    predicted_bytes: int | None = None
    """What was predicted for that step."""


class MemoryStatus(msgspec.Struct, kw_only=True):
    ram_total_bytes: int | None = None
    """What this process may use: the smaller of the machine's RAM and every enclosing cgroup's limit."""
    ram_available_bytes: int | None = None
    worker_bytes: int | None = None
    """The worker's whole tree."""
    limit_bytes: int | None = None
    """What the ladder lets the worker's tree use."""
    fence: str | None = None
    """scope, cgroup2, cgroup1, rlimit or none."""
    fence_bytes: int | None = None
    fence_reason: str | None = None
    """Why no better fence is used."""
    pressure: float | None = None
    """Share of the last second in which some process waited for memory (PSI `some`)."""


class GpuStatus(msgspec.Struct, kw_only=True):
    index: int
    name: str | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    temperature_c: float | None = None
    slowdown_c: float | None = None
    power_w: float | None = None


class TemperatureStatus(msgspec.Struct, kw_only=True):
    name: str
    celsius: float | None = None
    limit_c: float | None = None


class CoolingStatus(msgspec.Struct, kw_only=True):
    """What is done to stay cool."""

    duty_fraction: float
    """Part of the time in which the worker computes."""
    power_fraction: float
    """Of the GPU's default power limit."""
    holding: bool
    reason: str
    forecast_s: float | None
    """While holding: until it may go on. Else: until it would have to hold. None: it does not get nearer to that."""


class CheckpointStatus(msgspec.Struct, kw_only=True):
    path: str | None = None
    step: int | None = None
    age_s: float | None = None
    verified: bool | None = None


class ActionStatus(msgspec.Struct, kw_only=True):
    at: float
    """Unix seconds."""
    rung: str | None
    action: str
    reason: str
    result: str | None = None


class Status(msgspec.Struct, kw_only=True):
    schema: int = SCHEMA
    run: str
    run_id: str | None = None
    state: RunState
    wanted: Wanted
    tier: str | None = None
    pid: int | None = None
    worker_pid: int | None = None
    since: float | None = None
    """Unix seconds at which the run came into `state`."""
    progress: ProgressStatus = msgspec.field(default_factory=ProgressStatus)
    batch: BatchStatus = msgspec.field(default_factory=BatchStatus)
    memory: MemoryStatus = msgspec.field(default_factory=MemoryStatus)
    gpus: list[GpuStatus] = msgspec.field(default_factory=list)
    gpu_probe: str | None = None
    """Why `gpus` is empty or stale, where it is."""
    temperatures: list[TemperatureStatus] = msgspec.field(default_factory=list)
    cooling: CoolingStatus | None = None
    """None while nothing has to be done about heat."""
    checkpoint: CheckpointStatus = msgspec.field(default_factory=CheckpointStatus)
    last_action: ActionStatus | None = None
    restarts: int = 0
    worst_stall_s: float | None = None
    """The longest time by which the supervisor's own loop came too late."""
    recent_stall_s: float | None = None
    """The same of the last ten to twenty seconds."""
    attention: list[str] = msgspec.field(default_factory=list)
    """Sentences about what a person should look at; empty when all is well."""
    attention_kinds: list[str] = msgspec.field(default_factory=list)
    """What each sentence of `attention` is about: a `TroubleKind`, with a colon and its subject where there are several."""
    result: dict[str, float] | None = None
    """The metrics of a finished run."""
    model_path: str | None = None
    failure: str | None = None
    """Why a failed run failed."""
    exit_code: int | None = None
    """Of a supervised command."""

    def call_for(self, *troubles: Trouble) -> None:
        """Adds what a person should look at."""
        self.attention_kinds += [""] * (len(self.attention) - len(self.attention_kinds))  # earlier versions wrote none
        self.attention += [trouble.text for trouble in troubles]
        self.attention_kinds += [trouble.key for trouble in troubles]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Status)


def encode_status(status: Status) -> bytes:
    return _encoder.encode(status)


def decode_status(document: bytes) -> Status:
    """Raises `msgspec.DecodeError`."""
    return _decoder.decode(document)
