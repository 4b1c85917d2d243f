"""What to compare a promise about time with: measured in the same test and on the same machine, however busy that is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stopwatch:
    s: float = 0.0


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """How long the block took, once it is over."""
    watch, began_s = Stopwatch(), time.monotonic()
    yield watch
    watch.s = time.monotonic() - began_s


class Sleeper:
    """A thread that only sleeps, 10 ms at a time: what makes it late is this machine."""

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sleep)

    def __enter__(self) -> Sleeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def take_worst_s(self) -> float:
        """How late it woke up at worst since this was asked last."""
        worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s

    def _sleep(self) -> None:
        due_s = time.monotonic()
        while not self._over.wait(max(0.0, due_s - time.monotonic())):
            woken_s = time.monotonic()
            self._worst_s = max(self._worst_s, woken_s - due_s)
            due_s = woken_s + 0.01
