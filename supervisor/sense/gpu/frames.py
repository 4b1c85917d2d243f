"""What the supervisor and its GPU probe say to each other: one msgpack map a packet over a socket pair (SOCK_SEQPACKET).

Every question has an id, and its answer repeats it, so that an answer which comes after its deadline is recognised. Values are
the driver's own, unjudged: None is "not supported" or "not told"; what is absurd is sorted out by `devices.py`.
"""

from __future__ import annotations

import msgspec

MAX_FRAME_BYTES = 64 * 1024


class Look(msgspec.Struct, frozen=True, tag="look"):
    """The question how the devices are. Without `fully` it asks for memory alone, which is what changes fast."""

    ask_id: int
    fully: bool


class Cap(msgspec.Struct, frozen=True, tag="cap"):
    """The order to limit the power of these devices (UUID → watts), and to give every other device back what it had."""

    ask_id: int
    watts: dict[str, float]


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU's answers. Temperatures in °C, power in watts."""

    index: int
    lost: bool = False
    """The driver says that the GPU is lost or needs a reset."""
    uuid: str | None = None
    name: str | None = None
    compute_capability: tuple[int, int] | None = None
    """Which of NVIDIA's generations it is of."""
    total_bytes: int | None = None
    free_bytes: int | None = None
    processes: list[tuple[int, int | None]] | None = None
    """The compute processes: pid as the driver sees it, and bytes."""
    temperature_c: float | None = None
    margin_c: float | None = None
    """The margin that T.Limit tells: what is left until the device's limit (0). The two margins below are negative."""
    slowdown_margin_c: float | None = None
    shutdown_margin_c: float | None = None
    slowdown_threshold_c: float | None = None
    shutdown_threshold_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    power_least_w: float | None = None
    power_default_w: float | None = None
    slowed_by_heat: bool | None = None
    xids: list[int] = []
    """The driver's errors since the last full look, by number. https://docs.nvidia.com/deploy/xid-errors"""
    memory_errors: int = 0
    """Uncorrectable memory errors (double-bit ECC) since the last full look."""


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    ask_id: int
    fully: bool
    devices: list[Device]
    may_cap: bool = False
    """Whether this process may set power limits (it is root's)."""


class Capped(msgspec.Struct, frozen=True, tag="capped"):
    """What came of `Cap`: for each device the limit now in force, and why it is not the one wanted."""

    ask_id: int
    watts: dict[str, float]
    refused: dict[str, str]
    denied: bool = False
    """Whether this process may not set or record limits, so that it is of no use to ask again."""


class Absent(msgspec.Struct, frozen=True, tag="absent"):
    """There is nothing to probe on this machine, and that is normal; the probe exits. `text` is one clause about it."""

    ask_id: int
    text: str


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """The driver cannot be used now; the probe exits. `text` is one clause about it."""

    ask_id: int
    text: str


Question = Look | Cap
Answer = Seen | Capped | Absent | Broken

_encoder = msgspec.msgpack.Encoder()
_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(frame: Question | Answer) -> bytes:
    return _encoder.encode(frame)


def decode_question(packet: bytes) -> Question:
    """The question in a packet. Raises `msgspec.DecodeError`."""
    return _questions.decode(packet)


def decode_answer(packet: bytes) -> Answer:
    """The answer in a packet. Raises `msgspec.DecodeError` and `UnicodeDecodeError`."""
    return _answers.decode(packet)
