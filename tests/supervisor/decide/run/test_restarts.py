"""Deaths and what follows from them: the policy as values, and a real supervisor that does not forget what it has tried."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import FAULTS
from kit.cli_process import end_supervisors, eventually, memsup
from kit.killed_runs import make_job

from memsup.shared.messages import Failed, FailureCause, Finished, Leaving
from memsup.shared.paths import run_paths
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.decide.run.restarts import (
    BUDGET,
    FAILURES_OF_A_STEP,
    FIRST_DELAY_S,
    JITTER,
    LONGEST_DELAY_S,
    MOST_TRACEBACK_CHARS,
    Budget,
    Cause,
    Death,
    Restarts,
    cause_of,
    delay_s,
    judge,
    last_words_of,
)

SEGV = Death(exit_status=-signal.SIGSEGV)


def crash(step: int | None, traceback: str = "Traceback: …") -> Death:
    message = f"Step {step} crashed: IndexError; look at what it was computed from: tr.csv, lines 3, 14 and 15"
    words = Failed(cause=FailureCause.CRASH, message=message, traceback=traceback, step=step)
    return Death(exit_status=1, last_words=words)


def rank_gone(exit_status: int, **more: Any) -> Death:
    """The worker says that another rank has ended, and how."""
    words = Failed(cause=FailureCause.CRASH, message="Rank 1 …", step=7, exit_status=exit_status)
    return Death(exit_status=1, last_words=words, **more)


COUNTS = st.integers(0, 2**40)
FAILURES = st.builds(
    Failed,
    cause=st.sampled_from(FailureCause),
    message=st.text(min_size=1, max_size=50),
    traceback=st.none() | st.text(max_size=9_000),
    step=st.none() | st.integers(0, 5),
)
DEATHS = st.builds(
    Death,
    exit_status=st.none() | st.integers(-70, 255),
    last_words=st.none()
    | FAILURES
    | st.just(Leaving(reason="its lease ran out", checkpoint=None))
    | st.just(Finished(model_path="/m", metrics={}, steps=1, samples=1)),
    killed_by_us=st.sampled_from([None, Cause.MEMORY, Cause.HANG, Cause.UNRESPONSIVE]),
    fence_oom_kills=st.integers(0, 3),
    gpu_lost=st.sampled_from([None, "GPU 0 is lost."]),
    continues_on_cpu=st.booleans(),
    is_command=st.booleans(),
)
CHANCES = st.floats(0, 1)


@given(st.lists(st.tuples(DEATHS, st.none() | COUNTS, CHANCES), max_size=40))
def test_whatever_it_dies_of_it_is_restarted_a_bounded_number_of_times_without_progress(
    deaths: list[tuple[Death, int | None, float]],
) -> None:
    """Delays stay in bounds, only memory makes it smaller, and what is remembered survives the way to the disk and back."""
    budget, since_progress, best = Budget(), 0, -1
    for death, durable_step, chance in deaths:
        ended_well = cause_of(death) in (Cause.FINISHED, Cause.LEFT)  # then nothing is counted, nor refilled
        if not ended_well and durable_step is not None and durable_step > best:
            best, since_progress = durable_step, 0
        verdict = judge(death, budget, durable_step, chance)
        assert verdict.sentence
        assert 0 <= verdict.delay_s <= LONGEST_DELAY_S
        assert not verdict.smaller or (verdict.again and verdict.cause is Cause.MEMORY)
        budget = msgspec.json.decode(msgspec.json.encode(verdict.budget), type=Budget)
        assert budget == verdict.budget
        if verdict.again:
            since_progress += verdict.cause not in (Cause.AFTER_SLEEP, Cause.CROWDED_OUT)  # these count for nothing
            assert verdict.delay_s > 0
            assert since_progress <= BUDGET
            assert budget.failures < FAILURES_OF_A_STEP
        elif not ended_well:
            since_progress, best = 0, -1
            assert budget == Budget(), "whoever starts it again has looked at it"


@given(st.integers(1, BUDGET), CHANCES)
def test_each_wait_is_twice_the_one_before_less_a_part_by_chance(deaths: int, chance: float) -> None:
    """So that what died together does not come back together."""
    longest = delay_s(deaths, 0.0)
    assert longest == min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (deaths - 1))
    assert longest * (1 - JITTER) <= delay_s(deaths, chance) <= longest


def test_dying_without_a_new_checkpoint_is_given_up_and_a_new_one_refills_the_budget() -> None:
    budget = Budget()
    for durable_step in (10, 10, 10, 10, 10, 20, 20, 20, 20, 20):
        verdict = judge(SEGV, budget, durable_step, 0.0)
        assert verdict.again
        budget = verdict.budget
    assert budget == Budget(deaths=5, durable_step=20)
    last = judge(SEGV, budget, 20, 0.0)
    assert not last.again
    assert "died 6 times without getting as far as a new checkpoint" in last.sentence


def test_an_older_checkpoint_than_before_is_no_progress() -> None:
    """The newest was damaged and set aside."""
    budget = judge(SEGV, Budget(deaths=3, durable_step=20), 10, 0.0).budget
    assert budget == Budget(deaths=4, durable_step=20)


def test_a_step_that_fails_three_times_is_a_failure_that_names_it_although_checkpoints_get_on() -> None:
    """Nothing in between, not even a kill from outside, makes it another step."""
    first = judge(crash(7), Budget(), 5, 0.0)
    second = judge(crash(7), judge(Death(exit_status=-9), first.budget, 6, 0.0).budget, 6, 0.0)
    assert first.again
    assert second.again
    third = judge(crash(7), second.budget, 7, 0.0)
    assert not third.again
    assert "tr.csv, lines 3, 14 and 15" in third.sentence
    assert "Step 7 has failed 3 times now, so it is not tried again." in third.sentence


def test_failures_of_no_step_in_the_file_of_an_earlier_supervisor_are_no_steps_failures() -> None:
    """Somebody wrote into it, or half of it was lost."""
    verdict = judge(Death(exit_status=1), Budget(deaths=2, durable_step=5, failures=5), 5, 0.5)
    assert verdict.again


def test_different_steps_that_fail_are_not_the_same_step() -> None:
    """Nor is a crash outside any step."""
    budget = Budget()
    for step, durable_step in ((7, 1), (8, 2), (7, 3), (None, 4), (0, 5), (0, 6), (0, 7), (7, 8)):
        verdict = judge(crash(step), budget, durable_step, 0.0)
        assert verdict.again
        budget = verdict.budget
    assert budget.failures == 2


def test_a_loss_that_explodes_stops_the_run_at_once_with_the_workers_sentence() -> None:
    """Restarting would only explode again."""
    words = Failed(cause=FailureCause.NOT_FINITE, message="The loss is nan at step 7 (rows 3, 1).", step=7)
    verdict = judge(Death(exit_status=1, last_words=words), Budget(), None, 0.0)
    assert (verdict.again, verdict.cause, verdict.sentence) == (
        False,
        Cause.NOT_FINITE,
        "The loss is nan at step 7 (rows 3, 1).",
    )


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        (Death(exit_status=0, last_words=Finished(model_path="/m", metrics={}, steps=1, samples=1)), Cause.FINISHED),
        (Death(exit_status=-9, fence_oom_kills=1), Cause.MEMORY),
        (Death(exit_status=-9, killed_by_us=Cause.MEMORY), Cause.MEMORY),
        (Death(exit_status=-9, killed_by_us=Cause.HANG), Cause.HANG),
        (Death(exit_status=-9), Cause.KILLED),
        (Death(exit_status=-15), Cause.KILLED),
        (Death(exit_status=-11), Cause.CRASH),
        (Death(exit_status=1), Cause.CRASH),
        (Death(exit_status=None), Cause.CRASH),
        (Death(exit_status=0, last_words=Leaving(reason="x", checkpoint=None)), Cause.LEFT),
        (Death(exit_status=1, gpu_lost="GPU 0 is lost."), Cause.GPU_LOST),
        (rank_gone(-9), Cause.KILLED),
        (rank_gone(-9, fence_oom_kills=1), Cause.MEMORY),
        (rank_gone(-11), Cause.CRASH),
        (rank_gone(-9, killed_by_us=Cause.MEMORY), Cause.MEMORY),
        (rank_gone(1), Cause.CRASH),
        (Death(exit_status=3, is_command=True), Cause.COMMAND_FAILED),
        (Death(exit_status=0, is_command=True), Cause.FINISHED),
        (Death(exit_status=0, is_command=True, was_told=True), Cause.LEFT),
        (Death(exit_status=0, is_command=True, rest_status=2), Cause.COMMAND_FAILED),
        (Death(exit_status=0, is_command=True, rest_status=-9), Cause.COMMAND_FAILED),
        (Death(exit_status=0, is_command=True, rest_status=-15), Cause.FINISHED),
    ],
)
def test_causes(death: Death, cause: Cause) -> None:
    assert cause_of(death) is cause


def test_the_last_words_are_how_it_ended_what_the_kernel_did_and_the_end_of_the_traceback() -> None:
    assert last_words_of(Death(exit_status=-9, fence_oom_kills=2)) == "SIGKILL; 2 processes killed by the kernel at the fence"
    assert last_words_of(Death(exit_status=None)) == "no exit status is known"
    first, traceback = last_words_of(crash(7, "…" * 9_000 + "\nIndexError: index out of range in self")).split("\n", 1)
    assert first == "exit code 1"
    assert len(traceback) == MOST_TRACEBACK_CHARS
    assert traceback.endswith("IndexError: index out of range in self")


# --------------------------------------------------------------------------------------------------------------------
# A real supervisor

DIES = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]


@given(st.lists(st.tuples(DEATHS, st.booleans(), st.floats(0, 100)), max_size=20))
def test_restarts_are_counted_and_a_life_is_news_once_when_it_is_back_at_its_work(
    deaths: list[tuple[Death, bool, float]],
) -> None:
    restarts, now_s, again = Restarts(), 0.0, 0
    for death, comes_back, lasts_s in deaths:
        now_s += lasts_s
        verdict = judge(death, restarts.budget, None, 0.0)
        restarts.died(now_s, verdict)
        again += verdict.again
        assert restarts.count == again
        assert restarts.budget == verdict.budget
        if verdict.again:
            assert restarts.recovering
            assert restarts.not_before_s == now_s + verdict.delay_s
        if comes_back:
            was_recovering = restarts.recovering
            assert restarts.recovered() == was_recovering
            assert not restarts.recovered(), "it is told once"


def test_each_death_for_memory_halves_what_the_next_life_begins_with() -> None:
    restarts = Restarts()
    assert restarts.micro_tokens_limit is None
    assert restarts.shrink(1024) == (1024, 512)
    assert restarts.shrink(512) == (512, 256)
    assert restarts.shrink(1) == (1, 1), "a micro-batch has one token at least"
    assert restarts.micro_tokens_limit == 1


@pytest.fixture
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


@pytest.mark.slow
def test_a_supervisor_that_is_killed_and_started_again_does_not_forget_the_deaths(
    tmp_path: Path, nothing_keeps_running: None
) -> None:
    """The wait goes on doubling, the sixth death is the last, and the next start by a person begins with a full budget."""
    paths = run_paths("default")

    def deaths() -> list[dict[str, Any]]:
        lines = paths.ledger.read_text().splitlines() if paths.ledger.exists() else []
        return [entry for line in lines if (entry := json.loads(line))["event"] == "death"]

    memsup("start", "--", *DIES, cwd=tmp_path)
    file = paths.state / "restarts.json"
    kept = eventually(lambda: file.exists() and (b := msgspec.json.decode(file.read_bytes(), type=Budget)).deaths == 2 and b)
    assert kept == Budget(deaths=2)
    os.kill(int(paths.lock.read_text()), signal.SIGKILL)
    eventually(lambda: not is_held(paths))
    told = [entry["delay_s"] for entry in deaths()]
    memsup("start", cwd=tmp_path)
    third = eventually(lambda: deaths()[len(told) :])[0]
    assert third["result"] == "SIGSEGV"
    for number, wait_s in enumerate([*told, third["delay_s"]], start=1):
        longest = FIRST_DELAY_S * 2 ** (number - 1)
        assert longest * (1 - JITTER) <= wait_s <= longest

    os.kill(int(paths.lock.read_text()), signal.SIGKILL)
    eventually(lambda: not is_held(paths))
    file.write_bytes(msgspec.json.encode(Budget(deaths=BUDGET)))  # instead of waiting for the long ones
    memsup("start", cwd=tmp_path)
    assert memsup("wait").returncode == 1
    assert deaths()[-1]["again"] is False
    assert "died 6 times" in deaths()[-1]["reason"]
    assert msgspec.json.decode(file.read_bytes(), type=Budget) == Budget()


@pytest.mark.slow
def test_a_row_that_crashes_the_worker_ends_the_run_at_the_third_time_and_is_told(
    tmp_path: Path, nothing_keeps_running: None
) -> None:
    """The built-in training, one row that cannot be computed: no loop, and the last words of each life are kept."""
    job = tmp_path / "job"
    make_job(job, epochs=2)
    faults = {"PYTHONPATH": str(FAULTS), "FAULT_ROW": "17"}
    memsup("start", cwd=job, **faults)
    assert memsup("wait", within_s=240).returncode == 1
    seen = memsup("status", "--json").document
    assert re.search(r"Step (\d+) has failed 3 times now", seen["failure"])
    deaths = [e for line in run_paths("default").ledger.read_text().splitlines() if (e := json.loads(line))["event"] == "death"]
    assert [(death["again"], death["cause"]) for death in deaths] == [(True, "crash"), (True, "crash"), (False, "crash")]
    for death in deaths:
        assert death["result"].startswith("exit code 1\n")
        assert death["result"].endswith("IndexError: index out of range in self")
    assert (seen["last_action"]["action"], seen["last_action"]["result"]) == ("no restart", None)


def test_a_program_that_found_no_memory_is_tried_again_and_waits_where_others_took_it() -> None:
    """As is the built-in training, but for that one row: of a program nobody knows that nothing less could be tried."""
    words = Failed(cause=FailureCause.OUT_OF_MEMORY, message="no", step=3)
    crowded = "other programs hold 7 GiB more than before"
    assert cause_of(Death(exit_status=1, last_words=words)) is Cause.ONE_ROW_TOO_LARGE
    assert cause_of(Death(exit_status=1, last_words=words, is_command=True)) is Cause.CRASH
    for is_command in (False, True):
        assert cause_of(Death(exit_status=1, last_words=words, is_command=is_command, gpu_crowded=crowded)) is Cause.CROWDED_OUT
