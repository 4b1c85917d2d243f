"""A worker process from its first word to its last: orders in every phase, leaving, dying at any instant, going on exactly."""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import KIT
from kit.asked_again import check_accuracy
from kit.lone_supervisor import LoneSupervisor, newest_checkpoint, state_of, tiny_settings
from kit.nursery import Nursery
from kit.yardstick import stopwatch

from memsup.shared.messages import (
    Checkpoint,
    Done,
    Failed,
    FailureCause,
    Finished,
    Heartbeat,
    Hello,
    Leaving,
    LimitMicroBatch,
    OutOfMemory,
    Pace,
    Pause,
    PauseMode,
    Phase,
    Resume,
    Stop,
    Welcome,
)
from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("worker") as started:
        yield started


def same_result(one: RunPaths, other: RunPaths) -> None:
    """Weights, optimizer, digest, audit and the exported model, byte for byte."""
    first, second = newest_checkpoint(one), newest_checkpoint(other)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert filecmp.cmp(first / name, second / name, shallow=False), f"{name} differs"
    for key in ("step", "digest", "loss", "evaluated"):
        assert state_of(one)[key] == state_of(other)[key]
    assert (one.state / "audit.txt").read_bytes() == (other.state / "audit.txt").read_bytes()
    assert sorted(os.listdir(one.model)) == sorted(os.listdir(other.model))
    assert filecmp.cmp(one.model / "model.safetensors", other.model / "model.safetensors", shallow=False)


# ---------------------------------------------------------------------------------------------------------------------
# One whole life


def test_a_run_trains_evaluates_and_leaves_a_model_that_loads(tmp_path: Path) -> None:
    """Started as the supervisor starts it. The model is better than guessing, and a pipeline takes it."""
    settings = tiny_settings(tmp_path, rows=400, training__epochs=3, training__learning_rate=3e-3)
    with LoneSupervisor(settings) as supervisor:
        with stopwatch() as hello:
            supervisor.start()
            supervisor.first(Hello)
        finished = supervisor.finish()
        beats = [report for report in supervisor.reports if isinstance(report, Heartbeat)]
    with stopwatch() as importing:
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
    assert hello.s < importing.s, "the link is up before torch is loaded"
    assert finished.steps == 3 * 45
    assert finished.samples == 3 * 360
    assert finished.metrics["majority_accuracy"] == pytest.approx(0.5, abs=0.1)
    assert finished.metrics["accuracy"] > 0.9
    assert {beat.progress.phase for beat in beats} >= {Phase.LOADING}
    ticks = [beat.progress.ticks for beat in beats]
    assert ticks == sorted(ticks)
    assert beats[-1].memory.resident_bytes is not None

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model = AutoModelForSequenceClassification.from_pretrained(finished.model_path)
    tokenizer = AutoTokenizer.from_pretrained(finished.model_path)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    assert [answer["label"] for answer in classify(["很好喜欢满意", "很差失望退货"])] == ["good", "bad"]

    # What every test is held to afterwards would see another model.
    assert check_accuracy(supervisor.paths.state)
    torch.nn.init.zeros_(model.classifier.weight)
    model.save_pretrained(finished.model_path)
    with pytest.raises(AssertionError, match="were told as right, the saved model has"):
        check_accuracy(supervisor.paths.state)
    shutil.rmtree(finished.model_path)


