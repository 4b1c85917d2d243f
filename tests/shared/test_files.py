"""Files of lines are whole: a line is there, or it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kit.small_disk import MIB, fill, on_a_small_disk

from memsup.shared.files import append_whole


def test_lines_are_added_at_the_end_and_a_new_file_is_the_users_alone(tmp_path: Path) -> None:
    file = tmp_path / "plan.jsonl"
    append_whole(file, b"one\n")
    append_whole(file, b"two\nthree\n", durable=True)
    assert file.read_bytes() == b"one\ntwo\nthree\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    """Somebody else's file would grow."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"theirs\n")
    link.symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        append_whole(link, b"ours\n")
    assert target.read_bytes() == b"theirs\n"


@pytest.mark.parametrize("durable", [False, True])
def test_on_a_disk_without_room_for_all_nothing_is_added(tmp_path: Path, durable: bool) -> None:
    """A kernel that takes the first part of the lines only must not leave half a line behind."""

    def play() -> None:
        file = tmp_path / "plan.jsonl"
        file.write_bytes(b"before\n")
        fill(tmp_path)
        with pytest.raises(OSError, match=os.strerror(28)):
            append_whole(file, b"x" * 200_000 + b"\n", durable=durable)
        assert file.read_bytes() == b"before\n"

    on_a_small_disk(tmp_path, MIB, play)
