"""`training.report_to` from the command line: what is missing is named first, and how curves are looked at is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kit.cli_process import a_run, control_server, said_on_a_terminal
from kit.lone_supervisor import tiny_job
from kit.statuses import full_status

from memsup.shared.messages import RequestKind
from memsup.shared.paths import run_paths
from memsup.supervisor.daemon.lock import Lock


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_job(tmp_path, epochs=1, more='report_to = ["tensorboard", "trackio"]\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_package_that_is_missing_is_named_before_anything_is_started(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # as where it is not installed
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, text = said_on_a_terminal(200, "start", "--accept")
    assert code == 2
    assert "report_to names tensorboard and trackio, which are not installed" in text
    assert "pip install 'memsup[tensorboard,trackio]'" in text
    assert not run_paths("default").record.exists()


def test_so_it_is_where_the_run_is_up(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    (job / "memsup.toml").unlink()
    paths = a_run()
    lock = Lock(paths)
    try:
        with control_server(paths, lambda _: full_status()) as asked:
            code, text = said_on_a_terminal(200, "start", "--set", "training.report_to=trackio")
        assert code == 2
        assert "pip install 'memsup[trackio]'" in text
        assert RequestKind.TAKE_OVER not in asked
    finally:
        lock.release()


def test_start_says_how_curves_are_looked_at(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_paths("default").curves
    pytest.importorskip("tensorboard", reason="NOT RUN: tensorboard is not installed")
    code, text = said_on_a_terminal(400, "start", "--accept", "--dry-run", "--set", "training.report_to=tensorboard")
    assert code == 0, text
    assert f"tensorboard --logdir {folder}/tensorboard" in text
    assert "trackio" not in text
    assert "tensorboard --" not in said_on_a_terminal(400, "start", "--dry-run", "--set", "training.report_to=off")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--report-to", "wandb"], "In memsup it is training.report_to: tensorboard, trackio, or both with a comma between."),
        (["--set", "training.report_to=wandb"], "write tensorboard, trackio, both with a comma between, or off for none"),
        (["--set", "training.report_to=none"], "write tensorboard, trackio, both with a comma between, or off for none"),
    ],
)
def test_what_cannot_be_written_for_is_answered_with_what_can(job: Path, arguments: list[str], said: str) -> None:
    code, text = said_on_a_terminal(400, "start", *arguments)
    assert code == 2
    assert said in text, text
