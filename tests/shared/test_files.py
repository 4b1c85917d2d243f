"""Files of lines are whole: a line is there, or it is not. And what others may have made is opened without trusting it."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest
from kit.small_disk import MIB, fill, on_a_small_disk

from memsup.shared.files import (
    NotAFileError,
    UnreadableError,
    append_whole,
    open_regular,
    read_document,
    read_small,
    replace_file,
)
from memsup.shared.run_file import put_record


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


def test_a_full_disk_is_the_reason_where_no_room_was_taken_for_a_record(tmp_path: Path) -> None:
    """ "No such file or directory" of a file that lies there would help nobody to make room."""

    def play() -> None:
        file = tmp_path / "run.json"
        file.write_bytes(b"before\n")
        fill(tmp_path)
        with pytest.raises(OSError, match=os.strerror(28)):
            put_record(file, b"x" * 10_000)
        assert file.read_bytes() == b"before\n"

    on_a_small_disk(tmp_path, MIB, play)


# --------------------------------------------------------------------------------------------------------------------
# What others may have made


@pytest.mark.parametrize("path", ["pipe", "/dev/zero", "/dev/null", "socket", "folder", "link to a pipe"])
def test_only_a_regular_file_is_opened(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing waits for who would write into a pipe."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("pipe", "link to a pipe")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind("socket")
        with pytest.raises(NotAFileError, match="and not a file"):
            open_regular(path)
        with pytest.raises(NotAFileError, match="and not a file"):
            read_small(path, 10)
        with pytest.raises(UnreadableError, match="and not a file"):
            read_document(Path(path), bytes)


def test_a_pipe_in_the_place_of_a_file_that_is_written_keeps_nobody(tmp_path: Path) -> None:
    for name in ("lines", "whole.new"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        append_whole(tmp_path / "lines", b"x\n")
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        replace_file(tmp_path / "whole", b"x")


def test_no_more_is_read_than_a_real_file_has(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    assert read_small(file, 10) == b"0123456789"
    with pytest.raises(OSError, match="it has 10 bytes, and no real one has more than 9"):
        read_small(file, 9)
    with pytest.raises(OSError, match="no real one has more than 4"):  # a file of /proc says that it has nothing
        read_small("/proc/self/status", 4)


def test_a_document_makes_sense_or_is_unreadable(tmp_path: Path) -> None:
    file = tmp_path / "document"
    with pytest.raises(FileNotFoundError):
        read_document(file, json.loads)
    for content in (b"{", b"\xff", b"[" * 100_000, b"9" * 5000):
        file.write_bytes(content)
        with pytest.raises(UnreadableError):
            read_document(file, json.loads)
