"""The supervisor's two sockets: whole messages in and out, never a wait, garbage counted and dropped.

Which worker is spoken to and what a message causes is decided elsewhere (`main.py`, `lifecycle.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import zmq

from memsup.shared import messages as m
from memsup.shared.endpoints import CONTROL_SOCKET, WORKER_SOCKET, SocketFolder
from memsup.shared.log import log

LINGER_MS = 500
MOST_AT_ONCE = 100
"""Messages taken from one socket before the loop looks at memory again: nobody can talk the guard to sleep."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Client:
    """Who asked on the control socket, and the number of its question."""

    identity: bytes
    request_id: int


class Sockets:
    """Binds both. Raises `PathError` and `zmq.ZMQError`."""

    def __init__(self, folder: SocketFolder) -> None:
        self._context = zmq.Context()
        self.worker = self._bind(folder.endpoint(WORKER_SOCKET))
        self.control = self._bind(folder.endpoint(CONTROL_SOCKET))
        self.garbage = 0
        """Frames that were no message of this protocol, since the start."""

    def _bind(self, endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        socket.linger = LINGER_MS
        socket.maxmsgsize = m.MAX_FRAME_BYTES
        socket.bind(endpoint)
        return socket

    def reports(self) -> Iterator[tuple[bytes, m.AnyReport]]:
        """What workers have said, with the identity to answer to."""
        return self._received(self.worker, m.decode_for_supervisor)

    def requests(self) -> Iterator[tuple[Client, m.RequestKind]]:
        for identity, request in self._received(self.control, m.decode_request):
            yield Client(identity, request.request_id), request.what

    def send(self, identity: bytes, message: m.ToWorker) -> None:
        self._send(self.worker, identity, message)

    def reply(self, client: Client, reply: m.Reply) -> None:
        self._send(self.control, client.identity, reply)

    def close(self) -> None:
        """Gives what was sent `LINGER_MS` to be taken."""
        self.worker.close()
        self.control.close()
        self._context.term()

    def _received(self, socket: zmq.Socket[bytes], decode: Callable[[list[bytes]], T]) -> Iterator[tuple[bytes, T]]:
        for _ in range(MOST_AT_ONCE):
            try:
                identity, *frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                yield identity, decode(frames)
            except m.BadFrameError as error:
                self.garbage += 1
                if self.garbage.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: a flood must not fill the log
                    log.warning("Dropped a frame that is no message", number=self.garbage, why=str(error))

    def _send(self, socket: zmq.Socket[bytes], identity: bytes, message: m.Message) -> None:
        with contextlib.suppress(zmq.Again):  # whoever does not read gets nothing more; ROUTER drops for who is gone
            socket.send_multipart([identity, *m.encode(message)], zmq.DONTWAIT)
