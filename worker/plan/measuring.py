"""What each micro-batch takes of time and memory, measured around it and told to the planner; and how well that was predicted.

Covers when to measure: on a device it means waiting for it, so after the first steps only some are measured. How a peak is
measured is in `memory.py`, what is made of it in `planner.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from memsup.shared.clock import monotonic_s
from memsup.worker.memory import Peak
from memsup.worker.plan.footprint import Shape
from memsup.worker.plan.planner import Planner

_ALL_STEPS_MEASURED, _MEASURED_EVERY = 64, 8


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
    waits_for_device: bool
    last: StepPeak = field(default_factory=StepPeak)
    """The peak of the last step that was measured to its end."""
    _measures: bool = False
    _peaks: list[int] = field(default_factory=list)
    _predicted: list[int | None] = field(default_factory=list)

    def begin_step(self, step: int, lanes: int = 1) -> None:
        """Begins to measure `step`, or leaves it unmeasured: each of them on the host, later ones seldom on a device."""
        self.planner.compute_in(lanes)
        self._measures = not self.waits_for_device or step <= _ALL_STEPS_MEASURED or step % _MEASURED_EVERY == 0
        self._peaks, self._predicted = [], []

    @contextmanager
    def micro_batch(self, shape: Shape, *, checkpointed: bool, timed: bool = True) -> Iterator[None]:
        """Measures a micro-batch, around its forward and backward pass. `checkpointed` tells whether its activations are
        computed twice; `timed` is False for one that does not use all lanes, and so says nothing of the time that others take.
        """
        try:
            before_bytes = self.peak.begin() if self._measures else None
        except OSError:
            before_bytes = None
        if before_bytes is None:
            yield
            return
        if not self._peaks:
            self.planner.begin_step(before_bytes)
        self._predicted.append(self.planner.predicted_peak_bytes(shape, checkpointed=checkpointed))
        began_s = monotonic_s()
        yield
        try:
            peak_bytes = self.peak.end()
        except OSError:
            return
        took_s = monotonic_s() - began_s if timed else None
        self.planner.observe(shape, checkpointed=checkpointed, took_s=took_s, peak_bytes=peak_bytes, before_bytes=before_bytes)
        self._peaks.append(peak_bytes)

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
        return not self.waits_for_device and bool(self._peaks) and self.planner.passed(max(self._peaks))

    def end_step(self) -> None:
        """Takes the step's peak for `last`, if it was measured."""
        if self._peaks:
            known = [predicted for predicted in self._predicted if predicted is not None]
            self.last = StepPeak(max(self._peaks), max(known) if len(known) == len(self._peaks) else None)
