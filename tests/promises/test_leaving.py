"""A run that is told to leave and cannot save: it holds, says why, and leaves by itself when there is room. Nothing is lost.

The histories are in `test_lifecycle.py`; here a real run lies on a real disk that is full.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import FAULTS
from kit.cli_process import end_supervisors, eventually, memsup
from kit.faults.night_clock import FAST, NightClock
from kit.killed_runs import end_of, make_job, undisturbed
from kit.run_state import status, step_of, until
from kit.small_disk import MIB, fill, on_a_small_disk

from memsup.checkpoint.store import Store
from memsup.shared.paths import run_paths
from memsup.shared.run_file import read_record
from memsup.shared.status import Wanted
from memsup.supervisor.client.contact import is_held

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DISK_BYTES = 448 * MIB


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where the run's state will lie, and a job beside it."""
    make_job(tmp_path / "job", epochs=10, every="300ms", lanes=1)
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def on_the_disk(state: Path, play: Callable[[Path], None]) -> None:
    def with_an_end() -> None:
        try:
            play(state.parent / "job")
        finally:
            end_supervisors()

    on_a_small_disk(state, DISK_BYTES, with_an_end)


def start(job: Path) -> None:
    """Each step waits a little, so that the run does not end before the disk is full."""
    done = memsup("start", "--run", "night", cwd=job, PYTHONPATH=str(FAULTS), FAULT_STEP_S="0.03")
    assert done.returncode == 0, done.stdout + done.stderr


def has_saved() -> bool:
    seen = status("night")
    return seen["state"] == "running" and seen["progress"]["phase"] == "training" and newest_step() > 0


def fill_and_go_on(state: Path) -> Path:
    """Fills the disk, and waits until something was computed that is saved nowhere; returns what fills it."""
    ballast = fill(state)
    until(lambda now: (step_of(now) or 0) > newest_step(), run="night")
    return ballast


def newest_step() -> int:
    """0 where there is no checkpoint."""
    folder = run_paths("night").checkpoints
    return max((info.step or 0 for info in Store(folder).list() if info.problem is None), default=0) if folder.exists() else 0


def orders_to_stop() -> list[str]:
    entries = map(json.loads, run_paths("night").ledger.read_text().splitlines())
    return [entry["result"].partition(":")[0] for entry in entries if entry.get("action") == "stop"]


def test_a_stop_that_cannot_be_saved_waits_for_room_and_loses_nothing(state: Path, night_clock: NightClock) -> None:
    def play(job: Path) -> None:
        left_alone = undisturbed(job, "undisturbed")
        start(job)
        eventually(has_saved)
        ballast = fill_and_go_on(state)
        refused = memsup("stop", "--run", "night")
        assert refused.returncode == 1
        assert "The run cannot stop" in refused.stdout + refused.stderr
        assert "memsup stop --run night --now" in refused.stdout + refused.stderr
        record = read_record(run_paths("night").record)
        assert record is not None
        assert record.wanted is Wanted.STOPPED, "no boot begins it, whatever becomes of the supervisor"
        seen = until(lambda now: now["progress"]["phase"] == "holding", run="night")
        assert seen["state"] == "stopping"
        assert any("The run cannot stop" in sentence for sentence in seen["attention"])
        assert newest_step() < seen["progress"]["step"]
        ballast.unlink()
        with night_clock.fast(FAST):
            eventually(lambda: not is_held(run_paths("night")))
        assert newest_step() == seen["progress"]["step"], "it held, and all of it was saved"
        assert orders_to_stop() == ["failed", "done"]
        start(job)
        assert memsup("wait", "--run", "night").returncode == 0
        assert end_of(run_paths("night")) == left_alone

    on_the_disk(state, play)


def test_a_machine_that_goes_down_does_not_wait_for_room(state: Path) -> None:
    def play(job: Path) -> None:
        start(job)
        eventually(has_saved)
        fill(state)
        os.kill(status("night")["pid"], signal.SIGTERM)
        eventually(lambda: not is_held(run_paths("night")), within_s=20)
        seen = status("night")
        assert (seen["state"], seen["wanted"]) == ("stopped", "running")
        assert newest_step() > 0

    on_the_disk(state, play)


def test_memory_that_cannot_be_given_back_yet_is_said_and_who_resumes_goes_on(state: Path) -> None:
    def play(job: Path) -> None:
        start(job)
        eventually(has_saved)
        ballast = fill_and_go_on(state)
        refused = memsup("pause", "--release", "--run", "night")
        assert refused.returncode == 1
        assert "cannot give its memory back" in refused.stdout + refused.stderr
        held = until(lambda now: now["progress"]["phase"] == "holding", run="night")
        ballast.unlink()
        assert memsup("resume", "--run", "night").returncode == 0
        assert status("night")["worker_pid"] == held["worker_pid"], "nothing was loaded anew"
        assert until(lambda now: step_of(now) > step_of(held), run="night")["restarts"] == 0

    on_the_disk(state, play)
