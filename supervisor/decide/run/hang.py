"""Does the worker's main thread still get on? Pure; `lifecycle.py` decides what follows from a hang.

The worker's link answers although its main thread is stuck, so what counts is `Progress.ticks`: everything that thread
finishes. How long silence may last is learnt for each phase from what was seen (longest time between two ticks × 5, as NVRx
does), generous until there was something to learn from. Time in which the worker could not get on does not count: while it is
paused, held, frozen or being debugged (`suspended`), and while the supervisor itself stood still.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memsup.shared.messages import Phase

FACTOR = 5.0
LEARNT_AFTER = 10
"""A phase is judged by what was learnt after so many ticks: the first steps compile, warm up and fill caches."""
BEFORE_LEARNING_S = 1800.0
LEAST_S = {
    Phase.STARTING: 900.0,
    Phase.LOADING: 1800.0,
    Phase.SAVING: 900.0,
    Phase.FINISHING: 900.0,
}
"""These phases may be silent for long: importing from a cold disk, hashing a large model, a file system that is busy."""
LEAST_OTHERWISE_S = 60.0
"""All other phases may be silent for this long: they tick with every micro-batch, but a busy machine makes some slow."""
STOOD_STILL_S = 5.0
"""Where nobody called for longer than this, it was not only the worker that stood still."""


@dataclass
class HangWatch:
    """A watch on the progress of the worker's main thread."""

    longest_s: dict[Phase, float] = field(default_factory=dict)
    """The longest time between two ticks, by phase; kept across restarts of the worker."""
    seen: dict[Phase, int] = field(default_factory=dict)
    """The number of ticks that were learnt from, by phase."""
    _phase: Phase | None = None
    _ticks: int | None = None
    _since_s: float = 0.0
    """The time of the last tick, moved on by all time that does not count."""
    _called_s: float = 0.0

    def step(self, now_s: float, phase: Phase | None, ticks: int | None, suspended: bool) -> float | None:
        """The seconds by which the main thread is overdue. Returns None where it is not, or nothing is known of it.

        To be called about once a second with the newest report. `phase` is None when there is no worker, or none that reports.
        """
        stood_still_s = now_s - self._called_s
        self._called_s = now_s
        if phase is None or ticks is None:
            self._phase = self._ticks = None
            return None
        if phase is not self._phase or ticks != self._ticks:
            if phase is self._phase and not suspended and stood_still_s <= STOOD_STILL_S:
                self._learn(phase, now_s - self._since_s)
            self._phase, self._ticks, self._since_s = phase, ticks, now_s
        elif suspended or phase is Phase.HOLDING:
            self._since_s = now_s
        elif stood_still_s > STOOD_STILL_S:
            self._since_s += stood_still_s
        overdue_s = now_s - self._since_s - self.limit_s(phase)
        return overdue_s if overdue_s > 0 else None

    def limit_s(self, phase: Phase) -> float:
        """The seconds for which silence in `phase` may last."""
        least_s = LEAST_S.get(phase, LEAST_OTHERWISE_S)
        if self.seen.get(phase, 0) < LEARNT_AFTER:
            return max(BEFORE_LEARNING_S, least_s)
        return max(least_s, FACTOR * self.longest_s.get(phase, 0.0))

    def _learn(self, phase: Phase, took_s: float) -> None:
        self.seen[phase] = self.seen.get(phase, 0) + 1
        self.longest_s[phase] = max(self.longest_s.get(phase, 0.0), took_s)
