"""The main job from end to end, as a person drives it: real command line, real supervisor, real training, real kills.

The job is the tiny one of `lone_supervisor.py`, so that the runs take seconds; `make demo` runs the built-in one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit.cli_process import MEMSUP, Done, end_supervisors, eventually, memsup
from kit.lone_supervisor import tiny_job
from kit.run_state import ledger, status, step_of, until
from kit.yardstick import stopwatch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STATES = {
    *("waiting", "starting", "running", "pausing", "paused", "cooling", "recovering", "stopping"),
    *("stopped", "finished", "failed"),
}
MIB = 1 << 20
EPOCHS = 12
STEPS = 27 * EPOCHS
"""216 of the 240 rows train, 8 a step."""
OF_A_PERSON = (".draft-novel", ".draft-00000001-0123abcd", ".gone-step-00000001", "damaged-step-00000001", "step-00000001")


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    """A folder with a `memsup.toml`, named as people name folders."""
    folder = tmp_path / "我的 任务"
    more = 'learning_rate = 2e-3\nthreads = 1\nlanes = 1\n[checkpoint]\nevery = "2s"\nfolder = "mine"\n'
    tiny_job(folder, epochs=EPOCHS, more=more)
    for name in OF_A_PERSON:  # checkpoints go into a folder that has other things in it, by chance named as memsup's
        (folder / "mine" / name).mkdir(parents=True)
        (folder / "mine" / name / "chapter.txt").write_text("It was a dark and stormy night.")
    yield folder
    end_supervisors()
    for name in OF_A_PERSON:
        assert [file.name for file in (folder / "mine" / name).iterdir()] == ["chapter.txt"]


def reaches(state: str, within_s: float = 120) -> Any:
    def reached(seen: Any) -> bool:
        assert seen["state"] == state or seen["state"] not in ("failed", "stopped", "finished"), seen
        return bool(seen["state"] == state)

    return until(reached, within_s)


def gets_beyond(step: int) -> Any:
    return until(lambda seen: step_of(seen) > step, 120)


def ok(done: Done, code: int = 0) -> Done:
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_start_pause_resume_checkpoint_kill_stop_start_finished(job: Path) -> None:
    """A run's whole story, through the command line alone; in the precision that this CPU is best at, as a person has it."""
    job_file = job / "memsup.toml"
    job_file.write_text(job_file.read_text(encoding="utf-8").replace('amp = "off"', 'amp = "auto"'), encoding="utf-8")
    with stopwatch() as loading:
        subprocess.run([sys.executable, "-c", "import torch, transformers.models.bert.modeling_bert"], check=True)
    with stopwatch() as starting:
        started = ok(memsup("start", "--tier", "auto", cwd=job))
    assert starting.s < loading.s, "it does not wait until the worker has loaded"
    for told in ("240 rows, 2 labels", "at most", "8 samples a step", "tier full", "memsup status --watch"):
        assert told in started.stdout
    again = ok(memsup("start", cwd=job))
    assert f"in {job / 'mine'}, where its own older ones are deleted" in started.stdout
    assert "already" in again.stdout + again.stderr

    running = reaches("running")
    assert running["schema"] == 1
    assert running["batch"]["effective"] == 8
    assert running["memory"]["limit_bytes"] > running["memory"]["worker_bytes"] > 50 * MIB
    assert running["progress"]["total_steps"] == STEPS
    gets_beyond(5)

    ok(memsup("pause"))
    paused = status()
    assert (paused["state"], paused["wanted"]) == ("paused", "paused")
    written = Path(ok(memsup("checkpoint")).stdout.strip())
    assert (written / "manifest.json").exists()
    assert status()["progress"]["step"] == paused["progress"]["step"], "a paused run does not move"
    ok(memsup("resume"))
    gets_beyond(paused["progress"]["step"])

    os.kill(status()["worker_pid"], signal.SIGKILL)
    recovered = until(lambda seen: seen["restarts"] == 1 and seen["state"] == "running", 120)
    assert recovered["checkpoint"]["step"] >= paused["progress"]["step"]

    stopped = ok(memsup("stop"))
    assert "memsup start" in stopped.stdout + stopped.stderr
    ok(memsup("status"), code=3)
    ok(memsup("pause"), code=3)

    ok(memsup("start", cwd=job))
    ok(memsup("wait", within_s=240))
    finished = status()
    assert finished["state"] == "finished"
    assert finished["progress"]["step"] == STEPS, "killed, stopped and started again: not one step more or less"
    assert finished["result"]["accuracy"] > 0.9 > finished["result"]["majority_accuracy"] + 0.3
    events = [(line["event"], line.get("result") or "") for line in ledger()]
    assert ("death", "SIGKILL") in events
    assert any(event == "order" and result.startswith("done: checkpoint at step") for event, result in events)

    pipeline = "import sys, transformers as t; print(*t.pipeline('text-classification', sys.argv[1])('很好 喜欢')[0].values())"
    command = [sys.executable, "-c", pipeline, finished["model_path"]]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    label, score = loaded.stdout.split()
    assert label == "good", loaded.stderr
    (job / "asked.csv").write_text("number,text\n1,很好 喜欢\n2,\n3,糟糕 很差\n", encoding="utf-8")
    ok(memsup("predict", "asked.csv", "--output", "answers.jsonl", cwd=job))
    answers = [json.loads(line) for line in (job / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["number"], row["predicted"]) for row in answers] == [("1", "good"), ("2", None), ("3", "bad")]
    assert answers[0]["score"] == pytest.approx(float(score), abs=1e-4)
    after = ok(memsup("start", cwd=job))
    assert "finished" in after.stdout + after.stderr


