"""On a terminal `start` stays until the first step is done, and says what came instead where none comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import a_run, control_server, end_supervisors, said, said_on_a_terminal
from kit.statuses import a_status

from memsup.shared.messages import RequestKind
from memsup.shared.status import HoursStatus, ProgressStatus, RunState, Status, Wanted
from memsup.supervisor.cli.first_step import look_on


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


def at(phase: str, step: int, state: RunState = RunState.RUNNING) -> Status:
    progress = ProgressStatus(phase=phase, step=step, total_steps=96, eta_s=2040.0)
    return a_status(state, worker_pid=4712, progress=progress)


def seen(*statuses: Status, from_step: int = 0) -> Status:
    """What `look_on` has seen last of a run that comes into these states one after another."""
    coming = list(statuses)

    def answer(_: RequestKind) -> Status:
        return coming.pop(0) if len(coming) > 1 else coming[0]

    with control_server(a_run(), answer):
        return look_on(a_run(), from_step=from_step, is_command=False)


def test_the_terminal_may_be_closed_once_a_step_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    """Not while it loads, nor while it is where its checkpoint was."""
    seen(at("loading", 40, RunState.STARTING), at("training", 40), at("training", 41), from_step=40)
    out = capsys.readouterr().out
    assert out == "Step 41 of 96 is done; about 34 min to go. This terminal may be closed.\n"


def test_a_failure_before_the_first_step_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    failed = a_status(RunState.FAILED, failure="The model cannot be loaded.", attention=["The model cannot be loaded."])
    last = seen(at("loading", 0, RunState.STARTING), failed)
    assert last.state is RunState.FAILED
    said = capsys.readouterr()
    assert "may be closed" not in said.out
    assert said.err.splitlines()[0] == "The run failed: The model cannot be loaded."
    assert "memsup start --fresh" in said.err


def test_nobody_waits_for_what_was_paused_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    seen(at("loading", 0, RunState.STARTING), a_status(RunState.PAUSED, wanted=Wanted.PAUSED))
    assert "No step is done yet (paused)" in capsys.readouterr().err
    hours = HoursStatus(rests=True, until=9.0, what="paused until Sun 23:00, by its hours (23:00 to 07:00)")
    seen(at("loading", 0, RunState.STARTING), a_status(RunState.PAUSED, hours=hours))
    assert "No step is done yet (paused until Sun 23:00, by its hours" in " ".join(capsys.readouterr().err.split())


def test_a_command_is_looked_at_for_as_long_as_what_ends_at_once_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 and its last words where it ends at once; with --detach nobody waits."""
    monkeypatch.chdir(tmp_path)
    code, text = said_on_a_terminal(100, "start", "--", "sh", "-c", "echo no such file >&2; exit 3")
    assert code == 1, text
    assert "Looking at this machine" in text.splitlines()[0]
    assert "The run failed: The command ended with exit code 3" in text
    assert "\n  no such file\n" in text
    assert "may be closed" not in text
    code, text = said_on_a_terminal(100, "start", "--fresh", "--", "sleep", "1000")
    assert (code, "It runs. This terminal may be closed." in text) == (0, True), text
    said(capfd, "stop", "--now")
    code, text = said_on_a_terminal(100, "start", "--detach")
    assert (code, "its first step is still to come" in text) == (0, True), text
