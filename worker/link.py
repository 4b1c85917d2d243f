"""The worker's end of the worker socket: one thread that reports, receives orders and notices that it is left alone.

Covers the DEALER socket, heartbeats, `Accepted`, the lease and the lifeline. It carries no order out: orders go into `orders`,
one queue that the main thread empties at its boundaries (`session.py`), and what the main thread has to say comes back
through `report`. ZeroMQ sockets are not thread-safe, so no other thread ever touches this one.

The thread shares the interpreter with torch. Loading torch's libraries holds the interpreter for a second and more, so beats
may come late in `loading`; time in which this thread could not listen does not count against the lease either.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import zmq

from memsup.shared.clock import monotonic_s
from memsup.shared.endpoints import WORKER_SOCKET, SocketFolder
from memsup.shared.log import log
from memsup.shared.messages import (
    Accepted,
    AnyOrder,
    AnyReport,
    BadFrameError,
    BatchShape,
    CheckpointNote,
    Heartbeat,
    Hello,
    KeepState,
    Order,
    Phase,
    Progress,
    Welcome,
    WorkerMemory,
    decode_for_worker,
    encode,
)
from memsup.shared.paths import RunPaths
from memsup.shared.readings import Evaluation, NodeReading, RankReading
from memsup.worker.kept import Lifeline
from memsup.worker.memory import read_memory

BEAT_S = 0.5
FIRST_STEP_BEAT_S = 0.1
"""Until the first step of a life is taken, for which people wait."""
ABANDONED_S = 600.0
"""A worker without a supervisor whose main thread does not move for this long is ended from here."""
_LINGER_MS = 3000


RanksNow = Callable[[tuple[RankReading, ...]], tuple[RankReading, ...]]
"""What several ranks hold now, of what was last told of them."""


def _as_they_were(ranks: tuple[RankReading, ...]) -> tuple[RankReading, ...]:
    return ranks


@dataclass(frozen=True, slots=True)
class MustLeave:
    """Comes out of the queue of orders when nobody ordered it: the supervisor is gone, or the system asks to terminate."""

    reason: str


@dataclass(frozen=True, slots=True)
class MustFail:
    """Comes out of the queue of orders where the run cannot go on in this life, though this process is well: a rank is gone."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the heartbeats say until the main thread publishes the next one: always of one moment, never half updated."""

    progress: Progress
    batch: BatchShape | None = None
    checkpoint: CheckpointNote | None = None
    digest: str | None = None
    evaluation: Evaluation | None = None
    nodes: tuple[NodeReading, ...] | None = None


STARTING = Snapshot(
    Progress(
        phase=Phase.STARTING,
        ticks=0,
        epoch=0.0,
        step=0,
        total_steps=None,
        samples=0,
        loss=None,
        samples_per_s=None,
        eta_s=None,
    )
)


