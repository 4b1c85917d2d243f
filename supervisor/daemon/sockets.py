"""The supervisor's two sockets: whole messages in and out, never a wait, garbage counted and dropped.

Covers which peer is the worker, which clients wait for which answer, and what of a flood of messages is passed on. What
strangers can do to the loop is bounded in `door.py`; what a message causes is decided in `decide/run/lifecycle.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from memsup.shared import messages as m
from memsup.shared.endpoints import CONTROL_SOCKET, WORKER_SOCKET, SocketFolder
from memsup.shared.log import log
from memsup.shared.paths import PathError, RunPaths, make_private
from memsup.shared.status import Trouble, TroubleKind
from memsup.supervisor.daemon.door import MOST_PEERS, Door, Peer
from memsup.supervisor.decide.allowance import Allowance
from memsup.supervisor.decide.run.actions import Answer

LINGER_S = 0.5
GARBAGE_EVERY_S = 60.0
"""The ledger has at most one line about garbage in this time: a flood must not fill the disk."""
NOBODY = 0
"""The token of a request that no client waits for."""
ORDERS, ORDERS_PER_S = 8, 0.5
"""What one process may order at once, and in the long run. No person gets there: each order on a command line is a process."""
REPORTS, REPORTS_PER_S = 200, 20
"""What the worker may report at once, and in the long run: a beat is two a second."""
MOST_UNANSWERED = 8
"""Who waits for so many answers is not heard until there is one."""
LOOK_AGAIN_S = 0.05
RESERVED_DESCRIPTORS = 56
"""Descriptors that connections may never take: what the supervisor holds beside its sockets, and for starting a worker, a probe
or a message, and for its records."""
LEAST_PEERS = 8

T = TypeVar("T")


@dataclass(slots=True)
class _UnderWay:
    """A request that was passed on and is not answered yet, with all who made it."""

    what: m.RequestKind
    clients: list[tuple[Peer, int]] = field(default_factory=list)
    """Each with the number that it gave its question."""


def room_for_peers() -> int:
    """How many connections one of the two sockets may have, so that enough descriptors are left for what the supervisor has to
    do. Raises the soft limit where there would be none. Raises OSError where the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = RESERVED_DESCRIPTORS + 2 * MOST_PEERS
    if soft < enough:
        soft = min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    least = RESERVED_DESCRIPTORS + 2 * LEAST_PEERS
    if soft < least:
        raise OSError(f"it may have {soft} files open and needs {least}. Raise the limit (ulimit -n {least}), and start again.")
    return min(MOST_PEERS, (soft - RESERVED_DESCRIPTORS) // 2)


class Sockets:
    def __init__(self, paths: RunPaths) -> None:
        """Binds both sockets. Raises `PathError` and OSError."""
        self._paths = paths
        most_peers = room_for_peers()
        self.worker, self.control = Door(most_peers), Door(most_peers)
        self._speaks_to: Peer | None = None
        """The worker that said Hello in this life. It is None before that."""
        self._reports = Allowance(REPORTS, REPORTS_PER_S)
        self._orders: dict[int, Allowance] = {}
        """What processes that have ordered something may still order, by their pid."""
        self._under_way: dict[int, _UnderWay] = {}
        """The requests without an answer, by their token, in the order in which they came."""
        self._tokens = itertools.count(NOBODY + 1)
        self._garbage = self._garbage_told = 0
        """Messages that were none of this protocol, since the start, and how many of them were told."""
        self._tell_garbage_s = 0.0
        self._unreachable: str | None = None
        """A sentence that says why nobody can reach the run. It is None where it can be reached."""
        self._bind()

    def due_s(self) -> float:
        """The time at which the sockets have to be looked at though nothing happens there."""
        return min(self.worker.due_s(), self.control.due_s())

    # -- the folder ---------------------------------------------------------------------------------------------------

    def keep_reachable(self) -> str | None:
        """Makes the runtime folder and the sockets in it anew where somebody removed them; connections stay. Returns a sentence
        about what has changed. It is None where nothing has.
        """
        folder = self._paths.runtime
        if self.worker.is_bound(folder / WORKER_SOCKET) and self.control.is_bound(folder / CONTROL_SOCKET):
            self._unreachable = None
            return None
        was = self._unreachable
        try:
            self._bind()
        except (PathError, OSError) as error:
            self._unreachable = f"Nobody can reach this run: its folder {folder} was removed and cannot be made anew ({error})"
            return self._unreachable if was is None else None
        self._unreachable = None
        return f"The folder {folder} had lost the run's sockets, as when something cleans up there. They were made anew."

    @property
    def troubles(self) -> list[Trouble]:
        return [] if self._unreachable is None else [Trouble(TroubleKind.UNREACHABLE, self._unreachable)]

    def _bind(self) -> None:
        for folder in (self._paths.runtime.parent, self._paths.runtime):
            make_private(folder)
        opened = SocketFolder(self._paths)
        try:
            self.worker.bind(opened.path(WORKER_SOCKET))
            self.control.bind(opened.path(CONTROL_SOCKET))
        finally:
            opened.close()

    # -- the worker ---------------------------------------------------------------------------------------------------

    def reports(self, now_s: float, run_id: str, may_speak: Callable[[int, int], bool]) -> Iterator[m.AnyReport]:
        """What the worker has said, once it has said Hello for `run_id`; nobody else is heard. `may_speak` judges by the number
        of the process that the kernel tells, and the one that it gives itself. Of several processes of a command the first one
        speaks, for as long as its connection lasts; the others, and whoever may not speak at all, are told that nobody will
        hear them, by the end of theirs. A process that is not to be attached says why, and nothing else.
        """
        for peer, parts in self.worker.messages(now_s):
            if peer is self._speaks_to and self._reports.left(now_s) < 1:
                self.worker.postpone(peer, parts, self._reports.due_s(1, now_s))
                continue
            report = self._decoded(parts, m.decode_for_supervisor)
            if report is None:
                continue
            if peer is not self._speaks_to:
                if not isinstance(report, m.Hello | m.NotAttachedReport) or report.run_id != run_id:
                    continue
                if isinstance(report, m.NotAttachedReport):
                    if self._reports.left(now_s) >= 1 and may_speak(peer.pid, report.pid):
                        self._reports.take(1, now_s)
                        yield report
                    self.worker.drop(peer)
                    continue
                is_second = self.is_heard and self._speaks_to is not None and self._speaks_to.pid != peer.pid
                if is_second or not may_speak(peer.pid, report.pid):
                    self.worker.drop(peer)
                    continue
                self._speaks_to = peer
                self.worker.favour(peer)
            self._reports.take(1, now_s)
            yield report
        self._count_broken(self.worker)

    @property
    def is_heard(self) -> bool:
        """Whether somebody speaks for the worker, and the connection lasts."""
        return self._speaks_to is not None and not self._speaks_to.is_closed

    def send(self, message: m.ToWorker) -> None:
        """Sends to the worker; does nothing before it has said Hello."""
        if self._speaks_to is not None:
            self.worker.send(self._speaks_to, m.encode(message))

    def forget_worker(self) -> None:
        """The worker is gone; the next one has to say Hello."""
        self._speaks_to = None

    # -- clients ------------------------------------------------------------------------------------------------------

    def requests(self, now_s: float) -> Iterator[tuple[int, m.Request]]:
        """What clients ask, each with the token under which `answer` finds who asked. What is under way already is passed on
        once, unless something else was ordered since.
        """
        asked = _UnderWay(m.RequestKind.STATUS)
        question = m.Request(request_id=0, what=m.RequestKind.STATUS)
        for peer, parts in self.control.messages(now_s):
            request = self._decoded(parts, m.decode_request)
            if request is None:
                continue
            client = (peer, request.request_id)
            if request.what is m.RequestKind.STATUS:
                asked.clients.append(client)
                continue
            if self._waits_for(peer) >= MOST_UNANSWERED:
                self.control.postpone(peer, parts, now_s + LOOK_AGAIN_S)
                continue
            newest = next(reversed(self._under_way.values()), None)
            if newest is not None and newest.what is request.what and not request.settings_json:
                newest.clients.append(client)
                continue
            orders = self._orders_of(peer.pid, now_s)
            if orders.left(now_s) < 1:
                self.control.postpone(peer, parts, orders.due_s(1, now_s))
                continue
            orders.take(1, now_s)
            token = next(self._tokens)
            self._under_way[token] = _UnderWay(request.what, [client])
            yield token, request
        if asked.clients:
            token = next(self._tokens)
            self._under_way[token] = asked
            yield token, question
        self._count_broken(self.control)

    def answer(self, answer: Answer, status_json: bytes) -> None:
        """Replies to all who wait for it, if anybody does."""
        under_way = self._under_way.pop(answer.token, None)
        for peer, request_id in under_way.clients if under_way is not None else ():
            reply = m.Reply(
                request_id=request_id,
                ok=answer.ok,
                text=answer.text,
                status_json=status_json,
                checkpoint_path=answer.checkpoint_path,
                freed_ram_bytes=answer.given_back.ram_bytes if answer.given_back else None,
                freed_vram_bytes=answer.given_back.vram_bytes if answer.given_back else None,
            )
            self.control.send(peer, m.encode(reply))

    def _waits_for(self, peer: Peer) -> int:
        """How many answers the peer waits for. Those who are gone wait for none, and are forgotten here."""
        waiting = 0
        for under_way in self._under_way.values():
            under_way.clients = [client for client in under_way.clients if not client[0].is_closed]
            waiting += sum(client[0] is peer for client in under_way.clients)
        return waiting

    def _orders_of(self, pid: int, now_s: float) -> Allowance:
        if pid not in self._orders:
            self._orders = {pid: left for pid, left in self._orders.items() if not left.is_full(now_s)}
            self._orders[pid] = Allowance(ORDERS, ORDERS_PER_S)
        return self._orders[pid]

    # -- garbage ------------------------------------------------------------------------------------------------------

    def garbage_to_tell(self, now_s: float) -> int:
        """How many messages were dropped that were not told yet; 0 where there are none, or some were told a moment ago."""
        new = self._garbage - self._garbage_told
        if new == 0 or now_s < self._tell_garbage_s:
            return 0
        self._garbage_told, self._tell_garbage_s = self._garbage, now_s + GARBAGE_EVERY_S
        return new

    def _decoded(self, parts: list[bytes], decode: Callable[[list[bytes]], T]) -> T | None:
        """The message. It is None where the parts are none, which is counted."""
        try:
            return decode(parts)
        except m.BadFrameError as error:
            self._count_garbage(str(error))
            return None

    def _count_broken(self, door: Door) -> None:
        for _ in range(door.broken):
            self._count_garbage(door.why_broken)
        door.broken = 0

    def _count_garbage(self, why: str) -> None:
        self._garbage += 1
        if self._garbage.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: a flood must not fill the log
            log.warning("Dropped a frame that is no message", number=self._garbage, why=why)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Gives what was sent `LINGER_S` to be taken, and removes both sockets."""
        for door, name in ((self.worker, WORKER_SOCKET), (self.control, CONTROL_SOCKET)):
            file = self._paths.runtime / name
            is_ours = door.is_bound(file)
            door.close(LINGER_S)
            if is_ours:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
