"""The supervisor's end of the socket to the process that stands by (`worker/warm.py`), and that process's beginning and end.

Nothing here waits. When it is kept is decided in `decide/run/warm.py`; a worker that it bears is adopted by `worker.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence

from memsup.supervisor.decide.run.warm import MOVES, Warmth
from memsup.supervisor.fence.base import Fence
from memsup.supervisor.kernel.children import Child, adopt, spawn

_READY, _REFUSED, _BORN = b"ready", b"refused ", b"born"
_MOST_BYTES = 300
_CREDENTIALS = struct.Struct("3i")
"""The pid, and whose process it is, as the kernel says of a datagram's sender (unix(7), SCM_CREDENTIALS)."""


class WarmProcess:
    def __init__(
        self, fence: Fence, command: Callable[[int], Sequence[str]], environment: Mapping[str, str], folder: str
    ) -> None:
        """Starts it inside the fence; `command` makes its command line from the descriptor of its socket. Raises OSError."""
        self._fence = fence
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._child = spawn(
                [*fence.warm_prefix(), *command(theirs.fileno())],
                environment=environment,
                folder=folder,
                keep_fds=[theirs.fileno()],
                output=nowhere,
            )
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()
            os.close(nowhere)
        self.warmth = Warmth.LOADING
        self.why_refused: str | None = None
        """Why it does not stand by, as it says itself. It is None where it has not said so."""
        self.why_dismissed: str | None = None
        """What it did that it was ended for, a clause. It is None where it did nothing."""
        fence.spared = self.pid

    @property
    def pid(self) -> int:
        return self._child.pid

    def bear(self, lifeline_fd: int, output_fd: int) -> None:
        """Asks for a worker. Raises OSError."""
        socket.send_fds(self._channel, [b"bear"], [lifeline_fd, output_fd])
        self._move(Warmth.BEARING)

    def step(self) -> Child | None:
        """Takes what it has said, and sees whether it is gone. Returns the worker that it was asked for, once, else None."""
        born = None
        while self.warmth is not Warmth.NONE and (said := self._said()) is not None:
            words, sender = said
            if words == _BORN and self.warmth is Warmth.BEARING and born is None:
                self._move(Warmth.READY)
                with contextlib.suppress(OSError):  # it has died and was collected
                    born = adopt(sender)
            elif words == _READY and self.warmth is Warmth.LOADING:
                self._move(Warmth.READY)
            elif words.startswith(_REFUSED):
                self.why_refused = words.removeprefix(_REFUSED).decode(errors="replace")
        if self.warmth is not Warmth.NONE and self._child.exit_code() is not None:
            self.dismiss()
        return born

    def dismiss(self) -> None:
        """Ends it. What it takes of memory comes back as soon as it is dead; until then it counts as one of the fence's."""
        if self.warmth is not Warmth.NONE:
            self._move(Warmth.NONE)
            self._channel.close()
            self._child.send(signal.SIGKILL)
            self._fence.spared = None

    @property
    def is_gone(self) -> bool:
        """Whether it has ended and was collected, after which there is nothing left of it."""
        if self.warmth is not Warmth.NONE or self._child.exit_code() is None:
            return False
        self._child.close()
        return True

    def _move(self, warmth: Warmth) -> None:
        assert warmth in MOVES[self.warmth], f"{self.warmth} → {warmth}"
        self.warmth = warmth

    def _said(self) -> tuple[bytes, int] | None:
        try:
            words, ancillary, _, _ = self._channel.recvmsg(
                _MOST_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return None
        for level, kind, content in ancillary:
            if words and (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                return words, _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
        return None
