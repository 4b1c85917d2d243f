"""The terminal side of `status --watch`: its own screen, keys, and looks that nothing can hold up.

What is on the screen is in `board.py`. Whatever may take its time is done beside it: a look at the runs, and what a key orders,
each in a thread that nobody waits for. However it ends, the terminal is as it was before.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from memsup.shared.commands import command
from memsup.shared.descriptors import wait_ready
from memsup.shared.messages import RequestKind
from memsup.shared.paths import PathError, RunPaths, run_paths
from memsup.shared.record import RecordError
from memsup.shared.status import OVER, Status
from memsup.supervisor.cli.board import Board, Reading, board
from memsup.supervisor.cli.screen import colour, full_screen
from memsup.supervisor.client.contact import observe
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.runs import all_runs, glance

LOOK_EVERY_S = 1.0
GLANCE_EVERY_S = 5.0
"""The other runs are looked at this often."""
MOST_READINGS = 20_000
ORDERS = {
    "p": (RequestKind.PAUSE_HOLD, "pausing"),
    "f": (RequestKind.PAUSE_RELEASE, "giving memory back"),
    "r": (RequestKind.RESUME, "going on"),
    "c": (RequestKind.CHECKPOINT, "writing a checkpoint"),
}
STOP, QUIT, HELP, UP, DOWN, YES = "s", "q", "?", "up", "down", "y"
_NAMED = {"\x1b[A": UP, "\x1bOA": UP, "\x1b[B": DOWN, "\x1bOB": DOWN, "\t": DOWN}
_KEY = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])?|.", re.DOTALL)


class Seen(NamedTuple):
    """What was found by a look. `status` is None where the run is gone."""

    name: str
    status: Status | None
    others: list[Status]
    why: str = ""


class Answered(NamedTuple):
    """What came of an order, for people."""

    text: str


def watch(paths: RunPaths, found: Status) -> Status:
    """Shows the run until it is over or somebody leaves; gives back what was seen last of it."""
    screen = Watch(paths, found)
    with screen.beside(), full_screen(sys.stdout) as draw, _keys() as typed:
        while not screen.ended:
            cells, lines = os.get_terminal_size(sys.stdout.fileno())
            draw(board(screen.board(), cells or 80, lines or 24, in_colour=colour(sys.stdout)))
            screen.take(typed(LOOK_EVERY_S, screen.woken))
    return screen.chosen


class Watch:
    """What is looked at, and what the keys have done so far."""

    def __init__(self, paths: RunPaths, found: Status) -> None:
        self.chosen, self.ended = found, False
        self.woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """A descriptor that can be read when there is news."""
        self._paths, self._others = paths, [found]
        self._readings: deque[Reading] = deque(_history(paths), MOST_READINGS)
        self._note, self._helps, self._asks, self._is_busy = "", False, False, False
        self._news: queue.SimpleQueue[Seen | Answered] = queue.SimpleQueue()
        self._over = threading.Event()

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """While this lasts the run is looked at."""
        threading.Thread(target=self._look, daemon=True).start()
        try:
            yield
        finally:
            self._over.set()  # the descriptor stays: a look may just be about to say something

    def board(self) -> Board:
        note = f"Stop run {self.chosen.run!r}? It checkpoints first.  y yes   any other key no" if self._asks else self._note
        return Board(
            chosen=self.chosen,
            others=self._others,
            readings=self._readings,
            note=note,
            helps=self._helps,
            now_unix_s=time.time(),
        )

    def take(self, keys: list[str]) -> None:
        """Takes the keys that were pressed, and what was found meanwhile."""
        for key in keys:
            self._press(key)
        while not self._news.empty():
            match self._news.get():
                case Answered(text):
                    self._note, self._is_busy = text, False
                case Seen(name, status, others, why) if name == self._paths.name:
                    self._others = others
                    self._note = why or self._note
                    if status is not None:
                        self._see(status)
                case Seen():
                    pass  # of the run that was looked at before

    def _see(self, status: Status) -> None:
        was, self.chosen = self.chosen, status
        memory = status.memory.worker_bytes if status.worker_pid is not None else None
        self._readings.append((time.time(), memory, status.progress.loss if status.worker_pid is not None else None))
        self.ended = self.ended or (status.state in OVER and was.state not in OVER)

    def _press(self, key: str) -> None:
        if self._asks:
            self._asks = False
            if key == YES:
                self._order(RequestKind.STOP, "stopping")
        elif key == QUIT:
            self.ended = True
        elif key == HELP or self._helps:
            self._helps = not self._helps
        elif key == STOP:
            self._asks = True
        elif key in (UP, DOWN):
            self._choose(1 if key == DOWN else -1)
        elif (order := ORDERS.get(key)) is not None:
            self._order(*order)

    def _choose(self, by: int) -> None:
        names = [other.run for other in self._others]
        if self.chosen.run not in names or len(names) < 2:
            return
        place = (names.index(self.chosen.run) + by) % len(names)
        self.chosen = self._others[place]
        self._paths = run_paths(self.chosen.run)  # it may have been removed since: then the next look says so
        self._readings, self._note = deque(_history(self._paths), MOST_READINGS), ""

    def _order(self, what: RequestKind, doing: str) -> None:
        if self._is_busy:
            self._note = "The last key is still being carried out."
            return
        self._note, self._is_busy = f"{doing} …", True
        paths = self._paths

        def ask() -> None:
            from memsup.supervisor.cli.orders import carried_out

            try:
                text = carried_out(paths, what).text
            except (RefusedError, PathError, RecordError, OSError) as error:
                text = str(error)
            self._tell(Answered(text))

        threading.Thread(target=ask, daemon=True).start()

    def _look(self) -> None:
        others: list[Status] = []
        glanced_s = -GLANCE_EVERY_S
        while not self._over.is_set():
            paths, status, why = self._paths, None, ""
            try:
                status = observe(paths).status
                if time.monotonic() - glanced_s >= GLANCE_EVERY_S:
                    others, glanced_s = [found for run in all_runs() if (found := glance(run)) is not None], time.monotonic()
            except (PathError, RecordError, OSError) as error:
                why = str(error)
            if status is None and not why:
                why = f"The run is gone. Start it with: {command('start', paths.name)}"
            listed = {other.run: other for other in others} | ({} if status is None else {status.run: status})
            self._tell(Seen(paths.name, status, [listed[name] for name in sorted(listed)], why))
            self._over.wait(LOOK_EVERY_S)

    def _tell(self, news: Seen | Answered) -> None:
        self._news.put(news)
        os.eventfd_write(self.woken, 1)


def _history(paths: RunPaths) -> Iterator[Reading]:
    """What was recorded before anybody looked."""
    from memsup.supervisor.report.gather import recorded

    for point in recorded(paths):
        yield point.at, point.worker_bytes, point.loss


# --------------------------------------------------------------------------------------------------------------------
# Keys


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float, int], list[str]]]:
    """What waits for keys: at most so long, and only until something can be read from the descriptor that it is given. While
    this lasts the terminal hands over each key at once and shows none; where there is no terminal to type at, there are none.
    """
    fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    if fd is not None and os.tcgetpgrp(fd) != os.getpgrp():  # in the background, where a terminal must not be changed
        fd = None
    before = None if fd is None else termios.tcgetattr(fd)
    resized_r, resized_w = os.pipe()
    os.set_blocking(resized_w, False)
    handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
    signal.set_wakeup_fd(resized_w, warn_on_full_buffer=False)

    def wait(seconds: float, woken: int) -> list[str]:
        readable = wait_ready([woken, resized_r, *([] if fd is None else [fd])], seconds)
        for descriptor in (woken, resized_r):
            if descriptor in readable:
                os.read(descriptor, 4096)
        if fd is None or fd not in readable:
            return []
        return _typed(os.read(fd, 64).decode(errors="replace"))

    try:
        if fd is not None:
            tty.setcbreak(fd)
            attributes = termios.tcgetattr(fd)
            attributes[6][termios.VSUSP] = b"\0"  # who suspends it would be left with half a screen
            termios.tcsetattr(fd, termios.TCSADRAIN, attributes)
        yield wait
    finally:
        if fd is not None and before is not None:
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(resized_r)
        os.close(resized_w)


def _leave(number: int, _: Any) -> None:
    """Leaves as the signal asks, past all that puts the terminal back."""
    raise SystemExit(128 + number)


def _typed(text: str) -> list[str]:
    """The keys in what a terminal sent: letters, and names of those that have none. Others are left out."""
    pressed = _KEY.findall(text)
    return [_NAMED.get(key, key.lower()) for key in pressed if key in _NAMED or key.isprintable()]
