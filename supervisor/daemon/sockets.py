"""The supervisor's two sockets: whole messages in and out, never a wait, garbage counted and dropped.

Covers which peer is the worker and which client waits for which answer. What a message causes is decided in
`decide/run/lifecycle.py`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import zmq

from memsup.shared import messages as m
from memsup.shared.endpoints import CONTROL_SOCKET, WORKER_SOCKET, SocketFolder
from memsup.shared.log import log
from memsup.shared.paths import RunPaths
from memsup.supervisor.decide.run.actions import Answer

LINGER_MS = 500
GARBAGE_EVERY_S = 60.0
"""The ledger has at most one line about garbage in this time: a flood must not fill the disk."""
NOBODY = 0
"""The token of a request that no client waits for."""
MOST_AT_ONCE = 100
"""Messages taken from one socket before the loop looks at memory again: nobody can talk the guard to sleep."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Client:
    """Who asked on the control socket, and the number of its question."""

    identity: bytes
    request_id: int


class Sockets:
    def __init__(self, paths: RunPaths) -> None:
        """Binds both sockets. Raises `PathError` and `zmq.ZMQError`."""
        self._paths = paths
        folder = SocketFolder(paths)
        self._context = zmq.Context()
        self.worker = self._bind(folder.endpoint(WORKER_SOCKET))
        self.control = self._bind(folder.endpoint(CONTROL_SOCKET))
        self._speaks_to: bytes | None = None
        """The identity of the worker that said Hello in this life. It is None before that."""
        self._clients: dict[int, _Client] = {}
        """The clients that wait for an answer, by the token of their request."""
        self._tokens = itertools.count(NOBODY + 1)
        self._garbage = self._garbage_told = 0
        """Frames that were no message of this protocol, since the start, and how many of them were told."""
        self._tell_garbage_s = 0.0

    def _bind(self, endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        socket.linger = LINGER_MS
        socket.maxmsgsize = m.MAX_FRAME_BYTES
        socket.bind(endpoint)
        return socket

    def reports(self, run_id: str, pid: int | None) -> Iterator[m.AnyReport]:
        """What the worker has said. The worker is whoever said Hello for `run_id` with the `pid` that was started; nobody else
        is heard.
        """
        for identity, report in self._received(self.worker, m.decode_for_supervisor):
            if isinstance(report, m.Hello) and report.run_id == run_id and report.pid == pid:
                self._speaks_to = identity
            if identity == self._speaks_to:
                yield report

    def send(self, message: m.ToWorker) -> None:
        """Sends to the worker; does nothing before it has said Hello."""
        if self._speaks_to is not None:
            self._send(self.worker, self._speaks_to, message)

    def forget_worker(self) -> None:
        """The worker is gone; the next one has to say Hello."""
        self._speaks_to = None

    def requests(self) -> Iterator[tuple[int, m.RequestKind]]:
        """What clients ask, each with the token under which `answer` finds who asked."""
        for identity, request in self._received(self.control, m.decode_request):
            token = next(self._tokens)
            self._clients[token] = _Client(identity, request.request_id)
            yield token, request.what

    def answer(self, answer: Answer, status_json: bytes) -> None:
        """Replies to who waits for it, if anybody does."""
        client = self._clients.pop(answer.token, None)
        if client is not None:
            reply = m.Reply(
                request_id=client.request_id,
                ok=answer.ok,
                text=answer.text,
                status_json=status_json,
                checkpoint_path=answer.checkpoint_path,
                freed_ram_bytes=answer.given_back.ram_bytes if answer.given_back else None,
                freed_vram_bytes=answer.given_back.vram_bytes if answer.given_back else None,
            )
            self._send(self.control, client.identity, reply)

    def garbage_to_tell(self, now_s: float) -> int:
        """How many frames were dropped that were not told yet; 0 where there are none, or some were told a moment ago."""
        new = self._garbage - self._garbage_told
        if new == 0 or now_s < self._tell_garbage_s:
            return 0
        self._garbage_told, self._tell_garbage_s = self._garbage, now_s + GARBAGE_EVERY_S
        return new

    def close(self) -> None:
        """Gives what was sent `LINGER_MS` to be taken, and removes both sockets."""
        self.worker.close()
        self.control.close()
        self._context.term()
        for name in (WORKER_SOCKET, CONTROL_SOCKET):
            (self._paths.runtime / name).unlink(missing_ok=True)

    def _received(self, socket: zmq.Socket[bytes], decode: Callable[[list[bytes]], T]) -> Iterator[tuple[bytes, T]]:
        for _ in range(MOST_AT_ONCE):
            try:
                identity, *frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                yield identity, decode(frames)
            except m.BadFrameError as error:
                self._garbage += 1
                if self._garbage.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: a flood must not fill the log
                    log.warning("Dropped a frame that is no message", number=self._garbage, why=str(error))

    def _send(self, socket: zmq.Socket[bytes], identity: bytes, message: m.Message) -> None:
        with contextlib.suppress(zmq.Again):  # whoever does not read gets nothing more; ROUTER drops for who is gone
            socket.send_multipart([identity, *m.encode(message)], zmq.DONTWAIT)
