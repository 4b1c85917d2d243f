"""A clock that a test lets run fast, or sets, for all processes of memsup below it: they read it from one file.

Stands for the hours of a night in which nothing happens but waiting: calm times, back-offs, cooling, silence. What has to be
computed or loaded takes as long as ever, so a clock that runs 30 times as fast makes machine and disk look 30 times as slow.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAST = 30.0
"""So many of the night's seconds in one, while a wait of the product's own is all that is due."""
_LAYOUT = struct.Struct("=5d")
"""How fast; this machine's clock and the night's when that began; what the dates are ahead of the night's clock; the sum."""


class NightClock:
    """The test's end: the only writer. Begins as the machine's own."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._rate, self._real_s, self._night_s = 1.0, time.monotonic(), time.monotonic()
        self._ahead_s = time.time() - time.monotonic()
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        self._write()

    def jump(self, seconds: float) -> None:
        """As when somebody sets the date; the clock for durations does not notice."""
        self._ahead_s += seconds
        self._write()

    def unix_s(self) -> float:
        """The date of the night, as the processes see it."""
        return self._night_s + self._rate * (time.monotonic() - self._real_s) + self._ahead_s

    @contextmanager
    def fast(self, rate: float) -> Iterator[None]:
        self._run_at(rate)
        try:
            yield
        finally:
            self._run_at(1.0)

    def _run_at(self, rate: float) -> None:
        real_s = time.monotonic()
        self._night_s += self._rate * (real_s - self._real_s)
        self._rate, self._real_s = rate, real_s
        self._write()

    def _write(self) -> None:
        fields = (self._rate, self._real_s, self._night_s, self._ahead_s)
        os.pwrite(self._fd, _LAYOUT.pack(*fields, math.fsum(fields)), 0)


def install(file: str) -> None:
    """In a process of memsup, before anything of it is imported: its clock is the night's, and its loops wait by it."""
    import queue
    import selectors

    import zmq

    from memsup.shared import clock

    fd = os.open(file, os.O_RDONLY)
    latest_s = 0.0

    def read() -> tuple[float, float, float]:
        while True:
            *fields, total = _LAYOUT.unpack(os.pread(fd, _LAYOUT.size, 0))
            if math.fsum(fields) == total:  # else it was being written
                rate, real_s, night_s, ahead_s = fields
                return rate, night_s + rate * (time.monotonic() - real_s), ahead_s

    def monotonic_s() -> float:
        nonlocal latest_s
        latest_s = max(latest_s, read()[1])
        return latest_s

    def unix_s() -> float:
        return monotonic_s() + read()[2]

    poll = zmq.Poller.poll

    def poll_by_the_night(self: zmq.Poller, timeout: float | None = None) -> list[tuple[object, int]]:
        return poll(self, timeout if timeout is None or timeout < 0 else math.ceil(timeout / read()[0]))

    select = selectors.EpollSelector.select

    def select_by_the_night(
        self: selectors.EpollSelector, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        return select(self, timeout if timeout is None or timeout < 0 else timeout / read()[0])

    class QueueOfTheNight(queue.SimpleQueue[object]):
        def get(self, block: bool = True, timeout: float | None = None) -> object:
            return super().get(block, timeout if timeout is None else timeout / read()[0])

    queue.SimpleQueue = QueueOfTheNight
    clock.monotonic_s, clock.unix_s = monotonic_s, unix_s
    zmq.Poller.poll = poll_by_the_night
    selectors.EpollSelector.select = select_by_the_night
