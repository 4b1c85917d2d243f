"""What the user finds of a checkpoint is all of it or none, whenever the program is killed, and nobody else's is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memsup import trainer_files
from memsup.folders import MARK
from memsup.places import PLACE

CALLS = ("mkdir", "link", "rename", "fsync", "unlink", "rmdir")


def a_checkpoint(path: Path, content: str, run_id: str | None = "ours") -> Path:
    (path / "adapter").mkdir(parents=True)
    (path / "model.safetensors").write_text(content)
    (path / "adapter" / "config.json").write_text(content)
    if run_id is not None:
        (path / MARK).touch()
        (path / PLACE).write_text(json.dumps({"run_id": run_id}))
    return path


def contents(path: Path) -> set[str]:
    return {(path / name).read_text() for name in ("model.safetensors", "adapter/config.json")}


def killed_at_call(number: int, act: Callable[[], object]) -> bool:
    """Has a child act, and die before its `number`th system call of those above; returns whether it did die."""
    child = os.fork()
    if child == 0:
        left = [number]

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def before(*arguments: object, **named: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return call(*arguments, **named)

            return before

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        act()
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


@pytest.mark.parametrize("there", ["nothing", "ours", "theirs"])
def test_killed_at_each_call_it_is_given_whole_or_not_at_all(tmp_path: Path, there: str) -> None:
    number, died = 0, True
    while died:
        out = tmp_path / str(number)
        target = out / "checkpoint-7"
        out.mkdir()
        source = a_checkpoint(tmp_path / f"kept{number}", "new")
        if there != "nothing":
            a_checkpoint(target, "old", "ours" if there == "ours" else None)
        died = killed_at_call(number, lambda source=source, target=target: trainer_files.give(str(source), str(target), "ours"))
        trainer_files.sweep(str(out))
        assert contents(source) == {"new"}
        if target.exists():
            assert contents(target) in ({"new"}, {"old"})
        names = {path.name for path in out.iterdir()}
        assert names <= {"checkpoint-7", "earlier-checkpoint-7"}, names
        if there == "theirs":
            assert {"old"} in [contents(out / name) for name in names]
        number += 1
    assert contents(target) == {"new"}
    assert number > 8


@pytest.mark.parametrize("there", ["ours", "theirs"])
def test_where_it_cannot_be_given_what_was_there_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    target = a_checkpoint(tmp_path / "checkpoint-7", "old", "ours" if there == "ours" else None)
    source = a_checkpoint(tmp_path / "kept" / "checkpoint", "new")
    rename = os.rename

    def refused(old: str, new: str) -> None:
        if ".memsup-draft-" in old:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        rename(old, new)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OSError, match="quota"):
        trainer_files.give(str(source), str(target), "ours")
    assert contents(target) == {"old"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-7", "kept"}


def test_what_another_run_has_put_there_is_not_taken_away(tmp_path: Path) -> None:
    for run_id in ("ours", "another", None):
        target = a_checkpoint(tmp_path / f"checkpoint-{len(str(run_id))}", "x", run_id)
        trainer_files.take_away(str(target), "ours")
        assert target.exists() is (run_id != "ours")


def test_what_is_no_checkpoint_is_neither_waited_for_nor_raised_about(tmp_path: Path) -> None:
    for name in (PLACE, trainer_files.STATE):
        for number, content in enumerate((None, "[" * 100_000, "[1]", "{}")):
            folder = tmp_path / f"{name}{number}"
            folder.mkdir()
            if content is None:
                os.mkfifo(folder / name)
            else:
                (folder / name).write_text(content)
            assert trainer_files.run_of(str(folder)) is None
            assert trainer_files.why_damaged(str(folder)) is not None


@pytest.mark.parametrize("header", [b"[]", b'{"a": {}}', b'{"a": 1}', b"[" * 100_000, b'{"a": {"data_offsets": "ab"}}'])
def test_weights_with_a_strange_header_are_damaged(tmp_path: Path, header: bytes) -> None:
    (tmp_path / trainer_files.STATE).write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "cannot be read" in str(trainer_files.why_damaged(str(tmp_path)))


def test_a_file_is_the_same_file_and_outlives_the_other(tmp_path: Path) -> None:
    source, target = a_checkpoint(tmp_path / "kept", "new"), tmp_path / "checkpoint-7"
    assert trainer_files.give(str(source), str(target), "ours") is None
    assert (source / "model.safetensors").samefile(target / "model.safetensors")
    before = trainer_files.stamp(str(source))
    (target / "model.safetensors").write_text("somebody has written to it")
    assert trainer_files.stamp(str(source)) != before
    shutil.rmtree(source)
    assert contents(target) == {"somebody has written to it", "new"}
