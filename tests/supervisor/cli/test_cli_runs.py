"""`memsup list` and `rm`: all runs with what they take, and the removal of what memsup made of some, and of nothing else."""

from __future__ import annotations

import io
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from kit.cli_process import a_run, end_supervisors, eventually, memsup, said
from kit.statuses import a_status

from memsup.checkpoint.store import Store
from memsup.shared.paths import RunPaths, run_paths
from memsup.shared.status import ProgressStatus, RunState, encode_status
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.client.runs import all_runs

DAY_S = 86400.0


def a_run_that_is(state: RunState, name: str, *, days_ago: float = 0.0, **fields: object) -> RunPaths:
    """A run as its supervisor left it, with a checkpoint and a model."""
    paths = a_run(name)
    status = a_status(state, since=time.time() - days_ago * DAY_S, **fields)
    status.run = name
    paths.status.write_bytes(encode_status(status))
    with Store(paths.checkpoints).draft(7) as draft:
        draft.write_bytes("note.bin", bytes(100_000))
        draft.commit()
    paths.model.mkdir()
    (paths.model / "config.json").write_text("{}")
    for file in (paths.ledger, paths.worker_log, paths.state / "worker.log.end0", paths.state / "ledger.1.jsonl"):
        file.write_text("{}\n")
    return paths


def test_all_runs_are_listed_with_their_state_progress_result_and_size(capfd: pytest.CaptureFixture[str]) -> None:
    code, text = said(capfd, "list")
    assert (code, "no run in" in text) == (0, True)
    a_run_that_is(RunState.FINISHED, "default.old-1", days_ago=40, result={"accuracy": 0.91}, model_path="/x")
    a_run_that_is(RunState.STOPPED, "night", days_ago=2, progress=ProgressStatus(step=7, total_steps=10))
    a_run("broken").record.write_text("{half")
    code, text = said(capfd, "list")
    assert code == 0
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][:3] == ["run", "state", "progress"]
    assert rows[1][:2] == ["broken", "unreadable"]
    assert [*rows[2][:2], *rows[2][-5:-2]] == ["default.old-1", "finished", "accuracy", "91.0", "%"]
    assert "7 (70 %)" in text
    assert "2 d ago" in text
    runs = json.loads(said(capfd, "list", "--json")[1])["runs"]
    assert [(run["run"], run["state"], run["is_up"]) for run in runs] == [
        ("broken", None, False),
        ("default.old-1", "finished", False),
        ("night", "stopped", False),
    ]
    assert all(run["bytes"] >= 100_000 for run in runs[1:])


def test_what_memsup_made_of_a_run_is_removed_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a file of somebody's in its folder, not what a link leads to, not a folder that is only called like a checkpoint."""
    paths = a_run_that_is(RunState.FINISHED, "night")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    (paths.state / "notes.txt").write_text("mine")
    (paths.curves / "tensorboard").mkdir(parents=True)
    (paths.curves / "tensorboard" / "events.out.tfevents.1.memsup.1").write_bytes(b"curves")
    (paths.checkpoints / "step-00000009").mkdir()
    (paths.checkpoints / "step-00000009/weights.bin").write_text("mine")
    (paths.state / "cache").symlink_to(theirs)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, text = said(capfd, "rm", "night")
    assert code == 2
    assert "--yes" in text
    assert (paths.model / "config.json").exists()
    assert said(capfd, "rm", "nihgt", "--yes")[0] == 4
    assert said(capfd, "rm")[0] == 2
    code, text = said(capfd, "rm", "night", "--yes")
    assert code == 0, text
    assert "stays what is not memsup's: cache, checkpoints, notes.txt" in text
    assert (theirs / "thesis.tex").exists()
    left = sorted(str(file.relative_to(paths.state)) for file in paths.state.rglob("*") if file.is_file())
    assert left == ["checkpoints/step-00000009/weights.bin", "notes.txt"]
    assert json.loads(said(capfd, "list", "--json")[1])["runs"] == []


def test_runs_are_chosen_by_age_and_end(capfd: pytest.CaptureFixture[str]) -> None:
    for name, state, days in (
        ("a", RunState.FINISHED, 40),
        ("b", RunState.FINISHED, 2),
        ("c", RunState.STOPPED, 50),
        ("d", RunState.STOPPED, 1),
    ):
        a_run_that_is(state, name, days_ago=days)
    document = json.loads(said(capfd, "rm", "--finished", "--older-than", "30d", "--yes", "--json")[1])
    assert [removed["run"] for removed in document["removed"]] == ["a"]
    assert said(capfd, "rm", "--older-than", "soon", "--yes")[0] == 2
    code, text = said(capfd, "rm", "--older-than", "30d", "--yes")
    assert (code, text.startswith("Removed run 'c', 1"), text.count("\n")) == (0, True, 1), text
    assert not run_paths("c").state.exists()
    assert "No run is to be removed" in said(capfd, "rm", "--older-than", "30d")[1]


def test_a_run_that_is_up_is_never_removed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where it is named, and where all of its kind are."""
    assert memsup("start", "--", "sleep", "1000", cwd=tmp_path).returncode == 0
    try:
        code, text = said(capfd, "rm", "default", "--yes")
        assert (code, "memsup stop" in text) == (1, True), text
        assert "No run is to be removed" in said(capfd, "rm", "--older-than", "1ms", "--yes")[1]
        assert is_held(run_paths("default"))
        run = json.loads(said(capfd, "list", "--json")[1])["runs"][0]
        assert (run["is_up"], run["is_unguarded"]) == (True, False)
        os.kill(json.loads(said(capfd, "status", "--json")[1])["pid"], signal.SIGKILL)
        eventually(lambda: not is_held(run_paths("default")))
        run = json.loads(said(capfd, "list", "--json")[1])["runs"][0]
        assert (run["is_up"], run["is_unguarded"]) == (True, True)
        assert "stopped, unguarded" in said(capfd, "list")[1]
        code, text = said(capfd, "rm", "default", "--yes")
        assert (code, "memsup start, then memsup stop" in text) == (1, True), text
        assert memsup("start", cwd=tmp_path).returncode == 0
    finally:
        end_supervisors()
    assert said(capfd, "rm", "default", "--yes")[0] == 0
    assert not run_paths("default").state.exists()
    assert not run_paths("default").runtime.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: only root can become another user")
def test_a_run_that_somebody_else_began_there_keeps_nobody_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a `sudo memsup start`. In a process of its own, since that becomes another user."""
    nobody = 65534
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        state = Path(folder, "state")
        for path in (state, state / "of-root", state / "ours"):
            path.mkdir(mode=0o700)
            (path / "run.json").touch()
        for path in (Path(folder), state, state / "ours"):
            os.chown(path, nobody, nobody)
        monkeypatch.setenv("MEMSUP_STATE_DIR", str(state))
        monkeypatch.setenv("MEMSUP_RUNTIME_DIR", f"{folder}/runtime")
        child = os.fork()
        if child == 0:
            try:
                os.setresgid(nobody, nobody, nobody)
                os.setresuid(nobody, nobody, nobody)
                os._exit(0 if [paths.name for paths in all_runs()] == ["ours"] else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
