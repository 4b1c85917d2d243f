"""Whether a process stands by that has everything imported, so that a worker which dies is back in a second or two. Pure.

The process itself is `worker/warm.py`. It takes memory, and its beginning takes seconds of a core, so it is kept only while
there is room for it and time enough left that a death is worth being prepared for; at the first sign that memory gets short it
goes, before anything is asked of the worker. What memsup kills is killed with it, and what follows begins as without it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from memsup.supervisor.words import duration, percent, size

NEEDS_BYTES = 320 << 20
"""What it takes beside a worker that was not forked from it: torch, transformers and a task, imported."""
MOST_USE = 0.75
"""With it, no more than this part of what the worker may have is used: the ladder stops growth at `uses.STOP_GROWING_USE`."""
WORTH_S = 300.0
"""Importing takes about three seconds of a core: at most 1 % of a run that goes on for so long."""
SETTLES_S = 60.0
"""A worker that was up for so long has found the cut that is the fastest, which importing beside it would disturb."""
AFTER_DEATH_S = 5.0
"""After it has died it is tried again so soon, then after twice as long each time."""
AFTER_PRESSURE_S = 60.0
"""The same where it had to go since memory got short, which importing anew would have get short again."""
AGAIN_S = 600.0
"""It is tried again after so long at the latest; where it cannot stand by at all, as it says itself, no sooner. One that stood
by for so long has shown that it can.
"""


class Warmth(enum.Enum):
    """What the process that stands by is."""

    NONE = enum.auto()
    """There is none."""
    LOADING = enum.auto()
    """It was started, and imports."""
    READY = enum.auto()
    """It stands by."""
    BEARING = enum.auto()
    """It was asked for a worker, which has not said yet that it is there."""


MOVES = {
    Warmth.NONE: frozenset({Warmth.LOADING}),
    Warmth.LOADING: frozenset({Warmth.READY, Warmth.NONE}),
    Warmth.READY: frozenset({Warmth.BEARING, Warmth.NONE}),
    Warmth.BEARING: frozenset({Warmth.READY, Warmth.NONE}),
}
"""What may follow each."""


@dataclass(kw_only=True)
class Standby:
    """What is decided about it in the life of a run under one supervisor."""

    asked: str = "auto"
    """The setting `recovery.standby`: auto, on (at once, and also where little time is left) or off."""
    warmth: Warmth = Warmth.NONE
    """What it was when it was last looked at."""
    not_before_s: float = 0.0
    ready_s: float | None = None
    """Since when it stands by, or when the last one began to. It is None where none was ready yet."""
    lost: int = 0
    """How many in a row did not last."""
    told: str | None = None
    """Why there is no room for it, as is on record. It is None where there was room when that was looked at last."""

    def is_due(self, now_s: float, *, up_s: float, eta_s: float | None) -> bool:
        """Whether it is worth having, as far as time goes, beside a worker that is up for `up_s`. `eta_s` is the time to the
        run's end. It is None where that is not known.
        """
        is_long = eta_s is not None and eta_s >= WORTH_S and up_s >= SETTLES_S
        is_worth_it = self.asked == "on" or (self.asked == "auto" and is_long)
        return is_worth_it and self.warmth is Warmth.NONE and now_s >= self.not_before_s

    def saw(self, now_s: float, warmth: Warmth, *, refuses: bool = False) -> bool:
        """Takes note of what it is; returns whether it has gone by itself. `refuses`: it has said that it cannot stand by."""
        before, self.warmth = self.warmth, warmth
        if before is Warmth.LOADING and warmth is Warmth.READY:
            self.ready_s = now_s
        is_gone = warmth is Warmth.NONE and before is not Warmth.NONE
        if is_gone:
            self.not_before_s = now_s + (AGAIN_S if refuses else self.lost_for_s(now_s, AFTER_DEATH_S))
        return is_gone

    def lost_for_s(self, now_s: float, first_s: float) -> float:
        """Counts a loss and returns how long there will be none: `first_s`, or more where others were lost before."""
        lasted = self.ready_s is not None and now_s - self.ready_s >= AGAIN_S
        self.lost, self.ready_s = 1 if lasted else self.lost + 1, None
        return float(min(AGAIN_S, first_s * 2 ** min(self.lost - 1, 10)))

    def again_words(self, now_s: float) -> str:
        """When another may begin, a clause."""
        return f"another is tried in {duration(self.not_before_s - now_s)} at the earliest"


def why_no_room(use: float | None) -> str | None:
    """Why there is no room for it, a clause, where with it the part `use` of all that may be had would be used. That is None
    where it is not known. Returns None where there is room.
    """
    if use is None:
        return "it is not known how much memory is used"
    if use <= MOST_USE:
        return None
    return (
        f"it takes {size(NEEDS_BYTES)}, and with that {percent(use)} of the memory would be used, more than {percent(MOST_USE)}"
    )
