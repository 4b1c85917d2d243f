"""Does the worker's main thread still get on, and when is it killed for a hang? Pure; `lifecycle.py` decides what follows.

The worker's link answers although its main thread is stuck, so what counts is `Progress.ticks`: everything that thread
finishes. How long silence may last is learnt for each phase from what was seen (longest time between two ticks × 5, as NVRx
does), generous until there was something to learn from. Time in which the worker could not get on does not count: while it is
paused, held, frozen or being debugged (`suspended`), and while the supervisor itself stood still.

A worker that hangs is first asked for its threads' stacks, and killed when they are there or have had their time.

Of a program of a person's own nobody knows what it does between two boundaries: it may well evaluate for an hour. So it hangs
only where it gets nothing done for half an hour at least, and neither it nor what it has started uses the processor; and it is
asked for nothing, since the signal for that would end it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memsup.shared.messages import Phase
from memsup.shared.status import Wanted
from memsup.supervisor.decide.run.one_life import Stage
from memsup.supervisor.decide.run.standing import Standing
from memsup.supervisor.words import duration

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
BUSY_FRACTION = 0.02
"""A program that uses more of the time of one processor than this does something; its link alone uses less."""
STACKS_WITHIN_S = 5.0
"""Every thread's stack has to be in the worker's log this long after the signal; a thread stuck in the kernel writes none."""


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
    least_otherwise_s: float = LEAST_OTHERWISE_S
    """What phases without a time of their own may last at least without a tick."""

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
        least_s = max(LEAST_S.get(phase, LEAST_OTHERWISE_S), self.least_otherwise_s)
        if self.seen.get(phase, 0) < LEARNT_AFTER:
            return max(BEFORE_LEARNING_S, least_s)
        return max(least_s, FACTOR * self.longest_s.get(phase, 0.0))

    def _learn(self, phase: Phase, took_s: float) -> None:
        self.seen[phase] = self.seen.get(phase, 0) + 1
        self.longest_s[phase] = max(self.longest_s.get(phase, 0.0), took_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class HangDecision:
    """What is to be done about a hang now."""

    ask_for_stacks: bool = False
    """Whether the worker is to write every thread's stack into its log."""
    look_for_stacks: bool = False
    """Whether they are to be looked for there."""
    kill_because: str | None = None
    """Why the worker is to be killed, in a clause. It is None while it is not to be."""


@dataclass
class HangControl:
    """Decides when a worker that hangs is asked for its stacks, and when it is killed."""

    watch: HangWatch = field(default_factory=HangWatch)
    _stacks_until_s: float | None = None
    """The stacks that were asked for have to be there by then. It is None while none have been asked for."""
    _busy: int = 0
    """How many times a program of a person's own was seen to use the processor."""
    _cpu_s: float = 0.0
    _cpu_looked_s: float = 0.0

    def step(self, now_s: float, run: Standing, *, traced: bool, has_stacks: bool) -> HangDecision:
        """What is to be done now; to be called about once a second. `traced` says whether a debugger holds the worker, and
        `has_stacks` whether the stacks that were asked for last are there.
        """
        reports = run.heartbeat if run.stage is Stage.READY and run.worker.obeys else None
        phase, ticks = (reports.progress.phase, reports.progress.ticks) if reports else (None, None)
        if reports is not None and ticks is not None and run.is_command:
            self.watch.least_otherwise_s = BEFORE_LEARNING_S
            ticks += self._times_busy(now_s, reports.cpu_s)
        rests = run.held or run.frozen or bool(run.stance.holds) or run.wanted is Wanted.PAUSED
        overdue_s = self.watch.step(now_s, phase, ticks, rests or traced)
        if overdue_s is None or phase is None:
            self._stacks_until_s = None
            return HangDecision()
        if self._stacks_until_s is None and not run.is_command:
            self._stacks_until_s = now_s + STACKS_WITHIN_S
            return HangDecision(ask_for_stacks=True)
        if self._stacks_until_s is not None and not has_stacks and now_s < self._stacks_until_s:
            return HangDecision(look_for_stacks=True)
        self._stacks_until_s = None
        limit_s = self.watch.limit_s(phase)
        silent, limit = duration(overdue_s + limit_s), duration(limit_s)
        what = "not a word came from it" if run.unresponsive else "its main thread got nothing done"
        return HangDecision(kill_because=f"{what} for {silent} ({phase}; at most {limit} was to be expected)")

    def _times_busy(self, now_s: float, cpu_s: float | None) -> int:
        """How many times the program was seen to use the processor, of which it tells now and then. Where it does not tell, it
        counts as busy: then nothing is known.
        """
        if cpu_s is None or cpu_s - self._cpu_s > BUSY_FRACTION * (now_s - self._cpu_looked_s) or cpu_s < self._cpu_s:
            self._busy += 1
        if cpu_s != self._cpu_s:
            self._cpu_s, self._cpu_looked_s = cpu_s or 0.0, now_s
        return self._busy
