"""Every message of both sockets, as typed, versioned structs, and the two functions that put them on the wire.

A message is two frames: the protocol's name with its version, then one msgpack map whose `kind` names the struct. A frame
that does not decode raises `BadFrameError`; the receiver counts it, logs it and drops it. What the messages cause is decided
elsewhere: `supervisor/decide/run/lifecycle.py` for the supervisor, `worker/session.py` for the worker, and for a program of a
person's own, which speaks like a worker (`program/messages.py`), `program/session.py`. Sockets are opened in
`shared/endpoints.py`.

Worker socket (worker DEALER → supervisor ROUTER):

    worker                          supervisor
    Hello                 ──►                   (of a process that is not to be attached: NotAttachedReport, and no more)
                          ◄──       Welcome     the limits of this life; nothing is allocated before it came
    Heartbeat …           ──►
                          ◄──       Lease …     the supervisor still guards; when it runs out, the worker leaves
                          ◄──       KeepState   how often to hand the newest state over in memory, or no more
                          ◄──       an order    (Checkpoint, LimitMicroBatch, LimitMemory, Pace, Pause, Resume, Stop)
    Accepted              ──►                   at once, from the link's thread
    Done or OrderFailed   ──►                   when the boundary was reached and the order carried out
    OutOfMemory           ──►                   an ordinary event: caught, and the step is redone
    Finished or Failed    ──►                   the last words

Control socket (command line DEALER → supervisor ROUTER): one `Request` struct, answered by one `Reply`, which may come much
later than the request (a checkpoint takes its time) but always comes.
"""

from __future__ import annotations

import enum
import functools
from typing import Annotated, Any

import msgspec

from memsup.about import MOST_DETAIL, NotAttached, NotCut, Seam
from memsup.shared.readings import Evaluation, KnownBatch, KnownProgress, NodeReading

PROTOCOL = b"memsup/2"
MAX_FRAME_BYTES = 1 << 20
"""No honest message is larger; a larger one is refused before it is decoded."""


class BadFrameError(Exception):
    """The frames are not a message of this protocol version. The text says what is wrong, without the payload."""


Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(max_length=64 * 1024)]
PathText = Annotated[str, msgspec.Meta(max_length=4096, pattern=r"\A[^\x00]*\Z")]
"""No system call takes a path with a zero byte in it."""
Name = Annotated[str, msgspec.Meta(max_length=256)]


