"""Strangers at the two sockets: each of the ways in which somebody who can open them may try to disturb the guard.

Run as a file it floods a socket of the default run in one way: `floods.py WAY SOCKET SECONDS [PID]`, with the pid that it says
it is. Whoever is hung up on comes again.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from memsup import zmtp
from memsup.shared import messages as m
from memsup.shared.endpoints import CONTROL_SOCKET, WORKER_SOCKET, SocketFolder
from memsup.shared.messages import RequestKind
from memsup.shared.paths import run_paths

DRAW = random.Random(1)
MIB = 1 << 20
MANY = 1_500
"""More connections than any supervisor has descriptors for, at the usual limit of 1,024."""


class Flooder:
    def __init__(self, name: str, until_s: float) -> None:
        self.name, self.until_s = name, until_s
        paths = run_paths("default")
        self._folder = SocketFolder(paths)
        self.run_id = json.loads(paths.record.read_bytes())["run_id"]

    def goes_on(self) -> bool:
        return time.monotonic() < self.until_s

    def connect(self, *, blocking: bool = True) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(1.0 if blocking else 0.0)
        connection.connect(self._folder.path(self.name))
        return connection

    def send_for_ever(self, pieces: Iterator[bytes]) -> None:
        while self.goes_on():
            with suppress(OSError), self.connect() as connection:
                connection.sendall(zmtp.opening(b"DEALER"))
                connection.recv(64)
                while self.goes_on():
                    connection.sendall(next(pieces))


def parts(flooder: Flooder) -> None:
    """A message of endlessly many parts of one byte."""
    flooder.send_for_ever(itertools.repeat(b"\x01\x01x" * 100_000))


def endless(flooder: Flooder) -> None:
    """A message of endlessly many parts of 1 MiB."""
    flooder.send_for_ever(itertools.repeat(b"\x03" + MIB.to_bytes(8, "big") + bytes(MIB)))


def halves(flooder: Flooder) -> None:
    """As many connections as are to be had, each with the first half of a message as long as a stranger's may be."""
    half = zmtp.opening(b"DEALER") + b"\x02" + (4 << 10).to_bytes(8, "big") + bytes(4000)
    hold_many(flooder, half)


def connections(flooder: Flooder) -> None:
    """As many connections as are to be had, and not a word."""
    hold_many(flooder, b"")


def hold_many(flooder: Flooder, said: bytes) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held: list[socket.socket] = []
    while flooder.goes_on():
        try:
            connection = flooder.connect(blocking=False)
            held.append(connection)
            connection.send(said)
        except OSError:
            time.sleep(0.001)
        if len(held) >= min(MANY, hard - 32):
            held.pop(0).close()


def knocks(flooder: Flooder) -> None:
    """Comes, and goes again at once."""
    while flooder.goes_on():
        with suppress(OSError):
            flooder.connect().close()


def noise(flooder: Flooder) -> None:
    """Bytes that mean nothing, before or after a handshake."""
    while flooder.goes_on():
        with suppress(OSError), flooder.connect() as connection:
            connection.sendall(DRAW.choice([b"", zmtp.opening(b"DEALER")]))
            while flooder.goes_on():
                connection.sendall(DRAW.randbytes(4096))


def garbage(flooder: Flooder) -> None:
    """Whole messages that are none of memsup's."""
    flooder.send_for_ever(zmtp.message([m.PROTOCOL, DRAW.randbytes(DRAW.randrange(60))]) * 50 for _ in itertools.count())


def questions(flooder: Flooder) -> None:
    """Good questions, whose answers are not fetched; at the worker's socket somebody says that he is the worker."""
    messages: list[m.Message] = [m.Request(request_id=1, what=RequestKind.STATUS)]
    if flooder.name == WORKER_SOCKET:
        hello = m.Hello(pid=int(sys.argv[4]), run_id=flooder.run_id)
        messages = [hello, m.Accepted(order_id=1), m.Done(order_id=1, detail="x"), m.Finished("/x", {}, 1, 1)]
    flooder.send_for_ever(itertools.repeat(b"".join(zmtp.message(m.encode(one)) for one in messages) * 50))


def orders(flooder: Flooder) -> None:
    """Orders that contradict each other; at the worker's socket what a worker decides by itself, and it may be the worker."""
    if flooder.name == WORKER_SOCKET:
        sentence = m.Decided(what=m.DecisionKind.ROWS_LEFT_OUT, detail="x" * 1000, rows=1)
        hello = m.Hello(pid=os.getpid(), run_id=flooder.run_id)
        messages = [hello, *[sentence] * 20]
    else:
        kinds = (RequestKind.PAUSE_HOLD, RequestKind.RESUME, RequestKind.CHECKPOINT, RequestKind.CHECKPOINT)
        messages = [m.Request(request_id=number, what=kind) for number, kind in enumerate(kinds)]
    flooder.send_for_ever(itertools.repeat(b"".join(zmtp.message(m.encode(one)) for one in messages)))


WAYS: dict[str, Callable[[Flooder], None]] = {
    way.__name__: way for way in (parts, endless, halves, connections, knocks, noise, garbage, questions, orders)
}


@contextmanager
def flooded(ways: Iterable[str], worker_pid: int | None, seconds: float = 600) -> Iterator[None]:
    """Both sockets of the run are flooded in all these ways at once meanwhile, each by a process of its own."""
    flooders = [
        subprocess.Popen([sys.executable, __file__, way, name, str(seconds), str(worker_pid or 1)])
        for way in ways
        for name in (CONTROL_SOCKET, WORKER_SOCKET)
    ]
    try:
        yield
    finally:
        for flooder in flooders:
            flooder.kill()
            flooder.wait()


if __name__ == "__main__":
    WAYS[sys.argv[1]](Flooder(sys.argv[2], time.monotonic() + float(sys.argv[3])))
