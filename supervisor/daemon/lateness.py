"""How late the supervisor's own loop comes: who watches has to know when it did not. Pure.

It was late where it came after the time at which it had meant to look again, whatever held it up: a page of its own, the
processor, a stopped process, a sleeping machine.
"""

from __future__ import annotations

RECENT_S = 10.0


class Lateness:
    def __init__(self) -> None:
        self.worst_s = 0.0
        """Since the supervisor began."""
        self._last_s = self._running_s = 0.0
        """The worst of the last whole `RECENT_S`, and of those that are running."""
        self._next_s = float("-inf")

    def note(self, now_s: float, late_s: float) -> None:
        """The loop came `late_s` after it was due; below 0 it was woken before."""
        if now_s >= self._next_s:
            self._next_s = now_s + RECENT_S
            self._last_s, self._running_s = self._running_s, 0.0
        self.worst_s = max(self.worst_s, late_s)
        self._running_s = max(self._running_s, late_s)

    @property
    def recent_s(self) -> float:
        """The worst of the last 10 to 20 s."""
        return max(self._last_s, self._running_s)
