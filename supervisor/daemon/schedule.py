"""When the supervisor's loop has to come by for what, and how late it came. Pure: monotonic seconds in, due times out.

The loop was late where it came after the time at which it had meant to look again, whatever held it up: a page of its own, the
processor, a stopped process, a sleeping machine. Who watches has to know when it did not.
"""

from __future__ import annotations

from dataclasses import dataclass

SLOW_LOOK_S = 1.0
"""The time between two looks at what is in no hurry: leases, deadlines, disk, devices."""
CALM_LOOK_S = 2.0
"""The time between two such looks while nothing is in motion: what the supervisor takes of the processor at rest, it takes
here."""
STATUS_EVERY_S = 10.0
"""The time between two writes of `status.json` in one state; each new state is written at once. In between the file is for who
asks after the supervisor's death."""
SOON_S = 0.01
"""The time to the next look after something was done that changes memory, and between the steps of a kill, which is when
memory is most wanted back."""
POLL_GRAIN_S = 0.001
"""The poll counts in milliseconds, so this much is no lateness."""
RECENT_S = 10.0


class Lateness:
    """How late the loop came at worst: ever, and lately."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        """The worst since the supervisor began."""
        self._last_s = self._running_s = 0.0
        """The worst of the last whole `RECENT_S`, and of those that are running."""
        self._next_s = float("-inf")

    def note(self, now_s: float, late_s: float) -> None:
        """Notes that the loop came `late_s` after it was due; below 0 it was woken before."""
        if now_s >= self._next_s:
            self._next_s = now_s + RECENT_S
            self._last_s, self._running_s = self._running_s, 0.0
        self.worst_s = max(self.worst_s, late_s)
        self._running_s = max(self._running_s, late_s)

    @property
    def recent_s(self) -> float:
        """The worst of the last 10 to 20 s."""
        return max(self._last_s, self._running_s)


@dataclass(frozen=True)
class Turn:
    """A turn of the loop that is planned: when it is due, and how long may be waited for something to happen before."""

    due_s: float
    wait_s: float


class Schedule:
    def __init__(self, now_s: float) -> None:
        """Makes everything due at `now_s`."""
        self.lateness = Lateness()
        self._began_s = now_s
        self.woke_s = now_s
        """The time at which the loop turned last."""
        self._look_s = self._slow_look_s = self._status_s = self._settle_s = now_s

    # -- the loop -----------------------------------------------------------------------------------------------------

    def plan(self, now_s: float, probe_due_s: float) -> Turn:
        """The next turn at the latest; `probe_due_s` is when the GPU probe wants to be asked."""
        due_s = max(self.woke_s, min(self._look_s, self._slow_look_s, probe_due_s))
        return Turn(due_s, max(0.0, due_s - now_s))

    def woke(self, now_s: float, turn: Turn) -> None:
        """Notes that the loop turns now, because `turn` was due or something happened before."""
        self.lateness.note(now_s, now_s - turn.due_s - POLL_GRAIN_S)
        self.woke_s = now_s

    # -- the look at memory -------------------------------------------------------------------------------------------

    def is_look_due(self, now_s: float) -> bool:
        return now_s >= self._look_s

    def look_again(self, now_s: float, in_s: float) -> None:
        self._look_s = now_s + in_s

    def look_soon(self, now_s: float) -> None:
        """Makes a look due: what was just done changes memory, and older readings are of no use (kubelet#51745)."""
        self._look_s = min(self._look_s, now_s + SOON_S)

    # -- the slow look ------------------------------------------------------------------------------------------------

    def is_slow_look_due(self, now_s: float) -> bool:
        return now_s >= self._slow_look_s

    def slow_look_again(self, now_s: float, *, calm: bool) -> None:
        self._slow_look_s = now_s + (CALM_LOOK_S if calm else SLOW_LOOK_S)

    def hurry(self, now_s: float) -> None:
        """Ends the calm: the next slow look comes as soon as in busy times."""
        self._slow_look_s = min(self._slow_look_s, now_s + SLOW_LOOK_S)

    def is_settling_due(self, now_s: float) -> bool:
        """Whether the supervisor's own memory is to be settled; then after 1, 2, 4, 8, … s: more and more has been through."""
        if now_s < self._settle_s:
            return False
        self._settle_s = now_s + max(SLOW_LOOK_S, now_s - self._began_s)
        return True

    # -- the status file ----------------------------------------------------------------------------------------------

    def is_status_due(self, now_s: float) -> bool:
        return now_s >= self._status_s

    def status_shown(self, now_s: float) -> None:
        self._status_s = now_s + STATUS_EVERY_S
