"""The lock on the connection between machines: CURVE, as libzmq has it (RFC 26, libsodium).

Both sides make their keys of the one key that a person carries from the first machine to another. So each knows the other by
it: who has it not is not let in, and does not get to see what is said.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import zmq
from zmq.utils import z85

from memsup.shared.nodes import MOST_FRAME_BYTES, Address, refuse_short_key

UNHEARD_MS = 5_000
"""A connection that does not come about in this time is tried anew."""


class Keys(NamedTuple):
    """CURVE's keys of both sides, in Z85."""

    server: bytes
    server_public: bytes
    client: bytes
    client_public: bytes


def keys_of(key: str) -> Keys:
    """The keys that both sides make of the one key. Raises `SettingsError` for a short one."""
    refuse_short_key(key)
    secrets_of = (hashlib.blake2b(key.encode(), digest_size=32, person=who).digest() for who in (b"door", b"guest"))
    server, client = map(z85.encode, secrets_of)
    return Keys(server, zmq.curve_public(server), client, zmq.curve_public(client))


def guard_door(socket: zmq.Socket[bytes], keys: Keys, address: Address) -> None:
    """Has a socket, before it is bound, let nobody in who has not the key, and nothing that is too large."""
    _bound(socket, address)
    socket.curve_server = True
    socket.curve_secretkey = keys.server


def use_key(socket: zmq.Socket[bytes], keys: Keys, address: Address) -> None:
    """Has a socket, before it connects, show the key, and talk to nobody who has it not."""
    _bound(socket, address)
    socket.curve_serverkey = keys.server_public
    socket.curve_publickey, socket.curve_secretkey = keys.client_public, keys.client
    socket.setsockopt(zmq.CONNECT_TIMEOUT, UNHEARD_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, 200)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)


def _bound(socket: zmq.Socket[bytes], address: Address) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, MOST_FRAME_BYTES)
    socket.setsockopt(zmq.IPV6, int(":" in address.host))
    socket.setsockopt(zmq.SNDHWM, 1000)
    socket.linger = 1000
