"""`memsup status`: tells the truth, also when nobody is left who could, and an exit code that a script can use."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import small_state
from kit.cli_process import a_run, control_server, memsup, on_a_terminal
from kit.statuses import a_status, full_status

from memsup.checkpoint.store import Store
from memsup.shared.paths import RunPaths, open_private
from memsup.shared.readings import KnownBatch, KnownGpu
from memsup.shared.status import (
    ActionStatus,
    CheckpointStatus,
    MemoryStatus,
    ProgressStatus,
    RunState,
    Status,
    TemperatureStatus,
    Trouble,
    TroubleKind,
    Wanted,
    encode_status,
)
from memsup.supervisor.cli.board import Board, board
from memsup.supervisor.cli.picture import one_line, picture
from memsup.supervisor.client.contact import Presence, observe


@contextmanager
def lock_held(paths: RunPaths) -> Iterator[None]:
    fd = os.open(paths.state, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


# --------------------------------------------------------------------------------------------------------------------
# Exit codes


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((a_status(state), 0) for state in RunState if state not in {RunState.STOPPED, RunState.FAILED}),
        (a_status(RunState.FAILED, failure="The loss is not finite."), 1),
        (a_status(attention=["The disk has only 10 MiB left."]), 1),
        (a_status(RunState.STOPPED, wanted=Wanted.STOPPED), 3),
        (a_status(RunState.FINISHED, attention=["2 records could not be written."]), 0),
    ],
    ids=lambda value: str(value.state) + "!" * bool(value.attention) if isinstance(value, Status) else None,
)
def test_exit_code_says_alive_attention_or_stopped(status: Status, code: int) -> None:
    """0 alive or finished, 1 needs attention, 3 stopped; the same with --json."""
    paths = a_run()
    with control_server(paths, lambda _: status):
        assert memsup("status").returncode == code
        done = memsup("status", "--json")
    assert done.returncode == code
    assert done.document == json.loads(encode_status(status))
    assert done.stderr == ""


def test_an_unknown_run_is_exit_4() -> None:
    """And nothing comes to be by asking."""
    done = memsup("status", "--run", "nobody")
    assert done.returncode == 4
    assert done.stdout == ""
    assert "memsup start --run nobody" in done.stderr
    assert not Path(os.environ["MEMSUP_STATE_DIR"]).exists()


def test_a_finished_run_is_known_without_its_supervisor() -> None:
    """The supervisor leaves when the run is over; what it wrote stays true."""
    paths = a_run()
    paths.status.write_bytes(encode_status(a_status(RunState.FINISHED, result={"accuracy": 0.9}, model_path="/x/model")))
    done = memsup("status")
    assert done.returncode == 0
    assert "finished" in done.stdout
    assert "accuracy 90.0 %" in done.stdout
    assert "/x/model" in done.stdout


def test_a_supervisor_that_died_is_told_with_what_is_left() -> None:
    """Never "running" over a corpse: since when, from which step a start goes on, and exit 1."""
    paths = a_run()
    status = full_status()
    with Store(paths.checkpoints).draft(1200) as draft:
        draft.write_bytes("note.bin", bytes(1000))
        status.checkpoint = msgspec.structs.replace(status.checkpoint, path=str(draft.commit().path))
    paths.status.write_bytes(encode_status(status))
    os.utime(paths.status, (time.time() - 180, time.time() - 180))
    done = memsup("status")
    assert done.returncode == 1
    assert "stopped" in done.stdout.splitlines()[0]
    assert "supervisor is gone although the run was running" in done.stdout
    assert "last sign of life was 3 min" in done.stdout
    assert "memsup start continues from the checkpoint of step 1,200 (step 1,240 was reached)" in done.stdout
    document = memsup("status", "--json").document
    assert (document["state"], document["wanted"], document["pid"], document["worker_pid"]) == (
        "stopped",
        "running",
        None,
        None,
    )
    assert document["memory"]["worker_bytes"] is None
    assert 215 <= document["checkpoint"]["age_s"] <= 300


def test_a_run_stopped_by_a_shutdown_asks_to_be_continued() -> None:
    """The user wanted it to run; after a reboot it does not."""
    paths = a_run()
    paths.status.write_bytes(encode_status(a_status(RunState.STOPPED)))
    done = memsup("status")
    assert done.returncode == 1
    assert "as at a shutdown" in done.stdout


def test_a_run_that_the_user_stopped_is_just_stopped() -> None:
    """Also where the supervisor died while stopping."""
    paths = a_run(wanted=Wanted.STOPPED)
    paths.status.write_bytes(encode_status(a_status(RunState.STOPPING, wanted=Wanted.STOPPED)))
    done = memsup("status")
    assert done.returncode == 3
    assert "!" not in done.stdout


def test_a_run_whose_supervisor_never_came_up_is_told() -> None:
    """run.json alone: it was to run, and nobody guards it."""
    a_run()
    done = memsup("status")
    assert done.returncode == 1
    assert "begins again, for there is no checkpoint yet" in done.stdout


def test_what_only_a_supervisor_could_do_is_not_said_of_a_run_without_one() -> None:
    """It was about to start the worker again when it was killed: now nobody is."""
    paths = a_run()
    for state in (RunState.RECOVERING, RunState.FINISHED, RunState.FAILED):
        status = a_status(state)
        status.call_for(
            Trouble(TroubleKind.RESTARTS, "It is tried again.", "start"),
            Trouble(TroubleKind.DISK, "Make room, and it goes on."),
        )
        status.call_for(Trouble(TroubleKind.CHECKPOINT, "Step 3 was damaged."))
        paths.status.write_bytes(encode_status(status))
        told = observe(paths).status
        assert told is not None
        assert told.attention[0] == "Step 3 was damaged."
        assert {"restarts:start", "disk"}.isdisjoint(told.attention_kinds)


def test_what_the_worker_saved_after_its_supervisor_was_killed_is_told() -> None:
    """The last written status knows nothing of it: that step is neither lost nor is there no checkpoint."""
    paths = a_run()
    status = a_status(RunState.RUNNING)
    status.progress, status.checkpoint = ProgressStatus(step=4, total_steps=100), CheckpointStatus()
    paths.status.write_bytes(encode_status(status))
    saved = small_state.save(Store(paths.checkpoints), 25)
    seen = memsup("status", "--json").document
    assert (seen["progress"]["step"], seen["checkpoint"]["step"]) == (25, 25)
    assert seen["checkpoint"]["path"] == str(saved.path)
    told = memsup("status").stdout
    assert "continues from the checkpoint of step 25." in told
    assert "not saved" not in told


def test_the_status_of_an_earlier_run_of_that_name_is_not_shown() -> None:
    """After --fresh the old status.json says nothing about the new run."""
    paths = a_run()
    paths.status.write_bytes(encode_status(a_status(RunState.FINISHED, run_id="older")))
    assert memsup("status").returncode == 1


def test_a_supervisor_that_does_not_answer_is_told_within_its_deadline() -> None:
    """Stopped, thrashing or hung: what it wrote last, and that it is silent."""
    paths = a_run()
    paths.status.write_bytes(encode_status(full_status()))
    began_s = time.monotonic()
    with control_server(paths, lambda _: None), lock_held(paths):
        done = memsup("status")
    assert time.monotonic() - began_s < 10
    assert done.returncode == 1
    assert "does not answer" in done.stdout
    assert "supervisor.log" in done.stdout


def test_a_supervisor_in_another_runtime_folder_is_told_apart_from_a_dead_one() -> None:
    """Cron and ssh may have another XDG_RUNTIME_DIR than the desktop."""
    paths = a_run()
    with lock_held(paths):
        done = memsup("status")
    assert done.returncode == 1
    assert "MEMSUP_RUNTIME_DIR" in done.stdout
    assert "starting" in done.stdout.splitlines()[0]


def test_a_look_opens_and_checks_each_folder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it asks within that look: here for a whole second, since a supervisor may just be coming up."""
    paths = a_run()
    opened: list[Path] = []

    def counted(folder: Path) -> int:
        opened.append(folder)
        return open_private(folder)

    monkeypatch.setattr("memsup.supervisor.client.contact.open_private", counted)
    monkeypatch.setattr("memsup.shared.endpoints.open_private", counted)
    with lock_held(paths):
        assert observe(paths).presence is Presence.SILENT
    assert sorted(opened) == sorted([paths.runtime, paths.state])


