"""The lifeline of the worker, and the state in memory that comes over it and goes to the next worker. Nothing here waits.

The lifeline is a pair of sockets whose one end the worker has: where this end closes, with this process or with the worker's
end, the worker knows that nobody guards it. What the worker hands over is a descriptor of sealed memory
(`checkpoint/in_memory.py`). This process holds it and reads nothing of it; its memory counts as the fence's, in which it was
written. Whether one is kept is decided in `decide/run/in_memory.py`.
"""

from __future__ import annotations

import contextlib
import os
import socket

import msgspec

from memsup.shared.clock import monotonic_s
from memsup.shared.descriptors import is_sealed, receive_with_descriptor
from memsup.shared.messages import BadFrameError, Kept, decode_kept, encode_kept
from memsup.supervisor.fence.base import Fence

_MOST_BYTES = 512


class HeldState:
    """The newest state that a worker has handed over, until it is given up."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._held: tuple[Kept, int] | None = None
        self._since_s = 0.0
        self._lifeline: socket.socket | None = None

    @property
    def size_bytes(self) -> int:
        """What it takes; 0 where there is none."""
        return 0 if self._held is None else self._held[0].size_bytes

    # -- the lifeline -------------------------------------------------------------------------------------------------

    def begin_life(self) -> int:
        """Makes the lifeline of a worker, with what is held in it. Returns the worker's end, to be closed here once the worker
        has it. Raises OSError.
        """
        self.end_life()
        self._lifeline, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self._held is not None:
            note, fd = self._held
            with contextlib.suppress(OSError):  # then it goes on from the disk
                socket.send_fds(self._lifeline, [encode_kept(note)], [fd], socket.MSG_DONTWAIT)
        return theirs.detach()

    def end_life(self) -> None:
        """Ends the lifeline, and notes how old what is held was then."""
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        if self._held is not None and self._since_s:
            age_s, self._since_s = monotonic_s() - self._since_s, 0.0
            self._held = msgspec.structs.replace(self._held[0], age_s=age_s), self._held[1]

    # -- the state ----------------------------------------------------------------------------------------------------

    def take(self) -> Kept | None:
        """Takes what the worker has handed over, in place of the one before. Returns its note, or None where there is none."""
        taken = None
        while (received := self._receive()) is not None:
            self.give_up()
            self._held, self._since_s, taken = received, monotonic_s(), received[0]
            self._fence.unmapped_bytes = self.size_bytes
        return taken

    def give_up(self) -> None:
        """Lets go of it. Its memory comes back at once, unless the next worker is just reading it."""
        if self._held is not None:
            os.close(self._held[1])
            self._held = None
        self._fence.unmapped_bytes = 0

    def _receive(self) -> tuple[Kept, int] | None:
        """The next state that makes sense. Returns None where there is none."""
        while self._lifeline is not None:
            try:
                content, fd = receive_with_descriptor(self._lifeline, _MOST_BYTES)
            except OSError:
                return None
            if not content:
                return None
            if fd is not None:
                with contextlib.suppress(BadFrameError):
                    note = decode_kept(content)
                    if is_sealed(fd) and os.fstat(fd).st_size == note.size_bytes:
                        return note, fd
                os.close(fd)
        return None
