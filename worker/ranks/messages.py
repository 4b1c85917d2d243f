"""What rank 0 and another rank say to each other. On one machine it goes over a pair of sockets that both were born with:
nobody else has an end. A message is one packet there, which comes whole or not at all; none is larger than `MOST_BYTES`.

Between machines the same goes over a socket with a lock (`shared/nodes.py`), with what joining takes besides: of rank 0 all but
its orders (`FromFirstMachine`), of another machine `ToFirstMachine`.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from memsup.shared.messages import (
    CheckpointNote,
    Decided,
    Failed,
    Finished,
    Leaving,
    LimitMemory,
    LimitMicroBatch,
    OutOfMemory,
    Pace,
    Pause,
    Progress,
    Resume,
    Welcome,
)
from memsup.shared.nodes import MOST_FRAME_BYTES, PROTOCOL, Describe, Read, Versions
from memsup.shared.readings import Evaluation
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.padding import Padding
from memsup.worker.ranks.shares import Shares

MOST_BYTES = 128 << 10


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages."""


# --------------------------------------------------------------------------------------------------------------------
# From rank 0


class Begin(Message, frozen=True, tag="begin"):
    """Load the model, meet the others, and take over the parameters of rank 0."""

    checkpoint: str | None
    """The folder that model and tokenizer come from. None means that they come from the settings."""
    padding: Padding
    store: str
    """The file by which the ranks find each other."""
    device: str
    """What the ranks compute on: `cpu`, or `cuda`, of which each takes the GPU of its own number."""
    threads: int
    lanes: int
    packed: bool
    """Whether the model's layers see no padding."""
    welcome: Welcome
    """What the supervisor has told rank 0; its limit of memory is what this rank alone may use."""
    step: int
    """How many steps were taken."""
    done_before: int
    """How many were taken in earlier lives; up to there steps are cut as they were."""


class Compute(Message, frozen=True, tag="compute"):
    """Compute your part of this step, and say when it is done."""

    step: int
    learning_rate: float
    loss_scale: float
    shares: Shares
    plan: Entry | None = None
    """How all ranks cut their parts, where they share the model. None means that each has a plan of its own."""


class Evaluate(Message, frozen=True, tag="evaluate"):
    """Count over your part of the evaluation rows, write that into this folder (`counts_file`), and say when it is done."""

    folder: str | None
    """It is None for another machine, which sends it (`Counts`)."""
    plan: Entry | None = None
    """As of `Compute`."""


class Add(Message, frozen=True, tag="add"):
    """All parts are done: add them up, and take the step."""


class Obey(Message, frozen=True, tag="obey"):
    """The supervisor has ordered this."""

    order: Pace | Pause | Resume | LimitMicroBatch | LimitMemory


class Meet(Message, frozen=True, tag="meet"):
    """To another machine: begin as this rank of so many. Of `begin` its memory, threads and folders are its own."""

    begin: Begin
    rank: Annotated[int, msgspec.Meta(ge=1)]
    ranks: Annotated[int, msgspec.Meta(ge=2)]
    store_port: Annotated[int, msgspec.Meta(gt=0, lt=1 << 16)]
    """Where torch's store listens by which the ranks find each other."""
    fingerprint: str
    """That of the data, as rank 0 has prepared them."""


class Told(Message, frozen=True, tag="told"):
    """To another machine, every second: rank 0 is alive, and so far the run is."""

    name: Annotated[str, msgspec.Meta(max_length=256)]
    unix_s: float
    """What its clock says: that of another machine may say something else."""
    progress: Progress
    checkpoint: CheckpointNote | None
    digest: str | None
    evaluation: Evaluation | None


class Over(Message, frozen=True, tag="over"):
    """To another machine: the run is finished."""

    finished: Finished


class NotHere(Message, frozen=True, tag="not_here"):
    """To another machine: it takes no part, or not any more."""

    why: Annotated[str, msgspec.Meta(max_length=4096)]
    again: bool = True
    """Whether joining again would help."""


