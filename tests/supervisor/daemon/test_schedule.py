"""When the loop turns for what, and its lateness: the worst is never forgotten, and what is said to be recent is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.daemon.schedule import (
    CALM_LOOK_S,
    RECENT_S,
    SLOW_LOOK_S,
    SOON_S,
    STATUS_EVERY_S,
    Lateness,
    Schedule,
)


def test_a_loop_that_is_woken_early_is_not_late() -> None:
    lateness = Lateness()
    lateness.note(100.0, -0.5)
    assert (lateness.worst_s, lateness.recent_s) == (0.0, 0.0)


@given(st.lists(st.tuples(st.floats(0.001, 3.0), st.floats(0.0, 5.0)), min_size=1, max_size=200))
def test_the_worst_stays_and_the_recent_worst_is_of_the_last_ten_to_twenty_seconds(passes: list[tuple[float, float]]) -> None:
    lateness, now_s, seen = Lateness(), 1000.0, list[tuple[float, float]]()
    for step_s, late_s in passes:
        now_s += step_s
        lateness.note(now_s, late_s)
        seen.append((now_s, late_s))
        assert lateness.worst_s == max(late for _, late in seen)
        within = max(late for at_s, late in seen if now_s - at_s < RECENT_S)
        longer = max(late for at_s, late in seen if now_s - at_s < 2 * RECENT_S + 3.0)  # no pass is longer than 3 s
        assert within <= lateness.recent_s <= longer


def test_what_was_just_done_is_looked_at_at_once_and_never_later_than_was_meant() -> None:
    schedule = Schedule(100.0)
    schedule.look_again(100.0, in_s=1.0)
    schedule.look_soon(100.2)
    assert not schedule.is_look_due(100.2 + SOON_S / 2)
    assert schedule.is_look_due(100.2 + SOON_S)
    schedule.look_again(101.0, in_s=SOON_S / 2)
    schedule.look_soon(101.0)
    assert schedule.is_look_due(101.0 + SOON_S / 2)


def test_when_the_calm_is_over_the_slow_look_is_not_waited_for() -> None:
    schedule = Schedule(100.0)
    schedule.slow_look_again(100.0, calm=True)
    assert not schedule.is_slow_look_due(100.0 + SLOW_LOOK_S)
    assert schedule.is_slow_look_due(100.0 + CALM_LOOK_S)
    schedule.slow_look_again(110.0, calm=True)
    schedule.hurry(110.0)
    assert schedule.is_slow_look_due(110.0 + SLOW_LOOK_S)


def test_the_supervisor_settles_less_and_less_often() -> None:
    """After 1, 2, 4, 8, … s, looked at once a second for an hour."""
    schedule = Schedule(0.0)
    assert [now_s for now_s in range(3600) if schedule.is_settling_due(float(now_s))] == [0, *(2**n for n in range(12))]


times = st.floats(0.0, 10.0)


@given(st.lists(st.tuples(st.floats(0.0, 3.0), times, times, st.booleans()), max_size=60))
def test_the_loop_never_sleeps_over_anything_that_is_due(turns: list[tuple[float, float, float, bool]]) -> None:
    """Whatever was planned: after the wait something is due, and the wait is never below 0 nor beyond the slow look."""
    schedule, now_s = Schedule(0.0), 0.0
    for late_s, look_in_s, probe_in_s, calm in turns:
        turn = schedule.plan(now_s, now_s + probe_in_s)
        assert 0.0 <= turn.wait_s <= CALM_LOOK_S + 1e-9
        now_s = max(now_s, turn.due_s) + late_s
        schedule.woke(now_s, turn)
        assert schedule.lateness.worst_s >= late_s - 0.0011
        if schedule.is_look_due(now_s):
            schedule.look_again(now_s, look_in_s)
        if schedule.is_slow_look_due(now_s):
            schedule.slow_look_again(now_s, calm=calm)
        if schedule.is_status_due(now_s):
            schedule.status_shown(now_s)
            assert not schedule.is_status_due(now_s + STATUS_EVERY_S - 0.1)
