"""`pause`, `resume`, `checkpoint`, `stop`, `wait`: the answer comes when the thing is done, and says what it changed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import MEMSUP, RUN_ID, a_run, control_server, end_supervisors, eventually, memsup
from kit.run_state import until

from memsup.checkpoint.store import Store
from memsup.shared.endpoints import CONTROL_SOCKET
from memsup.shared.messages import Reply, RequestKind
from memsup.shared.paths import RunPaths, open_private, run_paths
from memsup.shared.run_file import read_record
from memsup.shared.status import CheckpointStatus, ProgressStatus, RunState, Status, Wanted, encode_status

GIB = 2**30
ORDERS = [
    (["pause"], RequestKind.PAUSE_HOLD),
    (["pause", "--release"], RequestKind.PAUSE_RELEASE),
    (["resume"], RequestKind.RESUME),
    (["checkpoint"], RequestKind.CHECKPOINT),
    (["stop"], RequestKind.STOP),
    (["stop", "--now"], RequestKind.STOP_NOW),
]


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


def a_status(state: RunState = RunState.RUNNING, **fields: Any) -> Status:
    return Status(**({"run": "default", "run_id": RUN_ID, "state": state, "wanted": Wanted.RUNNING} | fields))


def a_reply(*, ok: bool = True, text: str = "Done as asked.", status: Status | None = None, **fields: Any) -> Reply:
    document = encode_status(status) if status else b""
    return Reply(request_id=1, ok=ok, text=text, status_json=document, **fields)


@contextmanager
def held(paths: RunPaths) -> Iterator[None]:
    """Somebody has the run's lock, as its supervisor would."""
    fd = open_private(paths.state)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def a_checkpoint(paths: RunPaths) -> Path:
    with Store(paths.checkpoints).draft(12) as draft:
        draft.write_bytes("note.bin", bytes(1000))
        return draft.commit().path