def test_orders_are_carried_out_while_loading_training_evaluating_and_held(tmp_path: Path, nursery: Nursery) -> None:
    settings = tiny_settings(tmp_path, rows=3000, training__epochs=50, training__eval_share=0.9)
    with LoneSupervisor(settings, nursery=nursery) as supervisor:
        supervisor.start()
        supervisor.first(Hello)
        supervisor.send(LimitMicroBatch(order_id=1, reason="while loading", micro_tokens=80))
        supervisor.send(Checkpoint(order_id=2, reason="while loading"))
        first = supervisor.first(Done, order_id=2).checkpoint
        assert first is not None
        assert Path(first.path, "manifest.json").exists()
        assert supervisor.first(Done, order_id=1).micro_tokens == 80
        supervisor.reach(Phase.TRAINING, 1)

        while_training = supervisor.order(Checkpoint(order_id=3, reason="while training"))
        assert isinstance(while_training, Done)
        assert while_training.checkpoint is not None
        assert while_training.checkpoint.step > 0
        assert while_training.checkpoint.verified

        supervisor.order(Pause(order_id=4, reason="while training", mode=PauseMode.HOLD))
        held = supervisor.reach(Phase.HOLDING)
        while_held = supervisor.order(Checkpoint(order_id=5, reason="while held"))
        assert isinstance(while_held, Done)
        assert while_held.checkpoint is not None
        assert while_held.checkpoint.step in {held.progress.step, held.progress.step + 1}
        again = supervisor.order(Checkpoint(order_id=6, reason="nothing new"))
        assert isinstance(again, Done)
        assert again.checkpoint == while_held.checkpoint, "what is saved already is not saved again"
        supervisor.order(Resume(order_id=7, reason="go on"))

        supervisor.order(Pace(order_id=8, reason="heat", duty_fraction=0.3))
        supervisor.reach(Phase.EVALUATING)
        assert isinstance(supervisor.order(LimitMicroBatch(order_id=9, reason="while evaluating", halve=True)), Done)
        assert isinstance(supervisor.order(Stop(order_id=10, reason="enough", checkpoint=True)), Done)
        assert supervisor.first(Leaving).checkpoint is not None
        assert supervisor.exit_status() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Leaving


def test_a_released_run_goes_on_where_it_was_also_without_its_models_folder(tmp_path: Path, nursery: Nursery) -> None:
    with LoneSupervisor(tiny_settings(tmp_path, training__epochs=6), nursery=nursery) as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 3)
        done = supervisor.order(Pause(order_id=1, reason="make room", mode=PauseMode.RELEASE))
        leaving = supervisor.first(Leaving)
        assert supervisor.exit_status() == 0
        assert isinstance(done, Done)
        assert leaving.checkpoint == done.checkpoint
        assert leaving.checkpoint is not None
        supervisor.start()
        supervisor.first(Hello)
        supervisor.send(Stop(order_id=2, reason="while loading", checkpoint=False))
        assert supervisor.first(Done, order_id=2).detail == f"left at step {leaving.checkpoint.step}", "it knows where it is"
        assert supervisor.exit_status() == 0
        shutil.rmtree(tmp_path / "tiny-bert")
        supervisor.start()
        assert supervisor.reach(Phase.TRAINING).progress.step >= leaving.checkpoint.step > 0
        assert supervisor.finish().steps == 6 * 23


@pytest.mark.parametrize("how", ["lifeline", "lease", "sigterm"])
def test_a_worker_that_is_left_alone_saves_and_leaves(tmp_path: Path, nursery: Nursery, how: str) -> None:
    """It does not outlive a dead supervisor, and what it learnt is not lost."""
    lease_s = 2.0 if how == "lease" else 60.0
    with LoneSupervisor(tiny_settings(tmp_path, training__epochs=500), lease_s=lease_s, nursery=nursery) as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 2)
        match how:
            case "lifeline":
                supervisor.drop_lifeline()
            case "lease":
                supervisor.renews_lease = False
            case "sigterm":
                assert supervisor.worker is not None
                supervisor.worker.send_signal(signal.SIGTERM)
        assert supervisor.exit_status() == 0
        assert state_of(supervisor.paths)["step"] >= 2
        assert "Leaving" in supervisor.log()


def test_stopping_now_writes_nothing(tmp_path: Path, nursery: Nursery) -> None:
    with LoneSupervisor(
        tiny_settings(tmp_path, rows=8000), nursery=nursery
    ) as supervisor:  # far from an evaluation's checkpoint
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 2)
        supervisor.order(Stop(order_id=1, reason="now", checkpoint=False))
        assert supervisor.exit_status() == 0
        assert not supervisor.paths.checkpoints.exists()


def test_without_a_run_or_a_supervisor_there_is_a_sentence(tmp_path: Path) -> None:
    with LoneSupervisor(tiny_settings(tmp_path)) as supervisor:
        supervisor.paths.record.unlink()
        supervisor.start()
        assert supervisor.exit_status() == 1
        assert "There is no run 'tiny'" in supervisor.log()


