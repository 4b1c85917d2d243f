"""Dates that jump and machines that sleep are told apart, and trimmed clocks are not told at all."""

from __future__ import annotations

from memsup.sleep import asleep_s
from memsup.supervisor.daemon.clock_watch import ClockWatch


def test_a_date_that_is_set_and_a_sleep_are_told_once_each_and_apart() -> None:
    watch = ClockWatch()
    assert watch.step(100.0, 1000.0, 50.0) is None
    assert watch.step(101.0, 1001.0, 50.0) is None
    assert watch.step(102.0, 4602.0, 50.0) == "the date was set ahead by 1 h"
    assert watch.step(103.0, 4603.0, 50.0) is None
    assert watch.step(104.0, 4594.0, 50.0) == "the date was set back by 10 s"
    assert watch.step(105.0, 8195.0, 3650.0) == "the machine slept for 1 h"
    assert watch.step(106.0, 15396.0, 7250.0) == "the machine slept for 1 h; the date was set ahead by 1 h"
    assert watch.step(107.0, 15397.0, 7250.0) is None


def test_a_clock_that_is_trimmed_all_night_is_no_news() -> None:
    """500 ppm, the most that the kernel slews."""
    watch = ClockWatch()
    assert all(watch.step(now_s, now_s * 1.0005, 0.0) is None for now_s in map(float, range(40_000)))


def test_the_time_asleep_does_not_move_while_the_machine_is_awake() -> None:
    assert abs(asleep_s() - asleep_s()) < 0.1
