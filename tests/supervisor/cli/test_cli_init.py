"""`memsup init` writes the job that a dry run found, and `start` takes it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from kit.cli_process import said

from memsup.shared.loading import load
from memsup.shared.settings import keys

ROWS = "评论,情感\n" + "".join(f"这个东西很好用 number {i},{'好' if i % 3 else '坏'}\n" for i in range(60))


def test_a_job_is_written_of_the_only_data_file_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = said(capfd, "init")
    assert (code, "There is no .csv" in text) == (2, True), text
    (tmp_path / "评 论.csv").write_text(ROWS, encoding="utf-8")
    code, text = said(capfd, "init")
    assert (code, "--model bert-base-chinese" in text) == (2, True), text
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "bert"}))
    code, text = said(capfd, "init", "--model", "model", "--epochs", "2", "--max-length", "64", "--set", "limits.ram=50%")
    assert code == 0, text
    written = tomllib.loads((tmp_path / "memsup.toml").read_text(encoding="utf-8"))
    assert written["task"] == {"model": "model", "train": "评 论.csv", "text": "评论", "label": "情感"}
    assert written["training"]["epochs"] == 2.0
    assert written["training"]["max_length"] == 64
    assert written["limits"] == {"ram": "50%"}
    code, text = said(capfd, "start", "--dry-run", "--json")
    assert code == 0, text
    assert said(capfd, "init", "--model", "model")[0] == 2, "one that is there stays"
    typed = {"tier": "low", "training.amp": "bf16", "training.patience": "3", "limits.ram_reserve": "1536MiB"}
    typed |= {"checkpoint.every": "90s", "checkpoint.keep": "5", "hours.end": "07:00", "task.class_weights": "balanced"}
    options = [word for name, value in typed.items() for word in ("--set", f"{name}={value}")]
    code, text = said(capfd, "init", "--model", "model", "--force", *options)
    assert code == 0, text
    from_file = load(job_file=tmp_path / "memsup.toml", flags=[], environment={}).settings
    from_flags = load(job_file=None, flags=[f"{name}={value}" for name, value in typed.items()], environment={}).settings
    assert {name: keys()[name].value(from_file) for name in typed} == {name: keys()[name].value(from_flags) for name in typed}
    (tmp_path / "memsup.toml").write_text("[broken")
    assert said(capfd, "init", "--model", "model", "--force")[0] == 0
    (tmp_path / "other.csv").write_text(ROWS, encoding="utf-8")
    code, text = said(capfd, "init", "--model", "model", "--force")
    assert (code, "There are other.csv, 评 论.csv" in text) == (2, True), text
