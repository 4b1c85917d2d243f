"""A ledger that grows for months is cut into parts, and no line is lost on the way but the oldest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memsup.supervisor.record.rotation import parts_of, rotate


def lines_of(file: Path) -> list[bytes]:
    return [line for part in parts_of(file) if part.exists() for line in part.read_bytes().splitlines()]


def test_the_newest_lines_are_kept_in_order(tmp_path: Path) -> None:
    """A thousand lines, ten to a part, three parts and the one in use."""
    file = tmp_path / "ledger.jsonl"
    for number in range(1000):
        rotate(file, most_bytes=50, parts=3)
        with open(file, "ab") as ledger:
            ledger.write(b"%04d\n" % number)
    kept = [int(line) for line in lines_of(file)]
    assert kept == list(range(kept[0], 1000))
    assert 33 <= len(kept) <= 44
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ledger.1.jsonl",
        "ledger.2.jsonl",
        "ledger.3.jsonl",
        "ledger.jsonl",
    ]


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the renames in turn: the next rotation goes on from there, and the order stands."""
    for killed_at in range(3):
        folder = tmp_path / str(killed_at)
        folder.mkdir()
        file = folder / "ledger.jsonl"
        for number, name in enumerate(("ledger.2.jsonl", "ledger.1.jsonl", "ledger.jsonl")):
            (folder / name).write_bytes(b"%d\n" % number * 20)
        before = lines_of(file)
        renames: list[Path] = []

        def rename(self: Path, target: Path, renames: list[Path] = renames, stop: int = killed_at) -> Path:
            if len(renames) == stop:
                raise KeyboardInterrupt
            renames.append(self)
            os.rename(self, target)
            return target

        with monkeypatch.context() as killing:
            killing.setattr(Path, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                rotate(file, most_bytes=10, parts=5)
        assert lines_of(file) == before
        rotate(file, most_bytes=10, parts=5)
        assert lines_of(file) == before


def test_a_small_or_missing_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    assert not rotate(file)
    file.write_bytes(b"x\n")
    assert not rotate(file)
    assert os.listdir(tmp_path) == ["ledger.jsonl"]