class Message(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """Base of all messages; the tag is the message's `kind` on the wire."""


class Phase(enum.StrEnum):
    """What the worker's main thread is doing; each has its own idea of how long silence is normal."""

    STARTING = "starting"
    LOADING = "loading"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    HOLDING = "holding"
    FINISHING = "finishing"


class PauseMode(enum.StrEnum):
    """The two pauses. *hold* keeps memory and stops computing; *release* checkpoints and gives RAM and VRAM back."""

    HOLD = "hold"
    RELEASE = "release"


class FailureCause(enum.StrEnum):
    """Whose fault the end of a run is. Only `CRASH` is worth trying again as it was."""

    BAD_INPUT = "bad_input"
    """Data, model or settings: the sentence says what to change. Never retried."""
    OUT_OF_MEMORY = "out_of_memory"
    """One row does not fit in what the worker may use; or what a person's own program computes at once, and cannot cut."""
    NOT_FINITE = "not_finite"
    """The loss or the gradient is NaN or infinite."""
    DISK_FULL = "disk_full"
    AFTER_SLEEP = "after_sleep"
    """The machine slept, and CUDA is dead in the process since then. Nobody's fault: a new process goes on."""
    CRASH = "crash"


# --------------------------------------------------------------------------------------------------------------------
# Orders: supervisor → worker


class Welcome(Message, frozen=True, tag="welcome"):
    """The answer to `Hello`: what this life of the worker may use, and what it has to know of the ones before."""

    run_id: str
    lease_s: float
    memory_limit_bytes: int | None
    """What the worker's whole tree may use. None means that nothing limits it."""
    micro_tokens_limit: int | None
    """Caps the micro-batch from the first step on. None means no such limit, as ever but after a restart because of memory."""
    on_cpu: bool = False
    """Whether to compute on the CPU whatever the settings say, since the GPU is lost."""
    deaths: Count = 0
    """How many lives before this one ended without anybody having asked for it; who dies often saves more often."""


class Lease(Message, frozen=True, tag="lease"):
    """The supervisor is alive and watches. Without a new one for `lease_s` the worker checkpoints and leaves."""

    lease_s: float


class KeepState(Message, frozen=True, tag="keep_state"):
    """Between checkpoints, hand the newest state over in sealed memory after so much work: it goes over the lifeline, with
    `Kept` beside it. Only the built-in training is told so.
    """

    every_s: Annotated[float, msgspec.Meta(gt=0)] | None
    """None means not at all: what is being written is dropped at once, since memory is short."""


class Order(Message, frozen=True):
    """Something to be done at the next micro-batch boundary. `reason` is one plain clause for the worker's log."""

    order_id: Count
    reason: Text


class Checkpoint(Order, frozen=True, tag="checkpoint"):
    """Write and verify a checkpoint; `Done.checkpoint` describes it."""


class LimitMicroBatch(Order, frozen=True, tag="limit_micro_batch"):
    """Rows × padded length of a micro-batch must not exceed `micro_tokens`. `halve=True` asks the worker to halve what
    it uses now. Neither: growth is free again. `may_grow=False` keeps it from growing while it stands.

    `limit_bytes` is what the worker's whole tree may hold of the host's memory from now on, more or less than before, and it
    plans anew by that at once. None means that nothing new is said of it.

    `rank` is the one of several ranks that is meant. None means all of them.
    """

    micro_tokens: int | None = None
    halve: bool = False
    may_grow: bool = True
    limit_bytes: Count | None = None
    rank: Count | None = None


class LimitMemory(Order, frozen=True, tag="limit_memory"):
    """Torch may reserve at most `device_bytes` of the worker's GPU from now on: beyond, it raises its own error, which is an
    ordinary event. What it keeps beyond that and does not use is given back at once. `rank` is the one of several ranks, each
    on a GPU of its own, that is meant. None means the worker itself.
    """

    device_bytes: Count
    rank: Count | None = None


class Pace(Order, frozen=True, tag="pace"):
    """Compute for `duty_fraction` of the time (0 < fraction ≤ 1), with gaps between micro-batches."""

    duty_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)]


class Pause(Order, frozen=True, tag="pause"):
    """Stop computing, in one of two ways."""

    mode: PauseMode


class Resume(Order, frozen=True, tag="resume"):
    """Continue after a *hold*. (After a *release* the process is gone; the supervisor starts another.)"""


class Stop(Order, frozen=True, tag="stop"):
    """Leave. With `checkpoint`, write one first."""

    checkpoint: bool


AnyOrder = Checkpoint | LimitMicroBatch | LimitMemory | Pace | Pause | Resume | Stop


# --------------------------------------------------------------------------------------------------------------------
# Reports: worker → supervisor


class Progress(KnownProgress, frozen=True, forbid_unknown_fields=True):
    """How far the main thread is, with what a worker always knows. `ticks` counts everything it finishes (micro-batches,
    evaluation batches, files written), so that a hang shows although the link's thread still beats.
    """

    phase: Phase
    ticks: Count
    step: Count
    samples: Count | None
    """It is None for a person's own program, of whose batches nothing is known."""


class BatchShape(KnownBatch, frozen=True, forbid_unknown_fields=True):
    """How the worker computes its steps, with what it always knows."""

    effective: Count
    micro_tokens: Count


class WorkerMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the worker knows of its memory better than anybody outside. None means that a number does not apply, or is not
    known.
    """

    resident_bytes: int | None
    cuda_allocated_bytes: int | None
    cuda_reserved_bytes: int | None
    data_limit_bytes: int | None
    """The soft limit (`RLIMIT_DATA`) in force. None means that there is none."""


class CheckpointNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest checkpoint known to the worker."""

    path: PathText
    step: Count
    at_unix_s: float
    verified: bool
    save_s: float | None
    size_bytes: int | None = None


class Report(Message, frozen=True):
    """Base of what the worker says."""


Detail = Annotated[str, msgspec.Meta(max_length=MOST_DETAIL)]


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a program of a person's own is to memsup: see `program/about.py`."""

    seam: Seam
    training: Name
    saves: bool
    cuts: bool
    not_cut: NotCut | None
    detail: Detail


class Hello(Report, frozen=True, tag="hello"):
    """The worker's first word: which process it is, and of which run. A program of a person's own says it again when another
    training of it begins.
    """

    pid: Count
    run_id: Name
    program: About | None = None
    """What is so of a person's own program. It is None for the built-in training."""


class Described(Report, frozen=True, tag="described"):
    """Something else is so of a person's own program than it has said."""

    program: About


class NotAttachedReport(Report, frozen=True, tag="not_attached"):
    """The only word of a process of a command that is not attached: why. `detail` is the same as a clause."""

    pid: Count
    run_id: Name
    why: NotAttached
    detail: Detail


class Heartbeat(Report, frozen=True, tag="heartbeat"):
    """What the worker says every half second, and beside each other report."""

    progress: Progress
    batch: BatchShape | None
    memory: WorkerMemory
    checkpoint: CheckpointNote | None
    digest: Name | None
    """The audit's rolling digest after `progress.step` steps. None means that training has not begun."""
    cpu_s: float | None = None
    """The processor time that a program of a person's own and all that it has started have used, as of some seconds ago. It is
    None for the built-in training."""
    evaluation: Evaluation | None = None
    """What evaluations have found. It is None before the first, and for a program of a person's own."""
    nodes: Annotated[tuple[NodeReading, ...], msgspec.Meta(max_length=64)] | None = None
    """The other machines that compute the run. It is None where there are none."""


class Accepted(Report, frozen=True, tag="accepted"):
    """An order has arrived; it will be carried out at the next boundary."""

    order_id: Count


class Done(Report, frozen=True, tag="done"):
    """An order was carried out. `detail` is a plain clause; the other fields say the same to programs."""

    order_id: Count
    detail: Text
    checkpoint: CheckpointNote | None = None
    """The checkpoint that was written, or found to hold the state already. It is None where the order was for none."""
    micro_tokens: int | None = None
    """The most tokens of a micro-batch from now on. It is None where the order was not about micro-batches."""


class OrderFailed(Report, frozen=True, tag="order_failed"):
    """An order could not be carried out; the worker goes on as before."""

    order_id: Count
    detail: Text


class OutOfMemory(Report, frozen=True, tag="out_of_memory"):
    """Caught: the step's gradients were dropped, memory handed back, the step is redone with `micro_tokens_after`."""

    where: Name
    """The part of the work in which it ran out: forward, backward, optimizer or evaluate."""
    device: Name
    step: Count
    micro_tokens_before: Count
    micro_tokens_after: Count
    detail: Text
    rank: Count | None = None
    """The rank that it ran out in. It is None for the worker itself."""


class Finished(Report, frozen=True, tag="finished"):
    """The run is complete; its model lies at `model_path`, and `metrics` has accuracy, majority_accuracy, loss and so on, and
    in `shared_rows` how many of the rows to evaluate have texts that are trained on as well, in `left_out_rows` how many of the
    data were left out.
    """

    model_path: PathText
    metrics: Annotated[dict[Name, float], msgspec.Meta(max_length=1000)]
    steps: Count
    samples: Count
    evaluation: Evaluation | None = None
    """What evaluations have found. It is None for a program of a person's own."""
    stopped_early: bool = False
    """Whether it ended before its last step, since evaluations found nothing better any more."""
    model_step: Count | None = None
    """The step whose weights the model has. It is None for a program of a person's own."""


