"""Curves for TensorBoard and Trackio (`training.report_to`): what is written of a run, and where it goes on after a kill.

Loss, learning rate and the like come from the training itself, step by step. Memory, its limit and temperatures are read from
`history.jsonl`, and interventions from `ledger.jsonl`, into both of which the supervisor writes; so it need not know of curves,
and a life tells what befell the one before. All of it is written by a thread of its own, which nothing waits for but the end of
a life, and no fault of which costs more than curves.

Every curve only grows to the right. Up to which step all is written stands in `position.json`: steps that are redone after a
kill are passed over, and those before a checkpoint whose points a kill took are filled in from the audit. What was written just
before a kill and is not in the position yet is written again, and the files take back what they have of it (`curve_files.py`).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from memsup.shared.clock import unix_s
from memsup.shared.files import UnreadableError, read_document, replace_file
from memsup.shared.interventions import MOST_LINE_BYTES, kind_of, read_line
from memsup.shared.log import log
from memsup.shared.messages import DecisionKind
from memsup.shared.paths import RunPaths
from memsup.shared.settings import CurveKind
from memsup.shared.tail import Place, Tail
from memsup.worker.audit import Step, read_steps
from memsup.worker.curve_files import CurveFile, Marker, Point, curve_file

if TYPE_CHECKING:
    from memsup.worker.state import Evaluated

EVERY_S = 5.0
"""The time between two writes."""
CLOSED_WITHIN_S = 5.0
"""The last points of a life have this long to be written; what is not comes with the next one."""
MOST_STEPS = 20_000
"""Of a run with more steps than that not each one is written, so that its curves take some ten megabytes at most."""
MOST_WAITING = 50_000
"""So many points wait for a disk that takes none; beyond, the oldest are lost."""
_MOST_TEXT = 2_000
NO_MORE = "training goes on, and no more of them are written before the worker begins again"


class Taken(NamedTuple):
    """A step that was taken in this life."""

    step: int
    at_unix_s: float
    values: dict[str, float]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """What has been written."""

    step: int = 0
    """All there is of the steps up to this one was, and nothing of later ones."""
    ledger: Place | None = None
    history: Place | None = None
    """The places up to which these were read. They are None where nothing was read yet."""


class _Gpu(msgspec.Struct, frozen=True):
    index: int
    used_bytes: int | None = None
    temperature_c: float | None = None


class Reading(msgspec.Struct, frozen=True):
    """A line of the history, as far as it is needed here."""

    at: float
    step: int | None = None
    micro_tokens: int | None = None
    samples_per_s: float | None = None
    worker_bytes: int | None = None
    limit_bytes: int | None = None
    cpu_c: float | None = None
    gpus: tuple[_Gpu, ...] = ()

    def values(self) -> dict[str, float]:
        """What is known of it, by the names of the curves."""
        found = {
            "memory/worker_bytes": self.worker_bytes,
            "memory/limit_bytes": self.limit_bytes,
            "train/micro_tokens": self.micro_tokens,
            "train/samples_per_s": self.samples_per_s,
            "temperature/cpu_c": self.cpu_c,
        }
        for gpu in self.gpus:
            found[f"memory/gpu{gpu.index}_used_bytes"] = gpu.used_bytes
            found[f"temperature/gpu{gpu.index}_c"] = gpu.temperature_c
        return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


_WORST = ("memory/worker_bytes", "memory/gpu", "temperature/")
"""The curves of which the largest of several readings at one step counts, and not the last."""
_reading = msgspec.json.Decoder(Reading)
_position = msgspec.json.Decoder(Position)


class Course:
    """What is to be written next. Pure, but for the files that it reads on.

    What there is of a step is written when the step is over, so that it is whole, and there once. What comes later than
    that, as while steps are redone, counts for the next step.
    """

    def __init__(self, paths: RunPaths, position: Position, *, total_steps: int) -> None:
        self.position = position
        """What was written once what `next` gave last has been."""
        self.every = math.ceil(total_steps / MOST_STEPS)
        """Each such step is written, and the last one."""
        self._total_steps = total_steps
        self._reached = position.step
        self._points: dict[tuple[int, str], Point] = {}
        """What waits for the end of its step."""
        self._markers: list[Marker] = []
        self._ledger = _Source(paths.ledger, position.ledger)
        self._history = _Source(paths.history, position.history)

    def next(
        self, taken: Iterable[Taken], evaluated: Iterable[Evaluated], *, is_over: bool = False
    ) -> tuple[list[Point], list[Marker]]:
        """What has come to its end with these steps and evaluations; where the run `is_over`, the last step as well."""
        for step, at, values in taken:
            self._reached = max(self._reached, step)
            if step % self.every == 0 or step == self._total_steps:
                self._wait_for_end(Point(step, at, "train", values))
        for one in evaluated:
            self._reached = max(self._reached, one.step)
            values = {f"eval/{name}": value for name, value in one.metrics.items() if math.isfinite(value)}
            self._wait_for_end(Point(one.step, unix_s(), "evaluation", values))
        for line, begins in self._history.lines():
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._note(_reading.decode(line), begins)
        for line, begins in self._ledger.lines():
            if (found := read_line(line)) is not None and (kind := kind_of(found)) is not None:
                before = self._markers[-1].step if self._markers else 0  # a restart goes back behind its death
                step = self._place(max(before, found.step or 0), self._ledger, begins)
                text = f"**{kind}**: {found.action or ''}{' - ' if found.action else ''}{found.reason}"[:_MOST_TEXT]
                self._markers.append(Marker(step, found.at, kind, text))
        whole = max(self.position.step, self._reached - (0 if is_over else 1))
        points = sorted(point for point in self._points.values() if point.step <= whole)
        markers = [marker for marker in self._markers if marker.step <= whole]
        self._points = {key: point for key, point in self._points.items() if point.step > whole}
        self._markers = [marker for marker in self._markers if marker.step > whole]
        places = {"ledger": self._ledger.read_up_to(whole), "history": self._history.read_up_to(whole)}
        self.position = Position(step=whole, **places)
        return points, markers

    def _wait_for_end(self, point: Point) -> None:
        if point.step > self.position.step:
            self._points.setdefault((point.step, point.group), point)

    def _note(self, reading: Reading, begins: Place | None) -> None:
        step, values = self._place(reading.step, self._history, begins), reading.values()
        before = self._points.get((step, "machine"))
        if before is not None:
            self._points[step, "machine"] = _joined(before, values)
        elif values:
            self._points[step, "machine"] = Point(step, reading.at, "machine", values)

    def _place(self, step: int | None, source: _Source, begins: Place | None) -> int:
        """The step for which a line counts."""
        placed = max(self.position.step + 1, min(step or 0, self._reached))
        source.waits.setdefault(placed, begins)
        return placed


class _Source:
    """A file that the supervisor writes to, and which of its lines wait."""

    def __init__(self, file: Path, after: Place | None) -> None:
        self._tail = Tail(file, most_line_bytes=MOST_LINE_BYTES, after=after)
        self._read = after
        self.waits: dict[int, Place | None] = {}
        """The steps that are not over of which lines were read, with where the first of these begins."""

    def lines(self) -> Iterator[tuple[bytes, Place | None]]:
        """The lines that have come since, each with where it begins."""
        for line, ends in self._tail.lines():
            begins, self._read = self._read, ends
            yield line, begins

    def read_up_to(self, step: int) -> Place | None:
        """Where reading goes on if all up to `step` is written, and nothing of later ones."""
        self.waits = {number: place for number, place in self.waits.items() if number > step}
        return self.waits[min(self.waits)] if self.waits else self._read


def _joined(point: Point, values: dict[str, float]) -> Point:
    """The point with what was read later at its step."""
    joined = dict(point.values)
    for name, value in values.items():
        joined[name] = max(value, joined.get(name, value)) if name.startswith(_WORST) else value
    return point._replace(values=joined)


def values_of(taken: Step) -> dict[str, float]:
    """A step's figures, by the names of the curves."""
    figures = {"train/loss": taken.loss, "train/learning_rate": taken.learning_rate, "train/grad_norm": taken.gradient_norm}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


