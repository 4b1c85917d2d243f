"""What several machines of one run say before they train together (docs/ranks.md). Pure, but for the drawing of a key.

Covers addresses and which of them are a person's own network, the key that a person carries to the other machine, and what a
machine asks for that is about to join: the run's settings, and its files piece by piece. The lock that the key opens is in
`worker/ranks/lock.py`. What ranks say to each other is in `worker/ranks/messages.py`; nothing that is said is an order.
"""

from __future__ import annotations

import ipaddress
import secrets
from typing import Annotated, Any, NamedTuple

import msgspec

from memsup.shared.settings import SettingsError

_PROTOCOLS = b"memsup-nodes/"
PROTOCOL = _PROTOCOLS + b"1"
OTHER_VERSION = "has another version of memsup, whose machines speak otherwise: have the same version on both"
PORT = 29400
"""The port of torchrun's rendezvous."""
LEAST_KEY = 32
"""The characters of the shortest key. One that is drawn has 43."""
PIECE_BYTES = 1 << 20
MOST_FRAME_BYTES = 64 << 20
"""No message between machines is larger; libzmq closes the connection of one that says it has a larger one."""
MOST_FILES = 100_000

_OWN = tuple(
    ipaddress.ip_network(network)
    for network in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "::1/128", "fc00::/7")
)
"""Loopback, private (RFC 1918, RFC 4193) and IPv4's link-local addresses."""


class Address(NamedTuple):
    """Where a machine listens."""

    host: str
    """The number of the address, and no name: who answers to a name is for others to say."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str, port: int = PORT) -> Address:
    """`10.0.0.1`, `10.0.0.1:29400`, `fd00::1` or `[fd00::1]:29400`; without a port it is `port`. Raises `SettingsError`."""
    host, number = text.strip(), str(port)
    if host.startswith("["):
        host, closes, rest = host[1:].partition("]")
        number = rest.removeprefix(":") or number
        host = host if closes and rest[:1] in ("", ":") else ""
    elif host.count(":") == 1:
        host, _, number = host.partition(":")
    try:
        found = ipaddress.ip_address(host)
        if not (number.isascii() and number.isdigit() and 0 < int(number) < 1 << 16):
            raise ValueError
    except ValueError:
        raise SettingsError(
            f"{text[:100]!r} is no address: write the number of the first machine's, such as 192.168.1.20:{port}."
        ) from None
    return Address(str(found), int(number))


def is_own_network(host: str) -> bool:
    """Whether an address can only be reached from a network of the person's own."""
    found = ipaddress.ip_address(host)
    plain = getattr(found, "ipv4_mapped", None) or found
    return any(plain in network for network in _OWN if network.version == plain.version)


def refuse_strange_network(host: str, *, any_network: bool) -> None:
    """Raises `SettingsError` for an address outside of the person's own networks, unless they said that it is theirs."""
    found = ipaddress.ip_address(host)
    if found.is_unspecified or found.is_multicast:
        raise SettingsError(
            f"{host} is the address of no one machine: name the one by which the other machines reach this one."
        )
    if not any_network and not is_own_network(host):
        raise SettingsError(
            f"{host} is not an address of a private network, and what ranks send each other is neither locked nor encrypted "
            "there (docs/ranks.md): use a private one, or a VPN's with --set nodes.any_network=true."
        )


def draw_key() -> str:
    """A key for a run."""
    return secrets.token_urlsafe(32)


def refuse_short_key(key: str) -> None:
    """Raises `SettingsError` for a key that somebody could guess."""
    if len(key) < LEAST_KEY:
        raise SettingsError(
            f"nodes.key has {len(key)} characters, and {LEAST_KEY} are needed: take the one that the first machine has drawn."
        )


# --------------------------------------------------------------------------------------------------------------------
# What a machine asks for before it joins


class NodeMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what machines say to each other."""


class Describe(NodeMessage, frozen=True, tag="describe"):
    """What is trained there?"""


class Read(NodeMessage, frozen=True, tag="read"):
    """The piece of a file that begins at `offset`."""

    file: Annotated[int, msgspec.Meta(ge=0)]
    offset: Annotated[int, msgspec.Meta(ge=0)]


class OfferedFile(NodeMessage, frozen=True):
    """A file of the run's data or model, as it lies on the first machine."""

    path: Annotated[str, msgspec.Meta(max_length=4096)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    blake2b: Annotated[str, msgspec.Meta(max_length=64)]


Versions = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=16)
]
"""The versions of what decides what is computed, by its name."""


def unlike(theirs: Versions, ours: Versions) -> str | None:
    """How versions differ, a clause about the other machine. Returns None where they are the same."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if not names:
        return None
    there = " and ".join(f"{name} {theirs.get(name, 'of an unknown version')}" for name in names)
    return f"{there}, and {' and '.join(str(ours.get(name, 'none')) for name in names)} here"


class Described(NodeMessage, frozen=True, tag="described"):
    """What is trained, and from which files. `task`, `training` and `lora` are these sections of the settings."""

    run: Annotated[str, msgspec.Meta(max_length=256)]
    machine: Annotated[str, msgspec.Meta(max_length=256)]
    task: dict[str, Any]
    training: dict[str, Any]
    lora: dict[str, Any]
    versions: Versions
    files: Annotated[list[OfferedFile], msgspec.Meta(max_length=MOST_FILES)]


class NotYet(NodeMessage, frozen=True, tag="not_yet"):
    """It is being looked at; ask again."""


class Piece(NodeMessage, frozen=True, tag="piece"):
    """A part of a file; empty behind its end."""

    file: int
    offset: int
    content: Annotated[bytes, msgspec.Meta(max_length=PIECE_BYTES)]


class Receive(NodeMessage, frozen=True):
    """What `worker/ranks/receive.py` is to do, on its standard input, where nobody else sees the key."""

    address: str
    port: int
    key: str
    draft: str
    """The folder in which files come to lie."""


class Received(NodeMessage, frozen=True, tag="received"):
    """All files are there, and whole."""


class NotReceived(NodeMessage, frozen=True, tag="not_received"):
    """Why not, a sentence. `is_bad`: it would be no better another time."""

    why: str
    is_bad: bool = False


class Unreadable(NodeMessage, frozen=True, tag="unreadable"):
    """What was asked for cannot be read there, or was changed since it was described."""

    why: Annotated[str, msgspec.Meta(max_length=4096)]


Offer = Described | NotYet | Piece | Unreadable

Told = Described | Received | NotReceived
"""What `receive.py` tells, a line of JSON each: what is sent, and then what came of it."""

_encoder = msgspec.msgpack.Encoder()
_offer = msgspec.msgpack.Decoder(Offer)


def frames_of(message: msgspec.Struct) -> list[bytes]:
    """A message as it is sent."""
    return [PROTOCOL, _encoder.encode(message)]


def is_of_another_version(frames: list[bytes]) -> bool:
    """Whether what comes from a machine is what another version of memsup says."""
    return bool(frames) and frames[0].startswith(_PROTOCOLS) and frames[0] != PROTOCOL


def decoded_offer(frames: list[bytes]) -> Offer | None:
    """What the first machine answers. None means that it is no answer of these."""
    try:
        return _offer.decode(frames[1]) if len(frames) == 2 and frames[0] == PROTOCOL else None
    except msgspec.DecodeError:
        return None