FromFirst = Begin | Compute | Evaluate | Add | Obey
FromFirstMachine = Meet | Compute | Evaluate | Add | Told | Over | NotHere

# --------------------------------------------------------------------------------------------------------------------
# To rank 0


class Loaded(Message, frozen=True, tag="loaded"):
    """The model is there."""


class Ready(Message, frozen=True, tag="ready"):
    """The part of a step is computed."""

    step: Annotated[int, msgspec.Meta(ge=0)]
    tokens: Annotated[int, msgspec.Meta(ge=0)]
    took_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    """The time that it took, pauses left out."""
    beside_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    """The time that went before it: from the moment in which the step before was added up until its parameters were changed."""


class Counted(Message, frozen=True, tag="counted"):
    """What an evaluation counts lies in its file."""


class Beat(Message, frozen=True, tag="beat"):
    """It is alive; `ticks` is how much it has finished."""

    ticks: int
    micro_tokens: int | None
    resident_bytes: int | None
    holds: bool = False
    """Whether its own supervisor has it paused."""
    gpu: str | None = None
    """The UUID of its GPU. It is None on a CPU, and where torch does not tell it."""
    cuda_allocated_bytes: int | None = None
    cuda_reserved_bytes: int | None = None


class Join(Message, frozen=True, tag="join"):
    """Of another machine, again and again until it is told to begin: it would compute."""

    node: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """The same in all lives of its run."""
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    """Its host's name."""
    versions: Versions


class Counts(Message, frozen=True, tag="counts"):
    """Of another machine: what an evaluation counts."""

    content: bytes


class Said(Message, frozen=True, tag="said"):
    """What a worker would tell its supervisor."""

    report: OutOfMemory | Decided | Failed | Leaving


ToFirst = Loaded | Ready | Counted | Beat | Said
ToFirstMachine = Join | Loaded | Ready | Counts | Beat | Said | Describe | Read


def counts_file(folder: Path, rank: int) -> Path:
    """Where a rank writes what it has counted, which may be more than a message takes."""
    return folder / f"counts-{rank}"


_encoder = msgspec.msgpack.Encoder()
_from_first = msgspec.msgpack.Decoder(FromFirst)
_to_first = msgspec.msgpack.Decoder(ToFirst)
_from_first_machine = msgspec.msgpack.Decoder(FromFirstMachine)
_to_first_machine = msgspec.msgpack.Decoder(ToFirstMachine)


def send(end: socket.socket, message: FromFirst | ToFirst) -> None:
    """Sends a message. Raises OSError where nobody has the other end any more."""
    end.send(_encoder.encode(message), socket.MSG_NOSIGNAL)


def receive_from_first(end: socket.socket) -> FromFirst | None:
    """The next message of rank 0. None means that it is gone."""
    content = _received(end)
    return _from_first.decode(content) if content else None


def receive_to_first(end: socket.socket) -> ToFirst | None:
    """The next message of another rank. None means that it is gone."""
    content = _received(end)
    return _to_first.decode(content) if content else None


def from_first_machine(frames: list[bytes]) -> FromFirstMachine | None:
    """What the first machine says. None means that the frames are none of these messages."""
    return _decoded(_from_first_machine, frames)


def to_first_machine(frames: list[bytes]) -> ToFirstMachine | None:
    """What another machine says. None means that the frames are none of these messages."""
    return _decoded(_to_first_machine, frames)


T = TypeVar("T")


def _decoded(decoder: msgspec.msgpack.Decoder[T], frames: list[bytes]) -> T | None:
    if len(frames) != 2 or frames[0] != PROTOCOL or len(frames[1]) > MOST_FRAME_BYTES:
        return None
    try:
        return decoder.decode(frames[1])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(MOST_BYTES)
    except ConnectionError:
        return b""
