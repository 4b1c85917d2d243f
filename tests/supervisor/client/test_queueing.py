"""The time at which a queued run may begin, by clocks of all kinds."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.queueing import next_time

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]
YEAR = 1_767_225_600  # 2026


@given(st.sampled_from(ZONES), st.integers(0, 366 * 86400), st.integers(0, 23), st.integers(0, 59))
def test_the_next_time_that_the_clock_shows_is_meant(zone: str, second: int, hour: int, minute: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        now = float(YEAR + second)
        found = next_time(f"{hour:02}:{minute:02}", now)
        shows = datetime.fromtimestamp(found.at_unix_s)
        assert now < found.at_unix_s <= now + 25.1 * 3600
        assert shows.second == 0
        is_set_ahead = shows.hour * 60 + shows.minute - hour * 60 - minute in (30, 60)
        assert (shows.hour, shows.minute) == (hour, minute) or is_set_ahead
        assert found.text == f"{shows:%a %H:%M}"
    time.tzset()


def test_the_night_in_which_the_clocks_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    before = datetime(2026, 3, 28, 22).timestamp()
    assert datetime.fromtimestamp(next_time("2:30", before).at_unix_s) == datetime(2026, 3, 29, 3, 30)
    second = datetime(2026, 10, 25, 2, 20, fold=1).timestamp()  # the hour comes twice, and this is the second one
    assert next_time("02:30", second).at_unix_s == second + 600
    assert next_time("02:10", second).at_unix_s == datetime(2026, 10, 26, 2, 10).timestamp()
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("text", ["", "24:00", "7", "07:60", "7pm", "23:00:00"])
def test_what_is_no_time_of_the_day_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="23:00"):
        next_time(text, 0.0)
