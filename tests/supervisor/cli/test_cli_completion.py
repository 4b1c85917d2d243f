"""What a shell completes, and how it is told to; commands that are misspelt or called otherwise are named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from kit.cli_process import MEMSUP, a_run, said
from kit.terminal import terminal

from memsup.checkpoint.store import Store
from memsup.shared.schema import schema_of_settings
from memsup.shared.settings import keys


def completed(*words: str) -> list[str]:
    """What bash is told for the last of the words."""
    environment = {
        "COMP_WORDS": " ".join(["memsup", *words]),
        "COMP_CWORD": str(len(words)),
        "_MEMSUP_COMPLETE": "bash_complete",
    }
    done = subprocess.run(MEMSUP, env=os.environ | environment, capture_output=True, text=True, check=False)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_runs_settings_and_checkpoints_are_completed() -> None:
    paths = a_run("night")
    a_run("noon")
    with Store(paths.checkpoints).draft(7) as draft:
        draft.write_bytes("note.bin", b"1")
        draft.commit()
    assert completed("st") == ["start", "status", "stop"]
    assert completed("status", "--run", "n") == ["night", "noon"]
    assert completed("rm", "ni") == ["night"]
    assert completed("start", "--set", "limits.r") == ["limits.ram=", "limits.ram_reserve="]
    assert completed("start", "--mod") == ["--model"]
    assert completed("checkpoint", "--run", "night", "--verify", "step-0") == [str(paths.checkpoints / "step-00000007")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_that_is_started_next_completes_what_is_typed(
    shell: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, in a home where nothing else is set up, by a person who types a beginning and the tab key."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"NOT RUN: no {shell} here")
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR", "PROMPT_COMMAND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(MEMSUP[0]).parent}:{os.environ['PATH']}")
    a_run("a-night-in-may")
    assert said(capfd, "completion", "install", shell)[0] == 0
    with terminal([program, "-i"], 80, 24) as seen:
        seen.type("memsup predi\t")
        seen.until(lambda _: "memsup predict " in seen.text)
        seen.type("--run a-ni\t")
        seen.until(lambda _: "a-night-in-may" in seen.text)
        assert "not found" not in seen.text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_once_and_taken_away_again(
    shell: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stood in the shell's own file stands there afterwards as it was."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("ZDOTDIR", raising=False)
    file, own = tmp_path / f".{shell}rc", "alias ll='ls -l'  # \udce4 no line end".encode(errors="surrogateescape")
    file.write_bytes(own)
    for _ in range(2):
        code, text = said(capfd, "completion", "install")
        assert code == 0, text
    if shell == "fish":
        assert (tmp_path / ".config/fish/completions/memsup.fish").exists()
    else:
        lines = file.read_bytes().splitlines()
        assert [b"memsup completion" in line for line in lines] == [False, True]
        if shutil.which(shell):
            subprocess.run([shell, "-n", str(tmp_path / f".local/share/memsup/completion.{shell}")], check=True)
    assert said(capfd, "completion", "remove")[0] == 0
    assert file.read_bytes().rstrip(b"\n") == own
    assert not list(tmp_path.rglob("*memsup.fish")) + list(tmp_path.rglob("completion.*"))


@pytest.mark.parametrize(
    ("typed", "meant"), [("statsu", "status"), ("ls", "list"), ("remove", "rm"), ("train", "start"), ("frobnicate", None)]
)
def test_a_command_that_is_none_is_answered_with_the_one_that_was_meant(
    typed: str, meant: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capfd, typed)
    assert code == 2
    assert f"No such command '{typed}'" in text
    assert re.findall(r"Did you mean '(\w+)'", text) == ([meant] if meant else [])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--per_device_train_batch_size", "Write: --batch-size N\n"),
        ("--early-stopping-patience", "Write: --set training.patience=…\n"),
        ("--output_dir", "memsup status says where.\n"),
    ],
)
def test_an_option_of_training_scripts_is_answered_with_what_to_type(
    option: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capfd, "start", option, "4")
    assert (code, text.endswith(words)) == (2, True), text


def test_the_schema_has_every_setting_and_knows_what_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    document = json.loads(said(capfd, "init", "--schema")[1])
    assert document == schema_of_settings()
    for name in keys():
        section, _, field = name.rpartition(".")
        place = document["properties"][section] if section else document
        assert field in place["properties"]
        assert place["additionalProperties"] is False
    training = document["properties"]["training"]["properties"]
    assert training["epochs"] == {"type": "number", "exclusiveMinimum": 0, "maximum": 10_000, "default": 3.0}
    assert {"const": "auto"} in training["effective_batch"]["anyOf"]
