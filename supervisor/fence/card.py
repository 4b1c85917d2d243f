"""The supervisor's end of moving a program's GPU memory: starts the child that asks the driver, and takes its answer in.

One child a move, or none; it may hang or crash, and NVIDIA's library is never loaded here. For the one-threaded loop: poll
`fileno()` (one descriptor for ever) and call `answer` when it is readable. Nothing here blocks. When a child has had its time
is decided in `decide/run/card.py`, and what follows from its answer.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from memsup.supervisor.decide.run.card import GONE, Moved, Whole
from memsup.supervisor.fence.card_driver import MAX_REPORT_BYTES, Report
from memsup.supervisor.kernel.children import Child, spawn

_reports = msgspec.msgpack.Decoder(Report)


class CardMover:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._child: Child | None = None
        self._link: socket.socket | None = None
        self._abandoned: list[Child] = []
        """Children that were killed and are not gone yet: the driver may keep one for a while."""

    def fileno(self) -> int:
        """The descriptor that is readable when a child has answered or ended; it stays the same."""
        return self._epoll.fileno()

    def start(self, pids: Sequence[int], *, to_ram: bool) -> Moved | None:
        """Has the driver move what these processes have on the card. Returns None, or what came of it where no child could be
        started.
        """
        self.abandon()
        ours, its_own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        command = [sys.executable, "-P", "-m", "memsup.supervisor.fence.card_driver", "to_ram" if to_ram else "to_card"]
        try:
            self._child = spawn([*command, *map(str, pids)], folder="/", stdin=its_own.fileno())
        except OSError as error:
            ours.close()
            whole = Whole.RUNNING if to_ram else Whole.BETWEEN
            return Moved(whole=whole, why=f"what asks the driver could not be started ({error.strerror})")
        finally:
            its_own.close()
        self._link = ours
        self._epoll.register(ours, select.EPOLLIN)
        return None

    def answer(self) -> Moved | None:
        """What came of the move. Returns None where it is not over."""
        if self._link is None:
            return None
        try:
            packet = self._link.recv(MAX_REPORT_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        self.abandon()
        try:
            report = _reports.decode(packet)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return GONE
        return Moved(whole=report.whole, why=report.why, never=report.never)

    def abandon(self) -> None:
        """Ends the child, if there is one, whatever it is at."""
        if self._link is not None:
            self._epoll.unregister(self._link)
            self._link.close()
            self._link = None
        if self._child is not None:
            self._child.send(signal.SIGKILL)
            self._abandoned.append(self._child)
            self._child = None
        self.reap()

    def reap(self) -> None:
        """Collects the children that are gone."""
        self._abandoned = [child for child in self._abandoned if not _collected(child)]

    def close(self) -> None:
        self.abandon()
        with contextlib.suppress(OSError):
            self._epoll.close()


def _collected(child: Child) -> bool:
    if child.exit_code() is None:
        return False
    child.close()
    return True
