"""Everything the supervisor writes to disk, written by a thread that does nothing else.

The main loop decides and must never wait for a disk that is full, slow or gone: it hands over bytes and goes on. They are
written in the order in which they came; where they come faster than the disk takes them, the newest are dropped and
counted. Lines that a full disk does not take wait here until it does: they are what explains that time afterwards. So does what
a person wants of the run (`keep`): nothing may come of a wish but what was wished. Checkpoints are the worker's and not written
here.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from memsup.shared.files import append_whole, replace_file

MOST_WAITING = 2_000
"""At most so many jobs wait, and new ones are dropped then. That is minutes of a hung disk, and a few MiB of memory."""
MOST_KEPT_BYTES = 256 << 10
"""The most that is kept of the lines for one file that a full disk has not taken."""


AGAIN_AFTER_S = 1.0
"""What has to be written is tried again after this time."""


class Scribe:
    """The thread, and the queue of what it is to write."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], object]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._kept: dict[Path, bytearray] = {}
        self._owed: dict[Path, Callable[[], object]] = {}
        """What writes each file whose newest content is not on the disk yet."""
        self._owed_changes = threading.Lock()  # held for an instant, never while anything is written
        self.lost = 0
        """How many writes were dropped or failed since the start."""
        self.last_error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def append(self, path: Path, line: bytes) -> None:
        """Adds whole lines to a file, in this order; those that the disk refuses come before the next ones."""
        self.carry_out(str(path), partial(self._append, path, line))

    def replace(self, path: Path, content: bytes, *, durable: bool = True) -> None:
        """Puts a new content in the place of a file's; it never holds a part of either. `replace_file` tells what `durable`
        means.
        """
        self.carry_out(str(path), partial(replace_file, path, content, durable=durable))

    def keep(self, path: Path, write: Callable[[], object]) -> None:
        """Has `write` put a new content in the place of a file's, and tries that until it is done or another content is given.
        It may raise OSError.
        """
        with self._owed_changes:
            self._owed[path] = write
        if self._jobs.qsize() < MOST_WAITING:  # else it is done with the next of those that wait
            self._jobs.put((str(path), self._pay))

    def owes(self, path: Path) -> bool:
        """Whether a content that was to be kept is not on the disk yet."""
        return path in self._owed

    def say(self, line: bytes) -> None:
        """Writes to standard error: the terminal of `--foreground`, which may be stopped, or the service manager's journal."""
        self.carry_out("standard error", partial(os.write, 2, line))

    def carry_out(self, what: str, job: Callable[[], object]) -> None:
        """Has `job` done, which may wait for the disk and raise OSError; `what` names it where it failed."""
        if self._jobs.qsize() < MOST_WAITING:
            self._jobs.put((what, job))
        else:
            self.lost += 1

    def finish(self, within_s: float) -> bool:
        """Writes what is waiting and ends, and tells whether the disk took it in time."""
        self._jobs.put(None)
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        again_s = 0.0
        while (job := self._next()) is not None:
            self._do(*job)
            if self._owed and time.monotonic() >= again_s:
                self._do("what was not written", self._pay)
                again_s = time.monotonic() + AGAIN_AFTER_S
        self._do("what was not written", self._pay)
        self.lost += len(self._owed)
        for path in list(self._kept):
            self._do(str(path), partial(append_whole, path, bytes(self._kept.pop(path))))

    def _next(self) -> tuple[str, Callable[[], object]] | None:
        try:
            return self._jobs.get(timeout=AGAIN_AFTER_S if self._owed else None)
        except queue.Empty:
            return ("what was not written", self._pay)

    def _do(self, what: str, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self.lost += 1
            self.last_error = f"{what}: {error.strerror}"
        except Exception as error:  # one bad job must not end all writing
            self.lost += 1
            self.last_error = f"{what}: {error!r}"

    def _pay(self) -> None:
        """Writes what is owed, as far as the disk takes it."""
        for path, write in list(self._owed.items()):
            try:
                write()
            except OSError as error:
                self.last_error = f"{path}: {error.strerror}"
                continue
            with self._owed_changes:
                if self._owed[path] is write:
                    del self._owed[path]

    def _append(self, path: Path, line: bytes) -> None:
        """Adds a line after those that are kept for the same file. Raises OSError where it is lost."""
        kept = self._kept.setdefault(path, bytearray())
        try:
            append_whole(path, bytes(kept) + line)
        except OSError:
            if len(kept) + len(line) > MOST_KEPT_BYTES:
                raise
            kept += line
        else:
            del self._kept[path]
