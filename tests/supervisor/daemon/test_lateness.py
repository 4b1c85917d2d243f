"""The supervisor's own lateness: the worst is never forgotten, and what is said to be recent is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.daemon.lateness import RECENT_S, Lateness


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
