"""A socket that anybody of this user may knock at, programs inside the fence as well: bounded in everything that they can do to
the loop that guards.

Covers who is let in, how much of what they send is taken when, and what is kept for those who do not read. Whole messages come
out, of any content; which of them mean something is for `sockets.py`. The bounds:

* connections: so many in all, so many of one process (SO_PEERCRED); who comes when all are taken gets the place of one of the
  process that has most, and of those the one that was silent for longest. Nobody gets the worker's.
* memory: a message of a stranger is small, or its connection ends as soon as its length is known; answers that are not fetched
  are kept up to a bound, and who has fetched none is not read either.
* time: all who knock share a part of the loop's time. When it is used up nobody is heard for some hundredths of a second; what
  they send meanwhile waits on their side.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memsup import zmtp
from memsup.shared.clock import monotonic_s
from memsup.shared.descriptors import wait_ready
from memsup.shared.messages import MAX_FRAME_BYTES
from memsup.supervisor.decide.allowance import Allowance

MOST_PEERS = 64
MOST_PEERS_OF_A_PROCESS = 16
WORK_S, WORK_SHARE = 0.010, 0.25
"""What a door may take of the loop's time at once, and in the long run."""
TURN_S = 0.001
"""A turn of the loop counts for at least this much: what else the loop does in it takes time as well."""
NEW_AHEAD_S = 1.0
"""Who comes is heard before those who were heard in this time: most have one question, and a crowd has many."""
AT_A_TIME = 8
"""Messages taken of one peer before others are heard."""
READ_BYTES = 4 << 10
NO_DESCRIPTOR_S = 1.0
"""Where the kernel has no descriptor for a connection, this long nobody is let in."""
ACCEPT_AT_A_TIME = 64
_BACKLOG = 128
_CREDENTIALS = struct.Struct("=3i")
_OPENING = zmtp.opening(b"ROUTER")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is kept of one peer."""

    message_bytes: int
    """The longest message that is taken of it."""
    unsent_bytes: int
    """Where more waits to be fetched by it, it gets nothing more."""


STRANGER = Bounds(message_bytes=4 << 10, unsent_bytes=16 << 10)
WORKER = Bounds(message_bytes=MAX_FRAME_BYTES + (1 << 10), unsent_bytes=256 << 10)


class Peer:
    """One connection."""

    def __init__(self, connection: socket.socket, pid: int, now_s: float) -> None:
        self.connection, self.pid, self.heard_s = connection, pid, now_s
        self.bounds = STRANGER
        self.incoming = zmtp.Incoming(STRANGER.message_bytes)
        self.unsent = bytearray()
        self.is_closed = False
        self.postponed: list[bytes] | None = None
        """A message that is to be taken later. It is None where there is none."""
        self.waits_until_s = -math.inf
        """Nothing is taken of it before."""
        self.has_more = False
        """Whether something of it that was read is still to be taken."""
        self.is_new = True
        """Whether it was never heard yet."""
        self.watched = 0
        """The events of its connection that the door waits for."""

    @property
    def events(self) -> int:
        """What is to be waited for: it is read when all that was read is taken, and when it fetches what it gets."""
        reads = not self.has_more and len(self.unsent) <= self.bounds.unsent_bytes
        return (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if self.unsent else 0)


class Door:
    """A listening socket and its connections. `fileno` is readable when somebody is to be heard and there is time for it."""

    def __init__(self, most_peers: int) -> None:
        self._most_peers = most_peers
        self._listener: socket.socket | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of its socket. It is None where the door does not listen."""
        self._peers: dict[int, Peer] = {}
        self._favoured: Peer | None = None
        self._events = select.epoll()
        self._gate = select.epoll()
        """Around `_events`: what the loop polls, and is closed while the door rests."""
        self._gate.register(self._events, select.EPOLLIN)
        self._rests_until_s: float | None = None
        self._no_accept_until_s: float | None = None
        self._time = Allowance(WORK_S, WORK_SHARE)
        self.broken = 0
        """How many connections ended because of what came over them, since the start."""
        self.why_broken = ""

    def fileno(self) -> int:
        return self._gate.fileno()

    # -- the socket in its folder -------------------------------------------------------------------------------------

    def bind(self, path: str) -> None:
        """Listens there, and no more where it did; connections that there are stay. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode):
                os.unlink(path)  # left by one that is dead, or put there: whoever binds holds the run's lock
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(path)
            listener.listen(_BACKLOG)
            file = os.stat(path, follow_symlinks=False)
        except OSError:
            listener.close()
            raise
        self._stop_listening()
        self._listener, self._file = listener, (file.st_dev, file.st_ino)
        self._events.register(listener, select.EPOLLIN)
        self._no_accept_until_s = None

    def is_bound(self, path: Path) -> bool:
        """Whether what lies there is the socket at which it listens."""
        try:
            file = os.stat(path, follow_symlinks=False)
        except OSError:
            return False
        return (file.st_dev, file.st_ino) == self._file

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def close(self, within_s: float) -> None:
        """Gives peers some time to fetch what is theirs; what the kernel has taken of it they can fetch later as well."""
        self._stop_listening()
        give_up_s = monotonic_s() + within_s
        while (slow := [peer for peer in self._peers.values() if peer.unsent]) and (left_s := give_up_s - monotonic_s()) > 0:
            wait_ready([], left_s, writes=[peer.connection for peer in slow])
            for peer in slow:
                self._flush(peer)
        for peer in list(self._peers.values()):
            self.drop(peer)
        self._events.close()
        self._gate.close()

    # -- a turn -------------------------------------------------------------------------------------------------------

    def due_s(self) -> float:
        """The time at which the door has to be looked at though nothing happens there. Infinite where it need not."""
        if self._rests_until_s is not None:
            return self._rests_until_s
        waiting = (peer.waits_until_s for peer in self._peers.values() if peer.has_more)
        return min([*waiting, math.inf if self._no_accept_until_s is None else self._no_accept_until_s], default=math.inf)

    def is_due(self, now_s: float) -> bool:
        return now_s >= self.due_s()

    def messages(self, now_s: float) -> Iterator[tuple[Peer, list[bytes]]]:
        """Whole messages, each with who sent it, until the time for them is used up; that which the caller takes counts."""
        if self._rests_until_s is not None:
            if now_s < self._rests_until_s:
                return
            self._rests_until_s = None
            self._gate.modify(self._events, select.EPOLLIN)
        began_s = monotonic_s()
        until_s = began_s + max(TURN_S, self._time.left(began_s))
        try:
            for peer in self._in_turn(now_s):
                for _ in range(AT_A_TIME):
                    if peer.is_closed or (parts := self._next(peer)) is None:
                        break
                    yield peer, parts
                    if peer.waits_until_s > now_s or monotonic_s() >= until_s:
                        break
                self._watch(peer)
                if monotonic_s() >= until_s:
                    break
        finally:
            ended_s = monotonic_s()
            self._time.take(max(TURN_S, ended_s - began_s), ended_s)
            if self._time.left(ended_s) <= 0:
                self._rests_until_s = self._time.due_s(WORK_S / 2, ended_s)
                self._gate.modify(self._events, 0)

    def postpone(self, peer: Peer, parts: list[bytes], until_s: float) -> None:
        """The peer's last message comes again, not before `until_s`, and nothing else of it is taken before."""
        peer.postponed, peer.waits_until_s, peer.has_more = parts, until_s, True

    def favour(self, peer: Peer) -> None:
        """This one may send more than a stranger, is heard first, and its place is nobody else's."""
        if self._favoured is not None:
            self._favoured.bounds = STRANGER
            self._favoured.incoming.most_bytes = STRANGER.message_bytes
        self._favoured = peer
        peer.bounds = WORKER
        peer.incoming.most_bytes = WORKER.message_bytes

    def send(self, peer: Peer, parts: list[bytes]) -> None:
        """Sends a message; who is gone, or does not fetch what it has, gets nothing."""
        if not peer.is_closed and len(peer.unsent) <= peer.bounds.unsent_bytes:
            peer.unsent += zmtp.message(parts)
            self._flush(peer)
            self._watch(peer)

    def _in_turn(self, now_s: float) -> Iterator[Peer]:
        """Who is to be heard now, the favoured one first, the others by when they were heard last."""
        ready = dict(self._events.poll(0))
        if self._listener is not None and (ready.pop(self._listener.fileno(), 0) or self._accepts_again(now_s)):
            ready |= self._accept(now_s)
        for fd, events in ready.items():
            if events & select.EPOLLOUT and (peer := self._peers.get(fd)):
                self._flush(peer)
                self._watch(peer)
        peers = [p for fd, p in self._peers.items() if p.has_more or ready.get(fd, 0) & ~select.EPOLLOUT]
        peers.sort(key=lambda p: (p is not self._favoured, p.heard_s - NEW_AHEAD_S * p.is_new))
        for peer in peers:
            if now_s >= peer.waits_until_s and not peer.is_closed:
                peer.heard_s, peer.is_new = now_s, False
                yield peer

    def _next(self, peer: Peer) -> list[bytes] | None:
        """The peer's next message, for which its connection is read at most once. It is None where none is whole."""
        if peer.postponed is not None:
            postponed, peer.postponed = peer.postponed, None
            return postponed
        try:
            parts = peer.incoming.next_message()
            if parts is None and self._read(peer):
                parts = peer.incoming.next_message()
        except zmtp.ZmtpError as error:
            self.broken += 1
            self.why_broken = str(error)
            self.drop(peer)
            return None
        peer.has_more = parts is not None
        return parts

    def _read(self, peer: Peer) -> bool:
        try:
            received = peer.connection.recv(READ_BYTES if peer is not self._favoured else 4 * READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            received = b""
        if not received:
            self.drop(peer)
            return False
        peer.incoming.feed(received)
        return True

    # -- who is let in ------------------------------------------------------------------------------------------------

    def _accepts_again(self, now_s: float) -> bool:
        if self._no_accept_until_s is None or now_s < self._no_accept_until_s:
            return False
        self._no_accept_until_s = None
        if self._listener is not None:
            self._events.register(self._listener, select.EPOLLIN)
        return True

    def _accept(self, now_s: float) -> dict[int, int]:
        """Lets in who knocks, and returns them as the kernel tells of who is to be read: most have their question with them."""
        assert self._listener is not None
        come: dict[int, int] = {}
        for _ in range(ACCEPT_AT_A_TIME):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError:  # no descriptor, no memory: to be tried again later, and never in a circle
                self._events.unregister(self._listener)
                self._no_accept_until_s = now_s + NO_DESCRIPTOR_S
                break
            connection.setblocking(False)
            pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid not in {0, os.geteuid()} or not self._has_place(pid):
                connection.close()
                continue
            peer = self._peers[connection.fileno()] = Peer(connection, pid, now_s)
            peer.unsent += _OPENING
            self._flush(peer)
            self._watch(peer)
            come[connection.fileno()] = select.EPOLLIN
        return come

    def _has_place(self, pid: int) -> bool:
        """Whether one more of this process may come in; another one goes for it if need be."""
        of_process = Counter(peer.pid for peer in self._peers.values())
        if of_process[pid] >= MOST_PEERS_OF_A_PROCESS:
            return False
        if len(self._peers) >= self._most_peers:
            others = [peer for peer in self._peers.values() if peer is not self._favoured]
            self.drop(min(others, key=lambda peer: (-of_process[peer.pid], peer.heard_s)))
        return True

    def drop(self, peer: Peer) -> None:
        """Ends the connection."""
        if not peer.is_closed:
            peer.is_closed, peer.has_more = True, False
            del self._peers[peer.connection.fileno()]
            peer.connection.close()  # which ends the watch as well

    # -- to the kernel ------------------------------------------------------------------------------------------------

    def _flush(self, peer: Peer) -> None:
        if peer.is_closed:
            return
        try:
            while peer.unsent:
                sent = peer.connection.send(peer.unsent, socket.MSG_NOSIGNAL)
                del peer.unsent[:sent]
        except BlockingIOError:
            return
        except OSError:  # it is gone, but what it said before may still be there to be read
            peer.unsent.clear()

    def _watch(self, peer: Peer) -> None:
        """Has the kernel tell of what is waited for, and of nothing else: the end of one that is not read would always wake."""
        if peer.is_closed or peer.events == peer.watched:
            return
        if not peer.watched:
            self._events.register(peer.connection, peer.events)
        elif peer.events:
            self._events.modify(peer.connection, peer.events)
        else:
            self._events.unregister(peer.connection)
        peer.watched = peer.events