def test_kill_9_of_the_supervisor_costs_nothing_and_start_continues_and_shows_progress_off_a_terminal(job: Path) -> None:
    ok(memsup("start", cwd=job))
    before = gets_beyond(5)
    os.kill(before["pid"], signal.SIGKILL)
    gone = memsup("status", "--json")
    assert gone.returncode == 1
    assert gone.document["attention"]
    eventually(lambda: not psutil.pid_exists(before["worker_pid"]), 60)
    done = ok(memsup("start", "--wait", cwd=job, within_s=240))
    assert "accuracy" in done.stdout
    assert "model" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    finished = status()
    assert (finished["state"], finished["progress"]["step"]) == ("finished", STEPS)


def test_a_paused_run_stays_paused_over_a_restart_of_the_supervisor(job: Path) -> None:
    ok(memsup("start", cwd=job))
    gets_beyond(5)
    released = ok(memsup("pause", "--release"))
    assert "MiB" in released.stdout + released.stderr, "it says how much was given back"
    paused = status()
    assert (paused["state"], paused["worker_pid"]) == ("paused", None)
    os.kill(paused["pid"], signal.SIGKILL)
    told = ok(memsup("start", cwd=job))
    assert "resume" in told.stdout + told.stderr
    assert reaches("paused")["worker_pid"] is None
    ok(memsup("resume"))
    gets_beyond(paused["progress"]["step"])


def test_closing_the_terminal_leaves_it_running_and_a_second_start_at_once_is_no_second_run(job: Path) -> None:
    """Five shells start the same run in the same moment, each in a session of its own that is then hung up."""
    shells = [
        subprocess.Popen([*MEMSUP, "start"], cwd=job, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(5)
    ]
    for shell in shells:
        shell.communicate(timeout=120)
        assert shell.returncode == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGHUP)  # nothing of it is left in the terminal's session
    seen = reaches("running")
    supervisors = [p for p in psutil.process_iter(["cmdline"]) if "memsup.supervisor" in (p.info["cmdline"] or [])]
    mine = [p.pid for p in supervisors if p.environ().get("MEMSUP_STATE_DIR") == os.environ["MEMSUP_STATE_DIR"]]
    assert mine == [seen["pid"]]
    assert_small(gets_beyond(5))


def assert_small(seen: Any) -> None:
    """The live supervisor has no torch and stays small."""
    process = psutil.Process(seen["pid"])
    mapped = {Path(region.path).name for region in process.memory_maps()}
    assert not any("torch" in name or "numpy" in name or "tokenizers" in name for name in mapped)
    assert process.memory_info().rss < 40 * MIB
    assert seen["worst_stall_s"] < 5


def test_bad_input_met_late_ends_the_run_with_the_sentence(job: Path) -> None:
    """What only the worker can know, it says, and nothing is tried again and again."""
    config = job / "tiny-bert" / "config.json"
    fields = json.loads(config.read_text()) | {"initializer_range": -1.0}
    config.write_text(json.dumps(fields))
    ok(memsup("start", cwd=job))
    failed = until(lambda seen: seen["state"] == "failed", 120)
    assert "tiny-bert cannot be loaded" in failed["failure"]
    assert failed["restarts"] == 0
    ok(memsup("status"), code=1)
    ok(memsup("wait"), code=1)


def test_every_state_is_one_of_the_documents_states() -> None:
    from memsup.shared.status import RunState

    assert {str(state) for state in RunState} == STATES
