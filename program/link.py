"""The program's end of the worker socket: one thread that reports, receives orders and notices that it is left alone.

What `worker/link.py` is for the built-in training, with the standard library alone. It carries no order out: orders go into
`orders`, one queue that the main thread empties at its boundaries (`session.py`). The connection is the lifeline as well: it
ends with the supervisor. A process that forks leaves the connection to its parent.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import select
import signal
import socket
import threading
import time
from typing import Any, Callable

from memsup import messages, packing, zmtp
from memsup.about import About, NotAttached
from memsup.activity import cpu_s
from memsup.memory import read_memory

VARIABLE = "_MEMSUP_LINK"
"""The environment variable by which `memsup start --` tells what a program has to know of its run, as JSON (`Told`)."""
BEAT_S = 0.5
WELCOME_WITHIN_S = 15.0
TELL_WITHIN_S = 2.0
CPU_EVERY_S = 10.0
_TURNED_AWAY = "another process of the same command is attached, or this one is not of it"
MOST_MESSAGE_BYTES = 2 << 20
MOST_UNSENT_BYTES = 1 << 20
"""Where more waits to be sent nobody is there to read it, and beats are left out; the lease will say so."""


class NotAttachedError(Exception):
    """This process is not attached to a supervisor. The text is a clause that says why, `why` the same to programs."""

    def __init__(self, why: NotAttached, text: str) -> None:
        super().__init__(text)
        self.why = why


class Told:
    """What the supervisor tells the program that it starts."""

    def __init__(self, document: str) -> None:
        """Raises ValueError, KeyError and TypeError for what no supervisor writes."""
        told = json.loads(document)
        self.socket = str(told["socket"])
        self.run_id = str(told["run_id"])
        self.checkpoints = str(told["checkpoints"])
        """The folder of the run's checkpoints."""
        self.every_s: float | None = told["every_s"]
        """The seconds between two checkpoints. None means that their cost decides."""
        self.keep = int(told["keep"])
        self.start_anew = str(told.get("start_anew", "memsup start --fresh"))
        """The command that begins the run anew."""


def told() -> Told | None:
    """What the supervisor has told. It is None where this process was not started by `memsup start --`."""
    document = os.environ.get(VARIABLE)
    if not document:
        return None
    try:
        return Told(document)
    except (ValueError, KeyError, TypeError):
        return None


def start_anew() -> str:
    """The command that begins the run anew, to be suggested to a person."""
    found = told()
    return found.start_anew if found is not None else "memsup start --fresh"


