"""What the clock of this machine says of a run's hours, in local time. What follows from it is `decide/run/hours.py`'s.

Where the clocks are set ahead a beginning that is left out comes an hour later, and an end comes before; where they are set
back, what comes twice counts the first time. So it is never trained outside of the hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from operator import itemgetter

from memsup.shared.settings import Hours
from memsup.supervisor.decide.run.hours import Clock

_DAYS = range(-2, 3)
"""The days around today in which a time of the day is looked for. One of them may be left out: a time zone may skip a day."""


def clock_of(hours: Hours, at_unix_s: float) -> Clock | None:
    """What is so at this moment. Returns None where the run has no hours."""
    if hours.end == "off":
        return None
    time.tzset()  # the machine may have come into another time zone since
    ends = _times(hours.end, at_unix_s, min)
    begins = [] if hours.begin == "off" else _times(hours.begin, at_unix_s, itemgetter(0))
    ended, next_end = _last(ends, at_unix_s), _next(ends, at_unix_s)
    next_begin = _next(begins, at_unix_s) if begins else None
    return Clock(
        at_unix_s=at_unix_s,
        began_unix_s=_last(begins, at_unix_s) if begins else None,
        begins_unix_s=next_begin,
        begins=None if next_begin is None else _told(next_begin),
        ended_unix_s=ended,
        ends_unix_s=next_end,
        ends=_told(next_end),
        hours=f"until {hours.end}" if next_begin is None else f"{hours.begin} to {hours.end}",
    )


def _times(of_day: str, at_unix_s: float, choose: Callable[[Sequence[float]], float]) -> list[float]:
    """When the clock shows this time on the days around. `choose` takes one of two where it shows it twice, or not at all."""
    hour, minute = (int(part) for part in of_day.split(":"))
    today = datetime.fromtimestamp(at_unix_s).replace(hour=hour % 24, minute=minute, second=0, microsecond=0)
    days = [today + timedelta(days=number) for number in _DAYS]
    return [choose([day.replace(fold=fold).timestamp() for fold in (0, 1)]) for day in days]


def _last(times: Sequence[float], at_unix_s: float) -> float:
    return max(one for one in times if one <= at_unix_s)


def _next(times: Sequence[float], at_unix_s: float) -> float:
    return min(one for one in times if one > at_unix_s)


def _told(at_unix_s: float) -> str:
    return f"{datetime.fromtimestamp(at_unix_s):%a %H:%M}"