class LeaseTimer:
    """How much of the lease is left, in time in which the thread was able to listen.

    A worker that the supervisor froze, or a machine that slept, has heard nothing and yet nobody has left it: of each pass of
    the loop at most `most_s` counts.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._left_s: float | None = None

    def renew(self, lease_s: float) -> None:
        self._left_s = lease_s

    def spend(self, elapsed_s: float) -> bool:
        """Takes `elapsed_s` off the lease; returns whether nothing is left. Before the first lease nothing is spent."""
        if self._left_s is None:
            return False
        self._left_s -= min(elapsed_s, self._most_s)
        return self._left_s <= 0


class Link:
    """Public to the main thread: `orders`, `lifeline`, `snapshot`, `report`, `welcome` and `close`."""

    def __init__(self, paths: RunPaths, *, run_id: str, lifeline_fd: int) -> None:
        """`lifeline_fd` is the worker's end of the lifeline, and this object's from now on. Raises `PathError`."""
        self.orders: queue.SimpleQueue[AnyOrder | MustLeave | MustFail] = queue.SimpleQueue()
        self.snapshot = STARTING
        self.read_memory: Callable[[], WorkerMemory] = read_memory
        self.ranks_now: RanksNow = _as_they_were
        self._hello = Hello(pid=os.getpid(), run_id=run_id)
        self.lifeline = Lifeline(lifeline_fd)
        self._welcome: queue.SimpleQueue[Welcome | MustLeave] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[AnyReport | None] = queue.SimpleQueue()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._folder = SocketFolder(paths)
        self._lease = LeaseTimer(most_s=2 * BEAT_S)
        self._lost = False
        self._garbage = 0
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    # ---------------------------------------------------------------------------------------------------------------
    # For the main thread

    def start(self) -> None:
        self._thread.start()

    def welcome(self, timeout_s: float) -> Welcome | None:
        """Waits for what the supervisor allows in this life. None means that it is gone, or said nothing in time."""
        try:
            first = self._welcome.get(timeout=timeout_s)
        except queue.Empty:
            return None
        return first if isinstance(first, Welcome) else None

    def report(self, message: AnyReport) -> None:
        self._outbox.put(message)
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Sends what was reported, as far as the supervisor still takes it, and ends the thread."""
        self._outbox.put(None)
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(2 * _LINGER_MS / 1000)
        self._folder.close()
        self.lifeline.close()

    # ---------------------------------------------------------------------------------------------------------------
    # The thread

    def _run(self) -> None:
        context = zmq.Context(io_threads=1)
        try:
            socket = context.socket(zmq.DEALER)
            socket.connect(self._folder.endpoint(WORKER_SOCKET))
            self._serve(socket)
        except Exception as error:
            log.exception("The link to the supervisor broke")
            self._leave(f"the link to the supervisor broke: {error}")
        finally:
            context.destroy(linger=_LINGER_MS if not self._lost else _LINGER_MS // 10)

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        lifeline_fd = self.lifeline.fileno()
        poller.register(lifeline_fd, zmq.POLLIN | zmq.POLLERR)
        self._send(socket, self._hello)
        last_s = next_beat_s = moved_s = monotonic_s()
        ticks = -1
        while True:
            wait_s = max(0.0, next_beat_s - monotonic_s())
            ready = dict(poller.poll(int(wait_s * 1000) + 1))
            now_s = monotonic_s()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
            if not self._outbox.empty():
                self._beat(socket)  # what is answered or reported is seen together with where it happened
            while not self._outbox.empty():
                message = self._outbox.get()
                if message is None:
                    return
                self._send(socket, message)
            self._receive(socket)
            if lifeline_fd in ready:
                poller.unregister(lifeline_fd)
                self._leave("the supervisor is gone")
            if self._lease.spend(now_s - last_s):
                self._leave("the supervisor has not renewed its lease")
            last_s = now_s
            if now_s >= next_beat_s:
                next_beat_s = now_s + (FIRST_STEP_BEAT_S if self.snapshot.progress.loss is None else BEAT_S)
                self._beat(socket)
            if self.snapshot.progress.ticks != ticks:
                ticks, moved_s = self.snapshot.progress.ticks, now_s
            elif self._lost and now_s - moved_s > ABANDONED_S:
                self._end_abandoned()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = decode_for_worker(frames)
            except BadFrameError as error:
                self._garbage += 1
                if self._garbage.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …: a flood must not fill the log
                    log.warning("Dropped a frame that is no message", number=self._garbage, why=str(error))
                continue
            if isinstance(message, Order):
                self.orders.put(message)
                self._send(socket, Accepted(order_id=message.order_id))
            elif isinstance(message, KeepState):
                self.lifeline.every_s = message.every_s
            else:
                self._lease.renew(message.lease_s)
                if isinstance(message, Welcome):
                    self._welcome.put(message)

    def _beat(self, socket: zmq.Socket[bytes]) -> None:
        seen = self.snapshot
        batch = seen.batch
        try:
            memory = self.read_memory()
            if batch is not None and batch.ranks is not None:  # memory is compared with what the driver says in this second
                batch = msgspec.structs.replace(batch, ranks=self.ranks_now(batch.ranks))
        except (MemoryError, OSError):  # at a limit: the next beat comes soon, and the main thread is about to free
            return
        self._send(
            socket,
            Heartbeat(
                progress=seen.progress,
                batch=batch,
                memory=memory,
                checkpoint=seen.checkpoint,
                digest=seen.digest,
                evaluation=seen.evaluation,
                nodes=seen.nodes,
            ),
        )

    def _send(self, socket: zmq.Socket[bytes], message: AnyReport) -> None:
        try:
            socket.send_multipart(encode(message), zmq.DONTWAIT)
        except zmq.Again:  # a thousand messages wait already: nobody is there, and the lease will say so
            pass

    def _leave(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            log.warning("Leaving", reason=reason)
            self.orders.put(MustLeave(reason))
            self._welcome.put(MustLeave(reason))

    def _end_abandoned(self) -> None:
        log.critical("No supervisor, and the main thread does not move: ending the process", silent_s=ABANDONED_S)
        faulthandler.dump_traceback(sys.stderr)
        os._exit(1)
