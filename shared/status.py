"""The status document (schema 1): what `memsup status --json` prints and `status.json` keeps. Absent readings are null.

Filled by `supervisor/record/status.py`, read by the command line; nothing is computed here.
"""

from __future__ import annotations

import enum

import msgspec

from memsup.about import NotAttached, NotCut, Seam
from memsup.shared.readings import Evaluation, KnownBatch, KnownGpu, KnownMemory, KnownProgress, NodeReading

SCHEMA = 1


class RunState(enum.StrEnum):
    """What a run does, as a person is told."""

    WAITING = "waiting"
    """It is queued, and has not begun: other runs come first."""
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    """It rests, as a person asked for, or as it is outside of its hours."""
    COOLING = "cooling"
    RECOVERING = "recovering"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


OVER = (RunState.STOPPED, RunState.FINISHED, RunState.FAILED)
"""The states in which nothing more happens by itself."""

_UNDER_WAY = frozenset(RunState) - {RunState.STOPPING, *OVER}
_PAUSE = frozenset({RunState.PAUSING, RunState.PAUSED})
STATE_MOVES = {
    **{state: frozenset(RunState) - {state} for state in _PAUSE},
    **{state: frozenset(RunState) - {state, RunState.WAITING} for state in _UNDER_WAY - _PAUSE},
    RunState.STOPPING: frozenset(OVER),
    **{state: frozenset[RunState]() for state in OVER},
}
"""The states that may follow each state: whatever is under way may become anything, but a stop is not taken
back, and what has begun waits for its turn no more. One that waits may be paused, and waits on after that."""


class Wanted(enum.StrEnum):
    """What the user asked for, kept apart from what is so."""

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
    VRAM_SPILLS = "vram_spills"
    """On WSL, GPU memory that does not fit is in RAM, and training is slow."""
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
    CARD_STUCK = "card_stuck"
    """What a program had on the GPU could not be brought back."""
    NOT_GIVEN_BACK = "not_given_back"
    """Memory of a worker that is gone did not come back."""
    CHECKPOINT = "checkpoint"
    """A checkpoint was found damaged, or could not be written."""
    UNRESPONSIVE = "unresponsive"
    RESTARTS = "restarts"
    SUPERVISOR_GONE = "supervisor_gone"
    """Nobody guards the run, or whoever does gives no answer."""
    AWAITED = "awaited"
    """A run that this one waits for is not over, and nobody guards it."""
    NODE = "node"
    """Another machine of the run is not heard of, and the others wait for it."""
    UNREACHABLE = "unreachable"
    """The run is guarded, but its sockets are gone and cannot be made anew."""


PASSING = frozenset(
    {
        TroubleKind.HEAT,
        TroubleKind.BATTERY,
        TroubleKind.VRAM_SPILLS,
        TroubleKind.SENSOR,
        TroubleKind.DISK,
        TroubleKind.UNDEAD,
        TroubleKind.CANNOT_LEAVE,
        TroubleKind.CARD_STUCK,
        TroubleKind.UNRESPONSIVE,
        TroubleKind.RESTARTS,
        TroubleKind.NODE,
        TroubleKind.UNREACHABLE,
        TroubleKind.AWAITED,
    }
)
"""What is so, and is being dealt with, only while a supervisor is there."""


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
    """Why no better fence is used. It is None where the best one is."""
    pressure: float | None = None
    """The share of the last second in which some process waited for memory (PSI `some`)."""


class TemperatureStatus(msgspec.Struct, kw_only=True):
    """A sensor of the CPU or the board."""

    name: str
    celsius: float | None = None
    limit_c: float | None = None
    """The temperature that the sensor calls critical, else the one that it calls high. It is None where the sensor names
    neither."""


class CoolingStatus(msgspec.Struct, kw_only=True):
    """What is done to stay cool."""

    duty_fraction: float
    """The part of the time in which the worker computes."""
    power_fraction: float
    """The part of the GPU's default power limit that it may draw."""
    holding: bool
    reason: str
    forecast_s: float | None
    """Seconds until the worker may go on, while it is held; otherwise until it would have to be held. It is None while it does
    not get nearer to that."""


class CheckpointStatus(msgspec.Struct, kw_only=True):
    """The newest checkpoint, and what is kept in memory since. All fields are None while there is none."""

    path: str | None = None
    step: int | None = None
    age_s: float | None = None
    verified: bool | None = None
    memory_step: int | None = None
    """The step of a newer state that is held in memory, from which a worker that takes the place of a dead one goes on. It is
    None where there is none."""
    memory_bytes: int | None = None
    """What this state takes of the worker's memory."""


class WaitingStatus(msgspec.Struct, kw_only=True):
    """What a run waits for that is queued."""

    runs: list[str] = msgspec.field(default_factory=list)
    """The runs that it still waits for; empty where it waits for none."""
    not_before: float | None = None
    """The Unix time in seconds before which it does not begin. It is None where the time does not matter, or has come."""
    what_for: str
    """The same in a clause, for people."""
    no_room: str | None = None
    """Why it cannot begin although no run is waited for any more, a sentence. It is None where it was not tried yet."""