@pytest.mark.parametrize(("arguments", "kind"), ORDERS, ids=lambda value: str(value))
def test_each_order_asks_for_its_thing_and_repeats_the_answer(arguments: list[str], kind: RequestKind) -> None:
    """Exit 0 and the supervisor's own sentence."""
    paths = a_run()

    def answer(what: RequestKind) -> Status | Reply:
        return a_status() if what is RequestKind.STATUS else a_reply()

    with control_server(paths, answer) as asked:
        done = memsup(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Done as asked.\n"
    assert [what for what in asked if what is not RequestKind.STATUS] == [kind]


@pytest.mark.parametrize(("arguments", "kind"), ORDERS, ids=lambda value: str(value))
def test_a_refusal_is_exit_1_with_its_reason(arguments: list[str], kind: RequestKind) -> None:
    """On stderr, since there is no data; with --json the same on stdout."""
    paths = a_run()

    def answer(what: RequestKind) -> Status | Reply:
        return a_status() if what is RequestKind.STATUS else a_reply(ok=False, text="Not now: the worker is loading.")

    with control_server(paths, answer):
        done = memsup(*arguments)
        document = memsup(*arguments, "--json").document
    assert (done.returncode, done.stdout) == (1, "")
    assert "Not now: the worker is loading." in done.stderr
    assert (document["ok"], document["text"]) == (False, "Not now: the worker is loading.")


@pytest.mark.parametrize(("arguments", "kind"), ORDERS, ids=lambda value: str(value))
def test_an_order_to_nobody_is_exit_3(arguments: list[str], kind: RequestKind) -> None:
    """With and without a run, and it says how to start it."""
    unknown = memsup(*arguments)
    assert unknown.returncode == 3
    assert "There is no run 'default'" in unknown.stderr
    a_run()
    stopped = memsup(*arguments)
    assert stopped.returncode == 3
    assert "not running" in stopped.stderr
    assert "memsup start" in stopped.stderr


def test_pause_release_says_how_much_came_back() -> None:
    """What the supervisor measured; with --json as bytes, and null where it is not known."""
    paths = a_run()
    reply = a_reply(text="Paused; given back: 3 GiB of RAM.", status=a_status(RunState.PAUSED), freed_ram_bytes=3 * GIB)
    with control_server(paths, lambda what: a_status() if what is RequestKind.STATUS else reply):
        done = memsup("pause", "--release")
        document = memsup("pause", "--release", "--json").document
        held = memsup("pause", "--json").document
    assert done.stdout == "Paused; given back: 3 GiB of RAM.\n"
    assert (document["freed_ram_bytes"], document["freed_vram_bytes"]) == (3 * GIB, None)
    assert document["status"]["state"] == "paused"
    assert "freed_ram_bytes" not in held


def test_a_slow_answer_is_waited_for_as_long_as_the_supervisor_lives() -> None:
    """A checkpoint may take minutes; the command asks for signs of life meanwhile."""
    paths = a_run()
    held: list[float] = []

    def answer(what: RequestKind) -> Status | None:
        if what is RequestKind.CHECKPOINT:
            held.append(time.monotonic())
        return a_status() if what is RequestKind.STATUS else None

    with control_server(paths, answer) as asked:
        waiting = subprocess.Popen([*MEMSUP, "checkpoint"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        eventually(lambda: asked.count(RequestKind.STATUS) >= 2)
        assert waiting.poll() is None
    _, err = waiting.communicate(timeout=60)  # the server is gone now
    assert waiting.returncode == 3
    assert "not running" in err


def test_checkpoint_prints_its_path_and_nothing_else_on_stdout() -> None:
    """`cd "$(memsup checkpoint)"` works."""
    paths = a_run()
    saved = a_checkpoint(paths)
    with control_server(paths, lambda _: a_reply(text="Checkpoint of step 12, verified.", checkpoint_path=str(saved))):
        done = memsup("checkpoint")
    assert done.stdout == f"{saved}\n"
    assert "step 12" in done.stderr


@pytest.mark.parametrize("order", [["checkpoint"], ["pause", "--release"], ["stop"]], ids=" ".join)
def test_an_order_is_not_done_where_somebody_took_its_checkpoint_away(order: list[str]) -> None:
    """What was written and verified once is no promise about now."""
    paths = a_run()
    saved = a_checkpoint(paths)
    shutil.rmtree(saved)
    with control_server(paths, lambda _: a_reply(status=a_status(), checkpoint_path=str(saved))):
        done = memsup(*order)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Done as asked. But {saved} cannot be gone on from any more" in done.stderr


def test_an_older_checkpoint_that_was_damaged_since_is_not_printed_as_a_good_one() -> None:
    """Where nothing was computed since, none is written: then every byte of the older one is compared."""
    paths = a_run()
    saved = a_checkpoint(paths)
    (saved / "note.bin").write_bytes(bytes(999) + b"\1")
    for worker_pid, code in ((None, 1), (os.getpid(), 0)):
        reply = a_reply(status=a_status(worker_pid=worker_pid), checkpoint_path=str(saved))
        with control_server(paths, lambda _, reply=reply: reply):
            assert memsup("checkpoint").returncode == code


@pytest.mark.parametrize("loss", ["nothing is there", "it is a folder"])
def test_an_order_is_not_done_where_what_is_wanted_has_nowhere_to_be_kept(loss: str) -> None:
    """Somebody removed the run's folder, or its `run.json`: the next start would know of neither the run nor the wish."""
    paths = a_run()

    def answer(what: RequestKind) -> Reply:
        paths.record.unlink(missing_ok=True)
        if loss == "it is a folder":
            paths.record.mkdir()
        return a_reply()

    with control_server(paths, answer):
        done = memsup("stop")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Done as asked. But {'what you want' if loss == 'it is a folder' else paths.record}" in done.stderr


def test_an_order_that_cannot_reach_a_run_does_not_call_it_gone() -> None:
    """Something lies in the place of its socket, and it runs on: "not running" would be false, and "start it" no help."""
    paths = a_run()
    paths.status.write_bytes(encode_status(a_status(pid=os.getpid())))
    (paths.runtime / CONTROL_SOCKET).mkdir()
    with held(paths):
        done = memsup("stop")
    assert done.returncode == 1
    assert "A supervisor holds this run" in done.stderr
    assert "not running" not in done.stderr


def test_of_a_run_that_has_ended_no_other_sentence_is_given_as_the_reason() -> None:
    """Its supervisor is just going. What calls for attention there is about something else."""
    paths = a_run()
    status = a_status(RunState.FINISHED, pid=os.getpid(), attention=["It stays too hot."], attention_kinds=["heat"])
    paths.status.write_bytes(encode_status(status))
    paths.lock.write_text(str(os.getpid()), encoding="ascii")
    with held(paths):
        done = memsup("pause")
    assert done.returncode == 3
    assert "Run 'default' is finished." in done.stderr
    assert "hot" not in done.stderr


@pytest.mark.parametrize(("wanted", "words"), [(Wanted.STOPPED, "goes on stopping"), (Wanted.RUNNING, "not taken that up")])
def test_who_interrupts_a_stop_is_told_whether_it_is_in_force(wanted: Wanted, words: str) -> None:
    """A supervisor that stands still has heard of no stop, and would train on."""
    paths = a_run(wanted=wanted)
    with control_server(paths, lambda _: None) as asked:
        stopping = subprocess.Popen([*MEMSUP, "stop"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        eventually(lambda: asked)
        stopping.send_signal(signal.SIGINT)
        _, err = stopping.communicate(timeout=60)
    assert stopping.returncode == 130
    assert words in err


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.STOPPED])
def test_a_run_without_its_supervisor_is_told_of_by_the_checkpoints_that_lie_there(state: RunState) -> None:
    """Its worker has saved since, before it left; or somebody took them away."""
    paths = a_run()
    there = CheckpointStatus(path=str(paths.checkpoints / "step-00000005"), step=5, age_s=1.0, verified=True)
    paths.status.write_bytes(encode_status(a_status(state, progress=ProgressStatus(step=8), checkpoint=there)))
    assert "begins again, for there is no checkpoint yet" in memsup("status").stdout
    saved = a_checkpoint(paths)
    told = memsup("status", "--json").document
    assert (told["checkpoint"]["path"], told["checkpoint"]["step"], told["progress"]["step"]) == (str(saved), 12, 12)
    assert "continues from the checkpoint of step 12." in told["attention"][0]


def test_checkpoints_are_listed_and_verified_without_a_supervisor(tmp_path: Path) -> None:
    """A flipped bit is found by --verify, and the list shows sizes and steps."""
    paths = a_run()
    assert "no checkpoint yet" in memsup("checkpoint", "--list").stderr
    store = Store(paths.checkpoints)
    for step in (120, 240):
        with store.draft(step) as draft:
            draft.write_bytes("note.bin", bytes(1000))
            draft.commit()
    listed = memsup("checkpoint", "--list")
    assert listed.returncode == 0, listed.stderr
    where, *rows = listed.stdout.splitlines()
    assert where == f"In {paths.checkpoints}:"
    assert [line.split("  ")[1] for line in rows] == ["step 240", "step 120"]
    newest = memsup("checkpoint", "--list", "--json").document["checkpoints"][0]["path"]
    sound = memsup("checkpoint", "--verify", newest)
    assert sound.returncode == 0
    assert "step 240" in sound.stdout
    for named in ("240", Path(newest).name):
        assert "step 240" in memsup("checkpoint", "--verify", named).stdout
    missed = memsup("checkpoint", "--verify", "219")
    assert (missed.returncode, missed.stdout) == (1, "")
    assert "those of steps 240, 120" in missed.stderr
    note = Path(newest) / "note.bin"
    note.write_bytes(bytes(999) + b"\1")
    damaged = memsup("checkpoint", "--verify", newest)
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert "note.bin" in damaged.stderr
    assert memsup("checkpoint", "--verify", newest, "--json").document["ok"] is False
    assert memsup("checkpoint", "--verify", str(tmp_path)).returncode == 1
    assert memsup("checkpoint", "--verify", newest, "--list").returncode == 2


def test_stop_ends_the_wish_of_a_run_whose_supervisor_died() -> None:
    """Otherwise its status would call for attention for ever."""
    paths = a_run()
    assert memsup("status").returncode == 1
    assert memsup("stop").returncode == 3
    record = read_record(paths.record)
    assert record is not None
    assert record.wanted is Wanted.STOPPED
    assert memsup("status").returncode == 3


def test_a_real_run_pauses_goes_on_and_stops(tmp_path: Path) -> None:
    """The real supervisor with a command that counts: it stands still while paused, and goes on afterwards."""
    count = "i=0; while true; do i=$((i+1)); echo $i > count.new; mv count.new count; sleep 0.01; done"
    assert memsup("start", "--", "sh", "-c", count, cwd=tmp_path).returncode == 0
    counted = tmp_path / "count"
    eventually(counted.exists)
    paused = memsup("pause")
    assert paused.returncode == 0, paused.stderr
    assert "memsup resume" in paused.stdout
    assert memsup("status", "--json").document["state"] == "paused"
    stands_at = counted.read_text()
    time.sleep(0.3)
    assert counted.read_text() == stands_at
    assert memsup("resume").returncode == 0
    eventually(lambda: counted.read_text() != stands_at)
    assert memsup("stop").returncode == 0
    assert memsup("status").returncode == 3
    assert memsup("stop").returncode == 3


# --------------------------------------------------------------------------------------------------------------------
# wait


def test_wait_ends_with_the_run_and_tells_the_result() -> None:
    """Accuracy beside what always guessing the most frequent label would reach, and where the model is."""
    paths = a_run()
    finished = a_status(
        RunState.FINISHED, result={"accuracy": 0.913, "majority_accuracy": 0.527, "loss": 0.25}, model_path="/x/model"
    )
    running = a_status(progress=ProgressStatus(step=7, total_steps=10, loss=0.5))
    answers = [running, running, finished]
    with control_server(paths, lambda _: answers.pop(0) if len(answers) > 1 else answers[0]):
        done = memsup("wait")
    assert done.returncode == 0
    assert "accuracy 91.3 % (always the most frequent label: 52.7 %), loss 0.25" in done.stdout
    assert "Model: /x/model" in done.stdout
    assert "step 7 of 10" in done.stderr


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (a_status(RunState.FAILED, failure="The loss is not finite."), "The loss is not finite."),
        (a_status(RunState.STOPPED, wanted=Wanted.STOPPED), "memsup start"),
    ],
    ids=["failed", "stopped"],
)
def test_wait_is_exit_1_unless_the_run_finished(status: Status, words: str) -> None:
    """With the reason, or with how to go on."""
    paths = a_run()
    with control_server(paths, lambda _: status):
        done = memsup("wait")
    assert done.returncode == 1
    assert words in done.stderr
    assert memsup("wait", "--run", "nobody").returncode == 1


@pytest.mark.slow
def test_wait_notices_that_the_supervisor_was_killed(tmp_path: Path) -> None:
    """It does not wait for ever for the dead."""
    assert memsup("start", "--", "sleep", "1000", cwd=tmp_path).returncode == 0
    waiting = subprocess.Popen([*MEMSUP, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = until(lambda seen: seen["worker_pid"])
    pid, worker_pid = seen["pid"], seen["worker_pid"]
    os.kill(pid, signal.SIGKILL)
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert "supervisor is gone" in err
    assert memsup("start", cwd=tmp_path).returncode == 0  # finds the orphan, and ends it with the run
    assert memsup("stop", "--now").returncode == 0
    eventually(lambda: not Path(f"/proc/{worker_pid}").exists())
    assert run_paths("default").state.is_dir()