def test_bad_data_is_the_users_to_mend(tmp_path: Path, nursery: Nursery) -> None:
    settings = tiny_settings(tmp_path)
    assert settings.task.train is not None
    rows = "".join(f"这个东西 {number},{('good', 'bad', 'nan')[number % 3]}\n" for number in range(60))
    Path(settings.task.train).write_text("text,label\n" + rows, encoding="utf-8")
    with LoneSupervisor(settings, nursery=nursery) as supervisor:
        supervisor.start()
        failed = supervisor.first(Failed)
        assert failed.cause is FailureCause.BAD_INPUT
        assert failed.traceback is None
        assert "20 rows of 60 have the label 'nan'" in failed.message
        assert "memsup start --run tiny --set task.accept=no-label" in failed.message
        assert supervisor.exit_status() == 1


# ---------------------------------------------------------------------------------------------------------------------
# Dying


def undisturbed(settings: Settings, nursery: Nursery) -> RunPaths:
    with LoneSupervisor(settings, name="undisturbed", nursery=nursery) as supervisor:
        supervisor.run_to_end()
        return supervisor.paths


@pytest.mark.parametrize(
    ("threads", "lanes", "kills"),
    [
        (2, 2, 6),
        pytest.param(1, 1, 10, marks=pytest.mark.nightly),
        pytest.param(2, 1, 10, marks=pytest.mark.nightly),
        pytest.param(2, 2, 20, marks=pytest.mark.nightly),
    ],
)
def test_a_run_killed_at_random_instants_ends_with_the_same_bits(
    tmp_path: Path, nursery: Nursery, threads: int, lanes: int, kills: int
) -> None:
    """Kill -9 in loading, training, saving, evaluating or finishing; with dropout, and a checkpoint every 50 ms."""
    cpu = {"training__threads": threads, "training__lanes": lanes}
    settings = tiny_settings(tmp_path, rows=300, training__epochs=3, checkpoint__every="50ms", **cpu)
    whole = undisturbed(settings, nursery)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # pytest shows it when the test fails
    draw = random.Random(seed)
    with LoneSupervisor(settings, name="killed", nursery=nursery) as supervisor:
        for _ in range(kills):
            supervisor.start()
            supervisor.first(Hello)
            end_s = time.monotonic() + draw.uniform(0.0, 1.5)
            while time.monotonic() < end_s:
                supervisor.pump(0.01)
            supervisor.kill()
        finished = supervisor.run_to_end()
        assert finished.steps == 3 * 34
        same_result(whole, supervisor.paths)


def test_steps_redone_after_a_kill_are_cut_as_they_were(tmp_path: Path, nursery: Nursery) -> None:
    """The supervisor limits the micro-batch and lifts the limit again, then the worker is killed: the journal alone, given to
    another run, leads to the same bits.
    """
    settings = tiny_settings(tmp_path, rows=300, training__epochs=3, training__threads=2, training__lanes=2)
    with LoneSupervisor(settings, name="limited", nursery=nursery) as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 20)
        supervisor.order(Checkpoint(order_id=1, reason="before"))
        supervisor.order(LimitMicroBatch(order_id=2, reason="pressure", halve=True))
        supervisor.reach(Phase.TRAINING, 40)
        supervisor.order(LimitMicroBatch(order_id=3, reason="more pressure", micro_tokens=20))
        supervisor.reach(Phase.TRAINING, 60)
        supervisor.order(LimitMicroBatch(order_id=4, reason="over"))
        supervisor.kill()
        supervisor.run_to_end()
        limited = supervisor.paths
    assert len(limited.plan.read_bytes().splitlines()) == 4

    with LoneSupervisor(settings, name="told", nursery=nursery) as supervisor:
        shutil.copy(limited.plan, supervisor.paths.plan)
        supervisor.run_to_end()
        same_result(limited, supervisor.paths)