class HoursStatus(msgspec.Struct, kw_only=True):
    """Between which times of the day a run trains, and where it is in them."""

    rests: bool
    """Whether it is outside of them, and so paused or about to be."""
    until: float | None
    """The Unix time in seconds at which that changes. It is None where it rests until a person resumes it."""
    what: str
    """The same in a clause, for people."""


class ProgramStatus(msgspec.Struct, kw_only=True):
    """What memsup does for a command of the user's own."""

    attached: bool
    """Whether a process of it has called `memsup.guard`, and reports and takes orders."""
    what: str = ""
    """What it is to memsup, in a clause."""
    seam: Seam | None = None
    """By what it is attached. It is None where it is not; so are the next four."""
    training: str | None = None
    """The key of the training that runs now, of several of the program."""
    saves: bool | None = None
    """Whether it has given memsup something to save."""
    cuts: bool | None = None
    """Whether its batches are computed in parts where memory is short."""
    not_cut: NotCut | None = None
    """Why they are not. It is None where they are."""
    not_attached: NotAttached | None = None
    """Why it is not attached. It is None where it is, or where nothing in it has said."""
    detail: str = ""
    """What the program says of that, a clause."""
    lacks: list[str] = msgspec.field(default_factory=list)
    """What the built-in training has and this program has not, a clause each."""


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
    is_command: bool = False
    """Whether a command of the user's own is supervised."""
    waiting: WaitingStatus | None = None
    """What it waits for before it begins, or goes on. It is None once it has begun."""
    hours: HoursStatus | None = None
    """Its hours. It is None where it has none."""
    program: ProgramStatus | None = None
    """What is done for that command. It is None for the built-in training, and while there is no worker."""
    tier: str | None = None
    pid: int | None = None
    worker_pid: int | None = None
    since: float | None = None
    """The Unix time in seconds at which the run came into `state`."""
    progress: ProgressStatus = msgspec.field(default_factory=ProgressStatus)
    batch: KnownBatch = msgspec.field(default_factory=KnownBatch)
    memory: MemoryStatus = msgspec.field(default_factory=MemoryStatus)
    nodes: list[NodeReading] | None = None
    """The other machines that compute the run (docs/ranks.md). It is None where there are none."""
    gpus: list[KnownGpu] = msgspec.field(default_factory=list)
    gpu_probe: str | None = None
    """Why `gpus` is empty or stale, where it is."""
    disk_free_bytes: int | None = None
    """Free space where the run's state lies."""
    temperatures: list[TemperatureStatus] = msgspec.field(default_factory=list)
    cooling: CoolingStatus | None = None
    """What is done about heat. It is None while nothing has to be done."""
    checkpoint: CheckpointStatus = msgspec.field(default_factory=CheckpointStatus)
    last_action: ActionStatus | None = None
    restarts: int = 0
    worst_stall_s: float | None = None
    """The longest time by which the supervisor's own loop came too late."""
    recent_stall_s: float | None = None
    """The longest time by which it came too late in the last ten to twenty seconds."""
    attention: list[str] = msgspec.field(default_factory=list)
    """Sentences about what a person should look at; empty when all is well."""
    attention_kinds: list[str] = msgspec.field(default_factory=list)
    """What each sentence of `attention` is about: a `TroubleKind`, with a colon and its subject where there are several."""
    evaluation: Evaluation | None = None
    """What evaluations have found. It is None before the first, and for a command of the user's own."""
    stopped_early: bool = False
    """Whether a finished run ended before its last step, since evaluations found nothing better any more."""
    result: dict[str, float] | None = None
    """The metrics of a finished run, by name. They are None for any other run."""
    model_path: str | None = None
    model_step: int | None = None
    """The step whose weights the model of a finished run has. It is None for any other run, and for a command's model."""
    failure: str | None = None
    """Why a failed run failed, in one sentence. It is None for any other run."""
    exit_code: int | None = None
    """The exit code of a supervised command. It is None for the built-in training, while the command runs, and where what has
    ended is a launcher whose program had left as it was told."""

    def call_for(self, *troubles: Trouble) -> None:
        """Adds what a person should look at."""
        self.attention_kinds += [""] * (len(self.attention) - len(self.attention_kinds))  # earlier versions wrote none
        self.attention += [trouble.text for trouble in troubles]
        self.attention_kinds += [trouble.key for trouble in troubles]

    def drop_what_has_passed(self) -> None:
        """Leaves out what was so only while the supervisor was there."""
        kinds = self.attention_kinds + [""] * (len(self.attention) - len(self.attention_kinds))
        kept = [(text, key) for text, key in zip(self.attention, kinds, strict=False) if key.partition(":")[0] not in PASSING]
        self.attention, self.attention_kinds = [text for text, _ in kept], [key for _, key in kept]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Status)


def encode_status(status: Status) -> bytes:
    """The document as JSON; what is not known is null."""
    return _encoder.encode(status)


def decode_status(document: bytes) -> Status:
    """Reads a document of this or an older version. Raises `msgspec.DecodeError`."""
    return _decoder.decode(document)
