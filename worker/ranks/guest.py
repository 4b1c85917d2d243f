"""Another machine's end of its connection to the first one: asks to join until it is told to begin, hears what is to be
computed, and tells twice a second that it is alive.

One thread has the socket. The connection is not given up when nothing is heard for long: a cable that is back makes it whole
again. Where the first machine says that this one is not in its run any more, or begins anew, this life ends, and the next one
asks again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket as sockets
import threading
from collections.abc import Callable

import zmq

from memsup.shared.clock import monotonic_s
from memsup.shared.log import log
from memsup.shared.messages import AnyReport, Decided, DecisionKind, Failed, FailureCause, Finished, Leaving, OutOfMemory, Phase
from memsup.shared.nodes import OTHER_VERSION, Address, frames_of, is_of_another_version
from memsup.shared.readings import NodeReading
from memsup.worker.link import BEAT_S, MustFail, MustLeave, Snapshot
from memsup.worker.memory import read_memory
from memsup.worker.ranks import messages as m
from memsup.worker.ranks.lock import Keys, use_key
from memsup.worker.ranks.versions import versions
from memsup.worker.session import GiveUp

SILENT_S = 5.0
_JOIN_EVERY_S = 1.0
_ENDS_WITHIN_S = 3.0


class Guest:
    """Public to the main thread: `meet`, `work`, `finished`, `told`, `say`, `report`, `reading` and `close`."""

    def __init__(
        self,
        address: Address,
        keys: Keys,
        *,
        node: str,
        snapshot: Callable[[], Snapshot],
        end: Callable[[MustLeave | MustFail], None],
    ) -> None:
        """`node` is the id by which the first machine knows this one, `snapshot` what its heartbeats say, and `end` has its
        main thread end this life.
        """
        self.meet: queue.SimpleQueue[m.Meet] = queue.SimpleQueue()
        self.work: queue.SimpleQueue[m.Compute | m.Evaluate | m.Add] = queue.SimpleQueue()
        self.finished: Finished | None = None
        """The end of the run, when it has come."""
        self.told: m.Told | None = None
        """What the first machine has said last of the run. None means that it has not answered yet."""
        self._address, self._keys, self._snapshot, self._end = address, keys, snapshot, end
        self._join = m.Join(node=node, name=sockets.gethostname()[:256] or "?", versions=versions())
        self._is_in = False
        self._silent_s = 0.0
        self._outbox: queue.SimpleQueue[m.ToFirstMachine | None] = queue.SimpleQueue()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="guest", daemon=True)
        self._thread.start()

    def say(self, message: m.ToFirstMachine) -> None:
        """Tells the first machine, from any thread."""
        self._outbox.put(message)
        os.eventfd_write(self._wake_fd, 1)

    def report(self, message: AnyReport) -> None:
        """Tells the first machine what a worker would tell its supervisor, as far as it concerns all."""
        match message:
            case OutOfMemory() | Failed() | Leaving():
                self.say(m.Said(report=message))
            case Decided(what=what, detail=detail, step=step) if what is DecisionKind.OTHER_BITS:
                self.say(m.Said(report=Decided(what=what, detail=f"{self._join.name}: {detail}", step=step)))

    def reading(self) -> NodeReading:
        """What is told of the first machine."""
        told = self.told
        return NodeReading(
            name=str(self._address) if told is None else told.name,
            is_first=True,
            is_here=told is not None and self._silent_s <= SILENT_S,
            rank=None if told is None else 0,
            holds=told is not None and told.progress.phase is Phase.HOLDING,
            silent_s=round(self._silent_s, 1) if self._silent_s > SILENT_S else 0.0,
        )

    def close(self) -> None:
        """Sends what was said, as far as the first machine still takes it."""
        self._outbox.put(None)
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(_ENDS_WITHIN_S)

    # ---------------------------------------------------------------------------------------------------------------
    # The thread

    def _run(self) -> None:
        context = zmq.Context(io_threads=1)
        try:
            socket = context.socket(zmq.DEALER)
            use_key(socket, self._keys, self._address)
            socket.connect(f"tcp://{self._address}")
            self._serve(socket)
        except Exception as error:
            log.exception("The connection to the first machine broke")
            self._end(MustLeave(f"the connection to the first machine broke: {error}"))
        finally:
            context.destroy(linger=1000)

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        last_s, next_beat_s, next_join_s = monotonic_s(), 0.0, 0.0
        while True:
            poller.poll(int(BEAT_S * 1000))
            now_s = monotonic_s()
            self._silent_s, last_s = self._silent_s + min(now_s - last_s, 2 * BEAT_S), now_s
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
            while not self._outbox.empty():
                if (message := self._outbox.get()) is None:
                    return
                self._send(socket, message)
            self._receive(socket)
            if not self._is_in and now_s >= next_join_s:
                next_join_s = now_s + _JOIN_EVERY_S
                if socket.poll(0, zmq.POLLOUT):
                    self._send(socket, self._join)
            if now_s >= next_beat_s:
                next_beat_s = now_s + BEAT_S
                self._beat(socket)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            message = m.from_first_machine(frames)
            if message is None and is_of_another_version(frames):
                self._end(MustFail(GiveUp(FailureCause.BAD_INPUT, f"The first machine {OTHER_VERSION}.")))
                continue
            if message is None:
                log.warning("Dropped frames of the first machine that are no message")
                continue
            self._silent_s = 0.0
            match message:
                case m.Told():
                    self.told = message
                case m.Meet() if not self._is_in:
                    self._is_in = True
                    self.meet.put(message)
                case m.Compute() | m.Evaluate() | m.Add() if self._is_in:
                    self.work.put(message)
                case m.Over(finished=finished):
                    self.finished = finished
                    self._end(MustLeave("the run is finished"))
                case m.NotHere(why=why, again=False):
                    self._end(MustFail(GiveUp(FailureCause.BAD_INPUT, f"The first machine does not let this one join: {why}.")))
                case m.NotHere(why=why) if self._is_in:
                    self._end(MustLeave(why))

    def _beat(self, socket: zmq.Socket[bytes]) -> None:
        if not self._is_in:
            return
        seen, resident_bytes = self._snapshot(), None
        with contextlib.suppress(MemoryError, OSError):
            resident_bytes = read_memory().resident_bytes
        self._send(
            socket,
            m.Beat(
                ticks=seen.progress.ticks,
                micro_tokens=seen.batch.micro_tokens if seen.batch else None,
                resident_bytes=resident_bytes,
                holds=seen.progress.phase is Phase.HOLDING,
            ),
        )

    def _send(self, socket: zmq.Socket[bytes], message: m.ToFirstMachine) -> None:
        with contextlib.suppress(zmq.Again):  # nobody is there; when somebody is, this life is over for them
            socket.send_multipart(frames_of(message), zmq.DONTWAIT)
