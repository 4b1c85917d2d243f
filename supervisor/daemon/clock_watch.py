"""Tells when the date jumped or the machine slept. Pure. Nothing is decided by dates, but who reads the ledger has to know.

`at` in the ledger is the date, which can be set; `mono` stands still while the machine sleeps. Where the two part, the ledger
gets a line that says why.
"""

from __future__ import annotations

from memsup.supervisor.words import duration

LEAST_S = 5.0
"""Clocks are trimmed by fractions of a second all the time."""


class ClockWatch:
    def __init__(self) -> None:
        self._ahead_s: float | None = None
        self._asleep_s = 0.0

    def step(self, now_s: float, at_unix_s: float, asleep_s: float) -> str | None:
        """A sentence when the date jumped or the machine slept since the last call. Returns None when neither happened.

        `asleep_s` is how long the machine has slept in all since its boot.
        """
        before_s, slept_s = self._ahead_s, asleep_s - self._asleep_s
        self._ahead_s, self._asleep_s = at_unix_s - now_s, asleep_s
        if before_s is None:
            return None
        jumped_s = self._ahead_s - before_s - slept_s
        said = []
        if slept_s >= LEAST_S:
            said.append(f"the machine slept for {duration(slept_s)}")
        if abs(jumped_s) >= LEAST_S:
            said.append(f"the date was set {'ahead' if jumped_s > 0 else 'back'} by {duration(abs(jumped_s))}")
        return "; ".join(said) or None
