"""ZeroMQ's wire protocol: the same as libzmq's, in pieces of any size, and bounded in what it keeps of anybody's bytes."""

from __future__ import annotations

import random
import socket

import pytest
import zmq

from memsup import zmtp

ROOMY = 1 << 20


def taken(incoming: zmtp.Incoming) -> list[list[bytes]]:
    return list(iter(incoming.next_message, None))


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_what_one_side_says_the_other_hears(piece_bytes: int) -> None:
    """However the kernel cuts it."""
    messages = [[b"a"], [b"", b""], [b"memsup/2", bytes(255), bytes(256)], [bytes(70_000), b"end"]]
    wire = zmtp.opening(b"DEALER") + b"".join(zmtp.message(parts) for parts in messages)
    incoming, heard = zmtp.Incoming(ROOMY), []
    for start in range(0, len(wire), piece_bytes):
        incoming.feed(wire[start : start + piece_bytes])
        heard += taken(incoming)
    assert heard == messages
    assert incoming.is_ready


@pytest.mark.parametrize(("ours", "kind"), [(b"ROUTER", zmq.DEALER), (b"DEALER", zmq.ROUTER)])
def test_libzmq_takes_it_for_one_of_its_own(ours: bytes, kind: int) -> None:
    """In both directions, with frames of both sizes."""
    with zmq.Context() as context, context.socket(kind) as theirs:
        theirs.linger = 0
        port = theirs.bind_to_random_port("tcp://127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            incoming = zmtp.Incoming(ROOMY)
            connection.sendall(zmtp.opening(ours))
            while not incoming.is_ready:
                incoming.feed(connection.recv(4096))
                assert taken(incoming) == []
            connection.sendall(zmtp.message([b"to you", bytes(300)]))
            assert theirs.poll(20_000)
            *identity, first, second = theirs.recv_multipart()
            assert (first, second) == (b"to you", bytes(300))
            theirs.send_multipart([*identity, b"to us", bytes(70_000)])
            heard: list[list[bytes]] = []
            while not heard:
                incoming.feed(connection.recv(4096))
                heard = taken(incoming)
            assert heard == [[b"to us", bytes(70_000)]]


OPENED = zmtp.opening(b"DEALER")


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        bytes(64),
        b"\xff" + bytes(9),
        b"\xff" + bytes(8) + b"\x7f\x01\x00",
        OPENED[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32),
        OPENED[:64] + zmtp.message([b"before the handshake"]),
        OPENED[:64] + b"\x04\x06\x05ERROR",
        OPENED + b"\x08\x00",
        OPENED + b"\x05\x00",
        OPENED + b"\xff\x00",
        OPENED + b"\x02" + (1 << 63).to_bytes(8, "big"),
        OPENED + b"\x01\xff" + bytes(255) + b"\x03" + (990).to_bytes(8, "big"),
        OPENED + b"\x01\x01x" * 17,
        OPENED + b"\x01\x00" * 17,
        OPENED + b"\x06" + (1001).to_bytes(8, "big"),
    ],
    ids=lambda said: f"{len(said)}-{said[-12:].hex()}",
)
def test_what_is_none_of_it_ends_the_connection_before_it_is_kept(said: bytes) -> None:
    """Also the length of a message that has not come yet, of a command, or of all parts together."""
    incoming = zmtp.Incoming(1000)
    incoming.feed(said)
    with pytest.raises(zmtp.ZmtpError):
        taken(incoming)


def test_commands_after_the_handshake_are_passed_over() -> None:
    incoming = zmtp.Incoming(1000)
    incoming.feed(OPENED + b"\x04\x07\x04PING\x00\x0a" + zmtp.message([b"x"]))
    assert taken(incoming) == [[b"x"]]


def fuzz(rounds: int, seed: int) -> None:
    """Good bytes with faults in them, in pieces: messages or `ZmtpError` come of it, and little is kept."""
    draw = random.Random(seed)
    for _ in range(rounds):
        good = [[draw.randbytes(draw.choice([0, 1, 20, 300])) for _ in range(draw.randint(1, 4))] for _ in range(3)]
        wire = bytearray(OPENED + b"".join(zmtp.message(parts) for parts in good))
        for _ in range(draw.randint(0, 4)):
            at = draw.choice([draw.randrange(len(wire)), draw.randrange(min(len(wire), 100))])
            match draw.randrange(4):
                case 0:
                    wire[at] ^= 1 << draw.randrange(8)
                case 1:
                    wire[at] = draw.choice([0, 1, 2, 3, 4, 6, 127, 128, 255])
                case 2:
                    del wire[at : at + draw.randint(1, 9)]
                case _:
                    wire[at:at] = draw.randbytes(draw.randint(1, 9))
            wire = wire or bytearray(b"\0")
        incoming = zmtp.Incoming(1000)
        try:
            while wire:
                piece, wire = wire[: (size := draw.choice([1, 60, 500]))], wire[size:]
                incoming.feed(piece)
                for parts in taken(incoming):
                    assert 0 < len(parts) <= zmtp.MOST_PARTS
                    assert sum(map(len, parts)) <= 1000
                assert len(incoming._bytes) + sum(map(len, incoming._parts)) <= 1000 + 64 + 9
        except zmtp.ZmtpError:
            pass


def test_faulty_bytes_raise_nothing_else() -> None:
    fuzz(3_000, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_faulty_bytes_raise_nothing_else_all_night() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    fuzz(1_000_000, seed)
