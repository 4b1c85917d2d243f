"""A main thread that is stuck is found in five times its usual time; one that is only slow, or paused, is left alone. A worker
that hangs is killed when its stacks are there.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsup.about import NotCut, Seam
from memsup.shared import messages as m
from memsup.shared.messages import PauseMode, Phase
from memsup.shared.status import Wanted
from memsup.supervisor.decide.run.actions import Kill
from memsup.supervisor.decide.run.hang import (
    BEFORE_LEARNING_S,
    FACTOR,
    LEARNT_AFTER,
    LEAST_OTHERWISE_S,
    STACKS_WITHIN_S,
    HangControl,
    HangDecision,
    HangWatch,
)
from memsup.supervisor.decide.run.lifecycle import Lifecycle


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


# --------------------------------------------------------------------------------------------------------------------
# What is done about it

ASK, LOOK, NOTHING = HangDecision(ask_for_stacks=True), HangDecision(look_for_stacks=True), HangDecision()


def training(*, is_command: bool = False) -> Lifecycle:
    """A run whose worker trains, and has said so once."""
    run = Lifecycle(
        wanted=Wanted.RUNNING,
        pause_mode=PauseMode.HOLD,
        run_id="r",
        lease_s=10.0,
        memory_limit_bytes=1 << 30,
        is_command=is_command,
    )
    run.on_start(0.0, leftover=False)
    run.on_spawned(0.0)
    if not is_command:
        run.on_report(0.0, m.Hello(pid=42, run_id="r"))
        speaks(run, 0.0)
    return run


def speaks(run: Lifecycle, now_s: float, ticks: int = 7, cpu_s: float | None = None) -> None:
    progress = m.Progress(
        phase=Phase.TRAINING, ticks=ticks, epoch=0.1, step=5, total_steps=9, samples=80, loss=0.5, samples_per_s=9.0, eta_s=60.0
    )
    memory = m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None)
    batch = m.BatchShape(effective=16, micro_tokens=96, micro_rows=8)
    beat = m.Heartbeat(progress=progress, batch=batch, memory=memory, checkpoint=None, digest=None, cpu_s=cpu_s)
    run.on_report(now_s, beat)


def hangs(run: Lifecycle) -> tuple[HangControl, float]:
    """A control that has just asked for the stacks of a worker that hangs, and the time at which it did."""
    control = HangControl()
    for second in range(int(BEFORE_LEARNING_S) + 1):
        assert control.step(float(second), run, traced=False, has_stacks=False) == NOTHING
    now_s = BEFORE_LEARNING_S + 1
    assert control.step(now_s, run, traced=False, has_stacks=False) == ASK
    return control, now_s


def test_a_worker_that_hangs_is_killed_as_soon_as_its_stacks_are_there() -> None:
    control, now_s = hangs(run := training())
    assert control.step(now_s + 1, run, traced=False, has_stacks=False) == LOOK
    why = "its main thread got nothing done for 30 min 3 s (training; at most 30 min was to be expected)"
    assert control.step(now_s + 2, run, traced=False, has_stacks=True) == HangDecision(kill_because=why)


def test_stacks_that_never_come_are_not_waited_for() -> None:
    """A thread that is stuck in the kernel writes none."""
    control, now_s = hangs(run := training())
    for second in range(1, int(STACKS_WITHIN_S)):
        assert control.step(now_s + second, run, traced=False, has_stacks=False) == LOOK
    assert control.step(now_s + STACKS_WITHIN_S, run, traced=False, has_stacks=False).kill_because is not None


def test_a_worker_that_gets_on_after_all_lives_and_is_asked_anew_the_next_time() -> None:
    """What was asked for then is of no use later."""
    control, now_s = hangs(run := training())
    speaks(run, now_s + 1, ticks=8)
    assert control.step(now_s + 1, run, traced=False, has_stacks=True) == NOTHING
    for second in range(2, int(BEFORE_LEARNING_S) + 2):
        assert control.step(now_s + second, run, traced=False, has_stacks=True) == NOTHING
    assert control.step(now_s + BEFORE_LEARNING_S + 2, run, traced=False, has_stacks=True) == ASK


def test_whoever_looks_at_a_worker_in_a_debugger_keeps_it() -> None:
    """Also where it was about to be killed."""
    control, now_s = hangs(run := training())
    assert control.step(now_s + 1, run, traced=True, has_stacks=False) == NOTHING


def test_a_foreign_command_is_not_judged() -> None:
    control, run = HangControl(), training(is_command=True)
    assert all(control.step(float(second), run, traced=False, has_stacks=False) == NOTHING for second in range(4000))


def attached() -> Lifecycle:
    """A run whose command is attached, and trains."""
    run = training(is_command=True)
    about = m.About(seam=Seam.CALLS, training="1", saves=True, cuts=False, not_cut=NotCut.NO_BACKWARD, detail="")
    run.on_report(0.0, m.Hello(pid=42, run_id="r", program=about))
    speaks(run, 0.0, cpu_s=5.0)
    return run


def test_an_attached_program_hangs_where_it_gets_nothing_done_and_uses_no_processor() -> None:
    """It is asked for no stacks: the signal would end it."""
    control, run = HangControl(), attached()
    for second in range(int(BEFORE_LEARNING_S) + 2):
        if second % 10 == 0:
            speaks(run, float(second), cpu_s=5.0 + second * 0.005)  # its link
        decision = control.step(float(second), run, traced=False, has_stacks=False)
        assert (decision == NOTHING) is (second <= BEFORE_LEARNING_S), second
    assert decision.kill_because is not None
    killed = run.on_hang(BEFORE_LEARNING_S + 2, decision.kill_because, None)
    assert Kill() in killed


@pytest.mark.parametrize("does", ["evaluates for hours", "is held", "has finished", "does not tell"])
def test_an_attached_program_that_does_something_else_is_left_alone(does: str) -> None:
    control, run = HangControl(), attached()
    if does == "is held":
        run.on_request(0.0, 1, m.RequestKind.PAUSE_HOLD)
    if does == "has finished":
        run.on_report(0.0, m.Finished(model_path="/x", metrics={}, steps=5, samples=0))
    for second in range(4 * int(BEFORE_LEARNING_S)):
        if second % 10 == 0:
            speaks(run, float(second), cpu_s={"evaluates for hours": 5.0 + second, "does not tell": None}.get(does, 5.0))
        assert control.step(float(second), run, traced=False, has_stacks=False) == NOTHING


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
