"""Signals as something the main loop can poll. What they mean is decided in `decide/run/lifecycle.py`."""

from __future__ import annotations

import os
import signal


class Signals:
    """Signals only queue: the handler does nothing, the kernel's byte wakes the loop."""

    def __init__(self) -> None:
        self.interrupts = 0
        """How often Ctrl-C was pressed."""
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def taken(self) -> list[int]:
        """The numbers of the signals that came since the last call."""
        try:
            numbers = list(os.read(self.fd, 64))
        except BlockingIOError:
            return []
        self.interrupts += numbers.count(signal.SIGINT)
        return numbers
