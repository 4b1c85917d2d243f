"""The hours of a run by the clock of this machine: in any time zone, and over the days on which clocks are set."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.settings import Hours
from memsup.supervisor.daemon.hours import clock_of
from memsup.supervisor.decide.run.hours import rest_of

ZONES = ["UTC", "Europe/Berlin", "Asia/Shanghai", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia", "XYZ+05:31:20"]
DAYS = ["2026-03-28", "2026-10-24", "2026-03-07", "2026-10-31", "2026-04-04", "2011-12-29", "2026-06-01"]
"""Clocks are set on the day after each of the first five somewhere; Samoa had no 30 December 2011."""
MINUTE_S, EVERY = 60.0, 17


@pytest.fixture(autouse=True, scope="module")
def _own_zone() -> Iterator[None]:
    before = os.environ.get("TZ")
    yield
    os.environ.pop("TZ", None) if before is None else os.environ.update(TZ=before)
    time.tzset()


def at(zone: str, text: str) -> float:
    os.environ["TZ"] = zone
    time.tzset()
    return datetime.fromisoformat(text).timestamp()


def rests(hours: Hours, at_unix_s: float, waived_unix_s: float | None = None, lead_s: float = 0.0) -> str | None:
    rest = rest_of(clock_of(hours, at_unix_s), waived_unix_s, lead_s)
    return None if rest is None else rest.until


def minute_of(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) % 24 * 60 + int(minute)


_times = st.one_of(
    st.sampled_from(["23:00", "07:00", "02:00", "02:30", "03:00", "00:00", "24:00", "12:00", "1:59"]),
    st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59)),
)


@given(st.sampled_from(ZONES), st.sampled_from(DAYS), _times, _times, st.sampled_from([0.0, 90.0, 1800.0]))
def test_it_trains_within_its_hours_and_at_no_other_time(zone: str, day: str, begin: str, end: str, lead_s: float) -> None:
    """Looked at every 17 minutes over three days, on which clocks may be set: what the clock shows is within the hours
    whenever it trains, and there is one beginning and one end a day.
    """
    first, last = minute_of(begin), minute_of(end)
    if first == last:
        return
    start, hours = at(zone, f"{day} 00:00"), Hours(begin=begin, end=end)
    trained = []
    for number in range(3 * 24 * 60 // EVERY):
        now = start + number * EVERY * MINUTE_S
        here = time.localtime(now)
        minute = here.tm_hour * 60 + here.tm_min
        trains = rests(hours, now, lead_s=lead_s) is None
        if trains:
            assert (minute - first) % 1440 < (last - first) % 1440, f"{here.tm_hour}:{here.tm_min}"
        trained.append(trains)
    assert sum(one is not other for one, other in itertools.pairwise(trained)) <= 7
    if lead_s == 0 and zone == "UTC" and (last - first) % 1440 > EVERY:
        assert sum(trained) == pytest.approx(3 * ((last - first) % 1440) / EVERY, abs=6)


def test_what_comes_twice_or_not_at_all_ends_the_hours_once_and_early() -> None:
    """Berlin, on the nights on which clocks are set: back from 3:00 to 2:00, and ahead from 2:00 to 3:00."""
    hours = Hours(begin="23:00", end="02:30")
    second = at("Europe/Berlin", "2026-10-25 02:10") + 3600
    assert time.strftime("%H:%M", time.localtime(second)) == "02:10", "for the second time"
    assert rests(hours, second - 1800 - 60) == "until Sun 23:00, by its hours (23:00 to 02:30)", "2:39, for the first time"
    assert rests(hours, second) == "until Sun 23:00, by its hours (23:00 to 02:30)"
    assert rests(hours, second - 2 * 3600) is None
    ahead = at("Europe/Berlin", "2026-03-29 01:20")
    assert rests(hours, ahead) is None
    assert rests(hours, ahead + 15 * MINUTE_S) is not None, "what is shown next is 3:00, and that is too late"


def test_another_time_zone_and_another_date_count_at_once() -> None:
    hours = Hours(begin="23:00", end="7:00")
    night = at("Europe/Berlin", "2026-06-02 03:00")
    assert rests(hours, night) is None
    os.environ["TZ"] = "Asia/Shanghai"  # where it is 9:00; nobody says so to a process
    assert rests(hours, night) == "until Tue 23:00, by its hours (23:00 to 7:00)"
    assert rests(hours, night - 3 * 3600) is None
    assert rests(hours, night + 400 * 86400) == "until Wed 23:00, by its hours (23:00 to 7:00)"


def test_a_person_has_it_go_on_until_the_hours_end_next() -> None:
    noon = at("UTC", "2026-06-02 12:00")
    hours, midnight = Hours(begin="23:00", end="07:00"), noon + 12 * 3600
    assert rests(hours, noon) is not None
    for later_h, goes_on in ((0, True), (11, True), (18.9, True), (19, False), (34, False), (35, True)):
        assert (rests(hours, noon + later_h * 3600, noon) is None) is goes_on, later_h
    ends_only = Hours(end="07:00")
    assert rests(ends_only, midnight, noon) is None
    assert rests(ends_only, midnight + 7 * 3600 - 90, noon, lead_s=90) == "until you resume it, by its hours (until 07:00)"
    assert rests(ends_only, midnight + 40 * 3600, noon) is not None, "and not in the night after"
    assert rests(ends_only, midnight, None) is not None
    assert clock_of(Hours(), noon) is None
