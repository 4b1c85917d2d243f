"""A main thread that is stuck is found in five times its usual time; one that is only slow, or paused, is left alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from memsup.shared.messages import Phase
from memsup.supervisor.decide.run.hang import BEFORE_LEARNING_S, FACTOR, LEARNT_AFTER, LEAST_OTHERWISE_S, HangWatch


def watch_of(step_s: float, steps: int = 30, phase: Phase = Phase.TRAINING) -> tuple[HangWatch, float, int]:
    """A worker that ticked `steps` times, every `step_s`; it is now the time of the last tick."""
    watch, now_s, ticks = HangWatch(), 100.0, 0
    watch.step(now_s, phase, ticks, False)
    for _ in range(steps):
        end_s = now_s + step_s
        while now_s + 1 < end_s:
            now_s += 1
            assert watch.step(now_s, phase, ticks, False) is None
        now_s, ticks = end_s, ticks + 1
        assert watch.step(now_s, phase, ticks, False) is None
    return watch, now_s, ticks


def first_alarm_s(
    watch: HangWatch, now_s: float, ticks: int, phase: Phase = Phase.TRAINING, *, within_s: int = 4000
) -> int | None:
    """Seconds without a tick until it says so."""
    for second in range(1, within_s):
        if watch.step(now_s + second, phase, ticks, False) is not None:
            return second
    return None


def test_a_stuck_step_is_found_after_five_times_the_longest() -> None:
    """Steps of 30 s: silent for 150 s is a hang, 149 s is not."""
    watch, now_s, ticks = watch_of(30.0)
    assert first_alarm_s(watch, now_s, ticks) == FACTOR * 30 + 1


def test_quick_steps_are_given_a_minute() -> None:
    """A machine that is busy with something else makes a step of 10 ms take seconds."""
    watch, now_s, ticks = watch_of(1.0)
    assert first_alarm_s(watch, now_s, ticks) == LEAST_OTHERWISE_S + 1


def test_the_first_steps_may_take_long() -> None:
    """Compiling and warming up: until there was something to learn from, half an hour."""
    watch, now_s, ticks = watch_of(1.0, steps=LEARNT_AFTER - 1)
    assert first_alarm_s(watch, now_s, ticks) == BEFORE_LEARNING_S + 1


def test_each_phase_has_its_own_limit() -> None:
    """What training takes says nothing about how long a checkpoint of seven gigabytes is being written."""
    watch, now_s, ticks = watch_of(1.0)
    assert first_alarm_s(watch, now_s, ticks + 1, Phase.SAVING) == BEFORE_LEARNING_S + 2  # the phase began a second later


def test_a_pause_of_hours_is_no_hang_and_the_clock_starts_anew_after_it() -> None:
    """Held, cooling, frozen or being debugged: that time does not count."""
    watch, now_s, ticks = watch_of(10.0)
    for second in range(20_000):
        assert watch.step(now_s + second, Phase.TRAINING, ticks, True) is None
    assert first_alarm_s(watch, now_s + 20_000, ticks) in (60, 61)


def test_a_worker_that_says_that_it_holds_is_no_hang() -> None:
    """HOLDING is a phase in which nothing is meant to get on."""
    watch, now_s, ticks = watch_of(1.0)
    assert first_alarm_s(watch, now_s, ticks, Phase.HOLDING) is None


def test_the_supervisors_own_standstill_is_not_charged_to_the_worker() -> None:
    """A machine that thrashed for ten minutes stood still as a whole."""
    watch, now_s, ticks = watch_of(1.0)
    assert watch.step(now_s + 600, Phase.TRAINING, ticks, False) is None
    assert first_alarm_s(watch, now_s + 600, ticks) == LEAST_OTHERWISE_S + 1


def test_a_pause_is_not_learnt_as_a_long_step() -> None:
    """Else one pause over lunch would let the next hang last a day."""
    watch, now_s, ticks = watch_of(1.0)
    watch.step(now_s + 1, Phase.TRAINING, ticks, True)
    for second in range(2, 3600):
        watch.step(now_s + second, Phase.TRAINING, ticks, True)
    watch.step(now_s + 3600, Phase.TRAINING, ticks, False)
    watch.step(now_s + 3601, Phase.TRAINING, ticks + 1, False)
    assert watch.longest_s[Phase.TRAINING] <= 2.0


def test_what_was_learnt_outlives_the_worker() -> None:
    """Between two workers nothing is known, and the next one is measured by the limits of the one before."""
    watch, now_s, _ = watch_of(20.0)
    assert watch.step(now_s + 1, None, None, False) is None
    assert watch.step(now_s + 5000, Phase.TRAINING, 0, False) is None
    assert first_alarm_s(watch, now_s + 5000, 0) == FACTOR * 20 + 1


def test_a_worker_that_reports_no_ticks_is_never_judged() -> None:
    """A foreign command tells nothing of its progress."""
    watch = HangWatch()
    assert all(watch.step(float(second), None, None, False) is None for second in range(10_000))


calls = st.lists(
    st.tuples(
        st.floats(0.1, 900.0),
        st.sampled_from([None, *Phase]),
        st.one_of(st.none(), st.integers(0, 5)),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(calls)
def test_never_before_the_least_and_never_while_suspended(sequence: list[tuple[float, Phase | None, int | None, bool]]) -> None:
    """Whatever the worker reports: an alarm means that it was silent, unsuspended, for longer than the least limit."""
    watch, now_s, silent_s, before = HangWatch(), 0.0, 0.0, (None, None)
    for passed_s, phase, ticks, suspended in sequence:
        now_s += passed_s
        overdue_s = watch.step(now_s, phase, ticks, suspended)
        moved = (phase, ticks) != before
        silent_s = 0.0 if moved or suspended else silent_s + passed_s
        before = (phase, ticks)
        if overdue_s is not None:
            assert phase is not None
            assert not suspended
            assert silent_s > LEAST_OTHERWISE_S