class Failed(Report, frozen=True, tag="failed"):
    """The worker gives up. `message` is one plain sentence with the next step; `traceback` for crashes, `step` for what
    happened within one. `device_others_bytes` is what was taken of the device that memory ran out on, when it gave up, by
    others and by this process's context on it. It is None where it gave up for another reason, or computes on the CPU. `rank`
    is the one of several ranks that gave up. It is None for the worker itself.
    `exit_status` is how another rank ended without a word: its exit code, or minus the signal's number. It is None where none
    did.
    """

    cause: FailureCause
    message: Text
    traceback: Text | None = None
    step: int | None = None
    device_others_bytes: Count | None = None
    rank: Count | None = None
    exit_status: int | None = None


class DecisionKind(enum.StrEnum):
    """What a worker decides by itself and has to answer for in the ledger."""

    CHECKPOINT_DAMAGED = "checkpoint_damaged"
    """A checkpoint was found damaged and set aside."""
    CHECKPOINT_USED = "checkpoint_used"
    """An older checkpoint is gone on from, or none is left, since newer ones were damaged."""
    CHECKPOINT_FAILED = "checkpoint_failed"
    """A checkpoint that was due could not be written; the ones before it count."""
    BEST_LOST = "best_lost"
    """The checkpoint with the best result is damaged or gone, so the model has the last weights."""
    ROWS_LEFT_OUT = "rows_left_out"
    """Rows of the data are not trained on."""
    CUT_REFUSED = "cut_refused"
    """A way of cutting or computing that was asked for is not taken: the model would see it, or does not know it."""
    OTHER_BITS = "other_bits"
    """The run goes on where it computes other last bits than before, as with another number of threads."""
    RANK_LOST = "rank_lost"
    """A rank of a command has ended, and its launcher begins all of them anew."""
    NODE_JOINED = "node_joined"
    """Another machine has joined, for the first time or again, and computes a part of each step."""
    NODE_LOST = "node_lost"
    """Another machine is gone, or cannot be reached, so the step in hand is done again when it is back."""
    NODES_FEWER = "nodes_fewer"
    """A machine has not come back in time, and the run goes on without it."""
    CURVES_FAILED = "curves_failed"
    """Curves that are wanted cannot be written; the training goes on."""
    MEMORY_USED = "memory_used"
    """The state that the last worker had handed over in memory is gone on from, since it is newer than every checkpoint."""
    MEMORY_DAMAGED = "memory_damaged"
    """That state is not what was written, and is not used."""


class StateGivenUp(Report, frozen=True, tag="state_given_up"):
    """Memory has run out, and the step is done again as it was: what is held of a state in memory is to be given up for it."""

    step: Count


class Decided(Report, frozen=True, tag="decided"):
    """The worker decided something by itself. `detail` is a plain sentence; the other fields say the same to programs."""

    what: DecisionKind
    detail: Text
    checkpoint: PathText | None = None
    """The folder of the checkpoint that it is about, as it is called now. None means that it is about none, or that none is
    left."""
    step: int | None = None
    """The step that it is about. None means that it is about none, or that the folder's name tells none."""
    rows: int | None = None
    """How many rows of the data it is about. None means that it is about none."""


class Leaving(Report, frozen=True, tag="leaving"):
    """The worker exits because it was told to (stop, release) or because its lease ran out, not because it is done."""

    reason: Text
    checkpoint: CheckpointNote | None


AnyReport = (
    Hello
    | Described
    | NotAttachedReport
    | Heartbeat
    | Accepted
    | Done
    | OrderFailed
    | OutOfMemory
    | Finished
    | Failed
    | Leaving
    | StateGivenUp
    | Decided
)


