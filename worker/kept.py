"""The worker's end of the lifeline, over which states in memory go: the one that the worker before has left, and its own.

The lifeline is a socket whose other end only the supervisor holds, so that it ends with the supervisor. A state goes over it as
a descriptor; once it is sent nothing of it is left here, and it is the supervisor's to keep or to give up. What such a state
consists of is in `checkpoint/in_memory.py`; when one is written and used is in `saving.py`.
"""

from __future__ import annotations

import os
import socket

from memsup.shared.descriptors import receive_with_descriptor
from memsup.shared.messages import Kept, decode_kept, encode_kept

_MOST_BYTES = 512


class Lifeline:
    def __init__(self, fd: int) -> None:
        """Takes what the supervisor has put in for this life. `fd` is this process's from now on."""
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)
        self.every_s: float | None = None
        """How often a state is to be handed over, in seconds of work; set by the link's thread. None means not at all."""
        self.size_bytes = 0
        """What the newest one takes that was handed over in this life; 0 where none was, or nobody is to keep it."""
        self.handed: tuple[Kept, int] | None = self._receive()
        """The state that the worker before this one has left, not verified yet, with its descriptor. None means that there is
        none.
        """

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self.forget()
        self._socket.close()

    def forget(self) -> None:
        """Lets go of what was handed: whoever holds it besides decides how long it lasts."""
        if self.handed is not None:
            os.close(self.handed[1])
            self.handed = None

    def _receive(self) -> tuple[Kept, int] | None:
        try:
            content, fd = receive_with_descriptor(self._socket, _MOST_BYTES)
        except BlockingIOError:
            return None
        return None if fd is None else (decode_kept(content), fd)

    def hand_over(self, note: Kept, fd: int) -> None:
        """Gives a state to the supervisor; `fd` is closed here, whatever comes of it. Raises OSError."""
        try:
            socket.send_fds(self._socket, [encode_kept(note)], [fd], socket.MSG_DONTWAIT)
        finally:
            os.close(fd)
        self.size_bytes = note.size_bytes
