"""The page's axis of time. Pure.

Times on the page are `x`: Unix seconds, made to run forward only. Within a boot the supervisor's own clock gives the distances,
so a wall clock that was set back folds nothing over; a sleeping machine, whose own clock stands still, leaves its gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memsup.supervisor.record.history import Point
from memsup.supervisor.record.ledger import Entry
from memsup.supervisor.record.output import LAST_SECOND

LONGEST_SLEEP_S = 7 * 86400.0
"""A wall clock that ran further ahead than this within one boot was set; nobody slept."""

Stamp = tuple[str, float, float]
"""A boot, monotonic seconds, and Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A point of the history at its place on the page."""

    x: float
    point: Point
    begins_life: bool
    """This point is the first of a supervisor's life: there is a gap before it."""


def place(stamps: Sequence[Stamp], boots: Sequence[str]) -> list[float]:
    """Where each stamp lies on the page. `boots` are all boots, in order."""
    rank = {boot: i for i, boot in enumerate(boots)}
    order = sorted(range(len(stamps)), key=lambda i: (rank[stamps[i][0]], stamps[i][1]))
    xs = [0.0] * len(stamps)
    before: Stamp | None = None
    x = 0.0
    for i in order:
        boot, mono, at = stamps[i]
        if before is None:
            x = at
        elif boot != before[0]:
            x += max(0.0, at - before[2])
        else:
            by_own_clock, by_wall_clock = mono - before[1], at - before[2]
            slept = 0 <= by_wall_clock - by_own_clock < LONGEST_SLEEP_S
            x += by_wall_clock if slept else by_own_clock
        x = min(x, LAST_SECOND)
        xs[i], before = x, stamps[i]
    return xs


def boots_in_order(points: Sequence[Point], entries: Sequence[Entry]) -> list[str]:
    """The boots as they follow each other in the two files, which are only ever appended to; dates may be wrong."""
    boots = list(dict.fromkeys(entry.boot for entry in entries))
    after = 0
    for boot in dict.fromkeys(point.boot for point in points):
        if boot not in boots:
            boots.insert(after, boot)
        after = boots.index(boot) + 1
    return boots