class Lost:
    """Comes out of the queue of orders when nobody ordered it: the supervisor is gone, or the system asks to terminate."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Link:
    """Public to the main thread: `orders`, `progress`, `checkpoint`, `report`, `flush`."""

    def __init__(self, told: Told, about: About | None = None) -> None:
        """`about` is what Hello says. It is None where the process is not to be attached."""
        self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Orders as dictionaries, and `Lost`."""
        self.progress: messages.Message = messages.progress()
        """What heartbeats say; it is replaced, never changed, so that each tells of one moment."""
        self.checkpoint: messages.Note | None = None
        self.batch: messages.Message | None = None
        """How steps are computed. It is None where that is not known."""
        self.read_memory: Callable[[], messages.Message] = read_memory
        """What heartbeats say of memory; called in the link's thread."""
        self.urge: Callable[[], None] = _nothing
        """Called in the link's thread when an order has come."""
        self.memory_limit_bytes: int | None = None
        """What the process and all that belongs to it may use. It is None where nothing limits it."""
        self.micro_tokens_limit: int | None = None
        """Caps the first micro-batch. It is None but after a restart for want of memory."""
        self.deaths = 0
        """How many lives before this one ended without anybody having asked for it."""
        self.pid = os.getpid()
        self._told, self._about = told, about
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._wake, self._woken = os.pipe()
        self._welcomed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        """None once it is welcome, else the clause that says why it is not."""
        self._is_welcome = self._is_lost = False
        self._cpu_s: float | None = None
        self._cpu_looked_s = 0.0
        self._lease_left_s = float("inf")
        self._incoming = zmtp.Incoming(MOST_MESSAGE_BYTES)
        self._unsent = bytearray()
        self._waiting: list[threading.Event] = []
        self._socket: socket.socket | None = None
        """It is None before the link is open."""
        self._thread = threading.Thread(target=self._run, name="memsup", daemon=True)

    # -- for the main thread ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connects, and waits to be welcome. Raises `NotAttachedError`."""
        try:
            self._socket = connected(self._told.socket, socket.SOCK_STREAM)
            self._socket.setblocking(False)
        except OSError as error:
            text = f"its supervisor cannot be reached ({error.strerror or error})"
            raise NotAttachedError(NotAttached.NO_SUPERVISOR, text) from None
        os.register_at_fork(after_in_child=self._leave_to_parent)
        for fd in (self._wake, self._woken):
            os.set_blocking(fd, False)
        self._thread.start()
        try:
            why_not = self._welcomed.get(timeout=WELCOME_WITHIN_S)
        except queue.Empty:
            why_not = (
                f"its supervisor has not answered within {WELCOME_WITHIN_S:.0f} s: it may be no process of the run's command"
            )
        if why_not is not None:
            self.close()
            raise NotAttachedError(NotAttached.TURNED_AWAY, why_not)

    def tell_not_attached(self, why: NotAttached, text: str) -> None:
        """Has the supervisor told why this process is not attached, as far as it can be reached at once."""
        with contextlib.suppress(OSError):
            self._socket = connected(self._told.socket, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            self._outbox.put(messages.not_attached(self.pid, self._told.run_id, why, text))
            self._thread.start()
            self.flush(TELL_WITHIN_S)
            self.close()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that opened it, and no fork of that."""
        return os.getpid() == self.pid

    def report(self, message: messages.Message) -> None:
        self._outbox.put(message)
        self._rouse()

    def flush(self, within_s: float = 5.0) -> None:
        """Waits until the kernel has all that was reported; what it has the supervisor gets, also when we are dead."""
        sent = threading.Event()
        self._outbox.put(sent)
        self._rouse()
        until_s = time.monotonic() + within_s
        while not sent.wait(0.05) and self._thread.is_alive() and time.monotonic() < until_s:
            pass

    def close(self) -> None:
        """Ends the connection when all that was reported is sent."""
        self._outbox.put(None)
        self._rouse()

    def _rouse(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._woken, b"\0")

    def _leave_to_parent(self) -> None:
        """In a child that was forked: the connection has to end with the parent, and nobody tells this process anything."""
        if self._socket is not None:
            self._socket.close()
        with contextlib.suppress(ValueError):
            if getattr(signal.getsignal(signal.SIGTERM), "is_memsups", False):
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self._lose(f"the link to the supervisor broke: {error}")
        finally:
            if self._socket is not None:
                self._socket.close()
        for event in self._waiting:
            event.set()

    def _serve(self) -> None:
        assert self._socket is not None
        self._unsent += zmtp.opening(b"DEALER")
        if self._about is not None:
            self._outbox.put(messages.hello(self.pid, self._told.run_id, self._about))
        last_s = next_beat_s = time.monotonic()
        while not self._is_lost:
            wait_s = max(0.0, next_beat_s - time.monotonic())
            fd = self._socket.fileno()
            ready = _ready(fd, self._wake, writes=bool(self._unsent), within_s=wait_s)
            now_s = time.monotonic()
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            if fd in ready:
                self._receive()
            # A program that stood still, or a machine that slept, has heard nothing, and yet nobody has left it.
            self._lease_left_s -= min(now_s - last_s, 2 * BEAT_S)
            last_s = now_s
            if self._lease_left_s <= 0:
                self._lose("the supervisor has not renewed its lease")
            if self._incoming.is_ready and not self._send_what_is_due(now_s >= next_beat_s):
                self._flush()
                return
            if now_s >= next_beat_s:
                next_beat_s = now_s + BEAT_S
            self._flush()

    def _send_what_is_due(self, beat: bool) -> bool:
        """Puts what was reported on its way, a beat before it, so that it is seen together with where it happened. Returns
        whether the thread is to go on.
        """
        if self._is_welcome and (beat or not self._outbox.empty()) and len(self._unsent) < MOST_UNSENT_BYTES:
            self._look_at_cpu()
            self._send(messages.heartbeat(self.progress, self.read_memory(), self.checkpoint, self.batch, self._cpu_s))
        while not self._outbox.empty():
            message = self._outbox.get()
            if message is None:
                return False
            if isinstance(message, threading.Event):
                self._waiting.append(message)
            else:
                self._send(message)
        return True

    def _look_at_cpu(self) -> None:
        now_s = time.monotonic()
        if self._cpu_s is None or now_s - self._cpu_looked_s >= CPU_EVERY_S:
            self._cpu_s, self._cpu_looked_s = cpu_s(), now_s

    def _send(self, message: messages.Message) -> None:
        self._unsent += zmtp.message([messages.PROTOCOL, packing.pack(message)])

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._lose("the supervisor is gone")
        for event in self._waiting:
            event.set()
        self._waiting.clear()

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            received = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._lose("the supervisor is gone" if self._is_welcome else _TURNED_AWAY)
            return
        self._incoming.feed(received)
        try:
            while (parts := self._incoming.next_message()) is not None:
                if len(parts) == 2 and parts[0] == messages.PROTOCOL:
                    with contextlib.suppress(packing.PackingError):
                        self._take(packing.unpack(parts[1]))
        except zmtp.ZmtpError as error:
            self._lose(f"what listens there is no supervisor of memsup's ({error})")

    def _take(self, message: Any) -> None:
        if not messages.makes_sense(message):
            return
        kind = message["kind"]
        if kind in messages.NO_ORDERS:
            self._lease_left_s = float(message["lease_s"])
            if kind == "welcome" and not self._is_welcome:
                self._is_welcome, self.deaths = True, int(message.get("deaths", 0))
                self.memory_limit_bytes, self.micro_tokens_limit = message["memory_limit_bytes"], message["micro_tokens_limit"]
                self._welcomed.put(None)
        else:
            self.orders.put(message)
            self._send(messages.accepted(message["order_id"]))
            self.urge()

    def _lose(self, reason: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            self.orders.put(Lost(reason))
            self.urge()
            if not self._is_welcome:
                self._welcomed.put(reason)


def _nothing() -> None:
    pass


def _ready(reads: int, wakes: int, *, writes: bool, within_s: float) -> set[int]:
    """Which of two descriptors has something to read; also returns when `reads` can be written to, where `writes`. This is not
    `select`, which knows no descriptor above 1023: a program may have as many files open.
    """
    poll = select.poll()
    poll.register(reads, select.POLLIN | (select.POLLOUT if writes else 0))
    poll.register(wakes, select.POLLIN)
    return {fd for fd, found in poll.poll(math.ceil(within_s * 1000)) if found & ~select.POLLOUT}


def connected(path: str, kind: socket.SocketKind) -> socket.socket:
    """A connection of this kind to the socket at `path`, which may be longer than the 107 bytes that an address has. Raises
    OSError.
    """
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection = socket.socket(socket.AF_UNIX, kind)
        try:
            connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        except OSError:
            connection.close()
            raise
    finally:
        os.close(folder)
    return connection