class _Outlet:
    """A file with what waits to be written to it."""

    def __init__(self, kind: CurveKind, file: CurveFile) -> None:
        self.kind = kind
        self._file = file
        self._has_begun = False
        self._points: list[Point] = []
        self._markers: list[Marker] = []

    def take(self, points: Sequence[Point], markers: Sequence[Marker], first_step: int) -> None:
        """Writes what waits, and these. Raises what the file raises, and keeps them then."""
        self._points, self._markers = [*self._points, *points][-MOST_WAITING:], [*self._markers, *markers][-MOST_WAITING:]
        if not self._has_begun:
            self._file.begin(first_step)
            self._has_begun = True
        if self._points or self._markers:
            self._file.write(self._points, self._markers)
        self._points, self._markers = [], []


class Curves:
    """The curves of one life. Where none are wanted it has no thread, and does nothing."""

    def __init__(
        self,
        paths: RunPaths,
        kinds: Sequence[CurveKind],
        *,
        run_id: str,
        total_steps: int,
        decided: Callable[[DecisionKind, str], None],
    ) -> None:
        """Imports the libraries, which takes some tenths of a second. `decided` puts a sentence on record."""
        self._position_file = paths.curves / "position.json"
        self._decided = decided
        self._complained: set[CurveKind] = set()
        self._outlets: list[_Outlet] = []
        for kind in dict.fromkeys(kinds):
            try:
                file = curve_file(kind, paths.curves / kind, run=paths.name, run_id=run_id)
            except Exception as error:
                self._complain(kind, error, NO_MORE)
            else:
                self._outlets.append(_Outlet(kind, file))
        position = _read_position(self._position_file)
        self._first_step = position.step + 1
        self._course = Course(paths, position, total_steps=total_steps)
        self._taken: list[Taken] = []
        self._evaluated: list[Evaluated] = []
        self._audit = paths.state / "audit.txt"
        self._wake = threading.Event()
        self._ends = self._is_over = False
        """Whether this life ends, and whether the run does."""
        self._thread = threading.Thread(target=self._run, name="curves", daemon=True)

    @contextlib.contextmanager
    def written(self, *, after_step: int, evaluated: Evaluated | None) -> Iterator[None]:
        """Writes what comes inside, from after `after_step`, at which the newest evaluation was `evaluated`; where it is None
        there was none.
        """
        if not self._outlets:
            yield
            return
        self._taken += self._of_earlier_lives(after_step)
        if evaluated is not None:
            self._evaluated.append(evaluated)
        self._thread.start()
        try:
            yield
            self._is_over = True
        finally:
            self._ends = True
            self._wake.set()
            self._thread.join(CLOSED_WITHIN_S)

    def _of_earlier_lives(self, after_step: int) -> list[Taken]:
        """What is not written yet of the steps up to `after_step`."""
        every = self._course.every
        wanted = [step for step in range(self._first_step, after_step) if step % every == 0]
        wanted += [after_step] if after_step >= self._first_step else []
        return [Taken(step.step, unix_s(), values_of(step)) for step in read_steps(self._audit, wanted)]

    def step(self, taken: Step, *, tokens: int, took_s: float) -> None:
        """A step was taken, of so many tokens without padding, in so many seconds."""
        if self._outlets:
            values = values_of(taken) | ({"train/tokens_per_s": tokens / took_s} if took_s > 0 else {})
            self._taken.append(Taken(taken.step, unix_s(), values))

    def evaluated(self, found: Evaluated) -> None:
        """An evaluation was made."""
        if self._outlets:
            self._evaluated.append(found)
            self._wake.set()

    # The thread

    def _run(self) -> None:
        try:
            while not self._ends:
                self._turn()
                self._wake.wait(EVERY_S)
                self._wake.clear()
            self._turn(is_over=self._is_over)
        except Exception as error:
            outlets, self._outlets = self._outlets, []  # so that nothing more is kept for them
            for outlet in outlets:
                self._complain(outlet.kind, error, NO_MORE)

    def _turn(self, *, is_over: bool = False) -> None:
        # The training adds to these lists meanwhile, at their ends.
        evaluated, taken = self._evaluated[:], self._taken[:]  # in this order, or an evaluation might come before its step
        del self._taken[: len(taken)], self._evaluated[: len(evaluated)]
        points, markers = self._course.next(taken, evaluated, is_over=is_over)
        all_took_it = True
        for outlet in list(self._outlets):
            try:
                outlet.take(points, markers, self._first_step)
            except (OSError, MemoryError) as error:
                all_took_it = False
                self._complain(outlet.kind, error, "training goes on, and they are tried again")
            except Exception as error:
                self._outlets.remove(outlet)
                self._complain(outlet.kind, error, NO_MORE)
        if all_took_it:
            with contextlib.suppress(OSError):  # then the next life writes these points again
                replace_file(self._position_file, msgspec.json.encode(self._course.position), durable=False)

    def _complain(self, kind: CurveKind, error: Exception, what_now: str) -> None:
        """Says once what is wrong with the curves of this kind."""
        if kind not in self._complained:
            self._complained.add(kind)
            log.warning("Curves cannot be written", kind=kind, exc_info=error)
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._decided(DecisionKind.CURVES_FAILED, f"The curves for {kind} cannot be written ({why}): {what_now}.")


def _read_position(file: Path) -> Position:
    """What was written by earlier lives; nothing where that cannot be read, and all is written once more."""
    try:
        return read_document(file, _position.decode)
    except (FileNotFoundError, UnreadableError):
        return Position()
