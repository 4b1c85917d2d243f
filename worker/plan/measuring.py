"""What each micro-batch takes of time and memory, measured around it and told to the planner; and how well that was predicted.

A device computes later than it is told to, and nothing here waits for it: the time of a micro-batch is taken in when the device
has come to its end. How a peak is measured is in `memory.py`, what is made of it in `planner.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from memsup.shared.clock import monotonic_s
from memsup.worker.memory import Peak
from memsup.worker.plan.footprint import Shape
from memsup.worker.plan.planner import Planner


class Clock(Protocol):
    """The clock of whatever computes."""

    def mark(self) -> Any:
        """Marks the end of what was begun before."""
        ...

    def elapsed_s(self, begin: Any, end: Any) -> float | None:
        """The seconds between two marks. None means that the second is not reached yet."""
        ...


class HostClock:
    """The time of a processor, which has done what it was told when it goes on."""

    def mark(self) -> float:
        return monotonic_s()

    def elapsed_s(self, begin: float, end: float) -> float:
        return end - begin


class _Timed(NamedTuple):
    """A micro-batch whose time is still to be taken in."""

    shape: Shape
    checkpointed: bool
    begin: Any
    end: Any


class StepPeak(NamedTuple):
    """What the largest micro-batch of a step held at its peak, and what had been predicted. None means that it was not
    measured, or that nothing was predicted.
    """

    peak_bytes: int | None = None
    predicted_bytes: int | None = None


@dataclass
class Measuring:
    """What is measured around steps and micro-batches of one life of the worker."""

    peak: Peak
    planner: Planner
    clock: Clock = field(default_factory=HostClock)
    on_host: bool = True
    """Whether micro-batches take the host's memory, in which holes are left."""
    last: StepPeak = field(default_factory=StepPeak)
    """The peak of the last step that was measured to its end."""
    _timed: deque[_Timed] = field(default_factory=deque)
    _peaks: list[int] = field(default_factory=list)
    _predicted: list[int | None] = field(default_factory=list)

    def begin_step(self, lanes: int = 1) -> None:
        """Begins to measure a step."""
        self.planner.compute_in(lanes)
        self._peaks, self._predicted = [], []

    @contextmanager
    def micro_batch(self, shape: Shape, *, checkpointed: bool, timed: bool = True, offloaded: bool = False) -> Iterator[None]:
        """Measures a micro-batch, around its forward and backward pass. `checkpointed` tells whether its activations are
        computed twice; `timed` is False for one that does not use all lanes, and so says nothing of the time that others take.
        One whose activations are `offloaded` to host memory says nothing of any other, and nothing was predicted of it.
        """
        try:
            before_bytes = self.peak.begin()
        except OSError:
            yield
            return
        if not self._peaks:
            self.planner.begin_step(before_bytes)
        self._predicted.append(None if offloaded else self.planner.predicted_peak_bytes(shape, checkpointed=checkpointed))
        begin = self.clock.mark()
        yield
        end = self.clock.mark()
        try:
            peak_bytes = self.peak.end()
        except OSError:
            return
        self._peaks.append(peak_bytes)
        if not offloaded:
            self.planner.observe(shape, checkpointed=checkpointed, peak_bytes=peak_bytes, before_bytes=before_bytes)
        if timed and not offloaded:
            self._timed.append(_Timed(shape, checkpointed, begin, end))
        self._take_times()

    def _take_times(self) -> None:
        """Tells the planner the times of micro-batches that have come to their end."""
        while self._timed:
            shape, checkpointed, begin, end = self._timed[0]
            took_s = self.clock.elapsed_s(begin, end)
            if took_s is None:
                return
            self.planner.observe_time(shape, checkpointed=checkpointed, took_s=took_s)
            self._timed.popleft()

    def leak(self, hand_back: Callable[[], None]) -> str | None:
        """Why this process had better leave, as `Planner.leak` says it. None means that it may stay. Raises OSError."""

        def held_bytes() -> int:
            hand_back()
            return self.peak.begin()

        return self.planner.leak(held_bytes)

    @property
    def is_tight(self) -> bool:
        """Whether the last step took more of the host's memory than was planned for. Holes between what is used count there,
        and `memory.trim` gives them back.
        """
        return self.on_host and bool(self._peaks) and self.planner.passed(max(self._peaks))

    def end_step(self) -> None:
        """Takes the step's peak for `last`, if it was measured."""
        if self._peaks:
            known = [predicted for predicted in self._predicted if predicted is not None]
            self.last = StepPeak(max(self._peaks), max(known) if len(known) == len(self._peaks) else None)
