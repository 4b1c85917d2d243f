"""What `start`, `stop` and `pause` answer is what was seen done, and what a person wants is not lost.

The histories are in `test_lifecycle.py`; here a person types, and a worker or a program dies, stands still or obeys at that
moment.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.cli_process import MEMSUP, end_supervisors, eventually, memsup
from kit.own_program import write_loop
from kit.run_state import endless_job, ledger, status, trains_beyond, until
from kit.small_disk import MIB, fill, on_a_small_disk

from memsup import folders
from memsup.shared.paths import run_paths
from memsup.shared.run_file import read_record
from memsup.shared.status import Wanted, decode_status
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.daemon.systemd import is_wanted

OBEDIENT = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open("begun", "a") as file:
    file.write("x")
while not pathlib.Path("finish").exists():
    time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


@contextmanager
def typed(*arguments: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command that is under way."""
    process = subprocess.Popen([*MEMSUP, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stopped_with_work_that_is_not_saved() -> tuple[int, int]:
    """Stops the worker where it has told of two steps that no checkpoint holds; at the end of an epoch it writes one of its own
    accord. Returns its number and the step of the newest checkpoint.
    """
    while True:
        seen = until(lambda seen: seen["state"] == "running" and seen["progress"]["step"] is not None)
        worker = seen["worker_pid"]
        os.kill(worker, signal.SIGSTOP)
        threads = [Path(f"/proc/{worker}/task/{thread}/stat") for thread in os.listdir(f"/proc/{worker}/task")]
        for thread in threads:
            while b") T " not in thread.read_bytes():
                time.sleep(0.01)
        newest = max(step[0] for name in os.listdir(run_paths("default").checkpoints) if (step := folders.order(name)))
        if seen["progress"]["step"] >= newest + 2:
            return worker, newest
        os.kill(worker, signal.SIGCONT)


def a_boot_begins_it() -> bool:
    paths = run_paths("default")
    return is_wanted(read_record(paths.record), decode_status(paths.status.read_bytes()))


def test_a_program_that_ends_as_it_was_told_goes_on_and_one_that_ends_by_itself_is_finished(tmp_path: Path) -> None:
    """A script that saves on SIGTERM and exits 0 is what most of them do."""
    begun = tmp_path / "begun"
    program = ["--", sys.executable, "-c", OBEDIENT]

    def begins(times: int) -> None:
        eventually(lambda: begun.exists() and begun.read_text() == "x" * times)

    started = memsup("start", *program, cwd=tmp_path)
    assert "memsup pause" in started.stdout
    assert "begins the command anew" in started.stdout
    assert "checkpoint" not in started.stdout.partition("Started")[2]
    assert "--release" not in started.stdout
    begins(1)

    stopped = memsup("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert not a_boot_begins_it()
    assert stopped.stdout == (
        "Stopped. The command has ended (exit code 0). memsup start begins the command anew: it goes on only from what it has "
        "saved itself.\n"
    )
    assert memsup("start").returncode == 0, "at once, though the supervisor may still be there"
    begins(2)

    seen = status()  # at a shutdown everybody is told to end, and the program may be the first
    os.kill(seen["worker_pid"], signal.SIGTERM)
    os.kill(seen["pid"], signal.SIGTERM)
    seen = until(lambda seen: seen["state"] == "stopped")
    assert seen["wanted"] == "running"
    assert seen["exit_code"] in (0, -signal.SIGTERM), "it may have got the second signal in the middle of its end"
    eventually(lambda: not is_held(run_paths("default")))
    assert a_boot_begins_it()
    assert "begins the command anew" in status()["attention"][0]
    assert memsup("start", cwd=tmp_path).returncode == 0
    begins(3)

    for arguments, named in (
        (["--set", "training.epochs=5"], "training.epochs: 5.0 (flag), but it has"),
        (["--tier", "low"], "tier: low (flag), but it has auto"),
        (["--", "sleep", "1"], "the command: sleep 1 (given now)"),
    ):
        refused = memsup("start", *arguments, cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, ""), refused
        assert named in refused.stderr
        assert "memsup stop" in refused.stderr
    assert "is up already" in memsup("start", *program, cwd=tmp_path).stdout

    (tmp_path / "finish").touch()
    until(lambda seen: seen["state"] == "finished")
    assert not a_boot_begins_it()
    eventually(lambda: not is_held(run_paths("default")))
    assert memsup("start", cwd=tmp_path).returncode == 0
    assert memsup("start", "--", "sleep", "1", cwd=tmp_path).returncode == 0, "nothing is swallowed because a run is finished"
    assert memsup("status", "--run", "default.old-1").stdout.startswith("default.old-1: finished")


def test_what_a_script_runs_has_its_time_to_save_as_well(tmp_path: Path) -> None:
    """A shell dies of SIGTERM at once; it is the program below it that has something to save."""
    program = "import pathlib, signal, sys, time\n"
    program += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), pathlib.Path('saved').touch(), sys.exit(0)))\n"
    program += "pathlib.Path('begun').touch(); time.sleep(1000)"
    memsup("start", "--", "sh", "-c", f'"{sys.executable}" -c "{program}"; true', cwd=tmp_path)
    eventually((tmp_path / "begun").exists)
    stopped = memsup("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert "The command has ended (SIGTERM)." in stopped.stdout
    assert (tmp_path / "saved").exists()


def test_what_a_script_leaves_running_is_the_run_until_it_ends(tmp_path: Path) -> None:
    """Who writes `python train.py &` into a script has the training guarded, and not a run that is finished before it began."""
    memsup("start", "--", "sh", "-c", "(while [ ! -e end ]; do sleep 0.02; done; exit 3) &", cwd=tmp_path)
    worker = until(lambda seen: seen["state"] == "running")["worker_pid"]
    eventually(lambda: not Path(f"/proc/{worker}").exists())
    assert status()["state"] == "running"
    (tmp_path / "end").touch()
    seen = until(lambda seen: seen["state"] != "running")
    assert seen["state"] == "failed"
    assert "ended after it with exit code 3" in seen["attention"][0]
    eventually(lambda: not is_held(run_paths("default")))

    begun, saved = tmp_path / "begun", tmp_path / "saved"
    script = f"(trap 'touch {saved}; exit 0' TERM; touch {begun}; while :; do sleep 0.02; done) &"
    memsup("start", "--fresh", "--", "sh", "-c", script, cwd=tmp_path)
    eventually(begun.exists)
    stopped = memsup("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert saved.exists(), "it had its time to save"
    assert status()["state"] == "stopped"


def test_a_program_that_does_not_end_by_itself_was_not_stopped_as_asked() -> None:
    """It had no time to save what it has, and nobody may believe that it did."""
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(1000)"
    memsup("start", "--run", "deaf", "--", sys.executable, "-c", script)
    log = run_paths("deaf").worker_log
    eventually(lambda: log.exists() and "deaf" in log.read_text())
    stopped = memsup("stop", "--run", "deaf")
    assert stopped.returncode == 1
    assert "did not end by itself when it was told to, and was killed" in stopped.stderr
    assert "memsup start --run deaf" in stopped.stderr
    eventually(lambda: not is_held(run_paths("deaf")))  # then all of the ledger is on the disk
    (death,) = [line for line in ledger("deaf") if line["event"] == "death"]
    assert (death["cause"], death["again"], death["exit_status"]) == ("unresponsive", False, -9)


def test_a_checkpoint_that_somebody_took_away_is_not_counted_on(tmp_path: Path) -> None:
    """What a death loses is reckoned from what lies on the disk, and a run that begins anew says so."""
    memsup("start", "--", *write_loop(tmp_path), cwd=tmp_path, EVERY_S="1000", STEP_S="0.05")
    until(lambda seen: (seen["progress"]["step"] or 0) > 3)
    saved = memsup("checkpoint").stdout.strip()
    at = folders.order(Path(saved).name)
    assert at is not None
    seen = until(lambda seen: seen["progress"]["step"] > at[0] + 3)
    shutil.rmtree(saved)
    os.kill(seen["worker_pid"], signal.SIGKILL)
    seen = until(lambda seen: seen["restarts"] == 1)
    assert seen["checkpoint"]["path"] is None
    assert f"The checkpoint of step {at[0]} was taken away or damaged" in " ".join(seen["attention"])
    gone, death = eventually(lambda: [e for e in ledger() if e["event"] in ("checkpoint_gone", "death")][:2])
    assert (gone["checkpoint"], gone["checkpoint_step"]) == (saved, at[0])
    assert death["lost_steps"] == death["step"]
    assert "lost_s" not in death, "nobody has counted from the beginning"

    until(lambda seen: seen["state"] == "running" and seen["program"]["attached"])
    released = memsup("pause", "--release", "--json").document
    shutil.rmtree(released["checkpoint"])
    resumed = memsup("resume")
    assert resumed.returncode == 0
    until(lambda seen: seen["state"] == "running" and len(seen["attention"]) == 2)


def test_a_stop_on_a_full_disk_is_on_the_disk_when_it_is_said_to_be_done(tmp_path: Path) -> None:
    """Room for it was taken before. Where the disk takes nothing at all, that is said, and the next command writes it."""
    state = tmp_path / "state"
    state.mkdir()

    def play() -> None:
        try:
            paths = run_paths("default")
            assert memsup("start", "--", "sleep", "1000").returncode == 0
            ballast = fill(state)
            stopped = memsup("stop")
            assert stopped.returncode == 0, stopped.stderr
            assert record_wants() is Wanted.STOPPED
            eventually(lambda: not is_held(paths))
            ballast.unlink()
            assert memsup("start", cwd=tmp_path).returncode == 0
            paths.record.with_name("run.json.room").unlink()
            ballast = fill(state)
            stopped = memsup("stop")
            assert stopped.returncode == 1
            assert "cannot be written" in stopped.stderr
            assert "memsup stop" in stopped.stderr
            assert record_wants() is Wanted.RUNNING
            ballast.unlink()
            eventually(lambda: not is_held(paths))
            assert memsup("status").returncode == 3
            assert record_wants() is Wanted.STOPPED, "the next command writes what the supervisor had left"
        finally:
            end_supervisors()

    on_a_small_disk(state, 96 * MIB, play)


def record_wants() -> Wanted | None:
    record = read_record(run_paths("default").record)
    return record.wanted if record else None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("unhurried")
def test_a_worker_that_stands_still_or_dies_over_an_order_is_said_to_have_saved_nothing(tmp_path: Path) -> None:
    """Exit 1, what is lost, and the death in the ledger; a stop while it loads keeps the step; a start waits for a stop."""
    job = endless_job(tmp_path / "job", '[checkpoint]\nevery = "1h"\n')
    assert memsup("start", cwd=job).returncode == 0
    trains_beyond(2)
    assert memsup("checkpoint").returncode == 0
    _, saved = stopped_with_work_that_is_not_saved()
    stopped = memsup("stop")
    assert stopped.returncode == 1
    assert "Stopped, but not as it was asked to. It no longer answered and was killed." in stopped.stderr
    assert f"What was computed since the checkpoint of step {saved:,} is lost: " in stopped.stderr
    (death,) = eventually(lambda: [line for line in ledger() if line["event"] == "death"])
    assert (death["cause"], death["again"]) == ("unresponsive", False)
    assert death["lost_steps"] >= 2
    assert death["lost_s"] > 0
    assert status()["progress"]["step"] == saved, "what is lost is no part of the run"

    assert memsup("start", cwd=job).returncode == 0
    seen = until(lambda seen: seen["state"] == "starting" and seen["progress"]["phase"] in ("starting", "loading"))
    assert seen["progress"]["step"] == saved
    with typed("stop") as stop:
        until(lambda seen: seen["state"] in ("stopping", "stopped"))
        started = memsup("start", cwd=job)
        out, err = stop.communicate(timeout=60)
    assert stop.returncode == 0, err
    assert f"Stopped at step {saved:,}" in out
    assert started.returncode == 0
    assert "is stopping; it is started as soon as that is done" in started.stderr
    assert "Started" in started.stdout

    worker, saved = stopped_with_work_that_is_not_saved()
    with typed("pause", "--release") as pause:
        until(lambda seen: seen["state"] == "pausing")
        os.kill(worker, signal.SIGKILL)
        out, err = pause.communicate(timeout=60)
    assert pause.returncode == 1
    assert "Paused, but not as it was asked to. It was killed by SIGKILL from outside memsup." in err
    assert f"since the checkpoint of step {saved:,} is lost: " in err
    assert status()["state"] == "paused"
    stopped = memsup("stop")
    assert stopped.returncode == 0, stopped.stderr