# --------------------------------------------------------------------------------------------------------------------
# The lifeline


class Kept(Message, frozen=True, tag="kept"):
    """Goes over the lifeline with the descriptor of a state in memory: from the worker that has written it to the supervisor,
    and from there to the next worker.
    """

    step: Count
    size_bytes: Count
    took_s: float
    """How long the worker wrote."""
    age_s: float = 0.0
    """How old it was when its worker died."""


# --------------------------------------------------------------------------------------------------------------------
# The control socket


class RequestKind(enum.StrEnum):
    """What the command line asks of the supervisor."""

    STATUS = "status"
    PAUSE_HOLD = "pause_hold"
    PAUSE_RELEASE = "pause_release"
    RESUME = "resume"
    CHECKPOINT = "checkpoint"
    STOP = "stop"
    STOP_NOW = "stop_now"
    TAKE_OVER = "take_over"
    """Go on with other settings, of those that may change in a run."""


class Request(Message, frozen=True, tag="request", omit_defaults=True):
    """Something that the command line asks, to be answered by one `Reply`."""

    request_id: Count
    what: RequestKind
    settings_json: bytes = b""
    """The settings to go on with; empty for all that is no `TAKE_OVER`."""


class Reply(Message, frozen=True, tag="reply"):
    """The answer to a `Request`. Where `ok` is False it was not done, and `text` says why and what to do. `status_json` is the
    status document (schema 1). After a pause with release, `freed_…` is what the worker gave back. None of them means that it
    is not known, or that there was none.
    """

    request_id: Count
    ok: bool
    text: Text
    status_json: bytes = b""
    checkpoint_path: PathText | None = None
    freed_ram_bytes: Count | None = None
    freed_vram_bytes: Count | None = None


# --------------------------------------------------------------------------------------------------------------------
# The wire

ToWorker = Welcome | Lease | KeepState | AnyOrder

_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> list[bytes]:
    """The frames of `message`, without any routing identity."""
    return [PROTOCOL, _encoder.encode(message)]


def decode_for_worker(frames: list[bytes]) -> ToWorker:
    """The order or answer that the worker received. Raises `BadFrameError`."""
    message: ToWorker = _decode(frames, ToWorker)
    return message


def decode_for_supervisor(frames: list[bytes]) -> AnyReport:
    """The report that the supervisor received. Raises `BadFrameError`."""
    report: AnyReport = _decode(frames, AnyReport)
    return report


def encode_kept(kept: Kept) -> bytes:
    """What goes over the lifeline beside the descriptor."""
    return _encoder.encode(kept)


def decode_kept(content: bytes) -> Kept:
    """The note of a state in memory that came over the lifeline. Raises `BadFrameError`."""
    kept: Kept = _decode([PROTOCOL, content], Kept)
    return kept


def decode_request(frames: list[bytes]) -> Request:
    """The request that the supervisor received. Raises `BadFrameError`."""
    request: Request = _decode(frames, Request)
    return request


def decode_reply(frames: list[bytes]) -> Reply:
    """The reply that the command line received. Raises `BadFrameError`."""
    reply: Reply = _decode(frames, Reply)
    return reply


@functools.cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """Made when the first frame comes: the command line receives one kind, and has to be quick."""
    return msgspec.msgpack.Decoder(kind)


def _decode(frames: list[bytes], kind: Any) -> Any:
    if len(frames) != 2:
        raise BadFrameError(f"{len(frames)} frames instead of 2")
    name, body = frames
    if name != PROTOCOL:
        raise BadFrameError(f"another protocol: {name[:32]!r} instead of {PROTOCOL!r}")
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrameError(f"{len(body)} bytes, more than {MAX_FRAME_BYTES}")
    try:
        return _decoder(kind).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrameError(f"not a known message: {error}") from None