def test_only_a_restart_because_of_memory_makes_micro_batches_smaller(tmp_path: Path, nursery: Nursery) -> None:
    with LoneSupervisor(tiny_settings(tmp_path, training__epochs=8), nursery=nursery) as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 10)
        supervisor.order(Checkpoint(order_id=1, reason="a test"))
        supervisor.kill()
        supervisor.start()
        assert supervisor.reach(Phase.TRAINING).batch.micro_tokens == 96  # type: ignore[union-attr]
        supervisor.kill()
        supervisor.welcome = Welcome(run_id="x", lease_s=60, memory_limit_bytes=None, micro_tokens_limit=40)
        supervisor.start()
        supervisor.reach(Phase.TRAINING)
        supervisor.kill()
        supervisor.welcome = Welcome(run_id="x", lease_s=60, memory_limit_bytes=None, micro_tokens_limit=None)
        supervisor.start()
        supervisor.finish()
        entries = [json.loads(line) for line in supervisor.paths.plan.read_text(encoding="utf-8").splitlines()]
        assert [entry["ceiling"] for entry in entries] == [None, 40, 80, None], "and they grow back to what was set"
        steps = [entry["step"] for entry in entries]
        assert steps == sorted(steps)


def test_memory_running_out_within_the_optimizers_step_costs_a_restart_and_no_step(tmp_path: Path, nursery: Nursery) -> None:
    """The real program with torch's AdamW failing, half done, at its 9th step. The restarted run has the undisturbed bits."""
    settings = tiny_settings(tmp_path, checkpoint__every="10ms")
    whole = undisturbed(settings, nursery)
    with LoneSupervisor(settings, name="starved", nursery=nursery) as supervisor:
        supervisor.start(sys.executable, str(KIT / "starved_optimizer.py"))
        failed = supervisor.first(Failed)
        assert failed.cause is FailureCause.CRASH
        assert "half updated" in failed.message
        assert supervisor.first(OutOfMemory).where == "optimizer"
        assert supervisor.exit_status() == 1
        assert supervisor.run_to_end().steps == 23
        same_result(whole, supervisor.paths)


# ---------------------------------------------------------------------------------------------------------------------
# Real exhaustion


def test_host_memory_that_really_runs_out_is_an_ordinary_event(tmp_path: Path, nursery: Nursery) -> None:
    """A real soft limit, 200 MiB above what the model needs, and micro-batches that would take twice as much: the run
    shrinks them by itself, and its resident memory stays below the limit at every heartbeat.
    """
    job = {"words": 50, "hidden": 256, "training__effective_batch": 128, "training__max_length": 256}
    one_row = tiny_settings(tmp_path, rows=800, training__micro_tokens=1, **job)
    settings = tiny_settings(tmp_path, rows=800, training__micro_tokens=100_000, **job)
    # What it needs is measured a row at a time, since the beat may come from the midst of a step.
    with LoneSupervisor(one_row, name="loading", nursery=nursery) as supervisor:
        supervisor.start()
        resident = supervisor.reach(Phase.TRAINING).memory.resident_bytes
        assert resident is not None
        supervisor.kill()
    limit_bytes = resident + (264 << 20)
    reports: list[Any] = []
    with LoneSupervisor(settings, nursery=nursery, memory_limit_bytes=limit_bytes) as supervisor:
        last: Any = None
        while not isinstance(last, Finished):  # where generated code found no memory, only a new process gets over it
            supervisor.start()
            last = supervisor.last_words()
            assert isinstance(last, Finished | Leaving), f"{last}\n{supervisor.log()[-4000:]}"
            reports += supervisor.reports
        beats = [report for report in reports if isinstance(report, Heartbeat)]
        caught = [report for report in reports if isinstance(report, OutOfMemory)]
        assert sum(isinstance(report, Leaving) for report in reports) <= len(caught)
    assert last.steps == 6
    assert caught
    assert all(report.micro_tokens_after < report.micro_tokens_before for report in caught)
    assert all(beat.memory.data_limit_bytes is not None for beat in beats if beat.progress.phase is Phase.TRAINING)
    assert max(beat.memory.resident_bytes or 0 for beat in beats) < limit_bytes + (128 << 20), "files' pages come on top"
