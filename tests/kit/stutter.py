"""A process that is slower than it could be: stopped for a part of each few milliseconds, as by a quota of the processor."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def stuttering(process: psutil.Process, *, computes_s: float, rests_s: float) -> Iterator[None]:
    """Inside, the process computes and rests in turns. It goes on afterwards, where it is still there."""
    is_over = threading.Event()

    def stutter() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not is_over.is_set():
                process.suspend()
                is_over.wait(rests_s)
                process.resume()
                is_over.wait(computes_s)

    thread = threading.Thread(target=stutter, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