def test_a_socket_left_by_the_dead_is_no_supervisor() -> None:
    """A connection to it is refused."""
    import socket

    paths = a_run(wanted=Wanted.STOPPED)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(paths.runtime / "control.sock"))
    assert memsup("status").returncode == 3


def test_a_torn_status_file_is_no_traceback() -> None:
    """Nothing is believed of it."""
    paths = a_run(wanted=Wanted.STOPPED)
    paths.status.write_bytes(b'{"schema":1,"run":')
    assert memsup("status").returncode == 3


def test_folders_of_others_are_not_asked() -> None:
    """Whoever can write to the runtime folder could answer in the supervisor's place."""
    paths = a_run()
    with control_server(paths, lambda _: a_status()):
        paths.runtime.chmod(0o777)
        done = memsup("status")
    assert done.returncode == 2
    assert "chmod 700" in done.stderr


@pytest.mark.slow
def test_watch_ends_with_the_run() -> None:
    """Off a terminal each look is printed whole, without colours or cursor moves."""
    paths = a_run()
    answers = iter([a_status(), a_status(), a_status(RunState.FINISHED)])
    last: list[Status] = []

    def answer(_: object) -> Status:
        last[:] = [next(answers, *last)]
        return last[0]

    with control_server(paths, answer):
        done = memsup("status", "--watch", "--json")
    assert done.returncode == 0
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["running", "running", "finished"]


# --------------------------------------------------------------------------------------------------------------------
# The picture


