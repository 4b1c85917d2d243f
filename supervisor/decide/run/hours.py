"""The hours of a run: whether it rests now, outside of them, and until when. Pure; `daemon/hours.py` reads the clock.

Theory of operation. At each look it is decided anew from what the clock shows then, and nothing is remembered but when a
person waived the hours. So a clock that is set, another time zone, a machine that slept and a supervisor that was killed need
no case of their own. Outside of its hours the run is paused, whatever else is wanted of it: its worker saves, gives its memory
back and leaves; the run takes its place behind others, claims nothing, and finds its room anew when its hours begin. What
cannot be saved is frozen instead (`standing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from memsup.shared.settings import Hours, SettingsError

LEAST_LEAD_S = 60.0
"""The worker is told to leave at least this long before the hours end: it comes to its boundary, saves, and ends."""
UNKNOWN_SAVE_S = 30.0
"""What the first save is taken to last."""
MOST_LEAD_S = 1800.0
WORTH_S = 300.0
"""Nothing is begun, or begun again, for less than this."""


@dataclass(frozen=True)
class Clock:
    """What the clock says of a run's hours at one moment. Times are Unix seconds."""

    at_unix_s: float
    began_unix_s: float | None
    """When they began last. It is None where they have an end alone; so are the next two."""
    begins_unix_s: float | None
    """When they begin next."""
    begins: str | None
    """The same as a local time, for people: `Sun 23:00`."""
    ended_unix_s: float
    """When they ended last."""
    ends_unix_s: float
    """When they end next."""
    ends: str
    """The same as a local time, for people."""
    hours: str
    """The hours, for people: `23:00 to 07:00`, or `until 07:00`."""


@dataclass(frozen=True)
class Rest:
    """That a run rests outside of its hours."""

    until_unix_s: float | None
    """When it goes on by itself. It is None where it goes on when a person says so."""
    until: str
    """What it waits for, a clause: `until Sun 23:00, by its hours (23:00 to 07:00)`."""


def check(hours: Hours) -> None:
    """Raises `SettingsError` where a run with these hours would never rest, or never do anything else."""
    if hours.end == "off" and hours.begin != "off":
        raise SettingsError(f"hours.begin = {hours.begin} needs hours.end as well, such as 07:00: by then it is paused.")
    if hours.end != "off" and _minute_of_day(hours.begin) == _minute_of_day(hours.end):
        raise SettingsError(f"The hours begin and end at {hours.end}: choose another time for one of them, or off for both.")


def _minute_of_day(time: str) -> int | None:
    """Which minute of the day a time is: `7:00` and `07:00` are one, `24:00` and `0:00` as well. Returns None for `off`."""
    if time == "off":
        return None
    hour, minute = time.split(":")
    return int(hour) % 24 * 60 + int(minute)


def needed_lead_s(save_s: float | None, step_s: float | None) -> float:
    """How long before the hours end the worker is told to leave: `save_s` is what its last save took, and `step_s` what a step
    takes. They are None where that is not known.
    """
    return min(MOST_LEAD_S, LEAST_LEAD_S + 2 * (UNKNOWN_SAVE_S if save_s is None else save_s) + 2 * (step_s or 0.0))


def rest_of(clock: Clock | None, waived_unix_s: float | None, lead_s: float) -> Rest | None:
    """How a run rests now. Returns None where it does not: it is within its hours, or has none (`clock` is None).

    `waived_unix_s` is when a person had it go on whatever its hours say, as it does until they end next; None: nobody did.
    """
    if clock is None:
        return None
    since_unix_s = _since(clock, waived_unix_s)
    if since_unix_s >= _ended(clock, since_unix_s, lead_s):
        return None
    until = f"until {clock.begins or 'you resume it'}, by its hours ({clock.hours})"
    return Rest(until_unix_s=clock.begins_unix_s, until=until)


def waived(clock: Clock, lead_s: float) -> float:
    """The time from which on a person waives the hours who says so now: where they are about to end that is their end."""
    return max(clock.at_unix_s, _ended(clock, _since(clock, None), lead_s))


def kept_waiver(clock: Clock, waived_unix_s: float | None) -> float | None:
    """The time from which on the hours are waived, where the clock was set back since: no later than it can be."""
    return clock.at_unix_s if waived_unix_s is not None and waived_unix_s > clock.ends_unix_s else waived_unix_s


def _since(clock: Clock, waived_unix_s: float | None) -> float:
    """Since when it may train; before all times where nobody said so."""
    return max(time for time in (clock.began_unix_s, waived_unix_s, float("-inf")) if time is not None)


def _ended(clock: Clock, since_unix_s: float, lead_s: float) -> float:
    """The end of the hours that counts: the next one shortly before it comes, but not in the first half of short hours."""
    lead_s = min(lead_s, max(0.0, clock.ends_unix_s - since_unix_s) / 2)
    return clock.ends_unix_s if clock.at_unix_s >= clock.ends_unix_s - lead_s else clock.ended_unix_s
