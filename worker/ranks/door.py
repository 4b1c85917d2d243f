"""The first machine's door: one socket, to which the other machines connect, and the thread that serves it.

The lock is CURVE's (libzmq, RFC 26): whoever does not show the key is not let in, and what is said is encrypted. Each
connection is a peer of its own, so a machine whose connection broke comes back as another peer, and nothing that was lost with
the connection is ever missed silently. What cannot be read is counted and dropped; nothing that comes in is an order.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable

import msgspec
import zmq

from memsup.shared.clock import monotonic_s
from memsup.shared.log import log
from memsup.shared.nodes import OTHER_VERSION, Address, Describe, NodeMessage, Read, frames_of, is_of_another_version
from memsup.worker.ranks import messages as m
from memsup.worker.ranks.lock import Keys, guard_door
from memsup.worker.ranks.offered import Offered

LOOK_S = 0.5
_ENDS_WITHIN_S = 3.0
_ZAP = "inproc://zeromq.zap.01"

Peer = bytes
"""One connection."""
Heard = Callable[[Peer, m.ToFirstMachine], None]


class Door:
    """Open from `start` on. `heard` gets what machines say, `looked` the seconds since it was called last, about twice a
    second; both are called in the door's thread.
    """

    def __init__(
        self,
        address: Address,
        keys: Keys,
        offered: Offered,
        *,
        heard: Heard,
        looked: Callable[[float], None],
        broke: Callable[[Exception], None],
    ) -> None:
        """`broke` is called at the end of a thread that nobody has ended. Raises zmq.ZMQError where nobody can listen at
        `address`.
        """
        self._broke = broke
        self._offered, self._heard, self._looked, self._keys = offered, heard, looked, keys
        self._outbox: queue.SimpleQueue[tuple[Peer, msgspec.Struct] | None] = queue.SimpleQueue()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._garbage = 0
        self._context = zmq.Context(io_threads=1)
        try:
            self._guard = self._context.socket(zmq.REP)
            self._guard.linger = 0
            self._guard.bind(_ZAP)  # before the door is: libzmq asks here who may come in
            self._socket = self._context.socket(zmq.ROUTER)
            guard_door(self._socket, keys, address)
            self._socket.bind(f"tcp://{address}")
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self._thread = threading.Thread(target=self._serve, name="door", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def tell(self, peer: Peer, message: msgspec.Struct) -> None:
        """Says something to a machine, from any thread. One that is not connected any more does not hear it."""
        self._outbox.put((peer, message))
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Sends what was said, as far as the others still take it, and ends the thread."""
        self._outbox.put(None)
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(_ENDS_WITHIN_S)

    # ---------------------------------------------------------------------------------------------------------------
    # The thread

    def _serve(self) -> None:
        poller = zmq.Poller()
        for each in (self._guard, self._socket, self._wake_fd):
            poller.register(each, zmq.POLLIN)
        last_s = monotonic_s()
        try:
            while True:
                poller.poll(int(LOOK_S * 1000))
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
                self._admit()
                self._receive()
                while not self._outbox.empty():
                    if (told := self._outbox.get()) is None:
                        return
                    self._send(*told)
                if (now_s := monotonic_s()) - last_s >= LOOK_S:
                    self._looked(now_s - last_s)
                    last_s = now_s
        except Exception as error:  # nobody would be heard any more, and all wait for those who are not
            log.exception("The door for other machines broke")
            self._broke(error)
        finally:
            self._context.destroy(linger=1000)

    def _admit(self) -> None:
        """Answers libzmq whether who has come may come in (ZAP, RFC 27): they show that they have the client's key."""
        while True:
            try:
                version, request, _domain, _address, _identity, mechanism, *credentials = self._guard.recv_multipart(
                    zmq.DONTWAIT
                )
            except zmq.Again:
                return
            has_key = mechanism == b"CURVE" and credentials == [zmq.utils.z85.decode(self._keys.client_public)]
            code, text = (b"200", b"OK") if has_key else (b"400", b"not the key of this run")
            self._guard.send_multipart([version, request, code, text, b"", b""])
            if not has_key:
                self._count("Somebody without the key was not let in")

    def _receive(self) -> None:
        for _ in range(256):  # or nobody else would have a turn
            try:
                peer, *frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            message = m.to_first_machine(frames)
            match message:
                case None if is_of_another_version(frames):
                    self._send(peer, m.NotHere(why=OTHER_VERSION, again=False))  # which it knows by the first frame
                    self._count("Another machine has another version of memsup")
                case None:
                    self._count("Dropped frames of another machine that are no message")
                case Describe():
                    self._send(peer, self._offered.described())
                case Read(file=number, offset=offset):
                    self._send(peer, self._offered.read(number, offset))
                case _:
                    self._heard(peer, message)

    def _send(self, peer: Peer, message: msgspec.Struct | NodeMessage) -> None:
        with contextlib.suppress(zmq.Again):  # it takes nothing any more; when it comes back it is another peer
            self._socket.send_multipart([peer, *frames_of(message)], zmq.DONTWAIT)

    def _count(self, what: str) -> None:
        self._garbage += 1
        if self._garbage.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …: a flood must not fill the log
            log.warning(what, number=self._garbage)
