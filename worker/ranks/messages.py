"""What rank 0 and another rank say to each other, over a pair of sockets that both were born with: nobody else has an end.

A message is one packet, which comes whole or not at all. None is larger than `MOST_BYTES`.
"""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from memsup.shared.messages import (
    Decided,
    Failed,
    Leaving,
    LimitMemory,
    LimitMicroBatch,
    OutOfMemory,
    Pace,
    Pause,
    Resume,
    Welcome,
)
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


class Evaluate(Message, frozen=True, tag="evaluate"):
    """Count over your part of the evaluation rows, write that into this folder (`counts_file`), and say when it is done."""

    folder: str


class Add(Message, frozen=True, tag="add"):
    """All parts are done: add them up, and take the step."""


class Obey(Message, frozen=True, tag="obey"):
    """The supervisor has ordered this."""

    order: Pace | Pause | Resume | LimitMicroBatch | LimitMemory


FromFirst = Begin | Compute | Evaluate | Add | Obey

# --------------------------------------------------------------------------------------------------------------------
# To rank 0


class Loaded(Message, frozen=True, tag="loaded"):
    """The model is there."""


class Ready(Message, frozen=True, tag="ready"):
    """The part of a step is computed."""

    step: int
    tokens: int
    took_s: float
    """The time that it took, pauses left out."""


class Counted(Message, frozen=True, tag="counted"):
    """What an evaluation counts lies in its file."""


class Beat(Message, frozen=True, tag="beat"):
    """It is alive; `ticks` is how much it has finished."""

    ticks: int
    micro_tokens: int | None
    resident_bytes: int | None


class Said(Message, frozen=True, tag="said"):
    """What a worker would tell its supervisor."""

    report: OutOfMemory | Decided | Failed | Leaving


ToFirst = Loaded | Ready | Counted | Beat | Said


def counts_file(folder: Path, rank: int) -> Path:
    """Where a rank writes what it has counted, which may be more than a message takes."""
    return folder / f"counts-{rank}"


_encoder = msgspec.msgpack.Encoder()
_from_first = msgspec.msgpack.Decoder(FromFirst)
_to_first = msgspec.msgpack.Decoder(ToFirst)


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


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(MOST_BYTES)
    except ConnectionError:
        return b""