def test_the_picture_says_what_a_person_asks_first() -> None:
    """State, progress, limits, headroom, the last action and why, the age of the newest verified checkpoint."""
    paths = a_run()
    with control_server(paths, lambda _: full_status()):
        done = memsup("status")
    for words in (
        "default: running for 2 h 5 min, tier full",
        "step 1,240 of 5,000 (25 %)",
        "loss 0.4123, 23.4 samples/s, 42 min 52 s left",
        "16 samples a step, always, computed 2,048 tokens at a time (now 5 rows)",
        "worker 2 GiB of at most 20 GiB (10 %)",
        "14 GiB of the machine's 24 GiB are free",
        "scope, the kernel stops the worker at 20 GiB",
        "RTX 3070, 5 GiB of 8 GiB used, 88 °C (slows itself down at 98), 180 W",
        "k10temp Tctl 61.4 °C",
        "step 1,200, 40 s old, verified",
        "2 h 5 min ago: halve the micro-batch (host memory 91 %) → done: 4,096 → 2,048 tokens",
    ):
        assert words in done.stdout
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) < 16


@pytest.mark.parametrize("is_command", [False, True])
def test_what_it_does_beside_training_is_said_in_every_form(is_command: bool) -> None:
    """The state is `running` while it evaluates or saves, be it the built-in training or a program that is attached."""
    status = full_status()
    status.is_command = is_command
    for phase in ("evaluating", "saving"):
        status.progress = msgspec.structs.replace(status.progress, phase=phase)
        seen = [line[1] for line in picture(status, time.time()) if line[0] == "progress"]
        assert [text.split(", ")[0] for text in seen] == [phase]
        assert f", {phase}, " in one_line(status)
        assert any(f"{phase}, loss" in line for line in board(Board(status), 80, 24, in_colour=False))
    status.progress = msgspec.structs.replace(status.progress, phase="training")
    assert "training" not in one_line(status), "the state says it"


def test_a_step_is_shown_also_where_nobody_knows_how_many_there_are() -> None:
    """As in a loop of a program's own."""
    endless = full_status()
    endless.progress = msgspec.structs.replace(endless.progress, total_steps=None)
    assert "  step 1,240" in picture(endless, 0.0)


def test_colours_only_on_a_terminal_and_not_against_no_color() -> None:
    """https://no-color.org"""
    paths = a_run()
    with control_server(paths, lambda _: full_status()):
        assert "\x1b[" in on_a_terminal("status")
        assert "\x1b[" not in on_a_terminal("status", NO_COLOR="1")


def test_a_terminal_that_knows_no_unicode_gets_no_traceback() -> None:
    """LC_ALL=C with UTF-8 mode off, as in some cron jobs."""
    paths = a_run()
    with control_server(paths, lambda _: full_status()):
        done = memsup("status", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "1,240" in done.stdout


numbers = st.none() | st.integers(0, 2**50)
reals = st.none() | st.floats(0, 1e12)
words = st.text(st.characters(exclude_characters="N"), max_size=20)
texts = st.none() | words


def some(kind: type, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **fields)


statuses = some(
    Status,
    run=words,
    state=st.sampled_from(RunState),
    wanted=st.sampled_from(Wanted),
    since=reals,
    progress=some(
        ProgressStatus,
        phase=texts,
        step=numbers,
        total_steps=numbers,
        loss=st.none() | st.floats(),
        samples_per_s=reals,
        eta_s=reals,
    ),
    batch=some(KnownBatch, effective=numbers, micro_tokens=numbers, micro_rows=numbers),
    memory=some(
        MemoryStatus,
        ram_total_bytes=numbers,
        ram_available_bytes=numbers,
        worker_bytes=numbers,
        limit_bytes=numbers,
        fence=texts,
        fence_bytes=numbers,
        pressure=st.none() | st.floats(0, 1),
    ),
    gpus=st.lists(
        some(
            KnownGpu,
            index=st.integers(0, 9),
            name=texts,
            used_bytes=numbers,
            total_bytes=numbers,
            temperature_c=reals,
            slowdown_c=reals,
            power_w=reals,
        ),
        max_size=2,
    ),
    temperatures=st.lists(some(TemperatureStatus, name=words, celsius=reals), max_size=3),
    checkpoint=some(
        CheckpointStatus,
        path=texts,
        step=numbers,
        age_s=reals,
        verified=st.none() | st.booleans(),
        memory_step=numbers,
        memory_bytes=numbers,
    ),
    last_action=st.none() | some(ActionStatus, at=st.floats(0, 1e10), rung=texts, action=words, reason=words, result=texts),
    restarts=st.integers(0, 1000),
    attention=st.lists(words, max_size=2),
    result=st.none() | st.dictionaries(words, st.floats(), max_size=3),
    model_path=texts,
    exit_code=numbers,
)


@given(statuses, st.floats(0, 1e10))
def test_any_status_can_be_shown(status: Status, now_unix_s: float) -> None:
    """Whatever is unknown is left out or a question mark, and nothing in it can drive the terminal."""
    import click

    for line in [*picture(status, now_unix_s), one_line(status)]:
        plain = click.unstyle(line if isinstance(line, str) else " ".join(line))
        assert "None" not in plain
        assert "\n" not in plain
        assert "\x1b" not in plain
